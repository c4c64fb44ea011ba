"""The SQLite file that fill rows are kept in, and what is done when it is damaged.

What is promised:

* Rows and the range that they prove are written in one transaction, so no range is ever ahead of
  its rows, and a row is kept as it was sent, to the last digit. Rows are told apart by all of their
  content.
* It is a cache. What is found is believed only as far as its digest, the tables and SQLite's own
  check go. A file that is damaged, or written by a later version, is moved aside
  (``NAME.corrupt-<time>``) and begun anew; one that cannot be used is done without. Both are told,
  neither fails a read.
* Opened for reading only (a dry run), it changes no byte, no mtime and no name in its folder.

Why the last one decides the journal: a database in WAL mode cannot be read without making files
beside it, and needs shared memory; with a rollback journal (DELETE) a reader makes nothing and a
finished write leaves one file. Writes are one transaction for each fetch, so the speed of WAL buys
nothing. ``synchronous=FULL``: two more flushes for each fetch, and no power cut can tear the file.

Which ranges count as proven is not decided here (see `ledger`).

It is long for a module because the tables, what is written and what is believed of it belong
together.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Literal, NamedTuple, TypeVar

from statestore import caches
from statestore.fills.decoding import decode_json, encode_json
from statestore.model import Row
from statestore.times import parse_instant

T = TypeVar("T")

_APPLICATION = 0x66696C6C  # "fill", so that no other program's database is taken for a ledger
_VERSION = 1
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
_SELECT = "SELECT id, digest, time, copy, payload FROM fills WHERE origin = ? AND "
_ROWS = f"{_SELECT} time BETWEEN ? AND ? UNION ALL {_SELECT} time IS NULL"
_KEEP = "INSERT OR IGNORE INTO fills (origin, digest, time, copy, payload) VALUES (?, ?, ?, ?, ?)"


class _Damaged(Exception):
    """What the file holds is not to be believed."""


class _NotOurs(Exception):
    """It is something else, and left alone."""


class Range(NamedTuple):
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A row, and the digest of its origin, time, copy and payload: what it is found by."""

    row: Row
    digest: bytes
    time: int | None
    copy: int
    payload: bytes

    def within(self, since: int, until: int | None) -> bool:
        return self.time is None or (since <= self.time and (until is None or self.time < until))


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger held at one moment."""

    ranges: tuple[Range, ...] = ()
    rows: tuple[Kept, ...] = ()
    whole_since: int | None = None
    newest_id: int = 0


class LedgerFile:
    """The file of one ledger, for one source and portfolio.

    Args:
        path: made where there is none (its folder is not).
        source, portfolio: whose fills they are; nothing of another is ever returned.
        warn: told what is the matter with the file, in a sentence.
        keep: False opens the file for reading only, and keeps nothing.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        portfolio: str,
        *,
        warn: Callable[[str], None],
        keep: bool,
    ) -> None:
        self._path = path
        self._origin = (source, portfolio)
        self._sealed_by = sha256(f"{source}\0{portfolio}\0".encode())
        self._warn = warn
        self._keep = keep
        self._checked = False
        self._off = False
        self._opened = 0

    @property
    def keeps(self) -> bool:
        """Whether anything is kept; not once the file could not be used."""
        return self._keep and not self._off

    def recall(self, since: int, until: int | None, *, believed: bool) -> Known:
        """Return what the ledger holds of a window; only its newest id where it is not believed."""
        return self._try(lambda ledger: self._recall(ledger, since, until, believed), Known())

    def store(
        self,
        rows: Collection[Kept],
        proven: Range | None,
        whole_since: int | None,
        forget: int | None = None,
    ) -> None:
        """Keep the rows of a whole answer, and the range that they prove, both or neither.

        Args:
            whole_since: the source holds nothing older than what it gave from there on.
            forget: rows of the range up to this id are taken out first; None: none are.
        """
        if proven is not None:
            proven = Range(_fitting(proven.since), _fitting(proven.until))

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
            if proven is not None and forget is not None:
                _forget(ledger, origin, proven, forget)
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

    def kept(self, rows: Iterable[Row]) -> list[Kept]:
        """Return the rows of one answer as they are kept; a content that comes again is a copy."""
        copies: dict[bytes, int] = {}
        kept = []
        for row in rows:
            payload, time = encode_json(row.payload), _executed(row)
            number = copies.get(payload, 0)
            copies[payload] = number + 1
            kept.append(Kept(row, self._digest(f"{time} {number}", payload), time, number, payload))
        return kept

    def _recall(
        self, ledger: sqlite3.Connection, since: int, until: int | None, believed: bool
    ) -> Known:
        ledger.execute("BEGIN")
        if not self._examine(ledger):
            return Known()
        newest = _number(ledger, "SELECT coalesce(max(id), 0) FROM fills")
        found = ledger.execute(
            "SELECT id, whole_since FROM origins WHERE source = ? AND portfolio = ?", self._origin
        ).fetchone()
        if found is None or not believed:
            return Known(newest_id=newest)
        origin, whole_since = found
        if type(whole_since) not in (int, NoneType):
            raise _Damaged(f"since when it is whole is {whole_since!r:.40}")
        last = _LATEST if until is None else _fitting(until - 1)
        found = ledger.execute(_ROWS, (origin, _fitting(since), last, origin))
        rows = tuple(self._believable(*columns) for columns in found)
        return Known(self._ranges(ledger, origin), rows, whole_since, newest)

    def _ranges(self, ledger: sqlite3.Connection, origin: int) -> tuple[Range, ...]:
        """Ranges proven so far, oldest first, none touching another."""
        statement = "SELECT since, until, digest FROM proven WHERE origin = ? ORDER BY since"
        ranges = []
        for since, until, digest in ledger.execute(statement, (origin,)):
            if type(since) is not int or type(until) is not int or since >= until:
                raise _Damaged(f"a proven range is from {since!r:.40} to {until!r:.40}")
            if self._digest(f"{since} {until}") != digest:
                raise _Damaged(f"the proven range from {since} is not what was stored")
            ranges.append(Range(since, until))
        return tuple(ranges)

    def _believable(
        self, number: int, digest: bytes, time: int | None, copy: int, payload: bytes
    ) -> Kept:
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
        return Kept(Row(document, origin), digest, time, copy, payload)

    def _digest(self, facts: str, payload: bytes = b"") -> bytes:
        """What tells a damaged row, and one row from another. The origin is in it."""
        seal = self._sealed_by.copy()
        seal.update(f"{facts} ".encode() + payload)
        return seal.digest()

    def _prove(self, ledger: sqlite3.Connection, origin: int, new: Range) -> None:
        """Add a range, as one with those it overlaps or touches."""
        touched = [
            old
            for old in self._ranges(ledger, origin)
            if old.since <= new.until and new.since <= old.until
        ]
        union = Range(
            min(one.since for one in (new, *touched)), max(one.until for one in (new, *touched))
        )
        ledger.executemany(
            "DELETE FROM proven WHERE origin = ? AND since = ?",
            [(origin, old.since) for old in touched],
        )
        seal = self._digest(f"{union.since} {union.until}")
        ledger.execute("INSERT INTO proven VALUES (?, ?, ?, ?)", (origin, *union, seal))

    def _try(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run on the ledger; whatever is wrong with it costs a warning, never the read."""
        if self._off:
            return otherwise
        try:
            if not self._is_there():
                return otherwise
            mode: Literal["rw", "ro"] = "rw" if self._keep else "ro"
            with closing(caches.connect(self._path, mode)) as connection:
                connection.text_factory = bytes
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
            (self._set_aside if code in caches.DAMAGED else self._give_up)(str(error))
        return otherwise

    def _is_there(self) -> bool:
        """Whether there is a file to open; made where there is none, unless only read."""
        if self._keep:
            caches.make(self._path)
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
        target = caches.aside(self._path)
        try:
            if self._path.stat().st_ino != self._opened:
                return  # another process was faster; the next read finds what it made
            caches.move_companions(self._path, target)
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


def _decoded(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _number(ledger: sqlite3.Connection, statement: str, *values: object) -> int:
    return int(ledger.execute(statement, values).fetchone()[0])


def _forget(ledger: sqlite3.Connection, origin: int, proven: Range, newest_id: int) -> None:
    """Drop what a window held before it was read afresh; not what another process added since."""
    ledger.execute(
        "DELETE FROM fills WHERE origin = ? AND id <= ? AND time >= ? AND time < ?",
        (origin, newest_id, *proven),
    )


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
