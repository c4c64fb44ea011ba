"""Pages of one window read side by side: which part to ask next, and one order for what came.

A window is read by one cursor chain, as ever, until a page shows that much is left; then its time
is cut into slices, each a chain of its own. What is promised:

* The rows are those of the one chain, in one order (newest first) that depends neither on the cuts
  nor on which answer came first.
* Only a chain that was paged to its end counts, and the slices that count cover the window without
  a gap. Cuts are made by the bounds of the exchange's own filter and overlap by a second, so it
  does not matter which time it filters by, whether bounds belong to it, nor how it sorts.
* The order of pages is a hint: it tells how much may be left, so where to cut. A hint that is wrong
  costs requests, never rows; and how many it may cost is bounded (see `_pieces`).

No HTTP, no threads, no clock: `Slices` says what to read and is told what came.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

from statestore.model import Row
from statestore.times import NANOSECONDS, parse_instant

Payload = Mapping[str, object]

# The rows of a page, and whether more pages follow.
Page = tuple[Sequence[Payload], bool]

# A bound may or may not belong to its slice, and the exchange may round it to a second.
OVERLAP = 1 * NANOSECONDS

# Tuned against uniform, bursty and clustered fills; tests/exchange/test_slices.py has the results.
_WORTH_CUTTING = 4  # pages that are left
_RECENT_PAGES = 2  # that tell how dense the rest is
_SPREAD = 2.5  # chains per request under way: they end apart, and none may be the last for long
_PIECES = 14  # of a chain that has shown one page only
# Alone, a chain gets its pages as fast as answers come. Beside others it waits its turn among
# somewhat more requests than the rate needs, so that its end is further off than its pages tell.
_RELUCTANCE_ALONE, _RELUCTANCE = 1.1, 0.85


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a read is.

    Attributes:
        pages, rows: that came so far, those that were read twice included.
        fraction: of the window's time, 0 to 1, never falling; None where the window has no start.
    """

    pages: int
    rows: int
    fraction: float | None


@dataclass(eq=False)
class Slice:
    """A part of the window, read by one chain of pages.

    Attributes:
        start, end: the instants it is made for.
        since, until: the bounds to ask for; None is no bound.
        chain: what reads it, once somebody does.
        left: pages still to come, by the look of the last ones.
        covered: time the chain has gone through, page by page, by the same.
    """

    start: int
    end: int
    since: int | None
    until: int | None
    left: float = 1.0
    chain: Iterator[Page] | None = None
    rows: list[Payload] = field(default_factory=list)
    pages: int = 0
    covered: list[int] = field(default_factory=lambda: [0])
    newest_first: bool = True

    def take(self, page: Page) -> None:
        rows, more = page
        self.rows += rows
        self.pages += 1
        width = self.end - self.start
        ends = (_executed(rows[0]), _executed(rows[-1])) if rows else ()
        times = [at for at in ends if at is not None]
        if not more:
            self.covered.append(width)
        elif times:
            self.newest_first = times[0] >= times[-1]
            reached = self.end - min(times) if self.newest_first else max(times) - self.start
            self.covered.append(min(max(reached, 0), width))
            pages = min(_RECENT_PAGES, len(self.covered) - 1)
            recent = max(self.covered[-1] - self.covered[-1 - pages], 1)
            self.left = max(1.0, (width - self.covered[-1]) * pages / recent)

    def cut(self, pieces: int, overlap: int) -> list[Slice]:
        """Return slices that cover this one; the bounds it was asked by stay the outer ones."""
        at = self._borders(pieces)
        last = len(at) - 2
        return [
            Slice(
                start,
                end,
                since=self.since if number == 0 else start - overlap,
                until=self.until if number == last else end,
                left=max(1.0, self.left / pieces),
            )
            for number, (start, end) in enumerate(pairwise(at))
        ]

    def _borders(self, pieces: int) -> list[int]:
        """Pieces of one length for what is still to be read, and of one length for what was."""
        width, covered = self.end - self.start, self.covered[-1]
        again = min(pieces - 1, max(1, round(pieces * self.pages / (self.pages + self.left))))
        rest = pieces - again
        offsets = [covered * number // again for number in range(again)]
        offsets += [covered + (width - covered) * number // rest for number in range(rest + 1)]
        return sorted({self.end - at if self.newest_first else self.start + at for at in offsets})


class Slices:
    """What to read next of one window, and what was read of it.

    Args:
        since, until: bounds the window is asked by; None is no bound.
        start, end: instants that stand for them; where to cut is all that comes of these.
        overlap: of inner borders, in nanoseconds.
    """

    def __init__(
        self, since: int | None, until: int | None, start: int, end: int, overlap: int = OVERLAP
    ) -> None:
        start = min(start, end - 1)
        self._width = end - start
        self._bounded = since is not None
        self._overlap = overlap
        self._waiting = [Slice(start, end, since, until)]
        self._asked: set[Slice] = set()
        self._whole: list[Slice] = []
        self._risked = 0
        self._fraction = 0.0
        self._rows = 0
        self.pages = 0

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._asked

    @property
    def waiting(self) -> int:
        """How many slices `next` has to give."""
        return len(self._waiting)

    def next(self) -> Slice | None:
        """Return the slice whose next page is due: the one with the most left.

        None: all that are not whole are being asked for.
        """
        if not self._waiting:
            return None
        piece = max(self._waiting, key=lambda piece: piece.left)
        self._waiting.remove(piece)
        self._asked.add(piece)
        return piece

    def took(self, piece: Slice, page: Page, abreast: float) -> None:
        """Take the page that came for a slice.

        Args:
            abreast: requests that have to be under way at once to use the allowed rate.
        """
        self._asked.remove(piece)
        self.pages += 1
        self._rows += len(page[0])
        piece.take(page)
        if page[1]:
            pieces = self._pieces(piece, abreast)
            self._waiting += piece.cut(pieces, self._overlap) if pieces > 1 else [piece]
        else:
            piece.chain = None
            self._whole.append(piece)

    def progress(self) -> Progress:
        """Return how far the read is, chains under way included by the look of them."""
        covered = sum(piece.covered[-1] for piece in (*self._whole, *self._waiting, *self._asked))
        self._fraction = max(self._fraction, covered / self._width)
        return Progress(self.pages, self._rows, self._fraction if self._bounded else None)

    def rows(self) -> tuple[Row, ...]:
        """Return the rows of every slice, each as often as one chain gave it."""
        return one_order(piece.rows for piece in self._whole)

    def _pieces(self, piece: Slice, abreast: float) -> int:
        """Return into how many slices to cut this one; 1 is not at all.

        Cut where reading it to its end, a page after the other, takes longer than all that is left
        takes at the full rate, with what the cut wastes: the pages read, and up to a request a
        piece. A chain that has read n pages has earned n pieces. Those beyond are a risk, since
        one page says little about the rest; how much risk is taken grows with what was seen.
        """
        open_ = [other for other in (*self._waiting, *self._asked) if other.pages]
        total = piece.left + sum(other.left for other in (*self._waiting, *self._asked))
        pieces = min(
            ceil(_SPREAD * abreast * piece.left / total),
            _PIECES - 2 + 2 * piece.pages,
            # Narrower, and the overlap would be a good part of what is read.
            (piece.end - piece.start) // (8 * self._overlap + 1),
        )
        at_full_rate = (total + piece.pages + pieces) / max(abreast, 0.001)
        reluctance = _RELUCTANCE_ALONE if abreast < 2 else _RELUCTANCE
        risk = max(0, pieces - piece.pages)
        bearable = 2 * abreast + 8 + 6 * len(open_) + self.pages / 8
        if (
            pieces < 2
            or piece.left < max(_WORTH_CUTTING, piece.pages)
            or piece.left <= reluctance * at_full_rate + 1
            or self._risked + risk > bearable
        ):
            return 1
        self._risked += risk
        return pieces


def one_order(chains: Iterable[Sequence[Payload]]) -> tuple[Row, ...]:
    """Return the rows of all chains, newest first, each as often as the chain that has it most.

    A row in the overlap of two slices comes from both and is one; a row that one chain gave twice
    stays twice, for `normalise` to count. Rows of one id that differ stay apart, for it to refuse.
    """
    found: dict[str, list[tuple[int, Payload]]] = {}
    for number, rows in enumerate(chains):
        for row in rows:
            found.setdefault(str(row.get("entry_id") or ""), []).append((number, row))
    ordered: list[tuple[int, str, str, Payload]] = []
    for entry_id, copies in found.items():
        if len(copies) == 1:
            row = copies[0][1]
            ordered.append((_executed(row) or 0, entry_id, "", row))
            continue
        by_text: dict[str, list[tuple[int, Payload]]] = {}
        for number, row in copies:
            text = json.dumps(row, sort_keys=True, default=repr)
            by_text.setdefault(text, []).append((number, row))
        for text, same in by_text.items():
            often = max(Counter(number for number, _ in same).values())
            row = same[0][1]
            ordered += [(_executed(row) or 0, entry_id, text, row)] * often
    # Rows without a time that reads come last.
    ordered.sort(key=lambda placed: (-placed[0], *placed[1:3]))
    return tuple(
        Row(row, f"row {number} of {row['trade_time']}" if at else f"row {number}")
        for number, (at, _, _, row) in enumerate(ordered, 1)
    )


def _executed(row: Payload) -> int | None:
    try:
        return parse_instant(str(row.get("trade_time")))
    except ValueError:
        return None
