"""What the commands print: JSON on stdout, tables and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from statestore.amounts import text
from statestore.disk.codec import to_json
from statestore.repair.plan import QUANTITY_FIELDS, Action, Change, Plan

_STYLES = {
    Action.ADD: "green",
    Action.UPDATE: "yellow",
    Action.REMOVE: "red",
    Action.KEEP: "dim",
    Action.NONE: "dim",
}


def print_json(value: object) -> None:
    """Print one JSON document; `Decimal`s are exact JSON numbers."""
    sys.stdout.buffer.write(to_json(value) + b"\n")


def note(message: str) -> None:
    click.echo(message, err=True)


def show_plan(plan: Plan) -> None:
    """Print the plan for people: a line for each position, then the rest, then the warnings."""
    from rich.console import Console  # 35 ms that --help and -q do not need
    from rich.table import Table

    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
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
        console.print(table)
    if flat:
        names = ", ".join(change.asset for change in flat)
        console.print(f"Traded, not held and not in the state: {names}", style="dim", markup=False)
    for warning in plan.warnings:
        console.print(f"Warning: {warning.message}", style="yellow", markup=False, highlight=False)
    if plan.unmanaged:
        names = ", ".join(plan.unmanaged)
        console.print(f"Held, but not in the state (--adopt): {names}", markup=False)


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
    value = next((entry[name] for name in names if entry and entry.get(name) is not None), None)
    return short(None if value is None else str(value))


def short(value: str | None) -> str:
    """At most 14 characters after the point: the JSON has every digit."""
    if value is None:
        return "unknown"
    whole, point, fraction = value.partition(".")
    return f"{whole}.{fraction[:14]}…" if point and len(fraction) > 14 else value
