"""The state file: load, save, transactions, leases. The only module that takes file locks.

What is promised, on a local POSIX file system whose fsync is honest:

* `StateStore.load` returns the last acknowledged save or a newer attempted one; never a mix, and
  never an empty state in place of one that cannot be read. It takes no lock and writes nothing.
* When `StateStore.save` returns, the state survives a power cut; when it raises, the former state
  stands and the next save works.
* A writer that did not see the latest state cannot overwrite it (`RevisionConflict`).
* A file that does not read is moved aside to ``NAME.corrupt-<time>``, never rotated over ``.bak``.

What is not: disks that lie about fsync, NFS without locks, two hosts on one file, tampering (a
checksum is no signature), and programs that write the file without asking us - their edit is
noticed, not prevented. Never delete ``NAME.lock``: a process that waits on the deleted file and one
that made a new one would both get in.

Beside the state file stand ``NAME.bak`` (the state before), ``NAME.lock``, ``NAME.lease`` (while a
bot runs) and, during a save, ``NAME.tmp`` and ``NAME.bak.tmp``.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from statestore import times
from statestore.disk import codec, durable
from statestore.disk.backups import Backups, read_valid
from statestore.errors import (
    BackupFailed,
    LeaseHeld,
    RevisionConflict,
    SaveFailed,
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateLocked,
    StateMissing,
    UsageError,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

logger = logging.getLogger(__name__)

OnMismatch = Literal["refuse", "warn", "fallback"]
Numbers = codec.Numbers
BeforeCommit = Callable[[], None]

# Called with the state file's path before anything is written; the pytest plugin refuses live ones.
path_guard: Callable[[Path], None] | None = None

_POLL_SECONDS = 0.002
_LEASE_PATIENCE_SECONDS = 0.25  # `lease_holder` of another process locks the file for an instant
# Two changes within one tick of the file system's clock have one timestamp; FAT's takes 2 s.
_CLOCK_TICK_NS = 2 * times.NANOSECONDS

_Signature = tuple[int, int, int, int, int]
_UNREADABLE: _Signature = (-1, -1, -1, -1, -1)


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


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file as `StateStore.check` found it."""

    path: Path
    status: Literal["good", "adopted", "mismatch", "damaged", "missing"]
    revision: int | None = None
    saved_at: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What stands in the folder of a state file.

    Attributes:
        leftovers: temporary files of writers that were killed. The next save takes those beside
            the state file away; those of a backup stay, and may be deleted.
        lock_holder: process id, None if nobody saves at this instant or the system does not say.
        lease: ``pid``, ``host`` and ``since`` of the running bot, None if there is none.
    """

    state: FileReport
    bak: FileReport
    backups: list[FileReport]
    quarantined: list[Path]
    leftovers: list[Path]
    lock_holder: int | None
    lease: dict[str, Any] | None

    @property
    def ok(self) -> bool:
        """The state file is good, and so is what stands behind it."""
        behind = [self.bak, *self.backups]
        return self.state.status in ("good", "adopted") and all(
            report.status in ("good", "adopted", "missing") for report in behind
        )


@dataclass(slots=True)
class _Seen:
    """What was found on disk at one moment.

    Attributes:
        signature: of the state file; None if it is missing.
        document: the state; None if there is none, or (`why` says so) none that reads.
        data: the bytes of the document's file.
        source: the document's file.
        why: what is wrong with the state file; None if nothing is.
        settled: no change since can hide behind an equal signature.
    """

    signature: _Signature | None
    source: Path
    document: codec.Document | None = None
    data: bytes = b""
    why: str | None = None
    settled: bool = False

    @property
    def revision(self) -> int:
        return self.document.revision if self.document else 0

    @property
    def identity(self) -> str:
        return self.document.identity if self.document else ""

    @property
    def readable(self) -> bool:
        """The state file itself holds the document, and nothing speaks against it."""
        return (
            self.document is not None
            and self.why is None
            and self.document.trust is not codec.Trust.MISMATCH
        )

    @property
    def sealed(self) -> bool:
        return (
            self.readable
            and self.document is not None
            and self.document.trust is codec.Trust.SEALED
        )


@dataclass(frozen=True, slots=True)
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
    ) -> None:
        """Remember where the state is; nothing is read or made yet.

        Args:
            backup_dir: ``state_backups`` beside the state file unless given.
            lock_timeout: seconds a save waits for another writer.
            on_mismatch: what `load` makes of a state file whose sum is wrong: ``refuse`` it, load
                it and ``warn``, or treat it as damaged and use the ``fallback``.
        """
        if on_mismatch not in get_args(OnMismatch):
            raise UsageError(
                f"on_mismatch is {on_mismatch!r}; it has to be one of {get_args(OnMismatch)}"
            )
        self.path = Path(os.path.realpath(path))
        self.backup_path = Path(f"{self.path}.bak")
        self.lock_path = Path(f"{self.path}.lock")
        self.lease_path = Path(f"{self.path}.lease")
        folder = self.path.parent / "state_backups" if backup_dir is None else Path(backup_dir)
        self.backups = Backups(folder, self.path)
        self.lock_timeout = lock_timeout
        self.on_mismatch: OnMismatch = on_mismatch
        self._lock = _OsLock(self.lock_path)
        self._seen: _Seen | None = None
        self._flush_owed = False
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
        seen = self._find(self.on_mismatch)
        if seen.document is None and not missing_ok:
            raise self._missing()
        self._seen = seen
        self._announce(seen)
        return self._state(seen, numbers)

    def changed(self) -> bool:
        """Return whether the state file is another one than this store last saw. One stat."""
        return self._seen is None or not self._stands(self._seen)

    def refresh(self, *, numbers: Numbers = "float") -> State:
        """Return the state as it is now; the file is read again only if it changed."""
        seen = self._seen
        if seen is None or not self._stands(seen):
            return self.load(numbers=numbers)
        return self._state(seen, numbers)

    def check(self) -> CheckReport:
        """Look at every file of this state; reads only."""
        holder = _holder_of(self.lock_path)
        folder, name = self.path.parent, self.path.name
        beside = sorted(folder.iterdir()) if folder.is_dir() else []
        leftovers = [p for p in beside if p.name.startswith(name) and p.name.endswith(".tmp")]
        leftovers += self.backups.leftovers()
        return CheckReport(
            state=_report(self.path),
            bak=_report(self.backup_path),
            backups=[_report(backup.path) for backup in self.backups.list()],
            quarantined=[p for p in beside if p.name.startswith(f"{name}.corrupt-")],
            leftovers=[] if holder else leftovers,
            lock_holder=holder,
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
        encoded = codec.encode(state, self.path)
        return self._save(encoded, state, reason, expected_revision, before_commit)

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

        encoded = codec.encode(state, self.path)
        call = functools.partial(
            self._save, encoded, state, reason, expected_revision, before_commit
        )
        return await asyncio.get_running_loop().run_in_executor(self._executor(), call)

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
        exclusion = self._exclusion()
        try:
            self._acquire(exclusion)
            state = self.load(numbers=numbers)
            yield state
            self._commit(codec.encode(state, self.path), state, reason, None, before_commit)
        finally:
            self._release(exclusion)

    def backup(self, reason: str = "manual") -> Path:
        """Copy the current good state, byte for byte, to a new timestamped file.

        Raises:
            BackupFailed: it could not be written or does not read back, or the sum is wrong.
            StateMissing: there is nothing to copy.
        """
        self._ask_path_guard()
        seen = self._find(self.on_mismatch)
        if seen.document is None:
            raise self._missing()
        if seen.document.trust is codec.Trust.MISMATCH:
            raise BackupFailed(
                self.path, f"{self.path} {seen.document.why}; no backup was made of it"
            )
        self._announce(seen)
        return self.backups.write(seen.data, reason, seen.revision)

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
        durable.make_directory(self.lease_path.parent)
        lock = _OsLock(self.lease_path)
        deadline = time.monotonic() + _LEASE_PATIENCE_SECONDS
        while not self._try(lock):
            if time.monotonic() > deadline:
                lock.close()
                raise self._lease_held()
            time.sleep(_POLL_SECONDS)
        lock.describe(_holder())
        return Lease(lock)

    def lease_holder(self) -> dict[str, Any] | None:
        """Return ``pid``, ``host`` and ``since`` of the lease's holder; None if nobody holds it.

        Empty where it is held, but the holder has not yet said who it is.
        """
        from filelock import lock_descriptor

        try:
            descriptor = os.open(self.lease_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(
                self.lease_path, f"cannot look at {self.lease_path}: {error.strerror}"
            ) from error
        try:
            if lock_descriptor(descriptor, blocking=False):
                return None  # closing the descriptor gives it back
            holder = json.loads(os.pread(descriptor, 4096, 0))
        except ValueError:
            return {}
        finally:
            os.close(descriptor)
        return holder if isinstance(holder, dict) else {}

    def _lease_held(self) -> LeaseHeld:
        who = self.lease_holder() or {}
        return LeaseHeld(
            self.path,
            f"a bot already runs on {self.path}: process {who.get('pid', 'unknown')} on "
            f"{who.get('host', 'unknown host')} since {who.get('since', 'an unknown time')}; "
            "stop it first",
        )

    # Finding the state

    def _find(self, on_mismatch: OnMismatch) -> _Seen:
        while True:
            seen = self._look(on_mismatch)
            # A fallback is believed only if the state file still is what it was refused for:
            # a writer may have put it right (or made it) while the fallback was read.
            if seen.why is None or _signature_of(self.path) == seen.signature:
                return seen

    def _look(self, on_mismatch: OnMismatch) -> _Seen:
        # Before the state file: what is `.bak` now was the state file before, so a state file
        # that is opened later has at least its revision, whatever writers do in between.
        ahead = self._peek(self.backup_path)
        seen = self._read_state_file()
        refused = {self.path: seen.why} if seen.why is not None else {}
        document = seen.document
        if document is None:
            return self._fall_back(seen, refused)
        if document.trust is codec.Trust.ADOPTED and ahead:
            # Not the file as it was before its first save: that is long gone.
            why = f"has no {codec.META}, although {self.backup_path.name} is at revision {ahead}"
            document = replace(document, trust=codec.Trust.MISMATCH, why=why)
            seen.document = document
        if document.trust is codec.Trust.MISMATCH:
            if on_mismatch == "refuse":
                raise self._mismatch(document)
            if on_mismatch == "warn":
                return seen
            return self._fall_back(seen, {self.path: document.why})
        if document.revision < ahead:
            higher = read_valid(self.backup_path, lambda _path, _why: None)
            if higher is not None and higher[1].revision > document.revision:
                why = (
                    f"is at revision {document.revision}, older than {self.backup_path.name} at "
                    f"{higher[1].revision}; the file system lost a rename, or an older file was "
                    "put in its place (`statestore seal` accepts that)"
                )
                return replace(
                    seen, document=higher[1], data=higher[0], source=self.backup_path, why=why
                )
        return seen

    def _read_state_file(self) -> _Seen:
        """Return the state file alone. Missing: no document and no `why`; damaged: a `why`."""
        started = time.time_ns()
        seen = _Seen(_signature_of(self.path), self.path)
        try:
            seen.data, status = durable.read_file(self.path, codec.MAX_BYTES)
            seen.signature = _signature(status)
            seen.settled = _has_settled(seen.signature, started)
            seen.document = codec.parse(seen.data)
        except FileNotFoundError:
            return _Seen(None, self.path)
        except (codec.Damaged, durable.TooLarge) as error:
            seen.why = str(error)
        except codec.TooNew as error:
            raise StateInvalid(self.path, f"{self.path} {error}; upgrade statestore") from error
        except durable.NotAFile as error:
            raise StateCorrupt(
                self.path, f"{self.path} {error}; name the state file, or move this away"
            ) from error
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector is damage; the rest is not about content
                raise StateError(
                    self.path,
                    f"cannot read {self.path}: {error.strerror}; it has to be readable for user "
                    f"{os.geteuid()}",
                ) from error
            seen.why = f"cannot be read: {error.strerror}"
        return seen

    def _fall_back(self, primary: _Seen, refused: dict[Path, str]) -> _Seen:
        why = refused.get(self.path, "is missing")
        found = read_valid(self.backup_path, refused.__setitem__)
        source = self.backup_path
        if found is None:
            try:
                newest = self.backups.newest_valid(refused.__setitem__)
            except OSError as error:
                refused[self.backups.directory] = f"cannot be listed: {error.strerror}"
                newest = None
            if newest is not None:
                source, found = newest[0].path, newest[1:]
        if found is not None:
            data, document = found
            return replace(primary, document=document, data=data, source=source, why=why)
        if refused:
            raise self._corrupt(refused)
        return primary

    def _stands(self, seen: _Seen) -> bool:
        """Return whether the state file still is the one that was seen."""
        signature = _signature_of(self.path)
        if signature != seen.signature:
            return False
        if seen.settled or signature is None:
            return True
        if not seen.readable:
            return False
        started = time.time_ns()
        try:
            data, status = durable.read_file(self.path, codec.MAX_BYTES)
        except (OSError, durable.NotAFile, durable.TooLarge):
            return False
        if data != seen.data or _signature(status) != signature:
            return False
        seen.settled = _has_settled(signature, started)
        return True

    def _peek(self, path: Path) -> int:
        """Return the revision in a file's first line, unverified; 0 if there is none to read."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return codec.peek_revision(os.read(descriptor, codec.HEAD_BYTES)) or 0
        except OSError:
            return 0
        finally:
            os.close(descriptor)

    # Saving

    def _save(
        self,
        encoded: Mapping[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        return self._exclusively(
            lambda: self._commit(encoded, state, reason, expected_revision, before_commit)
        )

    def _commit(
        self,
        encoded: Mapping[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        if _exclusion(self.path).owner != threading.get_ident():
            raise UsageError(
                f"{self.path} is not locked by this process: it was forked inside a transaction; "
                "leave the transaction to the parent"
            )
        found = self._current()
        known = self._known(state, expected_revision)
        self._require_latest(found, known)
        document = codec.arrange(encoded, found.document)
        if found.sealed and found.document and found.document.sections == document.sections:
            self._pay_owed_flush()
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
        found = self._read_state_file()
        if found.document is None:
            raise self._missing() if found.why is None else self._corrupt({self.path: found.why})
        if found.sealed and found.revision >= self._peek(self.backup_path):
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
            found = self._find("warn")
        except StateCorrupt:
            found = self._read_state_file()
        return self._write(found, valid[1], reason, before_commit, keep=self._keep_for(found))

    def _current(self) -> _Seen:
        """Return what is on disk, without reading it again if it is what this store left there."""
        seen = self._seen
        if seen is not None and seen.readable and self._stands(seen):
            return seen
        return self._find(self.on_mismatch)

    def _known(self, state: Mapping[str, Any], expected: int | None) -> _Known | None:
        if isinstance(state, State) and state.meta.state_path == self.path:
            meta = state.meta
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

    def _require_latest(self, found: _Seen, known: _Known | None) -> None:
        loaded = known.revision if known else None
        if found.document is None and not loaded:
            return
        if known is None or found.document is None:
            raise self._conflict(loaded, found.revision)
        if found.why is not None and not known.recovered:
            if self._holds_the_lost_one(found, known):
                return
            raise self._conflict(
                loaded,
                found.revision,
                f"the state file {found.why}, and this writer has not seen it",
            )
        if known.revision != found.revision:
            raise self._conflict(loaded, found.revision)
        if known.identity is not None and known.identity != found.identity:
            raise self._conflict(
                loaded, found.revision, "the revision is the same, but the content is another"
            )

    def _holds_the_lost_one(self, found: _Seen, known: _Known) -> bool:
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

    def _keep_for(self, found: _Seen) -> Path | None:
        """Return the name under which the present state file stays: ``.bak`` only if it is good."""
        if found.signature is None:
            return None
        return self.backup_path if found.readable else durable.quarantine_path(self.path)

    def _write(
        self,
        found: _Seen,
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
            revision = max(revision, self._peek(self.path), self._peek(self.backup_path))
        meta = codec.Meta(
            revision=revision + 1,
            saved_at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            reason=reason.encode("utf-8", "backslashreplace").decode(),
            writer=f"{os.getpid()}@{_host()}",
        )
        data, document = codec.render(document, meta)
        if len(data) > codec.MAX_BYTES:
            raise StateInvalid(
                self.path,
                f"the state is {len(data)} bytes long, and more than {codec.MAX_BYTES} are not "
                f"loaded again ({self.path} is unchanged)",
            )
        try:
            status = durable.replace_file(
                self.path, data, keep_previous=keep, before_commit=before_commit
            )
            self._flush_owed = False
            saved = self._accept(_Seen(_signature(status), self.path, document, data), state)
        except BaseException:
            self._reconcile(document, data, keep, state)
            raise
        if keep is not None and keep != self.backup_path:
            logger.warning(
                "state file that is not good moved aside",
                extra={"path": str(self.path), "aside": str(keep)},
            )
        logger.info(
            "state saved",
            extra={"path": str(self.path), "revision": meta.revision, "reason": meta.reason},
        )
        return saved

    def _reconcile(
        self,
        document: codec.Document,
        data: bytes,
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
                self._accept(_Seen(_signature(status), self.path, document, data), state)
        with suppress(OSError):
            if keep is not None and keep != self.backup_path and keep.samefile(self.path):
                keep.unlink()

    def _accept(self, seen: _Seen, state: Mapping[str, Any] | None) -> StateMeta:
        self._seen = seen
        meta = self._meta(seen)
        if isinstance(state, State):
            state.meta = meta
        return meta

    def _pay_owed_flush(self) -> None:
        if self._flush_owed:
            durable.flush_folder(self.path)
            self._flush_owed = False

    def _executor(self) -> Executor:
        from concurrent.futures import ThreadPoolExecutor

        if self._saver is None or self._saver[0] != os.getpid():
            self._saver = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="statestore")
        return self._saver[1]

    # Locking

    def _exclusively(self, act: Callable[[], StateMeta]) -> StateMeta:
        """Run `act` with every other writer kept out."""
        exclusion = self._exclusion()
        try:
            # Inside the try, so that Ctrl-C at any instant gives back what was taken.
            self._acquire(exclusion)
            return act()
        finally:
            try:
                self._release(exclusion)
            except BaseException:
                self._release(exclusion)  # a signal came between the two lines above
                raise

    def _exclusion(self) -> _Exclusion:
        """Return what keeps threads of this process apart, unless this thread is inside of it."""
        self._ask_path_guard()
        exclusion = _exclusion(self.path)
        if exclusion.owner == threading.get_ident():
            raise UsageError(
                f"{self.path} is already locked by this thread: a save inside a transaction, or "
                "inside a signal handler that interrupted one; change the transaction's state "
                "instead, or save later"
            )
        return exclusion

    def _acquire(self, exclusion: _Exclusion) -> None:
        """Keep other threads out by a mutex, and other processes and stores by flock."""
        deadline = time.monotonic() + self.lock_timeout
        if not exclusion.mutex.acquire(timeout=max(self.lock_timeout, 0)):
            raise self._locked()
        exclusion.owner = threading.get_ident()
        while not self._try(self._lock):
            if time.monotonic() >= deadline:
                raise self._locked()
            time.sleep(_POLL_SECONDS)

    def _release(self, exclusion: _Exclusion) -> None:
        """Give back whatever of the two `_acquire` took; again does no harm."""
        if exclusion.owner == threading.get_ident():
            self._lock.release()
            exclusion.owner = None
        with suppress(RuntimeError):  # not ours: the wait for it failed
            exclusion.mutex.release()

    def _try(self, lock: _OsLock) -> bool:
        try:
            try:
                return lock.acquire()
            except FileNotFoundError:
                durable.make_directory(lock.path.parent)
                return lock.acquire()
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                advice = "this file system offers no locks, so writers cannot be kept apart; put "
                advice += "the state on a local disk"
            else:
                advice = "nothing was changed; a save has to make and lock a file beside the state"
            raise SaveFailed(self.path, f"lock {lock.path.name}", error, advice) from error

    def _locked(self) -> StateLocked:
        pid = _holder_of(self.lock_path)
        who = f"process {pid}" if pid else "another process"
        if pid == os.getpid():
            who = "another thread or store of this process"
        return StateLocked(
            self.path,
            f"{self.path} is locked by {who} for longer than {self.lock_timeout:g} s; nothing was "
            "changed: try again, or see what holds it",
        )

    def _ask_path_guard(self) -> None:
        if path_guard is not None:
            path_guard(self.path)

    # What callers are told

    def _state(self, seen: _Seen, numbers: Numbers) -> State:
        sections = codec.decode(seen.document, numbers) if seen.document else {}
        return State(sections, self._meta(seen))

    def _meta(self, seen: _Seen) -> StateMeta:
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
        )

    def _announce(self, seen: _Seen) -> None:
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
                    "age_seconds": _age_seconds(seen),
                },
            )
        elif seen.document.trust is codec.Trust.MISMATCH:
            logger.warning(
                "state loaded although its checksum is wrong",
                extra={**fields, "why": seen.document.why},
            )

    def _missing(self) -> StateMissing:
        return StateMissing(
            self.path,
            f"there is no {self.path}, no {self.backup_path.name} and no backup in "
            f"{self.backups.directory}; check the path",
        )

    def _corrupt(self, refused: Mapping[Path, str]) -> StateCorrupt:
        found = "; ".join(f"{path} {why}" for path, why in refused.items())
        return StateCorrupt(
            self.path,
            f"no state can be read: {found}. Nothing was changed. Put a good copy back with "
            "`statestore restore FILE`, or rebuild the positions from the exchange's fills",
        )

    def _mismatch(self, document: codec.Document) -> StateChecksumMismatch:
        return StateChecksumMismatch(
            self.path,
            f"{self.path} {document.why}: it was edited by hand, written by another program, or "
            "damaged. `statestore seal` accepts it as it is, `statestore restore` takes "
            f"{self.backup_path.name} or a backup",
        )

    def _conflict(self, loaded: int | None, found: int, detail: str = "") -> RevisionConflict:
        return RevisionConflict(self.path, loaded, found, detail)


class Lease:
    """The right to be the one bot on a state file; see `StateStore.lease`."""

    def __init__(self, lock: _OsLock) -> None:
        self._lock = lock

    def release(self) -> None:
        """Give the lease back; doing so twice does no harm."""
        self._lock.describe({})
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _OsLock:
    """A lock of the operating system on one file, taken on a descriptor that stays open.

    `filelock.lock_descriptor` is flock(2) and nothing else: it never falls back to a lock that is
    a mere file, which would outlive a process that dies. A file system without locks is an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        _os_locks.add(self)

    def acquire(self) -> bool:
        """Try once."""
        # Imported when first needed: it costs a short command more than everything else it does.
        from filelock import lock_descriptor

        while True:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, durable.NEW_FILE_MODE)
            if not lock_descriptor(self._descriptor, blocking=False):
                return False
            if self._is_current(self._descriptor):
                return True
            self.close()  # the file was deleted, and a lock on its remains keeps nobody out

    def release(self) -> None:
        from filelock import unlock_descriptor

        if self._descriptor is not None:
            unlock_descriptor(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def describe(self, holder: Mapping[str, Any]) -> None:
        """Write who holds the lock into its file; a full disk may keep that, not the lock."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(dict(holder)).encode(), 0)

    def _is_current(self, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


@dataclass(slots=True)
class _Exclusion:
    """Keeps threads of this process apart: flock knows descriptors, not threads."""

    mutex: threading.RLock = field(default_factory=threading.RLock)
    owner: int | None = None


_exclusions: dict[Path, _Exclusion] = {}
_os_locks: weakref.WeakSet[_OsLock] = weakref.WeakSet()


def _exclusion(path: Path) -> _Exclusion:
    return _exclusions.get(path) or _exclusions.setdefault(path, _Exclusion())


def _after_fork_in_child() -> None:
    """Start without locks: a child's copies of descriptors would keep the parent's locks alive."""
    _exclusions.clear()
    for lock in _os_locks:
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _report(path: Path) -> FileReport:
    try:
        data, _ = durable.read_file(path, codec.MAX_BYTES)
        document = codec.parse(data)
    except FileNotFoundError:
        return FileReport(path, "missing")
    except (codec.Damaged, codec.TooNew, durable.NotAFile, durable.TooLarge) as error:
        return FileReport(path, "damaged", why=str(error))
    except OSError as error:
        return FileReport(path, "damaged", why=f"cannot be read: {error.strerror}")
    status: dict[codec.Trust, Literal["good", "adopted", "mismatch"]] = {
        codec.Trust.SEALED: "good",
        codec.Trust.ADOPTED: "adopted",
        codec.Trust.MISMATCH: "mismatch",
    }
    saved_at = document.meta.saved_at if document.meta else ""
    return FileReport(path, status[document.trust], document.revision, saved_at, document.why)


def _signature(status: os.stat_result) -> _Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _signature_of(path: Path) -> _Signature | None:
    try:
        return _signature(path.stat())
    except FileNotFoundError:
        return None
    except OSError:
        return _UNREADABLE


def _has_settled(signature: _Signature, read_at: int) -> bool:
    """Return whether a change after `read_at` is sure to show in the signature ("racily clean")."""
    return read_at - signature[4] > _CLOCK_TICK_NS


def _age_seconds(seen: _Seen) -> float | None:
    meta = seen.document.meta if seen.document else None
    with suppress(ValueError, OSError):
        if meta and meta.saved_at:
            saved = times.parse_instant(meta.saved_at)
        else:
            saved = seen.source.stat().st_mtime_ns
        return round((times.now() - saved) / times.NANOSECONDS, 3)
    return None


def _holder() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": _host(), "since": times.format_instant(times.now())}


def _host() -> str:
    return os.uname().nodename


def _holder_of(lock_path: Path) -> int | None:
    """Return the process that holds a lock; None if none does or the system does not tell.

    Read from the kernel when it is asked for, rather than written into the file at every save.
    """
    with suppress(OSError):
        status = lock_path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and "FLOCK" in fields and device in fields:
                return int(fields[4]) or None
    return None
