"""What has to be known of an exchange before it can be read whole and read only, through ccxt.

ccxt signs, and knows markets and currencies. It does not know when a list of fills is whole (each
exchange pages in its own way, and ccxt's pagination gives up silently), nor which of its several
hundred calls only read (deribit places orders by GET, kraken reads balances by POST). Both are
written down here, an exchange a module; one that is not here is not read.

Nothing here sends anything or imports ccxt: a venue is given a function that asks.
docs/add-a-source.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping

from statestore.fills.sources.venues import binance, coinbase, kraken, kucoin
from statestore.fills.sources.venues.terms import Venue

VENUES: Mapping[str, Venue] = {
    "binance": binance.VENUE,
    "coinbase": coinbase.VENUE,
    "kraken": kraken.VENUE,
    "kucoin": kucoin.VENUE,
}


def known() -> tuple[str, ...]:
    """Return the ids (ccxt's) of the exchanges that can be read."""
    return tuple(sorted(VENUES))
