"""What every client that reads an exchange over HTTP holds to, whichever library asks.

What is promised of a session that is made here:

* Nothing leaves that the client's own rule does not let through. The one adapter of the session
  asks it, below everything a library does.
* No redirect is followed, since no answer says where to.
* No entry of a ``~/.netrc`` goes out with a request.
* An answer is whole, and no larger or slower than any that means well (`bounded`).

And what an exchange says beside its answer is read in one way. Left out: asking again (`patience`;
`coinbase`, where many threads ask) and not too often (`pace`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statestore.errors import UsageError
from statestore.fills.sources import bounded

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

# Method and URL; raises `ReadOnlyViolation` where such a request is not for reading.
Refuse = Callable[[str, str], None]

_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?", re.ASCII)
_LONGEST_LINE = 200


def require_host(base_url: str) -> None:
    """Raise `UsageError` unless it is host or host:port."""
    if not _HOST.fullmatch(base_url):
        raise UsageError(f"base URL {base_url!r:.80} is not a host or host:port (without https://)")


def read_only_session(refuse: Refuse, *prefixes: str, ca_file: Path | None = None) -> Session:
    """Return a session that reaches URLs of these prefixes, and sends what the rule lets through.

    Its requests raise `bounded.TooMuch` besides what requests raises.

    Args:
        ca_file: certificates to trust instead of the system's.
    """
    import requests
    from requests.adapters import HTTPAdapter

    class ReadOnlyAdapter(HTTPAdapter):
        def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
            refuse(str(request.method), str(request.url))
            if ca_file is not None:
                # Here, since REQUESTS_CA_BUNDLE wins over the session's own setting.
                kwargs["verify"] = str(ca_file)
            response = super().send(request, *args, **{**kwargs, "stream": True})
            bounded.read_whole(response)
            response.headers.pop("Location", None)  # so nothing can follow a redirect
            return response

    session = requests.Session()
    session.adapters.clear()
    for prefix in prefixes:
        session.mount(prefix, ReadOnlyAdapter())
    # Otherwise a ~/.netrc entry for the host replaces the token.
    session.auth = lambda request: request
    return session


def retry_after(header: str) -> float | None:
    """Return the seconds of a Retry-After header; its date form is left to the usual wait."""
    text = header.strip()
    return float(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def one_line(text: str) -> str:
    """Return what an exchange says of an error as a line to be shown; of a page, nothing."""
    if "<" in text:
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST_LINE]
