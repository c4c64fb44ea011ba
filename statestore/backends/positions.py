"""The tables ``positions`` and ``orders``: rows in and out, and nothing about what they mean.

The only place with SQL about them (their shape is ``sql/0002_positions_orders.sql``). Every method
that takes a connection works inside the caller's transaction (`PositionTables.transaction`), so
that a position and its orders change together or not at all.

What is promised: numbers keep every digit, those inside ``metadata`` as well; instants are aware
and in UTC, to the microsecond; a query that fails raises, it is never an empty answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, LiteralString
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

if TYPE_CHECKING:
    from typing import TypeAlias

    import psycopg

    from statestore.backends.database import Database

    Connection: TypeAlias = psycopg.Connection[Any]

_HELD: LiteralString = "status IN ('OPEN', 'PARTIALLY_CLOSED')"
_LIVE: LiteralString = "status IN ('pending', 'open')"

# Somebody may sit on a row for ever, and a price that crosses has to be acted on. What the
# connection is told stays.
_PATIENCE = """
SELECT set_config('lock_timeout', '10s', true) WHERE current_setting('lock_timeout') = '0'
"""

# In the order of the functions that read and write a row, below.
_POSITION: LiteralString = (
    "id, exchange, symbol, side, quantity, initial_quantity, entry_price, current_price, "
    "unrealized_pnl, realized_pnl, stop_loss, take_profit, leverage, margin, status, opened_at, "
    "closed_at, metadata"
)
_ORDER: LiteralString = (
    "order_id, exchange, position_id, symbol, side, order_type, quantity, price, status, "
    "filled_quantity, filled_value, filled_price, fees, filled_at, oco_group, exchange_order_id, "
    "triggered_at, cancel_wanted_at, error_message, metadata, created_at"
)
_READ_POSITION: LiteralString = _POSITION.replace("id,", "id::text,", 1).replace(
    "metadata", "metadata::text"
)
_READ_ORDER: LiteralString = (
    _ORDER.replace(" position_id,", " position_id::text,")
    .replace("oco_group", "oco_group::text")
    .replace("metadata", "metadata::text")
)


# The tables hold nothing else (CHECK), so there is no spelling to be read.
_POSITION_SIDES = {side.value: side for side in PositionSide}
_POSITION_STATUSES = {status.value: status for status in PositionStatus}
_ORDER_SIDES = {side.value: side for side in OrderSide}
_ORDER_TYPES = {kind.value: kind for kind in OrderType}
_ORDER_STATUSES = {status.value: status for status in OrderStatus}


class PositionTables:
    """Positions and orders in one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def transaction(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """Give a connection inside a transaction: all of it, or nothing.

        Args:
            snapshot: read only, and all queries see the tables as they were at the first.

        Raises:
            BackendUnavailable, BackendError: as in `Database.transaction`; a row that somebody
                else has locked is waited for ten seconds.
        """
        with self.database.transaction() as connection:
            if snapshot:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            else:
                connection.execute(_PATIENCE)
            yield connection

    # Reading

    def positions(
        self,
        connection: Connection,
        *,
        exchange: str | None = None,
        held_only: bool = True,
    ) -> list[Position]:
        """Return positions, oldest first: one query, whatever their number."""
        rows = connection.execute(
            self._query(
                f"SELECT {_READ_POSITION} FROM {{schema}}.positions "
                f"WHERE (%(all)s OR {_HELD}) AND (%(exchange)s::text IS NULL "
                "OR exchange = %(exchange)s) ORDER BY opened_at, symbol, id"
            ),
            {"all": not held_only, "exchange": exchange},
        )
        return [_position(row) for row in rows]

    def orders(
        self,
        connection: Connection,
        *,
        exchange: str | None = None,
        held_only: bool = True,
    ) -> list[Order]:
        """Return orders, oldest first: one query, whatever their number.

        With ``held_only``: those that are not final, and every order of a position that is held.
        """
        rows = connection.execute(
            self._query(
                f"SELECT {_READ_ORDER} FROM {{schema}}.orders "
                f"WHERE (%(all)s OR {_LIVE} OR position_id IN (SELECT id FROM {{schema}}.positions "
                f"WHERE {_HELD})) AND (%(exchange)s::text IS NULL OR exchange = %(exchange)s) "
                "ORDER BY created_at, order_type, order_id"
            ),
            {"all": not held_only, "exchange": exchange},
        )
        return [_order(row) for row in rows]

    def load(
        self, *, exchange: str | None = None, held_only: bool = True
    ) -> tuple[list[Position], list[Order]]:
        """Return positions and orders as they were at one instant."""
        with self.transaction(snapshot=True) as connection:
            return (
                self.positions(connection, exchange=exchange, held_only=held_only),
                self.orders(connection, exchange=exchange, held_only=held_only),
            )

    def counted(self) -> dict[str, int]:
        """Return how many positions and orders there are, final ones as well."""
        with self.transaction(snapshot=True) as connection:
            counts = connection.execute(
                self._query(
                    "SELECT (SELECT count(*) FROM {schema}.positions), "
                    "(SELECT count(*) FROM {schema}.orders)"
                )
            ).fetchone()
        assert counts is not None
        return dict(zip(("positions", "orders"), counts, strict=True))

    def lock_all(self, connection: Connection) -> None:
        """Keep every other writer of positions out before the end of the transaction.

        Raises:
            BackendError: one of them does not end within ten seconds.
        """
        connection.execute(
            self._query(
                "LOCK TABLE {schema}.positions, {schema}.orders IN SHARE ROW EXCLUSIVE MODE"
            )
        )

    def lock_position(self, connection: Connection, position_id: str) -> Position | None:
        """Return a position that nobody else can change before the end of the transaction.

        Whoever changes a position or an order of it begins here, so two never wait for each other.
        """
        row = connection.execute(
            self._query(
                f"SELECT {_READ_POSITION} FROM {{schema}}.positions WHERE id = %s FOR UPDATE"
            ),
            [as_uuid(position_id)],
        ).fetchone()
        return None if row is None else _position(row)

    def orders_of(self, connection: Connection, position_id: str) -> list[Order]:
        """Return all orders of a position, oldest first, locked as the position is."""
        rows = connection.execute(
            self._query(
                f"SELECT {_READ_ORDER} FROM {{schema}}.orders WHERE position_id = %s "
                "ORDER BY created_at, order_type, order_id FOR UPDATE"
            ),
            [as_uuid(position_id)],
        )
        return [_order(row) for row in rows]

    def lock_order(self, connection: Connection, order_id: str) -> Order | None:
        """Return one order, locked. Lock its position first where it has one."""
        row = connection.execute(
            self._query(
                f"SELECT {_READ_ORDER} FROM {{schema}}.orders WHERE order_id = %s FOR UPDATE"
            ),
            [order_id],
        ).fetchone()
        return None if row is None else _order(row)

    def orders_named(
        self,
        connection: Connection,
        *,
        exchange: str,
        exchange_ids: Sequence[str],
        order_ids: Sequence[str],
    ) -> list[Order]:
        """Return the orders of an exchange that have one of these ids, its own or ours."""
        rows = connection.execute(
            self._query(
                f"SELECT {_READ_ORDER} FROM {{schema}}.orders WHERE exchange = %s "
                "AND (exchange_order_id = ANY(%s) OR order_id = ANY(%s)) "
                "ORDER BY created_at, order_type, order_id"
            ),
            [exchange, list(exchange_ids), list(order_ids)],
        )
        return [_order(row) for row in rows]

    def position_of(self, connection: Connection, order_id: str) -> str | None:
        """Return the id of an order's position; None where it has none, or there is no order."""
        row = connection.execute(
            self._query("SELECT position_id::text FROM {schema}.orders WHERE order_id = %s"),
            [order_id],
        ).fetchone()
        return None if row is None else row[0]

    # Writing

    def insert(self, positions: Iterable[Position], orders: Iterable[Order] = ()) -> None:
        """Add rows, all of them or none.

        Raises:
            BackendError: one is there already, or breaks a rule of the tables.
        """
        with self.transaction() as connection:
            self.insert_positions(connection, positions)
            self.insert_orders(connection, orders)

    def insert_positions(self, connection: Connection, positions: Iterable[Position]) -> None:
        rows = [_position_row(position) for position in positions]
        self._insert(connection, "positions", _POSITION, rows)

    def insert_orders(self, connection: Connection, orders: Iterable[Order]) -> None:
        rows = [_order_row(order) for order in orders]
        self._insert(connection, "orders", _ORDER, rows)

    def update_positions(self, connection: Connection, positions: Iterable[Position]) -> None:
        """Write every column of positions that are there."""
        rows = [_position_row(position) for position in positions]
        self._update(connection, "positions", _POSITION, rows)

    def update_orders(self, connection: Connection, orders: Iterable[Order]) -> None:
        """Write every column of orders that are there."""
        rows = [_order_row(order) for order in orders]
        self._update(connection, "orders", _ORDER, rows)

    def update_prices(self, connection: Connection, positions: Iterable[Position]) -> None:
        """Write the price of positions that are held, and the P&L at it; nothing else of them."""
        query = self._query(
            "UPDATE {schema}.positions SET current_price = %s, unrealized_pnl = "
            "(%s - entry_price) * quantity * CASE side WHEN 'LONG' THEN 1 ELSE -1 END "
            f"WHERE id = %s AND {_HELD}"
        )
        # In one order, or two who do this at once may wait for each other for ever.
        in_order = sorted(positions, key=lambda position: position.position_id)
        with connection.cursor() as cursor:
            cursor.executemany(
                query,
                [(p.current_price, p.current_price, as_uuid(p.position_id)) for p in in_order],
            )

    def _insert(
        self,
        connection: Connection,
        table: LiteralString,
        columns: LiteralString,
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        places = ", ".join(["%s"] * len(columns.split(", ")))
        if rows:
            query = self._query(f"INSERT INTO {{schema}}.{table} ({columns}) VALUES ({places})")
            with connection.cursor() as cursor:
                cursor.executemany(query, rows)

    def _update(
        self,
        connection: Connection,
        table: LiteralString,
        columns: LiteralString,
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        key, *others = columns.split(", ")
        settings = ", ".join(f"{column} = %s" for column in others)
        if rows:
            query = self._query(f"UPDATE {{schema}}.{table} SET {settings} WHERE {key} = %s")
            with connection.cursor() as cursor:
                cursor.executemany(query, [(*row[1:], row[0]) for row in rows])

    def _query(self, text: str) -> Any:
        # Made of the constants of this module; values never get in here.
        return self.database.query(text)


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


def _position(row: tuple[Any, ...]) -> Position:
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


def _position_row(position: Position) -> tuple[Any, ...]:
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


def _order(row: tuple[Any, ...]) -> Order:
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


def _order_row(order: Order) -> tuple[Any, ...]:
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
