"""A plan as the one JSON document on stdout (schema ``statestore.rebuild/1``), with its parts.

Exact numbers are texts, instants RFC 3339, and what is not known is null; inside of ``before`` and
``after`` numbers are numbers, since those are entries of the state. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from statestore.amounts import text
from statestore.fills.told import rejected
from statestore.repair.plan import Action, Change, Plan, Warn
from statestore.times import format_instant

_MOST_PREVIEWED = 25


def document(
    plan: Plan, *, dry_run: bool, state: Mapping[str, Any], positions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the document.

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
            "rejected": rejected(evidence.rejected),
            "skipped": dict(evidence.skipped),
        },
        "changes": [_change(change) for change in plan.changes],
        "unmanaged": list(plan.unmanaged),
        "warnings": [warning_document(warning) for warning in plan.warnings],
        "state": dict(state),
    }
    if dry_run:
        result["state_preview"] = _preview(plan.positions_after(positions))
    return result


def _preview(positions: Mapping[str, Any]) -> dict[str, Any]:
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
