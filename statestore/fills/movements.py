"""What one fill does to one asset: how many units move, what they are worth, what the fee was.

The unit of account is the asset: BTC-USD and BTC-USDC move one BTC, and ETH-BTC moves ETH one way
and BTC the other. A fee that is taken in the asset makes the movement smaller; any other stands
beside it. What a fee in a third currency is worth nobody tells, so it is None, never zero.

Nothing is added up here: a movement knows no other (see `replay`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from statestore.amounts import ZERO, exact
from statestore.model import Fill, Side, settled_in


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
