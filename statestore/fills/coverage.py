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
The walk itself, and the ways to read rows that adjust others, are in `walk`.

It is long for a module because it is one decision, and its cases are read against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import accumulate

from statestore.amounts import ZERO, exact, text, written
from statestore.fills.book import Lot, Position, unknown_lot
from statestore.fills.movements import Movement
from statestore.fills.replay import replay
from statestore.fills.walk import Point, Reading, every_reading, walk_back
from statestore.model import FillKind, Method, Status
from statestore.times import format_instant


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the state says of an asset.

    Attributes:
        units: recorded quantity, negative for a short.
        cost: of those units, before fees, in ``currency``; None when no entry price is recorded.
        entry_price: as recorded.
        fee_value: fees of those units in ``currency``, None when not recorded.
        opened_at: recorded time of entry, None when not recorded.
        as_of: until when the bot believed this; None when the state carries no time.
        stated_at: when this entry was written, which may be long before; None as above.
    """

    units: Decimal
    cost: Decimal | None
    currency: str
    entry_price: Decimal | None = None
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
        exhausted: the search ends here.
        complete: and that is because nothing older exists, not because it was told to stop.
        assumed_entry: cost per unit, by the operator, of units from before the window; in the
            currency of the fills where they have one, else in USD.
        strict: a recorded quantity the fills cannot explain makes the answer AMBIGUOUS.
        prove_entry: older fills are asked for before a recorded entry is carried on.
    """

    asset: str
    movements: Sequence[Movement]
    balance: Decimal | None
    increment: Decimal
    since: int
    exhausted: bool
    complete: bool = True
    method: Method = Method.AVERAGE
    dust: Decimal = ZERO
    recorded: Recorded | None = None
    assumed_entry: Decimal | None = None
    strict: bool = False
    prove_entry: bool = False


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
        movements: of the window, under the reading that was confirmed.
        opening: units before the first of them.
        balance: what all of it is anchored at, None without one.
        begins: how many of them came before what ``position`` is the replay of.
        brought: what that replay began with: a recorded entry, an assumed one, units of unknown
            cost; None where it began with nothing.
        increment: tolerance of a replay of more than that.
    """

    status: Status
    units: Decimal
    position: Position
    reason: str
    movements: tuple[Movement, ...]
    opening: Decimal
    conflict: Conflict | None = None
    balance: Decimal | None = None
    begins: int = 0
    brought: Lot | None = None
    increment: Decimal = ZERO

    @exact
    def running(self) -> list[Decimal]:
        """Return the units held after each movement.

        They start at what was held before the first one; without a balance, at zero.
        """
        totals = accumulate((move.units for move in self.movements), initial=self.opening)
        return list(totals)[1:]


def _finding(
    reading: Reading,
    status: Status,
    position: Position,
    reason: str,
    *,
    begins: int = 0,
    brought: Lot | None = None,
) -> Finding:
    if position.ambiguous:
        status, reason = Status.AMBIGUOUS, _TIED
    return Finding(
        status,
        reading.end.units,
        position,
        reason,
        reading.movements,
        reading.start.units,
        begins=begins,
        brought=brought,
    )


_TIED = "fills of the same instant can be ordered in ways that lead to different entries"


@exact
def explain(question: Question) -> Finding | None:
    """Return what the fills prove, or None when only older fills can tell."""
    if question.balance is None:
        finding: Finding | None = _offline(question)
    elif question.increment < question.balance < question.dust:
        finding = _dust(question, question.balance)
    else:
        finding = _anchored(question, question.balance)
    if finding is None:
        return None
    finding = replace(finding, balance=question.balance, increment=question.increment)
    return _without_one_currency(finding)


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
    readings = every_reading(question.movements, balance, question.increment)
    if len(readings) == 1:
        finding = _explained(question, readings[0]) or _unexplained(question, readings[0])
        return None if finding is None else _with_state(question, finding, readings[0])
    return _adjusted(question, balance, readings)


def _explained(question: Question, reading: Reading) -> Finding | None:
    """EXACT or CARRIED under this reading, or None."""
    for point in reversed(reading.points):
        if point.flat:
            return _exact(question, reading, point)
        if point.below:
            break
    return _carried(question, reading)


def _unexplained(question: Question, reading: Reading) -> Finding | None:
    """The other answers there are to one reading, or None when older fills may explain it."""
    finding = _outflow(question, reading) or _from_dust(question, reading)
    if finding is None and question.exhausted:
        return _with_unknown_cost(question, reading)
    return finding


def _adjusted(question: Question, balance: Decimal, readings: Sequence[Reading]) -> Finding | None:
    """Several readings of adjusted rows: the one that explains the balance, if it is one.

    A reading is out when its walk goes below zero. While another one may yet be explained by
    older fills, nothing is confirmed.
    """
    answers = [(reading, _explained(question, reading)) for reading in readings]
    still_open = any(found is None and not reading.goes_below for reading, found in answers)
    if still_open and not question.exhausted:
        return None
    confirmed = {_figures(found): (reading, found) for reading, found in answers if found}
    if len(confirmed) == 1:
        reading, found = next(iter(confirmed.values()))
        return _with_state(question, found, reading)
    as_stated = walk_back(question.movements, balance, question.increment)
    kinds = {m.fill.kind for m in question.movements if m.fill.kind is not FillKind.FILL}
    reason = (
        f"rows of type {', '.join(sorted(kinds))} can be read with either sign, and the balance "
        f"{text(balance)} confirms no single reading"
    )
    position = _replay(question, as_stated.movements)
    return replace(_finding(as_stated, Status.AMBIGUOUS, position, reason), reason=reason)


def _replay(
    question: Question, movements: Sequence[Movement], opening: Lot | None = None
) -> Position:
    """Replay one lifecycle: the walk back from the balance says where it begins, so that nothing
    of it has to be taken for a rounding error."""
    return replay(movements, question.method, opening=opening)


def _exact(question: Question, reading: Reading, flat: Point) -> Finding:
    """The present lifecycle began at ``flat``: replay from there.

    What was realised before it counts where all of it is explained.
    """
    position = _replay(question, reading.movements[flat.index :])
    if reading.goes_below:
        position = _with_realised(position, None)
    elif flat.index:
        opening = None if reading.start.flat else unknown_lot(reading.start.units)
        whole = replay(
            reading.movements, question.method, opening=opening, increment=question.increment
        )
        position = _with_realised(position, None if whole.ambiguous else whole)
    if not position.units:
        reason = "the balance is zero"
    else:
        began = reading.movements[flat.index].fill.time
        reason = f"the fills explain the balance since {format_instant(began)}"
    return _finding(reading, Status.EXACT, position, reason, begins=flat.index)


def _with_realised(position: Position, whole: Position | None) -> Position:
    if whole is None:
        return replace(position, realised=None, realised_net=None)
    return replace(position, realised=whole.realised, realised_net=whole.realised_net)


def _carried(question: Question, reading: Reading) -> Finding | None:
    """A recorded quantity that is exactly what the fills imply at its time carries its entry on."""
    recorded = question.recorded
    if recorded is None or recorded.cost is None or recorded.units <= 0:
        return None
    points = _matches(reading, recorded)
    if reading.goes_below:
        # Only a record from after the outflow can know better than the fills.
        last = max(point.index for point in reading.points if point.below)
        points = [p for p in points if p.index > last and recorded.as_of is not None]
    inside = recorded.as_of is not None and recorded.as_of >= question.since
    if not points or not (inside or question.complete):
        return None
    lot = _recorded_lot(recorded)
    positions = [_carry_on(question, reading, recorded, lot, point) for point in points]
    sold_later = any(movement.units < 0 for movement in reading.movements[points[-1].index :])
    by_lots = question.method is not Method.AVERAGE and sold_later
    differ = len({_figures_of(position) for position in positions}) > 1
    doubtful = differ or by_lots or not inside or question.prove_entry
    if doubtful and not question.exhausted:
        return None  # older fills may say it for certain
    if differ:
        reason = "the recorded entry can be carried on from more than one point of the window"
        first = points[0].index
        return _finding(reading, Status.AMBIGUOUS, positions[0], reason, begins=first, brought=lot)
    known_since = reading.time(points[-1]) or question.since
    reason = (
        f"the recorded {text(recorded.units)} are what the fills imply at "
        f"{format_instant(known_since)}; its entry carries on"
    )
    return _finding(
        reading, Status.CARRIED, positions[-1], reason, begins=points[-1].index, brought=lot
    )


def _recorded_lot(recorded: Recorded) -> Lot:
    assert recorded.cost is not None
    units = recorded.units
    lot = Lot(units, units, recorded.cost, recorded.currency, recorded.fee_value)
    if recorded.fee_value:
        lot.fees[recorded.currency] = recorded.fee_value
    return lot


def _carry_on(
    question: Question, reading: Reading, recorded: Recorded, lot: Lot, point: Point
) -> Position:
    movements = reading.movements[point.index :]
    position = _replay(question, movements, lot)
    if not movements:
        position = replace(position, entry_price=recorded.entry_price)
    if position.opened_at is None and position.units:
        position = replace(position, opened_at=recorded.opened_at)
    return position


def _outflow(question: Question, reading: Reading) -> Finding | None:
    """Units left without a fill: replay from where the running total was lowest, then shrink."""
    if not reading.goes_below:
        return None
    lowest = min(reversed(reading.points), key=lambda point: point.units)
    units = reading.end.units
    position = _replay(question, reading.movements[lowest.index :])
    reason = (
        f"{text(-lowest.units)} {question.asset} left without a fill (a withdrawal, a "
        f"conversion): the fills give {text(units - lowest.units)}, the balance is {text(units)}"
    )
    return _finding(
        reading, Status.UNEXPLAINED_OUTFLOW, _shrunk(position, units), reason, begins=lowest.index
    )


def _shrunk(position: Position, units: Decimal) -> Position:
    if not position.units:
        return _with_realised(position, None)
    part = units / position.units
    return replace(
        _with_realised(position, None),
        units=units,
        cost=None if position.cost is None else position.cost * part,
        fee_value=None if position.fee_value is None else position.fee_value * part,
        fees={currency: amount * part for currency, amount in position.fees.items()},
    )


def _from_dust(question: Question, reading: Reading) -> Finding | None:
    """A residue too small for a position ended the lifecycle before this one."""
    for point in reversed(reading.points):
        if ZERO < point.units < question.dust:
            position = _replay(question, reading.movements[point.index :])
            reason = f"the fills explain the balance but for {text(point.units)} of dust before"
            position = _with_realised(position, None)
            return _finding(reading, Status.EXACT, position, reason, begins=point.index)
    return None


def _with_unknown_cost(question: Question, reading: Reading) -> Finding:
    """History is exhausted and units are left over: the quantity is certain, the entry is not."""
    start = reading.start.units
    if question.assumed_entry is not None:
        currencies = {movement.currency for movement in reading.movements}
        currency = currencies.pop() if len(currencies) == 1 else "USD"
        lot = Lot(start, start, start * question.assumed_entry, currency, None)
        reason = (
            f"{text(start)} {question.asset} from before the first fill are taken at "
            f"{text(question.assumed_entry)} {currency}, as the operator said"
        )
        position = _replay(question, reading.movements, lot)
        return _finding(reading, Status.ASSUMED, position, reason, brought=lot)
    unknown = unknown_lot(start)
    position = _replay(question, reading.movements, unknown)
    if not position.unknown_units:
        # By lots: whatever the first units had cost, they are the ones that were sold.
        reason = f"the {text(start)} {question.asset} from before the first fill were sold"
        return _finding(reading, Status.EXACT, position, reason, brought=unknown)
    reason = (
        f"{text(start)} {question.asset} were held before the first fill there is "
        f"(since {format_instant(question.since)}); their cost is unknown"
    )
    return _finding(reading, Status.PARTIAL, position, reason, brought=unknown)


def _dust(question: Question, balance: Decimal) -> Finding:
    inner = _anchored(replace(question, exhausted=True), balance)
    assert inner is not None  # an exhausted window always has an answer
    reason = f"the balance {text(balance)} {question.asset} is dust"
    return replace(inner, status=Status.DUST, reason=reason)


# Without a balance


def _offline(question: Question) -> Finding:
    """Replay from zero; believed if it never goes below and agrees with what is recorded."""
    total = sum((movement.units for movement in question.movements), ZERO)
    reading = walk_back(question.movements, total, question.increment)
    position = replay(reading.movements, question.method, increment=question.increment)
    status, reason = _covered(question, reading)
    if status is not Status.EXACT:
        # A tie is the smaller trouble of the two; the larger one keeps the word.
        position = replace(position, ambiguous=False)
    return replace(_finding(reading, status, position, reason), units=position.units)


def _covered(question: Question, reading: Reading) -> tuple[Status, str]:
    if any(movement.fill.kind is not FillKind.FILL for movement in reading.movements):
        return Status.AMBIGUOUS, "only a balance tells the sign of reversed or corrected rows"
    if reading.goes_below:
        lowest = min(point.units for point in reading.points)
        return (
            Status.UNCOVERED,
            f"{text(-lowest)} {question.asset} more were sold than the window bought; "
            "without a balance nothing says what was held before",
        )
    recorded = question.recorded
    if recorded is None:
        return Status.EXACT, "the fills of the window explain it from zero"
    opened_before = recorded.opened_at is not None and recorded.opened_at < question.since
    if recorded.opened_at is not None and not opened_before:
        return Status.EXACT, "the position was opened inside of the window"
    adds_up = any(abs(p.units - recorded.units) <= p.eps for p in reading.points)
    if adds_up and not (opened_before and recorded.units):
        return Status.EXACT, "the fills of the window explain it from zero"
    why = (
        f"says it was opened at {format_instant(recorded.opened_at or 0)}, before the window"
        if adds_up
        else f"records {text(recorded.units)}, which the fills of the window never add up to"
    )
    return (
        Status.UNCOVERED,
        f"the state {why}; without a balance nothing says what was held before",
    )


# The state beside the fills


def _matches(reading: Reading, recorded: Recorded) -> list[Point]:
    """Points up to the time of the record where the fills imply what it says, oldest first."""
    return [
        point
        for point in reading.until(recorded.as_of)
        if abs(point.units - recorded.units) <= point.eps
    ]


def _with_state(question: Question, finding: Finding, reading: Reading) -> Finding:
    """Say so where the recorded quantity is at no time what the fills imply."""
    recorded = question.recorded
    if recorded is None or _matches(reading, recorded):
        return finding
    stated_at = recorded.as_of if recorded.stated_at is None else recorded.stated_at
    implied = (reading.start if stated_at is None else reading.until(stated_at)[-1]).units
    at = question.since if stated_at is None else stated_at
    finding = replace(finding, conflict=Conflict(recorded.units, implied, at))
    if question.strict:
        reason = (
            f"the state records {text(recorded.units)} where the fills imply {text(implied)} "
            "(--strict-state)"
        )
        finding = replace(finding, status=Status.AMBIGUOUS, reason=reason)
    return finding


def _figures_of(position: Position) -> tuple[object, ...]:
    cost, entry = position.cost, position.entry_price
    return (
        None if cost is None else written(cost),
        None if entry is None else written(entry),
        position.currency,
    )


def _figures(finding: Finding) -> tuple[object, ...]:
    ambiguous = finding.status is Status.AMBIGUOUS
    return ambiguous, written(finding.units), _figures_of(finding.position)
