"""Orders read through the real SDK, and what a row of them means."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from statestore.errors import CredentialsError, ExchangeError, IncompleteRead
from statestore.fills.sources import ReadOnlyViolation
from statestore.fills.sources.coinbase import CoinbaseSource
from statestore.fills.sources.coinbase_client import read_only_client
from statestore.fills.sources.coinbase_orders import STATUSES, exchange_order
from statestore.fills.sources.credentials import Credentials
from statestore.model import OrderStatus
from statestore.simulated import FORBIDDEN, UNAVAILABLE, Fault, SimulatedExchange
from statestore.times import parse_instant

STOP = {"stop_limit_stop_limit_gtc": {"base_size": "1", "limit_price": "89", "stop_price": "90"}}


def row(**said: object) -> dict[str, object]:
    given = {"order_id": "x-1", "product_id": "BTC-USD", "side": "SELL", "status": "OPEN"}
    return given | said


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("PENDING", "pending"),
        ("QUEUED", "pending"),
        ("OPEN", "open"),
        ("CANCEL_QUEUED", "open"),
        ("EDIT_QUEUED", "open"),
        ("FILLED", "filled"),
        ("CANCELLED", "cancelled"),
        ("EXPIRED", "cancelled"),
        ("FAILED", "rejected"),
        ("UNKNOWN_ORDER_STATUS", None),
        ("", None),
    ],
)
def test_a_status_of_the_exchange_is_one_of_ours_or_unknown(said: str, status: str | None) -> None:
    read = exchange_order(row(status=said, filled_size="1", filled_value="9"), "here")

    assert read.status == (None if status is None else OrderStatus(status))
    assert read.said == said


def test_every_status_of_the_reference_is_known() -> None:
    assert set(OrderStatus) == set(STATUSES.values())
    assert len(STATUSES) == 9


def test_a_row_is_read_exactly() -> None:
    read = exchange_order(
        row(
            status="FILLED",
            client_order_id="c-1",
            order_configuration=STOP,
            filled_size="0.000297920684505",
            filled_value="6.3220675944333996",
            average_filled_price="21220.64",
            total_fees="0.0379324055666004",
            last_fill_time="2025-11-18T04:29:43.786756789Z",
        ),
        "here",
    )

    assert read.filled_quantity == Decimal("0.000297920684505")
    assert read.filled_value == Decimal("6.3220675944333996")
    assert read.fees == Decimal("0.0379324055666004")
    assert read.filled_at == datetime(2025, 11, 18, 4, 29, 43, 786756, tzinfo=UTC)
    assert (read.quantity, read.price, read.client_order_id) == (1, 90, "c-1")


def test_empty_texts_are_nothing_filled_and_fees_that_are_not_known() -> None:
    read = exchange_order(row(filled_size="", filled_value="", total_fees=""), "here")

    assert (read.filled_quantity, read.filled_value, read.fees) == (0, 0, None)


def test_a_value_that_is_not_told_is_that_of_the_average_price() -> None:
    read = exchange_order(row(filled_size="2", average_filled_price="90"), "here")
    assert read.filled_value == 180


def test_a_future_is_never_booked_in_base_units() -> None:
    said = row(status="FILLED", filled_size="1", filled_value="5", product_type="FUTURE")
    read = exchange_order(said, "here")

    assert (read.status, read.said) == (None, "FILLED of a FUTURE")


@pytest.mark.parametrize(
    "said",
    [
        {"order_id": ""},
        {"side": "UNKNOWN_ORDER_SIDE"},
        {"filled_size": "1"},
        {"filled_size": "NaN"},
        {"filled_size": "-1", "filled_value": "1"},
        {"filled_size": "1", "filled_value": "1", "last_fill_time": "yesterday"},
        {"order_configuration": {"limit": {"base_size": "much"}}},
    ],
    ids=str,
)
def test_a_row_that_cannot_be_is_no_answer(said: dict[str, object]) -> None:
    with pytest.raises(IncompleteRead):
        exchange_order(row(**said), "here")


def test_filled_with_nothing_is_for_whose_order_it_is_to_refuse() -> None:
    """Not for the list: in it, somebody else's odd row kept every order of ours from being read."""
    read = exchange_order(row(status="FILLED"), "here")
    assert (read.status, read.filled_quantity) == (OrderStatus.FILLED, 0)


def test_a_refusal_keeps_its_reason() -> None:
    read = exchange_order(row(status="FAILED", reject_reason="INSUFFICIENT_FUNDS"), "here")
    assert read.reason == "INSUFFICIENT_FUNDS"


def test_all_pages_of_orders_since_an_instant(
    exchange: SimulatedExchange, source: CoinbaseSource
) -> None:
    exchange.page_size = 2
    for hour in range(5):
        exchange.set_order(
            f"x-{hour}", "BTC-USD", "SELL", created_time=f"2025-11-18T0{hour}:00:00Z"
        )

    read = source.orders(parse_instant("2025-11-18T01:00:00Z"))

    assert [order.exchange_order_id for order in read] == ["x-4", "x-3", "x-2", "x-1"]
    assert {request.method for request in exchange.requests} == {"GET"}


def test_one_order_is_found_wherever_it_was_made(
    exchange: SimulatedExchange, source: CoinbaseSource
) -> None:
    exchange.set_order("x-1", "BTC-USD", "SELL", order_placement_source="RETAIL_SIMPLE")

    assert source.orders(0) == []
    found = source.order("x-1")
    assert found is not None
    assert found.status is OrderStatus.OPEN
    assert source.order("x-2") is None
    assert source.order("../accounts") is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (FORBIDDEN, CredentialsError),
        (UNAVAILABLE, ExchangeError),
        (Fault(change=lambda answer: answer | {"orders": None, "order": None}), IncompleteRead),
        (Fault(change=lambda answer: answer | {"proof_token_required": True, "order": 1}),
         IncompleteRead),
    ],
    ids=["forbidden", "unavailable", "no list", "second factor"],
)  # fmt: skip
def test_no_answer_is_an_error_and_never_no_orders(
    exchange: SimulatedExchange, source: CoinbaseSource, fault: Fault, error: type[Exception]
) -> None:
    exchange.set_order("x-1", "BTC-USD", "SELL")
    exchange.script("orders", fault, forever=True)

    with pytest.raises(error):
        source.orders(0)
    with pytest.raises(error):
        source.order("x-1")


@pytest.mark.parametrize("path", ["orders", "orders/batch_cancel", "orders/edit", "orders/preview"])
def test_the_paths_that_place_and_cancel_cannot_be_reached(
    exchange: SimulatedExchange, credentials: Credentials, path: str
) -> None:
    client = read_only_client(credentials, base_url=exchange.base_url, ca_file=exchange.ca_file)
    for method in ("get", "post", "delete"):
        with pytest.raises(ReadOnlyViolation):
            getattr(client, method)(f"/api/v3/brokerage/{path}")
    assert exchange.requests == []
