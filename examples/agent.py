"""An execution agent whose positions, and the orders that protect them, outlive it.

::

    statestore db init                      # the tables, once
    python examples/agent.py postgresql://bot@db/trading data/.state.json BTC-USD=60000

What it holds is loaded before anything trades; if that cannot be loaded, it starts halted. Every
ten seconds it takes over what happened and looks at prices; what a stop-loss or take-profit asks
for is a `Decision`, which a real agent sends to its exchange. This one is on paper: an order is
filled at the price that was named on the command line.
"""

import asyncio
import sys
from collections.abc import Collection
from decimal import Decimal

from statestore import KillSwitch, StateStore, TradingSession
from statestore.backends.database import Database
from statestore.runtime.logs import set_up
from statestore.runtime.monitor import Decision, PositionMonitor
from statestore.runtime.orders import Position, PositionManager, PositionSide, PositionStatus


class BaseAgent:
    async def initialize(self) -> None:
        set_up("json")


class ExecutionAgent(BaseAgent):
    def __init__(self, database: Database, store: StateStore, prices: dict[str, Decimal]) -> None:
        self.store = store
        self.prices = prices
        self.database = database
        self.position_manager = PositionManager(
            database, kill_switch=KillSwitch(store.path.with_name("KILL_SWITCH"))
        )

    async def initialize(self) -> None:
        """Initialize agent resources."""
        await super().initialize()
        await asyncio.to_thread(self.database.require_schema)  # connects
        await self._load_open_positions()

    async def _load_open_positions(self) -> None:
        load = self.position_manager.load_open_positions
        await asyncio.to_thread(load, on_failure="halt")

    def last_prices(self, symbols: Collection[str]) -> dict[str, Decimal]:
        return {symbol: self.prices[symbol] for symbol in symbols if symbol in self.prices}

    def close(self, decision: Decision) -> None:
        """A real agent sends an order here, with ``decision.client_order_id``, before it records
        what it was told of it; and cancels ``decision.cancel_first`` before that."""
        self.position_manager.record_result(
            decision.order.order_id,
            "filled",
            filled_quantity=decision.quantity,
            filled_price=decision.price,
        )

    def open(self, symbol: str) -> Position:
        price = self.prices[symbol]
        opened = self.position_manager.open_position(
            symbol,
            PositionSide.LONG,
            "0.1",
            price,
            stop_loss=price * Decimal("0.9"),
            take_profit=price * Decimal("1.1"),
        ).position
        assert opened is not None
        assert opened.status is PositionStatus.OPEN
        return opened

    async def run(self) -> int:
        await self.initialize()
        held = self.position_manager.get_all_positions() if self.position_manager.loaded else None
        monitor = PositionMonitor(self.position_manager, self.last_prices, self.close)
        async with TradingSession(self.store) as session:
            session.every(10, monitor.cycle)
            if held == [] and session.may_trade:
                self.open(next(iter(self.prices)))
            while session.running:
                await session.atick()
                await session.await_stop(1)
        return session.exit_code


def main(url: str, state: str, *prices: str, schema: str = "statestore") -> int:
    named = dict(price.split("=") for price in prices)
    schema = named.pop("schema", schema)
    database = Database(url, schema=schema)
    agent = ExecutionAgent(
        database, StateStore(state), {name: Decimal(price) for name, price in named.items()}
    )
    try:
        return asyncio.run(agent.run())
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 2 else __doc__)
