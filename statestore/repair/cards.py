"""One position as a report shows it: figures before and after, fields, fills, and its chart.

Every figure is the exact text of the plan, or of the state as it stands there; only what is too
long to be read is cut, and says so. What is not known is None, never zero. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from statestore.amounts import text
from statestore.model import STATUS_MEANINGS, Status
from statestore.repair.chart import Chart, draw
from statestore.repair.entries import QUANTITY_FIELDS, said
from statestore.repair.plan import PROVEN, Action, Change, Plan
from statestore.times import format_instant

_MARKS = {
    "product": "at the price the exchange gave",
    "last_fill": "at the price of the last fill",
    "none": "at cost",
}

_MOST_ROWS = 50
_LONGEST_VALUE = 400


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of before and after; None is unknown (after) or not recorded (before)."""

    name: str
    before: str | None
    after: str | None
    unit: str = ""
    remark: str = ""

    @property
    def changed(self) -> bool:
        return not same_number(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an entry of the state; None where there is none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A position as it is shown.

    Attributes:
        anchor: its name in the page, made by us.
        doubt: units no fill explains, in words; empty if there are none.
        rows: of fills, oldest first; ``skipped`` of them are left out after the first half.
    """

    change: Change
    anchor: str
    meaning: str
    accepted: bool
    figures: tuple[Figure, ...]
    more: tuple[tuple[str, str], ...]
    doubt: str
    fields: tuple[Field, ...]
    chart: Chart | None
    recorded: str | None
    rows: tuple[tuple[str, ...], ...]
    fills: int
    skipped: int


def accepted(change: Change) -> bool:
    """Return whether it is written because the operator said so."""
    return change.allowed and change.finding.status not in {*PROVEN, Status.DUST}


def card_of(change: Change, plan: Plan, number: int) -> Card:
    """Return the position of a change; ``number`` makes its name in the page."""
    finding = change.finding
    shown = change.writes or not change.allowed
    rows, skipped = _rows(change) if shown else ((), 0)
    quantity = recorded_text(change.before, QUANTITY_FIELDS)
    return Card(
        change=change,
        anchor=f"p{number}",
        meaning=STATUS_MEANINGS[finding.status],
        accepted=accepted(change),
        figures=tuple(_figures(change)),
        more=tuple(_more(change)),
        doubt=_doubt(change),
        fields=tuple(_fields(change)) if change.writes else (),
        chart=draw(finding, plan.method, _decimal(quantity)) if shown else None,
        recorded=quantity,
        rows=rows,
        fills=len(finding.movements),
        skipped=skipped,
    )


def _figures(change: Change) -> Iterator[Figure]:
    position, currency = change.finding.position, change.finding.position.currency or ""
    keeps = change.allowed and change.action is Action.KEEP
    names = (
        ("Quantity", QUANTITY_FIELDS, text(change.finding.units), change.asset, ""),
        ("Entry price", ("entry_price",), text(position.entry_price), currency, ""),
        (
            "Cost",
            ("entry_value_usd",),
            text(position.cost) if currency or not change.finding.units else None,
            currency,
            "of the units whose cost is known" if position.unknown_units else "",
        ),
        (
            "Exposure",
            ("usd_value", "usd"),
            text(change.usd),
            "USD",
            _MARKS[change.mark_source] if change.usd else "",
        ),
    )
    gone = change.action is Action.REMOVE
    for name, fields, found, unit, remark in names:
        before = recorded_text(change.before, fields)
        if gone or (found is None and not change.finding.units):
            yield Figure(name, before, found if name == "Quantity" else "", unit)
        elif keeps:
            yield Figure(name, before, before, unit)
        elif found is None:
            yield Figure(name, before, None)
        else:
            yield Figure(name, before, found, unit, remark)


def _more(change: Change) -> Iterator[tuple[str, str]]:
    """Further figures of what is held, those that are known."""
    position = change.finding.position
    currency = position.currency or ""
    paid = {movement.currency for movement in change.finding.movements}
    realised_in = paid.pop() if len(paid) == 1 else ""
    fees = ", ".join(f"{text(amount)} {name}" for name, amount in position.fees.items())
    figures = (
        ("Break even, fees included", text(position.break_even), currency),
        ("Fees of what is held", fees or None, ""),
        ("Realised, before fees", text(position.realised or None), realised_in),
        ("Realised, after fees", text(position.realised_net or None), realised_in),
        (
            "Held since",
            None if position.opened_at is None else format_instant(position.opened_at),
            "",
        ),
    )
    for name, value, unit in figures:
        if value is not None and (change.writes or not change.allowed):
            yield name, f"{value} {unit}".strip()


def _doubt(change: Change) -> str:
    position = change.finding.position
    if position.unknown_units:
        return f"{text(position.unknown_units)} {change.asset} at unknown cost"
    return ""


def _fields(change: Change) -> Iterator[Field]:
    before, after = change.before or {}, change.after or {}
    for name in dict.fromkeys([*before, *after]):
        yield Field(
            str(name),
            _value(before[name]) if name in before else None,
            _value(after[name]) if name in after else None,
        )


def _rows(change: Change) -> tuple[tuple[tuple[str, ...], ...], int]:
    """The fills: the first and the last of them, and how many lie between."""
    finding = change.finding
    all_of_them = list(zip(finding.movements, finding.running(), strict=True))
    skipped = max(0, len(all_of_them) - 2 * _MOST_ROWS)
    chosen = all_of_them[:_MOST_ROWS] + all_of_them[_MOST_ROWS + skipped :]
    rows = tuple(
        (
            format_instant(movement.fill.time),
            "▲" if movement.units > 0 else "▼",
            movement.fill.side.value,
            movement.fill.product_id,
            text(movement.fill.price) or "",
            text(movement.units) or "",
            text(units) or "",
            f"{text(movement.fill.commission)} {movement.fill.commission_currency}",
            movement.fill.entry_id,
        )
        for movement, units in chosen
    )
    return rows, skipped


def recorded_text(entry: Mapping[str, Any] | None, names: Sequence[str]) -> str | None:
    """Return what an entry says under the first of the names that it has, as it is shown."""
    value = None if entry is None else said(entry, names)
    return None if value is None else _value(value)


def _value(value: object) -> str:
    """A value of the state as it stands there, if it is not too long."""
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        plain = isinstance(exponent, int) and -60 <= exponent <= 60
        shown = format(value, "f") if plain else str(value)
    elif isinstance(value, str):
        shown = value
    else:
        shown = json.dumps(value, default=str, ensure_ascii=False)
    if len(shown) <= _LONGEST_VALUE:
        return shown
    return f"{shown[:_LONGEST_VALUE]}… ({len(shown)} characters)"


def _decimal(shown: str | None) -> Decimal | None:
    try:
        return None if shown is None else Decimal(shown)
    except ArithmeticError:
        return None


def same_number(one: str | None, other: str | None) -> bool:
    """Return whether two figures are the same number, in whatever notation."""
    return one == other or (_decimal(one) is not None and _decimal(one) == _decimal(other))
