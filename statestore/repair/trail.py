"""The audit trail: each fill of a plan, what was held after it, what that cost, what was gained.

The same replay as the plan's, told step by step: the last line of an asset has its quantity and,
where the fills tell them, its cost, entry price and realised profit. What a line cannot know is
null: cost and entry before the lifecycle that is open now where units of unknown cost were held,
and the figures between fills of one instant that nobody can put in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from statestore.amounts import exact, text
from statestore.fills.book import Position, unknown_lot
from statestore.fills.coverage import Finding
from statestore.fills.movements import Movement
from statestore.fills.replay import replay_each
from statestore.model import Method, Status
from statestore.repair.plan import Change, Plan
from statestore.times import format_instant


@dataclass(frozen=True, slots=True)
class Step:
    """One fill, and what the asset was after it.

    Attributes:
        units: held, by the balance where there is one; below zero where units left without a fill.
        cost: of the open units whose cost is known, before fees, in ``currency``; None when it is
            known of none, or when currencies mix.
        entry_price: cost per unit; None when unknown.
        realised: profit since the first fill that counts, before fees; None when unknown.
        counts: belongs to what is open now; False for what was over before.
    """

    movement: Movement
    units: Decimal
    cost: Decimal | None
    currency: str | None
    entry_price: Decimal | None
    realised: Decimal | None
    counts: bool


@exact
def steps_of(finding: Finding, method: Method) -> list[Step]:
    """Return the fills that a finding rests on, oldest first, one step each."""
    movements, begins = finding.movements, finding.begins
    increment = finding.increment
    before = unknown_lot(finding.opening) if finding.opening > increment else None
    totals = [finding.opening, *finding.running()]
    quoted = sum(movement.fill.quoted for movement in movements)
    # Units left without a fill before what is open now: of that time, only the quantity is known.
    below = min(totals[: begins + 1]) < -increment * max(1, quoted)
    # Offline the whole window is replayed with the tolerance; a lifecycle that a balance explains
    # is replayed without.
    alone = increment if finding.balance is None else Decimal(0)
    now = replay_each(movements[begins:], method, opening=finding.brought, increment=alone)
    whole = now
    if begins:
        whole = replay_each(movements, method, opening=before, increment=increment)
    known = finding.position.realised is not None
    across = finding.status in (Status.EXACT, Status.DUST)
    steps = []
    for index, (movement, all_of_it) in enumerate(
        zip(movements, [*whole[:begins], *now], strict=True)
    ):
        held = totals[index + 1]
        counts = index >= begins
        position = _told(finding, all_of_it, held) if counts or not below else None
        source = whole[index] if begins and across else position
        steps.append(
            Step(
                movement,
                held,
                None if position is None else position.cost,
                None if position is None else position.currency,
                None if position is None else position.entry_price,
                source.realised if source is not None and known and (counts or across) else None,
                counts,
            )
        )
    return steps


def _told(finding: Finding, position: Position | None, running: Decimal) -> Position | None:
    """What of a replayed position is told: no cost where nothing of it is known.

    One whose units left without a fill has the part of the cost that is still held.
    """
    if position is not None and position.unknown_units and position.unknown_units == position.units:
        return replace(position, cost=None)
    if finding.status is not Status.UNEXPLAINED_OUTFLOW or position is None:
        return position
    if running <= 0 or not position.units or position.cost is None:
        return replace(position, cost=None)
    return replace(position, cost=position.cost * running / position.units)


def fill_trail(plan: Plan) -> Iterator[dict[str, Any]]:
    """Return one record per fill and asset of the plan: what it moved, and what that led to.

    The running quantity starts at what was held before the first fill; without a balance, at zero.
    """
    for change in plan.changes:
        yield from records_of(change, plan.method)


def records_of(change: Change, method: Method) -> Iterator[dict[str, Any]]:
    """Return the trail of one asset; exact numbers are texts."""
    for step in steps_of(change.finding, method):
        movement, fill = step.movement, step.movement.fill
        yield {
            "asset": change.asset,
            "time": format_instant(fill.time),
            "product_id": fill.product_id,
            "side": fill.side.value,
            "trade_type": fill.kind.value,
            "price": text(fill.price),
            "units": text(movement.units),
            "running": text(step.units),
            "cost": text(step.cost),
            "cost_currency": step.currency,
            "entry_price": text(step.entry_price),
            "realised": text(step.realised),
            "counts": step.counts,
            "commission": text(fill.commission),
            "commission_currency": fill.commission_currency,
            "entry_id": fill.entry_id,
            "trade_id": fill.trade_id,
            "order_id": fill.order_id,
        }
