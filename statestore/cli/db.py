"""``statestore db init | upgrade | status | reconcile``: the database a state is in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import (
    FILE,
    allow_live_option,
    kill_switch_option,
    state_option,
)
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.locks import lease_held
from statestore.errors import SchemaOutdated, UsageError
from statestore.repair.rebuild import halted
from statestore.urls import StateUrl

if TYPE_CHECKING:
    from statestore.backends.postgres import PostgresStore


@click.group("db", epilog=EPILOG)
def command() -> None:
    """The database a state is in: make its tables, look at it, put right what a file fell back to.

    Which one is said by --state or $STATE_FILE: postgresql://user@host/database?schema=NAME. All
    tables are in that schema (statestore, unless named); others are never touched.
    """


@command.command(epilog=EPILOG)
@state_option
def init(state: Path | StateUrl | None) -> None:
    """Make the schema and its tables. Doing so again does nothing."""
    _upgrade(state, "init")


@command.command(epilog=EPILOG)
@state_option
def upgrade(state: Path | StateUrl | None) -> None:
    """Bring the tables to this version, each step in one transaction. Again does nothing."""
    _upgrade(state, "upgrade")


@command.command(epilog=EPILOG)
@state_option
def status(state: Path | StateUrl | None) -> int:
    """Say what is there: tables, state, who runs, what the server keeps. Writes nothing.

    Exit 10 when the tables are missing or not of this version, or the server does not answer.
    """
    store = _store(state)
    schema = store.database.status()
    pending = [migration.name for migration in schema.pending]
    report: dict[str, Any] = {
        "database": store.path,
        "schema": schema.schema,
        "version": schema.version,
        "applied": [{"name": m.name, "at": _instant(m.at)} for m in schema.applied],
        "pending": pending,
    }
    if pending:
        print_json(report)
        raise SchemaOutdated(
            f"{store.path}: {len(pending)} step(s) are pending ({', '.join(pending)}); run "
            f"`statestore db {'upgrade' if schema.applied else 'init'}`"
        )
    store.database.require_schema()
    server = store.server()
    for warning in server["warnings"]:
        note(f"Warning: {warning}")
    switch = store.kill_switch()
    print_json(
        report
        | {
            "server": server,
            "states": store.states(),
            "lease": store.lease_holder(),
            "kill_switch": switch.status(),
            "fallback": store.fallback_status(),
        }
    )
    return 0


@command.command(epilog=EPILOG)
@state_option
@click.option("--file", type=FILE, help="The file_fallback.  [default: the one in the URL]")
@click.option(
    "--take",
    type=click.Choice(["file", "database"]),
    help="Where both have moved: which one is the state. The other one is kept aside.",
)
@kill_switch_option
@allow_live_option
def reconcile(
    state: Path | StateUrl | None,
    file: Path | None,
    take: str | None,
    kill_switch: Path | None,
    allow_live: bool,
) -> None:
    """Put right what was saved in a file while the database was away.

    A bot does so by itself where only one of the two has moved. Where both have, nothing is merged:
    look at both, then say which to --take; that needs the kill switch engaged and no bot running.
    """
    store = _store(state, file)
    if take is not None:
        where = places(load_settings(), state=state, kill_switch=kill_switch)
        halted(store.kill_switch(where.kill_switch), allow_live=allow_live)()
        _require_no_bot(store)
    done = store.reconcile(take)
    said = {
        "nothing": "There was nothing to reconcile.",
        "push": "What the file had is in the database now.",
        "drop": "The file had nothing that the database has not; it was moved aside.",
        "take": f"Taken: the {take}'s state.",
    }
    note(f"{said[done['done']]} {store.path} is at revision {done['revision']}.")
    if done["aside"]:
        note(f"Kept: {done['aside']}")
    print_json({"action": "reconcile", "path": store.path, **done})


def _upgrade(state: Path | StateUrl | None, action: str) -> None:
    store = _store(state)
    applied = [migration.name for migration in store.database.upgrade()]
    store.database.require_schema()  # what was dropped by hand is not made again
    schema = store.database.status()
    what = f"applied {', '.join(applied)}" if applied else "nothing to do"
    note(f"{store.path}: {what}; schema {schema.schema} is at version {schema.version}.")
    print_json(
        {
            "action": action,
            "database": store.path,
            "schema": schema.schema,
            "applied": applied,
            "version": schema.version,
        }
    )


def _store(state: Path | StateUrl | None, file: Path | None = None) -> PostgresStore:
    where = places(load_settings(), state=state)
    scheme = str(where.state).partition("://")[0] if isinstance(where.state, StateUrl) else "file"
    if not isinstance(where.state, StateUrl) or scheme != "postgresql":
        raise UsageError(
            f"{where.state} is no database; name one: --state postgresql://user@host/database, or "
            "in STATE_FILE"
        )
    from statestore.backends.postgres import PostgresStore

    return PostgresStore(where.state, file_fallback=file)


def _require_no_bot(store: PostgresStore) -> None:
    holder = store.lease_holder()
    if holder is not None:
        raise lease_held(store.path, holder)


def _instant(at: Any) -> str:
    return str(at.isoformat()).replace("+00:00", "Z")
