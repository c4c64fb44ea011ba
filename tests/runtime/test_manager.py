"""The facade by name: what is saved, closed, marked, migrated and refused."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from statestore import StateStore, TradingSession, UnifiedStateManager
from statestore.config import load_trading_state_settings
from statestore.errors import (
    ConfigError,
    LeaseHeld,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateMissing,
    UsageError,
)

LONG = {"direction": "long", "quantity": 0.1, "entry_price": 50000, "entry_time": "2025-07-20"}


@pytest.fixture
def fallback(tmp_path):
    folder = tmp_path / "state_fallback"
    folder.mkdir()
    return folder


@pytest.fixture
def manager(state_store, fallback):
    def manager(*arguments, **options):
        options = {"store": StateStore(state_store.path), "fallback_dir": fallback} | options
        return UnifiedStateManager(*arguments, **options)

    return manager


@pytest.fixture
def on_disk(state_file):
    return lambda: StateStore(state_file).load()


def test_it_is_made_with_the_words_of_the_document(state_file, monkeypatch):
    monkeypatch.setenv("STATE_FILE", str(state_file))

    manager = UnifiedStateManager(auto_migrate=True, enable_validation=True, file_fallback=True)

    assert manager.store.path == state_file
    assert manager.get_all_positions() == []


def test_a_closed_position_never_comes_back(manager, state_file):
    one = manager()
    one.save_position("BTCUSD-ETHUSD", LONG)
    one.save_position("EURUSD-GBPUSD", LONG, direction="short")
    assert one.close_position("BTCUSD-ETHUSD") == LONG
    assert one.close_position("BTCUSD-ETHUSD") is None

    assert [p["key"] for p in one.get_all_positions()] == ["EURUSD-GBPUSD"]
    assert [p["key"] for p in manager().get_all_positions()] == ["EURUSD-GBPUSD"]
    assert one.get_position("BTCUSD-ETHUSD") is None
    assert one.get_position("EURUSD-GBPUSD")["direction"] == "short"


@pytest.mark.parametrize(
    "mark",
    [{"status": "CLOSED"}, {"deleted": True}, {"operation": "DELETE"}, {"quantity": 0}]
    + [{"closed_at": "2025-07-20T08:00:00"}],
)
def test_what_says_it_is_closed_is_no_position(manager, state_store, mark):
    state_store.save({"positions": {"BTC-USD": LONG | mark, "ETH-USD": LONG}})

    assert [p["key"] for p in manager().get_all_positions()] == ["ETH-USD"]
    with pytest.raises(UsageError, match="close_position"):
        manager().save_position("BTC-USD", LONG | mark)


def test_each_call_is_one_durable_change(manager, on_disk):
    one = manager()
    one.save_position("BTC-USD", LONG)
    one.save_pair_state("BTCUSD-ETHUSD", cooldown=3, z_score=-1.5)
    one.save_portfolio(total_pnl=-12)

    state = on_disk()
    assert state.meta.revision == 3
    assert state.meta.reason == "portfolio"
    assert state["pair_states"] == {"BTCUSD-ETHUSD": {"cooldown": 3, "z_score": -1.5}}
    assert one.get_pair_states() == state["pair_states"]


def test_a_figure_nobody_gave_is_null(manager):
    one = manager()
    assert one.get_portfolio() is None
    one.save_position("BTC-USD", LONG)
    one.save_portfolio({"total_pnl": -12})

    assert one.get_portfolio() == {
        "total_value": None,
        "available_balance": None,
        "total_pnl": -12,
        "daily_pnl": None,
        "peak_value": None,
        "open_positions": 1,
    }


def test_the_digits_of_other_positions_are_kept(manager, state_file):
    state_file.write_text('{"positions": {"ETH": {"quantity": 0.123456789012345678901}}}')

    manager().save_position("BTC-USD", LONG)

    assert "0.123456789012345678901" in state_file.read_text()


# Validation


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"entry_price": -1}, "entry_price", "is -1, and has to be above 0"),
        ({"entry_price": "cheap"}, "entry_price", "is 'cheap', a number is expected"),
        ({"direction": "up"}, "direction", "is 'up', BUY, SELL, long or short expected"),
        ({"units": 0.2}, "quantity", "differs from units"),
        ({"entry_time": 5}, "entry_time", "is a number, a time as text is expected"),
        ({"stop_loss": True}, "stop_loss", "is True, a number is expected"),
    ],
)
def test_what_does_not_validate_is_saved_marked_and_logged(
    manager, on_disk, caplog, change, field, why
):
    manager().save_position("BTC-USD", LONG | change)

    state = on_disk()
    assert state["positions"]["BTC-USD"] == LONG | change
    path = f"positions.BTC-USD.{field}"
    assert why in state["invalid"][path]
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [record.field for record in logged] == [path]
    assert manager().get_system_status()["invalid"] == state["invalid"]
    assert not manager().get_system_status()["healthy"]

    manager().save_position("BTC-USD", LONG)
    assert "invalid" not in on_disk()


@pytest.mark.parametrize("missing", ["direction", "quantity", "entry_price"])
def test_a_required_field_that_is_missing_is_named(manager, on_disk, missing):
    manager().save_position("BTC-USD", {k: v for k, v in LONG.items() if k != missing})

    field = missing.replace("direction", "side")
    assert on_disk()["invalid"] == {f"positions.BTC-USD.{field}": "is missing"}


def test_pair_states_and_portfolio_are_validated(manager, on_disk):
    one = manager()
    one.save_pair_state("A-B", cooldown=-1, position="up", last_update=1)
    one.save_portfolio(total_value=-1, total_pnl=-1)

    assert sorted(on_disk()["invalid"]) == [
        "pair_states.A-B.cooldown",
        "pair_states.A-B.last_update",
        "pair_states.A-B.position",
        "portfolio.total_value",
    ]


@pytest.mark.parametrize(
    "position",
    [
        {"available": 1, "hold": 0, "total": 1, "usd_value": 5},
        {"side": "BUY", "quantity": 1, "units": 1.0, "base_qty": 1, "entry_price": None},
        {"token_contract": "Demo1111", "total_quantity": 1500, "avg_entry_price": 0.00123},
    ],
)
def test_every_shape_in_use_validates(manager, on_disk, position):
    manager().save_position("X", position)

    assert "invalid" not in on_disk()


def test_strict_refuses_and_changes_nothing(manager, state_file):
    one = manager(strict=True)
    one.save_position("BTC-USD", LONG)
    before = state_file.read_bytes()

    with pytest.raises(StateInvalid, match="entry_price is -1") as caught:
        one.save_position("BTC-USD", LONG | {"entry_price": -1})

    assert caught.value.field == "positions.BTC-USD.entry_price"
    assert state_file.read_bytes() == before


def test_validation_can_be_turned_off(manager, on_disk, monkeypatch):
    monkeypatch.setenv("TRADING_STATE_ENABLE_VALIDATION", "false")
    manager().save_position("BTC-USD", LONG | {"entry_price": -1})
    assert "invalid" not in on_disk()

    manager(enable_validation=True).save_portfolio()
    assert "invalid" in on_disk()


# Settings


def test_the_settings_are_those_of_the_document():
    settings = load_trading_state_settings(
        {
            "TRADING_STATE_DB_TYPE": "influxdb",
            "TRADING_STATE_INFLUXDB_URL": "http://localhost:8087",
            "TRADING_STATE_INFLUXDB_TOKEN": "s3cret",
            "TRADING_STATE_INFLUXDB_ORG": "org",
            "TRADING_STATE_INFLUXDB_BUCKET": "bucket",
            "TRADING_STATE_ENABLE_VALIDATION": "False",
            "TRADING_STATE_ENABLE_FILE_FALLBACK": "0",
        }
    )

    assert settings.influxdb_token == "s3cret"
    assert "s3cret" not in repr(settings)
    assert (settings.influxdb_url, settings.influxdb_org) == ("http://localhost:8087", "org")
    assert not settings.enable_validation
    assert not settings.enable_file_fallback
    assert load_trading_state_settings({}).influxdb_bucket == "quant-data"
    assert load_trading_state_settings({}).fallback_dir == Path("state_fallback")


@pytest.mark.parametrize("name", ["DB_TYPE", "ENABLE_VALIDATION", "ENABLE_FILE_FALLBACK"])
def test_a_setting_that_is_not_understood_is_an_error_without_the_token(name):
    with pytest.raises(ConfigError, match=name) as caught:
        load_trading_state_settings(
            {f"TRADING_STATE_{name}": "perhaps", "TRADING_STATE_INFLUXDB_TOKEN": "s3cret"}
        )

    assert "s3cret" not in str(caught.value)


def test_a_database_that_is_not_there_is_said_or_refused(manager, monkeypatch):
    monkeypatch.setenv("TRADING_STATE_DB_TYPE", "postgres")

    one = manager()
    one.save_position("BTC-USD", LONG)
    assert "postgres" in one.get_system_status()["degraded"]
    assert not one.get_system_status()["healthy"]
    with pytest.raises(ConfigError, match="file fallback is off"):
        manager(file_fallback=False)
    monkeypatch.setenv("TRADING_STATE_ENABLE_FILE_FALLBACK", "false")
    with pytest.raises(ConfigError, match="file fallback is off"):
        manager()


# Legacy files


BACKUP = {
    "backup_timestamp": "2025-07-20T08:00:00",
    "positions": [
        {"symbol1": "BTCUSD", "symbol2": "ETHUSD", **LONG},
        {"symbol1": "EURUSD", "symbol2": "GBPUSD", **LONG, "operation": "DELETE"},
    ],
    "current_state": {
        "active_positions": {"BTCUSD-ETHUSD": LONG, "XAU-XAG": LONG},
        "pair_states": {"BTCUSD-ETHUSD": {"cooldown": 3}},
        "last_signal": "none",
    },
    "portfolio_summary": {"total_value": 1000.10},
    "system_status": {"connected": True},
}
ROW = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "active",
    "total_quantity": 1500,
    "avg_entry_price": 0.00123,
    "features": {"pm_execution_history": []},
}
EXPORT = {
    "exported_at": "2025-11-20T10:00:00",
    "count": 3,
    "filters": {"status": None, "timeframe": None},
    "positions": [
        ROW,
        ROW | {"timeframe": "4h", "status": "watchlist", "total_quantity": 0},
        ROW | {"timeframe": "1d", "status": "closed"},
    ],
}
TOKENS = {
    "exported_at": "2025-11-20T10:00:00Z",
    "count": 1,
    "status_filter": "active",
    "tokens": [{"token_contract": "Demo1111", "token_chain": "solana", "curator": None}],
}


def put(folder, document, name="trading_state_backup_20250720_080000.json"):
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def test_a_backup_is_migrated_once_where_there_is_no_state(manager, fallback, on_disk, caplog):
    put(fallback, BACKUP | {"positions": []}, "trading_state_backup_20250719_080000.json")
    path = put(fallback, BACKUP)
    before = path.read_bytes()

    one = manager()

    state = on_disk()
    assert sorted(state["positions"]) == ["BTCUSD-ETHUSD", "XAU-XAG"]
    assert state["pair_states"] == {"BTCUSD-ETHUSD": {"cooldown": 3}}
    assert state["portfolio"] == {"total_value": 1000.1}
    assert state["legacy"] == {
        "system_status": {"connected": True},
        "current_state": {"last_signal": "none"},
    }
    record = one.get_system_status()["migrated_from"]
    assert record["closed"] == ["EURUSD-GBPUSD"]
    assert record["unconfirmed"] == ["XAU-XAG"]
    assert record["sha256"] == hashlib.sha256(before).hexdigest()
    assert path.read_bytes() == before
    assert "rebuild to be sure" in caplog.text

    one.close_position("BTCUSD-ETHUSD")
    assert [p["key"] for p in manager().get_all_positions()] == ["XAU-XAG"]
    with pytest.raises(UsageError, match="is there already"):
        manager().migrate(path)


def test_exported_positions_are_migrated(manager, tmp_path, on_disk):
    path = put(tmp_path, EXPORT)
    before = path.read_bytes()
    manager().migrate(path)

    assert path.read_bytes() == before
    state = on_disk()
    assert state["positions"] == {"solana:Demo1111:1h": ROW}
    assert list(state["watchlist"]) == ["solana:Demo1111:4h"]
    assert state["migrated_from"]["closed"] == ["solana:Demo1111:1d"]


def test_exported_tokens_are_migrated(manager, tmp_path, on_disk):
    path = put(tmp_path, TOKENS)
    before = path.read_bytes()
    manager().migrate(path)

    assert path.read_bytes() == before
    assert on_disk()["watchlist"] == {"solana:Demo1111": TOKENS["tokens"][0]}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (json.dumps(EXPORT | {"count": 2}), StateInvalid, "count is 2, but there are 3"),
        (json.dumps(EXPORT | {"count": 2, "positions": [ROW, ROW]}), StateInvalid, "there twice"),
        (json.dumps({"positions": {}}), StateInvalid, "of no shape that is known"),
        ("[]", StateInvalid, "is a list, an object is expected"),
        ('{"backup_timestamp": NaN}', StateCorrupt, "NaN is no number"),
        (json.dumps(BACKUP)[:-9], StateCorrupt, "is no JSON document"),
        (json.dumps(BACKUP | {"positions": {}}), StateInvalid, "positions has to be a list"),
        (json.dumps(BACKUP | {"current_state": []}), StateInvalid, "current_state is a list"),
        (json.dumps(BACKUP | {"positions": [LONG]}), StateInvalid, "row 0 does not say"),
    ],
)
def test_a_legacy_file_that_is_not_understood_starts_nothing(
    manager, fallback, state_file, text, error, said
):
    (fallback / "trading_state_backup_20250720_080000.json").write_text(text)

    with pytest.raises(error, match=said):
        manager()

    assert not state_file.exists()
    manager(auto_migrate=False)


def test_a_legacy_file_that_is_gone_is_an_error(manager, tmp_path):
    with pytest.raises(StateMissing):
        manager().migrate(tmp_path / "nothing.json")


def test_a_copy_of_our_own_state_is_not_taken_for_a_first_start(manager, state_store, fallback):
    state_store.save({"positions": {"BTC-USD": LONG}})
    state_store.path.rename(fallback / "trading_state_backup_20250720_080000.json")
    state_store.backup_path.unlink(missing_ok=True)

    with pytest.raises(StateMissing, match="statestore restore --file"):
        manager()


# Beside a session


def test_it_does_not_write_under_a_running_bot(manager, state_store):
    with TradingSession(state_store):
        with pytest.raises(LeaseHeld, match="session="):
            manager().save_position("BTC-USD", LONG)
        assert manager().get_all_positions() == []


def test_with_the_session_both_work_on_one_state(manager, state_store, on_disk):
    with TradingSession(state_store) as session:
        one = UnifiedStateManager(session=session)
        one.save_position("BTC-USD", LONG)
        assert session.state["positions"] == {"BTC-USD": LONG}
        assert on_disk()["positions"] == {"BTC-USD": LONG}
        assert one.get_system_status()["positions"] == 1
        session.state["positions"]["BTC-USD"]["quantity"] = 0.2
        assert session.on_trade()
        assert one.get_position("BTC-USD")["quantity"] == 0.2

    with pytest.raises(UsageError, match="one of the two"):
        UnifiedStateManager(session=session, store=StateStore(state_store.path))


def test_with_the_session_strict_gives_the_former_state_back(state_store):
    with TradingSession(state_store) as session:
        one = UnifiedStateManager(session=session, strict=True)
        with pytest.raises(StateInvalid):
            one.save_position("BTC-USD", {"quantity": -1})

        assert session.state["positions"] == {}


def test_with_the_session_a_save_that_failed_is_an_error(state_store):
    with TradingSession(state_store) as session:
        one = UnifiedStateManager(session=session)
        with StateStore(state_store.path).transaction() as state:
            state["repaired"] = True

        with pytest.raises(StateError, match="do it again on the new state"):
            one.save_position("BTC-USD", LONG)
        one.save_position("BTC-USD", LONG)
        assert session.state["repaired"]


def test_with_a_dry_session_nothing_is_written(state_store, state_file):
    with TradingSession(state_store, mode="DRY_RUN") as session:
        UnifiedStateManager(session=session).save_position("BTC-USD", LONG)
        assert session.state["positions"] == {"BTC-USD": LONG}

    assert not state_file.exists()
