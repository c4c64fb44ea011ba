"""Scales and their ticks: from a value to a coordinate of a chart, and the round values beside it.

The difference to the end of a scale is taken exactly; only what comes of it is rounded, to a tenth.
No fill is known here, and a picture is for reading trends: the exact figures stand beside it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from statestore.amounts import ZERO, text
from statestore.times import NANOSECONDS, format_instant

WIDTH = 520

# Room a character of an axis label takes where it is set largest, on a phone.
CHARACTER = 9
_LONGEST_LABEL = 10

# A level farther from the rest than this many times their spread would flatten the picture.
_FARTHEST = 3


@dataclass(frozen=True, slots=True)
class Tick:
    """Where a line of the grid goes, and what it says; ``below`` is a second line of text."""

    at: str
    label: str
    below: str = ""
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a coordinate; the difference is taken before anything is rounded."""

    low: Decimal
    high: Decimal
    start: float = 0.0
    end: float = 1.0

    def __call__(self, value: Decimal | int) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.start + float(part) * (self.end - self.start)

    def between(self, start: float, end: float) -> Scale:
        return Scale(self.low, self.high, start, end)

    @classmethod
    def of_times(cls, first: int, last: int) -> Scale:
        margin = (last - first) // 50 or 1800 * NANOSECONDS * (first == last) or 1
        return cls(Decimal(first - margin), Decimal(last + margin))

    @classmethod
    def around(
        cls,
        values: Sequence[Decimal],
        level: Decimal | None,
        panel: tuple[int, int],
        *,
        from_zero: bool = False,
    ) -> tuple[Scale, bool]:
        """A scale with room for all values, and for the level unless it is too far off."""
        values = values or [ZERO if level is None else level]
        low, high = min(values), max(values)
        spread = (high - low) or abs(high) / 10 or Decimal(1)
        fits = level is not None and low - _FARTHEST * spread < level < high + _FARTHEST * spread
        if fits and level is not None:
            low, high = min(low, level), max(high, level)
        margin = ((high - low) or spread) / 10
        bottom = low if from_zero and low == 0 else low - margin
        top, foot = panel
        return cls(bottom, high + margin, foot, top), fits


def ticks_of(scale: Scale, most: int) -> tuple[Tick, ...]:
    """At most a few round values."""
    least = (scale.high - scale.low) / most
    unit = Decimal(1).scaleb(least.adjusted())
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least)
    # Counted, not added up: a step may be less than the last digit of what it would be added to.
    first, last = (
        int((end / step).to_integral_value(rounding))
        for end, rounding in ((scale.low, ROUND_CEILING), (scale.high, ROUND_FLOOR))
    )
    values = [number * step for number in range(first, last + 1)]
    return tuple(Tick(short(scale(value)), _label(value)) for value in values)


def _label(value: Decimal) -> str:
    plain = text(value) or ""
    return plain if len(plain) <= _LONGEST_LABEL else f"{value.normalize():E}"


_SECOND, _MINUTE, _HOUR, _DAY = (NANOSECONDS * n for n in (1, 60, 3600, 86_400))


_STEPS = (
    *(factor * 10**power for power in range(9) for factor in (1, 2, 5)),
    *(n * _SECOND for n in (1, 2, 5, 10, 15, 30)),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 4, 7, 14)),
)


_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240)


def time_ticks(scale: Scale) -> tuple[Tick, ...]:
    least = (scale.high - scale.low) / 4
    step = next((step for step in _STEPS if step >= least), None)
    if step is None:
        months = next((n for n in _MONTHS if n * 30 * _DAY >= least), _MONTHS[-1])
        return _month_ticks(scale, months)
    first = -(-int(scale.low) // step) * step
    ticks, former = [], ""
    for time in range(first, int(scale.high) + 1, step):
        day, clock = format_instant(time).rstrip("Z").split("T")
        if step >= _DAY:
            ticks.append(_time_tick(scale, time, day))
        else:
            clock = clock.removesuffix(":00") if step >= _MINUTE else clock
            ticks.append(_time_tick(scale, time, clock, day if day != former else ""))
            former = day
    return tuple(ticks)


def _month_ticks(scale: Scale, months: int) -> tuple[Tick, ...]:
    begin = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(scale.low) // NANOSECONDS)
    count = begin.year * 12 + begin.month - 1
    count = -(-(count + 1) // months) * months
    ticks: list[Tick] = []
    while True:
        time = (datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC) - _EPOCH).days * _DAY
        if time > scale.high:
            return tuple(ticks)
        label = format_instant(time)
        ticks.append(_time_tick(scale, time, label[:4] if months % 12 == 0 else label[:7]))
        count += months


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time_tick(scale: Scale, time: int, label: str, below: str = "") -> Tick:
    at = scale(time)
    half = CHARACTER * max(len(label), len(below)) / 2
    anchor = "end" if at + half > WIDTH else "middle"
    return Tick(short(at), label, below, anchor)


def short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
