"""What every store of a state does, wherever it keeps it; and the door to the one that is meant.

``StateStore("data/.state.json")`` is a file (`statestore.disk.store.FileStore`),
``StateStore("postgresql://host/database")`` a row of a database, and ``StateStore("memory://name")``
is gone with the process, for tests. A bot is the same on each. What all of them promise:

* `StateStore.load` returns the last acknowledged save or a newer attempted one, never a mix, and
  never an empty state in place of one that cannot be read;
* a save that returned is durable; one that raised left the former state, unless its error says
  otherwise (`SaveNotDurable`, `SaveUncertain`, `StateForked`);
* revisions grow by saving, a writer that did not see the latest one cannot overwrite it
  (`RevisionConflict`), and unchanged content makes no revision;
* the document of a revision is the same text everywhere, to the byte (`statestore.disk.codec`):
  a backup of one store can be restored into another.

Where a store is kept decides what a power cut or a lost network costs; each module says that. One
module, because it is what a caller reads: a third of it is the promise of each method, and what it
raises, in one place for all kinds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from statestore.config import BESIDE_A_DATABASE
from statestore.disk import codec
from statestore.disk.backups import Backups, copy_to
from statestore.disk.durable import Durability
from statestore.disk.reading import Found, OnMismatch
from statestore.errors import (
    BackupFailed,
    Place,
    StateCorrupt,
    StateInvalid,
    StateMissing,
    UsageError,
)
from statestore.urls import StateUrl

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from statestore.disk.checking import CheckReport
    from statestore.disk.history import Version
    from statestore.disk.killswitch import KillSwitch
    from statestore.disk.locks import Lease
    from statestore.disk.saver import Saver

logger = logging.getLogger(__name__)

_HOST = os.uname().nodename

Numbers = codec.Numbers
BeforeCommit = Callable[[], None]

# By the scheme of a URL. Looked up when one is asked for: what is in backends/ is built on disk/,
# and a bot with a file must not pay for a database. More come by entry points of this group.
BACKENDS_GROUP = "statestore.backends"
_BACKENDS = {
    "postgresql": "statestore.backends.postgres:PostgresStore",
    "postgres": "statestore.backends.postgres:PostgresStore",
    "memory": "statestore.backends.memory:MemoryStore",
}


def require_one_of(choices: Any, name: str, value: object) -> None:
    """Refuse an option that is none of a `Literal`'s.

    Raises:
        UsageError: names those there are.
    """
    if value not in get_args(choices):
        raise UsageError(f"{name} is {value!r}; it has to be one of {get_args(choices)}")


@dataclass(frozen=True, slots=True)
class StateMeta:
    """What is known about a state that was loaded or saved.

    Attributes:
        revision: 0 for a file without ``_meta`` and for a state that is not saved yet.
        saved_at: RFC 3339 in UTC; empty where the file does not say.
        sha256: the file's sum; the hash of its bytes where the sum is missing or wrong.
        state_path: the state file, or the address of the state.
        path: what was read, which is not `state_path` after a recovery.
        verified: the sum was there and right.
        recovered_from: the fallback that was read; None if it was the state itself.
        recovered_why: what is wrong with the state itself.
        durability: of the saves of the store that loaded or saved it; two states that differ in
            nothing else are equal.
    """

    revision: int
    saved_at: str
    reason: str
    writer: str
    sha256: str
    state_path: Place
    path: Place
    verified: bool
    recovered_from: Place | None = None
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
class Known:
    """Which state a writer saw last. Without `identity` only the revision is compared."""

    revision: int
    identity: str | None
    recovered: bool


class StateStore:
    """One state.

    Threads may share a store, and a forked child may go on using it. A store object remembers what
    it last loaded or saved; two writers that pass plain dicts should have a store each, or save the
    `State` they loaded.

    Attributes:
        path: the state file; where it is none, the address of the state, without a password.
        backup_path: the state before the present one.
        backups: the timestamped copies, in files.
        lock_timeout: seconds a save waits for another writer.
        durability: what a power cut may take.
    """

    path: Place
    backup_path: Place
    backups: Backups
    lock_timeout: float
    on_mismatch: OnMismatch
    durability: Durability
    _seen: Found | None
    _remembered: codec.Remembered
    _saver: tuple[int, Executor] | None

    def __new__(cls, path: object = "", *_: Any, **__: Any) -> StateStore:
        """Return the store of the kind that `path` asks for: a file, or by the scheme of a URL."""
        return object.__new__(_kind_of(path) if cls is StateStore else cls)

    def __init__(self, path: str | os.PathLike[str] | StateUrl, **options: Any) -> None:
        """Remember where the state is; nothing is read, made or connected yet.

        Args:
            path: a file, or ``postgresql://...``.
            options: ``backup_dir``, ``lock_timeout``, ``on_mismatch`` and ``durability`` as for
                `statestore.disk.store.FileStore`; more for a database, see
                `statestore.backends.postgres.PostgresStore`.

        Raises:
            UsageError: an option means nothing, or a URL names no store that is known.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"StateStore({str(self.path)!r})"

    @property
    def revision(self) -> int | None:
        """Revision this store last loaded or saved; None before."""
        return self._seen.revision if self._seen else None

    @property
    def recovered_from(self) -> Place | None:
        """The fallback the last load used; None if it read the state itself."""
        return self._seen.source if self._seen and self._seen.why else None

    # Reading

    def load(self, *, numbers: Numbers = "float", missing_ok: bool = True) -> State:
        """Return the state; where it does not read, what stands behind it, and that is logged.

        Args:
            numbers: ``float`` as bots expect, or ``decimal`` for exact Decimals.
            missing_ok: nothing at all is a new, empty state.

        Raises:
            StateMissing: there is none, nor a copy of it, and `missing_ok` is False.
            StateCorrupt: something is there, but nothing that reads.
            StateChecksumMismatch: it is valid JSON, but not what was saved.
            StateInvalid: written by a newer version.
            StateForked: there are two, and neither follows from the other.
            StateError: it may not be read.
            BackendError: the database did not answer.
        """
        seen = self._find(self.on_mismatch)
        if seen.document is None and not missing_ok:
            raise self._missing()
        state = self._state(seen, numbers)
        self._seen = seen
        self._announce(seen)
        return state

    def changed(self) -> bool:
        """Return whether the state is another one than this store last saw.

        Cheap enough for each cycle of a bot. True as well where that cannot be told.
        """
        raise NotImplementedError

    def refresh(self, *, numbers: Numbers = "float") -> State:
        """Return the state as it is now; it is read again only if it changed."""
        raise NotImplementedError

    def check(self) -> CheckReport:
        """Look at everything of this state; reads only."""
        raise NotImplementedError

    def versions(self) -> list[Version]:
        """Return every version at hand, newest first; what is read twice is listed twice.

        Raises:
            StateMissing: there is none.
            StateError: a folder cannot be listed.
        """
        raise NotImplementedError

    def read(self, place: Place) -> codec.Document:
        """Return what a file, or a version of this state, holds; right sum or not.

        Raises:
            StateMissing, StateCorrupt, StateInvalid, StateError: as in
                `statestore.disk.history.read_document`.
        """
        from statestore.disk.history import read_document

        return read_document(Path(place))

    def onlooker(self, *, on_mismatch: OnMismatch | None = None) -> StateStore:
        """Return another store on the same state, which has seen nothing yet: to look only."""
        raise NotImplementedError

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
            before_commit: called with other writers kept out or sure to be noticed, immediately
                before the state is replaced; what it raises goes to the caller, and nothing is
                changed.

        Raises:
            StateInvalid: a value cannot be saved as JSON; names its field. Nothing was written.
            RevisionConflict: the state is not the one this writer saw.
            StateLocked: another writer keeps it for longer than `lock_timeout`.
            SaveFailed: the system refused; the former state stands.
            SaveNotDurable: the new state stands, but its folder could not be flushed. The store
                remembers, and the next save flushes it even if nothing changed.
            BackendUnavailable: the database is away; the former state stands.
            SaveUncertain: the database went away meanwhile, so nobody knows which one stands.
            StateForked: it is in the file beside the database, which has another one.
            StateCorrupt, StateChecksumMismatch: what is there cannot be judged, as in `load`.
            UsageError: called inside a transaction on the same state, in the same thread.
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
        transaction on the same state in the same thread is refused with `UsageError`, since one of
        the two would undo the other.
        """
        self._ask_guard()
        with self._in_turn():
            state = self.load(numbers=numbers)
            yield state
            encoded = codec.encode(state, self.path, self._remembered)
            self._commit(encoded, state, reason, None, before_commit)

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
        self._ask_guard()
        seen = self._find(self.on_mismatch)
        if seen.document is None:
            raise self._missing()
        if seen.document.trust is codec.Trust.MISMATCH:
            raise BackupFailed(
                self.path, f"{self.path} {seen.document.why}; no backup was made of it"
            )
        self._announce(seen)
        if to is not None and not to.is_dir():
            return copy_to(to, seen.data)
        backups = self.backups if to is None else self.backups.elsewhere(to)
        return backups.write(seen.data, reason, seen.revision)

    def seal(
        self,
        *,
        reason: str = "seal",  # noqa: ARG002  # the contract's
        before_commit: BeforeCommit | None = None,  # noqa: ARG002
    ) -> StateMeta:
        """Accept an edited state file as it is: right sum, next revision, ``.bak`` untouched.

        Raises:
            StateMissing: there is no state file.
            StateCorrupt: it is no JSON document, so there is nothing to accept.
            StateLocked, SaveFailed, SaveNotDurable: as in `save`.
            UsageError: the state is no file, so nobody edits it with an editor of their own.
        """
        raise UsageError(
            f"{self.path} is no file, and seal accepts edits of one; to change it by hand use "
            "`statestore edit`, to put back another version `statestore restore`"
        )

    def restore(
        self,
        source: str | os.PathLike[str],
        *,
        reason: str = "restore",
        before_commit: BeforeCommit | None = None,
    ) -> StateMeta:
        """Save what `source` (a backup, or a version) holds as the next revision, durably.

        The present state stays at hand: as ``.bak`` or a former revision if it is good, moved aside
        if it is not.

        Raises:
            StateCorrupt: `source` does not read as a state.
            StateMissing: `source` is not there.
            StateLocked, SaveFailed, SaveNotDurable: as in `save`.
        """
        raise NotImplementedError

    # Who runs, and who may trade

    def lease(self) -> Lease:
        """Take the lease of this state, held until it is released or the process ends.

        Raises:
            LeaseHeld: another bot holds it; names its process, host and since when.
        """
        raise NotImplementedError

    def lease_holder(self) -> dict[str, Any] | None:
        """Return ``pid``, ``host`` and ``since`` of the lease's holder; None if nobody holds it.

        Empty where it is held, but the holder has not yet said who it is.
        """
        raise NotImplementedError

    def kill_switch(self, local: KillSwitch | Path | None = None) -> KillSwitch:
        """Return what halts the bots on this state: a file, and what the store has beside it.

        Args:
            local: the file; ``KILL_SWITCH`` beside the state unless given (``data/KILL_SWITCH``
                where that is no file).
        """
        from statestore.disk.killswitch import KillSwitch

        if isinstance(local, KillSwitch):
            return local
        beside = self.path.parent if isinstance(self.path, Path) else BESIDE_A_DATABASE
        return KillSwitch(local or beside / "KILL_SWITCH")

    def close(self) -> None:
        """Give back connections and threads, if there are any; the next use opens new ones."""

    # What a kind of store fills in

    def _find(self, on_mismatch: OnMismatch) -> Found:
        """Return the state, or what stands in for it; raise what `load` documents."""
        raise NotImplementedError

    def _missing(self) -> StateMissing:
        raise NotImplementedError

    def _in_turn(self) -> AbstractContextManager[None]:
        """Keep every other writer out, wherever it is, for as long as a transaction takes.

        Raises:
            UsageError: this thread is in a save or a transaction on this state already.
            StateLocked: another writer holds it for longer than `lock_timeout`.
        """
        raise NotImplementedError

    def _exclusively(self, act: Callable[[], StateMeta]) -> StateMeta:
        """Run `act` with every other writer of this machine kept out."""
        raise NotImplementedError

    def _commit(
        self,
        encoded: dict[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        raise NotImplementedError

    def _ask_guard(self) -> None:
        """Let the pytest plugin refuse what no test should write."""

    # Shared

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

    def _executor(self) -> Executor:
        from concurrent.futures import ThreadPoolExecutor

        if self._saver is None or self._saver[0] != os.getpid():
            self._saver = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="statestore")
        return self._saver[1]

    def _known(self, state: Mapping[str, Any], expected: int | None) -> Known | None:
        meta = state.meta if isinstance(state, State) else None
        if meta and (meta.state_path is self.path or meta.state_path == self.path):
            known = Known(meta.revision, meta.sha256, meta.recovered_from is not None)
        elif self._seen is not None:
            seen = self._seen
            known = Known(seen.revision, seen.identity, seen.why is not None)
        elif expected is None:
            return None
        else:
            known = Known(expected, None, recovered=False)
        if expected is not None and expected != known.revision:
            return Known(expected, None, known.recovered)
        return known

    def _rendered(
        self, document: codec.Document, revision: int, reason: str
    ) -> tuple[codec.Meta, bytearray, slice]:
        """Return what is said of a save, its text, and where in that the sum is still to stand.

        Raises:
            StateInvalid: it is longer than what is loaded again.
        """
        meta = codec.Meta(
            revision=revision,
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
        return meta, data, blank

    def _accept(self, seen: Found, state: Mapping[str, Any] | None) -> StateMeta:
        self._seen = seen
        meta = self._meta(seen)
        if isinstance(state, State):
            state.meta = meta
        return meta

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
        """Say it loudly where the state is not what was saved."""
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


def _kind_of(path: object) -> type[StateStore]:
    url = path.url if isinstance(path, StateUrl) else path
    scheme, colon, _ = url.partition("://") if isinstance(url, str) else ("", "", "")
    home = "statestore.disk.store:FileStore"
    if colon:
        home = _BACKENDS.get(scheme) or _added_home(scheme)
    module, _, name = home.partition(":")
    kind: type[StateStore] = getattr(import_module(module), name)
    return kind


def _added_home(scheme: str) -> str:
    """Return the class another package gives for a scheme, as ``module:name``."""
    from importlib.metadata import entry_points

    added = {point.name: point.value for point in entry_points(group=BACKENDS_GROUP)}
    if scheme not in added:
        known = ", ".join(f"{name}://" for name in [*_BACKENDS, *added])
        raise UsageError(
            f"{scheme:.40}:// is no store that is known; name a file, or one of {known}"
        )
    return added[scheme]
