"""``statestore inventory``: what a wipe would lose, and what makes itself anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, code_for
from statestore.cli.options import backup_dir_option, kill_switch_option, state_option
from statestore.cli.output import note, print_json
from statestore.cli.transfers import database_of
from statestore.config import (
    load_settings,
    load_trading_state_settings,
    places,
    settings_file,
)
from statestore.disk.store import StateStore
from statestore.errors import BackendError
from statestore.runtime.inventory import Installation, Listed, at_stake, read_state, take_inventory

if TYPE_CHECKING:
    from statestore.backends.database import Database


@click.command("inventory", epilog=EPILOG)
@state_option
@backup_dir_option
@kill_switch_option
def command(state: Path | None, backup_dir: Path | None, kill_switch: Path | None) -> int:
    """List what this installation consists of: what is critical, and what can be regenerated.

    For each: whether it is there, what losing it would mean, what to do before a wipe, and how long
    it takes to come back. Reads only, and asks no exchange, and no database but that of the state.
    Exit 8 when the state does not read (10 when its database does not answer): what is in it is
    unknown then, and listed as such.
    """
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    configured = load_trading_state_settings().db_type
    sections, error = read_state(lambda: store.load(numbers="decimal", missing_ok=False))
    why = "" if error is None else str(error)
    database = database_of(store)
    at = Installation(
        path=store.path,
        state=sections,
        revision=store.revision,
        why=why,
        backups=store.backups,
        audit_file=where.audit_file,
        kill_switch=store.kill_switch(where.kill_switch),
        ledger=where.ledger,
        bars=where.bars,
        signals_dir=where.signals_dir,
        settings=settings_file(),
        database="postgres" if database else None if configured == "file" else configured,
        rows=None if database is None else _rows(database),
    )
    if store.recovered_from is not None:
        note(f"{store.path} does not read; what follows is of {store.recovered_from}")
    listed = take_inventory(at)
    _show(listed)
    if why:
        note(f"The state does not read, so what is in it is unknown: {why}")
    stake = at_stake(listed)
    note(f"A wipe would lose: {', '.join(stake) or 'nothing'}.")
    print_json(
        {
            "path": str(store.path),
            "revision": store.revision,
            "why": why or None,
            "at_stake": stake,
            "items": [_told(line) for line in listed],
        }
    )
    return 0 if error is None else code_for(type(error))


def _rows(database: Database) -> Mapping[str, int] | None:
    from statestore.backends.positions import PositionTables

    try:
        return PositionTables(database).counted()
    except BackendError:
        return None  # why is said of the state


def _told(line: Listed) -> dict[str, Any]:
    item, found = line.item, line.found
    return {
        "name": item.name,
        "kind": item.kind,
        "class": item.classed,
        "what": item.what,
        "present": found.present,
        "path": None if found.path is None else str(found.path),
        "count": found.count,
        "counted": found.counted or None,
        "bytes": found.bytes,
        "note": found.note or None,
        "impact": item.impact,
        "action": item.action,
        "rebuild_time": item.rebuild or None,
    }


def _show(listed: Sequence[Listed]) -> None:
    from rich.table import Table  # 35 ms that --help does not need

    from statestore.cli.screen import console

    terminal = console(stderr=True, width=None if sys.stderr.isatty() else 140)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("What", "There", "Impact"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Before a wipe, or to get it back", "Takes"):
        table.add_column(heading, overflow="fold")
    for line in listed:
        item, present = line.item, line.found.present
        style = "dim" if present is False else "yellow" if item.classed == "critical" else "green"
        table.add_row(
            item.name,
            _there(line),
            item.impact or "regenerable",
            item.action,
            item.rebuild or "cannot be rebuilt",
            style=style,
        )
    terminal.print(table)


def _there(line: Listed) -> str:
    found = line.found
    if found.present is None:
        return "unknown"
    if not found.present:
        return "no"
    if found.count is not None:
        return f"{found.count} {found.counted}"
    return "yes" if found.bytes is None else f"{found.bytes} bytes"
