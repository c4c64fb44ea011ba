"""A main loop on a session, small enough to be read: prices, risk, one paper strategy.

It trades on paper only. What it shows is the order of things in a cycle: what the session owes, the
kill switch, prices, risk, decisions, and a save for each trade. A bot of one's own has the same
shape, with orders where `_fill` is.

``PAPER`` keeps what it buys in the state file. ``DRY_RUN`` says what it would do, and changes
nothing. ``LIVE`` is refused: this package places no orders.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

from statestore import times
from statestore.amounts import exact, json_type, parse_amount, written
from statestore.errors import RecordedFileError, UsageError
from statestore.runtime.risk import Prices, Risk, RiskEngine
from statestore.runtime.session import TradingSession

logger = logging.getLogger(__name__)

_UNIT = Decimal("1E-8")
_FEE = Decimal("0.006")
_SAMPLE = (60000, 60150, 60400, 60900, 61300, 61050, 60500, 59800, 59400, 59700)


def sample_prices() -> Iterator[Prices]:
    """Return made-up prices of BTC-USD, for ever."""
    return ({"BTC-USD": Decimal(price)} for price in itertools.cycle(_SAMPLE))


def recorded_prices(path: Path) -> Iterator[Prices]:
    """Return the prices of a file of JSON Lines, ``{"BTC-USD": "60000", ...}`` for each cycle.

    Raises:
        RecordedFileError: it cannot be read, or a line is not understood; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecordedFileError(f"cannot read {path}: {why}") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise RecordedFileError(f"{path} holds no prices; a line for each cycle is expected")
    return iter([_price_row(path, number, line) for number, line in rows])


def _price_row(path: Path, number: int, line: str) -> Prices:
    try:
        row = json.loads(line, parse_float=Decimal)
        if not isinstance(row, dict):
            raise ValueError(f"{json_type(row)}, not an object")
        prices = {product: parse_amount(price) for product, price in row.items()}
        if any(price <= 0 for price in prices.values()):
            raise ValueError("a price is not above 0")
    except (ValueError, RecursionError) as error:
        raise RecordedFileError(
            f'{path} line {number}: {error}; expected prices by product, {{"BTC-USD": "60000"}}'
        ) from error
    return prices


class MovingAverage:
    """Buys above the average of the last prices, sells below, then rests for a few cycles.

    No good idea of a strategy, but one with a memory worth saving.
    """

    name = "moving_average"

    def __init__(self, window: int = 3, rest: int = 2) -> None:
        self.window = window
        self.rest = rest
        self.cycles = 0
        self.seen: dict[str, list[Decimal]] = {}
        self.cooldowns: dict[str, int] = {}
        self.last_trade: str | None = None

    @exact
    def decide(self, prices: Prices, held: Iterable[str]) -> dict[str, str]:
        """Take in the prices of a cycle; return BUY or SELL by product."""
        self.cycles += 1
        holds, decided = set(held), {}
        for product, price in prices.items():
            former = self.seen.setdefault(product, [])
            rests = self.cooldowns.get(product, 0)
            self.cooldowns[product] = max(0, rests - 1)
            if len(former) == self.window and not rests:
                average = sum(former, Decimal(0)) / self.window
                if product in holds and price < average:
                    decided[product] = "SELL"
                elif product not in holds and price > average:
                    decided[product] = "BUY"
            self.seen[product] = [*former, price][-self.window :]
        return decided

    def traded(self, product: str) -> None:
        """Rest after a trade."""
        self.cooldowns[product] = self.rest
        self.last_trade = times.format_instant(times.now())

    def get_current_state(self) -> dict[str, Any]:
        return {
            "pair_states": {
                product: {"cooldown": cooldown} for product, cooldown in self.cooldowns.items()
            },
            "indicators": {"seen": self.seen},
            "custom_data": {"cycles": self.cycles},
        }

    def restore_state(self, metadata: dict[str, Any]) -> None:
        state = metadata["strategy_state"]
        # All of it is read before any of it is taken: half a memory is worse than none.
        cycles = int(state["custom_data"]["cycles"])
        seen = {
            product: [parse_amount(price) for price in prices][-self.window :]
            for product, prices in state["indicators"]["seen"].items()
        }
        cooldowns = {pair: int(said["cooldown"]) for pair, said in state["pair_states"].items()}
        self.cycles, self.seen, self.cooldowns = cycles, seen, cooldowns
        self.last_trade = metadata.get("strategy_metadata", {}).get("last_rebalance")

    def get_state_metadata(self) -> dict[str, Any]:
        return {
            "strategy_version": "1.0",
            "last_rebalance": self.last_trade,
            "risk_metrics": None,
        }


@dataclass
class Loop:
    """One run.

    Attributes:
        interval: seconds between two cycles.
        order: quote that a paper order spends.
        cycles, trades: so far.
        risk: as of the last cycle.
        decisions: of the last cycle, and what became of them.
    """

    session: TradingSession
    strategy: MovingAverage
    prices: Iterator[Prices]
    engine: RiskEngine
    interval: float = 60
    order: Decimal = Decimal(100)
    once: bool = False
    cycles: int = 0
    halted_cycles: int = 0
    trades: int = 0
    risk: Risk | None = None
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Run until told to stop, the prices end, or once; return the report.

        Raises:
            UsageError: the session is LIVE.
            LeaseHeld: another bot runs on this state.
            StateStoreError: the state cannot be loaded, or the last save failed.
        """
        if self.session.mode == "LIVE":
            raise UsageError(
                "LIVE is refused: this package places no orders, and a loop that pretends to would "
                "record positions that nobody holds; put statestore.TradingSession into a bot of "
                "your own, or use PAPER or DRY_RUN"
            )
        with self.session as session:
            while session.running:
                try:
                    prices = next(self.prices)
                except StopIteration:
                    session.request_stop("end of the prices")
                    break
                self._cycle(prices)
                if self.once:
                    session.request_stop("once")
                else:
                    session.wait(self.interval)
            if session.stopped_during is not None:
                logger.info(
                    "the signal came during a save, which was finished",
                    extra={"signal": session.stopped_by, "save": session.stopped_during},
                )
        return self._report()

    def _cycle(self, prices: Prices) -> None:
        may_trade = self.session.tick()
        # Taken from the session anew in each cycle: an operator may have repaired it.
        positions = self.session.state["positions"]
        self.risk = self.engine.look(positions, prices)
        self.decisions = []
        held = {exposure.product: key for key, exposure in self.risk.positions.items()}
        decided = self.strategy.decide(prices, held)
        for key, exposure in self.risk.positions.items():
            if exposure.stopped_out:
                decided.pop(exposure.product, None)
                self._act("SELL", exposure.product, key, prices, "stop loss", may_trade)
        for product, side in decided.items():
            key = held.get(product, product)
            self._act(side, product, key, prices, self.strategy.name, may_trade)
        self.cycles += 1
        self.halted_cycles += not may_trade
        logger.info("cycle", extra={"number": self.strategy.cycles, "may_trade": may_trade})

    def _act(
        self, side: str, product: str, key: str, prices: Prices, why: str, may_trade: bool
    ) -> None:
        assert self.risk is not None
        outcome = "filled on paper"
        if side == "BUY" and not self.engine.allows(self.risk, self.order):
            outcome = "refused: exposure limit"
        elif not may_trade or not self.session.may_trade:  # looked at again: it may be late
            outcome = "not done: halted"
        elif self.session.mode == "DRY_RUN":
            outcome = "not done: dry run"
        else:
            self._fill(side, key, prices[product])
            self.strategy.traded(product)
            self.trades += 1
            self.session.on_trade(f"{side} {product}")
            self.risk = self.engine.look(self.session.state["positions"], prices)
        decision = {"side": side, "product": product, "why": why, "outcome": outcome}
        self.decisions.append(decision)
        logger.info("decision", extra=decision)

    @exact
    def _fill(self, side: str, key: str, price: Decimal) -> None:
        """Enter a paper fill into the positions: a buy opens one, a sell closes it whole."""
        positions = self.session.state["positions"]
        if side == "SELL":
            del positions[key]
        else:
            now = times.format_instant(times.now())
            units = (self.order / price).quantize(_UNIT, rounding=ROUND_DOWN)
            value = written(units * price)
            positions[key] = {
                "side": "BUY",
                **dict.fromkeys(("quantity", "units", "base_qty"), written(units)),
                "entry_price": price,
                **dict.fromkeys(("entry_value_usd", "usd_value", "usd"), value),
                "fees_paid": written(value * _FEE),
                "entry_time": now,
                "last_fill_time": now,
                "last_fill_price": price,
                "last_updated": now,
            }
        self.session.update_portfolio()

    def _report(self) -> dict[str, Any]:
        session, risk = self.session, self.risk
        health = session.health()
        return {
            "mode": session.mode,
            "state": str(session.store.path),
            "cycles": self.cycles,
            "cycles_ever": self.strategy.cycles,
            "halted_cycles": self.halted_cycles,
            "trades": self.trades,
            "decisions": self.decisions,
            "exposure": risk.exposure if risk else None,
            "max_exposure": self.engine.max_exposure,
            "positions": {k: asdict(v) for k, v in risk.positions.items()} if risk else {},
            "stopped_by": session.stopped_by,
            **{name: health[name] for name in ("revision", "saves", "failed_saves", "reloads")},
        }
