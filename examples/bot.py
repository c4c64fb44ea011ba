"""A bot in 30 lines: restored at the start, saved on trades, every five minutes and at the end."""

import sys

from statestore import StateStore, TradingSession


class Strategy:
    """All of its methods are optional."""

    cooldowns: dict[str, int]

    def __init__(self) -> None:
        self.cooldowns = {}

    def get_current_state(self) -> dict[str, object]:
        return {"pair_states": {pair: {"cooldown": n} for pair, n in self.cooldowns.items()}}

    def restore_state(self, metadata: dict) -> None:
        pairs = metadata["strategy_state"]["pair_states"]
        self.cooldowns = {pair: said["cooldown"] for pair, said in pairs.items()}


strategy = Strategy()
store = StateStore(sys.argv[1] if len(sys.argv) > 1 else "data/.state.json")
with TradingSession(store, strategies=[strategy], mode="PAPER") as session:
    while session.running:  # until SIGINT or SIGTERM
        if session.tick() and not session.state["positions"]:  # False while halted
            # An order would go here, and what was filled below.
            session.state["positions"]["BTC-USD"] = {"side": "BUY", "quantity": 0.01}
            strategy.cooldowns["BTC-USD"] = 3
            session.on_trade("BUY BTC-USD")
        session.wait(1)
sys.exit(session.exit_code)
