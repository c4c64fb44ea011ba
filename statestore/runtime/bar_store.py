"""Bars in a SQLite file of their own, beside the state.

What is promised:

* It is a cache of what can be fetched again: delete it, and the next bootstrap refills it; nothing
  of a position is in it. One that is damaged is moved aside (``NAME.corrupt-<time>``), told in the
  log, and begun anew; another program's database is left alone.
* A number is the text the source sent, to the last digit.
* What one answer held is kept whole or not at all, together with the range it answered for, so
  that a minute in which nothing was traded is asked for once and not at every start.
* No more than `bars.MAX_BARS` of a symbol and timeframe are kept, the newest.

Rollback journal and ``synchronous=FULL``, for the reasons that `fills.ledger_file` gives. Each call
has a connection of its own, so threads and processes may share the file.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, TypeVar

from statestore import caches
from statestore.amounts import parse_amount
from statestore.errors import BarsFailed
from statestore.runtime.bars import MAX_BARS, Bar, Span, interval
from statestore.times import format_instant

logger = logging.getLogger(__name__)

T = TypeVar("T")

_APPLICATION = 0x62617273  # "bars", so that no other program's database is taken for one of ours
_VERSION = 1

_SCHEMA = (
    # ts: nanoseconds. o to v: decimals as text; v NULL where it is not known.
    """CREATE TABLE bars (
        symbol TEXT NOT NULL,
        tf TEXT NOT NULL,
        ts INTEGER NOT NULL,
        o TEXT NOT NULL, h TEXT NOT NULL, l TEXT NOT NULL, c TEXT NOT NULL,
        v TEXT,
        source TEXT NOT NULL,
        PRIMARY KEY (symbol, tf, ts)
    ) WITHOUT ROWID""",
    # What a source answered for whole: a bar that is missing inside is missing there as well.
    """CREATE TABLE answered (
        symbol TEXT NOT NULL,
        tf TEXT NOT NULL,
        source TEXT NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL,
        PRIMARY KEY (symbol, tf)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)
_KEEP = """
    INSERT INTO bars (symbol, tf, ts, o, h, l, c, v, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (symbol, tf, ts) DO UPDATE
    SET o = excluded.o, h = excluded.h, l = excluded.l, c = excluded.c, v = excluded.v,
        source = excluded.source
    WHERE (o, h, l, c, v, source)
        IS NOT (excluded.o, excluded.h, excluded.l, excluded.c, excluded.v, excluded.source)
"""
_TRIM = f"""
    DELETE FROM bars WHERE symbol = ?1 AND tf = ?2 AND ts <= (
        SELECT ts FROM bars WHERE symbol = ?1 AND tf = ?2 ORDER BY ts DESC LIMIT 1 OFFSET {MAX_BARS}
    )
"""


class Extent(NamedTuple):
    """How much there is of one symbol and timeframe; the instants are those of opening."""

    bars: int
    oldest: int
    newest: int


class _Damaged(Exception):
    """What the file holds is not to be believed."""


class BarStore:
    """See the module. Made on first use, with its folder.

    Raises:
        BarsFailed: by every method, where the file cannot be used as it is and may not be moved
            aside either: locked, no right, no room, or not ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = False
        self._aside: Path | None = None  # where a damaged one was moved last

    def bars(self, symbol: str, tf: str) -> list[Bar]:
        """Return what is kept, oldest first."""
        interval(tf)

        def read(store: sqlite3.Connection) -> list[Bar]:
            found = store.execute(
                "SELECT ts, o, h, l, c, v, source FROM bars WHERE symbol = ? AND tf = ? "
                "ORDER BY ts",
                (symbol, tf),
            )
            try:
                return [
                    Bar(
                        ts,
                        parse_amount(o),
                        parse_amount(h),
                        parse_amount(l),
                        parse_amount(c),
                        None if v is None else parse_amount(v),
                        source,
                    )
                    for ts, o, h, l, c, v, source in found  # noqa: E741 - as the columns are called
                ]
            except (TypeError, ValueError) as error:
                raise _Damaged(f"a bar of {symbol} {tf}: {error}") from error

        return self._run(read)

    def extents(self) -> dict[tuple[str, str], Extent]:
        """Return how much there is, by symbol and timeframe."""

        def read(store: sqlite3.Connection) -> dict[tuple[str, str], Extent]:
            rows = store.execute(
                "SELECT symbol, tf, count(*), min(ts), max(ts) FROM bars GROUP BY symbol, tf"
            )
            return {(symbol, tf): Extent(*extent) for symbol, tf, *extent in rows}

        return self._run(read)

    def answered(self, symbol: str, tf: str, source: str) -> Span | None:
        """Return the range this source answered for whole; None: there is none."""

        def read(store: sqlite3.Connection) -> Span | None:
            row = store.execute(
                "SELECT since, until FROM answered WHERE symbol = ? AND tf = ? AND source = ?",
                (symbol, tf, source),
            ).fetchone()
            return None if row is None else Span(*row)

        return self._run(read)

    def add(
        self,
        symbol: str,
        tf: str,
        bars: Iterable[Bar],
        *,
        answered: Span | None = None,
        by: str = "",
    ) -> int:
        """Keep bars, over those of the same instants; return how many are new or differ.

        Args:
            answered: the range that ``by`` answered for whole with these bars.

        Raises:
            ValueError: one opens between two bars of the timeframe.
        """
        step = interval(tf)
        rows = [_row(symbol, tf, step, bar) for bar in bars]

        def write(store: sqlite3.Connection) -> int:
            before = store.total_changes
            store.executemany(_KEEP, rows)
            changed = store.total_changes - before
            store.execute(_TRIM, (symbol, tf))
            if answered is not None:
                _widen(store, symbol, tf, by, answered)
            return changed

        return self._write(write)

    def replace(self, symbol: str, tf: str, bars: Iterable[Bar]) -> int:
        """Keep these bars (the newest of them) and no others; return how many differ or went."""
        step = interval(tf)
        rows = [_row(symbol, tf, step, bar) for bar in sorted(bars, key=lambda b: b.ts)[-MAX_BARS:]]
        kept = {row[2] for row in rows}

        def write(store: sqlite3.Connection) -> int:
            before = store.total_changes
            found = store.execute("SELECT ts FROM bars WHERE symbol = ? AND tf = ?", (symbol, tf))
            gone = [(symbol, tf, ts) for (ts,) in found if ts not in kept]
            store.executemany("DELETE FROM bars WHERE symbol = ? AND tf = ? AND ts = ?", gone)
            store.executemany(_KEEP, rows)
            return store.total_changes - before

        return self._write(write)

    def check(self) -> Path | None:
        """Look the whole file through, now; return where it was moved to if it was damaged."""
        self._checked = False
        self._aside = None
        self._run(lambda _store: None)
        return self._aside

    # The file

    def _write(self, action: Callable[[sqlite3.Connection], T]) -> T:
        def write(store: sqlite3.Connection) -> T:
            store.execute("BEGIN IMMEDIATE")
            result = action(store)
            store.execute("COMMIT")
            return result

        return self._run(write)

    def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run on the file; one that is damaged is moved aside first, and begun anew."""
        for anew in (False, True):
            try:
                opened = self._made()
                return self._opened(action)
            except (_Damaged, sqlite3.DatabaseError) as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
                if anew or code not in caches.DAMAGED:
                    raise BarsFailed(
                        self.path, f"the bar store {self.path} cannot be used: {error}"
                    ) from error
                self._set_aside(opened, str(error))
            except OSError as error:
                raise BarsFailed(
                    self.path, f"the bar store {self.path} cannot be used: {error.strerror}"
                ) from error
        raise AssertionError("the second time ends by a return or an error")

    def _made(self) -> int:
        """Make the file where there is none; return which file it is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        caches.make(self.path)
        if not self.path.is_file():
            raise BarsFailed(self.path, f"the bar store {self.path} is no regular file")
        return self.path.stat().st_ino

    def _opened(self, action: Callable[[sqlite3.Connection], T]) -> T:
        with closing(caches.connect(self.path, "rwc")) as store:
            store.execute("PRAGMA trusted_schema = OFF")  # what others put there is not run
            store.execute("PRAGMA journal_mode = DELETE")
            store.execute("PRAGMA synchronous = FULL")
            self._examine(store)
            return action(store)

    def _examine(self, store: sqlite3.Connection) -> None:
        def number(statement: str) -> int:
            return int(store.execute(statement).fetchone()[0])

        application = number("PRAGMA application_id")
        if not (application or number("SELECT count(*) FROM sqlite_master")):
            store.execute("BEGIN IMMEDIATE")
            if not number("SELECT count(*) FROM sqlite_master"):  # another process was no faster
                for statement in _SCHEMA:
                    store.execute(statement)
            store.execute("COMMIT")
            application = number("PRAGMA application_id")
        if application != _APPLICATION:
            raise BarsFailed(
                self.path,
                f"{self.path} is the database of another program; name another file for the bars",
            )
        version = number("PRAGMA user_version")
        if version != _VERSION:
            raise BarsFailed(
                self.path,
                f"{self.path} is of format {version}, and this program reads {_VERSION}; "
                "delete it to have its bars fetched again",
            )
        if not self._checked:
            said = store.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise _Damaged(said)
            self._checked = True

    def _set_aside(self, opened: int, why: str) -> None:
        self._checked = False
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino != opened:
                return  # somebody else was faster, and this is a new one
        target = caches.aside(self.path)
        caches.move_companions(self.path, target)
        with suppress(FileNotFoundError):
            self.path.rename(target)
        self._aside = target
        logger.warning(
            "bar store was damaged and moved aside; its bars are fetched again",
            extra={"path": str(self.path), "aside": target.name, "why": why},
        )


def _row(symbol: str, tf: str, step: int, bar: Bar) -> tuple[object, ...]:
    if bar.ts % step:
        raise ValueError(
            f"{symbol}: {format_instant(bar.ts)} is no instant at which a bar of {tf} opens"
        )
    prices = (_text(price) for price in (bar.open, bar.high, bar.low, bar.close))
    volume = None if bar.volume is None else _text(bar.volume)
    return (symbol, tf, bar.ts, *prices, volume, bar.source)


def _text(value: Decimal) -> str:
    return format(value, "f")


def _widen(store: sqlite3.Connection, symbol: str, tf: str, source: str, new: Span) -> None:
    """Remember one range of one source: what touches is joined, what does not is forgotten."""
    row = store.execute(
        "SELECT since, until FROM answered WHERE symbol = ? AND tf = ? AND source = ?",
        (symbol, tf, source),
    ).fetchone()
    if row is not None and row[0] <= new.until and new.since <= row[1]:
        new = Span(min(row[0], new.since), max(row[1], new.until))
    store.execute(
        "INSERT OR REPLACE INTO answered (symbol, tf, source, since, until) VALUES (?, ?, ?, ?, ?)",
        (symbol, tf, source, *new),
    )
