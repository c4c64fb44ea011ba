"""Reading side by side, through the real SDK and over real HTTPS: nobody can tell, nothing is left.

The fixture ``abreast`` makes the source cut its windows as if answers took long; waits are written
down, not waited, unless a test says otherwise.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from statestore import simulated
from statestore.errors import CredentialsError, ExchangeError, IncompleteRead, UsageError
from statestore.fills.normalise import normalise
from statestore.fills.sources import pace
from statestore.fills.sources.pace import Pace
from statestore.simulated import Fault, fill
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

NAP, CLOCK = pace.nap, pace.clock  # before the fixture replaces them
SINCE = parse_instant("2025-11-18T00:00:00Z")
HOUR = 3600 * NANOSECONDS
UNTIL = SINCE + 72 * HOUR


def crowd(exchange, count: int, seed: int = 1) -> None:
    """Put fills into a window, most of them into one hour."""
    rng = random.Random(seed)
    for number in range(count):
        start, width = (SINCE, 72 * HOUR) if number % 5 == 0 else (SINCE + 30 * HOUR, HOUR)
        at = format_instant(start + rng.randrange(width))
        exchange.add_fill(f"BUY {number + 1} BTC-USD @ 100 at {at} id e{number}")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fills"]


@pytest.fixture
def in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "nap", NAP)
    monkeypatch.setattr(pace, "clock", CLOCK)


@pytest.fixture
def one_cursor(monkeypatch: pytest.MonkeyPatch, make_source):
    """Read by one cursor, whatever else is patched."""

    def read(since, until):
        with monkeypatch.context() as patch:
            patch.setattr(Pace, "abreast", 0.0)
            return make_source().fills(since, until)

    return read


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10_000),
    page_size=st.integers(3, 9),
    filter_by=st.sampled_from(["trade_time", "sequence_timestamp"]),
    inclusive=st.booleans(),
    oldest_first=st.booleans(),
    last_cursor=st.booleans(),
    open_end=st.booleans(),
    faults=st.lists(
        st.sampled_from(
            [simulated.OK, simulated.EMPTY_PAGE, simulated.UNAVAILABLE, simulated.DROPPED]
            + [simulated.RATE_LIMITED, Fault(page_size=1), simulated.UNAUTHORIZED]
        ),
        max_size=4,  # one request may meet all of them, and is asked five times, after a 401 twice
        unique_by=id,
    ),
)
def test_the_rows_are_one_cursors_to_the_byte(
    exchange, make_source, one_cursor, abreast, seed, page_size, open_end, faults, **unknowns
):
    exchange._fills.clear()
    exchange._sorted = None
    crowd(exchange, 120, seed)
    for name, answer in {**unknowns, "page_size": page_size}.items():
        setattr(exchange, name, answer)
    until = None if open_end else UNTIL

    one = one_cursor(SINCE, until)
    exchange.script("fills", *faults)
    many = make_source().fills(SINCE, until)

    assert many.rows == one.rows
    assert len(many.rows) == 120
    assert normalise([many]) == normalise([one])
    assert many.pages > one.pages  # it was cut
    assert workers() == []


def test_fills_the_exchange_holds_twice_are_counted_as_by_one_cursor(
    exchange, make_source, one_cursor, abreast
):
    crowd(exchange, 100)
    for number in (3, 4, 50):
        exchange.add_fill(exchange._fills[number])
    exchange.page_size = 4

    one, many = one_cursor(SINCE, UNTIL), make_source().fills(SINCE, UNTIL)

    assert many.rows == one.rows
    assert normalise([many]).duplicates == normalise([one]).duplicates == 3


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (simulated.PROOF_REQUIRED, IncompleteRead, "second factor"),
        (simulated.REPEATED_CURSOR, IncompleteRead, "earlier page"),
        (simulated.NULL_FILLS, IncompleteRead, "no list of fills"),
        (simulated.FORBIDDEN, CredentialsError, "View permission"),
        (Fault(400, '{"message":"no such window"}'), ExchangeError, "no such window"),
    ],
)
def test_a_fault_in_one_slice_fails_the_read_and_nothing_goes_on(
    exchange, source, abreast, fault, error, said
):
    crowd(exchange, 300)
    exchange.page_size = 4
    exchange.script("fills", *[simulated.OK] * 25, fault, forever=True)

    with pytest.raises(error, match=said):
        source.fills(SINCE, UNTIL)

    assert workers() == []
    assert len(exchange.requests) < 26 + 50  # a few a slice, until one fails


def test_a_slice_that_stays_away_fails_the_read_after_its_attempts(exchange, make_source, abreast):
    crowd(exchange, 300)
    exchange.page_size = 4
    exchange.script("fills", *[simulated.OK] * 20, simulated.UNAVAILABLE, forever=True)

    with pytest.raises(ExchangeError, match=r"HTTP 503.*gave up after 3 attempts"):
        make_source(attempts=3).fills(SINCE, UNTIL)

    assert workers() == []


def test_a_bug_in_whoever_is_told_ends_the_threads_as_well(exchange, make_source, abreast):
    crowd(exchange, 300)
    exchange.page_size = 4

    def told(progress):
        if progress.pages == 20:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        make_source(on_page=told).fills(SINCE, UNTIL)

    assert workers() == []


def test_the_bound_on_pages_is_over_all_slices(exchange, make_source, abreast):
    crowd(exchange, 300)
    exchange.page_size = 4

    with pytest.raises(IncompleteRead, match=r"no end after 30 pages.*shorter window"):
        make_source(max_pages=30).fills(SINCE, UNTIL)

    assert len(exchange.requests) <= 30


def test_a_refusal_holds_all_threads(exchange, source, abreast):
    crowd(exchange, 300)
    exchange.page_size = 4
    exchange.script("fills", *[simulated.OK] * 20, simulated.rate_limited(7))
    seen: list[float] = []
    exchange.on_request = lambda _request: seen.append(pace.clock())

    assert len(source.fills(SINCE, UNTIL).rows) == 300
    gaps = [later - earlier for earlier, later in pairwise(sorted(seen))]
    assert sum(gap >= 6 for gap in gaps) == 1
    assert len(seen) - [gap >= 6 for gap in gaps].index(True) > 20  # all that came later


def test_a_storm_of_refusals_passes(exchange, source, abreast):
    crowd(exchange, 300)
    exchange.page_size = 4
    exchange.script("fills", *[simulated.OK, simulated.RATE_LIMITED] * 12)

    assert len(source.fills(SINCE, UNTIL).rows) == 300


def test_nothing_remaining_holds_the_next_request(exchange, source, naps):
    crowd(exchange, 3)
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4"}
    exchange.script("fills", Fault(headers=headers))

    source.fills(SINCE, UNTIL)
    source.balances()

    assert naps == [4.0]


def test_one_slow_page_loses_nothing(exchange, source, abreast):
    crowd(exchange, 200)
    exchange.page_size = 4
    exchange.script("fills", *[simulated.OK] * 9, simulated.slow(0.3))

    assert len(source.fills(SINCE, UNTIL).rows) == 200


def test_a_whole_read_takes_the_seconds_that_its_rate_asks_for(exchange, make_source, in_earnest):
    """Never sooner, on any machine; that no single second sees more is shown in test_pace.py."""
    crowd(exchange, 200)
    exchange.page_size, exchange.latency = 4, 0.15
    threads: set[int] = set()

    started = time.monotonic()
    rows = make_source(rate=30, on_page=lambda _page: threads.add(threading.active_count())).fills(
        SINCE, UNTIL
    )

    assert len(rows.rows) == 200
    assert len(exchange.requests) > 30
    assert exchange.requests[-1].at - started >= (len(exchange.requests) - 1) // 30
    assert max(threads) > 4  # side by side, by the latency it saw


def test_whoever_is_told_is_told_by_the_thread_that_called(exchange, make_source, abreast):
    crowd(exchange, 200)
    exchange.page_size = 4
    told = []

    make_source(on_page=lambda page: told.append((threading.get_ident(), page))).fills(SINCE, UNTIL)

    assert {thread for thread, _ in told} == {threading.get_ident()}
    assert [page.pages for _, page in told] == list(range(1, len(told) + 1))
    assert told[-1][1].fraction == 1


def test_a_window_that_is_one_page_needs_no_thread(exchange, make_source, abreast):
    crowd(exchange, 20)
    threads = []

    make_source(on_page=lambda _page: threads.append(workers())).fills(SINCE, UNTIL)

    assert threads == [[]]


def test_every_thread_reads_with_a_client_of_its_own(exchange, source, abreast, monkeypatch):
    import requests

    crowd(exchange, 300)
    exchange.page_size = 4
    inside: dict[int, int] = {}
    most = 0
    send = requests.Session.send

    def watched(session, *args, **kwargs):
        nonlocal most
        assert id(session) not in inside
        inside[id(session)] = threading.get_ident()
        most = max(most, len(inside))
        try:
            return send(session, *args, **kwargs)
        finally:
            del inside[id(session)]

    monkeypatch.setattr(requests.Session, "send", watched)
    source.fills(SINCE, UNTIL)

    assert most > 1
    assert {request.method for request in exchange.requests} == {"GET"}


@pytest.mark.parametrize("rate", [0, 31, 2.5])
def test_a_rate_the_exchange_does_not_allow_is_a_usage_error(make_source, rate):
    with pytest.raises(UsageError, match="from 1 to 30"):
        make_source(rate=rate)


def test_an_interrupt_ends_the_command_with_130_and_one_line(exchange, tmp_path):
    start = now() - 40 * HOUR
    for number in range(600):
        at = format_instant(start + number * HOUR // 20)
        exchange.add_fill(fill(f"BUY {number + 1} BTC-USD @ 100 at {at} id e{number}"))
    exchange.page_size, exchange.latency = 3, 0.3
    enough = threading.Event()
    exchange.on_request = lambda _request: len(exchange.requests) > 25 and enough.set()
    state = tmp_path / ".state.json"
    state.write_text('{"positions": {}}')

    command = subprocess.Popen(
        [sys.executable, "-m", "statestore", "rebuild", "--dry-run", "--rate", "30"]
        + ["--state", str(state)],
        env=os.environ | exchange.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert enough.wait(30)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)

    assert (command.returncode, out) == (130, "")
    assert err.lstrip() == "Interrupted; nothing further is written.\n"
