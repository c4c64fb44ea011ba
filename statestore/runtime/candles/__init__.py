"""Where bars come from: public candles of an exchange, or a file. No key, and nothing but GET.

What is promised of each source: bars that are closed, of the range asked for, oldest first, each
instant once; or an error, never an empty list in place of a failure. What an exchange no longer has
is not made up, and who keeps the bars is not decided here (`collecting`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from statestore.errors import IncompleteRead, UsageError
from statestore.runtime.bars import Bar, bar_of, interval
from statestore.times import format_instant

MILLISECOND = 1_000_000  # in ns

NAMES = ("binance", "coinbase", "ccxt:EXCHANGE", "file:PATH")

SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)


class BarSource(Protocol):
    """What a backfill needs; three members are all it takes to add one.

    Attributes:
        name: for reports and for the bars themselves.
        whole: an answer holds every bar there is in the range asked for, so that one it does not
            hold need not be asked for again.
    """

    @property
    def name(self) -> str: ...

    @property
    def whole(self) -> bool: ...

    def fetch(self, symbol: str, tf: str, start: int, end: int, limit: int) -> list[Bar]:
        """Return the bars that open in ``[start, end)`` and are closed, oldest first.

        Args:
            limit: the newest so many of them at most.

        Raises:
            SourceError: it could not be read whole. A failure is never answered with an empty list.
        """


# When it opens, then open, high, low, close and volume, as the source wrote them.
Raw = tuple[int, object, object, object, object, object]


def closed_bars(
    rows: Iterable[Raw],
    tf: str,
    start: int,
    end: int,
    limit: int,
    *,
    present: int,
    source: str,
    where: str,
    asked: bool = False,
) -> list[Bar]:
    """Return the rows of an answer as `BarSource.fetch` has to; those out of the range are dropped.

    Args:
        tf, start, end, limit: as `BarSource.fetch` was given them.
        asked: the source was asked for this range alone, so an answer of nothing but other instants
            is none to it: they are in another unit, or somebody else's.
        present: the instant by whichever clock is behind; what closes later is not closed.
        where: names the answer, for messages.

    Raises:
        IncompleteRead: a row is no bar, an instant has two that differ, or none is in the range.
    """
    step = interval(tf)
    found: dict[int, Bar] = {}
    within, ts = 0, None
    for number, (ts, *values) in enumerate(rows, 1):
        within += start <= ts < end
        if not start <= ts < end or ts + step > present:
            continue
        try:
            bar = bar_of(ts, *values, tf=tf, source=source)
        except ValueError as error:
            raise IncompleteRead(f"{where}: row {number} is no bar: {error}") from error
        if found.setdefault(ts, bar) != bar:
            raise IncompleteRead(f"{where}: two bars of {format_instant(ts)} that differ")
    if asked and ts is not None and not within:
        raise IncompleteRead(
            f"{where}: no bar opens in the range asked for, {format_instant(start)} to "
            f"{format_instant(end)}; the last one says {ts} ns: of another time, or another unit"
        )
    return [found[ts] for ts in sorted(found)][-limit:]


def kline_of(row: object, where: str, *, called: str = "bar") -> Raw:
    """Return a row that is a list: when it opens in ms, open, high, low, close, volume and more.

    Args:
        where, called: for messages: which answer, and what the exchange calls its rows.

    Raises:
        IncompleteRead: it is none.
    """
    if not isinstance(row, list) or len(row) < 6 or type(row[0]) is not int:
        raise IncompleteRead(f"{where}: {row!r:.60} is no {called}")
    return (row[0] * MILLISECOND, row[1], row[2], row[3], row[4], row[5])


def checked_symbol(symbol: str) -> str:
    """Return a symbol that may stand in a URL.

    Raises:
        UsageError: it may not.
    """
    if not SYMBOL.fullmatch(symbol):
        raise UsageError(f"{symbol!r:.60} is no symbol: letters, digits, dots and dashes only")
    return symbol


def candle_source(name: str, base_url: str | None = None) -> BarSource:
    """Open a source by its name, one of `NAMES`.

    Args:
        base_url: to ask in place of the source's own host.

    Raises:
        UsageError: there is none of this name, it takes no ``base_url``, or a package is missing.
    """
    kind, colon, argument = name.partition(":")
    if kind == "file" and argument:
        if base_url is not None:
            raise UsageError(f"{name} is read from disk; a host has no place in it")
        from statestore.runtime.candles.recorded import RecordedCandles

        return RecordedCandles(Path(argument))
    if kind == "ccxt" and argument:
        from statestore.runtime.candles.ccxt import CcxtCandles

        return CcxtCandles(argument, base_url=base_url)
    if not colon and kind == "binance":
        from statestore.runtime.candles.binance import BASE_URL, BinanceCandles

        return BinanceCandles(base_url=base_url or BASE_URL)
    if not colon and kind == "coinbase":
        from statestore.fills.sources.coinbase_client import BASE_URL as COINBASE
        from statestore.runtime.candles.coinbase import CoinbaseCandles

        return CoinbaseCandles(base_url=base_url or COINBASE)
    raise UsageError(f"{name!r:.80} is no source of bars; there are {', '.join(NAMES)}")
