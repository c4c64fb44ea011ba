"""The simulated exchange itself: its checks are real, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import timedelta
from decimal import Decimal
from http.client import HTTPResponse
from urllib.error import HTTPError

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from statestore import simulated
from statestore.fills.normalise import fill_from_row
from statestore.model import FillKind, Row, Side
from statestore.simulated import Fault, Request, SimulatedExchange, fill, fills
from statestore.times import format_instant, parse_instant

ACCOUNTS = "/api/v3/brokerage/accounts"
FILLS = "/api/v3/brokerage/orders/historical/fills"


def token(
    exchange, path=ACCOUNTS, *, key=None, kid=None, algorithm="ES256", life=(0, 120), **claims
) -> str:
    here = int(time.time())
    payload = {
        "sub": exchange.api_key,
        "iss": "cdp",
        "nbf": here + life[0],
        "exp": here + life[1],
        "uri": f"GET {exchange.base_url}{path}",
    }
    headers = {"kid": kid or exchange.api_key, "nonce": os.urandom(8).hex()}
    return jwt.encode(payload | claims, key or exchange.api_secret, algorithm, headers)


def ask(exchange, path, authorization="", method="GET") -> HTTPResponse | HTTPError:
    request = urllib.request.Request(
        f"https://{exchange.base_url}{path}",
        headers={"Authorization": f"Bearer {authorization}"},
        method=method,
    )
    trust = ssl.create_default_context(cafile=exchange.ca_file)
    try:
        return urllib.request.urlopen(request, context=trust, timeout=5)
    except HTTPError as error:
        return error


def status_of(*args, **options) -> int:
    with ask(*args, **options) as answer:
        return answer.status


def read(exchange, path, query="") -> dict:
    with ask(exchange, path + query, token(exchange, path)) as answer:
        return json.loads(answer.read())


# Tokens


def test_a_good_token_is_let_in_once(exchange):
    good = token(exchange)

    assert status_of(exchange, ACCOUNTS, good) == 200
    assert status_of(exchange, ACCOUNTS, good) == 401
    assert exchange.refusals == ["nonce is missing or was used before"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "Signature verification failed"),
        ({"key": "secret" * 8, "algorithm": "HS256"}, "alg"),
        ({"kid": "another"}, "kid"),
        ({"sub": "another"}, "sub"),
        ({"iss": "coinbase-cloud"}, "iss"),
        ({"uri": "GET api.coinbase.com" + ACCOUNTS}, "uri"),
        ({"path": FILLS}, "uri"),
        ({"life": (-300, -180)}, "lifetime"),
        ({"life": (60, 180)}, "lifetime"),
        ({"life": (0, 3600)}, "lifetime"),
    ],
)
def test_a_wrong_token_is_refused(exchange, wrong, why):
    with ask(exchange, ACCOUNTS, token(exchange, **wrong)) as answer:
        assert (answer.status, answer.read()) == (401, b"Unauthorized")

    assert why in exchange.refusals[0]


@pytest.mark.parametrize("garbage", ["", "x", "a.b.c"])
def test_what_is_no_token_is_refused(exchange, garbage):
    assert status_of(exchange, ACCOUNTS, garbage) == 401


def test_a_token_is_for_the_path_without_its_query(exchange):
    assert read(exchange, ACCOUNTS, "?limit=1")["accounts"] == []


def test_the_time_is_public_and_by_the_exchanges_clock(exchange):
    exchange.clock_offset = 600
    with ask(exchange, "/api/v3/brokerage/time") as answer:
        said = json.loads(answer.read())

    assert 590 < int(said["epochSeconds"]) - time.time() < 610
    assert parse_instant(said["iso"]) // 10**9 == int(said["epochSeconds"])


# What it serves


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_get_is_served_and_the_rest_is_on_record(exchange, method):
    assert status_of(exchange, ACCOUNTS, method=method) == 405
    assert exchange.requests == [Request(method, ACCOUNTS, {})]


@pytest.mark.parametrize(
    "path", ["/", "/api/v3/brokerage/orders", "/api/v3/brokerage/products/X-Y"]
)
def test_an_unknown_path_is_not_found(exchange, path):
    assert status_of(exchange, path, token(exchange, path)) == 404


def test_fills_come_newest_first_and_filtered_by_plural_names_only(exchange):
    exchange.add_fills("BUY 1 BTC-USD @ 100", "BUY 2 ETH-USD @ 10", "SELL 1 BTC-USD @ 110")

    def sizes(query):
        return [row["product_id"] for row in read(exchange, FILLS, query)["fills"]]

    assert sizes("?product_ids=BTC-USD") == ["BTC-USD", "BTC-USD"]
    assert sizes("?product_ids=BTC-USD&product_ids=ETH-USD") == ["BTC-USD", "ETH-USD", "BTC-USD"]
    assert sizes("?product_id=BTC-USD") == ["BTC-USD", "ETH-USD", "BTC-USD"]
    assert sizes("?start_sequence_timestamp=2025-11-18T04:01:00Z") == ["BTC-USD"]
    assert sizes("?end_sequence_timestamp=2025-11-18T04:01:00Z") == ["BTC-USD"]


@pytest.mark.parametrize(
    ("unknowns", "expected"),
    [
        ({}, ["e2"]),
        ({"inclusive": True}, ["e3", "e2", "e1"]),
        ({"oldest_first": True, "inclusive": True}, ["e1", "e2", "e3"]),
        ({"filter_by": "sequence_timestamp"}, ["e2", "e1"]),
    ],
)
def test_what_the_documents_leave_open_can_be_either(exchange, unknowns, expected):
    for minute in (1, 2, 3):
        exchange.add_fill(f"BUY 1 BTC-USD @ 100 at 2025-11-18T04:0{minute}:00Z id e{minute}")
    for name, answer in unknowns.items():
        setattr(exchange, name, answer)
    bounds = "?start_sequence_timestamp=2025-11-18T04:01:00Z&end_sequence_timestamp="

    page = read(exchange, FILLS, bounds + "2025-11-18T04:03:00Z")

    assert [row["entry_id"] for row in page["fills"]] == expected


def test_the_last_page_may_carry_a_cursor_to_an_empty_one(exchange):
    exchange.add_fills("BUY 1 BTC-USD @ 100")
    exchange.last_cursor = True
    first = read(exchange, FILLS)
    cursor = urllib.request.quote(first["cursor"], safe="")

    assert len(first["fills"]) == 1
    assert read(exchange, FILLS, f"?cursor={cursor}") == {"fills": [], "cursor": ""}


def test_more_than_the_limit_in_a_second_is_refused_and_counted(exchange):
    exchange.rate_limit, exchange.limit_headers = 2, True

    with ask(exchange, ACCOUNTS, token(exchange)) as first:
        assert first.headers["x-ratelimit-remaining"] == "1"
    at = exchange.requests[0].at
    answers = [exchange._beyond_the_limit(at + later) for later in (0.1, 0.2, 1.0, 1.05, 1.2)]

    assert [answer is None for answer in answers] == [True, False, True, False, True]
    assert exchange.violations == 2


def test_many_clients_may_ask_at_once_and_every_answer_takes_its_time(exchange):
    exchange.add_fills(*["BUY 1 BTC-USD @ 100"] * 30)
    exchange.latency = 0.2
    found: list[int] = []

    def ask_for_all() -> None:
        found.append(len(read(exchange, FILLS)["fills"]))

    clients = [threading.Thread(target=ask_for_all) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(30)

    assert found == [30] * 12
    assert len(exchange.requests) == 12
    arrived = sorted(request.at for request in exchange.requests)
    assert arrived[0] <= arrived[-1] <= time.monotonic() - 0.2


def test_a_cursor_is_good_for_the_same_other_parameters_only(exchange):
    exchange.add_fills(*["BUY 1 BTC-USD @ 100"] * 3)
    cursor = urllib.request.quote(read(exchange, FILLS, "?limit=2")["cursor"], safe="")

    assert cursor.count("%") >= 5
    assert len(read(exchange, FILLS, f"?limit=2&cursor={cursor}")["fills"]) == 1
    assert read(exchange, FILLS, f"?limit=3&cursor={cursor}")["error"] == "INVALID_ARGUMENT"


def test_accounts_carry_sixteen_decimals(exchange):
    exchange.set_balance("BTC", available="0.2", hold="0.4")

    (account,) = read(exchange, ACCOUNTS)["accounts"]

    assert account["available_balance"] == {"value": "0.2000000000000000", "currency": "BTC"}
    assert account["hold"]["value"] == "0.4000000000000000"


def test_permissions_and_portfolios_are_served(exchange):
    assert read(exchange, "/api/v3/brokerage/key_permissions")["can_view"] is True
    assert len(read(exchange, "/api/v3/brokerage/portfolios")["portfolios"]) == 1


def test_a_script_is_used_up_and_the_exchange_honest_again(exchange):
    exchange.script("accounts", simulated.UNAVAILABLE, simulated.OK, Fault(418, "teapot"))

    statuses = [status_of(exchange, ACCOUNTS, token(exchange)) for _ in range(4)]

    assert statuses == [503, 200, 418, 200]


# Its life


def test_it_stops_at_once_and_leaves_no_thread_no_port_and_no_file():
    before = threading.active_count()
    with SimulatedExchange() as exchange:
        host, _, port = exchange.base_url.partition(":")
        silent = socket.create_connection((host, int(port)))  # never shakes hands
        assert status_of(exchange, ACCOUNTS, token(exchange)) == 200
        silent.close()

    assert threading.active_count() == before
    assert not exchange.ca_file.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_a_slow_answer_does_not_hold_up_the_end():
    started = time.monotonic()
    with SimulatedExchange() as exchange:
        exchange.script("accounts", simulated.slow(60))
        arrived = threading.Event()
        exchange.on_request = lambda _request: arrived.set()
        asking = threading.Thread(target=status_of, args=(exchange, ACCOUNTS, token(exchange)))
        asking.start()
        arrived.wait(5)
    asking.join()

    assert time.monotonic() - started < 30


def test_a_fault_in_a_hook_is_not_lost():
    def broken(_request):
        raise LookupError("of the test's own making")

    def use_it():
        with SimulatedExchange() as exchange:
            exchange.on_request = broken
            with pytest.raises(OSError, match="closed connection"):
                status_of(exchange, ACCOUNTS, token(exchange))

    with pytest.raises(LookupError, match="own making"):
        use_it()


def test_its_key_file_is_for_its_owner_only(exchange, tmp_path):
    key_file = exchange.write_key_file(tmp_path / "key.json")

    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_another_process_reaches_it_by_its_environment(exchange):
    exchange.set_balance("BTC", "1")
    program = (
        "import os; from coinbase.rest import RESTClient;"
        "print(RESTClient(base_url=os.environ['COINBASE_BASE_URL'])"
        ".get_accounts().accounts[0].available_balance['value'])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | exchange.environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("1.0000000000000000\n", "")


# Fills from text


def test_a_text_becomes_the_row_the_exchange_would_send():
    text = (
        "BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote "
        "at 2025-11-18T04:29:43.786756Z"
    )

    row = fill(text)

    assert row == {
        "entry_id": row["entry_id"],
        "trade_id": row["trade_id"],
        "order_id": row["order_id"],
        "trade_time": "2025-11-18T04:29:43.786756Z",
        "trade_type": "FILL",
        "price": "2975.32",
        "size": "2.6399716828",
        "commission": "0.0316796601936",
        "product_id": "ETH-USD",
        "sequence_timestamp": "2025-11-18T04:29:43.788756Z",
        "liquidity_indicator": "TAKER",
        "size_in_quote": True,
        "user_id": "00000000-0000-0000-0000-000000000000",
        "side": "BUY",
        "retail_portfolio_id": simulated.PORTFOLIO_ID,
        "fillSource": "FILL_SOURCE_CLOB",
    }
    assert len(row["entry_id"]) == 64
    assert fill(text) == row
    assert fill_from_row(Row(row, "")).units == Decimal("0.00088729")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELL .012 BTC-USD @65000", {"side": Side.SELL, "kind": FillKind.FILL, "quoted": False}),
        ("BUY 1 BTC-USD @ 60000 fee .001 BTC", {"commission_currency": "BTC"}),
        ("BUY 1 BTC-USD @ 60000 fee 6 USD", {"commission_currency": "USD"}),
        ("BUY 9 BTC-USD @ 60000 fee -0.1 quote", {"quoted": True}),
        (
            "REVERSAL BUY .5  BTC-USD @ 60000 order o1 trade t1 id e2",
            {"kind": FillKind.REVERSAL, "order_id": "o1", "trade_id": "t1", "entry_id": "e2"},
        ),
    ],
)
def test_every_part_of_the_text_reaches_the_fill(text, expected):
    read_back = fill_from_row(Row(fill(text), ""))

    assert {name: getattr(read_back, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HOLD 1 BTC-USD @ 1",
        "BUY BTC-USD @ 1",
        "BUY 1 BTCUSD @ 1",
        "BUY 1 BTC-USD",
        "BUY x A-B @ 1",
    ],
)
def test_a_text_that_is_no_fill_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="BUY 1 BTC-USD @ 100"):
        fill(text)


def test_overrides_can_make_rows_no_text_should():
    row = fill("BUY 1 BTC-USD @ 100", side="", size_in_quote=None, extra=1)

    assert (row["side"], row["size_in_quote"], row["extra"]) == ("", None, 1)


def test_fills_are_apart_in_time_and_have_their_own_ids():
    start = parse_instant("2025-11-20T00:00:00Z")

    rows = fills(*["BUY 1 BTC-USD @ 100"] * 3, start=start, every=timedelta(seconds=90))

    times = [row["trade_time"] for row in rows]
    assert times == [format_instant(start + n * 90 * 10**9) for n in range(3)]
    assert len({row["entry_id"] for row in rows} | {row["trade_id"] for row in rows}) == 6


def test_fills_can_be_tied():
    one, two = fills("BUY 1 BTC-USD @ 1", "SELL 1 BTC-USD @ 2", every=timedelta(0))

    assert one["trade_time"] == two["trade_time"]
