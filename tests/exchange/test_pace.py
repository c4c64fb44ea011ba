"""The pace of requests, on a clock of its own."""

from __future__ import annotations

import heapq
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import UsageError
from statestore.fills.sources import pace as pacing
from statestore.fills.sources.pace import Pace, Stopped, Turn

NEVER = threading.Event()
NAP, CLOCK = pacing.nap, pacing.clock  # before a test replaces them


class Line:
    """A line to the exchange: requests go out, arrive late, are answered."""

    def __init__(self, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = 100.0
        monkeypatch.setattr(pacing, "clock", lambda: self.here)
        monkeypatch.setattr(pacing, "nap", self.nap)
        self.pace = Pace(rate)
        self.under_way: list[tuple[float, int, Turn]] = []
        self.arrived: list[float] = []

    def nap(self, seconds: float, _stopping: threading.Event) -> None:
        until = self.here + seconds
        while self.under_way and self.under_way[0][0] <= until:
            self.answer()
        self.here = max(self.here, until)

    def answer(self) -> None:
        at, _, turn = heapq.heappop(self.under_way)
        self.here = max(self.here, at)
        self.pace.answered(turn)

    def send(self, there: float = 0.05, back: float = 0.05, most: int = 1_000) -> Turn:
        while len(self.under_way) >= most:
            self.answer()
        turn = self.pace.turn(NEVER)
        self.arrived.append(turn.at + there)
        heapq.heappush(self.under_way, (turn.at + there + back, len(self.arrived), turn))
        return turn

    def busiest_second(self) -> int:
        at = sorted(self.arrived)
        return max(sum(first <= other < first + 1 for other in at) for first in at)


@given(
    rate=st.integers(1, 30),
    delays=st.lists(
        st.tuples(st.floats(0.02, 0.17), st.floats(0.02, 0.6)), min_size=1, max_size=120
    ),
    most=st.integers(1, 40),
)
def test_no_second_sees_more_than_the_rate_however_late_requests_arrive(rate, delays, most):
    with pytest.MonkeyPatch.context() as monkeypatch:
        line = Line(rate, monkeypatch)
        line.pace._took.append(0.04)  # a quick one was seen before
        for there, back in delays:
            line.send(there, back, most)

        assert line.busiest_second() <= rate


@pytest.mark.parametrize("latency", [0.01, 0.1, 0.4, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("rate", [1, 10, 30])
def test_nine_tenths_of_the_rate_are_used_whatever_the_latency(rate, latency, monkeypatch):
    line = Line(rate, monkeypatch)
    line.pace._took.append(latency)
    turns = [line.send(latency / 2, latency / 2).at for _ in range(10 * rate + 1)]

    assert 10 * rate / (turns[-1] - turns[0]) >= 0.9 * rate


def test_a_refusal_stops_everyone_and_thins_out_what_follows(monkeypatch):
    line = Line(9, monkeypatch)
    turns = [line.send() for _ in range(3)]
    for turn in turns:
        line.pace.refused(turn, 7.0)  # of one storm: said once
    later = [line.send().at for _ in range(7)]

    assert later[0] == turns[0].at + 7
    assert later[5] - later[0] == 0
    assert later[6] - later[0] > 1


def test_the_rate_comes_back_after_a_while(monkeypatch):
    line = Line(3, monkeypatch)
    line.pace.refused(line.send(), 1.0)
    at = [line.send().at for _ in range(100)]

    assert sum(at[0] <= one < at[0] + 1 for one in at) == 2
    assert sum(at[-1] - 10 < one for one in at) >= 27


def test_a_hold_lasts_half_a_minute_at_most(monkeypatch):
    line = Line(5, monkeypatch)
    first = line.send()
    line.pace.refused(first, 86_400.0)

    assert line.send().at - first.at == pacing.LONGEST_HOLD


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({}, 0),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "5"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "5"}, 5),
        ({"x-ratelimit-remaining": "0"}, 1),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "86400"}, 30),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000000005"}, 5),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000000000.5"}, 0.5),
        ({"x-ratelimit-remaining": "nan", "x-ratelimit-reset": "inf"}, 0),
        ({"x-ratelimit-remaining": "-1"}, 0),
    ],
)
def test_headers_that_say_nothing_remains_hold_everyone(headers, waited, monkeypatch):
    line = Line(5, monkeypatch)
    monkeypatch.setattr(pacing.time, "time", lambda: 1_000_000_000.0)
    line.pace.heed(headers)

    assert line.send().at == 100 + waited


def test_a_read_that_ended_gets_no_turn():
    stopping = threading.Event()
    stopping.set()

    with pytest.raises(Stopped):
        Pace(5).turn(stopping)


def test_whoever_waits_is_woken_when_the_read_ends(monkeypatch):
    monkeypatch.setattr(pacing, "nap", NAP)
    monkeypatch.setattr(pacing, "clock", CLOCK)
    pace, stopping = Pace(1), threading.Event()
    pace.turn(stopping)
    ended: list[Exception] = []

    def wait() -> None:
        try:
            pace.turn(stopping)
        except Stopped as stopped:
            ended.append(stopped)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    stopping.set()
    for thread in waiting:
        thread.join(10)

    assert len(ended) == 3


@pytest.mark.parametrize("rate", [0, -1, 31, 2.5, True, "10", None])
def test_a_rate_is_a_whole_number_the_exchange_allows(rate):
    with pytest.raises(UsageError, match="from 1 to 30"):
        Pace(rate)


def test_the_latency_seen_tells_how_many_are_needed_at_once(monkeypatch):
    line = Line(30, monkeypatch)
    assert line.pace.abreast == 0
    for _ in range(60):
        line.send(0.2, 0.2, most=1)
    line.answer()

    assert 11.9 < line.pace.abreast < 12.1
    assert all(later > earlier for earlier, later in pairwise(line.arrived))
