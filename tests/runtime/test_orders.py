"""Positions and their orders on a real PostgreSQL: loaded, protected, closed once."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from statestore import KillSwitch, StateStore
from statestore.backends.database import Database
from statestore.backends.positions import PositionTables
from statestore.errors import (
    AlreadyRecorded,
    BackendError,
    BackendUnavailable,
    IllegalMove,
    SchemaOutdated,
    UsageError,
)
from statestore.model import ExchangeOrder
from statestore.runtime.orders import (
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionManager,
    PositionSide,
    PositionStatus,
)
from tests.backends.proxy import AFTER, BEFORE, PASS, UNANSWERED, Proxy
from tests.servers import free_port

D = Decimal
NOBODY = "00000000-0000-4000-8000-000000000000"
OPENED = datetime(2025, 10, 10, 16, 13, 1, 505817, tzinfo=UTC)
HELD = {
    "BTC/USDT": ("0.00048", "119170.84"),
    "SOL/USDT": ("0.184", "211.31"),
    "ETH/USDT": ("0.0047", "4107.60"),
}


class Now:
    def __init__(self):
        self.at = OPENED

    def __call__(self):
        return self.at


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def restart(database, now, tmp_path):
    """A manager of a process of its own, which has loaded what there is."""

    def restart(**options):
        switch = KillSwitch(tmp_path / "KILL_SWITCH")
        manager = PositionManager(database, now=now, **{"kill_switch": switch} | options)
        manager.load_open_positions()
        return manager

    return restart


@pytest.fixture
def manager(restart):
    return restart()


@pytest.fixture
def bot(manager):
    """Three positions, each with a stop-loss and a take-profit."""
    for symbol, (quantity, entry) in HELD.items():
        price = D(entry)
        manager.open_position(
            symbol,
            "long",
            quantity,
            entry,
            stop_loss=price * D("0.9"),
            take_profit=price * D("1.1"),
        )
    return manager


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="statestore")
    return lambda name: [record for record in caplog.records if record.message == name]


def held(manager, symbol):
    (found,) = [p for p in manager.get_all_positions() if p.symbol == symbol]
    return found


def order_of(manager, position, kind):
    (found,) = [
        o for o in manager.orders_of(position.position_id) if o.order_type == kind and o.status.live
    ]
    return found


def report(order, status="filled", filled=None, price=None, **said):
    filled = order.quantity if filled is None else D(filled)
    return ExchangeOrder(
        exchange_order_id=order.exchange_order_id or "",
        symbol=order.symbol,
        side=order.side,
        status=OrderStatus(status),
        said=status,
        filled_quantity=filled,
        filled_value=filled * (D(price) if price else order.price),
        **said,
    )


def row(database, query, *values):
    with database.transaction() as connection:
        return connection.execute(database.query(query), values).fetchone()


# Loading


def test_nothing_is_said_of_what_was_not_loaded(database):
    manager = PositionManager(database)

    for look in (lambda: manager.positions, lambda: manager.orders, manager.get_all_positions):
        with pytest.raises(UsageError, match="not known"):
            look()


def test_a_database_without_positions_is_a_known_nothing(said, restart):
    manager = restart()

    assert manager.positions == {}
    (line,) = said("no_open_positions_in_db")
    assert line.exchange == "coinbase"


def test_what_was_loaded_is_said(bot, restart, said):
    manager = restart()

    (line,) = said("positions_loaded_from_db")
    assert (line.count, sorted(line.symbols)) == (3, sorted(HELD))
    assert manager.loaded


def test_positions_resume_exactly_where_they_left_off(bot, restart):
    bot.update_prices({"BTC/USDT": "119000", "SOL/USDT": "212", "ETH/USDT": "4111"}, write=True)
    bot.reduce_position(held(bot, "SOL/USDT").position_id, "0.084", "220")
    bot.refresh()

    after = restart()

    assert after.positions == bot.positions
    assert after.orders == bot.orders
    sol = held(after, "SOL/USDT")
    # Document 004 lost these three at a reload, and took the entry price for the current one.
    assert (sol.initial_quantity, sol.status) == (D("0.184"), "PARTIALLY_CLOSED")
    assert sol.current_price == 212


def test_only_what_is_held_on_this_exchange_is_loaded(bot, restart):
    btc, sol = held(bot, "BTC/USDT"), held(bot, "SOL/USDT")
    bot.reduce_position(btc.position_id, btc.quantity, "1")
    bot.reduce_position(sol.position_id, "0.1", "1")

    assert {p.symbol for p in restart().get_all_positions()} == {"SOL/USDT", "ETH/USDT"}
    assert restart(exchange="kraken").positions == {}


def test_an_order_is_found_by_its_position_after_a_restart(bot, restart):
    """Document 004 made a new id at each start, and every stop-loss was an orphan."""
    before = {
        position.position_id: {o.order_id for o in bot.orders_of(position.position_id)}
        for position in bot.get_all_positions()
    }

    after = restart()

    assert len(after.orders) == 6
    assert before == {
        position_id: {order.order_id for order in after.orders_of(position_id)}
        for position_id in after.positions
    }
    assert after.unprotected() == []


@pytest.mark.parametrize(
    "legacy",
    [
        "BTC/USDT_long_{:.6f}",  # as document 004 wrote it at the opening
        "BTC/USDT_LONG_{:.5f}",  # and at the reload
    ],
)
def test_an_id_of_document_004_finds_its_position(bot, legacy):
    btc = held(bot, "BTC/USDT")

    assert bot.find(legacy.format(OPENED.timestamp())) is btc
    assert bot.find(btc.position_id.upper()) is btc


@pytest.mark.parametrize(
    "strange",
    ["BTC/USDT_SHORT_1760112781.5", "BTC/USDT_LONG_1", "BTC/USDT_LONG_x", "", "x", NOBODY],
)
def test_an_id_of_nothing_finds_nothing(bot, strange):
    assert bot.find(strange) is None


def test_ten_thousand_positions_are_two_queries(database, restart, monkeypatch):
    import psycopg

    tables = PositionTables(database)
    positions = [
        Position(
            position_id=str(uuid4()),
            exchange="coinbase",
            symbol=f"A{number}-USD",
            side=PositionSide.LONG,
            quantity=D(1),
            entry_price=D(100),
            entry_time=OPENED,
        )
        for number in range(10_000)
    ]
    orders = [
        Order(
            order_id=str(uuid4()),
            exchange="coinbase",
            position_id=position.position_id,
            symbol=position.symbol,
            side=OrderSide.SELL,
            order_type=kind,
            quantity=D(1),
            price=D(90),
        )
        for position in positions
        for kind in (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)
    ]
    tables.insert(positions, orders)
    asked = []
    execute = psycopg.Cursor.execute

    def spy(cursor, query, *arguments, **options):
        asked.append(query.as_string(cursor) if hasattr(query, "as_string") else str(query))
        return execute(cursor, query, *arguments, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", spy)
    manager = restart()

    assert (len(manager.positions), len(manager.orders)) == (10_000, 20_000)
    first, second = [query for query in asked if " FROM " in query]
    assert first.startswith("SELECT id")
    assert second.startswith("SELECT order_id")


def test_a_load_that_failed_is_not_no_positions(tmp_path, said):
    """Document 004 logged the error and traded on with nothing in its hands."""
    gone = Database(f"postgresql://bot@127.0.0.1:{free_port()}/x", timeout=0.5)
    manager = PositionManager(gone, kill_switch=KillSwitch(tmp_path / "KILL_SWITCH"))

    with pytest.raises(BackendUnavailable):
        manager.load_open_positions()
    assert not manager.loaded
    assert not manager.kill_switch.engaged()
    assert manager.load_open_positions(on_failure="halt") is None
    assert manager.kill_switch.engaged()
    assert "could not be loaded" in manager.kill_switch.details()["reason"]
    (line,) = said("open positions could not be loaded: halted")
    assert (line.operation, line.levelname) == ("load_open_positions", "ERROR")
    with pytest.raises(UsageError):
        manager.positions  # noqa: B018
    assert said("no_open_positions_in_db") == []
    gone.close()


def test_a_halt_is_one_although_the_shared_switch_is_in_the_same_database(tmp_path, said):
    away = f"postgresql://bot@127.0.0.1:{free_port()}/x"
    store = StateStore(away, connect_timeout=0.5)
    switch = store.kill_switch(tmp_path / "KILL_SWITCH")
    manager = PositionManager(away, kill_switch=switch)

    assert manager.load_open_positions(on_failure="halt") is None
    assert (tmp_path / "KILL_SWITCH").exists()
    (line,) = said("open positions could not be loaded: halted")
    assert "on this machine only" in line.kill_switch
    store.close()


def test_to_halt_needs_something_to_halt_by(database):
    with pytest.raises(UsageError, match="kill switch"):
        PositionManager(database).load_open_positions(on_failure="halt")


def test_a_row_that_is_no_position_fails_the_load(bot, restart, database):
    row(database, "UPDATE {schema}.positions SET metadata = '\"junk\"' RETURNING id")

    with pytest.raises(BackendError, match=r"position .*metadata"):
        restart()


def test_tables_that_are_not_there_name_the_command(postgres, schema_name):
    database = Database(postgres.url, schema=schema_name)
    with pytest.raises(SchemaOutdated, match="statestore db init"):
        PositionManager(database).load_open_positions()
    database.close()


def test_a_refresh_that_fails_leaves_what_is_known(bot, monkeypatch):
    monkeypatch.setattr(bot.tables.database, "_url", f"postgresql://bot@127.0.0.1:{free_port()}/x")
    bot.tables.database.close()
    monkeypatch.setattr(bot.tables.database, "_timeout", 0.5)

    with pytest.raises(BackendUnavailable):
        bot.refresh()
    assert len(bot.positions) == 3
    bot.tables.database.close()


# What the documents name


def test_a_position_has_the_documented_fields_and_needs_few_of_them():
    """The document says 17 fields and lists these 16; the code of then had 16 as well."""
    named = {
        *("position_id", "symbol", "side", "quantity", "initial_quantity"),
        *("entry_price", "current_price"),
        *("unrealized_pnl", "unrealized_pnl_pct", "realized_pnl", "total_pnl"),
        *("stop_loss", "take_profit", "entry_time", "status", "metadata"),
    }
    assert named | {"exchange"} <= {field.name for field in fields(Position)}
    assert len(named | {"exchange"}) == 17
    assert all(
        parameter.kind is inspect.Parameter.KEYWORD_ONLY
        for parameter in inspect.signature(Position).parameters.values()
    )
    few = Position(
        position_id="p",
        exchange="coinbase",
        symbol="BTC-USD",
        side=PositionSide("BUY"),
        quantity=D(1),
        entry_price=D(100),
        entry_time=OPENED,
    )
    assert (few.initial_quantity, few.current_price, few.total_pnl) == (1, 100, 0)
    assert (few.status, few.metadata) == (PositionStatus.OPEN, {})


def test_an_opened_position_is_in_the_public_dict(manager):
    opened = manager.open_position("BTC-USD", "LONG", 1, "100.5").position

    assert manager.positions[opened.position_id] == opened
    assert manager.unprotected()[0].missing == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"quantity": 0}, "above 0"),
        ({"quantity": "x"}, "decimal"),
        ({"quantity": float("nan")}, "decimal"),
        ({"side": "up"}, "LONG, SHORT"),
        ({"entry_price": -1}, "0 or above"),
        ({"stop_loss": 120, "take_profit": 110}, "below its take-profit"),
        ({"stop_loss": 0}, "stop_loss is 0; it has to be above 0"),
        ({"take_profit": 0}, "take_profit is 0; it has to be above 0"),  # sold all, at once
        ({"symbol": "\udcff"}, "no text that can be stored"),
        ({"side": "short", "stop_loss": 90, "take_profit": 110}, "above its take-profit"),
        ({"quantity": "0.015"}, "base increment"),
        ({"opened_by": "nobody"}, "is not recorded"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused_before_it_is_recorded(restart, said, why):
    manager = restart(increments={"BTC-USD": D("0.01")})
    given = {"symbol": "BTC-USD", "side": "long", "quantity": 1, "entry_price": 100} | said
    with pytest.raises((UsageError, BackendError), match=why):
        manager.open_position(**given)
    assert restart().positions == {}


def test_a_second_position_of_one_symbol_and_side_is_refused(bot):
    with pytest.raises(BackendError, match="positions_one_open"):
        bot.open_position("BTC/USDT", "long", 1, 1)
    assert len(bot.positions) == 3


# Orders


def test_an_order_is_recorded_before_it_is_sent_and_opens_a_position_when_filled(
    manager, restart, said
):
    order = manager.record_order("market", "buy", "0.5", symbol="BTC-USD").orders[0]
    assert restart().orders[order.order_id].status is OrderStatus.PENDING

    manager.record_result(
        order.order_id, "FILLED", exchange_order_id="x-1", filled_quantity="0.5", filled_price=60000
    )
    assert said("filled: a position may be opened")
    with pytest.raises(UsageError, match=r"has 0\.5 filled"):
        manager.open_position("BTC-USD", "long", "0.4", 60000, opened_by=order.order_id)
    for symbol, side in (("BTC-USD", "short"), ("ETH-USD", "long")):
        with pytest.raises(UsageError, match="cannot have opened"):
            manager.open_position(symbol, side, "0.5", 60000, opened_by=order.order_id)
    opened = manager.open_position(
        "BTC-USD", "long", "0.5", 60000, opened_by=order.order_id
    ).position

    after = restart()
    assert after.orders[order.order_id].position_id == opened.position_id
    assert after.positions[opened.position_id].quantity == D("0.5")
    with pytest.raises(UsageError, match="belongs to"):
        manager.open_position("ETH-USD", "long", 1, 1, opened_by=order.order_id)


def test_what_a_linked_order_still_fills_is_booked(manager):
    order = manager.record_order(
        "limit", "buy", 2, symbol="BTC-USD", price=100, status="open", exchange_order_id="x-1",
        filled_quantity=1, filled_price=100,
    ).orders[0]  # fmt: skip
    manager.open_position("BTC-USD", "long", 1, 100, opened_by=order.order_id)

    done = manager.record_result(order.order_id, "filled", filled_quantity=2, filled_price=110)

    assert (done.position.quantity, done.position.entry_price) == (2, 110)
    assert done.position.initial_quantity == 2


def test_a_refused_stop_loss_is_not_pending(bot):
    """Document 004 stored it as pending: the executor returns a REJECTED object, and it is true."""
    btc = held(bot, "BTC/USDT")
    stop = order_of(bot, btc, "stop_loss")

    bot.record_result(stop.order_id, "REJECTED", reason="insufficient balance")

    assert bot.orders[stop.order_id].status is OrderStatus.REJECTED
    assert bot.orders[stop.order_id].error_message == "insufficient balance"
    (found,) = bot.unprotected()
    assert (found.position.symbol, found.missing) == ("BTC/USDT", btc.quantity)


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("no\0funds", r"no\x00funds"), ("no \udcff", r"no \udcff"), ("x" * 9999, "x" * 9999)],
    ids=["nul", "half a character", "long"],
)
def test_a_refusal_is_recorded_whatever_its_reason_is_made_of(bot, restart, reason, kept):
    stop = order_of(bot, held(bot, "BTC/USDT"), "stop_loss")
    bot.record_result(stop.order_id, "rejected", reason=reason)

    after = restart()
    assert [p.position.symbol for p in after.unprotected()] == ["BTC/USDT"]
    assert after.orders[stop.order_id].error_message == kept


@pytest.mark.parametrize(
    ("side", "wrong"), [("long", "buy"), ("short", "sell"), ("long", None)], ids=str
)
def test_a_stop_that_closes_nothing_is_refused(manager, restart, side, wrong):
    """It counted as protection, and no price made it act."""
    position = manager.open_position("BTC-USD", side, 1, 100).position
    given = {"position_id": position.position_id} if wrong else {"symbol": "BTC-USD"}
    with pytest.raises(UsageError, match="closes nothing"):
        manager.record_order("stop_loss", wrong or "sell", 1, price=90, **given)
    assert restart().orders == {}
    assert len(manager.unprotected()) == 1


def test_a_refused_close_leaves_the_position_open(bot, restart):
    """Document 004 set the order FILLED and the position CLOSED while the exchange held it."""
    btc = held(bot, "BTC/USDT")
    done = bot.record_order(
        "market", "sell", btc.quantity, position_id=btc.position_id, status="rejected", reason="no"
    )

    assert done.position == btc
    assert restart().positions[btc.position_id] == btc
    assert len([o for o in restart().orders_of(btc.position_id) if o.status.live]) == 2


@pytest.mark.parametrize("first", ["filled", "cancelled", "rejected"])
@pytest.mark.parametrize("then", ["pending", "open", "filled", "cancelled", "rejected"])
def test_an_illegal_move_raises_and_changes_nothing(bot, restart, first, then):
    stop = order_of(bot, held(bot, "BTC/USDT"), "stop_loss")
    filled = {"filled_quantity": stop.quantity, "filled_price": 1} if first == "filled" else {}
    bot.record_result(stop.order_id, first, **filled)
    before = bot.tables.load(held_only=False)

    if first == then:
        assert bot.record_result(stop.order_id, then).orders == ()
    else:
        with pytest.raises(IllegalMove):
            bot.record_result(stop.order_id, then, filled_quantity=1, filled_price=1)
    assert bot.tables.load(held_only=False) == before


def test_a_fill_without_its_price_is_refused(bot):
    stop = order_of(bot, held(bot, "BTC/USDT"), "stop_loss")
    with pytest.raises(UsageError, match="filled_price"):
        bot.record_result(stop.order_id, "filled", filled_quantity=1)


def test_an_order_of_nobody_is_named(bot, restart):
    with pytest.raises(UsageError, match="no order"):
        bot.record_result("nobody", "open")
    stop = order_of(bot, held(bot, "BTC/USDT"), "stop_loss")
    with pytest.raises(UsageError, match="of kraken"):
        restart(exchange="kraken").record_result(stop.order_id, "open")
    with pytest.raises(UsageError, match=r"no position .* of kraken"):
        restart(exchange="kraken").change_sl_tp(stop.position_id, stop_loss=1, take_profit=None)
    alone = bot.record_order("market", "buy", 1, symbol="ADA-USD").orders[0]
    with pytest.raises(UsageError, match=r"no order .* of kraken"):
        restart(exchange="kraken").record_result(alone.order_id, "cancelled")
    with pytest.raises(UsageError, match="no position"):
        bot.attach_sl_tp(str(uuid4()), stop_loss=1)
    with pytest.raises(UsageError, match="no position id"):
        bot.attach_sl_tp("BTC", stop_loss=1)


def test_the_same_order_is_recorded_once(bot):
    position_id = held(bot, "SOL/USDT").position_id
    bot.reduce_position(position_id, "0.1", 200, order_id="t-1")

    with pytest.raises(AlreadyRecorded, match="recorded already"):
        bot.reduce_position(position_id, "0.1", 200, order_id="t-1")
    assert held(bot, "SOL/USDT").quantity == D("0.084")


def test_an_increase_is_in_the_database_too(bot, restart):
    """Document 004 kept the new entry in memory only: 124585.42 there, 119170.84 after a reload."""
    btc = held(bot, "BTC/USDT")
    bot.increase_position(btc.position_id, "0.00048", "130000")

    after = restart().positions[btc.position_id]
    assert (after.quantity, after.entry_price) == (D("0.00096"), D("124585.42"))
    assert {o.quantity for o in restart().orders_of(btc.position_id) if o.order_type.protects} == {
        D("0.00096")
    }


# Stop-loss and take-profit


def test_two_orders_of_one_group_protect_a_position(manager, restart):
    opened = manager.open_position("BTC-USD", "long", 1, 100).position
    stop, target = manager.attach_sl_tp(opened.position_id, stop_loss=90, take_profit=120).orders

    assert (stop.order_type, stop.price, stop.status) == ("stop_loss", 90, "pending")
    assert (target.order_type, target.price, target.status) == ("take_profit", 120, "pending")
    assert stop.oco_group == target.oco_group
    assert (stop.side, stop.quantity, stop.position_id) == ("sell", 1, opened.position_id)
    after = restart()
    assert after.orders_of(opened.position_id) == [stop, target]
    assert (held(after, "BTC-USD").stop_loss, held(after, "BTC-USD").take_profit) == (90, 120)


def test_what_is_closed_is_not_protected_any_more(bot, restart):
    btc = held(bot, "BTC/USDT")
    bot.reduce_position(btc.position_id, btc.quantity, 1)
    with pytest.raises(UsageError, match="is held"):
        bot.attach_sl_tp(btc.position_id, stop_loss=1)
    assert len(restart().orders) == 4


def test_more_than_is_held_is_not_protected_twice(bot):
    sol = held(bot, "SOL/USDT")
    with pytest.raises(UsageError, match="change_sl_tp"):
        bot.attach_sl_tp(sol.position_id, stop_loss=1)
    with pytest.raises(UsageError, match="needed"):
        bot.attach_sl_tp(sol.position_id)


def test_parts_of_a_position_may_have_their_own_targets(manager):
    opened = manager.open_position("BTC-USD", "long", 1, 100).position
    for price in (110, 120):
        manager.attach_sl_tp(opened.position_id, stop_loss=90, take_profit=price, quantity="0.5")

    first = manager.orders_of(opened.position_id)[1]
    manager.record_result(first.order_id, "filled", filled_quantity="0.5", filled_price=110)

    live = [o for o in manager.orders_of(opened.position_id) if o.status.live]
    assert [(o.order_type, o.left) for o in live] == [
        ("stop_loss", D("0.5")),
        ("take_profit", D("0.5")),
    ]
    assert manager.unprotected() == []


def test_a_changed_stop_replaces_the_one_that_only_we_know(bot, restart):
    btc = held(bot, "BTC/USDT")
    done = bot.change_sl_tp(btc.position_id, stop_loss=110000, take_profit=None)

    assert done.to_cancel == ()
    (live,) = [o for o in restart().orders_of(btc.position_id) if o.status.live]
    assert (live.order_type, live.price) == ("stop_loss", 110000)
    assert (restart().positions[btc.position_id].take_profit, btc.take_profit) != (None, None)


def test_a_changed_stop_leaves_the_one_at_the_exchange_to_the_caller(bot, restart):
    btc = held(bot, "BTC/USDT")
    stop = order_of(bot, btc, "stop_loss")
    bot.record_result(stop.order_id, "open", exchange_order_id="x-1")

    done = bot.change_sl_tp(btc.position_id, stop_loss=110000, take_profit=None)

    assert [o.order_id for o in done.to_cancel] == [stop.order_id]
    there = restart().orders[stop.order_id]
    assert there.status is OrderStatus.OPEN
    assert there.cancel_wanted_at is not None
    bot.record_result(stop.order_id, "cancelled")
    assert restart().orders[stop.order_id].cancel_wanted_at is None


def test_a_cancelled_order_that_only_we_know_is_gone(bot):
    stop = order_of(bot, held(bot, "BTC/USDT"), "stop_loss")
    assert bot.cancel_order(stop.order_id).orders[0].status is OrderStatus.CANCELLED
    with pytest.raises(IllegalMove):
        bot.cancel_order(stop.order_id)


# Fills


def test_a_fill_closes_the_position_and_cancels_its_sibling(bot, restart, database, said):
    btc = held(bot, "BTC/USDT")
    stop, target = (order_of(bot, btc, kind) for kind in ("stop_loss", "take_profit"))
    done = bot.apply_report(stop.order_id, report(stop, price="107000", filled_at=OPENED))

    assert done.position.status is PositionStatus.CLOSED
    assert done.position.realized_pnl == D("0.00048") * (D(107000) - D("119170.84"))
    assert btc.position_id not in bot.positions
    assert btc.position_id not in restart().positions
    assert row(
        database,
        "SELECT status, quantity, realized_pnl, closed_at FROM {schema}.positions WHERE id = %s",
        btc.position_id,
    ) == ("CLOSED", 0, done.position.realized_pnl, OPENED)
    assert row(
        database, "SELECT status FROM {schema}.orders WHERE order_id = %s", target.order_id
    ) == ("cancelled",)
    (line,) = said("position closed")
    assert line.position == btc.position_id


def test_position_and_orders_change_together_or_not_at_all(bot, restart, database):
    btc = held(bot, "BTC/USDT")
    stop = order_of(bot, btc, "stop_loss")
    with database.transaction() as connection:
        connection.execute(
            database.query("ALTER TABLE {schema}.positions ADD CHECK (status <> 'CLOSED')")
        )
    before = bot.tables.load(held_only=False)

    with pytest.raises(BackendError):
        bot.apply_report(stop.order_id, report(stop))

    assert bot.tables.load(held_only=False) == before
    assert btc.position_id in bot.positions


def test_a_partial_fill_reduces_the_position(bot, restart):
    sol = held(bot, "SOL/USDT")
    stop = order_of(bot, sol, "stop_loss")
    bot.apply_report(stop.order_id, report(stop, "open", "0.1", "200"))
    bot.apply_report(stop.order_id, report(stop, "open", "0.1", "200"))

    after = restart()
    assert held(after, "SOL/USDT").quantity == D("0.084")
    assert held(after, "SOL/USDT").realized_pnl == D("0.1") * (200 - D("211.31"))
    assert order_of(after, sol, "take_profit").quantity == D("0.084")


def test_a_fill_beyond_what_is_held_is_said_loudly(bot, said):
    sol = held(bot, "SOL/USDT")
    stop = order_of(bot, sol, "stop_loss")
    bot.reduce_position(sol.position_id, "0.1", 200)
    bot.record_result(stop.order_id, "filled", filled_quantity="0.184", filled_price=190)

    (line,) = said("filled, but not in a position: look at what the exchange holds")
    assert (line.units, line.levelname) == ("0.100", "ERROR")


def test_two_who_see_the_same_fill_book_it_once(bot, restart):
    sol = held(bot, "SOL/USDT")
    stop = order_of(bot, sol, "stop_loss")
    others = [restart() for _ in range(4)]
    barrier = threading.Barrier(4)

    def tell(manager):
        barrier.wait()
        return [
            manager.apply_report(stop.order_id, report(stop, status, filled, "200"))
            for status, filled in (("open", "0.05"), ("open", "0.1"), ("filled", "0.184"))
        ]

    with ThreadPoolExecutor(4) as pool:
        done = [booked for steps in pool.map(tell, others) for booked in steps]

    assert sum(booked.quantity for booked in done) == sol.quantity
    positions, orders = bot.tables.load(held_only=False)
    (closed,) = [p for p in positions if p.position_id == sol.position_id]
    assert (closed.status, closed.quantity) == ("CLOSED", 0)
    assert closed.realized_pnl == sol.quantity * (200 - D("211.31"))
    assert sorted(o.status for o in orders if o.position_id == sol.position_id) == [
        "cancelled",
        "filled",
    ]


def test_fills_of_different_orders_at_once_are_all_in_the_position(manager, restart):
    opened = manager.open_position("BTC-USD", "long", "0.8", 100).position
    targets = [
        manager.attach_sl_tp(opened.position_id, take_profit=110 + n, quantity="0.1").orders[0]
        for n in range(8)
    ]
    managers = [restart() for _ in range(4)]
    barrier = threading.Barrier(4)

    def tell(number):
        barrier.wait()
        for order in targets[number::4]:
            managers[number].apply_report(order.order_id, report(order))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(4)))

    ((closed,), orders) = manager.tables.load(held_only=False)
    assert (closed.status, closed.quantity) == ("CLOSED", 0)
    assert closed.realized_pnl == sum(D("0.1") * (10 + n) for n in range(8))
    assert {order.status for order in orders} == {"filled"}


@pytest.mark.parametrize("how", [BEFORE, AFTER, UNANSWERED])
def test_a_fill_is_booked_once_wherever_the_connection_is_cut(
    manager, restart, postgres, schema_name, now, how
):
    """At each message in turn. Who reports it tries again until he is told that it is done."""
    proxy = Proxy(postgres.port)
    proxy.run()
    url = f"postgresql://bot@127.0.0.1:{proxy.port}/postgres"
    behind = PositionManager(Database(url, schema=schema_name), now=now)
    for number in itertools.count():
        name = f"A{number}-USD"
        position = manager.open_position(
            name, "long", 1, 100, stop_loss=90, take_profit=110
        ).position
        stop = order_of(manager, position, "stop_loss")
        behind.load_open_positions()
        seen, before = itertools.count(), proxy.cuts
        proxy.judge = lambda _data, n=number, seen=seen: how if next(seen) == n else PASS
        for _ in range(3):
            try:
                behind.apply_report(stop.order_id, report(stop, "open", "0.4"))
                break
            except BackendUnavailable:
                continue
        proxy.judge = lambda _data: PASS

        after = restart()
        assert (held(after, name).quantity, held(after, name).realized_pnl) == (D("0.6"), -4)
        assert {o.left for o in after.orders_of(position.position_id)} == {D("0.6")}
        if proxy.cuts == before:
            break
    assert number > 6  # BEGIN, the lock, the orders, two updates, COMMIT at least
    behind.close()
    proxy.close()


def test_stop_and_target_that_fill_at_once_do_not_sell_twice(bot, restart):
    for symbol in HELD:
        position = held(bot, symbol)
        orders = [order_of(bot, position, kind) for kind in ("stop_loss", "take_profit")]
        managers = [restart(), restart()]
        barrier = threading.Barrier(2)

        def tell(pair, barrier=barrier):
            manager, order = pair
            barrier.wait()
            try:
                return manager.apply_report(order.order_id, report(order)).unbooked
            except IllegalMove:
                return None  # the sibling was cancelled first

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(tell, zip(managers, orders, strict=True)))

        assert results.count(None) == 1
        assert results.count(0) == 1


PROCESS = """
import sys
from decimal import Decimal
from statestore.backends.database import Database
from statestore.runtime.orders import PositionManager
url, schema, order_id, go = sys.argv[1:]
manager = PositionManager(Database(url, schema=schema))
manager.load_open_positions()
print("ready", flush=True)
sys.stdin.readline()
done = manager.record_result(order_id, "filled", filled_quantity="0.184", filled_price="200")
print(done.quantity, flush=True)
"""


def test_two_processes_that_see_the_same_fill_book_it_once(bot, postgres, schema_name):
    stop = order_of(bot, held(bot, "SOL/USDT"), "stop_loss")
    command = [sys.executable, "-c", PROCESS, postgres.url, schema_name, stop.order_id, "go"]
    running = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(3)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    booked = sorted(process.communicate()[0].strip() for process in running)

    assert booked == ["0", "0", "0.184"]


# Prices


def test_prices_move_the_pnl_in_memory_and_in_the_table_when_asked(bot, restart, database):
    btc = held(bot, "BTC/USDT").position_id
    bot.update_prices({"BTC/USDT": "120170.84", "SOL/USDT": None, "XRP": 1})

    assert bot.positions[btc].unrealized_pnl == D("0.48")
    assert bot.positions[btc].total_pnl == D("0.48")
    query = "SELECT current_price, unrealized_pnl FROM {schema}.positions WHERE id = %s"
    assert row(database, query, btc) == (D("119170.84"), 0)
    bot.update_prices({"BTC/USDT": "120170.84"}, write=True)
    assert row(database, query, btc) == (D("120170.84"), D("0.48"))
    assert restart().positions[btc].current_price == D("120170.84")


@pytest.mark.parametrize(("side", "gained"), [("long", "-1.0"), ("short", "1.0")])
def test_the_pnl_that_is_written_is_that_of_the_side(manager, database, side, gained):
    position = manager.open_position("BTC-USD", side, "0.1", 100).position
    manager.update_prices({"BTC-USD": 90}, write=True)

    assert row(database, "SELECT unrealized_pnl::text FROM {schema}.positions") == (gained,)
    assert manager.positions[position.position_id].unrealized_pnl == D(gained)


def test_a_price_that_is_written_does_not_bring_back_what_was_closed(bot, restart, database):
    stale = restart()
    btc = held(bot, "BTC/USDT")
    bot.reduce_position(btc.position_id, btc.quantity, 1)

    stale.update_prices({"BTC/USDT": 5}, write=True)

    assert btc.position_id not in restart().positions
    price = "SELECT current_price FROM {schema}.positions WHERE id = %s"
    assert row(database, price, btc.position_id) == (D(btc.entry_price),)  # as it was at its end


def test_a_refresh_keeps_the_price_this_process_saw(bot, restart):
    other = restart()
    bot.update_prices({"BTC/USDT": "120170.84"})
    other.open_position("ADA/USDT", "long", 1, 1)

    bot.refresh()

    assert held(bot, "BTC/USDT").unrealized_pnl == D("0.48")
    assert held(bot, "ADA/USDT").quantity == 1


def test_a_claim_is_for_one_process_until_patience_is_over(bot, restart, now):
    btc = held(bot, "BTC/USDT")
    managers = [restart() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda m: m.claim(btc.position_id, D(1))[1], managers))

    assert sorted(map(len, taken)) == [0, 0, 0, 1]
    now.at += timedelta(seconds=60)
    assert len(bot.claim(btc.position_id, D(1))[1]) == 1


def test_amounts_of_a_bot_are_taken_exactly(manager, restart):
    manager.open_position("BTC-USD", "long", 0.1, 100.1, metadata={"why": D("0.10")})
    (after,) = restart().get_all_positions()

    assert (after.quantity, after.entry_price) == (D("0.1"), D("100.1"))
    assert after.metadata == {"why": D("0.10")}
    assert replace(after) == after


@pytest.mark.parametrize("waits", ["claim", "report"])
def test_somebody_who_sits_on_a_row_is_not_waited_for_without_an_end(
    bot, database, schema_name, postgres, waits
):
    """Somebody types BEGIN, and goes for lunch. The price does not wait, and neither do others."""
    position = held(bot, "BTC/USDT")
    stop = order_of(bot, position, "stop_loss")
    hasty = Database(f"{postgres.url}?options=-clock_timeout%3D200", schema=schema_name)
    manager = PositionManager(hasty)
    manager.load_open_positions()
    with bot.tables.transaction() as other:
        assert other.execute("SHOW lock_timeout").fetchone() == ("10s",)
    with database.transaction() as sitting:
        sitting.execute(database.query("SELECT 1 FROM {schema}.positions FOR UPDATE"))
        with pytest.raises(BackendError, match="lock timeout"):
            if waits == "claim":
                manager.claim(position.position_id, D(1))
            else:
                manager.apply_report(stop.order_id, report(stop))
    assert manager.apply_report(stop.order_id, report(stop)).position.status == "CLOSED"
    hasty.close()


# Saying it again


@pytest.fixture
def behind(postgres, schema_name, now):
    """A manager behind a proxy, and what cuts its next COMMIT before or after it is carried out."""
    proxy = Proxy(postgres.port)
    proxy.run()
    url = f"postgresql://bot@127.0.0.1:{proxy.port}/postgres"
    manager = PositionManager(Database(url, schema=schema_name), now=now)

    def cut(how):
        def judge(data):
            if b"COMMIT\0" not in data:
                return PASS
            proxy.judge = lambda _data: PASS
            return how

        proxy.judge = judge

    yield manager, cut
    manager.close()
    proxy.close()


@pytest.mark.parametrize("part", ["0.4", "1"])
@pytest.mark.parametrize(("how", "booked"), [(BEFORE, False), (UNANSWERED, True)])
def test_a_close_that_is_repeated_with_its_client_order_id_is_booked_once(
    manager, restart, behind, how, booked, part
):
    """The connection broke during COMMIT: the second call sold it again, in the rows."""
    bot, cut = behind
    position_id = manager.open_position("BTC-USD", "long", 1, 100).position.position_id
    bot.load_open_positions()

    cut(how)
    with pytest.raises(BackendUnavailable) as lost:
        bot.reduce_position(position_id, part, 110, order_id="mine")
    assert lost.value.uncertain
    again = [lambda: bot.reduce_position(position_id, part, 110, order_id="mine")]
    if not booked:
        assert again.pop()().quantity == D(part)
    # Also where the process that asks has learned that the position is closed.
    again.append(lambda: restart().reduce_position(position_id, part, 110, order_id="mine"))
    for call in again:
        with pytest.raises(AlreadyRecorded, match="mine is recorded already: market to") as there:
            call()
        assert there.value.order_id == "mine"

    ((after,), orders) = manager.tables.load(held_only=False)
    assert (after.quantity, after.realized_pnl) == (1 - D(part), 10 * D(part))
    assert [order.order_id for order in orders] == ["mine"]


def test_an_opening_order_that_is_repeated_says_that_it_is_there(manager, restart):
    order = {"symbol": "BTC-USD", "order_id": "mine"}
    manager.record_order("limit", "buy", "0.1", price=60000, **order)
    with pytest.raises(AlreadyRecorded, match=r"limit to buy 0\.1 BTC-USD \(status pending"):
        restart().record_order("limit", "buy", "0.1", price=60000, **order)
    with pytest.raises(UsageError, match="needs the symbol"):
        manager.record_order("limit", "buy", "0.1", price=60000, order_id="other")
    assert len(restart().orders) == 1
