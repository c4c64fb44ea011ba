"""Fills folded into a position: what is held, what it cost, what was realised. Pure arithmetic.

The unit of account is the asset: BTC-USD and BTC-USDC move one BTC, and ETH-BTC moves ETH one way
and BTC the other. A position is a list of lots. The three methods differ in which lots a sell
takes: the oldest (FIFO), the newest (LIFO), or all of them alike (average cost), where lots of one
currency are one. Costs in different currencies are never added up.

Cost and entry price exclude fees; the fees of the open units stand beside them. A position that
goes flat forgets its lots: what is bought afterwards is a new lifecycle.

Formulas, all exact but for the division that gives a price:

* entry price = cost of the open units / open units (average cost method);
* realised = cost of the open units - sum of signed notionals (buys positive, sells negative);
* break even = (cost + fees of the open units) / open units.

What fills cannot tell (units held before the first of them) is a lot without a currency: its
units count, its cost is unknown.

It is long for a module because a rule of accounting has one home: the methods share one book.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby, permutations
from typing import Literal

from statestore.amounts import ZERO, exact, written
from statestore.fills.normalise import instant
from statestore.model import Fill, Method, Side, settled_in
from statestore.times import parse_instant

# What a sell of more than is held does: nothing beyond zero (spot), or it opens a short.
Oversell = Literal["clamp", "short"]

# Beyond these a tie is not resolved but called ambiguous; real ties are two or three rows.
_MOST_TIED_ROWS = 6
_MOST_READINGS = 64

# Steps of an average that wait for their division; each takes 200 bytes.
_MOST_STEPS = 256


@dataclass(frozen=True, slots=True)
class Movement:
    """What one fill does to one asset.

    Attributes:
        units: signed change of the asset, after a fee that is taken in it.
        notional: value of ``units`` in ``currency``, with the sign of ``units``.
        fee_value: the fee in ``currency``, None when there is no way to tell.
    """

    fill: Fill
    units: Decimal
    notional: Decimal
    currency: str
    fee_value: Decimal | None

    @property
    def price(self) -> Decimal:
        return self.notional / self.units


@exact
def movements_of(asset: str, fills: Iterable[Fill]) -> list[Movement]:
    """Return what the fills do to ``asset``, in their order; others are left out."""
    return [
        _base_leg(fill) if fill.base == asset else _quote_leg(fill)
        for fill in fills
        if asset in (fill.base, fill.quote)
    ]


def _base_leg(fill: Fill) -> Movement:
    sign = 1 if fill.side is Side.BUY else -1
    in_base = fill.commission_currency == fill.base
    units = sign * fill.units - (fill.commission if in_base else ZERO)
    return Movement(
        fill,
        units,
        units * fill.price if in_base else sign * fill.notional,
        settled_in(fill.quote),
        _fee_in_quote(fill),
    )


def _quote_leg(fill: Fill) -> Movement:
    """The other side of a cross pair: quote goes out on a buy; its value is the base it bought."""
    sign = -1 if fill.side is Side.BUY else 1
    in_quote = fill.commission_currency == fill.quote
    units = sign * fill.notional - (fill.commission if in_quote else ZERO)
    fee = _fee_in_quote(fill)
    return Movement(
        fill,
        units,
        units / fill.price,
        settled_in(fill.base),
        None if fee is None else fee / fill.price,
    )


def _fee_in_quote(fill: Fill) -> Decimal | None:
    if fill.commission_currency == fill.quote or not fill.commission:
        return fill.commission
    return fill.commission * fill.price if fill.commission_currency == fill.base else None


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
        self._quoted = 0
        if opening is not None and opening.units:
            self.lots.append(opening.copy())
            self.units = opening.units
            if opening.currency is not None:
                self._account(opening.currency, opening.cost, opening.fee_value)

    def copy(self) -> Book:
        twin = Book(self.method, increment=self.increment, oversell=self.oversell)
        twin.__dict__.update(self.__dict__)
        twin.lots = deque(lot.copy() for lot in self.lots)
        twin.spent, twin.fees_spent = dict(self.spent), dict(self.fees_spent)
        return twin

    def apply(self, movement: Movement) -> None:
        """Take one movement into the book."""
        self._quoted += movement.fill.quoted
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
        self._account(movement.currency, notional, fee)
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
        self._account(movement.currency, *_portion(movement, units))
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
        self._quoted = 0

    @property
    def _tolerance(self) -> Decimal:
        return self.increment * max(1, self._quoted)

    def _pool(self, currency: str) -> Lot | None:
        return next((lot for lot in self.lots if lot.currency == currency), None)

    def _account(self, currency: str, notional: Decimal, fee: Decimal | None) -> None:
        self.spent[currency] = self.spent.get(currency, ZERO) + notional
        former = self.fees_spent.get(currency, ZERO)
        self.fees_spent[currency] = None if fee is None or former is None else former + fee

    def signature(self) -> tuple[object, ...]:
        """What two readings of a tie must share to be the same: the open units and their cost."""
        lots = tuple(
            (written(lot.units), written(lot.share(lot.cost)), lot.currency) for lot in self.lots
        )
        return lots, written(self.units), self.short


class Average:
    """What `Book` does in the case nearly every fill of an archive is: average cost, one currency,
    fees charged in one currency, no short, nothing of unknown cost. `book` gives the same as a
    `Book`; a property test holds the two together.

    It is made of sums. The units a sell takes cost what all cost alike, so no sum changes by it;
    the share of the cost that is left is due when more is bought, and only if the lifecycle is
    still open at the end does anybody ask for it: until then it is one more of ``_steps``.

    Attributes:
        units: held.
        opened_at: text of the time of the fill that opened the lifecycle.
    """

    __slots__ = (
        "_basis",
        "_bought",
        "_bought_fee",
        "_carried",
        "_fees_spent",
        "_quoted",
        "_spent",
        "_steps",
        "_tolerance",
        "charged",
        "currency",
        "increment",
        "opened_at",
        "units",
    )

    def __init__(self, currency: str, charged: str, increment: Decimal) -> None:
        self.currency = currency
        self.charged = charged
        self.increment = increment
        self.units = ZERO
        self.opened_at = ""
        self._basis = ZERO
        # Bought since the last step; what is spent and carried leaves it out.
        self._bought = self._bought_fee = ZERO
        self._spent = self._fees_spent = ZERO
        self._carried = (ZERO, ZERO)
        # Units left when more was bought, of how many, and what had been bought just before.
        self._steps: list[tuple[Decimal, Decimal, Decimal, Decimal]] = []
        self._quoted = 0
        self._tolerance = increment

    def buy(
        self, units: Decimal, notional: Decimal, fee: Decimal, time: str, quoted: bool = False
    ) -> None:
        """Take in a buy; ``quoted`` when its size was given in quote."""
        if quoted:
            self._count_quoted(1)
        held = self.units
        if held is not self._basis:
            self._step()
        elif not held:
            self.opened_at = time
        self.units = self._basis = held + units
        self._bought += notional
        self._bought_fee += fee

    def sell(self, units: Decimal, notional: Decimal, fee: Decimal, quoted: bool = False) -> bool:
        """Take in a sell. False, and everything is as it was, where it sells more than is held."""
        if quoted:
            self._count_quoted(1)
        left = self.units - units
        if left <= self._tolerance:
            if left < -self._tolerance or not self.units:
                if quoted:
                    self._count_quoted(-1)
                return False
            self._flatten()
        else:
            self.units = left
        self._spent -= notional
        self._fees_spent += fee
        return True

    def fresh(self) -> Average:
        """Return an empty account of the same kind."""
        return Average(self.currency, self.charged, self.increment)

    def stays_open(self, units: Decimal) -> bool:
        """Whether a sell of that much leaves something, and so does each part of it before."""
        return self.units - units > self._tolerance

    def followed_by(self, later: Average) -> Average:
        """Return the account of both, where this one is flat when the other begins, flat too."""
        later._spent += self._spent + self._bought
        later._fees_spent += self._fees_spent + self._bought_fee
        return later

    def _count_quoted(self, more: int) -> None:
        self._quoted += more
        self._tolerance = self.increment * max(1, self._quoted)

    def _step(self) -> None:
        self._steps.append((self.units, self._basis, self._bought, self._bought_fee))
        self._spent += self._bought
        self._fees_spent += self._bought_fee
        self._bought = self._bought_fee = ZERO
        if len(self._steps) == _MOST_STEPS:
            self._carried = self._shares()
            self._steps.clear()

    def _shares(self) -> tuple[Decimal, Decimal]:
        """Cost and fee that the units left at the last step had by then."""
        cost, fee = self._carried
        for units, basis, bought, bought_fee in self._steps:
            cost = (cost + bought) * units / basis
            fee = (fee + bought_fee) * units / basis
        return cost, fee

    def _flatten(self) -> None:
        self._spent += self._bought
        self._fees_spent += self._bought_fee
        self.units = self._basis = self._bought = self._bought_fee = ZERO
        self._carried = (ZERO, ZERO)
        self._steps.clear()
        self._quoted = 0
        self._tolerance = self.increment

    @exact
    def book(self) -> Book:
        book = Book(Method.AVERAGE, increment=self.increment)
        # What was never opened has accounted nothing, not even nothing of a currency.
        if self.opened_at:
            book._account(
                self.currency, self._spent + self._bought, self._fees_spent + self._bought_fee
            )
        book._quoted = self._quoted
        if self.units:
            cost, fee = self._shares()
            fee += self._bought_fee
            fees = {self.charged: fee} if fee else {}
            lot = Lot(self.units, self._basis, cost + self._bought, self.currency, fee, fees)
            book.lots.append(lot)
            book.units = self.units
            book.opened_at = parse_instant(self.opened_at)
        return book


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
def replay(
    movements: Sequence[Movement],
    method: Method = Method.AVERAGE,
    *,
    opening: Lot | None = None,
    increment: Decimal = ZERO,
    oversell: Oversell = "clamp",
) -> Position:
    """Apply movements of one asset in order and return the position at the end.

    Args:
        movements: oldest first (see `statestore.fills.normalise.oldest_first`).
        opening: units held before the first movement; None means flat, which is wrong for
            anything bought before the lookback window.
        increment: the product's base increment; a position of no more units than this, once for
            each of its fills sized in quote, is flat, and a sell that exceeds what is held by no
            more than that is covered.
        oversell: what selling more than is held does.

    Fills of one instant with both sides are tied: of all their orders those that never go below
    zero are followed, and the position is ambiguous if they lead to different ones.
    """
    books = [Book(method, opening=opening, increment=increment, oversell=oversell)]
    for tied in _instants(movements):
        books = _after(books, tied)
    return _reached(books)


@exact
def replay_each(
    movements: Sequence[Movement],
    method: Method = Method.AVERAGE,
    *,
    opening: Lot | None = None,
    increment: Decimal = ZERO,
) -> list[Position | None]:
    """Return the position after each movement; the last one is what `replay` returns.

    Between tied fills of both sides there is none, since nobody knows which came first: None for
    all but the last of them.
    """
    books = [Book(method, opening=opening, increment=increment)]
    found: list[Position | None] = []
    for tied in _instants(movements):
        if _one_sided(tied):
            for movement in tied:
                books = _after(books, [movement])
                found.append(_reached(books))
        else:
            books = _after(books, tied)
            found += [*[None] * (len(tied) - 1), _reached(books)]
    return found


def _one_sided(tied: Sequence[Movement]) -> bool:
    return len(tied) == 1 or len({movement.units > 0 for movement in tied}) == 1


def _after(books: list[Book], tied: list[Movement]) -> list[Book]:
    """Apply the movements of one instant, in every order that can differ."""
    if not _one_sided(tied):
        return _follow_orders(books, tied)
    for book in books:
        for movement in tied:
            book.apply(movement)
    return books


def _reached(books: list[Book]) -> Position:
    positions = [position_of(book) for book in books]
    first = positions[0]
    if any(position.realised != first.realised for position in positions):
        first = replace(first, realised=None, realised_net=None)
    differ = len({book.signature() for book in books}) > 1
    return replace(first, ambiguous=differ or any(book.undecided for book in books))


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


def _instants(movements: Sequence[Movement]) -> Iterator[list[Movement]]:
    for _, tied in groupby(movements, key=lambda movement: instant(movement.fill)):
        yield list(tied)


def _follow_orders(books: list[Book], tied: list[Movement]) -> list[Book]:
    orders, all_of_them = _orders(tied)
    reached: dict[tuple[object, ...], Book] = {}
    below: list[Book] = []
    for book in books:
        for order in orders:
            candidate = book.copy()
            for movement in order:
                candidate.apply(movement)
            candidate.undecided |= not all_of_them
            if candidate.uncovered - book.uncovered > book.increment:
                below.append(candidate)
            else:
                reached.setdefault(candidate.signature(), candidate)
    found = list(reached.values()) or below[:1]
    if len(found) > _MOST_READINGS:
        found[0].undecided = True
        return found[:1]
    return found


def _orders(tied: list[Movement]) -> tuple[list[tuple[Movement, ...]], bool]:
    """Orders that can differ in their result, buys first, and whether those are all."""
    buys_first = sorted(tied, key=lambda movement: movement.units < 0)
    if len(tied) > _MOST_TIED_ROWS:
        return [tuple(buys_first)], False
    distinct: dict[tuple[object, ...], tuple[Movement, ...]] = {}
    for order in permutations(buys_first):
        key = tuple((movement.units, movement.notional, movement.currency) for movement in order)
        distinct.setdefault(key, order)
    return list(distinct.values()), True
