"""What loading positions and their orders costs, beside the bare query for the same rows.

A PostgreSQL of its own is started, unless a URL is given (a schema ``bench_orders`` is made there
and dropped at the end). Runs are interleaved, medians are printed.

    python benchmarks/orders.py [--positions 10000] [--runs 7] [URL]

"bare" fetches the same rows with psycopg and keeps them as tuples.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.backends import rows
from statestore.backends.database import Database
from statestore.backends.positions import PositionTables
from statestore.model import Order, OrderSide, OrderType, Position, PositionSide
from statestore.runtime.monitor import PositionMonitor
from statestore.runtime.orders import PositionManager
from tests.servers import running_postgres

AT = datetime(2025, 11, 18, 4, tzinfo=UTC)


def fill(tables: PositionTables, count: int) -> None:
    held = [
        Position(
            position_id=str(uuid4()),
            exchange="coinbase",
            symbol=f"A{number}-USD",
            side=PositionSide.LONG,
            quantity=Decimal("0.00088729"),
            entry_price=Decimal("2975.32"),
            entry_time=AT,
        )
        for number in range(count)
    ]
    orders = [
        Order(
            order_id=str(uuid4()),
            exchange="coinbase",
            position_id=position.position_id,
            symbol=position.symbol,
            side=OrderSide.SELL,
            order_type=kind,
            quantity=position.quantity,
            price=position.entry_price * factor,
        )
        for position in held
        for kind, factor in (
            (OrderType.STOP_LOSS, Decimal("0.9")),
            (OrderType.TAKE_PROFIT, Decimal("1.1")),
        )
    ]
    tables.insert(held, orders)


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def bench(database: Database, count: int, runs: int) -> None:
    database.upgrade()
    tables = PositionTables(database)
    inserting = seconds(lambda: fill(tables, count))
    print(f"{count} positions and {2 * count} orders inserted in {inserting:.2f} s")
    price = Decimal("2975.32")

    def bare() -> None:
        with tables.transaction(snapshot=True) as connection:
            for columns, table in (
                (rows.READ_POSITION, "positions"),
                (rows.READ_ORDER, "orders"),
            ):
                query = f"SELECT {columns} FROM {{schema}}.{table}"
                connection.execute(database.query(query)).fetchall()

    loaded = PositionManager(database)
    loaded.load_open_positions()
    symbols = [position.symbol for position in loaded.get_all_positions()]
    monitor = PositionMonitor(loaded, lambda _: dict.fromkeys(symbols, price), print)
    steps: dict[str, Callable[[], object]] = {
        "bare": bare,
        "load": lambda: PositionManager(database).load_open_positions(),
        "cycle": monitor.cycle,
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:>6}  {1000 * median:8.1f} ms  {median / medians['bare']:5.2f} x bare")
    print(f"load, for each position: {1e6 * medians['load'] / count:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    with nullcontext() if asked.url else running_postgres() as server:
        database = Database(asked.url or server.url, schema="bench_orders")
        try:
            bench(database, asked.positions, asked.runs)
        finally:
            with database.transaction() as connection:
                connection.execute(database.query("DROP SCHEMA IF EXISTS {schema} CASCADE"))
            database.close()


if __name__ == "__main__":
    main()
