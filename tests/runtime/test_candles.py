"""Sources of bars, each against a server that speaks its format, or a file."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from statestore.errors import (
    ExchangeError,
    IncompleteRead,
    RecordedFileError,
    StateStoreError,
    UsageError,
)
from statestore.fills.sources import ReadOnlyViolation, bounded
from statestore.fills.sources.coinbase import BASE_URL as COINBASE
from statestore.runtime.bars import TIMEFRAMES, last_closed
from statestore.runtime.candles import candle_source
from statestore.runtime.candles.binance import BinanceCandles
from statestore.runtime.candles.ccxt import CcxtCandles
from statestore.runtime.candles.coinbase import CoinbaseCandles
from statestore.runtime.candles.recorded import RecordedCandles
from statestore.simulated import RATE_LIMITED, UNAVAILABLE, Fault, redirect
from statestore.times import NANOSECONDS, now
from tests.runtime.klines import kline

HOUR, MINUTE = TIMEFRAMES["1h"], TIMEFRAMES["1m"]
QUICK = {"wait_initial": 0.001, "wait_max": 0.001}
BUSY = (503, b"<html>busy</html>", {})


@pytest.fixture
def binance(klines):
    return BinanceCandles(base_url=klines.base_url, **QUICK)


def window(tf, count):
    end = last_closed(now(), tf) + TIMEFRAMES[tf]
    return end - count * TIMEFRAMES[tf], end


# Binance


def test_binance_gives_666_bars_in_one_request_to_the_last_digit(binance, klines):
    start, end = window("1h", 666)

    bars = binance.fetch("BTC", "1h", start, end, 666)

    assert [bar.ts for bar in bars] == list(range(start, end, HOUR))
    price = 100 + start // HOUR % 10
    assert str(bars[0].open) == f"{price}.00000000"
    assert str(bars[0].high) == f"{price + 2}.50000000"
    assert str(bars[0].volume) == "3.10000000"
    ((method, path, query),) = klines.requests
    assert (method, path) == ("GET", "/api/v3/klines")
    assert query["symbol"] == "BTCUSDT"
    assert bars[0].source == klines.base_url.removeprefix("http://")


def test_a_kline_that_is_still_open_is_left_out(binance):
    start, end = window("1d", 3)

    bars = binance.fetch("BTC", "1d", start, end + TIMEFRAMES["1d"], 666)

    assert [bar.ts for bar in bars] == list(range(start, end, TIMEFRAMES["1d"]))


def test_what_is_not_closed_by_the_servers_clock_is_not_closed(binance, klines):
    start, end = window("1h", 3)
    klines.date = "Tue, 18 Nov 2025 12:00:00 GMT"

    assert binance.fetch("BTC", "1h", start, end, 666) == []


def test_the_limit_keeps_the_newest(binance):
    start, end = window("1h", 5)

    assert [bar.ts for bar in binance.fetch("BTC", "1h", start, end, 2)] == [
        end - 2 * HOUR,
        end - HOUR,
    ]


def test_symbols_are_mapped(klines):
    source = BinanceCandles(base_url=klines.base_url, products={"MATIC": "POLUSDT"}, quote="USDC")
    klines.products = {"POLUSDT", "BTCUSDC"}
    start, end = window("1h", 1)

    source.fetch("MATIC", "1h", start, end, 666)
    source.fetch("BTC", "1h", start, end, 666)

    assert [query["symbol"] for _, _, query in klines.requests] == ["POLUSDT", "BTCUSDC"]


def test_a_busy_server_is_asked_again(binance, klines):
    klines.faults.extend([BUSY, (429, b"", {"Retry-After": "0"}), (200, b"<html>", {})])

    assert len(binance.fetch("BTC", "1h", *window("1h", 3), 666)) == 3

    assert len(klines.requests) == 4


def test_a_server_that_stays_busy_is_an_error_and_the_next_series_asks_once(binance, klines):
    klines.faults.extend([BUSY] * 5)

    with pytest.raises(ExchangeError, match="BTCUSDT 1h: HTTP 503; gave up after 4"):
        binance.fetch("BTC", "1h", *window("1h", 3), 666)
    with pytest.raises(ExchangeError, match="gave up after 1"):
        binance.fetch("SOL", "1h", *window("1h", 3), 666)

    assert len(binance.fetch("ETH", "1h", *window("1h", 3), 666)) == 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, b'{"code":-1121,"msg":"Invalid symbol."}', "HTTP 400: Invalid symbol"),
        (418, b"", "banned this address"),
        (451, b"{}", "another source"),
        (302, b"", "HTTP 302"),
        (400, b'{"msg":"<script>"}', "HTTP 400$"),
        (200, b'{"code":0}', "no list of bars"),
    ],
)
def test_what_does_not_pass_is_asked_for_once(binance, klines, status, body, said):
    klines.faults.append((status, body, {"Location": f"{klines.base_url}/elsewhere"}))

    with pytest.raises(ExchangeError, match=said):
        binance.fetch("BTC", "1h", *window("1h", 3), 666)

    assert len(klines.requests) == 1


def test_an_answer_without_an_end_is_an_error(binance, klines, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)

    with pytest.raises(ExchangeError, match="longer than 100 bytes"):
        binance.fetch("BTC", "1h", *window("1h", 3), 666)

    assert len(klines.requests) == 1


def test_nobody_there_is_an_error_not_an_empty_list(binance, klines):
    klines.faults.append((200, b"[]", {}))
    nobody = BinanceCandles(base_url="http://127.0.0.1:9", **QUICK)

    with pytest.raises(ExchangeError, match=r"no answer \(ConnectionError\)"):
        nobody.fetch("BTC", "1h", *window("1h", 3), 666)
    assert binance.fetch("BTC", "1h", *window("1h", 3), 666) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: [*row[:2], "1", *row[3:]],  # a high below the open
        lambda row: [*row[:4], "NaN", *row[5:]],
        lambda row: [row[0] + 1, *row[1:]],
        lambda row: ["soon", *row[1:]],
        lambda row: row[:3],
        lambda _row: None,
    ],
)
def test_a_row_that_is_no_bar_fails_the_answer(binance, klines, spoil):
    start, end = window("1h", 2)
    rows = [kline(ts // 1_000_000, 3_600_000) for ts in range(start, end, HOUR)]
    klines.faults.append((200, json.dumps([rows[0], spoil(rows[1])]).encode(), {}))

    with pytest.raises(IncompleteRead, match="BTCUSDT 1h"):
        binance.fetch("BTC", "1h", start, end, 666)


def test_two_bars_of_one_instant_that_differ_fail_the_answer(binance, klines):
    start, end = window("1h", 1)
    row = kline(start // 1_000_000, 3_600_000)
    klines.faults.append((200, json.dumps([row, [*row[:5], "9", *row[6:]]]).encode(), {}))

    with pytest.raises(IncompleteRead, match="two bars of"):
        binance.fetch("BTC", "1h", start, end, 666)


@pytest.mark.parametrize("unit", [1_000_000_000, 1_000], ids=["seconds", "microseconds"])
def test_an_answer_in_another_unit_is_an_error_and_not_an_empty_one(binance, klines, unit):
    start, end = window("1h", 2)
    rows = [[ts // unit, *kline(0, 3_600_000)[1:]] for ts in range(start, end, HOUR)]
    klines.faults.append((200, json.dumps(rows).encode(), {}))

    with pytest.raises(IncompleteRead, match="no bar opens in the range asked for"):
        binance.fetch("BTC", "1h", start, end, 666)


def test_only_get_for_klines_leaves(binance, klines):
    with binance._session() as session:
        for method, path in [
            ("POST", "/api/v3/klines"),
            ("DELETE", "/api/v3/klines"),
            ("GET", "/api/v3/account"),
        ]:
            with pytest.raises(ReadOnlyViolation):
                session.request(method, f"{klines.base_url}{path}")

    assert klines.requests == []


@pytest.mark.parametrize(
    "base_url",
    ["http://api.example.com", "ftp://127.0.0.1", "https://h/path", "https://u:p@h", "h", ""],
)
def test_a_base_url_that_is_not_https_and_a_host_is_refused(base_url):
    with pytest.raises(UsageError, match="is not https://"):
        BinanceCandles(base_url=base_url)


def test_a_symbol_that_is_none_reaches_no_url(binance, klines):
    with pytest.raises(UsageError, match="is no symbol"):
        binance.fetch("BTC&limit=1", "1h", *window("1h", 1), 666)

    assert klines.requests == []


# Coinbase, through the real SDK


@pytest.fixture
def coinbase(fake_exchange, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    start, end = window("1m", 700)
    fake_exchange.set_candles(
        "BTC-USD",
        "ONE_MINUTE",
        [
            (ts // NANOSECONDS, "99.5", "103.25", "100.10", "101.000", "0.00000001")
            for ts in range(start, end + MINUTE, MINUTE)  # the last one is open
        ],
    )
    return CoinbaseCandles(base_url=fake_exchange.base_url, ca_file=fake_exchange.ca_file, **QUICK)


def test_coinbase_gives_666_bars_in_pages_without_a_token(coinbase, fake_exchange):
    start, end = window("1m", 666)

    bars = coinbase.fetch("BTC", "1m", start, end, 666)

    assert [bar.ts for bar in bars] == list(range(start, end, MINUTE))
    assert [str(n) for n in (bars[0].open, bars[0].high, bars[0].low, bars[0].close)] == [
        "100.10",
        "103.25",
        "99.5",
        "101.000",
    ]
    assert len(fake_exchange.requests) == 3
    assert {(r.method, r.signed) for r in fake_exchange.requests} == {("GET", False)}
    assert {r.path for r in fake_exchange.requests} == {
        "/api/v3/brokerage/market/products/BTC-USD/candles"
    }


def test_candles_of_another_time_are_an_error_and_not_no_candles(coinbase, fake_exchange):
    start, end = window("1m", 2)
    row = ("99", "101", "100", "100", "1")
    fake_exchange.set_candles("ETH-USD", "ONE_MINUTE", [(start // NANOSECONDS, *row)])
    old = {
        "candles": [
            dict(
                zip(("start", "low", "high", "open", "close", "volume"), ("60", *row), strict=True)
            )
        ]
    }
    coinbase._get = lambda *_given: old

    with pytest.raises(IncompleteRead, match="no bar opens in the range asked for"):
        coinbase.fetch("ETH", "1m", start, end, 666)


def test_a_candle_that_is_still_open_is_left_out(coinbase):
    start, end = window("1m", 2)

    bars = coinbase.fetch("BTC", "1m", start, end + MINUTE, 666)

    assert all(bar.ts + MINUTE <= now() for bar in bars)
    assert len(bars) >= 2


def test_coinbase_is_asked_again_where_that_helps(coinbase, fake_exchange):
    fake_exchange.script("candles", UNAVAILABLE, Fault(drop=True))

    assert len(coinbase.fetch("BTC", "1m", *window("1m", 3), 666)) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(change=lambda _answer: {"candles": None}), "no list of candles"),
        (Fault(change=lambda _answer: {"candles": [{"start": "soon"}]}), "is no candle"),
        (
            Fault(change=lambda a: {"candles": [c | {"high": "1"} for c in a["candles"]]}),
            "is no bar",
        ),
        (Fault(400, '{"error":"INVALID_ARGUMENT","message":"too many"}'), "HTTP 400: too many"),
        (redirect("https://127.0.0.1:1/"), "redirect"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(coinbase, fake_exchange, fault, said):
    fake_exchange.script("candles", fault)

    with pytest.raises(StateStoreError, match=said):
        coinbase.fetch("BTC", "1m", *window("1m", 3), 666)


def test_a_product_coinbase_does_not_have_is_an_error(coinbase):
    with pytest.raises(ExchangeError, match="HTTP 404"):
        coinbase.fetch("NOPE", "1m", *window("1m", 3), 666)


def test_coinbase_has_no_bars_of_four_hours(coinbase):
    with pytest.raises(UsageError, match="no candles of 4h"):
        coinbase.fetch("BTC", "4h", *window("4h", 3), 666)


def test_a_coinbase_that_was_given_up_on_is_asked_once(coinbase, fake_exchange):
    fake_exchange.script("candles", UNAVAILABLE, forever=True)
    for _ in range(2):
        with pytest.raises(ExchangeError, match="gave up"):
            coinbase.fetch("BTC", "1m", *window("1m", 3), 666)

    assert len(fake_exchange.requests) == 4 + 1


def test_coinbase_too_often_is_asked_again(coinbase, fake_exchange):
    fake_exchange.script("candles", RATE_LIMITED)

    assert len(coinbase.fetch("BTC", "1m", *window("1m", 3), 666)) == 3


# ccxt


@pytest.fixture
def kraken(tmp_path, monkeypatch):
    """Kraken's public OHLC, as ccxt asks for it; the answers are in ``replies`` by endpoint."""
    trustme = pytest.importorskip("trustme")
    pytest.importorskip("ccxt")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    payloads = Path(__file__).parents[1] / "exchange/payloads/kraken"
    replies = {name: (payloads / f"{name}.json").read_bytes() for name in ("Assets", "AssetPairs")}

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self):
            target = urlsplit(self.path)
            server.asked.append((self.command, target.path, parse_qs(target.query)))
            body = replies.get(target.path.rsplit("/", 1)[1], b"{}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], replies
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_ccxt_gives_exact_bars_by_get_alone(kraken):
    start, end = window("1h", 3)
    rows = [
        [ts // NANOSECONDS, "100.10", "103.250", "99.5", "101", "100.7", "0.00000001", 7]
        for ts in range(start, end + HOUR, HOUR)
    ]
    kraken.replies["OHLC"] = json.dumps(
        {"error": [], "result": {"XXBTZUSD": rows, "last": rows[-1][0]}}
    ).encode()
    source = CcxtCandles("kraken", base_url=kraken.host)

    bars = source.fetch("BTC", "1h", start, end, 666)

    assert [bar.ts for bar in bars] == list(range(start, end, HOUR))
    assert [str(n) for n in (bars[0].open, bars[0].high, bars[0].volume)] == [
        "100.10",
        "103.250",
        "1E-8",
    ]
    assert {method for method, *_ in kraken.asked} == {"GET"}
    assert not source.whole


def test_ccxt_failures_are_errors_without_a_url(kraken):
    kraken.replies["OHLC"] = b'{"error":["EService:Unavailable"],"result":{}}'
    source = CcxtCandles("kraken", base_url=kraken.host, attempts=2, wait_initial=0.001)

    with pytest.raises(ExchangeError, match=r"kraken BTC/USD 1h: .*gave up after 2") as raised:
        source.fetch("BTC", "1h", *window("1h", 3), 666)
    with pytest.raises(ExchangeError, match="BadSymbol"):
        source.fetch("NOPE", "1h", *window("1h", 3), 666)

    assert kraken.host not in str(raised.value)


def test_ccxt_sends_nothing_but_get(kraken):
    source = CcxtCandles("kraken", base_url=kraken.host)

    with pytest.raises(ReadOnlyViolation):
        source._client.session.post(f"https://{kraken.host}/0/private/AddOrder")

    assert kraken.asked == []


def test_what_ccxt_gives_without_an_end_is_an_error(kraken, monkeypatch):
    source = CcxtCandles("kraken", base_url=kraken.host)
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)

    with pytest.raises(ExchangeError, match="longer than 100 bytes"):
        source.fetch("BTC", "1h", *window("1h", 3), 666)

    assert len(kraken.asked) == 1


def test_an_exchange_ccxt_does_not_know_is_named():
    with pytest.raises(UsageError, match="no exchange 'mtgox2'"):
        CcxtCandles("mtgox2")


# A file


LINE = {
    "symbol": "BTC",
    "tf": "1h",
    "ts": "2025-11-18T04:00:00Z",
    "o": "67000.10",
    "h": "67100",
    "l": "66900",
    "c": "67050",
    "v": None,
}


def test_a_file_gives_the_bars_of_the_series_asked_for(tmp_path):
    file = tmp_path / "bars.jsonl"
    others = [LINE | {"symbol": "ETH"}, LINE | {"tf": "1d", "ts": "2025-11-18T00:00:00Z"}]
    file.write_text("\n".join(json.dumps(line) for line in [LINE, *others]) + "\n\n")

    (found,) = RecordedCandles(file).fetch("BTC", "1h", 0, now(), 666)

    assert (str(found.open), found.volume, found.source) == ("67000.10", None, "bars.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no bar"),
        ("[]", "line 2 is no bar: it is no JSON object"),
        (json.dumps({"symbol": "BTC"}), "it has no 'o'"),
        (json.dumps(LINE | {"ts": "yesterday"}), "RFC 3339"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line, said):
    file = tmp_path / "bars.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{line}\n")

    with pytest.raises(RecordedFileError, match=said):
        RecordedCandles(file).fetch("BTC", "1h", 0, now(), 666)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RecordedFileError, match="cannot read"):
        RecordedCandles(tmp_path / "none").fetch("BTC", "1h", 0, now(), 666)


# By name


def test_sources_are_opened_by_name(tmp_path):
    assert candle_source("binance").name == "data-api.binance.vision"
    assert candle_source("binance", "https://api.binance.com").name == "api.binance.com"
    assert candle_source("coinbase").name == COINBASE
    assert candle_source("ccxt:kraken").name == "ccxt:kraken"
    assert candle_source(f"file:{tmp_path / 'bars.jsonl'}").name == "bars.jsonl"


@pytest.mark.parametrize("name", ["", "gecko", "file:", "ccxt:", "binance:us", "coinbase:x"])
def test_a_name_that_is_none_lists_those_there_are(name):
    with pytest.raises(UsageError, match="binance, coinbase, ccxt:EXCHANGE, file:PATH"):
        candle_source(name)
