"""One bot, one state file, one process: what a session restores, saves, refuses and says."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import statestore
from statestore import KillSwitch, StateStore, TradingSession
from statestore.disk import codec, durable
from statestore.errors import (
    LeaseHeld,
    RevisionConflict,
    SaveFailed,
    StateInvalid,
    StateMissing,
    UsageError,
)

RULE = "=" * 60
BTC = {"side": "BUY", "quantity": 2, "entry_price": 100.5, "entry_time": "2025-11-18T04:00:00Z"}


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r.message for r in caplog.records if r.name.startswith("statestore.runtime")]


@pytest.fixture
def on_disk(state_file):
    return lambda: StateStore(state_file).load()


@contextmanager
def a_full_disk(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "replace", refuse)
        patch.setattr(durable.os, "rename", refuse)
        yield


def repair(path, quantity):
    """As the operator's rebuild does: another writer, who saw the latest state."""
    store = StateStore(path)
    with store.transaction(reason="rebuild") as state:
        state["positions"]["BTC-USD"]["quantity"] = quantity


# Restoring


def test_a_first_start_has_empty_sections_and_no_made_up_figures(state_store, said):
    with TradingSession(state_store) as session:
        assert list(session.state) == [
            "positions",
            "open_orders",
            "pair_states",
            "portfolio",
            "session",
            "config",
            "strategy_state",
        ]
        assert session.state["positions"] == {}
        assert session.state["portfolio"] is None

    assert "no previous trading state" in said()
    assert RULE not in said()


def test_the_restore_is_told_line_by_line(state_store, said):
    state_store.save(
        {
            "positions": {
                "BTCUSD-ETHUSD": {
                    "direction": "long",
                    "entry_price": 50000.0,
                    "quantity": 0.1,
                    "entry_time": "2025-07-20T08:00:00",
                },
                "ETH-USD": {"available": 1, "hold": 0, "total": 3},
                "BTC-USD": BTC,
            },
            "pair_states": {f"P{n}": {"cooldown": n} for n in range(15)},
        }
    )

    with TradingSession(state_store) as session:
        assert session.state["positions"]["BTC-USD"] == BTC

    told = said()
    assert told[:10] == [
        RULE,
        "RESTORING PREVIOUS TRADING STATE",
        RULE,
        "Found 3 stored positions",
        "Restored Positions:",
        "  BTCUSD-ETHUSD: long | Entry: 50000.0 | Qty: 0.1 | Time: 2025-07-20T08:00:00",
        "  ETH-USD: unknown | Entry: unknown | Qty: 3 | Time: unknown",
        "  BTC-USD: BUY | Entry: 100.5 | Qty: 2 | Time: 2025-11-18T04:00:00Z",
        "Restored Pair States: 15 pairs",
        "Previous trading state successfully restored",
    ]


def test_success_is_not_claimed_for_a_state_with_nothing_in_it(state_store, said):
    state_store.save({"positions": {}, "session": {"mode": "PAPER"}})

    with TradingSession(state_store):
        pass

    assert "Found 0 stored positions" in said()
    assert "Restored Positions:" not in said()
    assert "Previous trading state successfully restored" not in said()


def test_success_is_not_claimed_for_a_fallback(state_store, said, on_disk):
    state_store.save({"positions": {}})
    state_store.save({"positions": {"BTC-USD": BTC}})
    state_store.save({"positions": {}})
    state_store.path.write_bytes(b"torn")

    with TradingSession(StateStore(state_store.path)) as session:
        assert session.state["positions"] == {"BTC-USD": BTC}
        assert session.health()["restored_from"] == str(state_store.backup_path)

    assert "Trading state restored from a fallback" in said()
    assert "Previous trading state successfully restored" not in said()
    assert on_disk()["positions"] == {"BTC-USD": BTC}


def test_a_state_that_does_not_read_starts_no_session_and_leaves_no_lease(state_store, said):
    state_store.path.write_bytes(b"torn")

    with pytest.raises(Exception, match="no state can be read"):
        TradingSession(state_store).start()

    assert state_store.path.read_bytes() == b"torn"
    assert state_store.lease_holder() is None
    assert "Previous trading state successfully restored" not in said()


@pytest.mark.parametrize("name", ["positions", "session", "pair_states"])
def test_a_section_that_is_no_object_is_not_written_over(state_store, name):
    state_store.save({name: ["the bot's own"]})
    before = state_store.path.read_bytes()

    with pytest.raises(StateInvalid, match=f"{name} is a list, and has to be an object") as caught:
        TradingSession(state_store).start()

    assert caught.value.field == name
    assert state_store.path.read_bytes() == before


def test_the_sections_say_who_ran_and_with_what(state_store, on_disk):
    config = {"broker": "coinbase", "pairs": ["BTC-USD"], "leverage": 1}
    with TradingSession(state_store, mode="LIVE", config=config) as session:
        session.update_portfolio(total_pnl=-3)
        assert on_disk()["session"]["stopped_at"] is None

    state = on_disk()
    assert state["config"] == {
        "data_provider": None,
        "broker": "coinbase",
        "strategy": None,
        "pairs": ["BTC-USD"],
        "leverage": 1,
    }
    assert state["portfolio"] == {"total_value": None, "total_pnl": -3, "open_positions": 0}
    assert state["session"]["mode"] == "LIVE"
    assert state["session"]["version"] == statestore.__version__
    assert state["session"]["stopped_by"] == "exit"
    assert state["session"]["started_at"] < state["session"]["stopped_at"] <= state.meta.saved_at


def test_a_session_that_was_killed_is_told_by_the_next(state_store, said):
    state_store.save({"session": {"started_at": "2025-11-18T04:00:00Z", "stopped_at": None}})

    with TradingSession(state_store):
        pass
    assert "the previous session was killed, or the machine died" in said()


def test_a_manual_restore_drops_what_is_in_memory(state_store):
    state_store.save({"positions": {"BTC-USD": BTC}})

    with TradingSession(state_store) as session:
        for restore in (session.restore, session._restore_trading_state):
            session.state["positions"].clear()
            restore()

            assert session.state["positions"] == {"BTC-USD": BTC}


def test_other_keys_of_the_bot_survive(state_store, on_disk):
    state_store.path.write_text('{"pnl_today": -12.50, "cooldowns": {"BTC-USD": 1}}')

    with TradingSession(state_store, numbers="decimal"):
        pass

    assert b'"pnl_today": -12.50' in state_store.path.read_bytes()
    assert on_disk()["cooldowns"] == {"BTC-USD": 1}


# Saving


def test_a_day_has_288_periodic_saves_and_one_for_each_trade(state_store):
    clock = Clock()
    with TradingSession(state_store, clock=clock) as session:
        trades = 0
        for second in range(1, 86_401):
            clock.seconds += 1
            session.tick()
            if second % 7_200 == 1_800:
                trades += 1
                session.state["positions"]["BTC-USD"] = BTC | {"quantity": trades}
                assert session.on_trade()
        health = session.health()

    assert health["saves"] == {"start": 1, "periodic": 288, "trade": 12}
    assert health["revision"] == 13  # what did not change was not written again
    assert state_store.revision == 14  # that the session ended


def test_a_day_whose_content_changes_every_second_writes_every_save(state_store):
    clock = Clock()
    with TradingSession(state_store, clock=clock, interval=60) as session:
        for second in range(1, 3_601):
            clock.seconds += 1
            session.state["seconds"] = second
            session.tick()
        assert session.health()["saves"] == {"start": 1, "periodic": 60}

    assert state_store.revision == 62


def test_a_tick_that_is_hours_late_saves_once_and_keeps_the_beat(state_store):
    clock = Clock()
    with TradingSession(state_store, clock=clock) as session:
        for seconds in (7_250, 249, 1):
            clock.seconds += seconds
            session.tick()

        assert session.health()["saves"]["periodic"] == 2


def test_the_label_of_a_manual_save_is_the_reason_of_the_revision(state_store, on_disk):
    with TradingSession(state_store) as session:
        session.state["n"] = 1
        assert session.save_current_trading_state("Custom checkpoint")
        assert on_disk().meta.reason == "Custom checkpoint"
        session.state["n"] = 2
        assert session.on_trade("BUY 1 BTC-USD")
        assert on_disk().meta.reason == "trade BUY 1 BTC-USD"


def test_each_save_is_confirmed_with_revision_reason_and_bytes(state_store, caplog):
    caplog.set_level(logging.INFO)
    with TradingSession(state_store) as session:
        session.state["n"] = 1
        session.save("checkpoint")
        size = state_store.path.stat().st_size
        session.save("again")

    saves = [r for r in caplog.records if r.message == "trading state saved"]
    told = [(r.reason, r.revision, r.written) for r in saves]
    assert told == [
        ("start", 1, True),
        ("checkpoint", 2, True),
        ("again", 2, False),
        ("exit", 3, True),
    ]
    assert saves[1].bytes == size


def test_a_failed_save_is_told_counted_and_tried_again_at_the_next_tick(
    state_store, monkeypatch, on_disk, said
):
    errors = []
    with TradingSession(state_store, on_save_error=errors.append) as session:
        session.state["positions"]["BTC-USD"] = BTC
        with a_full_disk(monkeypatch):
            assert not session.on_trade()
            assert session.tick()  # trading goes on
            health = session.health()
        assert "BTC-USD" not in on_disk()["positions"]

        assert session.tick()

        assert on_disk()["positions"] == {"BTC-USD": BTC}
        assert session.health()["ok"]

    assert not health["ok"]
    assert health["unsaved"] == {"trade": 1}
    assert health["failed_saves"] == 2
    assert "No space left on device" in health["last_error"]["error"]
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    assert session.health()["saves"] == {"start": 1, "trade": 1, "stop": 1}
    assert said().count("trading state NOT saved") == 2


def test_a_hook_that_raises_is_logged_and_stops_nothing(state_store, monkeypatch, said):
    def hook(error):
        raise ZeroDivisionError

    with TradingSession(state_store, on_save_error=hook) as session:
        with a_full_disk(monkeypatch):
            session.state["n"] = 1
            assert not session.save()

    assert "on_save_error raised" in said()


def test_a_hook_that_saves_although_that_just_failed_is_told_once(
    state_store, monkeypatch, on_disk
):
    told = []

    def insists(error):
        told.append(error)
        assert session.save("insisting") is False

    with TradingSession(state_store, on_save_error=insists) as session:
        session.state["n"] = 1
        with a_full_disk(monkeypatch):
            assert session.on_trade() is False
            assert session.on_trade() is False
        assert len(told) == 2
        assert session.health()["unsaved"] == {"trade": 2, "manual": 2}
        session.tick()
        assert session.health()["unsaved"] == {}
    assert on_disk()["n"] == 1


def test_a_value_that_no_file_can_hold_is_a_failed_save_that_names_it(state_store):
    with TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"] = {"entry_price": float("nan")}
        assert not session.on_trade()
        assert "positions.BTC-USD.entry_price" in session.health()["last_error"]["error"]
        session.state["positions"].clear()


def test_the_last_save_that_fails_is_raised(state_store, monkeypatch):
    session = TradingSession(state_store).start()
    with a_full_disk(monkeypatch), pytest.raises(SaveFailed):
        session.stop()

    assert state_store.lease_holder() is None


def test_an_exception_saves_once_and_passes(state_store, on_disk):
    with pytest.raises(ZeroDivisionError), TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"] = BTC
        raise ZeroDivisionError

    assert on_disk()["positions"] == {"BTC-USD": BTC}
    assert on_disk().meta.reason == "exception: ZeroDivisionError"
    assert on_disk().meta.revision == 2
    assert state_store.lease_holder() is None


def test_an_exception_is_not_hidden_by_the_save_that_failed_after_it(state_store, monkeypatch):
    with pytest.raises(ZeroDivisionError) as caught, TradingSession(state_store):
        patched = a_full_disk(monkeypatch)
        patched.__enter__()
        raise ZeroDivisionError
    patched.__exit__(None, None, None)

    assert "No space left" in caught.value.__notes__[0]


def test_after_the_end_nothing_can_be_saved(state_store):
    with TradingSession(state_store) as session:
        pass
    session.stop()

    with pytest.raises(UsageError, match="no lease"):
        session.save()
    with pytest.raises(UsageError, match="started once"):
        session.start()


def test_a_forked_child_neither_saves_nor_ends_the_session(state_store):
    with TradingSession(state_store) as session:
        child = os.fork()
        if not child:
            try:
                session.stop("child")
                session.save()
            except UsageError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert session.running
        assert state_store.lease_holder()["pid"] == os.getpid()

    assert state_store.revision == 2


# Others at the same state


def test_a_second_session_is_refused_and_told_who_runs(state_store):
    with TradingSession(state_store):
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on .* since 20"):
            TradingSession(StateStore(state_store.path)).start()

    with TradingSession(StateStore(state_store.path)):
        pass


def test_a_repair_is_taken_over_at_the_next_tick(state_store, on_disk):
    state_store.save({"positions": {"BTC-USD": BTC}})
    with TradingSession(state_store) as session:
        former = session.state
        repair(state_store.path, 1)

        assert session.tick()

        assert session.state["positions"]["BTC-USD"]["quantity"] == 1
        former["positions"]["BTC-USD"]["quantity"] = 99
        session.state["n"] = 1
        assert session.save()
        assert session.health()["reloads"] == 1

    assert on_disk()["positions"]["BTC-USD"]["quantity"] == 1


def test_a_save_that_meets_a_repair_reloads_and_never_overwrites(state_store, on_disk, caplog):
    state_store.save({"positions": {"BTC-USD": BTC}})
    errors = []
    with TradingSession(state_store, on_save_error=errors.append) as session:
        session.state["positions"]["BTC-USD"]["quantity"] = 99
        repair(state_store.path, 1)

        assert not session.on_trade()

        assert on_disk()["positions"]["BTC-USD"]["quantity"] == 1
        assert session.state["positions"]["BTC-USD"]["quantity"] == 1
        session.tick()
        assert session.health()["unsaved"] == {}

    assert on_disk()["positions"]["BTC-USD"]["quantity"] == 1
    assert [type(error) for error in errors] == [RevisionConflict]
    taken = next(r for r in caplog.records if "taken over" in r.message)
    assert taken.levelname == "ERROR"
    assert taken.positions == {"BTC-USD": "99 -> 1"}
    assert taken.dropped == ["trade"]


def test_a_repair_just_before_the_end_stands(state_store, on_disk):
    state_store.save({"positions": {"BTC-USD": BTC}})
    with TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"]["quantity"] = 99
        repair(state_store.path, 1)

    assert on_disk()["positions"]["BTC-USD"]["quantity"] == 1
    assert on_disk()["session"]["stopped_by"] == "exit"


def test_a_state_file_that_is_damaged_under_a_running_bot_is_put_right(state_store, on_disk):
    with TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"] = BTC
        session.on_trade()
        state_store.path.write_bytes(b"torn")

        assert session.tick()

        assert on_disk()["positions"] == {"BTC-USD": BTC}
        assert session.health()["ok"]


def test_a_state_that_was_edited_by_hand_is_neither_taken_nor_written_over(state_store, on_disk):
    with TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"] = BTC
        session.on_trade()
        edited = state_store.path.read_bytes().replace(b'"quantity": 2', b'"quantity": 1')
        state_store.path.write_bytes(edited)

        assert session.tick()
        assert not session.save("mine")
        assert state_store.path.read_bytes() == edited
        assert "statestore seal" in session.health()["reload_error"]

        StateStore(state_store.path).seal()
        session.tick()
        assert session.state["positions"]["BTC-USD"]["quantity"] == 1
        assert session.health()["ok"]


def test_a_state_that_was_deleted_is_not_an_empty_one(state_store, state_file):
    with TradingSession(state_store) as session:
        session.state["positions"]["BTC-USD"] = BTC
        session.on_trade()
        for path in (state_file, state_store.backup_path):
            path.rename(path.with_suffix(".away"))

        assert session.tick()
        with pytest.raises(StateMissing):
            session.restore()
        assert session.state["positions"] == {"BTC-USD": BTC}
        assert not session.health()["ok"]

        for path in (state_file, state_store.backup_path):
            path.with_suffix(".away").rename(path)


def test_the_state_is_given_back_as_it_is_when_it_was_only_touched(state_store):
    with TradingSession(state_store) as session:
        session.state["n"] = 1  # not saved yet
        os.utime(state_store.path)

        assert not session.refresh()
        assert session.state["n"] == 1
        assert not state_store.changed()


# The kill switch


def test_a_halted_bot_does_not_trade_and_may_save(state_store, kill_switch, on_disk, caplog):
    with TradingSession(state_store, kill_switch=kill_switch) as session:
        assert session.tick()
        kill_switch.engage("a look", "me")

        assert not session.tick()
        assert not session.may_trade
        session.state["n"] = 1
        assert session.save()
        kill_switch.release()
        assert session.tick()

    assert on_disk()["n"] == 1
    engaged = next(r for r in caplog.records if r.message.startswith("kill switch engaged"))
    assert (engaged.reason, engaged.by) == ("a look", "me")


def test_the_switch_beside_the_state_is_obeyed_unless_told_otherwise(state_store, kill_switch):
    kill_switch.engage()

    with TradingSession(state_store) as session:
        assert not session.tick()


def test_a_switch_that_cannot_be_looked_at_halts(state_store, state_file):
    (state_file.parent / "file").touch()
    switch = KillSwitch(state_file.parent / "file" / "KILL_SWITCH")

    with TradingSession(state_store, kill_switch=switch) as session:
        assert not session.tick()


# A dry run


def test_a_dry_run_changes_no_byte_and_runs_beside_the_bot(state_store, state_file):
    def picture():
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in state_file.parent.iterdir()}

    with TradingSession(state_store):
        before = picture()
        with TradingSession(StateStore(state_file), mode="DRY_RUN") as dry:
            dry.state["positions"]["BTC-USD"] = BTC
            assert dry.tick()
            assert not dry.on_trade()
            assert dry.health()["saves"] == {}
        assert picture() == before


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_is_a_flag_and_the_end_saves_once(state_store, on_disk, number, code):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with TradingSession(state_store) as session:
        while session.running:
            session.state["positions"]["BTC-USD"] = BTC
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert not session.wait(60)
            assert not session.tick()

    assert on_disk()["positions"] == {"BTC-USD": BTC}
    assert on_disk().meta.revision == 2
    assert on_disk().meta.reason == signal.Signals(number).name
    assert session.exit_code == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_in_the_middle_of_a_save_do_not_interrupt_it(state_store, monkeypatch, on_disk):
    with TradingSession(state_store) as session:
        fsync = os.fsync

        def interrupted(descriptor):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            fsync(descriptor)

        session.state["n"] = 1
        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "fsync", interrupted)
            assert session.save()
        assert on_disk()["n"] == 1
        assert not session.running

    assert session.stopped_by == "SIGINT"
    assert on_disk().meta.revision == 3


def test_a_forked_worker_dies_of_sigterm_and_wakes_nobody(state_store):
    alive, tell = os.pipe()
    with TradingSession(state_store) as session:
        child = os.fork()
        if not child:
            os.write(tell, b"!")  # what comes before this, Python itself forgets in a fork
            signal.alarm(60)
            signal.pause()
            os._exit(0)
        os.read(alive, 1)
        os.kill(child, signal.SIGTERM)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert session.wait(0)
    os.close(alive)
    os.close(tell)


def test_outside_of_the_main_thread_there_are_no_handlers_and_all_else_works(state_store, on_disk):
    before = signal.getsignal(signal.SIGTERM)
    session = TradingSession(state_store)
    inside, started = [], threading.Event()

    def bot():
        with session:
            inside.append(signal.getsignal(signal.SIGTERM))
            started.set()
            while session.wait(60):
                pass
            session.state["n"] = 1

    thread = threading.Thread(target=bot)
    thread.start()
    assert started.wait(60)
    session.request_stop("the operator")
    thread.join()

    assert inside == [before]
    assert session.stopped_by == "the operator"
    assert on_disk()["n"] == 1


def test_stopped_from_another_thread_the_signals_go_back_when_the_next_one_comes(state_store):
    before = signal.getsignal(signal.SIGINT)
    session = TradingSession(state_store).start()
    thread = threading.Thread(target=session.stop)
    thread.start()
    thread.join()
    assert state_store.lease_holder() is None

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_bot_that_spoils_its_positions_is_told_and_can_be_asked(state_store):
    with TradingSession(state_store) as session:
        session.state["positions"] = []
        assert not session.save()
        assert session.health()["positions"] is None
        with StateStore(state_store.path).transaction() as state:
            state["repaired"] = True
        assert session.tick()
        assert session.state["positions"] == {}


SCRIPT = """
import sys
from statestore import StateStore, TradingSession

session = TradingSession(StateStore(sys.argv[1]))
session.initialize()
session.state["positions"]["BTC-USD"] = {"quantity": 2}
raise ZeroDivisionError("unexpected")
"""


def test_initialize_restores_and_stop_saves(state_store, on_disk, said):
    state_store.save({"positions": {"BTC-USD": BTC}})

    session = TradingSession(state_store)
    session.initialize()

    assert session.state["positions"] == {"BTC-USD": BTC}
    assert "Found 1 stored positions" in said()
    session.state["n"] = 1
    session.stop()
    assert on_disk()["n"] == 1


def test_without_a_with_block_an_unexpected_error_still_saves(state_file, on_disk):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, state_file], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 1
    assert "ZeroDivisionError: unexpected" in ran.stderr
    assert on_disk()["positions"] == {"BTC-USD": {"quantity": 2}}
    assert on_disk()["session"]["stopped_by"] == "exit of the interpreter"


# asyncio


def test_an_async_session_saves_restores_and_stops_on_a_signal(state_store, on_disk):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    inside = []

    async def bot():
        runner = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        async with TradingSession(state_store) as session:
            assert await session.atick()
            session.state["positions"]["BTC-USD"] = BTC
            assert await session.aon_trade()
            assert on_disk()["positions"] == {"BTC-USD": BTC}
            session.state["n"] = 1
            os.kill(os.getpid(), signal.SIGINT)
            assert not await session.await_stop(60)
        inside.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == runner)
        return session

    session = asyncio.run(bot())

    assert session.exit_code == 130
    assert on_disk()["n"] == 1
    assert on_disk().meta.revision == 3
    assert inside == [True]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_saves_of_many_tasks_end_with_the_newest_state(state_store, on_disk):
    async def bot():
        async with TradingSession(state_store) as session:

            async def trade(number):
                session.state["n"] = number
                return await session.aon_trade()

            assert all(await asyncio.gather(*(trade(number) for number in range(50))))
            assert session.health()["saves"]["trade"] == 50
            tasks = [asyncio.ensure_future(trade(number)) for number in range(100, 150)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)  # the end did not overtake them

    asyncio.run(bot())
    assert on_disk()["n"] == 149


def test_in_an_async_block_no_save_overtakes_another(state_store, monkeypatch, on_disk):
    def overtaking(*arguments, **options):
        raise AssertionError("a save that does not queue up behind those of other tasks")

    async def bot():
        async with TradingSession(state_store) as session:
            session.state["n"] = 1
            await session.asave()
            session.state["n"] = 2
            assert session.save()
            session.state["n"] = 3

    monkeypatch.setattr(StateStore, "save", overtaking)
    asyncio.run(bot())
    assert on_disk()["n"] == 3


def test_a_task_that_is_cancelled_saves_at_the_end(state_store, on_disk):
    async def bot():
        async with TradingSession(state_store) as session:
            session.state["n"] = 1
            asyncio.current_task().cancel()
            await session.await_stop(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(bot())

    assert on_disk()["n"] == 1
    assert on_disk().meta.reason == "exception: CancelledError"
    assert state_store.lease_holder() is None


def test_an_async_save_that_meets_a_repair_reloads(state_store, on_disk):
    state_store.save({"positions": {"BTC-USD": BTC}})

    async def bot():
        async with TradingSession(state_store) as session:
            session.state["positions"]["BTC-USD"]["quantity"] = 99
            repair(state_store.path, 1)
            saved = await asyncio.gather(*(session.aon_trade() for _ in range(3)))
            assert saved == [False] * 3
            assert session.health()["unsaved"] == {}
            assert session.state["positions"]["BTC-USD"]["quantity"] == 1
            assert await session.atick()
            assert session.health()["ok"]

    asyncio.run(bot())
    assert on_disk()["positions"]["BTC-USD"]["quantity"] == 1


@contextmanager
def saves_held(monkeypatch):
    """Hold saves whose file is in place and of which the store does not know yet."""
    in_place, go_on = threading.Event(), threading.Event()
    accept = StateStore._accept

    def slowly(self, *arguments):
        in_place.set()
        assert go_on.wait(60)
        return accept(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "_accept", slowly)
        yield in_place, go_on


def test_a_tick_during_a_save_of_another_task_does_not_mistake_it_for_a_repair(
    state_store, monkeypatch, on_disk
):
    async def bot():
        async with TradingSession(state_store) as session:
            state = session.state
            state["n"] = 1
            with saves_held(monkeypatch) as (in_place, go_on):
                saving = asyncio.ensure_future(session.asave())
                await asyncio.to_thread(in_place.wait, 60)
                state["n"] = 2
                await session.atick()
                go_on.set()
                assert await saving
            assert session.state is state
            assert session.health()["reloads"] == 0

    asyncio.run(bot())
    assert on_disk()["n"] == 2


def test_a_save_whose_task_was_cancelled_is_not_mistaken_for_a_repair(
    state_store, monkeypatch, on_disk
):
    async def bot():
        async with TradingSession(state_store) as session:
            state = session.state
            state["n"] = 1
            with saves_held(monkeypatch) as (in_place, go_on):
                saving = asyncio.ensure_future(session.asave())
                await asyncio.to_thread(in_place.wait, 60)
                saving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await saving
                state["n"] = 2
                assert session.refresh() is False
                go_on.set()
                await session.atick()
            assert session.state is state
            assert session.health()["reloads"] == 0

    asyncio.run(bot())
    assert on_disk()["n"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_handler_that_saves_in_the_middle_of_a_save_is_told_so_and_hangs_nothing(
    state_store, monkeypatch, on_disk, asynchronous
):
    """A bot's own handler; it interrupts the thread that is about to encode the state."""
    results = []
    encode = codec.encode

    def interrupted(value, *arguments, **options):
        if not results:
            results.append(None)
            signal.raise_signal(signal.SIGUSR1)
        return encode(value, *arguments, **options)

    async def bot():
        async with TradingSession(state_store) as session:
            handling(session)
            assert await session.asave()

    def handling(session):
        signal.signal(signal.SIGUSR1, lambda *_: results.append(session.save("handler")))
        session.state["n"] = 1
        monkeypatch.setattr(codec, "encode", interrupted)

    former = signal.getsignal(signal.SIGUSR1)
    try:
        if asynchronous:
            asyncio.run(bot())
        else:
            with TradingSession(state_store) as session:
                handling(session)
                assert session.save()
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert results[0] is None
    assert len(results) == 2
    assert on_disk()["n"] == 1


@pytest.mark.parametrize("seconds", [float("inf"), 1e9])
def test_a_wait_without_an_end_ends_with_the_session(state_store, seconds):
    with TradingSession(state_store) as session:
        threading.Timer(0.05, session.request_stop).start()
        assert session.wait(seconds) is False


def test_a_hook_is_not_called_again_before_it_has_returned(state_store, said):
    clock, go_on, calls = Clock(), threading.Event(), []

    def slow():
        calls.append(threading.current_thread())
        assert go_on.wait(60)

    async def bot():
        async with TradingSession(state_store, clock=clock) as session:
            session.every(10, slow)
            ticking = asyncio.ensure_future(session.atick())
            while not calls:
                await asyncio.sleep(0.001)
            ticking.cancel()  # as `asyncio.wait_for` does
            with pytest.raises(asyncio.CancelledError):
                await ticking
            clock.seconds += 10
            await session.atick()
            assert len(calls) == 1
            assert "has not returned" in str(session.health()["hooks"])
            assert session.health()["ok"] is False
            go_on.set()
            while session.health()["hooks"]:
                await asyncio.sleep(0.001)
            clock.seconds += 10
            await session.atick()
            assert len(calls) == 2

    asyncio.run(bot())
    assert said().count("hook failed") == 1


def test_a_hook_that_ticks_does_not_call_itself(state_store):
    clock, calls = Clock(), []
    with TradingSession(state_store, clock=clock) as session:

        def ticks():
            calls.append(clock.seconds)
            clock.seconds += 10
            if len(calls) < 5:
                session.tick()

        session.every(10, ticks)
        session.tick()
    assert len(calls) == 1


def test_to_wait_for_the_disk_asynchronously_takes_an_async_block(state_store):
    async def bot():
        with TradingSession(state_store) as session:
            with pytest.raises(UsageError, match="async with"):
                await session.asave()
            with pytest.raises(UsageError, match="async with"):
                await session.await_stop(1)

    asyncio.run(bot())


def test_an_async_bot_tells_its_service_manager_that_it_lives(state_store, tmp_path, monkeypatch):
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def bot():
        async with TradingSession(state_store) as session:
            await session.await_stop(0.05)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        asyncio.run(bot())
        told = [manager.recv(1000).decode().partition("\n")[0]]
        while told[-1] != "STOPPING=1":
            told.append(manager.recv(1000).decode().partition("\n")[0])

    assert told[0] == "READY=1"
    assert set(told[1:-1]) == {"WATCHDOG=1"}


@pytest.mark.parametrize("options", [{"mode": "paper"}, {"interval": 0}, {"interval": -1}])
def test_an_option_that_means_nothing_is_refused(state_store, options):
    with pytest.raises(UsageError, match="has to be"):
        TradingSession(state_store, **options)


def test_health_is_plain_json(state_store):
    session = TradingSession(state_store)
    assert json.loads(json.dumps(session.health()))["running"] is False
    with pytest.raises(UsageError, match="not started"):
        _ = session.state
    with session:
        assert json.loads(json.dumps(session.health()))["lease"] is True
