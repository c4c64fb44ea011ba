"""The positions a bot holds and the orders that protect them, kept in PostgreSQL.

::

    manager = PositionManager("postgresql://bot@db/trading", kill_switch=KillSwitch(...))
    manager.load_open_positions()                      # before anything trades
    held = manager.open_position("BTC-USD", "long", "0.1", "60000",
                                 stop_loss="57000", take_profit="66000").position
    manager.find(held.position_id)                     # the same id after every restart

What is promised:

* a position, its orders and its P&L change in one transaction, under a lock on the position's row:
  what two processes report at once is booked once;
* what the exchange says of an order is a total, and what is booked is the difference to what the
  order's row holds; saying it twice, or again after a lost connection, does no harm;
* a load that failed is not "no positions": it raises, or halts the bot, and `positions` raises
  until a load succeeded;
* no order is ever sent, changed or cancelled from here. What has to be done at the exchange is
  returned (`Booked.to_cancel`, `statestore.runtime.monitor.Decision`), and is never recorded as
  done before the exchange, or who sent it, says so.

What is in memory is what the last load or refresh gave plus what was done since through this
manager; each cycle of the monitor refreshes it. `positions` and `orders` are other dicts then.

It is long for a module because it is one object: every change of a row stands beside those that
lock the same rows in the same order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID, uuid4

from statestore.amounts import ZERO, exact, parse_amount, written
from statestore.backends.database import Database, storable
from statestore.backends.positions import PositionTables
from statestore.backends.rows import as_uuid
from statestore.errors import (
    AlreadyRecorded,
    BackendError,
    BackendUnavailable,
    StateStoreError,
    UsageError,
)
from statestore.model import (
    ExchangeOrder,
    Order,
    OrderSide,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
)
from statestore.runtime import lifecycle
from statestore.runtime.lifecycle import Booked, Due, Protection

if TYPE_CHECKING:
    from statestore.backends.positions import Connection
    from statestore.disk.killswitch import KillSwitch
    from statestore.fills.sources import OrderSource
    from statestore.runtime.syncing import Reconciliation, Synced

__all__ = [
    "Booked",
    "Order",
    "OrderSide",
    "OrderStatus",
    "OrderType",
    "Position",
    "PositionManager",
    "PositionSide",
    "PositionStatus",
]

logger = logging.getLogger(__name__)

Amount = Decimal | int | str | float
OnFailure = Literal["raise", "halt"]
E = TypeVar("E", PositionSide, OrderSide, OrderType, OrderStatus)

_MOST_SYMBOLS_LOGGED = 100
# Ids that documents of old made of symbol, side and a time that two writers rounded differently.
_LEGACY_ID_TOLERANCE = timedelta(seconds=1)


class PositionManager:
    """Positions and orders of one exchange. Threads may share it; processes have one each.

    Attributes:
        exchange: as it stands in the rows.
        tables: the rows.
        kill_switch: what a failed load engages; while it is engaged no decision is handed out.
        loaded: whether what is held is known.
        synced: whether the exchange was asked since the load.
        patience: how long whoever was told something has, before it is said again.
    """

    def __init__(
        self,
        database: Database | str,
        *,
        exchange: str = "coinbase",
        kill_switch: KillSwitch | None = None,
        increments: Mapping[str, Decimal] | None = None,
        patience: float = 60,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """Remember what to do; nothing is connected or read yet.

        Args:
            database: or its URL, for the tables of the schema ``statestore`` there.
            increments: base increments by symbol: a quantity that is no multiple of it is refused
                before it is recorded. Of a symbol that is not named nothing is known.
            patience: seconds until a decision that nobody carried out is handed out again.
            now: the clock, for what has no time of its own, and for how long ago a decision was
                handed out. The database's unless given: all machines have that one.
        """
        self.exchange = exchange
        self.tables = PositionTables(Database(database) if isinstance(database, str) else database)
        self.kill_switch = kill_switch
        self.loaded = False
        self.synced = False
        self.now = now or self.tables.clock
        self._increments = dict(increments or {})
        self.patience = timedelta(seconds=patience)
        self._lock = threading.RLock()
        self._positions: dict[str, Position] = {}
        self._orders: dict[str, Order] = {}
        self._prices: dict[str, Decimal] = {}
        # Decisions that were handed out while the database could not be asked, and when.
        self._unclaimed: dict[str, datetime] = {}
        # Loaded orders of which no price was looked at yet: what they missed is late.
        self._unwatched: set[str] = set()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self.tables.database.close()

    # What is held

    @property
    def positions(self) -> dict[str, Position]:
        """What is held, by position id. Raises `UsageError` until a load succeeded."""
        self._require_loaded()
        return self._positions

    @property
    def orders(self) -> dict[str, Order]:
        """Orders that are not final, and all orders of what is held, by order id."""
        self._require_loaded()
        return self._orders

    def get_all_positions(self) -> list[Position]:
        return list(self.positions.values())

    def orders_of(self, position_id: str) -> list[Order]:
        """Return the orders of a position that is held, oldest first."""
        return [order for order in self.orders.values() if order.position_id == position_id]

    def find(self, position_id: str) -> Position | None:
        """Return a position that is held by its id, or by one that another program made.

        ``BTC/USDT_long_1795171149.505817`` is understood (symbol, side, time of opening) and finds
        the position that has these; nothing is ever stored under such an id.
        """
        held = self.positions
        try:
            return held.get(str(UUID(position_id)))
        except ValueError:
            pass
        symbol, _, rest = position_id.rpartition("_")
        symbol, _, side = symbol.rpartition("_")
        try:
            opened = datetime.fromtimestamp(float(rest), UTC)
            wanted = PositionSide(side)
        except (ValueError, OverflowError, OSError):
            return None
        for position in held.values():
            near = abs(position.entry_time - opened) < _LEGACY_ID_TOLERANCE
            if near and (position.symbol, position.side) == (symbol, wanted):
                return position
        return None

    def unprotected(self) -> list[Protection]:
        """Return the positions of which not every unit has a stop-loss that is live."""
        return [found for found in self.protections() if found.missing]

    def protections(self) -> list[Protection]:
        """Return how each position is protected."""
        by_position: dict[str | None, list[Order]] = {}
        for order in self.orders.values():
            by_position.setdefault(order.position_id, []).append(order)
        return [
            lifecycle.protection(position, by_position.get(position.position_id, ()))
            for position in self.positions.values()
        ]

    # Loading

    def load_open_positions(self, *, on_failure: OnFailure = "raise") -> int | None:
        """Load what is held and its orders: one query each. Return how many positions.

        Args:
            on_failure: ``raise``, or ``halt``: engage the kill switch, log, and return None
                (unknown: nobody may trade on it). `positions` raises either way.

        Raises:
            BackendError: the database cannot be asked, or holds what is no position.
            SaveFailed: and the kill switch could not be engaged.
        """
        if on_failure == "halt" and self.kill_switch is None:
            raise UsageError('on_failure="halt" needs a kill switch to engage')
        try:
            self._load(first=True)
        except StateStoreError as error:
            if on_failure != "halt" or self.kill_switch is None:
                raise
            facts = {"operation": "load_open_positions", "why": str(error)}
            try:
                self.kill_switch.engage("open positions could not be loaded", "PositionManager")
            except BackendError as alone:  # its row is in a database too; this machine is halted
                facts["kill_switch"] = str(alone)
            logger.error("open positions could not be loaded: halted", extra=facts)
            return None
        if self._positions:
            logger.info("positions_loaded_from_db", extra=self.summary())
        else:
            logger.info("no_open_positions_in_db", extra={"exchange": self.exchange})
        return len(self._positions)

    def refresh(self) -> None:
        """Take over what other processes did. Raises `BackendError`; memory is what it was."""
        self._require_loaded()
        self._load(first=False)

    def summary(self) -> dict[str, Any]:
        """Return ``count`` and ``symbols`` (of the first hundred), for the log."""
        symbols = [position.symbol for position in self._positions.values()]
        return {"count": len(symbols), "symbols": symbols[:_MOST_SYMBOLS_LOGGED]}

    def _load(self, *, first: bool) -> None:
        with self._lock:
            positions, orders = self.tables.load(exchange=self.exchange)
            self._positions = {position.position_id: self._seen(position) for position in positions}
            self._orders = {order.order_id: self._handed_out(order) for order in orders}
            if first:
                self.synced = False
                self._unwatched = {
                    order.order_id
                    for order in orders
                    if order.status.live and order.order_type.protects
                }
            self.loaded = True

    def _seen(self, position: Position) -> Position:
        """Return the position at the last price this process saw."""
        price = self._prices.get(position.symbol)
        if price is None:
            # Null in the row is nothing lost; what else it says stands until there is a price.
            if position.unrealized_pnl:
                position.unrealized_pnl_pct = lifecycle.percent(position)
            return position
        return lifecycle.priced(position, price)

    def _handed_out(self, order: Order) -> Order:
        """Return the order as it would stand in its row, had the database been there."""
        at = self._unclaimed.get(order.order_id)
        if at is None or (order.triggered_at is not None and order.triggered_at >= at):
            return order
        return replace(order, triggered_at=at)

    def _require_loaded(self) -> None:
        if not self.loaded:
            raise UsageError(
                "what is held is not known: load_open_positions() was not called, or it failed"
            )

    # Prices

    def update_prices(self, prices: Mapping[str, Amount | None], *, write: bool = False) -> None:
        """Take in prices by symbol and compute the P&L anew; an unknown price (None) changes none.

        Args:
            write: also to the database, for others to see. A tick is not worth a write otherwise.

        Raises:
            UsageError: one is no price; a market that is said to be at 0 is a feed that is broken.
        """
        with self._lock:
            for symbol, price in prices.items():
                if price is not None:
                    self._prices[symbol] = a_price(symbol, price)
            moved = []
            for position in list(self.positions.values()):
                if position.symbol in prices and position.symbol in self._prices:
                    self._positions[position.position_id] = self._seen(position)
                    moved.append(self._positions[position.position_id])
            if write and moved:
                with self.tables.transaction() as connection:
                    self.tables.update_prices(connection, moved)

    # Opening, and orders that are recorded

    def open_position(
        self,
        symbol: str,
        side: str,
        quantity: Amount,
        entry_price: Amount,
        *,
        stop_loss: Amount | None = None,
        take_profit: Amount | None = None,
        opened_by: str | None = None,
        entry_time: datetime | None = None,
        leverage: Amount | None = 1,
        margin: Amount | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Booked:
        """Record a position that was opened, with its stop-loss and take-profit where given.

        Args:
            opened_by: the id of the recorded order that opened it, which is linked to it:
                ``quantity`` is what that order has filled by now, and later fills are booked.

        Raises:
            UsageError: a value means nothing, the order belongs to a position already, or it has
                filled something else by now.
            BackendError: one of this symbol and side is held already; or as elsewhere.
        """
        position = Position(
            position_id=str(uuid4()),
            exchange=self.exchange,
            symbol=symbol,
            side=_spelt(PositionSide, side),
            quantity=self._quantity(symbol, quantity),
            entry_price=_amount(entry_price, "entry_price", above=None),
            stop_loss=_trigger(stop_loss, "stop_loss"),
            take_profit=_trigger(take_profit, "take_profit"),
            entry_time=entry_time or self.now(),
            leverage=_optional(leverage, "leverage"),
            margin=_optional(margin, "margin"),
            metadata=dict(metadata or {}),
        )
        orders = self._protective(position, position.stop_loss, position.take_profit, None)
        with self.tables.transaction() as connection:
            self.tables.insert_positions(connection, [position])
            self.tables.insert_orders(connection, orders)
            if opened_by is not None:
                opener = self._linked(connection, opened_by, position)
                self.tables.update_orders(connection, [opener])
                orders.append(opener)
        return self._remember(Booked(tuple(orders), position, position.quantity), "position opened")

    def _linked(self, connection: Connection, order_id: str, position: Position) -> Order:
        order = self.tables.lock_order(connection, order_id)
        if order is None or order.position_id is not None:
            what = "is not recorded" if order is None else f"belongs to {order.position_id}"
            raise UsageError(f"order {order_id} cannot have opened a position: it {what}")
        if order.symbol != position.symbol or lifecycle.reduces(order, position):
            raise UsageError(
                f"order {order_id} ({order.side} {order.symbol}) cannot have opened "
                f"{position.side} {position.symbol}"
            )
        if order.filled_quantity != position.quantity:
            raise UsageError(
                f"order {order_id} has {order.filled_quantity:f} filled by now, not "
                f"{position.quantity:f}; record_result what it filled, and open that"
            )
        return replace(order, position_id=position.position_id)

    def record_order(
        self,
        order_type: str,
        side: str,
        quantity: Amount,
        *,
        symbol: str | None = None,
        position_id: str | None = None,
        price: Amount | None = None,
        status: str = "pending",
        exchange_order_id: str | None = None,
        filled_quantity: Amount = 0,
        filled_price: Amount | None = None,
        fees: Amount | None = None,
        reason: str = "",
        order_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Booked:
        """Record an order: before it is sent, as pending, or with what became of it.

        What is filled is booked on its position, if it has one. Record before sending, and send
        ``order_id`` as the client's order id: then a crash in between loses nothing.

        Args:
            symbol: the position's, where there is one.
            reason: why it was refused.
            order_id: the client order id, yours to choose; a new one unless given. It makes the
                call repeatable: where the connection broke while the answer was awaited
                (``BackendUnavailable.uncertain``), nobody knows whether it was booked; the same
                call with the same id books it once, or says that it is there. Without an id a
                second call is a second order.

        Raises:
            UsageError, IllegalMove: a value means nothing; a stop-loss or take-profit that would
                close nothing.
            AlreadyRecorded: an order of this id is there; nothing is booked again.
            BackendError: as elsewhere.
        """
        kind = _spelt(OrderType, order_type)
        with self._once(order_id), self.tables.transaction() as connection:
            position, others = self._locked_position(connection, position_id)
            name = symbol or (position.symbol if position else None)
            if name is None or (position is not None and name != position.symbol):
                raise UsageError(f"an order needs the symbol of its position, not {symbol!r}")
            order = Order(
                order_id=order_id or str(uuid4()),
                exchange=self.exchange,
                position_id=position.position_id if position else None,
                symbol=name,
                side=_spelt(OrderSide, side),
                order_type=kind,
                quantity=self._quantity(name, quantity),
                price=(_trigger if kind.protects else _optional)(price, "price"),
                metadata=dict(metadata or {}),
                created_at=self.now(),
            )
            if kind.protects and not (position and lifecycle.reduces(order, position)):
                held = f"{position.side} {name}" if position else "no position"
                raise UsageError(f"a {kind} to {order.side} {name} closes nothing of {held}")
            report = self._report(
                order, status, exchange_order_id, filled_quantity, filled_price, fees, reason
            )
            done = lifecycle.booked(order, report, position, others, self.now())
            if not done.orders:
                done = replace(done, orders=(order,))
            self.tables.insert_orders(connection, done.orders[:1])
            self.tables.update_orders(connection, done.orders[1:])
            self._write_position(connection, position, done)
        return self._remember(done, "order recorded")

    def increase_position(
        self, position_id: str, quantity: Amount, price: Amount, *, order_id: str | None = None
    ) -> Booked:
        """Book that more was opened: a buy into a long, a sell into a short.

        Args:
            order_id: as in `reduce_position`.
        """
        return self._trade(position_id, quantity, price, order_id, closing=False)

    def reduce_position(
        self, position_id: str, quantity: Amount, price: Amount, *, order_id: str | None = None
    ) -> Booked:
        """Book that some or all of a position was closed; it is recorded as a market order.

        Args:
            order_id: the client order id it was closed by. It makes the call repeatable, as in
                `record_order`; without one, a call that is repeated books twice.

        Raises:
            AlreadyRecorded: an order of this id is there; nothing is booked again.
            UsageError: no such position is held.
        """
        return self._trade(position_id, quantity, price, order_id, closing=True)

    def _trade(
        self,
        position_id: str,
        quantity: Amount,
        price: Amount,
        order_id: str | None,
        *,
        closing: bool,
    ) -> Booked:
        with self._once(order_id):
            held = self.find(position_id)
            if held is None:  # perhaps this very call closed it before
                raise UsageError(f"no position {position_id} is held")
        side = lifecycle.closing_side(held)
        if not closing:
            side = OrderSide.BUY if side is OrderSide.SELL else OrderSide.SELL
        return self.record_order(
            OrderType.MARKET,
            side,
            quantity,
            position_id=held.position_id,
            status=OrderStatus.FILLED,
            filled_quantity=quantity,
            filled_price=price,
            order_id=order_id,
        )

    @contextmanager
    def _once(self, order_id: str | None) -> Iterator[None]:
        """Say of what is refused in the block that the order is there, where it is.

        Asked afterwards: by then whoever committed it at the same moment has.
        """
        try:
            yield
        except BackendUnavailable:
            raise
        except (BackendError, UsageError) as error:
            if order_id is None:
                raise
            with self.tables.transaction(snapshot=True) as connection:
                named = self.tables.orders_named(
                    connection, exchange=self.exchange, exchange_ids=[], order_ids=[order_id]
                )
            if not named:
                raise
            (there,) = named
            raise AlreadyRecorded(
                order_id,
                f"order {order_id} is recorded already: {there.order_type} to {there.side} "
                f"{there.quantity:f} {there.symbol} (status {there.status}, filled_quantity "
                f"{there.filled_quantity:f}); nothing was booked again. If that is another one, "
                "choose another id",
            ) from error

    # Stop-loss and take-profit

    def attach_sl_tp(
        self,
        position_id: str,
        *,
        stop_loss: Amount | None = None,
        take_profit: Amount | None = None,
        quantity: Amount | None = None,
    ) -> Booked:
        """Record a stop-loss and a take-profit of one group: when one is filled, the other goes.

        They are pending, known here only: the monitor hands them out when their price is crossed.
        Who sends them to the exchange instead records that with `record_result`.

        Args:
            quantity: for a part of the position only; all of it unless given.

        Raises:
            UsageError: no price, prices on the wrong side of each other, no such position, or more
                would be sold than is held (`change_sl_tp` replaces what is there).
        """
        return self._attach(
            position_id,
            _trigger(stop_loss, "stop_loss"),
            _trigger(take_profit, "take_profit"),
            quantity,
            replacing=False,
        )

    def change_sl_tp(
        self,
        position_id: str,
        *,
        stop_loss: Amount | None,
        take_profit: Amount | None,
    ) -> Booked:
        """Put a new stop-loss and take-profit in place of all that the position has.

        Those at the exchange stay what they are and are in ``to_cancel``.

        Args:
            stop_loss, take_profit: None for none.
        """
        return self._attach(
            position_id,
            _trigger(stop_loss, "stop_loss"),
            _trigger(take_profit, "take_profit"),
            None,
            replacing=True,
        )

    def _attach(
        self,
        position_id: str,
        stop_loss: Decimal | None,
        take_profit: Decimal | None,
        quantity: Amount | None,
        *,
        replacing: bool,
    ) -> Booked:
        if stop_loss is None and take_profit is None and not replacing:
            raise UsageError("a stop_loss or a take_profit is needed, or both")
        with self.tables.transaction() as connection:
            position, others = self._locked_position(connection, position_id)
            if position is None or not position.status.held:
                raise UsageError(f"no position {position_id} is held")
            gone = []
            if replacing:
                protective = [o for o in others if o.status.live and o.order_type.protects]
                gone = [lifecycle.withdrawn(order, self.now()) for order in protective]
            added = self._protective(position, stop_loss, take_profit, quantity)
            if not replacing:
                self._refuse_too_much(position, others, added)
            position = replace(
                position,
                stop_loss=stop_loss if replacing or stop_loss is not None else position.stop_loss,
                take_profit=(
                    take_profit if replacing or take_profit is not None else position.take_profit
                ),
            )
            self.tables.update_positions(connection, [position])
            self.tables.update_orders(connection, gone)
            self.tables.insert_orders(connection, added)
        there = tuple(order for order in gone if order.status.live)
        return self._remember(
            Booked((*added, *gone), position, to_cancel=there), "stop-loss and take-profit attached"
        )

    def _protective(
        self,
        position: Position,
        stop_loss: Decimal | None,
        take_profit: Decimal | None,
        quantity: Amount | None,
    ) -> list[Order]:
        if stop_loss is not None and take_profit is not None:
            low, high = stop_loss, take_profit
            if position.side is PositionSide.SHORT:
                low, high = high, low
            if low >= high:
                raise UsageError(
                    f"a {position.side} needs its stop-loss "
                    f"{'below' if position.side is PositionSide.LONG else 'above'} its "
                    f"take-profit, not {stop_loss:f} and {take_profit:f}"
                )
        group, at = str(uuid4()), self.now()
        units = position.quantity if quantity is None else self._quantity(position.symbol, quantity)
        prices = {OrderType.STOP_LOSS: stop_loss, OrderType.TAKE_PROFIT: take_profit}
        return [
            Order(
                order_id=str(uuid4()),
                exchange=self.exchange,
                position_id=position.position_id,
                symbol=position.symbol,
                side=lifecycle.closing_side(position),
                order_type=kind,
                quantity=units,
                price=price,
                oco_group=group,
                created_at=at,
            )
            for kind, price in prices.items()
            if price is not None
        ]

    @staticmethod
    def _refuse_too_much(
        position: Position, others: Iterable[Order], added: Iterable[Order]
    ) -> None:
        now = lifecycle.protection(position, others)
        would = lifecycle.protection(position, [*others, *added])
        for kind in ("stop_loss", "take_profit"):
            there, all_of_it = getattr(now, kind), getattr(would, kind)
            if all_of_it > there and all_of_it > position.quantity:
                raise UsageError(
                    f"position {position.position_id} ({position.symbol}) holds "
                    f"{position.quantity:f} and has a {kind} for {there:f} already; "
                    "change_sl_tp replaces it"
                )

    # What became of an order

    def record_result(
        self,
        order_id: str,
        status: str,
        *,
        exchange_order_id: str | None = None,
        filled_quantity: Amount | None = None,
        filled_price: Amount | None = None,
        fees: Amount | None = None,
        reason: str = "",
    ) -> Booked:
        """Record what whoever sent an order was told of it; what is filled is booked.

        Args:
            status: any spelling of the five (an executor's ``REJECTED`` as well).
            filled_quantity: in all, not since the last time. As it was, unless given.
            filled_price: average of all fills.

        Raises:
            IllegalMove: the order cannot become that from what it is.
            UsageError: no such order, or a value means nothing.
        """

        def report(order: Order) -> ExchangeOrder:
            wanted = _spelt(OrderStatus, status)
            if wanted is not order.status:
                lifecycle.moved(order, wanted)
            filled = order.filled_quantity if filled_quantity is None else filled_quantity
            average = order.filled_price if filled_price is None else filled_price
            return self._report(order, wanted, exchange_order_id, filled, average, fees, reason)

        return self._apply(order_id, report)

    def cancel_order(self, order_id: str) -> Booked:
        """Record that an order should go: cancelled if only we know it, else in ``to_cancel``."""

        def withdraw(order: Order, position: Position | None, _: list[Order]) -> Booked:
            if not order.status.live:
                lifecycle.moved(order, OrderStatus.CANCELLED)  # says why not
            gone = lifecycle.withdrawn(order, self.now())
            return Booked((gone,), position, to_cancel=(gone,) if gone.status.live else ())

        return self._change(order_id, withdraw)

    def apply_report(self, order_id: str, report: ExchangeOrder) -> Booked:
        """Take in what the exchange says of an order; saying it again changes nothing.

        Raises:
            IllegalMove: it says that a final order went on.
        """
        return self._apply(order_id, lambda _order: report)

    def sync_orders(self, source: OrderSource) -> Synced:
        """Ask the exchange what became of the orders that are there, and book it. Only reads there.

        Raises:
            SourceError: the exchange cannot be asked; nothing is booked.
            BackendError: what is booked by then stands, and is not booked again.
        """
        from statestore.runtime.syncing import sync

        self.refresh()
        return sync(self, source)

    def reconcile_orders(self, source: OrderSource, *, since: int | None = None) -> Reconciliation:
        """Compare the orders here with those at the exchange; changes nothing.

        Args:
            since: orders made there from this instant on are compared (UTC, nanoseconds); a week,
                or as far back as the oldest order here that is not final, unless given.
        """
        from statestore.runtime.syncing import reconcile

        return reconcile(self, source, since)

    def _apply(self, order_id: str, report: Callable[[Order], ExchangeOrder]) -> Booked:
        return self._change(
            order_id,
            lambda order, position, others: lifecycle.booked(
                order, report(order), position, others, self.now()
            ),
        )

    def _change(
        self, order_id: str, change: Callable[[Order, Position | None, list[Order]], Booked]
    ) -> Booked:
        """Change an order and its position by the rows as they are, in one transaction."""
        while True:
            with self.tables.transaction() as connection:
                locked = self._locked(connection, order_id)
                if locked is None:
                    continue  # linked to a position in this moment: lock that one first
                order, position, others = locked
                done = change(order, position, others)
                self.tables.update_orders(connection, done.orders)
                self._write_position(connection, position, done)
            return self._remember(done, "order changed")

    # Deciding

    def overdue(self) -> list[Order]:
        """Return the orders that should have gone from the exchange by now, and have not.

        Whoever was told to cancel them may have died, and one that stays there is filled one day.
        """
        at = self.now()
        wanted = [(order, order.cancel_wanted_at) for order in self.orders.values()]
        return [o for o, since in wanted if since and o.status.live and at - since >= self.patience]

    def due_now(self, symbols: Collection[str]) -> list[tuple[Position, list[Due]]]:
        """Return what the last prices of these symbols make due, as memory has it."""
        found = []
        by_position: dict[str | None, list[Order]] = {}
        for order in self.orders.values():
            if order.status.live:
                by_position.setdefault(order.position_id, []).append(order)
        for position in self.positions.values():
            price = self._prices.get(position.symbol)
            orders = by_position.get(position.position_id)
            if position.symbol in symbols and price is not None and orders:
                dues = lifecycle.due(position, orders, price, self.now(), self.patience)
                if dues:
                    found.append((position, dues))
        return found

    def claim(self, position_id: str, price: Decimal) -> tuple[Position, list[Due]] | None:
        """Take what is due of a position at a price for oneself: nobody else is given it meanwhile.

        What is due is judged by the rows and the database's clock, neither by memory nor by this
        machine's. None where there is no such row.
        """
        with self.tables.transaction() as connection:
            row = self.tables.lock_position(connection, position_id)
            if row is None:
                return None
            position = self._seen(row)
            orders = map(self._handed_out, self.tables.orders_of(connection, position_id))
            at = self.now()  # under the lock on the row: whoever claimed before, claimed earlier
            dues = lifecycle.due(position, list(orders), price, at, self.patience)
            taken = [replace(due.order, triggered_at=at) for due in dues]
            self.tables.update_orders(connection, taken)
        self._remember(Booked(tuple(taken), position), "")
        return position, dues

    def hand_out_unclaimed(self, dues: Iterable[Due]) -> None:
        """Note that these were handed out although the database could not be asked."""
        with self._lock:
            for due in dues:
                self._unclaimed[due.order.order_id] = self.now()
                self._orders[due.order.order_id] = self._handed_out(due.order)

    def first_look(self) -> set[str]:
        """Return the loaded orders that no price was compared with yet."""
        return set(self._unwatched)

    def looked_at(self, symbols: Iterable[str]) -> None:
        """Note that prices of these symbols were compared with their orders."""
        named = set(symbols)
        with self._lock:
            self._unwatched = {
                order_id
                for order_id in self._unwatched
                if (order := self._orders.get(order_id)) is not None and order.symbol not in named
            }

    # Rows and memory

    def _locked_position(
        self, connection: Connection, position_id: str | None
    ) -> tuple[Position | None, list[Order]]:
        """Return a position and all of its orders, locked."""
        if position_id is None:
            return None, []
        try:
            known = str(as_uuid(position_id))
        except UsageError:
            found = self.find(position_id) if self.loaded else None
            if found is None:
                raise
            known = found.position_id
        position = self.tables.lock_position(connection, known)
        if position is None or position.exchange != self.exchange:
            raise UsageError(f"there is no position {position_id} of {self.exchange}")
        orders = self.tables.orders_of(connection, known)
        return self._seen(position), [self._handed_out(order) for order in orders]

    def _locked(
        self, connection: Connection, order_id: str
    ) -> tuple[Order, Position | None, list[Order]] | None:
        """Return an order, its position and the position's other orders, all locked.

        Everybody locks the position first. None where the order had none and has one now.
        """
        linked = self.tables.position_of(connection, order_id)
        position, orders = self._locked_position(connection, linked)
        if position is None:
            alone = self.tables.lock_order(connection, order_id)
            orders = [] if alone is None else [alone]
        order = next((order for order in orders if order.order_id == order_id), None)
        if order is None or order.exchange != self.exchange:
            raise UsageError(f"there is no order {order_id} of {self.exchange}")
        if order.position_id is not None and position is None:
            return None
        return order, position, [other for other in orders if other is not order]

    def _write_position(
        self, connection: Connection, before: Position | None, done: Booked
    ) -> None:
        if done.position is not None and done.position != before:
            self.tables.update_positions(connection, [done.position])

    def _remember(self, done: Booked, event: str) -> Booked:
        """Bring memory to what was committed, and say it."""
        with self._lock:
            for order in done.orders:
                self._orders[order.order_id] = order
            position = done.position
            if position is not None and position.status.held:
                self._positions[position.position_id] = self._seen(position)
            elif position is not None:
                self._positions.pop(position.position_id, None)
                self._orders = {
                    key: order
                    for key, order in self._orders.items()
                    if order.status.live or order.position_id != position.position_id
                }
        if event and done.orders:
            self._say(done, event)
        return done

    def _say(self, done: Booked, event: str) -> None:
        order, position = done.orders[0], done.position
        facts: dict[str, Any] = {
            "order": order.order_id,
            "symbol": order.symbol,
            "type": order.order_type.value,
            "status": order.status.value,
            "position": order.position_id,
        }
        logger.info(event, extra=facts)
        if done.quantity and position is not None:
            left = {"held": f"{position.quantity:f}", "realized_pnl": f"{position.realized_pnl:f}"}
            closed = position.status is PositionStatus.CLOSED
            logger.info("position closed" if closed else "position changed", extra=facts | left)
        if done.unbooked and position is None:
            logger.info("filled: a position may be opened", extra=facts)
        elif done.unbooked:
            logger.error(
                "filled, but not in a position: look at what the exchange holds",
                extra=facts | {"units": f"{done.unbooked:f}"},
            )
        for other in done.to_cancel:
            logger.warning(
                "order has to be cancelled at the exchange",
                extra={"order": other.order_id, "exchange_order_id": other.exchange_order_id},
            )

    # Values

    def _quantity(self, symbol: str, value: Amount) -> Decimal:
        quantity = _amount(value, "quantity", above=ZERO)
        increment = self._increments.get(symbol)
        if increment and not _divides(increment, quantity):
            raise UsageError(
                f"{quantity:f} {symbol} is no multiple of its base increment {increment:f}; "
                "the exchange would refuse it"
            )
        return quantity

    def _report(
        self,
        order: Order,
        status: str,
        exchange_order_id: str | None,
        filled_quantity: Amount,
        filled_price: Amount | None,
        fees: Amount | None,
        reason: str,
    ) -> ExchangeOrder:
        filled = _amount(filled_quantity, "filled_quantity", above=None)
        value = order.filled_value
        if filled != order.filled_quantity:
            if filled_price is None:
                raise UsageError(f"order {order.order_id}: what is filled needs its filled_price")
            value = _notional(filled, _amount(filled_price, "filled_price", above=None))
        return ExchangeOrder(
            exchange_order_id=exchange_order_id or order.exchange_order_id or "",
            symbol=order.symbol,
            side=order.side,
            status=_spelt(OrderStatus, status),
            said=status,
            filled_quantity=filled,
            filled_value=value,
            fees=_optional(fees, "fees", signed=True),
            reason=storable(reason),
            venue="its sender",
        )


def a_price(symbol: str, price: Amount) -> Decimal:
    """Return an exact price of a market; raises `UsageError` for what is none, as 0."""
    return _amount(price, f"price of {symbol}")


def _spelt(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise UsageError(f"{value!r:.40} is none of {known}") from None


def _amount(
    value: Amount, what: str, *, above: Decimal | None = ZERO, signed: bool = False
) -> Decimal:
    """Return an exact number; of a float the one it prints as."""
    try:
        number = parse_amount(repr(value) if isinstance(value, float) else value)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if (above is not None and number <= above) or (number < 0 and not signed):
        least = "above 0" if above is not None else "0 or above"
        raise UsageError(f"{what} is {number:f}; it has to be {least}")
    return number


def _trigger(value: Amount | None, what: str) -> Decimal | None:
    """Return a price to act at. 0 is none: as a take-profit it would be crossed at once."""
    return None if value is None else _amount(value, what)


def _optional(value: Amount | None, what: str, *, signed: bool = False) -> Decimal | None:
    return None if value is None else _amount(value, what, above=None, signed=signed)


@exact
def _divides(increment: Decimal, quantity: Decimal) -> bool:
    return not quantity % increment


@exact
def _notional(quantity: Decimal, price: Decimal) -> Decimal:
    return written(quantity * price)
