"""Bars of a file: JSON Lines, one bar each.

    {"symbol": "BTC", "tf": "1h", "ts": "2025-11-18T04:00:00Z",
     "o": "67000.1", "h": "67100", "l": "66900", "c": "67050", "v": "12.5"}

On one line in the file. Numbers may be texts or JSON numbers, both are exact; ``v`` may be null.
"""

from __future__ import annotations

from pathlib import Path

from statestore.errors import RecordedFileError
from statestore.fills.decoding import decode_json
from statestore.runtime.bars import Bar
from statestore.runtime.candles import Raw, closed_bars
from statestore.times import now, parse_instant


class RecordedCandles:
    """A `BarSource` over one file, read anew at each fetch."""

    whole = False  # a file may be continued

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return self._path.name

    def fetch(self, symbol: str, tf: str, start: int, end: int, limit: int) -> list[Bar]:
        """See `BarSource.fetch`.

        Raises:
            RecordedFileError: it cannot be read, or a line of it is no bar.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError as error:
            raise RecordedFileError(
                f"cannot read the bars {self._path}: {error.strerror}"
            ) from error
        found = [_line(line, f"{self._path} line {n}") for n, line in enumerate(lines, 1) if line]
        rows = (row for of, row in found if of == (symbol, tf))
        where = str(self._path)
        return closed_bars(
            rows, tf, start, end, limit, present=now(), source=self.name, where=where
        )


def _line(line: bytes, where: str) -> tuple[tuple[object, object], Raw]:
    try:
        row = decode_json(line)
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
        prices = (row["o"], row["h"], row["l"], row["c"], row.get("v"))
        return (row["symbol"], row["tf"]), (parse_instant(str(row["ts"])), *prices)
    except KeyError as error:
        raise RecordedFileError(f"{where} is no bar: it has no {error}") from error
    except ValueError as error:
        raise RecordedFileError(f"{where} is no bar: {error}") from error
