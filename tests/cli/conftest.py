"""Commands as an operator types them, in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from statestore.cli import cli, exits
from statestore.cli.rebuild import command as rebuild_positions
from statestore.simulated import SimulatedExchange


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
def run(
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


@pytest.fixture
def exchange(
    fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> SimulatedExchange:
    """Three positions, all of their fills within five hours, a key; and a stranger (ADA)."""
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    start = (datetime.now(UTC) - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fake_exchange.add_fills(
        "BUY .010 BTC-USD @ 60000 fee 3.60",
        "BUY .020 BTC-USD @ 63000 fee 7.56",
        "SELL .012 BTC-USD @ 65000 fee 4.68",
        "BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote",
        "BUY 100 DOGE-USDC @ 0.2",
        start=start,
    )
    fake_exchange.set_balance("BTC", "0.008", "0.010")
    fake_exchange.set_balance("ETH", "0.00088729")
    fake_exchange.set_balance("DOGE", "100")
    fake_exchange.set_balance("ADA", "12")
    fake_exchange.set_balance("USD", "500")
    fake_exchange.set_product("BTC-USD", price="66000")
    fake_exchange.set_product("ETH-USD", price="3000")
    fake_exchange.set_product("DOGE-USDC", price="0.25", base_increment="0.1")
    return fake_exchange
