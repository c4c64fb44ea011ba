"""``statestore inventory``: what a wipe would lose, and what makes itself anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.runtime.inventory import ITEMS
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import snapshot
from tests.runtime.test_signals import row

STATE = {
    "positions": {
        "ETH-USD": {"quantity": 0.5, "entry_price": 2000},
        "a": row(features={"ta": {"x": 1}, "uptrend_engine_v4": {"state": "S1"}}),
        "b": row("4h"),
        "regime_BTC": row(token_chain="regime", status="regime_driver"),
    },
    "registry": {"Demo1111": {"chain": "solana"}},
    "learning": {"lessons": [1]},
    "my_own": {"seed": 7},
}


def items(ran: Ran) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in ran.json["items"]}


@pytest.fixture
def taken(statestore: Run, state_store: StateStore) -> Run:
    state_store.save(STATE)
    return lambda *arguments: statestore("inventory", "--state", state_store.path, *arguments)


def test_every_thing_is_classed_with_its_impact_action_and_time(taken: Run) -> None:
    ran = taken()

    assert ran.code == 0, ran.err
    assert [item["name"] for item in ran.json["items"]] == [item.name for item in ITEMS]
    for item in ran.json["items"]:
        assert item["what"]
        assert item["action"]
        if item["class"] == "critical":
            assert item["impact"] in ("HIGH", "MEDIUM", "LOW")
        else:
            assert item["impact"] is None
            assert item["rebuild_time"]


def test_what_the_document_calls_critical_and_regenerable_is_called_so(taken: Run) -> None:
    found = items(taken())
    told = {name: (item["impact"], item["rebuild_time"]) for name, item in found.items()}

    assert told["positions"] == ("HIGH", None)
    assert told["balances"][0] == told["registry"][0] == "MEDIUM"
    assert told["bars"][1].startswith("~2-5 minutes")
    assert told["drivers"] == (None, "instant")
    assert told["ta"] == (None, "~1-2 minutes after prices")
    assert told["states"] == (None, "~1-2 minutes after ta")
    assert told["learning"] == told["history"] == (None, "builds up over time")


def test_it_is_counted_what_is_there(taken: Run) -> None:
    found = items(taken())

    counts = {name: item["count"] for name, item in found.items() if item["count"]}
    assert counts == {
        "positions": 1,
        "tracked": 2,
        "drivers": 1,
        "ta": 1,
        "states": 1,
        "registry": 1,
        "learning": 1,
        "other sections": 1,
    }
    assert found["other sections"]["note"] == "my_own"
    assert found["state"]["note"] == "revision 1"
    assert found["ledger"]["present"] is False


def test_a_wipe_would_lose_what_is_critical_and_there(
    taken: Run, statestore: Run, state_store: StateStore, kill_switch: KillSwitch
) -> None:
    assert taken().json["at_stake"] == [
        "state",
        "positions",
        "tracked",
        "registry",
        "other sections",
    ]
    kill_switch.engage()
    statestore("reinsert", "--state", state_store.path, "--yes", "--allow-held")
    ran = taken()

    assert ran.json["at_stake"] == [
        *("state", "positions", "registry", "other sections"),
        *("signals", "backups", "audit", "kill switch"),
    ]
    assert items(ran)["signals"]["count"] == 2
    assert "A wipe would lose: state, positions" in ran.err


def test_signals_that_are_done_are_not_at_stake(
    taken: Run, statestore: Run, state_store: StateStore
) -> None:
    state_store.save({"positions": {"ETH-USD": {"quantity": 1}}})
    statestore("reinsert", "--state", state_store.path, "--allow-held", "--auto-process")

    signals = items(taken())["signals"]
    assert (signals["present"], signals["note"]) == (False, "1 done")


def test_what_does_not_read_is_unknown_and_never_absent(
    taken: Run, state_store: StateStore
) -> None:
    state_store.path.write_text("{")
    state_store.backup_path.unlink(missing_ok=True)
    ran = taken()
    found = items(ran)

    assert ran.code == 8
    assert found["state"]["present"] is True
    for name in ("positions", "tracked", "registry", "other sections", "drivers"):
        assert found[name]["present"] is None, name
    assert "positions" in ran.json["at_stake"]
    assert "does not read" in ran.err


@pytest.mark.parametrize("kind", ["postgres", "influxdb"])
def test_a_database_that_is_configured_is_listed_and_not_asked(
    taken: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = {"postgres": "postgres", "influxdb": "mirror"}[kind]
    assert items(taken())[name]["present"] is False
    monkeypatch.setenv("TRADING_STATE_DB_TYPE", kind)

    assert items(taken())[name]["present"] is None
    assert (name in taken().json["at_stake"]) is (kind == "postgres")


def test_it_writes_nothing(taken: Run, state_store: StateStore, tmp_path: Path) -> None:
    taken()
    before = snapshot(state_store.path.parent)
    ran = taken()

    assert snapshot(state_store.path.parent) == before
    assert json.loads(ran.out)["revision"] == 1
