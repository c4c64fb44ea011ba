"""Bots as processes of their own, watched line by line."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runtime.klines import serving

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds; for a machine that is busy, not a figure of ours


class Process:
    """A running program whose stderr is read as it comes."""

    def __init__(self, *command: object, **environment: str) -> None:
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self._process = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | {"PYTHONPATH": path} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._out: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_err),
            threading.Thread(target=self._read_out),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, text: str) -> str:
        """Return the next line with `text` in it."""
        until = time.monotonic() + PATIENCE
        while True:
            line = self._new.get(timeout=max(0.1, until - time.monotonic()))
            assert line is not None, "it ended without saying it:\n" + "".join(self.lines)
            if text in line:
                return line

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ends(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, stdout, stderr."""
        code = self._process.wait(PATIENCE)
        for reader in self._readers:
            reader.join()
        return code, "".join(self._out), "".join(self.lines)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self.ends()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _read_err(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            self._new.put(line)
        self._new.put(None)

    def _read_out(self) -> None:
        assert self._process.stdout is not None
        self._out.append(self._process.stdout.read())


@pytest.fixture
def run():
    """Start a program; it is killed at the end of the test, if it still runs."""
    started = []

    def run(*command, **environment):
        started.append(Process(sys.executable, *command, **environment))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture
def main_loop(run, state_file):
    """Start ``scripts/main_loop.py`` on `state_file`."""

    def main_loop(*arguments, **environment):
        script = ROOT / "scripts" / "main_loop.py"
        return run(script, "--state", state_file, *arguments, **environment)

    return main_loop


@pytest.fixture
def klines(monkeypatch):
    """A running Binance, empty of nothing; see `tests.runtime.klines`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server
