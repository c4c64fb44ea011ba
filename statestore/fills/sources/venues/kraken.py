"""Kraken: one list of all fills, by offset."""

from __future__ import annotations

from collections.abc import Mapping

from statestore.fills.sources.venues.terms import (
    Ask,
    Page,
    Raw,
    Slice,
    Stream,
    Venue,
    count_of,
    number_of,
    objects_of,
)
from statestore.times import NANOSECONDS


def _fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    # Whole seconds, and ``start`` is exclusive: a second more on either side.
    params: dict[str, object] = {
        "start": asked.since // 1000 - 1,
        "end": -(-asked.until // 1000) + 1,
        "ofs": int(after or 0),
        "consolidate_taker": "false",  # or the fills of an order come as one, at a rounded price
    }
    answer = ask("privatePostTradesHistory", params)
    trades = objects_of(answer, "result", "trades")
    total = count_of(answer, "result", "count")
    seen = int(after or 0) + len(trades)
    return Page(
        [{**row, "id": key} for key, row in trades.items()],
        after=str(seen) if seen < total else None,
        total=total,
    )


def _accounts(ask: Ask) -> list[Raw]:
    """Balances, with what is on loan to Kraken Rewards (``.F``): it can be sold at any time.

    Staked and bonded units (``.S``, ``.B``, ``.M``) cannot, and stay assets of their own.
    """
    owned = objects_of(ask("privatePostBalanceEx", {}), "result")
    return [
        {"currency": asset.removesuffix(".F"), "available_balance": one.get("balance")}
        for asset, one in owned.items()
    ]


def _price(ask: Ask, market: Mapping[str, object]) -> str | None:
    tickers = objects_of(ask("publicGetTicker", {"pair": market["id"]}), "result")
    last = next((ticker.get("c") for ticker in tickers.values()), None)
    return str(last[0]) if isinstance(last, list) and last else None


def _time(row: Raw) -> int:
    return int(number_of(row, "time") * NANOSECONDS)


# https://docs.kraken.com/api-reference/account-data/get-trades-history: 50 rows a page, newest
# first, by offset; https://docs.kraken.com/api-reference/account-data/get-extended-balance
VENUE = Venue(
    reads=frozenset(
        {
            "public GET Assets",
            "public GET AssetPairs",
            "public GET Ticker",
            "private POST BalanceEx",
            "private POST TradesHistory",
        }
    ),
    streams=(Stream(_fills),),
    accounts=_accounts,
    time=_time,
    price=_price,
    on_margin=lambda row: number_of(row, "margin") != 0 if row.get("margin") else False,
)
