"""The reference loop as a process: killed, repaired, started twice. The whole session in one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time

import pytest

from statestore import StateStore

# Some in the default run, all in the full one.
ROUNDS = 200 if os.environ.get("STATESTORE_CRASH") == "full" else 20
CLEAN = [".state.json", ".state.json.bak", ".state.json.lease", ".state.json.lock"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def picture(folder):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
    }


def spin_until(path):
    """Return when `path` is there; it is for a moment in each save."""
    until = time.monotonic() + 1
    while not os.path.exists(path) and time.monotonic() < until:  # noqa: PTH110  # quick
        pass


def test_signals_in_the_middle_of_a_save_lose_no_cycle(main_loop, state_file):
    """Every other one is a Ctrl-C; the loop does nothing but save, and most signals hit one."""
    StateStore(state_file).save({"filler": ["x" * 100] * 5_000})
    hits = 0
    for number in range(ROUNDS):
        sent, code = ((signal.SIGTERM, 0), (signal.SIGINT, 130))[number % 2]
        loop = main_loop("--mode", "PAPER", "--interval", 0, "--save-interval", "0.000001")
        loop.wait_for("cycle")
        spin_until(f"{state_file}.tmp")
        loop.signal(sent)
        ended, out, err = loop.ends()

        assert ended == code, err
        report = json.loads(out)
        last_said = int(err.rpartition("cycle  number=")[2].split()[0])
        state = StateStore(state_file).load()
        assert report["cycles_ever"] == last_said
        assert (
            state["strategy_state"]["moving_average"]["state"]["custom_data"]["cycles"] == last_said
        )
        assert state.meta.reason == sent.name
        assert state.meta.revision == report["revision"]
        assert report["saves"]["stop"] == 1
        assert StateStore(state_file).lease_holder() is None
        assert names(state_file.parent) == CLEAN
        hits += "came during a save" in err

    assert hits >= ROUNDS // 4


def test_a_second_loop_is_refused_until_the_first_is_gone(main_loop, state_file):
    first = main_loop("--mode", "PAPER", "--interval", 3600)
    first.wait_for("cycle")
    holder = StateStore(state_file).lease_holder()

    code, out, err = main_loop("--mode", "PAPER", "--once").ends()

    assert code == 7
    assert out == ""
    assert f"process {first.pid} on {os.uname().nodename} since {holder['since']}" in err
    assert "Traceback" not in err

    first.signal(signal.SIGKILL)
    first.ends()
    code, _, err = main_loop("--mode", "PAPER", "--once").ends()

    assert code == 0
    assert "the previous session was killed" in err


def test_an_operators_repair_is_taken_over_while_the_loop_runs(
    main_loop, run, state_file, tmp_path, fake_exchange
):
    """Engage, rebuild, release. The record said 2, the exchange says 1, and 1 it stays."""
    fake_exchange.set_balance("BTC", "1")
    fake_exchange.add_fills("BUY 1 BTC-USD @ 100")
    StateStore(state_file).save(
        {"positions": {"BTC-USD": {"side": "BUY", "quantity": 2, "entry_price": 90}}}
    )
    prices = tmp_path / "prices.jsonl"
    prices.write_text('{"BTC-USD": 100}\n' * 100_000)  # nothing to trade on

    def operator(*arguments):
        return run(
            "-m", "statestore", *arguments, "--state", state_file, **fake_exchange.environment()
        ).ends()

    loop = main_loop(
        *("--mode", "PAPER", "--interval", 0.01, "--save-interval", 2, "--prices", prices)
    )
    loop.wait_for("may_trade=True")
    assert operator("rebuild", "--hours", 72, "--yes")[0] == 6  # not halted, not allowed
    assert operator("kill-switch", "engage", "--reason", "2 is wrong")[0] == 0
    # The file is there a moment before its reason is, so that a full disk does not stop it.
    assert re.search("2 is wrong|reason=None", loop.wait_for("kill switch engaged"))
    loop.wait_for("may_trade=False")
    for _ in range(10):  # 9: the bot saved in between, which it may
        code, _, err = operator("rebuild", "--hours", 72, "--yes")
        if code != 9:
            break
    assert code == 0, err
    repaired = StateStore(state_file).load()
    assert repaired["positions"]["BTC-USD"]["quantity"] == 1
    loop.wait_for("taken over")
    assert operator("kill-switch", "release")[0] == 0
    loop.wait_for("kill switch released")
    for _ in range(2):
        loop.wait_for("reason=periodic")
        assert StateStore(state_file).load()["positions"]["BTC-USD"]["quantity"] == 1
    loop.signal(signal.SIGTERM)
    code, out, err = loop.ends()

    assert code == 0, err
    report = json.loads(out)
    assert report["positions"]["BTC-USD"]["units"] == 1
    assert report["exposure"] == 100
    assert report["reloads"] == 1
    state = StateStore(state_file).load()
    assert state["positions"] == repaired["positions"]
    assert state.meta.revision > repaired.meta.revision
    assert "2 -> 1" in err


def test_a_dry_run_sees_the_quantities_and_changes_nothing(main_loop, state_file):
    StateStore(state_file).save(
        {"positions": {"BTC-USD": {"quantity": 0.5, "entry_price": 61000}, "ETH": {"quantity": 1}}}
    )
    before = picture(state_file.parent)

    code, out, _ = main_loop("--once", "--mode", "DRY_RUN", "--stop-loss", "0.01").ends()

    assert code == 0
    report = json.loads(out)
    assert report["positions"]["BTC-USD"]["exposure"] == 30000
    assert report["positions"]["BTC-USD"]["stop_price"] == 60390
    assert report["positions"]["ETH"]["exposure"] is None
    assert report["exposure"] is None
    assert report["decisions"] == [
        {"side": "SELL", "product": "BTC-USD", "why": "stop loss", "outcome": "not done: dry run"}
    ]
    assert picture(state_file.parent) == before


def test_live_is_refused_by_name(main_loop, state_file):
    code, out, err = main_loop("--mode", "LIVE").ends()

    assert code == 2
    assert "LIVE is refused: this package places no orders" in err
    assert out == ""
    assert names(state_file.parent) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"BTC-USD": "60000"}\n{"BTC-USD": "sixty"}\n', "line 2: 'sixty' is not a decimal number"),
        ("[1]\n", "line 1: a list, not an object"),
        ('{"BTC-USD": 0}\n', "line 1: a price is not above 0"),
        ("\n", "holds no prices"),
        ("{\n", "line 1:"),
    ],
)
def test_prices_that_are_not_understood_are_named(main_loop, tmp_path, text, said):
    prices = tmp_path / "prices.jsonl"
    prices.write_text(text)

    code, _, err = main_loop("--prices", prices).ends()

    assert code == 5
    assert said in err
    assert "Traceback" not in err


def test_the_service_manager_is_told(main_loop, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        loop = main_loop(
            "--mode", "PAPER", "--interval", 3600, NOTIFY_SOCKET=address, WATCHDOG_USEC="20000"
        )
        told = [manager.recv(1000).decode() for _ in range(4)]
        loop.signal(signal.SIGTERM)
        while not told[-1].startswith("STOPPING=1"):
            told.append(manager.recv(1000).decode())

    assert told[0] == "READY=1\nSTATUS=revision 1, ok"
    assert set(told[1:-1]) == {"WATCHDOG=1\nSTATUS=revision 1, ok"}
    assert loop.ends()[0] == 0


def test_the_log_is_json_if_asked_for(main_loop):
    _, _, err = main_loop("--once", "--mode", "PAPER", "--log-format", "json").ends()

    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    saved = next(line for line in lines if line["message"] == "trading state saved")
    assert saved["level"] == "INFO"
    assert saved["revision"] == 1
    assert saved["reason"] == "start"


def test_the_help_has_the_exit_codes(run):
    from tests.runtime.conftest import ROOT

    code, out, _ = run(ROOT / "scripts" / "main_loop.py", "--help").ends()

    assert code == 0
    assert "Exit codes" in out
