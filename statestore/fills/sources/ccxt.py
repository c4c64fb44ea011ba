"""Fills, balances and products of further exchanges, read through ccxt.

What is promised:

* Nothing but reads leaves, as `ccxt_client` promises of every call, and with it that no secret gets
  out and no digit is lost. A source keeps no client, just functions that read.
* An answer is whole or an error. Pages are followed here, each exchange's way; ccxt's pagination
  and its filters, which drop rows silently, are not used. A page that leads no further, a chain
  that ends before the exchange's own count and an answer of another shape are `IncompleteRead`.

What a fill's fee cannot say is not made up: fees of several currencies on one fill, or none told,
reject the row. A fee in a third currency (BNB) has no value in quote, so it is reported as unknown;
the units it takes from that currency's own balance are for `coverage` to notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from statestore.amounts import exact, parse_amount
from statestore.config import Keys
from statestore.errors import IncompleteRead
from statestore.fills.normalise import balances_of
from statestore.fills.sources.ccxt_client import ODD, asking, read_only_client, venue_of
from statestore.fills.sources.patience import Patience
from statestore.fills.sources.slices import Progress
from statestore.fills.sources.venues.terms import NotWhole, Page, Raw, Slice, Stream, Venue, spans
from statestore.model import CASH, Balances, Batch, Product, Row
from statestore.times import format_instant, now

T = TypeVar("T")

_EARLIER_MS = 1_000
# Clocks differ, and a fill is posted after it is executed.
_LATER_MS = 600_000
_TICK_SIZE = 4  # ccxt's precisionMode in which a precision is an increment


class CcxtSource:
    """A `FillSource` over one exchange that ccxt can talk to and `venues` knows.

    Args:
        exchange: ccxt's id of it (``kraken``).
        keys: a key that may read trades and balances.
        base_url: host or host:port to ask in place of every host of the exchange, by https.
        products: where fills are kept by market, only the assets of these are read; empty: all that
            are held.
        timeout: seconds to connect, and seconds without a byte.
        max_pages: more than these is taken for a chain that does not end.
        attempts: requests for one page at most.
        give_up_after: seconds after which a page is not asked for again.
        wait_initial, wait_max: seconds between two attempts, doubling from one to the other.
        on_page: told how far it is after each page of fills.

    Raises:
        UsageError: ccxt is not installed, the exchange is not known, or a host is none.
        CredentialsError: the exchange wants a password besides.
    """

    def __init__(
        self,
        exchange: str,
        keys: Keys,
        *,
        base_url: str | None = None,
        products: Collection[str] = (),
        timeout: float = 30.0,
        max_pages: int = 10_000,
        attempts: int = 5,
        give_up_after: float = 120.0,
        wait_initial: float = 0.5,
        wait_max: float = 15.0,
        on_page: Callable[[Progress], None] | None = None,
    ) -> None:
        self._venue = venue_of(exchange)
        client = read_only_client(exchange, keys, base_url=base_url, timeout=timeout)
        self._name = f"ccxt:{exchange}"
        self._assets = frozenset(re.split("[-/]", product.upper())[0] for product in products)
        self._max_pages = max_pages
        self._on_page = on_page or (lambda _progress: None)
        self._held: Mapping[str, Decimal] | None = None
        self._exists: dict[int, bool] = {}
        self._code: Callable[[str], str] = client.safe_currency_code
        self._parse: Callable[..., Mapping[str, Any]] = client.parse_trade
        self._increments = client.precisionMode == _TICK_SIZE
        patience = Patience(
            attempts=attempts,
            give_up_after=give_up_after,
            wait_initial=wait_initial,
            wait_max=wait_max,
        )
        patiently = asking(client, self._name, keys, patience)

        def ask(call: str, params: Mapping[str, object]) -> object:
            return patiently(call, lambda: getattr(client, call)(dict(params)))

        def markets() -> Mapping[str, Mapping[str, Any]]:
            found = patiently("load_markets", lambda: client.load_markets(False, {**venue.markets}))
            if not found:
                raise IncompleteRead(f"{self._name}: the exchange lists no markets")
            loaded: Mapping[str, Mapping[str, Any]] = found
            return loaded

        venue = self._venue
        self._ask = ask
        self._markets = markets

    @property
    def name(self) -> str:
        return self._name

    def fills(self, since: int, until: int | None) -> Batch:
        """Return at least every spot fill executed in ``[since, until)``.

        Where the exchange keeps fills by market, those of all markets of the assets that are held
        (or that ``products`` name) are read.
        """
        self._markets()
        opened = self._venue.opened
        first = max(since // 1_000_000 - _EARLIER_MS, opened)
        last = (now() if until is None else until) // 1_000_000 + _LATER_MS
        rows: dict[str, Row] = {}  # slices share their bounds, so a fill may come twice
        pages = 0
        for stream, market, asked in self._slices(first, last):
            for page in self._chain(stream, asked):
                pages += 1
                for number, raw in enumerate(page.rows, 1):
                    key = _content(raw)
                    if key not in rows:
                        rows[key] = self._row(raw, market, f"page {pages} row {number}")
                self._on_page(Progress(pages, len(rows), None))
        whole = all(stream.whole for stream in self._venue.streams)
        return Batch(tuple(rows.values()), pages, exhausted=whole or first <= opened)

    def balances(self) -> Balances:
        """Return what is owned now, free and used, over the spot accounts."""
        self._markets()
        accounts = [
            {**account, "currency": self._code(str(account.get("currency") or ""))}
            for account in self._whole("balances", lambda: self._venue.accounts(self._ask))
        ]
        self._held = balances_of(accounts, self._name)
        return Balances(self._held)

    def products(self, product_ids: Collection[str]) -> dict[str, Product]:
        """Return the products that are known, by id; one the exchange does not know is left out."""
        markets = self._markets()
        found = {}
        for product_id in sorted(set(product_ids)):
            market = markets.get(product_id.replace("-", "/"))
            if market is not None and market.get("spot"):
                found[product_id] = self._product(product_id, market)
        return found

    def _product(self, product_id: str, market: Mapping[str, Any]) -> Product:
        increment = market["precision"]["amount"] if self._increments else None
        price = self._whole(f"price of {product_id}", lambda: self._venue.price(self._ask, market))
        try:
            return Product(
                product_id=product_id,
                base=market["base"],
                quote=market["quote"],
                base_increment=None if increment is None else parse_amount(increment),
                base_min_size=_known(market["limits"]["amount"]["min"]),
                price=_known(price),
            )
        except ValueError as error:
            raise IncompleteRead(f"{self._name}: product {product_id}: {error}") from error

    def _slices(
        self, first: int, last: int
    ) -> Iterator[tuple[Stream, Mapping[str, Any] | None, Slice]]:
        for number, stream in enumerate(self._venue.streams):
            start = 0 if stream.whole else first
            if start >= last or not self._has(number, stream):
                continue
            for market in self._filled_markets() if stream.by_market else [None]:
                for since, until in spans(start, last, None if stream.whole else stream.longest):
                    yield stream, market, Slice(since, until, market["id"] if market else "")

    def _has(self, number: int, stream: Stream) -> bool:
        """Whether the account keeps this list of fills; asked once."""
        exists = stream.exists
        if exists is None:
            return True
        if number not in self._exists:
            self._exists[number] = self._whole("accounts", lambda: exists(self._ask))
        return self._exists[number]

    def _filled_markets(self) -> list[Mapping[str, Any] | None]:
        """Markets that can have moved an asset: those it is the base of, and those it pays in."""
        if not self._assets and self._held is None:
            self.balances()
        held = self._held or {}
        assets = self._assets or {asset for asset, units in held.items() if units} - CASH
        return [
            market
            for _, market in sorted(self._markets().items())
            if market.get("spot") and not assets.isdisjoint((market["base"], market["quote"]))
        ]

    def _chain(self, stream: Stream, asked: Slice) -> Iterator[Page]:
        """Yield the pages of a slice, to the end of the chain or an error."""
        where = f"{self._name} fills{f' of {asked.market}' if asked.market else ''}"
        whole = "so the fills are not whole and nothing was computed"
        seen: set[str] = set()
        after: str | None = None
        total: int | None = None
        for number in range(1, self._max_pages + 1):
            page = self._page(stream, asked, after)
            total = page.total if total is None else total
            before = len(seen)
            seen.update(map(_content, page.rows))
            yield page
            if page.after is None:
                # Fills that came meanwhile shift the rest: some come twice then, none is left out.
                if total is not None and len(seen) < total:
                    raise IncompleteRead(
                        f"{where}: {len(seen)} fills came of the {total} it counted, {whole}"
                    )
                return
            if page.after == after or len(seen) == before:
                raise IncompleteRead(f"{where}: page {number} leads no further, {whole}")
            after = page.after
        raise IncompleteRead(
            f"{where}: no end after {self._max_pages} pages, {whole}; ask for a shorter window"
        )

    def _page(self, stream: Stream, asked: Slice, after: str | None) -> Page:
        return self._whole("fills", lambda: stream.page(self._ask, asked, after))

    def _whole(self, what: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except NotWhole as error:
            raise IncompleteRead(f"{self._name}: {what}: {error}") from error

    def _row(self, raw: Raw, market: Mapping[str, Any] | None, origin: str) -> Row:
        if self._venue.as_it_is:
            return Row(raw, origin)
        try:
            trade = self._parse(dict(raw), market)
            return Row(_payload(self._venue, raw, trade), origin)
        except ODD as error:
            raise IncompleteRead(
                f"{self._name}: {origin} is no fill that ccxt can read ({type(error).__name__})"
            ) from error


def _content(raw: Raw) -> str:
    return json.dumps(raw, sort_keys=True)


def _known(value: object) -> Decimal | None:
    return None if value in (None, "") else parse_amount(value)


def _payload(venue: Venue, raw: Raw, trade: Mapping[str, Any]) -> dict[str, object]:
    """Return a unified trade in the shape of Coinbase's List Fills, which `normalise` reads.

    What ccxt does not tell is left out, and `normalise` rejects the row for it.
    """
    # BTC/USD:USD, a perpetual, becomes BTC-USD-USD: named, and not replayed.
    product_id = str(trade.get("symbol") or "").replace("/", "-").replace(":", "-")
    if venue.on_margin(raw):
        product_id += "-MARGIN"
    trade_id, order_id = (str(trade.get(name) or "") for name in ("id", "order"))
    side = trade.get("side")
    commission, currency = _fee(trade)
    return {
        # Ids count a market's trades, and both sides of a trade with oneself share one.
        "entry_id": f"{product_id}/{order_id}/{trade_id}" if trade_id else "",
        "trade_id": trade_id,
        "order_id": order_id,
        "product_id": product_id,
        "side": side.upper() if isinstance(side, str) else side,
        "price": trade.get("price"),
        "size": trade.get("amount"),
        "size_in_quote": False,
        "commission": commission,
        "commission_currency": currency,
        "trade_time": _time(venue, raw),
    }


def _time(venue: Venue, raw: Raw) -> str:
    try:
        return format_instant(venue.time(raw))
    except (ValueError, OverflowError) as error:
        return str(error)  # no time either; it says why where the row is rejected


@exact
def _fee(trade: Mapping[str, Any]) -> tuple[str, str]:
    """Return amount and currency of the fee; a text that is no number where it has not one each."""
    fees = trade.get("fees") or [trade.get("fee") or {}]
    amounts: dict[str, Decimal] = {}
    for fee in fees:
        cost, currency = fee.get("cost"), fee.get("currency")
        if cost is None or not currency:
            return "not told", ""
        try:
            amounts[currency] = amounts.get(currency, Decimal(0)) + parse_amount(cost)
        except ValueError:
            return str(cost), str(currency)  # `normalise` says what is wrong with it
    paid = {currency: amount for currency, amount in amounts.items() if amount}
    if len(paid) > 1:
        return " and ".join(f"{amount} {currency}" for currency, amount in paid.items()), ""
    currency, amount = next(iter((paid or amounts).items()))
    return format(amount, "f"), currency
