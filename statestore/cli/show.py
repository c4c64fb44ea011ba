"""``statestore show``: the state, and where it was read from."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import state_option
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.store import StateStore


@click.command("show", epilog=EPILOG)
@state_option
@click.option("--section", help="Only this section of it.")
def command(state: Path | None, section: str | None) -> None:
    """Print the state as JSON, with exact numbers; about the file, on stderr.

    Reads only: takes no lock and works in a read-only folder.
    """
    where = places(load_settings(), state=state)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    found = store.load(numbers="decimal", missing_ok=False)
    meta = found.meta
    saved = f", saved {meta.saved_at} ({meta.reason})" if meta.saved_at else ", never saved by us"
    note(f"{store.path}: revision {meta.revision}{saved}")
    if meta.recovered_from is not None:
        note(f"Warning: {store.path} {meta.recovered_why}; read from {meta.recovered_from}")
    if section is not None and section not in found:
        raise click.BadParameter(f"the state has {', '.join(found)}", param_hint="--section")
    print_json(dict(found) if section is None else found[section])
