"""A Coinbase of one's own: real HTTPS on 127.0.0.1, real signed tokens, made-up fills.

For tests and for the demo. The official SDK talks to it unchanged::

    with SimulatedExchange() as exchange:
        exchange.add_fills("BUY 1 BTC-USD @ 100", "SELL 0.4 BTC-USD @ 110 fee 0.04")
        exchange.set_balance("BTC", available="0.6")
        exchange.script("fills", RATE_LIMITED, OK, UNAVAILABLE)  # then honest again

What it is strict about, since clients get it wrong: every private request carries its own token
(signature, key, lifetime, the request's method and path, a nonce never seen before); filters have
plural names, and the singular ones are ignored without a word; a cursor is opaque, holds reserved
characters and is good for the same other parameters only; money has 16 decimals. Only GET is
served. Where the exchange's documents leave something open, the harder answer is given unless told
otherwise: both bounds of a time window are exclusive.

Any number of clients may ask at once, and a hundred thousand fills are served as fast as a hundred.
It is no model of a market. Needs the extra ``simulated``
(trustme, PyJWT), imported when an exchange is made. `fill` and `fills`, which make rows of lines of
text, are those of `statestore.fill_text`.

One module, because what it says depends on what it holds, on who asks, and on what was asked
before: a page, its cursor, the token and the limit are rules about the same fields.
"""

from __future__ import annotations

import json
import secrets
import ssl
import sys
import tempfile
import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, overload
from urllib.parse import parse_qs, urlsplit

from statestore.fill_text import MINUTE, PORTFOLIO_ID, START
from statestore.fill_text import fill as fill
from statestore.fill_text import fills as fills
from statestore.times import NANOSECONDS, format_instant, parse_instant

API = "/api/v3/brokerage"

# What may go wrong ----------------------------------------------------------------------------

Answer = dict[str, Any]

_HTML = "<!DOCTYPE html><html><head><title>Attention Required!</title></head><body>{}</body></html>"


@dataclass(frozen=True)
class Fault:
    """What happens to one request; the default is nothing (`OK`).

    Attributes:
        status: HTTP status; the body is ``text`` for anything but 200.
        text: the body in place of the true answer; bytes as they are, for one that is packed.
        headers: further headers.
        change: applied to the true answer before it is sent.
        wait: seconds before answering; cut short when the exchange stops.
        drop: close the connection without a byte.
        page_size: rows on this page; 0 gives an empty page that others follow.
    """

    status: int = 200
    text: str | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[Answer], Answer] | None = None
    wait: float = 0
    drop: bool = False
    page_size: int | None = None


OK = Fault()
UNAUTHORIZED = Fault(401, "Unauthorized")
FORBIDDEN = Fault(
    403, '{"error":"PERMISSION_DENIED","error_details":"Missing required scopes","message":""}'
)
RATE_LIMITED = Fault(429, _HTML.format("You are being rate limited. " * 200))
UNAVAILABLE = Fault(503, _HTML.format("Service Unavailable"))
HTML = Fault(200, _HTML.format("Just a moment..."))
DROPPED = Fault(drop=True)
EMPTY_PAGE = Fault(page_size=0)
NULL_FILLS = Fault(change=lambda answer: answer | {"fills": None})
PROOF_REQUIRED = Fault(change=lambda answer: answer | {"fills": [], "proof_token_required": True})
_AGAIN = "again+and/again="  # leads to the first page, whatever the other parameters
REPEATED_CURSOR = Fault(change=lambda answer: answer | {"cursor": _AGAIN})
ABSENT_CURSOR = Fault(
    change=lambda answer: {name: value for name, value in answer.items() if name != "cursor"}
)


def rate_limited(retry_after: int | None) -> Fault:
    """429 as documented, with the Retry-After header unless None."""
    text = '{"errors":[{"id":"rate_limit_exceeded","message":"Too many requests"}]}'
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Fault(429, text, headers)


def slow(seconds: float) -> Fault:
    """The true answer, late."""
    return Fault(wait=seconds)


def redirect(location: str) -> Fault:
    """302 to somewhere."""
    return Fault(302, "", {"Location": location})


# Served without a token.
_PUBLIC = {"time", "candles"}
_MOST_CANDLES = 350
_GRANULARITY = {"ONE_MINUTE": 60, "FIFTEEN_MINUTE": 900, "ONE_HOUR": 3_600, "ONE_DAY": 86_400}


# The exchange ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request as it arrived; whether it came with a token, but not the token.

    Attributes:
        at: when it arrived, in seconds of a clock that never goes back.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    signed: bool = True
    at: float = field(default=0.0, compare=False)


class SimulatedExchange:
    """See the module. A context manager; started and stopped with it.

    Attributes:
        api_key, api_secret: a throw-away ES256 key, made for this exchange.
        ca_file: the certificate authority to trust, while the exchange runs.
        base_url: ``127.0.0.1:PORT``, while the exchange runs.
        permissions: what `key_permissions` says; without ``can_view``, private requests get 403.
        page_size: rows a page at most, whatever ``limit`` says.
        endless: the last page is followed by empty ones, each with a fresh cursor.
        clock_offset: seconds its clock is ahead of the machine's.
        latency: seconds from a request's arrival to its answer, at least.
        rate_limit: requests that are served in any second; those beyond get 429. None: all.
        limit_headers: answers say how much of ``rate_limit`` remains, and until when.
        filter_by: the time that bounds mean: ``trade_time`` or ``sequence_timestamp``.
        inclusive: bounds belong to the window.
        oldest_first: pages begin with the oldest fill.
        last_cursor: the last page carries a cursor as well; what follows is one empty page.
        on_request: called with each request before it is answered, to change things meanwhile; by
            one thread at a time.
        requests: every request in order.
        violations: how many requests came beyond ``rate_limit``.
        refusals: why tokens were refused, in order.
    """

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        private_key = ec.generate_private_key(ec.SECP256R1())
        self._public_key = private_key.public_key()
        self.api_key = f"organizations/{uuid.uuid4()}/apiKeys/{uuid.uuid4()}"
        self.api_secret = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ).decode()
        self.permissions: dict[str, object] = {
            "can_view": True,
            "can_trade": False,
            "can_transfer": False,
            "portfolio_uuid": PORTFOLIO_ID,
            "portfolio_type": "DEFAULT",
        }
        self.page_size = 1_000
        self.endless = False
        self.clock_offset = 0.0
        self.latency = 0.0
        self.rate_limit: int | None = None
        self.limit_headers = False
        self.filter_by = "trade_time"
        self.inclusive = False
        self.oldest_first = False
        self.last_cursor = False
        self.violations = 0
        self.on_request: Callable[[Request], None] | None = None
        self.requests: list[Request] = []
        self.refusals: list[str] = []
        self._fills: list[dict[str, object]] = []
        self._orders: dict[str, dict[str, object]] = {}
        self._accounts: dict[str, dict[str, object]] = {}
        self._products: dict[str, dict[str, object]] = {}
        self._candles: dict[tuple[str, str], list[dict[str, str]]] = {}
        self._faults: dict[str, deque[Fault]] = {}
        self._forever: dict[str, Fault] = {}
        self._cursors: dict[str, tuple[int, str]] = {}
        self._nonces: set[str] = set()
        self._lock = threading.RLock()
        self._served_at: deque[float] = deque()
        self._sorted: tuple[tuple[str, int], list[int], list[dict[str, object]]] | None = None

    # What it holds

    def add_fill(self, row: str | Mapping[str, object]) -> None:
        """Add one fill: a row, or a text as `fill` takes it."""
        self._fills.append(fill(row) if isinstance(row, str) else dict(row))

    def add_fills(self, *texts: str, start: str | int = START, every: timedelta = MINUTE) -> None:
        """Add fills from texts; see `fills`."""
        self._fills += fills(*texts, start=start, every=every)

    def set_order(self, order_id: str, product_id: str, side: str, **fields: object) -> None:
        """Set an order, or change fields of one, by their own names.

        ::

            exchange.set_order("x-1", "BTC-USD", "SELL", status="FILLED", filled_size="0.1",
                               filled_value="5700")
        """
        order = self._orders.setdefault(
            order_id,
            {
                "order_id": order_id,
                "product_id": product_id,
                "user_id": "00000000-0000-0000-0000-000000000000",
                "order_configuration": {},
                "side": side,
                "client_order_id": "",
                "status": "OPEN",
                "created_time": format_instant(int(self._now()) * NANOSECONDS),
                "filled_size": "",
                "average_filled_price": "",
                "fee": "",
                "number_of_fills": "0",
                "filled_value": "",
                "size_in_quote": False,
                "total_fees": "",
                "product_type": "SPOT",
                "reject_reason": "",
                "last_fill_time": None,
                "settled": False,
                "order_placement_source": "RETAIL_ADVANCED",
            },
        )
        order.update(fields)

    def correct_fill(self, entry_id: str, **fields: object) -> None:
        """Change fields of a fill that is there already, by their own names."""
        row = next(row for row in self._fills if row["entry_id"] == entry_id)
        row.update(fields)
        self._sorted = None

    def set_balance(self, currency: str, available: str = "0", hold: str = "0") -> None:
        """Set the account of a currency; what is owned is available plus held."""
        fiat = currency in {"USD", "EUR", "GBP"}
        self._accounts[currency] = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, currency)),
            "name": f"{currency} Wallet",
            "currency": currency,
            "available_balance": {"value": f"{Decimal(available):.16f}", "currency": currency},
            "default": True,
            "active": True,
            "type": "ACCOUNT_TYPE_FIAT" if fiat else "ACCOUNT_TYPE_CRYPTO",
            "ready": True,
            "hold": {"value": f"{Decimal(hold):.16f}", "currency": currency},
            "retail_portfolio_id": PORTFOLIO_ID,
        }

    def set_product(
        self,
        product_id: str,
        *,
        price: str = "",
        base_increment: str = "0.00000001",
        base_min_size: str = "0.00000001",
        **fields: object,
    ) -> None:
        """Set a product; further fields by their own names (``product_type="FUTURE"``)."""
        base, _, quote = product_id.partition("-")
        self._products[product_id] = {
            "product_id": product_id,
            "price": price,
            "base_increment": base_increment,
            "base_min_size": base_min_size,
            "price_increment": "0.01",
            "base_currency_id": base,
            "quote_currency_id": quote,
            "product_type": "SPOT",
            "status": "online",
            "is_disabled": False,
            "mid_market_price": "",
            "alias": "",
            "alias_to": [],
        } | fields

    def set_candles(
        self, product_id: str, granularity: str, rows: Sequence[Sequence[object]]
    ) -> None:
        """Set the public candles of a product, each ``(start, low, high, open, close, volume)``.

        Args:
            granularity: by the exchange's name (``ONE_MINUTE``).
            rows: ``start`` in seconds since 1970; the rest as texts.
        """
        names = ("start", "low", "high", "open", "close", "volume")
        self._candles[product_id, granularity] = [
            dict(zip(names, map(str, row), strict=True)) for row in rows
        ]

    def script(self, endpoint: str, *faults: Fault, forever: bool = False) -> None:
        """Say what happens to the next requests of an endpoint, one each; then it is honest again.

        Args:
            endpoint: the last fixed part of its path: fills, accounts, products, key_permissions,
                time, portfolios, candles; orders for one or a list of them.
            faults: in order; `OK` lets one through.
            forever: the last one stays.
        """
        self._faults.setdefault(endpoint, deque()).extend(faults)
        if forever:
            self._forever[endpoint] = faults[-1]

    # How to reach it

    def write_key_file(self, path: Path) -> Path:
        """Write the key as the exchange's key file, readable by its owner only, and return it."""
        path.touch(mode=0o600)
        path.write_text(json.dumps({"name": self.api_key, "privateKey": self.api_secret}))
        return path

    def environment(self) -> dict[str, str]:
        """Return the variables that let a program reach this exchange with this key."""
        return {
            "COINBASE_API_KEY": self.api_key,
            "COINBASE_API_SECRET": self.api_secret,
            "COINBASE_BASE_URL": self.base_url,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> SimulatedExchange:
        import trustme

        self._folder = tempfile.TemporaryDirectory(prefix="simulated-exchange-")
        self.ca_file = Path(self._folder.name) / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self._server = _Server(self, context)
        self.base_url = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            name="simulated exchange",
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._folder.cleanup()
        if self._server.failure is not None and error is None:
            raise self._server.failure

    # How it answers

    def _answer(self, request: Request, authorization: str) -> tuple[Fault, Answer | None]:
        """Return what happens to a request and, where it is served, the true answer."""
        with self._lock:
            self.requests.append(request)
            if self.on_request is not None:
                self.on_request(request)
            beyond = self._beyond_the_limit(request.at)
        if beyond is not None:
            return beyond, None
        problem = ""
        endpoint = _endpoint(request.path)
        if request.method == "GET" and endpoint not in _PUBLIC:
            problem = self._problem_with(authorization, request)  # the slow part, so not one by one
        with self._lock:
            return self._answer_in_turn(request, endpoint, problem)

    def _beyond_the_limit(self, at: float) -> Fault | None:
        if self.rate_limit is None:
            return None
        while self._served_at and self._served_at[0] <= at - 1:
            self._served_at.popleft()
        if len(self._served_at) >= self.rate_limit:
            self.violations += 1
            return rate_limited(None)
        self._served_at.append(at)
        return None

    def _limits(self, at: float) -> dict[str, str]:
        if self.rate_limit is None or not self.limit_headers:
            return {}
        with self._lock:
            served = sum(at - 1 < other for other in self._served_at)
        return {
            "x-ratelimit-limit": str(self.rate_limit),
            "x-ratelimit-remaining": str(max(self.rate_limit - served, 0)),
            "x-ratelimit-reset": "1",
        }

    def _answer_in_turn(
        self, request: Request, endpoint: str, problem: str
    ) -> tuple[Fault, Answer | None]:
        if request.method != "GET":
            return Fault(405, '{"error":"METHOD_NOT_ALLOWED"}'), None
        parts = _parts(request.path)
        fault = self._next_fault(endpoint)
        if endpoint not in _PUBLIC:
            if problem:
                self.refusals.append(problem)
                return UNAUTHORIZED, None
            if self.permissions["can_view"] is not True and endpoint != "key_permissions":
                return FORBIDDEN, None
        answer: Answer | Fault = Fault(404, '{"error":"NOT_FOUND","message":"not found"}')
        match parts:
            case ["orders", "historical", "fills"]:
                answer = self._fills_page(request.query, fault.page_size)
            case ["orders", "historical", "batch"]:
                answer = self._orders_page(request.query, fault.page_size)
            case ["orders", "historical", order_id] if order_id in self._orders:
                answer = {"order": dict(self._orders[order_id])}
            case ["accounts"]:
                answer = self._accounts_page(request.query, fault.page_size)
            case ["products", product_id] if product_id in self._products:
                answer = dict(self._products[product_id])
            case ["key_permissions"]:
                answer = dict(self.permissions)
            case ["portfolios"]:
                name = {"name": "Default", "uuid": PORTFOLIO_ID, "type": "DEFAULT"}
                answer = {"portfolios": [name | {"deleted": False}]}
            case ["time"]:
                answer = self._time()
            case ["market", "products", product_id, "candles"]:
                answer = self._candles_page(product_id, request.query)
        if isinstance(answer, Fault):
            return answer, None
        return fault, fault.change(answer) if fault.change else answer

    def _next_fault(self, endpoint: str) -> Fault:
        queue = self._faults.get(endpoint)
        return queue.popleft() if queue else self._forever.get(endpoint, OK)

    def _problem_with(self, authorization: str, request: Request) -> str:
        """Return what is wrong with a token, or nothing."""
        import jwt

        token = authorization.removeprefix("Bearer ")
        try:
            header = jwt.get_unverified_header(token)
            # Lifetimes are judged below, by this exchange's clock.
            claims = jwt.decode(
                token,
                self._public_key,
                algorithms=["ES256"],
                options={"verify_exp": False, "verify_nbf": False},
            )
        except jwt.PyJWTError as error:
            return f"token: {error}"
        expected = {
            "iss": "cdp",
            "sub": self.api_key,
            "uri": f"{request.method} {self.base_url}{request.path}",
        }
        for name, value in expected.items():
            if claims.get(name) != value:
                return f"{name} is {claims.get(name)!r}, not {value!r}"
        if header.get("kid") != self.api_key:
            return "kid is not the key's name"
        opens, ends, here = claims.get("nbf", 0), claims.get("exp", 0), self._now()
        if not opens <= here < ends or ends - opens > 120:
            return f"lifetime: {opens} to {ends} at {here:.0f}"
        nonce = header.get("nonce")
        with self._lock:
            if not nonce or nonce in self._nonces:
                return "nonce is missing or was used before"
            self._nonces.add(nonce)
        return ""

    def _now(self) -> float:
        return time.time() + self.clock_offset

    def _time(self) -> Answer:
        here = self._now()
        return {
            "iso": format_instant(int(here) * NANOSECONDS),
            "epochSeconds": str(int(here)),
            "epochMillis": str(int(here * 1_000)),
        }

    def _fills_page(self, query: Mapping[str, list[str]], page_size: int | None) -> Answer | Fault:
        times, rows = self._by_time()
        low, high = (bisect_left, bisect_right) if self.inclusive else (bisect_right, bisect_left)
        after = _bound(query, "start_sequence_timestamp")
        before = _bound(query, "end_sequence_timestamp")
        begin = 0 if after is None else low(times, after)
        end = len(times) if before is None else max(begin, high(times, before))
        wanted: Sequence[dict[str, object]] = _Window(rows, begin, end, self.oldest_first)
        names = [name for name in ("product_id", "order_id", "trade_id") if query.get(f"{name}s")]
        if names:
            wanted = [
                row for row in wanted if all(row.get(name) in query[f"{name}s"] for name in names)
            ]
        page = self._page(wanted, query, "100", page_size, self.last_cursor)
        if isinstance(page, Fault):
            return page
        rows, cursor, _ = page
        return {"fills": rows, "cursor": cursor}

    def _candles_page(self, product_id: str, query: Mapping[str, list[str]]) -> Answer | Fault:
        """Return the candles from ``start`` to ``end``, both included, newest first."""
        known = [rows for (product, _), rows in self._candles.items() if product == product_id]
        if not known:
            return Fault(404, '{"error":"NOT_FOUND","message":"product not found"}')
        granularity = query.get("granularity", [""])[0]
        seconds = _GRANULARITY.get(granularity)
        start, end = (int(query.get(name, ["0"])[0]) for name in ("start", "end"))
        if seconds is None or (end - start) // seconds >= _MOST_CANDLES:
            return Fault(400, '{"error":"INVALID_ARGUMENT","message":"too many candles asked for"}')
        rows = self._candles.get((product_id, granularity), [])
        found = [row for row in rows if start <= int(row["start"]) <= end]
        return {"candles": sorted(found, key=lambda row: -int(row["start"]))}

    def _by_time(self) -> tuple[list[int], list[dict[str, object]]]:
        """Return the fills in order of the time that filters, and those times."""
        version = (self.filter_by, len(self._fills))
        if self._sorted is None or self._sorted[0] != version:
            timed = [(_time_of(row, self.filter_by), row) for row in reversed(self._fills)]
            timed.sort(key=lambda pair: pair[0])
            self._sorted = version, [at for at, _ in timed], [row for _, row in timed]
        return self._sorted[1:]

    def _accounts_page(
        self, query: Mapping[str, list[str]], page_size: int | None
    ) -> Answer | Fault:
        page = self._page(list(self._accounts.values()), query, "49", page_size)
        if isinstance(page, Fault):
            return page
        rows, cursor, has_next = page
        return {"accounts": rows, "has_next": has_next, "cursor": cursor, "size": len(rows)}

    def _orders_page(self, query: Mapping[str, list[str]], page_size: int | None) -> Answer | Fault:
        after = _bound(query, "start_date")  # inclusive
        source = query.get("order_placement_source", ["RETAIL_ADVANCED"])
        statuses = query.get("order_status")
        wanted = [
            order
            for order in reversed(self._orders.values())
            if order["order_placement_source"] in source
            and (after is None or parse_instant(str(order["created_time"])) >= after)
            and (statuses is None or order["status"] in statuses)
        ]
        page = self._page(wanted, query, "100", page_size)
        if isinstance(page, Fault):
            return page
        rows, cursor, has_next = page
        return {"orders": rows, "has_next": has_next, "cursor": cursor}

    def _page(
        self,
        rows: Sequence[dict[str, object]],
        query: Mapping[str, list[str]],
        default_limit: str,
        page_size: int | None,
        last_cursor: bool = False,
    ) -> tuple[list[dict[str, object]], str, bool] | Fault:
        others = json.dumps({name: query[name] for name in sorted(query) if name != "cursor"})
        begin = 0
        if "cursor" in query:
            cursor = query["cursor"][0]
            begin, parameters = self._cursors.get(cursor, (0, ""))
            if parameters != others and cursor != _AGAIN:
                return Fault(400, '{"error":"INVALID_ARGUMENT","message":"invalid cursor"}')
        limit = int(query.get("limit", [default_limit])[0])
        end = begin + min(limit, self.page_size if page_size is None else page_size)
        more = end < len(rows) or self.endless or (last_cursor and begin < len(rows))
        cursor = f"{secrets.token_urlsafe(12)}+/?&=%{end}" if more else ""
        self._cursors[cursor] = (end, others)
        return list(rows[begin:end]), cursor, more


class _Window(Sequence[dict[str, object]]):
    """A part of the fills in the order they are served; nothing is copied but a page."""

    def __init__(
        self, rows: list[dict[str, object]], begin: int, end: int, oldest_first: bool
    ) -> None:
        self._rows = rows
        self._at = range(begin, end) if oldest_first else range(begin, end)[::-1]

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, which: int) -> dict[str, object]: ...
    @overload
    def __getitem__(self, which: slice) -> list[dict[str, object]]: ...
    def __getitem__(self, which: int | slice) -> dict[str, object] | list[dict[str, object]]:
        if isinstance(which, slice):
            return [self._rows[at] for at in self._at[which]]
        return self._rows[self._at[which]]


def _parts(path: str) -> list[str]:
    return path.removeprefix(f"{API}/").split("/")


def _endpoint(path: str) -> str:
    parts = _parts(path)
    if parts[0] == "market":
        return parts[-1]
    return "fills" if parts == ["orders", "historical", "fills"] else parts[0]


def _bound(query: Mapping[str, list[str]], name: str) -> int | None:
    return parse_instant(query[name][0]) if name in query else None


def _time_of(row: Mapping[str, object], name: str) -> int:
    try:
        return parse_instant(str(row.get(name) or row.get("trade_time")))
    except ValueError:
        return time.time_ns()  # rows made to be wrong are served like new ones


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # many clients at once
    daemon_threads = False  # closing the server waits for every answer under way

    def __init__(self, exchange: SimulatedExchange, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # The handshake is left to the thread that answers: a client that never finishes it must
        # not keep others out.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.exchange = exchange
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Keep a fault of the exchange itself for its owner; a client that went away is none."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.failure = error


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, one connection a request: nothing stays open when the exchange stops."""

    server: _Server
    timeout = 5

    def do_GET(self) -> None:
        at = time.monotonic()
        # The SDK sends a body of {} with a GET.
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urlsplit(self.path)
        query = parse_qs(target.query, keep_blank_values=True)
        authorization = self.headers.get("Authorization", "")
        request = Request(self.command, target.path, query, bool(authorization), at)
        exchange = self.server.exchange
        fault, answer = exchange._answer(request, authorization)
        left = at + exchange.latency + fault.wait - time.monotonic()
        if left > 0:
            self.server.stopping.wait(left)
        if fault.drop:
            return
        text = json.dumps(answer) if fault.text is None else fault.text
        body = text if isinstance(text, bytes) else text.encode()
        self.send_response(fault.status)
        html = body.startswith(b"<")
        self.send_header("Content-Type", "text/html" if html else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in {**exchange._limits(at), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `SimulatedExchange.requests` is the log."""
