"""Rebuilds through the fill ledger, against the simulated exchange."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from statestore import simulated
from statestore.cli import cli
from statestore.config import load_settings, places
from statestore.simulated import SimulatedExchange
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import snapshot

STATE: dict[str, Any] = {"positions": {}}


@pytest.fixture
def halted(kill_switch: Any) -> None:
    kill_switch.engage("test", "me")


@pytest.fixture
def apply(rebuild: Run, halted: None) -> Run:
    return lambda *arguments, **options: rebuild("--yes", *arguments, **options)


@pytest.fixture
def ledger(state_file: Path) -> Path:
    return state_file.with_name("fills.sqlite3")


def pages_asked(exchange: SimulatedExchange) -> int:
    asked = [r for r in exchange.requests if r.path.endswith("/fills")]
    exchange.requests.clear()
    return len(asked)


def ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def figures(ran: Ran) -> list[Any]:
    names = ("asset", "status", "quantity", "entry_price", "cost", "realised", "fills")
    return [[change[name] for name in names] for change in ran.json["changes"]]


def codes(ran: Ran) -> list[str]:
    return [warning["code"] for warning in ran.json["warnings"]]


def test_a_second_rebuild_asks_for_one_page(apply: Run, exchange: SimulatedExchange) -> None:
    exchange.add_fills(*["BUY 1 SOL-USD @ 100"] * 40, start=ago(40))
    exchange.set_balance("SOL", "40")
    exchange.page_size = 5
    first = apply("--hours", "72", state=STATE)
    asked = pages_asked(exchange)
    second = apply("--hours", "72")

    assert first.code == second.code == 0, first.err + second.err
    assert asked == 9
    assert pages_asked(exchange) == 1
    assert second.json["fills"]["pages"] == 1
    assert figures(second) == figures(first)
    assert second.json["fills"]["count"] == first.json["fills"]["count"] == 45


def test_what_was_searched_once_is_not_searched_again(
    apply: Run, exchange: SimulatedExchange
) -> None:
    exchange.add_fills("BUY 2 SOL-USD @ 100", start=ago(1000))
    exchange.set_balance("SOL", "2")
    state = {"positions": {"SOL-USD": {"quantity": 1}}}
    first = apply(state=state)
    asked = pages_asked(exchange)
    second = apply(state=state)

    assert asked > 4
    assert pages_asked(exchange) == 1
    assert figures(first) == figures(second)


def test_a_dry_run_uses_the_ledger_and_changes_nothing(
    apply: Run, rebuild: Run, exchange: SimulatedExchange, state_file: Path
) -> None:
    exchange.page_size = 1
    first = apply(state=STATE)
    before = snapshot(state_file.parent)
    pages_asked(exchange)
    dry = rebuild("--dry-run")

    assert dry.code == 0, dry.err
    assert figures(dry) == figures(first)
    assert pages_asked(exchange) == 1
    assert snapshot(state_file.parent) == before


def test_a_dry_run_without_a_ledger_makes_none(
    rebuild: Run, exchange: SimulatedExchange, state_file: Path
) -> None:
    state_file.write_text(json.dumps(STATE))
    before = snapshot(state_file.parent)
    rebuild("--dry-run")

    assert snapshot(state_file.parent) == before


def test_no_ledger_neither_reads_nor_writes_one(
    apply: Run, exchange: SimulatedExchange, ledger: Path
) -> None:
    ran = apply("--no-ledger", state=STATE)

    assert ran.code == 0
    assert not ledger.exists()


def test_a_first_run_that_is_interrupted_proves_nothing(
    apply: Run, exchange: SimulatedExchange, quick_retries: None
) -> None:
    exchange.page_size = 2
    broken = [simulated.OK, *[simulated.UNAVAILABLE] * 5]
    exchange.script("fills", *broken)
    failed = apply(state=STATE)
    pages_asked(exchange)
    ran = apply()

    assert (failed.code, ran.code) == (5, 0)
    assert pages_asked(exchange) == 3
    assert {change["status"] for change in ran.json["changes"]} == {"EXACT"}


def test_a_fill_posted_an_age_late_is_found_by_reading_again_without_the_ledger(
    apply: Run, exchange: SimulatedExchange
) -> None:
    apply(state=STATE)
    exchange.add_fills("BUY 2 SOL-USD @ 100", start=ago(20))
    exchange.set_balance("SOL", "2")
    state = {"positions": {"SOL-USD": {"quantity": 1, "entry_price": 7}}}
    ran = apply(state=state)
    pages_asked(exchange)
    again = apply()

    assert ran.code == again.code == 0, ran.err
    assert ran.change("SOL")["status"] == "EXACT"
    assert ran.change("SOL")["entry_price"] == "100"
    assert "ledger_reread" in codes(ran)
    assert "SOL could not be proven" in " ".join(ran.err.split())
    assert "ledger_reread" not in codes(again)
    assert pages_asked(exchange) == 1


def test_a_dry_run_reads_again_without_the_ledger_as_well(
    apply: Run, rebuild: Run, exchange: SimulatedExchange, state_file: Path
) -> None:
    apply(state=STATE)
    exchange.add_fills("BUY 2 SOL-USD @ 100", start=ago(20))
    exchange.set_balance("SOL", "2")
    state_file.write_text(json.dumps({"positions": {"SOL-USD": {"quantity": 1}}}))
    before = snapshot(state_file.parent)
    ran = rebuild("--dry-run")

    assert ran.change("SOL")["status"] == "EXACT"
    assert "ledger_reread" in codes(ran)
    assert snapshot(state_file.parent) == before


def test_a_row_the_exchange_has_corrected_is_read_again(
    apply: Run, exchange: SimulatedExchange
) -> None:
    broken = simulated.fill(f"BUY 1 SOL-USD @ 100 at {ago(3)} id e1", side="")
    exchange.add_fill(broken)
    exchange.set_balance("SOL", "1")
    refused = apply(state=STATE)
    exchange.correct_fill("e1", side="BUY")
    ran = apply()
    again = apply()

    assert refused.code == 3
    assert "side is ''" in refused.error
    assert ran.code == 0, ran.err
    assert "ledger_reread" in codes(ran)
    assert ran.change("SOL")["status"] == "EXACT"
    assert again.json["fills"]["rejected"] == []
    assert "ledger_reread" not in codes(again)


def test_what_stays_unproven_is_the_same_without_the_ledger(
    apply: Run, rebuild: Run, exchange: SimulatedExchange
) -> None:
    state = {"positions": {"SOL-USD": {"quantity": 1}}}
    exchange.set_balance("SOL", "3")
    apply(state=state)
    through = rebuild("--dry-run")
    plainly = rebuild("--dry-run", "--no-ledger")

    assert through.change("SOL")["status"] == plainly.change("SOL")["status"] == "PARTIAL"
    assert figures(through) == figures(plainly)
    assert "ledger_reread" in codes(through)


def test_a_damaged_ledger_is_a_warning(
    apply: Run, exchange: SimulatedExchange, ledger: Path
) -> None:
    first = apply(state=STATE)
    ledger.write_bytes(b"\0" * 9_000)
    ran = apply()

    assert ran.code == 0
    assert "ledger" in codes(ran)
    assert "Traceback" not in ran.err
    assert figures(ran) == figures(first)
    assert len(list(ledger.parent.glob("fills.sqlite3.corrupt-*"))) == 1


def test_another_portfolio_shares_nothing(apply: Run, exchange: SimulatedExchange) -> None:
    apply(state=STATE)
    exchange.permissions["portfolio_uuid"] = "00000000-0000-0000-0000-000000000002"
    exchange._fills.clear()
    for currency in ("BTC", "ETH", "DOGE"):
        exchange.set_balance(currency, "0")
    ran = apply(state=STATE)

    assert ran.json["changes"] == []
    assert ran.json["fills"]["count"] == 0


def test_a_key_that_names_no_portfolio_goes_without(
    apply: Run, exchange: SimulatedExchange, ledger: Path
) -> None:
    del exchange.permissions["portfolio_uuid"]

    assert apply(state=STATE).code == 0
    assert not ledger.exists()


def test_the_ledger_may_be_elsewhere_but_not_in_place_of_another_file(
    apply: Run,
    exchange: SimulatedExchange,
    tmp_path: Path,
    state_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATESTORE_LEDGER", str(tmp_path / "elsewhere.sqlite3"))
    apply(state=STATE)
    monkeypatch.setenv("STATESTORE_LEDGER", str(state_file))
    state = state_file.read_bytes()
    ran = apply()

    assert (tmp_path / "elsewhere.sqlite3").exists()
    assert ran.code == 2
    assert str(state_file) in ran.error
    assert state_file.read_bytes() == state


def test_the_place_of_the_ledger_is_a_setting(tmp_path: Path) -> None:
    config = tmp_path / "statestore.toml"
    config.write_text('ledger = "cache/fills.sqlite3"')
    found = load_settings({"STATESTORE_CONFIG": str(config)})

    assert places(found).ledger == tmp_path / "cache" / "fills.sqlite3"
    assert places(
        load_settings({"STATESTORE_CONFIG": str(config), "STATESTORE_LEDGER": "x"})
    ).ledger == Path("x")
    assert places(load_settings({})).ledger == Path("data/fills.sqlite3")


def test_fills_and_explain_read_through_the_ledger_and_warm_it(
    run: Run, exchange: SimulatedExchange, ledger: Path
) -> None:
    exchange.page_size = 1
    told = run(cli, "explain", "BTC", "--state", ledger.with_name(".state.json"))
    first = pages_asked(exchange)
    listed = run(cli, "fills", "--state", ledger.with_name(".state.json"))

    assert told.code == listed.code == 0, told.err + listed.err
    assert first == 5
    assert pages_asked(exchange) == 1
    assert [path.name for path in ledger.parent.iterdir()] == ["fills.sqlite3"]
