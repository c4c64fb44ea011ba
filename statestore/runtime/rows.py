"""A row of an export as a `Position` with its orders, and back: what the columns of the table say.

The table has columns of its own; whatever else a row has goes into ``metadata`` by its name, beside
what a bot keeps there, and a note under ``_import`` says which columns those are. So a row comes
out as it went in, but for what the database changed since: of that the database's is right. A
position's orders travel in its row, as ``_orders``.

A row that is not held (a token that is watched, a closed position) is ``CLOSED`` in the table. What
the table cannot say of a position that is held (no quantity, no entry price) is `Unsuitable`, never
made up; a side that is not said is LONG, a time that is not said is that of the record.

Pure values: no database is asked here. Which rows go into one, and whether they may, is `tables`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from statestore import times
from statestore.amounts import ZERO, parse_amount
from statestore.disk.history import same_value
from statestore.model import (
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
)
from statestore.runtime import legacy
from statestore.runtime.sections import ENTRIES, quantity
from statestore.runtime.statuses import status_of

OF_ROW = "_orders"  # in a row
NOTE = "_import"  # in metadata: what an import has to know to give the row back

_LONGEST = 50  # of exchange and symbol
_OPENED = ("opened_at", "entry_time", "first_entry_timestamp", "timestamp", "created_at")
_PNL = ("unrealized_pnl", "realized_pnl")
_AMOUNTS = (*_PNL, "current_price", "stop_loss", "take_profit", "margin")
_NOT_HELD = frozenset({"watchlist", "dormant", "regime_driver", "closed", "archived", "liquidated"})
_ORDER = tuple(field.name for field in fields(Order) if field.name != "position_id")
_DECIMALS = ("quantity", "price", "filled_quantity", "filled_value", "filled_price", "fees")
_MOMENTS = ("filled_at", "triggered_at", "cancel_wanted_at", "created_at")
_NANOSECONDS_OF_A_MICROSECOND = 1_000


class Unsuitable(ValueError):
    """A row says something the tables cannot hold; the message is a predicate of the row."""


# Out of the table


def row_of(position: Position, orders: Iterable[Order]) -> dict[str, Any]:
    """Return a row as it came, with what the database changed since; of its own, all columns."""
    native = _native(position)
    metadata = dict(position.metadata)
    note = metadata.pop(NOTE, None)
    if note is None:
        row = {**native, "metadata": metadata}
    else:
        row = {name: value for name, value in native.items() if name not in note["absent"]}
        row |= {name: metadata.pop(name) for name in note["columns"] if name in metadata}
        row |= {
            name: native[name] for name in native if not same_value(native[name], note["was"][name])
        }
        if metadata or note["metadata"]:
            row["metadata"] = metadata
    listed = [order_json(order) for order in orders]
    return row | ({OF_ROW: listed} if listed else {})


def order_json(order: Order) -> dict[str, Any]:
    """Return an order as JSON; its position is the row it stands in."""
    said: dict[str, Any] = {}
    for name in _ORDER:
        value = getattr(order, name)
        if isinstance(value, datetime):
            value = _written(value)
        said[name] = value.value if isinstance(value, StrEnum) else value
    return said


def _native(position: Position) -> dict[str, Any]:
    return {
        "id": position.position_id,
        "exchange": position.exchange,
        "symbol": position.symbol,
        "side": position.side.value,
        "quantity": position.quantity,
        "initial_quantity": position.initial_quantity,
        "entry_price": position.entry_price,
        "current_price": position.current_price,
        "unrealized_pnl": position.unrealized_pnl,
        "realized_pnl": position.realized_pnl,
        "stop_loss": position.stop_loss,
        "take_profit": position.take_profit,
        "leverage": position.leverage,
        "margin": position.margin,
        "status": position.status.value,
        "opened_at": _written(position.entry_time),
        "closed_at": _written(position.closed_at),
    }


# Into the table


def with_metadata(key: str, entry: Any, exchange: str) -> Position:
    """Return the position a row becomes, and in its metadata everything else the row says.

    Raises:
        Unsuitable: the table cannot hold it.
    """
    if not isinstance(entry, Mapping):
        raise Unsuitable("is no object")
    position = position_of(key, entry, exchange)
    native = _native(position)
    kept = entry.get("metadata")
    own: dict[str, Any] = kept if isinstance(kept, dict) else {}
    foreign = {
        name: value
        for name, value in entry.items()
        if name != OF_ROW
        and not (name in native and same_value(native[name], value))
        and not (name == "metadata" and isinstance(kept, dict))
    }
    twice = next((name for name in own if name in foreign or name == NOTE), None)
    if twice is not None:
        raise Unsuitable(f"has {twice} in its metadata, which is a column of it as well")
    note = {
        "key": key,
        "was": native,
        "columns": list(foreign),
        "absent": [name for name in native if name not in entry],
        "metadata": isinstance(kept, dict),
    }
    position.metadata = {**own, **foreign, NOTE: note}
    return position


def position_of(key: str, entry: Mapping[str, Any], exchange: str) -> Position:
    """Return what the columns of the table say of a row.

    Raises:
        Unsuitable: it is held, and something is not said, or not understood.
    """
    said = quantity(entry)
    units = None if said is None else _required(said, "quantity")
    status = _status(entry, units)
    price = next((entry[name] for name in ENTRIES if entry.get(name) is not None), None)
    if price is None and status.held:
        raise Unsuitable("has no entry price; the table needs one, and none is made up")
    units = units or ZERO
    side = entry.get("side") or entry.get("direction") or PositionSide.LONG
    try:
        side = PositionSide(side)
    except ValueError:
        raise Unsuitable(f"has the side {side!r:.40}; LONG or SHORT is expected") from None
    try:
        identity = str(UUID(str(entry.get("id"))))
    except ValueError:
        raise Unsuitable(
            f"has the id {entry.get('id')!r:.60}, and the table needs a UUID"
        ) from None
    moments = (_moment(entry.get(name)) for name in _OPENED)
    amounts: dict[str, Any] = {name: _amount(entry.get(name)) for name in _AMOUNTS}
    amounts |= {name: amounts[name] or ZERO for name in _PNL}
    return Position(
        position_id=identity,
        exchange=_short(str(entry.get("exchange") or entry.get("token_chain") or exchange)),
        symbol=_short(str(entry.get("symbol") or key)),
        side=PositionSide.SHORT if units < 0 else side,
        quantity=abs(units),
        entry_price=ZERO if price is None else _required(price, "entry price"),
        entry_time=next((moment for moment in moments if moment), datetime.now(UTC)),
        initial_quantity=_amount(entry.get("initial_quantity")) or abs(units),
        leverage=_amount(entry["leverage"]) if "leverage" in entry else Decimal(1),
        status=status,
        closed_at=_moment(entry.get("closed_at")),
        **amounts,
    )


def _status(entry: Mapping[str, Any], units: Decimal | None) -> PositionStatus:
    """Return the status of the table; what has no unit, or says that it is closed, is CLOSED."""
    said = entry.get("status")
    with suppress(ValueError):
        known = PositionStatus(str(said))
        if not known.held or (units and not legacy.is_closed(entry)):
            return known
    if units is None and status_of(entry) not in _NOT_HELD:
        raise Unsuitable("does not say how much is held")
    return PositionStatus.OPEN if units and not legacy.is_closed(entry) else PositionStatus.CLOSED


def orders_of(entry: Mapping[str, Any], position_id: str) -> list[Order]:
    """Return the orders that travel in a row.

    Raises:
        Unsuitable: one of them is none.
    """
    listed = entry.get(OF_ROW, [])
    if not isinstance(listed, list):
        raise Unsuitable(f"has {OF_ROW} that are no list")
    return [order_of(said, position_id) for said in listed]


def order_of(said: Any, position_id: str | None) -> Order:
    """Return the order that `order_json` wrote, for a position.

    Raises:
        Unsuitable: it is none.
    """
    if not isinstance(said, Mapping):
        raise Unsuitable("has an order that is no object")
    values: dict[str, Any] = {name: said[name] for name in _ORDER if name in said}
    if not isinstance(values.get("order_id"), str):
        raise Unsuitable("has an order without an order_id")
    try:
        for name in _DECIMALS:
            if values.get(name) is not None:
                values[name] = parse_amount(values[name])
        for name in _MOMENTS:
            if values.get(name) is not None:
                values[name] = _aware(values[name])
        if values.get("oco_group") is not None:
            values["oco_group"] = str(UUID(str(values["oco_group"])))
        kinds = {"side": OrderSide, "order_type": OrderType, "status": OrderStatus}
        values |= {name: kind(values[name]) for name, kind in kinds.items()}
        return Order(**values, position_id=position_id)
    except (KeyError, TypeError, ValueError) as error:
        raise Unsuitable(f"has an order that is not understood: {error}") from None


def _short(name: str) -> str:
    """Return a name the column has room for; a long one ends in its hash, and is in metadata."""
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST - 17]}~{digest}"


def _required(value: Any, what: str) -> Decimal:
    try:
        return parse_amount(repr(value) if isinstance(value, float) else value)
    except ValueError as error:
        raise Unsuitable(f"has a {what} that is not understood: {error}") from None


def _amount(value: Any) -> Decimal | None:
    with suppress(ValueError):
        return parse_amount(repr(value) if isinstance(value, float) else value)
    return None


def _moment(value: Any) -> datetime | None:
    with suppress(ValueError):
        return _aware(value)
    return None


def _aware(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no time")
    microseconds = times.parse_instant(value) // _NANOSECONDS_OF_A_MICROSECOND
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(
        microsecond=microseconds % 1_000_000
    )


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else times.format_instant(times.instant_of(moment))
