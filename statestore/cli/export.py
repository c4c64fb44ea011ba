"""``export_positions``, also ``statestore export``: positions to one file, before a wipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from statestore.cli.exits import EPILOG, entry
from statestore.cli.options import FILE, refuse_target, require_room, state_option
from statestore.cli.output import note, print_json
from statestore.cli.transfers import db_options, opened, refuse_lone
from statestore.config import Places, load_settings, places
from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.disk.store import State
    from statestore.runtime.envelope import Format
    from statestore.runtime.transfer import Contents, Exported


@click.command("export_positions", epilog=EPILOG)
@click.option(
    "--status",
    help="Only positions of this status, e.g. active: held ones that say none as well.  "
    "[default: all]",
)
@click.option("--timeframe", help="Only positions of this timeframe, e.g. 1h.  [default: all]")
@click.option(
    "--output", type=FILE, help="The file.  [default: a new one, named after what is in it]"
)
@click.option(
    *("--section", "--include", "sections"),
    metavar="NAME",
    multiple=True,
    help="Take this section of the state along (a token registry, learning data ...). Repeatable.",
)
@click.option("--include-regime", is_flag=True, help="Positions of regime drivers as well.")
@click.option(
    "--kind",
    type=click.Choice(["positions", "state"]),
    default="positions",
    show_default=True,
    help="state: everything, to be put back by import --replace.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "jsonl", "csv"]),
    default="json",
    show_default=True,
    help="jsonl and csv have a line for each position.",
)
@state_option
@db_options
def command(
    status: str | None,
    timeframe: str | None,
    output: Path | None,
    sections: tuple[str, ...],
    include_regime: bool,
    kind: str,
    form: Format,
    state: Path | None,
    db: str | None,
    schema: str | None,
) -> None:
    """Write the positions of a state to one file, with every column they have.

    The file is written whole or not at all, read back, and carries a count and a checksum, so that
    what was cut or changed is not imported. The balances that the state knows are noted in it. What
    is not in it is said: positions of regime drivers (a bootstrap makes them again), and sections
    of the state that were not named. With --db: the positions of a database, and their orders.
    """
    refuse_lone(db, schema=schema)
    where = places(load_settings(), state=state)
    refuse_target("--output", output, where.files)
    require_room("--output", output)
    if kind == "state" and (status or timeframe or sections or include_regime or db):
        raise UsageError("--kind state is all of a state file; it takes no filter, section or --db")
    from statestore.runtime.transfer import Exported, export_positions, export_state

    if kind == "state":
        _write(Exported(export_state(_load(where))), str(where.state), output, form)
        return
    held = _contents(where, db, schema, state)
    # Of a database the orders are no section of somebody else's: positions are not safe alone.
    orders = ("orders",) if db is not None and held.sections["orders"] else ()
    exported = export_positions(
        held,
        status=status,
        timeframe=timeframe,
        sections=(*sections, *orders),
        include_regime=include_regime,
    )
    _write(exported, held.name, output, form)


def _write(exported: Exported, origin: str, output: Path | None, form: Format) -> None:
    """Write the file, and say what is in it and what is not."""
    from statestore.runtime import envelope
    from statestore.runtime.transfer import default_name

    made = exported.envelope
    thing = "section" if made.kind == "state" else "position"
    path = output or Path(default_name(made, form))
    if not made.count and path.exists():
        raise UsageError(
            f"{path} is there already, and nothing would come in its place: {origin} holds no "
            f"{thing} that was asked for; name another file with --output, or delete this one"
        )
    try:
        digits = envelope.write(path, made, form, new=output is None)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already; name another with --output") from error
    note(f"Exported {made.count} {thing}s of {origin} to {path}.")
    _tell_what_is_left(exported)
    print_json(
        {
            "action": "export",
            "path": str(path),
            "format": form,
            "kind": made.kind,
            "count": made.count,
            "sections": list(made.sections),
            "filters": made.filters,
            "source": made.source,
            "balances": made.balances,
            "sha256": digits,
            "bytes": path.stat().st_size,
            "left_out": {
                "regime": exported.regime,
                "by_filter": exported.unmatched,
                "sections": list(exported.sections_left),
            },
        }
    )


def _contents(where: Places, db: str | None, schema: str | None, state: Path | None) -> Contents:
    if db is None:
        from statestore.runtime.transfer import contents_of

        loaded = _load(where)
        return contents_of(loaded, loaded.meta.state_path)
    from statestore.runtime.tables import read_tables

    with opened(db, schema, state=state) as tables:
        return read_tables(tables).contents


def _load(where: Places) -> State:
    from statestore.disk.store import StateStore

    store = StateStore(where.state, backup_dir=where.backup_dir)
    loaded = store.load(numbers="decimal", missing_ok=False)
    if loaded.meta.recovered_from is not None:
        note(f"Warning: {store.path} {loaded.meta.recovered_why}; read from {loaded.meta.path}")
    return loaded


def _tell_what_is_left(exported: Exported) -> None:
    if exported.regime:
        note(f"Left out: {exported.regime} of regime drivers (--include-regime).")
    if exported.unmatched:
        found = ", ".join(f"{n} {status}" for status, n in sorted(exported.unmatched.items()))
        note(f"Left out by the filter: {found}.")
    if exported.sections_left:
        names = ", ".join(exported.sections_left)
        note(f"Not in the file: {names} (--section NAME, or --kind state for everything).")
    if not exported.envelope.count:
        note("Warning: the file holds nothing.")


main = entry(command)
