"""What a window of fills proves about one asset.

A window of 48 or 72 hours rarely holds the fill that opened a position; replayed from zero it would
delete or shrink what is really held. So the balance B is the anchor and the fills explain it: walk
back from B, newest fill first, r = r - signed units. Where r first reaches zero the present
lifecycle began, and everything after it is known: EXACT.

Where the walk does not reach zero: the state may carry the entry on (CARRIED), the operator may
have given the missing cost (ASSUMED), or the cost of some units stays unknown (PARTIAL). Where r
goes below zero, units left without a fill (UNEXPLAINED_OUTFLOW). Two readings that both fit are
AMBIGUOUS. Without a balance the fills are replayed from zero and believed only as far as they agree
with the recorded quantity; else UNCOVERED.

Pure functions of values: nothing is read, nothing is written, nothing is decided about the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise, product

from statestore.amounts import ZERO, exact, text, written
from statestore.fills.normalise import instant
from statestore.fills.replay import Lot, Movement, Position, replay, unknown_lot
from statestore.model import FillKind, Method, Status
from statestore.times import format_instant

# 2 ** 8 readings of adjusted rows; more of them in one window are not told apart.
_MOST_ADJUSTED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the state says of an asset.

    Attributes:
        units: recorded quantity, negative for a short.
        cost: of those units, before fees, in ``currency``; None when no entry price is recorded.
        fee_value: fees of those units in ``currency``, None when not recorded.
        opened_at: recorded time of entry, None when not recorded.
        as_of: until when the bot believed this; None when the state carries no time.
        stated_at: when this entry was written, which may be long before; None as above.
    """

    units: Decimal
    cost: Decimal | None
    currency: str
    fee_value: Decimal | None = None
    opened_at: int | None = None
    as_of: int | None = None
    stated_at: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that is known about one asset.

    Attributes:
        movements: of the asset inside the window searched so far, oldest first.
        balance: units owned now (reserve taken off), None when not at hand.
        increment: the product's base increment.
        dust: units below this are not worth a position; zero when that is not known.
        since: start of the window searched so far.
        exhausted: there is nothing older to search.
        assumed_entry: cost per unit, in USD, of units from before the window, by the operator.
        strict: a recorded quantity the fills cannot explain makes the answer AMBIGUOUS.
    """

    asset: str
    movements: Sequence[Movement]
    balance: Decimal | None
    increment: Decimal
    since: int
    exhausted: bool
    method: Method = Method.AVERAGE
    dust: Decimal = ZERO
    recorded: Recorded | None = None
    assumed_entry: Decimal | None = None
    strict: bool = False

    @property
    def eps(self) -> Decimal:
        """Tolerance, in increments: sizes given in quote come rounded to one increment each."""
        quoted = sum(movement.fill.quoted for movement in self.movements)
        return self.increment * max(1, quoted)


@dataclass(frozen=True, slots=True)
class Conflict:
    """The recorded quantity is at no time what the fills imply. A warning, no veto."""

    recorded: Decimal
    implied: Decimal
    at: int


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer.

    Attributes:
        units: quantity that is certain; what the fills alone give where there is no balance.
        position: cost and the rest of it.
        reason: one sentence, for people.
        fills: how many fills were replayed.
        opening: units before the first fill of the window.
    """

    status: Status
    units: Decimal
    position: Position
    reason: str
    fills: int
    opening: Decimal
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class _Reading:
    """The movements under one reading of adjusted rows, and the running total between them.

    Attributes:
        points: (index, units) where ``index`` movements lie before the point, oldest first. Not
            between tied fills, nor between the rows of an adjusted trade: those stand together.
    """

    movements: tuple[Movement, ...]
    points: tuple[tuple[int, Decimal], ...]

    def time(self, index: int) -> int | None:
        """When the point was reached, None for the start of the window."""
        return self.movements[index - 1].fill.time if index else None


@exact
def explain(question: Question) -> Finding | None:
    """Return what the fills prove, or None when only older fills can tell."""
    if question.balance is None:
        finding: Finding | None = _offline(question)
    elif question.increment < question.balance < question.dust:
        finding = _dust(question, question.balance)
    else:
        finding = _anchored(question, question.balance)
    return None if finding is None else _without_one_currency(finding)


def _without_one_currency(finding: Finding) -> Finding:
    """A cost paid in several currencies is no entry price: the quantity alone is certain."""
    position = finding.position
    proven = finding.status in (Status.EXACT, Status.CARRIED, Status.ASSUMED)
    if not proven or not position.units or position.entry_price is not None:
        return finding
    currencies = " and ".join(sorted({lot.currency or "unknown" for lot in position.lots}))
    reason = f"its cost was paid in {currencies}, which do not add up to one entry price"
    return replace(finding, status=Status.PARTIAL, reason=reason)


# With a balance


def _anchored(question: Question, balance: Decimal) -> Finding | None:
    readings = _readings(question.movements, balance)
    found = [finding for reading in readings if (finding := _confirmed(question, reading))]
    exactly = [finding for finding in found if finding.status is Status.EXACT] or found
    distinct = {_figures(finding): finding for finding in exactly}
    if len(distinct) == 1:
        return _with_state(question, next(iter(distinct.values())), readings)
    if distinct or len(readings) != 1:
        if not distinct and not question.exhausted:
            return None
        return _ambiguous_adjustments(question, balance)
    reading = readings[0]
    finding = _outflow(question, reading) or _from_dust(question, reading)
    if finding is None:
        if not question.exhausted:
            return None
        finding = _with_unknown_cost(question, reading)
    return _with_state(question, finding, readings)


def _confirmed(question: Question, reading: _Reading) -> Finding | None:
    """EXACT or CARRIED under this reading, or None."""
    eps = question.eps
    reached_below = False
    for index, units in reversed(reading.points):
        if abs(units) <= eps:
            return _exact(question, reading, index)
        if units < -eps:
            reached_below = True
            break
    return _carried(question, reading, reached_below)


def _exact(question: Question, reading: _Reading, flat_at: int) -> Finding:
    """The lifecycle began at ``flat_at``; what was realised before it counts if it is explained."""
    eps = question.eps
    start = reading.points[0][1]
    if all(units >= -eps for _, units in reading.points):
        opening = unknown_lot(start) if start > eps else None
        position = replay(reading.movements, question.method, opening=opening, tolerance=eps)
    else:
        position = replay(reading.movements[flat_at:], question.method, tolerance=eps)
        position = replace(position, realised=None, realised_net=None)
    units = _last(reading)
    if position.ambiguous or position.unknown_units:
        return _finding(Status.AMBIGUOUS, units, position, _TIED, reading)
    if abs(units) <= eps:
        reason = "the balance is zero"
    else:
        began = reading.movements[flat_at].fill.time
        reason = f"the fills explain the balance since {format_instant(began)}"
    return _finding(Status.EXACT, units, position, reason, reading)


_TIED = "fills of the same instant can be ordered in ways that lead to different entries"


def _carried(question: Question, reading: _Reading, reached_below: bool) -> Finding | None:
    """A recorded quantity that is exactly what the fills imply at its time carries its entry on."""
    recorded = question.recorded
    if recorded is None or recorded.cost is None or recorded.units <= 0:
        return None
    inside = recorded.as_of is not None and recorded.as_of >= question.since
    if not inside and not question.exhausted:
        return None
    if recorded.as_of is None and reached_below:
        return None
    indexes = _matches(question, reading, recorded)
    if reached_below:
        lowest = max(i for i, units in reading.points if units < -question.eps)
        indexes = [index for index in indexes if index > lowest]
    if not indexes:
        return None
    latest = recorded.as_of is not None
    positions = [
        _carry_on(question, reading, recorded, index) for index in indexes[-1 if latest else 0 :]
    ]
    position = positions[0]
    units = _last(reading)
    if position.ambiguous or len({_cost_of(one) for one in positions}) > 1:
        reason = "the recorded entry can be carried on from more than one point of the window"
        return _finding(Status.AMBIGUOUS, units, position, reason, reading)
    known_since = reading.time(indexes[-1 if latest else 0]) or question.since
    reason = (
        f"the recorded {text(recorded.units)} are what the fills imply at "
        f"{format_instant(known_since)}; its entry carries on"
    )
    return _finding(Status.CARRIED, units, position, reason, reading)


def _carry_on(question: Question, reading: _Reading, recorded: Recorded, index: int) -> Position:
    assert recorded.cost is not None
    lot = Lot(recorded.units, recorded.units, recorded.cost, recorded.currency, recorded.fee_value)
    if recorded.fee_value:
        lot.fees[recorded.currency] = recorded.fee_value
    position = replay(
        reading.movements[index:], question.method, opening=lot, tolerance=question.eps
    )
    if position.opened_at is None and position.units:
        position = replace(position, opened_at=recorded.opened_at)
    return position


def _outflow(question: Question, reading: _Reading) -> Finding | None:
    """Units left without a fill: replay from where the running total was lowest, then shrink."""
    lowest = min(units for _, units in reading.points)
    if lowest >= -question.eps:
        return None
    index = max(i for i, units in reading.points if units == lowest)
    units = _last(reading)
    position = replay(reading.movements[index:], question.method, tolerance=question.eps)
    ambiguous = position.ambiguous
    position = _shrunk(position, units)
    if ambiguous:
        return _finding(Status.AMBIGUOUS, units, position, _TIED, reading)
    reason = (
        f"{text(-lowest)} {question.asset} left without a fill (a withdrawal, a conversion): "
        f"the fills give {text(units - lowest)}, the balance is {text(units)}"
    )
    return _finding(Status.UNEXPLAINED_OUTFLOW, units, position, reason, reading)


def _shrunk(position: Position, units: Decimal) -> Position:
    if not position.units:
        return replace(position, realised=None, realised_net=None)
    part = units / position.units
    return replace(
        position,
        units=units,
        cost=None if position.cost is None else position.cost * part,
        fee_value=None if position.fee_value is None else position.fee_value * part,
        fees={currency: amount * part for currency, amount in position.fees.items()},
        realised=None,
        realised_net=None,
    )


def _from_dust(question: Question, reading: _Reading) -> Finding | None:
    """A residue too small for a position ended the lifecycle before this one."""
    for index, units in reversed(reading.points):
        if ZERO < units < question.dust:
            position = replay(reading.movements[index:], question.method, tolerance=question.eps)
            position = replace(position, realised=None, realised_net=None)
            status = Status.AMBIGUOUS if position.ambiguous else Status.EXACT
            reason = f"the fills explain the balance but for {text(units)} of dust before them"
            return _finding(status, _last(reading), position, reason, reading)
    return None


def _with_unknown_cost(question: Question, reading: _Reading) -> Finding:
    """History is exhausted and units are left over: the quantity is certain, the entry is not."""
    start = reading.points[0][1]
    opening = unknown_lot(start)
    status = Status.PARTIAL
    reason = (
        f"{text(start)} {question.asset} were held before the first fill there is "
        f"(since {format_instant(question.since)}); their cost is unknown"
    )
    if question.assumed_entry is not None:
        opening = Lot(start, start, start * question.assumed_entry, "USD", None)
        status = Status.ASSUMED
        reason = (
            f"{text(start)} {question.asset} from before the first fill are taken at "
            f"{text(question.assumed_entry)} USD, as the operator said"
        )
    position = replay(reading.movements, question.method, opening=opening, tolerance=question.eps)
    if position.ambiguous:
        status, reason = Status.AMBIGUOUS, _TIED
    return _finding(status, _last(reading), position, reason, reading)


def _ambiguous_adjustments(question: Question, balance: Decimal) -> Finding:
    position = replay(question.movements, question.method, tolerance=question.eps)
    kinds = {m.fill.kind for m in question.movements if m.fill.kind is not FillKind.FILL}
    reason = (
        f"rows of type {', '.join(sorted(kinds))} can be read with either sign, and the balance "
        f"{text(balance)} confirms no single reading"
    )
    opening = balance - sum((movement.units for movement in question.movements), ZERO)
    return Finding(Status.AMBIGUOUS, balance, position, reason, len(question.movements), opening)


def _dust(question: Question, balance: Decimal) -> Finding:
    inner = _anchored(replace(question, exhausted=True), balance)
    assert inner is not None  # an exhausted window always has an answer
    reason = f"the balance {text(balance)} {question.asset} is dust"
    return replace(inner, status=Status.DUST, units=balance, reason=reason)


# Without a balance


def _offline(question: Question) -> Finding:
    """Replay from zero; believed if it never goes below and agrees with what is recorded."""
    reading = _as_stated(question.movements, ZERO)
    position = replay(reading.movements, question.method, tolerance=question.eps)
    status, reason = _covered(question, reading)
    if status is Status.EXACT and position.ambiguous:
        status, reason = Status.AMBIGUOUS, _TIED
    return Finding(status, position.units, position, reason, len(reading.movements), ZERO)


def _covered(question: Question, reading: _Reading) -> tuple[Status, str]:
    eps = question.eps
    if any(movement.fill.kind is not FillKind.FILL for movement in reading.movements):
        return Status.AMBIGUOUS, "only a balance tells the sign of reversed or corrected rows"
    lowest = min(units for _, units in reading.points)
    if lowest < -eps:
        return (
            Status.UNCOVERED,
            f"{text(-lowest)} {question.asset} more were sold than the window bought; "
            "without a balance nothing says what was held before",
        )
    recorded = question.recorded
    if recorded is None or any(abs(units - recorded.units) <= eps for _, units in reading.points):
        return Status.EXACT, "the fills of the window explain it from zero"
    if recorded.opened_at is not None and recorded.opened_at >= question.since:
        return Status.EXACT, "the position was opened inside of the window"
    return (
        Status.UNCOVERED,
        f"the state records {text(recorded.units)}, which the fills of the window never add up "
        "to; without a balance nothing says what was held before",
    )


# Readings of adjusted rows


def _readings(movements: Sequence[Movement], balance: Decimal) -> list[_Reading]:
    """Return every way to read the adjusted rows; one when there are none, none when too many."""
    adjusted = [m for m in movements if m.fill.kind is not FillKind.FILL]
    if len(adjusted) > _MOST_ADJUSTED_ROWS:
        return []
    readings = []
    for reversed_ones in product((False, True), repeat=len(adjusted)):
        taken_back = [m for m, back in zip(adjusted, reversed_ones, strict=True) if back]
        read = _take_back(list(movements), taken_back)
        if read is not None:
            readings.append(_reading(read, balance))
    return readings


def _as_stated(movements: Sequence[Movement], start: Decimal) -> _Reading:
    total = sum((movement.units for movement in movements), start)
    return _reading(movements, total)


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


def _reading(movements: Sequence[Movement], balance: Decimal) -> _Reading:
    units = balance - sum((movement.units for movement in movements), ZERO)
    points = [(0, units)]
    apart = set(_boundaries(movements))
    for index, movement in enumerate(movements, 1):
        units += movement.units
        if index in apart:
            points.append((index, units))
    return _Reading(tuple(movements), tuple(points))


def _boundaries(movements: Sequence[Movement]) -> Iterator[int]:
    """Indexes where a lifecycle may begin: between instants, not inside of an adjusted trade."""
    inside: set[int] = set()
    for movement in movements:
        if movement.fill.kind is not FillKind.FILL:
            rows = [i for i, other in enumerate(movements) if _same_trade(movement, other)]
            if rows:
                inside.update(range(rows[0] + 1, rows[-1] + 1))
    for index, (before, after) in enumerate(pairwise(movements), 1):
        if index not in inside and instant(before.fill) != instant(after.fill):
            yield index
    if movements:
        yield len(movements)


# The state beside the fills


def _matches(question: Question, reading: _Reading, recorded: Recorded) -> list[int]:
    """Points up to the time of the record where the fills imply what it says, oldest first."""
    eps = question.eps
    return [
        index
        for index, units in _points_until(reading, recorded.as_of)
        if abs(units - recorded.units) <= eps
    ]


def _points_until(reading: _Reading, as_of: int | None) -> list[tuple[int, Decimal]]:
    points = list(reading.points)
    if as_of is None:
        return points
    return [p for p in points if (reached := reading.time(p[0])) is None or reached <= as_of]


def _with_state(question: Question, finding: Finding, readings: Sequence[_Reading]) -> Finding:
    """Say so where the recorded quantity is at no time what the fills imply."""
    recorded = question.recorded
    if recorded is None or any(_matches(question, reading, recorded) for reading in readings):
        return finding
    # The reading that was confirmed first is the one the figures stand for.
    stated_at = recorded.as_of if recorded.stated_at is None else recorded.stated_at
    points = _points_until(readings[0], stated_at)
    implied = points[0][1] if stated_at is None else points[-1][1]
    at = question.since if stated_at is None else stated_at
    finding = replace(finding, conflict=Conflict(recorded.units, implied, at))
    if question.strict:
        reason = (
            f"the state records {text(recorded.units)} where the fills imply {text(implied)} "
            "(--strict-state)"
        )
        finding = replace(finding, status=Status.AMBIGUOUS, reason=reason)
    return finding


def _finding(
    status: Status, units: Decimal, position: Position, reason: str, reading: _Reading
) -> Finding:
    return Finding(status, units, position, reason, len(reading.movements), reading.points[0][1])


def _last(reading: _Reading) -> Decimal:
    return reading.points[-1][1]


def _cost_of(position: Position) -> Decimal | None:
    return None if position.cost is None else written(position.cost)


def _figures(finding: Finding) -> tuple[object, ...]:
    position = finding.position
    entry = None if position.entry_price is None else written(position.entry_price)
    return finding.status, written(finding.units), _cost_of(position), entry
