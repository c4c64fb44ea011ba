"""Strategies with none, one or all of the three methods, and those that raise."""

from __future__ import annotations

import logging

import pytest

from statestore import StateStore, TradingSession
from statestore.errors import UsageError


class Silent:
    """None of the three."""


class OnlyState:
    def __init__(self, pairs=None):
        self.pairs = {"BTC-USD": {"cooldown": 3}} if pairs is None else pairs

    def get_current_state(self):
        return {"pair_states": self.pairs, "indicators": {"z": 1.5}, "custom_data": [1]}


class OnlyMetadata:
    def get_state_metadata(self):
        return {"strategy_version": "1.0", "last_rebalance": None, "risk_metrics": {"var": 2}}


class OnlyRestore:
    got = None

    def restore_state(self, metadata):
        self.got = metadata


class Whole(OnlyState, OnlyMetadata):
    """All of the three, as in the document."""

    got = None

    def __init__(self, name="Whole", **options):
        super().__init__(**options)
        self.name = name

    def restore_state(self, metadata):
        self.got = metadata
        self.pairs = metadata["strategy_state"]["pair_states"]


class Broken(Whole):
    """Raises in the methods that are named."""

    def __init__(self, *methods, **options):
        super().__init__("Broken", **options)
        self.methods = methods

    def _may(self, method):
        if method in self.methods:
            raise ZeroDivisionError(f"{method} of a strategy")

    def get_current_state(self):
        self._may("get_current_state")
        return super().get_current_state()

    def get_state_metadata(self):
        self._may("get_state_metadata")
        return super().get_state_metadata()

    def restore_state(self, metadata):
        self._may("restore_state")
        super().restore_state(metadata)


@pytest.fixture
def run(state_file):
    """Start a session with these strategies, save, stop; return what is on disk then."""

    def run(*strategies):
        with TradingSession(StateStore(state_file), strategies=strategies) as session:
            assert session.save()
        return StateStore(state_file).load()

    return run


def test_a_strategy_may_have_none_of_the_methods(run):
    state = run(Silent())

    assert state["strategy_state"] == {}
    assert state["pair_states"] == {}


def test_the_state_is_saved_and_its_pair_states_lifted_out(run):
    state = run(OnlyState())

    assert state["pair_states"] == {"BTC-USD": {"cooldown": 3}}
    assert state["strategy_state"] == {
        "OnlyState": {
            "pairs": ["BTC-USD"],
            "state": {"indicators": {"z": 1.5}, "custom_data": [1]},
        }
    }


def test_the_metadata_is_saved_as_it_is(run):
    assert run(OnlyMetadata())["strategy_state"] == {
        "OnlyMetadata": {"metadata": OnlyMetadata().get_state_metadata()}
    }


def test_one_that_only_restores_is_not_called_when_nothing_was_saved(run):
    strategy = OnlyRestore()
    run(strategy)

    assert strategy.got is None


def test_what_was_saved_is_given_back_as_it_was(run):
    run(Whole())
    strategy = Whole(pairs={})
    run(strategy)

    assert strategy.got == {
        "strategy_metadata": OnlyMetadata().get_state_metadata(),
        "strategy_state": OnlyState().get_current_state(),
    }


def test_metadata_alone_is_given_back_alone(run):
    run(OnlyMetadata())
    strategy = type("OnlyMetadata", (OnlyRestore,), {})()
    run(strategy)

    assert strategy.got == {"strategy_metadata": OnlyMetadata().get_state_metadata()}


def test_what_an_operator_changes_in_pair_states_reaches_the_strategy(run, state_file):
    run(Whole())
    with StateStore(state_file).transaction() as state:
        state["pair_states"]["BTC-USD"]["cooldown"] = 0
    strategy = Whole(pairs={})
    run(strategy)

    assert strategy.pairs == {"BTC-USD": {"cooldown": 0}}


def test_a_pair_the_strategy_gave_up_goes_and_those_of_the_bot_stay(run, state_file):
    run(Whole(pairs={"BTC-USD": 1, "ETH-USD": 2}))
    with StateStore(state_file).transaction() as state:
        state["pair_states"]["DOGE-USD"] = "the bot's own"

    class Fewer(Whole):
        def restore_state(self, metadata):
            del metadata
            self.pairs = {"ETH-USD": 3}

    assert run(Fewer())["pair_states"] == {"ETH-USD": 3, "DOGE-USD": "the bot's own"}


def test_two_strategies_on_one_pair_keep_a_state_each(run):
    run(Whole("a", pairs={"BTC-USD": 1}), Whole("b", pairs={"BTC-USD": 2, "ETH-USD": 3}))
    again = Whole("a", pairs={}), Whole("b", pairs={})
    state = run(*again)

    assert [strategy.pairs for strategy in again] == [
        {"BTC-USD": 1},
        {"BTC-USD": 2, "ETH-USD": 3},
    ]
    assert state["pair_states"] == {"BTC-USD": 1, "ETH-USD": 3}


def test_two_strategies_of_one_name_are_refused(state_store):
    with pytest.raises(UsageError, match="two strategies are called 'Silent'"):
        TradingSession(state_store, strategies=[Silent(), Silent()])


@pytest.mark.parametrize("method", ["get_current_state", "get_state_metadata"])
def test_one_that_raises_costs_nobody_a_save_and_keeps_what_it_had(run, state_file, caplog, method):
    before = run(Broken(), OnlyMetadata())["strategy_state"]
    assert before["Broken"]["state"]["indicators"] == {"z": 1.5}
    caplog.clear()

    broken = Broken(method)
    with TradingSession(StateStore(state_file), strategies=[broken, OnlyMetadata()]) as session:
        session.state["positions"]["BTC-USD"] = {"quantity": 1}
        assert session.on_trade()
        health = session.health()

    state = StateStore(state_file).load()
    assert state["strategy_state"] == before
    assert state["pair_states"] == {"BTC-USD": {"cooldown": 3}}
    assert state["positions"] == {"BTC-USD": {"quantity": 1}}
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert {record.strategy for record in logged} == {"Broken"}
    assert health["strategies"] == {"Broken": f"ZeroDivisionError: {method} of a strategy"}
    assert not health["ok"]


@pytest.mark.parametrize(
    "said",
    [
        {"indicators": {"z": float("nan")}},
        {"custom_data": object()},
        ["a list"],
        {"pair_states": 1},
    ],
)
def test_one_that_says_what_no_file_can_hold_is_as_one_that_raises(run, caplog, said):
    strategy = Silent()
    strategy.get_current_state = lambda: said

    state = run(strategy, OnlyMetadata())

    assert list(state["strategy_state"]) == ["OnlyMetadata"]
    assert {r.strategy for r in caplog.records if r.levelno == logging.ERROR} == {"Silent"}


def test_one_that_recovers_is_saved_again(run, state_file):
    broken = Broken("get_current_state", pairs={"BTC-USD": 1})
    with TradingSession(StateStore(state_file), strategies=[broken]) as session:
        broken.methods = ()
        session.save()
        assert session.health()["ok"]

    assert StateStore(state_file).load()["pair_states"] == {"BTC-USD": 1}


def test_what_is_kept_is_what_was_said_then_not_what_became_of_it(state_file):
    broken = Broken(pairs={"BTC-USD": {"cooldown": 3}})
    with TradingSession(StateStore(state_file), strategies=[broken]) as session:
        broken.methods = ("get_current_state",)
        broken.pairs["BTC-USD"]["cooldown"] = "half way"
        session.state["n"] = 1
        session.save()

    assert StateStore(state_file).load()["pair_states"] == {"BTC-USD": {"cooldown": 3}}


def test_one_that_could_not_take_its_state_does_not_write_over_it(run, caplog):
    before = run(Broken())
    caplog.set_level(logging.INFO)

    after = run(Broken("restore_state", pairs={}))

    assert after["strategy_state"] == before["strategy_state"]
    assert after["pair_states"] == before["pair_states"]
    assert "strategy did not take its state" in caplog.messages
    assert "Previous trading state successfully restored" not in caplog.messages


def test_a_repair_is_told_to_the_strategies(state_file, caplog):
    whole = Whole()
    with TradingSession(StateStore(state_file), strategies=[whole, OnlyState({})]) as session:
        with StateStore(state_file).transaction(reason="rebuild") as state:
            state["pair_states"]["BTC-USD"]["cooldown"] = 0
        session.tick()
        assert whole.pairs == {"BTC-USD": {"cooldown": 0}}

    assert StateStore(state_file).load()["pair_states"] == {"BTC-USD": {"cooldown": 0}}
    deaf = next(r for r in caplog.records if "no restore_state" in r.message)
    assert deaf.strategy == "OnlyState"
