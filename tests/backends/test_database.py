"""The schema and its versions, and what a database that fails is called."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore.backends.database import Database, migrations
from statestore.errors import BackendError, BackendUnavailable, ConfigError, SchemaOutdated
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

    broken = module.Migration(1, "broken", "0" * 64, "CREATE TABLE half (a int); SELECT no_such();")
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
