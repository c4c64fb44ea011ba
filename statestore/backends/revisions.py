"""A state that is kept as numbered revisions, of which one is pointed to as the present one.

What `PostgresStore` and `MemoryStore` share: a save renders the document of the next revision, byte
for byte the file it would be, and swaps the pointer from the revision its writer saw to that, in
one step that fails if the pointer is another one by then. A former revision is never changed, so
what `StateStore` calls ``.bak`` is the revision before, and history needs no copies.

What a kind of store adds is how to find the pointer and the documents, and that one step.

What is not here: durability, and who else is kept out. That is for a kind's one step to promise.
One module, because a revision is judged the same when it is read, checked, fallen back from and
saved over, and two that judge would come to differ.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statestore.backends.halting import Row, SharedKillSwitch
from statestore.config import BESIDE_A_DATABASE
from statestore.disk import codec
from statestore.disk.backups import Backups
from statestore.disk.checking import CheckReport, FileReport, check_file, check_text
from statestore.disk.contract import (
    BeforeCommit,
    Known,
    Numbers,
    State,
    StateMeta,
    StateStore,
    require_one_of,
)
from statestore.disk.history import Kind, Version, newest_first, version_of, versions_of_backups
from statestore.disk.killswitch import KillSwitch
from statestore.disk.locks import Lease, exclusion
from statestore.disk.reading import Found, OnMismatch, nothing_reads
from statestore.errors import (
    Place,
    RevisionConflict,
    StateChecksumMismatch,
    StateCorrupt,
    StateInvalid,
    StateLocked,
    StateMissing,
    UsageError,
)
from statestore.urls import StateUrl

logger = logging.getLogger(__name__)

_FORMER = "former"


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which revision is the present one, and its checksum."""

    revision: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Present:
    """What is pointed to.

    Attributes:
        data: its document; None where that is gone.
        source: where it was read, if not where the state is; `why` says for what reason.
    """

    pointer: Pointer
    data: bytes | None
    source: Place | None = None
    why: str | None = None


@dataclass(slots=True)
class Judged(Found):
    """What was found, and what was pointed to then: a swap begins from there.

    Attributes:
        pointer: None if there is no state at all.
    """

    pointer: Pointer | None = None


class RevisionStore(StateStore):
    """A state of revisions; see `StateStore` for what it does.

    Attributes:
        keep_revisions: so many stay at hand. What is to stay for longer is a backup.
    """

    path: str
    backup_path: str
    keep_revisions: int

    def _begin(
        self,
        path: str | os.PathLike[str] | StateUrl,
        backup_dir: str | os.PathLike[str] | None,
        lock_timeout: float,
        on_mismatch: OnMismatch,
        keep_revisions: int,
    ) -> StateUrl:
        """Take the options that all kinds have; return where the state is."""
        require_one_of(OnMismatch, "on_mismatch", on_mismatch)
        if keep_revisions < 2:
            raise UsageError(
                f"keep_revisions is {keep_revisions}; it has to be 2 or more: the present one, and "
                "the one before"
            )
        url = path if isinstance(path, StateUrl) else StateUrl(str(path))
        self.path = str(url)
        self.backup_path = f"{self.path}#{_FORMER}"
        self.lock_timeout = lock_timeout
        self.on_mismatch = on_mismatch
        self.durability = "full"
        self.keep_revisions = keep_revisions
        folder = BESIDE_A_DATABASE / "state_backups" if backup_dir is None else Path(backup_dir)
        self.backups = Backups(folder, Path(f"{self._file_name()}.json"))
        self._seen: Judged | None = None
        self._remembered = {}
        self._saver = None
        return url

    # What a kind of store fills in

    def _row(self) -> Row | None:
        """Return the part of the kill switch that all machines see; None: only a file halts."""
        return None

    def _file_name(self) -> str:
        """Return the stem of the names of its backups."""
        raise NotImplementedError

    def _present(self) -> Present | None:
        raise NotImplementedError

    def _pointer(self) -> Pointer | None:
        raise NotImplementedError

    def _document(self, revision: int) -> bytes | None:
        raise NotImplementedError

    def _documents(self) -> list[tuple[int, bytes]]:
        """Return all revisions at hand, newest first."""
        raise NotImplementedError

    def _swap(
        self, former: Pointer | None, to: Pointer, data: bytes, before_commit: BeforeCommit | None
    ) -> bool:
        """Add a revision and point to it, durably; return False if `former` is not pointed to.

        Revisions below those to keep go in the same step.
        """
        raise NotImplementedError

    def _held(self) -> AbstractContextManager[None]:
        """Keep all other writers waiting, wherever they are."""
        raise NotImplementedError

    # Reading

    def onlooker(self, *, on_mismatch: OnMismatch | None = None) -> RevisionStore:
        return type(self)(
            self.path,
            backup_dir=self.backups.directory,
            on_mismatch=on_mismatch or self.on_mismatch,
        )

    def refresh(self, *, numbers: Numbers = "float") -> State:
        seen = self._seen
        if seen is None or seen.document is None or self.changed():
            return self.load(numbers=numbers)
        return self._state(seen, numbers)

    def check(self) -> CheckReport:
        present = self._present()
        state = FileReport(self.path, "missing")
        if present is not None:
            state = self._looked_at(present)
        documents = self._documents()
        below = [d for d in documents if present is None or d[0] < present.pointer.revision]
        former = FileReport(self.backup_path, "missing")
        if below:
            former = check_text(self._at(below[0][0]), below[0][1])
        return CheckReport(
            state=state,
            bak=former,
            backups=[check_file(backup.path) for backup in self.backups.list()],
            quarantined=[],
            leftovers=[],
            lock_holder=None,
            lock_holder_since=None,
            lease=self.lease_holder(),
            file_system=self.path.partition(":")[0],
        )

    def versions(self) -> list[Version]:
        present = self._pointer()
        found: list[Version | None] = []
        for revision, data in self._documents():
            now = present is not None and revision == present.revision
            found.append(self._version(revision, data, "state" if now else "former"))
        found += versions_of_backups(self.backups)
        listed = [version for version in found if version is not None]
        if not listed:
            raise self._missing()
        return newest_first(listed)

    def read(self, place: Place) -> codec.Document:
        data, place = self._text_at(place)
        if data is None:
            return super().read(place)
        try:
            return codec.parse(data)
        except codec.TooNew as error:
            raise StateInvalid(place, f"{place} {error}; upgrade statestore") from error
        except codec.Damaged as error:
            raise StateCorrupt(
                place, f"{place} {error}; `statestore history` lists what else is at hand"
            ) from error

    # Writing

    def restore(
        self,
        source: str | os.PathLike[str],
        *,
        reason: str = "restore",
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        place: Place = source if isinstance(source, str) else Path(source)
        document = self.read(place)
        if document.trust is codec.Trust.MISMATCH:
            raise StateCorrupt(place, f"{place} {document.why}; restore from another backup")
        return self._exclusively(lambda: self._restore(document, reason, before_commit))

    # Who runs, and who may trade

    def lease(self) -> Lease:
        raise UsageError(
            f"{self.path} has no lease, so nothing would keep a second bot out; run the bot on a "
            "file or on postgresql://, or add lease() and lease_holder() to this store"
        )

    def lease_holder(self) -> dict[str, Any] | None:
        return None

    def kill_switch(self, local: KillSwitch | Path | None = None) -> KillSwitch:
        row = None if isinstance(local, SharedKillSwitch) else self._row()
        switch = super().kill_switch(local)
        return switch if row is None else SharedKillSwitch(switch, row, self.path)

    # Finding

    def _find(self, on_mismatch: OnMismatch) -> Judged:
        present = self._present()
        if present is None:
            if any(self.backups.list()):
                raise self._missing()
            return Judged(None, self.path)
        try:
            document = self._trusted(present)
        except codec.TooNew as error:
            raise StateInvalid(self.path, f"{self.path} {error}; upgrade statestore") from error
        except codec.Damaged as error:
            return self._fall_back(present.pointer, str(error))
        if document.trust is not codec.Trust.SEALED:
            if on_mismatch == "refuse":
                raise StateChecksumMismatch(
                    self.path,
                    f"{self.path} {document.why}: it was changed by another program, or damaged. "
                    "`statestore restore` takes the revision before it, or a backup",
                )
            if on_mismatch == "fallback":
                return self._fall_back(present.pointer, document.why)
        return Judged(
            None,
            present.source or self.path,
            document,
            present.data or b"",
            present.why,
            pointer=present.pointer,
        )

    def _trusted(self, present: Present) -> codec.Document:
        """Return the document, distrusted where it is not what is pointed to.

        Raises:
            codec.Damaged, codec.TooNew: it does not read.
        """
        pointer = present.pointer
        if present.data is None:
            raise codec.Damaged(f"is at revision {pointer.revision}, whose document is gone")
        document = codec.parse(present.data)
        if document.trust is codec.Trust.ADOPTED:
            return document.distrusted(f"has no {codec.META}")
        named = Pointer(document.revision, document.identity)
        if document.trust is codec.Trust.SEALED and named != pointer:
            return document.distrusted(
                f"is pointed to as revision {pointer.revision} ({pointer.sha256:.12}), but what is "
                f"there is revision {named.revision} ({named.sha256:.12})"
            )
        return document

    def _fall_back(self, pointer: Pointer, why: str) -> Judged:
        refused: dict[Place, str] = {self._at(pointer.revision): why}
        for revision, data in self._documents():
            if revision == pointer.revision:
                continue
            try:
                document = codec.parse(data)
            except (codec.Damaged, codec.TooNew) as error:
                refused[self._at(revision)] = str(error)
                continue
            if document.trust is codec.Trust.SEALED:
                return Judged(None, self._at(revision), document, data, why, pointer=pointer)
            refused[self._at(revision)] = document.why
        newest = self.backups.newest_valid(refused.__setitem__)
        if newest is not None:
            backup, data, document = newest
            return Judged(None, backup.path, document, data, why, pointer=pointer)
        raise nothing_reads(self.path, refused)

    def _missing(self) -> StateMissing:
        backups = self.backups.list()
        if backups:
            return StateMissing(
                self.path,
                f"there is no state at {self.path}, but there are backups of one in "
                f"{self.backups.directory}: is it the right database? Put one back with "
                f"`statestore restore --file {backups[0].path}`, begin with `statestore restore "
                "--empty`, or name another --backup-dir",
            )
        return StateMissing(
            self.path,
            f"there is no state at {self.path} and no backup in {self.backups.directory}; check "
            "the URL, or begin with `statestore restore --empty`",
        )

    def _at(self, revision: int) -> str:
        return f"{self.path}#{revision}"

    def _text_at(self, place: Place) -> tuple[bytes | None, Place]:
        """Return the document that an address of ours names, and its exact address; else None."""
        if not isinstance(place, str) or place.partition("#")[0] != self.path:
            return None, place
        named = place.partition("#")[2]
        if named.isascii() and named.isdigit():
            data = self._document(int(named))  # also where nobody can say which is the present one
        elif not named:
            present = self._present()
            data = None if present is None else present.data
        elif named == _FORMER:
            present = self._present()
            below = [d for d in self._documents() if present and d[0] < present.pointer.revision]
            data = below[0][1] if below else None
            place = self._at(below[0][0]) if below else place
        else:
            raise UsageError(f"{place} names no revision; {self.path}#42 does")
        if data is None:
            raise StateMissing(
                place, f"there is no {place}; `statestore history` lists what is at hand"
            )
        return data, place

    def _version(self, revision: int, data: bytes, kind: Kind) -> Version:
        place = self._at(revision)
        try:
            return version_of(place, kind, codec.parse(data), len(data), 0)
        except (codec.Damaged, codec.TooNew) as error:
            return Version(place, kind, "damaged", 0, len(data), revision, why=str(error))

    def _looked_at(self, present: Present) -> FileReport:
        try:
            document = self._trusted(present)
        except (codec.Damaged, codec.TooNew) as error:
            return FileReport(self.path, "damaged", present.pointer.revision, why=str(error))
        saved_at = document.meta.saved_at if document.meta else ""
        if document.trust is codec.Trust.SEALED:
            return FileReport(self.path, "good", document.revision, saved_at)
        return FileReport(self.path, "mismatch", document.revision, saved_at, document.why)

    # Saving

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other threads of this process out, whichever store they use."""
        mine = exclusion(self.path)
        if mine.owner == threading.get_ident():
            raise UsageError(
                f"{self.path} is already being saved by this thread: a save inside a transaction, "
                "or inside a signal handler that interrupted one; change the transaction's state "
                "instead, or save later"
            )
        if not mine.mutex.acquire(timeout=max(self.lock_timeout, 0)):
            raise StateLocked(
                self.path,
                f"{self.path} is locked by another thread or store of this process for longer "
                f"than {self.lock_timeout:g} s; nothing was changed",
            )
        try:
            mine.owner = threading.get_ident()
            yield
        finally:
            mine.owner = None
            mine.mutex.release()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._alone(), self._held():
            yield

    def _exclusively(self, act: Callable[[], StateMeta]) -> StateMeta:
        self._ask_guard()
        with self._alone():
            return act()

    def _commit(
        self,
        encoded: dict[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        known = self._known(state, expected_revision)
        # What this store saw last is not read again: if it is not the present any more, the swap
        # finds out.
        found = self._seen
        if found is None or not found.readable or not _is(found, known):
            found = self._find(self.on_mismatch)
            self._require_latest(found, known)
        document = codec.arrange(encoded, found.document)
        if found.sealed and found.document and found.document.sections == document.sections:
            if self._pointer() == found.pointer:
                return self._accept(found, state)
            found = self._find(self.on_mismatch)
            self._require_latest(found, known)
            document = codec.arrange(encoded, found.document)
        return self._write(found, document, reason, before_commit, known, state)

    def _restore(
        self, wanted: codec.Document, reason: str, before_commit: BeforeCommit | None
    ) -> StateMeta:
        present = self._present()
        found = Judged(None, self.path, pointer=present.pointer if present else None)
        return self._write(found, wanted, reason, before_commit, None, None)

    def _require_latest(self, found: Judged, known: Known | None) -> None:
        loaded = known.revision if known else None
        if found.document is None and not loaded:
            return
        if known is None or found.document is None or known.revision != found.revision:
            raise RevisionConflict(self.path, loaded, found.revision)
        if found.why is not None and not known.recovered:
            raise RevisionConflict(
                self.path, loaded, found.revision, f"it {found.why}; this writer has not seen that"
            )
        if known.identity is not None and known.identity != found.identity:
            detail = "the revision is the same, but the content is another"
            raise RevisionConflict(self.path, loaded, found.revision, detail)

    def _write(
        self,
        found: Judged,
        document: codec.Document,
        reason: str,
        before_commit: BeforeCommit | None,
        known: Known | None,
        state: Mapping[str, Any] | None,
    ) -> StateMeta:
        former = found.pointer
        at_least = (document.revision, former.revision if former else 0)
        revision = max(*at_least, known.revision if known else 0) + 1
        meta, data, blank = self._rendered(document, revision, reason)
        document = codec.seal(document, meta, data, blank)
        to = Pointer(meta.revision, document.identity)
        if not self._swap(former, to, bytes(data), before_commit):
            now = self._pointer()
            raise RevisionConflict(
                self.path,
                known.revision if known else former.revision if former else None,
                now.revision if now else 0,
            )
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "state saved",
                extra={
                    "path": self.path,
                    "revision": meta.revision,
                    "reason": meta.reason,
                    "durability": self.durability,
                },
            )
        # Without the bytes, which a store that loads and saves all day has no use for.
        return self._accept(Judged(None, self.path, document, pointer=to), state)


def _is(found: Judged, known: Known | None) -> bool:
    """Return whether a writer saw what was found."""
    return (
        known is not None
        and known.revision == found.revision
        and known.identity in (None, found.identity)
    )
