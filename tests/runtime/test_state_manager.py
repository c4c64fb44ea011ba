"""``scripts/state_manager.py`` as an operator types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from statestore import KillSwitch, StateStore
from tests.runtime.conftest import ROOT

STATE = {
    "positions": {
        "BTC-USD": {"side": "BUY", "quantity": 0.1, "entry_price": 50000, "entry_time": "T"},
        "OLD-USD": {"status": "closed"},
    },
    "pair_states": {"BTCUSD-ETHUSD": {"cooldown": 3}},
    "portfolio": {"total_value": None, "open_positions": 1},
    "session": {"mode": "PAPER"},
}


@pytest.fixture
def manage(run, state_file):
    def manage(*arguments, **environment):
        script = ROOT / "scripts" / "state_manager.py"
        return run(script, *arguments, "--state", state_file, **environment).ends()

    return manage


def test_check_shows_positions_pairs_cooldowns_and_portfolio(manage, state_store):
    state_store.save(STATE, reason="trade")

    code, out, err = manage("check")

    assert code == 0, err
    assert "BTC-USD: BUY | Entry: 50000 | Qty: 0.1 | Time: T" in out
    assert "OLD-USD" not in out.split("Invalid")[0]
    assert "BTCUSD-ETHUSD: cooldown 3" in out
    assert "total_value unknown, open_positions 1" in out
    assert "Revision   1" in out
    assert "(trade)" in out
    assert "Mode       PAPER, kill switch released" in out
    assert out.endswith("Healthy    yes\n")


def test_check_is_json_if_asked_for(manage, state_store):
    state_store.save(STATE)

    code, out, _ = manage("check", "--format", "json", "--max-age", 3600)

    report = json.loads(out)
    assert code == 0
    assert report["healthy"]
    assert list(report["positions"]) == ["BTC-USD"]
    assert report["backend"] == {"file": "ok"}
    assert report["age_seconds"] < 3600


def test_check_is_a_health_check(manage, state_store):
    assert manage("check")[0] == 8
    state_store.save(STATE)
    code, _, err = manage("check", "--max-age", 0)
    assert code == 8
    assert "0 s are allowed" in err
    state_store.save(STATE | {"n": 1})
    state_store.backup_path.write_bytes(b"torn")
    code, out, err = manage("check", "--format", "json")
    assert code == 8
    assert json.loads(out)["positions"]
    assert f"Not healthy: {state_store.backup_path}" in err
    state_store.path.write_bytes(b"torn")
    code, out, err = manage("check")
    assert code == 8
    assert "Traceback" not in err
    assert out.endswith("Healthy    NO\n")


def test_a_database_that_is_configured_is_not_called_healthy(manage, state_store):
    state_store.save(STATE)

    _, out, err = manage(
        "check",
        "--format",
        "json",
        TRADING_STATE_DB_TYPE="influxdb",
        TRADING_STATE_INFLUXDB_TOKEN="s3cret",
    )

    assert json.loads(out)["backend"]["influxdb"] == "not read by this command"
    assert "s3cret" not in out + err


def test_backup_change_restore_gives_the_original(manage, state_store, state_file, tmp_path):
    state_store.save(STATE)
    folder = tmp_path / "state_fallback"

    code, out, _ = manage("backup", "--dir", folder)
    again = json.loads(manage("backup", TRADING_STATE_FALLBACK_DIR=str(folder))[1])["backup"]

    copy = json.loads(out)["backup"]
    assert code == 0
    assert re.fullmatch(rf"{folder}/trading_state_backup_\d{{8}}_\d{{6}}\.json", copy)
    assert again != copy
    original = StateStore(state_file).load()
    with state_store.transaction() as state:
        state["positions"] = {}
    before = state_file.read_bytes()
    assert manage("restore", "--file", copy, "--dry-run")[0] == 0
    assert state_file.read_bytes() == before
    assert manage("restore", "--file", copy, "--yes")[0] == 6
    KillSwitch(state_file.with_name("KILL_SWITCH")).engage()
    code, _, err = manage("restore", "--file", copy, "--yes")

    assert code == 0, err
    assert StateStore(state_file).load() == original


def test_two_backups_differ_in_what_changed_and_hold_no_secret(manage, state_store, tmp_path):
    """As somebody keeps them under version control."""
    state_store.save(STATE)
    copies = []
    for quantity in (0.1, 0.2):
        with state_store.transaction(reason="trade") as state:
            state["positions"]["BTC-USD"]["quantity"] = quantity
        folder = tmp_path / str(quantity)
        ran = manage("backup", "--dir", folder, TRADING_STATE_INFLUXDB_TOKEN="s3cret")
        copies.append(Path(json.loads(ran[1])["backup"]).read_text())

    before, after = (copy.splitlines() for copy in copies)
    changed = [b.strip() for a, b in zip(before, after, strict=True) if a != b]
    assert [line for line in changed if not line.startswith('"_meta"')] == ['"quantity": 0.2,']
    assert "s3cret" not in copies[1]


def test_a_backup_of_another_program_is_not_restored_as_a_state(manage, state_store, tmp_path):
    state_store.save(STATE)
    other = tmp_path / "trading_state_backup_20250720_080000.json"
    other.write_text(json.dumps({"backup_timestamp": "2025-07-20", "positions": []}))

    code, _, err = manage("restore", "--file", other, "--yes")

    assert code == 8
    assert "statestore import" in err
    assert StateStore(state_store.path).load() == STATE


@pytest.mark.parametrize("name", [[], ["check"], ["backup"], ["restore"]])
def test_every_help_has_the_exit_codes(run, name):
    code, out, _ = run(ROOT / "scripts" / "state_manager.py", *name, "--help").ends()

    assert code == 0
    assert "Exit codes" in out
