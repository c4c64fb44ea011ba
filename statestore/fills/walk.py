"""Walking back from a balance: what was held between the fills of a window, however they are read.

From the balance, newest fill first, r = r - signed units. Each r between two instants is a point
at which a lifecycle may have begun; among fills of one instant, or between a trade and a row that
adjusts it, there is none.

Rows of type REVERSAL, CORRECTION and SYNTHETIC can be read with either sign, and nothing the
exchange says tells which. So every reading that makes sense is walked; which of them is confirmed,
and what it proves, is for `coverage` to say. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise, product

from statestore.amounts import exact
from statestore.fills.movements import Movement
from statestore.fills.normalise import instant
from statestore.model import FillKind

# 2 ** 8 readings of adjusted rows; more of them in one window are not told apart.
_MOST_ADJUSTED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A moment at which a lifecycle may have begun: between instants, outside adjusted trades.

    Attributes:
        index: movements before it.
        units: held then, by walking back from the balance.
        eps: how far off ``units`` may be: an increment for each later fill sized in quote.
    """

    index: int
    units: Decimal
    eps: Decimal

    @property
    def flat(self) -> bool:
        return abs(self.units) <= self.eps

    @property
    def below(self) -> bool:
        return self.units < -self.eps


@dataclass(frozen=True, slots=True)
class Reading:
    """The movements under one reading of adjusted rows, and the points between them."""

    movements: tuple[Movement, ...]
    points: tuple[Point, ...]

    @property
    def start(self) -> Point:
        return self.points[0]

    @property
    def end(self) -> Point:
        return self.points[-1]

    @property
    def goes_below(self) -> bool:
        return any(point.below for point in self.points)

    def until(self, moment: int | None) -> list[Point]:
        """Return the points up to a moment; the start of the window always is one."""
        return [
            point
            for point in self.points
            if moment is None or (self.time(point) or moment) <= moment
        ]

    def time(self, point: Point) -> int | None:
        """Return when the point was reached, None for the start of the window."""
        return self.movements[point.index - 1].fill.time if point.index else None


@exact
def every_reading(
    movements: Sequence[Movement], balance: Decimal, increment: Decimal
) -> list[Reading]:
    """Return every way to read the adjusted rows: one when there are none, none when too many."""
    adjusted = [m for m in movements if m.fill.kind is not FillKind.FILL]
    if len(adjusted) > _MOST_ADJUSTED_ROWS:
        return []
    readings = []
    for reversed_ones in product((False, True), repeat=len(adjusted)):
        taken_back = [m for m, back in zip(adjusted, reversed_ones, strict=True) if back]
        read = _take_back(list(movements), taken_back)
        if read is not None:
            readings.append(walk_back(read, balance, increment))
    return readings


def _take_back(movements: list[Movement], rows: Sequence[Movement]) -> list[Movement] | None:
    """Read ``rows`` with the opposite sign; None when that makes no sense for one of them.

    A row that restates another one of its trade, taken back, cancels it. One that has nothing to
    cancel moves the other way, unless it corrects a trade that is at hand: then it stands.
    """
    for row in rows:
        at = next(i for i, m in enumerate(movements) if m is row)
        related = [m for m in movements if m is not row and _same_trade(m, row)]
        original = next((m for m in related if _restates(row, m)), None)
        if original is not None:
            movements = [m for m in movements if m is not row and m is not original]
        elif related and row.fill.kind is not FillKind.REVERSAL:
            return None
        else:
            movements[at] = replace(
                row,
                units=-row.units,
                notional=-row.notional,
                fee_value=None if row.fee_value is None else -row.fee_value,
            )
    return movements


def _same_trade(one: Movement, other: Movement) -> bool:
    return bool(one.fill.trade_id) and (one.fill.trade_id, one.fill.product_id) == (
        other.fill.trade_id,
        other.fill.product_id,
    )


def _restates(row: Movement, original: Movement) -> bool:
    return row.units == original.units and row.notional == original.notional


@exact
def walk_back(movements: Sequence[Movement], balance: Decimal, increment: Decimal) -> Reading:
    """Return the movements as they stand, and the points between them.

    Args:
        increment: the product's base increment.
    """
    units, quoted = balance, 0
    boundaries = {0, len(movements), *_boundaries(movements)}
    points = []
    for index in range(len(movements), -1, -1):
        if index in boundaries:
            points.append(Point(index, units, increment * max(1, quoted)))
        if index:
            units -= movements[index - 1].units
            quoted += movements[index - 1].fill.quoted
    return Reading(tuple(movements), tuple(reversed(points)))


def _boundaries(movements: Sequence[Movement]) -> Iterator[int]:
    """Indexes between instants, and not between the rows of an adjusted trade."""
    inside: set[int] = set()
    for movement in movements:
        if movement.fill.kind is not FillKind.FILL:
            rows = [i for i, other in enumerate(movements) if _same_trade(movement, other)]
            if rows:
                inside.update(range(rows[0] + 1, rows[-1] + 1))
    for index, (before, after) in enumerate(pairwise(movements), 1):
        if index not in inside and instant(before.fill) != instant(after.fill):
            yield index
