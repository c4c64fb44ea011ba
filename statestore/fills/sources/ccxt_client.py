"""How exchanges are asked through ccxt: which calls may leave, and what a failure means.

What is promised:

* With a key, only calls of the venue's list leave (`venues.Venue.reads`, a handful of hundreds).
  That only GET leaves cannot be promised then: kraken wants its private reads as POST, and deribit
  places orders by GET. So the list names each call, and three layers hold it, below every method of
  ccxt: the call before it is signed; what was signed, before it is sent; and the one adapter of the
  session, which compares method, host and path once more. An exchange without a list is not opened.
* Without a key, any exchange can be asked, and only GET leaves.
* No redirect is followed, and an answer that does not end is an error.
* Digits are the exchange's: ccxt gets JSON fractions as their text, and gives amounts as text.
* Key, secret, password and signature are in no message, no log and no ``repr``. ccxt puts URL and
  body into its messages and headers into its log; neither gets out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from statestore.config import Keys
from statestore.errors import (
    CredentialsError,
    ExchangeError,
    IncompleteRead,
    SourceError,
    UsageError,
)
from statestore.fills.sources import ReadOnlyViolation, bounded, http
from statestore.fills.sources.patience import Failed, Patience
from statestore.fills.sources.venues import VENUES, known
from statestore.fills.sources.venues.terms import Venue

T = TypeVar("T")

# What ccxt raises of an answer it cannot read, besides its own errors.
ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def venue_of(exchange: str) -> Venue:
    """Return what is known of an exchange.

    Raises:
        UsageError: nothing is; the message says of which something is.
    """
    if exchange not in VENUES:
        raise UsageError(
            f"ccxt:{exchange} cannot be read: which of its calls only read, and when its list of "
            f"fills is whole, is written down for {', '.join(known())} only (docs/add-a-source.md)"
        )
    return VENUES[exchange]


def read_only_client(
    exchange: str, keys: Keys, *, base_url: str | None = None, timeout: float = 30.0
) -> Any:
    """Return ccxt's client of an exchange with everything but the venue's reads taken away.

    Raises:
        UsageError: ccxt is not installed, the exchange is not known, or ``base_url`` is no host.
        CredentialsError: the exchange wants a password besides key and secret.
    """
    venue = venue_of(exchange)
    if base_url is not None:
        http.require_host(base_url)
    gate = _Gate(exchange, venue)
    client = _reading_only(exchange, gate)(
        {
            "apiKey": keys.api_key,
            "secret": keys.secret,
            **({"password": keys.password} if keys.password else {}),
            "timeout": int(timeout * 1000),
            "logger": _SILENT,
            **venue.options,
        }
    )
    if client.requiredCredentials.get("password") and not keys.password:
        raise CredentialsError(
            f"{exchange} wants the key's password (passphrase) as well: set "
            f"CCXT_{exchange.upper()}_PASSWORD"
        )
    _set_up(client, base_url)
    gate.hosts = frozenset(
        urlsplit(client.implode_hostname(url)).netloc for url in _texts(client.urls["api"])
    )
    client.session = http.read_only_session(gate.refuse_url, "https://", "http://")
    return client


class _Gate:
    """What may leave for an exchange: the calls of its list, to its hosts; at first, to none."""

    def __init__(self, exchange: str, venue: Venue) -> None:
        self._exchange = exchange
        self._calls = {tuple(read.rsplit(" ", 2)) for read in venue.reads}
        self.hosts: frozenset[str] = frozenset()

    def refuse_call(self, path: str, api: object, method: str) -> None:
        group = api if isinstance(api, str) else "/".join(api)  # type: ignore[arg-type]
        if (group, method, path) not in self._calls:
            raise ReadOnlyViolation(f"{self._exchange}: {group} {method} {path} is not for reading")

    def refuse_url(self, method: str, url: str) -> None:
        parts = urlsplit(url)
        ends = {f"/{path}" for _, allowed, path in self._calls if allowed == method}
        if parts.scheme != "https" or parts.netloc not in self.hosts:
            raise ReadOnlyViolation(
                f"{parts.scheme}://{parts.netloc} is not {self._exchange}; not sent"
            )
        if not any(parts.path.endswith(end) for end in ends):
            raise ReadOnlyViolation(f"{method} {parts.path} is not for reading; not sent")


def _reading_only(exchange: str, gate: _Gate) -> Any:
    """Return ccxt's class of an exchange, with the gate below every method of it."""
    ccxt = import_ccxt()

    class ReadOnly(getattr(ccxt, exchange)):  # type: ignore[misc]  # ccxt is chosen by name
        answered: tuple[int, str, str] | None = None  # status, body and Retry-After

        def fetch2(
            self, path: str, api: Any = "public", method: str = "GET", *a: Any, **k: Any
        ) -> Any:
            gate.refuse_call(path, api, method)
            return super().fetch2(path, api, method, *a, **k)

        def sign(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().sign(*args, **kwargs)
            except ccxt.BaseError:
                raise
            except Exception:  # noqa: BLE001 - whatever a signer says of a secret it cannot use
                raise ccxt.AuthenticationError("the secret cannot sign") from None

        def fetch(
            self, url: str, method: str = "GET", headers: Any = None, body: Any = None
        ) -> Any:
            gate.refuse_url(method, url)
            try:
                answer = super().fetch(url, method, headers, body)
            except bounded.TooMuch as error:
                raise ccxt.BadResponse(str(error)) from error
            if not isinstance(answer, dict | list):
                raise ccxt.BadResponse("the body is not JSON")
            return answer

        def on_rest_response(self, code: int, *args: Any) -> Any:
            headers, body = args[3], args[4]
            self.answered = (code, body, headers.get("Retry-After", ""))
            return super().on_rest_response(code, *args)

        def on_json_response(self, body: str) -> Any:
            return json.loads(body, parse_float=str)

    return ReadOnly


def _set_up(client: Any, base_url: str | None) -> None:
    """Have amounts as texts; and one host in place of all, where it is named."""
    client.number = str
    if base_url is not None:
        client.urls["api"] = _elsewhere(client.urls["api"], base_url)


def public_client(exchange: str, *, base_url: str | None = None, timeout: float = 30.0) -> Any:
    """Return ccxt's client of any exchange it knows, without a key, and with nothing but GET left.

    Raises:
        UsageError: ccxt is not installed or does not know the exchange, or ``base_url`` is no host.
    """
    if base_url is not None:
        http.require_host(base_url)
    ccxt = import_ccxt()
    if exchange not in ccxt.exchanges:
        raise UsageError(f"ccxt knows no exchange {exchange!r:.40}")

    class ReadOnly(getattr(ccxt, exchange)):  # type: ignore[misc]  # ccxt is chosen by name
        def on_json_response(self, body: str) -> Any:
            return json.loads(body, parse_float=str)

    client = ReadOnly({"timeout": int(timeout * 1000), "enableRateLimit": True})
    _set_up(client, base_url)
    client.session = http.read_only_session(_refuse_all_but_get, "https://")
    return client


def _refuse_all_but_get(method: str, url: str) -> None:  # noqa: ARG001  # a `Refuse`
    if method != "GET":
        raise ReadOnlyViolation(f"it wants {method} for it, and only GET leaves")


def import_ccxt() -> Any:
    """Import ccxt (300 ms, so only now)."""
    try:
        import ccxt
    except ImportError as error:
        raise UsageError(
            f"reading through ccxt needs it ({error}): pip install 'statestore[ccxt]'"
        ) from error
    # Its debug lines hold the URL, and some exchanges are sent their signature in it.
    wire = logging.getLogger("urllib3.connectionpool")
    if _without_signatures not in wire.filters:
        wire.addFilter(_without_signatures)
    return ccxt


def _without_signatures(record: logging.LogRecord) -> bool:
    return "signature" not in record.getMessage().lower()


# ccxt logs headers and bodies, keys included.
_SILENT = logging.Logger("ccxt", logging.CRITICAL + 1)


def _texts(urls: object) -> Iterator[str]:
    if isinstance(urls, str):
        yield urls
    elif isinstance(urls, Mapping):
        for url in urls.values():
            yield from _texts(url)


def _elsewhere(urls: object, host: str) -> object:
    if isinstance(urls, Mapping):
        return {name: _elsewhere(url, host) for name, url in urls.items()}
    return urlunsplit(("https", host, *urlsplit(str(urls))[2:]))


# Failures -------------------------------------------------------------------------------------


class _Failed(Failed):
    """A `Failed` and the error it ends in."""

    def __init__(
        self, said: str, kind: type[SourceError], passing: bool, retry_after: float | None
    ) -> None:
        super().__init__(said, passing=passing, retry_after=retry_after)
        self.kind = kind


def asking(
    client: Any, name: str, keys: Keys, patience: Patience
) -> Callable[[str, Callable[[], T]], T]:
    """Return what makes a call, asks again where that may help, and explains a final failure."""
    ccxt = import_ccxt()

    def once(call: Callable[[], T]) -> T:
        client.answered = None
        try:
            return call()
        except (ccxt.BaseError, *ODD) as error:
            # Without its cause throughout: ccxt's texts carry the URL and what was sent.
            raise _failure(ccxt, error, client.answered, keys) from None

    def patiently(what: str, call: Callable[[], T]) -> T:
        try:
            return patience.ask(lambda: once(call))
        except _Failed as failed:
            gave_up = (
                f"; gave up after {failed.tries} attempts, nothing was computed; try again later"
                if failed.passing
                else ""
            )
            raise failed.kind(f"{name}: {what}: {failed}{gave_up}") from None

    return patiently


def _failure(
    ccxt: Any, error: Exception, answered: tuple[int, str, str] | None, keys: Keys
) -> _Failed:
    status, body, header = answered or (0, "", "")
    said = f"HTTP {status}" if status else f"no answer ({_root(error)})"
    said = f"{type(error).__name__}, {said}{_message(body, keys)}"
    retry_after = http.retry_after(header)
    if isinstance(error, ccxt.AuthenticationError):
        if not status:
            said = "the API secret cannot sign: give it whole, as the exchange gave it out"
        elif isinstance(error, ccxt.PermissionDenied):
            said += ": the key may not read this; allow it to query balances and trades"
        else:
            said += ": the key is refused; check that key, secret and password belong together"
        return _Failed(said, CredentialsError, False, None)
    if isinstance(error, ccxt.InvalidNonce):
        said += ": another program uses this key, or the clock here is off; set it"
    if not isinstance(error, ccxt.BaseError):
        said = f"the answer is of a shape that ccxt cannot read ({type(error).__name__})"
        return _Failed(said, IncompleteRead, False, None)
    return _Failed(said, ExchangeError, isinstance(error, ccxt.OperationFailed), retry_after)


def _root(error: BaseException) -> str:
    """Return what the network said, without the URLs of the libraries wrapped around it."""
    root: object = error
    while isinstance(root, BaseException):
        last = root
        within = (root.__cause__, getattr(root, "reason", None), *root.args)
        root = next((inner for inner in within if isinstance(inner, BaseException)), None)
    system = last.strerror if isinstance(last, OSError) else None
    return f"{type(last).__name__}{f': {system}' if system else ''}"


def _message(body: str, keys: Keys) -> str:
    """Return a line of a JSON error's own message; nothing that could hold a secret."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    for name in ("error_details", "message", "msg", "error"):
        found = document.get(name)
        text = ", ".join(map(str, found)) if isinstance(found, list) else found
        if isinstance(text, str) and text:
            break
    else:
        return ""
    secrets = [keys.api_key, keys.secret, keys.password]
    if "signature=" in text or any(one and one in text for one in secrets):
        return ""
    line = http.one_line(text)
    return f": {line}" if line else ""
