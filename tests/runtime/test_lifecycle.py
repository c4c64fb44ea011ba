"""What may become of an order, what fills do to a position, when a price crosses: values only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import IllegalMove
from statestore.fills.movements import movements_of
from statestore.fills.normalise import fill_from_row, oldest_first
from statestore.fills.replay import replay
from statestore.model import (
    ExchangeOrder,
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
    Row,
)
from statestore.runtime import lifecycle
from statestore.simulated import fills

NOW = datetime(2025, 11, 18, 4, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
D = Decimal


def long(quantity="1", entry="100", **said):
    given = {
        "position_id": "p",
        "exchange": "coinbase",
        "symbol": "BTC-USD",
        "side": PositionSide.LONG,
        "quantity": D(quantity),
        "entry_price": D(entry),
        "entry_time": NOW,
    }
    return Position(**given | said)


def short(quantity="1", entry="100", **said):
    return long(quantity, entry, side=PositionSide.SHORT, **said)


def order(name="sl", kind="stop_loss", side="sell", quantity="1", **said):
    given = {
        "order_id": name,
        "exchange": "coinbase",
        "symbol": "BTC-USD",
        "side": OrderSide(side),
        "order_type": OrderType(kind),
        "quantity": D(quantity),
        "position_id": "p",
        "price": D("90"),
        "oco_group": "g",
    }
    return Order(**given | said)


def report(status="filled", filled="1", value="90", **said):
    given = {
        "exchange_order_id": "x",
        "symbol": "BTC-USD",
        "side": OrderSide.SELL,
        "status": None if status is None else OrderStatus(status),
        "said": str(status),
        "filled_quantity": D(filled),
        "filled_value": D(value),
    }
    return ExchangeOrder(**given | said)


ALLOWED = {
    ("pending", "open"),
    ("pending", "filled"),
    ("pending", "cancelled"),
    ("pending", "rejected"),
    ("open", "filled"),
    ("open", "cancelled"),
    ("open", "rejected"),
}


@pytest.mark.parametrize(("here", "to"), list(product(OrderStatus, OrderStatus)))
def test_every_move_is_one_of_the_seven_or_raises(here, to):
    if (here, to) in ALLOWED:
        assert lifecycle.moved(order(status=here), to).status is to
    else:
        with pytest.raises(IllegalMove, match=f"is {here} and cannot become {to}"):
            lifecycle.moved(order(status=here), to)


@pytest.mark.parametrize("here", ["filled", "cancelled", "rejected"])
def test_a_final_order_that_goes_on_is_refused(here):
    done = order(status=OrderStatus(here), filled_quantity=D("0.5"), filled_value=D(45))

    with pytest.raises(IllegalMove, match="final"):
        lifecycle.progress(done, report(filled="0.6", value="54"))


def test_a_partial_fill_is_open_with_something_filled():
    step = lifecycle.progress(order(), report("open", "0.4", "36"))

    assert step.order.status is OrderStatus.OPEN
    assert (step.order.filled_quantity, step.order.filled_price) == (D("0.4"), D(90))
    assert (step.quantity, step.value) == (D("0.4"), D(36))


def test_an_order_that_is_queued_and_partly_filled_is_open():
    step = lifecycle.progress(order(), report("pending", "0.4", "36"))
    assert step.order.status is OrderStatus.OPEN


def test_what_is_filled_is_a_total_so_the_same_report_twice_is_nothing_new():
    first = lifecycle.progress(order(), report("open", "0.4", "36")).order
    again = lifecycle.progress(first, report("open", "0.4", "36"))
    more = lifecycle.progress(first, report("filled", "1", "84"))

    assert (again.changed, again.quantity) == (False, 0)
    assert (more.quantity, more.value) == (D("0.6"), D(48))
    assert more.order.filled_price == 84


def test_what_a_later_report_does_not_say_stays_as_it_was_said():
    first = lifecycle.progress(order(), report("open", "0.4", "36", fees=D(1), filled_at=NOW)).order
    later = lifecycle.progress(first, report("filled", "1", "90")).order

    assert (later.fees, later.filled_at) == (1, NOW)


@pytest.mark.parametrize("late", [report("open", "0.1", "9"), report("pending", "0", "0")])
def test_an_old_report_changes_nothing(late):
    known = order(status=OrderStatus.OPEN, filled_quantity=D("0.4"), filled_value=D(36))
    final = replace(known, status=OrderStatus.CANCELLED)

    assert not lifecycle.progress(known, late).changed
    assert not lifecycle.progress(final, late).changed


def test_an_open_order_that_is_queued_again_stays_open():
    known = order(status=OrderStatus.OPEN, exchange_order_id="x")
    assert not lifecycle.progress(known, report("pending", "0", "0")).changed


def test_a_status_that_is_not_known_changes_nothing():
    assert not lifecycle.progress(order(), report(None, "1", "90")).changed


@pytest.mark.parametrize("wrong", [report("filled", "0", "0"), report("open", "0.5", "-1")])
def test_a_report_that_cannot_be_is_refused(wrong):
    with pytest.raises(IllegalMove, match="cannot be"):
        lifecycle.progress(order(), wrong)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("BTC-USDC", {"symbol": "BTC-USD"}),  # one book; the exchange names it either way
        ("BTC/USD", {"symbol": "BTC-USD"}),
        ("BTCUSD", {"symbol": "BTC-USD"}),  # a name of the bot's own says nothing against it
        ("BTC-USD", {"symbol": ""}),
    ],
)
def test_a_report_of_the_same_market_is_taken_whatever_it_is_called(ours, theirs):
    assert lifecycle.progress(order(symbol=ours), report(**theirs)).quantity == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"symbol": "ETH-USD"},
        {"symbol": "BTC-EUR"},
        {"side": OrderSide.BUY},
        {"side": OrderSide.BUY, "symbol": ""},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", ["open", "filled", "cancelled"])
def test_a_report_of_another_order_is_refused(wrong, status):
    """An exchange's id written down with the wrong order: 1 ETH was booked as 1 BTC."""
    with pytest.raises(IllegalMove, match="exchange_order_id is wrong"):
        lifecycle.progress(order(), report(status, **wrong))


# What fills do to a position


def test_an_increase_averages_the_entry():
    """Document 004 kept it in memory only: 124585.42 there, 119170.84 after a reload."""
    more = lifecycle.increased(long("1", "100"), D(3), D(360))

    assert (more.quantity, more.initial_quantity, more.entry_price) == (4, 4, 115)


def test_a_partial_close_realises_its_share_and_keeps_the_entry():
    after, excess = lifecycle.reduced(long("1", "100"), D("0.4"), D(44), NOW)

    assert (after.quantity, after.initial_quantity, after.entry_price) == (D("0.6"), 1, 100)
    assert (after.realized_pnl, excess) == (4, 0)
    assert after.status is PositionStatus.PARTIALLY_CLOSED


def test_a_short_gains_when_the_price_falls():
    after, _ = lifecycle.reduced(short("2", "100"), D(2), D(180), NOW)

    assert (after.realized_pnl, after.status, after.closed_at) == (20, "CLOSED", NOW)


def test_a_position_never_turns_into_its_opposite():
    after, excess = lifecycle.reduced(long("1", "100"), D(3), D(330), NOW)

    assert (after.quantity, after.realized_pnl, excess) == (0, 10, 2)


def test_pnl_is_that_of_the_price_and_both_parts_make_the_total():
    priced = lifecycle.priced(long("2", "100", realized_pnl=D(5)), D(110))
    assert (priced.unrealized_pnl, priced.unrealized_pnl_pct, priced.total_pnl) == (20, 10, 25)
    assert lifecycle.priced(short("2", "100"), D(110)).unrealized_pnl == -20
    assert lifecycle.priced(long("2", "0"), D(110)).unrealized_pnl_pct == 0


amounts = st.decimals(min_value=D("0.001"), max_value=1000, places=3)


@given(st.lists(st.tuples(st.booleans(), amounts, amounts), min_size=1, max_size=8))
def test_it_is_the_average_cost_of_the_replay(trades):
    texts = ["BUY 5 BTC-USD @ 100"]
    held = long("5", "100")
    for buys, quantity, price in trades:
        if not buys and quantity >= held.quantity:
            continue
        value = quantity * price
        held = (
            lifecycle.increased(held, quantity, value)
            if buys
            else lifecycle.reduced(held, quantity, value, NOW)[0]
        )
        texts.append(f"{'BUY' if buys else 'SELL'} {quantity} BTC-USD @ {price}")
    rows = oldest_first(fill_from_row(Row(row, "")) for row in fills(*texts))
    replayed = replay(movements_of("BTC", rows))

    assert held.quantity == replayed.units
    assert abs(held.entry_price - replayed.entry_price) <= D("1E-20")
    assert abs(held.realized_pnl - replayed.realised) <= D("1E-15")


@pytest.mark.parametrize(
    ("position", "side", "realised"),
    [(long(), OrderSide.SELL, D("-3")), (short(), OrderSide.BUY, D("3"))],
)
def test_a_value_that_is_put_right_is_in_the_pnl_and_the_order_goes_on(position, side, realised):
    """Its sender knew the price as 90.01; the exchange says 0.3 for 27, and that it is off."""
    known = order(side=side.value, exchange_order_id="x")
    first = lifecycle.booked(known, report("open", "0.3", "27.003", side=side), position, [], NOW)
    final = report("cancelled", "0.3", "27", side=side)
    done = lifecycle.booked(first.orders[0], final, first.position, [], NOW)

    assert (done.orders[0].status, done.orders[0].filled_price) == ("cancelled", 90)
    assert (done.position.realized_pnl, done.position.quantity) == (realised, D("0.7"))


@pytest.mark.parametrize(("made", "side"), [(long, "buy"), (short, "sell")])
def test_what_was_opened_for_another_value_changes_the_entry(made, side):
    opener = order("m", "limit", side=side, filled_quantity=D(1), filled_value=D(100))
    right = report("filled", "1", "101", side=OrderSide(side))

    assert lifecycle.booked(opener, right, made(), [], NOW).position.entry_price == 101
    closed = made("0", status=PositionStatus.CLOSED, realized_pnl=D(10))
    after = lifecycle.booked(opener, right, closed, [], NOW).position
    assert after.realized_pnl == (9 if side == "buy" else 11)


# Siblings


def test_a_stop_that_fills_closes_the_position_and_cancels_its_sibling():
    other = order("tp", "take_profit", price=D(120))
    done = lifecycle.booked(order(), report(), long(), [other], NOW)

    assert done.position.status is PositionStatus.CLOSED
    assert done.position.realized_pnl == -10
    assert [(o.order_id, o.status) for o in done.orders] == [("sl", "filled"), ("tp", "cancelled")]
    assert done.to_cancel == ()


@pytest.mark.parametrize("there", [{"exchange_order_id": "y"}, {"triggered_at": NOW}])
def test_a_sibling_that_is_or_may_be_at_the_exchange_is_never_said_to_be_cancelled(there):
    other = order("tp", "take_profit", price=D(120), status=OrderStatus.OPEN, **there)
    done = lifecycle.booked(order(), report(), long(), [other], NOW)

    assert [(o.order_id, o.status, o.cancel_wanted_at) for o in done.to_cancel] == [
        ("tp", "open", NOW)
    ]


def test_a_partial_fill_keeps_the_sibling_for_what_is_left():
    other = order("tp", "take_profit", price=D(120))
    done = lifecycle.booked(order(), report("open", "0.4", "36"), long(), [other], NOW)

    assert done.position.quantity == D("0.6")
    assert done.position.closed_at is None
    assert [(o.order_id, o.status, o.left) for o in done.orders[1:]] == [
        ("tp", "pending", D("0.6"))
    ]


def test_filled_with_less_than_was_asked_for_leaves_the_sibling_to_what_is_left():
    """A target that said filled with 0.4 of 1 took the stop-loss with it: 0.6 stood bare."""
    stop = order()
    target = order("tp", "take_profit", price=D(120))
    done = lifecycle.booked(target, report("filled", "0.4", "48"), long(), [stop], NOW)

    assert done.position.quantity == D("0.6")
    assert [(o.order_id, o.status, o.left) for o in done.orders[1:]] == [
        ("sl", "pending", D("0.6"))
    ]
    there = replace(stop, exchange_order_id="y", status=OrderStatus.OPEN)
    done = lifecycle.booked(target, report("filled", "0.4", "48"), long(), [there], NOW)
    assert [o.order_id for o in done.to_cancel] == ["sl"]  # it would sell 1, and 0.6 are held


def test_a_group_for_a_part_never_closes_more_than_its_part():
    """Of 1 BTC, 0.5 is to be sold: 0.2 by the stop-loss that was cancelled, 0.3 by the target."""
    stop = order(quantity="0.5", exchange_order_id="x")
    target = order("tp", "take_profit", quantity="0.5", price=D(120))
    done = lifecycle.booked(stop, report("cancelled", "0.2", "18"), long(), [target], NOW)

    assert [(o.order_id, o.left) for o in done.orders[1:]] == [("tp", D("0.3"))]
    full = lifecycle.booked(stop, report("open", "0.5", "45"), long(), [target], NOW)
    assert [(o.order_id, o.status) for o in full.orders[1:]] == [("tp", "cancelled")]


def test_a_close_by_hand_withdraws_every_order_of_the_position():
    sl, tp = order(), order("tp", "take_profit", price=D(120), oco_group="other")
    by_hand = order("m", "market", price=None, oco_group=None)
    done = lifecycle.booked(by_hand, report(), long(), [sl, tp], NOW)

    assert [o.status for o in done.orders] == ["filled", "cancelled", "cancelled"]


def test_an_increase_takes_the_stop_for_all_of_it_along():
    add = order("m", "market", side="buy", price=None, oco_group=None)
    half = order("half", quantity="0.5", oco_group="h")
    done = lifecycle.booked(
        add, report(value="100", side=OrderSide.BUY), long(), [order(), half], NOW
    )

    assert [(o.order_id, o.quantity) for o in done.orders] == [("m", 1), ("sl", 2)]


def test_a_fill_after_the_close_is_not_booked():
    closed = long("0", status=PositionStatus.CLOSED)
    done = lifecycle.booked(order(), report(), closed, [], NOW)

    assert (done.position, done.quantity, done.unbooked) == (closed, 0, 1)


# Prices


@pytest.mark.parametrize(
    ("position", "kind", "price", "crosses"),
    [
        (long(), "stop_loss", "89.99", True),
        (long(), "stop_loss", "90", True),
        (long(), "stop_loss", "90.01", False),
        (long(), "take_profit", "90", True),
        (long(), "take_profit", "89.99", False),
        (short(), "stop_loss", "90", True),
        (short(), "stop_loss", "89.99", False),
        (short(), "take_profit", "90", True),
        (short(), "take_profit", "90.01", False),
        (long(), "market", "90", False),
    ],
)
def test_prices_cross_as_the_side_says(position, kind, price, crosses):
    assert lifecycle.crossed(order(kind=kind), position, D(price)) is crosses


def due(orders, price="80", position=None, now=NOW):
    found = lifecycle.due(position or long(), orders, D(price), now, MINUTE)
    return [(one.order.order_id, one.quantity) for one in found]


def test_only_orders_that_are_not_at_the_exchange_are_acted_on():
    assert due([order()]) == [("sl", 1)]
    assert due([order(exchange_order_id="x", status=OrderStatus.OPEN)]) == []
    assert due([order(status=OrderStatus.CANCELLED)]) == []


def test_what_was_handed_out_is_not_again_before_patience_is_over():
    handed = order(triggered_at=NOW)

    assert due([handed], now=NOW + MINUTE / 2) == []
    assert due([handed], now=NOW + MINUTE) == [("sl", 1)]


def test_a_clock_that_was_ahead_does_not_keep_a_stop_from_being_acted_on():
    handed = order(triggered_at=NOW + 60 * MINUTE)

    assert due([handed]) == [("sl", 1)]
    assert due([handed], now=NOW + 59.5 * MINUTE) == []


def test_of_one_group_only_one_is_under_way():
    tp = order("tp", "take_profit", price=D(70))

    assert due([tp, order()]) == [("sl", 1)]  # both crossed: the stop-loss
    assert due([tp, order(triggered_at=NOW)]) == []
    halves = [order(quantity="0.5", triggered_at=NOW), replace(tp, quantity=D("0.5"))]
    assert due(halves) == []
    assert due([replace(half, triggered_at=None) for half in halves]) == [("sl", D("0.5"))]
    sent = order(triggered_at=NOW, exchange_order_id="x", status=OrderStatus.OPEN)
    assert due([tp, sent], now=NOW + 10 * MINUTE) == []


def test_a_target_that_rests_makes_way_for_the_stop():
    """It was sent at its price as the market turned: the stop-loss was never handed out."""
    target = order(
        "tp",
        "take_profit",
        price=D(120),
        triggered_at=NOW,
        exchange_order_id="x",
        status=OrderStatus.OPEN,
    )

    assert due([order(), target]) == []
    (found,) = lifecycle.due(long(), [order(), target], D(80), NOW + MINUTE, MINUTE)
    assert (found.order.order_id, found.quantity, found.cancel_first) == ("sl", 1, (target,))


def test_a_close_at_the_market_is_under_way_and_a_limit_has_to_go_first():
    market = order("m", "market", price=None, oco_group=None, created_at=NOW)
    limit = order("l", "limit", price=D(200), oco_group=None, created_at=NOW)

    assert due([order(), market]) == []
    assert due([order(), market], now=NOW + MINUTE) == [("sl", 1)]  # never sent, it seems
    sent = replace(market, exchange_order_id="x", status=OrderStatus.OPEN)
    assert due([order(), sent], now=NOW + 10 * MINUTE) == []
    (found,) = lifecycle.due(long(), [order(), limit], D(80), NOW, MINUTE)
    assert found.cancel_first == (limit,)


def test_an_order_that_was_recorded_to_be_sent_is_not_cancelled_by_us():
    limit = order("l", "limit", price=D(200), oco_group=None)
    done = lifecycle.booked(order(), report(), long(), [limit], NOW)

    assert [(o.order_id, o.status) for o in done.to_cancel] == [("l", "pending")]


def test_never_more_is_closed_than_is_held():
    first = order("a", quantity="0.7", oco_group="a")
    second = order("b", quantity="0.7", oco_group="b")

    assert due([first, second]) == [("a", D("0.7")), ("b", D("0.3"))]
    assert due([replace(first, triggered_at=NOW), second]) == [("b", D("0.3"))]
    assert due([order()], position=long("0.2")) == [("sl", D("0.2"))]


def test_what_rests_at_the_exchange_has_to_go_first():
    resting = order("tp", "take_profit", price=D(120), exchange_order_id="y")
    (found,) = lifecycle.due(long(), [order(), resting], D(80), NOW, MINUTE)

    assert found.cancel_first == (resting,)


def test_protection_counts_what_is_live():
    orders = [
        order("a", quantity="0.4"),
        order("b", quantity="0.3", status=OrderStatus.REJECTED),
        order("c", quantity="0.3", cancel_wanted_at=NOW),
        order("d", "take_profit", quantity="1"),
        order("e", quantity="0.6", side="buy"),  # of another program; it closes nothing
    ]
    found = lifecycle.protection(long(), orders)

    assert (found.stop_loss, found.take_profit, found.missing) == (D("0.4"), 1, D("0.6"))
    assert found.excess == 0


@pytest.mark.parametrize(
    ("orders", "excess"),
    [
        ([("stop_loss", "0.6", "x"), ("stop_loss", "0.7", "y")], "0.3"),
        ([("stop_loss", "1", "x"), ("take_profit", "1.5", "y")], "0.5"),
        ([("stop_loss", "1", "x"), ("take_profit", "1", "y")], "0"),
        ([("stop_loss", "5", None), ("stop_loss", "1", "x")], "0"),
    ],
    ids=["two stops", "a target", "one of the two is filled", "cut to what is held"],
)
def test_what_rests_at_the_exchange_for_more_than_is_held_is_excess(orders, excess):
    made = [
        order(str(number), kind, quantity=quantity, exchange_order_id=name)
        for number, (kind, quantity, name) in enumerate(orders)
    ]
    assert lifecycle.protection(long(), made).excess == D(excess)
