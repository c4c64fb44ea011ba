"""The account of nearly every fill: average cost, one currency, fees charged in one currency, no
short, nothing of unknown cost. It does what a `Book` does then, and is made to be fast.

What is promised: the figures are those of a `Book`, which `Average.book` returns, and where this
account would not do it says so and is as it was. A property test holds the two together.

It is made of sums. The units a sell takes cost what all cost alike, so no sum changes by it;
the share of the cost that is left is due when more is bought, and only if the lifecycle is
still open at the end does anybody ask for it: until then it is one more of ``_steps``.
"""

from __future__ import annotations

from decimal import Decimal

from statestore.amounts import ZERO, exact
from statestore.fills.book import Book, Lot
from statestore.model import Method
from statestore.times import parse_instant

# Steps of an average that wait for their division; each takes 200 bytes.
_MOST_STEPS = 256


class Average:
    """One asset's account; see the module.

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
            book.account(
                self.currency, self._spent + self._bought, self._fees_spent + self._bought_fee
            )
        book.quoted = self._quoted
        if self.units:
            cost, fee = self._shares()
            fee += self._bought_fee
            fees = {self.charged: fee} if fee else {}
            lot = Lot(self.units, self._basis, cost + self._bought, self.currency, fee, fees)
            book.lots.append(lot)
            book.units = self.units
            book.opened_at = parse_instant(self.opened_at)
        return book
