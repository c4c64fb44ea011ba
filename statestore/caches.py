"""SQLite files of ours that can be fetched again: how they are made, opened and moved aside.

What is promised: a new one is its owner's alone; no row is taken that is longer than any of ours;
of one that is moved aside the companions go first, so that none of them is ever taken for a part
of its successor.

What is in them, and when one is damaged, is for their owners to say.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Literal

from statestore.times import format_instant, now

DAMAGED = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # our statements are constant: a table or a column is not there
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_NOTADB,
    }
)

_LOCKED_FOR = 10.0  # seconds another process may hold the file
_NEW_FILE_MODE = 0o600
_LONGEST_ROW = 1 << 20
_COMPANIONS = ("-journal", "-wal", "-shm")


def make(path: Path) -> None:
    """Make an empty file where there is none.

    Raises:
        OSError: there is none, and none can be made.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _NEW_FILE_MODE))


def connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Return a connection to a file, in SQLite's words for how; transactions are begun by name."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOCKED_FOR, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_ROW)
    return connection


def aside(path: Path) -> Path:
    """Return where a damaged file goes."""
    stamp = format_instant(now()).replace("-", "").replace(":", "").replace(".", "")
    return _beside(path, f".corrupt-{stamp}")


def move_companions(path: Path, target: Path) -> None:
    """Move what SQLite keeps beside a file, to go before the file itself."""
    for suffix in _COMPANIONS:
        with suppress(FileNotFoundError):
            _beside(path, suffix).rename(_beside(target, suffix))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
