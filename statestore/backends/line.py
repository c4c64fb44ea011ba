"""One connection of one's own: made when it is needed, made again after it broke, one user a time.

A store has two, to read and to save, rather than a share in a pool: what became of a save whose
answer never came is found out on a new connection, at once, and a pool would queue for one.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from statestore.errors import BackendUnavailable

if TYPE_CHECKING:
    import psycopg

    from statestore.backends.database import Database

# What a parent had open when it forked. A child must neither use nor close these, not even by
# collecting them as garbage.
_inherited: list[object] = []


class Line:
    """A connection in autocommit. Threads take turns; a forked child makes its own."""

    def __init__(self, database: Database, lock_timeout: float) -> None:
        self._database = database
        self._lock_timeout = lock_timeout
        self._turn = threading.RLock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._pid = os.getpid()

    @contextmanager
    def taken(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Give the connection for a block; one that broke in it is not given again.

        Raises:
            BackendUnavailable: none could be made, so nothing was sent.
        """
        self._start_over_in_child()
        with self._turn:
            connection = self._opened()
            try:
                yield connection
            finally:
                if connection.broken or connection.closed:
                    self._drop()

    def execute(self, text: bytes, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement that may be repeated: it is, if the connection was stale.

        Raises:
            BackendUnavailable, BackendError: as in `Database.transaction`.
        """
        import psycopg

        for last in (False, True):
            with self.taken() as connection:
                try:
                    return connection.execute(text, parameters, binary=True).fetchall()
                except psycopg.Error as error:
                    found = self._database.explained(error)
                    if last or not isinstance(found, BackendUnavailable):
                        raise found from error
        raise AssertionError("not reached")

    def close(self) -> None:
        self._start_over_in_child()
        with self._turn:
            self._drop()

    def _opened(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is not None and _went_away(self._connection):
            self._drop()
        if self._connection is None:
            connection = self._database.connect()
            milliseconds = str(max(1, round(self._lock_timeout * 1000)))
            try:
                connection.execute(
                    "SELECT set_config('lock_timeout', %s, false), set_config("
                    "'default_transaction_isolation', 'read committed', false)",
                    [milliseconds],
                )
            except BaseException as error:
                connection.close()
                import psycopg

                if isinstance(error, psycopg.Error):
                    raise self._database.explained(error) from error
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _start_over_in_child(self) -> None:
        if self._pid != os.getpid():
            _inherited.append(self._connection)
            self._connection = None
            self._turn = threading.RLock()  # whoever held it is not here
            self._pid = os.getpid()


def _went_away(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Return whether the server has closed an idle connection, as far as this machine knows.

    To find that out before something is sent spares the question what became of it.
    """
    import psycopg

    if connection.closed or connection.broken:
        return True
    try:
        if not select.select([connection.fileno()], [], [], 0)[0]:
            return False
        connection.pgconn.consume_input()
    except (psycopg.Error, OSError, ValueError):
        return True
    return bool(connection.pgconn.status != psycopg.pq.ConnStatus.OK)
