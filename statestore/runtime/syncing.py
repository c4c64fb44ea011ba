"""Orders here and orders at the exchange: take over what became of them, or compare.

The exchange is only read. An order of ours is the exchange's by the id the exchange gave it, or by
the client's id it was sent with, which is our ``order_id``: so one that was sent by a process that
died before it could record that is found all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from statestore import times
from statestore.errors import BackendError, BackendUnavailable, IllegalMove
from statestore.model import ExchangeOrder, Order, OrderStatus
from statestore.times import NANOSECONDS

if TYPE_CHECKING:
    from statestore.fills.sources import OrderSource
    from statestore.runtime.lifecycle import Booked
    from statestore.runtime.orders import PositionManager

# So many are asked for one by one; beyond, a list of all since the oldest is shorter.
_ONE_BY_ONE = 20
_CLOCKS_DIFFER = 3600 * NANOSECONDS
_DAY = 24 * 3600 * NANOSECONDS
_WEEK = 7 * _DAY


@dataclass(slots=True)
class Synced:
    """What a sync found.

    Attributes:
        asked: orders that were compared.
        booked: what changed, one for each order that did.
        missing: ours that the exchange does not know; they stay what they are.
        unknown: statuses of the exchange that are none we know, by our order id.
        refused: reports that cannot be, by our order id: what is wrong with them.
    """

    asked: int = 0
    booked: list[Booked] = field(default_factory=list)
    missing: list[Order] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def to_cancel(self) -> list[Order]:
        """Orders the caller has to cancel at the exchange."""
        return [order for booked in self.booked for order in booked.to_cancel]

    @property
    def problem(self) -> str:
        """What of it somebody has to look at, in one line; nothing where all is well."""
        found = [f"the exchange does not know order {order.order_id}" for order in self.missing]
        found += [f"order {name} is {said!r} there" for name, said in self.unknown.items()]
        return "; ".join([*found, *self.refused.values()])


@dataclass(slots=True)
class Reconciliation:
    """Where orders here and at the exchange differ; plain values, for a report.

    Attributes:
        missing: live here and sent, or to be sent, and the exchange does not know them.
        unknown: live or filled at the exchange, and not recorded here.
        mismatch: recorded otherwise than the exchange says, field by field.
    """

    compared: int = 0
    missing: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[dict[str, Any]] = field(default_factory=list)
    mismatch: list[dict[str, Any]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.unknown or self.mismatch)


def sync(manager: PositionManager, source: OrderSource) -> Synced:
    """See `PositionManager.sync_orders`; of the orders that memory has as live."""
    live = [order for order in manager.orders.values() if order.status.live]
    # Once after a load every order that is known here only is looked for: the process before this
    # one may have died between sending it and writing that down.
    reports, missing = _reports(live, source, thorough=not manager.synced)
    found = Synced(asked=len(reports) + len(missing), missing=missing)
    # What is open there first: a sibling that is not known to be there yet would be taken for ours
    # alone, and called cancelled, by a fill that is booked before.
    by_finality = sorted(reports.items(), key=lambda told: not _lives(told[1]))
    for order_id, report in by_finality:
        if report.status is None:
            found.unknown[order_id] = report.said
            continue
        try:
            booked = manager.apply_report(order_id, report)
        except BackendUnavailable:
            raise
        except (IllegalMove, BackendError) as error:
            found.refused[order_id] = str(error)
            continue
        if booked.orders:
            found.booked.append(booked)
    manager.synced = True
    return found


def _reports(
    live: Iterable[Order], source: OrderSource, *, thorough: bool
) -> tuple[dict[str, ExchangeOrder], list[Order]]:
    """Return what the exchange says of orders, by our id, and those it should know and does not."""
    named = {order.exchange_order_id: order for order in live if order.exchange_order_id}
    unsure = {
        order.order_id: order
        for order in live
        if order.exchange_order_id is None
        and (thorough or (_perhaps_sent(order) and _made(order) > times.now() - _DAY))
    }
    reports: dict[str, ExchangeOrder] = {}
    listed: Mapping[str, ExchangeOrder] = {}
    oldest = [_instant(order.created_at) for order in named.values()]
    # A stop-loss that was handed out may have been sent long before that, to rest there.
    since = [_instant(o.created_at) if thorough else _made(o) for o in unsure.values()]
    if len(named) > _ONE_BY_ONE:
        since += oldest
    if since:
        earlier = _DAY if thorough else _CLOCKS_DIFFER
        listed = {row.exchange_order_id: row for row in source.orders(min(since) - earlier)}
        for row in listed.values():
            name = row.client_order_id
            # Sent again under the same id after a refusal: the one that counts is not the refusal.
            if name in unsure and (name not in reports or _refused(reports[name])):
                reports[name] = row
    missing = []
    for exchange_id, order in named.items():
        report = listed.get(exchange_id) or source.order(exchange_id)
        if report is None:
            missing.append(order)
        else:
            reports[order.order_id] = report
    return reports, missing


def _lives(report: ExchangeOrder) -> bool:
    return report.status is not None and report.status.live


def _refused(report: ExchangeOrder) -> bool:
    return report.status is OrderStatus.REJECTED and not report.filled_quantity


def _perhaps_sent(order: Order) -> bool:
    """Whether it was handed out, or recorded to be sent; a stop-loss may just wait here."""
    return order.triggered_at is not None or not order.order_type.protects


def reconcile(manager: PositionManager, source: OrderSource, since: int | None) -> Reconciliation:
    """See `PositionManager.reconcile_orders`."""
    manager.refresh()
    live = [order for order in manager.orders.values() if order.status.live]
    if since is None:
        created = [_instant(order.created_at) for order in live]
        since = min([times.now() - _WEEK, *created]) - _CLOCKS_DIFFER
    theirs = {row.exchange_order_id: row for row in source.orders(since)}
    with manager.tables.transaction(snapshot=True) as connection:
        known = manager.tables.orders_named(
            connection,
            exchange=manager.exchange,
            exchange_ids=list(theirs),
            order_ids=[row.client_order_id for row in theirs.values() if row.client_order_id],
        )
    ours = {order.order_id: order for order in [*known, *live]}
    by_exchange_id = {o.exchange_order_id: o for o in ours.values() if o.exchange_order_id}
    found = Reconciliation()
    seen = set()
    for exchange_id, report in theirs.items():
        order = by_exchange_id.get(exchange_id) or ours.get(report.client_order_id or "")
        if order is None:
            if report.status is None or report.status.live or report.filled_quantity:
                found.unknown.append(_told(report))
            continue
        seen.add(order.order_id)
        _compare(found, order, report)
    for order in live:
        if order.order_id in seen or not (order.exchange_order_id or _perhaps_sent(order)):
            continue
        alone = source.order(order.exchange_order_id) if order.exchange_order_id else None
        if alone is None:
            found.missing.append(_named(order))
        else:
            _compare(found, order, alone)
    return found


def _compare(found: Reconciliation, order: Order, report: ExchangeOrder) -> None:
    found.compared += 1
    pairs: dict[str, tuple[object, object]] = {
        "status": (order.status.value, report.status.value if report.status else report.said),
        "filled_quantity": (order.filled_quantity, report.filled_quantity),
        "filled_value": (order.filled_value, report.filled_value),
        "exchange_order_id": (order.exchange_order_id, report.exchange_order_id),
        "side": (order.side.value, report.side.value),
        "quantity": (order.quantity, report.quantity),
        "price": (order.price, report.price),
    }
    unknown = {name for name in ("quantity", "price") if pairs[name][1] is None}
    differ = {
        name: {"here": here, "exchange": there}
        for name, (here, there) in pairs.items()
        if here != there and name not in unknown
    }
    if differ:
        found.mismatch.append(_named(order) | {"differ": differ})


def _named(order: Order) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "exchange_order_id": order.exchange_order_id,
        "position_id": order.position_id,
        "symbol": order.symbol,
        "type": order.order_type.value,
        "status": order.status.value,
    }


def _told(report: ExchangeOrder) -> dict[str, Any]:
    return {
        "exchange_order_id": report.exchange_order_id,
        "client_order_id": report.client_order_id,
        "symbol": report.symbol,
        "side": report.side.value,
        "status": report.said,
        "quantity": report.quantity,
        "filled_quantity": report.filled_quantity,
    }


def _made(order: Order) -> int:
    """When it may have been sent at the earliest."""
    return _instant(order.triggered_at or order.created_at)


def _instant(moment: datetime | None) -> int:
    return times.now() if moment is None else times.instant_of(moment)
