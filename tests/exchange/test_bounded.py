"""What a hostile exchange answers, or whoever answers in its place: an error, and soon."""

from __future__ import annotations

import gzip
import io
import json
import re
import traceback
from decimal import Decimal

import pytest

from statestore import simulated
from statestore.errors import CredentialsError, ExchangeError, IncompleteRead
from statestore.fills.normalise import normalise
from statestore.fills.sources import bounded, coinbase, coinbase_client
from statestore.model import Batch, Row
from statestore.simulated import Fault, fill
from statestore.times import parse_instant

SINCE = parse_instant("2025-11-18T00:00:00Z")
GZIP = {"Content-Encoding": "gzip"}


def packed(size: int) -> bytes:
    """A JSON body of that many blanks, in a thousandth of the bytes."""
    body = io.BytesIO()
    with gzip.GzipFile(fileobj=body, mode="wb") as file:
        file.write(b'{"accounts": [], "has_next": false' + b" " * size + b"}")
    return body.getvalue()


def test_a_packed_answer_is_read(exchange, source):
    exchange.script("accounts", Fault(text=packed(1000), headers=GZIP))

    assert source.balances().amounts == {}


def test_a_bomb_is_an_error_and_is_asked_for_once(exchange, source):
    bomb = packed(bounded.MAX_BYTES)
    exchange.script("accounts", Fault(text=bomb, headers=GZIP), forever=True)

    assert len(bomb) < bounded.MAX_BYTES / 500
    with pytest.raises(ExchangeError, match=f"longer than {bounded.MAX_BYTES} bytes"):
        source.balances()
    assert len(exchange.requests) == 1


def test_an_answer_that_takes_for_ever_is_an_error(exchange, source, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_SECONDS", 0.0)

    with pytest.raises(ExchangeError, match="took longer than 0 s"):
        source.balances()


def test_a_body_that_breaks_off_or_is_not_what_it_says_is_asked_for_again(exchange, source):
    exchange.script("accounts", Fault(text=b"no gzip", headers=GZIP))

    assert source.balances().amounts == {}
    assert len(exchange.requests) == 2


def test_a_page_of_too_many_rows_is_an_error(exchange, source, monkeypatch):
    monkeypatch.setattr(coinbase, "_MOST_ROWS", 1)
    exchange.add_fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 100")

    with pytest.raises(IncompleteRead, match="2 fills on one page"):
        source.fills(SINCE, None)


def test_a_cursor_that_is_a_book_is_no_cursor(exchange, source):
    exchange.script("fills", Fault(change=lambda answer: answer | {"cursor": "c" * 5000}))

    with pytest.raises(IncompleteRead, match="names no cursor"):
        source.fills(SINCE, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"fills": [{"x": 1e99999999999999999999}]}', "not JSON"),
        ('{"fills": %s}' % ("[" * 100_000), "not JSON"),
        ('{"fills": [%s]}' % ("9" * 10_000), "not JSON"),
    ],
    ids=["exponent", "depth", "digits"],
)
def test_json_that_would_be_computed_with_for_ever_is_no_json(exchange, source, body, said):
    exchange.script("fills", Fault(text=body), forever=True)

    with pytest.raises(ExchangeError, match=said):
        source.fills(SINCE, None)


@pytest.mark.parametrize("field", ["price", "size", "commission"])
@pytest.mark.parametrize(
    "number",
    ["1e999999999", "1e-999999999", "9" * 10_000, "0." + "3" * 10_000, "NaN", "-Infinity"],
    ids=lambda number: number[:8],
)
def test_a_number_of_no_market_rejects_its_row(field, number):
    rows = [fill("BUY 1 BTC-USD @ 100", **{field: value}) for value in (number, _json(number))]
    found = normalise([Batch(tuple(Row(row, "row") for row in rows), 1, exhausted=True)])

    assert found.fills == ()
    assert all(len(one.reason) < 120 for one in found.rejected)


def _json(number):
    """The number as a JSON number is decoded: an exact Decimal."""
    return Decimal(number)


@pytest.mark.parametrize("zero", ["0e999", Decimal("0E+999999999"), Decimal("0E-999999999")])
def test_zero_is_zero_whatever_its_exponent(zero):
    row = fill("BUY 1 BTC-USD @ 100", commission=zero)
    (read,) = normalise([Batch((Row(row, "row"),), 1, exhausted=True)]).fills

    assert str(read.commission) == "0"


@pytest.mark.parametrize(
    "field", ["entry_id", "trade_id", "order_id", "product_id", "commission_currency"]
)
def test_a_name_that_is_a_book_rejects_its_row(field):
    row = fill("BUY 1 BTC-USD @ 100") | {field: "9" * 5000}
    found = normalise([Batch((Row(row, "row"),), 1, exhausted=True)])

    assert [one.reason for one in found.rejected] == [
        f"{field} is 5000 characters long, more than 1000"
    ]


@pytest.mark.parametrize(
    ("endpoint", "change", "ask"),
    [
        ("key_permissions", {"portfolio_uuid": "x" * 101}, "permissions"),
        ("key_permissions", {"portfolio_uuid": {"a": 1}}, "permissions"),
        ("time", {"epochMillis": "9" * 14}, "server_time"),
    ],
)
def test_an_answer_that_is_no_name_and_no_time_is_refused(exchange, source, endpoint, change, ask):
    exchange.script(endpoint, Fault(change=lambda answer: answer | change))

    with pytest.raises(IncompleteRead):
        getattr(source, ask)()


def chain(error: BaseException | None) -> list[BaseException]:
    """The error and everything that it was raised from, or while it was handled."""
    if error is None:
        return []
    return [error, *chain(error.__cause__), *chain(error.__context__)]


@pytest.mark.parametrize(
    "fault",
    [simulated.UNAUTHORIZED, simulated.FORBIDDEN, simulated.DROPPED, simulated.HTML,
     Fault(text=packed(bounded.MAX_BYTES), headers=GZIP)],
)  # fmt: skip
def test_no_error_was_raised_from_one_that_knows_the_key(exchange, make_source, credentials, fault):
    """What a crash reporter would keep of it: text and arguments of the whole chain."""
    exchange.script("fills", fault, forever=True)
    with pytest.raises((CredentialsError, ExchangeError)) as caught:
        make_source(attempts=2).fills(SINCE, None)

    seen = [f"{one!r}{one.args!r}" for one in chain(caught.value)]
    seen += traceback.format_exception(caught.value)
    no_secrets("".join(seen), credentials)


def test_a_bug_has_a_traceback_without_the_key(exchange, make_source, credentials, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(coinbase_client, "_answer", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        make_source().balances()

    no_secrets("".join(traceback.format_exception(caught.value)), credentials)


def no_secrets(text, credentials):
    lines = [line for line in re.split(r"\\n|\n", credentials.api_secret) if len(line) > 15]
    for secret in (credentials.api_key, "Bearer ", "eyJ", *lines[1:-1]):
        assert secret not in text


def test_a_bug_in_a_json_log_is_told_without_the_key(credentials, capfd):
    import logging

    from statestore.runtime.logs import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("statestore.bug")
    logger.addHandler(handler)
    try:
        raise ZeroDivisionError("a bug", credentials)
    except ZeroDivisionError:
        logger.exception("broken", extra={"credentials": credentials})
    finally:
        logger.removeHandler(handler)

    line = capfd.readouterr().err
    assert json.loads(line)["message"] == "broken"
    no_secrets(line, credentials)
