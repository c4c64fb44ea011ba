"""Fills from a line of text each, as rows that the exchange would send: for tests and for the demo.

::

    BUY 1 BTC-USD @ 100
    SELL 0.4 BTC-USD @ 110 fee 0.04

What is promised: numbers stand in a row as they stand in the text, and the same text gives the same
row in every process, ids included. A text that is not understood is an error, never a guess.

What is not: that the exchange would ever send such a row. No extra is needed.
"""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from hashlib import sha256

from statestore.times import format_instant, parse_instant

PORTFOLIO_ID = "00000000-0000-0000-0000-000000000001"
START = "2025-11-18T04:00:00Z"
MINUTE = timedelta(minutes=1)

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FILL = re.compile(
    r"(?:(?P<kind>FILL|REVERSAL|CORRECTION|SYNTHETIC) )?(?P<side>BUY|SELL) "
    rf"(?P<size>{_NUMBER}) (?P<product>\S+-\S+) @ ?(?P<price>{_NUMBER})"
    rf"(?: fee (?P<fee>{_NUMBER})(?: (?P<fee_currency>(?!quote\b)[A-Z0-9]+))?)?"
    r"(?P<quote> quote)?(?: at (?P<time>\S+))?(?: order (?P<order>\S+))?"
    r"(?: trade (?P<trade>\S+))?(?: id (?P<entry>\S+))?",
    re.ASCII,
)


def fill(text: str, **overrides: object) -> dict[str, object]:
    """Return a List Fills row, as the exchange would send it, from a line of text.

    ::

        [KIND] SIDE SIZE PRODUCT @ PRICE [fee FEE [CURRENCY]] [quote] [at TIME]
            [order ORDER_ID] [trade TRADE_ID] [id ENTRY_ID]

        BUY 1 BTC-USD @ 100
        SELL .012 BTC-USD @ 65000 fee 4.68 at 2025-11-18T04:29:43.786756Z
        BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote
        BUY 1 BTC-USD @ 60000 fee .001 BTC
        REVERSAL BUY .5 BTC-USD @ 60000 trade t1 id e2

    ``quote`` says that the size is an amount of quote (``size_in_quote``). Without ``at`` the fill
    is of 2025-11-18T04:00:00Z. A fee in another currency than the product's quote goes to
    ``commission_currency``, a field of ours. The same text gives the same row, ids included.

    Args:
        text: the parts in this order.
        overrides: fields of the row by their own names (``side=""``, ``size_in_quote=None``),
            for what no text should be able to say.
    """
    return _row(text, sequence=0, at=parse_instant(START)) | overrides


def fills(
    *texts: str, start: str | int = START, every: timedelta = MINUTE
) -> list[dict[str, object]]:
    """Return one row for each text, in order, ``every`` apart from ``start``, each with its own id.

    Args:
        texts: see `fill`; one with ``at`` stands where it says.
        start: RFC 3339, or an instant in nanoseconds.
        every: zero makes them tied.
    """
    first = parse_instant(start) if isinstance(start, str) else start
    step = every // timedelta(microseconds=1) * 1_000
    return [
        _row(text, sequence=number, at=first + number * step) for number, text in enumerate(texts)
    ]


def _row(text: str, *, sequence: int, at: int) -> dict[str, object]:
    match = _FILL.fullmatch(" ".join(text.split()))
    if match is None:
        raise ValueError(
            f"{text!r} is not a fill; expected [KIND] SIDE SIZE PRODUCT @ PRICE "
            "[fee FEE [CURRENCY]] [quote] [at TIME] [order ID] [trade ID] [id ID], "
            "as BUY 1 BTC-USD @ 100 fee 0.6"
        )
    part = match.groupdict()
    instant = parse_instant(part["time"]) if part["time"] else at
    digest = sha256(f"{sequence} {at} {text}".encode()).hexdigest()
    row: dict[str, object] = {
        "entry_id": part["entry"] or digest,
        "trade_id": part["trade"] or str(uuid.UUID(digest[:32])),
        "order_id": part["order"] or str(uuid.UUID(digest[32:])),
        "trade_time": part["time"] or format_instant(instant),
        "trade_type": part["kind"] or "FILL",
        "price": part["price"],
        "size": part["size"],
        "commission": part["fee"] or "0",
        "product_id": part["product"],
        # A little after the trade, as in real rows.
        "sequence_timestamp": format_instant(instant + 2_000_000),
        "liquidity_indicator": "TAKER",
        "size_in_quote": part["quote"] is not None,
        "user_id": "00000000-0000-0000-0000-000000000000",
        "side": part["side"],
        "retail_portfolio_id": PORTFOLIO_ID,
        "fillSource": "FILL_SOURCE_CLOB",
    }
    if part["fee_currency"] and not part["product"].endswith(f"-{part['fee_currency']}"):
        row["commission_currency"] = part["fee_currency"]
    return row
