"""docs/fresh-start-or-recover.md: each step is a command that exists, and the checklists work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest

from statestore import StateStore
from statestore.cli import cli
from statestore.runtime.bar_store import BarStore
from statestore.simulated import SimulatedExchange
from tests.runtime.klines import Klines, serving
from tests.servers import PostgresServer, postgres_binaries
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "fresh-start-or-recover.md").read_text()
IN_THE_GUIDE = "postgresql://bot@db.example.org/trading"
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


def test_every_command_the_guide_names_exists() -> None:
    assert named() <= there()


@pytest.mark.parametrize(
    "part", ["Which?", "Fresh start", "Fresh start, in PostgreSQL", "Selective recovery"]
)
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


def run(home: tuple[Path, dict[str, str], Klines], line: str, code: int = 0) -> str:
    """Type a line; return what it says on stdout."""
    folder, environment, _ = home
    line = line.replace("/mnt/elsewhere", "elsewhere")
    line = line.replace(IN_THE_GUIDE, environment.get("STATE_FILE", IN_THE_GUIDE))
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
    assert ran.returncode == code, f"{line}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


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


@pytest.fixture
def in_postgres(home: Any, postgres: PostgresServer, schema_name: str) -> Any:
    """The same bot on a database of its own: its state there, and a position with its orders."""
    from statestore.backends.database import Database
    from statestore.runtime.orders import PositionManager

    folder, environment, _ = home
    server = Database(postgres.url)
    with server.connect() as connection:
        connection.execute(f'CREATE DATABASE "{schema_name}"'.encode())
    url = f"{postgres.url.rpartition('/')[0]}/{schema_name}"
    binaries = postgres_binaries()
    environment |= {"STATE_FILE": url, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    shutil.rmtree(folder / "data")
    run(home, "statestore db init")
    store, manager = StateStore(url), PositionManager(url)
    store.save(STATE)
    manager.load_open_positions()
    booked = manager.open_position(
        "ETH-USD", "LONG", "0.00088729", "2975.32", stop_loss="2500", take_profit="4000"
    )
    yield home, store, manager, booked.position.position_id
    store.close()
    manager.close()
    with server.connect() as connection:
        connection.execute(f'DROP DATABASE "{schema_name}" WITH (FORCE)'.encode())


def test_a_fresh_start_in_postgresql_brings_state_positions_and_orders_back(
    in_postgres: Any, fake_exchange: SimulatedExchange
) -> None:
    home, store, manager, former_id = in_postgres
    folder, _, klines = home
    before = store.load(numbers="decimal")
    orders_before = manager.orders_of(former_id)
    for line in typed("postgresql: before"):
        run(home, line)
    run(home, "statestore bootstrap -q > first.json")
    inventory = json.loads((folder / "before.json").read_text())
    there = {item["name"]: item for item in inventory["items"]}
    assert there["postgres"]["note"] == "1 positions, 2 orders"
    assert there["kill switch"]["present"] is True
    store.close()
    manager.close()

    for line in typed("postgresql: wipe"):
        said = run(home, line)
    assert json.loads(said)["states"] == []
    assert not (folder / "data").exists()
    empty = json.loads(run(home, "statestore bootstrap -q --bars-source none"))
    assert (empty["steps"][0]["name"], empty["steps"][0]["status"]) == ("storage", "ok")

    for line in typed("postgresql: after"):
        run(home, line)

    after = store.load(numbers="decimal")
    for key, position in before["positions"].items():
        found = after["positions"][key]
        assert {name: found[name] for name in position} == position
    assert (after["registry"], after["lessons"]) == (before["registry"], before["lessons"])
    assert len(after["regime_drivers"]) == 24
    assert manager.load_open_positions() == 1
    (position,) = manager.get_all_positions()
    assert (position.symbol, position.side) == ("ETH-USD", "LONG")
    assert (position.quantity, position.entry_price) == (Decimal("0.00088729"), Decimal("2975.32"))
    assert [
        (o.order_type, o.price, o.quantity) for o in manager.orders_of(position.position_id)
    ] == [(o.order_type, o.price, o.quantity) for o in orders_before]
    report = json.loads((folder / "bootstrap.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert report["status"] == "ok"
    assert steps["balances"]["balances"] == {"BTC": "0.018", "USD": "500"}
    assert steps["balances"]["differences"] == {}
    assert store.kill_switch().status() == "released"

    # And once more does nothing; what the wallet has lost since is named.
    sent, revision = len(klines.requests), store.load().meta.revision
    fake_exchange.set_balance("USD", "499.5")
    again = json.loads(run(home, "statestore bootstrap -q --compare wipe.json --strict", code=3))
    (balances,) = [step for step in again["steps"] if step["name"] == "balances"]
    assert balances["differences"] == {"USD": {"noted": "500", "found": "499.5"}}
    assert (len(klines.requests), store.load().meta.revision) == (sent, revision)


def test_tables_that_were_dropped_are_named_by_the_bootstrap_and_not_made_by_halves(
    in_postgres: Any,
) -> None:
    home, _, manager, _ = in_postgres
    with manager.tables.transaction() as connection:
        connection.execute("DROP TABLE statestore.orders, statestore.revisions CASCADE")
    report = json.loads(run(home, "statestore bootstrap -q --bars-source none", code=10))
    storage = report["steps"][0]

    assert storage["status"] == "failed"
    assert storage["missing"] == {manager.tables.database.address: ["orders", "revisions"]}
    assert "statestore db init" in storage["detail"]
    run(home, "statestore db init", code=10)
    run(home, "statestore db status", code=10)
    run(home, f"psql {IN_THE_GUIDE} -c 'DROP SCHEMA statestore CASCADE'")
    report = json.loads(run(home, "statestore bootstrap -q --bars-source none", code=10))
    assert report["steps"][0]["counts"]["missing_tables"] >= 7
    run(home, "statestore db init")
    assert json.loads(run(home, "statestore bootstrap -q --bars-source none"))["steps"][0] | {
        "ms": 0
    } == {
        "name": "storage",
        "status": "ok",
        "detail": "no state yet: a first start",
        "counts": {"revision": 0, "missing_tables": 0},
        "ms": 0,
    }


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
