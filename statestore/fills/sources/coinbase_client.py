"""How Coinbase Advanced Trade is asked, through its official SDK: one answer, or an error.

What is promised:

* Only GET leaves, to one host, for the paths named below. Two layers see to it: the client
  refuses every other method, and the one adapter of its session refuses it again, together with
  every other path. No redirect is followed. What is given out is no client, just a function that
  reads. Each thread that reads has a client of its own, all of them made in the one place.
* An answer is a JSON object or an error, and one that does not end is an error. A request is sent
  again where that may help, each time with a fresh token, and never beyond the pace of all.
* The key, its secret and the tokens made of it are in no message, no log and no ``repr``; neither
  is a body that the exchange sent in place of JSON.

The SDK makes the tokens. Its way of decoding, of raising and of logging is not used: it parses
into classes that lose absent fields, and puts whole HTML pages into messages and the log.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from statestore.errors import CredentialsError, ExchangeError, IncompleteRead, NotFound, SourceError
from statestore.fills.decoding import decode_json
from statestore.fills.sources import ReadOnlyViolation, bounded, http
from statestore.fills.sources import pace as pacing
from statestore.fills.sources.credentials import Credentials
from statestore.fills.sources.pace import DEFAULT_RATE, LONGEST_HOLD, Pace
from statestore.times import NANOSECONDS, now

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

# Path, parameters, and an event that ends the asking.
Get = Callable[[str, Mapping[str, object], threading.Event], dict[str, object]]

NEVER = threading.Event()  # of what is asked until there is an answer


def reader(
    credentials: Credentials,
    pace: Pace,
    *,
    base_url: str,
    timeout: tuple[float, float],
    ca_file: Path | None,
    attempts: int,
    **patience: float,
) -> Get:
    """Return what reads a path with its parameters, from any thread.

    Args:
        attempts: requests for one answer at most.
        patience: ``give_up_after``, ``wait_initial`` and ``wait_max``, all of them.

    Raises:
        CredentialsError: the secret cannot sign; found out here, before anything is sent.
        UsageError: ``base_url`` is not a host.
    """

    def make() -> Client:
        return read_only_client(credentials, base_url=base_url, timeout=timeout, ca_file=ca_file)

    return _with_retries(_lender(make, pace), pace, host=base_url, attempts=attempts, **patience)


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
    """Return what reads a public path with its parameters, as `reader` does. Needs no key.

    Args:
        attempts: for one answer at most; one, while the exchange was just given up on.
        patience: ``give_up_after``, ``wait_initial`` and ``wait_max``, all of them.

    Raises:
        UsageError: ``base_url`` is not a host, or ``rate`` none the exchange allows.
    """
    pace = Pace(rate)
    nobody = of_nobody()
    lend = _lender(lambda: read_only_client(nobody, base_url=base_url, ca_file=ca_file), pace)
    patiently, once = (
        _with_retries(lend, pace, host=base_url, attempts=number, **patience)
        for number in (attempts, 1)
    )
    given_up = False

    def read(path: str, params: Mapping[str, object]) -> dict[str, object]:
        nonlocal given_up
        try:
            answer = (once if given_up else patiently)(path, params, NEVER)
        except _GaveUp:
            given_up = True
            raise
        given_up = False
        return answer

    return read


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
        return NotFound(what)
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
        ahead = (now() - server_instant(ask())) / NANOSECONDS
    except (_Refused, IncompleteRead):
        return "if the clock here is off, set it (a token lives 120 s)"
    if abs(ahead) < 2:
        return "the clock here agrees with the exchange's"
    direction = "ahead of" if ahead > 0 else "behind"
    return (
        f"the clock here is {abs(ahead):.0f} s {direction} the exchange's and a token lives "
        "120 s: set the clock"
    )


def server_instant(answer: Mapping[str, object]) -> int:
    """Return what an answer of `TIME` says the time is.

    Raises:
        IncompleteRead: it does not say.
    """
    milliseconds = answer.get("epochMillis")
    if not re.fullmatch(r"\d{1,13}", str(milliseconds), re.ASCII):
        raise IncompleteRead(f"{TIME}: epochMillis is {milliseconds!r:.40}, not a number")
    return int(str(milliseconds)) * 1_000_000
