"""Commands as an operator types them, in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from statestore.cli import cli, exits
from statestore.cli.rebuild import command as rebuild_positions


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of the error."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]

    def change(self, asset: str) -> dict[str, Any]:
        return next(c for c in self.json["changes"] if c["asset"] == asset)


Run = Callable[..., Ran]


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    """A command sets up the logging of its process; here the process goes on."""
    loggers = [logging.getLogger(name) for name in ("statestore", "stamina")]
    before = [(log, log.level, log.propagate, log.handlers[:]) for log in loggers]
    yield
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers


@pytest.fixture
def run(
    _logging_as_it_was: None,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def run(command: click.Command, *arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["command", *(str(argument) for argument in arguments)])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as stopped:
            exits.run(command)
        captured = capfdbinary.readouterr()
        return Ran(int(stopped.value.code or 0), captured.out.decode(), captured.err.decode())

    return run


@pytest.fixture
def statestore(run: Run) -> Run:
    return lambda *arguments: run(cli, *arguments)


@pytest.fixture
def rebuild(run: Run, state_file: Path, tmp_path: Path) -> Run:
    """Run ``rebuild_positions`` on `state_file`; fills and balances may be given as values."""

    def rebuild(
        *arguments: object,
        fills: list[dict[str, object]] | None = None,
        balances: Mapping[str, str] | None = None,
        state: object = None,
    ) -> Ran:
        if state is not None:
            state_file.write_text(json.dumps(state))
        given: list[object] = ["--state", state_file]
        for option, value in (("--fills", fills), ("--balances", balances)):
            if value is not None:
                path = tmp_path / f"{option.strip('-')}.json"
                path.write_text(json.dumps(value))
                given += [option, path]
        return run(rebuild_positions, *given, *arguments)

    return rebuild


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as in earnest, but without waiting in between."""
    from statestore.fills.sources.coinbase import CoinbaseSource

    init = CoinbaseSource.__init__

    def without_waiting(self: CoinbaseSource, *args: Any, **kwargs: Any) -> None:
        init(self, *args, wait_initial=0.001, wait_max=0.001, **kwargs)

    monkeypatch.setattr(CoinbaseSource, "__init__", without_waiting)
