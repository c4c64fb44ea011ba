"""Slices of a window, without an exchange: what they cost, and that nobody can tell them apart.

`read` is an exchange of values: requests are events in time that nobody waits for, so speed is
counted here, not measured.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from math import ceil, inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.fills.normalise import normalise
from statestore.fills.sources.slices import OVERLAP, Progress, Slices, one_order
from statestore.model import Batch
from statestore.simulated import fill
from statestore.times import NANOSECONDS, format_instant, parse_instant

HOUR = 3600 * NANOSECONDS
END = parse_instant("2025-11-21T00:00:00Z")
START = END - 72 * HOUR

Row = dict[str, Any]


@dataclass(frozen=True)
class Exchange:
    """The unknowns of the real one, each either way."""

    filter_by: str = "trade_time"
    inclusive: bool = False
    oldest_first: bool = False
    last_cursor: bool = False
    page_size: int = 250

    def chain(self, rows: list[tuple[int, Row]], since: int | None, until: int | None):
        """Yield the pages between two bounds; rows are sorted by the time that filters."""
        low, high = (bisect_left, bisect_right) if self.inclusive else (bisect_right, bisect_left)
        begin = 0 if since is None else low(rows, since, key=lambda row: row[0])
        end = len(rows) if until is None else high(rows, until, key=lambda row: row[0])
        wanted = [row for _, row in rows[begin:end]]
        if not self.oldest_first:
            wanted.reverse()
        pages = [wanted[at : at + self.page_size] for at in range(0, len(wanted), self.page_size)]
        if not pages or self.last_cursor:
            pages.append([])
        for number, page in enumerate(pages, 1):
            yield page, number < len(pages)


@dataclass(frozen=True)
class Done:
    rows: tuple[Any, ...]
    seconds: float
    requests: int
    told: list[Progress]


def read(
    rows: list[Row],
    exchange: Exchange | None = None,
    *,
    latency: float = 0.4,
    rate: int = 30,
    abreast: float | None = None,
    since: int | None = START,
    until: int | None = None,
    shuffled: random.Random | None = None,
) -> Done:
    """Read a window of the exchange at a rate; ``shuffled`` makes latencies differ by up to 5."""
    exchange = exchange or Exchange()
    timed = sorted(
        ((parse_instant(row[exchange.filter_by]), row) for row in rows), key=lambda pair: pair[0]
    )
    abreast = rate * latency if abreast is None else abreast
    slices = Slices(since, until, START if since is None else since, until or END)
    here, requests, told = 0.0, 0, []
    places = [-inf] * rate
    under_way: list[Any] = []
    while not slices.finished:
        while len(under_way) < ceil(1.15 * abreast) + 1 and (piece := slices.next()):
            piece.chain = piece.chain or exchange.chain(timed, piece.since, piece.until)
            at = max(here, heapq.heappop(places) + 1)
            heapq.heappush(places, at)
            requests += 1
            slower = shuffled.uniform(1, 5) if shuffled else 1.0
            heapq.heappush(under_way, (at + latency * slower, requests, piece))
        here, _, piece = heapq.heappop(under_way)
        slices.took(piece, next(piece.chain), abreast)
        told.append(slices.progress())
    return Done(slices.rows(), here, requests, told)


def row_at(number: int, at: int, posted_after: int = 2_000_000) -> Row:
    return {
        "entry_id": f"e{number}",
        "trade_time": format_instant(at),
        "sequence_timestamp": format_instant(at + posted_after),
    }


@cache
def shape(name: str, count: int = 100_000) -> list[Row]:
    rng = random.Random(name)
    burst = {"last hour": END - HOUR, "middle": START + 41 * HOUR, "first hour": START}
    if name in burst:
        at = [rng.randrange(START, END) for _ in range(count // 10)]
        at += [burst[name] + rng.randrange(HOUR) for _ in range(count - len(at))]
    else:
        at = [rng.randrange(START, END) for _ in range(count)]
    return [row_at(number, instant) for number, instant in enumerate(at)]


# What it costs


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("name", ["uniform", "last hour", "middle", "first hour"])
def test_a_hundred_thousand_fills_take_a_tenth_of_one_cursors_time(name, oldest_first):
    done = read(shape(name), Exchange(oldest_first=oldest_first), latency=0.4)

    assert 400 * 0.4 / done.seconds >= 10
    assert done.requests <= 460


@pytest.mark.parametrize("name", ["uniform", "middle"])
def test_at_a_tenth_of_a_second_a_page_the_rate_is_the_limit(name):
    done = read(shape(name), latency=0.1)

    assert 400 * 0.1 / done.seconds >= 2.7
    assert done.requests / 30 / done.seconds >= 0.9


@pytest.mark.parametrize(("count", "requests"), [(0, 1), (250, 1), (251, 2), (1000, 4)])
def test_a_small_window_costs_what_one_cursor_costs(count, requests):
    assert read(shape("uniform", count)).requests == requests


def test_a_guess_that_is_wrong_costs_a_few_requests():
    newest_second = [row_at(number, END - number * 1_000_000) for number in range(1, 301)]

    assert read(newest_second, rate=10, latency=0.15).requests <= 2 + 6
    assert read(newest_second, rate=30, latency=0.4).requests <= 2 + 16


def test_where_one_request_at_a_time_uses_the_rate_nothing_is_cut():
    assert read(shape("uniform", 20_000), rate=10, latency=0.1).requests == 80


def test_progress_never_falls_and_ends_at_one():
    told = [page.fraction for page in read(shape("middle", 20_000)).told]

    assert told == sorted(told)
    assert told[-1] == 1
    assert len(set(told)) > 20


def test_a_window_without_a_start_has_no_fraction():
    assert read(shape("uniform", 500), since=None).told[-1] == Progress(2, 500, None)


# That nobody can tell

exchanges = st.builds(
    Exchange,
    filter_by=st.sampled_from(["trade_time", "sequence_timestamp"]),
    inclusive=st.booleans(),
    oldest_first=st.booleans(),
    last_cursor=st.booleans(),
    page_size=st.integers(1, 5),
)
# Minutes of the window, some of them crowded, and when a fill was posted after its execution.
clusters = st.lists(
    st.tuples(
        st.integers(0, 72 * 60 - 1),
        st.lists(st.tuples(st.integers(0, 90), st.sampled_from([0, 2, 1500])), max_size=25),
    ),
    max_size=8,
)


@given(clusters, exchanges, st.floats(0.5, 30), st.randoms(use_true_random=False), st.booleans())
def test_the_rows_are_those_of_one_chain(found, exchange, abreast, rng, twice):
    rows = [
        row_at(number, START + minute * 60 * NANOSECONDS + second * NANOSECONDS, late * 1_000_000)
        for number, (minute, second, late) in enumerate(
            (minute, second, late) for minute, inside in found for second, late in inside
        )
    ]
    rows += rows[:3] if twice else []

    one = read(rows, exchange, abreast=0)
    many = read(rows, exchange, abreast=abreast, shuffled=rng)

    assert many.rows == one.rows
    assert len(many.rows) == sum(
        parse_instant(row[exchange.filter_by]) > START - exchange.inclusive for row in rows
    )


def test_windows_are_really_cut_in_these_tests():
    rows = shape("middle", 300)
    one = read(rows, Exchange(page_size=3), abreast=0)
    many = read(rows, Exchange(page_size=3), abreast=8, shuffled=random.Random(1))

    assert many.requests > one.requests == 100
    assert many.rows == one.rows


@pytest.mark.parametrize("inclusive", [False, True])
def test_a_fill_on_the_very_border_is_there_once(inclusive):
    window = Slices(START, END, START, END)
    piece = window.next()
    borders = [part.end for part in piece.cut(6, OVERLAP)]
    rows = [row_at(number, at) for number, at in enumerate(borders[:-1])]
    timed = sorted((parse_instant(row["trade_time"]), row) for row in rows)
    chains = []
    for part in piece.cut(6, OVERLAP):
        pages = Exchange(inclusive=inclusive).chain(timed, part.since, part.until)
        chains.append([row for page, _ in pages for row in page])

    assert sorted(row.payload["entry_id"] for row in one_order(chains)) == [
        row["entry_id"] for row in rows
    ]


def test_a_row_of_two_slices_is_one_and_a_row_given_twice_by_one_stays_two():
    a, b = fill("BUY 1 BTC-USD @ 1 id a"), fill("BUY 2 BTC-USD @ 1 id b")

    rows = one_order([[a, b, b], [dict(b), a]])

    assert [row.payload["entry_id"] for row in rows] == ["a", "b", "b"]
    assert normalise([Batch(rows, 1)]).duplicates == 1


def test_one_id_with_two_contents_stays_a_conflict():
    rows = one_order([[fill("BUY 1 BTC-USD @ 1 id a")], [fill("BUY 2 BTC-USD @ 1 id a")]])

    (rejected,) = normalise([Batch(rows, 1)]).rejected
    assert "another content (row 1 of 2025-11-18T04:00:00Z)" in rejected.reason


def test_a_row_says_where_it_stands_counted_from_the_newest():
    old, new = row_at(1, START), row_at(2, END)
    broken = {"entry_id": "e3", "trade_time": "yesterday"}

    rows = one_order([[old, broken], [new]])

    assert [row.origin for row in rows] == [
        "row 1 of 2025-11-21T00:00:00Z",
        "row 2 of 2025-11-18T00:00:00Z",
        "row 3",
    ]
