"""Cells of a table as CSV: what is written is read as what it was, to the last digit.

A cell is a number, ``true``, ``false``, ``null`` or a text as it stands; a text that would be read
as something else, a list or an object is JSON. A spreadsheet takes no text for a formula.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from statestore.disk import codec, strict
from statestore.errors import StateCorrupt, StateInvalid

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None}
_FORMULA = ("=", "+", "-", "@")


def cell_of(value: Any) -> str:
    """Return the cell of a value, not yet quoted for CSV."""
    if isinstance(value, str) and _stands_as_it_is(value):
        return value
    return codec.to_json(value, indent=None).decode()


def _stands_as_it_is(text: str) -> bool:
    return (
        text != ""
        and text not in _WORDS
        and text[0] not in '{["'
        and not text.startswith(_FORMULA)
        and text.isprintable()
        and _NUMBER.fullmatch(text) is None
    )


def cells_of(path: Path, line: bytes, number: int) -> list[str]:
    """Return the cells of a line; ``number`` and ``path`` are for messages, here and below.

    Raises:
        StateCorrupt: it is no CSV.
    """
    former = csv.field_size_limit(len(line) + 1)
    try:
        found = list(csv.reader([line.decode()], strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise StateCorrupt(path, f"{path} line {number} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(former)
    return found[0] if found else []


def value_of(path: Path, cell: str, number: int) -> Any:
    """Return the value of a cell that is not empty."""
    if cell[0] in '{["':
        return parsed(path, cell, f"line {number}")
    if cell in _WORDS:
        return _WORDS[cell]
    found = _NUMBER.fullmatch(cell)
    if found is None:
        return cell
    return parsed(path, cell, f"line {number}")


def name_of(path: Path, cell: str, number: int) -> str:
    """Return the name of a column.

    Raises:
        StateInvalid: it has none.
    """
    name = parsed(path, cell, f"line {number}") if cell.startswith('"') else cell
    if not isinstance(name, str) or not name:
        raise StateInvalid(path, f"{path} line {number}: a column has no name")
    return name


def parsed(path: Path, data: bytes | str, where: str = "") -> Any:
    """Return the value of a JSON text in a file.

    Raises:
        StateCorrupt: it cannot be trusted; says where and why.
    """
    try:
        return strict.parse(data)
    except strict.NotStrict as error:
        raise StateCorrupt(
            path,
            f"{path}{where and f' {where}'}: {error}; take another copy of it, or export again",
        ) from None
