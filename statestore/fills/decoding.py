"""Bytes that others sent, as values: JSON with exact numbers, and rows of fills, many at a time.

What is promised: a fractional number is an exact `Decimal`, or the text that was sent; what is not
JSON is a `ValueError`, whatever it is. `plain_rows` reads the rows that leave nothing open, which
nearly all are, a column at a time; it is never more lenient than `fill_from_row`, which reads every
row and says what is wrong with one.

What a row means is not decided here (see `normalise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from io import BytesIO
from operator import itemgetter
from typing import Annotated, Literal

import msgspec

from statestore.model import Row
from statestore.times import parse_instant

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")


def decode_json(data: bytes) -> object:
    """Return plain dicts and lists, with every fractional number an exact `Decimal`.

    Raises:
        ValueError: the bytes are not one JSON document; the message says why and where.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ArithmeticError as error:
        raise ValueError("a number whose exponent is beyond every magnitude") from error


def encode_json(value: object) -> bytes:
    """Return the one text of a value that `decode_json` gave, whatever the order of its keys.

    Decoded again it is equal to the last digit.
    """
    return _encoder.encode(value)


# No name or id of an exchange is longer; what is would be shown, compared and sorted for ever.
LONGEST_TEXT = 1_000

_Name = Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)]

# No longer than what `parse_amount` takes in plain digits.
_Amount = Annotated[str, msgspec.Meta(max_length=40)]


class PlainRow(msgspec.Struct, gc=False):
    """A row of List Fills that leaves nothing open, as nearly all do; see `plain_rows`.

    ``fills`` and ``commission_currency`` have to be absent: one makes the line a page, the other
    is for fills of other exchanges.
    """

    entry_id: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TEXT)]
    product_id: _Name
    side: Literal["BUY", "SELL"]
    price: _Amount
    size: _Amount
    commission: _Amount
    trade_time: str
    sequence_timestamp: str
    trade_id: _Name | None = None
    order_id: _Name | None = None
    trade_type: Literal["FILL"] | None = None
    size_in_quote: bool | None = None
    commission_currency: Literal[""] | None = None
    fills: msgspec.UnsetType = msgspec.UNSET

    def row(self, origin: str) -> Row:
        """Return the same as a row for `fill_from_row`."""
        payload = msgspec.structs.asdict(self)
        del payload["fills"]
        return Row(payload, origin)


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Rows of `plain_rows`, and of each column what it means; times have nine fraction digits."""

    rows: list[PlainRow]
    times: list[str]
    ids: list[str]
    prices: list[Decimal]
    sizes: list[Decimal]
    commissions: list[Decimal]


_decode_plain_rows = msgspec.json.Decoder(PlainRow).decode_lines

_DIGITS = b"0123456789"

_ZEROS = bytes.maketrans(_DIGITS, b"0000000000")

_SHAPE = "0000-00-00T00:00:00.000000000Z"

_WIDTHS = {len("0000-00-00T00:00:00Z"): ".000000000Z", 24: "000000Z", 27: "000Z"}


def plain_rows(lines: bytes) -> PlainRows | None:
    """Return the rows of JSON Lines where every line is one that means one thing at first sight.

    None, which accuses nobody, sends them to `fill_from_row` one by one. What is told here by
    looking at many texts at once is never more lenient than what is told there: plain digits with
    at most one point and no exponent, an amount above zero, RFC 3339 in UTC.
    """
    if not lines.isascii() or b"\\" in lines or b"\r" in lines or b"\x7f" in lines:
        return None  # other scripts' digits, escapes, other ends of lines, what is not seen
    if not lines.endswith(b"\n"):
        lines += b"\n"
    try:
        rows = _decode_plain_rows(lines)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not _one_a_line(lines, len(rows)):
        return None
    prices = [row.price for row in rows]
    sizes = [row.size for row in rows]
    commissions = [row.commission for row in rows]
    amounts = prices + sizes
    if "".join(amounts).encode().translate(None, b".0123456789"):
        return None
    if "".join(commissions).encode().translate(None, b"-.0123456789"):
        return None
    times = _wide([row.trade_time for row in rows])
    if not (_in_utc(times) and _in_utc(_wide([row.sequence_timestamp for row in rows]))):
        return None
    try:
        read = PlainRows(
            rows,
            times,
            [row.entry_id for row in rows],
            list(map(Decimal, prices)),
            list(map(Decimal, sizes)),
            list(map(Decimal, commissions)),
        )
    except InvalidOperation:
        return None
    return read if all(read.prices) and all(read.sizes) else None


class _Named(msgspec.Struct):
    entry_id: object = None
    trade_id: object = None
    product_id: object = None


_decode_named = msgspec.json.Decoder(_Named).decode


def names_of(line: bytes) -> tuple[tuple[str, ...], str]:
    """Return what a line may be known by, and its product; texts only, and cheaply."""
    named = _decode_named(line)
    names = tuple(name for name in (named.entry_id, named.trade_id) if isinstance(name, str))
    return names, named.product_id if isinstance(named.product_id, str) else ""


_first, _last_but_one = itemgetter(0), itemgetter(-2)


def _one_a_line(lines: bytes, rows: int) -> bool:
    """Whether each line is one of the rows. A line that ends in } before one that begins with { is
    where a row ends, since nothing but a comma could stand there within one."""
    each = BytesIO(lines).readlines()
    return (
        len(each) == rows
        and set(map(_first, each)) == {ord("{")}
        and set(map(_last_but_one, each)) == {ord("}")}
    )


def _wide(texts: list[str]) -> list[str]:
    if len("".join(texts)) == len(texts) * len(_SHAPE):
        return texts
    return [text if len(text) == len(_SHAPE) else widened(text) for text in texts]


def _in_utc(texts: list[str]) -> bool:
    """Whether all of them are RFC 3339 in UTC, and as wide as can be."""
    data = "".join(texts).encode()
    if data.translate(_ZEROS) != _SHAPE.encode() * len(texts):
        return False
    tens_of_minutes, tens_of_seconds = data[14 :: len(_SHAPE)], data[17 :: len(_SHAPE)]
    if (tens_of_minutes + tens_of_seconds).translate(None, b"012345"):
        return False
    tens_of_hours = data[11 :: len(_SHAPE)]
    one_day = data.count(data[:11]) == len(texts) and not tens_of_hours.translate(None, b"01")
    hours = {texts[0][:13]} if one_day else {text[:13] for text in texts}
    return hours <= _known_hours or _learn(hours)


def widened(text: str) -> str:
    """Return a time in UTC with nine fraction digits if it has 0, 3 or 6; others as they are."""
    zeros = _WIDTHS.get(len(text))
    return text[:-1] + zeros if zeros is not None and text.endswith("Z") else text


_known_hours: set[str] = set()


def _learn(hours: set[str]) -> bool:
    """Add hours of the calendar; False if one is none."""
    try:
        for hour in hours:
            parse_instant(f"{hour}:00:00Z")
    except ValueError:
        return False
    _known_hours.update(hours)
    return True
