"""A mirror of the state file in a database: the file first, then the mirror, and never the reverse.

What is promised:

* `Mirror.saved` and `Mirror.record` return at once and raise nothing: what the database does is
  done in a thread, and a bot whose mirror is down for an hour does not wait for it, nor does a
  save of the file fail;
* revisions are written in the order of the saves, each of them as long as what is owed fits into
  the backlog's bytes; beyond, the oldest are passed over (counted, never the newest);
* a revision is done when the database acknowledged it. One that was not is owed, is tried again,
  and is in `Mirror.degraded`, `Mirror.status` and the log; nothing pretends it was written;
* what a position was is not forgotten: one that is gone from the state is marked as deleted;
* a document that is read back is the file of that revision byte for byte, or an error that says
  what is wrong with it.

What is owed needs no file of its own. At first contact, and whenever the connection was lost, the
database is asked which revision it holds, and what the file has beyond that is owed. So a crash
loses nothing but the revisions in between, which only a dashboard would have shown.

What is not promised: the mirror is behind by what the network takes, and by the length of an
outage. A database that holds a higher revision than the file is never written over: that is said,
and `statestore mirror restore` or another name (``TRADING_STATE_NAME``) is the way on.

What is written and read back is in `statestore.backends.mirrored`. One module, because the backlog,
the thread that works it off and what both know of the database change under one lock.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statestore import times
from statestore.backends.mirrored import Change, Held, Revision, Series, changes_of
from statestore.disk import codec, durable
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ContentRefused,
    StateCorrupt,
    StateError,
    StateMissing,
    StateStoreError,
)

if TYPE_CHECKING:
    from statestore.backends.influx import Influx
    from statestore.config import TradingStateSettings
    from statestore.disk.store import StateMeta, StateStore

logger = logging.getLogger(__name__)

MOST_SERIES = 10_000  # positions and pairs of one state that get a series of their own

_BACKLOG_BYTES = 32 * 1024 * 1024
_RETRY_SECONDS = 5.0
_RETRY_AT_MOST_SECONDS = 60.0
_WAIT_SECONDS = 10.0
_CLOSE_SECONDS = 3.0
_ASK_AGAIN_SECONDS = 0.2


class Mirror:
    """Follows one state file into a database. Threads may share it.

    Attributes:
        database: where to.
        name: what the state is called there; one name belongs to one state.
    """

    _changed: threading.Condition
    _worker: threading.Thread | None

    def __init__(
        self,
        database: Influx,
        name: str,
        *,
        backlog_bytes: int = _BACKLOG_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember where to; nothing is connected yet.

        Args:
            backlog_bytes: of documents that wait in memory while the database is down.
            clock: monotonic seconds. After a failure the database is left alone for 5 s, then for
                10, 20, 40 and 60 s.
        """
        self.database = database
        self.name = name
        self._backlog_bytes = backlog_bytes
        self._clock = clock
        self._start_over()
        _mirrors.add(self)

    def _start_over(self) -> None:
        self._changed = threading.Condition()
        self._worker = None
        self._closing = False
        self._owed: deque[bytes] = deque()
        self._owed_bytes = 0
        self._recorded: bytes | None = None  # the newest document that was asked for
        self._passed_over = 0
        self._unlisted = 0
        self._written = 0
        self._mirrored: int | None = None  # revision the database is known to hold
        self._error: str | None = None
        self._failures = 0  # since the last success
        self._not_before = 0.0
        # Of the worker alone:
        self._met = False
        self._last: tuple[int, str, int] | None = None  # revision, sum, instant in the database
        self._known: dict[Series, Change] = {}  # what the database says of each series
        self._open: set[Series] = set()  # what it holds as open beyond that
        self._listed: set[Series] = set()  # all that ever had a point

    # What the bot calls

    def saved(self, store: StateStore, meta: StateMeta) -> None:
        """Have the state that `store` just saved mirrored. Returns at once, raises nothing."""
        if meta.revision == _revision(self._recorded):
            self.poke()
            return
        try:
            document = document_of(store)
        except (StateStoreError, OSError) as error:
            self._note(f"{error}; the next save is mirrored")
            return
        self.record(document)

    def record(self, document: bytes) -> None:
        """Have a state file's content mirrored, after all before it. Returns at once."""
        with self._changed:
            # A thread that read an older one before others may come after them.
            late = _revision(document) < _revision(self._recorded)
            if document != self._recorded and not late:
                self._recorded = document
                self._owed.append(document)
                self._owed_bytes += len(document)
                while self._owed_bytes > self._backlog_bytes and len(self._owed) > 1:
                    self._owed_bytes -= len(self._owed.popleft())
                    self._passed_over += 1
            self._work_if_due()

    def poke(self) -> None:
        """Try again if that is due; for a main loop, each cycle. Returns at once."""
        with self._changed:
            self._work_if_due()

    def push(self, document: bytes) -> None:
        """Write a document now, in this thread: for who has no bot that saves.

        Raises:
            BackendError: it was not written, or the mirror is ahead of it.
        """
        self._recorded = document
        self._write(document)
        self._succeeded()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything is written that is owed, trying at once if it failed before.

        Raises:
            BackendUnavailable: it could not be written, or not within `seconds`.
        """
        with self._changed:
            self._not_before = self._clock()
            self._work_if_due()
            self._changed.wait_for(lambda: self._worker is None, seconds)
            if self._owed or self._worker is not None:
                why = self._error or "it was not done in time, or is closed"
                raise BackendUnavailable(f"the state is not in the mirror: {why}")

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Wait a moment for what is under way; what is owed after that the next start brings."""
        with self._changed:
            self._changed.wait_for(lambda: self._worker is None, seconds)
            self._closing = True
            owed = len(self._owed) + (self._worker is not None)
        if owed:
            logger.warning(
                "state mirror is behind; the next start brings it up",
                extra={"mirror": str(self.database), "owed": owed, "why": self._error},
            )

    @property
    def degraded(self) -> str | None:
        """Why the mirror is behind the file; None while it is not, or is just being written."""
        with self._changed:
            if self._error is None:
                return None
            return f"{self._error} (revisions owed: {len(self._owed)})"

    def status(self) -> dict[str, Any]:
        """Return how the mirror is, as plain values; asks nobody.

        ``revision`` is the file's as last recorded, ``mirrored`` the database's as far as it is
        known; ``pending`` says what is owed, null if nothing is; ``passed_over`` counts revisions
        that were never written since newer ones came before the database did, ``unlisted`` the
        positions and pairs that are in the document only, since they would be too many series.
        """
        with self._changed:
            owed = list(self._owed)
            return {
                "database": self.database.address,
                "name": self.name,
                "revision": _revision(self._recorded) or None,
                "mirrored": self._mirrored,
                "pending": {
                    "revisions": len(owed),
                    "from": _revision(owed[0]),
                    "to": _revision(owed[-1]),
                }
                if owed
                else None,
                "written": self._written,
                "passed_over": self._passed_over,
                "unlisted": self._unlisted,
                "failures": self._failures,
                "degraded": self._error,
            }

    # Reading back

    def newest(self) -> Held | None:
        """Return the highest revision the database holds; None if it has none of this state.

        Raises:
            BackendError: it could not be asked, or refused. Never taken for "it has none".
        """
        return self.database.newest(self.name)

    def take_over(
        self, store: StateStore, *, wait: float = _WAIT_SECONDS, may_begin_empty: bool = False
    ) -> StateMeta | None:
        """Restore what the mirror holds where it is ahead of the file; else it is owed the file.

        For the start of a bot, under its lease. The higher revision counts. A tie goes to the file,
        and so does a mirror that cannot be asked or read. What is replaced is backed up first.

        Args:
            wait: seconds to wait for a database that cannot be reached yet, where there is no state
                of one's own to begin with.
            may_begin_empty: where there is none, and nobody can tell what the mirror holds, it is a
                first start.

        Returns:
            What was restored; None if the file stands.

        Raises:
            BackendError: there is no state here, and what the mirror holds is not known: this may
                be a first start, or the loss of everything.
            StateStoreError: the file does not read, or could not be written.
        """
        try:
            state = store.load()
        except StateCorrupt:
            with suppress(BackendError):
                held = self.newest()
                logger.error(
                    "the state file does not read; what the mirror holds can be restored by "
                    "`statestore mirror restore`",
                    extra={
                        "mirror": str(self.database),
                        "revision": held.revision if held else None,
                    },
                )
            raise
        present, begins = state.meta, not state and not state.meta.revision
        try:
            held = self._held_within(wait if begins else 0)
            if held is None or held.revision <= present.revision:
                self._bring_up(store, present)
                return None
            document = held.document()
        except BackendError as error:
            if begins and not may_begin_empty:
                raise type(error)(
                    f"there is no {store.path}, and what the mirror holds of it is not known: "
                    f"{error}. Wait for it, or begin with `statestore restore`"
                ) from error
            self._note(str(error))
            self._bring_up(store, present)
            return None
        return self._restore(store, document, held.revision, present.revision)

    def _restore(self, store: StateStore, document: bytes, revision: int, former: int) -> StateMeta:
        with suppress(StateMissing):  # nothing is replaced
            store.backup("restore")
        saved = restore_document(store, document, f"mirror at revision {revision}")
        self.saved(store, saved)
        logger.warning(
            "state restored from the mirror, which was ahead of the file",
            extra={
                "path": str(store.path),
                "mirror": str(self.database),
                "file_revision": former,
                "mirror_revision": revision,
                "revision": saved.revision,
            },
        )
        return saved

    def _bring_up(self, store: StateStore, present: StateMeta) -> None:
        if present.verified and present.recovered_from is None:
            self.saved(store, present)

    def _held_within(self, wait: float) -> Held | None:
        until = time.monotonic() + wait
        while True:
            try:
                return self.newest()
            except BackendUnavailable:
                if time.monotonic() >= until:
                    raise
                time.sleep(_ASK_AGAIN_SECONDS)

    # The worker

    def _work_if_due(self) -> None:
        if self._worker is not None or not self._owed or self._closing:
            return
        if self._clock() < self._not_before:
            return
        worker = threading.Thread(target=self._work, name="statestore mirror")
        try:
            worker.start()
        except RuntimeError:  # no more threads, or the interpreter is about to exit: it is owed
            return
        self._worker = worker

    def _work(self) -> None:
        while (document := self._next()) is not None:
            try:
                self._write(document)
            except StateStoreError as error:
                self._failed(document, error)
            except Exception as error:
                logger.exception("state mirror: a bug")
                self._failed(document, error)
            else:
                self._succeeded()

    def _next(self) -> bytes | None:
        with self._changed:
            if self._owed and not self._closing and self._clock() >= self._not_before:
                document = self._owed.popleft()
                self._owed_bytes -= len(document)
                return document
            self._worker = None
            self._changed.notify_all()
            return None

    def _write(self, data: bytes) -> None:
        try:
            document = codec.parse(data)
        except (codec.Damaged, codec.TooNew) as error:
            raise ContentRefused(f"a state that {error} is not mirrored") from error
        if document.trust is not codec.Trust.SEALED:
            raise ContentRefused(f"a state is not mirrored: {document.why or document.trust.value}")
        if not self._met:
            self._meet()
        here = (document.revision, document.identity)
        entries = self._listed_of(document)
        last = self._last
        if last is not None and last[0] >= document.revision:
            if last[:2] == here:
                if not self._known:
                    self._known = entries
                    self._open -= entries.keys()
                return
            if last[0] > document.revision:
                return  # somebody else wrote a newer one; that of ours comes after this one
            self._warn_of_a_fork(document.revision)
        instant = _instant(document)
        if last is not None:
            instant = max(instant, last[2] + 1)
        gone = (self._known.keys() | self._open) - entries.keys()
        changes = [entry for key, entry in entries.items() if self._known.get(key) != entry]
        changes += [Change(series, series.key, "null", deleted=True) for series in gone]
        # Until all of it is acknowledged, nobody knows which of the series it changed.
        self._last = None
        self.database.write(Revision(self.name, *here, instant, data, tuple(changes)))
        self._known, self._open, self._last = entries, set(), (*here, instant)

    def _meet(self) -> None:
        """Find out what the database holds: what the file has beyond that is owed."""
        held = self.newest()
        listed = self.database.series(self.name)
        self._listed |= listed.keys()
        newest = _revision(self._recorded)
        if held is not None and held.revision > newest:
            raise BackendError(
                f"{self.database.address} holds revision {held.revision} of {self.name}, and the "
                f"file is at {newest}; nothing is written over it: `statestore mirror restore` "
                "takes it, another TRADING_STATE_NAME begins anew"
            )
        found = (held.revision, held.sha256, held.instant) if held else None
        if found is None or found != self._last:
            self._known = {}
            self._open = {series for series, deleted in listed.items() if not deleted}
            self._last = found
        self._met = True

    def _listed_of(self, document: codec.Document) -> dict[Series, Change]:
        """Return what gets a series: what always had one, then what is new, up to the limit."""
        entries = changes_of(document)
        new = [series for series in entries if series not in self._listed]
        beyond = new[max(0, MOST_SERIES - len(self._listed)) :]
        for series in beyond:
            del entries[series]
        self._listed |= entries.keys()
        with self._changed:
            self._unlisted = len(beyond)
        return entries

    def _warn_of_a_fork(self, revision: int) -> None:
        logger.warning(
            "the mirror holds another state of the same revision; the file's counts",
            extra={"mirror": str(self.database), "state": self.name, "revision": revision},
        )

    def _succeeded(self) -> None:
        with self._changed:
            recovered, self._error = self._error, None
            self._failures, self._not_before = 0, 0.0
            self._written += 1
            self._mirrored = self._last[0] if self._last else None
        if recovered is not None:
            logger.info("state mirror answers again", extra={"mirror": str(self.database)})

    def _failed(self, document: bytes, error: Exception) -> None:
        with self._changed:
            self._met = False
            if isinstance(error, ContentRefused) and self._owed:
                self._passed_over += 1  # it must not keep newer ones out
            else:
                self._owed.appendleft(document)
                self._owed_bytes += len(document)
                wait = min(_RETRY_AT_MOST_SECONDS, _RETRY_SECONDS * 2 ** min(self._failures, 10))
                self._failures += 1
                self._not_before = self._clock() + wait
        self._note(str(error) or type(error).__name__)

    def _note(self, why: str) -> None:
        with self._changed:
            news, self._error = why != self._error, why
        if news:
            logger.warning(
                "state mirror is behind", extra={"mirror": str(self.database), "why": why}
            )


def document_of(store: StateStore) -> bytes:
    """Return the state that stands, byte for byte as it was saved.

    Raises:
        StateStoreError: it cannot be read.
    """
    if not isinstance(store.path, Path):
        with tempfile.TemporaryDirectory(prefix="statestore-") as folder:
            return store.backup(to=Path(folder, "state.json")).read_bytes()
    try:
        return durable.read_file(store.path, codec.MAX_BYTES)[0]
    except (OSError, durable.NotAFile, durable.TooLarge) as error:
        raise StateError(store.path, f"cannot read {store.path}: {error}") from error


def restore_document(
    store: StateStore,
    document: bytes,
    reason: str,
    before_commit: Callable[[], None] | None = None,
) -> StateMeta:
    """Save a document that came out of a mirror as the next revision of a state.

    Raises:
        StateStoreError: as in `StateStore.restore`.
    """
    with tempfile.TemporaryDirectory(prefix="statestore-") as folder:
        path = Path(folder, "state.json")
        path.write_bytes(document)
        return store.restore(path, reason=reason, before_commit=before_commit)


def configured_mirror(settings: TradingStateSettings, store: StateStore) -> Mirror | None:
    """Return the mirror that ``TRADING_STATE_*`` asks for; None if it asks for none.

    Raises:
        ConfigError: what is asked for is not installed, or the address is none.
    """
    if settings.db_type != "influxdb":
        return None
    from statestore.backends.influx import Influx

    database = Influx(
        settings.influxdb_url,
        token=settings.influxdb_token,
        org=settings.influxdb_org,
        bucket=settings.influxdb_bucket,
    )
    return Mirror(database, settings.name or str(store.path))


def require_mirror(settings: TradingStateSettings, store: StateStore) -> Mirror:
    """Return the configured mirror.

    Raises:
        ConfigError: as in `configured_mirror`, or none is configured.
    """
    mirror = configured_mirror(settings, store)
    if mirror is None:
        raise ConfigError(
            "no mirror is configured: set TRADING_STATE_DB_TYPE=influxdb and "
            "TRADING_STATE_INFLUXDB_URL (docs/influxdb.md)"
        )
    return mirror


def _revision(document: bytes | None) -> int:
    return codec.peek_revision((document or b"")[: codec.HEAD_BYTES]) or 0


def _instant(document: codec.Document) -> int:
    try:
        return times.parse_instant(document.meta.saved_at if document.meta else "")
    except ValueError:
        return times.now()


_mirrors: weakref.WeakSet[Mirror] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for mirror in list(_mirrors):
        mirror._start_over()


os.register_at_fork(after_in_child=_after_fork_in_child)
