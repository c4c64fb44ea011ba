"""KuCoin: two lists of fills, a week at a time; the one of high frequency accounts by market."""

from __future__ import annotations

from collections.abc import Mapping

from statestore.fills.sources.venues.terms import (
    DAY_MS,
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

_ROWS = 500
_HF_ROWS = 100
_SPOT = frozenset({"main", "trade", "trade_hf"})


def _fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    number = int(after or 1)
    params: dict[str, object] = {
        "startAt": asked.since,
        "endAt": asked.until,
        "tradeType": "TRADE",
        "pageSize": _ROWS,
        "currentPage": number,
    }
    answer = ask("privateGetFills", params)
    return Page(
        rows_of(answer, "data", "items"),
        after=str(number + 1) if number < count_of(answer, "data", "totalPage") else None,
        total=count_of(answer, "data", "totalNum"),
    )


def _hf_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    params: dict[str, object] = {
        "symbol": asked.market,
        "startAt": asked.since,
        "endAt": asked.until,
        "limit": _HF_ROWS,
    }
    if after is not None:
        params["lastId"] = after
    answer = ask("privateGetHfFills", params)
    fills = rows_of(answer, "data", "items")
    full = len(fills) >= _HF_ROWS
    return Page(fills, after=str(inside(answer, "data", "lastId")) if full else None)


def _has_hf(ask: Ask) -> bool:
    opened = inside(ask("privateGetHfAccountsOpened", {}), "data")
    if not isinstance(opened, bool):
        raise NotWhole(f"hf/accounts/opened is {opened!r:.40}, neither true nor false")
    return opened


def _accounts(ask: Ask) -> list[Raw]:
    """Funding and trading accounts together; margin accounts hold what is borrowed, too."""
    return [
        {"currency": one.get("currency"), "available_balance": one.get("balance")}
        for one in rows_of(ask("privateGetAccounts", {}), "data")
        if one.get("type") in _SPOT
    ]


def _price(ask: Ask, market: Mapping[str, object]) -> str | None:
    answer = ask("publicGetMarketOrderbookLevel1", {"symbol": market["id"]})
    return str(inside(answer, "data", "price"))


# https://www.kucoin.com/docs-new/rest/spot-trading/orders/get-trade-history: a week at most between
# startAt and endAt, nothing before 2019-02-18; the high frequency account keeps a list of its own
VENUE = Venue(
    reads=frozenset(
        {
            "public GET symbols",
            "public GET market/orderbook/level1",
            "private GET accounts",
            "private GET fills",
            "private GET hf/accounts/opened",
            "private GET hf/fills",
        }
    ),
    streams=(
        Stream(_fills, longest=7 * DAY_MS),
        Stream(_hf_fills, longest=7 * DAY_MS, by_market=True, exists=_has_hf),
    ),
    accounts=_accounts,
    time=milliseconds("createdAt"),
    price=_price,
    options={
        "has": {"fetchCurrencies": False},
        "options": {"fetchMarkets": {"types": ["spot"], "fetchTickersFees": False}},
    },
    markets={"marginables": False},
    opened=1_550_448_000_000,
)
