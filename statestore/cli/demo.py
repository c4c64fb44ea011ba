"""``statestore demo``: an incident from damage to report, on a simulated exchange, without any key.

Nothing is staged: the commands below are run as an operator types them, in processes of their own,
and the exchange they talk to is a real HTTPS server on the loopback that checks their tokens.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from statestore.cli.exits import EPILOG
from statestore.cli.screen import tell
from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.simulated import SimulatedExchange

_STATE = Path("data/.state.json")


@click.command("demo", epilog=EPILOG)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work in this new folder.  [default: one in the system's temporary folder]",
)
def command(keep: Path | None) -> None:
    """Show the main job on a simulated exchange: damage, plan, kill switch, repair, report, undo.

    The folder it works in is left, with the report and everything else to look at.
    """
    try:
        from statestore.simulated import SimulatedExchange

        exchange = SimulatedExchange()
    except ImportError as error:
        raise UsageError(
            f"the demo needs {error.name}: pip install 'statestore[simulated]'"
        ) from error
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"{keep} is not empty; name a new folder")
    folder = keep or Path(tempfile.mkdtemp(prefix="statestore-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    with exchange:
        _Story(folder, exchange).tell()


class _Story:
    def __init__(self, folder: Path, exchange: SimulatedExchange) -> None:
        self.folder = folder
        self.exchange = exchange
        self.environment = os.environ | exchange.environment()
        for name in ("STATE_FILE", "STATESTORE_CONFIG", "COINBASE_KEY_FILE"):
            self.environment.pop(name, None)

    def tell(self) -> None:
        self._say("A bot trades. The exchange knows what was filled; the bot saves its state.")
        self._trade()
        self._bot_saves()
        self._say("Then the disk fills up, and a careless script cuts the state file in half.")
        state = self.folder / _STATE
        state.write_bytes(state.read_bytes()[:200])
        self._run("statestore check")
        self._say("What is really held? Ask the fills of three days. A plan changes nothing.")
        self._run("rebuild_positions --hours 72 --out plan.json > preview.json")
        self._say("What would it change, and why is so little ETH left?")
        self._run("statestore diff --plan plan.json > difference.json")
        self._run("statestore explain ETH --hours 72", show=True)
        self._say("Applying is refused while the bot may be trading (exit 6). So halt it first.")
        self._run("rebuild_positions --apply plan.json --yes")
        self._run("statestore kill-switch engage --reason 'state file torn' > switch.json")
        report = "--report incident.html " if importlib.util.find_spec("jinja2") else ""
        self._run(f"rebuild_positions --apply plan.json {report}--yes > applied.json")
        self._say("The torn file was set aside, nothing was lost: backup, .bak, audit line.")
        self._list()
        self._run("statestore audit > audit.json")
        self._show_audit()
        self._say("Do state, balances and fills agree now? ('statestore undo' would take it back.)")
        self._run("statestore verify --exit-code > verified.json")
        self._say("Let the bot trade on.")
        self._run("statestore kill-switch release > switch.json")
        self._end()

    def _end(self) -> None:
        methods = {request.method for request in self.exchange.requests}
        self._say(
            f"The exchange saw {len(self.exchange.requests)} requests, "
            f"all of them {' and '.join(methods)}."
        )
        report = self.folder / "incident.html"
        if report.is_file():
            tell(f"The report, for everybody else: {report}")
        tell(f"All of it is left to look at; remove it with: rm -r {self.folder}")

    def _trade(self) -> None:
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=30)
        self.exchange.add_fills(
            "BUY .010 BTC-USD @ 60000 fee 3.60",
            "BUY .020 BTC-USD @ 63000 fee 7.56",
            "BUY 1500 DOGE-USD @ .21 fee 1.89",
            "BUY 40 SOL-USD @ 151.20 fee 36.288",
            "SELL .012 BTC-USD @ 65000 fee 4.68",
            "BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote",
            "SELL 1500 DOGE-USD @ .23 fee 2.07",
            start=start.isoformat().replace("+00:00", "Z"),
            every=timedelta(hours=4),
        )
        # A market maker's noise, to be read past: as much bought as sold.
        noon = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=60)
        self.exchange.add_fills(
            *("BUY 1 LTC-USD @ 84", "SELL 1 LTC-USD @ 84.1") * 1500,
            start=noon.isoformat().replace("+00:00", "Z"),
            every=timedelta(seconds=30),
        )
        self.exchange.set_balance("BTC", available=".006", hold=".012")
        self.exchange.set_balance("ETH", available=".00088729")
        self.exchange.set_balance("SOL", available="40")
        self.exchange.set_balance("USD", available="1250.11")
        for product, price in (("BTC", "66120"), ("ETH", "2991.5"), ("SOL", "149.9")):
            self.exchange.set_product(f"{product}-USD", price=price)

    def _bot_saves(self) -> None:
        from statestore.disk.store import StateStore

        store = StateStore(self.folder / _STATE)
        state = store.load()
        # The last save before the crash: two fills behind, and ETH read in the wrong unit.
        state["positions"] = {
            "BTC-USD": {"side": "BUY", "quantity": 0.03, "entry_price": 62000, "stop_loss": 58900},
            "DOGE-USD": {"side": "BUY", "quantity": 1500, "entry_price": 0.21},
            "ETH-USD": {"side": "BUY", "quantity": 2.6399716828, "entry_price": 2975.32},
        }
        state["open_orders"] = {"o-17": {"product_id": "BTC-USD", "side": "SELL", "size": 0.012}}
        store.save(state, reason="trade")
        state["cooldowns"] = {"SOL-USD": "2025-11-18T04:29:43Z"}
        store.save(state, reason="trade")

    def _say(self, sentence: str) -> None:
        tell("")
        tell(sentence, bold=True)

    def _run(self, line: str, *, show: bool = False) -> None:
        """Type one command; what goes to a file is shown in short, other data if asked for."""
        tell(f"$ {line}", fg="cyan")
        typed, _, target = line.partition(" > ")
        program, _, arguments = typed.partition(" ")
        name = "rebuild " if program == "rebuild_positions" else ""
        sys.stdout.flush()
        ran = subprocess.run(
            f'"{sys.executable}" -m statestore {name}{arguments}',
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            check=False,
        )
        if target:
            (self.folder / target).write_bytes(ran.stdout)
        elif show:
            tell(ran.stdout.decode().rstrip())
        if ran.returncode:
            tell(f"(exit {ran.returncode})")
        if target and "positions_updated" in ran.stdout.decode():
            document = json.loads(ran.stdout)
            counts = {name: value for name, value in document.items() if "positions_" in name}
            tell(f"{target}: {json.dumps(counts)}")

    def _list(self) -> None:
        tell("$ ls -A data data/state_backups", fg="cyan")
        data = self.folder / "data"
        for path in sorted(data.rglob("*")):
            if path.is_file():
                tell(f"{path.stat().st_size:>8}  {path.relative_to(self.folder)}")

    def _show_audit(self) -> None:
        line = json.loads((self.folder / "audit.json").read_bytes())["entries"][-1]
        keys = ", ".join(f"{c['key']} {c['action']}" for c in line["changes"])
        tell(f"{line['at']}  {line['action']} by {line['by']}: {keys}")
