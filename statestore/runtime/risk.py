"""What the recorded positions put at risk: exposure against a limit, prices against a stop.

Reads the positions as they stand in the state, in each cycle anew, so a quantity that was repaired
counts from the next cycle on. What is not known (a price, a quantity, an entry) is null and never
taken for 0: with one exposure unknown the sum is unknown, and nothing is bought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from statestore.amounts import exact, parse_amount
from statestore.runtime.sections import quantity

Prices = Mapping[str, Decimal]  # by product, quote per base


@dataclass(frozen=True, slots=True)
class Exposure:
    """One position at the present price; None is unknown."""

    product: str
    units: Decimal | None
    entry_price: Decimal | None
    price: Decimal | None
    exposure: Decimal | None
    stop_price: Decimal | None

    @property
    def stopped_out(self) -> bool:
        if self.price is None or self.stop_price is None:
            return False
        return self.price <= self.stop_price


@dataclass(frozen=True, slots=True)
class Risk:
    """All positions by key.

    Attributes:
        exposure: of all together, in quote; None when one of them is unknown.
    """

    positions: Mapping[str, Exposure]
    exposure: Decimal | None


@dataclass(frozen=True, slots=True)
class RiskEngine:
    """Limits of a bot that only buys and sells what it holds.

    Attributes:
        max_exposure: of all positions together, in quote.
        stop_loss: fraction of the entry price that may be lost.
    """

    max_exposure: Decimal
    stop_loss: Decimal

    @exact
    def look(self, positions: Mapping[str, Any], prices: Prices) -> Risk:
        """Return what stands at risk at these prices."""
        found = {key: self._of(key, entry, prices) for key, entry in positions.items()}
        exposures = [position.exposure for position in found.values()]
        known = [exposure for exposure in exposures if exposure is not None]
        total = sum(known, Decimal(0)) if len(known) == len(exposures) else None
        return Risk(found, total)

    @exact
    def allows(self, risk: Risk, notional: Decimal) -> bool:
        """Return whether `notional` more would stay within the limit for certain."""
        return risk.exposure is not None and risk.exposure + notional <= self.max_exposure

    def _of(self, key: str, position: Any, prices: Prices) -> Exposure:
        product = key if "-" in key else f"{key}-USD"
        units, price = _amount(quantity(position)), prices.get(product)
        entry = _amount(position.get("entry_price") if isinstance(position, Mapping) else None)
        return Exposure(
            product=product,
            units=units,
            entry_price=entry,
            price=price,
            exposure=None if units is None or price is None else abs(units) * price,
            stop_price=None if entry is None else entry * (1 - self.stop_loss),
        )


def _amount(value: object) -> Decimal | None:
    try:
        return parse_amount(value)
    except ValueError:
        return None
