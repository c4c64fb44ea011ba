"""What a venue is, and how its answers are looked at: the words each exchange is written down in.

An answer of another shape is `NotWhole`, never an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from statestore.amounts import json_type, parse_amount

# (name of ccxt's implicit method, parameters) -> the decoded answer, fractions as their text
Ask = Callable[[str, Mapping[str, object]], object]
Raw = Mapping[str, object]

DAY_MS = 24 * 3600 * 1000


class NotWhole(Exception):
    """An answer is not what it has to be; the source says of which exchange it is."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one chain of pages is asked for: ``[since, until)`` in milliseconds, of one market.

    Attributes:
        market: the exchange's own id of it; empty where it lists all markets at once.
    """

    since: int
    until: int
    market: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a chain.

    Attributes:
        rows: as the exchange sent them.
        after: what the next page is asked with; None at the end of the chain.
        total: rows of the whole chain, where the exchange says so.
    """

    rows: list[Raw]
    after: str | None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One list of fills that an exchange keeps.

    Attributes:
        page: reads one page; its last argument is the `Page.after` of the page before.
        longest: milliseconds that one request may span; None: any.
        by_market: it is kept, and asked for, a market at a time.
        whole: a slice is always read from the very first fill on, whatever its ``since``.
        exists: whether this account has such a list; None: every account has.
    """

    page: Callable[[Ask, Slice, str | None], Page]
    longest: int | None = None
    by_market: bool = False
    whole: bool = False
    exists: Callable[[Ask], bool] | None = None


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange.

    Attributes:
        reads: every call that may leave, as ``api METHOD path`` (ccxt's terms). POST is there only
            where the exchange wants its reads signed that way.
        streams: together they hold every spot fill.
        accounts: what is owned, as rows of Coinbase's List Accounts, with the exchange's own ids of
            the currencies.
        time: the instant of a fill, exactly.
        price: the last price of a market (ccxt's structure), None where there is none.
        on_margin: whether a fill moved a margin position and not the spot balances.
        as_it_is: fills are sent in the shape of Coinbase's List Fills already.
        options: ccxt's configuration, to load spot markets and nothing else.
        markets: parameters of ccxt's ``load_markets``, likewise.
        opened: milliseconds; there are no fills before.
    """

    reads: frozenset[str]
    streams: tuple[Stream, ...]
    accounts: Callable[[Ask], list[Raw]]
    time: Callable[[Raw], int]
    price: Callable[[Ask, Mapping[str, object]], str | None]
    on_margin: Callable[[Raw], bool] = lambda _row: False
    as_it_is: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    markets: Mapping[str, object] = field(default_factory=dict)
    opened: int = 0


def inside(answer: object, *path: str) -> object:
    """Return what stands at ``path`` of an answer.

    Raises:
        NotWhole: it is not there. An answer of another shape is no empty one.
    """
    for name in path:
        if not isinstance(answer, Mapping) or name not in answer:
            raise NotWhole(
                f"no {'.'.join(path)} in the answer, so it is not whole and nothing was computed"
            )
        answer = answer[name]
    return answer


def rows_of(answer: object, *path: str) -> list[Raw]:
    """Return the list of objects at ``path`` of an answer, or raise `NotWhole`."""
    rows = inside(answer, *path)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise NotWhole(
            f"{'.'.join(path) or 'the answer'} is {json_type(rows)}, not a list of objects, so it "
            "is not whole and nothing was computed"
        )
    return rows


def objects_of(answer: object, *path: str) -> dict[str, Raw]:
    """Return the objects by name at ``path`` of an answer, or raise `NotWhole`."""
    found = inside(answer, *path)
    if not isinstance(found, Mapping) or not all(
        isinstance(one, Mapping) for one in found.values()
    ):
        raise NotWhole(
            f"{'.'.join(path)} is {json_type(found)}, not an object of objects, so it is not whole "
            "and nothing was computed"
        )
    return dict(found)


def count_of(answer: object, *path: str) -> int:
    """Return the count at ``path`` of an answer, or raise `NotWhole`."""
    found = inside(answer, *path)
    if not re.fullmatch(r"\d{1,18}", str(found), re.ASCII):
        raise NotWhole(f"{'.'.join(path)} is {found!r:.40}, not a count")
    return int(str(found))


def number_of(row: Raw, name: str) -> Decimal:
    """Return the exact number in a field of a row, or raise `ValueError` with its name."""
    try:
        return parse_amount(row[name] if isinstance(row.get(name), int) else str(row.get(name)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def milliseconds(name: str) -> Callable[[Raw], int]:
    """Return what reads the instant of a row from a field in milliseconds since 1970."""
    return lambda row: int(number_of(row, name) * 1_000_000)


def spans(since: int, until: int, longest: int | None) -> Iterator[tuple[int, int]]:
    """Cut ``[since, until)``, newest first, into pieces that one request may span."""
    while longest is not None and until - since > longest:
        yield until - longest, until
        until -= longest
    yield since, until
