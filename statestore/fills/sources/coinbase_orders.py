"""What one order row of Coinbase Advanced Trade means. Pure.

``filled_size`` is in base, also of an order that was sized in quote; ``filled_value`` is in quote;
fees stand beside both. Many amounts are empty texts until something is filled. A status that is
none of those known is given as unknown, never as one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from statestore.amounts import ZERO, exact, parse_amount, written
from statestore.errors import IncompleteRead
from statestore.model import ExchangeOrder, OrderSide, OrderStatus
from statestore.times import parse_instant

STATUSES: Mapping[str, OrderStatus] = {
    "PENDING": OrderStatus.PENDING,
    "QUEUED": OrderStatus.PENDING,
    "OPEN": OrderStatus.OPEN,
    "CANCEL_QUEUED": OrderStatus.OPEN,
    "EDIT_QUEUED": OrderStatus.OPEN,
    "FILLED": OrderStatus.FILLED,
    "CANCELLED": OrderStatus.CANCELLED,
    "EXPIRED": OrderStatus.CANCELLED,
    "FAILED": OrderStatus.REJECTED,
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@exact
def exchange_order(row: Mapping[str, object], venue: str) -> ExchangeOrder:
    """Return what a row of List Orders or Get Order says.

    Raises:
        IncompleteRead: it lacks what it has to have, or says what cannot be.
    """
    order_id = row.get("order_id")
    where = f"{venue}: order {order_id!s:.80}"
    if not isinstance(order_id, str) or not order_id:
        raise IncompleteRead(f"{venue}: an order without its order_id")
    said = str(row.get("status") or "")
    spot = (row.get("product_type") or "SPOT") == "SPOT"
    try:
        side = OrderSide(str(row.get("side")))
        filled = _amount(row, "filled_size") or ZERO
        value = _amount(row, "filled_value")
        average = _amount(row, "average_filled_price")
        fees = _amount(row, "total_fees")
        at = row.get("last_fill_time")
        filled_at = _moment(at) if isinstance(at, str) and at else None
        quantity, price = _asked_for(row)
    except ValueError as error:
        raise IncompleteRead(f"{where}: {error}") from error
    if not value:
        if filled and average is None:
            raise IncompleteRead(f"{where}: filled {filled:f}, but no value and no price of it")
        value = written(filled * (average or ZERO))
    status = STATUSES.get(said) if spot else None
    if filled < 0 or value < 0:
        raise IncompleteRead(f"{where}: filled {filled:f} for {value:f}, which cannot be")
    return ExchangeOrder(
        exchange_order_id=order_id,
        client_order_id=str(row.get("client_order_id") or "") or None,
        symbol=str(row.get("product_id") or ""),
        side=side,
        status=status,
        said=said if spot else f"{said} of a {row.get('product_type')}",
        quantity=quantity,
        price=price,
        filled_quantity=filled,
        filled_value=value,
        fees=fees,
        filled_at=filled_at,
        reason=_reason(row) if status is OrderStatus.REJECTED else "",
        venue=venue,
    )


def _amount(row: Mapping[str, object], name: str) -> Decimal | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return parse_amount(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _moment(text: str) -> datetime:
    return _EPOCH + timedelta(microseconds=parse_instant(text) // 1_000)


def _asked_for(row: Mapping[str, object]) -> tuple[Decimal | None, Decimal | None]:
    """Return base size and price, which stand in an object named after the kind of order."""
    kinds = row.get("order_configuration")
    asked = next(iter(kinds.values()), None) if isinstance(kinds, dict) else None
    if not isinstance(asked, dict):
        return None, None
    price = _amount(asked, "stop_price")
    return _amount(asked, "base_size"), _amount(asked, "limit_price") if price is None else price


def _reason(row: Mapping[str, object]) -> str:
    said = (row.get(name) for name in ("reject_message", "reject_reason", "cancel_message"))
    line = next((text for text in said if isinstance(text, str) and text), "refused")
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())[:200]
