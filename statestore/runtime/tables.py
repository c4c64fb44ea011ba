"""Rows of an export in the tables ``positions`` and ``orders`` of a database, and back.

What a row becomes, and how it comes back, is in `rows`; here is what is there, and what may be
added to it. Orders keep their ids, by which the exchange knows them. Live orders without a position
are the section ``orders``.

An import is one transaction, under a lock of the table: all of it, or nothing. What the tables
cannot hold is a conflict, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from statestore.backends.positions import PositionTables
from statestore.disk.contract import BeforeCommit
from statestore.model import Order, Position, PositionStatus
from statestore.runtime.envelope import Envelope
from statestore.runtime.rows import (
    NOTE,
    Unsuitable,
    order_json,
    order_of,
    orders_of,
    row_of,
    with_metadata,
)
from statestore.runtime.transfer import POSITIONS, Conflict, Contents, Import, plan_import

ORDERS = "orders"


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


# Writing


def import_tables(
    tables: PositionTables,
    envelope: Envelope,
    *,
    exchange: str,
    skip_existing: bool = False,
    keep_ids: bool = False,
    before_commit: BeforeCommit,
) -> Import:
    """Import into the tables in one transaction; return what was done.

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
        before_commit()
    return prepared.plan


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
            position, listed = _fitting(key, entry, exchange, held, ids)
        except Unsuitable as error:
            if skip_existing and isinstance(error, _Present):
                skipped.append(key)
            else:
                conflicts.append(Conflict(POSITIONS, key, str(error)))
            continue
        added[key] = entry
        positions.append(position)
        orders += listed
    for name, value in plan.sections.items():
        if name != ORDERS or not isinstance(value, Mapping):
            why = "is no position, and the database has no place for it; import into a state file"
            conflicts.append(Conflict("sections", name, why))
            continue
        # Of the merged section, the rest is there.
        new = {one: said for one, said in value.items() if one not in there.contents.sections[name]}
        loose, refused = _loose(new, ids)
        orders += loose
        conflicts += refused
    plan = replace(plan, positions=added, skipped=tuple(skipped), conflicts=tuple(conflicts))
    return Prepared(plan, positions, orders)


def _fitting(
    key: str, entry: Any, exchange: str, held: set[tuple[str, str, str]], ids: set[str]
) -> tuple[Position, list[Order]]:
    """Return what a row adds, and take it into what is held and known.

    Raises:
        Unsuitable: the tables cannot hold it, or (`_Present`) hold it already.
    """
    position = with_metadata(key, entry, exchange)
    if position.status.held and _one(position) in held:
        raise _Present(f"is there already, as {' '.join(_one(position))}")
    orders = orders_of(entry, position.position_id)
    _claim(ids, orders)
    if position.status.held:
        held.add(_one(position))
    return position, orders


def _loose(section: Mapping[str, Any], ids: set[str]) -> tuple[list[Order], list[Conflict]]:
    """Return the orders without a position that are added, and what cannot be."""
    orders, conflicts = [], []
    for order_id, said in section.items():
        try:
            order = order_of(said, None)
            _claim(ids, [order])
        except Unsuitable as error:
            conflicts.append(Conflict(ORDERS, order_id, str(error)))
        else:
            orders.append(order)
    return orders, conflicts


def _claim(ids: set[str], orders: Sequence[Order]) -> None:
    for order in orders:
        if order.order_id in ids:
            raise _Present(f"has the order {order.order_id:.60}, which is there already")
    ids.update(order.order_id for order in orders)


def _one(position: Position) -> tuple[str, str, str]:
    return position.exchange, position.symbol, position.side.value
