"""An HTTPS server on 127.0.0.1 that answers with the recorded payloads, and remembers what came."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from statestore.config import Keys

PAYLOADS = Path(__file__).parent / "payloads"

# What stands before the endpoint in a path, by exchange.
ROOTS = {
    "kraken": ("/0/public/", "/0/private/"),
    "binance": ("/api/v3/",),
    "kucoin": ("/api/v1/", "/api/v2/"),
    "coinbase": ("/api/v3/",),
}


def keys_for(exchange: str) -> Keys:
    """Return a key that can sign, and whose texts are easily found again."""
    secret = base64.b64encode(b"a secret that must not be seen").decode()
    if exchange == "coinbase":
        private = ec.generate_private_key(ec.SECP256R1())
        form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        secret = private.private_bytes(*form, serialization.NoEncryption()).decode()
    name = "organizations/o/apiKeys/" if exchange == "coinbase" else ""
    return Keys(f"{name}KEY-THAT-MUST-NOT-BE-SEEN", secret, "PASSWORD-THAT-MUST-NOT-BE-SEEN")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[Request], "Reply | object"]


class VenueServer:
    """One exchange.

    Attributes:
        base_url: ``127.0.0.1:port``.
        requests: all that came, in order.
    """

    def __init__(self, exchange: str, ca_file: Path, base_url: str) -> None:
        self.exchange = exchange
        self.ca_file = ca_file
        self.base_url = base_url
        self.requests: list[Request] = []
        self._answers: dict[str, Answer] = {}

    def on(self, endpoint: str, answer: Answer | object) -> None:
        """Answer an endpoint with a document, or with what a function makes of the request."""
        self._answers[endpoint] = answer if callable(answer) else lambda _request: answer

    def recorded(self, endpoint: str) -> Any:
        return json.loads((PAYLOADS / self.exchange / f"{endpoint}.json").read_text())

    def asked(self, endpoint: str) -> list[Request]:
        return [request for request in self.requests if request.path.endswith(f"/{endpoint}")]

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        root = next((r for r in ROOTS[self.exchange] if request.path.startswith(r)), "")
        endpoint = request.path.removeprefix(root)
        if endpoint in self._answers:
            made = self._answers[endpoint](request)
            return made if isinstance(made, Reply) else Reply(json.dumps(made).encode())
        name = endpoint.replace("/", "_")
        if endpoint == "myTrades":
            name += f".{request.query['symbol']}"
        file = PAYLOADS / self.exchange / f"{name}.json"
        return Reply(file.read_bytes()) if file.exists() else Reply(b'{"msg":"none"}', 404)


@contextmanager
def serving(exchange: str, folder: Path) -> Iterator[VenueServer]:
    authority = trustme.CA()
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            target = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(f"{target.query}&{body}").items()}
            reply = venue.answer(Request(self.command, target.path, query, dict(self.headers)))
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    venue = VenueServer(exchange, ca_file, f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield venue
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
