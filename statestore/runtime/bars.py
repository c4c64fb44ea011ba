"""Bars: what one is, which are missing, and what can be made of others. Pure functions of values.

What is promised:

* A series is judged by what it holds, not by how much: enough bars that are old are ``stale``, and
  a hole in the middle is a ``gap``. A count alone would call 400 bars of last year complete.
* No more than `MAX_BARS` are ever asked for at once or kept, which is 11.1 hours of 1m, 27.75 days
  of 1h and 1.82 years of 1d.
* Prices and volumes are exact decimals. A volume that nobody told is None, and so is a sum that
  one of its parts is missing from.
* Nothing is made up: a rollup needs the bars it covers, a composite at least `MIN_COMPONENTS` of
  its components at the same instant, and no bar is drawn across a hole.

A bar is named by the instant it opens at, a whole multiple of its timeframe since 1970 in UTC; it
is closed, and only then kept, once that long has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Literal, NamedTuple

from statestore.amounts import exact, parse_amount, written
from statestore.errors import UsageError
from statestore.times import NANOSECONDS, format_instant

MIN_BARS = 333
MAX_BARS = 666
MIN_COMPONENTS = 3

TIMEFRAMES: Mapping[str, int] = {
    "1m": 60 * NANOSECONDS,
    "15m": 900 * NANOSECONDS,
    "1h": 3_600 * NANOSECONDS,
    "4h": 14_400 * NANOSECONDS,
    "1d": 86_400 * NANOSECONDS,
}

Reason = Literal["none", "insufficient", "stale", "gap", "forced"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What was traded in one interval.

    Attributes:
        ts: the instant it opens at.
        open, high, low, close: quote per base.
        volume: base units; None: not known.
        source: who said so (``data-api.binance.vision``, ``composite``, ``rollup 1m``).
    """

    ts: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal | None
    source: str


class Span(NamedTuple):
    """Instants ``[since, until)``."""

    since: int
    until: int

    def within(self, other: Span | None) -> bool:
        return other is not None and other.since <= self.since and self.until <= other.until


class Backfill(NamedTuple):
    """What has to be asked for: bars that open in ``[since, until)``; nothing where ``none``."""

    reason: Reason
    since: int
    until: int


def interval(tf: str) -> int:
    """Return the length of a timeframe in nanoseconds.

    Raises:
        UsageError: there is no such timeframe here.
    """
    if tf not in TIMEFRAMES:
        raise UsageError(f"timeframe {tf!r:.20} is not one of {', '.join(TIMEFRAMES)}")
    return TIMEFRAMES[tf]


def bar_of(
    ts: int,
    open: object,
    high: object,
    low: object,
    close: object,
    volume: object,
    *,
    tf: str,
    source: str,
) -> Bar:
    """Return a bar of what a source said, once it is sure to be one.

    Raises:
        ValueError: no number, no price, a low above the high, or an instant between two bars.
    """
    if ts % interval(tf):
        raise ValueError(f"{format_instant(ts)} is no instant at which a bar of {tf} opens")
    prices = {"open": open, "high": high, "low": low, "close": close}
    numbers = {}
    for name, value in prices.items():
        try:
            numbers[name] = parse_amount(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if numbers[name] <= 0:
            raise ValueError(f"{name} is {numbers[name]}, and a price is above 0")
    least, most = min(numbers.values()), max(numbers.values())
    if numbers["low"] != least or numbers["high"] != most:
        raise ValueError(
            f"low {numbers['low']} and high {numbers['high']} do not hold open "
            f"{numbers['open']} and close {numbers['close']}"
        )
    units = None if volume is None else parse_amount(volume)
    if units is not None and units < 0:
        raise ValueError(f"volume is {units}, and cannot be below 0")
    return Bar(ts, **numbers, volume=units, source=source)


def last_closed(now: int, tf: str) -> int:
    """Return the instant at which the newest bar that is closed by ``now`` opens."""
    step = interval(tf)
    return now // step * step - step


def holes(instants: Sequence[int], tf: str) -> list[Span]:
    """Return what is missing between bars that are more than 1.1 intervals apart.

    Args:
        instants: at which the bars open, oldest first.
    """
    step = interval(tf)
    return [
        Span(before + step, after)
        for before, after in pairwise(instants)
        if 10 * (after - before) > 11 * step
    ]


def plan_backfill(
    count: int,
    newest: int | None,
    now: int,
    tf: str,
    *,
    missing: Iterable[Span] = (),
    force: bool = False,
) -> Backfill:
    """Say what a series lacks, and which bars to ask for.

    Args:
        count: bars that are kept.
        newest: the instant the newest of them opens at; None without one.
        missing: holes, as of `holes`.
        force: ask for the whole window, whatever is kept.

    Returns:
        ``insufficient``: fewer than `MIN_BARS`. ``stale``: the newest closed more than two
        intervals ago. ``gap``: a hole among the newest `MAX_BARS` intervals. ``none`` otherwise.
        The newest bar is asked for again with what follows: it may have been kept by a clock that
        was ahead, before it was closed.
    """
    step = interval(tf)
    last = last_closed(now, tf)
    first = last - (MAX_BARS - 1) * step
    until = last + step
    if force:
        return Backfill("forced", first, until)
    if count < MIN_BARS or newest is None:
        return Backfill("insufficient", first, until)
    if now - (newest + step) > 2 * step:
        return Backfill("stale", max(first, newest), until)
    wanted = [hole for hole in missing if hole.until > first]
    if wanted:
        since = max(first, min(hole.since for hole in wanted))
        return Backfill("gap", since, max(hole.until for hole in wanted))
    return Backfill("none", until, until)


@exact
def composite(components: Mapping[str, Iterable[Bar]]) -> list[Bar]:
    """Return one series of several: mean open and close, highest high, lowest low, summed volume.

    Args:
        components: bars of one timeframe by symbol; each symbol counts once at each instant.

    Returns:
        A bar for each instant at which `MIN_COMPONENTS` symbols have one, oldest first.
    """
    at: dict[int, dict[str, Bar]] = {}
    for symbol, bars in components.items():
        for bar in bars:
            at.setdefault(bar.ts, {})[symbol] = bar
    return [
        Bar(
            ts,
            open=_mean([bar.open for bar in parts.values()]),
            high=max(bar.high for bar in parts.values()),
            low=min(bar.low for bar in parts.values()),
            close=_mean([bar.close for bar in parts.values()]),
            volume=_sum(bar.volume for bar in parts.values()),
            source=f"composite {' '.join(sorted(parts))}",
        )
        for ts, parts in sorted(at.items())
        if len(parts) >= MIN_COMPONENTS
    ]


@exact
def rollup(bars: Iterable[Bar], tf: str, to: str, *, missing: int = 0) -> list[Bar]:
    """Return bars of a longer timeframe made of those of a shorter one: 60 of 1m are one of 1h.

    Args:
        bars: of ``tf``.
        missing: how many may be missing of a bar that is made all the same, for markets in which
            nothing is traded in some minutes.

    Returns:
        A bar for each interval whose parts are there, oldest first.

    Raises:
        UsageError: ``to`` is no multiple of ``tf``.
    """
    step, long = interval(tf), interval(to)
    if long <= step or long % step:
        raise UsageError(f"bars of {to} cannot be made of bars of {tf}")
    buckets: dict[int, list[Bar]] = {}
    for bar in sorted(bars, key=lambda bar: bar.ts):
        buckets.setdefault(bar.ts // long * long, []).append(bar)
    return [
        Bar(
            ts,
            open=parts[0].open,
            high=max(bar.high for bar in parts),
            low=min(bar.low for bar in parts),
            close=parts[-1].close,
            volume=_sum(bar.volume for bar in parts),
            source=f"rollup {tf}",
        )
        for ts, parts in buckets.items()
        if len(parts) >= long // step - missing
    ]


def _mean(values: Sequence[Decimal]) -> Decimal:
    return written(sum(values, Decimal(0)) / len(values))


def _sum(values: Iterable[Decimal | None]) -> Decimal | None:
    total = Decimal(0)
    for value in values:
        if value is None:
            return None
        total += value
    return total
