"""One asset's account: what is held, what it cost, what was realised. Pure arithmetic.

A position is a list of lots. The three methods differ in which lots a sell takes: the oldest
(FIFO), the newest (LIFO), or all of them alike (average cost), where lots of one currency are one.
Costs in different currencies are never added up.

Cost and entry price exclude fees; the fees of the open units stand beside them. A position that
goes flat forgets its lots: what is bought afterwards is a new lifecycle.

Formulas, all exact but for the division that gives a price:

* entry price = cost of the open units / open units (average cost method);
* realised = cost of the open units - sum of signed notionals (buys positive, sells negative);
* break even = (cost + fees of the open units) / open units.

What fills cannot tell (units held before the first of them) is a lot without a currency: its
units count, its cost is unknown.

In which order fills are applied is not decided here (see `replay`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from statestore.amounts import ZERO, exact, written
from statestore.fills.movements import Movement
from statestore.model import Fill, Method

# What a sell of more than is held does: nothing beyond zero (spot), or it opens a short.
Oversell = Literal["clamp", "short"]


@dataclass(slots=True)
class Lot:
    """Units that were acquired together, or (average cost) are accounted together.

    ``cost``, ``fee_value`` and ``fees`` are those of the ``basis`` units the lot began with;
    ``units`` are left of them. Shares are taken when asked for: a sell divides nothing.
    """

    units: Decimal
    basis: Decimal
    cost: Decimal
    currency: str | None  # None: the cost is unknown
    fee_value: Decimal | None
    fees: dict[str, Decimal] = field(default_factory=dict)
    opened: Fill | None = None

    def share(self, whole: Decimal) -> Decimal:
        """Return the part of a whole of the basis that falls to the units left."""
        return whole if self.units == self.basis else whole * self.units / self.basis

    @property
    def unit_cost(self) -> Decimal:
        return self.cost / self.basis

    def copy(self) -> Lot:
        return Lot(
            self.units,
            self.basis,
            self.cost,
            self.currency,
            self.fee_value,
            dict(self.fees),
            self.opened,
        )

    def absorb(self, other: Lot) -> None:
        """Average cost: become one lot with ``other``, of the same currency."""
        self.cost = self.share(self.cost) + other.cost
        mine = None if self.fee_value is None else self.share(self.fee_value)
        both = mine is not None and other.fee_value is not None
        self.fee_value = mine + other.fee_value if both else None  # type: ignore[operator]
        self.fees = {currency: self.share(amount) for currency, amount in self.fees.items()}
        for currency, amount in other.fees.items():
            self.fees[currency] = self.fees.get(currency, ZERO) + amount
        self.units += other.units
        self.basis = self.units


def unknown_lot(units: Decimal) -> Lot:
    """Return units held before the first fill, whose cost nobody told."""
    return Lot(units, units, ZERO, None, None)


class Book:
    """One asset's position while fills are applied to it.

    Attributes:
        units: held; never negative under "clamp", the size of the short when ``short``.
        increment: the tolerance for rounding: a lifecycle whose units are within it (once for
            every fill sized in quote) is flat.
        uncovered: units that were sold without being held (dropped under "clamp").
        spent: signed notional of everything applied, by currency; ``fees_spent`` likewise.
        sold_unknown: units of unknown cost were sold, so nothing is known of what was realised.
        undecided: a tie had more orders than were followed.
        quoted: how many fills of the present lifecycle were sized in quote.
        opened_at: instant of the fill that opened the present lifecycle, None while flat or when
            it was opened before the first fill.
    """

    def __init__(
        self,
        method: Method = Method.AVERAGE,
        *,
        opening: Lot | None = None,
        increment: Decimal = ZERO,
        oversell: Oversell = "clamp",
    ) -> None:
        self.method = method
        self.increment = increment
        self.oversell = oversell
        self.lots: deque[Lot] = deque()
        self.units = ZERO
        self.short = False
        self.uncovered = ZERO
        self.opened_at: int | None = None
        self.spent: dict[str, Decimal] = {}
        self.fees_spent: dict[str, Decimal | None] = {}
        self.sold_unknown = False
        self.undecided = False
        self.quoted = 0
        if opening is not None and opening.units:
            self.lots.append(opening.copy())
            self.units = opening.units
            if opening.currency is not None:
                self.account(opening.currency, opening.cost, opening.fee_value)

    def copy(self) -> Book:
        twin = Book(self.method, increment=self.increment, oversell=self.oversell)
        twin.__dict__.update(self.__dict__)
        twin.lots = deque(lot.copy() for lot in self.lots)
        twin.spent, twin.fees_spent = dict(self.spent), dict(self.fees_spent)
        return twin

    def apply(self, movement: Movement) -> None:
        """Take one movement into the book."""
        self.quoted += movement.fill.quoted
        units = abs(movement.units)
        closes = self.units and self.short != (movement.units < 0)
        closing = min(units, self.units) if closes else ZERO
        beyond = units - closing
        if closing and beyond <= self._tolerance:
            closing, beyond = units, ZERO
        if closing:
            self._close(movement, closing)
        if beyond:
            self._open_or_drop(movement, beyond)

    def _open_or_drop(self, movement: Movement, units: Decimal) -> None:
        if movement.units < 0 and self.oversell == "clamp":
            self.uncovered += units
            return
        notional, fee = _portion(movement, units)
        self.account(movement.currency, notional, fee)
        whole = units == abs(movement.units)
        commission = movement.fill.commission
        fee_part = commission if whole else commission * units / abs(movement.units)
        lot = Lot(
            units,
            units,
            abs(notional),
            movement.currency,
            fee,
            {movement.fill.commission_currency: fee_part} if fee_part else {},
            movement.fill,
        )
        if not self.units:
            self.short = movement.units < 0
            self.opened_at = movement.fill.time
        self.units += units
        pool = self._pool(movement.currency) if self.method is Method.AVERAGE else None
        if pool is None:
            self.lots.append(lot)
        else:
            pool.absorb(lot)

    def _close(self, movement: Movement, units: Decimal) -> None:
        self.account(movement.currency, *_portion(movement, units))
        self.units -= units
        if self.units <= self._tolerance:
            self.sold_unknown |= any(lot.currency is None for lot in self.lots)
            self._flatten()
        elif self.method is Method.AVERAGE:
            self._take_alike(units)
        else:
            self._take_in_turn(units)

    def _take_alike(self, units: Decimal) -> None:
        if len(self.lots) == 1:
            lot = self.lots[0]
            self.sold_unknown |= lot.currency is None
            lot.units -= units
            return
        before = self.units + units
        for lot in self.lots:
            self.sold_unknown |= lot.currency is None
            lot.units = lot.units * self.units / before

    def _take_in_turn(self, units: Decimal) -> None:
        newest_first = self.method is Method.LIFO
        while units > 0 and self.lots:
            lot = self.lots[-1 if newest_first else 0]
            self.sold_unknown |= lot.currency is None
            taken = min(units, lot.units)
            lot.units -= taken
            units -= taken
            if not lot.units:
                (self.lots.pop if newest_first else self.lots.popleft)()

    def _flatten(self) -> None:
        self.lots.clear()
        self.units = ZERO
        self.short = False
        self.opened_at = None
        self.undecided = False  # whatever the orders were, they all lead here
        self.quoted = 0

    @property
    def _tolerance(self) -> Decimal:
        return self.increment * max(1, self.quoted)

    def _pool(self, currency: str) -> Lot | None:
        return next((lot for lot in self.lots if lot.currency == currency), None)

    def account(self, currency: str, notional: Decimal, fee: Decimal | None) -> None:
        self.spent[currency] = self.spent.get(currency, ZERO) + notional
        former = self.fees_spent.get(currency, ZERO)
        self.fees_spent[currency] = None if fee is None or former is None else former + fee

    def signature(self) -> tuple[object, ...]:
        """What two readings of a tie must share to be the same: the open units and their cost."""
        lots = tuple(
            (written(lot.units), written(lot.share(lot.cost)), lot.currency) for lot in self.lots
        )
        return lots, written(self.units), self.short


def _portion(movement: Movement, units: Decimal) -> tuple[Decimal, Decimal | None]:
    """Notional and fee that fall to ``units`` of the movement."""
    whole = abs(movement.units)
    if units == whole:
        return movement.notional, movement.fee_value
    fee = movement.fee_value
    return movement.notional * units / whole, None if fee is None else fee * units / whole


@dataclass(frozen=True, slots=True)
class Position:
    """What is open at the end of a replay, and what the replay realised.

    Attributes:
        units: held, negative for a short.
        unknown_units: those of them whose cost is unknown.
        currency: what the known units were paid in; None when none are, or when currencies mix.
        cost: of the known open units, before fees, signed as ``units``; None when currencies mix.
        entry_price: cost per unit; None unless the cost of every open unit is known.
        break_even: price at which the open units bring back cost and fees; None when unknown.
        fee_value: fees of the open units in ``currency``; None when unknown.
        fees: the same as they were charged, by currency.
        realised: profit of what was closed, before fees. None when units of unknown cost were
            sold, or when it would add up different currencies. ``realised_net``: after fees.
        uncovered: units that were sold without being held, and dropped.
        opened_at: when the present lifecycle began; None while flat or when before the first fill.
        lots: the open lots, oldest first (one per currency for average cost).
        ambiguous: another order of tied fills leads to another position.
    """

    units: Decimal
    unknown_units: Decimal
    currency: str | None
    cost: Decimal | None
    entry_price: Decimal | None
    break_even: Decimal | None
    fee_value: Decimal | None
    fees: Mapping[str, Decimal]
    realised: Decimal | None
    realised_net: Decimal | None
    uncovered: Decimal
    opened_at: int | None
    lots: tuple[Lot, ...]
    ambiguous: bool = False


@exact
def position_of(book: Book) -> Position:
    """Return what the book says when its fills end here."""
    sign = -1 if book.short else 1
    known = [lot for lot in book.lots if lot.currency is not None]
    known_units = sum((lot.units for lot in known), ZERO)
    currencies = {lot.currency for lot in known}
    mixed = len(currencies) > 1
    fee_values = [None if lot.fee_value is None else lot.share(lot.fee_value) for lot in book.lots]
    fee_value = (
        None if mixed or None in fee_values else sum((fee for fee in fee_values if fee), ZERO)
    )
    cost = None if mixed else sum((lot.share(lot.cost) for lot in known), ZERO)
    entry_price = break_even = None
    if cost is not None and known and len(known) == len(book.lots):
        entry_price = known[0].unit_cost if len(known) == 1 else cost / known_units
        if fee_value is not None:
            break_even = (cost + sign * fee_value) / known_units
    realised = _realised(book)
    return Position(
        units=sign * book.units,
        unknown_units=book.units - known_units if len(known) < len(book.lots) else ZERO,
        currency=currencies.pop() if len(currencies) == 1 else None,
        cost=None if cost is None else sign * cost,
        entry_price=entry_price,
        break_even=break_even,
        fee_value=fee_value,
        fees=_open_fees(book),
        realised=realised,
        realised_net=_net(book, realised, fee_value),
        uncovered=book.uncovered,
        opened_at=book.opened_at,
        lots=tuple(lot.copy() for lot in book.lots),
    )


def _open_fees(book: Book) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for lot in book.lots:
        for currency, amount in lot.fees.items():
            total[currency] = total.get(currency, ZERO) + lot.share(amount)
    return {currency: amount for currency, amount in total.items() if amount}


def _realised(book: Book) -> Decimal | None:
    """Cost of the open units minus everything spent, if that is one currency."""
    if book.sold_unknown:
        return None
    results = {currency: -spent for currency, spent in book.spent.items()}
    for lot in book.lots:
        if lot.currency is not None:
            cost = lot.share(lot.cost)
            results[lot.currency] += -cost if book.short else cost
    results = {currency: result for currency, result in results.items() if written(result)}
    return next(iter(results.values()), ZERO) if len(results) <= 1 else None


def _net(book: Book, realised: Decimal | None, open_fees: Decimal | None) -> Decimal | None:
    charged = list(book.fees_spent.values())
    if realised is None or open_fees is None or None in charged or len(charged) > 1:
        return None
    return realised - (sum((fee for fee in charged if fee), ZERO) - open_fees)
