"""The lease of a state in a database: lost with its connection, noticed, and taken again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statestore import KillSwitch, StateStore, TradingSession
from statestore.backends.database import Database
from statestore.backends.leases import key_of
from statestore.backends.postgres import PostgresStore
from statestore.errors import BackendError, LeaseHeld
from tests.servers import PostgresServer, pgbouncer_program, running_pgbouncer


@pytest.fixture
def make(postgres: PostgresServer, database: Database) -> Iterator[Callable[[], PostgresStore]]:
    made = []

    def make(state: str = "default") -> PostgresStore:
        url = f"{postgres.url}?schema={database.schema}&state={state}"
        made.append(PostgresStore(url, beat_seconds=0.05))
        return made[-1]

    yield make
    for store in made:
        store.close()


def backend_of(database: Database, state: str = "default") -> int:
    with database.transaction() as connection:
        row = connection.execute(
            database.query("SELECT backend FROM {schema}.leases WHERE name = %s"), [state]
        ).fetchone()
    assert row is not None
    return int(row[0])


def terminate(database: Database, backend: int) -> None:
    with database.transaction() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])


def wait_until(true: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(2000):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it never came")


def test_the_holder_is_heard_of(make: Callable[[], PostgresStore]) -> None:
    store = make()
    with store.lease():
        first = store.lease_holder()
        assert first is not None
        wait_until(lambda: (store.lease_holder() or {})["beat"] > first["beat"])
        assert store.lease_holder()["since"] == first["since"]


def test_a_lost_connection_is_a_lost_lease_that_is_taken_again(
    make: Callable[[], PostgresStore], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with make().lease() as lease:
        terminate(database, backend_of(database))
        wait_until(lambda: "lease lost" in caplog.messages)
        wait_until(lambda: lease.held)
        with pytest.raises(LeaseHeld):
            make().lease()


def test_another_bot_that_was_faster_keeps_it(
    make: Callable[[], PostgresStore], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    mine = make().lease()
    backend = backend_of(database)
    with database.dedicated() as connection:
        # It waits for the lock, so it has it in the moment it is free.
        faster = threading.Thread(
            target=connection.execute,
            args=("SELECT pg_advisory_lock(%s)", [key_of(database.schema, "default")]),
        )
        faster.start()
        with database.transaction() as looking:
            wait_until(
                lambda: (
                    looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone()
                    is not None
                )
            )
        terminate(database, backend)
        faster.join(30)
        wait_until(lambda: "lease is another bot's now" in caplog.messages)
        assert not mine.held
        assert make().lease_holder() == {}  # held, by somebody who did not say who
    wait_until(lambda: mine.held)
    mine.release()
    assert make().lease_holder() is None


def test_a_session_that_lost_its_lease_does_not_trade(
    make: Callable[[], PostgresStore], database: Database, tmp_path: Path
) -> None:
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    with TradingSession(make(), kill_switch=switch, signals=False) as session:
        assert session.tick()
        backend = backend_of(database)
        with database.dedicated() as connection:
            connection.execute("SELECT pg_advisory_lock_shared(1)")
            session._lease._every = 30.0  # it does not come back while the test looks
            terminate(database, backend)
            wait_until(lambda: not session.tick())
        assert not session.may_trade
        health = session.health()
        assert (health["ok"], health["lease"]) == (False, False)
        session.state["n"] = 1
        assert session.save()  # what it knows is saved all the same


def test_states_of_one_database_have_leases_of_their_own(
    make: Callable[..., PostgresStore],
) -> None:
    with make("one").lease(), make("two").lease() as two:
        assert two.held
        assert make("three").lease_holder() is None


def test_a_lease_of_another_schema_is_another_one(
    make: Callable[..., PostgresStore], postgres: PostgresServer, database: Database
) -> None:
    other = Database(postgres.url, schema=f"{database.schema}_other")
    other.upgrade()
    other.close()
    store = StateStore(postgres.url, schema=f"{database.schema}_other")
    with make().lease(), store.lease() as lease:
        assert lease.held
    store.close()


@pytest.fixture(params=["transaction", "session"])
def pooled(
    request: pytest.FixtureRequest, postgres: PostgresServer, database: Database
) -> Iterator[tuple[str, Callable[[], PostgresStore]]]:
    """The mode of a pooler, and what makes stores behind it."""
    if pgbouncer_program() is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    made = []
    with running_pgbouncer(postgres, request.param) as url:

        def make() -> PostgresStore:
            made.append(PostgresStore(f"{url}?schema={database.schema}", beat_seconds=0.05))
            return made[-1]

        yield request.param, make
        for store in made:
            store.close()


def test_behind_a_pooler_there_is_one_lease_or_none(
    pooled: tuple[str, Callable[[], PostgresStore]],
) -> None:
    """In transaction mode two bots were given the same connection in turn, and both its lock."""
    mode, make = pooled
    one, two = make(), make()
    if mode == "transaction":
        with pytest.raises(BackendError, match="name the server itself") as refused:
            one.lease()
        assert not isinstance(refused.value, LeaseHeld)
        assert one.lease_holder() is None
    else:
        with one.lease() as lease:
            with pytest.raises(LeaseHeld):
                two.lease()
            assert lease.held


def test_behind_any_pooler_saves_and_news_go_on(
    pooled: tuple[str, Callable[[], PostgresStore]],
) -> None:
    _, make = pooled
    one, two = make(), make()
    one.save({"n": 0})
    for number in range(1, 12):
        with one.transaction() as state:
            state["n"] = number
        assert two.load()["n"] == number
    one.save({**one.load(), "n": 12})
    wait_until(two.changed)  # where no notification arrives, the next question tells
    assert [version.revision for version in two.versions()][:2] == [13, 12]
    database = two.database
    for _ in range(8):
        assert database.status().version


def test_a_lease_that_names_another_bot_is_given_up(
    make: Callable[[], PostgresStore], database: Database
) -> None:
    with make().lease() as lease:
        with database.transaction() as connection:
            connection.execute(database.query("UPDATE {schema}.leases SET pid = pid + 1"))
        wait_until(lambda: not lease.held)
        wait_until(lambda: lease.held)  # it was nobody


def test_a_holder_that_is_not_answered_does_not_take_itself_for_one(
    make: Callable[[], PostgresStore], database: Database
) -> None:
    """The connection stands, and the server hangs: nobody knows for how long the lock does."""
    with make().lease() as lease:
        with database.transaction() as connection:
            connection.execute(database.query("SELECT 1 FROM {schema}.leases FOR UPDATE"))
            wait_until(lambda: not lease.held)
        wait_until(lambda: lease.held)
