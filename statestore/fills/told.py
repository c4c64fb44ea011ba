"""What recorded fills alone say, as a document: the figures of each asset, and what proves them.

Exact numbers are numbers, and what is not known is null. Nothing is compared with a balance or a
state, so a status here is what a rebuild without both would say. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from statestore.amounts import written
from statestore.fills.archive import Archive
from statestore.fills.folding import Replayed
from statestore.model import Rejected, Status
from statestore.times import format_instant


def document(archive: Archive) -> dict[str, Any]:
    """Return an archive as JSON has it; exact numbers are numbers."""
    return {
        "fills_rejected": rejected(archive.rejected),
        "fills_skipped": dict(archive.skipped),
        "skipped_products": list(archive.skipped_products),
        "duplicates": archive.duplicates,
        "ambiguous": [
            name for name, one in archive.assets.items() if status_of(one) is Status.AMBIGUOUS
        ],
        "read_again": list(archive.read_again),
        "assets": {name: _asset(one) for name, one in archive.assets.items()},
    }


def rejected(rows: Iterable[Rejected]) -> list[dict[str, str]]:
    """Return rejected rows as every document has them."""
    return [{"entry_id": row.entry_id, "origin": row.origin, "reason": row.reason} for row in rows]


def _asset(one: Replayed) -> dict[str, Any]:
    position = one.position
    figures = {
        "units": position.units,
        "entry_price": position.entry_price,
        "cost": position.cost,
        "currency": position.currency,
        "break_even": position.break_even,
        "realised": position.realised,
        "realised_net": position.realised_net,
        "fees": dict(position.fees),
        "uncovered": position.uncovered,
    }
    return {
        "status": status_of(one).value,
        **{name: _plain(value) for name, value in figures.items()},
        "opened_at": None if position.opened_at is None else format_instant(position.opened_at),
        "fills": one.fills,
        "first_fill": format_instant(one.first),
        "last_fill": format_instant(one.last),
    }


def _plain(value: Decimal | str | dict[str, Decimal] | None) -> Any:
    if isinstance(value, dict):
        return {name: written(amount) for name, amount in value.items()}
    return value if value is None or isinstance(value, str) else written(value)


def status_of(one: Replayed) -> Status:
    """As a rebuild without balances and without a state would say."""
    if one.adjusted:
        return Status.AMBIGUOUS
    if one.position.uncovered:
        return Status.UNCOVERED
    return Status.AMBIGUOUS if one.position.ambiguous else Status.EXACT
