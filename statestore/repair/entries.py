"""What the positions section of a state says: which asset an entry is about, and what it records.

Bots write entries in many ways; what is understood here is read with exact numbers, and what names
no spot asset is left alone. Nothing is judged (see `plan` for what gets written). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from statestore.amounts import exact, json_type, parse_amount
from statestore.fills.coverage import Recorded
from statestore.model import asset_of, quote_of, settled_in
from statestore.times import parse_instant

# The names a quantity goes by in state files; all of them are kept in step.
QUANTITY_FIELDS = ("quantity", "units", "base_qty", "total", "qty", "size")


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


def said(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return what an entry says under the first of the names that it has; None under none."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


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
