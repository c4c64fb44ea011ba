"""``statestore show``: the state, and where it was read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import backup_dir_option, state_option
from statestore.cli.output import note, print_json
from statestore.cli.versions import At, Pick, described
from statestore.config import load_settings, places
from statestore.disk import codec
from statestore.disk.store import StateStore
from statestore.urls import StateUrl


@click.command("show", epilog=EPILOG)
@state_option
@backup_dir_option
@click.option("--section", help="Only this section of it.")
@click.option(
    "--at", type=At(), help="That revision; or the newest version saved at or before a time."
)
def command(
    state: Path | StateUrl | None, backup_dir: Path | None, section: str | None, at: Pick | None
) -> None:
    """Print the state as JSON, with exact numbers; about the file, on stderr.

    Reads only: takes no lock and works in a read-only folder. "statestore history" lists what
    --at can name.
    """
    where = places(load_settings(), state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    found = _present(store) if at is None else _former(store, at)
    if section is not None and section not in found:
        raise click.BadParameter(f"the state has {', '.join(found)}", param_hint="--section")
    print_json(found if section is None else found[section])


def _present(store: StateStore) -> dict[str, Any]:
    found = store.load(numbers="decimal", missing_ok=False)
    meta = found.meta
    saved = f", saved {meta.saved_at} ({meta.reason})" if meta.saved_at else ", never saved by us"
    note(f"{store.path}: revision {meta.revision}{saved}")
    if meta.recovered_from is not None:
        note(f"Warning: {store.path} {meta.recovered_why}; read from {meta.recovered_from}")
    return dict(found)


def _former(store: StateStore, at: Pick) -> dict[str, Any]:
    version = at(store)
    note(described(version))
    return codec.decode(store.read(version.path), "decimal")
