"""Coinbase's public candles, through `fills.sources.coinbase_reader`.

No key is needed and no token is sent. What that client promises (GET only, one host, a list of
paths, retries, no body in a message) holds here as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from statestore.errors import IncompleteRead, UsageError
from statestore.fills.sources.coinbase_client import BASE_URL, candles_path
from statestore.fills.sources.coinbase_reader import public_reader
from statestore.runtime.bars import Bar, interval
from statestore.runtime.candles import Raw, checked_symbol, closed_bars
from statestore.times import NANOSECONDS, now

GRANULARITY = {"1m": "ONE_MINUTE", "15m": "FIFTEEN_MINUTE", "1h": "ONE_HOUR", "1d": "ONE_DAY"}

# The exchange gives 350 at most. Whether it counts both ends is not said, so less is asked for.
_PAGE = 300


class CoinbaseCandles:
    """A `BarSource`. There is no 4h: it is made of 1h (`bars.rollup`).

    Args:
        base_url: host or host:port, reached by https.
        quote: what prices are in; ``BTC`` is asked for as ``BTC-USD``.
        products: symbols that have another name there, by symbol.
        ca_file: certificates to trust instead of the system's.
        rate: requests a second at most; the public endpoints allow an address 10.
        attempts, give_up_after, wait_initial, wait_max: as of `CoinbaseSource`; one attempt, while
            the host was just given up on.

    Raises:
        UsageError: ``base_url`` is not a host.
    """

    whole = True

    def __init__(
        self,
        *,
        base_url: str = BASE_URL,
        quote: str = "USD",
        products: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
        rate: int = 8,
        attempts: int = 4,
        give_up_after: float = 60.0,
        wait_initial: float = 0.5,
        wait_max: float = 10.0,
    ) -> None:
        self._name = base_url
        self._quote = quote
        self._products = dict(products or {})
        self._get = public_reader(
            base_url=base_url,
            ca_file=ca_file,
            rate=rate,
            attempts=attempts,
            give_up_after=give_up_after,
            wait_initial=wait_initial,
            wait_max=wait_max,
        )

    @property
    def name(self) -> str:
        return self._name

    def fetch(self, symbol: str, tf: str, start: int, end: int, limit: int) -> list[Bar]:
        """See `BarSource.fetch`. A product the exchange does not know is an `ExchangeError`."""
        if tf not in GRANULARITY:
            raise UsageError(f"coinbase has no candles of {tf}; it has {', '.join(GRANULARITY)}")
        step = interval(tf)
        start = max(start, end - limit * step)
        product = checked_symbol(self._products.get(symbol, f"{symbol}-{self._quote}"))
        path = candles_path(product)
        present = now()  # before it is asked, so that no clock of theirs is ahead of it
        rows: list[Raw] = []
        for since in range(start, end, _PAGE * step):
            last = min(since + _PAGE * step, end) - step
            answer = self._get(
                path,
                {
                    "start": str(since // NANOSECONDS),
                    "end": str(last // NANOSECONDS),
                    "granularity": GRANULARITY[tf],
                },
            )
            candles = answer.get("candles")
            if not isinstance(candles, list):
                raise IncompleteRead(f"{self._name} {path}: no list of candles in the answer")
            rows += (_row(candle, f"{self._name} {path}") for candle in candles)
        where = f"{self._name} {path} {tf}"
        return closed_bars(
            rows,
            tf,
            start,
            end,
            limit,
            present=present,
            source=self._name,
            where=where,
            asked=True,
        )


def _row(candle: object, where: str) -> Raw:
    start = candle.get("start") if isinstance(candle, dict) else None
    if not isinstance(candle, dict) or not re.fullmatch(r"\d{1,11}", str(start), re.ASCII):
        raise IncompleteRead(f"{where}: {candle!r:.60} is no candle")
    values = (candle.get(name) for name in ("open", "high", "low", "close", "volume"))
    opened, high, low, close, volume = values
    return (int(str(start)) * NANOSECONDS, opened, high, low, close, volume)
