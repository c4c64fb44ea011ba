"""Every example does what it says; the unit and the compose file say what the code reads."""

from __future__ import annotations

import configparser
import json
import re
import signal
from pathlib import Path

import pytest

from statestore import StateStore
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
