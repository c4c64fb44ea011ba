"""Where a state is that is no file, as a URL: what of it is ours, and what may be shown.

What is promised: no user and no password is in a `StateUrl` as a text, in its ``repr``, or in an
error about it; what we read as the host, libpq reads as the host as well, and a URL where that is
not certain is refused. What it says beyond our parameters goes to the database's library unchanged.

Whether there is a database of that address is not looked at here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from statestore.errors import ConfigError

DEFAULT_SCHEMA = "statestore"
DEFAULT_STATE = "default"

_PAIR = re.compile("[^=]+=").match
_NO_URL = (
    "the state's URL is not understood; postgresql://user@host:5432/name is expected, where "
    "@ : / ? # % in a user, a password or a name are written %40 %3A %2F %3F %23 %25"
)
_URL_PARAMETERS = ("state", "schema", "file_fallback")


def state_at(text: str | os.PathLike[str]) -> Path | StateUrl:
    """Return where a state is, as a flag or a variable names it: a file, or what has a scheme.

    Raises:
        ConfigError: no file can have such a name.
    """
    if isinstance(text, str) and "://" in text:
        return StateUrl(text)
    if not Path(text).name:
        raise ConfigError(
            f"{str(text)!r} names no state; a file is expected, as data/.state.json, or "
            "postgresql://user@host/database"
        )
    return Path(text)


@dataclass(frozen=True, slots=True)
class StateUrl:
    """Where a state is that is no file. As a text it is the address: no user, no password.

    ``postgresql://user:password@host/database?state=NAME&schema=NAME&file_fallback=PATH``; the
    three parameters are ours, what else there is goes to the database's own library.

    Attributes:
        url: as it was given. Never to be printed.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what libpq would read otherwise than we do: a part of a password may be taken for
        a host then, and shown.

        Raises:
            ConfigError: it is no such URL.
        """
        parts = self._parts
        if parts.scheme not in ("postgres", "postgresql"):
            return
        user, _, hosts = parts.netloc.rpartition("@")
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
        odd = "@" in user + parts.path or "#" in self.url
        if odd or not all(p.isdigit() or not p for p in ports) or not all(map(_PAIR, self._pairs)):
            raise ConfigError(_NO_URL)

    def __str__(self) -> str:
        parts, ours = self._parts, self.parameters
        where = str(parts.netloc).rpartition("@")[2] or dict(self._query).get("host", "")
        scheme = "postgresql" if parts.scheme == "postgres" else parts.scheme
        if scheme != "postgresql":
            return f"{scheme}://{where}{parts.path}"
        named = {
            "schema": ours.get("schema", DEFAULT_SCHEMA),
            "state": ours.get("state", DEFAULT_STATE),
        }
        return f"{scheme}://{where}{parts.path}?{urlencode(named, safe='/')}"

    @property
    def parameters(self) -> dict[str, str]:
        """Return those of the query that are ours."""
        return {name: value for name, value in self._query if name in _URL_PARAMETERS}

    @property
    def without_parameters(self) -> str:
        """Return the URL without what is ours: as the database's own library reads it."""
        theirs = [pair for pair in self._pairs if _named_by(pair) not in _URL_PARAMETERS]
        return self._with(theirs)

    @property
    def has_password(self) -> bool:
        named = any(name in ("password", "sslpassword") for name, _ in self._query)
        return named or self._parts.password is not None

    def having(self, **parameters: object) -> StateUrl:
        """Return it with parameters of ours put in; those that are None stay as they are."""
        given = {name: str(value) for name, value in parameters.items() if value is not None}
        kept = [pair for pair in self._pairs if _named_by(pair) not in given]
        added = [f"{name}={quote(value)}" for name, value in given.items()]
        return StateUrl(self._with([*kept, *added]))

    def _with(self, pairs: list[str]) -> str:
        # Not by urlunsplit, which makes postgresql:/name of postgresql:///name.
        parts = self._parts
        query = f"?{'&'.join(pairs)}" if pairs else ""
        return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"

    @property
    def _query(self) -> list[tuple[str, str]]:
        # As libpq has it: a plus is a plus.
        return [(_named_by(pair), unquote(pair.partition("=")[2])) for pair in self._pairs]

    @property
    def _pairs(self) -> list[str]:
        query: str = self._parts.query
        return query.split("&") if query else []

    @property
    def _parts(self) -> Any:
        try:
            return urlsplit(self.url)
        except ValueError:
            # Its message may quote what is in the brackets; the URL is not to be printed.
            raise ConfigError(_NO_URL) from None


def _named_by(pair: str) -> str:
    return unquote(pair.partition("=")[0])
