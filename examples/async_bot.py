"""The same for asyncio: two tasks that share a session, and no wait for the disk in the loop."""

import asyncio
import sys

from statestore import StateStore, TradingSession


async def trade(session: TradingSession) -> None:
    while session.running:
        if session.may_trade and not session.state["positions"]:
            # An order would go here, and what was filled below.
            session.state["positions"]["BTC-USD"] = {"side": "BUY", "quantity": 0.01}
            await session.aon_trade("BUY BTC-USD")
        await session.await_stop(1)


async def keep(session: TradingSession) -> None:
    while session.running:
        await session.atick()  # periodic saves, repairs, the kill switch
        await session.await_stop(1)


async def main(path: str) -> int:
    async with TradingSession(StateStore(path), mode="PAPER") as session:
        await asyncio.gather(trade(session), keep(session))
    return session.exit_code


sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "data/.state.json")))
