"""The state file: load, save, transactions, leases.

What is promised, on a local POSIX file system whose fsync is honest:

* `StateStore.load` returns the last acknowledged save or a newer attempted one; never a mix, and
  never an empty state in place of one that cannot be read. It takes no lock and writes nothing.
* When `StateStore.save` returns, the state survives a power cut; when it raises, the former state
  stands and the next save works.
* A writer that did not see the latest state cannot overwrite it (`RevisionConflict`).
* A file that does not read is moved aside to ``NAME.corrupt-<time>``, never rotated over ``.bak``.

What is not: disks that lie about fsync, NFS without locks, two hosts on one file, tampering (a
checksum is no signature), and programs that write the file without asking us - their edit is
noticed, not prevented.

Here a save is put together, and judged against what others saved. How the state is found is in
`statestore.disk.reading`, who may write in `statestore.disk.locks`, how bytes reach the disk in
`statestore.disk.durable`. Beside the state file stand ``NAME.bak`` (the state before),
``NAME.lock`` (never to be deleted), ``NAME.lease`` (while a bot runs) and, during a save,
``NAME.tmp`` and ``NAME.bak.tmp``.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from statestore.disk import codec, durable
from statestore.disk.backups import Backups, copy_to, read_valid
from statestore.disk.checking import CheckReport, check_files
from statestore.disk.durable import Durability
from statestore.disk.locks import Lease, WriterLock, flock_holder, lease_holder, take_lease
from statestore.disk.reading import Found, OnMismatch, Reader, peek_revision
from statestore.errors import (
    BackupFailed,
    RevisionConflict,
    StateCorrupt,
    StateInvalid,
    StateMissing,
    UsageError,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from statestore.disk.saver import Saver

logger = logging.getLogger(__name__)

_HOST = os.uname().nodename

# From here on the disk is given the bytes before their checksum: it is at work while that is
# computed. Below, a second transfer costs it more than that saves.
_LARGE = 1 << 18

Numbers = codec.Numbers
BeforeCommit = Callable[[], None]

# Called with the state file's path before anything is written; the pytest plugin refuses live ones.
path_guard: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class StateMeta:
    """What is known about a state that was loaded or saved.

    Attributes:
        revision: 0 for a file without ``_meta`` and for a state that is not saved yet.
        saved_at: RFC 3339 in UTC; empty where the file does not say.
        sha256: the file's sum; the hash of its bytes where the sum is missing or wrong.
        state_path: the state file.
        path: the file that was read, which is not `state_path` after a recovery.
        verified: the sum was there and right.
        recovered_from: the fallback that was read; None if it was the state file itself.
        recovered_why: what is wrong with the state file.
        durability: of the saves of the store that loaded or saved it; two states that differ in
            nothing else are equal.
    """

    revision: int
    saved_at: str
    reason: str
    writer: str
    sha256: str
    state_path: Path
    path: Path
    verified: bool
    recovered_from: Path | None = None
    recovered_why: str | None = None
    durability: Durability = field(default="full", compare=False)


class State(dict[str, Any]):
    """The sections of a state as a plain dict, and where they came from.

    Attributes:
        meta: of the load or save this state was last seen in; `StateStore.save` brings it up to
            date, so that a main loop can save the same state again and again.
    """

    meta: StateMeta

    def __init__(self, sections: Mapping[str, Any], meta: StateMeta) -> None:
        super().__init__(sections)
        self.meta = meta


@dataclass(slots=True)
class _Known:
    """Which state a writer saw last. Without `identity` only the revision is compared."""

    revision: int
    identity: str | None
    recovered: bool


class StateStore:
    """One state file.

    Threads may share a store, and a forked child may go on using it. A store object remembers what
    it last loaded or saved; two writers that pass plain dicts should have a store each, or save the
    `State` they loaded.

    Attributes:
        path: the state file; a symlink is followed once, when the store is made.
        durability: what a power cut may take.
        backup_path, lock_path, lease_path: beside it.
        backups: the timestamped copies.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        backup_dir: str | os.PathLike[str] | None = None,
        lock_timeout: float = 10.0,
        on_mismatch: OnMismatch = "refuse",
        durability: Durability = "full",
    ) -> None:
        """Remember where the state is; nothing is read or made yet.

        Args:
            backup_dir: ``state_backups`` beside the state file unless given.
            lock_timeout: seconds a save waits for another writer.
            on_mismatch: what `load` makes of a state file whose sum is wrong: ``refuse`` it, load
                it and ``warn``, or treat it as damaged and use the ``fallback``.
            durability: what a power cut or a crash of the system (not of the process) may take.
                ``full``: nothing that was saved. ``relaxed``, for tests and simulations: no fsync,
                so it may take any number of saves, or leave the state file and ``.bak`` empty or
                torn. ``single-sync``: nothing, at half the cost, on ext4 (with a journal and
                ordered data) and xfs; it relies on how these are built, not on POSIX.

        Raises:
            UsageError: an option means nothing, or ``single-sync`` on another file system.
        """
        if on_mismatch not in get_args(OnMismatch):
            raise UsageError(
                f"on_mismatch is {on_mismatch!r}; it has to be one of {get_args(OnMismatch)}"
            )
        if durability not in get_args(Durability):
            raise UsageError(
                f"durability is {durability!r}; it has to be one of {get_args(Durability)}"
            )
        self.path = Path(os.path.realpath(path))
        if durability == "single-sync":
            durable.require_single_sync(self.path)
        elif durability == "relaxed":
            logger.warning("saves do not survive a power cut", extra={"path": str(self.path)})
        self.durability: Durability = durability
        self.backup_path = Path(f"{self.path}.bak")
        self.lock_path = Path(f"{self.path}.lock")
        self.lease_path = Path(f"{self.path}.lease")
        folder = self.path.parent / "state_backups" if backup_dir is None else Path(backup_dir)
        self.backups = Backups(folder, self.path)
        self.lock_timeout = lock_timeout
        self.on_mismatch: OnMismatch = on_mismatch
        self._reader = Reader(self.path, self.backup_path, self.backups, str(self.path))
        self._lock = WriterLock(self.path, self.lock_path)
        self._seen: Found | None = None
        self._remembered: codec.Remembered = {}
        # The state this store flushed itself; what another process left may not be on disk.
        self._flushed = ""
        self._flush_owed = False  # of its folder
        self._suspect = ""  # a state whose only fsync failed: never to be ``.bak``, nor good enough
        self._saver: tuple[int, Executor] | None = None

    def __repr__(self) -> str:
        return f"StateStore({str(self.path)!r})"

    @property
    def revision(self) -> int | None:
        """Revision this store last loaded or saved; None before."""
        return self._seen.revision if self._seen else None

    @property
    def recovered_from(self) -> Path | None:
        """The fallback the last load used; None if it read the state file itself."""
        return self._seen.source if self._seen and self._seen.why else None

    # Reading

    def load(self, *, numbers: Numbers = "float", missing_ok: bool = True) -> State:
        """Return the state: of the file, else of ``.bak``, else of the newest valid backup.

        Args:
            numbers: ``float`` as bots expect, or ``decimal`` for exact Decimals.
            missing_ok: nothing at all on disk is a new, empty state.

        Raises:
            StateMissing: no state file, no ``.bak``, no backup, and `missing_ok` is False.
            StateCorrupt: something is there, but nothing that reads.
            StateChecksumMismatch: the file is valid JSON, but not what was saved.
            StateInvalid: written by a newer version.
            StateError: it may not be read.
        """
        seen = self._reader.find(self.on_mismatch)
        if seen.document is None and not missing_ok:
            raise self._reader.missing()
        state = self._state(seen, numbers)
        self._seen = seen
        self._announce(seen)
        return state

    def changed(self) -> bool:
        """Return whether the state file is another one than this store last saw. One stat."""
        return self._seen is None or not self._reader.still_stands(self._seen)

    def refresh(self, *, numbers: Numbers = "float") -> State:
        """Return the state as it is now; the file is read again only if it changed."""
        seen = self._seen
        # Where there was no state at all, a `.bak` may have come that the state file does not show.
        if seen is None or seen.document is None or not self._reader.still_stands(seen):
            return self.load(numbers=numbers)
        return self._state(seen, numbers)

    def check(self) -> CheckReport:
        """Look at every file of this state; reads only."""
        return check_files(
            self.path,
            self.backup_path,
            self.backups,
            lock_holder=flock_holder(self.lock_path),
            lease=self.lease_holder(),
        )

    # Writing

    def save(
        self,
        state: Mapping[str, Any],
        *,
        reason: str = "save",
        expected_revision: int | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        """Save durably, unless somebody else saved since; unchanged content writes nothing.

        Args:
            state: a `State` that was loaded, or any mapping; ``_meta`` in it is left out.
            expected_revision: the revision this writer saw. Unless given, that of the `State`,
                else what this store last loaded or saved.
            before_commit: called under the lock, immediately before the state is replaced; what it
                raises goes to the caller, and nothing is changed.

        Raises:
            StateInvalid: a value cannot be saved as JSON; names its field. No file was opened.
            RevisionConflict: the state on disk is not the one this writer saw.
            StateLocked: another writer holds the lock for longer than `lock_timeout`.
            SaveFailed: the system refused; the former state stands.
            SaveNotDurable: the new state stands, but its folder could not be flushed. The store
                remembers, and the next save flushes it even if nothing changed.
            StateCorrupt, StateChecksumMismatch: what is on disk cannot be judged, as in `load`.
            UsageError: called inside a transaction on the same file, in the same thread.
        """
        return self._prepare(state, reason, expected_revision, before_commit)()

    async def asave(
        self,
        state: Mapping[str, Any],
        *,
        reason: str = "save",
        expected_revision: int | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        """`save` for asyncio: the state is encoded at once, and the disk waited for in a thread.

        What the loop does to `state` after the call is not in this save. Saves of one store happen
        in the order they were asked for. A cancelled call may still be carried out.
        """
        import asyncio

        act = self._prepare(state, reason, expected_revision, before_commit)
        return await asyncio.get_running_loop().run_in_executor(self._executor(), act)

    def saver(self) -> Saver:
        """Return what saves in the background and makes one save of a burst; see `Saver.save`.

        For a loop that must not wait for the disk and has no asyncio. Close it, or use it in a
        `with` block, to wait for what was asked for.
        """
        from statestore.disk.saver import Saver

        return Saver(self._prepare)

    @contextmanager
    def transaction(
        self,
        *,
        reason: str = "transaction",
        numbers: Numbers = "float",
        before_commit: BeforeCommit | None = None,
    ) -> Iterator[State]:
        """Lock, load, give the state to the caller, save it; nothing is saved on an exception.

        Other writers wait meanwhile, so do nothing slow inside. Not re-entrant: a save or another
        transaction on the same file in the same thread is refused with `UsageError`, since one of
        the two would undo the other.
        """
        self._ask_path_guard()
        self._lock.refuse_reentry()
        try:
            self._lock.acquire(self.lock_timeout)
            state = self.load(numbers=numbers)
            yield state
            self._commit(
                codec.encode(state, self.path, self._remembered), state, reason, None, before_commit
            )
        finally:
            self._lock.release()

    def backup(self, reason: str = "manual", *, to: Path | None = None) -> Path:
        """Copy the current good state, byte for byte, to a new timestamped file.

        Args:
            to: a folder that gets the file instead of ``state_backups``, or the name of a new file;
                on another disk, it survives the loss of this one.

        Raises:
            BackupFailed: it could not be written or does not read back, or the sum is wrong.
            StateMissing: there is nothing to copy.
            UsageError: `to` is a file that is there already.
        """
        self._ask_path_guard()
        seen = self._reader.find(self.on_mismatch)
        if seen.document is None:
            raise self._reader.missing()
        if seen.document.trust is codec.Trust.MISMATCH:
            raise BackupFailed(
                self.path, f"{self.path} {seen.document.why}; no backup was made of it"
            )
        self._announce(seen)
        if to is not None and not to.is_dir():
            return copy_to(to, seen.data)
        backups = self.backups if to is None else Backups(to, self.path)
        return backups.write(seen.data, reason, seen.revision)

    def seal(self, *, reason: str = "seal", before_commit: BeforeCommit | None = None) -> StateMeta:
        """Accept an edited state file as it is: right sum, next revision, ``.bak`` untouched.

        Raises:
            StateMissing: there is no state file.
            StateCorrupt: it is no JSON document, so there is nothing to accept.
            StateLocked, SaveFailed, SaveNotDurable: as in `save`.
        """
        return self._exclusively(lambda: self._seal(reason, before_commit))

    def restore(
        self,
        source: str | os.PathLike[str],
        *,
        reason: str = "restore",
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        """Save what `source` (a backup, or ``.bak``) holds as the next revision, durably.

        The present state file becomes ``.bak`` if it is good, and is moved aside if it is not.

        Raises:
            StateCorrupt: `source` does not read as a state.
            StateMissing: `source` is not there.
            StateLocked, SaveFailed, SaveNotDurable: as in `save`.
        """
        return self._exclusively(lambda: self._restore(Path(source), reason, before_commit))

    # The lease of a running bot

    def lease(self) -> Lease:
        """Take the lease of this state, held until it is released or the process ends.

        Raises:
            LeaseHeld: another bot holds it; names its process, host and since when.
        """
        self._ask_path_guard()
        return take_lease(self.path, self.lease_path)

    def lease_holder(self) -> dict[str, Any] | None:
        """Return ``pid``, ``host`` and ``since`` of the lease's holder; None if nobody holds it.

        Empty where it is held, but the holder has not yet said who it is.
        """
        return lease_holder(self.lease_path)

    # Saving

    def _prepare(
        self,
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> Callable[[], StateMeta]:
        """Encode `state` as it is now; return what saves that."""
        encoded = codec.encode(state, self.path, self._remembered)
        return lambda: self._exclusively(
            lambda: self._commit(encoded, state, reason, expected_revision, before_commit)
        )

    def _commit(
        self,
        encoded: dict[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        if not self._lock.held:
            raise UsageError(
                f"{self.path} is not locked by this process: it was forked inside a transaction; "
                "leave the transaction to the parent"
            )
        found = self._current()
        known = self._known(state, expected_revision)
        self._require_latest(found, known)
        document = codec.arrange(encoded, found.document)
        unchanged = found.document is not None and found.document.sections == document.sections
        if unchanged and found.sealed and found.identity != self._suspect:
            self._flush(found)
            return self._accept(found, state)
        return self._write(
            found,
            document,
            reason,
            before_commit,
            keep=self._keep_for(found),
            at_least=known.revision if known else 0,
            state=state,
        )

    def _seal(self, reason: str, before_commit: BeforeCommit | None) -> StateMeta:
        found = self._reader.state_file()
        if found.document is None:
            why = found.why
            raise self._reader.missing() if why is None else self._reader.corrupt({self.path: why})
        if found.sealed and found.revision >= peek_revision(self.backup_path):
            self._flush(found)
            return self._accept(found, None)
        return self._write(found, found.document, reason, before_commit)

    def _restore(self, source: Path, reason: str, before_commit: BeforeCommit | None) -> StateMeta:
        refused: dict[Path, str] = {}
        valid = read_valid(source, refused.__setitem__)
        if valid is None and refused:
            raise StateCorrupt(source, f"{source} {refused[source]}; restore from another backup")
        if valid is None:
            raise StateMissing(source, f"there is no {source}; nothing was restored")
        try:
            found = self._reader.find("warn")
        except StateCorrupt:
            found = self._reader.state_file()
        return self._write(found, valid[1], reason, before_commit, keep=self._keep_for(found))

    def _current(self) -> Found:
        """Return what is on disk, without reading it again if it is what this store left there."""
        seen = self._seen
        if seen is not None and seen.readable and self._reader.still_stands(seen):
            return seen
        return self._reader.find(self.on_mismatch)

    def _known(self, state: Mapping[str, Any], expected: int | None) -> _Known | None:
        meta = state.meta if isinstance(state, State) else None
        if meta and (meta.state_path is self.path or meta.state_path == self.path):
            known = _Known(meta.revision, meta.sha256, meta.recovered_from is not None)
        elif self._seen is not None:
            seen = self._seen
            known = _Known(seen.revision, seen.identity, seen.why is not None)
        elif expected is None:
            return None
        else:
            known = _Known(expected, None, recovered=False)
        if expected is not None and expected != known.revision:
            return _Known(expected, None, known.recovered)
        return known

    def _require_latest(self, found: Found, known: _Known | None) -> None:
        loaded = known.revision if known else None
        conflict = functools.partial(RevisionConflict, self.path, loaded, found.revision)
        if found.document is None and not loaded:
            return
        if known is None or found.document is None:
            raise conflict()
        if found.why is not None and not known.recovered:
            if self._holds_the_lost_one(found, known):
                return
            raise conflict(f"the state file {found.why}, and this writer has not seen it")
        if known.revision != found.revision:
            raise conflict()
        if known.identity is not None and known.identity != found.identity:
            raise conflict("the revision is the same, but the content is another")

    def _holds_the_lost_one(self, found: Found, known: _Known) -> bool:
        """Return whether the damaged state file is the very one this writer saved or loaded.

        It is if ``.bak`` is older still: any later writer would have left this writer's state
        there. Then refusing would lose the only good copy, the one in memory.
        """
        seen = self._seen
        return (
            seen is not None
            and seen.sealed
            and seen.identity == known.identity
            and found.source == self.backup_path
            and found.revision < known.revision
        )

    def _keep_for(self, found: Found) -> Path | None:
        """Return the name under which the present state file stays: ``.bak`` only if it is good."""
        if found.signature is None or (found.sealed and found.identity == self._suspect):
            return None
        return self.backup_path if found.readable else durable.quarantine_path(self.path)

    def _write(
        self,
        found: Found,
        document: codec.Document,
        reason: str,
        before_commit: BeforeCommit | None,
        *,
        keep: Path | None = None,
        at_least: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> StateMeta:
        revision = max(found.revision, document.revision, at_least)
        if not found.sealed:
            revision = max(revision, peek_revision(self.path), peek_revision(self.backup_path))
        meta = codec.Meta(
            revision=revision + 1,
            saved_at=f"{datetime.now(UTC).isoformat(timespec='microseconds')[:-6]}Z",
            reason=reason.encode("utf-8", "backslashreplace").decode(),
            writer=f"{os.getpid()}@{_HOST}",
        )
        data, blank = codec.render(document, meta)
        if len(data) > codec.MAX_BYTES:
            raise StateInvalid(
                self.path,
                f"the state is {len(data)} bytes long, and more than {codec.MAX_BYTES} are not "
                f"loaded again ({self.path} is unchanged)",
            )

        def fill_in() -> slice:
            nonlocal document
            document = codec.seal(document, meta, data, blank)
            return blank

        late = len(data) >= _LARGE
        if not late:
            fill_in()
        try:
            status = durable.replace_file(
                self.path,
                data,
                keep_previous=keep,
                before_commit=before_commit,
                durability=self.durability,
                finish=fill_in if late else None,
            )
            self._flushed, self._flush_owed = document.identity, False
            saved = self._accept(Found.just_written(self.path, status, document, data), state)
        except BaseException:
            self._reconcile(document, data, keep, state)
            raise
        if keep is not None and not found.readable:
            logger.warning(
                "state file that is not good moved aside",
                extra={"path": str(self.path), "aside": str(keep)},
            )
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "state saved",
                extra={
                    "path": str(self.path),
                    "revision": meta.revision,
                    "reason": meta.reason,
                    "durability": self.durability,
                },
            )
        return saved

    def _reconcile(
        self,
        document: codec.Document,
        data: bytes | bytearray,
        keep: Path | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        """After a save that raised: find out whether it raised before or after the rename.

        After it (the folder's fsync failed, or Ctrl-C) the new state stands, and this store has to
        know that it is its own.
        """
        with suppress(OSError, durable.NotAFile, durable.TooLarge):
            present, status = durable.read_file(self.path, len(data))
            if present == data:
                self._flush_owed = True
                if self.durability == "single-sync":
                    self._suspect = document.identity
                if keep is not None:  # else the folder may be new, and owed a flush as well
                    self._flushed = document.identity
                self._accept(Found.just_written(self.path, status, document, data), state)
        with suppress(OSError):
            if keep is not None and keep != self.backup_path and keep.samefile(self.path):
                keep.unlink()

    def _accept(self, seen: Found, state: Mapping[str, Any] | None) -> StateMeta:
        self._seen = seen
        meta = self._meta(seen)
        if isinstance(state, State):
            state.meta = meta
        return meta

    def _flush(self, found: Found) -> None:
        """Make durable what stands, unless this store did: its writer may have been killed."""
        if self.durability == "relaxed":
            return
        if self._flushed != found.identity:
            durable.flush_file(self.path)
        elif self._flush_owed:
            durable.flush_folder(self.path)
        self._flushed, self._flush_owed = found.identity, False

    def _executor(self) -> Executor:
        from concurrent.futures import ThreadPoolExecutor

        if self._saver is None or self._saver[0] != os.getpid():
            self._saver = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="statestore")
        return self._saver[1]

    def _exclusively(self, act: Callable[[], StateMeta]) -> StateMeta:
        """Run `act` with every other writer kept out."""
        self._ask_path_guard()
        return self._lock.exclusively(act, self.lock_timeout)

    def _ask_path_guard(self) -> None:
        if path_guard is not None:
            path_guard(self.path)

    # What callers are told

    def _state(self, seen: Found, numbers: Numbers) -> State:
        try:
            sections = codec.decode(seen.document, numbers) if seen.document else {}
        except codec.Damaged as error:
            raise StateCorrupt(
                self.path,
                f"{seen.source} {error}; `statestore history` lists what else is at hand",
            ) from error
        return State(sections, self._meta(seen))

    def _meta(self, seen: Found) -> StateMeta:
        document = seen.document
        meta = document.meta if document and document.meta else codec.Meta()
        return StateMeta(
            revision=meta.revision,
            saved_at=meta.saved_at,
            reason=meta.reason,
            writer=meta.writer,
            sha256=seen.identity,
            state_path=self.path,
            path=seen.source,
            verified=document is not None and document.trust is codec.Trust.SEALED,
            recovered_from=seen.source if seen.why is not None else None,
            recovered_why=seen.why,
            durability=self.durability,
        )

    def _announce(self, seen: Found) -> None:
        """Say it loudly where the state is not the file as it was saved."""
        if seen.document is None:
            return
        fields = {"path": str(self.path), "revision": seen.revision}
        if seen.why is not None:
            logger.warning(
                "state loaded from a fallback",
                extra={
                    **fields,
                    "why": seen.why,
                    "source": str(seen.source),
                    "age_seconds": seen.age_seconds(),
                },
            )
        elif seen.document.trust is codec.Trust.MISMATCH:
            logger.warning(
                "state loaded although its checksum is wrong",
                extra={**fields, "why": seen.document.why},
            )
