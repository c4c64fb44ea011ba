"""One request to Coinbase Advanced Trade, through its official SDK: an answer, or an error.

What is promised:

* Only GET leaves, to one host, for the paths named below. Two layers see to it: the client
  refuses every other method, and the one adapter of its session refuses it again, together with
  every other path. No redirect is followed. Every client is made in the one place.
* An answer is a JSON object or an error, and one that does not end is an error.
* The key, its secret and the tokens made of it are in no message, no log and no ``repr``; neither
  is a body that the exchange sent in place of JSON.

The SDK makes the tokens. Its way of decoding, of raising and of logging is not used: it parses
into classes that lose absent fields, and puts whole HTML pages into messages and the log.

What is sent again, and when, is not decided here (see `coinbase_reader`).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from statestore.errors import CredentialsError
from statestore.fills.decoding import decode_json
from statestore.fills.sources import ReadOnlyViolation, bounded, http
from statestore.fills.sources.credentials import Credentials

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

PRODUCT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
ORDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
_READABLE = re.compile(
    rf"{API}/(orders/historical/{ORDER_ID.pattern}|accounts|key_permissions|time"
    rf"|products/{PRODUCT_ID.pattern}|market/products/{PRODUCT_ID.pattern}/candles)",
    re.ASCII,
)


def candles_path(product_id: str) -> str:
    """Return the path of a product's public candles."""
    return f"{MARKET}/{product_id}/candles"


def of_nobody() -> Credentials:
    """A key made up on the spot: the client wants one, and public paths send none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return Credentials("nobody", secret.decode())


NEVER_SENT = -1
_TOO_MUCH = -2


class Refused(Exception):
    """One request without an answer to work with.

    Its text is made for people: no body, no header, and no more of the exchange's own message
    than a line.

    Attributes:
        status: of HTTP; 0 where no answer came, `NEVER_SENT` where no request can leave as
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
    client_class = _reading_only(_import_sdk())
    from coinbase import jwt_generator

    try:
        client = client_class(
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
    client.session = http.read_only_session(_refuse, f"https://{base_url}/", ca_file=ca_file)
    checked: Client = client
    return checked


def _reading_only(client_class: Any) -> Any:
    """Return the SDK's class of clients with its one way to the session, and only for GET."""

    class ReadOnlyClient(client_class):  # type: ignore[misc]  # the SDK is untyped
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
                raise Refused(str(error), _TOO_MUCH) from error
            except OSError as error:  # those of requests, and a bundle of certificates not there
                raise Refused(_unreachable(error), _status_of(error)) from error
            return _answer(response)

    return ReadOnlyClient


def _refuse(method: str, url: str) -> None:
    path = urlsplit(url).path
    if method != "GET" or not _READABLE.fullmatch(path):
        raise ReadOnlyViolation(f"{method} {path} is not for reading; not sent")


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
        raise Refused(
            f"HTTP {status}{_message(response.content)}",
            status,
            http.retry_after(response.headers.get("Retry-After", "")),
        )
    try:
        answer = decode_json(response.content)
    except ValueError:
        raise Refused("HTTP 200, but the body is not JSON", status) from None
    if not isinstance(answer, dict):
        raise Refused("HTTP 200, but the body is not a JSON object", status)
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


def _status_of(error: OSError) -> int:
    """Return what a request without an answer counts as: it may pass, or none can ever leave."""
    import requests

    misled = not isinstance(error, requests.RequestException) or isinstance(
        error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)
    )
    return NEVER_SENT if misled else 0


def _unreachable(error: Exception) -> str:
    """Return what the network said, without the errors of three libraries wrapped around it."""
    root: object = error
    while isinstance(root, BaseException):
        said = str(root)
        within = (getattr(root, "reason", None), *root.args)
        root = next((inner for inner in within if isinstance(inner, BaseException)), None)
    return f"{type(error).__name__}: {said[:200]}"
