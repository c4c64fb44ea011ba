"""Fills, balances, products and orders of Coinbase Advanced Trade.

What is promised:

* Nothing but reads leaves, as `coinbase_client` promises of every request. A source keeps no
  client, just a function that reads.
* An answer is whole or an error: an unfinished page chain, a page without its list and "prove it
  is you" are `IncompleteRead`, never a short list.

Nothing is accounted here, and which rows are wanted is the caller's business: a read asks for a
little more than the window, since the exchange does not say which of a fill's two times it
filters by, nor whether the bounds belong to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from statestore.amounts import parse_amount
from statestore.errors import IncompleteRead, NotFound
from statestore.fills.normalise import balances_of
from statestore.fills.sources.abreast import read_slices
from statestore.fills.sources.coinbase_client import (
    ACCOUNTS,
    BASE_URL,
    FILLS,
    KEY_PERMISSIONS,
    ORDER,
    ORDER_ID,
    ORDERS,
    PRODUCT_ID,
    PRODUCTS,
    TIME,
    of_nobody,
)
from statestore.fills.sources.coinbase_orders import exchange_order
from statestore.fills.sources.coinbase_reader import NEVER, reader, server_instant
from statestore.fills.sources.credentials import Credentials
from statestore.fills.sources.pace import DEFAULT_RATE, Pace
from statestore.fills.sources.slices import Page, Progress, Slices
from statestore.model import Balances, Batch, ExchangeOrder, KeyPermissions, Product
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

# Whether the lower bound belongs to the window has changed between texts of the reference.
_ASK_EARLIER = 1 * NANOSECONDS
# A fill is posted after it is executed (milliseconds, where it was seen), and the upper bound may
# mean the posting.
_ASK_LATER = 600 * NANOSECONDS

_ACCOUNTS_LIMIT = 250  # the largest the exchange takes; its default of 49 hides holdings
_ORDERS_LIMIT = 250
_EMPTY_PAGES_IN_A_ROW = 20
_MOST_ROWS = 10_000  # on a page; 250 are asked for
_LONGEST_CURSOR = 4_000  # it goes into a URL
# No fill is older, so a window without a start is cut from here on.
_FIRST_FILL = parse_instant("2015-01-01T00:00:00Z")


class CoinbaseSource:
    """A `FillSource` over Coinbase Advanced Trade.

    Args:
        credentials: of a key with the View permission; a CDP key sees one portfolio only.
        base_url: host or host:port, reached by https.
        ca_file: certificates to trust instead of the system's (a test server, for one).
        timeout: seconds to connect, and seconds without a byte.
        page_limit: fills a page. The exchange's maximum is not documented; 250 is in wide use.
        max_pages: more than these is taken for a window that does not end.
        rate: requests a second at most, over all threads and all endpoints; ``pace``, where it is
            given, holds for all sources that were given it, and decides.
        attempts: requests for one page at most.
        give_up_after: seconds after which a page is not asked for again.
        wait_initial, wait_max: seconds between two attempts, doubling from one to the other.
        on_page: told how far it is after each page of fills, by the thread that called.

    Raises:
        CredentialsError: the secret cannot sign; found out here, before anything is sent.
        UsageError: ``base_url`` is not a host, or ``rate`` none the exchange allows.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        base_url: str = BASE_URL,
        ca_file: Path | None = None,
        timeout: tuple[float, float] = (5.0, 30.0),
        page_limit: int = 250,
        max_pages: int = 2_000,
        rate: int = DEFAULT_RATE,
        pace: Pace | None = None,
        attempts: int = 5,
        give_up_after: float = 120.0,
        wait_initial: float = 0.5,
        wait_max: float = 15.0,
        on_page: Callable[[Progress], None] | None = None,
    ) -> None:
        paced = pace or Pace(rate)
        self._name = base_url
        self._page_limit = page_limit
        self._max_pages = max_pages
        self._on_page = on_page or (lambda _progress: None)
        self._abreast = lambda: paced.abreast
        self._get = reader(
            credentials,
            paced,
            base_url=base_url,
            timeout=timeout,
            ca_file=ca_file,
            attempts=attempts,
            give_up_after=give_up_after,
            wait_initial=wait_initial,
            wait_max=wait_max,
        )

    @property
    def name(self) -> str:
        return self._name

    def fills(self, since: int, until: int | None) -> Batch:
        """Return at least every fill executed in ``[since, until)``, newest first.

        Pages are read side by side where there are many (see `slices`); the rows do not tell.
        """
        asked_since = since - _ASK_EARLIER if since > 0 else None
        asked_until = None if until is None else until + _ASK_LATER
        end = now() if asked_until is None else asked_until
        slices = Slices(asked_since, asked_until, max(since, _FIRST_FILL), end)
        read_slices(
            slices,
            self._fills_between,
            abreast=self._abreast,
            max_pages=self._max_pages,
            tell=self._on_page,
        )
        return Batch(slices.rows(), slices.pages, exhausted=since <= 0)

    def _fills_between(
        self, since: int | None, until: int | None, stopping: threading.Event
    ) -> Iterator[Page]:
        params: dict[str, object] = {"limit": self._page_limit}
        if since is not None:
            params["start_sequence_timestamp"] = format_instant(max(since, 0))
        if until is not None:
            params["end_sequence_timestamp"] = format_instant(until)
        return self._pages(FILLS, params, "fills", ends_by_has_next=False, stopping=stopping)

    def balances(self) -> Balances:
        """Return what is owned now: available plus held by open orders, over all accounts."""
        params = {"limit": _ACCOUNTS_LIMIT}
        pages = self._pages(ACCOUNTS, params, "accounts", ends_by_has_next=True)
        accounts = [account for page, _ in pages for account in page]
        return Balances(balances_of(accounts, f"{self._name} {ACCOUNTS}"))

    def products(self, product_ids: Collection[str]) -> dict[str, Product]:
        """Return the products that are known, by id; one the exchange does not know is left out."""
        found = {}
        for product_id in sorted(set(product_ids)):
            if PRODUCT_ID.fullmatch(product_id):
                try:
                    answer = self._get(f"{PRODUCTS}/{product_id}", {}, NEVER)
                except NotFound:
                    continue
                found[product_id] = _product(product_id, answer)
        return found

    def orders(self, since: int) -> list[ExchangeOrder]:
        """Return the orders made through the API at or after an instant, whatever became of them.

        Those of the exchange's simple app are not in this list; `order` finds them.
        """
        params: dict[str, object] = {
            "limit": _ORDERS_LIMIT,
            "start_date": format_instant(max(since - _ASK_EARLIER, 0)),
        }
        pages = self._pages(ORDERS, params, "orders", ends_by_has_next=True)
        return [exchange_order(row, self._name) for page, _ in pages for row in page]

    def order(self, exchange_order_id: str) -> ExchangeOrder | None:
        """Return one order, None where the exchange does not know it."""
        if not ORDER_ID.fullmatch(exchange_order_id):
            return None
        try:
            answer = self._get(f"{ORDER}/{exchange_order_id}", {}, NEVER)
        except NotFound:
            return None
        row = answer.get("order")
        if not isinstance(row, dict):
            raise IncompleteRead(
                f"{self._name} {ORDER}/{exchange_order_id}: no order in the answer"
            )
        return exchange_order(row, self._name)

    def permissions(self) -> KeyPermissions:
        """Return what the key may do. More than viewing is more than a rebuild needs."""
        answer = self._get(KEY_PERMISSIONS, {}, NEVER)
        return KeyPermissions(
            can_view=_flag(answer, "can_view"),
            can_trade=_flag(answer, "can_trade"),
            can_transfer=_flag(answer, "can_transfer"),
            portfolio_id=_word(answer, "portfolio_uuid"),
        )

    def server_time(self) -> int:
        """Return the instant by the exchange's clock. Asked without a token."""
        return server_instant(self._get(TIME, {}, NEVER))

    def _pages(
        self,
        path: str,
        params: Mapping[str, object],
        key: str,
        *,
        ends_by_has_next: bool,
        stopping: threading.Event = NEVER,
    ) -> Iterator[Page]:
        """Yield the list ``key`` of every page, and whether more follow, to the end or an error.

        The length of a page says nothing: a short or empty one is followed by more as long as
        there is a cursor. List Fills has no ``has_next``; List Accounts ends by it.
        """
        whole = f"so the {key} are not whole and nothing was computed"
        seen: set[str] = set()
        empty = 0
        for number in range(1, self._max_pages + 1):
            where = f"{self._name} {path} page {number}"
            answer = self._get(path, params, stopping)
            if answer.get("proof_token_required"):
                raise IncompleteRead(
                    f"{where}: the exchange wants a second factor before it shows the {key} "
                    "(proof_token_required, strong authentication in the EU), "
                    f"{whole}; use a key that is exempt, or export the fills and read the file"
                )
            rows = answer.get(key)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise IncompleteRead(f"{where}: no list of {key} in the answer, {whole}")
            if len(rows) > _MOST_ROWS:
                raise IncompleteRead(f"{where}: {len(rows)} {key} on one page, {whole}")
            empty = 0 if rows else empty + 1
            cursor = answer.get("cursor") or ""
            has_next = answer.get("has_next", False)
            ends_here = not has_next if ends_by_has_next and "has_next" in answer else not cursor
            if ends_here and not has_next:
                yield rows, False
                return
            if not isinstance(cursor, str) or not 0 < len(cursor) <= _LONGEST_CURSOR:
                raise IncompleteRead(f"{where}: more pages follow, but it names no cursor, {whole}")
            if cursor in seen:
                raise IncompleteRead(f"{where}: its cursor led to an earlier page, {whole}")
            if empty >= _EMPTY_PAGES_IN_A_ROW:
                raise IncompleteRead(f"{where}: the {empty}th empty page in a row, {whole}")
            seen.add(cursor)
            params = {**params, "cursor": cursor}
            yield rows, True
        raise IncompleteRead(
            f"{self._name} {path}: no end after {self._max_pages} pages, {whole}; "
            "ask for a shorter window"
        )


def server_time(base_url: str = BASE_URL) -> int:
    """Return the instant by the exchange's clock. Needs no key; tries twice.

    Raises:
        ExchangeError: it cannot be reached.
        UsageError: ``base_url`` is not a host.
    """
    source = CoinbaseSource(
        of_nobody(), base_url=base_url, timeout=(5.0, 10.0), attempts=2, give_up_after=20.0
    )
    return source.server_time()


def _product(product_id: str, answer: Mapping[str, object]) -> Product:
    def amount(name: str) -> Decimal | None:
        if answer.get(name) in (None, ""):
            return None
        try:
            return parse_amount(answer[name])
        except ValueError as error:
            raise IncompleteRead(f"product {product_id}: {name}: {error}") from error

    return Product(
        product_id=product_id,
        base=_word(answer, "base_currency_id"),
        quote=_word(answer, "quote_currency_id"),
        base_increment=amount("base_increment"),
        base_min_size=amount("base_min_size"),
        price=amount("price"),
        spot=(answer.get("product_type") or "SPOT") == "SPOT",
    )


def _word(answer: Mapping[str, object], name: str) -> str:
    value = answer.get(name) or ""
    if not isinstance(value, str) or len(value) > 100:
        raise IncompleteRead(f"{name} is {value!r:.40}, not a name")
    return value


def _flag(answer: Mapping[str, object], name: str) -> bool:
    value = answer.get(name)
    if not isinstance(value, bool):
        raise IncompleteRead(f"{KEY_PERMISSIONS}: {name} is {value!r:.40}, neither true nor false")
    return value
