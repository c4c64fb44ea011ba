"""Which values a state may hold: what JSON has, and what every reader of it loads again.

What is promised: what passes is written as JSON and read back as the same value. What does not is
`Refused`, with the reason and the steps that lead to it. A tuple is written as a list, and what is
derived from a dict, a list or a tuple as one of these; what is derived from a text or a number is
refused, since it may write itself as anything.

What is left to the encoder: a text with half a character in it, and a whole number too long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from types import NoneType
from typing import Any

MAX_DEPTH = 200  # levels of objects and arrays, the document itself included

_PLAIN = frozenset({str, int, bool, NoneType})
SCALARS = _PLAIN | {float}


class Refused(Exception):
    """A value that JSON cannot hold; `steps` is filled from the inside out."""

    def __init__(self, reason: str, *steps: str) -> None:
        super().__init__(reason)
        self.steps = list(steps)


def examine_value(value: object, levels: int) -> bool:
    """Return whether there are Decimals in a value of at most so many levels.

    Raises:
        Refused: JSON cannot hold it, though msgspec might write it.
    """
    kind = type(value)
    if kind in _PLAIN:
        return False
    if isinstance(value, (dict, list, tuple)):
        return examine(value, levels)
    if kind is float:
        _examine_float(value)  # type: ignore[arg-type]  # kind says so
        return False
    if kind is Decimal:
        _examine_decimal(value)  # type: ignore[arg-type]  # kind says so
        return True
    raise Refused(f"a {kind.__name__} cannot be saved as JSON")


def examine(value: dict[Any, Any] | list[Any] | tuple[Any, ...], levels: int) -> bool:
    """Return what `examine_value` does."""
    if levels <= 0:
        raise Refused(f"nested deeper than {MAX_DEPTH} levels, or contains itself")
    children: Iterable[tuple[Any, Any]]
    step_kind: type
    if isinstance(value, dict):
        children, step_kind = value.items(), str
    elif _PLAIN.issuperset(map(type, value)):
        return False  # a list is mostly of one kind, and this asks all of it in one go
    else:
        children, step_kind = enumerate(value), int
    decimals = False
    # This loop is most of what a save computes: the common kinds first, and no calls for them.
    for step, item in children:
        if type(step) is not step_kind:
            raise bad_key(step)
        kind = type(item)
        if kind is str or (kind is float and math.isfinite(item)) or kind in _PLAIN:
            continue
        try:
            if kind is dict or kind is list:
                decimals |= examine(item, levels - 1)
            else:
                decimals |= examine_value(item, levels - 1)
        except Refused as refused:
            refused.steps.append(str(step))
            raise
    return decimals


def bad_key(key: object) -> Refused:
    """Return the refusal of a key that is no text."""
    kind = type(key).__name__
    return Refused(f"the key {key!r} is a {kind}; keys of a JSON object are text", str(key))


def _examine_float(value: float) -> None:
    if not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity"
        raise Refused(f"{name} cannot be saved as JSON")


def _examine_decimal(value: Decimal) -> None:
    if not value.is_finite():
        raise Refused(f"{'NaN' if value.is_nan() else 'Infinity'} cannot be saved as JSON")
    if is_beyond_a_float(value):
        raise Refused("a Decimal beyond the range of a float cannot be loaded again as a float")


def is_beyond_a_float(value: Decimal) -> bool:
    """Return whether a finite number is so large that a bot, which reads floats, cannot load it."""
    return value.adjusted() >= 308 and math.isinf(float(value))


def dotted(steps: list[str]) -> str:
    """Return the path of a field; a key that is no text itself is shown as Python shows it.

    Args:
        steps: from the inside out, as those of `Refused`.
    """
    path = ".".join(reversed(steps)) or "the document"
    return path.encode("utf-8", "backslashreplace").decode()
