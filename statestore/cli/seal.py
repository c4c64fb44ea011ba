"""``statestore seal``: accept an edited state file as it is."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.guarded import replace_state
from statestore.cli.options import allow_live_option, kill_switch_option, state_option
from statestore.config import load_settings, places
from statestore.disk.store import StateStore


@click.command("seal", epilog=EPILOG)
@state_option
@kill_switch_option
@allow_live_option
def command(state: Path | None, kill_switch: Path | None, allow_live: bool) -> None:
    """Accept a state file whose checksum is wrong: it was edited on purpose, and is right.

    It gets a right checksum and the next revision. Look at it first: "statestore restore" is the
    other way out.
    """
    where = places(load_settings(), state=state, kill_switch=kill_switch)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    replace_state(
        "seal",
        store,
        where,
        lambda check: store.seal(before_commit=check),
        allow_live=allow_live,
    )
