"""Watch what is held: take over what happened, look at prices, say what is to be done.

::

    monitor = PositionMonitor(manager, prices, decide, source=coinbase)
    session.every(10, monitor.cycle)          # see TradingSession

One cycle, about every ten seconds: what other processes and the exchange did is taken over, prices
are read, and each stop-loss or take-profit whose price was crossed is handed to ``decide`` as a
`Decision`: a value. Placing the order is the caller's; send it with ``client_order_id``, and tell
`PositionManager.record_result` what became of it.

What is promised:

* a decision is handed to one process only, until somebody records what became of it or the
  manager's ``patience`` is over (then with ``repeated``; the exchange knows a client order id it
  saw before, so nothing is sold twice). How long that is, the database's clock says, so it is the
  same on machines whose clocks differ;
* orders that are at the exchange are the exchange's: nothing is decided for them;
* a price that had been crossed before the first look after a restart is decided like any other,
  and marked ``late``;
* while the database cannot be asked, memory is watched, and a decision says ``claimed=False``:
  another process may have been told the same;
* what has to be cancelled at the exchange is said again until the exchange says that it is gone;
* stop-loss or take-profit orders that rest at the exchange for more than is held, as after a part
  was closed by hand, are in `PositionMonitor.problems` before one is filled;
* while the kill switch is engaged nothing is handed out, and that is logged.

What is not: a price that was crossed and came back while nobody looked is not known here. Only an
order that rests at the exchange covers that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from statestore.errors import BackendError, SourceError, StateStoreError, UsageError
from statestore.runtime import lifecycle
from statestore.runtime.lifecycle import Booked
from statestore.runtime.orders import Amount, PositionManager, a_price
from statestore.runtime.syncing import sync

if TYPE_CHECKING:
    from statestore.fills.sources import OrderSource
    from statestore.model import Order, OrderSide, Position
    from statestore.runtime.lifecycle import Due

logger = logging.getLogger(__name__)

# The prices of these symbols; one that is not known is left out, or None.
Prices = Callable[[Collection[str]], Mapping[str, Amount | None]]


@dataclass(frozen=True, slots=True)
class Decision:
    """A stop-loss or take-profit whose price was crossed: what the caller should do now.

    Attributes:
        side, quantity: of the order that closes, in base units.
        price: the one that crossed.
        late: it was crossed before anybody looked, while the bot was down.
        repeated: it was handed out before, and nobody recorded what became of it.
        claimed: no other process is told the same.
        cancel_first: orders at the exchange that would close the same units; cancel them there
            before this one is sent.
    """

    position: Position
    order: Order
    side: OrderSide
    quantity: Decimal
    price: Decimal
    late: bool
    repeated: bool
    claimed: bool
    cancel_first: tuple[Order, ...]

    @property
    def client_order_id(self) -> str:
        """What to send as the client's order id."""
        return self.order.order_id


class PositionMonitor:
    """Looks after the positions of one manager.

    Attributes:
        problems: what the last cycle could not do, by what it is; empty when all is well.
    """

    def __init__(
        self,
        manager: PositionManager,
        prices: Prices,
        on_decision: Callable[[Decision], object],
        *,
        source: OrderSource | None = None,
        on_booked: Callable[[Booked], object] | None = None,
    ) -> None:
        """Remember what to do.

        Args:
            prices: by symbol, as the positions are named.
            on_decision: gets each decision. What it raises is logged; the decision comes again.
            source: asked what became of orders that are at the exchange.
            on_booked: gets what a sync changed (``to_cancel`` is for the caller to do), and, again
                after the manager's ``patience``, what is still to be cancelled.
        """
        self.manager = manager
        self.problems: dict[str, str] = {}
        self._prices = prices
        self._on_decision = on_decision
        self._source = source
        self._on_booked = on_booked
        self._said: list[str] | None = None
        self._reminded: dict[str, datetime] = {}

    def cycle(self) -> list[Decision]:
        """Do it once; return the decisions that were handed out.

        Raises:
            BackendError: what is held was never loaded, and cannot be loaded now.
            Exception: what ``prices`` raises. Nothing is decided without prices.
        """
        manager = self.manager
        if not manager.loaded:
            manager.load_open_positions()
        self._attempt("database", manager.refresh)
        if self._source is not None:
            self._attempt("exchange", self._sync)
        self._remind()
        self._note_excess()
        self._say_what_is_watched()
        symbols = {position.symbol for position in manager.get_all_positions()}
        if not symbols:
            self.problems.pop("prices", None)
            return []
        priced = self._take_prices(symbols)
        self._note("prices", ", ".join(sorted(symbols - priced)), "no price of")
        return self._decide(priced)

    def _take_prices(self, symbols: Collection[str]) -> set[str]:
        """Take in the prices there are; one that is none does not keep the others from acting."""
        taken = {}
        for symbol, price in self._prices(symbols).items():
            if price is None:
                continue
            try:
                taken[symbol] = a_price(symbol, price)
            except UsageError as error:
                logger.warning("price refused", extra={"symbol": symbol, "why": str(error)})
        self.manager.update_prices(taken)
        return set(taken)

    def _decide(self, symbols: Collection[str]) -> list[Decision]:
        manager = self.manager
        crossed = manager.due_now(symbols)
        halted = manager.kill_switch is not None and manager.kill_switch.engaged()
        if halted:
            orders = [due.order.order_id for _, dues in crossed for due in dues]
            self._note("kill switch", ", ".join(orders), "engaged, so not acted on:")
            return []
        self.problems.pop("kill switch", None)
        decisions = []
        for position, dues in crossed:
            decisions += self._claimed(position, dues)
        manager.looked_at(symbols)
        for decision in decisions:
            self._hand_out(decision)
        return decisions

    def _claimed(self, position: Position, dues: list[Due]) -> list[Decision]:
        missed = self.manager.first_look()
        claimed = True
        try:
            taken = self.manager.claim(position.position_id, position.current_price)
        except BackendError as error:
            # The price does not wait for the database.
            self._note("database", str(error), "")
            claimed, taken = False, (position, dues)
            self.manager.hand_out_unclaimed(dues)
        if taken is None:
            return []
        position, dues = taken
        return [
            Decision(
                position=position,
                order=due.order,
                side=lifecycle.closing_side(position),
                quantity=due.quantity,
                price=position.current_price,
                late=due.order.order_id in missed,
                repeated=due.order.triggered_at is not None,
                claimed=claimed,
                cancel_first=due.cancel_first,
            )
            for due in dues
        ]

    def _hand_out(self, decision: Decision) -> None:
        facts = {
            "order": decision.order.order_id,
            "type": decision.order.order_type.value,
            "symbol": decision.position.symbol,
            "position": decision.position.position_id,
            "price": f"{decision.price:f}",
            "quantity": f"{decision.quantity:f}",
            "late": decision.late,
            "repeated": decision.repeated,
            "claimed": decision.claimed,
        }
        logger.warning("price crossed", extra=facts)
        try:
            self._on_decision(decision)
        except Exception as error:
            logger.error(
                "decision was not carried out",
                extra=facts | {"why": f"{type(error).__name__}: {error}"},
                exc_info=None if isinstance(error, StateStoreError) else error,
            )

    def _sync(self) -> None:
        assert self._source is not None
        synced = sync(self.manager, self._source)
        self._note("orders", synced.problem, "")
        for booked in synced.booked:
            self._tell(booked)

    def _remind(self) -> None:
        """Say again what is still to be cancelled, once every ``patience``."""
        now, overdue = self.manager.now(), self.manager.overdue()
        self._note("cancelling", ", ".join(o.order_id for o in overdue), "still at the exchange:")
        again = [
            order
            for order in overdue
            if (last := self._reminded.get(order.order_id)) is None
            or now - last >= self.manager.patience
        ]
        names = {order.order_id for order in overdue}
        self._reminded = {name: at for name, at in self._reminded.items() if name in names}
        for order in again:
            self._reminded[order.order_id] = now
        if again:
            self._tell(Booked(to_cancel=tuple(again)))

    def _note_excess(self) -> None:
        """Say early what would only show when such an order is filled: more sold than is held."""
        found = [
            f"{protection.excess:f} {protection.position.symbol} "
            f"(position {protection.position.position_id})"
            for protection in self.manager.protections()
            if protection.excess
        ]
        self._note("too much", ", ".join(found), "at the exchange for more than is held, by")

    def _tell(self, booked: Booked) -> None:
        if self._on_booked is not None:
            try:
                self._on_booked(booked)
            except Exception:
                logger.exception("on_booked raised")

    def _attempt(self, what: str, do: Callable[[], None]) -> None:
        """Do what the cycle can do without; protection goes on."""
        try:
            do()
        except (BackendError, SourceError) as error:
            self._note(what, str(error), "")
        else:
            self.problems.pop(what, None)

    def _note(self, what: str, problem: str, how: str) -> None:
        """Remember a problem, and log it when it is a new one; no text is no problem."""
        text = f"{how} {problem}".strip() if problem else ""
        if text and self.problems.get(what) != text:
            logger.error("monitoring goes on without", extra={"what": what, "why": text})
        if text:
            self.problems[what] = text
        else:
            self.problems.pop(what, None)

    def _say_what_is_watched(self) -> None:
        summary = self.manager.summary()
        if summary["count"] and summary["symbols"] != self._said:
            logger.info("monitoring_positions", extra=summary)
        self._said = summary["symbols"]
