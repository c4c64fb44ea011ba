"""Exact decimal arithmetic, from the exchange's text to the number in the file.

Sums and products of fills are exact. A quotient that does not end (an average price, a size given
in quote) is carried with 120 digits and rounded once, when it is written: half even, to 28
significant digits. A value that does end is written in full.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ZERO = Decimal(0)

_WORKING = Context(
    prec=120, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow]
)
# A 120 digit result of many steps is good to 100 digits. If those are really 60 or fewer, the true
# value ends there: chance does not produce 40 zeros.
_SETTLED = Context(prec=100, rounding=ROUND_HALF_EVEN)
_ENDS_WITHIN = 60
_WRITTEN = Context(prec=28, rounding=ROUND_HALF_EVEN)

_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LARGEST_EXPONENT = 40


def json_type(value: object) -> str:
    """Return what a value read from JSON is, in the words of JSON, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` in the working precision, whatever the caller's decimal context is."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(_WORKING):
            return function(*args, **kwargs)

    return wrapper


def parse_amount(value: object) -> Decimal:
    """Return the number a text (or an exact JSON number) names.

    Plain notation or an exponent only. What `Decimal` would also take is refused: "NaN", " 1 ",
    "1_000", other scripts' digits. So is a magnitude beyond 1E40 or below 1E-40, which no market
    has and which would only cost memory.

    Raises:
        ValueError: the text is not such a number; the message quotes it.
    """
    if isinstance(value, str):
        if len(value) > 100 or _PLAIN.fullmatch(value) is None:
            raise ValueError(f"{value[:40]!r} is not a decimal number")
        value = Decimal(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite():
        raise ValueError(f"{value!r:.40} is not a decimal number")
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # finite
    if exponent < -_LARGEST_EXPONENT or exponent + len(digits) > _LARGEST_EXPONENT:
        if not value:
            return (
                ZERO  # however far its exponent is out: 0E+999999999 would be added digit by digit
            )
        raise ValueError(f"{str(value)[:40]!r} is beyond every market's magnitude")
    return value


def written(value: Decimal) -> Decimal:
    """Return the number as it is reported and stored: in full if it ends, else 28 digits."""
    settled = value.normalize(_SETTLED)
    if len(settled.as_tuple().digits) > _ENDS_WITHIN:
        settled = _WRITTEN.plus(value).normalize(_WRITTEN)
    if settled == 0:
        return ZERO
    exponent = settled.as_tuple().exponent
    assert isinstance(exponent, int)  # finite
    # 62000, not 6.2E+4
    return settled.quantize(Decimal(1), context=_SETTLED) if exponent > 0 else settled


def text(value: Decimal | None) -> str | None:
    """Return the number as it is reported, in plain notation; None stays None."""
    return None if value is None else format(written(value), "f")
