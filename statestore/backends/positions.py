"""The tables ``positions`` and ``orders``: what is asked of them, and nothing about what it means.

The only place with statements about them (their shape is ``sql/0002_positions_orders.sql``; a row
and the value it is are in `statestore.backends.rows`). Every method that takes a connection works
inside the caller's transaction (`PositionTables.transaction`), so that a position and its orders
change together or not at all.

What is promised: a query that fails raises, it is never an empty answer. That two writers do not
wait for each other for ever is up to them: both begin with `PositionTables.lock_position`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from statestore import times
from statestore.backends.rows import (
    ORDER,
    POSITION,
    READ_ORDER,
    READ_POSITION,
    as_uuid,
    order_of_row,
    position_of_row,
    row_of_order,
    row_of_position,
)
from statestore.model import Order, Position

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
SELECT clock_timestamp(), CASE WHEN current_setting('lock_timeout') = '0'
    THEN set_config('lock_timeout', '10s', true) END
"""
# Two statements on one way there and back.
_SNAPSHOT = """
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT clock_timestamp()
"""


class Stamps(NamedTuple):
    """Rows by their ids, and the instant each was written last: a trigger notes every update."""

    positions: dict[str, int]
    orders: dict[str, int]


class Clock:
    """The database's clock: as each transaction read it, and from there on with this machine's.

    Machines whose clocks differ have one this way. Before the first look it is this machine's.

    Attributes:
        machine: the clock of this machine.
    """

    def __init__(self) -> None:
        self.machine: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        return self.machine() + self._ahead

    def set(self, there: datetime) -> None:
        """Take over what the database's clock says at this moment."""
        self._ahead = there - self.machine()


class PositionTables:
    """Positions and orders in one database.

    Attributes:
        clock: the database's.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()

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
            cursor = connection.execute(_SNAPSHOT if snapshot else _PATIENCE)
            while cursor.nextset():
                pass
            ((there, *_),) = cursor
            self.clock.set(there)
            yield connection

    @contextmanager
    def rehearsal(self) -> Iterator[Connection]:
        """Give a connection inside a transaction that is taken back: what it would have done.

        All queries see the tables as they were at the first. Raises as `transaction` does.
        """
        with self.database.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute(_PATIENCE)
            yield connection
            connection.rollback()

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
                f"SELECT {READ_POSITION} FROM {{schema}}.positions "
                f"WHERE (%(all)s OR {_HELD}) AND (%(exchange)s::text IS NULL "
                "OR exchange = %(exchange)s) ORDER BY opened_at, symbol, id"
            ),
            {"all": not held_only, "exchange": exchange},
        )
        return [position_of_row(row) for row in rows]

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
                f"SELECT {READ_ORDER} FROM {{schema}}.orders "
                f"WHERE (%(all)s OR {_LIVE} OR position_id IN (SELECT id FROM {{schema}}.positions "
                f"WHERE {_HELD})) AND (%(exchange)s::text IS NULL OR exchange = %(exchange)s) "
                "ORDER BY created_at, order_type, order_id"
            ),
            {"all": not held_only, "exchange": exchange},
        )
        return [order_of_row(row) for row in rows]

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
                f"SELECT {READ_POSITION} FROM {{schema}}.positions WHERE id = %s FOR UPDATE"
            ),
            [as_uuid(position_id)],
        ).fetchone()
        return None if row is None else position_of_row(row)

    def orders_of(self, connection: Connection, position_id: str) -> list[Order]:
        """Return all orders of a position, oldest first, locked as the position is."""
        rows = connection.execute(
            self._query(
                f"SELECT {READ_ORDER} FROM {{schema}}.orders WHERE position_id = %s "
                "ORDER BY created_at, order_type, order_id FOR UPDATE"
            ),
            [as_uuid(position_id)],
        )
        return [order_of_row(row) for row in rows]

    def lock_order(self, connection: Connection, order_id: str) -> Order | None:
        """Return one order, locked. Lock its position first where it has one."""
        row = connection.execute(
            self._query(
                f"SELECT {READ_ORDER} FROM {{schema}}.orders WHERE order_id = %s FOR UPDATE"
            ),
            [order_id],
        ).fetchone()
        return None if row is None else order_of_row(row)

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
                f"SELECT {READ_ORDER} FROM {{schema}}.orders WHERE exchange = %s "
                "AND (exchange_order_id = ANY(%s) OR order_id = ANY(%s)) "
                "ORDER BY created_at, order_type, order_id"
            ),
            [exchange, list(exchange_ids), list(order_ids)],
        )
        return [order_of_row(row) for row in rows]

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
        rows = [row_of_position(position) for position in positions]
        self._insert(connection, "positions", POSITION, rows)

    def insert_orders(self, connection: Connection, orders: Iterable[Order]) -> None:
        rows = [row_of_order(order) for order in orders]
        self._insert(connection, "orders", ORDER, rows)

    def stamps(
        self, connection: Connection, position_ids: Iterable[str], order_ids: Iterable[str]
    ) -> Stamps:
        """Return when rows were written last, of those that are there.

        Every order of the positions is among them, named or not.
        """
        ids = [as_uuid(position_id) for position_id in position_ids]
        positions = connection.execute(
            self._query(
                "SELECT id::text, updated_at FROM {schema}.positions WHERE id = ANY(%s) ORDER BY id"
            ),
            [ids],
        ).fetchall()
        orders = connection.execute(
            self._query(
                "SELECT order_id, updated_at FROM {schema}.orders "
                "WHERE order_id = ANY(%s) OR position_id = ANY(%s) ORDER BY order_id"
            ),
            [list(order_ids), ids],
        ).fetchall()
        return Stamps(
            *({i: times.instant_of(at) for i, at in rows} for rows in (positions, orders))
        )

    def delete(self, connection: Connection, stamps: Stamps) -> None:
        """Delete rows, orders before their positions."""
        connection.execute(
            self._query("DELETE FROM {schema}.orders WHERE order_id = ANY(%s)"),
            [list(stamps.orders)],
        )
        connection.execute(
            self._query("DELETE FROM {schema}.positions WHERE id = ANY(%s)"),
            [[as_uuid(position_id) for position_id in stamps.positions]],
        )

    def update_positions(self, connection: Connection, positions: Iterable[Position]) -> None:
        """Write every column of positions that are there."""
        rows = [row_of_position(position) for position in positions]
        self._update(connection, "positions", POSITION, rows)

    def update_orders(self, connection: Connection, orders: Iterable[Order]) -> None:
        """Write every column of orders that are there."""
        rows = [row_of_order(order) for order in orders]
        self._update(connection, "orders", ORDER, rows)

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
