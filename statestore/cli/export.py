"""``export_positions``, also ``statestore export``: positions to one file, before a wipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, entry
from statestore.cli.options import FILE, refuse_target, state_option
from statestore.cli.output import note, print_json
from statestore.config import Places, load_settings, places
from statestore.errors import StateInvalid, UsageError


@click.command("export_positions", epilog=EPILOG)
@click.option("--status", help="Only positions of this status, e.g. active.  [default: all]")
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
def command(
    status: str | None,
    timeframe: str | None,
    output: Path | None,
    sections: tuple[str, ...],
    include_regime: bool,
    kind: str,
    form: Any,
    state: Path | None,
) -> None:
    """Write the positions of a state to one file, with every column they have.

    The file is written whole or not at all, read back, and carries a count and a checksum, so that
    what was cut or changed is not imported. The balances that the state knows are noted in it. What
    is not in it is said: positions of regime drivers (a bootstrap makes them again), and sections
    of the state that were not named.
    """
    where = places(load_settings(), state=state)
    refuse_target("--output", output, where.files)
    if kind == "state" and (status or timeframe or sections or include_regime):
        raise UsageError("--kind state is everything; it takes no filter and no --section")
    exported = (
        _export_state(where)
        if kind == "state"
        else _export_positions(where, status, timeframe, sections, include_regime)
    )
    from statestore.runtime import envelope
    from statestore.runtime.transfer import default_name

    made = exported.envelope
    path = output or Path(default_name(made, form))
    try:
        digits = envelope.write(path, made, form, new=output is None)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already; name another with --output") from error
    things = "sections" if kind == "state" else "positions"
    note(f"Exported {made.count} {things} of {exported_from(made.source, where)} to {path}.")
    _tell_what_is_left(exported, made.count)
    print_json(
        {
            "action": "export",
            "path": str(path),
            "format": form,
            "kind": kind,
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


def exported_from(source: Any, where: Places) -> str:
    return f"{where.state} (revision {source['revision']})"


def _export_positions(
    where: Places,
    status: str | None,
    timeframe: str | None,
    sections: tuple[str, ...],
    include_regime: bool,
) -> Any:
    from statestore.runtime.transfer import contents_of, export_positions

    loaded = _load(where)
    try:
        return export_positions(
            contents_of(loaded, where.state),
            status=status,
            timeframe=timeframe,
            sections=sections,
            include_regime=include_regime,
        )
    except ValueError as error:
        raise StateInvalid(where.state, f"{where.state}: positions.{error}") from error


def _export_state(where: Places) -> Any:
    from statestore.runtime.transfer import Exported, export_state

    return Exported(export_state(_load(where)))


def _load(where: Places) -> Any:
    from statestore.disk.store import StateStore

    store = StateStore(where.state, backup_dir=where.backup_dir)
    loaded = store.load(numbers="decimal", missing_ok=False)
    if loaded.meta.recovered_from is not None:
        note(f"Warning: {store.path} {loaded.meta.recovered_why}; read from {loaded.meta.path}")
    return loaded


def _tell_what_is_left(exported: Any, count: int) -> None:
    if exported.regime:
        note(f"Left out: {exported.regime} of regime drivers (--include-regime).")
    if exported.unmatched:
        found = ", ".join(f"{n} {status}" for status, n in sorted(exported.unmatched.items()))
        note(f"Left out by the filter: {found}.")
    if exported.sections_left:
        names = ", ".join(exported.sections_left)
        note(f"Not in the file: {names} (--section NAME, or --kind state for everything).")
    if not count:
        note("Warning: the file holds nothing.")


main = entry(command)
