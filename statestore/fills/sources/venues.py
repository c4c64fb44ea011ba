"""What has to be known of an exchange before it can be read whole and read only, through ccxt.

ccxt signs, and knows markets and currencies. It does not know when a list of fills is whole (each
exchange pages in its own way, and ccxt's pagination gives up silently), nor which of its several
hundred calls only read (deribit places orders by GET, kraken reads balances by POST). Both are
written down here, an exchange at a time; one that is not here is not read.

Nothing here sends anything or imports ccxt: a venue is given a function that asks.
docs/add-a-source.md says how to add one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from statestore.amounts import json_type, parse_amount
from statestore.times import NANOSECONDS, format_instant, parse_instant

# (name of ccxt's implicit method, parameters) -> the decoded answer, fractions as their text
Ask = Callable[[str, Mapping[str, object]], object]
Raw = Mapping[str, object]

_DAY_MS = 24 * 3600 * 1000


class NotWhole(Exception):
    """An answer is not what it has to be; the source says of which exchange it is."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one chain of pages is asked for: ``[since, until)`` in milliseconds, of one market.

    Attributes:
        market: the exchange's own id of it; empty where it lists all markets at once.
    """

    since: int
    until: int
    market: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a chain.

    Attributes:
        rows: as the exchange sent them.
        after: what the next page is asked with; None at the end of the chain.
        total: rows of the whole chain, where the exchange says so.
    """

    rows: list[Raw]
    after: str | None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One list of fills that an exchange keeps.

    Attributes:
        page: reads one page; its last argument is the `Page.after` of the page before.
        longest: milliseconds that one request may span; None: any.
        by_market: it is kept, and asked for, a market at a time.
        whole: a slice is always read from the very first fill on, whatever its ``since``.
        exists: whether this account has such a list; None: every account has.
    """

    page: Callable[[Ask, Slice, str | None], Page]
    longest: int | None = None
    by_market: bool = False
    whole: bool = False
    exists: Callable[[Ask], bool] | None = None


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange.

    Attributes:
        reads: every call that may leave, as ``api METHOD path`` (ccxt's terms). POST is there only
            where the exchange wants its reads signed that way.
        streams: together they hold every spot fill.
        accounts: what is owned, as rows of Coinbase's List Accounts, with the exchange's own ids of
            the currencies.
        time: the instant of a fill, exactly.
        price: the last price of a market (ccxt's structure), None where there is none.
        on_margin: whether a fill moved a margin position and not the spot balances.
        as_it_is: fills are sent in the shape of Coinbase's List Fills already.
        options: ccxt's configuration, to load spot markets and nothing else.
        markets: parameters of ccxt's ``load_markets``, likewise.
        opened: milliseconds; there are no fills before.
    """

    reads: frozenset[str]
    streams: tuple[Stream, ...]
    accounts: Callable[[Ask], list[Raw]]
    time: Callable[[Raw], int]
    price: Callable[[Ask, Mapping[str, object]], str | None]
    on_margin: Callable[[Raw], bool] = lambda _row: False
    as_it_is: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    markets: Mapping[str, object] = field(default_factory=dict)
    opened: int = 0


def known() -> tuple[str, ...]:
    """Return the ids (ccxt's) of the exchanges that can be read."""
    return tuple(sorted(VENUES))


# Answers ----------------------------------------------------------------------------------------


def _inside(answer: object, *path: str) -> object:
    """Return what stands at ``path`` of an answer.

    Raises:
        NotWhole: it is not there. An answer of another shape is no empty one.
    """
    for name in path:
        if not isinstance(answer, Mapping) or name not in answer:
            raise NotWhole(
                f"no {'.'.join(path)} in the answer, so it is not whole and nothing was computed"
            )
        answer = answer[name]
    return answer


def _rows(answer: object, *path: str) -> list[Raw]:
    rows = _inside(answer, *path)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise NotWhole(
            f"{'.'.join(path) or 'the answer'} is {json_type(rows)}, not a list of objects, so it "
            "is not whole and nothing was computed"
        )
    return rows


def _objects(answer: object, *path: str) -> dict[str, Raw]:
    found = _inside(answer, *path)
    if not isinstance(found, Mapping) or not all(
        isinstance(one, Mapping) for one in found.values()
    ):
        raise NotWhole(
            f"{'.'.join(path)} is {json_type(found)}, not an object of objects, so it is not whole "
            "and nothing was computed"
        )
    return dict(found)


def _count(answer: object, *path: str) -> int:
    found = _inside(answer, *path)
    if not re.fullmatch(r"\d{1,18}", str(found), re.ASCII):
        raise NotWhole(f"{'.'.join(path)} is {found!r:.40}, not a count")
    return int(str(found))


def _number(row: Raw, name: str) -> Decimal:
    try:
        return parse_amount(row[name] if isinstance(row.get(name), int) else str(row.get(name)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _milliseconds(name: str) -> Callable[[Raw], int]:
    return lambda row: int(_number(row, name) * 1_000_000)


# kraken -----------------------------------------------------------------------------------------


def _kraken_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    # Whole seconds, and ``start`` is exclusive: a second more on either side.
    params: dict[str, object] = {
        "start": asked.since // 1000 - 1,
        "end": -(-asked.until // 1000) + 1,
        "ofs": int(after or 0),
        "consolidate_taker": "false",  # or the fills of an order come as one, at a rounded price
    }
    answer = ask("privatePostTradesHistory", params)
    trades = _objects(answer, "result", "trades")
    total = _count(answer, "result", "count")
    seen = int(after or 0) + len(trades)
    return Page(
        [{**row, "id": key} for key, row in trades.items()],
        after=str(seen) if seen < total else None,
        total=total,
    )


def _kraken_accounts(ask: Ask) -> list[Raw]:
    """Balances, with what is on loan to Kraken Rewards (``.F``): it can be sold at any time.

    Staked and bonded units (``.S``, ``.B``, ``.M``) cannot, and stay assets of their own.
    """
    owned = _objects(ask("privatePostBalanceEx", {}), "result")
    return [
        {"currency": asset.removesuffix(".F"), "available_balance": one.get("balance")}
        for asset, one in owned.items()
    ]


def _kraken_price(ask: Ask, market: Mapping[str, object]) -> str | None:
    tickers = _objects(ask("publicGetTicker", {"pair": market["id"]}), "result")
    last = next((ticker.get("c") for ticker in tickers.values()), None)
    return str(last[0]) if isinstance(last, list) and last else None


def _kraken_time(row: Raw) -> int:
    return int(_number(row, "time") * NANOSECONDS)


# https://docs.kraken.com/api-reference/account-data/get-trades-history: 50 rows a page, newest
# first, by offset; https://docs.kraken.com/api-reference/account-data/get-extended-balance
_KRAKEN = Venue(
    reads=frozenset(
        {
            "public GET Assets",
            "public GET AssetPairs",
            "public GET Ticker",
            "private POST BalanceEx",
            "private POST TradesHistory",
        }
    ),
    streams=(Stream(_kraken_fills),),
    accounts=_kraken_accounts,
    time=_kraken_time,
    price=_kraken_price,
    on_margin=lambda row: _number(row, "margin") != 0 if row.get("margin") else False,
)


# binance ----------------------------------------------------------------------------------------

_BINANCE_ROWS = 1000


def _binance_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    """By ascending id, from the first fill on: a request with times may span 24 hours only."""
    first = int(after or 0)
    params = {"symbol": asked.market, "fromId": first, "limit": _BINANCE_ROWS}
    rows = _rows(ask("privateGetMyTrades", params))
    ids = [_count(row, "id") for row in rows]
    if ids != sorted(ids) or any(one < first for one in ids):
        raise NotWhole(
            f"fills of {asked.market} do not come by ascending id from {first} on, so what is "
            "missing cannot be told and nothing was computed"
        )
    return Page(rows, after=str(ids[-1] + 1) if len(rows) >= _BINANCE_ROWS else None)


def _binance_accounts(ask: Ask) -> list[Raw]:
    return [
        {"currency": one.get("asset"), "available_balance": one.get("free"), "hold": held}
        for one in _rows(ask("privateGetAccount", {}), "balances")
        for held in (one.get("locked"),)
    ]


def _binance_price(ask: Ask, market: Mapping[str, object]) -> str | None:
    return str(_inside(ask("publicGetTickerPrice", {"symbol": market["id"]}), "price"))


# https://developers.binance.com/docs/binance-spot-api-docs: GET /api/v3/myTrades
_BINANCE = Venue(
    reads=frozenset(
        {
            "public GET exchangeInfo",
            "public GET ticker/price",
            "private GET account",
            "private GET myTrades",
        }
    ),
    streams=(Stream(_binance_fills, by_market=True, whole=True),),
    accounts=_binance_accounts,
    time=_milliseconds("time"),
    price=_binance_price,
    options={
        "has": {"fetchCurrencies": False},
        "options": {"fetchMarkets": {"types": ["spot"]}, "fetchMargins": False},
    },
)


# kucoin -----------------------------------------------------------------------------------------

_KUCOIN_ROWS = 500
_KUCOIN_HF_ROWS = 100
_KUCOIN_SPOT = frozenset({"main", "trade", "trade_hf"})


def _kucoin_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    number = int(after or 1)
    params: dict[str, object] = {
        "startAt": asked.since,
        "endAt": asked.until,
        "tradeType": "TRADE",
        "pageSize": _KUCOIN_ROWS,
        "currentPage": number,
    }
    answer = ask("privateGetFills", params)
    return Page(
        _rows(answer, "data", "items"),
        after=str(number + 1) if number < _count(answer, "data", "totalPage") else None,
        total=_count(answer, "data", "totalNum"),
    )


def _kucoin_hf_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    params: dict[str, object] = {
        "symbol": asked.market,
        "startAt": asked.since,
        "endAt": asked.until,
        "limit": _KUCOIN_HF_ROWS,
    }
    if after is not None:
        params["lastId"] = after
    answer = ask("privateGetHfFills", params)
    rows = _rows(answer, "data", "items")
    full = len(rows) >= _KUCOIN_HF_ROWS
    return Page(rows, after=str(_inside(answer, "data", "lastId")) if full else None)


def _kucoin_has_hf(ask: Ask) -> bool:
    opened = _inside(ask("privateGetHfAccountsOpened", {}), "data")
    if not isinstance(opened, bool):
        raise NotWhole(f"hf/accounts/opened is {opened!r:.40}, neither true nor false")
    return opened


def _kucoin_accounts(ask: Ask) -> list[Raw]:
    """Funding and trading accounts together; margin accounts hold what is borrowed, too."""
    return [
        {"currency": one.get("currency"), "available_balance": one.get("balance")}
        for one in _rows(ask("privateGetAccounts", {}), "data")
        if one.get("type") in _KUCOIN_SPOT
    ]


def _kucoin_price(ask: Ask, market: Mapping[str, object]) -> str | None:
    answer = ask("publicGetMarketOrderbookLevel1", {"symbol": market["id"]})
    return str(_inside(answer, "data", "price"))


# https://www.kucoin.com/docs-new/rest/spot-trading/orders/get-trade-history: a week at most between
# startAt and endAt, nothing before 2019-02-18; the high frequency account keeps a list of its own
_KUCOIN = Venue(
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
        Stream(_kucoin_fills, longest=7 * _DAY_MS),
        Stream(_kucoin_hf_fills, longest=7 * _DAY_MS, by_market=True, exists=_kucoin_has_hf),
    ),
    accounts=_kucoin_accounts,
    time=_milliseconds("createdAt"),
    price=_kucoin_price,
    options={
        "has": {"fetchCurrencies": False},
        "options": {"fetchMarkets": {"types": ["spot"], "fetchTickersFees": False}},
    },
    markets={"marginables": False},
    opened=1_550_448_000_000,
)


# coinbase ---------------------------------------------------------------------------------------

_COINBASE_ROWS = 250


def _coinbase_fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    params: dict[str, object] = {
        "start_sequence_timestamp": _rfc3339(asked.since),
        "end_sequence_timestamp": _rfc3339(asked.until),
        "limit": _COINBASE_ROWS,
    }
    if after is not None:
        params["cursor"] = after
    answer = ask("v3PrivateGetBrokerageOrdersHistoricalFills", params)
    _refuse_proof(answer)
    return Page(_rows(answer, "fills"), after=str(_inside(answer, "cursor") or "") or None)


def _coinbase_accounts(ask: Ask) -> list[Raw]:
    accounts: list[Raw] = []
    params: dict[str, object] = {"limit": _COINBASE_ROWS}
    seen = set()
    while True:
        answer = ask("v3PrivateGetBrokerageAccounts", params)
        _refuse_proof(answer)
        accounts += _rows(answer, "accounts")
        if not _inside(answer, "has_next"):
            return accounts
        cursor = _inside(answer, "cursor")
        if not cursor or cursor in seen:
            raise NotWhole("more accounts follow, but no new cursor leads to them")
        seen.add(cursor)
        params["cursor"] = cursor


def _refuse_proof(answer: object) -> None:
    if isinstance(answer, Mapping) and answer.get("proof_token_required"):
        raise NotWhole(
            "the exchange wants a second factor (proof_token_required), so nothing was computed; "
            "use a key that is exempt"
        )


def _coinbase_price(_ask: Ask, market: Mapping[str, object]) -> str | None:
    info = market.get("info")
    return str(info["price"]) if isinstance(info, Mapping) and info.get("price") else None


def _rfc3339(milliseconds: int) -> str:
    return format_instant(max(milliseconds, 0) * 1_000_000)


# The native source asks for the same; this one is for who reads several exchanges in one way.
_COINBASE = Venue(
    reads=frozenset(
        {
            "v3/public GET brokerage/market/products",
            "v3/private GET brokerage/transaction_summary",
            "v3/private GET brokerage/accounts",
            "v3/private GET brokerage/orders/historical/fills",
        }
    ),
    streams=(Stream(_coinbase_fills),),
    accounts=_coinbase_accounts,
    time=lambda row: parse_instant(str(row.get("trade_time"))),
    price=_coinbase_price,
    as_it_is=True,
    options={"has": {"fetchCurrencies": False}},
)


VENUES: Mapping[str, Venue] = {
    "binance": _BINANCE,
    "coinbase": _COINBASE,
    "kraken": _KRAKEN,
    "kucoin": _KUCOIN,
}


def spans(since: int, until: int, longest: int | None) -> Iterator[tuple[int, int]]:
    """Cut ``[since, until)``, newest first, into pieces that one request may span."""
    while longest is not None and until - since > longest:
        yield until - longest, until
        until -= longest
    yield since, until
