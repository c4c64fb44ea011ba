"""``statestore fills``: the audit trail, for people, programs and spreadsheets."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.asking import note_warnings, plan_about
from statestore.cli.exits import EPILOG
from statestore.cli.options import state_option
from statestore.cli.sources import (
    accounting_options,
    source_options,
    talk_options,
    window_options,
)
from statestore.texts import printable

if TYPE_CHECKING:
    from statestore.repair.plan import Plan

COLUMNS = (
    "asset",
    "time",
    "product_id",
    "side",
    "trade_type",
    "price",
    "units",
    "running",
    "cost",
    "cost_currency",
    "entry_price",
    "realised",
    "counts",
    "commission",
    "commission_currency",
    "entry_id",
    "trade_id",
    "order_id",
)
# What we print ourselves and no one else can fill with text. A minus sign there is a minus sign.
_OURS = frozenset(
    {"time", "price", "units", "running", "cost", "entry_price", "realised", "counts", "commission"}
)
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - the wide ones start a formula as well


@click.command("fills", epilog=EPILOG, context_settings={"show_default": True})
@click.option("--asset", "assets", multiple=True, help="Only this asset. Repeatable.")
@window_options
@state_option
@source_options
@accounting_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "jsonl", "csv"]),
    default="json",
    help="One document, a line a fill, or a table for spreadsheets.",
)
@talk_options
def command(assets: tuple[str, ...], form: str, **flags: Any) -> None:
    """Print the fills behind each quantity: what was held after each, its cost, what was gained.

    Oldest first, asset by asset; as far back as a rebuild searches. "running" is the quantity after
    the fill, by the balance where there is one; cost, entry price and realised are those of a
    rebuild, null (in csv: empty) where they are not known. "counts" is false for fills that were
    over before the present position began. Amounts are exact, as text.

    In csv, a text that a spreadsheet would take for a formula (it begins with = + - @, a tab or a
    line break) is preceded by an apostrophe, and what a terminal would obey is made visible.
    Numbers are never changed.
    """
    plan = plan_about(assets, flags)
    if not flags["quiet"]:
        note_warnings(plan)
    from statestore.repair.trail import fill_trail

    records = fill_trail(plan)
    if form == "csv":
        sys.stdout.buffer.write(_csv(records).encode())
    elif form == "jsonl":
        from statestore.cli.output import print_json

        for record in records:
            print_json(record, indent=None)
    else:
        from statestore.cli.output import print_json

        print_json(_document(plan, list(records)))


def _document(plan: Plan, records: list[dict[str, Any]]) -> dict[str, Any]:
    """``statestore.fills/1``; the figures of an asset are those of a rebuild's plan."""
    from statestore.repair.told import document

    whole = document(plan, dry_run=False, state={}, positions={})
    kept = ("source", "portfolio", "method", "window")
    figures = ("asset", "status", "reason", "quantity", "entry_price", "cost", "cost_currency")
    return {
        "schema": "statestore.fills/1",
        **{name: whole[name] for name in kept},
        "assets": [
            {name: change[name] for name in (*figures, "realised", "fills")}
            for change in whole["changes"]
        ],
        "fills": records,
        "read": whole["fills"],
        "warnings": whole["warnings"],
    }


def _csv(records: Iterable[Mapping[str, Any]]) -> str:
    written = io.StringIO(newline="")
    table = csv.writer(written, lineterminator="\n")
    table.writerow(COLUMNS)
    for record in records:
        table.writerow([_cell(name, record[name]) for name in COLUMNS])
    return written.getvalue()


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    shown = printable(text)
    return f"'{shown}" if name not in _OURS and text.startswith(_FORMULA) else shown
