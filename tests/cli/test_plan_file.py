"""A plan kept by ``--out``, looked at by ``diff --plan`` and written by ``--apply``."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore import simulated
from statestore.disk.store import StateStore
from statestore.repair import planfile
from statestore.simulated import SimulatedExchange
from tests.cli.conftest import Run
from tests.cli.test_rebuild_apply import snapshot

STATE: dict[str, Any] = {
    "positions": {"BTC-USD": {"quantity": 0.03, "entry_price": 62000, "stop_loss": 58900.10}},
    "open_orders": {"o1": {"side": "buy"}},
}


@pytest.fixture
def plan(rebuild: Run, exchange: SimulatedExchange, tmp_path: Path) -> Path:
    """A plan for `STATE` against `exchange`."""
    path = tmp_path / "plan.json"
    ran = rebuild("--hours", "12", "--out", path, state=STATE)
    assert ran.code == 0, ran.err
    return path


def halt(kill_switch: Any) -> None:
    kill_switch.engage("test", "me")


def test_a_plan_is_kept_and_nothing_else_is_written(
    rebuild: Run, exchange: SimulatedExchange, tmp_path: Path, state_file: Path
) -> None:
    state_file.write_text(json.dumps(STATE))
    before = snapshot(state_file.parent)
    ran = rebuild("--out", tmp_path / "plan.json", "--yes")

    assert ran.code == 0
    assert ran.json["dry_run"] is True
    assert "--apply" in ran.err
    assert snapshot(state_file.parent) == before


def test_what_is_applied_is_the_plan_to_the_byte(
    rebuild: Run, plan: Path, kill_switch: Any, state_file: Path, exchange: SimulatedExchange
) -> None:
    halt(kill_switch)
    exchange.set_product("BTC-USD", price="71000")  # a mark that moves changes no plan
    ran = rebuild("--apply", plan, "--yes")
    kept = json.loads(plan.read_text(), parse_float=Decimal)
    written = StateStore(state_file).load(numbers="decimal")["positions"]

    assert ran.code == 0, ran.err
    assert {c["key"]: c["after"] for c in kept["changes"]} == written
    assert written["BTC-USD"]["stop_loss"] == Decimal("58900.1")
    assert written["BTC-USD"]["last_updated"] == kept["window"]["read_at"]
    assert {request.method for request in exchange.requests} == {"GET"}


def test_the_audit_line_names_the_plan(
    rebuild: Run, statestore: Run, plan: Path, kill_switch: Any, state_file: Path
) -> None:
    halt(kill_switch)
    rebuild("--apply", plan, "--yes")
    line = json.loads(state_file.with_name("state_audit.jsonl").read_text())

    assert line["plan_sha256"] == json.loads(plan.read_text())["sha256"]


def test_a_plan_carries_the_proof_of_each_number(plan: Path) -> None:
    kept = json.loads(plan.read_text())

    assert kept["state"]["revision"] == 0
    assert kept["inputs"]["balances"] == {"BTC": "0.018", "DOGE": "100", "ETH": "0.00088729"}
    assert kept["inputs"]["fills"]["BTC"]["count"] == 3
    assert [line["running"] for line in kept["evidence"]["BTC"]] == ["0.01", "0.03", "0.018"]
    assert kept["products"]["BTC-USD"]["price"] == "66000"
    assert kept["version"]


def test_checking_a_plan_writes_nothing(rebuild: Run, plan: Path, state_file: Path) -> None:
    before = snapshot(state_file.parent)
    ran = rebuild("--apply", plan, "--dry-run")

    assert ran.code == 0, ran.err
    assert snapshot(state_file.parent) == before


def a_save(exchange: SimulatedExchange, state_file: Path) -> None:
    with StateStore(state_file).transaction(reason="trade") as state:
        state["trades"] = 1


def another_quantity_at_the_same_revision(exchange: SimulatedExchange, state_file: Path) -> None:
    state_file.write_text(state_file.read_text().replace("0.03", "0.04"))


def a_fill(exchange: SimulatedExchange, state_file: Path) -> None:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    exchange.add_fill(f"BUY 1 ETH-USD @ 3000 at {now} id new-one")
    exchange.set_balance("ETH", "1.00088729")


def a_fill_and_its_opposite(exchange: SimulatedExchange, state_file: Path) -> None:
    """After which every balance is what it was."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    exchange.add_fill(f"BUY 1 ETH-USD @ 3000 at {now} id in")
    exchange.add_fill(f"SELL 1 ETH-USD @ 3000 at {now} id out")


def a_fill_of_another_asset(exchange: SimulatedExchange, state_file: Path) -> None:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    exchange.add_fill(f"BUY 1 SOL-USD @ 100 at {now}")
    exchange.set_balance("SOL", "1")


def a_fill_posted_late(exchange: SimulatedExchange, state_file: Path) -> None:
    row = exchange._fills[0]
    exchange.add_fill({**row, "entry_id": "late", "size": "0.001"})


def a_corrected_fill(exchange: SimulatedExchange, state_file: Path) -> None:
    exchange.correct_fill(str(exchange._fills[0]["entry_id"]), price="60001")


def a_withdrawal(exchange: SimulatedExchange, state_file: Path) -> None:
    exchange.set_balance("DOGE", "40")


def another_portfolio(exchange: SimulatedExchange, state_file: Path) -> None:
    exchange.permissions["portfolio_uuid"] = "00000000-0000-0000-0000-000000000002"


def a_row_that_cannot_be_read(exchange: SimulatedExchange, state_file: Path) -> None:
    exchange.add_fill(simulated.fill("BUY 1 ETH-USD @ 3000", side="", trade_time=_recently()))


def _recently() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (a_save, "is at revision 1"),
        (another_quantity_at_the_same_revision, "is at revision 0"),
        (a_fill, "balance of ETH is 1.00088729, was 0.00088729"),
        (a_fill, "entry_id new-one"),
        (a_fill_and_its_opposite, "3 fill(s) of ETH, were 1"),
        (a_fill_of_another_asset, "1 fill(s) of SOL, were 0"),
        (a_fill_posted_late, "4 fill(s) of BTC, were 3"),
        (a_corrected_fill, "3 fill(s) of BTC, were 3, not the same ones"),
        (a_withdrawal, "balance of DOGE is 40, was 100"),
        (another_portfolio, "the portfolio is 00000000-0000-0000-0000-000000000002"),
        (a_row_that_cannot_be_read, "1 fill row(s) cannot be read, were 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_plan_is_refused_when_anything_changed(
    rebuild: Run,
    exchange: SimulatedExchange,
    plan: Path,
    kill_switch: Any,
    state_file: Path,
    change: Callable[[SimulatedExchange, Path], None],
    named: str,
) -> None:
    halt(kill_switch)
    change(exchange, state_file)
    before = snapshot(state_file.parent)
    ran = rebuild("--apply", plan, "--yes")

    assert ran.code == 9
    assert named in ran.error
    assert "nothing was written" in ran.error
    assert ran.out == ""
    assert snapshot(state_file.parent) == before


def test_another_computation_of_the_same_inputs_is_refused(
    rebuild: Run, plan: Path, kill_switch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version that computes otherwise must not write what nobody has read."""
    halt(kill_switch)
    from statestore.repair import plan as rules

    monkeypatch.setattr(rules, "_or_none", lambda value: value and value + 1)
    ran = rebuild("--apply", plan, "--yes")

    assert ran.code == 9
    assert "BTC is computed otherwise (after)" in ran.error


def test_a_plan_found_further_back_is_found_again(
    rebuild: Run, exchange: SimulatedExchange, kill_switch: Any, tmp_path: Path
) -> None:
    halt(kill_switch)
    path = tmp_path / "plan.json"
    made = rebuild("--hours", "1", "--out", path, state=STATE)
    ran = rebuild("--apply", path, "--yes")

    assert made.json["window"]["searched_hours"] > 1
    assert ran.code == 0, ran.err
    assert ran.json["window"] == made.json["window"]


def test_a_plan_is_applied_once(rebuild: Run, plan: Path, kill_switch: Any) -> None:
    halt(kill_switch)

    assert rebuild("--apply", plan, "--yes").code == 0
    assert rebuild("--apply", plan, "--yes").code == 9


def test_without_the_kill_switch_a_plan_is_not_written(rebuild: Run, plan: Path) -> None:
    assert rebuild("--apply", plan, "--yes").code == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"quantity": 0.018', '"quantity": 9.018'),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("statestore.plan/1", "statestore.plan/2"),
        lambda _: "[]",
        lambda _: "",
        lambda _: '{"schema": "statestore.plan/1"}',
    ],
    ids=["edited", "torn", "another schema", "a list", "empty", "bare"],
)
def test_what_is_no_plan_is_refused(
    rebuild: Run, plan: Path, kill_switch: Any, damage: Callable[[str], str]
) -> None:
    halt(kill_switch)
    plan.write_text(damage(plan.read_text()))
    ran = rebuild("--apply", plan, "--yes")

    assert ran.code == 2
    assert str(plan) in ran.error
    assert ran.out == ""


def test_a_sealed_document_that_is_no_whole_plan_is_refused(rebuild: Run, plan: Path) -> None:
    body = {"state": {}, "made_at": "now"}
    forged = {"schema": planfile.SCHEMA, "sha256": planfile._sum(body), **body}
    plan.write_text(json.dumps(forged))

    assert "no whole plan" in rebuild("--apply", plan).error


@pytest.mark.parametrize(
    "option",
    [("--hours", "3"), ("--method", "fifo"), ("--out", "x.json"), ("--accept-partial",)],
    ids=lambda option: option[0],
)
def test_what_a_plan_has_settled_cannot_be_said_again(
    rebuild: Run, plan: Path, option: tuple[str, ...]
) -> None:
    ran = rebuild("--apply", plan, *option)

    assert ran.code == 2
    assert f"{option[0]} does not go with --apply" in ran.error


def test_a_plan_of_another_state_is_refused(
    rebuild: Run, plan: Path, statestore: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"

    assert "is a plan for" in statestore("rebuild", "--apply", plan, "--state", other).error
    assert "is a plan for" in statestore("diff", "--plan", plan, "--state", other).error


def test_a_plan_says_by_itself_which_recordings_it_is_about(
    statestore: Run,
    rebuild: Run,
    tmp_path: Path,
    kill_switch: Any,
    state_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halt(kill_switch)
    path = tmp_path / "plan.json"
    rows = simulated.fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
    since = ("--since", "2025-11-18T00:00:00Z")
    rebuild("--out", path, *since, state={}, fills=rows, balances={"BTC": "2"})
    monkeypatch.setenv("STATE_FILE", str(state_file))
    ran = statestore("rebuild", "--apply", path, "--yes")

    assert ran.code == 0, ran.err
    assert StateStore(state_file).load()["positions"]["BTC-USD"]["entry_price"] == 150


def test_which_state_is_written_is_for_the_operator_to_say_and_not_for_the_plan(
    statestore: Run, plan: Path, kill_switch: Any, state_file: Path
) -> None:
    halt(kill_switch)
    before = state_file.read_bytes()
    ran = statestore("rebuild", "--apply", plan, "--yes")

    assert ran.code == 2
    assert "--state names the one meant" in ran.error
    assert state_file.read_bytes() == before


def test_the_difference_a_plan_makes(
    statestore: Run, plan: Path, exchange: SimulatedExchange
) -> None:
    asked = len(exchange.requests)
    ran = statestore("diff", "--plan", plan, "--exit-code")

    assert ran.code == 3
    assert ran.json["positions"]["changed"]["BTC-USD"]["quantity"] == {
        "before": 0.03,
        "after": 0.018,
    }
    assert sorted(ran.json["positions"]["added"]) == ["DOGE-USD", "ETH-USD"]
    assert [part["change"] for part in ran.json["sections"]] == ["changed", "same"]
    assert len(exchange.requests) == asked


def test_the_difference_of_a_stale_plan_is_not_shown(
    statestore: Run, plan: Path, state_file: Path
) -> None:
    with StateStore(state_file).transaction() as state:
        state["trades"] = 1

    assert statestore("diff", "--plan", plan).code == 9


@pytest.mark.parametrize("target", ["state", "plan"])
def test_a_plan_replaces_no_file_that_matters(
    rebuild: Run, plan: Path, state_file: Path, target: str
) -> None:
    if target == "state":
        assert rebuild("--out", state_file).code == 2
    else:
        assert rebuild("--apply", plan, "--save-fills", plan).code == 2
