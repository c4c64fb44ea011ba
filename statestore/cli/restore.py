"""``statestore restore``: put a backup in place of the state."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.differences import preview, show_differences
from statestore.cli.exits import EPILOG
from statestore.cli.guarded import present, replace_state, retention
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.config import load_settings, places
from statestore.disk.history import differences, read_document
from statestore.disk.store import StateStore
from statestore.errors import StateCorrupt


@click.command("restore", epilog=EPILOG)
@state_option
@click.option("--file", "file", type=FILE, help="What to restore.  [default: the state's .bak]")
@dry_run_option
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def command(
    state: Path | None,
    file: Path | None,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> None:
    """Save what a backup holds as the next revision of the state.

    The present state is backed up first, so that "statestore undo" takes this back, and becomes
    .bak; if it is not good it is moved aside. Nothing is deleted. "statestore history" lists what
    there is to restore; --dry-run shows what would change and writes nothing.
    """
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    origin = file or store.backup_path
    wanted = read_document(origin)
    if wanted.why:
        raise StateCorrupt(origin, f"{origin} {wanted.why}; restore from another backup")
    before, why = present(store)
    report = differences(before, wanted)
    show_differences(report, f"{store.path}{' (not good)' if why else ''}", str(origin))
    if dry_run:
        preview("restore", store, report, {"from": str(origin), "present_is_not_good": why or None})
        return
    replace_state(
        "restore",
        store,
        where,
        lambda check: store.restore(origin, before_commit=check),
        keep=retention(settings),
        allow_live=allow_live,
        ask="" if yes else f"Replace {store.path} by {origin}?",
        facts={"from": str(origin)},
        told={"from": str(origin)},
    )
