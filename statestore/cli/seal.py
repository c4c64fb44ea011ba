"""``statestore seal``: accept an edited state file as it is."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.guarded import replace_state, retention
from statestore.cli.options import (
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    state_option,
)
from statestore.config import load_settings, places
from statestore.disk.store import StateStore
from statestore.urls import StateUrl


@click.command("seal", epilog=EPILOG)
@state_option
@kill_switch_option
@backup_dir_option
@allow_live_option
def command(
    state: Path | StateUrl | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
) -> None:
    """Accept a state file whose checksum is wrong: it was edited on purpose, and is right.

    It gets a right checksum and the next revision. Look at it first ("statestore diff" shows what
    was changed since .bak): "statestore restore" is the other way out. What that would have put
    back is kept as a backup, and "statestore undo" goes there.
    """
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    if not isinstance(store.path, Path):
        store.seal()  # says what does that, before anybody is told to halt a bot for it
    replace_state(
        "seal",
        store,
        where,
        lambda check: store.seal(before_commit=check),
        keep=retention(settings),
        allow_live=allow_live,
    )
