"""A Binance of one's own on 127.0.0.1: public klines, as ``GET /api/v3/klines`` gives them."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

INTERVALS = {"1m": 60_000, "15m": 900_000, "1h": 3_600_000, "4h": 14_400_000, "1d": 86_400_000}


def kline(ts: int, step: int) -> list[Any]:
    """The kline that opens at ``ts`` (milliseconds): prices walk from 100 to 109 and begin anew."""
    price = 100 + ts // step % 10
    prices = (f"{price}.00000000", f"{price + 2}.50000000", f"{price - 1}.25000000")
    opened, high, low = prices
    close = f"{price + 1}.00000000"
    return [ts, opened, high, low, close, "3.10000000", ts + step - 1, "0", 7, "0", "0", "0"]


@dataclass
class Klines:
    """What the server knows, and what it was asked.

    Attributes:
        products: symbols it has.
        gone: instants (milliseconds) at which nothing was traded, by symbol and interval.
        newest: no kline opens later, in milliseconds; None: up to the one that is open now.
        faults: status, body and headers in place of the next answers.
        gate: answers wait for it.
        asked: set by the first request.
        requests: method, path and query, in order.
    """

    products: set[str] = field(default_factory=lambda: {"BTCUSDT", "SOLUSDT", "ETHUSDT", "BNBUSDT"})
    gone: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    newest: int | None = None
    date: str | None = None
    faults: deque[tuple[int, bytes, dict[str, str]]] = field(default_factory=deque)
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    base_url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def answer(
        self, method: str, path: str, query: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        self.requests.append((method, path, query))
        self.asked.set()
        self.gate.wait(60)
        if self.faults:
            return self.faults.popleft()
        if path != "/api/v3/klines" or method != "GET":
            return 404, b"", {}
        if query["symbol"] not in self.products:
            return 400, b'{"code":-1121,"msg":"Invalid symbol."}', {}
        step = INTERVALS[query["interval"]]
        start, end = int(query["startTime"]), int(query["endTime"])
        limit = int(query.get("limit", "500"))
        assert limit <= 1_000
        last = time.time_ns() // 1_000_000 // step * step if self.newest is None else self.newest
        gone = self.gone.get((query["symbol"], query["interval"]), set())
        first = -(-start // step) * step
        rows = [kline(ts, step) for ts in range(first, min(end, last) + 1, step) if ts not in gone]
        return 200, json.dumps(rows[:limit]).encode(), {}


@contextmanager
def serving() -> Iterator[Klines]:
    known = Klines()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            target = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            status, body, headers = known.answer(self.command, target.path, query)
            self.send_response_only(status)
            self.send_header("Date", known.date or self.date_time_string())
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.base_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield known
    finally:
        known.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
