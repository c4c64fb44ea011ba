"""The tables ``states`` and ``revisions`` of one state in PostgreSQL, and no file beside it.

What is promised, on a server with ``fsync = on``:

* a swap is one statement: all of it or nothing, whoever swaps at the same time on whichever
  machine, and flushed by the server when it is acknowledged;
* a swap whose connection broke is looked up on a new connection and made again if it did not get
  there: the same bytes under the same revision, so it is there once or not at all;
* a question that could not be asked raises `BackendError`; it is never answered with "nothing".

What is not: who may save what (`statestore.backends.revisions`), and what to do while the database
is away (`statestore.backends.postgres`). Each statement stands here beside what relies on it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from statestore.backends.database import Database
from statestore.backends.line import Line
from statestore.backends.listening import Listener
from statestore.backends.revisions import Pointer, Present
from statestore.disk.contract import BeforeCommit
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    SaveUncertain,
    StateLocked,
    StateStoreError,
)

if TYPE_CHECKING:
    import psycopg

_PRESENT = """
SELECT s.revision, s.sha256, r.document FROM {schema}.states s
LEFT JOIN {schema}.revisions r ON r.name = s.name AND r.revision = s.revision
WHERE s.name = %(name)s AND s.revision IS NOT NULL
"""
_POINTER = """
SELECT revision, sha256 FROM {schema}.states WHERE name = %(name)s AND revision IS NOT NULL
"""
_SUM = "SELECT sha256 FROM {schema}.revisions WHERE name = %(name)s AND revision = %(revision)s"
_DOCUMENT = (
    "SELECT document FROM {schema}.revisions WHERE name = %(name)s AND revision = %(revision)s"
)
_DOCUMENTS = """
SELECT revision, document FROM {schema}.revisions WHERE name = %(name)s ORDER BY revision DESC
"""
_UPDATE = """
    UPDATE {schema}.states SET revision = %(revision)s, sha256 = %(sha256)s
    WHERE name = %(name)s AND revision = %(former_revision)s AND sha256 = %(former_sha256)s
    RETURNING name
"""
_INSERT = """
    INSERT INTO {schema}.states AS s (name, revision, sha256)
    VALUES (%(name)s, %(revision)s, %(sha256)s)
    ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, sha256 = excluded.sha256
    WHERE s.revision IS NULL
    RETURNING name
"""
_ASKED_ABOUT_SECONDS = 120
# One statement: all of it or nothing. A row comes back if it was done. `set_config` counts for the
# transaction, which ends with the statement; what is stricter than "on" is left alone.
_SWAP = """
WITH swapped AS (%s), added AS (
    INSERT INTO {schema}.revisions (name, revision, sha256, document)
    SELECT name, %%(revision)s, %%(sha256)s, %%(document)s FROM swapped
), dropped AS (
    DELETE FROM {schema}.revisions
    WHERE name IN (SELECT name FROM swapped) AND revision < (
        SELECT revision FROM {schema}.revisions WHERE name = %%(name)s
        ORDER BY revision DESC OFFSET %%(behind)s LIMIT 1
    ) AND saved_at < clock_timestamp() - make_interval(secs => %%(asked_about)s)
)
SELECT pg_notify(%%(channel)s, %%(payload)s),
    CASE current_setting('synchronous_commit')
        WHEN 'off' THEN set_config('synchronous_commit', 'on', true)
    END
FROM swapped
"""
_LOCK = (
    "INSERT INTO {schema}.states (name) VALUES (%(name)s) ON CONFLICT DO NOTHING",
    "SELECT 1 FROM {schema}.states WHERE name = %(name)s FOR UPDATE",
)


class StateTables:
    """The rows of one state. Threads may share it; a forked child makes its own connections.

    Attributes:
        channel: what LISTEN has to name to hear of this state.
    """

    def __init__(
        self,
        database: Database,
        state: str,
        address: str,
        *,
        lock_timeout: float,
        failover_seconds: float,
    ) -> None:
        """Remember which state; nothing is connected yet.

        Args:
            address: of the state, for messages.
            lock_timeout: seconds to wait for another writer.
            failover_seconds: how long to find out what became of a swap whose connection broke.
        """
        self._database = database
        self._state = state
        self._address = address
        self._lock_timeout = lock_timeout
        self._failover = failover_seconds
        self._reading = Line(database, lock_timeout)
        self._writing = Line(database, lock_timeout)
        name = hashlib.sha256(f"{database.schema}/{state}".encode()).hexdigest()
        self.channel = f"statestore_{name[:32]}"
        self._texts: dict[str, bytes] = {}
        # The thread whose transaction holds the state, and the connection that it is on.
        self._inside: tuple[int, psycopg.Connection[tuple[Any, ...]]] | None = None

    def close(self) -> None:
        """Close both connections; the next use makes new ones."""
        self._reading.close()
        self._writing.close()

    def reading(self) -> AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]:
        """Give the connection that asks, for a block; see `Line.taken`."""
        return self._reading.taken()

    def writing(self) -> AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]:
        """Give the connection that saves, for a block; see `Line.taken`."""
        return self._writing.taken()

    def new_listener(self) -> Listener:
        """Return what hears of a new revision, not started yet."""
        return Listener(self._database, self.channel, self.text(_POINTER), self._state)

    # Asking

    def present(self) -> Present | None:
        """Return what is pointed to; None if there is no state."""
        rows = self.rows(_PRESENT)
        if not rows:
            return None
        revision, sha256, data = rows[0]
        return Present(Pointer(revision, sha256), None if data is None else bytes(data))

    def pointer(self) -> Pointer | None:
        """Return what is pointed to, without its document."""
        rows = self.rows(_POINTER)
        return Pointer(*rows[0]) if rows else None

    def knows(self, pointer: Pointer) -> bool:
        """Return whether this very revision is at hand here."""
        rows = self.rows(_SUM, revision=pointer.revision)
        return bool(rows and rows[0][0] == pointer.sha256)

    def document(self, revision: int) -> bytes | None:
        """Return the document of a revision; None where it is not at hand."""
        rows = self.rows(_DOCUMENT, revision=revision)
        return bytes(rows[0][0]) if rows else None

    def documents(self) -> list[tuple[int, bytes]]:
        """Return all revisions at hand, newest first."""
        return [(revision, bytes(data)) for revision, data in self.rows(_DOCUMENTS)]

    # Saving

    @contextmanager
    def locked(self, connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[None]:
        """Keep all other writers waiting while this thread reads and swaps on `connection`.

        Raises:
            StateLocked: another one holds the state for too long.
            BackendUnavailable, BackendError: as in `Database.transaction`.
        """
        with self._explaining():
            connection.execute("BEGIN")
            for text in _LOCK:
                connection.execute(self.text(text), {"name": self._state})
        self._inside = threading.get_ident(), connection
        try:
            yield
        finally:
            # After a save it is None: that has committed. Whatever becomes of a rollback,
            # nothing is saved, and it is not what the caller has to be told.
            if self._inside is not None:
                self._inside = None
                with suppress(BackendError), self._explaining():
                    connection.execute("ROLLBACK")

    def swap(
        self,
        former: Pointer | None,
        to: Pointer,
        data: bytes,
        before_commit: BeforeCommit | None,
        keep: int,
    ) -> bool:
        """Add a revision and point to it; return False if `former` is not pointed to.

        Where the connection breaks, find out what became of it, and do it again.

        It cannot be done twice: the second one finds the revision that the first one left. Nor can
        the first one be done after the second: it waits for the same row, and finds it changed.

        Args:
            keep: how many revisions stay; the younger than two minutes do anyway.

        Raises:
            BackendUnavailable, BackendError: it is not saved.
            SaveUncertain: nobody knows, and the database stays away.
            StateLocked: another writer holds the state.
        """
        import psycopg

        text, parameters = self._statement(former, to, data, keep)
        until = time.monotonic() + self._failover
        pause = 0.02
        sent = False
        while True:
            try:
                with self.writing() as connection:
                    inside = self._inside == (threading.get_ident(), connection)
                    if before_commit is not None:
                        self._ask(before_commit, to, sent)
                    committing = not inside  # within a transaction nothing is done before COMMIT
                    try:
                        row = connection.execute(text, parameters, binary=True).fetchone()
                        if row is not None and inside:
                            committing = True
                            connection.execute("COMMIT")
                            self._inside = None
                    except psycopg.Error as error:
                        failed: StateStoreError = self._told(error)
                        if isinstance(failed, BackendUnavailable):
                            # Its last words may come before its end is seen; and where it only
                            # reads, another connection may lead to the primary.
                            connection.close()
                            if inside:
                                self._inside = None  # it went with its connection
                            sent = sent or (committing and error.sqlstate != "25006")
                        if not sent:
                            # Of two at once: nothing was done, and it is our turn now.
                            again = error.sqlstate in ("40001", "40P01") and not inside
                            if again and time.monotonic() < until:
                                continue
                            raise failed from error
                        # Whatever it was this time, the first one may be at work still.
                    else:
                        return row is not None or (sent and self._is_ours(to))
            except SaveUncertain:
                raise
            except BackendUnavailable as error:
                if not sent:
                    raise
                failed = error
            if time.monotonic() >= until:
                raise SaveUncertain(
                    f"nobody knows whether revision {to.revision} of {self._address} is saved: the "
                    f"connection broke during the save, and for {self._failover:g} s the database "
                    f"could not be asked ({failed}); load the state again before anything else"
                ) from failed
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _statement(
        self, former: Pointer | None, to: Pointer, data: bytes, keep: int
    ) -> tuple[bytes, dict[str, Any]]:
        parameters: dict[str, Any] = {
            "name": self._state,
            "revision": to.revision,
            "sha256": to.sha256,
            "document": data,
            "behind": keep - 2,
            # Its writer may have lost the connection, and look for it when it is back.
            "asked_about": _ASKED_ABOUT_SECONDS,
            "channel": self.channel,
            "payload": f"{to.revision} {to.sha256}",
        }
        if former is not None:
            parameters["former_revision"] = former.revision
            parameters["former_sha256"] = former.sha256
        return self.text(_SWAP % (_INSERT if former is None else _UPDATE)), parameters

    def _ask(self, before_commit: BeforeCommit, to: Pointer, sent: bool) -> None:
        """Ask once more before it is done again; a no comes too late to say what was done."""
        try:
            before_commit()
        except Exception as error:
            if not sent:
                raise
            raise SaveUncertain(
                f"nobody knows whether revision {to.revision} of {self._address} is saved: the "
                f"connection broke during the save, and it is not made again, since {error}"
            ) from error

    def _is_ours(self, to: Pointer) -> bool:
        """Return whether the revision that stands in the way is the one that was sent."""
        rows = self.rows(_SUM, revision=to.revision)
        if rows:
            return bool(rows[0][0] == to.sha256)
        now = self.pointer()
        if now is not None and now.revision > to.revision:
            raise SaveUncertain(
                f"nobody knows whether revision {to.revision} of {self._address} was saved: it is "
                f"at revision {now.revision} now, and that one is no longer kept"
            )
        return False

    # Talking

    def rows(self, text: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement that may be repeated."""
        told = {"name": self._state, **parameters}
        if self._inside is not None and self._inside[0] == threading.get_ident():
            with self._explaining():
                return self._inside[1].execute(self.text(text), told, binary=True).fetchall()
        return self._reading.execute(self.text(text), told)

    def text(self, text: str) -> bytes:
        """Return a statement with our schema in it, as it is sent."""
        known = self._texts.get(text)
        if known is None:
            known = self._texts[text] = self._database.query(text).as_bytes(None)
        return known

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise self._told(error) from error

    def _told(self, error: psycopg.Error) -> StateStoreError:
        if error.sqlstate == "55P03":
            return StateLocked(
                self._address,
                f"{self._address} is held by another writer for longer than "
                f"{self._lock_timeout:g} s; nothing was changed: try again, or see what holds it "
                "(pg_stat_activity)",
            )
        return self._database.explained(error)
