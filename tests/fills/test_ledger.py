"""The fill ledger: what is fetched, what is kept, what is believed, and that it is never wrong."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.errors import ExchangeError
from statestore.fills.decoding import decode_json, encode_json
from statestore.fills.ledger import SETTLED, LedgerSource
from statestore.fills.normalise import normalise
from statestore.model import Balances, Batch, Normalised, Product, Row
from statestore.simulated import fill, fills
from statestore.times import NANOSECONDS, format_instant, parse_instant

START = parse_instant("2025-11-18T04:00:00Z")
MINUTE = 60 * NANOSECONDS
HOUR = 60 * MINUTE

Payload = Mapping[str, object]


class Exchange:
    """A source in memory: fills with the time they are posted at, and a clock.

    ``asked`` are the reads as they came; ``broken`` makes the next ones fail.
    """

    name = "exchange.test"

    def __init__(self, *rows: Payload, hours: float = 24) -> None:
        self.rows: list[tuple[int, Payload]] = [(0, row) for row in rows]
        self.clock = START + int(hours * HOUR)
        self.asked: list[tuple[int, int | None]] = []
        self.broken = False

    def post(self, text: str, *, at: int, posted: int = 0, **fields: object) -> None:
        row = fill(f"{text} at {format_instant(at)}", **fields)
        self.rows.append((posted, row))

    def fills(self, since: int, until: int | None) -> Batch:
        self.asked.append((since, until))
        if self.broken:
            raise ExchangeError("the line went dead")
        wanted = [
            row
            for posted, row in self.rows
            if posted <= self.clock and _within(row, since, self.clock if until is None else until)
        ]
        rows = tuple(Row(row, f"page 1 row {n}") for n, row in enumerate(reversed(wanted), 1))
        return Batch(rows, 1, exhausted=since <= START)

    def balances(self) -> Balances | None:
        return Balances({"BTC": Decimal(len(self.rows))})

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        return {name: Product(name, "BTC", "USD") for name in product_ids}


def _within(row: Payload, since: int, until: int) -> bool:
    try:
        return since <= parse_instant(str(row["trade_time"])) < until
    except ValueError:
        return True


def minutes(*texts: str) -> list[dict[str, object]]:
    return fills(*texts, start=START)


ROWS = minutes("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200", "SELL 1 BTC-USD @ 300")


class Reader:
    """A `LedgerSource` a process long: a new one for each read, as each run makes one."""

    def __init__(self, exchange: Exchange, path: Path, **options: Any) -> None:
        self.exchange = exchange
        self.path = path
        self.portfolio = "p1"
        self.keep = True
        self.told: list[str] = []
        vars(self).update(options)

    def source(self) -> LedgerSource:
        return LedgerSource(
            self.exchange,
            self.path,
            self.portfolio,
            clock=lambda: self.exchange.clock,
            warn=self.told.append,
            keep=self.keep,
        )

    def __call__(self, since: int = START, until: int | None = None) -> Batch:
        return self.source().fills(since, until)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(*ROWS)


@pytest.fixture
def read(exchange: Exchange, tmp_path: Path) -> Reader:
    return Reader(exchange, tmp_path / "fills.sqlite3")


def meaning(batch: Batch) -> tuple[object, ...]:
    """What a batch says, wherever its rows stand."""
    read: Normalised = normalise([batch])
    return (
        tuple(replace(one, origin="") for one in read.fills),
        sorted((one.entry_id, one.reason.partition(" (")[0]) for one in read.rejected),
        read.duplicates,
        read.skipped,
        read.skipped_products,
        batch.exhausted,
    )


def same_as_plainly(read: Reader, since: int = START, until: int | None = None) -> bool:
    through = meaning(read(since, until))
    return through == meaning(read.exchange.fills(since, until))


# What is fetched


def test_the_second_read_fetches_the_last_hour_only(read: Reader, exchange: Exchange) -> None:
    first = read()
    second = read()

    assert meaning(first) == meaning(second)
    assert len(normalise([second]).fills) == 3
    assert exchange.asked == [(START, None), (exchange.clock - SETTLED, None)]
    assert (first.pages, second.pages) == (1, 1)


def test_a_window_that_is_proven_asks_nothing(read: Reader, exchange: Exchange) -> None:
    read()
    batch = read(START + MINUTE, START + 2 * MINUTE)

    assert len(exchange.asked) == 1
    assert batch.pages == 0
    assert [one.price for one in normalise([batch]).fills] == [200]


def test_a_hole_is_fetched_and_nothing_else(read: Reader, exchange: Exchange) -> None:
    read(START, START + HOUR)
    read(START + 5 * HOUR, START + 6 * HOUR)
    exchange.asked.clear()
    read(START, START + 6 * HOUR)

    assert exchange.asked == [(START + HOUR, START + 5 * HOUR)]
    exchange.asked.clear()
    read(START, START + 6 * HOUR)
    assert exchange.asked == []


def test_reading_older_asks_for_what_that_adds(read: Reader, exchange: Exchange) -> None:
    read(START + 10 * HOUR)
    read(START + 8 * HOUR, START + 10 * HOUR)
    exchange.asked.clear()
    read(START + 6 * HOUR)

    assert exchange.asked == [
        (START + 6 * HOUR, START + 8 * HOUR),
        (exchange.clock - SETTLED, None),
    ]
    proven = query(read.path, "SELECT since, until FROM proven")
    assert proven == [(START + 6 * HOUR, exchange.clock - SETTLED)]


def test_what_a_source_gives_beyond_the_window_is_kept_and_not_returned(
    read: Reader, exchange: Exchange
) -> None:
    exact = exchange.fills
    exchange.fills = lambda _since, _until: exact(START, None)  # type: ignore[method-assign]
    batch = read(START + MINUTE, START + 2 * MINUTE)

    assert [one.price for one in normalise([batch]).fills] == [200]
    assert query(read.path, "SELECT count(*) FROM fills") == [(3,)]


def test_a_read_that_fails_proves_nothing(read: Reader, exchange: Exchange) -> None:
    exchange.broken = True
    with pytest.raises(ExchangeError):
        read()
    exchange.broken = False

    assert same_as_plainly(read)
    assert exchange.asked[1] == (START, None)


def test_a_fill_that_is_posted_late_is_found_in_a_window_of_the_past_as_well(
    read: Reader, exchange: Exchange
) -> None:
    executed = exchange.clock - 55 * MINUTE
    exchange.post("BUY 7 BTC-USD @ 100", at=executed, posted=exchange.clock + MINUTE)
    read()
    exchange.clock += 2 * MINUTE

    assert len(read(START, executed + 1).rows) == 4


def test_a_fill_that_is_posted_late_is_found(read: Reader, exchange: Exchange) -> None:
    executed = exchange.clock - 30 * MINUTE
    exchange.post("BUY 7 BTC-USD @ 100", at=executed, posted=exchange.clock + MINUTE)
    assert len(read().rows) == 3
    exchange.clock += 20 * HOUR

    assert len(read().rows) == 4
    assert same_as_plainly(read)


def test_a_range_claims_nothing_past_the_clock_that_is_behind(
    read: Reader, exchange: Exchange
) -> None:
    exchange.clock = time.time_ns() + 365 * 24 * HOUR
    before = time.time_ns()
    read()
    (until,) = query(read.path, "SELECT until FROM proven")[0]

    assert before - SETTLED <= until <= time.time_ns() - SETTLED


def test_a_range_from_the_future_is_not_believed(read: Reader, exchange: Exchange) -> None:
    read()
    future = time.time_ns() + 24 * HOUR
    source = read.source()
    with sqlite3.connect(read.path) as ledger:
        seal = source._file._digest(f"{START} {future}")
        ledger.execute("UPDATE proven SET until = ?, digest = ?", (future, seal))
    ledger.close()
    exchange.asked.clear()
    read()

    assert exchange.asked[0][0] <= time.time_ns() - SETTLED


def test_without_the_exchanges_clock_rows_are_kept_and_nothing_is_claimed(
    read: Reader, exchange: Exchange
) -> None:
    def no_clock() -> int:
        raise ExchangeError("503")

    source = read.source()
    source._clock = no_clock

    assert meaning(source.fills(START, None)) == meaning(exchange.fills(START, None))
    assert query(read.path, "SELECT count(*) FROM fills") == [(3,)]
    assert query(read.path, "SELECT * FROM proven") == []


def test_balances_and_products_are_asked_each_time(read: Reader, exchange: Exchange) -> None:
    read()
    source = read.source()

    assert source.balances() == exchange.balances()
    assert source.products(["BTC-USD"]) == exchange.products(["BTC-USD"])
    assert source.name == "exchange.test"


# What is kept


def test_numbers_come_back_to_the_last_digit(read: Reader, exchange: Exchange) -> None:
    exact = {"size": Decimal("1.000E-7"), "price": Decimal("100.10"), "more": [1, 2**70, None, "é"]}
    exchange.rows = [(0, fill("BUY 1 BTC-USD @ 100") | exact)]
    read()
    row = next(iter(read(START, START + HOUR).rows))

    assert row.payload == exchange.rows[0][1]
    assert str(row.payload["price"]) == "100.10"
    assert exchange.asked == [(START, None)]


@given(
    st.decimals(allow_nan=False, allow_infinity=False)
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]))
)
def test_what_is_encoded_decodes_to_the_same_digits(value: object) -> None:
    again = decode_json(encode_json({"a": value}))

    assert isinstance(again, dict)
    if isinstance(value, Decimal) and isinstance(again["a"], Decimal):
        assert again["a"].as_tuple() == value.as_tuple()
    assert again["a"] == value


@pytest.mark.parametrize(
    "bad",
    [
        {"side": "SIDEWAYS"},
        {"side": "", "entry_id": "", "trade_id": ""},
        {"trade_time": "yesterday"},
        {"trade_time": None, "entry_id": None},
        {"trade_time": "9999-12-31T23:59:59Z"},
        {"price": {"value": "100"}},
    ],
)
def test_a_row_that_is_rejected_is_rejected_again(
    read: Reader, exchange: Exchange, bad: dict[str, object]
) -> None:
    exchange.rows[1] = (0, dict(ROWS[1]) | bad)
    first = read()
    again = read()

    assert len(again.rows) == len(first.rows)
    assert meaning(again) == meaning(first)
    if bad != {"trade_time": "9999-12-31T23:59:59Z"}:
        assert len(normalise([again]).rejected) == 1


def test_an_entry_id_with_another_content_stays_a_conflict(
    read: Reader, exchange: Exchange
) -> None:
    exchange.rows = []
    exchange.post("BUY 1 BTC-USD @ 100 ", at=exchange.clock - 10 * MINUTE, entry_id="e1")
    read()
    exchange.rows = []
    exchange.post("BUY 1 BTC-USD @ 101 ", at=exchange.clock - 10 * MINUTE, entry_id="e1")
    for _ in range(2):
        source = read.source()
        (conflict,) = normalise([source.fills(START, None)]).rejected
        assert "read before with another content" in conflict.reason
        assert source.afresh() is not None


def test_a_row_that_comes_twice_in_one_answer_counts_twice_and_what_is_kept_does_not(
    read: Reader, exchange: Exchange
) -> None:
    exchange.clock = START + 30 * MINUTE  # none of it is settled
    exchange.rows.append(exchange.rows[0])

    assert [normalise([read()]).duplicates for _ in range(3)] == [1, 1, 1]
    assert len(normalise([read()]).fills) == 3


def test_an_answer_whose_keys_come_in_another_order_is_the_same(
    read: Reader, exchange: Exchange
) -> None:
    exchange.clock = START + 30 * MINUTE
    read()
    exchange.rows = [(0, dict(reversed(row.items()))) for _, row in exchange.rows]

    assert normalise([read()]).duplicates == 0
    assert query(read.path, "SELECT count(*) FROM fills") == [(3,)]


@pytest.mark.parametrize("other", [{"portfolio": "p2"}, {"exchange": "elsewhere.test"}])
def test_two_portfolios_and_two_exchanges_never_mix(
    read: Reader, tmp_path: Path, other: dict[str, str]
) -> None:
    read()
    empty = Exchange()
    empty.name = other.get("exchange", "exchange.test")
    second = Reader(empty, read.path, portfolio=other.get("portfolio", "p1"))

    assert second().rows == ()
    assert second().rows == ()
    assert empty.asked[0] == (START, None)
    assert len(read().rows) == 3


def test_a_new_ledger_is_for_its_owner_and_leaves_one_file(read: Reader) -> None:
    read()

    assert stat.S_IMODE(read.path.stat().st_mode) == 0o600
    assert [path.name for path in read.path.parent.iterdir()] == ["fills.sqlite3"]


def test_reading_afresh_replaces_what_the_window_held(read: Reader, exchange: Exchange) -> None:
    read()
    exchange.rows[1] = (0, dict(ROWS[1]) | {"price": "222"})
    exchange.post("BUY 5 BTC-USD @ 100", at=START + HOUR)
    source = read.source()
    assert len(source.fills(START, None).rows) == 3
    fresh = source.afresh()
    assert fresh is not None

    assert meaning(fresh.fills(START, None)) == meaning(exchange.fills(START, None))
    assert same_as_plainly(read)
    assert fresh.afresh() is None
    assert read.told == []


def test_what_was_not_remembered_cannot_be_read_afresh(read: Reader) -> None:
    source = read.source()
    source.fills(START, None)

    assert source.afresh() is None


def test_reading_afresh_keeps_what_another_run_added_meanwhile(
    read: Reader, exchange: Exchange
) -> None:
    read()
    source = read.source()
    source.fills(START, None)
    fresh = source.afresh()
    assert fresh is not None
    honest = exchange.fills

    def slow(since: int, until: int | None) -> Batch:
        answer = honest(since, until)
        exchange.fills = honest  # type: ignore[method-assign]
        exchange.post("BUY 9 BTC-USD @ 100", at=exchange.clock - 2 * HOUR)
        other = read.source()  # another run, that starts later and ends earlier
        other.fills(START, None)
        afresh = other.afresh()
        assert afresh is not None
        afresh.fills(START, None)
        return answer

    exchange.fills = slow  # type: ignore[method-assign]
    fresh.fills(START, None)

    assert len(read().rows) == 4
    assert same_as_plainly(read)
    assert read.told == []


# Any sequence of reads

_texts = st.sampled_from(["BUY 1 BTC-USD @ 100", "SELL 2 BTC-USD @ 90", "BUY 0 BTC-USD @ 1"])
_spoilt = st.sampled_from([{}, {}, {}, {"side": "?"}, {"entry_id": "", "side": ""}, {"id": "x"}])
_moments = st.integers(0, 600)
_rows = st.lists(st.tuples(_texts, _moments, st.integers(0, 55), _spoilt), max_size=12)
_reads = st.lists(
    st.tuples(st.integers(0, 120), _moments, st.none() | st.integers(1, 300), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(max_examples=250, deadline=None)
@given(_rows, _reads)
def test_any_reads_through_the_ledger_are_as_read_plainly(
    rows: Sequence[tuple[str, int, int, dict[str, object]]],
    reads: Sequence[tuple[int, int, int | None, bool]],
) -> None:
    exchange = Exchange(hours=1)
    for number, (text, moment, late, spoilt) in enumerate(rows):
        at = START + moment * MINUTE
        exchange.post(f"{text}.{number}", at=at, posted=at + late * MINUTE, **spoilt)
    with tempfile.TemporaryDirectory() as folder:
        read = Reader(exchange, Path(folder) / "fills.sqlite3")
        for passed, since, length, keep in reads:
            exchange.clock += passed * MINUTE
            read.keep = keep
            begin = START + since * MINUTE
            end = None if length is None else begin + length * MINUTE
            assert same_as_plainly(read, begin, end)
        assert read.told == []


# Reading only


def test_a_dry_run_changes_nothing_and_uses_what_there_is(read: Reader, exchange: Exchange) -> None:
    read()
    before = snapshot(read.path.parent)
    read.keep = False
    batch = read()

    assert meaning(batch) == meaning(exchange.fills(START, None))
    assert exchange.asked[1][0] == exchange.clock - SETTLED
    assert snapshot(read.path.parent) == before


def test_a_dry_run_makes_no_ledger(read: Reader) -> None:
    read.keep = False
    read()

    assert list(read.path.parent.iterdir()) == []


def test_a_dry_run_leaves_an_unfinished_write_to_the_next_run(
    read: Reader, exchange: Exchange, tmp_path: Path
) -> None:
    for number in range(3000):
        exchange.post(f"BUY {number + 1} BTC-USD @ 1", at=exchange.clock - 2 * HOUR)
    read()
    writer = sqlite3.connect(read.path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the end
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE fills SET payload = 'torn'")
    killed = tmp_path / "killed"
    killed.mkdir()
    for left in tmp_path.glob("fills.sqlite3*"):
        shutil.copy(left, killed)
    writer.close()
    after = Reader(exchange, killed / "fills.sqlite3", keep=False)
    before = snapshot(killed)

    assert (killed / "fills.sqlite3-journal").exists()
    assert same_as_plainly(after)
    assert snapshot(killed) == before
    assert len(after.told) == 1
    after.keep = True
    assert same_as_plainly(after)
    assert len(after.told) == 1


def test_a_dry_run_does_without_a_ledger_in_wal_mode_and_another_run_ends_that(
    read: Reader,
) -> None:
    read()
    query(read.path, "PRAGMA journal_mode = WAL")
    before = snapshot(read.path.parent)
    read.keep = False

    assert same_as_plainly(read)
    assert snapshot(read.path.parent) == before
    read.keep = True
    assert same_as_plainly(read)
    assert query(read.path, "PRAGMA journal_mode") == [("delete",)]
    assert len(read.told) == 1


@pytest.mark.parametrize("keep", [False, True])
def test_a_dry_run_leaves_a_damaged_ledger_where_it_is(read: Reader, keep: bool) -> None:
    read.path.write_bytes(b"no database" * 1000)
    read.keep = keep
    before = snapshot(read.path.parent)

    assert same_as_plainly(read)
    assert (snapshot(read.path.parent) == before) is not keep
    assert len(read.told) == 1


# Damage, and what cannot be used


def query(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    ledger = sqlite3.connect(path)
    try:
        with ledger:
            return ledger.execute(statement, values).fetchall()
    finally:
        ledger.close()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (content, status.st_mtime_ns, status.st_ino)
    return found


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(40_000))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def one_digit(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"price":"200"') == 1
    path.write_bytes(content.replace(b'"price":"200"', b'"price":"900"'))


def other_time(path: Path) -> None:
    query(path, "UPDATE fills SET time = time + 1")


def time_of_another_type(path: Path) -> None:
    query(path, "UPDATE fills SET time = 'noon' WHERE id = 1")
    query(path, "UPDATE fills SET time = NULL WHERE id = 2")


def other_portfolio(path: Path) -> None:
    Reader(Exchange(*ROWS), path, portfolio="p2")()
    query(path, "DELETE FROM origins WHERE portfolio = 'p1'")
    query(path, "UPDATE origins SET portfolio = 'p1'")


def longer_range(path: Path) -> None:
    query(path, "UPDATE proven SET until = until + 1")


def whole_since_a_text(path: Path) -> None:
    query(path, "UPDATE origins SET whole_since = 'ever'")


def no_table(path: Path) -> None:
    query(path, "DROP TABLE proven")


def newer(path: Path) -> None:
    query(path, "PRAGMA user_version = 2")


@pytest.mark.parametrize(
    "damage",
    [
        garbage,
        torn,
        overwritten,
        one_digit,
        other_time,
        time_of_another_type,
        other_portfolio,
        longer_range,
        whole_since_a_text,
        no_table,
        newer,
    ],
)
def test_a_damaged_ledger_is_moved_aside_and_fetched_again(
    read: Reader, exchange: Exchange, damage: Any
) -> None:
    read()
    damage(read.path)
    damaged = read.path.read_bytes()
    (read.path.parent / "fills.sqlite3-wal").touch()

    assert same_as_plainly(read)
    (told,) = read.told
    (aside,) = read.path.parent.glob("fills.sqlite3.corrupt-*Z")
    assert aside.name in told
    assert aside.read_bytes() == damaged
    assert Path(f"{aside}-wal").exists()
    assert same_as_plainly(read)
    assert len(read.told) == 1


def test_the_database_of_another_program_is_left_alone(read: Reader) -> None:
    query(read.path, "CREATE TABLE candles (price)")
    before = read.path.read_bytes()

    assert same_as_plainly(read)
    assert read.path.read_bytes() == before
    assert "another program" in read.told[0]


def test_an_empty_file_becomes_a_ledger(read: Reader) -> None:
    read.path.touch()

    assert same_as_plainly(read)
    assert same_as_plainly(read)
    assert read.told == []


@pytest.mark.parametrize("what", ["folder", "fifo", "no folder"])
def test_what_cannot_be_a_ledger_is_done_without(read: Reader, what: str) -> None:
    if what == "folder":
        read.path.mkdir()
    elif what == "fifo":
        os.mkfifo(read.path)
    else:
        read.path = read.path.parent / "missing" / "fills.sqlite3"

    assert same_as_plainly(read)
    assert len(read.told) == 1
    assert "--no-ledger" in read.told[0]


def test_a_ledger_that_others_hold_is_done_without(
    read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.caches._LOCKED_FOR", 0.01)
    read()
    holder = sqlite3.connect(read.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    assert same_as_plainly(read)
    assert "locked" in read.told[0]
    holder.close()
    assert same_as_plainly(read)
    assert len(read.told) == 1


def test_a_full_disk_is_done_without(read: Reader, exchange: Exchange) -> None:
    read()
    for number in range(500):
        exchange.post(f"BUY {number + 1} BTC-USD @ 1", at=exchange.clock - MINUTE)
    program = (
        "import resource, sys, pathlib\n"
        "from tests.fills import test_ledger as t\n"
        "path = pathlib.Path(sys.argv[1]); exchange = t.Exchange(*t.ROWS)\n"
        "at = exchange.clock - t.MINUTE\n"
        "for n in range(500): exchange.post(f'BUY {n + 1} BTC-USD @ 1', at=at)\n"
        "size = path.stat().st_size; resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "read = t.Reader(exchange, path); assert t.same_as_plainly(read); print(read.told)"
    )
    ran = run_python(program, read.path)

    assert "cannot be used" in ran
    assert same_as_plainly(read)
    assert read.told == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_done_without(read: Reader) -> None:
    read.path.parent.chmod(0o500)
    try:
        assert same_as_plainly(read)
    finally:
        read.path.parent.chmod(0o700)
    assert len(read.told) == 1


# Several processes, and kills


def run_python(program: str, *arguments: object) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Reads windows of a week of fills for as long as it lives, each through a ledger of its own run.
BUSY = """
import random, sys, pathlib
from tests.fills import test_ledger as t
exchange = t.week()
chance = random.Random(int(sys.argv[2]))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    read = t.Reader(exchange, pathlib.Path(sys.argv[1]))
    since = t.START + chance.randrange(0, 167) * t.HOUR
    until = chance.choice([None, since + t.HOUR, since + 24 * t.HOUR])
    batch = read(since, until)
    assert t.meaning(batch) == t.meaning(exchange.fills(since, until)), (since, until)
    assert not read.told, read.told
    if chance.random() < 0.2:
        source = read.source(); source.fills(since, until); fresh = source.afresh()
        if fresh: fresh.fills(since, until)
"""


def week() -> Exchange:
    exchange = Exchange(hours=168)
    for number in range(1000):
        exchange.post(f"BUY {number + 1} BTC-USD @ 1", at=START + number * 10 * MINUTE)
    return exchange


def test_processes_on_one_ledger_are_all_right(tmp_path: Path) -> None:
    path = tmp_path / "fills.sqlite3"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, path, str(seed), "25"],
            stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
        )
        for seed in range(3)
    ]
    ended = [process.communicate(timeout=120) for process in running]

    assert [process.returncode for process in running] == [0, 0, 0], ended
    read = Reader(week(), path)
    assert same_as_plainly(read)
    assert read.told == []


def test_a_kill_at_any_moment_leaves_a_ledger_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "fills.sqlite3"
    chance = random.Random(7)
    for seed in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", BUSY, path, str(seed), "1000"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.15)
        process.kill()
        process.communicate()
        copied = tmp_path / f"after-{seed}"
        copied.mkdir()
        for left in tmp_path.glob("fills.sqlite3*"):
            shutil.copy(left, copied)
        read = Reader(week(), copied / path.name)
        assert same_as_plainly(read, START, START + 168 * HOUR)
        assert read.told == []
        assert query(copied / path.name, "PRAGMA integrity_check") == [("ok",)]
