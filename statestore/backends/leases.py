"""The lease of a state in PostgreSQL: an advisory lock, and a row that says who holds it.

What is promised:

* the lock is the server's and belongs to one connection, so it is free when its holder dies, and
  within half a minute of a machine that vanishes without a word (keepalives);
* a holder whose connection broke knows within seconds that it holds nothing any more, and tries to
  take the lease again; if another bot was faster, it goes on holding nothing;
* the row is beaten every few seconds, by the server's clock, for an operator to judge a holder by.

What is not: a holder is not told in the very instant that its network is cut. What it saves then is
refused if the other bot has saved (`RevisionConflict`); what it orders at the exchange is not.
Behind a pooler in transaction mode no connection is one's own, and neither is a lock: two bots that
are given the same connection in turn would both hold it. That is looked for, and refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from statestore import times
from statestore.disk.locks import Lease, lease_held
from statestore.errors import BackendError, BackendUnavailable, LeaseHeld

if TYPE_CHECKING:
    import psycopg

    from statestore.backends.database import Database

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0

_TAKE = """
INSERT INTO {schema}.leases (name, pid, host, since, beat, backend)
VALUES (%(name)s, %(pid)s, %(host)s, %(since)s, clock_timestamp(), pg_backend_pid())
ON CONFLICT (name) DO UPDATE SET pid = excluded.pid, host = excluded.host, since = excluded.since,
    beat = excluded.beat, backend = excluded.backend
"""
# By all that names this holder: behind a pooler, `backend` may be another's as well.
_BEAT = """
UPDATE {schema}.leases SET beat = clock_timestamp() WHERE name = %(name)s
    AND backend = pg_backend_pid() AND pid = %(pid)s AND host = %(host)s AND since = %(since)s
"""
_HOLDER = """
SELECT l.pid, l.host, l.since, l.beat
FROM pg_locks k
LEFT JOIN {schema}.leases l ON l.name = %(name)s AND l.backend = k.pid
WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 1
    AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND k.classid::bigint = %(high)s AND k.objid::bigint = %(low)s
"""


class DatabaseLease(Lease):
    """A lease that the server keeps, as long as one connection stands."""

    def __init__(self, database: Database, state: str, address: str, beat_seconds: float) -> None:
        self._database = database
        self._state = state
        self._address = address
        self._every = beat_seconds
        self._key = key_of(database.schema, state)
        self._since = times.format_instant(times.now())
        self._pid = os.getpid()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._beaten: float | None = None
        self._stop = threading.Event()
        self._awake, self._alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._keep, name="statestore lease", daemon=True)

    @property
    def held(self) -> bool:
        beaten = self._beaten
        return (
            beaten is not None
            and self._pid == os.getpid()
            and time.monotonic() - beaten < 3 * self._every
        )

    def start(self, *, patient: bool) -> None:
        """Take it, and keep it from a thread.

        Args:
            patient: a database that is away is waited for, and until then nothing is held.

        Raises:
            LeaseHeld: another bot holds it; names its process, host and since when.
            BackendError: the database is away, or refused.
        """
        try:
            self._take()
        except BackendUnavailable as error:
            if not patient:
                raise
            logger.warning(
                "lease not taken: the database is away",
                extra={"state": self._address, "why": str(error)},
            )
        self._thread.start()

    def release(self) -> None:
        self._stop.set()
        if self._pid != os.getpid():
            return
        if self._thread.is_alive():
            with suppress(OSError):
                os.write(self._alarm, b"x")
            self._thread.join(30)
        connection, self._connection, self._beaten = self._connection, None, None
        if connection is not None:
            with suppress(BackendError), self._database.explaining(), connection:
                connection.execute(
                    self._database.query(
                        "DELETE FROM {schema}.leases WHERE name = %s AND backend = pg_backend_pid()"
                    ),
                    [self._state],
                )
                connection.execute("SELECT pg_advisory_unlock(%s)", [self._key])
        for descriptor in (self._awake, self._alarm):
            with suppress(OSError):
                os.close(descriptor)

    def _take(self) -> None:
        connection = self._database.connect()
        try:
            with self._database.explaining():
                # A machine that vanished answers no keepalive, and its lock goes with it. Over a
                # socket of the same machine these mean nothing, and nothing is needed.
                connection.execute(
                    "SELECT set_config('tcp_keepalives_idle', '10', false), set_config("
                    "'tcp_keepalives_interval', '5', false), set_config("
                    "'tcp_keepalives_count', '3', false), set_config("
                    "'idle_session_timeout', '0', false)"
                )
                self._require_own(connection)
                row = connection.execute("SELECT pg_try_advisory_lock(%s)", [self._key]).fetchone()
                if row is None or not row[0]:
                    raise lease_held(
                        self._address, holder(self._database, connection, self._state) or {}
                    )
                connection.execute(self._database.query(_TAKE), self._who)
        except BaseException:
            connection.close()
            raise
        self._connection, self._beaten = connection, time.monotonic()

    @property
    def _who(self) -> dict[str, Any]:
        host = os.uname().nodename
        return {"name": self._state, "pid": os.getpid(), "host": host, "since": self._since}

    def _require_own(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Raise `BackendError` where the server's side of this connection is given to others too.

        Without a pooler the process that answers is the one that greeted. With one, it is asked
        whether another connection gets the same: the one that was free last is mostly given first.
        """
        if _backend(connection) == connection.info.backend_pid:
            return
        with self._database.dedicated() as other:
            for _ in range(3):
                mine = _backend(connection)
                with other.transaction():
                    shared = _backend(other) == mine
                if shared:
                    raise BackendError(
                        f"{self._address} is behind a pooler in transaction mode, where a lease "
                        "keeps no second bot out: name the server itself, or a pool in session mode"
                    )

    def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                if self._connection is None:
                    self._take()
                    logger.warning("lease taken", extra={"state": self._address})
                self._wait(self._connection)
                if not self._stop.is_set() and self._connection is not None:
                    self._beat(self._connection)
            except LeaseHeld as error:
                logger.error("lease is another bot's now", extra={"why": str(error)})
                self._wait(None)
            except BackendError as error:
                self._lose(error)
                self._wait(None)

    def _wait(self, connection: psycopg.Connection[tuple[Any, ...]] | None) -> None:
        """Wait until the next beat is due, the connection has something to say, or the end."""
        watched: list[Any] = [self._awake]
        if connection is not None:
            watched.append(connection.fileno())
        with suppress(OSError, ValueError):
            select.select(watched, [], [], self._every)

    def _beat(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        with self._database.explaining():
            done = connection.execute(self._database.query(_BEAT), self._who)
        if not done.rowcount:
            raise BackendError(f"{self._address}: the lease names another bot now")
        self._beaten = time.monotonic()

    def _lose(self, error: BackendError) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return  # was lost before
        self._beaten = None
        connection.close()
        logger.error("lease lost", extra={"state": self._address, "why": str(error)})


def holder(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], state: str
) -> dict[str, Any] | None:
    """Return who holds the lease; None if nobody does, empty where it is not known who."""
    key = key_of(database.schema, state) & 0xFFFF_FFFF_FFFF_FFFF
    told = {"name": state, "high": key >> 32, "low": key & 0xFFFF_FFFF}
    # Times in binary: how they are written as text is up to the role and the database.
    row = connection.execute(database.query(_HOLDER), told, binary=True).fetchone()
    if row is None:
        return None
    if row[0] is None:
        return {}
    pid, host, since, beat = row
    return {"pid": pid, "host": host, "since": _text(since), "beat": _text(beat)}


def _backend(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    """Return which process of the server answers."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row[0] if row else 0


def key_of(schema: str, state: str) -> int:
    """Return the number of the advisory lock: signed, 64 bits, other for each state."""
    digest = hashlib.sha256(f"statestore lease {schema}/{state}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _text(instant: Any) -> str:
    return times.format_instant(round(instant.timestamp() * 1_000_000) * 1_000)
