"""Every fill row an exchange ever gave, kept in a file, so that it is asked only for what is new.

`LedgerSource` wraps another source. A read of ``[since, until)`` fetches what is not proven yet,
keeps it, and returns one `Batch` that means what a plain read of the window means: the same fills,
the same rows rejected, the same rows twice.

What is promised:

* A hole is fetched, never assumed. A range counts as proven only after a whole answer for it was
  read and kept.
* Only what had an hour to settle (`SETTLED`) is proven: a range ends that long before the time at
  which the request was sent, by the exchange's clock or this machine's, whichever is behind. So
  the last hour is fetched each time, a fill may be posted late by as much, and no clock that is
  wrong makes a range claim what was not posted yet.
* Rejected rows are kept as well, and an ``entry_id`` that comes back different is kept twice, and
  stays a conflict.
* Nothing of one exchange or portfolio is ever returned for another.
* It is a cache: a file that is damaged, or cannot be used, never fails a read (see `ledger_file`).

What is left out: a fill posted more than an hour late inside of a proven range. The balance tells
that something is missing, and `afresh` reads the window again, without the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from statestore.errors import SourceError
from statestore.fills.ledger_file import LedgerFile, Range
from statestore.fills.sources import FillSource
from statestore.model import Balances, Batch, Product
from statestore.times import NANOSECONDS, now

SETTLED = 3_600 * NANOSECONDS


class _Hole(NamedTuple):
    """What has to be fetched; until None is the present."""

    since: int
    until: int | None


class LedgerSource:
    """A `FillSource` that asks another one only for what the ledger does not have.

    Args:
        source: where the fills come from.
        path: of the ledger, made where there is none (its folder is not).
        portfolio: whose fills ``source`` gives.
        clock: the instant by the exchange's clock; asked before each fetch that is kept.
        warn: told what is the matter with the ledger, in a sentence.
        keep: False opens the file for reading only, and keeps nothing.
    """

    def __init__(
        self,
        source: FillSource,
        path: Path,
        portfolio: str,
        *,
        clock: Callable[[], int],
        warn: Callable[[str], None],
        keep: bool = True,
    ) -> None:
        self._source = source
        self._file = LedgerFile(path, source.name, portfolio, warn=warn, keep=keep)
        self._clock = clock
        self._believed = True
        self._remembered = False

    @property
    def name(self) -> str:
        return self._source.name

    def balances(self) -> Balances | None:
        """Return what is owned now: balances are never remembered."""
        return self._source.balances()

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        """Return the products that are known, by id, as the exchange says now."""
        return self._source.products(product_ids)

    def server_time(self) -> int:
        """Return the instant by the exchange's clock, asked for now."""
        return self._clock()

    def afresh(self) -> LedgerSource | None:
        """Return this source without its memory, or None if nothing was taken from memory so far.

        What it reads replaces what the ledger holds of the same window.
        """
        if not self._remembered:
            return None
        fresh = copy(self)
        fresh._file = copy(self._file)
        fresh._believed = fresh._remembered = False
        return fresh

    def fills(self, since: int, until: int | None) -> Batch:
        """Return every row executed in ``[since, until)``, and all that do not say when.

        ``pages`` counts what was fetched for it: 0 where everything was known.

        Raises:
            SourceError: a hole could not be read whole. What was read before it is kept.
        """
        known = self._file.recall(since, until, believed=self._believed)
        holes = _holes(since, until, known.ranges)
        self._remembered |= bool(known.rows) or holes != [_Hole(since, until)]
        rows = {kept.digest: kept for kept in known.rows}
        pages, whole_since = 0, known.whole_since
        for number, hole in enumerate(holes, 1):
            sent = self._sent() if self._file.keeps else None
            batch = self._source.fills(hole.since, hole.until)
            pages += batch.pages
            if batch.exhausted:
                former = hole.since if whole_since is None else whole_since
                whole_since = max(former, hole.since)
            # Each read numbers its pages from 1; a row is told apart by where it stands.
            fetched = self._file.kept(
                row if number == 1 else replace(row, origin=f"read {number}, {row.origin}")
                for row in batch.rows
            )
            rows.update((kept.digest, kept) for kept in fetched)
            if self._file.keeps:
                forget = None if self._believed else known.newest_id
                self._file.store(fetched, _proven(hole, sent), whole_since, forget)
        return Batch(
            tuple(kept.row for kept in rows.values() if kept.within(since, until)),
            pages,
            exhausted=whole_since is not None and since <= whole_since,
        )

    def _sent(self) -> int | None:
        """The present by the clock that is behind, or None: no range can be claimed."""
        try:
            return min(self._clock(), now())
        except SourceError:
            return None


def _proven(hole: _Hole, sent: int | None) -> Range | None:
    """The range that a whole answer for a hole proves, when it was asked for at ``sent``."""
    if sent is None:
        return None
    settled = sent - SETTLED
    return Range(hole.since, settled if hole.until is None else min(hole.until, settled))


def _holes(since: int, until: int | None, ranges: Iterable[Range]) -> list[_Hole]:
    """What of ``[since, until)`` is not proven, oldest first.

    A range that ends in the future (a clock was set back) is believed no further than any other.
    """
    settled = now() - SETTLED
    holes: list[_Hole] = []
    position = since
    for begins, ends in ranges:
        ends = min(ends, settled)
        if ends <= position or begins >= ends or (until is not None and begins >= until):
            continue
        if begins > position:
            holes.append(_Hole(position, begins))
        position = ends
    if until is None or position < until:
        holes.append(_Hole(position, until))
    return holes
