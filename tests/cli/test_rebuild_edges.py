"""Cases in which an earlier version wrote something wrong, or said nothing where it should have."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.simulated import SimulatedExchange
from statestore.testing import fill, fills
from tests.cli.conftest import Run
from tests.cli.test_rebuild_offline import EMPTY, START, WINDOW, holding

NOON = "2025-11-18T12:00:00Z"


def account(currency: str, value: str, **more: object) -> dict[str, object]:
    return {"currency": currency, "available_balance": {"value": value}, **more}


@pytest.fixture
def wallet(tmp_path: Path) -> Any:
    """Balances as the accounts payload: what it does not list is not owned."""

    def wallet(**amounts: str) -> tuple[object, ...]:
        path = tmp_path / "accounts.json"
        accounts = [account(currency, amount) for currency, amount in amounts.items()]
        path.write_text(json.dumps({"accounts": accounts, "has_next": False}))
        return "--balances", path

    return wallet


# A held position is never removed


@pytest.mark.parametrize("key", ["BTCUSD", "BTCUSDT", "XBT-USD", "pos_a"])
def test_a_key_that_is_no_asset_of_the_exchange_is_not_taken_for_gone(
    rebuild: Run, wallet: Any, key: str
) -> None:
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="1"), fills=[], state=holding(key, 1, 50000))

    assert ran.json["positions_removed"] == 0
    assert ran.json["positions_unproven"] == 1
    assert key in ran.json["state_preview"]["positions"]


@pytest.mark.parametrize("key", ["BTC-PERP", "BTC/USDT:USDT", "BIT-24APR26-CDE", "pos_1"])
def test_a_key_that_names_no_spot_product_is_left_alone_and_said(
    rebuild: Run, wallet: Any, key: str
) -> None:
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="1"), fills=[], state=holding(key, 1, 50000))

    assert ran.json["changes"] == []
    assert [w["code"] for w in ran.json["warnings"]] == ["not_spot"]


@pytest.mark.parametrize("key", ["btc-usd", "BTC/USD", "btc", "BTC_USD"])
def test_other_spellings_of_a_pair_keep_their_key(rebuild: Run, wallet: Any, key: str) -> None:
    rows = fills("BUY 2 BTC-USD @ 100")
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="2"), fills=rows, state=holding(key, 1, 50))

    assert list(ran.json["state_preview"]["positions"]) == [key]
    assert ran.change("BTC")["after"]["quantity"] == 2


def test_a_recorded_short_is_not_removed_by_a_spot_balance(rebuild: Run, wallet: Any) -> None:
    state = holding("BTC-USD", 1, 50000)
    state["positions"]["BTC-USD"]["side"] = "SHORT"
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="0"), fills=[], state=state)

    assert ran.change("BTC")["status"] == "AMBIGUOUS"
    assert ran.change("BTC")["action"] == "keep"


@pytest.mark.parametrize("kind", ["", "REVERSAL "])
def test_what_was_traded_after_until_is_for_previews(
    rebuild: Run, wallet: Any, kind: str, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    rows = fills(f"{kind}BUY 1 BTC-USD @ 60000 at 2025-11-21T05:00:00Z")
    state = holding("BTC-USD", 1, 60000)
    ran = rebuild(*WINDOW, "--yes", *wallet(BTC="1"), fills=rows, state=state)

    assert ran.code == 3
    assert "after --until" in ran.error


def test_a_balance_worth_money_is_not_zero_however_many_sizes_were_in_quote(
    rebuild: Run, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    fake_exchange.set_product("LINK-USD", price="15", base_increment="0.01")
    fake_exchange.add_fills(
        *["BUY 15 LINK-USD @ 15 quote"] * 60, *["SELL .99 LINK-USD @ 15"] * 60, start=START
    )
    fake_exchange.set_balance("LINK", "0.6")
    ran = rebuild("--since", START, "--dry-run", state=holding("LINK-USD", 0.6, 15))

    assert ran.change("LINK")["action"] != "remove"
    assert ran.change("LINK")["quantity"] == "0.6"


def test_dust_by_an_old_price_removes_nothing(rebuild: Run, wallet: Any) -> None:
    rows = fills("BUY 1000 FOO-USD @ .0005", "SELL 100 FOO-USD @ .0005")
    state = holding("FOO-USD", 1000, 0.0005)
    ran = rebuild(*WINDOW, "--dry-run", *wallet(FOO="900"), fills=rows, state=state)

    assert ran.change("FOO")["status"] == "DUST"
    assert ran.change("FOO")["action"] == "keep"


# Nothing is called exact, or carried on, that another reading contradicts


REVERSED = (
    "BUY .5 BTC-USD @ 50000 at 2025-11-10T00:00:00Z",
    "BUY .5 BTC-USD @ 60000 at 2025-11-11T00:00:00Z trade t1 id e1",
    f"REVERSAL BUY .5 BTC-USD @ 60000 at {NOON} trade t1 id e2",
)


def test_a_reversal_of_an_older_fill_is_not_decided_by_the_window_alone(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills(*REVERSED)
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".5"), fills=rows, state=EMPTY)

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["entry_price"] == "50000"


def test_a_record_older_than_the_search_is_not_carried_on(rebuild: Run, wallet: Any) -> None:
    rows = fills(
        "SELL 1 BTC-USD @ 1 at 2025-11-14T00:00:00Z",
        "BUY 1 BTC-USD @ 60000 at 2025-11-15T00:00:00Z",
        f"SELL .4 BTC-USD @ 61000 at {NOON}",
    )
    state = holding("BTC-USD", 1, 50000, last_updated="2025-11-12T00:00:00Z")
    cut = rebuild(
        *WINDOW, "--max-hours", "48", "--dry-run", *wallet(BTC=".6"), fills=rows, state=state
    )
    whole = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".6"), fills=rows)

    assert cut.change("BTC")["status"] == "PARTIAL"
    assert whole.change("BTC")["status"] == "EXACT"
    assert whole.change("BTC")["entry_price"] == "60000"


def test_an_entry_that_can_be_carried_on_from_two_points_is_ambiguous(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills("SELL .5 BTC-USD @ 1", "BUY .5 BTC-USD @ 60000")
    state = holding("BTC-USD", 1, 50000, last_updated=NOON)
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="1"), fills=rows, state=state)

    assert ran.change("BTC")["status"] == "AMBIGUOUS"


def test_lots_are_not_merged_by_a_record_while_the_fills_are_at_hand(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills(
        "BUY .010 BTC-USD @ 60000 at 2025-11-10T00:00:00Z",
        "BUY .020 BTC-USD @ 63000 at 2025-11-11T00:00:00Z",
        f"SELL .012 BTC-USD @ 65000 at {NOON}",
    )
    state = holding("BTC-USD", 0.03, 62000, last_updated="2025-11-18T05:00:00Z")
    ran = rebuild(
        *WINDOW, "--method", "fifo", "--dry-run", *wallet(BTC=".018"), fills=rows, state=state
    )

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["entry_price"] == "63000"


def test_a_residue_of_one_increment_does_not_lead_back_to_the_former_lifecycle(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills("BUY 1 BTC-USD @ 100", "SELL .99999998 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="1.00000001"), fills=rows, state=EMPTY)

    assert ran.change("BTC")["entry_price"] == "200"
    assert ran.change("BTC")["opened_at"] == rows[2]["trade_time"]


def test_a_tie_in_a_closed_lifecycle_says_nothing_about_the_present_one(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills(
        *[f"BUY 1 BTC-USD @ {price} at {START}" for price in (1, 2, 3, 4)],
        *[f"SELL 1 BTC-USD @ {price} at {START}" for price in (5, 6, 7, 8)],
        f"BUY 1 BTC-USD @ 200 at {NOON}",
    )
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC="1"), fills=rows, state=EMPTY)

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["entry_price"] == "200"


def test_a_record_opened_before_the_window_refutes_a_replay_from_zero(rebuild: Run) -> None:
    state = holding("BTC-USD", 1, 50000, entry_time="2025-10-01T00:00:00Z")
    ran = rebuild(*WINDOW, "--dry-run", fills=fills("BUY 1 BTC-USD @ 60000"), state=state)

    assert ran.change("BTC")["status"] == "UNCOVERED"


def test_units_bought_before_a_first_in_first_out_sell_leave_a_known_cost(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills("BUY 1 BTC-USD @ 200", "SELL 2 BTC-USD @ 300", "BUY 1 BTC-USD @ 400")
    arguments = (*WINDOW, "--dry-run", *wallet(BTC="2"))
    lots = rebuild(*arguments, "--method", "fifo", fills=rows, state=EMPTY)
    average = rebuild(*arguments, fills=rows)

    assert lots.change("BTC")["status"] == "EXACT"
    assert lots.change("BTC")["entry_price"] == "300"
    assert average.change("BTC")["status"] == "PARTIAL"


@pytest.mark.parametrize("unit", ["EUR", "ETH"])
def test_a_statement_in_units_that_are_not_the_products_is_refused(
    rebuild: Run, tmp_path: Path, unit: str
) -> None:
    path = tmp_path / "fills.csv"
    header = "portfolio,trade id,product,side,created at,size,size unit,price,fee,total,"
    path.write_text(
        f"{header}price/fee/total unit\ndefault,1,BTC-USD,BUY,{START},100,{unit},100,0,-100,USD\n"
    )
    ran = rebuild(*WINDOW, "--dry-run", "--fills", path, state=EMPTY)

    assert ran.code == 5
    assert f"line 2: size unit is '{unit}'" in ran.error


def test_a_statement_of_two_portfolios_is_refused(rebuild: Run, tmp_path: Path) -> None:
    path = tmp_path / "fills.csv"
    header = "portfolio,trade id,product,side,created at,size,size unit,price,fee,total,"
    lines = [f"{name},1,BTC-USD,BUY,{START},1,BTC,100,0,-100,USD" for name in ("a", "b")]
    path.write_text("\n".join([f"{header}price/fee/total unit", *lines]))

    assert "line 3" in rebuild(*WINDOW, "--dry-run", "--fills", path, state=EMPTY).error


# A second run proposes nothing


@pytest.mark.parametrize("later", [True, False], ids=["fills aged out", "same window"])
def test_sizes_in_quote_settle_after_one_run(
    rebuild: Run, wallet: Any, kill_switch: Any, later: bool
) -> None:
    kill_switch.engage("test", "me")
    rows = fills("BUY 1000 BTC-USD @ 61111.37 quote", "BUY .1 BTC-USD @ 60000")
    arguments = ("--yes", *wallet(BTC="0.11636356"))
    first = rebuild(*WINDOW, *arguments, fills=rows, state=EMPTY)
    second = rebuild(
        *(("--hours", "24", "--max-hours", "24") if later else WINDOW),
        *arguments,
        fills=[] if later else rows,
    )

    assert first.json["positions_updated"] == 1, first.err
    assert second.change("BTC")["status"] == ("CARRIED" if later else "EXACT")
    assert second.json["positions_updated"] == 0


def test_a_carried_entry_keeps_a_time_in_the_bots_own_format(rebuild: Run, wallet: Any) -> None:
    state = holding("BTC-USD", 1, 50000, entry_time="2025-11-10T05:00:00.123")
    rows = fills("SELL .4 BTC-USD @ 60000")
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".6"), fills=rows, state=state)

    assert ran.change("BTC")["status"] == "CARRIED"
    assert ran.change("BTC")["after"]["entry_time"] == "2025-11-10T05:00:00.123"


# What is asked for by name


@pytest.mark.parametrize("option", ["--save-fills", "--audit-out"])
@pytest.mark.parametrize("name", [".state.json", ".state.json.bak", "KILL_SWITCH"])
def test_a_file_that_matters_is_not_overwritten(
    rebuild: Run, state_file: Path, option: str, name: str
) -> None:
    target = state_file.with_name(name)
    ran = rebuild(*WINDOW, "--dry-run", option, target, fills=[], state=EMPTY)

    assert ran.code == 2
    assert json.loads(state_file.read_text()) == EMPTY


@pytest.mark.parametrize(
    "arguments",
    [
        ("--reserve", "BCT=.3"),
        ("--adopt", "ZZZ"),
        ("--assume-entry", "QQQ=3"),
        ("--product", "BTX-USD"),
    ],
)
def test_a_name_nobody_knows_is_a_mistake(
    rebuild: Run, wallet: Any, arguments: tuple[str, ...]
) -> None:
    rows = fills("BUY .5 BTC-USD @ 60000")
    ran = rebuild(*WINDOW, "--dry-run", *arguments, *wallet(BTC=".8"), fills=rows, state=EMPTY)

    assert ran.code == 2
    assert arguments[0] in ran.error


@pytest.mark.parametrize("product", ["BTC-USD", "btc-usd", "BTC/USD", "BTC", "BTC-USDC"])
def test_a_product_limits_the_rebuild_to_its_asset(rebuild: Run, product: str) -> None:
    rows = fills("BUY 1 BTC-USD @ 100", "BUY 1 ETH-USD @ 100")
    ran = rebuild(*WINDOW, "--dry-run", "--product", product, fills=rows, state=EMPTY)

    assert [change["asset"] for change in ran.json["changes"]] == ["BTC"]


def test_a_reserve_larger_than_the_wallet_is_a_mistake(rebuild: Run) -> None:
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        "--reserve",
        "BTC=2",
        fills=fills("BUY 1 BTC-USD @ 100"),
        balances={"BTC": "1"},
        state=EMPTY,
    )

    assert ran.code == 2
    assert "more than the wallet holds (1)" in ran.error


def test_lower_case_balances_are_balances(rebuild: Run) -> None:
    rows = fills("BUY .5 BTC-USD @ 60000")
    ran = rebuild(*WINDOW, "--dry-run", fills=rows, balances={"btc": ".2"}, state=EMPTY)

    assert ran.change("BTC")["status"] == "UNEXPLAINED_OUTFLOW"


def test_a_negative_balance_is_refused(rebuild: Run) -> None:
    ran = rebuild(*WINDOW, "--dry-run", fills=[], balances={"BTC": "-1"}, state=EMPTY)

    assert ran.code == 5
    assert "negative" in ran.error


def test_an_assumed_entry_is_in_the_currency_of_the_fills(rebuild: Run, wallet: Any) -> None:
    rows = fills("BUY .2 BTC-EUR @ 55000")
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        "--assume-entry",
        "BTC=50000",
        *wallet(BTC=".6"),
        fills=rows,
        state=EMPTY,
    )

    assert ran.change("BTC")["status"] == "ASSUMED"
    assert ran.change("BTC")["cost_currency"] == "EUR"
    assert ran.change("BTC")["cost"] == "31000"


# What people are told


def test_a_rejected_row_is_told_in_a_dry_run_too(rebuild: Run) -> None:
    ran = rebuild(
        *WINDOW, "--dry-run", "--exit-code", fills=[fill("BUY 1 BTC-USD @ 1", side="")], state=EMPTY
    )

    assert ran.code == 3
    assert "stops any write" in ran.err


def test_the_trail_ends_at_what_is_held(rebuild: Run, wallet: Any, tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    rows = fills(
        "BUY 1 BTC-USD @ 1 at 2025-11-01T00:00:00Z",
        "SELL 1 BTC-USD @ 1 at 2025-11-02T00:00:00Z",
        "BUY .6 BTC-USD @ 1",
        "BUY 2 ETH-USD @ 1 at 2025-11-01T00:00:00Z",
        f"BUY 1 ETH-USD @ 1 at {NOON}",
        "BUY .5 SOL-USD @ 60000 trade t1 id e1",
        "REVERSAL BUY .5 SOL-USD @ 60000 trade t1 id e2",
        "CORRECTION BUY .5 SOL-USD @ 60010 trade t1 id e3",
    )
    held = {"BTC": ".6", "ETH": "3", "SOL": ".5"}
    rebuild(*WINDOW, "--dry-run", "--audit-out", trail, *wallet(**held), fills=rows, state=EMPTY)
    ends = {}
    for line in trail.read_text().splitlines():
        record = json.loads(line)
        ends[record["asset"]] = Decimal(record["running"])

    assert ends == {asset: Decimal(units) for asset, units in held.items()}


def test_saved_fills_keep_a_conflict_a_conflict(rebuild: Run, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    row = fill("BUY 1 BTC-USD @ 100")
    rows = [row, row | {"size": "2"}, row]
    rebuild(*WINDOW, "--dry-run", "--save-fills", saved, fills=rows, state=EMPTY)
    again = rebuild(*WINDOW, "--dry-run", "--fills", saved)

    assert len(json.loads(saved.read_text())["fills"]) == 2
    assert "another content" in again.json["fills"]["rejected"][0]["reason"]


def test_a_state_read_from_bak_is_said_to_be_damaged_still(
    rebuild: Run, state_store: StateStore, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    state_store.save({"positions": {}})
    state_store.save({"positions": {}, "x": 1})
    state_store.path.write_bytes(b"{")
    ran = rebuild(*WINDOW, "--yes", fills=[])

    assert ran.code == 0
    assert "still damaged" in ran.err


def test_a_missing_audit_line_is_said_with_what_was_written(
    rebuild: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    state_file.with_name("state_audit.jsonl").mkdir()
    ran = rebuild(*WINDOW, "--yes", fills=fills("BUY 1 BTC-USD @ 1"), state=EMPTY)

    assert ran.code == 8
    assert "written as revision 1" in ran.error
    assert "audit line is missing" in ran.error


def test_aliases_of_the_quantity_are_kept_in_step(rebuild: Run, wallet: Any) -> None:
    entry = {"available": 0.9, "hold": 0.1, "total": 1, "qty": 1, "side": "long", "usd_value": 9}
    rows = fills("SELL .5 BTC-USD @ 60000", "BUY .5 BTC-USD @ 62000")
    ran = rebuild(
        *WINDOW,
        "--dry-run",
        *wallet(BTC=".5"),
        fills=rows,
        state={"positions": {"BTC": entry}},
    )
    after = ran.change("BTC")["after"]

    assert after["total"] == after["qty"] == after["quantity"] == 0.5
    assert (after["available"], after["hold"]) == (0.4, 0.1)
    assert after["side"] == "long"


def test_a_price_of_zero_is_no_mark(
    rebuild: Run, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    fake_exchange.add_fills("BUY 1 FOO-EUR @ 5", start=START)
    fake_exchange.set_balance("FOO", "1")
    fake_exchange.set_product("FOO-EUR", price="0")
    fake_exchange.set_product("EUR-USD", price="1.1")
    ran = rebuild("--since", START, "--dry-run", state=EMPTY)

    assert ran.change("FOO")["usd"] is None
    assert any(w["code"] == "no_route_to_usd" for w in ran.json["warnings"])


def test_products_of_older_fills_are_asked_for(
    rebuild: Run, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    fake_exchange.add_fills("BUY 1 FOO-EUR @ 5", start=START)
    fake_exchange.set_balance("FOO", "1")
    fake_exchange.set_product("FOO-EUR", price="6")
    fake_exchange.set_product("EUR-USD", price="1.1")
    ran = rebuild("--hours", "1", "--dry-run", state={"positions": {"FOO": {"quantity": 1}}})

    assert ran.change("FOO")["status"] == "EXACT"
    assert ran.change("FOO")["usd"] == "6.6"


def test_a_currency_from_a_cross_pair_gets_a_key_that_exists(rebuild: Run, wallet: Any) -> None:
    rows = fills("BUY 10 ETH-USD @ 3000", "SELL 10 ETH-BTC @ .05")
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".5", ETH="0"), fills=rows, state=EMPTY)

    assert ran.change("BTC")["key"] == "BTC-USD"
    assert ran.change("BTC")["cost_currency"] == "ETH"
    assert ran.change("BTC")["after"]["usd"] is None


def test_accounts_that_come_twice_count_once(rebuild: Run, tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    page = {"accounts": [account("BTC", "1", uuid="u1")], "has_next": False}
    path.write_text(json.dumps([page | {"has_next": True}, page]))
    rows = fills("BUY 1 BTC-USD @ 100")
    ran = rebuild(*WINDOW, "--dry-run", "--balances", path, fills=rows, state=EMPTY)

    assert ran.change("BTC")["quantity"] == "1"


def test_a_list_of_pages_is_read(rebuild: Run, tmp_path: Path) -> None:
    path = tmp_path / "pages.json"
    first, second = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
    pages = [{"fills": [first], "cursor": "x"}, {"fills": [second], "cursor": ""}]
    path.write_text(json.dumps(pages))
    ran = rebuild(*WINDOW, "--dry-run", "--fills", path, state=EMPTY)

    assert ran.json["fills"]["pages"] == 2
    assert ran.change("BTC")["quantity"] == "2"


def test_the_window_begins_with_since_and_ends_before_until(rebuild: Run) -> None:
    first, last = "2025-11-18T04:00:00.000000001Z", "2025-11-18T04:00:01.000000001Z"
    rows = fills(
        "BUY 1 BTC-USD @ 1 at 2025-11-18T04:00:00Z",
        f"BUY 2 BTC-USD @ 1 at {first}",
        f"BUY 4 BTC-USD @ 1 at {last}",
    )
    ran = rebuild("--since", first, "--until", last, "--dry-run", fills=rows, state=EMPTY)

    assert ran.json["fills"]["count"] == 1
    assert ran.change("BTC")["quantity"] == "2"


@pytest.mark.parametrize(
    ("last_updated", "status"),
    [(NOON, "CARRIED"), (START, "UNEXPLAINED_OUTFLOW"), (None, "UNEXPLAINED_OUTFLOW")],
)
def test_only_a_record_from_after_an_outflow_settles_it(
    rebuild: Run, wallet: Any, last_updated: str | None, status: str
) -> None:
    rows = fills("BUY .5 BTC-USD @ 60000 at 2025-11-18T05:00:00Z")
    state = holding("BTC-USD", 0.2, 61000, last_updated=last_updated)
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".2"), fills=rows, state=state)

    assert ran.change("BTC")["status"] == status


def test_what_was_realised_before_an_unexplained_outflow_is_unknown(
    rebuild: Run, wallet: Any
) -> None:
    rows = fills("BUY 1 BTC-USD @ 100", "SELL .5 BTC-USD @ 150", "BUY .5 BTC-USD @ 200")
    ran = rebuild(*WINDOW, "--dry-run", *wallet(BTC=".5"), fills=rows, state=EMPTY)

    assert ran.change("BTC")["status"] == "EXACT"
    assert ran.change("BTC")["entry_price"] == "200"
    assert ran.change("BTC")["realised"] is None


@pytest.mark.parametrize(
    ("held", "texts", "price"),
    [
        ("0.6", ["BUY .2 BTC-USD @ 61000"], None),
        ("0.2", ["BUY .5 BTC-USD @ 60000"], 60000),
        ("2", ["BUY 1 BTC-USD @ 60000", "BUY 1 BTC-EUR @ 55000"], None),
    ],
    ids=["unknown cost", "outflow", "two currencies"],
)
def test_what_is_accepted_is_written_with_an_unknown_entry_as_null(
    rebuild: Run,
    wallet: Any,
    state_file: Path,
    kill_switch: Any,
    held: str,
    texts: list[str],
    price: int | None,
) -> None:
    kill_switch.engage("test", "me")
    arguments = (*WINDOW, "--yes", *wallet(BTC=held))
    refused = rebuild(*arguments, fills=fills(*texts), state=EMPTY)
    accepted = rebuild(*arguments, "--accept-partial", fills=fills(*texts))
    again = rebuild(*arguments, "--accept-partial", fills=fills(*texts))
    entry = json.loads(state_file.read_bytes(), parse_float=Decimal)["positions"]["BTC-USD"]

    assert (refused.code, accepted.code, again.code) == (3, 0, 0)
    assert entry["quantity"] == Decimal(held)
    assert entry["entry_price"] == price
    assert again.json["positions_updated"] == 0
