"""The Coinbase source, through the real SDK, against an exchange that checks every token."""

from __future__ import annotations

import base64
import inspect
import json
import logging
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from statestore import simulated
from statestore.errors import CredentialsError, ExchangeError, IncompleteRead, UsageError
from statestore.fills.sources import ReadOnlyViolation, coinbase_client
from statestore.fills.sources.coinbase import CoinbaseSource
from statestore.fills.sources.coinbase_client import read_only_client
from statestore.fills.sources.credentials import Credentials, read_credentials
from statestore.model import KeyPermissions, Product
from statestore.simulated import Fault, fill
from statestore.times import NANOSECONDS, now, parse_instant

SINCE = parse_instant("2025-11-18T00:00:00Z")
FIVE = [f"BUY {units} BTC-USD @ 100" for units in range(1, 6)]


def sizes(batch) -> list[str]:
    return [row.payload["size"] for row in batch.rows]


def served(exchange, endpoint) -> int:
    return sum(request.path.endswith(endpoint) for request in exchange.requests)


# Fills


def test_three_pages_come_whole_and_in_the_exchanges_order(exchange, make_source):
    exchange.add_fills(*FIVE)
    exchange.page_size = 2
    seen = []

    batch = make_source(on_page=seen.append).fills(SINCE, None)

    assert sizes(batch) == ["5", "4", "3", "2", "1"]
    assert batch.pages == 3
    assert batch.rows[2].origin == "row 3 of 2025-11-18T04:02:00Z"
    assert [(page.pages, page.rows) for page in seen] == [(1, 2), (2, 4), (3, 5)]
    assert seen[-1].fraction == 1


def test_a_fill_that_slides_onto_the_next_page_is_given_twice_for_normalise_to_see(
    exchange, source
):
    exchange.add_fills(*FIVE[:3])
    exchange.page_size = 2

    def a_new_fill_arrives(request):
        if "cursor" in request.query:
            exchange.on_request = None
            exchange.add_fill("BUY 9 BTC-USD @ 100 at 2025-11-19T00:00:00Z")

    exchange.on_request = a_new_fill_arrives

    assert sizes(source.fills(SINCE, None)) == ["3", "2", "2", "1"]


def test_filters_are_the_ones_the_exchange_heeds_and_stay_the_same_on_every_page(exchange, source):
    exchange.add_fills(*FIVE)
    exchange.page_size = 2

    source.fills(SINCE, SINCE + NANOSECONDS * 86_400)

    first, *others = [dict(request.query) for request in exchange.requests]
    assert first == {
        "limit": ["250"],
        "start_sequence_timestamp": ["2025-11-17T23:59:59Z"],
        "end_sequence_timestamp": ["2025-11-19T00:10:00Z"],
    }
    assert len(others) == 2
    for query in others:
        assert query.pop("cursor")
        assert query == first


def test_an_open_end_asks_for_no_end(exchange, source):
    source.fills(SINCE, None)

    assert set(exchange.requests[0].query) == {"limit", "start_sequence_timestamp"}


def test_fills_at_both_bounds_are_there_though_the_exchange_excludes_its_bounds(exchange, source):
    exchange.add_fill("BUY 1 BTC-USD @ 100 at 2025-11-18T00:00:00Z")
    exchange.add_fill("BUY 2 BTC-USD @ 100 at 2025-11-18T00:59:59.999999999Z")

    assert sizes(source.fills(SINCE, SINCE + 3600 * NANOSECONDS)) == ["2", "1"]


@pytest.mark.parametrize(("since", "exhausted"), [(0, True), (SINCE, False)])
def test_only_a_read_from_the_beginning_of_time_is_exhausted(source, since, exhausted):
    assert source.fills(since, None).exhausted is exhausted


def test_numbers_and_texts_arrive_as_the_exchange_wrote_them(exchange, source):
    row = fill("BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote")
    row["commission_detail_total"] = {"total_commission": "0.0316796601936"}
    row["a_number"] = 0.1
    exchange.add_fill(row)

    (read,) = source.fills(0, None).rows

    assert read.payload == row | {"a_number": Decimal("0.1")}


def test_a_short_or_empty_page_is_not_the_last(exchange, source):
    exchange.add_fills(*FIVE)
    exchange.script("fills", simulated.EMPTY_PAGE, Fault(page_size=1), simulated.EMPTY_PAGE)

    batch = source.fills(SINCE, None)

    assert sizes(batch) == ["5", "4", "3", "2", "1"]
    assert batch.pages == 4


def test_an_absent_cursor_ends_the_chain(exchange, source):
    exchange.add_fills(*FIVE)
    exchange.script("fills", simulated.ABSENT_CURSOR)

    assert len(source.fills(SINCE, None).rows) == 5


def test_a_repeated_cursor_is_an_incomplete_read(exchange, source):
    exchange.add_fills(*FIVE)
    exchange.script("fills", simulated.REPEATED_CURSOR, forever=True)

    with pytest.raises(IncompleteRead, match="cursor led to an earlier page"):
        source.fills(SINCE, None)


def test_a_chain_that_never_ends_is_an_incomplete_read(exchange, make_source):
    exchange.endless = True
    with pytest.raises(IncompleteRead, match="20th empty page in a row"):
        make_source().fills(SINCE, None)

    exchange.add_fills(*FIVE)
    exchange.page_size = 1
    with pytest.raises(IncompleteRead, match="no end after 4 pages"):
        make_source(max_pages=4).fills(SINCE, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer | {"fills": None},
        lambda answer: answer | {"fills": {}},
        lambda answer: answer | {"fills": ["a fill"]},
        lambda _answer: {"cursor": ""},
        lambda answer: answer | {"has_next": True},
        lambda answer: answer | {"cursor": 7},
    ],
)
def test_a_page_of_the_wrong_shape_is_an_incomplete_read(exchange, source, change):
    exchange.add_fills(*FIVE)
    exchange.script("fills", Fault(change=change))

    with pytest.raises(IncompleteRead):
        source.fills(SINCE, None)


def test_a_wanted_second_factor_is_an_incomplete_read_that_says_so(exchange, source):
    exchange.script("fills", simulated.PROOF_REQUIRED)

    with pytest.raises(IncompleteRead, match=r"second factor.*proof_token_required"):
        source.fills(SINCE, None)


# Asking again


@pytest.mark.parametrize(
    "fault",
    [
        simulated.RATE_LIMITED,
        simulated.UNAVAILABLE,
        simulated.HTML,
        simulated.DROPPED,
        simulated.UNAUTHORIZED,
        Fault(200, "null"),
        Fault(500, "{}"),
    ],
)
def test_a_passing_fault_is_asked_over_with_a_fresh_token(exchange, source, fault):
    exchange.add_fills(*FIVE)
    exchange.page_size = 3
    exchange.script("fills", simulated.OK, fault)

    assert len(source.fills(SINCE, None).rows) == 5
    assert served(exchange, "fills") == 3
    assert exchange.refusals == []  # a token used twice would be here


def test_a_slow_answer_is_given_up_and_asked_for_again(exchange, make_source):
    exchange.add_fills(*FIVE)
    exchange.script("fills", simulated.slow(5))

    assert len(make_source(timeout=(2, 0.2)).fills(SINCE, None).rows) == 5


@pytest.mark.parametrize(
    "fault", [simulated.RATE_LIMITED, simulated.UNAVAILABLE, simulated.HTML, simulated.DROPPED]
)
def test_a_lasting_fault_ends_after_the_allowed_attempts(exchange, make_source, fault):
    exchange.script("fills", fault, forever=True)

    with pytest.raises(ExchangeError, match=r"historical/fills.*gave up after 3 attempts"):
        make_source(attempts=3).fills(SINCE, None)

    assert served(exchange, "fills") == 3


def test_waits_grow_up_to_their_limit(exchange, make_source, naps):
    exchange.script("fills", simulated.UNAVAILABLE, forever=True)

    with pytest.raises(ExchangeError):
        make_source(attempts=5, wait_initial=1, wait_max=3).fills(SINCE, None)

    assert [1 <= naps[0] <= 2, 2 <= naps[1] <= 3, naps[2:]] == [True, True, [3, 3]]


@pytest.mark.parametrize(("asked", "waited"), [(7, 7.0), (86_400, 30.0)])
def test_retry_after_is_honoured_up_to_half_a_minute(exchange, source, naps, asked, waited):
    exchange.script("fills", simulated.rate_limited(retry_after=asked))

    source.fills(SINCE, None)

    assert naps == [waited]


def test_no_more_than_ten_requests_go_in_one_second(exchange, make_source, naps):
    exchange.add_fills(*FIVE * 3)
    exchange.page_size = 1

    make_source().fills(SINCE, None)

    assert served(exchange, "fills") == 15
    assert len(naps) == 1  # all of the clock here: no answer takes any time
    assert 1 < naps[0] < 1.1


@pytest.mark.parametrize("status", [400, 403, 404, 302])
def test_what_will_not_pass_is_not_asked_over(exchange, source, status):
    exchange.script("fills", Fault(status, '{"error":"X"}', {"Location": "https://127.0.0.1/"}))

    with pytest.raises((ExchangeError, CredentialsError), match=f"HTTP {status}"):
        source.fills(SINCE, None)

    assert len(exchange.requests) == 1


def test_a_redirect_is_not_followed(exchange, source):
    path = "/api/v3/brokerage/accounts"
    exchange.script("fills", simulated.redirect(f"https://{exchange.base_url}{path}"))

    with pytest.raises(ExchangeError, match="redirect, which is never followed"):
        source.fills(SINCE, None)

    assert served(exchange, "accounts") == 0


def test_an_exchange_that_is_not_there_is_an_exchange_error(exchange, credentials):
    address = exchange.base_url.partition(":")[0] + ":1"
    source = CoinbaseSource(credentials, base_url=address, attempts=2)

    with pytest.raises(ExchangeError, match="Connection refused"):
        source.balances()


def test_a_certificate_nobody_vouches_for_is_an_exchange_error(exchange, make_source, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)

    with pytest.raises(ExchangeError, match="certificate verify failed"):
        make_source(ca_file=None, attempts=1).balances()


def test_the_message_of_a_json_error_is_passed_on_in_one_short_line(exchange, source):
    text = json.dumps({"error": "INVALID_ARGUMENT", "message": "limit\x1b[31m\n too large " * 50})
    exchange.script("fills", Fault(400, text))

    with pytest.raises(ExchangeError, match="HTTP 400: limit") as caught:
        source.fills(SINCE, None)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# Credentials


def test_a_key_refused_twice_is_a_credentials_error(exchange, source):
    exchange.script("fills", simulated.UNAUTHORIZED, simulated.UNAUTHORIZED)

    with pytest.raises(CredentialsError, match=r"HTTP 401.*the clock here agrees"):
        source.fills(SINCE, None)

    assert served(exchange, "fills") == 2


@pytest.mark.parametrize(("offset", "said"), [(300, "300 s behind"), (-300, "300 s ahead of")])
def test_a_wrong_clock_is_named_with_the_seconds_it_is_off(exchange, source, offset, said):
    exchange.clock_offset = offset

    with pytest.raises(CredentialsError, match=f"the clock here is {said} the exchange's"):
        source.balances()


def test_an_expired_token_is_replaced_by_a_fresh_one(exchange, source):
    exchange.clock_offset = 300

    def set_the_clock(request):
        if len(exchange.requests) == 2:
            exchange.clock_offset = 0

    exchange.on_request = set_the_clock
    exchange.set_balance("BTC", "1")

    assert source.balances().amounts == {"BTC": Decimal(1)}
    assert len(exchange.refusals) == 1


def test_a_key_of_another_exchange_is_a_credentials_error(exchange):
    secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    other = Credentials(exchange.api_key, secret.decode())

    with pytest.raises(CredentialsError, match="refused"):
        CoinbaseSource(other, base_url=exchange.base_url, ca_file=exchange.ca_file).balances()


def test_a_key_without_the_view_permission_is_a_credentials_error(exchange, source):
    exchange.permissions["can_view"] = False

    with pytest.raises(CredentialsError, match=r"Missing required scopes.*View permission"):
        source.fills(SINCE, None)


@pytest.mark.parametrize("secret", ["hello", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n", "\\x"])
def test_a_secret_that_cannot_sign_is_found_out_before_anything_is_sent(exchange, secret):
    with pytest.raises(CredentialsError, match="cannot sign") as caught:
        CoinbaseSource(Credentials("name", secret), base_url=exchange.base_url)

    assert secret not in str(caught.value)
    assert exchange.requests == []


def pem(key, form=serialization.PrivateFormat.PKCS8) -> str:
    encoding = serialization.Encoding.PEM
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
SEED = ED_KEY.private_bytes_raw()


@pytest.mark.parametrize(
    "secret",
    [
        pem(EC_KEY, serialization.PrivateFormat.TraditionalOpenSSL),
        pem(EC_KEY),
        pem(EC_KEY).replace("\n", "\\n"),
        pem(ED_KEY),
        base64.b64encode(SEED).decode(),
        base64.b64encode(SEED + ED_KEY.public_key().public_bytes_raw()).decode(),
    ],
    ids=["sec1", "pkcs8", "backslash-n", "ed25519", "ed25519-seed", "ed25519-pair"],
)
def test_every_form_of_a_key_the_exchange_gives_out_signs(secret):
    CoinbaseSource(Credentials("name", secret))


@pytest.mark.parametrize("base_url", ["https://api.coinbase.com", "a b", "", "host/path", "u@host"])
def test_a_base_url_is_a_host(credentials, base_url):
    with pytest.raises(UsageError, match="is not a host"):
        CoinbaseSource(credentials, base_url=base_url)


@pytest.mark.parametrize("name", ["name", "id"])
def test_a_key_file_gives_credentials(tmp_path, name):
    key_file = tmp_path / "key.json"
    key_file.write_text(json.dumps({name: " key ", "privateKey": "secret\n", "nickname": "x"}))

    assert read_credentials(key_file, None, None) == Credentials("key", "secret")


def test_the_exchanges_key_file_reads(exchange, tmp_path, credentials):
    key_file = exchange.write_key_file(tmp_path / "key.json")

    read = read_credentials(key_file, None, None)

    assert read == Credentials(exchange.api_key, exchange.api_secret.strip())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"-----BEGIN TOPSECRET", "is not JSON"),
        (b"\xff\xfeTOPSECRET", "is not JSON"),
        (b'["TOPSECRET"]', "holds no JSON object"),
        (b'{"privateKey": "TOPSECRET"}', r"no name \(or id\)"),
        (b'{"name": "TOPSECRET"}', "no privateKey"),
        (b'{"name": "TOPSECRET", "privateKey": 7}', "no privateKey"),
    ],
)
def test_a_bad_key_file_is_named_with_what_it_lacks(tmp_path, content, said):
    key_file = tmp_path / "key.json"
    key_file.write_bytes(content)

    with pytest.raises(CredentialsError, match=f"key.json.*{said}") as caught:
        read_credentials(key_file, None, None)

    assert "TOPSECRET" not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CredentialsError, match=r"nokey\.json: No such file"):
        read_credentials(tmp_path / "nokey.json", None, None)


def test_no_credentials_tell_the_three_ways_to_give_them():
    with pytest.raises(CredentialsError, match="--key-file") as caught:
        read_credentials(None, None, "")

    for way in ("COINBASE_KEY_FILE", "COINBASE_API_KEY", "COINBASE_API_SECRET"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("key", "secret", "missing"),
    [("TOPSECRET", None, "COINBASE_API_SECRET"), ("", "TOPSECRET", "COINBASE_API_KEY")],
)
def test_half_of_the_credentials_names_the_other_half(key, secret, missing):
    with pytest.raises(CredentialsError, match=f"set {missing} as well") as caught:
        read_credentials(None, key, secret)

    assert "TOPSECRET" not in str(caught.value)


# Balances


def test_balances_are_available_plus_held_over_every_page(exchange, source):
    exchange.set_balance("BTC", available="0.2", hold="0.4")
    exchange.set_balance("USD", available="12.3400000000000001")
    exchange.set_balance("ADA")
    exchange.page_size = 1

    assert source.balances().amounts == {
        "BTC": Decimal("0.6"),
        "USD": Decimal("12.3400000000000001"),
        "ADA": Decimal(0),
    }
    assert exchange.requests[0].query == {"limit": ["250"]}
    assert len(exchange.requests) == 3


def one_account(**fields):
    money = {"value": "1", "currency": "BTC"}
    account = {"uuid": "u1", "currency": "BTC", "available_balance": money, "hold": money}
    return lambda answer: answer | {"accounts": [account | fields]}


@pytest.mark.parametrize("hold", [None, {"value": "", "currency": "BTC"}])
def test_an_absent_or_blank_hold_is_nothing_held(exchange, source, hold):
    exchange.script("accounts", Fault(change=one_account(hold=hold)))

    assert source.balances().amounts == {"BTC": Decimal(1)}


@pytest.mark.parametrize(
    "fields",
    [
        {"available_balance": {"value": "NaN"}},
        {"available_balance": {"value": ""}},
        {"available_balance": None},
        {"hold": {"value": "1_000"}},
        {"currency": ""},
    ],
)
def test_an_account_that_cannot_be_read_is_an_incomplete_read(exchange, source, fields):
    exchange.script("accounts", Fault(change=one_account(**fields)))

    with pytest.raises(IncompleteRead):
        source.balances()


def test_an_account_that_comes_on_two_pages_counts_once(exchange, source):
    exchange.set_balance("BTC", "1")
    exchange.set_balance("ETH", "2")
    exchange.page_size = 1
    exchange.script("accounts", *[Fault(change=one_account(uuid="u1"))] * 2)

    assert source.balances().amounts == {"BTC": Decimal(2)}


def test_two_accounts_of_one_currency_add_up(exchange, source):
    exchange.set_balance("BTC", "1")
    exchange.set_balance("ETH", "2")
    exchange.page_size = 1
    exchange.script("accounts", *[Fault(change=one_account(uuid=uuid)) for uuid in ("u1", None)])

    assert source.balances().amounts == {"BTC": Decimal(4)}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(change=lambda answer: answer | {"has_next": True, "cursor": ""}), "no cursor"),
        (
            Fault(
                change=lambda answer: answer | {"has_next": True} | {"cursor": "again+and/again="}
            ),
            "earlier page",
        ),
        (Fault(change=lambda answer: answer | {"accounts": None}), "no list of accounts"),
    ],
)
def test_an_unfinished_chain_of_accounts_is_an_incomplete_read(exchange, source, fault, said):
    exchange.set_balance("BTC", "1")
    exchange.script("accounts", fault, forever=True)

    with pytest.raises(IncompleteRead, match=said):
        source.balances()


def test_the_last_page_of_accounts_may_carry_a_cursor(exchange, source):
    exchange.set_balance("BTC", "1")
    exchange.script("accounts", Fault(change=lambda answer: answer | {"cursor": "more"}))

    assert source.balances().amounts == {"BTC": Decimal(1)}


def test_a_balance_can_move_between_two_reads(exchange, source):
    exchange.set_balance("BTC", "1")
    exchange.on_request = lambda request: (
        exchange.set_balance("BTC", "2") if request.path.endswith("fills") else None
    )

    before = source.balances()
    source.fills(SINCE, None)

    assert (before.of("BTC"), source.balances().of("BTC")) == (1, 2)


# Products, permissions, time


def test_products_are_read_and_unknown_ones_left_out(exchange, source):
    exchange.set_product("BTC-USD", price="61000.5", base_min_size="0.00001")
    exchange.set_product("BIP-20DEC30-CDE", product_type="FUTURE", base_increment="")

    products = source.products(["BTC-USD", "GONE-USD", "../accounts", "", "BIP-20DEC30-CDE"])

    assert products["BTC-USD"] == Product(
        product_id="BTC-USD",
        base="BTC",
        quote="USD",
        base_increment=Decimal("0.00000001"),
        base_min_size=Decimal("0.00001"),
        price=Decimal("61000.5"),
        spot=True,
    )
    assert products["BIP-20DEC30-CDE"].spot is False
    assert products["BIP-20DEC30-CDE"].base_increment is None
    assert products["BIP-20DEC30-CDE"].price is None
    assert len(products) == 2
    assert len(exchange.requests) == 3


def test_a_price_that_is_no_number_is_an_incomplete_read(exchange, source):
    exchange.set_product("BTC-USD", price="about 61000")

    with pytest.raises(IncompleteRead, match="BTC-USD: price"):
        source.products(["BTC-USD"])


def test_permissions_say_what_the_key_may_do(exchange, source):
    exchange.permissions["can_trade"] = True

    assert source.permissions() == KeyPermissions(True, True, False, simulated.PORTFOLIO_ID)

    exchange.permissions["can_trade"] = "no"
    with pytest.raises(IncompleteRead, match="can_trade"):
        source.permissions()


def test_the_exchanges_time_is_asked_without_a_token(exchange, source):
    exchange.clock_offset = 3600

    ahead = source.server_time() - now()

    assert 3590 < ahead / NANOSECONDS < 3610
    assert [request.signed for request in exchange.requests] == [False]


# Read-only, and silent


def test_no_method_of_the_sdk_gets_anything_but_a_get_out_of_the_process(exchange, credentials):
    client = read_only_client(
        credentials, base_url=exchange.base_url, ca_file=exchange.ca_file, timeout=(5, 5)
    )
    refused = 0
    for name, method in inspect.getmembers(client, inspect.ismethod):
        if not name.startswith("_"):
            required = [
                "x"
                for parameter in inspect.signature(method).parameters.values()
                if parameter.default is parameter.empty
                and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ]
            try:
                method(*required)
            except Exception as error:  # noqa: BLE001 - the SDK may dislike an "x" in its own ways
                refused += isinstance(error, ReadOnlyViolation)

    assert refused > 60
    assert {request.method for request in exchange.requests} == {"GET"}
    assert {request.path for request in exchange.requests} <= {
        coinbase_client.FILLS,
        coinbase_client.ORDERS,
        f"{coinbase_client.ORDER}/x",
        coinbase_client.ACCOUNTS,
        coinbase_client.KEY_PERMISSIONS,
        coinbase_client.TIME,
        f"{coinbase_client.PRODUCTS}/x",
        coinbase_client.candles_path("x"),
    }
    assert {r.signed for r in exchange.requests if r.path == coinbase_client.candles_path("x")} == {
        False
    }


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_the_client_refuses_before_its_session_is_asked(credentials, method):
    client = read_only_client(credentials)
    client.session = None

    with pytest.raises(ReadOnlyViolation, match=f"{method.upper()} is not for reading"):
        getattr(client, method)(coinbase_client.ACCOUNTS)


@pytest.mark.parametrize(
    ("method", "url", "error"),
    [
        ("POST", "https://{host}/api/v3/brokerage/orders", ReadOnlyViolation),
        ("DELETE", "https://{host}/api/v3/brokerage/accounts", ReadOnlyViolation),
        ("GET", "https://{host}/api/v3/brokerage/portfolios", ReadOnlyViolation),
        ("GET", "https://{host}/api/v3/brokerage/products/%2e%2e/orders", ReadOnlyViolation),
        ("GET", "http://{host}/api/v3/brokerage/accounts", requests.exceptions.InvalidSchema),
        ("GET", "https://localhost/api/v3/brokerage/accounts", requests.exceptions.InvalidSchema),
    ],
)
def test_the_session_itself_refuses_the_same(exchange, credentials, method, url, error):
    client = read_only_client(credentials, base_url=exchange.base_url, ca_file=exchange.ca_file)

    with pytest.raises(error):
        client.session.request(method, url.format(host=exchange.base_url))

    assert exchange.requests == []


def test_a_netrc_entry_does_not_replace_the_token(exchange, source, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))

    source.balances()

    assert exchange.refusals == []


@pytest.mark.parametrize(
    "fault",
    [
        simulated.UNAUTHORIZED,
        simulated.FORBIDDEN,
        simulated.RATE_LIMITED,
        simulated.UNAVAILABLE,
        simulated.HTML,
        simulated.DROPPED,
        simulated.PROOF_REQUIRED,
        Fault(400, '{"message":"<html>no</html>"}'),
    ],
)
def test_neither_credentials_nor_pages_reach_an_error_a_log_or_the_terminal(
    exchange, make_source, credentials, caplog, capfd, fault
):
    caplog.set_level(logging.DEBUG)
    exchange.script("fills", fault, forever=True)

    with pytest.raises((CredentialsError, ExchangeError, IncompleteRead)) as caught:
        make_source(attempts=2).fills(SINCE, None)

    logged = "".join(str(vars(record)) for record in caplog.records)
    everything = f"{caught.value!r}{logged}{capfd.readouterr()}{credentials!r}"
    for secret in (exchange.api_key, "PRIVATE KEY", "Bearer", "eyJ", "<html", "rate limited. You"):
        assert secret not in everything
    assert not any(line and line in everything for line in exchange.api_secret.splitlines()[1:-1])


@pytest.mark.parametrize(("first", "handlers"), [("import json", 0), ("import coinbase.rest", 1)])
def test_the_sdk_hangs_no_handler_on_its_logger_but_for_who_imported_it_before(first, handlers):
    program = (
        f"{first}; import logging; from statestore.fills.sources import coinbase_client;"
        "coinbase_client._import_sdk();"
        "print(len(logging.getLogger('coinbase.RESTClient').handlers))"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout

    assert int(said) == handlers


def test_a_source_holds_no_client(source):
    held = [value for value in vars(source).values() if not callable(value)]

    assert all(isinstance(value, str | int) for value in held)
    assert not hasattr(source._get, "__self__")


def test_the_exchange_saw_only_reading(exchange, source):
    exchange.add_fills(*FIVE, every=timedelta(seconds=1))
    exchange.set_product("BTC-USD")

    source.fills(SINCE, None)
    source.balances()
    source.products(["BTC-USD"])
    source.permissions()
    source.server_time()

    assert [request.method for request in exchange.requests] == ["GET"] * 5
