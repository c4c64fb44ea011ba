"""``statestore check``: whether the state, its .bak and its backups are good."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, code_for
from statestore.cli.options import backup_dir_option, state_option
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.store import StateStore
from statestore.errors import StateCorrupt


@click.command("check", epilog=EPILOG)
@state_option
@backup_dir_option
def command(state: Path | None, backup_dir: Path | None) -> int:
    """Look at every file of the state. Reads only; exit 8 when something is wrong."""
    where = places(load_settings(), state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    report = store.check()
    for found in (report.state, report.bak, *report.backups):
        if found.why:
            note(f"{found.path} {found.why}")
    print_json({"ok": report.ok, **_plain(asdict(report))})
    return 0 if report.ok else code_for(StateCorrupt)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
