"""Every fill row an exchange ever gave, kept in a file, so that it is asked only for what is new.

`LedgerSource` wraps another source. A read of ``[since, until)`` fetches what is not proven yet,
keeps it, and returns one `Batch` that means what a plain read of the window means: the same fills,
the same rows rejected, the same rows twice.

What is promised:

* A hole is fetched, never assumed. A range counts as proven only after a whole answer for it was
  read, and rows and range are written in one transaction, so no range is ever ahead of its rows.
* Only what had an hour to settle (`SETTLED`) is proven: a range ends that long before the time at
  which the request was sent, by the exchange's clock or this machine's, whichever is behind. So
  the last hour is fetched each time, a fill may be posted late by as much, and no clock that is
  wrong makes a range claim what was not posted yet.
* A row is kept as it was sent, to the last digit, rejected ones too. Rows are told apart by all of
  their content: an ``entry_id`` that comes back different is kept twice, and stays a conflict.
* Nothing of one exchange or portfolio is ever returned for another.
* It is a cache. One that is damaged, or written by a later version, is moved aside
  (``NAME.corrupt-<time>``) and fetched again; one that cannot be used is done without. Both are
  told, neither fails a read.
* Opened for reading only (a dry run), it changes no byte, no mtime and no name in its folder.

Why the last one decides the journal: a database in WAL mode cannot be read without making files
beside it, and needs shared memory; with a rollback journal (DELETE) a reader makes nothing and a
finished write leaves one file. Writes are one transaction for each fetch, so the speed of WAL buys
nothing. ``synchronous=FULL``: two more flushes for each fetch, and no power cut can tear the file.

What is left out: a fill posted more than an hour late inside of a proven range. The balance tells
that something is missing, and `afresh` reads the window again, without the memory.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import NamedTuple, TypeVar

from statestore.errors import SourceError
from statestore.fills.decoding import decode_json, encode_json
from statestore.fills.sources import FillSource
from statestore.model import Balances, Batch, Product, Row
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

T = TypeVar("T")

SETTLED = 3_600 * NANOSECONDS

_APPLICATION = 0x66696C6C  # "fill", so that no other program's database is taken for a ledger
_VERSION = 1
_LOCKED_FOR = 10.0  # seconds another process may hold the file
_NEW_FILE_MODE = 0o600
_DAMAGED = {
    sqlite3.SQLITE_ERROR,  # our statements are constant: a table or a column is not there
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_NOTADB,
}
_MOVED_WITH_IT = ("-journal", "-wal", "-shm")
_EARLIEST, _LATEST = -(2**63), 2**63 - 1  # what a column holds; the years 1677 to 2262

_SCHEMA = (
    # whole_since: read from there, the source said that it holds nothing older.
    """CREATE TABLE origins (
        id INTEGER PRIMARY KEY,
        source TEXT NOT NULL,
        portfolio TEXT NOT NULL,
        whole_since INTEGER,
        UNIQUE (source, portfolio)
    )""",
    # time: of execution, NULL where the row does not say. copy: 0, or 1, 2 ... for what one answer
    # held again. An id is never used again: see _forget.
    """CREATE TABLE fills (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        origin INTEGER NOT NULL,
        digest BLOB NOT NULL,
        time INTEGER,
        copy INTEGER NOT NULL,
        payload TEXT NOT NULL,
        UNIQUE (origin, digest)
    )""",
    "CREATE INDEX fills_by_time ON fills (origin, time)",
    """CREATE TABLE proven (
        origin INTEGER NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (origin, since)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)
# Nothing else may be in it: a view in place of a table, or a trigger, would run as we read.
_TABLES = frozenset(" ".join(sql.split()) for sql in _SCHEMA if sql.startswith("CREATE"))
_LONGEST_ROW = 1 << 20
_SELECT = "SELECT id, digest, time, copy, payload FROM fills WHERE origin = ? AND "
_ROWS = f"{_SELECT} time BETWEEN ? AND ? UNION ALL {_SELECT} time IS NULL"
_KEEP = "INSERT OR IGNORE INTO fills (origin, digest, time, copy, payload) VALUES (?, ?, ?, ?, ?)"


class _Damaged(Exception):
    """What the file holds is not to be believed."""


class _NotOurs(Exception):
    """It is something else, and left alone."""


class _Range(NamedTuple):
    since: int
    until: int


class _Hole(NamedTuple):
    """What has to be fetched; until None is the present."""

    since: int
    until: int | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row, and the digest of its origin, time, copy and payload: what it is found by."""

    row: Row
    digest: bytes
    time: int | None
    copy: int
    payload: bytes

    def within(self, since: int, until: int | None) -> bool:
        return self.time is None or (since <= self.time and (until is None or self.time < until))


@dataclass(frozen=True, slots=True)
class _Known:
    """What the ledger held at one moment."""

    ranges: tuple[_Range, ...] = ()
    rows: tuple[_Kept, ...] = ()
    whole_since: int | None = None
    newest_id: int = 0


class LedgerSource:
    """A `FillSource` that asks another one only for what the ledger does not have.

    Args:
        source: where the fills come from.
        path: of the ledger, made where there is none (its folder is not).
        portfolio: whose fills ``source`` gives.
        clock: the instant by the exchange's clock; asked before each fetch that is kept.
        warn: told what is the matter with the ledger, in a sentence.
        keep: False opens the file for reading only, and keeps nothing.
    """

    def __init__(
        self,
        source: FillSource,
        path: Path,
        portfolio: str,
        *,
        clock: Callable[[], int],
        warn: Callable[[str], None],
        keep: bool = True,
    ) -> None:
        self._source = source
        self._path = path
        self._origin = (source.name, portfolio)
        self._sealed_by = sha256(f"{source.name}\0{portfolio}\0".encode())
        self._clock = clock
        self._warn = warn
        self._keep = keep
        self._believed = True
        self._checked = False
        self._off = False
        self._opened = 0
        self._remembered = False

    @property
    def name(self) -> str:
        return self._source.name

    def balances(self) -> Balances | None:
        """Return what is owned now: balances are never remembered."""
        return self._source.balances()

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        """Return the products that are known, by id, as the exchange says now."""
        return self._source.products(product_ids)

    def server_time(self) -> int:
        """Return the instant by the exchange's clock, asked for now."""
        return self._clock()

    def afresh(self) -> LedgerSource | None:
        """Return this source without its memory, or None if nothing was taken from memory so far.

        What it reads replaces what the ledger holds of the same window.
        """
        if not self._remembered:
            return None
        fresh = copy(self)
        fresh._believed = fresh._remembered = False
        return fresh

    def fills(self, since: int, until: int | None) -> Batch:
        """Return every row executed in ``[since, until)``, and all that do not say when.

        ``pages`` counts what was fetched for it: 0 where everything was known.

        Raises:
            SourceError: a hole could not be read whole. What was read before it is kept.
        """
        known = self._try(lambda ledger: self._recall(ledger, since, until), _Known())
        if not self._believed:
            known = _Known(newest_id=known.newest_id)
        holes = _holes(since, until, known.ranges)
        self._remembered |= bool(known.rows) or holes != [_Hole(since, until)]
        rows = {kept.digest: kept for kept in known.rows}
        pages, whole_since = 0, known.whole_since
        for number, hole in enumerate(holes, 1):
            sent = self._sent() if self._keep and not self._off else None
            batch = self._source.fills(hole.since, hole.until)
            pages += batch.pages
            if batch.exhausted:
                former = hole.since if whole_since is None else whole_since
                whole_since = max(former, hole.since)
            # Each read numbers its pages from 1; a row is told apart by where it stands.
            fetched = self._kept(
                row if number == 1 else replace(row, origin=f"read {number}, {row.origin}")
                for row in batch.rows
            )
            rows.update((kept.digest, kept) for kept in fetched)
            if self._keep:
                self._store(hole, sent, fetched, whole_since, known.newest_id)
        return Batch(
            tuple(kept.row for kept in rows.values() if kept.within(since, until)),
            pages,
            exhausted=whole_since is not None and since <= whole_since,
        )

    def _sent(self) -> int | None:
        """The present by the clock that is behind, or None: no range can be claimed."""
        try:
            return min(self._clock(), now())
        except SourceError:
            return None

    # The file

    def _try(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run on the ledger; whatever is wrong with it costs a warning, never the read."""
        if self._off:
            return otherwise
        try:
            if not self._is_there():
                return otherwise
            mode = "rw" if self._keep else "ro"
            uri = f"{self._path.absolute().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=_LOCKED_FOR, isolation_level=None)
            with closing(connection):
                connection.text_factory = bytes
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_ROW)
                connection.execute("PRAGMA trusted_schema = OFF")
                return action(connection)
        except _Damaged as error:
            self._set_aside(str(error))
        except UnicodeDecodeError:  # SQLite quotes what it found, and sqlite3 cannot say it
            self._set_aside("its tables are no text")
        except (_NotOurs, OSError) as error:
            self._give_up(getattr(error, "strerror", None) or str(error))
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            (self._set_aside if code in _DAMAGED else self._give_up)(str(error))
        return otherwise

    def _is_there(self) -> bool:
        """Whether there is a file to open; made where there is none, unless only read."""
        if self._keep:
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _NEW_FILE_MODE))
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise _NotOurs("it is no regular file")
        self._opened = found.st_ino
        if not self._keep and self._is_in_wal_mode():
            raise _NotOurs(
                "it is in WAL mode, where reading makes files; a run that writes ends it"
            )
        return True

    def _is_in_wal_mode(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(20)[18:] == b"\2\2"  # the versions of the file format

    def _set_aside(self, why: str) -> None:
        """Move a damaged ledger out of the way, the companions that belong to it first."""
        if not self._keep:
            self._give_up(why)
            return
        target = _aside(self._path)
        try:
            if self._path.stat().st_ino != self._opened:
                return  # another process was faster; the next read finds what it made
            for suffix in _MOVED_WITH_IT:
                with suppress(FileNotFoundError):
                    _beside(self._path, suffix).rename(_beside(target, suffix))
            self._path.rename(target)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(f"{why}; and it cannot be moved aside: {error.strerror}")
            return
        self._checked = False
        self._warn(
            f"the fill ledger {self._path} is not to be believed ({why}); it was moved to "
            f"{target.name}, and the fills are read from the exchange again"
        )

    def _give_up(self, why: str) -> None:
        self._off = True
        self._warn(
            f"the fill ledger {self._path} cannot be used ({why}); the fills are read from the "
            "exchange without it (--no-ledger does so on purpose)"
        )

    def _examine(self, ledger: sqlite3.Connection) -> bool:
        """Return whether the ledger holds anything; the first time, all of it is looked through."""
        application = _number(ledger, "PRAGMA application_id")
        version = _number(ledger, "PRAGMA user_version")
        tables = _number(ledger, "SELECT count(*) FROM sqlite_master")
        if not (application or version or tables):
            return False
        if application != _APPLICATION:
            raise _NotOurs("it is the database of another program")
        if version > _VERSION:
            raise _Damaged(f"a later version of this program made it, format {version}")
        if not self._checked:
            found = ledger.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            tables_in_it = {" ".join(_decoded(sql).split()) for (sql,) in found}
            if tables_in_it - {"CREATE TABLE sqlite_sequence(name,seq)"} != _TABLES:
                raise _Damaged("its tables are not those of a ledger")
            said = _decoded(ledger.execute("PRAGMA quick_check(1)").fetchone()[0])
            if said != "ok":
                raise _Damaged(said)
            self._checked = True
        return True

    def _recall(self, ledger: sqlite3.Connection, since: int, until: int | None) -> _Known:
        ledger.execute("BEGIN")
        if not self._examine(ledger):
            return _Known()
        newest = _number(ledger, "SELECT coalesce(max(id), 0) FROM fills")
        found = ledger.execute(
            "SELECT id, whole_since FROM origins WHERE source = ? AND portfolio = ?", self._origin
        ).fetchone()
        if found is None or not self._believed:
            return _Known(newest_id=newest)
        origin, whole_since = found
        if type(whole_since) not in (int, NoneType):
            raise _Damaged(f"since when it is whole is {whole_since!r:.40}")
        last = _LATEST if until is None else _fitting(until - 1)
        found = ledger.execute(_ROWS, (origin, _fitting(since), last, origin))
        rows = tuple(self._believable(*columns) for columns in found)
        return _Known(self._ranges(ledger, origin), rows, whole_since, newest)

    def _ranges(self, ledger: sqlite3.Connection, origin: int) -> tuple[_Range, ...]:
        """Ranges proven so far, oldest first, none touching another."""
        statement = "SELECT since, until, digest FROM proven WHERE origin = ? ORDER BY since"
        ranges = []
        for since, until, digest in ledger.execute(statement, (origin,)):
            if type(since) is not int or type(until) is not int or since >= until:
                raise _Damaged(f"a proven range is from {since!r:.40} to {until!r:.40}")
            if self._digest(f"{since} {until}") != digest:
                raise _Damaged(f"the proven range from {since} is not what was stored")
            ranges.append(_Range(since, until))
        return tuple(ranges)

    def _digest(self, facts: str, payload: bytes = b"") -> bytes:
        """What tells a damaged row, and one row from another. The origin is in it."""
        seal = self._sealed_by.copy()
        seal.update(f"{facts} ".encode() + payload)
        return seal.digest()

    def _kept(self, rows: Iterable[Row]) -> list[_Kept]:
        """The rows of one answer; a content that comes again is a copy."""
        copies: dict[bytes, int] = {}
        kept = []
        for row in rows:
            payload, time = encode_json(row.payload), _executed(row)
            number = copies.get(payload, 0)
            copies[payload] = number + 1
            kept.append(
                _Kept(row, self._digest(f"{time} {number}", payload), time, number, payload)
            )
        return kept

    def _believable(
        self, number: int, digest: bytes, time: int | None, copy: int, payload: bytes
    ) -> _Kept:
        if type(payload) is not bytes or self._digest(f"{time} {copy}", payload) != digest:
            raise _Damaged(f"row {number} is not what was stored")
        try:
            document = decode_json(payload)
        except ValueError:
            document = None
        # As it was when its digest was taken, unless somebody took it who is not us.
        if not isinstance(document, dict) or type(time) not in (int, NoneType):
            raise _Damaged(f"row {number} is no fill of ours")
        origin = f"{self._path.name} row {number}"
        return _Kept(Row(document, origin), digest, time, copy, payload)

    def _store(
        self,
        hole: _Hole,
        sent: int | None,
        rows: Collection[_Kept],
        whole_since: int | None,
        newest_id: int,
    ) -> None:
        """Keep the rows of a whole answer, and the range that they prove, both or neither."""
        proven = None
        if sent is not None:
            settled = sent - SETTLED
            end = settled if hole.until is None else min(hole.until, settled)
            proven = _Range(_fitting(hole.since), _fitting(end))

        def write(ledger: sqlite3.Connection) -> None:
            ledger.execute("PRAGMA journal_mode = DELETE")
            ledger.execute("PRAGMA synchronous = FULL")
            ledger.execute("BEGIN IMMEDIATE")
            if not self._examine(ledger):
                for statement in _SCHEMA:
                    ledger.execute(statement)
            ledger.execute(
                "INSERT OR IGNORE INTO origins (source, portfolio) VALUES (?, ?)", self._origin
            )
            origin = _number(
                ledger,
                "SELECT id FROM origins WHERE source = ? AND portfolio = ?",
                *self._origin,
            )
            if proven is not None and not self._believed:
                _forget(ledger, origin, proven, newest_id)
            ledger.executemany(
                _KEEP,
                ((origin, r.digest, r.time, r.copy, r.payload.decode()) for r in rows),
            )
            if whole_since is not None:
                ledger.execute(
                    "UPDATE origins SET whole_since = max(coalesce(whole_since, ?1), ?1) "
                    "WHERE id = ?2",
                    (_fitting(whole_since), origin),
                )
            if proven is not None and proven.since < proven.until:
                self._prove(ledger, origin, proven)
            ledger.execute("COMMIT")

        self._try(write, None)

    def _prove(self, ledger: sqlite3.Connection, origin: int, new: _Range) -> None:
        """Add a range, as one with those it overlaps or touches."""
        touched = [
            old
            for old in self._ranges(ledger, origin)
            if old.since <= new.until and new.since <= old.until
        ]
        union = _Range(
            min(one.since for one in (new, *touched)), max(one.until for one in (new, *touched))
        )
        ledger.executemany(
            "DELETE FROM proven WHERE origin = ? AND since = ?",
            [(origin, old.since) for old in touched],
        )
        seal = self._digest(f"{union.since} {union.until}")
        ledger.execute("INSERT INTO proven VALUES (?, ?, ?, ?)", (origin, *union, seal))


def _decoded(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _number(ledger: sqlite3.Connection, statement: str, *values: object) -> int:
    return int(ledger.execute(statement, values).fetchone()[0])


def _forget(ledger: sqlite3.Connection, origin: int, proven: _Range, newest_id: int) -> None:
    """Drop what a window held before it was read afresh; not what another process added since."""
    ledger.execute(
        "DELETE FROM fills WHERE origin = ? AND id <= ? AND time >= ? AND time < ?",
        (origin, newest_id, *proven),
    )


def _holes(since: int, until: int | None, ranges: Iterable[_Range]) -> list[_Hole]:
    """What of ``[since, until)`` is not proven, oldest first.

    A range that ends in the future (a clock was set back) is believed no further than any other.
    """
    settled = now() - SETTLED
    holes: list[_Hole] = []
    position = since
    for begins, ends in ranges:
        ends = min(ends, settled)
        if ends <= position or begins >= ends or (until is not None and begins >= until):
            continue
        if begins > position:
            holes.append(_Hole(position, begins))
        position = ends
    if until is None or position < until:
        holes.append(_Hole(position, until))
    return holes


def _executed(row: Row) -> int | None:
    """When the row says it was executed; None where it says so in no way that can be read."""
    time = row.payload.get("trade_time")
    if not isinstance(time, str):
        return None
    try:
        instant = parse_instant(time)
    except ValueError:
        return None
    return instant if _EARLIEST <= instant <= _LATEST else None


def _fitting(instant: int) -> int:
    return max(_EARLIEST, min(instant, _LATEST))


def _aside(path: Path) -> Path:
    stamp = format_instant(now()).replace("-", "").replace(":", "").replace(".", "")
    return _beside(path, f".corrupt-{stamp}")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
