"""The file beside a database that is away, and what becomes of it when the database is back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from statestore import KillSwitch, StateStore, TradingSession
from statestore.backends.database import Database
from statestore.backends.postgres import PostgresStore
from statestore.disk import codec
from statestore.errors import (
    BackendUnavailable,
    RevisionConflict,
    StateCorrupt,
    StateError,
    StateForked,
    UsageError,
)
from tests.backends.proxy import PASS, UNANSWERED, Proxy
from tests.servers import PostgresServer

Make = Callable[..., PostgresStore]


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    proxy.run()
    yield proxy
    proxy.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fallback.json"


@pytest.fixture
def make(
    proxy: Proxy, database: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Return what makes stores behind the proxy, with the file unless told otherwise."""
    monkeypatch.setattr("statestore.backends.postgres._AWAY_FOR_SECONDS", 0.0)
    made = []

    def make(**options: Any) -> Any:
        options = {"file_fallback": path, "failover_seconds": 0.2, "beat_seconds": 0.1, **options}
        url = f"postgresql://bot@127.0.0.1:{proxy.port}/postgres?schema={database.schema}"
        made.append(StateStore(url, backup_dir=tmp_path / "backups", **options))
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


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("fallback.json*") if not p.name.endswith(".lock"))


def in_file(path: Path) -> tuple[int, int]:
    document = codec.parse(path.read_bytes())
    assert document.trust is codec.Trust.SEALED
    return document.revision, codec.decode(document)["n"]


def test_in_good_days_the_file_is_a_copy(make: Make, path: Path) -> None:
    saved(make(), 1, 2)

    assert in_file(path) == (2, 2)
    assert names(path.parent) == ["fallback.json", "fallback.json.bak", "fallback.json.owner"]


def test_while_the_database_is_away_saves_go_to_the_file(
    make: Make, proxy: Proxy, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(make(), 1)
    state = store.load()
    proxy.down()
    for number in (2, 3):
        state["n"] = number
        assert store.save(state).revision == number
    assert in_file(path) == (3, 3)
    assert (path.parent / "fallback.json.pending").exists()
    assert "state saved in the file only: the database is away" in caplog.messages

    # A bot that starts now finds it, and is told where it is from.
    found = make().load()
    assert (found["n"], found.meta.revision, found.meta.recovered_from) == (3, 3, path)
    assert "is away" in (found.meta.recovered_why or "")


def test_what_only_the_file_has_is_pushed_up(make: Make, proxy: Proxy, path: Path) -> None:
    store = saved(make(), 1)
    state = store.load()
    proxy.down()
    state["n"] = 2
    store.save(state)
    proxy.up()
    assert make().load()["n"] == 2  # told before anything is written
    assert make(file_fallback=None).load()["n"] == 1
    state["n"] = 3
    assert store.save(state).revision == 3
    assert make(file_fallback=None).load()["n"] == 3
    revisions = [(v.revision, v.saved_for) for v in make(file_fallback=None).versions()]
    assert [number for number, _ in revisions] == [3, 2, 1]
    assert names(path.parent) == ["fallback.json", "fallback.json.bak", "fallback.json.owner"]


def test_even_unchanged_content_pushes_up(make: Make, proxy: Proxy) -> None:
    store = saved(make(), 1)
    state = store.load()
    proxy.down()
    state["n"] = 2
    store.save(state)
    proxy.up()
    assert store.save(state).revision == 2
    assert make(file_fallback=None).load()["n"] == 2


def test_transactions_and_restores_go_to_the_file_as_well(
    make: Make, proxy: Proxy, path: Path
) -> None:
    store = saved(make(), 1)
    backup = store.backup()
    proxy.down()
    with store.transaction() as state:
        state["n"] += 1
    assert in_file(path) == (2, 2)
    assert store.restore(backup).revision == 3
    proxy.up()
    assert store.reconcile()["done"] == "push"
    assert make(file_fallback=None).load()["n"] == 1


def test_a_save_that_got_there_although_nobody_said_so_is_no_fork(
    make: Make, proxy: Proxy, path: Path
) -> None:
    """Cut after the database has it: it is in the file too, the same bytes, and that is known."""
    store = saved(make(), 1)
    state = store.load()

    def cut(data: bytes) -> str:
        if b"WITH swapped" not in data:
            return PASS
        proxy.judge = lambda _data: "before"
        return UNANSWERED

    proxy.judge = cut
    state["n"] = 2
    assert store.save(state).revision == 2
    state["n"] = 3
    assert store.save(state).revision == 3
    proxy.judge = lambda _data: PASS
    assert make(file_fallback=None).load()["n"] == 2
    assert store.reconcile() == {"done": "push", "revision": 3, "aside": None}
    assert make(file_fallback=None).load()["n"] == 3


def test_a_file_that_did_not_move_gives_way(make: Make, proxy: Proxy, path: Path) -> None:
    here = saved(make(), 1)
    elsewhere = make(file_fallback=None)
    saved(elsewhere, 2)
    assert here.load()["n"] == 2
    saved(here, 3)
    assert in_file(path) == (3, 3)


def test_a_file_that_did_not_move_gives_way_to_a_database_that_has_forgotten_it(
    make: Make, proxy: Proxy, path: Path, database: Database
) -> None:
    """Killed between the note and the first save that it was for; others went on for long."""
    store = saved(make(), 1)
    copy = path.read_bytes()
    proxy.down()
    saved(store, 2)
    path.write_bytes(copy)
    proxy.up()
    saved(make(file_fallback=None), 3, 4)
    with database.transaction() as connection:
        connection.execute(database.query("DELETE FROM {schema}.revisions WHERE revision = 1"))

    fresh = make()
    assert fresh.load()["n"] == 4
    assert fresh.reconcile()["done"] == "drop"


def test_a_pending_file_whose_state_the_database_has_had_is_moved_aside(
    make: Make, proxy: Proxy, path: Path
) -> None:
    """Pushed up, and killed before that was noted; then others went on."""
    store = saved(make(), 1)
    state = store.load()
    proxy.down()
    state["n"] = 2
    store.save(state)
    pending = (path.parent / "fallback.json.pending").read_bytes()
    proxy.up()
    store.reconcile()
    saved(make(file_fallback=None), 5)
    (path.parent / "fallback.json.pending").write_bytes(pending)

    fresh = make()
    assert fresh.load()["n"] == 5
    done = fresh.reconcile()
    assert (done["done"], done["revision"]) == ("drop", 3)
    assert in_file(Path(done["aside"])) == (2, 2)
    assert not path.exists()


@pytest.fixture
def forked(make: Make, proxy: Proxy) -> PostgresStore:
    """A store whose file and database have both moved on from revision 1."""
    store = saved(make(), 1)
    state = store.load()
    proxy.down()
    state["n"] = 20
    store.save(state)
    proxy.up()
    saved(make(file_fallback=None), 10)
    return store  # type: ignore[return-value]


def test_a_fork_is_told_and_nothing_is_merged(
    forked: PostgresStore, make: Make, path: Path
) -> None:
    said = r"two states: .*fallback.json has revision 2, .* has revision 2, .*--take file"
    with pytest.raises(StateForked, match=said):
        make().load()
    with pytest.raises(StateForked):
        forked.reconcile()
    assert in_file(path) == (2, 20)
    assert make(file_fallback=None).load()["n"] == 10
    assert forked.changed()


def test_what_is_saved_in_a_fork_is_in_the_file_and_said_to_be_nowhere_else(
    forked: PostgresStore, make: Make, path: Path
) -> None:
    with pytest.raises(StateForked):
        forked.save({"n": 21})
    assert in_file(path) == (3, 21)
    assert make(file_fallback=None).load()["n"] == 10


def test_an_operator_takes_the_file(forked: PostgresStore, make: Make, path: Path) -> None:
    done = forked.reconcile("file")
    assert (done["done"], done["revision"]) == ("take", 3)
    assert in_file(Path(done["aside"])) == (2, 20)
    database = make(file_fallback=None)
    assert database.load()["n"] == 20
    assert database.read(f"{database.path}#2").revision == 2  # the other one is a former revision
    assert make().load()["n"] == 20
    assert in_file(path) == (3, 20)


def test_an_operator_takes_the_database(forked: PostgresStore, make: Make, path: Path) -> None:
    done = forked.reconcile("database")
    assert (done["done"], done["revision"]) == ("take", 2)
    assert in_file(Path(done["aside"])) == (2, 20)
    assert in_file(path) == (2, 10)
    assert make().load()["n"] == 10
    assert forked.reconcile()["done"] == "nothing"


def test_a_file_of_somebody_else_is_not_written_over(make: Make, path: Path) -> None:
    """The bot had its state in this file before there was a database."""
    StateStore(path).save({"n": 7})
    with pytest.raises(StateForked, match="has no state"):
        make().load()
    assert make().reconcile("file")["revision"] >= 1
    assert make(file_fallback=None).load()["n"] == 7


def test_a_file_the_database_does_not_know_is_moved_aside(make: Make, path: Path) -> None:
    saved(make(file_fallback=None), 1)
    StateStore(path).save({"n": 7})
    saved(make(), 2)

    (aside,) = path.parent.glob("fallback.json.dropped-*")
    assert in_file(aside) == (1, 7)
    assert in_file(path) == (2, 2)


# Whose file it is


@pytest.fixture
def copied(make: Make) -> tuple[PostgresStore, PostgresStore]:
    """Bots A and B, of which B's unit file is a copy: they have one file_fallback."""
    return make(state="bot-a"), make(state="bot-b")


def test_a_bot_does_not_load_the_state_of_another_that_has_the_same_file(
    copied: tuple[PostgresStore, PostgresStore], proxy: Proxy, path: Path
) -> None:
    """With the database away, B woke up with A's positions."""
    a, b = saved(copied[0], 1), copied[1]
    proxy.down()

    said = rf"fallback.json is the file_fallback of {re.escape(a.path)}, not of {re.escape(b.path)}"
    for ask in (b.load, b.versions, lambda: b.read(f"{b.path}#1")):
        with pytest.raises(StateError, match=said):
            ask()
    assert a.load()["n"] == 1


def test_a_file_that_two_states_share_is_told_in_good_days(
    copied: tuple[PostgresStore, PostgresStore],
) -> None:
    saved(copied[0], 1)
    with pytest.raises(StateError, match="file_fallback of its own"):
        copied[1].load()


def test_saves_of_two_states_never_meet_in_one_file(
    copied: tuple[PostgresStore, PostgresStore],
    make: Make,
    proxy: Proxy,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both run since before there was a file, so neither was told when it started."""
    a, b = copied
    saved(make(file_fallback=None, state="bot-b"), 6)
    state_of_b = b.load()
    saved(a, 1)
    state_of_b["n"] = 7
    assert b.save(state_of_b).revision == 2  # the database has it; the file is A's
    assert "no copy of the state beside the database" in caplog.messages
    assert in_file(path) == (1, 1)

    proxy.down()
    state_of_b["n"] = 8
    with pytest.raises(StateError, match="file_fallback of"):
        b.save(state_of_b)
    saved(a, 2)
    proxy.up()
    for ask in (b.load, b.reconcile, lambda: b.reconcile("file"), lambda: b.reconcile("database")):
        with pytest.raises(StateError, match="file_fallback of"):
            ask()
    assert a.reconcile()["done"] == "push"
    assert make(file_fallback=None, state="bot-a").load()["n"] == 2
    assert make(file_fallback=None, state="bot-b").load()["n"] == 7


def test_the_same_state_by_another_address_keeps_its_file(
    make: Make, database: Database, proxy: Proxy, path: Path, tmp_path: Path
) -> None:
    """The host has another name since: while the database is there it says that it is the same."""
    saved(make(), 1)
    moved = StateStore(
        f"postgresql://bot:secret@localhost:{proxy.port}/postgres?schema={database.schema}",
        file_fallback=path,
        backup_dir=tmp_path / "backups",
        failover_seconds=0.2,
    )
    with closing(moved):
        assert moved.load()["n"] == 1
        proxy.down()
        with pytest.raises(StateError, match=r"under its former address, remove .*\.owner"):
            moved.load()
        proxy.up()
        saved(moved, 2)
        owner = Path(f"{path}.owner")
        assert "localhost" in owner.read_text()
        assert "secret" not in owner.read_text()
        proxy.down()
        saved(moved, 3)

        # What no database has is not pushed into one by an address alone.
        proxy.up()
        with pytest.raises(StateError, match="under its former address"):
            make().load()
        owner.unlink()
        assert make().reconcile()["done"] == "push"


def test_a_note_of_saves_keeps_its_owner_although_the_file_is_gone(
    copied: tuple[PostgresStore, PostgresStore], proxy: Proxy, path: Path
) -> None:
    a, b = saved(copied[0], 1), copied[1]
    proxy.down()
    saved(a, 2)
    proxy.up()
    for name in (path, Path(f"{path}.bak")):
        name.unlink()
    with pytest.raises(StateError, match="file_fallback of"):
        b.save({"n": 7})
    assert Path(f"{path}.pending").exists()
    Path(f"{path}.pending").unlink()
    b.save({"n": 7})  # nothing is left of A's
    assert in_file(path) == (1, 7)


@pytest.mark.parametrize("note", [None, "{", "[]", '{"state": 1}', ""])
def test_a_file_without_an_owner_is_anybodys_and_a_note_that_does_not_read_is_not_guessed_at(
    make: Make, proxy: Proxy, path: Path, note: str | None
) -> None:
    saved(make(), 1)
    owner = Path(f"{path}.owner")
    owner.unlink()
    if note is not None:
        owner.write_text(note)
    proxy.down()
    if note is None:
        assert saved(make(), 2).load()["n"] == 2
        assert owner.exists()
        return
    with pytest.raises(StateCorrupt, match="does not read"):
        make().load()


@pytest.mark.parametrize("take", ["file", "database"])
def test_a_database_that_lost_what_it_acknowledged_is_a_fork(
    make: Make, database: Database, path: Path, take: str
) -> None:
    """A dump of yesterday was put back: the bot began anew from yesterday, and said nothing."""
    running = saved(make(), 1, 2, 3)
    state = running.load()
    with database.transaction() as connection:
        for text in (
            "UPDATE {schema}.states SET (revision, sha256) = "
            "(SELECT revision, sha256 FROM {schema}.revisions WHERE revision = 2)",
            "DELETE FROM {schema}.revisions WHERE revision > 2",
        ):
            connection.execute(database.query(text))
    store = make()
    for act in (store.load, store.reconcile, lambda: store.save({"n": 9}, expected_revision=2)):
        with pytest.raises(StateForked, match=r"has revision 3.* has revision 2"):
            act()

    state["n"] = 4
    with pytest.raises(StateForked):  # and what a bot that runs has to save is in the file
        running.save(state)
    assert codec.parse(path.read_bytes()).revision == 4

    aside = store.reconcile(take)["aside"]
    assert make().load()["n"] == (4 if take == "file" else 2)
    assert codec.parse(Path(aside).read_bytes()).revision == 4
    saved(make(), 5)
    assert codec.parse(path.read_bytes()).revision == (6 if take == "file" else 3)


def test_without_a_copy_a_database_that_is_away_is_an_error(
    make: Make, proxy: Proxy, path: Path
) -> None:
    saved(make(file_fallback=None), 1)
    proxy.down()
    with pytest.raises(BackendUnavailable):
        make().load()


def test_another_one_who_saved_in_the_file_is_a_conflict(make: Make, proxy: Proxy) -> None:
    here, there = saved(make(), 1), make()
    state, theirs = here.load(), there.load()
    proxy.down()
    theirs["n"] = 2
    there.save(theirs)
    state["n"] = 3
    with pytest.raises(RevisionConflict):
        here.save(state)


def test_a_note_that_does_not_read_is_not_guessed_at(make: Make, proxy: Proxy, path: Path) -> None:
    store = saved(make(), 1)
    (path.parent / "fallback.json.pending").write_text("{")
    with pytest.raises(StateCorrupt, match="--take file"):
        store.load()
    assert store.reconcile("database")["done"] == "take"
    assert store.load()["n"] == 1


def test_reconciling_needs_a_file(make: Make) -> None:
    with pytest.raises(UsageError, match="no file_fallback"):
        make(file_fallback=None).reconcile()
    with pytest.raises(UsageError, match="it is file or database"):
        make().reconcile("both")


def test_a_bot_goes_on_saving_and_does_not_trade(
    make: Make, proxy: Proxy, path: Path, tmp_path: Path
) -> None:
    """While the database is away nobody can look at its kill switch, and the lease is lost."""
    store = make()
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    with TradingSession(store, kill_switch=switch, signals=False) as session:
        assert session.tick()
        session.state["n"] = 1
        assert session.on_trade()
        proxy.down()
        assert not session.tick()
        assert not session.may_trade
        session.state["n"] = 2
        assert session.save("still here")
        proxy.up()
        for _ in range(1000):
            if session.tick():
                break
            session.wait(0.01)
        assert session.health()["lease"]
        session.state["n"] = 3
        assert session.on_trade()
        assert session.health()["ok"]
    assert make(file_fallback=None).load()["n"] == 3


def test_a_bot_starts_from_the_file_and_waits_for_the_lease(
    make: Make, proxy: Proxy, tmp_path: Path
) -> None:
    saved(make(), 1)
    proxy.down()
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    with TradingSession(make(), kill_switch=switch, signals=False) as session:
        assert session.state["n"] == 1
        assert not session.health()["lease"]
        assert not session.tick()
        proxy.up()
        for _ in range(1000):
            if session.tick():
                break
            session.wait(0.01)
        assert session.may_trade
    assert make(file_fallback=None).load()["n"] == 1


def test_a_copy_that_cannot_be_made_does_not_take_the_save_back(
    make: Make, proxy: Proxy, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The database has it, and goes away before it can be asked what the file is."""
    store = saved(make(), 1)
    state = store.load()
    StateStore(path.with_name("other.json")).save({"n": 7})
    path.with_name("other.json").replace(path)
    proxy.judge = lambda data: "before" if b"SELECT sha256 FROM" in data else PASS
    state["n"] = 2
    assert store.save(state).revision == 2
    assert "no copy of the state beside the database" in caplog.messages
    assert make(file_fallback=None).load()["n"] == 2


@pytest.mark.parametrize("damage", ["torn", "edited", "gone", "both"])
def test_what_was_saved_in_a_file_that_is_damaged_is_not_forgotten(
    make: Make, proxy: Proxy, path: Path, damage: str
) -> None:
    """The .bak, or the database, was taken for the newest state, and nobody was told."""
    store = saved(make(), 1)
    proxy.down()
    saved(store, 2, 3)
    bak = Path(f"{path}.bak")
    text = path.read_bytes()
    if damage == "edited":
        path.write_bytes(text.replace(b'"n": 3', b'"n": 4'))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(text[:50])
    if damage == "both":
        bak.write_bytes(b"{")
    else:
        found = make().load()
        assert (found["n"], found.meta.recovered_from) == (2, bak)
        assert str(path) in (found.meta.recovered_why or "")
    proxy.up()
    after = make()
    for act in (after.load, lambda: store.save({**store.load(), "n": 5}), after.reconcile):
        with pytest.raises(StateForked, match="had the newest saves"):
            act()
    assert make(file_fallback=None).load()["n"] == 1

    path.write_bytes(text)  # a copy of it, put back
    assert after.reconcile()["done"] == "push"
    assert make(file_fallback=None).load()["n"] == 3


def test_an_operator_takes_what_is_left_of_a_damaged_file(
    make: Make, proxy: Proxy, path: Path
) -> None:
    store = saved(make(), 1)
    proxy.down()
    saved(store, 2, 3)
    path.write_bytes(b"{")
    proxy.up()
    done = make().reconcile("file")
    assert Path(done["aside"]).read_bytes() == b"{"
    assert make().load()["n"] == 2


def test_while_the_database_is_away_the_file_has_a_history_of_two(make: Make, proxy: Proxy) -> None:
    """ "There is no state, begin with an empty one" was the answer to whoever asked for it."""
    store = saved(make(), 1)
    proxy.down()
    saved(store, 2, 3)
    other = make()
    assert [version.revision for version in other.versions()] == [3, 2]
    assert other.read(other.backup_path).revision == 2
    assert other.read(f"{other.path}#2").revision == 2
    proxy.up()
    assert [version.revision for version in other.versions()] == [3, 2, 1]


def test_where_nothing_is_known_nobody_is_told_to_begin_with_nothing(
    make: Make, proxy: Proxy
) -> None:
    proxy.down()
    store = make()
    for act in (store.load, store.versions, store.check):
        with pytest.raises(BackendUnavailable):
            act()
