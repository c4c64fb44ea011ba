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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statestore.disk import codec, durable, single_sync
from statestore.disk.backups import Backups, read_valid
from statestore.disk.checking import CheckReport, check_files
from statestore.disk.contract import BeforeCommit, Known, require_one_of
from statestore.disk.contract import Numbers as Numbers
from statestore.disk.contract import State as State
from statestore.disk.contract import StateMeta as StateMeta
from statestore.disk.contract import StateStore as StateStore
from statestore.disk.durable import Durability
from statestore.disk.locks import Lease, WriterLock, flock_holder, lease_holder, take_lease
from statestore.disk.reading import Found, OnMismatch, Reader, peek_revision
from statestore.errors import (
    Place,
    RevisionConflict,
    StateCorrupt,
    StateMissing,
    UsageError,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from statestore.disk.history import Version

logger = logging.getLogger(__name__)


# From here on the disk is given the bytes before their checksum: it is at work while that is
# computed. Below, a second transfer costs it more than that saves.
_LARGE = 1 << 18

# Called with where a state is before anything is written; the pytest plugin refuses live ones.
path_guard: Callable[[Place], None] | None = None


class FileStore(StateStore):
    """One state file.

    Attributes:
        path: the state file; a symlink is followed once, when the store is made.
        backup_path, lock_path, lease_path: beside it.
    """

    path: Path
    backup_path: Path

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
        require_one_of(OnMismatch, "on_mismatch", on_mismatch)
        require_one_of(Durability, "durability", durability)
        self.path = Path(os.path.realpath(path))
        if durability == "single-sync":
            single_sync.require(self.path)
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

    # Reading

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

    def versions(self) -> list[Version]:
        from statestore.disk.history import versions_of_files

        return versions_of_files(self.path, self.backup_path, self.backups)

    def onlooker(self, *, on_mismatch: OnMismatch | None = None) -> FileStore:
        return FileStore(
            self.path,
            backup_dir=self.backups.directory,
            on_mismatch=on_mismatch or self.on_mismatch,
        )

    # Writing

    def seal(self, *, reason: str = "seal", before_commit: BeforeCommit | None = None) -> StateMeta:
        return self._exclusively(lambda: self._seal(reason, before_commit))

    def restore(
        self,
        source: str | os.PathLike[str],
        *,
        reason: str = "restore",
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        return self._exclusively(lambda: self._restore(Path(source), reason, before_commit))

    # The lease of a running bot

    def lease(self) -> Lease:
        self._ask_guard()
        return take_lease(self.path, self.lease_path)

    def lease_holder(self) -> dict[str, Any] | None:
        return lease_holder(self.lease_path)

    # Finding and saving

    def _find(self, on_mismatch: OnMismatch) -> Found:
        return self._reader.find(on_mismatch)

    def _missing(self) -> StateMissing:
        return self._reader.missing()

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

    def _require_latest(self, found: Found, known: Known | None) -> None:
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

    def _holds_the_lost_one(self, found: Found, known: Known) -> bool:
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
        meta, data, blank = self._rendered(document, revision + 1, reason)

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

    def _flush(self, found: Found) -> None:
        """Make durable what stands, unless this store did: its writer may have been killed."""
        if self.durability == "relaxed":
            return
        if self._flushed != found.identity:
            durable.flush_file(self.path)
        elif self._flush_owed:
            durable.flush_folder(self.path)
        self._flushed, self._flush_owed = found.identity, False

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        self._lock.refuse_reentry()
        try:
            self._lock.acquire(self.lock_timeout)
            yield
        finally:
            self._lock.release()

    def _exclusively(self, act: Callable[[], StateMeta]) -> StateMeta:
        """Run `act` with every other writer kept out."""
        self._ask_guard()
        return self._lock.exclusively(act, self.lock_timeout)

    def _ask_guard(self) -> None:
        if path_guard is not None:
            path_guard(self.path)
