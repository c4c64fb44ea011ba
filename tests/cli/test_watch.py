"""``statestore watch``: what it shows, what it survives, and how it ends."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal

import pytest
from rich.console import Console

from statestore.cli.watch import Watcher, render
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.times import NANOSECONDS, parse_instant
from tests.cli.conftest import Run
from tests.cli.test_rebuild_apply import snapshot

BTC = {"side": "BUY", "quantity": Decimal("0.030000000001234"), "entry_price": 62000, "usd": 1860}


@pytest.fixture
def watcher(state_store: StateStore, kill_switch: KillSwitch) -> Watcher:
    return Watcher(StateStore(state_store.path), kill_switch)


def shown(watcher: Watcher, *, later: int = 0, width: int = 80, height: int | None = None) -> str:
    view = watcher.look()
    saved = view.state.meta.saved_at if view.state else ""
    at = (parse_instant(saved) if saved else 0) + later * NANOSECONDS
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render(view, at, width, height))
    return captured.get()


def test_one_view_tells_it_all(
    watcher: Watcher, state_store: StateStore, kill_switch: KillSwitch
) -> None:
    state_store.save({"positions": {"BTC-USD": BTC, "ETH-USD": {"units": 2}}}, reason="trade")
    kill_switch.engage("maintenance", "me")
    with state_store.lease():
        view = shown(watcher, later=3_725)

    assert "1 h 2 min ago" in view
    assert f"{os.getpid()}@{os.uname().nodename} (trade)" in view
    assert "engaged (maintenance, me" in view
    assert f"process {os.getpid()} on" in view
    rows = [line.split() for line in view.splitlines()]
    assert ["BTC-USD", "BUY", "0.0300000000…", "62000", "1860"] in rows
    assert ["ETH-USD", "2", "unknown", "unknown"] in rows
    assert max(map(len, view.splitlines())) <= 80


def test_a_save_is_picked_up_and_a_state_that_stands_is_not_read_again(
    watcher: Watcher, state_store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_store.save({"positions": {"BTC-USD": BTC}})
    first = shown(watcher)
    state_store.save({"positions": {}})
    second = shown(watcher)
    monkeypatch.setattr("statestore.disk.reading.Reader.find", lambda *_: pytest.fail("read again"))
    third = shown(watcher)

    assert "BTC-USD" in first
    assert "no positions" in second
    assert third == second


def test_damage_is_shown_and_the_watch_goes_on(watcher: Watcher, state_store: StateStore) -> None:
    state_store.save({"positions": {"BTC-USD": BTC}})
    state_store.save({"positions": {"BTC-USD": BTC | {"usd": 1}}})
    good = state_store.path.read_bytes()
    shown(watcher)
    state_store.path.write_bytes(b'{"posi')
    damaged = shown(watcher, width=200)
    state_store.path.unlink()
    state_store.backup_path.unlink()
    gone = shown(watcher, width=200)
    state_store.path.write_bytes(b"[]")
    unreadable = shown(watcher, width=200)
    state_store.path.write_bytes(good)
    healed = shown(watcher)

    assert "read from" in damaged
    assert ".bak" in damaged
    assert "BTC-USD" in damaged
    assert "there is no" in gone
    assert "no state can be read" in unreadable
    assert "error" not in healed
    assert "revision     2" in healed


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 16), (200, 50), (20, 5)])
def test_no_number_is_cut_without_a_sign_and_nothing_is_wider_than_the_terminal(
    watcher: Watcher, state_store: StateStore, width: int, height: int
) -> None:
    positions = {f"A{n}-USD": BTC for n in range(60)}
    state_store.save({"positions": positions})
    view = shown(watcher, width=width, height=height)

    assert max(map(len, view.splitlines())) <= width
    if width >= 40:
        assert "62000" in view
        assert len(view.splitlines()) <= height
        assert f"and {60 - view.count('-USD')} more" in view


@pytest.mark.parametrize("positions", [[], 7, None, {"BTC-USD": None}, {"BTC-USD": {"usd": "?"}}])
def test_any_positions_section_is_shown(
    watcher: Watcher, state_store: StateStore, positions: object
) -> None:
    state_store.save({"positions": positions})

    assert "revision     1" in shown(watcher)


def test_once_is_plain_and_writes_nothing(statestore: Run, state_store: StateStore) -> None:
    state_store.save({"positions": {"BTC-USD": BTC}})
    before = snapshot(state_store.path.parent)
    ran = statestore("watch", "--state", state_store.path, "--once")

    assert (ran.code, ran.err) == (0, "")
    assert "BTC-USD" in ran.out
    assert "\x1b" not in ran.out
    assert snapshot(state_store.path.parent) == before


def test_once_without_a_state_is_exit_8(statestore: Run, state_store: StateStore) -> None:
    ran = statestore("watch", "--state", state_store.path, "--once")

    assert ran.code == 8
    assert "there is no" in ran.error


def test_without_a_terminal_it_says_what_to_use(statestore: Run) -> None:
    ran = statestore("watch")

    assert ran.code == 2
    assert "use --once" in ran.error


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.main, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "statestore", *arguments],
            stdin=end,
            stdout=end,
            stderr=end,
            env=os.environ
            | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
            | environment,
            start_new_session=True,
        )
        os.close(end)
        self.text = ""

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            self._read(1)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        with suppress(OSError):
            while self._read(0):
                pass
        return code

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self.main], [], [], timeout)
        if ready:
            self.text += os.read(self.main, 1 << 16).decode(errors="replace")
        return bool(ready)


@pytest.fixture
def terminal(state_store: StateStore, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    state_store.save({"positions": {"BTC-USD": BTC}})
    opened = Terminal(
        *("watch", "--state", str(state_store.path), "--interval", "0.1"),
        **getattr(request, "param", {}),
    )
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_exit_0_and_leaves_the_terminal_as_it_was(
    terminal: Terminal, state_store: StateStore, number: signal.Signals
) -> None:
    terminal.until("BTC-USD")
    state_store.save({"positions": {"NEW-USD": BTC}})
    terminal.until("NEW-USD")

    assert terminal.end(number) == 0
    assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")
    assert "Interrupted" not in terminal.text


@pytest.mark.parametrize("terminal", [{"NO_COLOR": "1"}], indirect=True)
def test_no_color_is_no_color(terminal: Terminal) -> None:
    terminal.until("released")
    terminal.end(signal.SIGINT)

    assert "\x1b[32m" not in terminal.text
