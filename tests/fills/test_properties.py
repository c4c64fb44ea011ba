"""What holds for all fills, not just for those somebody thought of."""

from __future__ import annotations

from decimal import Decimal, localcontext

from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.amounts import written
from statestore.fills.coverage import Question, explain
from statestore.fills.movements import Movement, movements_of
from statestore.fills.replay import replay
from statestore.model import Fill, Method, Side, Status

EPS = Decimal("1E-8")
amounts = st.decimals("0.0001", "1000", places=4)
prices = st.decimals("0.01", "100000", places=2)
fees = st.decimals("0", "5", places=3)


def fill(number: int, side: Side, units: Decimal, price: Decimal, fee: Decimal) -> Fill:
    return Fill(
        entry_id=f"e{number}",
        trade_id=f"t{number}",
        order_id="",
        product_id="BTC-USD",
        base="BTC",
        quote="USD",
        side=side,
        units=units,
        price=price,
        notional=units * price,
        commission=fee,
        commission_currency="USD",
        time=number,
        sequence=None,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Movement]:
    """Spot fills that never sell more than is held, some of them selling everything."""
    held, fills = Decimal(0), []
    for number in range(draw(st.integers(1, 25))):
        side = draw(st.sampled_from(Side)) if held else Side.BUY
        units = draw(amounts)
        if side is Side.SELL:
            units = held if draw(st.booleans()) else min(units, held)
        held += units if side is Side.BUY else -units
        fills.append(fill(number, side, units, draw(prices), draw(fees)))
    return movements_of("BTC", fills)


def total(movements: list[Movement]) -> Decimal:
    return sum((movement.units for movement in movements), Decimal(0))


@given(histories(), st.sampled_from(Method))
def test_units_are_buys_minus_sells(history: list[Movement], method: Method) -> None:
    position = replay(history, method)

    assert position.units == total(history)
    assert sum(lot.units for lot in position.lots) == position.units
    assert position.uncovered == 0


@given(histories(), st.sampled_from(Method))
def test_money_is_conserved(history: list[Movement], method: Method) -> None:
    """What was spent is either still in the open units or was realised; fees likewise."""
    position = replay(history, method)

    with localcontext(prec=120):
        assert position.cost is not None
        assert position.realised is not None
        assert position.realised_net is not None
        spent = sum((movement.notional for movement in history), Decimal(0))
        charged = sum((movement.fee_value or Decimal(0) for movement in history), Decimal(0))
        assert written(position.cost - position.realised) == written(spent)
        assert position.fee_value is not None
        paid = position.realised - position.realised_net + position.fee_value
        assert written(paid) == written(charged)


@given(histories())
def test_methods_agree_on_what_is_held_and_on_the_total_result(history: list[Movement]) -> None:
    """Marked at any one price, realised plus unrealised does not depend on the method."""
    results = set()
    for method in Method:
        position = replay(history, method)
        assert position.realised is not None
        assert position.cost is not None
        with localcontext(prec=120):
            results.add(written(position.realised + position.units * 7 - position.cost))

    assert len(results) == 1


@given(histories(), st.sampled_from(Method))
def test_an_entry_lies_between_the_prices_that_were_paid(
    history: list[Movement], method: Method
) -> None:
    position = replay(history, method)
    paid = [movement.price for movement in history if movement.units > 0]

    if position.entry_price is not None:
        assert min(paid) - EPS <= position.entry_price <= max(paid) + EPS


@given(histories(), st.sampled_from(Method))
def test_a_whole_history_is_exact(history: list[Movement], method: Method) -> None:
    question = Question("BTC", history, total(history), EPS, 0, exhausted=False, method=method)
    finding = explain(question)

    assert finding is not None
    assert finding.status is Status.EXACT
    assert finding.units == total(history)
    assert finding.position.cost == replay(history, method, increment=EPS).cost


@given(histories(), st.data())
@settings(max_examples=300)
def test_a_window_is_never_wrong_about_what_it_calls_exact(
    history: list[Movement], data: st.DataObject
) -> None:
    """Cut a history anywhere: what is left either gives the true entry, or says it cannot."""
    truth = replay(history, increment=EPS)
    window = history[data.draw(st.integers(0, len(history))) :]
    finding = explain(Question("BTC", window, total(history), EPS, 0, exhausted=True))

    assert finding is not None
    assert finding.units == total(history)
    if finding.status is Status.EXACT:
        assert finding.position.units == truth.units
        assert finding.position.entry_price == truth.entry_price
        assert finding.position.opened_at == truth.opened_at
    else:
        assert finding.status is Status.PARTIAL
        assert finding.position.unknown_units > 0


@given(histories(), st.decimals("0.01", "100", places=4), st.booleans())
def test_units_that_moved_without_a_fill_are_never_called_exact_with_another_quantity(
    history: list[Movement], moved: Decimal, outward: bool
) -> None:
    balance = total(history) + (-moved if outward else moved)
    if balance < 0:
        return
    finding = explain(Question("BTC", history, balance, EPS, 0, exhausted=True))

    assert finding is not None
    assert finding.units == balance
    if finding.status is Status.EXACT:
        # Something older is at odds, yet since the last flat point everything adds up.
        assert finding.position.units == balance
    elif outward:
        assert finding.status is Status.UNEXPLAINED_OUTFLOW
    else:
        assert finding.status is Status.PARTIAL


@given(histories(), st.randoms(use_true_random=False))
def test_the_order_rows_come_in_does_not_matter(history: list[Movement], random: object) -> None:
    from statestore.fills.normalise import oldest_first

    fills = [movement.fill for movement in history]
    shuffled = list(fills)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert oldest_first(shuffled) == fills
