"""What may become of an order, what its fills do to a position, and when a price crosses.

Pure functions of values; `statestore.runtime.orders` calls them inside a transaction that holds
the rows they speak of.

::

    pending --> open --> filled                 pending --> filled | cancelled | rejected
                  |----> cancelled              filled, cancelled and rejected are final;
                  `----> rejected               open with filled_quantity > 0 is a partial fill

A report of the exchange says how much is filled in all, never how much more: the difference to
what the order's row holds is what is booked, so the same report twice books nothing twice.
Average cost is that of `statestore.fills.average`; a short is a long with its sides exchanged.

One module, because one report is all of it at once: it moves the order, changes the position, and
withdraws or shrinks the orders that protect it, of which no more may be due than is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from statestore.amounts import ZERO, exact, written
from statestore.errors import IllegalMove
from statestore.fills.average import Average
from statestore.fills.book import position_of
from statestore.model import (
    ExchangeOrder,
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
    asset_of,
    quote_of,
    settled_in,
)

_FINAL: frozenset[OrderStatus] = frozenset()
MOVES: Mapping[OrderStatus, frozenset[OrderStatus]] = {
    OrderStatus.PENDING: frozenset(OrderStatus) - {OrderStatus.PENDING},
    OrderStatus.OPEN: frozenset({OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.REJECTED}),
    OrderStatus.FILLED: _FINAL,
    OrderStatus.CANCELLED: _FINAL,
    OrderStatus.REJECTED: _FINAL,
}


def moved(order: Order, to: OrderStatus) -> Order:
    """Return the order with its new status.

    Raises:
        IllegalMove: there is no way from where it is.
    """
    if to not in MOVES[order.status]:
        allowed = ", ".join(sorted(MOVES[order.status])) or "nothing: that is final"
        raise IllegalMove(
            f"order {order.order_id} ({order.symbol}) is {order.status} and cannot become {to}; "
            f"from there it may become {allowed}"
        )
    return replace(order, status=to)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a report changes in an order.

    Attributes:
        quantity, value: filled since the last report, in base and in quote.
        changed: False where the report is not newer than what is known.
    """

    order: Order
    quantity: Decimal = ZERO
    value: Decimal = ZERO
    changed: bool = False


@exact
def progress(order: Order, report: ExchangeOrder) -> Progress:
    """Return what the exchange's report makes of an order.

    A report that says less than is known is an old one and changes nothing; so does a status the
    exchange has and we do not know.

    Raises:
        IllegalMove: it says that a final order went on, or it is another order's.
    """
    if _is_another(order, report):
        raise IllegalMove(
            f"order {order.order_id} is to {order.side} {order.symbol}, but {report.venue} says "
            f"{report.said} of one to {report.side} {report.symbol}; its exchange_order_id is wrong"
        )
    quantity = report.filled_quantity - order.filled_quantity
    value = report.filled_value - order.filled_value
    if report.status is None or quantity < 0:
        return Progress(order)
    if not order.status.live:
        if report.status.live and not quantity:
            return Progress(order)
        if report.status is order.status and not quantity:
            return Progress(order)
        raise IllegalMove(
            f"order {order.order_id} ({order.symbol}) is {order.status} with "
            f"{order.filled_quantity:f} filled, which is final, but {report.venue} says "
            f"{report.said} with {report.filled_quantity:f}; look at it there"
        )
    # The value of what was filled may be put right: who sent it knew a rounded price.
    shrank = report.filled_value < 0 or (value < 0 and quantity)
    if shrank or (report.status is OrderStatus.FILLED and not report.filled_quantity):
        raise IllegalMove(
            f"order {order.order_id} ({order.symbol}): {report.venue} says {report.said} with "
            f"{report.filled_quantity:f} filled for {report.filled_value:f}, after "
            f"{order.filled_quantity:f} for {order.filled_value:f}, which cannot be"
        )
    status = report.status
    if status is OrderStatus.PENDING and (
        order.status is OrderStatus.OPEN or report.filled_quantity
    ):
        status = OrderStatus.OPEN
    after = replace(
        order if status is order.status else moved(order, status),
        exchange_order_id=report.exchange_order_id or order.exchange_order_id,
        filled_quantity=report.filled_quantity,
        filled_value=report.filled_value,
        fees=order.fees if report.fees is None else report.fees,
        error_message=report.reason or order.error_message,
    )
    if quantity or (value and report.filled_quantity):
        after.filled_price = written(report.filled_value / report.filled_quantity)
        after.filled_at = report.filled_at or order.filled_at
    if not status.live:
        after.cancel_wanted_at = None
    return Progress(after, quantity, value, changed=after != order)


def _is_another(order: Order, report: ExchangeOrder) -> bool:
    """Whether a report speaks of the other side, or of another market, as far as both name one.

    An exchange may call a market by another name: orders in BTC-USDC are in the book of BTC-USD.
    """
    ours, theirs = quote_of(order.symbol), quote_of(report.symbol)
    if ours is None or theirs is None:
        return report.side is not order.side
    named = (report.side, asset_of(report.symbol), settled_in(theirs))
    return named != (order.side, asset_of(order.symbol), settled_in(ours))


# What fills do to a position -------------------------------------------------------------------


def closing_side(position: Position) -> OrderSide:
    return OrderSide.SELL if position.side is PositionSide.LONG else OrderSide.BUY


def reduces(order: Order, position: Position) -> bool:
    return order.side is closing_side(position)


@exact
def increased(position: Position, quantity: Decimal, value: Decimal) -> Position:
    """Return the position after more was opened; its entry is the average cost of all of it."""
    account = _account(position)
    account.buy(quantity, value, ZERO, _ANY_TIME)
    entry = position_of(account.book()).entry_price
    assert entry is not None  # something is held, and its cost is known
    return priced(
        replace(
            position,
            quantity=position.quantity + quantity,
            initial_quantity=position.initial_quantity + quantity,
            entry_price=written(entry),
        )
    )


@exact
def reduced(
    position: Position, quantity: Decimal, value: Decimal, at: datetime
) -> tuple[Position, Decimal]:
    """Return the position after some was closed, and what of the fill was more than was held.

    The excess is not booked: a position never turns into its opposite by itself.
    """
    closing = min(quantity, position.quantity)
    account = _account(position)
    account.sell(closing, value * closing / quantity, ZERO)
    gained = position_of(account.book()).realised
    assert gained is not None  # one currency, and every cost is known
    left = position.quantity - closing
    sign = 1 if position.side is PositionSide.LONG else -1
    after = replace(
        position,
        quantity=left,
        realized_pnl=written(position.realized_pnl + sign * gained),
        status=PositionStatus.PARTIALLY_CLOSED if left else PositionStatus.CLOSED,
        closed_at=None if left else at,
    )
    return priced(after), quantity - closing


@exact
def revalued(position: Position, value: Decimal, *, closing: bool) -> Position:
    """Return the position after what was booked turned out to be worth that much more, or less.

    All of it is in the P&L then: in what is realised, or in the entry of what is still held.
    """
    if closing or not position.status.held:
        long = position.side is PositionSide.LONG
        gained = value if closing is long else -value
        after = replace(position, realized_pnl=written(position.realized_pnl + gained))
    else:
        cost = position.entry_price * position.quantity + value
        after = replace(position, entry_price=written(cost / position.quantity))
    return priced(after)


_ANY_TIME = "1970-01-01T00:00:00Z"


def _account(position: Position) -> Average:
    account = Average("quote", "quote", ZERO)
    cost = position.quantity * position.entry_price
    account.buy(position.quantity, cost, ZERO, _ANY_TIME)
    return account


@exact
def priced(position: Position, price: Decimal | None = None) -> Position:
    """Return the position with its P&L at a price, the last known one without any."""
    price = position.current_price if price is None else price
    sign = 1 if position.side is PositionSide.LONG else -1
    unrealized = sign * (price - position.entry_price) * position.quantity
    after = replace(
        position,
        current_price=price,
        unrealized_pnl=written(unrealized),
        total_pnl=written(position.realized_pnl + unrealized),
    )
    after.unrealized_pnl_pct = percent(after)
    return after


@exact
def percent(position: Position) -> Decimal:
    """Return the unrealised P&L in percent of the cost; 0 of what cost nothing."""
    cost = position.entry_price * position.quantity
    return written(100 * position.unrealized_pnl / cost) if cost else ZERO


@dataclass(frozen=True, slots=True)
class Booked:
    """What one report did.

    Attributes:
        orders: every order that is not what it was, the reported one first.
        position: after it; None where the order has none.
        quantity: of the position, by which it grew or shrank.
        unbooked: filled, but not in the position: more than it held, or it was closed before.
        to_cancel: orders that should go but are (or may be) at the exchange, where only the
            caller can cancel them. They stay what they are until the exchange says otherwise.
    """

    orders: tuple[Order, ...] = ()
    position: Position | None = None
    quantity: Decimal = ZERO
    unbooked: Decimal = ZERO
    to_cancel: tuple[Order, ...] = ()


@exact
def booked(
    order: Order,
    report: ExchangeOrder,
    position: Position | None,
    others: Iterable[Order],
    now: datetime,
) -> Booked:
    """Return what a report does to an order, its position and the position's other orders.

    Args:
        others: all other orders of the position.
        now: for what the report has no time of.

    Raises:
        IllegalMove: as in `progress`.
    """
    step = progress(order, report)
    if not step.changed:
        return Booked(position=position)
    changed = [step.order]
    if position is None:
        return Booked(tuple(changed), unbooked=step.quantity)
    after, unbooked = position, ZERO
    if step.quantity and not position.status.held:
        unbooked = step.quantity
    elif step.quantity and reduces(order, position):
        after, unbooked = reduced(position, step.quantity, step.value, step.order.filled_at or now)
    elif step.quantity:
        after = increased(position, step.quantity, step.value)
    elif step.value:
        after = revalued(position, step.value, closing=reduces(order, position))
    to_cancel = []
    for other in others:
        if not other.status.live:
            continue
        sibling = order.oco_group is not None and other.oco_group == order.oco_group
        # Filled with less than was asked for, it leaves units that its sibling has to protect.
        filled = step.order.status is OrderStatus.FILLED
        done = filled and (not step.order.left or at_exchange(other))
        left = other.left - step.quantity
        part = sibling and step.quantity > 0 and not at_exchange(other)
        if not after.status.held or (sibling and done) or (part and left <= 0):
            gone = withdrawn(other, now)
            changed.append(gone)
            to_cancel += [gone] if gone.status.live else []
        elif _covered_all(other, position) and after.quantity != position.quantity:
            # It was to close all that is held; it still is.
            changed.append(replace(other, quantity=other.filled_quantity + after.quantity))
        elif part:
            changed.append(replace(other, quantity=other.filled_quantity + left))
    return Booked(
        tuple(changed), after, abs(after.quantity - position.quantity), unbooked, tuple(to_cancel)
    )


def withdrawn(order: Order, now: datetime) -> Order:
    """Return a live order after somebody wanted it gone.

    Cancelled, if nobody but us ever knew it. Of one that is at the exchange, or that somebody was
    told to send there, only the exchange can say that it is cancelled.
    """
    if not at_exchange(order):
        return moved(order, OrderStatus.CANCELLED)
    return replace(order, cancel_wanted_at=order.cancel_wanted_at or now)


def _covered_all(order: Order, position: Position) -> bool:
    return order.order_type.protects and not at_exchange(order) and order.left == position.quantity


def at_exchange(order: Order) -> bool:
    """Whether the exchange has it, or may have.

    It was recorded to be sent there; only a stop-loss or take-profit may wait here until somebody
    is told to send it.
    """
    told = order.exchange_order_id is not None or order.triggered_at is not None
    return told or not order.order_type.protects


# Stop-loss and take-profit ---------------------------------------------------------------------


def crossed(order: Order, position: Position, price: Decimal) -> bool:
    """Whether a price is where a stop-loss or take-profit was meant to act.

    Long: stop-loss at its price or below, take-profit at its price or above. Short: mirrored.
    """
    if not order.order_type.protects or order.price is None:
        return False
    falls = (order.order_type is OrderType.STOP_LOSS) == (position.side is PositionSide.LONG)
    return price <= order.price if falls else price >= order.price


@dataclass(frozen=True, slots=True)
class Due:
    """An order whose price was crossed, how much to close by it, and what to cancel before."""

    order: Order
    quantity: Decimal
    cancel_first: tuple[Order, ...]


@exact
def due(
    position: Position,
    orders: Sequence[Order],
    price: Decimal,
    now: datetime,
    patience: timedelta,
) -> list[Due]:
    """Return which orders of a position are to be acted on, the stop-loss before the take-profit.

    Only orders that are not at the exchange, and never more than is held: what was sent because a
    price was crossed, or to close at the market, or was to be sent less than ``patience`` ago, is
    taken for under way, and no order of the same group is acted on meanwhile. A take-profit that is
    still at the exchange after that has to go first, like any other that rests there.
    """
    if not position.status.held:
        return []
    closing = [o for o in orders if o.status.live and reduces(o, position)]
    running = [o for o in closing if _under_way(o, now, patience)]
    left = position.quantity - sum((o.left for o in running), ZERO)
    busy = {o.oco_group for o in running if o.oco_group is not None}
    there = [o for o in closing if at_exchange(o) and o not in running]
    found = []
    for order in sorted(closing, key=lambda o: o.order_type is not OrderType.STOP_LOSS):
        here_only = order.exchange_order_id is None and order.cancel_wanted_at is None
        if not here_only or order in running or order.oco_group in busy or left <= 0:
            continue
        if crossed(order, position, price):
            quantity = min(order.left, left)
            found.append(Due(order, quantity, tuple(o for o in there if o is not order)))
            left -= quantity
            if order.oco_group is not None:
                busy.add(order.oco_group)
    return found


def _under_way(order: Order, now: datetime, patience: timedelta) -> bool:
    """Whether it is closing at this moment: sent because a price was crossed, or at the market."""
    market = order.order_type is OrderType.MARKET
    since = order.triggered_at or (order.created_at if market else None)
    if since is None:
        return False
    # A take-profit may rest at its price for ever while the market falls: it makes way.
    rests = order.exchange_order_id is not None and order.order_type is not OrderType.TAKE_PROFIT
    # What is further ahead than that was written by a clock that was wrong: it must not keep a
    # stop-loss from being acted on until the clocks agree.
    return rests or abs(now - since) < patience


@dataclass(frozen=True, slots=True)
class Protection:
    """How much of a position stop-loss and take-profit orders would close.

    Attributes:
        missing: units that no stop-loss closes.
        excess: units beyond what is held that those at the exchange would close, as after a part
            was closed by hand: the account is short by them once one is filled.
    """

    position: Position
    stop_loss: Decimal
    take_profit: Decimal
    excess: Decimal

    @property
    def missing(self) -> Decimal:
        return max(self.position.quantity - self.stop_loss, ZERO)

    @property
    def whole(self) -> bool:
        return not self.missing and self.take_profit >= self.position.quantity


@exact
def protection(position: Position, orders: Iterable[Order]) -> Protection:
    """Return how far a position is protected by orders that are live and not being withdrawn."""
    sums = {OrderType.STOP_LOSS: ZERO, OrderType.TAKE_PROFIT: ZERO}
    there = dict(sums)
    for order in orders:
        counts = order.order_type in sums and reduces(order, position)
        if counts and order.status.live and order.cancel_wanted_at is None:
            sums[order.order_type] += order.left
            if order.exchange_order_id is not None:
                there[order.order_type] += order.left
    # Of a stop-loss and a take-profit one is filled; what only we know is cut to what is held.
    excess = max(max(there.values()) - position.quantity, ZERO)
    return Protection(position, sums[OrderType.STOP_LOSS], sums[OrderType.TAKE_PROFIT], excess)
