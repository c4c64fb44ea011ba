"""docs/fresh-start-or-recover.md: each step is a command that exists, and the checklists work."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from statestore import StateStore
from statestore.cli import cli
from statestore.runtime.bar_store import BarStore
from statestore.simulated import SimulatedExchange
from tests.runtime.klines import Klines, serving
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "fresh-start-or-recover.md").read_text()
BARS = (ROOT / "docs" / "bars.md").read_text()
POSITION = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "active",
    "total_quantity": 1500,
    "avg_entry_price": 0.00123,
    "features": {"pm_execution_history": [{"price": 0.00123}]},
}
STATE = {
    "positions": {
        "BTC-USD": {"quantity": 0.018, "entry_price": 62000},
        "solana:Demo1111:1h": POSITION,
    },
    "cash_balances": {"USD": 500, "BTC": 0.018},
    "registry": {"Demo1111": {"chain": "solana", "symbol": "DEMO"}},
    "lessons": {"patience": 0.8},
}


def typed(name: str) -> list[str]:
    block = re.search(rf"<!-- {name} -->\n```console\n(.*?)```", PAGE, re.S)
    assert block, name
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def named() -> set[str]:
    """The commands that the pages name, in blocks and in sentences."""
    return set(re.findall(r"`?\bstatestore ([a-z][a-z-]*)", PAGE + BARS))


def there() -> set[str]:
    return set(cli.list_commands(click.Context(cli)))


others = pytest.mark.skipif(
    not {"export", "import", "inventory", "reinsert", "signals"} <= there(),
    reason="needs the commands export, import, inventory, reinsert and signals",
)


@others
def test_every_command_the_guide_names_exists() -> None:
    # `db init` is for those whose state is in PostgreSQL.
    assert named() - there() <= {"db"}


@pytest.mark.parametrize("part", ["Which?", "Fresh start", "Selective recovery"])
def test_the_guide_has_its_parts(part: str) -> None:
    assert f"\n## {part}\n" in PAGE


@pytest.fixture
def home(tmp_path: Path, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with a bot's state and bars, an exchange that holds what it says, and a Binance."""
    fake_exchange.set_balance("USD", "500")
    fake_exchange.set_balance("BTC", "0.018")
    with serving() as klines:
        environment = os.environ | fake_exchange.environment()
        environment |= {
            "STATESTORE_BARS_URL": klines.base_url,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        StateStore(tmp_path / "data" / ".state.json").save(STATE)
        (tmp_path / "elsewhere").mkdir()
        yield tmp_path, environment, klines


def run(home: tuple[Path, dict[str, str], Klines], line: str) -> str:
    """Type a line; return what it says on stdout."""
    folder, environment, _ = home
    line = line.replace("/mnt/elsewhere", "elsewhere")
    program = shlex.join([sys.executable, "-m", "statestore"])
    ran = subprocess.run(
        re.sub(r"^statestore\b", program, line),
        shell=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@others
def test_a_fresh_start_brings_everything_back(home: Any) -> None:
    folder, _, _ = home
    store = StateStore(folder / "data" / ".state.json")
    before = store.load(numbers="decimal")
    for line in typed("fresh: before"):
        run(home, line)
    run(home, "statestore bootstrap -q > first.json")
    for line in typed("fresh: wipe"):
        run(home, line)
    assert [path.name for path in (folder / "data").iterdir()] == ["KILL_SWITCH"]
    for line in typed("fresh: after"):
        run(home, line)

    after = StateStore(store.path).load(numbers="decimal")
    for key, position in before["positions"].items():
        found = after["positions"][key]
        assert {name: found[name] for name in position} == position
    assert after["registry"] == before["registry"]
    assert after["lessons"] == before["lessons"]
    assert len(after["regime_drivers"]) == 24
    report = json.loads((folder / "bootstrap.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert report["status"] == "ok"
    assert steps["balances"]["differences"] == {}
    assert steps["bars"]["series"]["ALT"]["1d"]["enough"] is True
    assert not (folder / "data" / "KILL_SWITCH").exists()


@others
def test_a_selective_recovery_wipes_prices_alone(home: Any) -> None:
    folder, _, klines = home
    run(home, "statestore bootstrap")
    before = (folder / "data" / ".state.json").read_bytes()
    for line in typed("recovery"):
        run(home, line)

    assert (folder / "data" / ".state.json").read_bytes() == before
    assert BarStore(folder / "data" / "bars.sqlite3").extents()["BTC", "1d"].bars >= 665
    assert len(klines.requests) == 24


def test_what_666_bars_are_is_said() -> None:
    for said in ("11.1 hours", "27.75 days", "1.82 years"):
        assert said in BARS
