"""What a unit of an asset is worth in USD, by prices the exchange gave just now.

A mark is a price that was fetched. The price of the last fill is a fact about the past and is never
called one. Without a route to USD the answer is None, never 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal

from statestore.amounts import exact
from statestore.model import PEGS, Fill, Product

_DOLLARS = ("USD", *(currency for currency, unit in PEGS.items() if unit == "USD"))


def products_needed(
    assets: Collection[str], fills: Iterable[Fill], quotes: Mapping[str, Collection[str]]
) -> set[str]:
    """Return the product ids that tell increments and marks of the assets.

    Args:
        assets: those in scope.
        fills: products they were filled in are needed.
        quotes: further quote currencies by asset, from the state.
    """
    needed = {f"{asset}-USD" for asset in assets if asset not in _DOLLARS}
    for asset in assets:
        for quote in quotes.get(asset, ()):
            needed |= {f"{asset}-{quote}", f"{quote}-USD"}
    for fill in fills:
        if fill.base in assets:
            needed |= {fill.product_id, f"{fill.quote}-USD"}
    return needed - {f"{dollar}-USD" for dollar in _DOLLARS}


@exact
def mark_in_usd(asset: str, products: Mapping[str, Product]) -> Decimal | None:
    """Return the USD price of one unit, directly or by way of one other quote currency."""
    direct = _direct(asset, products)
    if direct is not None:
        return direct
    for product in products.values():
        if product.base == asset and product.price and product.spot:
            rate = _direct(product.quote, products)
            if rate is not None:
                return product.price * rate
    return None


def _direct(asset: str, products: Mapping[str, Product]) -> Decimal | None:
    for dollar in _DOLLARS:
        product = products.get(f"{asset}-{dollar}")
        if product is not None and product.price is not None and product.price > 0:
            return product.price
    return None


def increment_of(asset: str, products: Mapping[str, Product]) -> Decimal:
    """Return the coarsest base increment of the asset's products; 1E-8 where none is known."""
    known = [p.base_increment for p in products.values() if p.base == asset and p.base_increment]
    return max(known, default=Decimal("1E-8"))


@exact
def dust_of(asset: str, products: Mapping[str, Product], price: Decimal | None) -> Decimal:
    """Return the units below which a holding is dust: worth 1 USD, or the smallest order.

    Args:
        asset: the base asset.
        products: what the exchange said of its products.
        price: in USD, of the last fill; used for this threshold only, where there is no mark.
    """
    smallest = [p.base_min_size for p in products.values() if p.base == asset and p.base_min_size]
    mark = mark_in_usd(asset, products) or price
    worth = [1 / mark] if mark else []
    return max((min(smallest, default=Decimal(0)), *worth))
