"""A row of the tables ``positions`` and ``orders``, and the value it is: all their columns.

What is promised: numbers keep every digit, those inside ``metadata`` as well; instants are aware
and in UTC, to the microsecond. A new column is one more line in each list here, and a migration.

What is not looked at: spellings, signs, sums. The tables hold nothing else (CHECK).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

from statestore.amounts import ZERO
from statestore.disk.codec import to_json
from statestore.errors import BackendError, UsageError
from statestore.model import (
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
)

# In the order of the functions that read and write a row.
POSITION: LiteralString = (
    "id, exchange, symbol, side, quantity, initial_quantity, entry_price, current_price, "
    "unrealized_pnl, realized_pnl, stop_loss, take_profit, leverage, margin, status, opened_at, "
    "closed_at, metadata"
)
ORDER: LiteralString = (
    "order_id, exchange, position_id, symbol, side, order_type, quantity, price, status, "
    "filled_quantity, filled_value, filled_price, fees, filled_at, oco_group, exchange_order_id, "
    "triggered_at, cancel_wanted_at, error_message, metadata, created_at"
)
READ_POSITION: LiteralString = POSITION.replace("id,", "id::text,", 1).replace(
    "metadata", "metadata::text"
)
READ_ORDER: LiteralString = (
    ORDER.replace(" position_id,", " position_id::text,")
    .replace("oco_group", "oco_group::text")
    .replace("metadata", "metadata::text")
)


# The tables hold nothing else (CHECK), so there is no spelling to be read.
_POSITION_SIDES = {side.value: side for side in PositionSide}
_POSITION_STATUSES = {status.value: status for status in PositionStatus}
_ORDER_SIDES = {side.value: side for side in OrderSide}
_ORDER_TYPES = {kind.value: kind for kind in OrderType}
_ORDER_STATUSES = {status.value: status for status in OrderStatus}


def as_uuid(text: str) -> UUID:
    """Return a position's id as the database keeps it.

    Raises:
        UsageError: it is none (an id of another program, as ``BTC/USDT_long_1795171149.505817``).
    """
    try:
        return UUID(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{text!r:.80} is no position id: a UUID is expected, as PositionManager.find gives it"
        ) from error


def position_of_row(row: tuple[Any, ...]) -> Position:
    """Return the position that a row of `READ_POSITION` is.

    Raises:
        BackendError: its metadata is no object.
    """
    (
        position_id,
        exchange,
        symbol,
        side,
        quantity,
        initial_quantity,
        entry_price,
        current_price,
        unrealized_pnl,
        realized_pnl,
        stop_loss,
        take_profit,
        leverage,
        margin,
        status,
        opened_at,
        closed_at,
        metadata,
    ) = row
    return Position(
        position_id=position_id,
        exchange=exchange,
        symbol=symbol,
        side=_POSITION_SIDES[side],
        quantity=quantity,
        initial_quantity=initial_quantity,
        entry_price=entry_price,
        current_price=current_price,  # null: the entry price; 0 is a price
        unrealized_pnl=_or_zero(unrealized_pnl),
        realized_pnl=_or_zero(realized_pnl),
        stop_loss=stop_loss,
        take_profit=take_profit,
        leverage=leverage,
        margin=margin,
        status=_POSITION_STATUSES[status],
        entry_time=_utc(opened_at),
        closed_at=_utc(closed_at),
        metadata=_metadata(metadata, f"position {position_id}"),
    )


def row_of_position(position: Position) -> tuple[Any, ...]:
    """Return the values of `POSITION`.

    Raises:
        UsageError: an id is no UUID, or an instant carries no time zone.
    """
    return (
        as_uuid(position.position_id),
        position.exchange,
        position.symbol,
        position.side.value,
        position.quantity,
        position.initial_quantity,
        position.entry_price,
        position.current_price,
        position.unrealized_pnl,
        position.realized_pnl,
        position.stop_loss,
        position.take_profit,
        position.leverage,
        position.margin,
        position.status.value,
        _aware(position.entry_time, f"position {position.position_id}: entry_time"),
        _aware(position.closed_at, f"position {position.position_id}: closed_at"),
        _json(position.metadata),
    )


def order_of_row(row: tuple[Any, ...]) -> Order:
    """Return the order that a row of `READ_ORDER` is.

    Raises:
        BackendError: its metadata is no object.
    """
    (
        order_id,
        exchange,
        position_id,
        symbol,
        side,
        order_type,
        quantity,
        price,
        status,
        filled_quantity,
        filled_value,
        filled_price,
        fees,
        filled_at,
        oco_group,
        exchange_order_id,
        triggered_at,
        cancel_wanted_at,
        error_message,
        metadata,
        created_at,
    ) = row
    return Order(
        order_id=order_id,
        exchange=exchange,
        position_id=position_id,
        symbol=symbol,
        side=_ORDER_SIDES[side],
        order_type=_ORDER_TYPES[order_type],
        quantity=quantity,
        price=price,
        status=_ORDER_STATUSES[status],
        filled_quantity=filled_quantity,
        filled_value=filled_value,
        filled_price=filled_price,
        fees=fees,
        filled_at=_utc(filled_at),
        oco_group=oco_group,
        exchange_order_id=exchange_order_id,
        triggered_at=_utc(triggered_at),
        cancel_wanted_at=_utc(cancel_wanted_at),
        error_message=error_message,
        metadata=_metadata(metadata, f"order {order_id}"),
        created_at=_utc(created_at),
    )


def row_of_order(order: Order) -> tuple[Any, ...]:
    """Return the values of `ORDER`.

    Raises:
        UsageError: an id is no UUID, or an instant carries no time zone.
    """
    where = f"order {order.order_id}"
    return (
        order.order_id,
        order.exchange,
        None if order.position_id is None else as_uuid(order.position_id),
        order.symbol,
        order.side.value,
        order.order_type.value,
        order.quantity,
        order.price,
        order.status.value,
        order.filled_quantity,
        order.filled_value,
        order.filled_price,
        order.fees,
        _aware(order.filled_at, f"{where}: filled_at"),
        None if order.oco_group is None else as_uuid(order.oco_group),
        order.exchange_order_id,
        _aware(order.triggered_at, f"{where}: triggered_at"),
        _aware(order.cancel_wanted_at, f"{where}: cancel_wanted_at"),
        order.error_message,
        _json(order.metadata),
        _aware(order.created_at or datetime.now(UTC), f"{where}: created_at"),
    )


def read_metadata(text: str | None) -> dict[str, Any]:
    """Return ``metadata``: an object, an object that somebody stored as a text, or nothing.

    Raises:
        ValueError: it is something else.
    """
    if text is None or text == "{}":
        return {}
    value = json.loads(text, parse_float=Decimal)
    if isinstance(value, str):
        return read_metadata(value)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{text[:40]!r} is no object")
    return value or {}


def _metadata(text: str | None, whose: str) -> dict[str, Any]:
    try:
        return read_metadata(text)
    except ValueError as error:
        raise BackendError(f"{whose}: metadata: {error}; an object is expected") from error


def _json(metadata: dict[str, Any]) -> str:
    return to_json(metadata, indent=None).decode()


def _or_zero(value: Any) -> Any:
    return ZERO if value is None else value


def _utc(moment: datetime | None) -> Any:
    return None if moment is None else moment.astimezone(UTC)


def _aware(moment: datetime | None, what: str) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise UsageError(f"{what} carries no time zone; give an aware datetime, in UTC")
    return moment
