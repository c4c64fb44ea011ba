"""``statestore check``: whether the state, its .bak and its backups are good."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, code_for
from statestore.cli.options import backup_dir_option, state_option
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.checking import CheckReport
from statestore.disk.store import StateStore
from statestore.errors import StateCorrupt, StateError


@click.command("check", epilog=EPILOG)
@state_option
@backup_dir_option
def command(state: Path | None, backup_dir: Path | None) -> int:
    """Look at every file of the state. Reads only; exit 8 when something is wrong."""
    where = places(load_settings(), state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    try:
        report = store.check()
    except OSError as error:
        raise StateError(
            store.path, f"cannot list {error.filename}: {error.strerror}; it has to be readable"
        ) from error
    for found in (report.state, report.bak, *report.backups):
        if found.why:
            note(f"{found.path} {found.why}")
    _mention(store, report)
    print_json({"ok": report.ok, **_plain(asdict(report))})
    return 0 if report.ok else code_for(StateCorrupt)


def _mention(store: StateStore, report: CheckReport) -> None:
    """Say what is no fault of the state, but may explain one."""
    for path in report.quarantined:
        note(f"{path} was damaged and moved aside; delete it when nothing in it is needed")
    for path in report.leftovers:
        note(f"{path} was left by a writer that was killed; it may be deleted")
    if report.lock_holder is not None:
        note(
            f"process {report.lock_holder} on {os.uname().nodename} holds the lock "
            f"{store.lock_path}: it is saving, or it hangs"
        )
    if report.lease is not None:
        who = {name: report.lease.get(name, "unknown") for name in ("pid", "host", "since")}
        note(f"a bot runs: process {who['pid']} on {who['host']} since {who['since']}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
