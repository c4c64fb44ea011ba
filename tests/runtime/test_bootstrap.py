"""The eight steps: none fatal, none done twice, and the state writable all the while."""

from __future__ import annotations

import asyncio
import logging
import threading
from decimal import Decimal

import pytest

from statestore.disk.store import StateStore
from statestore.errors import (
    BackendUnavailable,
    CredentialsError,
    LeaseHeld,
    StateCorrupt,
    UsageError,
)
from statestore.model import Balances
from statestore.runtime.bar_store import BarStore
from statestore.runtime.bars import MIN_BARS
from statestore.runtime.bootstrap import STEPS, BootstrapSystem, StepResult
from statestore.runtime.candles.binance import BinanceCandles
from statestore.runtime.candles.coinbase import CoinbaseCandles
from statestore.runtime.collecting import BarCollector
from statestore.runtime.drivers import DRIVERS, SECTION
from statestore.runtime.session import TradingSession
from statestore.times import now
from tests.runtime.test_bars import MINUTE, bar
from tests.runtime.test_collecting import Shelf

QUICK = {"wait_initial": 0.001, "wait_max": 0.001}


class Wallet:
    def __init__(self, found):
        self.found = found

    def balances(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Tables:
    name = "postgresql"

    def __init__(self, *missing):
        self._missing = missing

    def missing(self):
        return self._missing


@pytest.fixture
def bar_store(state_file):
    return BarStore(state_file.with_name("bars.sqlite3"))


@pytest.fixture
def system(state_store, bar_store, klines):
    """A system on `state_store` whose bars come from the Binance at `klines`."""

    def make(**options):
        source = BinanceCandles(base_url=klines.base_url, rate=30, **QUICK)
        defaults = {"bars": BarCollector(bar_store, source), "balances": Wallet(USD)}
        return BootstrapSystem(state_store, **(defaults | options))

    return make


USD = Balances({"USD": Decimal("127.45"), "SOL": Decimal("3")})


def statuses(report):
    return {step.name: step.status for step in report.steps}


def ta(symbol, tf, bars):
    return {"ema": str(sum(one.close for one in bars) / len(bars)), "bars": len(bars)}


def states(symbol, tf, bars, found):
    return {"state": "S1", "from": found["bars"]}


def test_a_first_start_takes_all_eight_steps(system, state_store):
    report = system(ta=ta, states=states, stream=lambda: None).bootstrap_all()

    assert [step.name for step in report.steps] == list(STEPS)
    assert set(statuses(report).values()) == {"ok"}
    assert report.status == "ok"
    assert report.step("bars").counts["asked"] == 12
    assert report.as_json()["steps"][5]["series"]["SOL"]["1h"]["enough"] is True
    assert all(isinstance(step["ms"], int) for step in report.as_json()["steps"])


def test_a_second_run_does_nothing(system, state_store, klines):
    system(ta=ta, states=states).bootstrap_all()
    sent, revision = len(klines.requests), state_store.load().meta.revision
    assert sent == 12

    again = system(ta=ta, states=states).bootstrap_all()

    assert len(klines.requests) == sent
    assert state_store.load().meta.revision == revision
    assert again.step("bars").counts["written"] == 0
    assert again.step("drivers").counts == {"created": 0, "drivers": 24}


def test_only_get_was_sent(system, klines):
    system().bootstrap_all()

    assert {method for method, *_ in klines.requests} == {"GET"}


def test_drivers_are_created_once_and_kept_as_they_are(system, state_store):
    system().bootstrap_all()

    rows = state_store.load()[SECTION]
    assert len(rows) == 8 * 3
    assert {row["token_ticker"] for row in rows.values()} == set(DRIVERS)
    assert rows["regime_BTC.d/1h"] == {
        "token_contract": "regime_BTC.d",
        "token_chain": "regime",
        "token_ticker": "BTC.d",
        "timeframe": "1h",
        "status": "regime_driver",
        "state": "S4",
        "features": {},
    }

    with state_store.transaction() as state:
        state[SECTION]["regime_BTC/1h"]["state"] = "S2"
        del state[SECTION]["regime_big/1d"]
    report = system().bootstrap_all()

    assert report.step("drivers").counts["created"] == 1
    assert state_store.load()[SECTION]["regime_BTC/1h"]["state"] == "S2"


def test_nothing_but_the_drivers_is_written(system, state_store, state_file):
    position = '"BTC-USD": {"quantity": 0.10, "entry_price": 1.00E2, "mine": [1, 2]}'
    state_file.write_text('{"positions": {' + position + '}, "cooldowns": {"x":   7}}')

    system(ta=ta).bootstrap_all()

    text = state_file.read_text()
    assert position in text
    assert '"cooldowns": {"x":   7}' in text


def test_the_section_of_somebody_else_is_not_written_over(system, state_store):
    state_store.save({SECTION: ["mine"]})

    report = system().bootstrap_all()

    assert report.step("drivers").status == "failed"
    assert "regime_drivers is a list" in report.step("drivers").detail
    assert state_store.load()[SECTION] == ["mine"]
    assert report.step("bars").status == "ok"


# Steps that fail


def test_a_source_that_raises_leaves_its_step_partial_and_the_next_one_runs(
    state_store, bar_store, caplog
):
    ran = []
    source = Shelf(BTC=RuntimeError("theirs"), SOL=[], ETH=[], BNB=[])
    report = BootstrapSystem(
        state_store, bars=BarCollector(bar_store, source), stream=lambda: ran.append("stream")
    ).bootstrap_all()

    assert report.step("bars").status == "partial"
    assert "BTC 1m: insufficient, and could not be fetched: theirs" in report.step("bars").detail
    assert report.step("ta").status == "disabled"
    assert report.status == "partial"
    assert "bars could not be fetched" in caplog.text


def test_a_bar_source_that_is_down_does_not_stop_the_start(system, klines):
    klines.faults.extend([(503, b"", {})] * 100)

    report = system().bootstrap_all()

    assert report.status == "partial"
    assert report.step("bars").counts["asked"] == 12
    assert len(klines.requests) == 4 + 11  # patience for the first, one try for the others


@pytest.mark.parametrize("name", STEPS)
def test_whichever_step_raises_the_others_run(system, name):
    def raises(_force):
        raise RuntimeError("a bug")

    report = system(ta=ta, states=states, stream=lambda: None, steps={name: raises}).bootstrap_all()

    assert statuses(report).pop(name) == "failed"
    assert "RuntimeError: a bug" in report.step(name).detail
    others = {step.status for step in report.steps if step.name != name}
    assert others == {"ok"}
    assert report.status == ("failed" if name == "storage" else "degraded")


def test_a_step_that_returns_nothing_is_a_failure_of_its_own(system):
    report = system(steps={"stream": lambda _force: None}).bootstrap_all()

    assert report.step("stream").status == "failed"
    assert report.step("bars").status == "ok"


def test_two_failures_are_a_failure(system):
    def raises(_force):
        raise OSError("gone")

    report = system(steps={"stream": raises, "drivers": raises}).bootstrap_all()

    assert report.status == "failed"


def test_a_state_that_does_not_read_is_a_failure_and_stays_as_it_is(system, state_file):
    state_file.write_text("{")

    report = system().bootstrap_all()

    assert report.status == "failed"
    assert isinstance(report.step("storage").errors[0], StateCorrupt)
    assert report.step("drivers").status == "failed"
    assert report.step("bars").status == "ok"
    assert state_file.read_text() == "{"


def test_tables_that_are_missing_are_named(system):
    report = system(tables=[Tables("orders", "positions")]).bootstrap_all()

    assert report.step("storage").status == "failed"
    assert report.step("storage").detail.startswith(
        "tables are missing in postgresql: orders, positions; `statestore db init`"
    )
    assert system(tables=[Tables()]).bootstrap_all().status != "failed"


class Away:
    name = "postgresql"

    def missing(self):
        raise BackendUnavailable("postgresql cannot be reached")


def test_a_database_that_is_away_fails_the_storage_unless_a_file_stands_in(
    system, state_store, state_file
):
    report = system(tables=[Away()]).bootstrap_all()
    assert report.step("storage").status == "failed"
    assert "cannot be reached" in report.step("storage").detail

    state_store.save({"cash": 1})
    state_store.save({"cash": 2})
    state_file.write_text("{")
    report = system(tables=[Away()]).bootstrap_all()
    assert report.step("storage").status == "partial"
    assert "was read from" in report.step("storage").detail


def test_a_bar_store_that_was_damaged_is_told_and_where_it_is_now(system, bar_store, state_store):
    state_store.save({"cash": 1})
    bar_store.path.write_bytes(b"SQLite format 3\0" + b"damaged" * 500)

    storage = system().bootstrap_all().step("storage")
    (aside,) = bar_store.path.parent.glob("bars.sqlite3.corrupt-*")
    assert storage.status == "partial"
    assert f"the bar store was damaged, and moved to {aside}" in storage.detail
    assert system().bootstrap_all().step("storage").status == "ok"


def test_steps_can_be_added_replaced_and_taken_out(system):
    mine = StepResult("mine", "ok", "done")
    report = system(steps={"mine": lambda _force: mine, "bars": None}).bootstrap_all()

    assert [step.name for step in report.steps] == [
        *(name for name in STEPS if name != "bars"),
        "mine",
    ]


# Balances


def test_balances_are_reported_exactly(system):
    report = system().bootstrap_all()

    assert report.step("balances").data["balances"] == {
        "SOL": Decimal(3),
        "USD": Decimal("127.45"),
    }


@pytest.mark.parametrize(
    ("found", "status", "balances"),
    [
        (Balances({}), "partial", {}),
        (Balances({"USD": Decimal(0)}), "partial", {"USD": Decimal(0)}),
        (None, "partial", None),
        (CredentialsError("the key is refused"), "partial", None),
    ],
)
def test_an_empty_wallet_is_a_warning_and_an_unknown_one_is_not_empty(
    system, found, status, balances
):
    report = system(balances=Wallet(found)).bootstrap_all()

    assert report.step("balances").status == status
    assert report.step("balances").data["balances"] == balances
    assert report.status == "partial"


def test_without_a_source_balances_are_unknown_not_zero(system):
    report = system(balances=None).bootstrap_all()

    assert report.step("balances").status == "disabled"
    assert report.step("balances").data["balances"] is None
    assert report.status == "ok"


def test_balances_are_compared_with_those_noted_before_the_wipe(system):
    noted = {"USD": Decimal("127.450"), "SOL": Decimal(4), "ETH": Decimal(0)}

    report = system(expected=noted).bootstrap_all()

    assert report.step("balances").status == "partial"
    assert report.step("balances").data["differences"] == {"SOL": {"noted": 4, "found": 3}}


def test_a_noted_currency_nobody_tells_of_now_is_a_difference(system):
    found = Balances({"USD": Decimal(1)}, complete=False)

    report = system(expected={"ETH": Decimal(0)}, balances=Wallet(found)).bootstrap_all()

    assert report.step("balances").data["differences"] == {
        "ETH": {"noted": 0, "found": None},
        "USD": {"noted": None, "found": 1},
    }


# Collection


def test_a_group_that_only_the_bot_collects_is_flagged_when_it_stands_still(system, bar_store):
    minute = now() // MINUTE * MINUTE
    bar_store.add("BTC.d", "1m", [bar(minute - 2 * MINUTE)])
    bar_store.add("Demo1111", "1m", [bar(minute - 60 * MINUTE)])
    bar_store.add("BTC", "1m", [bar(minute - 600 * MINUTE)])
    bar_store.add("HYPE", "1m", [bar(minute - 500 * MINUTE)])

    step = system().bootstrap_all().step("collection")

    assert step.status == "partial"
    assert step.detail == "nothing was collected for 300 s and more: lowcaps"
    groups = step.data["groups"]
    assert {name: found["stale"] for name, found in groups.items()} == {
        "dominance": False,
        "lowcaps": True,
        "majors": True,  # which the bars step fetches
    }


# Hooks


def test_hooks_are_called_with_333_bars_and_never_with_332(state_store, bar_store):
    minute = now() // MINUTE * MINUTE
    bar_store.add("nano", "1m", [bar(minute - n * MINUTE) for n in range(1, MIN_BARS + 1)])
    bar_store.add("small", "1m", [bar(minute - n * MINUTE) for n in range(1, MIN_BARS)])
    called = []

    def hook(symbol, tf, bars):
        called.append((symbol, tf, len(bars), bars[0].ts < bars[-1].ts))
        return {"rsi": 50.5}

    report = BootstrapSystem(
        state_store, bars=BarCollector(bar_store, None), ta=hook
    ).bootstrap_all()

    assert called == [("nano", "1m", 333, True)]
    assert report.step("ta").counts == {"computed": 1, "waiting": 23, "failed": 0}
    assert state_store.load()[SECTION]["regime_nano/1m"]["features"] == {"ta": {"rsi": 50.5}}


def test_what_the_hooks_find_is_stored_beside_what_is_there(system, state_store):
    system().bootstrap_all()
    with state_store.transaction() as state:
        state[SECTION]["regime_BTC/1h"]["features"] = {"mine": 1}

    system(ta=ta, states=states).bootstrap_all()

    row = state_store.load()[SECTION]["regime_BTC/1h"]
    assert row["features"]["mine"] == 1
    assert row["features"]["ta"]["bars"] == row["features"]["states"]["from"] >= 665
    assert row["state"] == "S1"
    assert state_store.load()[SECTION]["regime_nano/1h"]["state"] == "S4"


def test_a_hook_that_raises_for_one_driver_leaves_the_others(system, state_store):
    def hook(symbol, tf, bars):
        if symbol == "BTC":
            raise ZeroDivisionError("flat market")
        return ta(symbol, tf, bars)

    report = system(ta=hook, states=states).bootstrap_all()

    assert report.step("states").status == "ok"
    assert report.step("ta").status == "partial"
    assert report.step("ta").counts["failed"] == 3
    assert "BTC 1m: flat market" in report.step("ta").detail
    assert "ta" in state_store.load()[SECTION]["regime_ALT/1h"]["features"]


def test_a_result_that_cannot_be_saved_fails_its_step_alone(system, state_store):
    report = system(ta=lambda *_: {"x": object()}, states=states).bootstrap_all()

    assert report.step("ta").status == "failed"
    assert "regime_BTC" in report.step("ta").detail
    assert report.step("drivers").status == "ok"
    assert len(state_store.load()[SECTION]) == 24


# While a bot runs


def test_saves_go_on_while_a_slow_source_is_read(system, state_store, klines, state_file):
    klines.gate.clear()
    ready = system()
    ready.start()
    assert klines.asked.wait(60)  # the bars step has begun, and waits
    others = StateStore(state_file)

    state = others.load()
    assert len(state[SECTION]) == 24
    for n in range(20):
        state["n"] = n
        others.save(state)
    assert ready.wait(0) is None
    with pytest.raises(UsageError, match="running already"):
        ready.start()
    klines.gate.set()

    assert ready.wait(60).status == "ok"
    assert others.load()["n"] == 19


def test_a_state_that_a_bot_holds_is_not_written(system, state_store, state_file):
    with StateStore(state_file).lease():
        report = system().bootstrap_all()

    assert isinstance(report.step("drivers").errors[0], LeaseHeld)
    assert "TradingSession(bootstrap=...)" in report.step("drivers").detail
    assert report.step("bars").status == "ok"
    assert not state_file.exists()


def test_a_session_runs_it_once_at_its_start_and_puts_it_in_at_a_tick(system, state_file, klines):
    klines.gate.clear()
    ready = system(ta=ta)
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False) as session:
        session.state["positions"]["BTC-USD"] = {"quantity": 1}
        assert session.on_trade()  # nothing of the bootstrap is waited for
        assert SECTION not in StateStore(state_file).load()
        klines.gate.set()
        assert ready.wait(60).status == "ok"

        assert session.tick()

        on_disk = StateStore(state_file).load()
        assert on_disk["positions"] == {"BTC-USD": {"quantity": 1}}
        assert "ta" in on_disk[SECTION]["regime_BTC/1h"]["features"]
        assert on_disk.meta.reason == "bootstrap"
        assert session.health()["saves"]["bootstrap"] == 1
        revision = on_disk.meta.revision
        session.tick()
        assert StateStore(state_file).load().meta.revision == revision
        assert session.health()["reloads"] == 0
    assert len(klines.requests) == 12


def test_in_the_foreground_the_session_starts_with_it_done(system, state_file):
    ready = system(background=False)
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False) as session:
        assert len(session.state[SECTION]) == 24
        assert len(StateStore(state_file).load()[SECTION]) == 24


def test_a_bootstrap_that_cannot_even_begin_lets_the_state_go(state_file):
    class Broken:
        def begin(self, _session):
            raise RuntimeError("a bug")

        def deliver(self, _state):
            return False

    with pytest.raises(RuntimeError, match="a bug"):
        TradingSession(StateStore(state_file), bootstrap=Broken(), signals=False).start()

    assert StateStore(state_file).lease_holder() is None


def test_after_its_session_a_system_writes_by_itself(system, state_file):
    ready = system(background=False)
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False) as session:
        del session.state[SECTION]

    assert ready.bootstrap_all().step("drivers").counts["created"] == 24
    assert len(StateStore(state_file).load()[SECTION]) == 24


def test_what_a_former_session_began_is_for_the_next_one(system, state_file, klines):
    klines.gate.clear()
    ready = system()
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False):
        pass
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False) as session:
        klines.gate.set()
        ready.wait(60)
        session.tick()
        assert len(session.state[SECTION]) == 24
    assert len(klines.requests) == 12


def test_a_dry_run_runs_none_of_it(system, state_file, klines):
    ready = system()
    with TradingSession(
        StateStore(state_file), mode="DRY_RUN", bootstrap=ready, signals=False
    ) as session:
        session.tick()

    assert ready.report is None
    assert klines.requests == []
    assert not state_file.exists()


def test_asyncio_bots_get_it_as_well(system, state_file):
    import asyncio

    async def bot():
        ready = system()
        session = TradingSession(StateStore(state_file), bootstrap=ready, signals=False)
        async with session:
            await asyncio.to_thread(ready.wait, 60)
            await session.atick()
            return StateStore(state_file).load()

    assert len(asyncio.run(bot())[SECTION]) == 24


def test_what_cannot_be_put_in_stops_no_tick(system, state_file, caplog):
    ready = system(background=True)
    with TradingSession(StateStore(state_file), bootstrap=ready, signals=False) as session:
        session.state[SECTION] = "mine"
        ready.wait(60)

        assert session.tick()

        assert session.state[SECTION] == "mine"
    assert "cannot be put in" in caplog.text


# Selective recovery


def test_the_bars_can_be_deleted_alone_and_come_back(system, state_store, bar_store):
    state_store.save({"positions": {"BTC-USD": {"quantity": 1}}, "lessons": ["wait"]})
    system(ta=ta).bootstrap_all()
    before = state_store.load()

    bar_store.path.unlink()
    report = system(ta=ta).bootstrap_all()

    assert report.status == "ok"
    assert report.step("bars").counts["asked"] == 12
    after = state_store.load()
    assert after["positions"] == before["positions"]
    assert after["lessons"] == ["wait"]


def test_the_same_through_coinbase_and_the_real_sdk(state_store, fake_exchange, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    spans = {"ONE_MINUTE": 60, "ONE_HOUR": 3_600, "ONE_DAY": 86_400}
    for product in ("BTC-USD", "SOL-USD", "ETH-USD", "BNB-USD"):
        for name, seconds in spans.items():
            last = now() // 1_000_000_000 // seconds * seconds
            starts = range(last - 700 * seconds, last + 1, seconds)
            fake_exchange.set_candles(
                product, name, [(start, "9", "12", "10", "11", "1") for start in starts]
            )
    source = CoinbaseCandles(
        base_url=fake_exchange.base_url, ca_file=fake_exchange.ca_file, rate=30, **QUICK
    )
    store = BarStore(state_store.path.with_name("bars.sqlite3"))

    first = BootstrapSystem(state_store, bars=BarCollector(store, source)).bootstrap_all()
    sent = len(fake_exchange.requests)
    second = BootstrapSystem(state_store, bars=BarCollector(store, source)).bootstrap_all()

    assert (first.status, second.status) == ("ok", "ok")
    assert sent == 12 * 3
    assert len(fake_exchange.requests) == sent
    assert not any(request.signed for request in fake_exchange.requests)
    assert store.extents()["ALT", "1d"].bars >= 665


def test_what_failed_is_in_the_log(system, caplog):
    caplog.set_level(logging.INFO)

    system(balances=Wallet(RuntimeError("a bug"))).bootstrap_all()

    assert "bootstrap step failed" in caplog.text
    assert "bootstrap ended" in caplog.text


def test_killed_in_the_middle_of_it_nothing_is_half(crash_after, tmp_path):
    """Wherever it dies, the next run finds a state that loads and finishes the work."""
    for calls in range(0, 200, 7):
        folder = tmp_path / str(calls)
        folder.mkdir()
        store = StateStore(folder / ".state.json")
        store.save({"positions": {"BTC-USD": {"quantity": 1}}})
        bars = BarStore(folder / "bars.sqlite3")
        ready = BootstrapSystem(store, bars=BarCollector(bars, None))
        killed = crash_after(calls, ready.bootstrap_all)

        state = StateStore(store.path).load()
        assert state["positions"] == {"BTC-USD": {"quantity": 1}}
        assert len(state.get(SECTION, {})) in (0, 24)
        again = BootstrapSystem(StateStore(store.path), bars=BarCollector(bars, None))
        assert again.bootstrap_all().step("drivers").status == "ok"
        if not killed:
            break
    else:
        pytest.fail("it never came to its end")


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("background", [False, True])
def test_a_step_that_wants_to_end_the_process_fails_alone(system, error, background):
    def exits():
        raise error

    ready = system(stream=exits)
    if background:
        ready.start()
        report = ready.wait(60)
    else:
        report = ready.bootstrap_all()

    assert statuses(report)["stream"] == "failed"
    assert type(error).__name__ in report.step("stream").detail
    assert statuses(report)["drivers"] == "ok"
    assert report.status == "degraded"


def test_an_interrupt_ends_a_bootstrap_and_the_next_one_runs(system):
    def interrupted():
        raise KeyboardInterrupt

    ready = system(stream=interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ready.bootstrap_all()


def test_whoever_starts_it_while_it_runs_is_told_so_whichever_way_it_was_started(system):
    inside, go_on = threading.Event(), threading.Event()

    def hangs():
        inside.set()
        go_on.wait(60)

    ready = system(stream=hangs)
    first = threading.Thread(target=ready.bootstrap_all)
    first.start()
    try:
        inside.wait(60)
        for run in (ready.start, ready.bootstrap_all):
            with pytest.raises(UsageError, match="running already"):
                run()
    finally:
        go_on.set()
        first.join()
    assert ready.bootstrap_all().step("stream").status == "ok"


def test_one_run_at_a_time(system):
    ready = system(stream=lambda: ready.bootstrap_all())

    report = ready.bootstrap_all()

    assert report.step("stream").status == "failed"
    assert "running already" in report.step("stream").detail
