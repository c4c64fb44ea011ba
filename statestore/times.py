"""Instants in UTC, exact to the nanosecond, as the exchange prints them.

An instant is an ``int``: nanoseconds since 1970-01-01T00:00:00Z. `datetime` keeps six fraction
digits only, and fills of one order differ in the ninth; so text goes in, text comes out, and
nothing in between rounds. Years are 1000 to 8999, so that what is near an instant has a name, too.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

NANOSECONDS = 1_000_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def parse_instant(text: str) -> int:
    """Return the instant an RFC 3339 text names, with 0 to 9 fraction digits, exactly.

    Raises:
        ValueError: not RFC 3339 with an offset (a time without a zone is refused, not guessed), or
            of a year nobody traded in.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r:.60} is not an RFC 3339 time with a zone, as 2025-11-18T04:29:43Z"
        )
    day, clock, fraction, zone = match.groups()
    offset = "+00:00" if zone in "Zz" else zone
    moment = datetime.fromisoformat(f"{day}T{clock}{offset}")
    instant = instant_of(moment) + int((fraction or "").ljust(9, "0"))
    if not _FIRST <= instant < _END:
        raise ValueError(f"{text} is not of the years 1000 to 8999")
    return instant


def instant_of(moment: datetime) -> int:
    """Return the instant of an aware datetime (microseconds at best)."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} carries no time zone; use an aware datetime, in UTC")
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * NANOSECONDS + since.microseconds * 1_000


def format_instant(instant: int) -> str:
    """Return RFC 3339 in UTC with 0, 3, 6 or 9 fraction digits, whichever is exact and shortest."""
    seconds, nanoseconds = divmod(instant, NANOSECONDS)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{nanoseconds:09d}"
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def now() -> int:
    """Return the present instant, to the microsecond."""
    return instant_of(datetime.now(UTC))


_FIRST, _END = (instant_of(datetime(year, 1, 1, tzinfo=UTC)) for year in (1000, 9000))
