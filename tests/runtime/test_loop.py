"""The loop's own rules, with numbers a person can check: risk, paper fills, the strategy."""

from __future__ import annotations

from decimal import Decimal

import pytest

from statestore import StateStore, TradingSession
from statestore.errors import UsageError
from statestore.runtime.loop import Loop, MovingAverage
from statestore.runtime.notify import ServiceManager
from statestore.runtime.risk import RiskEngine

LIMITS = RiskEngine(max_exposure=Decimal(1000), stop_loss=Decimal("0.1"))


def prices(*of_btc):
    return iter([{"BTC-USD": Decimal(price)} for price in of_btc])


@pytest.fixture
def run(state_file):
    """Run the loop over these prices; return its report and what is on disk then."""

    def run(*of_btc, mode="PAPER", engine=LIMITS, **options):
        strategy = MovingAverage()
        session = TradingSession(
            StateStore(state_file), strategies=[strategy], mode=mode, numbers="decimal"
        )
        report = Loop(session, strategy, prices(*of_btc), engine, interval=0, **options).run()
        return report, StateStore(state_file).load(numbers="decimal")

    return run


def test_a_price_above_the_average_buys_and_one_below_sells(run):
    report, state = run(100, 100, 100, 125)  # the average of three is 100

    assert report["trades"] == 1
    position = state["positions"]["BTC-USD"]
    assert position["quantity"] == Decimal("0.8")
    assert position["entry_price"] == 125
    assert position["usd"] == 100
    assert position["fees_paid"] == Decimal("0.6")
    assert state["pair_states"] == {"BTC-USD": {"cooldown": 2}}

    report, state = run(125, 125, 110)  # two cycles of rest, then below the average of 125
    assert report["cycles_ever"] == 7
    assert report["decisions"][0]["side"] == "SELL"
    assert state["positions"] == {}
    assert state["portfolio"]["open_positions"] == 0


def test_a_stop_loss_sells_although_the_strategy_rests(run, state_file):
    StateStore(state_file).save({"positions": {"BTC": {"quantity": "2", "entry_price": 100}}})

    report, state = run(91, 90)

    assert report["decisions"] == [
        {
            "side": "SELL",
            "product": "BTC-USD",
            "why": "stop loss",
            "outcome": "filled on paper",
        }
    ]
    assert state["positions"] == {}


def test_nothing_is_bought_beyond_the_limit(run):
    engine = RiskEngine(max_exposure=Decimal(99), stop_loss=Decimal("0.1"))
    report, state = run(100, 100, 100, 125, engine=engine)

    assert report["decisions"][0]["outcome"] == "refused: exposure limit"
    assert state["positions"] == {}


@pytest.mark.parametrize(
    "position", [{"quantity": None}, {"entry_price": 1}, {"quantity": "much"}, True]
)
def test_nothing_is_bought_while_an_exposure_is_unknown(run, state_file, position):
    StateStore(state_file).save({"positions": {"ETH-USD": position}})
    report, state = run(100, 100, 100, 125)

    assert report["exposure"] is None
    assert report["decisions"][0]["outcome"] == "refused: exposure limit"
    assert state["positions"] == {"ETH-USD": position}


def test_a_halted_loop_decides_and_does_nothing(run, kill_switch):
    kill_switch.engage()
    report, state = run(100, 100, 100, 125)

    assert report["decisions"][0]["outcome"] == "not done: halted"
    assert report["halted_cycles"] == 4
    assert state["positions"] == {}
    assert state["strategy_state"]["moving_average"]["state"]["custom_data"] == {"cycles": 4}


def test_live_is_refused_before_anything_is_made(run, state_file):
    with pytest.raises(UsageError, match="LIVE is refused"):
        run(100, mode="LIVE")

    assert not list(state_file.parent.iterdir())


def test_the_exposure_is_the_quantity_at_the_price():
    positions = {"BTC-USD": {"base_qty": "0.5", "entry_price": 100}, "ETH": {"quantity": 2}}
    risk = LIMITS.look(positions, {"BTC-USD": Decimal(110), "ETH-USD": Decimal(10)})

    assert risk.exposure == 75
    assert risk.positions["BTC-USD"].stop_price == 90
    assert not risk.positions["BTC-USD"].stopped_out
    assert risk.positions["ETH"].stop_price is None
    assert LIMITS.allows(risk, Decimal(925))
    assert not LIMITS.allows(risk, Decimal("925.01"))


def test_half_a_memory_is_not_taken_over():
    strategy = MovingAverage()
    with pytest.raises(KeyError):
        strategy.restore_state({"strategy_state": {"custom_data": {"cycles": 3}}})

    assert strategy.cycles == 0


def test_a_service_manager_that_is_not_there_stops_nothing(tmp_path):
    assert not ServiceManager(None).tell("READY=1")
    assert not ServiceManager(str(tmp_path / "nobody")).tell("READY=1")
