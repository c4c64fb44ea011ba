"""Bars in their file: exact, trimmed, and no loss when it is lost."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from decimal import Decimal

import pytest

from statestore.errors import BarsFailed
from statestore.runtime.bar_store import BarStore, Extent
from statestore.runtime.bars import TIMEFRAMES, Span
from tests.runtime.test_bars import HOUR, NOON, bar


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "bars.sqlite3"


@pytest.fixture
def store(path):
    return BarStore(path)


def series(count, *, until=NOON, tf="1h", **more):
    step = TIMEFRAMES[tf]
    return [bar(until - n * step, **more) for n in range(count, 0, -1)]


def test_digits_come_back_as_they_were_sent(store):
    kept = replace(
        bar(NOON, "0.000000001230", "67000.123456789012345678", "0.000000001230", "3.10"),
        volume=Decimal("1E-9"),
    )

    store.add("BTC", "1h", [kept])

    (found,) = store.bars("BTC", "1h")
    assert found == kept
    assert str(found.high) == "67000.123456789012345678"


def test_the_table_is_the_documented_one(store, path):
    store.add("BTC", "1h", [bar(NOON, volume=None)])

    with sqlite3.connect(path) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(bars)")]
        rows = database.execute("SELECT * FROM bars").fetchall()
    database.close()
    assert columns == ["symbol", "tf", "ts", "o", "h", "l", "c", "v", "source"]
    assert rows == [("BTC", "1h", NOON, "10", "12", "9", "11", None, "test")]


def test_the_same_bars_again_change_nothing_not_even_the_file(store, path):
    assert store.add("BTC", "1h", series(3)) == 3
    before = path.read_bytes()

    assert store.add("BTC", "1h", series(3)) == 0

    assert path.read_bytes() == before


def test_a_bar_that_was_restated_replaces_the_former(store):
    store.add("BTC", "1h", [bar(NOON, "10", "12", "9", "11")])

    assert store.add("BTC", "1h", [bar(NOON, "10", "13", "9", "12")]) == 1

    assert [one.high for one in store.bars("BTC", "1h")] == [13]


def test_the_newest_666_are_kept(store):
    store.add("BTC", "1h", series(666))
    store.add("BTC", "1h", [bar(NOON), bar(NOON + HOUR)])
    store.add("BTC", "1m", series(5, tf="1m"))

    assert store.extents()["BTC", "1h"] == Extent(666, NOON - 664 * HOUR, NOON + HOUR)
    assert store.extents()["BTC", "1m"].bars == 5


def test_replace_leaves_nothing_else(store):
    store.add("ALT", "1h", series(5))

    assert store.replace("ALT", "1h", series(3)) == 2

    assert store.bars("ALT", "1h") == series(3)


def test_ranges_that_touch_are_one_and_one_that_does_not_takes_over(store):
    first, second, far = (Span(n * HOUR, (n + 1) * HOUR) for n in (0, 1, 9))
    for span in (first, second):
        store.add("BTC", "1h", [], answered=span, by="a")

    assert store.answered("BTC", "1h", "a") == Span(0, 2 * HOUR)

    store.add("BTC", "1h", [], answered=far, by="a")
    assert store.answered("BTC", "1h", "a") == far


def test_what_one_source_does_not_have_another_may(store):
    store.add("BTC", "1h", [], answered=Span(0, HOUR), by="a")

    assert store.answered("BTC", "1h", "b") is None


def test_a_bar_between_two_is_refused(store):
    with pytest.raises(ValueError, match="no instant at which a bar of 1h opens"):
        store.add("BTC", "1h", [bar(NOON + 1)])


@pytest.mark.parametrize(
    "damage",
    [b"this was a database once", b"SQLite format 3\0" + b"\xff" * 9_000],
    ids=["other bytes", "damaged"],
)
def test_a_damaged_store_is_moved_aside_and_begun_anew(store, path, damage, caplog):
    path.parent.mkdir()
    path.write_bytes(damage)

    assert store.bars("BTC", "1h") == []

    (aside,) = path.parent.glob("bars.sqlite3.corrupt-*")
    assert aside.read_bytes() == damage
    assert "moved aside" in caplog.text


def test_a_store_that_somebody_else_began_anew_is_not_moved_aside(store, path):
    store.add("BTC", "1h", series(3))
    stands_for = path.stat().st_ino

    store._set_aside(stands_for + 1, "it was damaged when it was opened")

    assert len(store.bars("BTC", "1h")) == 3
    assert list(path.parent.glob("*.corrupt-*")) == []


def test_a_number_that_is_none_condemns_the_store(store, path):
    store.add("BTC", "1h", series(3))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE bars SET c = 'nan'")
    database.close()

    assert store.bars("BTC", "1h") == []
    assert len(list(path.parent.glob("bars.sqlite3.corrupt-*"))) == 1


def test_the_database_of_another_program_is_left_alone(store, path):
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = path.read_bytes()

    with pytest.raises(BarsFailed, match="database of another program"):
        store.bars("BTC", "1h")

    assert path.read_bytes() == before


def test_a_later_format_says_what_to_do(store, path):
    store.add("BTC", "1h", series(1))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()

    with pytest.raises(BarsFailed, match=r"format 9.*delete it"):
        BarStore(path).bars("BTC", "1h")


def test_a_folder_in_its_place_is_an_error(tmp_path):
    with pytest.raises(BarsFailed, match="no regular file"):
        BarStore(tmp_path).bars("BTC", "1h")


def test_many_threads_lose_nothing(path):
    def add(symbol):
        for one in series(20):
            BarStore(path).add(symbol, "1h", [one])

    threads = [threading.Thread(target=add, args=(symbol,)) for symbol in "ABCD"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {extent.bars for extent in BarStore(path).extents().values()} == {20}
    assert len(BarStore(path).extents()) == 4
