"""The schema and its versions, and what a database that fails is called."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from statestore import StateStore
from statestore.backends.database import Database
from statestore.backends.migrations import Migration, migrations
from statestore.errors import BackendError, BackendUnavailable, ConfigError, SchemaOutdated
from statestore.runtime.orders import PositionManager
from tests.backends.proxy import Proxy
from tests.servers import PostgresServer, free_port


def test_the_schema_is_made_once(postgres: PostgresServer, schema_name: str) -> None:
    database = Database(postgres.url, schema=schema_name)
    assert [m.number for m in database.status().pending] == [m.number for m in migrations()]
    assert database.upgrade() == migrations()
    assert database.upgrade() == ()
    assert not database.status().pending
    assert database.status().version == migrations()[-1].number
    database.close()


def test_two_who_begin_at_once_do_it_once(postgres: PostgresServer, schema_name: str) -> None:
    databases = [Database(postgres.url, schema=schema_name) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        applied = [m for done in pool.map(Database.upgrade, databases) for m in done]
    assert sorted(m.number for m in applied) == [m.number for m in migrations()]
    for database in databases:
        database.close()


def test_the_tables_of_the_user_are_left_alone(database: Database) -> None:
    with database.transaction() as connection:
        outside = connection.execute(
            "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE nspname = 'public'"
        ).fetchone()
    assert outside == (0,)


def test_a_schema_of_other_files_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(database.query("UPDATE {schema}.migrations SET sha256 = 'other'"))
    with pytest.raises(SchemaOutdated, match="other files"):
        database.status()


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            database.query("INSERT INTO {schema}.migrations VALUES (9999, 'later', 'x')")
        )
    with pytest.raises(SchemaOutdated, match="newer"):
        database.require_schema()


def test_missing_tables_name_the_command(postgres: PostgresServer, schema_name: str) -> None:
    database = Database(postgres.url, schema=schema_name)
    with pytest.raises(SchemaOutdated, match=r"statestore db upgrade.*db init"):
        database.require_schema()
    with pytest.raises(SchemaOutdated, match="statestore db init"):
        with database.transaction() as connection:
            connection.execute(database.query("SELECT * FROM {schema}.states"))
    database.close()


def test_a_migration_that_fails_leaves_nothing(
    postgres: PostgresServer, schema_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statestore.backends import database as module

    broken = Migration(1, "broken", "0" * 64, "CREATE TABLE half (a int); SELECT no_such();")
    monkeypatch.setattr(module, "migrations", lambda: (broken,))
    database = Database(postgres.url, schema=schema_name)
    with pytest.raises(BackendError, match="no_such"):
        database.upgrade()
    assert not database.status().applied
    with database.transaction() as connection:
        found = connection.execute("SELECT to_regclass(%s)", [f"{schema_name}.half"]).fetchone()
    assert found == (None,)
    database.close()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    url = f"postgresql://bot:s3cret@127.0.0.1:{free_port()}/postgres"
    database = Database(url, timeout=0.5)
    with pytest.raises(BackendUnavailable) as caught:
        database.status()
    assert "s3cret" not in str(caught.value) + repr(database) + str(caught.value.__cause__)
    database.close()
    with pytest.raises(BackendUnavailable):
        with database.dedicated():
            pass


@pytest.mark.parametrize("url", ["postgresql://%zz:s3cret@", "s3cret no url"])
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Public", "a;b", 'a"b', "x" * 64])
def test_a_schema_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        Database("postgresql://127.0.0.1/x", schema=name)


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    proxy.run()
    yield proxy
    proxy.close()


@pytest.fixture
def behind(proxy: Proxy, database: Database) -> Iterator[Database]:
    """The database, by way of the proxy."""
    url = f"postgresql://bot@127.0.0.1:{proxy.port}/postgres"
    behind = Database(url, schema=database.schema, timeout=0.5)
    yield behind
    behind.close()


def test_why_there_is_no_connection_is_said_at_once_and_only_in_the_error(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = Database(f"postgresql://bot:hunter2@127.0.0.1:{postgres.port}/nosuch", timeout=20)
    with pytest.raises(BackendUnavailable, match=r'"nosuch" does not exist; check .* the URL'):
        nowhere.status()
    assert caplog.messages == []


def test_a_pool_whose_server_went_says_why_and_is_back_at_once(
    proxy: Proxy, behind: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert behind.status().version
    proxy.down()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            behind.status()
    proxy.up()
    assert behind.status().version
    assert caplog.messages == []


def test_a_forked_child_connects_anew(database: Database) -> None:
    """Two processes that talk on one connection read each other's answers."""
    fork = multiprocessing.get_context("fork")
    assert asked(database, 1) == 1

    def child() -> None:
        for number in range(50):
            assert asked(database, number) == number

    children = [fork.Process(target=child) for _ in range(3)]
    for process in children:
        process.start()
    for number in range(50, 100):
        assert asked(database, number) == number
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [0, 0, 0]


def asked(database: Database, number: int) -> int:
    with database.transaction() as connection:
        (answer,) = connection.execute("SELECT %s::int", [number]).fetchone() or (None,)
    return int(answer or 0)


def test_what_is_committed_is_flushed_and_nothing_is_prepared(
    postgres: PostgresServer, database: Database
) -> None:
    """Whatever the server's default; and a pooler in between may hand out other connections."""
    relaxed = Database(f"{postgres.url}?options=-csynchronous_commit%3Doff", schema=database.schema)
    for _ in range(7):
        with relaxed.transaction() as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    with relaxed.transaction() as connection:
        prepared = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert prepared == (0,)
    relaxed.close()


def test_a_peer_that_is_silently_gone_is_noticed_in_seconds(database: Database) -> None:
    with database.transaction() as connection:
        told = connection.info.get_parameters()
    assert (told["tcp_user_timeout"], told["keepalives_idle"]) == ("11000", "5")


def test_a_role_that_may_make_no_schema_uses_the_one_made_for_it(
    postgres: PostgresServer, database: Database, schema_name: str
) -> None:
    tenant, schema = f"tenant_{schema_name}", f"{schema_name}_own"
    with database.transaction() as connection:
        connection.execute(f"CREATE ROLE {tenant} LOGIN".encode())
        connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {tenant}".encode())
    theirs = Database(postgres.url.replace("bot@", f"{tenant}@"), schema=schema)
    assert theirs.upgrade() == migrations()
    theirs.close()


def test_what_the_server_refused_is_not_called_away(database: Database) -> None:
    """A bot whose statement ran out of time has a database: what it has to say is that."""
    with pytest.raises(BackendError, match="refused: canceling statement") as refused:
        with database.transaction() as connection:
            connection.execute("SET LOCAL statement_timeout = 10")
            connection.execute("SELECT pg_sleep(60)")
    assert not isinstance(refused.value, BackendUnavailable)
    with pytest.raises(SchemaOutdated) as missing, database.transaction() as connection:
        connection.execute(database.query("SELECT 1 FROM {schema}.nothing"))
    assert "LINE 1" not in str(missing.value)


def test_a_table_that_was_dropped_is_named_and_nobody_pretends_that_it_is_there(
    database: Database,
) -> None:
    assert database.missing() == ()
    with database.transaction() as connection:
        connection.execute(database.query("DROP TABLE {schema}.orders"))

    assert database.missing() == ("orders",)
    assert database.upgrade() == ()  # its migration was applied, and is not applied twice
    with pytest.raises(SchemaOutdated, match=r"lacks orders.*DROP SCHEMA"):
        database.require_schema()


def test_before_the_schema_is_made_all_of_its_tables_are_missing(
    postgres: PostgresServer, schema_name: str
) -> None:
    database = Database(postgres.url, schema=schema_name)
    made = {"states", "revisions", "leases", "kill_switches", "positions", "orders", "migrations"}

    assert made <= set(database.missing())
    database.upgrade()
    assert database.missing() == ()
    database.close()


@pytest.mark.parametrize(
    "made",
    [
        "SET datestyle TO 'German'",
        "SET datestyle TO 'SQL, MDY'",
        "SET timezone TO 'Asia/Kathmandu'",
        "SET timezone TO '<+03:30>-03:30'",
        "SET search_path TO nowhere",
        "SET client_encoding TO 'LATIN1'",
        "SET default_transaction_isolation TO serializable",
        "SET bytea_output TO escape",
        "SET standard_conforming_strings TO off",
        "ENCODING 'SQL_ASCII'",
    ],
)
def test_what_a_database_is_set_to_changes_nothing(
    postgres: PostgresServer, schema_name: str, made: str
) -> None:
    """What was written by one comes back to another, to the digit, the letter and the instant."""
    import psycopg

    name = f"set_{schema_name}"
    encoding, setting = (made, "") if made.startswith("ENCODING") else ("", made)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 {encoding} "
            "LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
        if setting:
            connection.execute(f"ALTER DATABASE {name} {setting}".encode())
    url = postgres.url.removesuffix("postgres") + name
    database = Database(url)
    assert database.upgrade() == migrations()
    opened = datetime(2025, 3, 9, 7, 30, 1, 505817, tzinfo=UTC)
    manager, again = PositionManager(database), PositionManager(url)
    for one in (manager, again):
        one.load_open_positions()
    manager.open_position(
        "BTC-USD",
        "long",
        "0.000012345678901234",
        100,
        stop_loss=90,
        entry_time=opened,
        metadata={"for": "5 € a piece", "back\\slash": "'"},
    )
    again.refresh()
    assert (again.positions, again.orders) == (manager.positions, manager.orders)
    (position,) = again.get_all_positions()
    assert position.entry_time == opened

    store = StateStore(url)
    lease = store.lease()
    store.save({"for": "5 € a piece"})
    assert StateStore(url).load() == {"for": "5 € a piece"}
    assert (store.lease_holder() or {})["pid"] == os.getpid()
    assert store.database.status().version == len(migrations())
    with database.transaction() as here:
        assert here.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    lease.release()
    store.close()
    again.close()
    database.close()
