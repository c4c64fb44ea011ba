"""``statestore bootstrap``: what a bot needs beside its state, made or fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.amounts import ZERO, parse_amount
from statestore.cli.exits import EPILOG, UNPROVEN, code_for
from statestore.cli.options import FILE, state_option
from statestore.cli.output import note, print_json
from statestore.cli.sources import set_up_logging, talk_options
from statestore.cli.transfers import database_of
from statestore.config import Settings, load_settings, places
from statestore.errors import ConfigError, StateCorrupt, StateInvalid, StateStoreError
from statestore.model import Balances

if TYPE_CHECKING:
    from statestore.runtime.bootstrap import BootstrapReport

_CODES = """\b
Exit code: 0 where the steps are ok, partial, or one of them failed: history that cannot be had
keeps no bot from starting. Where two failed, or the storage, that of the first error; with
--strict that for anything but ok, and 3 where something is missing or stale without an error."""


@click.command("bootstrap", epilog=f"{_CODES}\n\n{EPILOG}")
@state_option
@click.option("--bars", type=FILE, help="Bar store.  [default: bars.sqlite3 beside the state]")
@click.option(
    "--bars-source",
    metavar="NAME",
    help="binance, coinbase, ccxt:EXCHANGE, file:PATH, or none to ask nobody. No key is needed.  "
    "[default: binance]",
)
@click.option("--bars-url", metavar="URL", help="Host of the bars.  [default: the source's own]")
@click.option("--key-file", type=FILE, help="API key file, for the balances.")
@click.option(
    "--base-url", metavar="HOST[:PORT]", help="Exchange of the balances.  [default: Coinbase]"
)
@click.option("--balances", type=FILE, help="Recorded balances, instead of the exchange's.")
@click.option(
    "--compare",
    type=FILE,
    help="An export made before a wipe: say where the balances differ from those in it.",
)
@click.option("--force", is_flag=True, help="Fetch all bars anew, whatever is kept.")
@click.option("--strict", is_flag=True, help="Exit other than 0 for anything but ok.")
@click.option("--json", "only_json", is_flag=True, help="Print the report only, as with -q.")
@talk_options
def command(
    state: Path | None,
    bars: Path | None,
    bars_source: str | None,
    bars_url: str | None,
    key_file: Path | None,
    base_url: str | None,
    balances: Path | None,
    compare: Path | None,
    force: bool,
    strict: bool,
    only_json: bool,
    verbose: int,
    quiet: bool,
) -> int:
    """Look at the storage, read balances, create the regime drivers, fill the series of bars.

    Eight steps, none of them fatal to the next; a second run does nothing. The state is written to
    only to add the drivers that are missing, which needs no kill switch; while a bot holds the
    state that is refused, and the bot has to run the bootstrap itself.
    """
    from statestore.disk.store import StateStore
    from statestore.runtime.bar_store import BarStore
    from statestore.runtime.bootstrap import BootstrapSystem
    from statestore.runtime.candles import candle_source
    from statestore.runtime.collecting import BarCollector

    set_up_logging(verbose)
    settings = load_settings()
    where = places(settings, state=state)
    kept = bars or where.bars
    if os.path.realpath(kept) in map(os.path.realpath, (*where.files, where.ledger)):
        raise ConfigError(f"the place of the bars, {kept}, is that of another file; name one")
    name = bars_source or settings.bars_source
    # The configured host is that of the configured source.
    url = bars_url or (settings.bars_url if bars_source is None else None)
    source = None if name == "none" else candle_source(name, url)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    database = database_of(store)
    system = BootstrapSystem(
        store,
        tables=() if database is None else (database,),
        bars=BarCollector(BarStore(kept), source),
        balances=_wallet(settings, key_file, base_url, balances),
        expected=None if compare is None else _noted(compare),
    )
    report = system.bootstrap_all(force=force)
    if not (only_json or quiet):
        for step in report.steps:
            note(f"{step.name:<11}{step.status:<9}{step.detail}  ({step.ms} ms)")
        note(f"Bootstrap: {report.status}.")
    print_json(report.as_json())
    return _exit_code(report, strict)


class _Wallet:
    """A `BalanceSource` that is opened when it is read, so that a failure is one of its step."""

    def __init__(self, read: Callable[[], Balances | None]) -> None:
        self.balances = read


def _wallet(
    settings: Settings, key_file: Path | None, base_url: str | None, recorded: Path | None
) -> _Wallet | None:
    if recorded is not None:
        from statestore.fills.sources.recorded import read_balances

        return _Wallet(lambda: read_balances(recorded))
    if not (key_file or settings.key_file or settings.api_key or settings.api_secret):
        return None
    from statestore.fills.sources.registry import DEFAULT, Context, source_named

    context = Context(settings=settings, base_url=base_url, key_file=key_file)
    return _Wallet(lambda: source_named(DEFAULT, context).balances())


def _noted(path: Path) -> Mapping[str, Decimal] | None:
    """Return the balances of an export, None where it holds none.

    Raises:
        StateError: it cannot be read, is no export, or not as it was exported.
    """
    from statestore.runtime import envelope

    found = _bare(path)
    if found is None:
        found = envelope.read(path).balances
    if found is None:
        note(f"{path} notes no balances, so there is nothing to compare with.")
        return None
    noted = {}
    for currency, held in found.items():
        try:
            noted[currency] = _total(held)
        except ValueError as error:
            raise StateInvalid(
                path, f"{path}: balances.{currency}: {error}; there is nothing to compare with"
            ) from error
    return noted


def _bare(path: Path) -> Mapping[str, Any] | None:
    """Return the balances of an object that has them and is no export of ours."""
    from statestore.disk import strict

    try:
        document = strict.parse(path.read_bytes())
    except (OSError, strict.NotStrict):
        return None  # what it is then is said by who reads exports
    found = document.get("balances") if isinstance(document, dict) else None
    return found if isinstance(found, dict) and "format" not in document else None


def _total(held: object) -> Decimal:
    """Return what is owned: an amount, or ``total`` (else available and held) of an account."""
    if not isinstance(held, dict):
        return parse_amount(held)
    if held.get("total") is not None:
        return parse_amount(held["total"])
    return sum((parse_amount(held[name]) for name in ("available", "hold") if name in held), ZERO)


def _exit_code(report: BootstrapReport, strict: bool) -> int:
    if report.status == "ok" or (report.status != "failed" and not strict):
        return 0
    # What failed counts before what is merely incomplete.
    failed = [step for step in report.steps if step.status == "failed"]
    for step in (*failed, *report.steps):
        for error in step.errors:
            return code_for(type(error)) if isinstance(error, StateStoreError) else 1
    return code_for(StateCorrupt) if failed else UNPROVEN
