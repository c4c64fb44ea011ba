"""Rows of an export in the tables ``positions`` and ``orders`` of a database, and back.

The tables have columns of their own; whatever else a row has goes into ``metadata`` by its name,
beside what a bot keeps there, and a note under ``_import`` says which columns those are. So a row
comes out as it went in, but for what the database changed since: of that the database's is right.

A position's orders travel in its row, as ``_orders``; they keep their ids, by which the exchange
knows them. Live orders without a position are the section ``orders``.

A row that is not held (a token that is watched, a closed position) is ``CLOSED`` in the table. What
the table cannot say of a position that is held (no quantity, no entry price) is a conflict, never
made up; a side that is not said is LONG, a time that is not said is that of the record.

An import is one transaction, under a lock of the table: all of it, or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from statestore import times
from statestore.amounts import ZERO, parse_amount
from statestore.backends.positions import PositionTables, Stamps
from statestore.disk.contract import BeforeCommit
from statestore.disk.history import same_value
from statestore.errors import ImportRefused
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
from statestore.runtime.envelope import Envelope
from statestore.runtime.sections import quantity
from statestore.runtime.statuses import status_of
from statestore.runtime.transfer import (
    POSITIONS,
    Conflict,
    Contents,
    Import,
    plan_import,
)

ORDERS = "orders"
# In a row: its orders. In metadata: what an import has to know to give the row back.
OF_ROW = "_orders"
NOTE = "_import"

_LONGEST = 50  # of exchange and symbol
_ENTRIES = ("entry_price", "avg_entry_price")
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


class _Present(Unsuitable):
    """What it says is there already."""


# Reading


@dataclass(frozen=True, slots=True)
class Tables:
    """What the tables hold, all of it as it was at one instant.

    Attributes:
        contents: as rows of an export.
        held: exchange, symbol and side of the positions that are held: each can be there once.
        orders: the ids of all orders.
    """

    contents: Contents
    held: frozenset[tuple[str, str, str]]
    orders: frozenset[str]


def read_tables(tables: PositionTables) -> Tables:
    """Return what the tables hold.

    Raises:
        BackendError: as in `PositionTables.transaction`.
    """
    with tables.transaction(snapshot=True) as connection:
        return _read(tables, connection)


def _read(tables: PositionTables, connection: Any) -> Tables:
    positions = tables.positions(connection, held_only=False)
    orders = tables.orders(connection, held_only=False)
    of_position: dict[str | None, list[Order]] = {}
    for order in orders:
        of_position.setdefault(order.position_id, []).append(order)
    loose = [order for order in of_position.pop(None, []) if order.status.live]
    entries = {
        key: row_of(position, of_position.get(position.position_id, []))
        for key, position in _keyed(positions)
    }
    contents = Contents(
        tables.database.address,
        entries,
        {ORDERS: {order.order_id: order_json(order) for order in loose}},
        {"backend": "postgres", "revision": None, "sha256": None},
        by_asset=False,
    )
    held = frozenset(_one(position) for position in positions if position.status.held)
    return Tables(contents, held, frozenset(order.order_id for order in orders))


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


def _keyed(positions: Iterable[Position]) -> Iterator[tuple[str, Position]]:
    """Yield each position under a key of its own: the one it came with, else its symbol."""
    seen: set[str] = set()
    for position in sorted(positions, key=lambda position: not position.status.held):
        note = position.metadata.get(NOTE)
        names = [position.position_id]
        if position.status.held:
            names.insert(0, f"{position.exchange}:{position.symbol}:{position.side.value}")
            names.insert(0, position.symbol)
        was_held = note is not None and PositionStatus(note["was"]["status"]).held
        if note is not None and (position.status.held or not was_held):
            names.insert(0, note["key"])
        key = next(name for name in names if name not in seen)
        seen.add(key)
        yield key, position


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


# Writing


def import_tables(
    tables: PositionTables,
    envelope: Envelope,
    *,
    exchange: str,
    skip_existing: bool = False,
    keep_ids: bool = False,
    before_commit: BeforeCommit,
) -> tuple[Import, Stamps]:
    """Import into the tables in one transaction; return what was done, and what takes it back.

    Args:
        exchange: of rows that name none.
        before_commit: called when all of it is in the transaction; what it raises takes it back.

    Raises:
        ImportRefused: a conflict; nothing was written.
        BackendError: as in `PositionTables.transaction`.
    """
    with tables.transaction() as connection:
        tables.lock_all(connection)
        prepared = prepare(
            envelope,
            _read(tables, connection),
            exchange=exchange,
            skip_existing=skip_existing,
            keep_ids=keep_ids,
        )
        prepared.plan.refuse()
        tables.insert_positions(connection, prepared.positions)
        tables.insert_orders(connection, prepared.orders)
        stamps = tables.stamps(
            connection,
            (position.position_id for position in prepared.positions),
            (order.order_id for order in prepared.orders),
        )
        before_commit()
    return prepared.plan, stamps


class _Rehearsed(Exception):
    """Takes back what was rehearsed."""


def rehearse_tables(
    tables: PositionTables,
    envelope: Envelope,
    *,
    exchange: str,
    skip_existing: bool = False,
    keep_ids: bool = False,
) -> Import:
    """Do what `import_tables` does in a transaction that is taken back; return what it would do.

    The rules of the tables are theirs alone, and nobody else can say whether a row keeps them. No
    lock is taken: a bot goes on meanwhile.

    Raises:
        BackendError: as `import_tables` would, for a row that breaks a rule as well.
    """
    try:
        with tables.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            prepared = prepare(
                envelope,
                _read(tables, connection),
                exchange=exchange,
                skip_existing=skip_existing,
                keep_ids=keep_ids,
            )
            if not prepared.plan.conflicts:
                tables.insert_positions(connection, prepared.positions)
                tables.insert_orders(connection, prepared.orders)
            raise _Rehearsed
    except _Rehearsed:
        return prepared.plan


@dataclass(frozen=True, slots=True)
class Removal:
    """What taking an import back would delete, or why it may not.

    Attributes:
        rows: that are as the import left them.
        gone: ids of rows that are not there any more.
        conflicts: rows that were changed since, or came to one of them; any, and nothing goes.
    """

    rows: Stamps
    gone: tuple[str, ...]
    conflicts: tuple[Conflict, ...]

    def refuse(self) -> None:
        """Raise `ImportRefused` if something was changed since."""
        if self.conflicts:
            shown = "; ".join(f"{c.where}.{c.key} {c.why}" for c in self.conflicts[:5])
            more = f" and {len(self.conflicts) - 5} more" if len(self.conflicts) > 5 else ""
            raise ImportRefused(
                f"{len(self.conflicts)} row(s) are not as they were imported, so nothing was "
                f"taken out: {shown}{more}. A position that the bot has worked on is its own by "
                "now: close it there, or correct what is wrong by hand"
            )


def plan_removal(found: Stamps, written: Stamps) -> Removal:
    """Return what of an import can be taken out again. Pure.

    Args:
        found: what `PositionTables.stamps` says now of the rows of the import.
        written: what it said then.
    """
    conflicts: list[Conflict] = []
    gone: list[str] = []
    for table, now_there, then in (
        (POSITIONS, found.positions, written.positions),
        (ORDERS, found.orders, written.orders),
    ):
        gone += (name for name in then if name not in now_there)
        for name, at in now_there.items():
            if name not in then:
                conflicts.append(Conflict(table, name, "came to an imported position since"))
            elif at != then[name]:
                conflicts.append(
                    Conflict(table, name, f"was changed at {times.format_instant(at)}")
                )
    return Removal(found, tuple(gone), tuple(conflicts))


def read_removal(tables: PositionTables, written: Stamps) -> Removal:
    """Return what `remove_import` would do.

    Raises:
        BackendError: as in `PositionTables.transaction`.
    """
    with tables.transaction(snapshot=True) as connection:
        found = tables.stamps(connection, written.positions, written.orders)
    return plan_removal(found, written)


def remove_import(
    tables: PositionTables, written: Stamps, *, before_commit: BeforeCommit
) -> Removal:
    """Delete the rows of an import in one transaction, if all are as it left them.

    Raises:
        ImportRefused: one is not; nothing was deleted.
        BackendError: as in `PositionTables.transaction`.
    """
    with tables.transaction() as connection:
        tables.lock_all(connection)
        removal = plan_removal(
            tables.stamps(connection, written.positions, written.orders), written
        )
        removal.refuse()
        tables.delete(connection, removal.rows)
        before_commit()
    return removal


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an import into tables will do, and the rows it adds."""

    plan: Import
    positions: list[Position]
    orders: list[Order]


def prepare(
    envelope: Envelope,
    there: Tables,
    *,
    exchange: str,
    skip_existing: bool = False,
    keep_ids: bool = False,
) -> Prepared:
    """Return what `import_tables` does where the tables hold what is `there`."""
    plan = plan_import(envelope, there.contents, skip_existing=skip_existing, keep_ids=keep_ids)
    conflicts, skipped = list(plan.conflicts), list(plan.skipped)
    held, ids = set(there.held), set(there.orders)
    added: dict[str, Any] = {}
    positions: list[Position] = []
    orders: list[Order] = []
    for key, entry in plan.positions.items():
        try:
            position = with_metadata(key, entry, exchange)
            if position.status.held and _one(position) in held:
                raise _Present(f"is there already, as {' '.join(_one(position))}")
            listed = [order_of(said, position.position_id) for said in _listed(entry)]
            _claim(ids, listed)
        except Unsuitable as error:
            if skip_existing and isinstance(error, _Present):
                skipped.append(key)
            else:
                conflicts.append(Conflict(POSITIONS, key, str(error)))
            continue
        if position.status.held:
            held.add(_one(position))
        added[key] = entry
        positions.append(position)
        orders += listed
    for name, value in plan.sections.items():
        if name != ORDERS or not isinstance(value, Mapping):
            why = "is no position, and the database has no place for it; import into a state file"
            conflicts.append(Conflict("sections", name, why))
            continue
        for order_id, said in value.items():
            if order_id in there.contents.sections[ORDERS]:
                continue  # of the merged section it is the part that is there
            try:
                order = order_of(said, None)
                _claim(ids, [order])
            except Unsuitable as error:
                conflicts.append(Conflict(ORDERS, order_id, str(error)))
            else:
                orders.append(order)
    plan = replace(plan, positions=added, skipped=tuple(skipped), conflicts=tuple(conflicts))
    return Prepared(plan, positions, orders)


def _listed(entry: Mapping[str, Any]) -> list[Any]:
    listed = entry.get(OF_ROW, [])
    if not isinstance(listed, list):
        raise Unsuitable(f"has {OF_ROW} that are no list")
    return listed


def _claim(ids: set[str], orders: Sequence[Order]) -> None:
    for order in orders:
        if order.order_id in ids:
            raise _Present(f"has the order {order.order_id:.60}, which is there already")
    ids.update(order.order_id for order in orders)


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
    price = next((entry[name] for name in _ENTRIES if entry.get(name) is not None), None)
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


def _one(position: Position) -> tuple[str, str, str]:
    return position.exchange, position.symbol, position.side.value


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
