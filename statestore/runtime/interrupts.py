"""Signals as a flag: the handler notes which one came, wakes whoever waits, and does nothing else.

A handler that saved would run in the middle of a save, or of the bot's own bookkeeping. So a
signal, the second one like the first, interrupts nothing: a save in flight is finished, and the
main loop finds out when it looks.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_LONGEST_WAIT = 2_000_000  # seconds; poll(2) counts milliseconds in an int, and for ever is longer


class StopFlag:
    """Whether to stop, and why.

    Attributes:
        asked_by: the first signal, by name, or what `ask` was given; None as long as nobody asked.
        during: what `busy` was when that came.
        busy: set by whoever must not be thought idle; for the record only.
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None
        self.during: str | None = None
        self.busy: str | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._pid = 0
        # A pipe, since a handler may interrupt the holder of any lock, that of an Event as well.
        self._read = self._write = -1

    def open(self) -> None:
        """Make what `wait` waits for."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def install(self) -> None:
        """Take over SIGINT and SIGTERM; does nothing outside of the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._pid = os.getpid()
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Give the signals back to whoever had them.

        Only the main thread can; from another one, they go back when the next one comes.
        """
        while self._former and threading.current_thread() is threading.main_thread():
            number, former = self._former.popitem()
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def ask(self, why: str) -> None:
        """Ask to stop, from any thread or handler; the first one to ask is remembered."""
        if self.asked_by is None:
            self.during, self.asked_by = self.busy, why
        with suppress(OSError):  # full, so readable; or not open, so nobody waits
            os.write(self._write, b"\0")

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks to stop, at most `seconds`; return whether somebody did."""
        if self._read < 0:
            return self.asked_by is not None
        waiting = select.poll()
        waiting.register(self._read, select.POLLIN)
        waiting.poll(None if seconds > _LONGEST_WAIT else max(0.0, seconds) * 1000)
        return self.asked_by is not None

    def fileno(self) -> int:
        """Return what becomes readable when somebody asks to stop, for an event loop."""
        return self._read

    def close(self) -> None:
        """Forget about waiting; `uninstall` comes first."""
        for descriptor in (self._read, self._write):
            if descriptor >= 0:
                os.close(descriptor)
        self._read = self._write = -1

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid or self._read < 0:
            # A worker that was forked off is to die of this, and not to wake its parent; and
            # after the end it is not ours any more.
            self.uninstall()
            os.kill(os.getpid(), number)
            return
        self.ask(signal.Signals(number).name)
