"""A session and the facade with a mirror, on a real InfluxDB 1.6."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from statestore import StateStore, TradingSession, UnifiedStateManager
from statestore.backends.database import Database
from statestore.backends.influx import Influx
from statestore.backends.mirror import Mirror
from statestore.errors import BackendError, BackendUnavailable, ConfigError, LeaseHeld
from tests.servers import free_port, running_postgres

LONG = {"direction": "long", "quantity": 0.1, "entry_price": 50000, "entry_time": "2025-07-20"}


def held(mirror):
    found = mirror.newest()
    assert found is not None
    return json.loads(found.document())


@pytest.fixture
def mirror_of(state_file):
    def mirror_of(server):
        return Mirror(Influx(server if isinstance(server, str) else server.url), str(state_file))

    return mirror_of


@pytest.fixture
def nowhere():
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def manager(state_file, tmp_path, monkeypatch):
    """Make facades as the document does, over a configured InfluxDB."""

    def manager(server, **options):
        monkeypatch.setenv("TRADING_STATE_DB_TYPE", "influxdb")
        url = server if isinstance(server, str) else server.url
        monkeypatch.setenv("TRADING_STATE_INFLUXDB_URL", url)
        monkeypatch.setenv("TRADING_STATE_INFLUXDB_TOKEN", "bot:s3cret")
        options = {"store": StateStore(state_file), "fallback_dir": tmp_path} | options
        if options.pop("begun", False):  # else a start would wait for the mirror
            StateStore(state_file).save({"positions": {}})
        made.append(UnifiedStateManager(**options))
        return made[-1]

    made = []
    yield manager
    for one in made:
        if one.mirror is not None:
            one.mirror.close(60)


# A session


def test_every_save_of_a_session_follows_into_the_mirror(influx, state_store, mirror_of):
    mirror = mirror_of(influx)
    with TradingSession(state_store, mirror=mirror) as session:
        session.state["positions"]["BTC-USD"] = LONG
        assert session.on_trade()
        assert session.health()["mirror"]["name"] == str(state_store.path)

    assert held(mirror)["positions"] == {"BTC-USD": LONG}
    assert held(mirror)["session"]["stopped_by"] == "exit"
    assert mirror.newest().document() == state_store.path.read_bytes()


def test_a_session_on_a_new_machine_begins_with_what_the_mirror_holds(
    influx, state_store, mirror_of, tmp_path, caplog
):
    caplog.set_level("INFO")
    with TradingSession(state_store, mirror=mirror_of(influx)) as session:
        session.state["positions"]["BTC-USD"] = LONG
    last = state_store.load().meta.revision

    new = StateStore(tmp_path / "new.json")
    with TradingSession(new, mirror=mirror_of(influx)) as session:
        assert session.state["positions"] == {"BTC-USD": LONG}
        assert session.state.meta.revision > last
    assert "Found 1 stored position" in caplog.text


def test_a_file_that_is_newer_than_the_mirror_is_what_a_session_begins_with(
    influx, state_store, mirror_of
):
    with TradingSession(state_store, mirror=mirror_of(influx)) as session:
        session.state["positions"]["BTC-USD"] = LONG
    with state_store.transaction(reason="rebuild") as state:
        state["positions"] = {}

    mirror = mirror_of(influx)
    with TradingSession(StateStore(state_store.path), mirror=mirror) as session:
        assert session.state["positions"] == {}
    assert held(mirror)["positions"] == {}
    assert list(mirror.database.series(mirror.name).values()) == [True]


def test_a_session_trades_on_while_the_mirror_is_down(state_store, mirror_of, nowhere):
    state_store.save({"positions": {"BTC-USD": LONG}})
    mirror = mirror_of(nowhere)
    with TradingSession(state_store, mirror=mirror) as session:
        assert session.state["positions"] == {"BTC-USD": LONG}
        session.state["positions"] = {}
        assert session.on_trade()
        assert session.tick()
        assert session.health()["ok"]
        assert StateStore(state_store.path).load()["positions"] == {}

    assert "Connection refused" in session.health()["mirror"]["degraded"]
    assert session.health()["mirror"]["pending"]["to"] == state_store.load().meta.revision


def test_a_tick_brings_what_is_owed_when_the_mirror_returns(own_influx, state_store, mirror_of):
    own_influx.kill()
    mirror = mirror_of(own_influx)
    state_store.save({"positions": {}})  # else the start would wait for the mirror
    with TradingSession(state_store, mirror=mirror) as session:
        with pytest.raises(BackendUnavailable):
            mirror.flush()
        own_influx.start()
        mirror._not_before = 0  # the minute is over
        session.tick()
        with mirror._changed:
            assert mirror._changed.wait_for(lambda: mirror._worker is None, 60)
        assert session.health()["mirror"]["degraded"] is None
        assert mirror.newest().document() == state_store.path.read_bytes()


def test_a_session_that_does_not_get_the_lease_restores_nothing(
    influx, state_store, mirror_of, tmp_path
):
    with TradingSession(state_store, mirror=mirror_of(influx)) as session:
        session.state["positions"]["BTC-USD"] = LONG
    new = StateStore(tmp_path / "new.json")
    with new.lease():
        with pytest.raises(LeaseHeld):
            TradingSession(StateStore(new.path), mirror=mirror_of(influx)).start()

    assert not new.path.exists()


def test_a_dry_session_neither_restores_nor_writes(influx, state_store, mirror_of, tmp_path):
    with TradingSession(state_store, mirror=mirror_of(influx)) as session:
        session.state["positions"]["BTC-USD"] = LONG
    new = StateStore(tmp_path / "new.json")
    with TradingSession(new, mode="DRY_RUN", mirror=mirror_of(influx)) as session:
        assert session.state["positions"] == {}

    assert not new.path.exists()


def test_saves_of_an_asyncio_bot_follow_too(influx, state_store, mirror_of):
    mirror = mirror_of(influx)

    async def bot():
        async with TradingSession(state_store, mirror=mirror) as session:
            session.state["positions"]["BTC-USD"] = LONG
            assert await session.aon_trade()
            await session.atick()

    asyncio.run(bot())

    assert mirror.newest().document() == state_store.path.read_bytes()


# The facade


def test_a_change_is_in_the_file_then_in_the_mirror(influx, manager, state_file):
    one = manager(influx)
    one.save_position("BTCUSD-ETHUSD", LONG)
    one.save_pair_state("BTCUSD-ETHUSD", cooldown=3)
    one.mirror.flush()

    status = one.get_system_status()
    assert (status["backend"], status["degraded"], status["healthy"]) == ("influxdb", None, True)
    assert status["mirror"]["health"] == "ok"
    assert status["mirror"]["mirrored"] == status["revision"] == 2
    assert one.mirror.newest().document() == state_file.read_bytes()


def test_a_save_that_returns_is_on_disk_although_the_database_is_down_and_says_degraded(
    nowhere, manager, state_file
):
    one = manager(nowhere, begun=True)
    one.save_position("BTC-USD", LONG)

    assert StateStore(state_file).load()["positions"] == {"BTC-USD": LONG}
    with pytest.raises(BackendUnavailable):
        one.mirror.flush()
    assert "Connection refused" in one.degraded
    status = one.get_system_status()
    assert status["mirror"]["pending"] == {"revisions": 2, "from": 1, "to": 2}
    assert "Connection refused" in status["mirror"]["health"]
    assert not status["healthy"]
    assert "s3cret" not in str(status)


def test_a_start_brings_up_a_mirror_that_is_behind(influx, manager, state_file):
    StateStore(state_file).save({"positions": {"BTC-USD": LONG}})

    one = manager(influx)
    one.mirror.flush()

    assert held(one.mirror)["positions"] == {"BTC-USD": LONG}
    assert one.degraded is None


def test_it_is_no_longer_degraded_when_the_database_is_back(own_influx, manager):
    own_influx.kill()
    one = manager(own_influx, begun=True)
    one.save_position("BTC-USD", LONG)
    one.close_position("BTC-USD")
    assert one.degraded
    own_influx.start()
    one.mirror.flush()

    assert one.degraded is None
    assert held(one.mirror)["positions"] == {}


def test_without_the_file_fallback_a_database_that_is_down_is_an_error(
    own_influx, manager, state_file, monkeypatch
):
    one = manager(own_influx, file_fallback=False)
    one.save_position("BTC-USD", LONG)
    assert one.mirror.status()["mirrored"] == 1
    own_influx.kill()

    with pytest.raises(BackendUnavailable, match=r"ETH-USD is saved in .*Connection ref"):
        one.save_position("ETH-USD", LONG)
    assert sorted(StateStore(state_file).load()["positions"]) == ["BTC-USD", "ETH-USD"]
    with pytest.raises(BackendUnavailable, match="Connection refused"):
        manager(own_influx, file_fallback=False)
    monkeypatch.setenv("TRADING_STATE_ENABLE_FILE_FALLBACK", "false")
    with pytest.raises(BackendUnavailable, match="Connection refused"):
        manager(own_influx)
    own_influx.start()
    one.save_position("SOL-USD", LONG)
    assert sorted(held(one.mirror)["positions"]) == ["BTC-USD", "ETH-USD", "SOL-USD"]


def test_a_closed_position_comes_back_neither_from_the_file_nor_from_the_mirror(
    influx, manager, state_file, tmp_path
):
    one = manager(influx)
    one.save_position("BTC-USD", LONG)
    one.save_position("ETH-USD", LONG)
    one.close_position("BTC-USD")
    one.mirror.flush()
    state_file.unlink()
    StateStore(state_file).backup_path.unlink()

    for _ in range(2):  # a second load in one process is as good as the first
        again = manager(influx)
        assert [p["key"] for p in again.get_all_positions()] == ["ETH-USD"]
        assert again.get_position("BTC-USD") is None


def test_no_figure_is_made_up_on_the_way(influx, manager):
    one = manager(influx)
    one.save_position("BTC-USD", direction="long", quantity=0.1)
    one.save_portfolio(total_pnl=-12)
    one.mirror.flush()

    state = held(one.mirror)
    assert state["positions"]["BTC-USD"] == {"direction": "long", "quantity": 0.1}
    assert state["portfolio"]["total_value"] is None


def test_beside_a_session_the_facade_uses_its_mirror(influx, manager, state_store, mirror_of):
    mirror = mirror_of(influx)
    with TradingSession(state_store, mirror=mirror) as session:
        one = manager(influx, session=session, store=None)
        one.save_position("BTC-USD", LONG)
        assert one.mirror is mirror
        assert one.get_system_status()["backend"] == "influxdb"
    assert held(mirror)["positions"] == {"BTC-USD": LONG}

    bare = StateStore(state_store.path)
    with TradingSession(bare) as session:
        assert "mirror=" in manager(influx, session=session, store=None).degraded
        with pytest.raises(ConfigError, match="mirror="):
            manager(influx, session=session, store=None, file_fallback=False)


def test_a_database_that_refuses_is_an_error_without_the_fallback(influx, manager, monkeypatch):
    monkeypatch.setenv("TRADING_STATE_INFLUXDB_BUCKET", "nope")

    with pytest.raises(BackendError, match="database not found"):
        manager(influx, file_fallback=False)
    assert "database not found" in manager(influx).degraded


def test_without_the_fallback_a_damaged_mirror_is_no_first_start(
    influx, manager, state_file, mirror_of
):
    StateStore(state_file).save({"note": "x" * 200_000})
    mirror_of(influx).push(state_file.read_bytes())
    influx.query(f"DROP SERIES FROM trading_states WHERE part = '1' AND state = '{state_file}'")
    state_file.unlink()

    with pytest.raises(BackendError, match="there is no 1"):
        manager(influx, file_fallback=False)
    assert "there is no 1" in manager(influx).degraded


def test_without_the_client_it_is_said(manager, nowhere, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "influxdb_client", None)

    assert "statestore[influx]" in manager(nowhere).degraded
    with pytest.raises(ConfigError, match=r"statestore\[influx\]"):
        manager(nowhere, file_fallback=False)


def test_reading_a_state_costs_no_client(tmp_path: Path):
    import subprocess
    import sys

    program = (
        "import sys, statestore\nstatestore.UnifiedStateManager, statestore.TradingSession\n"
        "print(sorted({'influxdb_client', 'requests', 'reactivex'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ran.stdout.strip() == "[]", ran.stderr


# The facade in PostgreSQL


@pytest.fixture
def in_postgres(postgres, database, state_file, tmp_path, monkeypatch):
    """Make facades whose state is in a database of the shared server."""
    monkeypatch.setenv("STATE_FILE", str(state_file))
    monkeypatch.setenv("TRADING_STATE_DB_TYPE", "postgres")

    def in_postgres(url=f"{postgres.url}?schema={database.schema}", **options):
        monkeypatch.setenv("TRADING_STATE_POSTGRES_URL", url)
        made.append(UnifiedStateManager(fallback_dir=tmp_path, **options))
        return made[-1]

    made = []
    yield in_postgres
    for one in made:
        one.store.close()


def test_with_postgres_the_state_is_in_the_database(in_postgres):
    one = in_postgres()
    one.save_position("BTC-USD", LONG)
    one.close_position("BTC-USD")
    one.save_position("ETH-USD", LONG)

    assert [p["key"] for p in in_postgres().get_all_positions()] == ["ETH-USD"]
    status = one.get_system_status()
    assert (status["backend"], status["degraded"], status["healthy"]) == ("postgres", None, True)


def test_with_postgres_away_the_file_has_the_state_and_it_is_degraded(
    in_postgres, state_file, caplog
):
    with running_postgres() as server:
        url = server.url.replace("bot@", "bot:s3cret@")
        database = Database(url)
        database.upgrade()
        database.close()
        one, strict = in_postgres(url), in_postgres(url, file_fallback=False)
        one.save_position("BTC-USD", LONG)
        server.kill()
        one.save_position("ETH-USD", LONG)

        assert sorted(StateStore(state_file).load()["positions"]) == ["BTC-USD", "ETH-USD"]
        assert str(state_file) in one.degraded
        assert not one.get_system_status()["healthy"]
        assert "s3cret" not in f"{one.get_system_status()} {caplog.text}"
        with pytest.raises(BackendUnavailable):
            strict.get_all_positions()


def test_postgres_without_an_address_says_what_to_set(in_postgres):
    with pytest.raises(ConfigError, match="TRADING_STATE_POSTGRES_URL"):
        in_postgres("")
