"""Fills, balances, products and orders of Coinbase Advanced Trade, read through its official SDK.

What is promised:

* Only GET leaves, to one host, for the paths named below. Two layers see to it: the client
  refuses every other method, and the one adapter of its session refuses it again, together with
  every other path. No redirect is followed. A source keeps no client, just a function that reads.
  Each thread that reads has a client of its own, all of them made in the one place.
* An answer is whole or an error: an unfinished page chain, a page without its list and "prove it
  is you" are `IncompleteRead`, never a short list.
* The key, its secret and the tokens made of it are in no message, no log and no ``repr``; neither
  is a body that the exchange sent in place of JSON.

The SDK makes the tokens. Its way of decoding, of raising and of logging is not used: it parses
into classes that lose absent fields, and puts whole HTML pages into messages and the log.
Nothing is accounted here, and which rows are wanted is the caller's business: a read asks for a
little more than the window, since the exchange does not say which of a fill's two times it
filters by, nor whether the bounds belong to it.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from statestore.amounts import parse_amount
from statestore.errors import (
    CredentialsError,
    ExchangeError,
    IncompleteRead,
    SourceError,
)
from statestore.fills.normalise import balances_of, decode_json
from statestore.fills.sources import ReadOnlyViolation, bounded, http
from statestore.fills.sources import pace as pacing
from statestore.fills.sources.abreast import read_slices
from statestore.fills.sources.coinbase_orders import exchange_order
from statestore.fills.sources.credentials import Credentials
from statestore.fills.sources.pace import DEFAULT_RATE, LONGEST_HOLD, Pace
from statestore.fills.sources.slices import Page, Progress, Slices
from statestore.model import Balances, Batch, ExchangeOrder, KeyPermissions, Product
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

if TYPE_CHECKING:
    from requests import Response

BASE_URL = "api.coinbase.com"
API = "/api/v3/brokerage"
FILLS = f"{API}/orders/historical/fills"
ORDERS = f"{API}/orders/historical/batch"
ORDER = f"{API}/orders/historical"
ACCOUNTS = f"{API}/accounts"
PRODUCTS = f"{API}/products"
KEY_PERMISSIONS = f"{API}/key_permissions"
TIME = f"{API}/time"
MARKET = f"{API}/market/products"

_PRODUCT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_ORDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
_READABLE = re.compile(
    rf"{API}/(orders/historical/{_ORDER_ID.pattern}|accounts|key_permissions|time"
    rf"|products/{_PRODUCT_ID.pattern}|market/products/{_PRODUCT_ID.pattern}/candles)",
    re.ASCII,
)

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

# Path, parameters, and an event that ends the asking.
Get = Callable[[str, Mapping[str, object], threading.Event], dict[str, object]]
_NEVER = threading.Event()


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
        self._get = _with_retries(
            _lender(
                lambda: read_only_client(
                    credentials, base_url=base_url, timeout=timeout, ca_file=ca_file
                ),
                paced,
            ),
            paced,
            host=base_url,
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
            if _PRODUCT_ID.fullmatch(product_id):
                try:
                    answer = self._get(f"{PRODUCTS}/{product_id}", {}, _NEVER)
                except _NotFound:
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
        if not _ORDER_ID.fullmatch(exchange_order_id):
            return None
        try:
            answer = self._get(f"{ORDER}/{exchange_order_id}", {}, _NEVER)
        except _NotFound:
            return None
        row = answer.get("order")
        if not isinstance(row, dict):
            raise IncompleteRead(
                f"{self._name} {ORDER}/{exchange_order_id}: no order in the answer"
            )
        return exchange_order(row, self._name)

    def permissions(self) -> KeyPermissions:
        """Return what the key may do. More than viewing is more than a rebuild needs."""
        answer = self._get(KEY_PERMISSIONS, {}, _NEVER)
        return KeyPermissions(
            can_view=_flag(answer, "can_view"),
            can_trade=_flag(answer, "can_trade"),
            can_transfer=_flag(answer, "can_transfer"),
            portfolio_id=_word(answer, "portfolio_uuid"),
        )

    def server_time(self) -> int:
        """Return the instant by the exchange's clock. Asked without a token."""
        return _instant_of(self._get(TIME, {}, _NEVER))

    def _pages(
        self,
        path: str,
        params: Mapping[str, object],
        key: str,
        *,
        ends_by_has_next: bool,
        stopping: threading.Event = _NEVER,
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
        _of_nobody(), base_url=base_url, timeout=(5.0, 10.0), attempts=2, give_up_after=20.0
    )
    return source.server_time()


def candles_path(product_id: str) -> str:
    """Return the path of a product's public candles."""
    return f"{MARKET}/{product_id}/candles"


def public_reader(
    *,
    base_url: str = BASE_URL,
    ca_file: Path | None = None,
    rate: int = DEFAULT_RATE,
    attempts: int = 5,
    **patience: float,
) -> Callable[[str, Mapping[str, object]], dict[str, object]]:
    """Return what reads a public path with its parameters, as `CoinbaseSource` reads. Needs no key.

    Args:
        attempts: for one answer at most; one, while the exchange was just given up on.
        patience: ``give_up_after``, ``wait_initial`` and ``wait_max``, all of them.

    Raises:
        UsageError: ``base_url`` is not a host, or ``rate`` none the exchange allows.
    """
    pace = Pace(rate)
    nobody = _of_nobody()
    lend = _lender(lambda: read_only_client(nobody, base_url=base_url, ca_file=ca_file), pace)
    patiently, once = (
        _with_retries(lend, pace, host=base_url, attempts=number, **patience)
        for number in (attempts, 1)
    )
    given_up = False

    def read(path: str, params: Mapping[str, object]) -> dict[str, object]:
        nonlocal given_up
        try:
            answer = (once if given_up else patiently)(path, params, _NEVER)
        except _GaveUp:
            given_up = True
            raise
        given_up = False
        return answer

    return read


def _of_nobody() -> Credentials:
    """A key made up on the spot: the client wants one, and public paths send none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return Credentials("nobody", secret.decode())


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


def _instant_of(answer: Mapping[str, object]) -> int:
    milliseconds = answer.get("epochMillis")
    if not re.fullmatch(r"\d{1,13}", str(milliseconds), re.ASCII):
        raise IncompleteRead(f"{TIME}: epochMillis is {milliseconds!r:.40}, not a number")
    return int(str(milliseconds)) * 1_000_000


# One request ----------------------------------------------------------------------------------


_NEVER_SENT = -1
_TOO_MUCH = -2


class _Refused(Exception):
    """One request without an answer to work with.

    Its text is made for people: no body, no header, and no more of the exchange's own message
    than a line.

    Attributes:
        status: of HTTP; 0 where no answer came, `_NEVER_SENT` where no request can leave as
            proxy and certificates are set; `_TOO_MUCH` where the answer does not end.
        retry_after: seconds the exchange asks to wait.
        wait: seconds to wait before the same request may go again.
    """

    wait = 0.0

    def __init__(self, text: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later (200: the body was no JSON object)."""
        return self.status in (0, 200, 429) or self.status >= 500


class _GaveUp(ExchangeError):
    """Asked as often as allowed, without an answer; later there may well be one."""


class _NotFound(ExchangeError):
    """404: the exchange does not know it."""


class Client(Protocol):
    """What is used of the SDK's client, which carries no types."""

    session: Any

    def get(self, url_path: str, params: dict[str, object] | None = None) -> dict[str, object]: ...


def read_only_client(
    credentials: Credentials,
    *,
    base_url: str = BASE_URL,
    timeout: tuple[float, float] = (5.0, 30.0),
    ca_file: Path | None = None,
) -> Client:
    """Return the SDK's client with everything but reading taken away.

    Raises:
        CredentialsError: the secret cannot sign a token.
        UsageError: ``base_url`` is not a host.
    """
    http.require_host(base_url)
    client_class = _import_sdk()
    import requests
    from coinbase import jwt_generator

    def refuse(method: str, url: str) -> None:
        path = urlsplit(url).path
        if method != "GET" or not _READABLE.fullmatch(path):
            raise ReadOnlyViolation(f"{method} {path} is not for reading; not sent")

    class ReadOnlyClient(client_class):  # type: ignore[misc,valid-type]  # the SDK is untyped
        def prepare_and_send_request(self, http_method: str, *args: Any, **kwargs: Any) -> Any:
            if http_method != "GET":
                raise ReadOnlyViolation(f"{http_method} is not for reading; not sent")
            return super().prepare_and_send_request(http_method, *args, **kwargs)

        def send_request(
            self,
            http_method: str,
            url_path: str,
            params: Mapping[str, Any],
            headers: dict[str, str],
            data: object = None,
        ) -> dict[str, object]:
            if url_path == TIME or url_path.startswith(f"{MARKET}/"):
                headers.pop("Authorization", None)  # public, and asked when tokens are refused
            try:
                response = self.session.request(
                    http_method,
                    f"https://{self.base_url}{url_path}",
                    params=params,
                    json=data or {},
                    headers=headers,
                    timeout=self.timeout,
                )
            except bounded.TooMuch as error:
                raise _Refused(str(error), _TOO_MUCH) from error
            except OSError as error:  # those of requests, and a bundle of certificates not there
                misled = not isinstance(error, requests.RequestException) or isinstance(
                    error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)
                )
                status = _NEVER_SENT if misled else 0
                raise _Refused(_unreachable(error), status) from error
            return _answer(response)

    try:
        client = ReadOnlyClient(
            api_key=credentials.api_key,
            api_secret=credentials.api_secret,
            base_url=base_url,
            timeout=timeout,
        )
        jwt_generator.build_rest_jwt(f"GET {base_url}{TIME}", client.api_key, client.api_secret)
    except Exception:  # noqa: BLE001 - the SDK raises a bare Exception for a bad secret
        raise CredentialsError(
            "the API secret cannot sign: it is not an EC (ES256) or Ed25519 private key; "
            "give it whole, with its BEGIN and END lines (line breaks may be written as \\n)"
        ) from None
    client.session = http.read_only_session(refuse, f"https://{base_url}/", ca_file=ca_file)
    checked: Client = client
    return checked


def _import_sdk() -> Any:
    """Import the SDK (150 ms, so only now) and take back what that does to logging.

    Importing it hangs a handler for stderr on its logger. A program that imported the SDK before
    us keeps its logging as it is; our client logs nothing through it either way.
    """
    ours = "coinbase.rest" not in sys.modules
    from coinbase.rest import RESTClient

    if ours:
        logger = logging.getLogger("coinbase.RESTClient")
        logger.handlers.clear()
        logger.disabled = True
    return RESTClient


def _answer(response: Response) -> dict[str, object]:
    status = response.status_code
    if status != 200:
        raise _Refused(
            f"HTTP {status}{_message(response.content)}",
            status,
            http.retry_after(response.headers.get("Retry-After", "")),
        )
    try:
        answer = decode_json(response.content)
    except ValueError:
        raise _Refused("HTTP 200, but the body is not JSON", status) from None
    if not isinstance(answer, dict):
        raise _Refused("HTTP 200, but the body is not a JSON object", status)
    return answer


def _message(body: bytes) -> str:
    """Return a line of a JSON error's own message; nothing of any other body."""
    try:
        document = decode_json(body)
    except ValueError:
        return ""
    if isinstance(document, dict) and isinstance(document.get("errors"), list):
        document = next(iter(document["errors"]), {})
    if not isinstance(document, dict):
        return ""
    said = (document.get(name) for name in ("error_details", "message", "error"))
    text = next((text for text in said if isinstance(text, str) and text), "")
    line = http.one_line(text)
    return f": {line}" if line else ""


def _unreachable(error: Exception) -> str:
    """Return what the network said, without the errors of three libraries wrapped around it."""
    root: object = error
    while isinstance(root, BaseException):
        said = str(root)
        within = (getattr(root, "reason", None), *root.args)
        root = next((inner for inner in within if isinstance(inner, BaseException)), None)
    return f"{type(error).__name__}: {said[:200]}"


# Many requests --------------------------------------------------------------------------------


Lend = Callable[[], AbstractContextManager[Client]]


def _lender(make: Callable[[], Client], pace: Pace) -> Lend:
    """Return what lends a client that nobody else uses meanwhile: a session is for one thread.

    As many clients come to be as are needed at once.
    """

    def made() -> Client:
        client = make()
        client.session.hooks["response"].append(
            lambda response, **_options: pace.heed(response.headers)
        )
        return client

    idle = [made()]  # at once: a secret that cannot sign is found out before anything is sent

    @contextmanager
    def lend() -> Iterator[Client]:
        try:
            client = idle.pop()
        except IndexError:
            client = made()
        try:
            yield client
        finally:
            idle.append(client)

    return lend


def _with_retries(
    lend: Lend,
    pace: Pace,
    *,
    host: str,
    attempts: int,
    give_up_after: float,
    wait_initial: float,
    wait_max: float,
) -> Get:
    """Ask again where that may help, each time with a fresh token, and explain a final failure."""
    import stamina

    def once(
        path: str, params: Mapping[str, object], stopping: threading.Event, next_wait: float = 0.0
    ) -> dict[str, object]:
        with lend() as client:  # made before its turn comes, which is when it has to be sent
            turn = pace.turn(stopping)
            try:
                return client.get(path, params=dict(params))
            except _Refused as refused:
                jittered = min(next_wait + random.uniform(0, wait_initial), wait_max)
                asked_for = refused.retry_after
                refused.wait = jittered if asked_for is None else min(asked_for, LONGEST_HOLD)
                if refused.status == 429:
                    pace.refused(turn, refused.wait)
                    refused.wait = 0.0
                raise
            finally:
                pace.answered(turn)

    def patient(
        path: str, params: Mapping[str, object], stopping: threading.Event
    ) -> dict[str, object]:
        tries = 0
        wait = 0.0
        try:
            for attempt in stamina.retry_context(
                on=_again(),
                attempts=attempts,
                timeout=give_up_after,
                wait_initial=wait_initial,
                wait_max=wait_max,
            ):
                with attempt:
                    if wait:
                        pacing.nap(wait, stopping)
                    tries += 1
                    try:
                        return once(path, params, stopping, attempt.next_wait)
                    except _Refused as refused:
                        wait = refused.wait
                        raise
        except _Refused as refused:
            clock = _clock(lambda: once(TIME, {}, stopping)) if refused.status == 401 else ""
            raise _explained(refused, host, path, tries, clock) from refused
        raise AssertionError("a retry context ends by a return or an error")

    return patient


def _again() -> Callable[[Exception], bool | float]:
    """Return the judge of one request's failures: ask again or not.

    "Again" is said as 0.0, no seconds: stamina would sleep where nothing can wake it.
    """
    unauthorised = 0

    def judge(error: Exception) -> bool | float:
        nonlocal unauthorised
        if not isinstance(error, _Refused):
            return False
        if error.status == 401:
            # Valid tokens are refused now and then. Once; a wrong key stays wrong.
            unauthorised += 1
            return 0.0 if unauthorised == 1 else False
        return 0.0 if error.passing else False

    return judge


def _explained(refused: _Refused, host: str, path: str, tries: int, clock: str) -> SourceError:
    what = f"{host}: GET {path}: {refused}"
    if refused.status == 401:
        return CredentialsError(
            f"{what}: the key is refused; {clock}; otherwise check that key and "
            "secret belong together, that the key still exists, and the addresses it is limited to"
        )
    if refused.status == 403:
        return CredentialsError(
            f"{what}: the key may not read this; give it the View permission for its portfolio"
        )
    if refused.status == 404:
        return _NotFound(what)
    if 300 <= refused.status < 400:
        return ExchangeError(f"{what}: a redirect, which is never followed; check the base URL")
    if refused.status == _NEVER_SENT:
        return ExchangeError(f"{what}; check the settings of proxy and certificates")
    if not refused.passing:
        return ExchangeError(what)
    return _GaveUp(f"{what}; gave up after {tries} attempts, nothing was computed; try again later")


def _clock(ask: Callable[[], dict[str, object]]) -> str:
    """Return how far the clock here is off, the usual reason for a refused token."""
    try:
        ahead = (now() - _instant_of(ask())) / NANOSECONDS
    except (_Refused, IncompleteRead):
        return "if the clock here is off, set it (a token lives 120 s)"
    if abs(ahead) < 2:
        return "the clock here agrees with the exchange's"
    direction = "ahead of" if ahead > 0 else "behind"
    return (
        f"the clock here is {abs(ahead):.0f} s {direction} the exchange's and a token lives "
        "120 s: set the clock"
    )
