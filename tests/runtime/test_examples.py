"""Every example does what it says; the unit and the compose file say what the code reads."""

from __future__ import annotations

import configparser
import json
import re
import signal
from pathlib import Path

import pytest

from statestore import StateStore
from statestore.backends.positions import PositionTables
from tests.runtime.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("name", ["bot.py", "async_bot.py"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_bot_trades_once_saves_and_stops_on_a_signal(run, state_file, name, number, code):
    for _ in range(2):  # the second one is restored, and has nothing to buy
        bot = run(EXAMPLES / name, state_file)
        while not (state_file.exists() and StateStore(state_file).load()["positions"]):
            assert bot.running
        while StateStore(state_file).lease_holder() is None:
            assert bot.running
        bot.signal(number)
        ended, _, err = bot.ends()

        assert (ended, err) == (code, "")

    state = StateStore(state_file).load()
    assert state["positions"] == {"BTC-USD": {"side": "BUY", "quantity": 0.01}}
    assert state.meta.reason == number.name
    assert StateStore(state_file).lease_holder() is None


def test_an_existing_state_is_adopted_with_all_its_keys(run, state_file):
    before = {"pnl_today": -12.5, "positions": {"ETH": {"available": 1}}, "fill_history": {}}
    state_file.write_text(json.dumps(before))

    code, out, err = run(EXAMPLES / "adopt.py", state_file).ends()

    assert code == 0, err
    assert "revision 0: pnl_today, positions, fill_history" in out
    state = StateStore(state_file).load()
    assert {name: state[name] for name in before} == before
    original = out.split("the original is ")[1].strip()
    assert json.loads(Path(original).read_text()) == before


def test_an_agent_holds_after_a_restart_what_it_held_before(
    run, state_file, postgres, schema_name, database
):
    def agent(price):
        return run(EXAMPLES / "agent.py", postgres.url, state_file, price, f"schema={schema_name}")

    first = agent("BTC-USD=60000")
    first.wait_for("no_open_positions_in_db")
    opened = json.loads(first.wait_for("position opened"))
    first.wait_for("monitoring_positions")
    first.signal(signal.SIGKILL)
    first.ends()

    second = agent("BTC-USD=50000")  # it fell through the stop-loss meanwhile
    loaded = json.loads(second.wait_for("positions_loaded_from_db"))
    assert (loaded["count"], loaded["symbols"]) == (1, ["BTC-USD"])
    crossed = json.loads(second.wait_for("price crossed"))
    assert (crossed["position"], crossed["type"]) == (opened["position"], "stop_loss")
    assert crossed["late"] is True
    closed = json.loads(second.wait_for("position closed"))
    assert closed["position"] == opened["position"]
    second.signal(signal.SIGTERM)
    assert second.ends()[0] == 0

    held, orders = PositionTables(database).load(held_only=False)
    assert [(p.position_id, p.status, p.realized_pnl) for p in held] == [
        (opened["position"], "CLOSED", -1000)
    ]
    assert sorted(order.status for order in orders) == ["cancelled", "filled"]


def test_an_agent_that_cannot_load_starts_halted(run, state_file, postgres, schema_name, database):
    with database.transaction() as connection:
        connection.execute(
            database.query("ALTER TABLE {schema}.positions RENAME quantity TO elsewhere")
        )
    agent = run(EXAMPLES / "agent.py", postgres.url, state_file, f"schema={schema_name}", "X-USD=1")

    agent.wait_for("open positions could not be loaded: halted")
    agent.wait_for("kill switch engaged")
    agent.wait_for("hook failed")  # and goes on trying
    agent.signal(signal.SIGTERM)
    assert agent.ends()[0] == 0
    assert state_file.with_name("KILL_SWITCH").exists()


def test_the_unit_agrees_with_what_the_loop_tells():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    text = (EXAMPLES / "statestore-bot.service").read_text()
    unit.read_string(text)

    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) > 10  # what a save waits for another writer
    assert int(service["WatchdogSec"]) > 0
    assert service["LoadCredential"].split(":")[0] in service["Environment"]
    assert service["StateDirectory"] == "bot"
    assert re.findall(r"^Environment=STATE_FILE=%S/bot/", text, re.M)
    assert service["Restart"] == "on-failure"


def test_the_compose_file_mounts_the_folder_and_checks_with_a_command_that_exists(run, state_store):
    text = (EXAMPLES / "compose.yaml").read_text()
    state_store.save({"positions": {}})

    assert re.search(r"target: /data$", text, re.M)
    command = json.loads(re.search(r"test: (\[.*\])", text)[1])
    assert command[:2] == ["CMD", "statestore"]
    arguments = [str(state_store.path) if "/data/" in part else part for part in command[2:]]
    assert run("-m", "statestore", *arguments).ends()[0] == 0
