"""Rows as the exchange sends them: what they mean, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from statestore.errors import IncompleteRead
from statestore.fills.decoding import decode_json
from statestore.fills.normalise import balances_of, fill_from_row, implausible_fees, normalise
from statestore.model import Batch, FillKind, Row, Side
from statestore.simulated import fill, fills


def one(text: str = "BUY 1 BTC-USD @ 100", **fields: Any) -> Any:
    return fill_from_row(Row(fill(text, **fields), "here"))


def read(*rows: dict[str, object]) -> Any:
    return normalise([Batch(tuple(Row(row, f"row {n}") for n, row in enumerate(rows)), 1)])


def test_a_size_in_quote_is_divided_by_the_price() -> None:
    found = one("BUY 2.6399716828 ETH-USD @ 2975.32 quote")

    assert found.units == Decimal("0.00088729")
    assert found.notional == Decimal("2.6399716828")
    assert found.quoted


@pytest.mark.parametrize("absent", [{"size_in_quote": None}, {"trade_type": None}])
def test_absent_fields_have_their_documented_meaning(absent: dict[str, Any]) -> None:
    found = one(**absent)

    assert (found.units, found.kind, found.side) == (1, FillKind.FILL, Side.BUY)


@pytest.mark.parametrize(
    ("fields", "commission"),
    [
        ({"commission": ""}, "0"),
        ({"commission": None}, "0"),
        ({"commission": "-0.5"}, "-0.5"),
        ({"commission": "", "commission_detail_total": {"total_commission": "1.5"}}, "1.5"),
        ({"commission": "2", "commission_detail_total": {"total_commission": ""}}, "2"),
    ],
)
def test_commissions(fields: dict[str, Any], commission: str) -> None:
    assert one(**fields).commission == Decimal(commission)


def test_unknown_fields_and_blank_ones_do_no_harm() -> None:
    found = one(future_legs=[], order_data_source="X", liquidity_indicator="NEW", order_id=None)

    assert found.order_id == ""


@pytest.mark.parametrize(
    "text", ["04:29:43Z", "04:29:43.786Z", "04:29:43.786756Z", "04:29:43.786756001Z"]
)
def test_times_of_zero_three_six_and_nine_digits(text: str) -> None:
    first, second = fills(
        f"BUY 1 BTC-USD @ 1 at 2025-11-18T{text}", "BUY 1 BTC-USD @ 1 at 2025-11-18T04:29:43.9Z"
    )
    found = read(second, first).fills

    assert [f.entry_id for f in found] == [first["entry_id"], second["entry_id"]]


def test_nanoseconds_order_fills() -> None:
    rows = fills(
        "BUY 1 BTC-USD @ 1 at 2025-11-18T04:29:43.000000002Z",
        "BUY 1 BTC-USD @ 1 at 2025-11-18T04:29:43.000000001Z",
    )

    assert [f.entry_id for f in read(*rows).fills] == [rows[1]["entry_id"], rows[0]["entry_id"]]


def test_numeric_trade_ids_order_by_value() -> None:
    same = {"trade_time": "2025-11-18T04:29:43Z", "sequence_timestamp": None}
    rows = [fill("BUY 1 BTC-USD @ 1", trade_id=n, entry_id=n, **same) for n in ("10", "9")]

    assert [f.trade_id for f in read(*rows).fills] == ["9", "10"]


def test_a_row_that_comes_again_with_another_content_is_a_conflict() -> None:
    row = fill("BUY 1 BTC-USD @ 100")
    found = read(row, row | {"size": "2"})

    assert len(found.fills) == 1
    assert "another content" in found.rejected[0].reason


def test_overlapping_reads_are_no_duplicates() -> None:
    row = Row(fill("BUY 1 BTC-USD @ 100"), "")
    found = normalise([Batch((row,), 1), Batch((row,), 1)])

    assert (len(found.fills), found.duplicates) == (1, 0)


def test_a_reversal_needs_an_identity_of_its_own() -> None:
    assert read(fill("BUY 1 BTC-USD @ 1", entry_id="")).fills[0].entry_id
    assert read(fill("REVERSAL BUY 1 BTC-USD @ 1", entry_id="")).rejected


def test_a_size_of_zero_is_skipped_and_counted() -> None:
    found = read(fill("BUY 1 BTC-USD @ 100", size="0"))

    assert (found.fills, dict(found.skipped)) == ((), {"zero": 1})


@pytest.mark.parametrize("size", ["1e500", "1e-500", "1" * 101, "٣", "0x1", "1,5", "inf", "--1"])
def test_numbers_no_market_has(size: str) -> None:
    assert "size" in read(fill("BUY 1 BTC-USD @ 100", size=size)).rejected[0].reason


def test_a_base_fee_that_eats_the_fill_is_refused() -> None:
    assert "commission" in read(fill("BUY 1 BTC-USD @ 100 fee 1 BTC")).rejected[0].reason


def test_json_numbers_are_exact() -> None:
    document: Any = decode_json(b'{"size": 0.1, "price": 123456789.123456789, "n": 7}')

    assert document == {"size": Decimal("0.1"), "price": Decimal("123456789.123456789"), "n": 7}


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"a": NaN}', b'"\xff"', b"[" * 100_000])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_json(data)


def test_a_fee_far_below_the_others_is_noticed() -> None:
    rows = fills(*["BUY 1 DOGE-USD @ 100 fee .6"] * 5, "BUY 100 DOGE-USD @ 100 fee .6")
    found = implausible_fees(read(*rows).fills)

    assert list(found) == [rows[-1]["entry_id"]]


@pytest.mark.parametrize(
    "fee", ["0", "0.001", "0.6", "4", "-0.5"], ids=lambda fee: f"{fee} on 100 USD"
)
def test_plausible_fees(fee: str) -> None:
    assert implausible_fees(read(fill(f"BUY 1 BTC-USD @ 100 fee {fee}")).fills) == {}


@pytest.mark.parametrize("fee", ["0.0001", "12", "-5"], ids=lambda fee: f"{fee} on 100 USD")
def test_implausible_fees(fee: str) -> None:
    assert implausible_fees(read(fill(f"BUY 1 BTC-USD @ 100 fee {fee}")).fills)


def test_available_and_held_are_owned_over_all_accounts() -> None:
    accounts = [
        {"currency": "BTC", "available_balance": {"value": ".2"}, "hold": {"value": ".4"}},
        {"currency": "BTC", "available_balance": {"value": "1"}, "hold": {"value": ""}},
        {"currency": "ETH", "available_balance": {"value": "3"}},
    ]

    assert balances_of(accounts, "here") == {"BTC": Decimal("1.6"), "ETH": Decimal(3)}


@pytest.mark.parametrize(
    "account",
    [
        None,
        {},
        {"currency": "BTC"},
        {"currency": "BTC", "available_balance": {"value": ""}},
        {"currency": "BTC", "available_balance": {"value": "NaN"}},
        {"currency": "BTC", "available_balance": {"value": "1"}, "hold": {"value": "x"}},
    ],
)
def test_an_account_that_cannot_be_read_is_an_error(account: Any) -> None:
    with pytest.raises(IncompleteRead, match="account 1"):
        balances_of([account], "here")
