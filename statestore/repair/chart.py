"""A picture of one asset's fills: price, average entry and running quantity over time.

Geometry only, as values a template puts into an SVG: what is text here is a label, what is a
coordinate is rounded to a tenth. Figures are for reading trends; the exact ones stand beside it.

However many fills there are, the picture stays small. Of the quantity each column of pixels keeps
the first, the lowest, the highest and the last value, which is all that can be seen in it; fills
that would lie on top of each other are drawn once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from statestore.amounts import ZERO, exact, text
from statestore.fills.book import Book, position_of, unknown_lot
from statestore.fills.coverage import Finding
from statestore.fills.movements import Movement
from statestore.fills.normalise import instant
from statestore.model import Method
from statestore.repair.scales import CHARACTER, WIDTH, Scale, Tick, short, ticks_of, time_ticks
from statestore.times import format_instant

HEIGHT = 322
_RIGHT = WIDTH - 14
_PRICE = (24, 178)  # top and bottom of the panel
_UNITS = (212, 282)
_COLUMN = 2
_MOST_MARKERS = 300
_FEW_MARKERS = 60
_FIRST_CELL = 3.0


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything of the drawing; paths are in the syntax of an SVG ``d``, empty if not drawn.

    Attributes:
        currency: of the prices; None when no fill has one.
        began, ended: of the first and the last fill.
        bought, sold: markers of fills.
        entry: average entry price, as far as the fills tell it.
        entry_level: y of the entry price at the end, where the fills alone do not lead to it.
        held: running quantity; ``area`` the same down to zero.
        recorded_level: y of the recorded quantity.
        zero: y of no units.
        drawn, fills: markers, and fills they stand for.
        notes: what the reader has to know about the drawing.
    """

    left: str
    currency: str | None
    began: str
    ended: str
    bought: str
    sold: str
    entry: str
    entry_level: str
    held: str
    area: str
    recorded_level: str
    zero: str
    prices: tuple[Tick, ...]
    units: tuple[Tick, ...]
    times: tuple[Tick, ...]
    drawn: int
    fills: int
    notes: tuple[str, ...]


@exact
def draw(finding: Finding, method: Method, recorded: Decimal | None) -> Chart | None:
    """Return the picture of a finding, None when no fill moved the asset.

    Args:
        finding: what was replayed, and from which quantity on.
        method: how its cost was accounted.
        recorded: the quantity the state records, None when it records none.
    """
    movements = finding.movements
    if not movements:
        return None
    notes: list[str] = []
    priced, currency = _priced(movements, notes)
    times = Scale.of_times(movements[0].fill.time, movements[-1].fill.time)
    kept = _thinned(_steps(finding), times)
    entries, prices, entry = _price_panel(finding, method, kept, priced, currency, notes)
    units, recorded = _units_panel(kept, recorded, notes)
    price_ticks = ticks_of(prices, 4)
    unit_ticks = ticks_of(units, 3)
    longest = max(len(tick.label) for tick in (*price_ticks, *unit_ticks))
    left = 12 + CHARACTER * longest
    times = times.between(left + 8, _RIGHT - 8)
    bought, sold = (
        _spread([(times(at), prices(price)) for at, price, came_in in priced if came_in is way])
        for way in (True, False)
    )
    drawn = len(bought) + len(sold)
    large = drawn <= _FEW_MARKERS
    if drawn < len(priced):
        notes.insert(
            0,
            f"{drawn} of {len(priced)} fills are drawn: those that would lie on top of each other "
            "are drawn once.",
        )
    line = _stepped([(times(at), units(value)) for at, value in kept], _RIGHT)
    return Chart(
        left=short(left),
        currency=currency,
        began=format_instant(movements[0].fill.time),
        ended=format_instant(movements[-1].fill.time),
        bought=_triangles(bought, upwards=True, large=large),
        sold=_triangles(sold, upwards=False, large=large),
        entry=_broken([(times(at), p if p is None else prices(p)) for at, p in entries]),
        entry_level="" if entry is None else short(prices(entry)),
        held=line,
        area=f"{line}V{short(units(ZERO))}H{short(times(kept[0][0]))}Z",
        recorded_level="" if recorded is None else short(units(recorded)),
        zero=short(units(ZERO)),
        prices=price_ticks,
        units=unit_ticks,
        times=time_ticks(times),
        drawn=drawn,
        fills=len(priced),
        notes=tuple(notes),
    )


def _price_panel(
    finding: Finding,
    method: Method,
    kept: Sequence[tuple[int, Decimal]],
    priced: Sequence[tuple[int, Decimal, bool]],
    currency: str | None,
    notes: list[str],
) -> tuple[list[tuple[int, Decimal | None]], Scale, Decimal | None]:
    """The average entry over time, the scale of prices, and the entry at the end if it is drawn."""
    entries = _entries(finding, method, kept, currency)
    position = finding.position
    at_the_end = position.entry_price if position.currency == currency else None
    told = [(time, price) for time, price in entries if price is not None]
    follows = _same(entries[-1][1], at_the_end)
    if told and not follows:
        told, entries = [], []
    scale, fits = Scale.around(
        [*(price for _, price, _ in priced), *(price for _, price in told)],
        None if follows else at_the_end,
        _PRICE,
    )
    if at_the_end is None or follows:
        return entries, scale, None
    notes.append(
        "The dashed line is the entry price at the end: the fills alone do not lead to it."
        if fits
        else f"The entry price, {text(at_the_end)}, lies outside of the drawing."
    )
    return entries, scale, at_the_end if fits else None


def _units_panel(
    kept: Sequence[tuple[int, Decimal]], recorded: Decimal | None, notes: list[str]
) -> tuple[Scale, Decimal | None]:
    """The scale of quantities, and the recorded one if it is drawn."""
    values = [ZERO, *(value for _, value in kept)]
    scale, fits = Scale.around(values, recorded, _UNITS, from_zero=True)
    if recorded is not None and not fits:
        notes.append(f"The recorded quantity, {text(recorded)}, lies outside of the drawing.")
    return scale, recorded if fits else None


def _priced(
    movements: Sequence[Movement], notes: list[str]
) -> tuple[list[tuple[int, Decimal, bool]], str | None]:
    """Time, price and direction of the fills in the currency most of them were paid in."""
    counted = Counter(movement.currency for movement in movements if movement.units)
    if not counted:
        return [], None
    (currency, count), *_ = counted.most_common(1)
    others = sorted(set(counted) - {currency})
    if others:
        notes.append(
            f"Fills paid in {', '.join(others)} move the quantity ({sum(counted.values()) - count} "
            "of them); their price is not drawn."
        )
    priced = [
        (movement.fill.time, movement.price, movement.units > 0)
        for movement in movements
        if movement.units and movement.currency == currency
    ]
    return priced, currency


def _steps(finding: Finding) -> list[tuple[int, Decimal]]:
    """Units after each instant, what was held before the first one in front."""
    steps = [(finding.movements[0].fill.time, finding.opening)]
    for movement, units in zip(finding.movements, finding.running(), strict=True):
        steps.append((movement.fill.time, units))
    return steps


def _thinned(steps: Sequence[tuple[int, Decimal]], times: Scale) -> list[tuple[int, Decimal]]:
    """First, lowest, highest and last of each column of pixels."""
    scale = times.between(0, WIDTH)
    kept: list[tuple[int, Decimal]] = []
    numbered = enumerate(steps)
    for _, column in groupby(numbered, key=lambda step: int(scale(step[1][0]) // _COLUMN)):
        values = list(column)
        indexes = {
            values[0][0],
            min(values, key=lambda step: step[1][1])[0],
            max(values, key=lambda step: step[1][1])[0],
            values[-1][0],
        }
        kept += [steps[index] for index in sorted(indexes)]
    return kept


def _entries(
    finding: Finding, method: Method, kept: Sequence[tuple[int, Decimal]], currency: str | None
) -> list[tuple[int, Decimal | None]]:
    """The average entry at the times that are kept; None where the fills do not tell it, or in
    another currency than the one that is drawn.

    Of the fills of one instant those that add come first, which is an order that never goes below
    zero if there is one. Where the present lifecycle began, the replay began.
    """
    wanted = {time for time, _ in kept}
    opening = unknown_lot(finding.opening) if finding.opening > 0 else None
    book = Book(method, opening=opening)
    began = finding.position.opened_at
    entries: list[tuple[int, Decimal | None]] = []
    for _, tied in groupby(finding.movements, key=lambda movement: instant(movement.fill)):
        together = sorted(tied, key=lambda movement: movement.units < 0)
        time = together[0].fill.time
        if time == began:
            book, began = Book(method), None
        for movement in together:
            if movement.units:
                book.apply(movement)
        if time in wanted:
            entries.append((time, _entry_of(book, currency)))
    return entries


def _entry_of(book: Book, currency: str | None) -> Decimal | None:
    position = position_of(book)
    return position.entry_price if position.currency == currency else None


def _same(one: Decimal | None, other: Decimal | None) -> bool:
    return text(one) == text(other)


# Paths


def _spread(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """As many of the points as can be told apart, at most."""
    cell = _FIRST_CELL
    chosen = _one_a_cell(points, cell)
    while len(chosen) > _MOST_MARKERS:
        cell *= 1.25
        chosen = _one_a_cell(points, cell)
    return chosen


def _triangles(points: Sequence[tuple[float, float]], *, upwards: bool, large: bool) -> str:
    """A triangle for each point, which is its tip: below it and pointing up, or above it.

    So what was bought and what was sold stand beside each other where fills are dense, and need no
    colour to be told apart.
    """
    width, height = (6, 11) if large else (3, 6)
    base = f"l{width} {height}h-{2 * width}z" if upwards else f"l{width}-{height}h-{2 * width}z"
    return "".join(f"M{short(x)} {short(y)}{base}" for x, y in points)


def _one_a_cell(points: Sequence[tuple[float, float]], cell: float) -> list[tuple[float, float]]:
    cells: dict[tuple[int, int], tuple[float, float]] = {}
    for x, y in points:
        cells.setdefault((int(x // cell), int(y // cell)), (x, y))
    return list(cells.values())


def _stepped(points: Sequence[tuple[float, float]], end: float) -> str:
    """A line that holds each value until the next one."""
    (x, y), *rest = points
    parts = [f"M{short(x)} {short(y)}"]
    parts += [f"H{short(x)}V{short(y)}" for x, y in rest]
    return "".join([*parts, f"H{short(end)}"])


def _broken(points: Sequence[tuple[float, float | None]]) -> str:
    """A stepped line with gaps where there is no value."""
    parts, begins = [], True
    ends = [*(x for x, _ in points), float(_RIGHT)][1:]
    for (x, y), end in zip(points, ends, strict=True):
        if y is not None:
            parts.append(f"M{short(x)} {short(y)}" if begins else f"V{short(y)}")
            parts.append(f"H{short(end)}")
        begins = y is None
    return "".join(parts)
