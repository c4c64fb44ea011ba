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

from statestore import times
from statestore.backends.positions import PositionTables, Stamps
from statestore.disk.contract import BeforeCommit
from statestore.errors import ImportRefused
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
        prepared.insert(tables, connection)
        stamps = tables.stamps(
            connection,
            (position.position_id for position in prepared.positions),
            (order.order_id for order in prepared.orders),
        )
        before_commit()
    return prepared.plan, stamps


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
    with tables.rehearsal() as connection:
        prepared = prepare(
            envelope,
            _read(tables, connection),
            exchange=exchange,
            skip_existing=skip_existing,
            keep_ids=keep_ids,
        )
        if not prepared.plan.conflicts:
            prepared.insert(tables, connection)
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

    def insert(self, tables: PositionTables, connection: Any) -> None:
        tables.insert_positions(connection, self.positions)
        tables.insert_orders(connection, self.orders)


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
