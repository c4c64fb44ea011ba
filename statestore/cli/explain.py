"""``statestore explain``: how a quantity and its entry price came about, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from statestore.amounts import text
from statestore.cli.asking import note_warnings, plan_about
from statestore.cli.exits import EPILOG
from statestore.cli.options import state_option
from statestore.cli.sources import (
    accounting_options,
    source_options,
    talk_options,
    window_options,
)
from statestore.model import STATUS_MEANINGS
from statestore.times import format_instant, parse_instant

if TYPE_CHECKING:
    from statestore.repair.plan import Change, Plan, Warn

_WIDTH = 80
_COLUMN = 19
_SHOWN = 20  # fills at either end of a long trail


@click.command("explain", epilog=EPILOG, context_settings={"show_default": True})
@click.argument("asset")
@window_options
@state_option
@source_options
@accounting_options
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to tell it."
)
@click.option("--all", "every", is_flag=True, help=f"Every fill, not only {_SHOWN} at either end.")
@talk_options
def command(asset: str, form: str, every: bool, **flags: Any) -> None:
    """Explain how the quantity and the entry price of ASSET came about.

    The status and what it means, the balance, where the position began, each fill with what was
    held, its cost, entry price and profit, what the state records, and what would have to be known
    where something is not proven. Reads only. The text cuts long numbers; --format json does not.
    """
    plan = plan_about([asset], flags)
    (change,) = plan.changes
    from statestore.repair.trail import records_of

    trail = list(records_of(change, plan.method))
    if form == "json":
        from statestore.cli.output import print_json

        if not flags["quiet"]:
            note_warnings(plan)
        print_json(_document(plan, change, trail))
    else:
        from statestore.cli.screen import tell

        tell("\n".join(_told(plan, change, trail, every)))


def _document(plan: Plan, change: Change, trail: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``statestore.explain/1``; the figures are those of a rebuild's plan."""
    from statestore.repair.told import document

    whole = document(plan, dry_run=False, state={}, positions={})
    figures = dict(whole["changes"][0])
    before = figures.pop("before")
    for name in ("after", "fills", "action", "key"):
        del figures[name]
    return {
        "schema": "statestore.explain/1",
        **figures,
        "meaning": STATUS_MEANINGS[change.finding.status],
        "proven": change.allowed,
        "balance": text(change.finding.balance),
        "held_before_first_fill": text(change.finding.opening),
        "recorded": before,
        "differences": [
            {"field": name, "recorded": recorded, "found": found}
            for name, recorded, found in _differences(change)
        ],
        "would_settle_it": _would_settle(plan, change),
        **{name: whole[name] for name in ("source", "portfolio", "method", "window")},
        "read": whole["fills"],
        "fills": list(trail),
        "warnings": whole["warnings"],
    }


def _told(
    plan: Plan, change: Change, trail: Sequence[Mapping[str, Any]], every: bool
) -> Iterator[str]:
    finding, position = change.finding, change.finding.position
    currency = position.currency or ""
    yield f"{change.asset}: {finding.status.value}"
    yield from _wrapped(STATUS_MEANINGS[finding.status])
    yield from _wrapped(f"{finding.reason[:1].upper()}{finding.reason[1:]}.")
    yield ""
    yield from _facts(
        ("Quantity", f"{text(finding.units)} {change.asset}"),
        ("Balance", text(finding.balance) or "not at hand"),
        ("Entry price", _amount(position.entry_price, currency)),
        ("Cost", _amount(position.cost if currency else None, currency)),
        ("Break even", _amount(position.break_even, currency)),
        ("Realised", _amount(position.realised, "before fees")),
    )
    yield ""
    yield from _heading("Where it began")
    yield from _wrapped(_beginning(change))
    yield ""
    yield from _heading(f"Fills ({len(trail)}), {plan.method.value} cost, times in UTC")
    yield from _table(trail, every)
    yield ""
    yield from _heading("What the state records")
    yield from _recorded(change)
    if not change.allowed:
        yield ""
        yield from _heading("What would settle it")
        for advice in _would_settle(plan, change):
            yield from _wrapped(advice, bullet="- ")
    about = [warning for warning in plan.warnings if warning.asset in (None, change.asset)]
    if about:
        yield ""
        yield from _heading("Also")
        for warning in about:
            yield from _wrapped(_sentence(warning), bullet="- ")
    yield ""
    yield from _wrapped(_where_from(plan))


def _amount(value: Decimal | None, unit: str) -> str:
    return "unknown" if value is None else f"{text(value)} {unit}"


def _beginning(change: Change) -> str:
    from statestore.model import Status

    finding, asset = change.finding, change.asset
    counting = finding.movements[finding.begins :]
    if not finding.units:
        return "Nothing is held, so nothing is open."
    if finding.brought is not None:
        lot = finding.brought
        told = "as you said" if finding.status is Status.ASSUMED else "as the state records"
        cost = (
            f"at {text(lot.unit_cost)} {lot.currency}, {told}" if lot.currency else "cost unknown"
        )
        return f"Before the fills that count there were {text(lot.units)} {asset}: {cost}."
    if not counting:
        return "No fill of it was found."
    fill = counting[0].fill
    first = (
        f"{fill.side.value} {text(abs(counting[0].units))} {asset} at {text(fill.price)} "
        f"{fill.quote}, {format_instant(fill.time)}"
    )
    if finding.status is Status.UNEXPLAINED_OUTFLOW:
        return (
            "Counted back from the balance, the fills go below zero; the figures are those of the "
            f"fills since then. The first: {first}."
        )
    if finding.balance is None or finding.status is not Status.EXACT:
        return f"The first fill that counts: {first}."
    older = f" {finding.begins} older fill(s) were over by then." if finding.begins else ""
    return f"Counted back from the balance, the fills reach zero before this one: {first}.{older}"


def _table(trail: Sequence[Mapping[str, Any]], every: bool) -> Iterator[str]:
    """Two lines a fill: what happened, and what was held after it."""
    if not trail:
        yield "none"
        return
    yield _row("time", "bought or sold", "at", "fee")
    yield _row("then held", "cost", "entry price", "realised")
    yield "-" * (4 * _COLUMN + 3)
    left_out = 0 if every else max(0, len(trail) - 2 * _SHOWN)
    for number, record in enumerate(trail):
        if left_out and number == _SHOWN:
            yield f"... {left_out} fills left out; --all shows them ..."
        if left_out and _SHOWN <= number < len(trail) - _SHOWN:
            continue
        moved = record["units"].removeprefix("-")
        sign = "-" if record["units"].startswith("-") else "+"
        yield _row(
            record["time"][:_COLUMN].replace("T", " ").rstrip("Z"),
            f"{sign}{moved}",
            record["price"],
            record["commission"],
        )
        entry = "-" if record["running"] == "0" else record["entry_price"]
        yield _row(record["running"], record["cost"], entry, record["realised"])


def _row(*cells: str | None) -> str:
    return " ".join(f"{_cut('unknown' if cell is None else cell):>{_COLUMN}}" for cell in cells)


def _cut(cell: str) -> str:
    return cell if len(cell) <= _COLUMN else f"{cell[: _COLUMN - 1]}…"


def _recorded(change: Change) -> Iterator[str]:
    if change.before is None:
        yield "Nothing."
        return
    differences = _differences(change)
    if not differences:
        yield f"{change.key}: the same."
        return
    yield f"{change.key} is not what was found:"
    yield from _facts(
        *((name, f"{recorded} -> {found or 'unknown'}") for name, recorded, found in differences)
    )


def _differences(change: Change) -> list[tuple[str, str, str | None]]:
    """Field, recorded, found: where the state records something else. Not what it leaves out."""
    from statestore.repair.entries import QUANTITY_FIELDS

    before, finding = change.before or {}, change.finding
    position = finding.position
    found: dict[str, str | None] = {name: text(finding.units) for name in QUANTITY_FIELDS}
    found["entry_price"] = text(position.entry_price)
    if position.currency == "USD":
        found["entry_value_usd"] = text(position.cost)
    found["fees_paid"] = text(position.fee_value)
    if position.opened_at is not None:
        found["entry_time"] = format_instant(position.opened_at)
    recorded = {name: _plain(before[name]) for name in found if before.get(name) is not None}
    return [(name, value, found[name]) for name, value in recorded.items() if value != found[name]]


def _plain(value: object) -> str:
    """A recorded number or time as the found ones are written; anything else as it stands."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return text(Decimal(value)) or ""
    try:
        return format_instant(parse_instant(str(value)))
    except ValueError:
        return str(value)


def _would_settle(plan: Plan, change: Change) -> list[str]:
    """What would have to be known, and the option that says it."""
    if change.allowed:
        return []
    asset, finding, window = change.asset, change.finding, plan.window
    reserve = f"--reserve {asset}=UNITS if some of the wallet is not the bot's"
    quantity = "a rebuild with --accept-partial writes the quantity as it is"
    match finding.status.value:
        case "PARTIAL" if not finding.position.unknown_units:
            return [f"{quantity}, without an entry price: there is none in one currency"]
        case "PARTIAL":
            return [
                f"--assume-entry {asset}=PRICE if you know what "
                f"{text(finding.position.unknown_units)} {asset} had cost",
                reserve,
                f"a larger --max-hours if it was bought before {window.searched_hours:f} hours ago",
                f"{quantity}, without an entry price",
            ]
        case "UNEXPLAINED_OUTFLOW":
            return [
                "look for a withdrawal, a conversion or a transfer at the exchange: the fills "
                "never show one",
                f"if nothing left: a smaller --reserve, where {asset} is reserved",
                f"{quantity}, with the entry price of the fills",
            ]
        case "UNCOVERED":
            return [
                "--balances FILE beside --fills, or read from the exchange: a balance says what "
                "was held",
                "an earlier --since, if the file reaches further back",
            ]
        case "MOVING":
            return [
                "halt what trades it ('statestore kill-switch engage'), and run this again, "
                "without --until"
            ]
        case _:
            return [
                "correct the state where it is the cause ('statestore edit'): two keys for one "
                "asset, a recorded short",
                "drop --strict-state, if the record is known to be wrong",
                reserve,
                f"a larger --max-hours: fills from before {window.searched_hours:f} hours ago may "
                "tell the readings apart",
            ]


def _where_from(plan: Plan) -> str:
    window, evidence = plan.window, plan.evidence
    rejected = f", {len(evidence.rejected)} row(s) rejected" if evidence.rejected else ""
    return (
        f"From {evidence.source}: {evidence.fills} fill(s) of all assets since "
        f"{format_instant(window.searched_since)}, {evidence.pages} page(s) fetched{rejected}."
    )


def _sentence(warning: Warn) -> str:
    return f"{warning.message[:1].upper()}{warning.message[1:]}."


def _heading(title: str) -> Iterator[str]:
    yield title
    yield "=" * len(title)


def _facts(*facts: tuple[str, str]) -> Iterator[str]:
    wide = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        yield from _wrapped(value, bullet=f"{name:<{wide}}")


def _wrapped(sentence: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(
        sentence,
        _WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
    )
