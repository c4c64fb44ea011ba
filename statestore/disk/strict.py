"""JSON that any program may have written, read strictly: exact numbers, and no guess.

For exports and backups, which are read once and decide what is held. The state file has its own
reader (`statestore.disk.codec`), since it is read all the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from statestore.disk.values import MAX_DEPTH, is_beyond_a_float

_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # half a character; two of them may be a whole one
_MAX_DIGITS = 4_000  # of a whole number; Python reads a few more, and no bot has that many


class NotStrict(ValueError):
    """The text is no JSON that can be trusted; the message says why and where."""


class _Twice(dict[str, Any]):
    """An object in which a key stands twice."""

    key = ""


def parse(data: bytes | str) -> Any:
    """Return the value of a JSON text: whole numbers as `int`, all others as exact `Decimal`.

    Raises:
        NotStrict: not UTF-8, empty, not JSON, a lone surrogate, a key twice in one object, NaN, a
            number beyond the range of a float or of thousands of digits, or more than `MAX_DEPTH`
            levels.
    """
    twice: list[_Twice] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(found)
        if len(value) != len(found):
            value = _Twice(value)
            value.key = twice_in(key for key, _ in found)
            twice.append(value)
        return value

    try:
        text = data if isinstance(data, str) else data.decode()
        if not text.strip():
            raise NotStrict("empty, and JSON is expected")
        value = json.loads(
            text,
            parse_float=number,
            parse_int=_whole,
            parse_constant=_refuse,
            object_pairs_hook=pairs,
        )
    except UnicodeDecodeError as error:
        raise NotStrict(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise NotStrict(f"nested deeper than {MAX_DEPTH} levels") from None
    except NotStrict:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc else ""
        raise NotStrict(f"not JSON: {error.msg} ({line}column {error.colno})") from None
    where = _first(value, twice)
    if where is not None:
        raise NotStrict(where)
    if _ESCAPED.search(text):
        _refuse_surrogates(value)
    return value


def twice_in(keys: Iterable[str]) -> str:
    """Return the first of the keys that was there before; one pass, however many there are."""
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def number(text: str) -> Decimal:
    """Return the exact number a JSON text names.

    Raises:
        NotStrict: no float holds it, so no bot could read it.
    """
    try:
        value = Decimal(text)
    except ArithmeticError:
        raise NotStrict(f"the exponent of {text:.40} is beyond every magnitude") from None
    if is_beyond_a_float(value):
        raise NotStrict(f"the number {text:.40} is beyond the range of a float")
    return value


def _refuse_surrogates(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise NotStrict(
                    f"a lone surrogate in {item!r:.60}, which cannot be saved as UTF-8"
                ) from error


def _first(value: Any, twice: list[_Twice]) -> str | None:
    """Return what is wrong with a value that parsed; None if nothing is."""
    level, steps = [("", value)], 0
    while level:  # a level at a time, so that no depth is too deep to be looked at
        if steps == MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        if twice:
            for path, item in level:
                if isinstance(item, _Twice):
                    return f"the key {item.key!r} stands twice in {path or 'the document'}"
        level = [inner for path, item in level for inner in _inside(path, item)]
        steps += 1
    return None


def _inside(path: str, item: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects and lists in an object or a list, with their dotted paths."""
    children: Iterable[tuple[object, Any]] = ()
    if isinstance(item, dict):
        children = item.items()
    elif isinstance(item, list):
        children = enumerate(item)
    for step, child in children:
        if isinstance(child, (dict, list)):
            yield f"{path}.{step}" if path else str(step), child


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise NotStrict(f"the number {text:.20}... has {len(text)} digits, which no bot could read")
    return int(text)


def _refuse(name: str) -> None:
    raise NotStrict(f"{name} is no number")
