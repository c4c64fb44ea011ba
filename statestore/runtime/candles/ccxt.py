"""Public candles of the hundred exchanges that ccxt knows, without a key.

Only GET leaves, by https, as `ccxt_client.public_client` promises.
An exchange that wants its candles asked for otherwise cannot be read here. Without a key nothing
private can be asked either. How much one answer of an exchange holds is its own affair, so a bar
that is missing is never taken for one that does not exist (`BarSource.whole`).
"""

from __future__ import annotations

from collections.abc import Mapping

from statestore.errors import ExchangeError, IncompleteRead
from statestore.fills.sources import ReadOnlyViolation, bounded
from statestore.fills.sources.ccxt_client import ODD, import_ccxt, public_client
from statestore.fills.sources.patience import Failed, Patience
from statestore.runtime.bars import Bar, interval
from statestore.runtime.candles import MILLISECOND, Raw, checked_symbol, closed_bars, kline_of
from statestore.times import now

_MOST_PAGES = 40


class CcxtCandles:
    """A `BarSource`.

    Args:
        exchange: ccxt's id of it (``kraken``).
        base_url: host or host:port to ask in place of every host of the exchange, by https.
        quote: what prices are in; ``BTC`` is asked for as ``BTC/USD``.
        products: symbols that have another name there, by symbol.
        attempts: requests for one answer at most; one, while the host was just given up on.
        wait_initial: seconds between two attempts, doubling.

    Raises:
        UsageError: ccxt is not installed or does not know the exchange, or a host is none.
    """

    whole = False

    def __init__(
        self,
        exchange: str,
        *,
        base_url: str | None = None,
        quote: str = "USD",
        products: Mapping[str, str] | None = None,
        timeout: float = 20.0,
        attempts: int = 4,
        wait_initial: float = 0.5,
    ) -> None:
        self._name = f"ccxt:{exchange}"
        self._quote = quote
        self._products = dict(products or {})
        self._client = public_client(exchange, base_url=base_url, timeout=timeout)
        self._patience = Patience(
            attempts=attempts,
            give_up_after=60.0,
            wait_initial=wait_initial,
            wait_max=10.0,
            wary=True,
        )

    @property
    def name(self) -> str:
        return self._name

    def fetch(self, symbol: str, tf: str, start: int, end: int, limit: int) -> list[Bar]:
        """See `BarSource.fetch`. A symbol the exchange does not know is an `ExchangeError`."""
        step = interval(tf)
        market = self._products.get(symbol, f"{checked_symbol(symbol)}/{self._quote}")
        where = f"{self._name} {market} {tf}"
        present = now()
        rows: list[Raw] = []
        since = start
        for _ in range(_MOST_PAGES):
            page = [kline_of(row, where) for row in self._page(market, tf, since, limit, where)]
            newest = max((ts for ts, *_ in page), default=since - 1)
            rows += page
            if newest < since or newest + step >= end:
                break
            since = newest + step
        else:
            raise IncompleteRead(f"{where}: no end after {_MOST_PAGES} answers")
        return closed_bars(
            rows, tf, start, end, limit, present=present, source=self._name, where=where
        )

    def _page(self, market: str, tf: str, since: int, limit: int, where: str) -> list[object]:
        try:
            return self._patience.ask(lambda: self._once(market, tf, since, limit, where))
        except Failed as failed:
            raise ExchangeError(
                f"{where}: {failed}; gave up after {failed.tries} attempt(s), try again later"
            ) from None

    def _once(self, market: str, tf: str, since: int, limit: int, where: str) -> list[object]:
        ccxt = import_ccxt()
        try:
            found = self._client.fetch_ohlcv(market, tf, since // MILLISECOND, limit)
        except ReadOnlyViolation as error:
            raise ExchangeError(f"{where}: {error}; this exchange cannot be read here") from None
        except bounded.TooMuch as error:
            raise ExchangeError(f"{where}: {error}") from None
        # Without their texts throughout: those carry the URL and the body.
        except ccxt.OperationFailed as error:  # the network, or the exchange's own troubles
            raise Failed(type(error).__name__, passing=True) from None
        except ccxt.BaseError as error:
            raise ExchangeError(f"{where}: {type(error).__name__}") from None
        except ODD as error:
            raise IncompleteRead(
                f"{where}: the answer is of a shape that ccxt cannot read ({type(error).__name__})"
            ) from error
        if not isinstance(found, list):
            raise IncompleteRead(f"{where}: the answer is no list of bars")
        return found
