"""What a save may cost: calls of the system, memory and descriptors, counted and never timed."""

import gc
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from statestore.disk import codec, durable, reading, single_sync, store
from statestore.disk.store import StateStore
from statestore.errors import RevisionConflict

CALLS = ("open", "read", "write", "fsync", "stat", "lstat", "fstat", "link", "replace", "unlink")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def calls(monkeypatch):
    """The names of the system calls since the last `clear`."""
    monkeypatch.setattr(store, "path_guard", None)  # which looks at every folder above
    made = []
    for name in CALLS:
        original = getattr(os, name)

        def call(*args, _name=name, _original=original, **kwargs):
            made.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return made


def saved_twice(path, **options):
    bot = StateStore(path, **options)
    state = bot.load()
    for number in (1, 2):
        state["n"] = number
        bot.save(state)
    return bot, state


def test_a_save_makes_no_call_it_does_not_need(path, calls):
    bot, state = saved_twice(path)
    state["n"] = 3
    calls.clear()

    bot.save(state)

    assert calls == [
        *("lstat", "stat"),  # is the lock file still ours, and the state file what we saw
        *("open", "stat", "write", "fsync"),
        *("link", "replace", "replace"),
        *("fstat", "open", "fsync"),
    ]


def test_a_large_state_is_on_its_way_to_the_disk_while_its_sum_is_computed(path, monkeypatch):
    bot, state = saved_twice(path)
    order, seal = [], codec.seal
    monkeypatch.setattr(single_sync, "start_writing", lambda _file: order.append("write out"))
    monkeypatch.setattr(codec, "seal", lambda *args: order.append("sum") or seal(*args))

    for size in (1_000, 300_000):
        state["note"] = "x" * size
        meta = bot.save(state)

        assert StateStore(path).load().meta == meta

    assert order == ["sum", "write out", "sum"]


def test_changed_is_one_stat(path, calls):
    bot, _ = saved_twice(path)
    calls.clear()

    assert not bot.changed()
    assert calls == ["stat"]


def test_a_reader_that_came_late_enough_polls_with_one_stat(path, calls, monkeypatch):
    saved_twice(path)
    monkeypatch.setattr(reading, "_CLOCK_TICK_NS", -1)
    reader = StateStore(path)
    reader.load()
    calls.clear()

    assert not reader.changed()
    assert calls == ["stat"]


def test_a_section_that_stands_still_is_not_encoded_again(path, monkeypatch):
    bot, state = saved_twice(path)
    state["events"] = [{"at": 1.5, "what": "fill"}] * 50
    for number in range(3):
        state["n"] = number
        bot.save(state)
    encoded, original = [], codec._text
    monkeypatch.setattr(codec, "_text", lambda value: encoded.append(value) or original(value))

    state["n"] = "new"
    bot.save(state)

    assert encoded == ["new"]


def test_no_save_has_the_time_of_the_one_before(path):
    bot, state = saved_twice(path, durability="relaxed")
    times = []
    for number in range(200):  # many to a tick of the clock
        state["n"] = number
        bot.save(state)
        times.append(path.stat().st_mtime_ns)

    assert times == sorted(set(times))


@pytest.mark.parametrize("ahead_ns", [0, 1, 5_000_000])
def test_the_time_of_a_file_from_the_near_future_is_exceeded(path, ahead_ns):
    path.write_bytes(b"old")
    durable.replace_file(path, b"new")
    clock = path.stat().st_mtime_ns + ahead_ns
    os.utime(path, ns=(clock, clock))

    durable.replace_file(path, b"newer")

    assert path.stat().st_mtime_ns > clock


def test_a_writer_notices_a_save_that_came_with_its_own_inode_and_size(path):
    """An inode number is used again, so of three saves in a tick only the time tells."""
    ours, state = saved_twice(path, durability="relaxed")
    seen = path.stat().st_ino
    theirs = StateStore(path, durability="relaxed")
    other = theirs.load()
    for number in range(9, 0, -1):
        other["n"] = number
        theirs.save(other)
        if path.stat().st_ino == seen:
            break

    assert ours.changed()
    with pytest.raises(RevisionConflict):
        ours.save(state)


def test_on_a_file_system_with_a_coarse_clock_a_save_is_compared_by_content(path, monkeypatch):
    real = reading._signature
    second = 1_000_000_000
    monkeypatch.setattr(
        reading,
        "_signature",
        lambda status: (*real(status)[:3], *(t // second * second for t in real(status)[3:])),
    )
    bot, _ = saved_twice(path)
    assert not bot.changed()

    path.write_bytes(path.read_bytes().replace(b'"n": 2', b'"n": 9'))

    assert bot.changed()


def test_a_store_that_is_gone_leaves_no_descriptor(path):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    saved_twice(path)
    gc.collect()
    before = descriptors()
    for _ in range(20):
        bot = StateStore(path)
        bot.save({**bot.load(), "n": 0})
    del bot
    gc.collect()

    assert descriptors() <= before


@pytest.mark.parametrize("keys", [1, 20])
def test_a_save_of_16_mb_takes_at_most_three_times_its_size(path, keys):
    rng = random.Random(1)
    bot = StateStore(path, durability="relaxed")
    state = bot.load()
    rows = 16_000_000 // 205 // keys
    for key in range(keys):
        state[f"events {key}"] = [
            {"id": rng.getrandbits(60), "at": "2025-11-20T10:00:00Z", "note": "x" * 100}
            for _ in range(rows)
        ]
    peaks = []
    tracemalloc.start()
    try:
        for number in range(3):  # the first, one with everything changed, one with little
            if number == 1:
                for key in range(keys):
                    state[f"events {key}"][0]["note"] = "changed"
            state["n"] = number
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            bot.save(state)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()

    size = path.stat().st_size
    assert size > 15_000_000
    assert max(peaks) <= 3 * size
    assert before <= 1.5 * size  # what the store remembers
