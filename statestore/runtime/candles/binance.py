"""Binance's public klines: ``GET /api/v3/klines``, without a key.

What is promised:

* Only GET leaves, to one host, for that one path; the adapter of the session sees to it. No
  redirect is followed. Plain http is for 127.0.0.1 only.
* An answer is whole or an error. One request covers up to 1000 bars, so none is ever paged, and
  one that does not end is not read to its end.
* A bar that is not closed by the server's own clock (its ``Date``) or by ours is left out.

The default host serves public market data and nothing else; it knows no account.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from statestore.errors import ExchangeError, UsageError
from statestore.fills.decoding import decode_json
from statestore.fills.sources import ReadOnlyViolation, bounded, http
from statestore.fills.sources.pace import Pace
from statestore.fills.sources.patience import Failed, Patience
from statestore.runtime.bars import Bar, interval
from statestore.runtime.candles import MILLISECOND, checked_symbol, closed_bars, kline_of
from statestore.times import instant_of, now

if TYPE_CHECKING:
    from requests import Response, Session

BASE_URL = "https://data-api.binance.vision"
KLINES = "/api/v3/klines"

_MOST = 1_000  # bars in one answer
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?/?", re.ASCII)
_HERE = {"127.0.0.1", "localhost", "[::1]"}
_NEVER = threading.Event()
# What the host says to whom it will not serve at all.
_REFUSALS = {
    403: "the firewall of the exchange refuses these requests",
    418: "the exchange has banned this address for asking too often; wait before trying again",
    451: "the exchange does not serve the place these requests come from; use another source",
}


class BinanceCandles:
    """A `BarSource`.

    Args:
        base_url: scheme and host, ``https://api.binance.com`` for one.
        quote: what prices are in; ``BTC`` is asked for as ``BTCUSDT``.
        products: symbols that have another name there, by symbol.
        timeout: seconds to connect, and seconds without a byte.
        rate: requests a second at most.
        attempts: requests for one answer at most; one, while the host was just given up on.
        give_up_after: seconds after which it is not asked for again.
        wait_initial, wait_max: seconds between two attempts, doubling from one to the other.

    Raises:
        UsageError: ``base_url`` is not scheme and host.
    """

    whole = True

    def __init__(
        self,
        *,
        base_url: str = BASE_URL,
        quote: str = "USDT",
        products: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (5.0, 15.0),
        rate: int = 10,
        attempts: int = 4,
        give_up_after: float = 60.0,
        wait_initial: float = 0.5,
        wait_max: float = 10.0,
    ) -> None:
        match = _URL.fullmatch(base_url)
        if match is None or (match[1] == "http" and match[2] not in _HERE):
            raise UsageError(
                f"base URL {base_url!r:.80} is not https:// and a host (http:// for 127.0.0.1 only)"
            )
        self._base = base_url.rstrip("/")
        self._name = urlsplit(self._base).netloc
        self._quote = quote
        self._products = dict(products or {})
        self._timeout = timeout
        self._pace = Pace(rate)
        self._patience = Patience(
            attempts=attempts,
            give_up_after=give_up_after,
            wait_initial=wait_initial,
            wait_max=wait_max,
            wary=True,
        )

    @property
    def name(self) -> str:
        return self._name

    def fetch(self, symbol: str, tf: str, start: int, end: int, limit: int) -> list[Bar]:
        """See `BarSource.fetch`. A symbol the exchange does not know is an `ExchangeError`."""
        step = interval(tf)
        if limit > _MOST:
            raise UsageError(f"{limit} bars are more than one answer has ({_MOST})")
        start = max(start, end - limit * step)
        product = checked_symbol(self._products.get(symbol, f"{symbol}{self._quote}"))
        where = f"{self._name} {KLINES} {product} {tf}"
        params = {
            "symbol": product,
            "interval": tf,
            "startTime": str(start // MILLISECOND),
            "endTime": str((end - 1) // MILLISECOND),
            "limit": str(limit),
        }
        rows, served_at = self._ask(params, where)
        klines = (kline_of(row, where, called="kline") for row in rows)
        present = min(now(), served_at)
        return closed_bars(
            klines,
            tf,
            start,
            end,
            limit,
            present=present,
            source=self._name,
            where=where,
            asked=True,
        )

    def _ask(self, params: Mapping[str, str], where: str) -> tuple[list[object], int]:
        """Return the rows and the instant by the server's clock, asking again where that helps."""
        try:
            return self._patience.ask(lambda: self._once(params))
        except Failed as failed:
            gave_up = f"; gave up after {failed.tries} attempt(s), try again later"
            raise ExchangeError(f"{where}: {failed}{gave_up if failed.passing else ''}") from failed

    def _once(self, params: Mapping[str, str]) -> tuple[list[object], int]:
        import requests

        turn = self._pace.turn(_NEVER)
        try:
            # A session for each request: few are made, and any thread may make them.
            with self._session() as session:
                response = session.get(
                    f"{self._base}{KLINES}",
                    params=params,
                    timeout=self._timeout,
                    allow_redirects=False,
                )
        except bounded.TooMuch as error:
            raise Failed(str(error), passing=False) from error
        except requests.RequestException as error:
            raise Failed(f"no answer ({type(error).__name__})", passing=True) from error
        finally:
            self._pace.answered(turn)
        status = response.status_code
        retry_after = http.retry_after(response.headers.get("Retry-After", ""))
        if status in (418, 429):
            self._pace.refused(turn, retry_after or 1.0)
        if status != 200:
            said = _REFUSALS.get(status) or _message(response.content)
            raise Failed(
                f"HTTP {status}{f': {said}' if said else ''}",
                passing=status == 429 or status >= 500,
                retry_after=retry_after,
            )
        try:
            answer = decode_json(response.content)
        except ValueError as error:
            raise Failed("HTTP 200, but the body is not JSON", passing=True) from error
        if not isinstance(answer, list):
            raise Failed("HTTP 200, but the body is no list of bars", passing=False)
        return answer, _served_at(response)

    def _session(self) -> Session:
        return http.read_only_session(_refuse, f"{self._base}/")


def _refuse(method: str, url: str) -> None:
    path = urlsplit(url).path
    if method != "GET" or path != KLINES:
        raise ReadOnlyViolation(f"{method} {path} is not for reading bars")


def _served_at(response: Response) -> int:
    """Return the server's clock; ours, where it does not say."""
    try:
        return instant_of(parsedate_to_datetime(response.headers["Date"]))
    except (KeyError, ValueError):
        return now()


def _message(body: bytes) -> str:
    """Return the line an error says of itself (``{"code": -1121, "msg": "Invalid symbol."}``)."""
    try:
        document = decode_json(body)
    except ValueError:
        return ""
    said = document.get("msg") if isinstance(document, dict) else None
    return http.one_line(said) if isinstance(said, str) else ""
