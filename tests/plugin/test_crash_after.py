"""`crash_after`, as the tests of a bot use it."""

from __future__ import annotations

import itertools
import json
import os
import time

import pytest

from statestore import StateStore
from tests.plugin.test_plugin import pytest_says  # noqa: F401  # a fixture


def moments(crash_after, function):
    """Kill `function` at every moment; yield after each."""
    for calls in itertools.count():
        if not crash_after(calls, function):
            return
        yield calls


def test_a_save_is_killed_at_every_moment_and_loses_nothing(crash_after, state_file):
    left, killed = [], True
    while killed:
        store = StateStore(state_file.with_name(f"{len(left)}.json"))
        store.save({"n": 0})
        killed = crash_after(len(left), lambda store=store: store.save({"n": 1}))
        left.append(StateStore(store.path).load()["n"])

    assert len(left) > 5
    assert set(left[:-1]) == {0, 1}
    assert left == sorted(left)  # once it is there, it is there


def test_the_moments_are_the_same_however_slow_the_machine_is(crash_after, state_file):
    """A save looks twice at a file that is milliseconds old; no moment may move with that."""

    def save(path, pause):
        time.sleep(pause)
        store = StateStore(path)
        store.save(store.load() | {"n": 1})

    def lives_through(calls, pause):
        path = state_file.with_name(f"{pause}-{calls}.json")
        StateStore(path).save({"n": 0})
        return not crash_after(calls, lambda: save(path, pause))

    at_once = next(n for n in itertools.count() if lives_through(n, pause=0))
    slowly = next(n for n in itertools.count() if lives_through(n, pause=0.05))
    assert at_once == slowly


@pytest.mark.parametrize("builtin", [True, False])
def test_a_careless_save_is_caught(crash_after, tmp_path, builtin):
    path = tmp_path / "state.json"

    def save():
        with open(path, "w") if builtin else path.open("w") as file:  # noqa: PTH123
            json.dump({"n": 1}, file)

    left = []
    path.write_text('{"n": 0}')
    for _ in moments(crash_after, save):
        left.append(path.read_text())

    assert left == ['{"n": 0}', ""]


def test_what_is_killed_leaves_this_process_alone(crash_after, tmp_path):
    before = os.fsync

    assert crash_after(0, lambda: (tmp_path / "x").mkdir())
    assert not crash_after(1, lambda: (tmp_path / "x").mkdir())
    assert os.fsync is before
    assert not crash_after(0, lambda: None)


def test_what_fails_by_itself_fails_the_test(pytest_says):  # noqa: F811
    code, said = pytest_says(
        """
def test_it(crash_after):
    crash_after(5, lambda: 1 / 0)
"""
    )

    assert code == 1
    assert "ended by itself, with exit code 1" in said
    assert "ZeroDivisionError" in said


def test_a_project_of_somebody_else_can_use_it(pytest_says):  # noqa: F811
    code, said = pytest_says(
        """
import itertools
from statestore import StateStore, TradingSession

def bot(path):
    with TradingSession(StateStore(path)) as session:
        session.state["positions"]["BTC-USD"] = {"quantity": 1}
        session.on_trade()

def test_my_bot_loses_nothing(crash_after, state_file, kill_switch):
    StateStore(state_file).save({"positions": {}})
    for calls in itertools.count():
        if not crash_after(calls, lambda: bot(state_file)):
            break
        held = StateStore(state_file).load()["positions"]
        assert held in ({}, {"BTC-USD": {"quantity": 1}})
        assert not kill_switch.engaged()
    assert calls > 10
    assert held
"""
    )

    assert code == 0, said
