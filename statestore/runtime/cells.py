"""Rows as a table in CSV: what is written is read as what it was, to the last digit.

The first line has the names of the columns, each line below it one row; a row without the column
has an empty cell.

A cell is a number, ``true``, ``false``, ``null`` or a text as it stands; a text that would be read
as something else, a list or an object is JSON. A spreadsheet takes no text for a formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statestore.disk import codec, strict
from statestore.errors import StateCorrupt, StateInvalid

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None}
_FORMULA = ("=", "+", "-", "@")


def table_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the table of rows; every column that one of them has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(map(_cell_of, columns))
    for row in rows:
        writer.writerow(_cell_of(row[name]) if name in row else "" for name in columns)
    return text.getvalue().encode()


def rows_of(path: Path, data: bytes, line: int = 2) -> list[dict[str, Any]]:
    """Return the rows below the names of the columns, which are on `line`; `path` is for messages.

    Raises:
        StateCorrupt: it is no CSV, or a cell cannot be trusted.
        StateInvalid: a column has no name, or is there twice; a row is not as long as the names.
    """
    lines = iter(data.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n"))
    columns = [_name_of(path, cell, line) for cell in _cells_of(path, next(lines), line)]
    if len(set(columns)) != len(columns):
        twice = strict.twice_in(columns)
        raise StateInvalid(path, f"{path} line {line}: the column {twice!r:.80} is there twice")
    rows = []
    for number, raw in enumerate(lines, line + 1):
        cells = _cells_of(path, raw, number)
        if len(cells) != len(columns):
            raise StateInvalid(
                path, f"{path} line {number} has {len(cells)} cells, and {len(columns)} columns"
            )
        pairs = zip(columns, cells, strict=True)
        rows.append({name: _value_of(path, cell, number) for name, cell in pairs if cell})
    return rows


def _cell_of(value: Any) -> str:
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


def _cells_of(path: Path, line: bytes, number: int) -> list[str]:
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


def _value_of(path: Path, cell: str, number: int) -> Any:
    """Return the value of a cell that is not empty."""
    if cell[0] in '{["':
        return parsed(path, cell, f"line {number}")
    if cell in _WORDS:
        return _WORDS[cell]
    found = _NUMBER.fullmatch(cell)
    if found is None:
        return cell
    return parsed(path, cell, f"line {number}")


def _name_of(path: Path, cell: str, number: int) -> str:
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
