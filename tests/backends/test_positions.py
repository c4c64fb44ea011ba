"""Positions and orders in tables: what goes in comes out, and what is no position is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from statestore.backends.database import Database
from statestore.backends.positions import PositionTables
from statestore.backends.rows import read_metadata
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

OPENED = datetime(2025, 10, 10, 16, 13, 1, 505817, tzinfo=UTC)


@pytest.fixture
def tables(database: Database) -> PositionTables:
    return PositionTables(database)


def position(symbol: str = "BTC/USDT", **said: Any) -> Position:
    given: dict[str, Any] = {
        "position_id": str(uuid4()),
        "exchange": "coinbase",
        "symbol": symbol,
        "side": PositionSide.LONG,
        "quantity": Decimal("0.00048"),
        "entry_price": Decimal("119170.84"),
        "entry_time": OPENED,
    }
    return Position(**given | said)


def stop(of: Position, **said: Any) -> Order:
    given: dict[str, Any] = {
        "order_id": str(uuid4()),
        "exchange": of.exchange,
        "position_id": of.position_id,
        "symbol": of.symbol,
        "side": OrderSide.SELL,
        "order_type": OrderType.STOP_LOSS,
        "quantity": of.quantity,
        "price": Decimal(100),
        "created_at": OPENED,
    }
    return Order(**given | said)


def test_every_digit_and_every_field_comes_back(tables: PositionTables) -> None:
    held = position(
        quantity=Decimal("0.000012345678901234567890"),
        initial_quantity=Decimal("123456789.123456789123456789"),
        current_price=Decimal("0.00000000000000000001"),
        unrealized_pnl=Decimal("-0.1"),
        realized_pnl=Decimal("0.2"),
        stop_loss=Decimal(1),
        take_profit=Decimal("2E+3"),
        leverage=None,
        margin=Decimal("1.50"),
        status=PositionStatus.PARTIALLY_CLOSED,
        metadata={"exact": Decimal("0.1234567890123456789012345"), "deep": [{"n": None}]},
    )
    order = stop(
        held,
        status=OrderStatus.OPEN,
        filled_quantity=Decimal("0.000001"),
        filled_value=Decimal("0.1"),
        filled_price=Decimal(100000),
        fees=Decimal("0.0001"),
        filled_at=OPENED,
        oco_group=str(uuid4()),
        exchange_order_id="x-1",
        triggered_at=OPENED,
        cancel_wanted_at=OPENED,
        error_message="refused once",
        metadata={"by": "test"},
    )
    tables.insert([held], [order])

    assert tables.load() == ([held], [order])


def test_a_positions_table_holds_one_open_position_of_a_symbol_and_side(
    tables: PositionTables,
) -> None:
    tables.insert([position(), position(side=PositionSide.SHORT), position(exchange="kraken")])
    tables.insert([position(status=PositionStatus.CLOSED, quantity=Decimal(0))] * 1)

    with pytest.raises(BackendError, match="positions_one_open"):
        tables.insert([position("SOL/USDT"), position()])
    assert len(tables.load()[0]) == 3  # none of the two


@pytest.mark.parametrize(
    "said",
    [
        {"quantity": Decimal(-1)},
        {"quantity": Decimal(0)},
        {"quantity": Decimal("NaN")},
        {"entry_price": Decimal("Infinity")},
        {"exchange": ""},
    ],
    ids=str,
)
def test_what_is_no_position_is_refused(tables: PositionTables, said: dict[str, Any]) -> None:
    with pytest.raises(BackendError):
        tables.insert([position(**said)])


@pytest.mark.parametrize(
    "said",
    [
        {"position_id": "00000000-0000-4000-8000-000000000000"},  # of no position
        {"position_id": None},  # a stop of nothing
        {"price": None},
        {"status": OrderStatus.FILLED},  # of nothing
        {"filled_quantity": Decimal("NaN")},
    ],
    ids=str,
)
def test_what_is_no_order_is_refused(tables: PositionTables, said: dict[str, Any]) -> None:
    held = position()
    with pytest.raises(BackendError):
        tables.insert([held], [stop(held, **said)])


def test_one_exchange_order_is_one_row(tables: PositionTables) -> None:
    held = position()
    tables.insert([held], [stop(held, exchange_order_id="x-1"), stop(held), stop(held)])

    with pytest.raises(BackendError, match="orders_exchange_order_id"):
        tables.insert([], [stop(held, exchange_order_id="x-1")])


def test_a_time_without_a_zone_is_refused(tables: PositionTables) -> None:
    with pytest.raises(UsageError, match="zone"):
        tables.insert([position(entry_time=OPENED.replace(tzinfo=None))])


def test_the_indexes_are_there(tables: PositionTables) -> None:
    with tables.transaction() as connection:
        rows = connection.execute(
            "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = %s",
            [tables.database.schema],
        ).fetchall()
    indexed = {
        (table, column)
        for table, definition in rows
        for column in definition.partition("(")[2].partition(")")[0].split(", ")
    }
    assert {
        ("orders", name) for name in ("symbol", "status", "order_type", "position_id", "oco_group")
    } <= indexed
    assert {("orders", "exchange_order_id"), ("positions", "symbol")} <= indexed


def test_updated_at_moves_with_every_change(tables: PositionTables) -> None:
    held = position()
    tables.insert([held], [stop(held)])
    query = tables.database.query(
        "SELECT p.updated_at, o.updated_at FROM {schema}.positions p, {schema}.orders o"
    )
    with tables.transaction() as connection:
        before = connection.execute(query).fetchone()
    with tables.transaction() as connection:
        tables.update_positions(connection, [held])
        tables.update_orders(connection, tables.orders_of(connection, held.position_id))
        after = connection.execute(query).fetchone()

    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert after[1] > before[1]


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (None, {}),
        ('{"a": 0.10}', {"a": Decimal("0.10")}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("null", {}),
    ],
)
def test_metadata_is_read_from_null_from_an_object_and_from_a_text(
    tables: PositionTables, stored: str | None, read: dict[str, Any]
) -> None:
    assert read_metadata(stored) == read
    if stored != "null":  # of JSON, which the table refuses
        tables.insert([position()])
        with tables.transaction() as connection:
            connection.execute(
                tables.database.query("UPDATE {schema}.positions SET metadata = %s::jsonb"),
                [stored],
            )
        assert tables.load()[0][0].metadata == read


def test_zero_is_a_value_and_null_is_none() -> None:
    """Document 004 tested ``if row['current_price']``, which takes a price of 0 for none."""
    known = position(current_price=Decimal(0))
    unknown = position()

    assert known.current_price == 0
    assert unknown.current_price == unknown.entry_price


def test_nulls_of_the_table_fall_back(tables: PositionTables) -> None:
    tables.insert([position(stop_loss=Decimal(1))])
    with tables.transaction() as connection:
        connection.execute(
            tables.database.query(
                "UPDATE {schema}.positions SET current_price = NULL, unrealized_pnl = NULL, "
                "realized_pnl = NULL, stop_loss = NULL, take_profit = NULL, metadata = NULL"
            )
        )
    (held,) = tables.load()[0]

    assert held.current_price == held.entry_price
    assert (held.unrealized_pnl, held.realized_pnl, held.total_pnl) == (0, 0, 0)
    assert (held.stop_loss, held.take_profit, held.metadata) == (None, None, {})


@pytest.mark.parametrize("said", ["LONG", "long", " Long ", "buy", "BUY"])
def test_a_side_is_read_in_any_spelling(said: str) -> None:
    assert PositionSide(said) is PositionSide.LONG
    assert OrderStatus("CANCELED") is OrderStatus.CANCELLED
    assert OrderType("STOP_LOSS") is OrderType.STOP_LOSS


@pytest.mark.parametrize("said", ["", "longer", None, 1])
def test_a_side_that_is_none_is_refused(said: Any) -> None:
    with pytest.raises(ValueError):
        PositionSide(said)
