"""What a rebuild would write: per asset the action, before and after, and the reason.

The one home of the rule what gets written. A position that is not proven is never changed, a held
position is never removed, and fields of a position that are not about quantity, cost or exposure
(a stop loss, a strategy's notes) come out as they went in. Pure functions of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from statestore.amounts import ZERO, exact, written
from statestore.fills.coverage import Finding
from statestore.model import (
    Fill,
    Method,
    Product,
    Rejected,
    Status,
    settled_in,
)
from statestore.repair.entries import QUANTITY_FIELDS, Entries, recorded_of
from statestore.repair.marks import dust_of, increment_of, mark_in_usd
from statestore.repair.reading import Window
from statestore.times import format_instant, parse_instant

PROVEN = frozenset({Status.EXACT, Status.CARRIED, Status.ASSUMED})
_CERTAIN_QUANTITY = frozenset({Status.PARTIAL, Status.UNEXPLAINED_OUTFLOW})


class Action(StrEnum):
    ADD = "add"
    UPDATE = "update"
    REMOVE = "remove"
    KEEP = "keep"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Warn:
    """Something the operator should know; ``facts`` are texts or numbers as texts."""

    code: str
    message: str
    asset: str | None = None
    facts: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """How the operator wants it written."""

    accept_partial: bool = False
    key_style: str = "product"


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one asset, and why.

    Attributes:
        last_fill: the newest fill of the asset in the window, None without one.
        usd: exposure: units x mark when a mark was fetched, else the cost in USD, else None.
        mark_source: ``product`` (a fetched price), ``last_fill`` (cost unknown, so the price of
            the last fill stands in), ``none`` (exposure is the cost, or unknown).
        allowed: proven, or accepted by the operator; what is not is never written.
        before, after: entries of the state, None when there is none.
    """

    asset: str
    key: str
    action: Action
    finding: Finding
    last_fill: Fill | None
    usd: Decimal | None
    mark_source: str
    allowed: bool
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @property
    def writes(self) -> bool:
        return self.action in (Action.ADD, Action.UPDATE, Action.REMOVE)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the sources gave, whole."""

    source: str
    fills: int
    products_seen: int
    pages: int
    duplicates: int
    rejected: tuple[Rejected, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    portfolio: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A proposal for the positions section of one revision of one state."""

    changes: tuple[Change, ...]
    window: Window
    evidence: Evidence
    method: Method
    warnings: tuple[Warn, ...] = ()
    unmanaged: tuple[str, ...] = ()

    def count(self, *actions: Action) -> int:
        return sum(change.action in actions for change in self.changes)

    @property
    def unproven(self) -> tuple[Change, ...]:
        """Assets whose entry may not be written: one of these refuses the whole plan."""
        return tuple(change for change in self.changes if not change.allowed)

    @property
    def writes(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.writes)

    def positions_after(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the positions section with the changes made, in its order, new keys at the end."""
        after = dict(before)
        for change in self.writes:
            if change.action is Action.REMOVE:
                del after[change.key]
            else:
                after[change.key] = change.after
        return after


@exact
def plan_change(
    asset: str,
    finding: Finding,
    entries: Entries,
    fills: Sequence[Fill],
    products: Mapping[str, Product],
    rules: Rules,
    at: int,
) -> Change:
    """Return what happens to one asset.

    Args:
        asset: the base asset.
        finding: what the fills prove about it.
        entries: the recorded positions.
        fills: of the window, oldest first.
        products: for the mark.
        rules: what the operator allowed.
        at: the instant written as ``last_updated``.
    """
    keys = entries.keys.get(asset, ())
    before = entries.by_key[keys[0]] if keys else None
    last_fill = next((fill for fill in reversed(fills) if fill.base == asset), None)
    usd, mark_source = _exposure(asset, finding, last_fill, products)
    key = keys[0] if keys else _new_key(asset, finding, fills, rules)
    proposed = _entry(before, finding, last_fill, usd, mark_source, at)
    accepted = rules.accept_partial and finding.status in _CERTAIN_QUANTITY
    allowed = accepted or finding.status in PROVEN or finding.status is Status.DUST
    stale = finding.units < dust_of(asset, products, None) and _stale_dust(
        before, key, finding, increment_of(asset, products)
    )
    action = _action(finding, before, proposed, allowed, stale)
    after = {Action.ADD: proposed, Action.UPDATE: proposed, Action.KEEP: before}.get(action)
    return Change(asset, key, action, finding, last_fill, usd, mark_source, allowed, before, after)


def _action(
    finding: Finding,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    allowed: bool,
    stale_dust: bool,
) -> Action:
    untouched = Action.NONE if before is None else Action.KEEP
    if finding.status is Status.DUST:
        return Action.REMOVE if stale_dust else untouched
    if not allowed:
        return untouched
    if not finding.position.units:
        return Action.NONE if before is None else Action.REMOVE
    if before is None:
        return Action.ADD
    return Action.KEEP if _same_facts(before, after) else Action.UPDATE


def _stale_dust(
    before: Mapping[str, Any] | None, key: str, finding: Finding, increment: Decimal
) -> bool:
    """What is left is no position: a record of just that may stay, a record of more is wrong."""
    recorded = None if before is None else recorded_of(before, key, None)
    return recorded is not None and abs(recorded.units - finding.units) > increment


# What makes an entry different: marks move all the time, and are no reason to write.
_FACTS = (
    "side",
    "quantity",
    "units",
    "base_qty",
    "entry_price",
    "entry_value_usd",
    "fees_paid",
    "cost_currency",
    "unknown_units",
)
_FACT_TIMES = ("entry_time", "last_fill_time")


def _same_facts(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if any(before.get(name) != after.get(name) for name in _FACTS if name in {*before, *after}):
        return False
    times = [(before.get(name), after.get(name)) for name in _FACT_TIMES]
    return all(a == b or (a and b and _same_time(str(a), str(b))) for a, b in times)


def _same_time(one: str, other: str) -> bool:
    try:
        return parse_instant(one) == parse_instant(other)
    except ValueError:
        return False


def _entry(
    before: Mapping[str, Any] | None,
    finding: Finding,
    last_fill: Fill | None,
    usd: Decimal | None,
    mark_source: str,
    at: int,
) -> dict[str, Any]:
    """The entry as it would be written: our fields over whatever else was there."""
    position = finding.position
    in_dollars = position.currency in (None, "USD")
    units = written(finding.units)
    entry = dict(before or {})
    entry.update(
        side=_side_word(entry),
        quantity=units,
        units=units,
        base_qty=units,
        entry_price=_or_none(position.entry_price),
        entry_value_usd=_or_none(_cost_in_usd(finding)),
        usd_value=_or_none(usd),
        usd=_or_none(usd),
        fees_paid=_or_none(position.fee_value),
        entry_time=_entry_time(entry, finding),
        last_updated=format_instant(at),
        rebuild_source="fills",
        coverage=finding.status.value.lower(),
        mark_source=mark_source,
    )
    if last_fill is not None:
        entry.update(
            last_fill_time=format_instant(last_fill.time),
            last_fill_price=written(last_fill.price),
        )
    entry.update(dict.fromkeys((name for name in QUANTITY_FIELDS if name in entry), units))
    if "available" in entry and "hold" in entry:
        # What of it is held changes with every order; together they have to be what is owned.
        held = entry["hold"] if _is_amount(entry["hold"]) and 0 <= entry["hold"] <= units else ZERO
        entry.update(available=units - held, hold=held)
    _set_or_drop(entry, "cost_currency", None if in_dollars else position.currency)
    _set_or_drop(entry, "unknown_units", _or_none(position.unknown_units or None))
    return entry


def _side_word(entry: Mapping[str, Any]) -> str:
    """The bot's own word for a long position, or ours."""
    word = entry.get("side")
    return word if isinstance(word, str) and word.upper() in ("BUY", "LONG") else "BUY"


def _entry_time(entry: Mapping[str, Any], finding: Finding) -> Any:
    opened_at = finding.position.opened_at
    if opened_at is not None:
        return format_instant(opened_at)
    # Carried on as it stands, in whatever format the bot writes times.
    return entry.get("entry_time") if finding.status is Status.CARRIED else None


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _set_or_drop(entry: dict[str, Any], name: str, value: object) -> None:
    if value is None:
        entry.pop(name, None)
    else:
        entry[name] = value


def _or_none(value: Decimal | None) -> Decimal | None:
    return None if value is None else written(value)


def _cost_in_usd(finding: Finding) -> Decimal | None:
    """Cost of all open units in USD, None when any of it is unknown or paid in something else."""
    position = finding.position
    known = position.entry_price is not None and position.currency == "USD"
    return position.cost if known else None


def _exposure(
    asset: str, finding: Finding, last_fill: Fill | None, products: Mapping[str, Product]
) -> tuple[Decimal | None, str]:
    mark = mark_in_usd(asset, products)
    if mark is not None:
        return finding.units * mark, "product"
    cost = _cost_in_usd(finding)
    if cost is not None or not finding.units:
        return (ZERO if not finding.units else cost), "none"
    if finding.position.unknown_units and last_fill and settled_in(last_fill.quote) == "USD":
        return finding.units * last_fill.price, "last_fill"
    return None, "none"


def _new_key(asset: str, finding: Finding, fills: Sequence[Fill], rules: Rules) -> str:
    if rules.key_style == "base":
        return asset
    quotes = {settled_in(fill.quote) for fill in fills if fill.base == asset}
    currency = finding.position.currency
    return f"{asset}-{currency if currency in quotes else 'USD'}"
