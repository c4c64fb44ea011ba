"""Binance: a list of fills for each market, by ascending id."""

from __future__ import annotations

from collections.abc import Mapping

from statestore.fills.sources.venues.terms import (
    Ask,
    NotWhole,
    Page,
    Raw,
    Slice,
    Stream,
    Venue,
    count_of,
    inside,
    milliseconds,
    rows_of,
)

_ROWS = 1000


def _fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    """By ascending id, from the first fill on: a request with times may span 24 hours only."""
    first = int(after or 0)
    params = {"symbol": asked.market, "fromId": first, "limit": _ROWS}
    fills = rows_of(ask("privateGetMyTrades", params))
    ids = [count_of(row, "id") for row in fills]
    if ids != sorted(ids) or any(one < first for one in ids):
        raise NotWhole(
            f"fills of {asked.market} do not come by ascending id from {first} on, so what is "
            "missing cannot be told and nothing was computed"
        )
    return Page(fills, after=str(ids[-1] + 1) if len(fills) >= _ROWS else None)


def _accounts(ask: Ask) -> list[Raw]:
    return [
        {"currency": one.get("asset"), "available_balance": one.get("free"), "hold": held}
        for one in rows_of(ask("privateGetAccount", {}), "balances")
        for held in (one.get("locked"),)
    ]


def _price(ask: Ask, market: Mapping[str, object]) -> str | None:
    return str(inside(ask("publicGetTickerPrice", {"symbol": market["id"]}), "price"))


# https://developers.binance.com/docs/binance-spot-api-docs: GET /api/v3/myTrades
VENUE = Venue(
    reads=frozenset(
        {
            "public GET exchangeInfo",
            "public GET ticker/price",
            "private GET account",
            "private GET myTrades",
        }
    ),
    streams=(Stream(_fills, by_market=True, whole=True),),
    accounts=_accounts,
    time=milliseconds("time"),
    price=_price,
    options={
        "has": {"fetchCurrencies": False},
        "options": {"fetchMarkets": {"types": ["spot"]}, "fetchMargins": False},
    },
)
