"""Balances and fills of one moment, and further back as far as it takes.

The balance is the anchor of everything, so it is read before the fills and after; where it moved in
between, all of it is read again. The window is ``[since, until)``; when its fills do not explain a
balance it is doubled, and only what that adds is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property

from statestore.errors import UsageError
from statestore.fills.normalise import implausible_fees, normalise
from statestore.fills.sources import FillSource
from statestore.model import Balances, Batch, Fill, Normalised
from statestore.times import NANOSECONDS, format_instant, now

# A balance that moves while it is read is read again; a market maker's never rests.
ATTEMPTS = 3

# As far back as an exchange is asked unless told otherwise; beyond that lies no history.
ALL_HISTORY_HOURS = Decimal(17_520)


@dataclass(frozen=True, slots=True)
class Window:
    """``[since, until)`` as asked for, and how far back was searched.

    ``until`` None is the present; ``read_at`` says when the reading began.
    """

    since: int
    until: int | None
    read_at: int
    hours: Decimal
    searched_hours: Decimal

    @property
    def end(self) -> int:
        return self.read_at if self.until is None else self.until

    @property
    def searched_since(self) -> int:
        if self.searched_hours == self.hours:
            return self.since
        return self.end - _nanoseconds(self.searched_hours)


def window_of(since: int | None, until: int | None, hours: Decimal) -> Window:
    """Return the window that was asked for.

    Raises:
        UsageError: it would be empty.
    """
    read_at = now()
    end = read_at if until is None else until
    if since is None:
        return Window(end - _nanoseconds(hours), until, read_at, hours, hours)
    if since >= end:
        raise UsageError(
            f"--since {format_instant(since)} is not before --until {format_instant(end)}"
        )
    hours = Decimal(end - since) / (3600 * NANOSECONDS)
    return Window(since, until, read_at, hours, hours)


def _nanoseconds(hours: Decimal) -> int:
    return int(hours * 3600 * NANOSECONDS)


@dataclass(frozen=True)
class Reading:
    """Everything read so far.

    Attributes:
        batches: the rows as they came; ``read`` what they mean.
        balances: of the second of two readings that agree; None where the source knows none.
        moving: currencies whose balance changed in every attempt.
        whole: the source holds nothing older than what was read.
    """

    window: Window
    batches: tuple[Batch, ...]
    read: Normalised
    balances: Balances | None
    moving: frozenset[str]
    whole: bool

    @cached_property
    def fills(self) -> tuple[Fill, ...]:
        """Fills of the window as far back as was searched, oldest first."""
        return self._between(self.window.searched_since, self.window.until)

    @cached_property
    def asked(self) -> tuple[Fill, ...]:
        """Fills of the window that was asked for."""
        return self._between(self.window.since, self.window.until)

    @cached_property
    def later(self) -> tuple[Fill, ...]:
        """Fills at or after ``until``; the balances know of them already."""
        until = self.window.until
        return () if until is None else self._between(until, None)

    @cached_property
    def misread(self) -> dict[str, str]:
        """Fills whose fee hints at a size in the wrong unit, by ``entry_id``."""
        return implausible_fees(self.fills)

    @property
    def pages(self) -> int:
        return sum(batch.pages for batch in self.batches)

    def complete(self) -> bool:
        """Whether nothing older exists that could be read."""
        searched = self.window.searched_since
        oldest = min((fill.time for fill in self.read.fills), default=searched)
        reached = self.whole and searched <= oldest
        return reached or self.window.searched_hours >= ALL_HISTORY_HOURS

    def _between(self, since: int, until: int | None) -> tuple[Fill, ...]:
        return tuple(
            fill
            for fill in self.read.fills
            if since <= fill.time and (until is None or fill.time < until)
        )


def read_steadily(source: FillSource, window: Window) -> Reading:
    """Read balances, fills, balances; again while a balance of a filled asset moved meanwhile."""
    for _ in range(ATTEMPTS):
        before = source.balances()
        batch = source.fills(window.since, None)
        after = source.balances() if before is not None else None
        moved = _moved(before, after)
        read = normalise([batch])
        reading = Reading(window, (batch,), read, after, moved, batch.exhausted)
        if not moved:
            break
    return reading


def _moved(before: Balances | None, after: Balances | None) -> frozenset[str]:
    if before is None or after is None:
        return frozenset()
    assets = {*before.amounts, *after.amounts}
    return frozenset(asset for asset in assets if before.of(asset) != after.of(asset))


def read_older(source: FillSource, reading: Reading, max_hours: Decimal) -> Reading:
    """Double the window, at most to ``max_hours``, and read what that adds."""
    former = reading.window.searched_since
    window = replace(
        reading.window, searched_hours=min(reading.window.searched_hours * 2, max_hours)
    )
    if reading.whole:
        return replace(reading, window=window)
    batch = source.fills(window.searched_since, former)
    batches = (*reading.batches, batch)
    return replace(
        reading,
        window=window,
        batches=batches,
        read=normalise(batches),
        whole=batch.exhausted,
    )
