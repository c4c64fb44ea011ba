"""``statestore history``: every version of the state that is at hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import backup_dir_option, state_option
from statestore.cli.output import print_json
from statestore.cli.screen import console
from statestore.cli.versions import as_json
from statestore.config import load_settings, places
from statestore.disk.history import Version
from statestore.disk.store import StateStore
from statestore.errors import Place
from statestore.times import format_instant
from statestore.urls import StateUrl


@click.command("history", epilog=EPILOG)
@state_option
@backup_dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "table"]),
    help="Only JSON on stdout, or only the table on stderr.  [default: both]",
)
def command(state: Path | StateUrl | None, backup_dir: Path | None, form: str | None) -> None:
    """List the state, its .bak, its backups and what was moved aside, newest first. Reads only.

    "statestore show --at" prints one, "diff" compares two, "restore --file" puts one back.
    """
    where = places(load_settings(), state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    found = store.versions()
    if form != "json":
        _show(found)
    if form != "table":
        print_json({"path": str(store.path), "versions": [as_json(version) for version in found]})


def _show(found: Sequence[Version]) -> None:
    from rich.table import Table  # 35 ms that --help does not need

    terminal = console(stderr=True, width=None if sys.stderr.isatty() else 160)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Time", "Revision", "Kind", "Saved for", "Backed up for", "Bytes"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Valid", "File"):
        table.add_column(heading, overflow="fold")
    for version in found:
        table.add_row(
            format_instant(version.time),
            "-" if version.revision is None else str(version.revision),
            version.kind,
            version.saved_for,
            version.backup_reason,
            str(version.bytes),
            "yes" if version.valid else f"no: {version.why}",
            _name(version.path),
            style="" if version.valid else "red",
        )
    terminal.print(table)


def _name(place: Place) -> str:
    """Return what is not the same for all: a file's name, or the revision in a database."""
    return place.name if isinstance(place, Path) else f"#{place.rpartition('#')[2]}"
