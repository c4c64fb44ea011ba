"""The trail of a finding ends at its figures, whatever the finding is."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.amounts import text, written
from statestore.fills.coverage import Finding
from statestore.model import Method, Status
from statestore.repair.trail import Step, steps_of
from tests.fills.test_worked_examples import E1, E2, ask, found, recorded


def figures(step: Step) -> list[str | None]:
    return [text(value) for value in (step.units, step.cost, step.entry_price, step.realised)]


def ends_at_its_figures(finding: Finding, method: Method = Method.AVERAGE) -> bool:
    steps = steps_of(finding, method)
    if not steps:
        return True
    last, position = steps[-1], finding.position
    if not last.counts:
        # Nothing is open; or an entry is carried on from after the last fill.
        nothing = last.realised == position.realised and last.cost in (None, 0)
        return nothing if not position.units else finding.brought is not None
    if position.unknown_units and position.unknown_units == position.units:
        return last.cost is None
    told = (last.cost, last.entry_price, last.realised)
    known = (position.cost, position.entry_price, position.realised)
    return [None if v is None else written(v) for v in told] == [
        None if v is None else written(v) for v in known
    ]


def test_each_fill_has_what_was_held_and_what_it_cost() -> None:
    steps = steps_of(found(*E2, balance=".018"), Method.AVERAGE)

    assert [figures(step) for step in steps] == [
        ["0.01", "600", "60000", "0"],
        ["0.03", "1860", "62000", "0"],
        ["0.018", "1116", "62000", "36"],
    ]


def test_a_round_trip_before_counts_for_what_was_realised_only() -> None:
    texts = ("BUY 1 BTC-USD @ 100", "SELL 1 BTC-USD @ 110", "BUY 1 BTC-USD @ 200")
    steps = steps_of(found(*texts, balance="1"), Method.AVERAGE)

    assert [figures(step) for step in steps] == [
        ["1", "100", "100", "0"],
        ["0", "0", None, "10"],
        ["1", "200", "200", "10"],
    ]
    assert [step.counts for step in steps] == [False, False, True]


def test_units_of_unknown_cost_make_the_figures_unknown_until_they_are_gone() -> None:
    texts = ("SELL .3 BTC-USD @ 61000", "BUY .5 BTC-USD @ 62000")
    steps = steps_of(found(*texts, balance=".5"), Method.AVERAGE)

    assert [figures(step) for step in steps] == [
        ["0", "0", None, None],
        ["0.5", "31000", "62000", None],
    ]


def test_units_that_left_without_a_fill_show_as_less_than_zero() -> None:
    finding = found("BUY .5 BTC-USD @ 60000", "BUY .5 BTC-USD @ 62000", balance=".2")
    steps = steps_of(finding, Method.AVERAGE)

    assert [text(step.units) for step in steps] == ["-0.3", "0.2"]
    assert figures(steps[-1])[1:3] == ["12200", "61000"]
    assert ends_at_its_figures(finding)


def test_fills_nobody_can_order_have_no_figures_in_between() -> None:
    from datetime import timedelta

    texts = ("BUY 1 BTC-USD @ 100", "SELL 1 BTC-USD @ 110", "BUY 1 BTC-USD @ 120")
    steps = steps_of(found(*texts, balance="1", every=timedelta(0)), Method.AVERAGE)

    assert [step.cost is None for step in steps] == [True, True, False]


@pytest.mark.parametrize(
    ("texts", "options", "status"),
    [
        (E1, {"balance": ".030"}, Status.EXACT),
        (
            ("SELL .4 BTC-USD @ 60000",),
            {"balance": ".6", "recorded": recorded("1", "50000", "2025-11-18T03:59:00Z")},
            Status.CARRIED,
        ),
        (("BUY .2 BTC-USD @ 61000",), {"balance": ".6"}, Status.PARTIAL),
        (
            ("BUY .2 BTC-USD @ 61000", "SELL .3 BTC-USD @ 1"),
            {"balance": ".3", "assumed": "50000"},
            Status.ASSUMED,
        ),
        (("BUY .5 BTC-USD @ 60000",), {"balance": ".2"}, Status.UNEXPLAINED_OUTFLOW),
        (
            ("BUY .5 BTC-USD @ 60000 trade t1", "REVERSAL BUY .5 BTC-USD @ 60000 trade t1"),
            {"balance": ".7"},
            Status.AMBIGUOUS,
        ),
        (("BUY 1 BTC-USD @ 2", "SELL 3 BTC-USD @ 1"), {"balance": None}, Status.UNCOVERED),
        (
            ("BUY 1 BTC-USD @ 2", "SELL .999 BTC-USD @ 1"),
            {"balance": ".001", "dust": ".1"},
            Status.DUST,
        ),
    ],
)
@pytest.mark.parametrize("method", list(Method))
def test_the_last_line_has_the_figures_of_every_status(
    texts: tuple[str, ...], options: dict[str, object], status: Status, method: Method
) -> None:
    finding = found(*texts, **options, method=method)

    if (status, method) not in {(Status.PARTIAL, Method.FIFO)}:
        assert finding.status in (status, Status.PARTIAL, Status.EXACT)
    assert ends_at_its_figures(finding, method)


_sizes = st.integers(1, 4)
_trades = st.lists(
    st.tuples(st.sampled_from(["BUY", "SELL"]), _sizes, st.integers(1, 9)), min_size=1, max_size=8
)


@settings(max_examples=300, deadline=None)
@given(
    _trades,
    st.none() | st.integers(0, 6),
    st.sampled_from(list(Method)),
    st.none() | st.tuples(st.integers(1, 5), st.integers(1, 9)),
    st.none() | st.integers(1, 9),
)
def test_any_trail_ends_at_its_figures(
    trades: list[tuple[str, int, int]],
    balance: int | None,
    method: Method,
    record: tuple[int, int] | None,
    assumed: int | None,
) -> None:
    finding = ask(
        *(f"{side} {size} BTC-USD @ {price}" for side, size, price in trades),
        balance=None if balance is None else str(balance),
        method=method,
        recorded=None if record is None else recorded(str(record[0]), str(record[1])),
        assumed=None if assumed is None else str(assumed),
    )

    assert finding is not None
    assert ends_at_its_figures(finding, method)
    if finding.balance is not None:
        assert steps_of(finding, method)[-1].units == Decimal(balance or 0)
