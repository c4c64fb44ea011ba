"""What ``export`` and ``import`` need where the other end is a database.

An import into tables is halted and recorded as one into a file is. There is no backup of it: the
audit line lists the rows that are new and when each was written, by which `undo` takes them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.output import note
from statestore.config import Places
from statestore.errors import BackendUnavailable, UsageError
from statestore.times import format_instant
from statestore.urls import StateUrl

if TYPE_CHECKING:
    from statestore.backends.database import Database
    from statestore.backends.positions import PositionTables
    from statestore.disk.store import StateStore
    from statestore.runtime.envelope import Envelope
    from statestore.runtime.transfer import Import


def db_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--schema", help="Schema of our tables in it.  [default: the URL's, else statestore]"
    )(function)
    return click.option(
        "--db",
        metavar="URL",
        help="The tables positions and orders of this PostgreSQL database, in place of a state "
        "file. A password is better kept in ~/.pgpass.",
    )(function)


def refuse_lone(db: str | None, **needing: object) -> None:
    """Raise `UsageError` where an option that needs ``--db`` stands without it."""
    for name, value in needing.items():
        if db is None and value is not None:
            raise UsageError(f"--{name} says something about a database; name it with --db")


@contextmanager
def opened(
    db: str, schema: str | None, *, state: Path | StateUrl | None
) -> Iterator[PositionTables]:
    """Give the tables of a database, whose schema is the one this version works on.

    Raises:
        UsageError: a state file was named as well.
        BackendError: it cannot be reached, or its tables are not ours.
    """
    from statestore.backends.database import Database
    from statestore.backends.positions import PositionTables

    if state is not None:
        raise UsageError("--db and --state are two places; name one")
    database = Database(db, schema=schema)
    try:
        database.require_schema()
        yield PositionTables(database)
    finally:
        database.close()


def database_of(store: StateStore) -> Database | None:
    """Return the database that a state is in; None where it is in a file, or elsewhere."""
    if isinstance(store.path, Path):
        return None
    from statestore.backends.postgres import PostgresStore

    return store.database if isinstance(store, PostgresStore) else None


def import_halted(
    tables: PositionTables,
    read: Envelope,
    where: Places,
    file: Path,
    *,
    allow_live: bool,
    asked: Mapping[str, Any],
) -> Import:
    """Import into the tables, halted and recorded.

    Raises:
        KillSwitchNotEngaged: the bot may trade; looked at again right before the commit.
        AuditBroken: it is imported, but the audit line could not be written.
    """
    from statestore.disk.audit import AuditLog
    from statestore.disk.store import StateStore
    from statestore.repair.rebuild import halted, record
    from statestore.runtime.tables import import_tables

    # The bot's: where its state is in a database, that halts it as well as the file does.
    store = StateStore(where.state, backup_dir=where.backup_dir)
    check = halted(store.kill_switch(where.kill_switch), allow_live=allow_live)
    check()
    try:
        plan, stamps = import_tables(tables, read, before_commit=check, **asked)
    except BackendUnavailable as error:
        if error.uncertain:
            note(f"It may have been imported all the same: look with --verify ({file}).")
        raise
    ids = {key: e.get("id") for key, e in plan.positions.items() if isinstance(e, Mapping)}
    facts = {
        "from": str(file.absolute()),
        "from_sha256": read.sha256,
        "positions": ids,
        # When each row was written, which `undo --db` compares: as texts, for people.
        "written": {
            name: {row: format_instant(at) for row, at in rows.items()}
            for name, rows in stamps._asdict().items()
        },
    }
    record(AuditLog(where.audit_file), "import", tables.database.address, facts)
    return plan
