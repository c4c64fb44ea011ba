"""Watching what is held: prices that cross, orders at the exchange, a restart in between."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from statestore import KillSwitch, TradingSession
from statestore.errors import BackendUnavailable, ExchangeError, UsageError
from statestore.fills.sources.coinbase import CoinbaseSource
from statestore.fills.sources.credentials import Credentials
from statestore.model import OrderStatus
from statestore.runtime.monitor import PositionMonitor
from statestore.runtime.orders import PositionManager
from statestore.simulated import UNAVAILABLE
from tests.runtime.test_session import Clock
from tests.servers import free_port
from tests.waits import pass_at_once

D = Decimal
START = datetime(2025, 11, 18, 4, tzinfo=UTC)


class Now:
    def __init__(self):
        self.at = START

    def __call__(self):
        return self.at


class Desk:
    """A bot's side of it: the prices it sees, and what it was told to do."""

    def __init__(self):
        self.prices = {"BTC-USD": D(60000), "ETH-USD": D(3000), "SOL-USD": D(200)}
        self.told = []

    def __call__(self, symbols):
        return {symbol: self.prices.get(symbol) for symbol in symbols}


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def switch(tmp_path):
    return KillSwitch(tmp_path / "KILL_SWITCH")


@pytest.fixture
def restart(database, desk, now, switch):
    """A bot that starts: a manager that has loaded, and its monitor."""

    def restart(**options):
        manager = PositionManager(database, kill_switch=switch, now=now)
        manager.load_open_positions()
        return PositionMonitor(manager, desk, desk.told.append, **options)

    return restart


@pytest.fixture
def monitor(restart):
    """Three positions and their six orders."""
    monitor = restart()
    for symbol, quantity, entry in (
        ("BTC-USD", "0.1", 60000),
        ("ETH-USD", "2", 3000),
        ("SOL-USD", "10", 200),
    ):
        monitor.manager.open_position(
            symbol,
            "long",
            quantity,
            entry,
            stop_loss=entry * D("0.9"),
            take_profit=entry * D("1.1"),
        )
    return monitor


@pytest.fixture
def source(fake_exchange, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pass_at_once(monkeypatch)
    return CoinbaseSource(
        Credentials(fake_exchange.api_key, fake_exchange.api_secret),
        base_url=fake_exchange.base_url,
        ca_file=fake_exchange.ca_file,
    )


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="statestore")
    return lambda name: [record for record in caplog.records if record.message == name]


@pytest.fixture
def database_away(database, monkeypatch):
    """As if the server were gone, inside the block."""

    class Away:
        def __enter__(self):
            database.close()
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(database, "_url", f"postgresql://bot@127.0.0.1:{free_port()}/x")
            self.patch.setattr(database, "_timeout", 0.5)

        def __exit__(self, *_):
            database.close()
            self.patch.undo()

    return Away


def order_of(monitor, symbol, kind):
    (found,) = [
        order
        for order in monitor.manager.orders.values()
        if (order.symbol, order.order_type) == (symbol, kind) and order.status.live
    ]
    return found


def symbols(decisions):
    return [(d.position.symbol, d.order.order_type.value) for d in decisions]


# Prices


def test_a_price_that_stays_between_decides_nothing(monitor, said):
    assert monitor.cycle() == []
    assert monitor.problems == {}
    (line,) = said("monitoring_positions")
    assert (line.count, sorted(line.symbols)) == (3, ["BTC-USD", "ETH-USD", "SOL-USD"])
    monitor.cycle()
    assert len(said("monitoring_positions")) == 1  # news, not a heartbeat


def test_a_price_that_crosses_is_a_decision_and_nothing_is_sold(monitor, desk):
    desk.prices["BTC-USD"] = D(53999)
    (decision,) = monitor.cycle()

    assert desk.told == [decision]
    assert (decision.order.order_type, decision.side) == ("stop_loss", "sell")
    assert (decision.quantity, decision.price) == (D("0.1"), 53999)
    assert decision.client_order_id == decision.order.order_id
    assert (decision.late, decision.repeated, decision.claimed) == (False, False, True)
    assert decision.cancel_first == ()
    held = monitor.manager.positions[decision.position.position_id]
    assert held.status == "OPEN"  # it is, until somebody says what became of the order


def test_take_profits_and_shorts(monitor, desk):
    monitor.manager.open_position("ADA-USD", "short", 100, 1, stop_loss="1.1", take_profit="0.9")
    desk.prices |= {"ADA-USD": D("1.1"), "SOL-USD": D(220)}
    decisions = monitor.cycle()

    assert symbols(decisions) == [("ADA-USD", "stop_loss"), ("SOL-USD", "take_profit")]
    assert [d.side for d in decisions] == ["buy", "sell"]


@pytest.fixture
def machines(database, desk, monitor):
    """Two bots that watch the same positions, on machines whose clocks are ten minutes apart."""

    def machine(minutes):
        manager = PositionManager(database)
        manager.tables.clock.machine = lambda: datetime.now(UTC) + timedelta(minutes=minutes)
        manager.load_open_positions()
        return PositionMonitor(manager, desk, desk.told.append)

    return machine(-5), machine(5)


def test_machines_whose_clocks_differ_are_not_told_the_same(machines, desk, database):
    """Each took what the other had claimed for long ago, or for the future: both sold."""
    here, there = machines
    desk.prices["BTC-USD"] = D(54000)

    assert symbols(here.cycle()) == [("BTC-USD", "stop_loss")]
    assert there.cycle() == here.cycle() == []
    aged = "UPDATE {schema}.orders SET triggered_at = triggered_at - interval '60 seconds'"
    with database.transaction() as connection:
        connection.execute(database.query(aged))
    (again,) = there.cycle()
    assert again.repeated
    assert here.cycle() == []


def test_a_close_that_was_sent_by_a_machine_whose_clock_differs_is_under_way(machines, desk):
    here, there = machines
    held = next(p for p in here.manager.get_all_positions() if p.symbol == "BTC-USD")
    here.manager.record_order("market", "sell", "0.1", position_id=held.position_id)
    desk.prices["BTC-USD"] = D(54000)

    assert there.cycle() == []


def test_while_the_database_is_away_its_clock_goes_on(machines, desk, database, database_away):
    here, _ = machines
    desk.prices["BTC-USD"] = D(54000)
    with database_away():
        (decision,) = here.cycle()
        assert not decision.claimed
        assert here.cycle() == []
    assert here.cycle() == []
    told = here.manager.orders[decision.order.order_id].triggered_at
    with database.transaction() as connection:
        ((there,),) = connection.execute("SELECT clock_timestamp()")
    assert abs(there - told) < timedelta(minutes=1)


def test_a_decision_comes_again_only_after_patience_and_says_so(monitor, desk, now):
    desk.prices["BTC-USD"] = D(53999)
    monitor.cycle()
    for _ in range(5):
        now.at += timedelta(seconds=10)
        assert monitor.cycle() == []
    now.at += timedelta(seconds=10)
    (again,) = monitor.cycle()

    assert again.repeated
    assert again.client_order_id == desk.told[0].client_order_id


def test_what_was_carried_out_is_not_decided_again(monitor, desk, now):
    desk.prices["BTC-USD"] = D(53999)
    (decision,) = monitor.cycle()
    monitor.manager.record_result(decision.order.order_id, "open", exchange_order_id="x-1")
    now.at += timedelta(hours=1)
    desk.prices["BTC-USD"] = D(70000)  # and up again, through the take-profit

    assert monitor.cycle() == []


def test_a_bot_that_raises_is_told_again_and_the_others_are_told_now(monitor, desk, now, said):
    desk.prices |= {"BTC-USD": D(1), "ETH-USD": D(1)}
    told = []

    def refuse(decision):
        told.append(decision.position.symbol)
        raise ConnectionError("no route to the exchange")

    monitor._on_decision = refuse
    monitor.cycle()
    now.at += timedelta(minutes=1)
    monitor.cycle()

    assert told == ["BTC-USD", "ETH-USD"] * 2
    assert "no route" in said("decision was not carried out")[0].why


def test_of_two_bots_only_one_is_told(monitor, restart, desk):
    monitors = [monitor, restart(), restart(), restart()]
    desk.prices = {name: D(1) for name in desk.prices}
    with ThreadPoolExecutor(4) as pool:
        decisions = [d for found in pool.map(PositionMonitor.cycle, monitors) for d in found]

    assert sorted(symbols(decisions)) == [
        ("BTC-USD", "stop_loss"),
        ("ETH-USD", "stop_loss"),
        ("SOL-USD", "stop_loss"),
    ]


def test_a_price_that_is_not_known_is_a_problem_that_is_said_once(monitor, desk, said):
    del desk.prices["ETH-USD"]
    for _ in range(3):
        monitor.cycle()

    assert monitor.problems == {"prices": "no price of ETH-USD"}
    assert len(said("monitoring goes on without")) == 1
    desk.prices["ETH-USD"] = D(3000)
    monitor.cycle()
    assert monitor.problems == {}


@pytest.mark.parametrize("broken", [0, -1, float("nan"), "n/a"])
def test_a_price_that_is_none_neither_sells_nor_keeps_others_from_acting(monitor, desk, broken):
    desk.prices |= {"BTC-USD": broken, "SOL-USD": D(1)}

    assert symbols(monitor.cycle()) == [("SOL-USD", "stop_loss")]
    assert monitor.problems == {"prices": "no price of BTC-USD"}


def test_nothing_is_decided_by_an_old_price(monitor, desk, now):
    desk.prices["BTC-USD"] = D(1)
    monitor.cycle()
    now.at += timedelta(hours=1)
    del desk.prices["BTC-USD"]

    assert monitor.cycle() == []


# While the bot was down


def test_what_was_crossed_while_the_bot_was_down_is_late(monitor, restart, desk):
    monitor.cycle()
    desk.prices["ETH-USD"] = D(2000)  # nobody looks
    after = restart()

    (late,) = after.cycle()
    assert (late.position.symbol, late.late) == ("ETH-USD", True)
    desk.prices["SOL-USD"] = D(1)  # somebody looks
    (decision,) = after.cycle()
    assert (decision.position.symbol, decision.late) == ("SOL-USD", False)


def test_the_first_look_is_that_at_a_price(monitor, restart, desk):
    monitor.cycle()
    after = restart()
    desk.prices["ETH-USD"] = None
    after.cycle()
    desk.prices["ETH-USD"] = D(1)

    assert [decision.late for decision in after.cycle()] == [True]


def test_orders_made_since_the_start_are_never_late(restart, desk):
    monitor = restart()
    monitor.manager.open_position("BTC-USD", "long", 1, 60000, stop_loss=54000)
    desk.prices["BTC-USD"] = D(1)

    assert [decision.late for decision in monitor.cycle()] == [False]


# Halted


def test_a_halted_bot_is_told_nothing_and_all_of_it_later(monitor, restart, desk, switch, said):
    desk.prices["BTC-USD"] = D(1)
    after = restart()
    switch.engage("maintenance")

    assert after.cycle() == []
    assert "not acted on" in after.problems["kill switch"]
    assert desk.told == []
    switch.release()
    assert [(d.position.symbol, d.late) for d in after.cycle()] == [("BTC-USD", True)]
    assert after.problems == {}


# Without the database


def test_protection_goes_on_while_the_database_is_away(monitor, desk, now, database_away):
    desk.prices["BTC-USD"] = D(1)
    with database_away():
        (decision,) = monitor.cycle()
        now.at += timedelta(seconds=30)
        assert monitor.cycle() == []
        assert "cannot be reached" in monitor.problems["database"]
    assert not decision.claimed
    now.at += timedelta(seconds=20)
    assert monitor.cycle() == []  # it knows what it told
    assert monitor.problems == {}
    now.at += timedelta(seconds=20)
    (again,) = monitor.cycle()
    assert (again.repeated, again.claimed) == (True, True)


def test_a_monitor_that_never_loaded_decides_nothing_and_tries_again(database, desk, database_away):
    monitor = PositionMonitor(PositionManager(database), desk, desk.told.append)
    with database_away(), pytest.raises(BackendUnavailable):
        monitor.cycle()
    assert monitor.cycle() == []
    assert monitor.manager.loaded


# Orders at the exchange


def at_exchange(monitor, exchange):
    """Send all six orders to the exchange, as a bot would."""
    for number, order in enumerate(list(monitor.manager.orders.values())):
        exchange.set_order(
            f"x-{number}", order.symbol, "SELL", client_order_id=order.order_id, status="OPEN"
        )
        monitor.manager.record_result(order.order_id, "open", exchange_order_id=f"x-{number}")


def fill(exchange, order, price, filled=None, status="FILLED", **said):
    filled = order.quantity if filled is None else D(filled)
    exchange.set_order(
        order.exchange_order_id,
        order.symbol,
        "SELL",
        status=status,
        filled_size=str(filled),
        filled_value=str(filled * D(price)),
        **said,
    )


def test_what_happened_while_the_bot_was_down_is_booked_once(
    monitor, restart, fake_exchange, source, database
):
    """Three positions, six orders, all by the same ids; two fills arrive while nobody is there."""
    at_exchange(monitor, fake_exchange)
    before = monitor.manager
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    target = order_of(monitor, "ETH-USD", "take_profit")
    part = order_of(monitor, "SOL-USD", "stop_loss")
    fill(fake_exchange, stop, 53950, last_fill_time="2025-11-18T05:00:00Z", total_fees="32.37")
    fill(fake_exchange, target, 3300)
    fill(fake_exchange, part, 180, filled="4", status="OPEN")

    changed = []
    after = restart(source=source, on_booked=changed.append)
    assert {o.order_id: o.position_id for o in after.manager.orders.values()} == {
        o.order_id: o.position_id for o in before.orders.values()
    }
    assert after.cycle() == []

    assert [p.symbol for p in after.manager.get_all_positions()] == ["SOL-USD"]
    (sol,) = after.manager.get_all_positions()
    assert (sol.quantity, sol.realized_pnl, sol.status) == (6, -80, "PARTIALLY_CLOSED")
    rows = {p.symbol: p for p in before.tables.load(held_only=False)[0]}
    assert rows["BTC-USD"].realized_pnl == D("0.1") * (53950 - 60000)
    assert rows["BTC-USD"].closed_at == datetime(2025, 11, 18, 5, tzinfo=UTC)
    assert rows["ETH-USD"].realized_pnl == 600
    # The siblings are at the exchange: they are to be cancelled there, and said to be so only then.
    wanted = {(o.symbol, o.order_type.value, o.status.value) for b in changed for o in b.to_cancel}
    assert wanted == {
        ("BTC-USD", "take_profit", "open"),
        ("ETH-USD", "stop_loss", "open"),
    }
    changed.clear()
    after.cycle()
    restart(source=source, on_booked=changed.append).cycle()
    assert changed == []  # once
    for sibling in [o for o in after.manager.orders.values() if o.cancel_wanted_at]:
        fake_exchange.set_order(
            sibling.exchange_order_id, sibling.symbol, "SELL", status="CANCELLED"
        )
    after.cycle()
    assert {o.status.value for o in changed_orders(after) if o.symbol != "SOL-USD"} == {
        "filled",
        "cancelled",
    }
    assert {request.method for request in fake_exchange.requests} == {"GET"}


def changed_orders(monitor):
    return monitor.manager.tables.load(held_only=False)[1]


def test_two_bots_that_sync_at_once_book_it_once(monitor, restart, fake_exchange, source):
    at_exchange(monitor, fake_exchange)
    for symbol in ("BTC-USD", "ETH-USD", "SOL-USD"):
        fill(fake_exchange, order_of(monitor, symbol, "stop_loss"), 100)
    managers = [restart().manager for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        synced = list(pool.map(lambda manager: manager.sync_orders(source), managers))

    booked = [b for one in synced for b in one.booked if b.quantity]
    assert sorted(b.position.symbol for b in booked) == ["BTC-USD", "ETH-USD", "SOL-USD"]
    assert len([o for one in synced for o in one.to_cancel]) == 3


def test_an_order_that_was_sent_by_a_bot_that_died_is_found_by_our_id(
    monitor, restart, desk, fake_exchange, source
):
    desk.prices["BTC-USD"] = D(53000)
    (decision,) = monitor.cycle()
    fake_exchange.set_order(  # sent, filled, and the bot died before it could write that down
        "x-9", "BTC-USD", "SELL", client_order_id=decision.client_order_id, status="FILLED",
        filled_size="0.1", filled_value="5300", created_time="2025-11-18T04:00:01Z",
    )  # fmt: skip

    after = restart(source=source)
    assert after.cycle() == []
    assert "BTC-USD" not in [p.symbol for p in after.manager.get_all_positions()]
    (order,) = [o for o in changed_orders(after) if o.exchange_order_id == "x-9"]
    assert (order.order_id, order.status) == (decision.order.order_id, "filled")


@pytest.mark.parametrize("kind", ["market", "stop_loss"])
def test_an_order_that_was_sent_and_never_written_down_is_found_after_a_restart(
    monitor, restart, fake_exchange, source, desk, kind
):
    manager = monitor.manager
    if kind == "market":
        order = manager.record_order("market", "buy", 1, symbol="ADA-USD").orders[0]
    else:
        order = order_of(monitor, "BTC-USD", "stop_loss")  # sent to rest there
        desk.prices["BTC-USD"] = D(1)
    fake_exchange.set_order(
        "x-9", order.symbol, order.side.upper(), client_order_id=order.order_id, status="OPEN",
        created_time="2025-11-18T04:00:01Z",
    )  # fmt: skip

    after = restart(source=source)
    assert after.cycle() == []
    assert after.manager.orders[order.order_id].exchange_order_id == "x-9"
    assert after.manager.orders[order.order_id].status is OrderStatus.OPEN


@pytest.mark.parametrize("filled_first", [True, False])
def test_a_sibling_that_was_sent_and_never_written_down_is_not_called_cancelled(
    monitor, restart, fake_exchange, source, filled_first
):
    """Both were sent, the bot died, the stop was filled: the target is there, to be filled."""
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    target = order_of(monitor, "BTC-USD", "take_profit")
    both = [(stop, "FILLED"), (target, "OPEN")]
    for order, status in both if filled_first else both[::-1]:
        sent(fake_exchange, order, status)

    changed = []
    after = restart(source=source, on_booked=changed.append)
    after.cycle()
    assert [o.order_id for b in changed for o in b.to_cancel] == [target.order_id]
    assert after.manager.orders[target.order_id].exchange_order_id == f"x-{target.order_id}"


def sent(exchange, order, status="OPEN", number="", **said):
    filled = {"filled_size": str(order.quantity), "filled_value": "1"} if status == "FILLED" else {}
    exchange.set_order(
        f"x-{order.order_id}{number}",
        order.symbol,
        order.side.upper(),
        client_order_id=order.order_id,
        status=status,
        **{"created_time": "2025-11-18T04:00:01Z"} | filled | said,
    )


def test_a_sync_that_was_cut_looks_for_unwritten_orders_again(
    monitor, restart, fake_exchange, source, monkeypatch
):
    def cut(*_):
        raise BackendUnavailable("cut")

    stop = order_of(monitor, "BTC-USD", "stop_loss")
    sent(fake_exchange, stop)
    after = restart(source=source)
    with monkeypatch.context() as patch:
        patch.setattr(after.manager.tables, "update_orders", cut)
        after.cycle()
        assert "cut" in after.problems["exchange"]
    after.cycle()

    assert after.manager.orders[stop.order_id].exchange_order_id == f"x-{stop.order_id}"


def test_what_waits_here_is_looked_for_once_after_each_load(monitor, fake_exchange, source):
    manager = monitor.manager
    asked = []
    for _ in range(2):
        manager.load_open_positions()
        manager.sync_orders(source)
        manager.sync_orders(source)
        asked.append(len(fake_exchange.requests))
    assert asked == [1, 2]


def test_an_order_that_is_pending_there_is_asked_for_until_it_is_final(
    monitor, fake_exchange, source
):
    manager = monitor.manager
    eth = next(p for p in manager.get_all_positions() if p.symbol == "ETH-USD")
    sale = manager.record_order(
        "limit", "sell", 1, position_id=eth.position_id, price=3100, exchange_order_id="x-1"
    ).orders[0]
    fake_exchange.set_order("x-1", "ETH-USD", "SELL", status="QUEUED")
    assert (sale.status, manager.sync_orders(source).booked) == ("pending", [])
    fill(fake_exchange, sale, 3100)
    (booked,) = manager.sync_orders(source).booked
    assert (booked.position.quantity, booked.position.realized_pnl) == (1, 100)
    assert manager.sync_orders(source).asked == 0  # it is in memory still, with its position


def test_a_stop_sent_to_rest_is_found_although_it_was_handed_out_since(
    restart, fake_exchange, source, desk, now
):
    bot = restart()
    bot.manager.open_position("BTC-USD", "long", 1, 60000, stop_loss=54000)
    stop = order_of(bot, "BTC-USD", "stop_loss")
    sent(fake_exchange, stop)  # and the bot died
    now.at += timedelta(days=3)
    desk.prices["BTC-USD"] = D(50000)
    assert len(restart().cycle()) == 1  # nobody could ask; the exchange refuses the same id again

    after = restart(source=source)
    after.cycle()
    assert after.manager.orders[stop.order_id].exchange_order_id == f"x-{stop.order_id}"


def test_a_clock_that_is_ahead_by_hours_does_not_hide_an_order(restart, fake_exchange, source, now):
    now.at += timedelta(hours=5)
    bot = restart()
    bot.manager.open_position("BTC-USD", "long", 1, 60000, stop_loss=54000)
    stop = order_of(bot, "BTC-USD", "stop_loss")
    sent(fake_exchange, stop)

    after = restart(source=source)
    after.cycle()
    assert after.manager.orders[stop.order_id].status is OrderStatus.OPEN


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        (("FAILED", "FILLED"), "filled"),
        (("FILLED", "FAILED"), "filled"),
        (("FAILED", "OPEN"), "open"),
        (("FAILED", "FAILED"), "rejected"),
    ],
    ids=str,
)
def test_an_order_sent_again_after_a_refusal_is_not_taken_for_refused(
    restart, fake_exchange, source, told, counts
):
    bot = restart()
    order = bot.manager.record_order("market", "buy", 1, symbol="ADA-USD").orders[0]
    for number, status in enumerate(told):
        sent(fake_exchange, order, status, number)
    booked = bot.manager.sync_orders(source).booked

    assert [b.orders[0].status.value for b in booked] == [counts]


def test_an_id_written_down_with_the_wrong_order_does_not_hold_up_the_others(
    monitor, restart, fake_exchange, source
):
    """BTC's id stands in the row of ETH: one cannot have it, and the other is not it."""
    btc, eth, sol = (order_of(monitor, s, "stop_loss") for s in ("BTC-USD", "ETH-USD", "SOL-USD"))
    sent(fake_exchange, btc)
    sent(fake_exchange, sol, "FILLED")
    wrong, right = f"x-{btc.order_id}", f"x-{sol.order_id}"
    monitor.manager.record_result(eth.order_id, "open", exchange_order_id=wrong)
    monitor.manager.record_result(sol.order_id, "open", exchange_order_id=right)

    synced = restart().manager.sync_orders(source)
    assert set(synced.refused) == {btc.order_id, eth.order_id}
    assert "duplicate key" in synced.refused[btc.order_id]
    assert "exchange_order_id is wrong" in synced.refused[eth.order_id]
    assert [b.position.symbol for b in synced.booked] == ["SOL-USD"]


def test_an_odd_order_of_somebody_else_does_not_hold_up_ours(
    monitor, restart, fake_exchange, source
):
    fake_exchange.set_order(
        "z", "DOGE-USD", "BUY", status="FILLED", created_time="2025-11-18T04:00:01Z"
    )
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    sent(fake_exchange, stop)

    synced = restart().manager.sync_orders(source)
    assert [b.orders[0].order_id for b in synced.booked] == [stop.order_id]


def test_what_is_to_be_cancelled_is_said_until_it_is_gone(
    monitor, restart, fake_exchange, source, now
):
    """Who was told died: the target of a position that is closed would have been filled one day."""
    at_exchange(monitor, fake_exchange)
    fill(fake_exchange, order_of(monitor, "BTC-USD", "stop_loss"), 54000)
    target = order_of(monitor, "BTC-USD", "take_profit")
    restart(source=source).cycle()  # tells nobody

    told = []
    after = restart(
        source=source, on_booked=lambda b: told.append([o.order_id for o in b.to_cancel])
    )
    after.cycle()
    assert (told, after.problems) == ([], {})  # whoever was told may be at it
    now.at += timedelta(minutes=1)
    after.cycle()
    after.cycle()
    assert told == [[target.order_id]]
    assert after.problems == {"cancelling": f"still at the exchange: {target.order_id}"}
    now.at += timedelta(minutes=1)
    after.cycle()
    assert told == [[target.order_id]] * 2
    fake_exchange.set_order(target.exchange_order_id, "BTC-USD", "SELL", status="CANCELLED")
    after.cycle()
    assert after.problems == {}


def test_a_stop_that_rests_at_the_exchange_is_left_to_it(monitor, desk, fake_exchange):
    at_exchange(monitor, fake_exchange)
    desk.prices["BTC-USD"] = D(1)

    assert monitor.cycle() == []  # both would sell it twice, as document 004 did


def test_a_stop_for_more_than_is_held_is_told_before_it_is_filled(monitor, said):
    """A part was closed by hand: that the stop sells the rest twice was said when it had."""
    manager = monitor.manager
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    manager.record_result(stop.order_id, "open", exchange_order_id="x-1")
    monitor.cycle()
    assert monitor.problems == {}
    manager.reduce_position(stop.position_id, "0.04", 61000)

    monitor.cycle()
    monitor.cycle()
    assert monitor.problems == {
        "too much": "at the exchange for more than is held, by 0.04 BTC-USD "
        f"(position {stop.position_id})"
    }
    assert len(said("monitoring goes on without")) == 1
    booked = manager.change_sl_tp(stop.position_id, stop_loss=54000, take_profit=66000)
    assert [order.order_id for order in booked.to_cancel] == [stop.order_id]
    monitor.cycle()
    assert monitor.problems == {}


def test_a_target_that_only_we_know_names_the_stop_to_cancel_first(monitor, desk):
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    monitor.manager.record_result(stop.order_id, "open", exchange_order_id="x-1")
    desk.prices["BTC-USD"] = D(66000)

    (decision,) = monitor.cycle()
    assert decision.order.order_type == "take_profit"
    assert [order.exchange_order_id for order in decision.cancel_first] == ["x-1"]


def test_an_exchange_that_cannot_be_asked_does_not_stop_the_watch(
    monitor, restart, desk, fake_exchange, source
):
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    monitor.manager.record_result(stop.order_id, "open", exchange_order_id="x-1")
    fake_exchange.set_order("x-1", "BTC-USD", "SELL")
    fake_exchange.script("orders", UNAVAILABLE, forever=True)
    desk.prices["SOL-USD"] = D(1)
    after = restart(source=source)

    assert symbols(after.cycle()) == [("SOL-USD", "stop_loss")]
    assert "503" in after.problems["exchange"]
    with pytest.raises(ExchangeError):
        after.manager.sync_orders(source)


def test_what_the_exchange_does_not_know_is_missing_and_stays(monitor, restart, source, said):
    stop = order_of(monitor, "BTC-USD", "stop_loss")
    monitor.manager.record_result(stop.order_id, "open", exchange_order_id="x-gone")
    synced = monitor.manager.sync_orders(source)

    assert [order.order_id for order in synced.missing] == [stop.order_id]
    assert monitor.manager.orders[stop.order_id].status is OrderStatus.OPEN
    after = restart(source=source)
    after.cycle()
    after.cycle()
    assert after.problems == {"orders": f"the exchange does not know order {stop.order_id}"}
    assert len(said("monitoring goes on without")) == 1


def test_one_report_that_cannot_be_does_not_hold_up_the_others(monitor, fake_exchange, source):
    at_exchange(monitor, fake_exchange)
    manager = monitor.manager
    wrong = order_of(monitor, "BTC-USD", "stop_loss")
    manager.record_result(wrong.order_id, "open", filled_quantity="0.05", filled_price=54000)
    fill(fake_exchange, wrong, 1, filled="0.06")
    strange = order_of(monitor, "BTC-USD", "take_profit")
    fake_exchange.set_order(strange.exchange_order_id, "BTC-USD", "SELL", status="EXPLODED")
    fill(fake_exchange, order_of(monitor, "SOL-USD", "stop_loss"), 180)
    synced = manager.sync_orders(source)

    assert list(synced.refused) == [wrong.order_id]
    assert synced.unknown == {strange.order_id: "EXPLODED"}
    assert [b.position.symbol for b in synced.booked] == ["SOL-USD"]


def test_many_orders_are_read_as_a_list(restart, fake_exchange, source):
    manager = restart().manager
    for number in range(25):
        manager.open_position(f"A{number}-USD", "long", 1, 100, stop_loss=90)
    for number, order in enumerate(list(manager.orders.values())):
        fake_exchange.set_order(
            f"x-{number}", order.symbol, "SELL", created_time="2025-11-18T04:00:00Z"
        )
        manager.record_result(order.order_id, "open", exchange_order_id=f"x-{number}")
    synced = manager.sync_orders(source)

    assert (synced.asked, synced.booked, synced.missing) == (25, [], [])
    assert len(fake_exchange.requests) == 1


def test_reconciling_tells_what_is_missing_unknown_and_different(monitor, fake_exchange, source):
    manager = monitor.manager
    assert manager.reconcile_orders(source).agrees
    at_exchange(monitor, fake_exchange)
    gone, other, mine = (
        order_of(monitor, s, "stop_loss") for s in ("BTC-USD", "ETH-USD", "SOL-USD")
    )
    manager.record_result(gone.order_id, "open", exchange_order_id="x-gone")
    fill(fake_exchange, other, 2600, filled="0.5", status="OPEN")
    fake_exchange.set_order("x-100", "XRP-USD", "BUY", status="OPEN")
    fake_exchange.set_order("x-101", "XRP-USD", "BUY", status="CANCELLED")
    before = manager.tables.load(held_only=False)

    found = manager.reconcile_orders(source)

    assert not found.agrees
    assert [row["order_id"] for row in found.missing] == []
    # The order that was recorded under another id of the exchange is still ours by the client's id.
    assert {row["order_id"]: sorted(row["differ"]) for row in found.mismatch} == {
        other.order_id: ["filled_quantity", "filled_value"],
        gone.order_id: ["exchange_order_id"],
    }
    assert [row["exchange_order_id"] for row in found.unknown] == ["x-100"]
    assert mine.order_id not in str(found)
    assert manager.tables.load(held_only=False) == before
    fake_exchange.set_order(gone.exchange_order_id, "BTC-USD", "SELL", client_order_id="")
    never_sent = manager.record_order("market", "buy", 1, symbol="ADA-USD").orders[0]
    assert {row["order_id"] for row in manager.reconcile_orders(source).missing} == {
        gone.order_id,
        never_sent.order_id,
    }


# In a session


def test_a_session_watches_every_ten_seconds(monitor, state_store, desk, switch):
    clock, cycles = Clock(), []

    def cycle():
        cycles.append(clock.seconds)
        monitor.cycle()

    with TradingSession(state_store, clock=clock, kill_switch=switch, signals=False) as session:
        session.every(10, cycle)
        for _ in range(8):
            session.tick()
            clock.seconds += 5
        assert cycles == [1000, 1010, 1020, 1030]
        clock.seconds += 100  # the machine slept
        session.tick()
        session.tick()
        assert cycles[4:] == [1140]
        assert session.health()["ok"]


def test_a_hook_that_fails_is_seen_and_called_again(state_store, said):
    clock, calls = Clock(), []

    def fails():
        calls.append(1)
        if len(calls) == 1:
            raise ExchangeError("unreachable")

    with TradingSession(state_store, clock=clock, signals=False) as session:
        session.every(10, fails)
        assert session.tick()
        assert not session.health()["ok"]
        assert "unreachable" in next(iter(session.health()["hooks"].values()))
        clock.seconds += 10
        assert session.tick()
        assert session.health()["ok"]
    assert len(said("hook failed")) == 1


def test_a_decision_may_be_saved_from_within(monitor, state_store, desk):
    desk.prices["BTC-USD"] = D(1)
    with TradingSession(state_store, signals=False) as session:

        def decide(decision):
            session.state["positions"] = {"BTC-USD": {"quantity": 0}}
            assert session.on_trade(decision.client_order_id)

        monitor._on_decision = decide
        session.every(10, monitor.cycle)
        session.tick()
    assert state_store.load()["positions"] == {"BTC-USD": {"quantity": 0}}


def test_a_session_of_asyncio_watches_in_a_thread(monitor, state_store, desk):
    desk.prices["BTC-USD"] = D(1)

    async def run():
        async with TradingSession(state_store, signals=False) as session:
            session.every(10, monitor.cycle)
            await session.atick()

    asyncio.run(run())
    assert symbols(desk.told) == [("BTC-USD", "stop_loss")]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_rhythm_that_is_none_is_refused(state_store, seconds):
    with pytest.raises(UsageError):
        TradingSession(state_store).every(seconds, print)
