"""A state in PostgreSQL, for several machines that share one truth: ``StateStore("postgresql://...")``.

What `StateStore` promises, and besides, on a server with ``fsync = on``:

* a save compares the revision and swaps it in one statement, whoever saves at the same time on
  whichever machine; what it acknowledges is flushed by the server (``synchronous_commit`` is on for
  it, whatever the setting);
* a save whose connection broke is looked up on a new connection and made again if it did not get
  there: the same bytes under the same revision, so it is there once or not at all. It is
  acknowledged only if it is there; where the database stays away for too long, the error says that
  nobody knows (`SaveUncertain`);
* `changed` is a look at what a thread was told by LISTEN, and a question where it was told nothing;
* with ``file_fallback``, a database that is away is replaced by a file, and reconciled with it when
  it is back (`statestore.backends.fallback`).

What is not: a standby that was promoted before it had received a commit has lost it, unless it is
synchronous (``synchronous_standby_names``); behind a pooler in transaction mode there is no lease
and no notification; a server that hangs with its kernel alive is waited for.

Here is decided when a save goes to the file instead; the statements, and what becomes of a save
whose connection broke, are in `statestore.backends.states`. One module, because with and without a
file it is the same store, and each method says what the file changes in it.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from statestore.backends.database import Database, storable
from statestore.backends.fallback import Fallback
from statestore.backends.halting import Row
from statestore.backends.leases import BEAT_SECONDS, DatabaseLease, holder
from statestore.backends.listening import Ears
from statestore.backends.revisions import Judged, Pointer, Present, RevisionStore
from statestore.backends.states import StateTables
from statestore.disk import codec
from statestore.disk import store as files
from statestore.disk.contract import BeforeCommit, StateMeta
from statestore.disk.locks import Lease
from statestore.disk.reading import OnMismatch
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    SaveUncertain,
    StateForked,
    UsageError,
)
from statestore.urls import DEFAULT_SCHEMA, DEFAULT_STATE, StateUrl

logger = logging.getLogger(__name__)

T = TypeVar("T")

FAILOVER_SECONDS = 30.0
_FAILOVER_WITH_FILE_SECONDS = 5.0
_AWAY_FOR_SECONDS = 5.0  # so long nobody asks again, where there is a file to go to

_LOOK = """
SELECT reason, engaged_by, at FROM {schema}.kill_switches WHERE name = %(name)s
"""
_PUT = """
INSERT INTO {schema}.kill_switches (name, reason, engaged_by) VALUES (%(name)s, %(reason)s, %(by)s)
ON CONFLICT DO NOTHING RETURNING name
"""
_TAKE_AWAY = "DELETE FROM {schema}.kill_switches WHERE name = %(name)s RETURNING name"
_SERVER = """
SELECT current_setting('server_version'), pg_is_in_recovery(), (
    SELECT jsonb_object_agg(name, setting) FROM pg_settings WHERE name IN (
        'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names')
), (SELECT count(*) FROM pg_stat_replication)
"""
_STATES = """
SELECT s.name, s.revision, count(r.revision) FROM {schema}.states s
LEFT JOIN {schema}.revisions r ON r.name = s.name GROUP BY s.name ORDER BY s.name
"""


class PostgresStore(RevisionStore):
    """A state in PostgreSQL; see `StateStore`, and above.

    Attributes:
        state: the name of the state; a database holds any number of them.
        database: where, and in which schema.
    """

    def __init__(
        self,
        path: str | StateUrl,
        *,
        schema: str | None = None,
        state: str | None = None,
        file_fallback: str | os.PathLike[str] | None = None,
        backup_dir: str | os.PathLike[str] | None = None,
        lock_timeout: float = 10.0,
        on_mismatch: OnMismatch = "refuse",
        keep_revisions: int = 100,
        connect_timeout: float = 5.0,
        failover_seconds: float | None = None,
        beat_seconds: float = BEAT_SECONDS,
        durability: str = "full",
    ) -> None:
        """Remember where the state is; nothing is connected yet.

        Args:
            path: ``postgresql://user@host/database``, as libpq reads it, with ``?schema=``,
                ``state=`` and ``file_fallback=`` in place of the arguments of these names.
            schema: our schema in that database, ``statestore`` unless given.
            state: which state of several, ``default`` unless given.
            file_fallback: where to save while the database is away.
            backup_dir: ``data/state_backups`` unless given. States of other names and other schemas
                may share it; those of another database may not.
            keep_revisions: how many stay in the database; the younger than two minutes do anyway.
            connect_timeout: seconds to wait for a connection.
            failover_seconds: how long to find out what became of a save whose connection broke; 30
                unless given, 5 where there is a file to go to.
            beat_seconds: how often the holder of the lease says that it is alive.
            durability: ``full``; there is no other here.

        Raises:
            UsageError: an option means nothing.
            ConfigError: the URL is not understood, or psycopg is not installed.
        """
        if durability != "full":
            raise UsageError(
                f"durability is {durability!r}, and a database saves in full; leave it out"
            )
        given = path if isinstance(path, StateUrl) else StateUrl(path)
        file = None if file_fallback is None else os.fspath(file_fallback)
        url = given.having(schema=schema, state=state, file_fallback=file)
        ours = url.parameters
        self.state = ours.get("state") or DEFAULT_STATE
        self._schema = ours.get("schema") or DEFAULT_SCHEMA
        self._begin(url, backup_dir, lock_timeout, on_mismatch, keep_revisions)
        self._url = url
        self._options: dict[str, Any] = {
            "lock_timeout": lock_timeout,
            "keep_revisions": keep_revisions,
            "connect_timeout": connect_timeout,
            "failover_seconds": failover_seconds,
            "beat_seconds": beat_seconds,
        }
        self.database = Database(
            url.without_parameters,
            schema=self._schema,
            timeout=connect_timeout,
        )
        self._fallback: Fallback | None = None
        if ours.get("file_fallback"):
            file_path = Path(os.path.realpath(ours["file_fallback"]))
            self._fallback = Fallback(file_path, self.path, lock_timeout)
        patience = FAILOVER_SECONDS if self._fallback is None else _FAILOVER_WITH_FILE_SECONDS
        self._beat_seconds = beat_seconds
        self._tables = StateTables(
            self.database,
            self.state,
            self.path,
            lock_timeout=lock_timeout,
            failover_seconds=patience if failover_seconds is None else failover_seconds,
        )
        self._away_until = 0.0
        self._ears = Ears()
        self._end = weakref.finalize(self, _close, self._ears, self._tables)

    def changed(self) -> bool:
        seen = self._seen
        if seen is None:
            return True
        heard = self._ears.listener(self._tables.new_listener).heard()
        if heard is not None and (self._fallback is None or not self._fallback.is_pending):
            now = heard[0]
            if now == seen.pointer:
                return False
            # It may be older than what this store has saved since: then it is asked for.
            if now and (seen.pointer is None or now.revision > seen.pointer.revision):
                return True
        try:
            return self._pointer() != seen.pointer
        except (BackendError, StateForked):
            return True

    def onlooker(self, *, on_mismatch: OnMismatch | None = None) -> PostgresStore:
        return PostgresStore(
            self._url,
            backup_dir=self.backups.directory,
            on_mismatch=on_mismatch or self.on_mismatch,
            **self._options,
        )

    def lease(self) -> Lease:
        self._ask_guard()
        lease = DatabaseLease(self.database, self.state, self.path, self._beat_seconds)
        lease.start(patient=self._fallback is not None)
        return lease

    def lease_holder(self) -> dict[str, Any] | None:
        with self._tables.reading() as connection, self.database.explaining():
            return holder(self.database, connection, self.state)

    def close(self) -> None:
        self._ears.close()
        self._tables.close()
        self.database.close()

    # For an operator

    def server(self) -> dict[str, Any]:
        """Return what matters of the server: plain values, and ``warnings`` of what it may lose."""
        ((version, standby, settings, standbys),) = self._tables.rows(_SERVER)
        warnings = []
        if settings["fsync"] != "on":
            warnings.append("fsync is off: a crash of the machine loses or tears what was saved")
        if settings["full_page_writes"] != "on":
            warnings.append(
                "full_page_writes is off: a crash of the machine may tear what is saved"
            )
        if standby:
            warnings.append("this is a standby: it only reads")
        if standbys and not settings["synchronous_standby_names"]:
            warnings.append(
                "standbys are asynchronous: one that is promoted may lack the last saves "
                "(synchronous_standby_names)"
            )
        return {"version": version, "standby": standby, **settings, "warnings": warnings}

    def states(self) -> list[dict[str, Any]]:
        """Return every state in this schema: name, present revision, and how many are kept."""
        return [
            {"state": name, "revision": revision, "revisions": count}
            for name, revision, count in self._tables.rows(_STATES)
        ]

    # Reconciling with the file

    def reconcile(self, take: str | None = None) -> dict[str, Any]:
        """Put right what the file beside the database and the database do not agree on.

        Args:
            take: ``file`` or ``database``, whatever the other one has; without it only what is
                sure: one of them has not moved.

        Returns:
            ``done``: nothing, push, drop or take; ``revision`` of the database after it;
            ``aside``: where the file is now, if it was moved aside.

        Raises:
            UsageError: there is no file_fallback, or `take` is neither.
            StateForked: both have moved, and `take` does not say which.
            StateError: the file is another state's.
            BackendUnavailable: the database is away.
        """
        fallback = self._fallback
        if fallback is None:
            raise UsageError(f"{self.path} has no file_fallback, so there is nothing to reconcile")
        if take not in (None, "file", "database"):
            raise UsageError(f"take is {take!r}; it is file or database")
        self._away_until = 0.0
        with self._alone():
            fallback.require_ours(self._tables.knows)
            if take is None:
                done, aside = self._settled(fallback)
            else:
                done, aside = "take", fallback.exclusively(lambda: self._taken(fallback, take))
                present = self._tables.present()
                if present is not None and present.data is not None:
                    fallback.copy(present.pointer, present.data, self._tables.knows)
        pointer = self._tables.pointer()
        return {
            "done": done,
            "revision": pointer.revision if pointer else None,
            "aside": None if aside is None else str(aside),
        }

    def fallback_status(self) -> dict[str, Any] | None:
        """Return how the file beside the database stands; None without one. Asks the file only."""
        fallback = self._fallback
        if fallback is None:
            return None
        pending, file = fallback.pending(), fallback.present()
        return {
            "path": str(fallback.path),
            "owner": fallback.owner(),
            "revision": file.pointer.revision if file else None,
            "pending_since": pending.since if pending else None,
            "base_revision": pending.base.revision if pending and pending.base else None,
            "why": pending.why if pending else None,
        }

    def _taken(self, fallback: Fallback, take: str) -> Path | None:
        if take == "file":
            self._put_into_database(fallback)
        return fallback.drop(f"the {take}'s state was taken")

    def _put_into_database(self, fallback: Fallback) -> None:
        """Save what the file has as the next revision, whatever the database has."""
        file = fallback.present()
        if file is None or file.data is None:
            raise UsageError(f"{fallback.path} holds no state that reads; nothing was changed")
        present = self._tables.present()
        found = Judged(None, self.path, pointer=present.pointer if present else None)
        document = codec.parse(file.data)
        self._fallback = None  # or what stands in the way would be asked about again
        try:
            self._write(found, document, "reconcile: take file", None, None, None)
        finally:
            self._fallback = fallback

    def _settled(self, fallback: Fallback) -> tuple[str, Path | None]:
        """Do what is to be done, by the table of `fallback`; return it.

        Raises:
            StateForked, BackendUnavailable.
        """
        return fallback.exclusively(lambda: self._settled_alone(fallback))

    def _settled_alone(self, fallback: Fallback) -> tuple[str, Path | None]:
        while True:
            database = self._tables.pointer()
            verdict = fallback.verdict(database, self._tables.knows)
            if verdict == "forked":
                raise fallback.forked(database)
            if verdict == "drop":
                return verdict, fallback.drop("the database has another state")
            if verdict == "nothing":
                if fallback.pending() is not None:
                    fallback.done()
                return verdict, None
            file = fallback.present()
            assert file is not None
            assert file.data is not None
            if self._tables.swap(database, file.pointer, file.data, None, self.keep_revisions):
                fallback.done()
                logger.warning(
                    "state saved in the file is in the database now",
                    extra={"path": self.path, "revision": file.pointer.revision},
                )
                return verdict, None

    # What a state of revisions is made of

    def _ask_guard(self) -> None:
        if files.path_guard is not None:
            files.path_guard(self.path)

    def _row(self) -> Row:
        return _Row(
            lambda *told, **more: self._unless_away(lambda: self._tables.rows(*told, **more))
        )

    def _file_name(self) -> str:
        # States of two schemas may have one name, and one folder for backups. No part of a name
        # has an @ in it, so neither is taken for the other.
        named = [self.state] if self._schema == DEFAULT_SCHEMA else [self._schema, self.state]
        return "@".join(
            "".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in named
        )

    def _present(self) -> Present | None:
        fallback = self._fallback
        if fallback is None:
            return self._tables.present()
        try:
            present = self._unless_away(self._tables.present)
            database = present.pointer if present else None
            verdict = fallback.verdict(database, self._tables.knows)
        except BackendUnavailable as error:
            return self._of_file(fallback, error)
        if verdict == "forked":
            raise fallback.forked(database)
        if verdict == "push":
            file = fallback.present(f"is behind {fallback.path}, which was saved while it was away")
            return file or present
        return present

    def _pointer(self) -> Pointer | None:
        fallback = self._fallback
        if fallback is None:
            return self._tables.pointer()
        try:
            database = self._unless_away(self._tables.pointer)
            verdict = self._verdict(fallback, database)
        except BackendUnavailable as error:
            file = self._of_file(fallback, error)
            return file.pointer if file else None
        if verdict == "forked":
            raise fallback.forked(database)
        file = fallback.present() if verdict == "push" else None
        return file.pointer if file else database

    def _document(self, revision: int) -> bytes | None:
        try:
            data = self._tables.document(revision)
        except BackendUnavailable:
            if self._fallback is None:
                raise
            data = None
        if data is not None or self._fallback is None:
            return data
        return dict(self._fallback.documents(self._tables.knows)).get(revision)

    def _documents(self) -> list[tuple[int, bytes]]:
        fallback = self._fallback
        if fallback is None:
            return self._tables.documents()
        try:
            found = self._tables.documents()
        except BackendUnavailable:
            found = fallback.documents()
            if not found:
                raise
            return found
        newest = found[0][0] if found else 0
        ahead = fallback.documents() if fallback.is_pending else []
        return [document for document in ahead if document[0] > newest] + found

    def _swap(
        self, former: Pointer | None, to: Pointer, data: bytes, before_commit: BeforeCommit | None
    ) -> bool:
        fallback = self._fallback
        if fallback is None:
            return self._tables.swap(former, to, data, before_commit, self.keep_revisions)
        asked = False

        def ask() -> None:
            nonlocal asked
            if before_commit is not None:
                before_commit()
            asked = True

        try:
            if fallback.is_pending:
                self._unless_away(lambda: self._settled(fallback))
            done = self._unless_away(
                lambda: self._tables.swap(former, to, data, ask, self.keep_revisions)
            )
            if not done:
                self._refuse_a_loss(fallback)
        except StateForked as fork:
            if not asked:
                ask()
            fallback.take(former, to, data, str(fork), uncertain=False)
            raise
        except BackendUnavailable as error:
            if not asked:
                ask()
            uncertain = isinstance(error, SaveUncertain)
            return fallback.take(former, to, data, str(error), uncertain=uncertain)
        if done:
            # Mostly what it replaces is what the database had until now: that is not asked for.
            fallback.copy(
                to, data, lambda pointer: pointer == former or self._tables.knows(pointer)
            )
        return done

    def _refuse_a_loss(self, fallback: Fallback) -> None:
        """Raise `StateForked` where what stands in the way is older than what is in the file."""
        with suppress(BackendUnavailable):  # then it is a conflict, whatever else it is
            now = self._tables.pointer()
            if fallback.verdict(now, self._tables.knows) == "forked":
                raise fallback.forked(now)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                line = self._unless_away(lambda: stack.enter_context(self._tables.writing()))
            except BackendUnavailable:
                if self._fallback is None:
                    raise
            else:
                stack.enter_context(self._tables.locked(line))
            yield  # where there is no line, the file is swapped under a lock of its own

    # One save

    def _commit(
        self,
        encoded: dict[str, codec.Section],
        state: Mapping[str, Any],
        reason: str,
        expected_revision: int | None,
        before_commit: BeforeCommit | None,
    ) -> StateMeta:
        fallback = self._fallback
        if fallback is not None and fallback.is_pending:
            # Here too, since unchanged content does not get as far as a swap. A fork is told there.
            with suppress(BackendUnavailable, StateForked):
                self._unless_away(lambda: self._settled(fallback))
        return super()._commit(encoded, state, reason, expected_revision, before_commit)

    # Asking

    def _verdict(self, fallback: Fallback, database: Pointer | None) -> str:
        if database is not None and not fallback.is_pending:
            return "nothing"  # what else is in the file does not matter to who reads
        return fallback.verdict(database, self._tables.knows)

    def _of_file(self, fallback: Fallback, error: BackendUnavailable) -> Present | None:
        """Return what the file has; the database's own error where that is nothing."""
        fallback.require_ours()
        present = fallback.present(f"is away ({error})")
        if present is None:
            raise error
        return present

    def _unless_away(self, ask: Callable[[], T]) -> T:
        """Ask, unless the database was found away a moment ago, and there is a file to go to.

        A bot must not wait for it each time.
        """
        if self._fallback is None:
            return ask()
        if time.monotonic() < self._away_until:
            raise BackendUnavailable(
                f"{self.path} was away a moment ago and is not asked again yet"
            )
        try:
            return ask()
        except BackendUnavailable:
            self._away_until = time.monotonic() + _AWAY_FOR_SECONDS
            raise


class _Row:
    """The kill switch in the database."""

    def __init__(self, rows: Callable[..., list[tuple[Any, ...]]]) -> None:
        self._rows = rows

    def look(self) -> dict[str, Any] | None:
        rows = self._rows(_LOOK)
        if not rows:
            return None
        reason, by, at = rows[0]
        return {"reason": reason, "by": by, "at": at.isoformat().replace("+00:00", "Z")}

    def put(self, reason: str, by: str) -> bool:
        return bool(self._rows(_PUT, reason=storable(reason), by=storable(by)))

    def take(self) -> bool:
        return bool(self._rows(_TAKE_AWAY))


def _close(ears: Ears, tables: StateTables) -> None:
    ears.close()
    tables.close()
