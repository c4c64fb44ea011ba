"""The worked examples of the design, each by hand, against the rules that explain a balance."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from statestore.amounts import text
from statestore.fills.coverage import Finding, Question, Recorded, explain
from statestore.fills.movements import movements_of
from statestore.fills.normalise import normalise
from statestore.model import Batch, Method, Row, Status
from statestore.simulated import fills
from statestore.times import parse_instant

START = "2025-11-18T04:00:00Z"
SINCE = parse_instant(START)
MINUTE = timedelta(minutes=1)


def ask(
    *texts: str,
    balance: str | None,
    asset: str = "BTC",
    method: Method = Method.AVERAGE,
    recorded: Recorded | None = None,
    exhausted: bool = True,
    every: timedelta = MINUTE,
    assumed: str | None = None,
    strict: bool = False,
    dust: str = "0",
) -> Finding | None:
    rows = tuple(Row(row, f"row {n}") for n, row in enumerate(fills(*texts, every=every)))
    read = normalise([Batch(rows, 1)])
    assert not read.rejected
    return explain(
        Question(
            asset=asset,
            movements=movements_of(asset, read.fills),
            balance=None if balance is None else Decimal(balance),
            increment=Decimal("1E-8"),
            since=SINCE,
            exhausted=exhausted,
            method=method,
            dust=Decimal(dust),
            recorded=recorded,
            assumed_entry=None if assumed is None else Decimal(assumed),
            strict=strict,
        )
    )


def found(*texts: str, **kwargs: object) -> Finding:
    finding = ask(*texts, **kwargs)  # type: ignore[arg-type]
    assert finding is not None
    return finding


def recorded(units: str, price: str | None, as_of: str | None = None) -> Recorded:
    cost = None if price is None else Decimal(units) * Decimal(price)
    return Recorded(
        Decimal(units), cost, "USD", as_of=None if as_of is None else parse_instant(as_of)
    )


E1 = ("BUY .010 BTC-USD @ 60000 fee 3.60", "BUY .020 BTC-USD @ 63000 fee 7.56")
E2 = (*E1, "SELL .012 BTC-USD @ 65000 fee 4.68")


def test_e1_two_buys_average() -> None:
    finding = found(*E1, balance=".030")

    assert finding.status is Status.EXACT
    assert text(finding.units) == "0.03"
    assert text(finding.position.entry_price) == "62000"
    assert text(finding.position.cost) == "1860"
    assert {c: text(fee) for c, fee in finding.position.fees.items()} == {"USD": "11.16"}
    assert text(finding.position.break_even) == "62372"


def test_e2_a_partial_sell_keeps_the_entry() -> None:
    position = found(*E2, balance=".018").position

    assert text(position.units) == "0.018"
    assert text(position.entry_price) == "62000"
    assert text(position.cost) == "1116"
    assert text(position.fee_value) == "6.696"
    assert text(position.realised) == "36"
    assert text(position.realised_net) == "26.856"


@pytest.mark.parametrize(
    ("method", "entry", "realised"),
    [(Method.FIFO, "63000", "54"), (Method.LIFO, "61333.33333333333333333333333", "24")],
)
def test_e2_by_lots(method: Method, entry: str, realised: str) -> None:
    position = found(*E2, balance=".018", method=method).position

    assert text(position.entry_price) == entry
    assert text(position.realised) == realised


def test_e3_a_round_trip_does_not_leak_into_the_next_position() -> None:
    finding = found(
        "BUY 1 BTC-USD @ 100", "SELL 1 BTC-USD @ 110", "BUY 1 BTC-USD @ 200", balance="1"
    )

    assert finding.status is Status.EXACT
    assert text(finding.position.entry_price) == "200"
    assert text(finding.position.realised) == "10"
    assert finding.position.opened_at == SINCE + 120_000_000_000


def test_e4_a_size_in_quote_is_not_base_units() -> None:
    finding = found("BUY 2.6399716828 ETH-USD @ 2975.32 quote", asset="ETH", balance=".00088729")

    assert finding.status is Status.EXACT
    assert text(finding.position.units) == "0.00088729"
    assert text(finding.position.cost) == "2.6399716828"
    assert text(finding.position.entry_price) == "2975.32"


E5 = (
    "BUY .5 BTC-USD @ 60000 trade t1 id e1",
    "REVERSAL BUY .5 BTC-USD @ 60000 trade t1 id e2",
    "CORRECTION BUY .5 BTC-USD @ 60010 trade t1 id e3",
)


@pytest.mark.parametrize("repeated", [(), (E5[1].removesuffix(" id e2") + " id e2",)])
@pytest.mark.parametrize(
    ("balance", "status", "entry"),
    [
        (".5", Status.EXACT, "60010"),
        ("1.5", Status.EXACT, "60003.33333333333333333333333"),
        ("1", Status.AMBIGUOUS, None),
        (".7", Status.AMBIGUOUS, None),
        ("0.1", Status.AMBIGUOUS, None),
        ("2", Status.AMBIGUOUS, None),
    ],
)
def test_e5_the_balance_tells_the_sign_of_a_reversal(
    balance: str, status: Status, entry: str | None, repeated: tuple[str, ...]
) -> None:
    rows = fills(*E5)
    rows += [dict(rows[1])] if repeated else []
    read = normalise([Batch(tuple(Row(row, "") for row in rows), 1)])
    finding = explain(
        Question(
            "BTC", movements_of("BTC", read.fills), Decimal(balance), Decimal("1E-8"), SINCE, True
        )
    )

    assert read.duplicates == len(repeated)
    assert finding is not None
    assert finding.status is status
    assert text(finding.units) == text(Decimal(balance))
    if entry is not None:
        assert text(finding.position.entry_price) == entry


def test_e6_a_fee_in_base_reduces_the_units() -> None:
    position = found("BUY 1 BTC-USD @ 60000 fee .001 BTC", balance=".999").position

    assert text(position.units) == "0.999"
    assert text(position.entry_price) == "60000"
    assert text(position.break_even) == "60060.06006006006006006006006"
    assert position.fees == {"BTC": Decimal(".001")}


def test_e7_a_sell_of_units_from_before_the_window_ends_the_former_lifecycle() -> None:
    finding = found("SELL .3 BTC-USD @ 61000", "BUY .5 BTC-USD @ 62000", balance=".5")

    assert finding.status is Status.EXACT
    assert text(finding.position.units) == "0.5"
    assert text(finding.position.entry_price) == "62000"
    assert finding.position.realised is None, "what the sold units had cost is unknown, not zero"


@pytest.mark.parametrize("as_of", [None, "2025-11-18T04:00:00Z", "2025-11-18T04:30:00Z"])
def test_e8_the_recorded_entry_carries_on(as_of: str | None) -> None:
    finding = found(
        "SELL .4 BTC-USD @ 60000", balance=".6", recorded=recorded("1.0", "50000", as_of)
    )

    assert finding.status is Status.CARRIED
    assert text(finding.units) == "0.6"
    assert text(finding.position.entry_price) == "50000"
    assert text(finding.position.cost) == "30000"
    assert text(finding.position.realised) == "4000"
    assert finding.conflict is None


def test_e8_a_record_from_before_the_window_asks_for_a_longer_one() -> None:
    before = recorded("1.0", "50000", "2025-11-17T00:00:00Z")

    assert ask("SELL .4 BTC-USD @ 60000", balance=".6", recorded=before, exhausted=False) is None


def test_e9_units_without_a_cost_leave_the_entry_unknown() -> None:
    finding = found("BUY .2 BTC-USD @ 61000", balance=".6")

    assert finding.status is Status.PARTIAL
    assert text(finding.units) == "0.6"
    assert text(finding.position.unknown_units) == "0.4"
    assert text(finding.position.cost) == "12200"
    assert finding.position.entry_price is None


def test_e9_a_sell_takes_known_and_unknown_units_alike() -> None:
    finding = found("BUY .2 BTC-USD @ 61000", "SELL .3 BTC-USD @ 63000", balance=".3")

    assert finding.status is Status.PARTIAL
    assert text(finding.units) == "0.3"
    assert text(finding.position.unknown_units) == "0.2"
    assert text(finding.position.cost) == "6100"
    assert finding.position.realised is None


def test_e9_is_not_answered_before_the_history_is_exhausted() -> None:
    assert ask("BUY .2 BTC-USD @ 61000", balance=".6", exhausted=False) is None


def test_e10_an_older_fill_explains_it() -> None:
    finding = found("BUY .4 BTC-USD @ 58000", "BUY .2 BTC-USD @ 61000", balance=".6")

    assert finding.status is Status.EXACT
    assert text(finding.position.entry_price) == "59000"
    assert text(finding.position.cost) == "35400"


def test_e11_units_that_left_without_a_fill_are_never_held() -> None:
    finding = found("BUY .5 BTC-USD @ 60000", balance=".2")

    assert finding.status is Status.UNEXPLAINED_OUTFLOW
    assert text(finding.units) == "0.2"
    assert text(finding.position.units) == "0.2"
    assert text(finding.position.entry_price) == "60000"
    assert text(finding.position.cost) == "12000"
    assert "0.3 BTC left without a fill" in finding.reason


def test_e12_a_tie_that_leads_to_different_entries_is_ambiguous() -> None:
    finding = found(
        "BUY 1 BTC-USD @ 100",
        "SELL 1 BTC-USD @ 110",
        "BUY 1 BTC-USD @ 120",
        balance="1",
        every=timedelta(0),
    )

    assert finding.status is Status.AMBIGUOUS
    assert text(finding.units) == "1"


def test_a_tie_that_leads_to_one_entry_is_none() -> None:
    finding = found("SELL 1 BTC-USD @ 110", "BUY 1 BTC-USD @ 100", balance="0", every=timedelta(0))

    assert finding.status is Status.EXACT
    assert text(finding.position.realised) == "10"


def test_e13_usd_and_usdc_fills_move_one_asset() -> None:
    finding = found("BUY .5 BTC-USD @ 60000", "SELL .2 BTC-USDC @ 61000", balance=".3")

    assert finding.status is Status.EXACT
    assert text(finding.position.units) == "0.3"
    assert text(finding.position.entry_price) == "60000"
    assert text(finding.position.cost) == "18000"
    assert text(finding.position.realised) == "200"
    assert finding.position.currency == "USD"


@pytest.mark.parametrize("as_of", [None, START])
def test_e14_a_record_the_fills_cannot_explain_is_a_warning(as_of: str | None) -> None:
    texts = ("BUY .5 BTC-USD @ 62000 at 2025-11-18T05:00:00Z",)
    state = recorded(".3", "50000", as_of)
    finding = found(*texts, balance=".5", recorded=state)

    assert finding.status is Status.EXACT
    assert text(finding.position.entry_price) == "62000"
    assert finding.conflict is not None
    assert text(finding.conflict.recorded) == "0.3"
    assert text(finding.conflict.implied) == "0"
    assert found(*texts, balance=".5", recorded=state, strict=True).status is Status.AMBIGUOUS


def test_a_cross_pair_moves_both_assets_and_keeps_its_currency() -> None:
    texts = ("BUY 1 BTC-USD @ 60000", "BUY 10 ETH-BTC @ .05 fee .001")
    eth = found(*texts, asset="ETH", balance="10")
    btc = found(*texts, asset="BTC", balance=".499")

    assert (text(eth.position.cost), eth.position.currency) == ("0.5", "BTC")
    assert text(eth.position.entry_price) == "0.05"
    assert btc.status is Status.EXACT
    assert text(btc.position.units) == "0.499"
    assert text(btc.position.entry_price) == "60000"
    assert btc.position.realised is None, "BTC paid for ETH has no price in USD"


def test_the_operator_may_give_the_missing_cost() -> None:
    finding = found("BUY .2 BTC-USD @ 61000", balance=".6", assumed="50000")

    assert finding.status is Status.ASSUMED
    assert text(finding.position.cost) == "32200"
    assert finding.position.unknown_units == 0


def test_a_residue_of_dust_ends_a_lifecycle() -> None:
    finding = found(
        "SELL 1 BTC-USD @ 60000", "BUY .5 BTC-USD @ 62000", balance=".500001", dust=".00002"
    )

    assert finding.status is Status.EXACT
    assert text(finding.units) == "0.500001"
    assert text(finding.position.entry_price) == "62000"


def test_an_older_unrecorded_deposit_does_not_touch_the_present_lifecycle() -> None:
    finding = found(
        "BUY 1 BTC-USD @ 100", "SELL 3 BTC-USD @ 110", "BUY 1 BTC-USD @ 200", balance="1"
    )

    assert finding.status is Status.EXACT
    assert text(finding.position.entry_price) == "200"


def test_costs_in_two_currencies_are_never_added() -> None:
    finding = found("BUY 1 BTC-USD @ 60000", "BUY 1 BTC-EUR @ 55000", balance="2")

    assert finding.status is Status.PARTIAL
    assert "EUR and USD" in finding.reason
    assert text(finding.units) == "2"
    assert finding.position.entry_price is None
    assert finding.position.cost is None


class TestOffline:
    def test_a_sell_of_what_the_window_never_bought_is_uncovered(self) -> None:
        finding = found("SELL 1 BTC-USD @ 100", balance=None, recorded=recorded("10", "90"))

        assert finding.status is Status.UNCOVERED
        assert finding.position.uncovered == 1

    def test_a_record_the_window_never_adds_up_to_is_uncovered(self) -> None:
        finding = found("BUY 1 BTC-USD @ 100", balance=None, recorded=recorded("10", "90"))

        assert finding.status is Status.UNCOVERED

    def test_a_record_that_is_a_running_total_is_covered(self) -> None:
        texts = ("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
        finding = found(*texts, balance=None, recorded=recorded("1", "100"))

        assert finding.status is Status.EXACT
        assert text(finding.units) == "2"

    def test_a_position_opened_inside_the_window_is_covered(self) -> None:
        state = Recorded(Decimal(5), None, "USD", opened_at=SINCE + 1)
        finding = found("BUY 1 BTC-USD @ 100", balance=None, recorded=state)

        assert finding.status is Status.EXACT

    def test_a_reversal_is_never_counted_silently(self) -> None:
        assert found(*E5, balance=None).status is Status.AMBIGUOUS
