"""What the commands print: JSON on stdout, tables and notes on stderr (see `screen`)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from statestore.amounts import text
from statestore.cli.screen import console
from statestore.cli.screen import note as note
from statestore.disk.codec import to_json
from statestore.repair.entries import QUANTITY_FIELDS, said
from statestore.repair.plan import Action, Change, Plan

_STYLES = {
    Action.ADD: "green",
    Action.UPDATE: "yellow",
    Action.REMOVE: "red",
    Action.KEEP: "dim",
    Action.NONE: "dim",
}


# JSON escapes the first 32 itself; of the others some are seen by nobody, or obeyed by a terminal.
_BEYOND = re.compile(r"[\x7f-\U0010ffff]")


def json_line(value: object, *, indent: int | None = 2) -> bytes:
    """Return a JSON document and the end of its line; `Decimal`s are exact JSON numbers.

    Characters that are not seen are escaped: the same text for a program, and none for a terminal
    to obey.
    """
    try:
        text = to_json(value, indent=indent).decode()
    except UnicodeEncodeError:
        text = to_json(_mended(value), indent=indent).decode()
    return f"{_BEYOND.sub(_escaped, text)}\n".encode()


def _mended(value: object) -> object:
    """The value with half characters (of a file name, say) as text: no JSON has them."""
    if isinstance(value, Mapping):
        return {_mended(key): _mended(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(inner) for inner in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.buffer.write(json_line(value, indent=indent))


def show_plan(plan: Plan) -> None:
    """Print the plan for people: a line for each position, then the rest, then the warnings."""
    from rich.table import Table

    terminal = console(stderr=True, width=None if sys.stderr.isatty() else 140)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Position", "Action", "Status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Quantity", "Entry price"):
        table.add_column(heading, overflow="fold", justify="right")
    table.add_column("Why", overflow="fold")
    flat = [c for c in plan.changes if c.before is None and c.allowed and not c.finding.units]
    for change in plan.changes:
        if change in flat:
            continue
        table.add_row(
            change.key,
            change.action.value,
            change.finding.status.value,
            _before_after(change, "quantity", text(change.finding.units)),
            _before_after(change, "entry_price", text(change.finding.position.entry_price)),
            change.finding.reason,
            style=_STYLES[change.action] if change.allowed else "bold red",
        )
    if table.row_count:
        terminal.print(table)
    if flat:
        names = ", ".join(change.asset for change in flat)
        terminal.print(f"Traded, not held and not in the state: {names}", style="dim")
    for warning in plan.warnings:
        terminal.print(f"Warning: {warning.message}", style="yellow", highlight=False)
    if plan.unmanaged:
        names = ", ".join(plan.unmanaged)
        terminal.print(f"Held, but not in the state (--adopt): {names}")


def _before_after(change: Change, field: str, found: str | None) -> str:
    """What the state records and what it will; a figure that is not written is not shown."""
    before = _plain(change.before, field)
    if change.action is Action.KEEP:
        return before
    after = "-" if change.action in (Action.REMOVE, Action.NONE) else short(found)
    changes = change.before is not None and before != after
    return f"{before} -> {after}" if changes else after


def _plain(entry: Mapping[str, Any] | None, field: str) -> str:
    names = QUANTITY_FIELDS if field == "quantity" else (field,)
    value = said(entry or {}, names)
    return short(None if value is None else str(value))


def short(value: str | None) -> str:
    """At most 14 characters after the point: the JSON has every digit."""
    if value is None:
        return "unknown"
    whole, point, fraction = value.partition(".")
    return f"{whole}.{fraction[:14]}…" if point and len(fraction) > 14 else value
