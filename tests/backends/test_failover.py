"""A database that dies, or whose connection is cut, during saves: each save is there once or not.

Four processes count up, each in a section of its own and all in a common one. A save that was
acknowledged and lost, done twice or undone by another one shows in the figures at the end.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statestore import KillSwitch, StateStore, TradingSession
from statestore.backends.database import Database
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    RevisionConflict,
    SaveUncertain,
    StateLocked,
)
from tests.backends.proxy import AFTER, BEFORE, PASS, UNANSWERED, Proxy
from tests.servers import PostgresServer, postgres_binaries, running_postgres

fork = multiprocessing.get_context("fork")

FULL = os.environ.get("STATESTORE_CRASH") == "full"
WORKERS = 4
SAVES = 5_000 if FULL else 500  # of all of them
KILLS = 60 if FULL else 6
PATIENCE = 600 if FULL else 120


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


@pytest.fixture
def url(proxy: Proxy, database: Database) -> str:
    return f"postgresql://bot@127.0.0.1:{proxy.port}/postgres?schema={database.schema}"


def is_save(data: bytes) -> bool:
    return b"WITH swapped" in data or b"COMMIT" in data


def count_up(url: str, name: str, saves: int, acknowledged: int) -> None:
    """Add one to "n" and to `name` so many times; a byte is written for each that is acknowledged.

    Every second time in a transaction. What was not acknowledged is done again, after a look at
    whether it is there where the error said that nobody knows.
    """
    store = StateStore(url, lock_timeout=PATIENCE, failover_seconds=PATIENCE)
    done, seen, revisions = 0, 0, set()
    while done < saves:
        try:
            if done % 2:
                with store.transaction() as state:
                    assert state.get(name, 0) == done, (name, state.get(name), done)
                    add(state, name)
            else:
                state = store.load()
                assert state.get(name, 0) == done, (name, state.get(name), done)
                add(state, name)
                store.save(state)
        except SaveUncertain:
            raise  # the database is back long before that
        except (RevisionConflict, BackendUnavailable, StateLocked):
            continue
        done += 1
        assert state.meta.revision > seen
        seen = state.meta.revision
        revisions.add(seen)
        os.write(acknowledged, b".")
    store.close()


def add(state: dict[str, Any], name: str) -> None:
    state["n"] = state.get("n", 0) + 1
    state[name] = state.get(name, 0) + 1


def run_workers(url: str, meanwhile: Callable[[Iterator[bytes]], None]) -> None:
    """Count up in four processes; `meanwhile` gets a byte for each save that is acknowledged."""
    reading, writing = os.pipe()
    each = SAVES // WORKERS
    workers = [
        fork.Process(target=count_up, args=(url, f"w{at}", each, writing)) for at in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        bytes_told = iter(lambda: pipe.read(1), b"")
        meanwhile(bytes_told)
        for _ in bytes_told:
            pass
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * WORKERS


def require_all_there_once(store: StateStore) -> None:
    state = store.load()
    assert [state[f"w{at}"] for at in range(WORKERS)] == [SAVES // WORKERS] * WORKERS
    assert state["n"] == SAVES
    # Each save is one revision: none was made twice, and none was made that nobody asked for.
    assert state.meta.revision == SAVES
    assert not state.meta.recovered_from
    assert store.check().ok
    numbers = [v.revision for v in store.versions() if v.kind != "backup"]
    assert numbers == list(range(SAVES, SAVES - len(numbers), -1))


@pytest.mark.skipif(postgres_binaries() is None, reason="PostgreSQL is not installed")
def test_a_server_killed_during_saves_loses_none_and_doubles_none() -> None:
    pytest.importorskip("psycopg")
    with running_postgres() as server:
        url = server.url
        database = Database(url)
        database.upgrade()
        database.close()
        kills = 0

        def kill_now_and_then(told: Iterator[bytes]) -> None:
            nonlocal kills
            for _ in range(KILLS):
                for _ in itertools.islice(told, SAVES // (KILLS + 1)):
                    pass
                server.kill()
                kills += 1
                server.start()

        run_workers(url, kill_now_and_then)
        assert kills == KILLS
        store = StateStore(url)
        require_all_there_once(store)
        store.close()


def test_connections_cut_in_the_middle_of_commit_lose_none_and_double_none(
    proxy: Proxy, url: str
) -> None:
    dice = random.Random(7)

    def cut_now_and_then(data: bytes) -> str:
        if not is_save(data) or dice.random() > 0.2:
            return PASS
        return dice.choice((BEFORE, AFTER, UNANSWERED))

    proxy.judge = cut_now_and_then

    def forward(_told: Iterator[bytes]) -> None:
        proxy.run()  # after the fork: no threads in the children

    run_workers(url, forward)
    assert proxy.cuts > SAVES // 20
    proxy.judge = lambda _data: PASS
    store = StateStore(url)
    require_all_there_once(store)
    store.close()


@pytest.fixture
def store(proxy: Proxy, url: str) -> Iterator[StateStore]:
    """A store behind a proxy, at revision 1."""
    proxy.run()
    store = StateStore(url, failover_seconds=20, beat_seconds=0.1)
    state = store.load()
    state["n"] = 1
    store.save(state)
    yield store
    store.close()


@pytest.mark.parametrize("moment", [BEFORE, AFTER, UNANSWERED])
@pytest.mark.parametrize("how", ["save", "transaction"])
def test_a_save_that_is_cut_is_found_out_about(
    store: StateStore, proxy: Proxy, moment: str, how: str
) -> None:
    cut = iter([moment])
    wanted = b"WITH swapped" if how == "save" else b"COMMIT"
    proxy.judge = lambda data: next(cut, PASS) if wanted in data else PASS
    state = store.load()
    state["n"] = 2
    if how == "save":
        assert store.save(state).revision == 2
    else:
        with store.transaction() as state:
            state["n"] = 2
        assert state.meta.revision == 2
    assert proxy.cuts == 1
    again = store.onlooker()
    assert (again.load()["n"], again.revision) == (2, 2)
    again.close()


def test_a_save_that_is_cut_while_another_one_goes_first_is_a_conflict(
    store: StateStore, proxy: Proxy, postgres: PostgresServer, database: Database
) -> None:
    other = StateStore(postgres.url, schema=database.schema)
    state = store.load()

    def cut(data: bytes) -> str:
        if b"WITH swapped" in data:
            proxy.judge = lambda _data: PASS
            with other.transaction() as theirs:
                theirs["n"] = 9
            return BEFORE
        return PASS

    proxy.judge = cut
    state["n"] = 2
    # Our two stores are of one process, which keeps its threads apart: here they are two machines.
    other.path += "#elsewhere"
    with pytest.raises(RevisionConflict):
        store.save(state)
    assert store.load()["n"] == 9
    other.close()


def test_a_save_that_waits_as_it_is_cut_is_done_once(
    store: StateStore, proxy: Proxy, database: Database
) -> None:
    """The server goes on with what it got: it and the second attempt wait for the same row."""
    waiting = threading.Event()

    def cut(data: bytes) -> str:
        if b"WITH swapped" in data and not waiting.is_set():
            waiting.set()
            return AFTER
        return PASS

    proxy.judge = cut
    with database.dedicated() as connection:
        connection.execute("BEGIN")
        connection.execute(database.query("SELECT 1 FROM {schema}.states FOR UPDATE"))

        def let_go() -> None:
            waiting.wait(PATIENCE)
            connection.execute("ROLLBACK")

        thread = threading.Thread(target=let_go)
        thread.start()
        state = store.load()
        state["n"] = 2
        assert store.save(state).revision == 2
        thread.join(PATIENCE)
    assert store.load().meta.revision == 2
    state["n"] = 3
    assert store.save(state).revision == 3


def test_a_database_that_stays_away_leaves_the_save_unknown(
    proxy: Proxy, store: StateStore, url: str
) -> None:
    impatient = StateStore(url, failover_seconds=0.2)
    state = impatient.load()

    def cut_for_good(data: bytes) -> str:
        if b"WITH swapped" not in data:
            return PASS
        threading.Thread(target=proxy.down).start()
        return UNANSWERED

    proxy.judge = cut_for_good
    state["n"] = 2
    with pytest.raises(SaveUncertain, match=r"nobody knows whether revision 2 .* is saved"):
        impatient.save(state)
    with pytest.raises(BackendUnavailable) as caught:
        impatient.save(state)
    assert not isinstance(caught.value, SaveUncertain)  # nothing was sent this time
    proxy.judge = lambda _data: PASS
    proxy.up()
    assert impatient.load()["n"] == 2
    impatient.close()


def test_a_no_of_the_kill_switch_comes_too_late_to_say_what_was_done(
    store: StateStore, proxy: Proxy
) -> None:
    cut = iter([UNANSWERED])
    proxy.judge = lambda data: next(cut, PASS) if b"WITH swapped" in data else PASS
    asked = []

    def yes_then_no() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise RuntimeError("the kill switch was released")

    with pytest.raises(SaveUncertain, match="kill switch was released"):
        store.save({"n": 2}, before_commit=yes_then_no)


def test_a_database_that_is_away_is_said_so_and_nothing_is_changed(
    store: StateStore, proxy: Proxy
) -> None:
    state = store.load()
    proxy.down()
    state["n"] = 2
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        store.save(state)
    with pytest.raises(BackendUnavailable):
        store.load()
    with pytest.raises(BackendUnavailable), store.transaction():
        pass
    assert store.changed()  # it cannot be told, so it has to be looked at
    assert store.kill_switch().status() in ("unknown", "engaged")
    proxy.up()
    assert store.save(state).revision == 2


def test_an_idle_connection_that_the_server_closed_costs_nothing(
    store: StateStore, database: Database
) -> None:
    state = store.load()
    with database.dedicated() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name = 'statestore'"
        )
    state["n"] = 2
    assert store.save(state).revision == 2
    assert store.load()["n"] == 2


def test_what_is_acknowledged_is_flushed_whatever_the_setting(
    store: StateStore, database: Database
) -> None:
    """The statement sets it for itself, as it is looked at from inside."""
    seen = []
    with store._tables.writing() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("BEGIN")
        store._tables.swap(
            store._pointer(),
            type(store._pointer())(2, "0" * 64),
            b"{}",
            None,
            keep=100,
        )
        seen.append(connection.execute("SHOW synchronous_commit").fetchone())
        connection.execute("ROLLBACK")
    assert seen == [("on",)]


def test_a_server_that_only_reads_is_named_as_that(store: StateStore, database: Database) -> None:
    state = store.load()
    with store._tables.writing() as connection:
        connection.execute("SET default_transaction_read_only = on")
    state["n"] = 2
    with pytest.raises(BackendUnavailable, match="target_session_attrs=read-write"):
        store.save(state)


def test_no_password_is_in_any_message(postgres: PostgresServer, proxy: Proxy) -> None:
    proxy.down()
    store = StateStore(f"postgresql://bot:hunter2@127.0.0.1:{proxy.port}/postgres?password=hunter2")
    with pytest.raises(BackendError) as caught:
        store.load()
    assert "hunter2" not in f"{store!r} {store.path} {store.database!r} {caught.value}"
    store.close()


def test_a_bot_whose_database_is_away_does_not_trade_and_saves_when_it_is_back(
    store: StateStore, proxy: Proxy, tmp_path: Path
) -> None:
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    with TradingSession(store, kill_switch=switch, signals=False) as session:
        assert session.tick()
        proxy.down()
        session.state["n"] = 2
        assert not session.on_trade()
        assert not session.tick()
        health = session.health()
        assert (health["ok"], health["kill_switch"]) == (False, "unknown")
        assert health["unsaved"] == {"trade": 1}
        proxy.up()
        for _ in range(1000):
            if session.tick():
                break
            session.wait(0.01)
        health = session.health()
        assert (health["ok"], health["lease"], health["unsaved"]) == (True, True, {})
    assert store.load()["n"] == 2


def test_a_rollback_that_fails_after_a_save_is_not_the_callers_affair(
    store: StateStore, proxy: Proxy
) -> None:
    """Seen with a killed server: the save was done, and the transaction raised all the same."""
    said = []

    def cut(data: bytes) -> str:
        said.append(data)
        return BEFORE if b"ROLLBACK" in data else PASS

    proxy.judge = cut
    with store.transaction() as state:
        state["n"] = 2
    assert state.meta.revision == 2
    with store.transaction():
        pass  # nothing to save: this one is rolled back
    assert any(b"ROLLBACK" in data for data in said)
    assert store.load()["n"] == 2


def test_a_second_attempt_that_has_to_wait_too_long_says_that_nobody_knows(
    store: StateStore, proxy: Proxy, url: str, database: Database
) -> None:
    """The first one waits on the server for the same row, and may be done yet."""
    impatient = StateStore(url, failover_seconds=0.5, lock_timeout=0.1)
    state = impatient.load()
    cut = iter([AFTER])
    proxy.judge = lambda data: next(cut, PASS) if b"WITH swapped" in data else PASS
    with database.dedicated() as connection:
        connection.execute("BEGIN")
        connection.execute(database.query("SELECT 1 FROM {schema}.states FOR UPDATE"))
        state["n"] = 2
        with pytest.raises(SaveUncertain, match="held by another writer"):
            impatient.save(state)
        with pytest.raises(StateLocked):
            impatient.save(state)
        connection.execute("ROLLBACK")
    impatient.close()
