"""``statestore orders``: what an operator sees of positions and orders in PostgreSQL."""

from __future__ import annotations

import pytest

from statestore.backends.database import Database
from statestore.runtime.orders import PositionManager
from statestore.simulated import SimulatedExchange
from tests.cli.conftest import Run
from tests.servers import PostgresServer, free_port


@pytest.fixture
def manager(database: Database) -> PositionManager:
    manager = PositionManager(database)
    manager.load_open_positions()
    return manager


@pytest.fixture
def orders(
    statestore: Run,
    postgres: PostgresServer,
    schema_name: str,
    manager: PositionManager,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.setenv("STATESTORE_DATABASE", postgres.url)
    return lambda name, *more: statestore("orders", name, "--schema", schema_name, *more)


def test_each_position_is_listed_with_its_orders(orders: Run, manager: PositionManager) -> None:
    opened = manager.open_position("BTC-USD", "long", "0.10", 60000, stop_loss=54000).position
    assert opened is not None
    manager.record_order("market", "buy", 1, symbol="ETH-USD")

    ran = orders("list")

    assert ran.code == 0
    (position,) = ran.json["positions"]
    assert (position["position_id"], position["status"]) == (opened.position_id, "OPEN")
    assert '"quantity": 0.10,' in ran.out
    assert [order["order_type"] for order in position["orders"]] == ["stop_loss"]
    assert [order["symbol"] for order in ran.json["orders"]] == ["ETH-USD"]
    assert "1 position(s) held" in ran.err


def test_what_nobody_watches_is_listed(orders: Run, manager: PositionManager) -> None:
    manager.open_position("SOL-USD", "long", 10, 200, stop_loss=180, take_profit=220)
    assert orders("unprotected", "--exit-code").json["unprotected"] == []
    bare = manager.open_position("BTC-USD", "long", 2, 60000).position
    assert bare is not None
    manager.attach_sl_tp(bare.position_id, stop_loss=54000, quantity="0.5")

    ran = orders("unprotected", "--exit-code")

    assert ran.code == 3
    assert (ran.json["positions"], ran.json["without_stop_loss"]) == (2, 1)
    (found,) = ran.json["unprotected"]
    assert (found["symbol"], found["missing"], found["price_says"]) == ("BTC-USD", 1.5, 54000)
    assert "BTC-USD LONG: 1.5 of 2 has no stop-loss" in ran.err
    assert orders("unprotected").code == 0


def test_orders_at_the_exchange_for_more_than_is_held_are_listed(
    orders: Run, manager: PositionManager
) -> None:
    held = manager.open_position("BTC-USD", "long", 1, 60000, stop_loss=54000, take_profit=66000)
    for order in held.orders:
        manager.record_result(order.order_id, "open", exchange_order_id=f"x-{order.order_type}")
    assert orders("unprotected", "--exit-code").code == 0
    assert held.position is not None
    manager.reduce_position(held.position.position_id, "0.25", 61000)

    ran = orders("unprotected", "--exit-code")

    assert ran.code == 3
    assert (ran.json["without_stop_loss"], ran.json["with_excess"]) == (0, 1)
    (found,) = ran.json["unprotected"]
    assert (found["symbol"], found["excess"], found["missing"]) == ("BTC-USD", 0.25, 0)
    assert "BTC-USD LONG: orders at the exchange close 0.25 more than the 0.75 held" in ran.err


def test_a_differing_order_is_named(
    orders: Run,
    manager: PositionManager,
    fake_exchange: SimulatedExchange,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    manager.open_position("BTC-USD", "long", 1, 60000, stop_loss=54000)
    (stop,) = manager.orders.values()
    manager.record_result(stop.order_id, "open", exchange_order_id="x-1")
    fake_exchange.set_order("x-1", "BTC-USD", "SELL")
    assert orders("reconcile", "--exit-code").json["agrees"] is True
    fake_exchange.set_order("x-1", "BTC-USD", "SELL", status="CANCELLED")

    ran = orders("reconcile", "--exit-code")

    assert ran.code == 3
    (found,) = ran.json["mismatch"]
    assert found["differ"] == {"status": {"here": "open", "exchange": "cancelled"}}
    assert "1 different" in ran.err
    assert {request.method for request in fake_exchange.requests} == {"GET"}


def test_a_source_that_tells_no_orders_is_refused(
    orders: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCXT_KRAKEN_API_KEY", "k")
    monkeypatch.setenv("CCXT_KRAKEN_SECRET", "s")
    ran = orders("reconcile", "--source", "ccxt:kraken")

    assert ran.code == 2
    assert "does not tell what became of orders" in ran.error


def test_no_database_is_usage_and_one_that_is_away_is_ten(
    statestore: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATESTORE_DATABASE", raising=False)
    ran = statestore("orders", "list")
    assert (ran.code, ran.out) == (2, "")
    assert "STATESTORE_DATABASE" in ran.error
    ran = statestore(
        "orders", "list", "--database", f"postgresql://b:s3cret@127.0.0.1:{free_port()}/x"
    )
    assert (ran.code, ran.out) == (10, "")
    assert "s3cret" not in ran.err


def test_missing_tables_name_the_command(statestore: Run, postgres: PostgresServer) -> None:
    ran = statestore("orders", "list", "--database", postgres.url, "--schema", "nothing_here")
    assert ran.code == 10
    assert "statestore db init" in ran.error
