"""Which series of bars there are, where each comes from, and what is missing of it now.

What is promised:

* Each symbol and timeframe is judged by what it holds itself; a full BTC hides no empty SOL.
* A series that lacks nothing costs no request. One that its source has no more of costs none
  either, until there is something new.
* A series that fails is told with its reason; the others are fetched all the same.
* A composite is always what its components are now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from statestore.errors import StateStoreError, UsageError
from statestore.runtime.bar_store import BarStore
from statestore.runtime.bars import (
    MAX_BARS,
    MIN_BARS,
    MIN_COMPONENTS,
    TIMEFRAMES,
    Backfill,
    Bar,
    Reason,
    Span,
    composite,
    holes,
    interval,
    last_closed,
    plan_backfill,
    rollup,
)
from statestore.runtime.candles import BarSource
from statestore.times import now

logger = logging.getLogger(__name__)

# at_start: fetched by the bootstrap. composite: computed. on_demand: by `BarCollector.ensure_bars`.
# forward_only: nobody has its past. never: kept as the bot collects it, asked of nobody.
Policy = Literal["at_start", "composite", "on_demand", "forward_only", "never"]


@dataclass(frozen=True, slots=True)
class Series:
    """One symbol.

    Attributes:
        group: what it is reported with.
        components: of a composite, by symbol.
    """

    symbol: str
    backfill: Policy
    group: str
    components: tuple[str, ...] = ()


MAJORS = ("BTC", "SOL", "ETH", "BNB")
ALT = Series("ALT", "composite", "majors", ("SOL", "ETH", "BNB", "HYPE"))
SERIES: tuple[Series, ...] = (
    *(Series(symbol, "at_start", "majors") for symbol in MAJORS),
    Series("HYPE", "forward_only", "majors"),
    ALT,
    *(Series(symbol, "never", "buckets") for symbol in ("nano", "small", "mid", "big")),
    *(Series(symbol, "forward_only", "dominance") for symbol in ("BTC.d", "USDT.d")),
)
REGIME_TIMEFRAMES = ("1m", "1h", "1d")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one series.

    Attributes:
        reason: why bars were asked for; ``none`` where they were not.
        asked: of the source.
        written: bars that are new or differ from what was kept.
        bars: that are kept now.
        newest: the instant the newest opens at; None without one.
        enough: `MIN_BARS` or more.
        why: what went wrong, or what the source does not have; empty where nothing is the matter.
        error: what was raised.
    """

    symbol: str
    tf: str
    reason: Reason
    asked: bool
    written: int
    bars: int
    newest: int | None
    why: str = ""
    error: Exception | None = None

    @property
    def enough(self) -> bool:
        return self.bars >= MIN_BARS


class BarCollector:
    """Keeps the series of a store full, from one source.

    Args:
        source: None: nothing is ever asked for.
        series: other symbols than `SERIES`; unknown ones are taken for ``never``.
        timeframes: that are fetched at the start.
        clock: the present instant.

    Raises:
        UsageError: a timeframe is unknown, or a symbol is named twice.
    """

    def __init__(
        self,
        store: BarStore,
        source: BarSource | None,
        *,
        series: Iterable[Series] = SERIES,
        timeframes: Sequence[str] = REGIME_TIMEFRAMES,
        clock: Callable[[], int] = now,
    ) -> None:
        self.store = store
        self.source = source
        self.series: dict[str, Series] = {}
        for one in series:
            if one.symbol in self.series:
                raise UsageError(f"the series {one.symbol} is named twice")
            self.series[one.symbol] = one
        self.timeframes = tuple(timeframes)
        for tf in self.timeframes:
            interval(tf)
        self._clock = clock

    def backfill_majors(self, *, force: bool = False) -> list[Outcome]:
        """Fetch what the series of the start lack, then compute the composites.

        Args:
            force: fetch the whole window of each, whatever is kept.

        Raises:
            BarsFailed: the store cannot be used, so nothing can be kept.
        """
        done = [
            self._fill(one.symbol, tf, force=force)
            for tf in self.timeframes
            for one in self.series.values()
            if one.backfill == "at_start"
        ]
        return done + self.compute_composites()

    def compute_composites(self) -> list[Outcome]:
        """Compute each composite of what its components hold now; no source is asked."""
        return [
            self._compute(one, tf)
            for tf in self.timeframes
            for one in self.series.values()
            if one.backfill == "composite"
        ]

    def ensure_bars(self, symbol: str, tf: str) -> Outcome:
        """Have as many bars of a series as there are to be had, now.

        Bars of 1m that are kept are rolled up first. Only a series that may be asked for
        (``at_start``, ``on_demand``) is then asked for.

        Raises:
            BarsFailed: the store cannot be used.
        """
        if self._policy(symbol) == "composite":
            return self._compute(self.series[symbol], tf)
        written = self.roll_up(symbol, tf) if tf != "1m" else 0
        if self._policy(symbol) in ("at_start", "on_demand"):
            return self._fill(symbol, tf, force=False)
        return self._outcome(symbol, tf, "none", written=written)

    def collect(self, symbol: str, tf: str, bars: Iterable[Bar]) -> int:
        """Keep bars that the bot collected itself; return how many are new or differ.

        Raises:
            ValueError: one opens between two bars of the timeframe, or is not closed yet.
            BarsFailed: the store cannot be used.
        """
        collected, last = list(bars), last_closed(self._clock(), tf)
        for bar in collected:
            if bar.ts > last:
                raise ValueError(
                    f"{symbol}: the bar of {tf} that opens {bar.ts} ns after 1970 is not closed "
                    "yet; is that in nanoseconds, and the clock right?"
                )
        return self.store.add(symbol, tf, collected)

    def roll_up(self, symbol: str, tf: str, *, missing: int = 0) -> int:
        """Make bars of those of 1m that are kept; return how many are new or differ.

        Args:
            missing: see `bars.rollup`.
        """
        made = rollup(self.store.bars(symbol, "1m"), "1m", tf, missing=missing)
        kept = {bar.ts for bar in self.store.bars(symbol, tf) if not _rolled_up(bar)}
        # What a source said of an interval stays: it saw all of it.
        return self.store.add(symbol, tf, [bar for bar in made if bar.ts not in kept])

    def plan(self, symbol: str, tf: str, *, force: bool = False) -> Backfill:
        """Say what a series lacks by now, whoever could be asked for it."""
        present = self._clock()
        last = last_closed(present, tf)
        # What a clock that was ahead left in the future makes no series fresh.
        instants = [bar.ts for bar in self.store.bars(symbol, tf) if bar.ts <= last]
        count, missing = len(instants), holes(instants, tf)
        known = self._answered(symbol, tf)
        if known is not None:
            missing = [hole for hole in missing if not hole.within(known)]
            first = last - (MAX_BARS - 1) * interval(tf)
            if known.since <= first:
                count = max(count, MIN_BARS)  # there are no more to be had
        newest = instants[-1] if instants else None
        return plan_backfill(count, newest, present, tf, missing=missing, force=force)

    def _compute(self, one: Series, tf: str) -> Outcome:
        parts = {name: self.store.bars(name, tf) for name in one.components}
        written = self.store.replace(one.symbol, tf, composite(parts))
        return self._outcome(one.symbol, tf, "none", written=written)

    def _fill(self, symbol: str, tf: str, *, force: bool) -> Outcome:
        plan = self.plan(symbol, tf, force=force)
        if plan.reason == "none":
            return self._outcome(symbol, tf, "none")
        if self.source is None:
            why = f"{plan.reason}, and there is no source to ask"
            return self._outcome(symbol, tf, plan.reason, why=why)
        try:
            bars = self.source.fetch(symbol, tf, plan.since, plan.until, MAX_BARS)
        except Exception as error:
            logger.log(
                logging.WARNING if isinstance(error, StateStoreError) else logging.ERROR,
                "bars could not be fetched",
                extra={"symbol": symbol, "tf": tf, "why": str(error)},
                exc_info=None if isinstance(error, StateStoreError) else error,
            )
            why = f"{plan.reason}, and could not be fetched: {error}"
            return self._outcome(symbol, tf, plan.reason, asked=True, why=why, error=error)
        answered = None
        if self.source.whole and bars:
            # Up to the newest bar only: one that is missing after it may still be posted.
            answered = Span(plan.since, bars[-1].ts + interval(tf))
        written = self.store.add(symbol, tf, bars, answered=answered, by=self.source.name)
        left = self.plan(symbol, tf).reason
        why = f"still {left}: {self.source.name} has no more" if left in ("stale", "gap") else ""
        return self._outcome(symbol, tf, plan.reason, asked=True, written=written, why=why)

    def _answered(self, symbol: str, tf: str) -> Span | None:
        if self.source is None:
            return None
        return self.store.answered(symbol, tf, self.source.name)

    def _policy(self, symbol: str) -> Policy:
        return self.series[symbol].backfill if symbol in self.series else "never"

    def _outcome(
        self,
        symbol: str,
        tf: str,
        reason: Reason,
        *,
        asked: bool = False,
        written: int = 0,
        why: str = "",
        error: Exception | None = None,
    ) -> Outcome:
        extent = self.store.extents().get((symbol, tf))
        count, newest = (extent.bars, extent.newest) if extent else (0, None)
        if not why and count < MIN_BARS and self._policy(symbol) != "never":
            parts = self.series[symbol].components
            lacking = f"fewer than {MIN_COMPONENTS} of {' '.join(parts)} have more"
            why = f"{count} bars, and {MIN_BARS} are needed: " + (
                lacking if parts else "there are no more to be had"
            )
        return Outcome(symbol, tf, reason, asked, written, count, newest, why, error)


def _rolled_up(bar: Bar) -> bool:
    return bar.source.startswith("rollup ")


def age_seconds(newest: int, tf: str, present: int) -> int:
    """Return how long ago a bar that opened then was closed, in whole seconds; 0 if it is not."""
    return max(0, present - newest - TIMEFRAMES[tf]) // 1_000_000_000
