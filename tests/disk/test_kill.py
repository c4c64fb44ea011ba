"""SIGKILL at any moment: what was acknowledged loads, and the next save leaves a clean folder.

Real processes and real files; a power cut is another matter (the page cache survives a kill).
"""

import os
import random
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from statestore.disk import durable
from statestore.disk.store import StateStore

KILLS = 200
CLEAN = ["state.json", "state.json.bak", "state.json.lock"]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    StateStore(tmp_path / "state.json").save({"n": 0, "filler": ["x" * 100] * 200})
    return tmp_path / "state.json"


def fork_writer(path):
    """Fork a child that saves in a loop and reports each revision once it is acknowledged."""
    reports, child_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(child_end)
        return pid, reports
    try:
        writer = StateStore(path)
        state = writer.load()
        while True:
            state["n"] += 1
            meta = writer.save(state)
            os.write(child_end, b"%d\n" % meta.revision)
    finally:
        os._exit(1)


def read_all(reports):
    chunks = []
    while chunk := os.read(reports, 65536):
        chunks.append(chunk)
    os.close(reports)
    return b"".join(chunks).split()


def test_an_acknowledged_save_survives_a_kill_at_any_moment(path):
    rng = random.Random(20251120)
    acknowledged = 1
    strays = 0

    for _ in range(KILLS):
        pid, reports = fork_writer(path)
        select.select([reports], [], [], 10)  # the first save is done
        # A random moment of what follows, spun away: the kernel would round a sleep.
        until = time.perf_counter() + rng.random() * 0.01
        while time.perf_counter() < until:
            pass
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        acknowledged = int(read_all(reports)[-1])
        strays += names(path.parent) != CLEAN

        state = StateStore(path).load()
        assert state.meta.recovered_from is None
        assert acknowledged <= state.meta.revision <= acknowledged + 1
        assert state["n"] == state.meta.revision - 1

    writer = StateStore(path, lock_timeout=0)
    state = writer.load()
    state["n"] += 1
    writer.save(state)
    assert names(path.parent) == CLEAN
    assert strays, "no kill hit the middle of a save, so this test has shown nothing"


CALLS = ("open", "write", "fsync", "link", "replace", "unlink", "close", "fstat")


def kill_at(count):
    """Make the process kill itself at its `count`-th system call from now on."""
    seen = 0
    for name in CALLS:
        original = getattr(os, name)

        def call(*args, _original=original, **kwargs):
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(*args, **kwargs)

        setattr(os, name, call)


@pytest.mark.parametrize("start", ["good", "first save", "no bak", "damaged"])
def test_a_kill_at_each_system_call_of_a_save_loses_nothing(tmp_path, start):
    at, finished = 0, False
    while not finished:
        at += 1
        path = tmp_path / str(at) / "state.json"
        if start != "first save":
            seed = StateStore(path)
            seed.save({"n": 1})
            if start != "no bak":
                seed.save({"n": 2})
            if start == "damaged":
                path.write_bytes(path.read_bytes()[:-5])
        before = dict(StateStore(path).load())
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                writer = StateStore(path)
                state = writer.load()
                state["n"] = "new"
                kill_at(at)
                writer.save(state)
                os._exit(0)
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        finished = status == 0

        survivor = StateStore(path, lock_timeout=0)
        state = survivor.load()
        assert state in (before, {"n": "new"})
        if finished:
            assert state == {"n": "new"}
        survivor.save({**state, "after": True}, expected_revision=state.meta.revision)

        left = set(names(path.parent))
        aside = {name for name in left if ".corrupt-" in name}
        assert left - aside <= set(CLEAN)
        assert not {name for name in aside if name.endswith(".tmp")}
        assert StateStore(path).load() == {**state, "after": True}

    assert at > 10


def test_planted_rotation_by_rename_is_caught_by_these_tests(path, monkeypatch):
    """The test of the test: .bak made by rename leaves an instant without a state file."""
    monkeypatch.setattr(durable, "_keep", lambda state, _link, kept: Path(state).rename(kept))
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            writer = StateStore(path)
            state = writer.load()
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            writer.save({**state, "n": 1}, expected_revision=1)
        os._exit(1)
    os.waitpid(pid, 0)

    assert not path.exists()
    assert StateStore(path).load().meta.recovered_from is not None
