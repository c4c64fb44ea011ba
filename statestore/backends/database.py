"""A PostgreSQL database: connections, our schema and its versions, and errors in our words.

Everything of ours lives in one schema (``statestore`` unless told otherwise), so the user's own
tables are never met. Its tables are made by numbered SQL files that come with the package
(``sql/0001_state.sql`` ...): each is applied once, in a transaction of its own together with the
line that records it, under a lock, so that two who begin at once do it once. `Database.query`
puts the schema's name in; nothing here depends on a ``search_path`` or any other setting of a
session, so a connection pooler in between is fine.

What is promised: a query that could not be answered raises `BackendError`, it is never an empty
answer; no password is in `Database.address`, in a message or in a log.

Which files there are is in `statestore.backends.migrations`. One module, because whoever is given a
`Database` asks it both whether it is there and whether it has what this version works on.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

from statestore.backends.migrations import Applied, Migration, SchemaStatus, migrations
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ContentRefused,
    SchemaOutdated,
)
from statestore.urls import DEFAULT_SCHEMA, StateUrl

if TYPE_CHECKING:
    import psycopg
    import psycopg_pool
    from psycopg import sql

# Of libpq: seconds, a count, and milliseconds that what was sent may stay unanswered by the peer.
_PATIENCE: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,
    "application_name": "statestore",
}

# The server is there, and it is the URL that has to be put right. libpq gives no code for it.
_NOT_LET_IN = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|permission denied for database"
    r'|(role|database) "[^"]*" does not exist|not permitted to log in'
)

# Pools a parent had open when it forked: a child must not even collect them as garbage.
_inherited: list[object] = []

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MIGRATIONS_LOCK = 0x5374_6174_6553_746F  # "StateSto"; of a whole database, for a moment


class Database:
    """One database, and our schema in it. Threads may share it; a forked child connects anew.

    Attributes:
        address: where it is, for messages: the URL without user and password.
        schema: the name of our schema.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        connections: int = 4,
        timeout: float = 10.0,
    ) -> None:
        """Remember where it is; nothing is connected yet.

        Args:
            url: ``postgresql://user:password@host/database?sslmode=require``, as libpq reads it.
                What it does not say comes from libpq's own settings (``PGHOST``, ``~/.pgpass``).
                The parameters of a state's URL (`StateUrl`) are understood.
            schema: that of the URL, else ``statestore``, unless given.
            connections: at most, at a time.
            timeout: seconds to wait for one.

        Raises:
            ConfigError: psycopg is not installed, or the URL or the schema's name is none.
        """
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(
                "a PostgreSQL database needs psycopg: pip install 'statestore[postgres]'"
            ) from error
        if "://" in url:
            parsed = StateUrl(url)
            url = parsed.without_parameters
            schema = parsed.parameters.get("schema") if schema is None else schema
        schema = DEFAULT_SCHEMA if schema is None else schema
        if not _SCHEMA.fullmatch(schema):
            raise ConfigError(
                f"{schema!r:.80} is no name for a schema: lower case letters, digits and _ only"
            )
        try:
            told = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            # libpq's message quotes the URL, password included.
            raise ConfigError(
                "the database's URL is not understood; postgresql://user@host:5432/name is "
                "expected, with no other parameters than state, schema, file_fallback and libpq's"
            ) from None
        self.address = _address(told, schema)
        self.schema = schema
        self._url = url
        self._connections = connections
        self._timeout = timeout
        self._pool: psycopg_pool.ConnectionPool[Any] | None = None
        self._opening = threading.Lock()
        self._pid = os.getpid()
        self._refused: psycopg.Error | None = None  # why the pool's last attempt to connect failed

    def __repr__(self) -> str:
        return f"Database({self.address!r})"

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._start_over_in_child()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Give a connection inside a transaction: committed at the end, rolled back on an error.

        Raises:
            BackendUnavailable: no connection, or it broke. After the block's end that may have
                been while the answer to COMMIT was on its way: then nobody knows whether it was
                carried out, and who asked has to look (``error.uncertain``).
            BackendError: the database refused a statement.
        """
        import psycopg
        import psycopg_pool

        committing = False
        try:
            with self._opened().connection(self._timeout) as connection:
                yield connection
                committing = True
        except psycopg_pool.PoolTimeout as error:
            if self._refused is None:
                raise self.explained(error) from error  # all are in use
            # A pool that goes on trying waits longer each time; a new one says at once how it is.
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.close(0)
            raise self.explained(self._refused) from error
        except psycopg.Error as error:
            raise self.explained(error, uncertain=committing) from error
        except UnicodeEncodeError as error:
            what = f"{error.object[error.start : error.end]!a} in {error.object[:40]!a}"
            raise ContentRefused(f"{self.address}: {what} is no text that can be stored") from error

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a new connection in autocommit, outside the pool: to listen, lock or save.

        A peer that is silently gone is noticed within seconds, and no statement is prepared, which
        a pooler in between may not carry on; the URL may say otherwise.

        Raises:
            BackendUnavailable, BackendError: as in `transaction`.
        """
        import psycopg

        try:
            return psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise self.explained(error) from error

    @contextmanager
    def dedicated(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Give a connection of one's own for a block; see `connect`."""
        with self.explaining(), self.connect() as connection:
            yield connection

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn psycopg's errors into ours for a block; see `explained`."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise self.explained(error) from error

    def query(self, text: LiteralString) -> sql.Composed:
        """Return a statement with ``{schema}`` filled in (write ``{{`` for a brace)."""
        from psycopg import sql

        return sql.SQL(text).format(schema=sql.Identifier(self.schema))

    def explained(self, error: psycopg.Error, *, uncertain: bool = False) -> BackendError:
        """Return psycopg's error as one of ours; no password is in it."""
        import psycopg

        state = error.sqlstate or ""
        # Without the line of SQL that psycopg points at: nobody can do anything about it.
        told = (error.diag.message_primary, error.diag.message_detail) if state else (str(error),)
        said = " ".join(" ".join(filter(None, told)).split()) or type(error).__name__
        if state in ("42P01", "3F000", "42703"):  # undefined table, schema, column
            return SchemaOutdated(
                f"{self.address}: {said}; run `statestore db init` (or `upgrade`) first"
            )
        if state == "25006":
            return BackendUnavailable(
                f"{self.address} only reads, as a standby does: {said}; name the primary, or all "
                "hosts with target_session_attrs=read-write"
            )
        # The end of a connection has no code, unless the server said goodbye.
        lost = not state and isinstance(error, psycopg.OperationalError)
        if lost and _NOT_LET_IN.search(said):
            return BackendUnavailable(
                f"{self.address} cannot be used: {said}; check user and database in the URL, and "
                "the password (PGPASSWORD, ~/.pgpass)"
            )
        if lost or state.startswith(("08", "57P", "25P03", "25P04")):
            return BackendUnavailable(
                f"{self.address} cannot be reached: {said}; look whether the server runs and "
                "whether the URL is right",
                uncertain=uncertain,
            )
        return BackendError(f"{self.address} refused: {said}")

    # The schema

    def status(self) -> SchemaStatus:
        """Return what of our schema is there. Reads only.

        Raises:
            SchemaOutdated: it was made by a newer version, or by other files than these.
            BackendError: as in `transaction`.
        """
        with self.transaction() as connection:
            return self._status(connection)

    def upgrade(self) -> tuple[Migration, ...]:
        """Make the schema if it is not there and apply what is pending; return what was applied.

        Doing so again does nothing. Each migration is one transaction: of one that fails nothing
        is left, and the ones before it stand.

        Raises:
            SchemaOutdated, BackendError: as in `status`.
        """
        done = []
        while (applied := self._apply_next()) is not None:
            done.append(applied)
        return tuple(done)

    @property
    def name(self) -> str:
        """What a report of missing tables calls it: its address."""
        return self.address

    def require_schema(self) -> None:
        """Raise `SchemaOutdated` unless the schema is the one this version works on."""
        with self.transaction() as connection:
            status, gone = self._status(connection), self._missing(connection)
        if status.pending:
            raise SchemaOutdated(
                f"{self.address} is at schema version {status.version}, and this statestore needs "
                f"{status.pending[-1].number}: run `statestore db upgrade`"
                + ("" if status.applied else " (or `statestore db init`)")
            )
        if gone:
            raise SchemaOutdated(
                f"{self.address} was made in full, and lacks {', '.join(gone)}: somebody dropped "
                "them, and `statestore db init` makes nothing twice; restore the database, or, to "
                f'begin anew, DROP SCHEMA "{self.schema}" CASCADE and run `statestore db init`'
            )

    def missing(self) -> tuple[str, ...]:
        """Return the tables this version needs that are not there, by name. Reads only.

        Raises:
            SchemaOutdated, BackendError: as in `status`.
        """
        with self.transaction() as connection:
            self._status(connection)
            return self._missing(connection)

    def _missing(self, connection: psycopg.Connection[tuple[Any, ...]]) -> tuple[str, ...]:
        made = ("migrations", *(name for file in migrations() for name in file.tables))
        rows = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s", [self.schema]
        ).fetchall()
        there = {name for (name,) in rows}
        return tuple(name for name in made if name not in there)

    def _apply_next(self) -> Migration | None:
        from psycopg import sql

        name = sql.Identifier(self.schema)
        with self.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATIONS_LOCK])
            status = self._status(connection)
            if not status.pending:
                return None
            if not status.applied:
                # Looked for first: a role that may make none may use one that was made for it.
                there = connection.execute(
                    "SELECT 1 FROM pg_namespace WHERE nspname = %s", [self.schema]
                ).fetchone()
                if there is None:
                    connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
                connection.execute(
                    self.query(
                        "CREATE TABLE {schema}.migrations (number integer PRIMARY KEY, name text "
                        "NOT NULL, sha256 text NOT NULL, applied_at timestamptz NOT NULL "
                        "DEFAULT clock_timestamp())"
                    )
                )
            migration = status.pending[0]
            # The files name no schema; for this transaction theirs is ours.
            connection.execute(sql.SQL("SET LOCAL search_path TO {}, pg_catalog").format(name))
            connection.execute(migration.text.encode())
            connection.execute(
                self.query(
                    "INSERT INTO {schema}.migrations (number, name, sha256) VALUES (%s, %s, %s)"
                ),
                [migration.number, migration.name, migration.sha256],
            )
        return migration

    def _status(self, connection: psycopg.Connection[tuple[Any, ...]]) -> SchemaStatus:
        there = connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", [f"{self.schema}.migrations"]
        ).fetchone()
        rows: list[tuple[Any, ...]] = []
        if there is not None and there[0]:
            rows = connection.execute(
                self.query(
                    "SELECT number, name, sha256, applied_at FROM {schema}.migrations "
                    "ORDER BY number"
                )
            ).fetchall()
        applied = tuple(Applied(*row) for row in rows)
        return SchemaStatus.judged(self.schema, self.address, applied, migrations())

    @property
    def _conninfo(self) -> str:
        """What to connect with: what the URL says goes before what we add. Never to be printed."""
        import psycopg

        told = psycopg.conninfo.conninfo_to_dict(self._url)
        ours = {"connect_timeout": max(2, round(self._timeout)), **_PATIENCE}
        told["client_encoding"] = "UTF8"  # else that of a role or of a database of no encoding
        return psycopg.conninfo.make_conninfo(self._url, **{**ours, **told})

    def _opened(self) -> psycopg_pool.ConnectionPool[Any]:
        self._start_over_in_child()
        with self._opening:
            pool = self._pool = self._pool or self._new_pool()
        if not pool.get_stats()["pool_size"]:
            # A pool does not say why it has none to give, and waits; this says so at once.
            self.connect().close()
        return pool

    def _new_pool(self) -> psycopg_pool.ConnectionPool[Any]:
        import psycopg_pool

        logging.getLogger("psycopg.pool").addFilter(_not_twice)
        return psycopg_pool.ConnectionPool(
            self._conninfo,
            connection_class=self._noting(),
            min_size=0,
            max_size=self._connections,
            timeout=self._timeout,
            kwargs={"prepare_threshold": None},
            configure=_ours,
            check=psycopg_pool.ConnectionPool.check_connection,
            open=True,
            name=f"{_POOL}{self.schema}",
        )

    def _noting(self) -> type[psycopg.Connection[Any]]:
        """Return psycopg's connection, made to note why the last attempt to connect failed."""
        import psycopg

        def note(error: psycopg.Error | None) -> None:
            self._refused = error

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                try:
                    made = super().connect(*args, **kwargs)
                except psycopg.Error as error:
                    note(error)
                    raise
                note(None)
                return made

        return Connection

    def _start_over_in_child(self) -> None:
        if self._pid != os.getpid():
            _inherited.append(self._pool)
            self._pool, self._opening, self._pid = None, threading.Lock(), os.getpid()


_POOL = "statestore:"


def _not_twice(record: logging.LogRecord) -> bool:
    """Keep a pool of ours from logging each attempt that failed: who asked is told in an error."""
    told = record.args if isinstance(record.args, tuple) else ()
    ours = any(isinstance(value, str) and value.startswith(_POOL) for value in told)
    return not (ours and record.levelno >= logging.WARNING)


# A commit is flushed before it is acknowledged; what is stricter stays. Psycopg reads no times but
# those of ISO.
_SESSION = """
SELECT set_config('datestyle', 'ISO', false), CASE current_setting('synchronous_commit')
    WHEN 'off' THEN set_config('synchronous_commit', 'on', false)
END
"""


def _ours(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Set what is relied on, whatever the role or the database is set to."""
    from psycopg import IsolationLevel

    connection.execute(_SESSION)
    connection.commit()
    connection.isolation_level = IsolationLevel.READ_COMMITTED


def storable(text: str) -> str:
    """Return a text as it can be stored: what is none (NUL, half a character) is spelt out.

    For what a person reads; what it is about must not fail because of it.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _address(told: dict[str, Any], schema: str) -> str:
    host = told.get("host") or told.get("hostaddr") or "localhost"
    port = f":{told['port']}" if told.get("port") else ""
    return f"postgresql://{host}{port}/{told.get('dbname') or ''} (schema {schema})"
