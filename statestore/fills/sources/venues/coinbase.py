"""Coinbase Advanced Trade, through ccxt: one list of all fills, by cursor.

The native source asks for the same; this one is for who reads several exchanges in one way.
"""

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
    inside,
    rows_of,
)
from statestore.times import format_instant, parse_instant

_ROWS = 250


def _fills(ask: Ask, asked: Slice, after: str | None) -> Page:
    params: dict[str, object] = {
        "start_sequence_timestamp": _rfc3339(asked.since),
        "end_sequence_timestamp": _rfc3339(asked.until),
        "limit": _ROWS,
    }
    if after is not None:
        params["cursor"] = after
    answer = ask("v3PrivateGetBrokerageOrdersHistoricalFills", params)
    _refuse_proof(answer)
    return Page(rows_of(answer, "fills"), after=str(inside(answer, "cursor") or "") or None)


def _accounts(ask: Ask) -> list[Raw]:
    accounts: list[Raw] = []
    params: dict[str, object] = {"limit": _ROWS}
    seen = set()
    while True:
        answer = ask("v3PrivateGetBrokerageAccounts", params)
        _refuse_proof(answer)
        accounts += rows_of(answer, "accounts")
        if not inside(answer, "has_next"):
            return accounts
        cursor = inside(answer, "cursor")
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


def _price(_ask: Ask, market: Mapping[str, object]) -> str | None:
    info = market.get("info")
    return str(info["price"]) if isinstance(info, Mapping) and info.get("price") else None


def _rfc3339(milliseconds: int) -> str:
    return format_instant(max(milliseconds, 0) * 1_000_000)


VENUE = Venue(
    reads=frozenset(
        {
            "v3/public GET brokerage/market/products",
            "v3/private GET brokerage/transaction_summary",
            "v3/private GET brokerage/accounts",
            "v3/private GET brokerage/orders/historical/fills",
        }
    ),
    streams=(Stream(_fills),),
    accounts=_accounts,
    time=lambda row: parse_instant(str(row.get("trade_time"))),
    price=_price,
    as_it_is=True,
    options={"has": {"fetchCurrencies": False}},
)
