"""``rebuild_positions`` offline: worked examples and the old tool's faults, end to end."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.testing import fills
from statestore.times import NANOSECONDS, now
from tests.cli.conftest import Run

START = "2025-11-18T04:00:00Z"
WINDOW = ("--since", START, "--until", "2025-11-20T00:00:00Z")
EMPTY: dict[str, Any] = {"positions": {}}


def holding(key: str, quantity: float, price: float, **more: Any) -> dict[str, Any]:
    entry = {"side": "BUY", "quantity": quantity, "entry_price": price, **more}
    return {"positions": {key: entry}, "open_orders": {"o1": {"x": 1}}}


def test_e1_is_written_to_the_last_digit(rebuild: Run, state_file: Path, kill_switch: Any) -> None:
    kill_switch.engage("test", "me")
    rows = fills("BUY .010 BTC-USD @ 60000 fee 3.60", "BUY .020 BTC-USD @ 63000 fee 7.56")
    ran = rebuild(*WINDOW, "--yes", fills=rows, balances={"BTC": ".030"}, state=EMPTY)
    entry = json.loads(state_file.read_text(), parse_float=Decimal)["positions"]["BTC-USD"]

    assert ran.code == 0, ran.err
    assert ran.json["dry_run"] is False
    assert ran.json["positions_updated"] == 1
    assert ran.change("BTC")["action"] == "add"
    assert ran.change("BTC")["break_even"] == "62372"
    assert entry["quantity"] == entry["units"] == entry["base_qty"] == Decimal("0.03")
    assert entry["entry_price"] == 62000
    assert entry["entry_value_usd"] == 1860
    assert entry["fees_paid"] == Decimal("11.16")
    assert entry["entry_time"] == START
    assert entry["coverage"] == "exact"


def test_the_defaults_are_those_of_the_document(
    statestore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATE_FILE", raising=False)
    state = tmp_path / "data" / ".state.json"
    state.parent.mkdir()
    state.write_text(json.dumps(EMPTY))
    (state.parent / "KILL_SWITCH").touch()
    rows = fills("BUY 1 BTC-USD @ 100", start=now() - 47 * 3600 * NANOSECONDS)
    (tmp_path / "fills.json").write_text(json.dumps({"fills": rows}))
    (tmp_path / "balances.json").write_text(json.dumps({"BTC": "1"}))
    ran = statestore("rebuild", "--fills", "fills.json", "--balances", "balances.json")

    assert ran.code == 0, ran.err
    assert ran.json["window"]["hours"] == 48
    assert ran.json["dry_run"] is False
    assert json.loads(state.read_text())["positions"]["BTC-USD"]["quantity"] == 1


def test_a_second_run_right_after_an_apply_proposes_nothing(
    rebuild: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    rows = fills(
        "BUY 3.3 BTC-USD @ 7 fee .1",
        "SELL 1 BTC-USD @ 8",
        "BUY 1.7 BTC-USD @ 9",
        "BUY 10 ETH-USD @ 3 quote",
        "SELL 5 SOL-USD @ 10",
    )
    arguments = (*WINDOW, "--yes", "--accept-partial")
    balances = {"BTC": "4", "ETH": "3.33333333", "SOL": "3"}
    first = rebuild(*arguments, fills=rows, balances=balances, state=EMPTY)
    written = state_file.read_bytes()
    second = rebuild(*arguments, fills=rows, balances=balances)

    assert first.code == second.code == 0, first.err + second.err
    assert first.json["positions_updated"] == 3
    assert second.json["positions_updated"] == second.json["positions_removed"] == 0
    assert second.json["positions_kept"] == 3
    assert state_file.read_bytes() == written


def test_e10_the_window_is_doubled_until_the_balance_is_explained(rebuild: Run) -> None:
    rows = fills(
        "BUY .4 BTC-USD @ 58000 at 2025-11-13T00:00:00Z",
        "BUY .2 BTC-USD @ 61000 at 2025-11-18T04:00:00Z",
    )
    ran = rebuild(
        "--hours",
        "72",
        "--until",
        "2025-11-19T00:00:00Z",
        "--dry-run",
        fills=rows,
        balances={"BTC": ".6"},
        state=EMPTY,
    )

    assert ran.json["window"]["hours"] == 72
    assert ran.json["window"]["searched_hours"] == 144
    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["entry_price"] == "59000"
    assert ran.change("BTC")["cost"] == "35400"


@pytest.mark.parametrize(
    ("entry", "saved"),
    [({}, False), ({"last_updated": START}, False), ({"last_updated": START}, True)],
)
def test_e14_the_conflict_with_the_state_is_told(
    rebuild: Run, state_store: Any, entry: dict[str, Any], saved: bool
) -> None:
    state = holding("BTC-USD", 0.3, 50000, **entry)
    if saved:
        state_store.save(state)
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        fills=fills("BUY .5 BTC-USD @ 62000", start="2025-11-18T05:00:00Z"),
        balances={"BTC": ".5"},
        state=None if saved else state,
    )
    warning = next(w for w in ran.json["warnings"] if w["code"] == "state_conflict")

    assert ran.change("BTC")["status"] == "EXACT"
    assert (warning["recorded"], warning["implied"], warning["difference"]) == ("0.3", "0", "0.3")


def test_e15_what_an_open_order_holds_is_owned(rebuild: Run, tmp_path: Path) -> None:
    account = {
        "currency": "BTC",
        "available_balance": {"value": "0.2000000000000000", "currency": "BTC"},
        "hold": {"value": "0.4000000000000000", "currency": "BTC"},
    }
    payload = tmp_path / "accounts.json"
    payload.write_text(json.dumps({"accounts": [account], "has_next": False, "cursor": ""}))
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        "--balances",
        payload,
        fills=fills("BUY .6 BTC-USD @ 60000"),
        state=EMPTY,
    )

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["quantity"] == "0.6"


def test_e17_reserved_units_are_not_the_bots(rebuild: Run) -> None:
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        "--reserve",
        "BTC=.3",
        fills=fills("BUY .5 BTC-USD @ 60000"),
        balances={"BTC": ".8"},
        state=EMPTY,
    )

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["quantity"] == "0.5"
    assert ran.change("BTC")["entry_price"] == "60000"


def test_e18_what_only_the_balances_show_is_unmanaged(rebuild: Run) -> None:
    balances = {"BTC": ".5", "ADA": "12", "USD": "100"}
    rows = fills("BUY .5 BTC-USD @ 60000")
    ran = rebuild(*WINDOW, "--dry-run", fills=rows, balances=balances, state=EMPTY)
    adopted = rebuild(*WINDOW, "--dry-run", "--adopt", "ADA", fills=rows, balances=balances)

    assert ran.code == 0
    assert ran.json["unmanaged"] == ["ADA"]
    assert "ADA-USD" not in ran.json["state_preview"]["positions"]
    assert adopted.json["unmanaged"] == []
    assert adopted.change("ADA")["status"] == "PARTIAL"


class TestFaultsOfTheOldTool:
    """REQUIREMENTS, document 002, cases A to Q."""

    def test_a_a_size_in_quote(self, rebuild: Run) -> None:
        rows = fills("BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote")
        after = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY).change("ETH")["after"]

        assert after["quantity"] == 0.00088729
        assert after["usd"] == 2.6399716828

    def test_a_the_same_without_the_flag_is_noticed_by_its_fee(self, rebuild: Run) -> None:
        rows = fills("BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936")
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)

        assert ran.change("ETH")["status"] == "AMBIGUOUS"
        assert any(w["code"] == "implausible_fee" for w in ran.json["warnings"])

    def test_b_a_round_trip(self, rebuild: Run) -> None:
        rows = fills("BUY 1 BTC-USD @ 100", "SELL 1 BTC-USD @ 110", "BUY 1 BTC-USD @ 200")
        change = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY).change("BTC")

        assert (change["entry_price"], change["cost"]) == ("200", "200")

    @pytest.mark.parametrize("text", ["SELL 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 100"])
    def test_c_and_d_a_window_that_lacks_the_opening_fill(
        self, rebuild: Run, text: str, state_file: Path, kill_switch: Any
    ) -> None:
        kill_switch.engage("test", "me")
        state = holding("BTC-USD", 10, 90)
        ran = rebuild(*WINDOW, "--yes", fills=fills(text), state=state)

        assert ran.code == 3
        assert "BTC UNCOVERED" in ran.error
        assert json.loads(state_file.read_text()) == state

    def test_c_with_a_balance_it_is_nine(self, rebuild: Run) -> None:
        ran = rebuild(
            *WINDOW,
            "--dry-run",
            fills=fills("SELL 1 BTC-USD @ 100"),
            balances={"BTC": "9"},
            state=holding("BTC-USD", 10, 90),
        )

        assert ran.change("BTC")["status"] == "CARRIED"
        assert ran.change("BTC")["after"]["quantity"] == 9

    def test_e_the_same_entry_twice(self, rebuild: Run) -> None:
        rows = fills("BUY 1 BTC-USD @ 100") * 2
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)

        assert ran.change("BTC")["quantity"] == "1"
        assert ran.json["fills"]["duplicates"] == 1

    def test_f_fifteen_hundred_fills(self, rebuild: Run) -> None:
        rows = fills(*["BUY 1 BTC-USD @ 100"] * 1500)
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)

        assert ran.json["fills"]["count"] == 1500
        assert ran.change("BTC")["quantity"] == "1500"

    def test_g_no_credentials_is_an_error(
        self, rebuild: Run, state_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("COINBASE_KEY_FILE", "COINBASE_API_KEY", "COINBASE_API_SECRET"):
            monkeypatch.delenv(name, raising=False)
        ran = rebuild("--yes", state=EMPTY)

        assert ran.code == 4
        assert "--key-file" in ran.error
        assert json.loads(state_file.read_text()) == EMPTY

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"side": ""}, "side"),
            ({"side": None}, "side"),
            ({"side": "HOLD"}, "side"),
            ({"size": "-1"}, "negative"),
            ({"size": "NaN"}, "decimal number"),
            ({"size": " 1 "}, "decimal number"),
            ({"size": "1_000"}, "decimal number"),
            ({"size_in_quote": "true"}, "size_in_quote"),
            ({"size_in_quote": "2.64"}, "size_in_quote"),
            ({"price": "0"}, "price"),
            ({"price": ""}, "price"),
            ({"trade_time": "yesterday"}, "trade_time"),
            ({"trade_time": "2025-11-18T04:00:00"}, "trade_time"),
            ({"trade_type": "GIFT"}, "trade_type"),
            ({"product_id": "BTCUSD"}, "product_id"),
            ({"entry_id": "", "trade_id": ""}, "entry_id"),
        ],
    )
    def test_h_and_o_a_row_that_leaves_something_open(
        self, rebuild: Run, change: dict[str, Any], reason: str, kill_switch: Any
    ) -> None:
        kill_switch.engage("test", "me")
        good, bad = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 100")
        rows = [good, bad | change]
        preview = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)
        applied = rebuild(*WINDOW, "--yes", fills=rows)

        assert preview.code == 0
        assert reason in preview.json["fills"]["rejected"][0]["reason"]
        assert applied.code == 3
        assert reason in applied.error
        assert "fills.json fill 2" in applied.error

    def test_i_a_state_keyed_by_asset_keeps_its_key(self, rebuild: Run) -> None:
        state = holding("ETH", 1, 90)
        rows = fills("BUY 1 ETH-USD @ 100", "BUY 1 ETH-USD @ 200")
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=state)

        assert list(ran.json["state_preview"]["positions"]) == ["ETH"]
        assert ran.change("ETH")["after"]["quantity"] == 2

    def test_j_usd_and_usdc_are_one_position(self, rebuild: Run) -> None:
        rows = fills("BUY .5 BTC-USD @ 60000", "SELL .2 BTC-USDC @ 61000")
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, balances={"BTC": ".3"}, state=EMPTY)

        assert ran.change("BTC")["quantity"] == "0.3"
        assert ran.change("BTC")["key"] == "BTC-USD"
        assert any(w["code"] == "peg" for w in ran.json["warnings"])

    def test_k_a_negative_net_is_not_silently_nothing(self, rebuild: Run) -> None:
        ran = rebuild(*WINDOW, "--dry-run", fills=fills("SELL 1 BTC-USD @ 1"), state=EMPTY)

        assert ran.json["symbols_seen"] == 1
        assert ran.json["positions_unproven"] == 1
        assert ran.change("BTC")["status"] == "UNCOVERED"

    def test_l_a_cost_in_btc_is_not_usd(self, rebuild: Run) -> None:
        rows = fills("BUY 100 LTC-BTC @ .005")
        change = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY).change("LTC")

        assert (change["cost"], change["cost_currency"], change["usd"]) == ("0.5", "BTC", None)
        assert change["after"]["usd"] is None
        assert change["after"]["entry_value_usd"] is None
        assert change["after"]["cost_currency"] == "BTC"

    def test_m_the_preview_is_json_of_whole_positions(self, rebuild: Run) -> None:
        rows = fills(*[f"BUY 1 A{n}-USD @ 100" for n in range(40)])
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)
        preview = ran.json["state_preview"]

        assert len(preview["positions"]) + preview["truncated"] == 40
        assert preview["truncated"] > 0

    def test_p_every_digit_survives(self, rebuild: Run, state_file: Path, kill_switch: Any) -> None:
        kill_switch.engage("test", "me")
        rows = fills("BUY 123456789.123456789 SHIB-USD @ 0.00000123456789012345")
        ran = rebuild(*WINDOW, "--yes", fills=rows, state=EMPTY)

        assert ran.code == 0, ran.err
        assert b'"quantity": 123456789.123456789,' in state_file.read_bytes()
        assert b'"entry_price": 0.00000123456789012345,' in state_file.read_bytes()

    @pytest.mark.parametrize("kind", ["REVERSAL", "CORRECTION", "SYNTHETIC"])
    def test_q_an_adjusted_row_is_not_silently_counted(self, rebuild: Run, kind: str) -> None:
        rows = fills("BUY 1 BTC-USD @ 100", f"{kind} BUY 1 BTC-USD @ 100")
        ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)

        assert ran.change("BTC")["status"] == "AMBIGUOUS"


def test_futures_are_refused_by_name(rebuild: Run) -> None:
    rows = fills("BUY 1 BTC-USD @ 100", "BUY 1 BIT-24APR26-CDE @ 100")
    ran = rebuild(*WINDOW, "--dry-run", fills=rows, state=EMPTY)

    assert ran.json["fills"]["skipped"] == {"futures": 1}
    assert any("BIT-24APR26-CDE" in w["message"] for w in ran.json["warnings"])


def test_foreign_fields_of_a_position_are_kept(rebuild: Run) -> None:
    state = holding("BTC-USD", 1, 100, stop_loss=95.50, notes={"strategy": ["a", 1]})
    rows = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
    after = rebuild(*WINDOW, "--dry-run", fills=rows, state=state).change("BTC")["after"]

    assert after["stop_loss"] == 95.5
    assert after["notes"] == {"strategy": ["a", 1]}
    assert after["entry_price"] == 150


def test_a_position_the_balance_says_is_gone_is_removed(rebuild: Run) -> None:
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        fills=fills("SELL 1 BTC-USD @ 100"),
        balances={"BTC": "0"},
        state=holding("BTC-USD", 1, 90),
    )

    assert ran.json["positions_removed"] == 1
    assert ran.change("BTC")["realised"] is None
    assert ran.json["state_preview"]["positions"] == {}


def test_an_asset_that_no_balance_was_recorded_for_is_not_taken_for_gone(rebuild: Run) -> None:
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        fills=fills("BUY 1 ETH-USD @ 100"),
        balances={"ETH": "1"},
        state=holding("BTC-USD", 1, 90),
    )

    assert ran.change("BTC")["status"] == "UNCOVERED"
    assert ran.change("BTC")["action"] == "keep"


def test_two_keys_of_one_asset_are_reported_and_not_merged(rebuild: Run) -> None:
    state = {"positions": {"ETH": {"quantity": 1}, "ETH-USD": {"quantity": 1}}}
    ran = rebuild(*WINDOW, "--dry-run", fills=fills("BUY 2 ETH-USD @ 100"), state=state)

    assert ran.change("ETH")["status"] == "AMBIGUOUS"
    assert ran.json["state_preview"]["positions"] == state["positions"]
    assert any(w["code"] == "two_keys" for w in ran.json["warnings"])


def test_skip_unproven_writes_the_proven_ones(
    rebuild: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    state = holding("BTC-USD", 10, 90)
    rows = fills("SELL 1 BTC-USD @ 100", "BUY 1 ETH-USD @ 100")
    ran = rebuild(*WINDOW, "--yes", "--skip-unproven", fills=rows, state=state)
    positions = json.loads(state_file.read_text())["positions"]

    assert ran.code == 0, ran.err
    assert positions["BTC-USD"] == state["positions"]["BTC-USD"]
    assert positions["ETH-USD"]["quantity"] == 1


def test_exit_code_tells_a_dry_run_that_found_differences(rebuild: Run) -> None:
    rows = fills("BUY 1 BTC-USD @ 100")

    assert rebuild(*WINDOW, "--dry-run", "--exit-code", fills=rows, state=EMPTY).code == 3
    assert rebuild(*WINDOW, "--dry-run", "--exit-code", fills=[], state=EMPTY).code == 0


def test_audit_out_and_save_fills_can_be_read_again(
    rebuild: Run, tmp_path: Path, state_file: Path
) -> None:
    trail, saved = tmp_path / "trail.jsonl", tmp_path / "saved.json"
    rows = fills("BUY 1 BTC-USD @ 100", "SELL .4 BTC-USD @ 110")
    keep = ("--audit-out", trail, "--save-fills", saved)
    first = rebuild(*WINDOW, "--dry-run", *keep, fills=rows, balances={"BTC": "1"}, state=EMPTY)
    again = rebuild(*WINDOW, "--dry-run", "--fills", saved)

    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    assert [line["running"] for line in lines] == ["1.4", "1"]
    assert first.change("BTC")["status"] == "PARTIAL"
    assert again.json["fills"]["count"] == 2


def test_assets_that_are_flat_and_not_recorded_share_one_line(rebuild: Run) -> None:
    rows = fills(
        "BUY 1 ETH-USD @ 1", "SELL 1 ETH-USD @ 2", "BUY 1 SOL-USD @ 1", "SELL 1 SOL-USD @ 1"
    )
    ran = rebuild("--dry-run", *WINDOW, fills=rows, balances={"ETH": "0", "SOL": "0"}, state={})

    assert "Traded, not held and not in the state: ETH, SOL" in ran.err
    assert "EXACT" not in ran.err
