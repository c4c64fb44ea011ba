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
from itertools import accumulate
from typing import Any

from statestore.amounts import ZERO, exact, json_type, parse_amount, text, written
from statestore.fills.coverage import Finding, Recorded
from statestore.model import (
    Fill,
    Method,
    Product,
    Rejected,
    Status,
    asset_of,
    quote_of,
    settled_in,
)
from statestore.repair.marks import dust_of, increment_of, mark_in_usd
from statestore.repair.reading import Window
from statestore.times import format_instant, parse_instant

PROVEN = frozenset({Status.EXACT, Status.CARRIED, Status.ASSUMED})
_CERTAIN_QUANTITY = frozenset({Status.PARTIAL, Status.UNEXPLAINED_OUTFLOW})

# The names a quantity goes by in state files; all of them are kept in step.
QUANTITY_FIELDS = ("quantity", "units", "base_qty", "total", "qty", "size")

_MOST_PREVIEWED = 25


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
class Entries:
    """The positions of a state, found by asset.

    Attributes:
        by_key: the positions section as it is.
        keys: asset -> the keys it is recorded under (one, if all is well).
        foreign: keys that name no spot asset; left alone.
    """

    by_key: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, tuple[str, ...]]
    foreign: tuple[str, ...]


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


# What is no spot product although it has two parts.


def read_entries(positions: object) -> Entries:
    """Find out which asset each key of the positions section is about.

    ``ETH``, ``ETH-USD``, ``eth/usd`` and ``ETH_USD`` are ETH. What is neither an asset nor a
    pair of base and quote is foreign: left alone.

    Raises:
        ValueError: the section or an entry is not an object; the message begins with its path.
    """
    if not isinstance(positions, Mapping):
        raise ValueError(
            f"positions is {json_type(positions)}, expected an object of entries by product"
        )
    keys: dict[str, list[str]] = {}
    foreign = []
    for key, entry in positions.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"positions.{key} is {json_type(entry)}, expected an object")
        asset = asset_of(key)
        if asset is None:
            foreign.append(key)
        else:
            keys.setdefault(asset, []).append(key)
    return Entries(
        positions, {asset: tuple(found) for asset, found in keys.items()}, tuple(foreign)
    )


@exact
def recorded_of(entry: Mapping[str, Any], key: str, saved_at: int | None) -> Recorded | None:
    """Return what an entry says of its asset; None when it names no quantity.

    Args:
        entry: with exact numbers.
        key: its key; the second part, if there is one, names the currency of the cost.
        saved_at: when the state was saved; None when it does not say.

    Raises:
        ValueError: a number or a time in the entry is not one.
    """
    units = next((n for f in QUANTITY_FIELDS if (n := _number(entry, key, f)) is not None), None)
    if units is None:
        return None
    side = str(entry.get("side", "BUY")).upper()
    if side in ("SELL", "SHORT"):
        units = -abs(units)
    times = [_moment(entry, name) for name in ("last_updated", "last_fill_time")]
    stated = [moment for moment in times if moment is not None]
    known = [*stated, *([] if saved_at is None else [saved_at])]
    return Recorded(
        units=units,
        cost=_recorded_cost(entry, key, units),
        currency=settled_in(str(entry.get("cost_currency") or quote_of(key) or "USD")),
        entry_price=_number(entry, key, "entry_price"),
        fee_value=_number(entry, key, "fees_paid"),
        opened_at=_moment(entry, "entry_time"),
        as_of=max(known, default=None),
        stated_at=stated[0] if stated else saved_at,
    )


def _recorded_cost(entry: Mapping[str, Any], key: str, units: Decimal) -> Decimal | None:
    price = _number(entry, key, "entry_price")
    if price is None or price <= 0:
        return None
    cost = abs(units) * price
    value = _number(entry, key, "entry_value_usd")
    # The value is what was really paid, the quantity the balance: off by the increments of sizes
    # given in quote. A value that does not fit at all is of something else.
    return value if value is not None and abs(value - cost) <= cost.scaleb(-6) else cost


def _number(entry: Mapping[str, Any], key: str, name: str) -> Decimal | None:
    value = entry.get(name)
    if value is None:
        return None
    try:
        return parse_amount(value)
    except ValueError as error:
        raise ValueError(f"positions.{key}.{name}: {error}") from error


def _moment(entry: Mapping[str, Any], name: str) -> int | None:
    value = entry.get(name)
    if not isinstance(value, str):
        return None
    try:
        return parse_instant(value)
    except ValueError:
        return None  # a bot's own format: no date is known, which is safe


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


@exact
def running(finding: Finding) -> list[Decimal]:
    """Return the units held after each movement.

    They start at what was held before the first one; without a balance, at zero.
    """
    totals = accumulate((move.units for move in finding.movements), initial=finding.opening)
    return list(totals)[1:]


def document(
    plan: Plan, *, dry_run: bool, state: Mapping[str, Any], positions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the plan as the one JSON document on stdout (schema ``statestore.rebuild/1``).

    Exact numbers are texts; inside of ``before`` and ``after`` they are numbers, since those are
    entries of the state.

    Args:
        plan: what to show.
        dry_run: whether nothing is going to be written.
        state: path, revision, sha256 and backup of the state.
        positions: the positions section before the change, for the preview.
    """
    evidence, window = plan.evidence, plan.window
    result: dict[str, Any] = {
        "schema": "statestore.rebuild/1",
        "dry_run": dry_run,
        "symbols_seen": evidence.products_seen,
        "positions_updated": plan.count(Action.ADD, Action.UPDATE),
        "positions_removed": plan.count(Action.REMOVE),
        "positions_kept": plan.count(Action.KEEP),
        "positions_unproven": len(plan.unproven),
        "method": plan.method.value,
        "source": evidence.source,
        "portfolio": evidence.portfolio,
        "window": {
            "since": format_instant(window.since),
            "until": format_instant(window.end),
            "hours": _plain(window.hours),
            "searched_hours": _plain(window.searched_hours),
        },
        "fills": {
            "count": evidence.fills,
            "pages": evidence.pages,
            "complete": True,
            "duplicates": evidence.duplicates,
            "rejected": [
                {"entry_id": row.entry_id, "origin": row.origin, "reason": row.reason}
                for row in evidence.rejected
            ],
            "skipped": dict(evidence.skipped),
        },
        "changes": [_change(change) for change in plan.changes],
        "unmanaged": list(plan.unmanaged),
        "warnings": [warning_document(warning) for warning in plan.warnings],
        "state": dict(state),
    }
    if dry_run:
        result["state_preview"] = preview(plan.positions_after(positions))
    return result


def preview(positions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the positions section cut to whole positions, and how many were left out."""
    shown = dict(list(positions.items())[:_MOST_PREVIEWED])
    return {"positions": shown, "truncated": len(positions) - len(shown)}


def _change(change: Change) -> dict[str, Any]:
    finding, position, last = change.finding, change.finding.position, change.last_fill
    return {
        "asset": change.asset,
        "key": change.key,
        "action": change.action.value,
        "status": finding.status.value,
        "reason": finding.reason,
        "quantity": text(finding.units),
        "entry_price": text(position.entry_price),
        "cost": text(position.cost),
        "cost_currency": position.currency,
        "break_even": text(position.break_even),
        "realised": text(position.realised),
        "realised_net": text(position.realised_net),
        "fees": {currency: text(amount) for currency, amount in position.fees.items()},
        "opened_at": None if position.opened_at is None else format_instant(position.opened_at),
        "last_fill_price": None if last is None else text(last.price),
        "last_fill_time": None if last is None else format_instant(last.time),
        "usd": text(change.usd),
        "mark_source": change.mark_source,
        "unknown_units": text(position.unknown_units),
        "fills": len(finding.movements),
        "before": change.before,
        "after": change.after,
    }


def warning_document(warning: Warn) -> dict[str, Any]:
    """Return a warning as the documents on stdout have it."""
    asset = {} if warning.asset is None else {"asset": warning.asset}
    return {"code": warning.code, **asset, "message": warning.message, **warning.facts}


def _plain(hours: Decimal) -> int | Decimal:
    return int(hours) if hours == hours.to_integral_value() else round(hours, 6)
