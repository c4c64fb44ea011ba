"""``statestore restore``: put a backup in place of the state."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.guarded import replace_state
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    state_option,
)
from statestore.config import load_settings, places
from statestore.disk.store import StateStore


@click.command("restore", epilog=EPILOG)
@state_option
@click.option("--file", "file", type=FILE, help="What to restore.  [default: the state's .bak]")
@kill_switch_option
@backup_dir_option
@allow_live_option
def command(
    state: Path | None,
    file: Path | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
) -> None:
    """Save what a backup holds as the next revision of the state.

    The present state becomes .bak if it is good, and is moved aside if it is not; nothing is
    deleted.
    """
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    origin = file or store.backup_path
    replace_state(
        "restore",
        store,
        where,
        lambda check: store.restore(origin, before_commit=check),
        allow_live=allow_live,
        facts={"from": str(origin)},
    )
