"""What only a state in PostgreSQL has: names, notifications, kept revisions, its own schema."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statestore import StateStore
from statestore.backends.database import Database
from statestore.backends.listening import Listener
from statestore.backends.postgres import PostgresStore
from statestore.backends.revisions import Pointer
from statestore.errors import (
    ConfigError,
    RevisionConflict,
    SchemaOutdated,
    StateMissing,
    UsageError,
)
from tests.servers import PostgresServer

Make = Callable[..., PostgresStore]


@pytest.fixture
def make(postgres: PostgresServer, database: Database, tmp_path: Path) -> Iterator[Make]:
    made = []

    def make(**options: Any) -> PostgresStore:
        options = {"schema": database.schema, "backup_dir": tmp_path / "backups", **options}
        made.append(PostgresStore(postgres.url, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


def saved(store: StateStore, *numbers: int) -> StateStore:
    for number in numbers:
        state = store.load()
        state["n"] = number
        store.save(state)
    return store


def wait_until(true: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(2000):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it never came")


def test_a_database_holds_several_states(make: Make) -> None:
    saved(make(state="one"), 1)
    saved(make(state="two"), 2)

    assert make(state="one").load()["n"] == 1
    assert make(state="two").load()["n"] == 2
    assert make().load() == {}
    assert [s["state"] for s in make().states()] == ["one", "two"]


def test_the_url_says_what_the_arguments_do(
    make: Make, postgres: PostgresServer, database: Database, tmp_path: Path
) -> None:
    saved(make(state="one"), 1)
    url = f"{postgres.url}?schema={database.schema}&state=one&connect_timeout=3"
    for scheme in ("postgresql", "postgres"):
        store = StateStore(url.replace("postgresql", scheme), backup_dir=tmp_path)
        assert store.load()["n"] == 1
        assert store.path == make(state="one").path
        store.close()


def test_another_content_of_the_same_revision_is_a_conflict(make: Make) -> None:
    """As after the database was put back to what it was, and somebody saved."""
    bot = saved(make(), 1)
    state = bot.load()
    saved(make(state="other"), 9)
    with bot._tables.writing() as connection:
        for text in (
            "UPDATE {schema}.revisions a SET sha256 = b.sha256, document = b.document "
            "FROM {schema}.revisions b WHERE a.name = 'default' AND b.name = 'other'",
            "UPDATE {schema}.states a SET sha256 = b.sha256 "
            "FROM {schema}.states b WHERE a.name = 'default' AND b.name = 'other'",
        ):
            connection.execute(bot._tables.text(text))
    assert bot.changed()
    state["n"] = 2
    with pytest.raises(RevisionConflict):
        bot.save(state)
    assert make().load()["n"] == 9


def age(database: Database, minutes: int) -> None:
    with database.transaction() as connection:
        connection.execute(
            database.query(
                "UPDATE {schema}.revisions SET saved_at = saved_at - make_interval(mins => %s)"
            ),
            [minutes],
        )


def test_only_the_newest_revisions_are_kept(make: Make, database: Database) -> None:
    store = saved(make(keep_revisions=3), *range(1, 7))
    age(database, minutes=3)
    saved(store, 7)
    found = store.versions()

    assert [(v.kind, v.revision) for v in found] == [("state", 7), ("former", 6), ("former", 5)]
    with pytest.raises(StateMissing, match="statestore history"):
        store.read(f"{store.path}#4")
    with pytest.raises(UsageError, match="2 or more"):
        make(keep_revisions=1)


def test_a_revision_whose_writer_may_still_ask_for_it_is_kept(
    make: Make, database: Database
) -> None:
    """Many save while one finds its way back to the database: what it saved has to be there."""
    store = saved(make(keep_revisions=3), *range(1, 7))
    age(database, minutes=1)
    saved(store, 7)

    assert [v.revision for v in store.versions()] == [7, 6, 5, 4, 3, 2, 1]


def test_a_jump_of_the_revision_does_not_push_out_the_ones_before(
    make: Make, tmp_path: Path
) -> None:
    far = StateStore(tmp_path / "far.json")
    for number in range(40):
        saved(far, number)
    store = saved(make(keep_revisions=5), 1, 2)
    store.restore(far.backup())
    assert [v.revision for v in store.versions() if v.kind != "backup"] == [41, 2, 1]


def test_a_listener_is_told_and_asks_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.backends.listening._LOOK_EVERY_SECONDS", 3600.0)
    reader, writer = make(), make()
    reader.load()
    reader.changed()
    wait_until(lambda: reader._ears.listener(reader._tables.new_listener).heard() is not None)
    reader._tables._reading.close()
    assert not reader.changed()
    saved(writer, 1)
    wait_until(reader.changed)
    assert reader._tables._reading._connection is None  # nobody was asked


def test_without_a_listener_the_database_is_asked(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.backends.listening.Listener.start", lambda _self: None)
    reader = make()
    reader.load()
    assert not reader.changed()
    saved(make(), 1)
    assert reader.changed()
    assert reader.refresh()["n"] == 1


def test_a_listener_whose_connection_broke_listens_again(make: Make, database: Database) -> None:
    reader = make()
    reader.load()
    reader.changed()
    ears = reader._ears.listener(reader._tables.new_listener)
    wait_until(lambda: ears.heard() is not None)
    with database.transaction() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE query LIKE '%%' || %s || '%%' AND pid <> pg_backend_pid()",
            [reader._tables.channel],
        )
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'statestore' AND pid <> pg_backend_pid()"
        )
    saved(make(), 1)
    wait_until(reader.changed)
    assert reader.refresh()["n"] == 1
    wait_until(lambda: ears.heard() is not None)


def test_a_swallowed_notification_is_late_and_not_lost(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.backends.listening._LOOK_EVERY_SECONDS", 0.05)
    reader, writer = make(), make()
    reader.load()
    reader.changed()
    writer._tables.channel = "statestore_elsewhere"
    saved(writer, 1)
    wait_until(reader.changed)


def test_a_notification_of_somebody_else_does_not_end_the_listening(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may connect may notify on any channel, whatever text."""
    monkeypatch.setattr("statestore.backends.listening._LOOK_EVERY_SECONDS", 3600.0)
    writer = saved(make(), 1)
    reader = make()
    reader.load()
    ears = reader._ears.listener(reader._tables.new_listener)
    wait_until(lambda: ears.heard() is not None)
    for text in ("", "rubbish", "7", "-1 x", "\u0663 x", "9" * 5000 + " x", "9" * 19 + " x"):
        with database.transaction() as connection:
            connection.execute("SELECT pg_notify(%s, %s)", [reader._tables.channel, text])
    saved(writer, 2)
    wait_until(lambda: (heard := ears.heard()) is not None and heard[0] == writer._seen.pointer)  # type: ignore[union-attr]


def test_a_notification_that_comes_with_an_answer_is_not_late(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read together with the answer, so that no socket ever tells of it."""
    monkeypatch.setattr("statestore.backends.listening._LOOK_EVERY_SECONDS", 3600.0)
    saved(make(), 1)
    tables = make()._tables
    # The question itself notifies, of a revision newer than it saw: the server sends that between
    # the answer and its end, as it does for a save that is committed just then.
    present = tables.new_listener()._look
    note = f"pg_notify('{tables.channel}', '2 newer')".encode()
    look = b"SELECT revision, sha256 FROM (" + present + b") AS present, " + note
    listener = Listener(database, tables.channel, look, "default")
    try:
        listener.start()
        wait_until(lambda: listener.heard() == (Pointer(2, "newer"),))
    finally:
        listener.close()


@pytest.mark.parametrize("text", ["1 older", "9" * 5000 + " x"], ids=["older", "too long"])
def test_a_notification_that_cannot_be_the_present_revision_is_asked_about(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """One may be kept from before the answer; a bot that still has that one is out of date."""
    monkeypatch.setattr("statestore.backends.listening._LOOK_EVERY_SECONDS", 3600.0)
    tables = saved(make(), 1, 2)._tables
    listener = tables.new_listener()
    told: list[Pointer | None] = []
    monkeypatch.setattr(listener, "_tell", told.append)
    try:
        listener.start()
        wait_until(lambda: len(told) == 1)
        with database.transaction() as connection:
            connection.execute("SELECT pg_notify(%s, %s)", [tables.channel, text])
        wait_until(lambda: len(told) == 2)
    finally:
        listener.close()
    assert told == [tables.pointer()] * 2


def test_missing_tables_name_the_command(make: Make, schema_name: str) -> None:
    store = make(schema=f"{schema_name}_none")
    for act in (store.load, store.versions, lambda: store.save({"n": 1})):
        with pytest.raises(SchemaOutdated, match="statestore db init"):
            act()


def test_the_present_revision_cannot_be_deleted_by_accident(make: Make) -> None:
    import psycopg

    store = saved(make(), 1, 2)
    for text in ("revisions WHERE revision = 2", "states"):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            with store._tables.writing() as connection:
                connection.execute(store._tables.text("DELETE FROM {schema}." + text))
    assert store.load()["n"] == 2


def test_backups_of_a_state_that_is_not_there_are_no_first_start(make: Make) -> None:
    """A wrong database, or an emptied one: a bot must not begin with nothing in it."""
    saved(make(), 1).backup()
    elsewhere = make(state="elsewhere")
    assert elsewhere.load() == {}
    saved(elsewhere, 1).backup()
    with elsewhere._tables.writing() as connection:
        connection.execute(
            elsewhere._tables.text("UPDATE {schema}.states SET revision = NULL, sha256 = NULL")
        )
    with pytest.raises(StateMissing, match="right database"):
        make(state="elsewhere").load()


def test_states_of_two_schemas_that_share_a_folder_for_backups_keep_apart(
    make: Make, postgres: PostgresServer, schema_name: str
) -> None:
    """Both states are called default: what was put back was the newest backup of either."""
    other = Database(postgres.url, schema=f"{schema_name}_b")
    other.upgrade()
    other.close()
    here, there = saved(make(), 1), saved(make(schema=other.schema), 2)
    mine, theirs = here.backup(), there.backup()

    assert mine.parent == theirs.parent
    assert [backup.path for backup in here.backups.list()] == [mine]
    assert [backup.path for backup in there.backups.list()] == [theirs]
    with here._tables.writing() as connection:
        connection.execute(here._tables.text("UPDATE {schema}.revisions SET document = 'torn'"))
    found = make().load()
    assert (found["n"], found.meta.recovered_from) == (1, mine)


def test_backups_in_our_own_schema_are_named_by_their_state_alone() -> None:
    """As before there was a schema in their names."""
    store = PostgresStore("postgresql://h/x?state=bot-a")
    assert store._file_name() == "bot-a"
    assert PostgresStore("postgresql://h/x?state=a@b&schema=c")._file_name() == "c@a-b"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[broken",
        "postgresql://u:hunter2@h/x?nonsense=1",
    ],
)
def test_a_url_that_is_not_understood_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StateStore(url)
    assert "hunter2" not in str(caught.value)


def test_a_relaxed_save_is_for_files() -> None:
    with pytest.raises(UsageError, match="durability"):
        StateStore("postgresql://h/x", durability="relaxed")


def test_a_document_that_is_not_the_one_pointed_to_is_refused(make: Make) -> None:
    from statestore.errors import StateChecksumMismatch

    store = saved(make(), 1, 2)
    with store._tables.writing() as connection:
        connection.execute(
            store._tables.text(
                "UPDATE {schema}.revisions a SET document = b.document "
                "FROM {schema}.revisions b WHERE a.revision = 2 AND b.revision = 1"
            )
        )
    with pytest.raises(StateChecksumMismatch, match="pointed to as revision 2"):
        make().load()
    assert make(on_mismatch="fallback").load()["n"] == 1
