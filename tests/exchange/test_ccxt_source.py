"""Other exchanges through the real ccxt, over real HTTPS, from recorded answers on 127.0.0.1."""

from __future__ import annotations

import inspect
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ccxt", reason="the extra 'ccxt' is not installed")

from statestore.config import Keys
from statestore.errors import (
    CredentialsError,
    ExchangeError,
    IncompleteRead,
    SourceError,
    UsageError,
)
from statestore.fills.normalise import normalise
from statestore.fills.sources import ReadOnlyViolation
from statestore.fills.sources.ccxt import CcxtSource, _payload
from statestore.fills.sources.ccxt_client import read_only_client
from statestore.fills.sources.slices import Progress
from statestore.fills.sources.venues import VENUES
from statestore.fills.sources.venues.terms import spans
from statestore.model import Batch, Fill, Normalised, Row
from statestore.times import parse_instant
from tests.exchange.venue_server import Reply, Request, VenueServer, keys_for, serving

SINCE = parse_instant("2025-11-18T00:00:00Z")
UNTIL = parse_instant("2025-11-21T00:00:00Z")
DAY_MS = 24 * 3600 * 1000

Serve = Callable[[str], VenueServer]


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept, in order."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return slept


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(exchange: str) -> VenueServer:
            venue = stack.enter_context(serving(exchange, tmp_path))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(venue.ca_file))
            return venue

        yield start


def source_of(venue: VenueServer, **options: Any) -> CcxtSource:
    keys = options.pop("keys", None) or keys_for(venue.exchange)
    options.setdefault("base_url", venue.base_url)
    return CcxtSource(venue.exchange, keys, **options)


def client_of(venue: VenueServer) -> Any:
    return read_only_client(venue.exchange, keys_for(venue.exchange), base_url=venue.base_url)


def read(source: CcxtSource) -> Normalised:
    return normalise([source.fills(SINCE, UNTIL)])


def kraken_trade(number: int, **values: object) -> dict[str, object]:
    trade: dict[str, object] = {
        "ordertxid": f"O{number}",
        "postxid": f"P{number}",
        "pair": "XXBTZUSD",
        "time": f"{1763500000 + number}.5",
        "type": "buy",
        "ordertype": "limit",
        "price": "60000.0",
        "cost": "60.00000",
        "fee": "0.24000",
        "vol": "0.00100000",
        "margin": "0.00000",
        "misc": "",
        "trade_id": number,
        "maker": True,
    }
    return trade | values


def kraken_page(trades: dict[str, Any], count: int) -> dict[str, object]:
    return {"error": [], "result": {"count": count, "trades": trades}}


# What is read


def test_kraken_gives_what_is_recorded(serve: Serve) -> None:
    source = source_of(serve("kraken"))

    found = read(source)
    assert source.name == "ccxt:kraken"
    assert [(f.side, f.units, f.price, f.commission) for f in found.fills] == [
        ("BUY", Decimal("0.01"), Decimal(60000), Decimal("2.4")),
        ("BUY", Decimal("0.02"), Decimal(63000), Decimal("5.04")),
        ("SELL", Decimal("0.012"), Decimal(65000), Decimal("3.12")),
    ]
    assert {fill.commission_currency for fill in found.fills} == {"USD"}
    assert (found.rejected, found.skipped_products) == ((), ("BTC-USD-MARGIN",))
    # 0.010 at hand, of which 0.002 are held by an order, and 0.008 in Kraken Rewards
    assert source.balances().amounts == {
        "USD": Decimal("1500.1234"),
        "BTC": Decimal("0.018"),
        "DOT.S": Decimal("12.5"),
        "ETH": 0,
    }
    product = source.products(["BTC-USD", "NONE-USD", "nonsense"])
    assert list(product) == ["BTC-USD"]
    assert product["BTC-USD"].base_increment == Decimal("1E-8")
    assert product["BTC-USD"].base_min_size == Decimal("0.00005")
    assert product["BTC-USD"].price == 66000


def test_binance_gives_what_is_recorded(serve: Serve) -> None:
    source = source_of(serve("binance"))

    fills = read(source).fills
    assert [(f.product_id, f.units, f.commission, f.commission_currency) for f in fills] == [
        ("BTC-USDT", Decimal("0.02"), Decimal("0.00002"), "BTC"),
        ("BTC-USDT", Decimal("0.008"), Decimal("0.00061"), "BNB"),
    ]
    assert source.balances().of("BTC") == Decimal("0.02798")  # the fee in BTC is gone from it
    assert source.products(["BTC-USDT"])["BTC-USDT"].base_increment == Decimal("0.00001")
    assert source.products(["BTC-USDT"])["BTC-USDT"].price == Decimal("66000.01")


def test_kucoin_gives_both_of_its_lists_and_leaves_margin_accounts_out(serve: Serve) -> None:
    source = source_of(serve("kucoin"))

    assert [fill.units for fill in read(source).fills] == [Decimal("0.0075"), Decimal("0.0005")]
    assert source.balances().amounts == {"BTC": Decimal("0.008"), "USDT": Decimal("123.45678901")}
    assert source.products(["BTC-USDT"])["BTC-USDT"].price == Decimal("66000.2")


def test_kucoin_without_a_high_frequency_account_is_not_asked_for_its_fills(serve: Serve) -> None:
    venue = serve("kucoin")
    venue.on("hf/accounts/opened", {"code": "200000", "data": False})

    assert len(read(source_of(venue)).fills) == 1
    assert venue.asked("hf/fills") == []


def test_coinbase_rows_stay_as_they_are_down_to_the_nanosecond(serve: Serve) -> None:
    venue = serve("coinbase")
    source = source_of(venue)

    (row,) = source.fills(SINCE, UNTIL).rows
    assert row.payload == venue.recorded("brokerage_orders_historical_fills")["fills"][0]
    (fill,) = normalise([Batch((row,), 1)]).fills
    assert fill.units == Decimal("0.00088729")
    assert fill.time == parse_instant("2025-11-18T04:29:43.786756789Z")
    assert source.balances().of("BTC") == Decimal("0.0008872901234568")
    assert source.products(["BTC-USD"])["BTC-USD"].price == Decimal("66000.03")


@pytest.mark.parametrize("as_json", [str, json.loads], ids=["text", "number"])
@pytest.mark.parametrize(
    ("digits", "exact"),
    [
        ("123456789012345678901234567890.123456789012345678901234567891",) * 2,
        ("1.5E-7", "0.00000015"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    ],
)
def test_every_digit_of_an_exchange_survives(
    serve: Serve, digits: str, exact: str, as_json: Callable[[str], object]
) -> None:
    venue = serve("kraken")
    body = json.dumps(kraken_page({"T1": kraken_trade(1, vol="@", price="@", fee="@")}, 1))
    owned = json.dumps({"error": [], "result": {"XXBT": {"balance": "@"}}})
    plain = f'"{digits}"' if as_json is str else digits
    venue.on("TradesHistory", lambda _: Reply(body.replace('"@"', plain).encode()))
    venue.on("BalanceEx", lambda _: Reply(owned.replace('"@"', plain).encode()))

    source = source_of(venue)
    (fill,) = read(source).fills
    assert (fill.units, fill.price, fill.commission) == (Decimal(exact),) * 3
    assert source.balances().of("BTC") == Decimal(exact)


def test_a_time_is_exact_beyond_the_millisecond(serve: Serve) -> None:
    (first, *_) = read(source_of(serve("kraken"))).fills

    assert first.time == 1763500000999999900  # ccxt makes 1763500000999 of it


# Whole or an error


def test_kraken_is_read_by_offset_to_its_own_count(serve: Serve) -> None:
    venue = serve("kraken")
    trades = {f"T{n}": kraken_trade(n) for n in range(120, 0, -1)}

    def page(request: Request) -> object:
        first = int(request.query["ofs"])
        return kraken_page(dict(list(trades.items())[first : first + 50]), len(trades))

    venue.on("TradesHistory", page)
    seen: list[Progress] = []
    found = read(source_of(venue, on_page=seen.append))

    assert len(found.fills) == 120
    assert [(page.pages, page.rows) for page in seen] == [(1, 50), (2, 100), (3, 120)]
    assert {r.query["consolidate_taker"] for r in venue.asked("TradesHistory")} == {"false"}
    assert found.duplicates == 0


def test_a_fill_that_comes_while_pages_are_read_shifts_none_out(serve: Serve) -> None:
    venue = serve("kraken")
    trades = {f"T{n}": kraken_trade(n) for n in range(100, 0, -1)}

    def page(request: Request) -> object:
        nonlocal trades
        first = int(request.query["ofs"])
        answer = kraken_page(dict(list(trades.items())[first : first + 50]), len(trades))
        trades = {f"T{len(trades) + 1}": kraken_trade(len(trades) + 1), **trades}
        return answer

    venue.on("TradesHistory", page)

    assert {f"{n}" for n in range(1, 101)} <= {
        str(fill.order_id).removeprefix("O") for fill in read(source_of(venue)).fills
    }


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([kraken_page({"T1": kraken_trade(1)}, 3), kraken_page({}, 3)], "leads no further"),
        ([kraken_page({"T1": kraken_trade(1)}, 2)] * 3, "1 fills came of the 2 it counted"),
        (
            [{"error": [], "result": {"trades": {}}}],
            "ccxt:kraken: fills: no result.count in the answer",
        ),
        ([{"error": [], "result": {"trades": [], "count": 0}}], "result.trades is a list"),
        ([{"error": []}], "no result.trades"),
        ([[]], "no result.trades"),
        ([kraken_page({"T1": []}, 1)], "not an object of objects"),  # type: ignore[dict-item]
        ([kraken_page({"T1": {"pair": "XXBTZUSD"}}, -1)], "result.count is -1"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(
    serve: Serve, answers: list[object], said: str
) -> None:
    venue = serve("kraken")
    left = list(answers)
    venue.on("TradesHistory", lambda _: left.pop(0) if len(left) > 1 else left[0])

    with pytest.raises(IncompleteRead, match=re.escape(said)):
        source_of(venue).fills(SINCE, UNTIL)


def test_pages_without_an_end_are_an_error(serve: Serve) -> None:
    venue = serve("kraken")

    def page(request: Request) -> object:
        number = int(request.query["ofs"])
        return kraken_page({f"T{number}": kraken_trade(number)}, number + 2)

    venue.on("TradesHistory", page)

    with pytest.raises(IncompleteRead, match="no end after 5 pages"):
        source_of(venue, max_pages=5).fills(SINCE, UNTIL)


def binance_trade(number: int) -> dict[str, object]:
    return {
        "symbol": "BTCUSDT",
        "id": number,
        "orderId": 7,
        "price": "1",
        "qty": "1",
        "commission": "0",
        "commissionAsset": "USDT",
        "time": 1763500000000 + number,
        "isBuyer": True,
        "isMaker": False,
    }


def test_binance_is_read_by_id_from_the_first_fill_on(serve: Serve) -> None:
    venue = serve("binance")
    trades = [binance_trade(3 * n) for n in range(1, 2501)]

    def page(request: Request) -> object:
        if request.query["symbol"] != "BTCUSDT":
            return []
        first = int(request.query["fromId"])
        return [trade for trade in trades if int(str(trade["id"])) >= first][:1000]

    venue.on("myTrades", page)
    batch = source_of(venue).fills(SINCE, UNTIL)

    assert len(normalise([batch]).fills) == 2500
    assert batch.exhausted
    froms = [r.query["fromId"] for r in venue.asked("myTrades") if r.query["symbol"] == "BTCUSDT"]
    assert froms == ["0", "3001", "6001"]
    assert not any("startTime" in request.query for request in venue.asked("myTrades"))


@pytest.mark.parametrize("ids", [[2, 1], [0]], ids=["not ascending", "before what was asked"])
def test_binance_rows_out_of_order_are_an_error(serve: Serve, ids: list[int]) -> None:
    venue = serve("binance")
    first = [binance_trade(n) for n in range(1, 1001)]

    def page(request: Request) -> object:
        return [binance_trade(n) for n in ids] if request.query["fromId"] != "0" else first

    venue.on("myTrades", page)

    with pytest.raises(IncompleteRead, match="do not come by ascending id"):
        source_of(venue).fills(SINCE, UNTIL)


def test_binance_asks_for_every_market_of_what_is_held_and_of_nothing_else(serve: Serve) -> None:
    venue = serve("binance")
    source_of(venue).fills(SINCE, UNTIL)

    # BTC is held: it may have paid for ETH. Of DOGE nothing is held, and USDT is money.
    assert [r.query["symbol"] for r in venue.asked("myTrades")] == ["BTCUSDT", "ETHBTC"]


def test_named_products_say_which_assets_are_read(serve: Serve) -> None:
    venue = serve("binance")
    venue.on("myTrades", [])
    source_of(venue, products=["doge-usdt"]).fills(SINCE, UNTIL)

    assert [r.query["symbol"] for r in venue.asked("myTrades")] == ["DOGEUSDT"]


def test_kucoin_is_asked_week_by_week_without_a_gap(serve: Serve) -> None:
    venue = serve("kucoin")
    source_of(venue).fills(parse_instant("2025-11-01T00:00:00Z"), UNTIL)

    for endpoint in ("fills", "hf/fills"):
        asked = [
            (int(request.query["startAt"]), int(request.query["endAt"]))
            for request in venue.requests
            if request.path == f"/api/v1/{endpoint}"
        ]
        assert len(asked) == 3
        assert all(end - start <= 7 * DAY_MS for start, end in asked)
        assert [later[0] for later in asked[:-1]] == [earlier[1] for earlier in asked[1:]]
        assert asked[-1][0] < parse_instant("2025-11-01T00:00:00Z") // 1_000_000
        assert asked[0][1] > UNTIL // 1_000_000


def test_kucoin_pages_are_followed_in_both_lists(serve: Serve) -> None:
    venue = serve("kucoin")
    (row,) = venue.recorded("fills")["data"]["items"]
    (hf,) = venue.recorded("hf_fills")["data"]["items"]

    def fills(request: Request) -> object:
        page = int(request.query["currentPage"])
        items = [{**row, "tradeId": f"t{page}-{n}"} for n in range(2)]
        return {"code": "200000", "data": {"totalNum": 6, "totalPage": 3, "items": items}}

    def hf_fills(request: Request) -> object:
        last = int(request.query.get("lastId", 1000))
        ids = [n for n in range(250, 0, -1) if n < last][:100]
        items = [{**hf, "id": n, "tradeId": n} for n in ids]
        return {"code": "200000", "data": {"items": items, "lastId": ids[-1]}}

    venue.on("fills", fills)
    venue.on("hf/fills", hf_fills)

    assert len(read(source_of(venue)).fills) == 6 + 250


def test_a_cursor_that_stands_still_is_an_error(serve: Serve) -> None:
    venue = serve("coinbase")
    venue.on("brokerage/orders/historical/fills", {"fills": [], "cursor": "again"})

    with pytest.raises(IncompleteRead, match="page 1 leads no further"):
        source_of(venue).fills(SINCE, UNTIL)


def test_coinbase_pages_and_accounts_are_followed(serve: Serve) -> None:
    venue = serve("coinbase")
    (row,) = venue.recorded("brokerage_orders_historical_fills")["fills"]
    (account,) = venue.recorded("brokerage_accounts")["accounts"]

    def fills(request: Request) -> object:
        page = int(request.query.get("cursor", 1))
        return {
            "fills": [{**row, "entry_id": f"e{page}"}],
            "cursor": str(page + 1) if page < 3 else "",
        }

    def accounts(request: Request) -> object:
        more = "cursor" not in request.query
        page = {**account, "uuid": str(more), "hold": {"value": "1", "currency": "BTC"}}
        return {"accounts": [page], "has_next": more, "cursor": "next"}

    venue.on("brokerage/orders/historical/fills", fills)
    venue.on("brokerage/accounts", accounts)
    source = source_of(venue)

    assert len(read(source).fills) == 3
    assert source.balances().of("BTC") == 2 + 2 * Decimal("0.0008872901234567")


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_balances_of_another_shape_are_an_error_and_not_nothing(
    serve: Serve, exchange: str
) -> None:
    venue = serve(exchange)
    venue.on(
        BALANCES[exchange],
        {"kucoin": {"code": "200000"}, "kraken": {"error": []}}.get(exchange, {}),
    )

    with pytest.raises(IncompleteRead):
        source_of(venue).balances()


def test_slices_cover_a_span_and_are_no_longer_than_they_may_be() -> None:
    assert list(spans(0, 25, 10)) == [(15, 25), (5, 15), (0, 5)]
    assert list(spans(0, 25, None)) == [(0, 25)]


# What a trade means


def trade(**values: object) -> Fill | str:
    unified = {
        "id": "1",
        "order": "o",
        "symbol": "BTC/USD",
        "side": "buy",
        "price": "100",
        "amount": "2",
        "fees": [{"cost": "0.5", "currency": "USD"}],
    }
    row = Row(_payload(VENUES["binance"], {"time": 1763500000000}, unified | values), "row 1")
    found = normalise([Batch((row,), 1)])
    if found.skipped_products:
        return f"skipped {found.skipped_products[0]}"
    return found.fills[0] if found.fills else found.rejected[0].reason


def test_fees_of_one_currency_are_added_up() -> None:
    fees = [
        {"cost": cost, "currency": "USD", "rate": rate}
        for cost, rate in (("0.1", "1"), ("0.2", "2"))
    ]
    fill = trade(fees=fees)

    assert isinstance(fill, Fill)
    assert (fill.commission, fill.commission_currency) == (Decimal("0.3"), "USD")


def test_a_fee_of_nothing_in_another_currency_is_no_second_fee() -> None:
    fill = trade(fees=[{"cost": "0", "currency": "BNB"}, {"cost": "0.2", "currency": "USD"}])

    assert isinstance(fill, Fill)
    assert (fill.commission, fill.commission_currency) == (Decimal("0.2"), "USD")
    assert isinstance(trade(fees=[{"cost": "0", "currency": c} for c in ("BNB", "USD")]), Fill)


def test_a_rebate_stays_negative() -> None:
    fill = trade(fees=[{"cost": "-0.25", "currency": "USD"}])

    assert isinstance(fill, Fill)
    assert fill.commission == Decimal("-0.25")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"fees": [{"cost": "0.1", "currency": "BNB"}, {"cost": "0.2", "currency": "USD"}]},
            "commission: '0.1 BNB and 0.2 USD' is not a decimal number",
        ),
        ({"fees": [], "fee": None}, "commission: 'not told' is not a decimal number"),
        ({"fees": [{"cost": None, "currency": "USD"}]}, "commission: 'not told'"),
        ({"fees": [{"cost": "NaN", "currency": "USD"}]}, "commission: 'NaN'"),
        ({"side": None}, "side is None, neither BUY nor SELL"),
        ({"price": None}, "price is missing"),
        ({"amount": None}, "size is missing"),
        ({"id": None}, "entry_id is missing"),
        ({"symbol": "FOOUSD"}, "product_id 'FOOUSD' is not BASE-QUOTE"),
        ({"symbol": "BTC/USD:USD"}, "skipped BTC-USD-USD"),
        ({"symbol": "BTC/USDT:USDT-260327"}, "skipped BTC-USDT-USDT-260327"),
    ],
)
def test_what_a_trade_leaves_open_is_rejected_or_named(
    values: dict[str, object], said: str
) -> None:
    assert str(trade(**values)).startswith(said)


def test_one_trade_with_oneself_is_two_fills() -> None:
    rows = [
        Row(
            _payload(
                VENUES["binance"],
                {"time": 1763500000000},
                {
                    "id": "7",
                    "order": order,
                    "symbol": "BTC/USD",
                    "side": side,
                    "price": "1",
                    "amount": "1",
                    "fee": {"cost": "0", "currency": "USD"},
                },
            ),
            order,
        )
        for order, side in (("a", "buy"), ("b", "sell"))
    ]

    assert len(normalise([Batch(tuple(rows), 1)]).fills) == 2


# Read-only


def listed(request: Request) -> bool:
    return any(
        request.method == read.split()[1] and request.path.endswith(f"/{read.split()[2]}")
        for reads in (venue.reads for venue in VENUES.values())
        for read in reads
    )


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_a_source_sends_nothing_but_the_listed_reads(serve: Serve, exchange: str) -> None:
    venue = serve(exchange)
    source = source_of(venue)
    source.balances()
    source.fills(SINCE, UNTIL)
    source.products(["BTC-USD", "BTC-USDT"])

    assert len(venue.requests) >= 4
    assert all(listed(request) for request in venue.requests)
    posted = {r.path.rpartition("/")[2] for r in venue.requests if r.method != "GET"}
    assert posted == ({"TradesHistory", "BalanceEx"} if exchange == "kraken" else set())


ACTS = re.compile(
    "create|cancel|edit|withdraw|transfer|borrow|repay|redeem|deposit|add_margin|reduce_margin|set_"
    "|close_|delete|order|stake|convert|vault|margin|leverage|sign_in|gift|sub_account",
    re.I,
)


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_no_method_that_acts_sends_anything(serve: Serve, exchange: str) -> None:
    venue = serve(exchange)
    client = client_of(venue)
    client.load_markets(False, {**VENUES[exchange].markets})
    symbol = "BTC/USDT" if "BTC/USDT" in client.markets else "BTC/USD"
    before = len(venue.requests)
    guesses = {"symbol": symbol, "code": "BTC", "side": "buy", "type": "limit", "id": "1"}
    guesses |= {"amount": 1, "price": 1, "cost": 1, "address": "a", "tag": None, "leverage": 1}
    names = [name for name in dir(client) if ACTS.search(name) and not name.startswith("__")]
    called = violations = 0
    for name in names:
        method = getattr(client, name)
        if not callable(method) or isinstance(method, type):
            continue
        try:
            wanted = [
                guesses.get(p.name, "BTC")
                for p in inspect.signature(method).parameters.values()
                if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            called += 1
            method(*wanted)
        except ReadOnlyViolation:
            violations += 1
        except Exception:  # noqa: BLE001, S112 - wrong arguments are no matter; what leaves is
            continue

    assert called > 300
    assert violations > 100
    assert all(listed(request) for request in venue.requests[before:])


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_every_implicit_call_but_the_listed_is_refused_before_it_is_sent(
    serve: Serve, exchange: str
) -> None:
    from ccxt.base.types import Entry

    venue = serve(exchange)
    client = client_of(venue)
    entries = {
        (entry.method, "/".join(entry.api), entry.path): name
        for kind in type(client).__mro__
        for name, entry in vars(kind).items()
        if isinstance(entry, Entry)
    }
    allowed = {tuple(read.split()) for read in VENUES[exchange].reads}
    assert allowed <= {(api, method, path) for method, api, path in entries}
    for (method, api, path), name in entries.items():
        if (api, method, path) not in allowed:
            with pytest.raises(ReadOnlyViolation):
                getattr(client, name)({})
            for door in (client.request, client.fetch2):
                with pytest.raises(ReadOnlyViolation):
                    door(path, api.split("/"), method, {})

    assert len(entries) > 60
    assert venue.requests == []


def test_below_the_call_what_was_signed_and_what_is_sent_are_compared_again(serve: Serve) -> None:
    venue = serve("kraken")
    client = client_of(venue)
    order = f"https://{venue.base_url}/0/private/AddOrder"
    balance = f"https://{venue.base_url}/0/private/BalanceEx"

    for send in (client.fetch, lambda url, method: client.session.request(method, url)):
        for url, method in (
            (order, "POST"),
            (order, "GET"),
            (balance, "GET"),
            (balance, "DELETE"),
            ("https://127.0.0.1:1/0/private/BalanceEx", "POST"),
            (balance.replace("https", "http"), "POST"),
            (f"{balance}/../AddOrder", "POST"),
            (f"{order}?/BalanceEx", "POST"),
            (f"{order}#/BalanceEx", "POST"),
        ):
            with pytest.raises(ReadOnlyViolation):
                send(url, method)
    client.sign = lambda *_: {"url": order, "method": "POST", "headers": {}, "body": ""}
    client.session.adapters.clear()  # the upper layer alone
    with pytest.raises(ReadOnlyViolation):
        client.privatePostBalanceEx({})

    assert venue.requests == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(serve: Serve, status: int) -> None:
    venue = serve("kraken")
    away = {"Location": f"https://{venue.base_url}/0/private/TradesHistory"}
    venue.on("BalanceEx", lambda _: Reply(b"{}", status, away))

    with pytest.raises(SourceError):
        source_of(venue, attempts=1).balances()
    assert venue.asked("TradesHistory") == []


def test_an_exchange_nobody_has_read_the_calls_of_is_not_opened() -> None:
    with pytest.raises(
        UsageError, match=r"ccxt:deribit cannot be read.* binance, coinbase, kraken"
    ):
        CcxtSource("deribit", Keys("k", "s"))


# Failures


BALANCES = {
    "binance": "account",
    "coinbase": "brokerage/accounts",
    "kraken": "BalanceEx",
    "kucoin": "accounts",
}


def refused(answer: object, status: int = 200) -> Callable[[Request], Reply]:
    return lambda _request: Reply(json.dumps(answer).encode(), status)


def kraken_error(text: str) -> Callable[[Request], Reply]:
    return refused({"error": [text]})


GAVE_UP = "gave up after 3 attempts"
IP = "Invalid API-key, IP, or permissions for action."


@pytest.mark.parametrize(
    ("exchange", "answer", "kind", "said"),
    [
        ("kraken", kraken_error("EAPI:Invalid key"), CredentialsError, "key: the key is refused"),
        ("kraken", kraken_error("EGeneral:Permission denied"), CredentialsError, "may not read"),
        ("kraken", kraken_error("EAPI:Invalid nonce"), ExchangeError, "another program uses"),
        ("kraken", kraken_error("EGeneral:Temporary lockout"), ExchangeError, GAVE_UP),
        ("kraken", kraken_error("EQuery:Unknown asset"), ExchangeError, "EQuery:Unknown asset"),
        ("binance", refused({"code": -2015, "msg": IP}, 401), CredentialsError, f"HTTP 401: {IP}"),
        ("binance", refused({"code": -1003, "msg": "Too many."}, 429), ExchangeError, GAVE_UP),
        ("kucoin", refused({"code": "400003", "msg": "KEY?"}, 401), CredentialsError, "KEY?"),
        ("kucoin", refused({"code": "500000", "msg": "?"}, 500), ExchangeError, "HTTP 500"),
        ("coinbase", refused("Unauthorized", 401), CredentialsError, "HTTP 401"),
        ("kraken", lambda _: Reply(b"<html>maintenance</html>"), ExchangeError, GAVE_UP),
        ("kraken", lambda _: Reply(b'{"error": [], "res'), ExchangeError, GAVE_UP),
        ("kraken", lambda _: Reply(b"", 503), ExchangeError, "HTTP 503; gave up"),
    ],
)
def test_a_failure_is_told_in_words_and_holds_nothing_secret(
    serve: Serve,
    exchange: str,
    answer: Callable[[Request], Reply],
    kind: type[SourceError],
    said: str,
) -> None:
    venue = serve(exchange)
    venue.on(BALANCES[exchange], answer)

    with pytest.raises(kind, match=re.escape(said)) as caught:
        source_of(venue, attempts=3).balances()
    assert type(caught.value) is kind
    assert f"ccxt:{exchange}: " in str(caught.value)
    assert "html" not in str(caught.value)
    assert "https://" not in str(caught.value)
    no_secrets(str(caught.value), keys_for(exchange))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def no_secrets(text: str, keys: Keys) -> None:
    for secret in ("MUST-NOT-BE-SEEN", keys.secret, "signature=", "BEGIN EC"):
        assert secret not in text


def test_an_exchange_that_echoes_the_request_is_not_quoted(serve: Serve) -> None:
    venue = serve("binance")
    venue.on(
        "account",
        lambda r: Reply(
            json.dumps({"code": -1102, "msg": f"bad: signature={r.query['signature']}"}).encode(),
            400,
        ),
    )

    with pytest.raises(ExchangeError) as caught:
        source_of(venue).balances()
    no_secrets(str(caught.value), keys_for("binance"))


def test_a_passing_failure_is_asked_again_after_what_the_exchange_wants(
    serve: Serve, naps: list[float]
) -> None:
    venue = serve("binance")
    left = [Reply(b'{"code": -1003, "msg": "slow"}', 429, {"Retry-After": "7"})]
    venue.on("account", lambda _: left.pop() if left else venue.recorded("account"))

    assert source_of(venue).balances().of("BTC") == Decimal("0.02798")
    assert 7 in [round(nap) for nap in naps]


def test_an_exchange_that_is_not_there_is_said_to_be(serve: Serve) -> None:
    source = source_of(serve("kraken"), base_url="127.0.0.1:1", attempts=2)

    with pytest.raises(
        ExchangeError, match=r"Connection refused.*gave up after 2 attempts"
    ) as caught:
        source.balances()
    no_secrets(str(caught.value), keys_for("kraken"))


def test_a_certificate_nobody_vouches_for_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = serve("kraken")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")

    with pytest.raises(ExchangeError, match="SSLCertVerificationError"):
        source_of(venue, attempts=1).balances()
    assert venue.requests == []


def test_a_secret_that_cannot_sign_is_told_before_anything_private_is_sent(serve: Serve) -> None:
    venue = serve("kraken")
    source = source_of(venue, keys=Keys("key", "not base64!"))

    with pytest.raises(CredentialsError, match="the API secret cannot sign"):
        source.balances()
    assert {request.method for request in venue.requests} == {"GET"}


def test_markets_that_cannot_be_read_are_an_error(serve: Serve) -> None:
    venue = serve("kraken")
    venue.on("AssetPairs", {"error": [], "result": {}})
    with pytest.raises(IncompleteRead, match="lists no markets"):
        source_of(venue).fills(SINCE, UNTIL)

    venue.on("AssetPairs", {"error": [], "result": {"A": {"base": "XXBT", "quote": "ZUSD"}}})
    with pytest.raises(IncompleteRead, match="of a shape that ccxt cannot read"):
        source_of(venue).fills(SINCE, UNTIL)


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_no_log_holds_a_key_or_a_signature(
    serve: Serve, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    venue = serve(exchange)
    keys = keys_for(exchange)
    with caplog.at_level(logging.DEBUG):
        source = source_of(venue, keys=keys)
        source.balances()
        source.fills(SINCE, UNTIL)

    sent = [value for request in venue.requests for value in request.headers.values()]
    assert any("KEY-THAT" in value or value.startswith("Bearer") for value in sent)
    no_secrets(caplog.text, keys)
    assert not any(value in caplog.text for value in sent if len(value) > 40)
    no_secrets(f"{keys!r} {source!r} {vars(source)!r}", keys)


# By name


def test_the_extra_is_named_where_ccxt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ccxt", None)

    with pytest.raises(UsageError, match=r"pip install 'statestore\[ccxt\]'"):
        CcxtSource("kraken", Keys("k", "s"))


def test_a_password_that_is_wanted_and_a_host_that_is_none_are_told_at_once() -> None:
    with pytest.raises(CredentialsError, match="CCXT_KUCOIN_PASSWORD"):
        CcxtSource("kucoin", Keys("k", "s"))
    with pytest.raises(UsageError, match="is not a host"):
        CcxtSource("kraken", Keys("k", "s"), base_url="https://api.kraken.com/0")


def test_nothing_is_asked_before_an_exchange_had_fills(serve: Serve) -> None:
    venue = serve("kucoin")
    batch = source_of(venue).fills(0, parse_instant("2019-01-01T00:00:00Z"))

    assert (batch.rows, batch.pages, batch.exhausted) == ((), 0, True)
    assert venue.asked("fills") == []
