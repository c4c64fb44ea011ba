"""`StateStore.saver` and `asave`: nobody waits for the disk who need not, and nothing is lost."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from pathlib import Path

import pytest

from statestore.disk.store import StateStore
from statestore.errors import RevisionConflict, SaveFailed, StateInvalid, UsageError

PATIENCE = 60  # seconds until a test that hangs is given up


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


class SlowDisk:
    """Stops the first fsync until it is let go; counts those of files."""

    def __init__(self, monkeypatch):
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.saves = 0
        fsync = os.fsync

        def stop(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".tmp":
                self.saves += 1
            self.reached.set()
            assert self.let_go.wait(PATIENCE)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", stop)


@pytest.fixture
def disk(monkeypatch):
    slow = SlowDisk(monkeypatch)
    yield slow
    slow.let_go.set()


def broken(_descriptor):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_future_is_done_when_its_state_is_on_the_disk(path):
    bot = StateStore(path)
    state = bot.load()
    with bot.saver() as saver:
        state["n"] = 1
        meta = saver.save(state, reason="trade").result(PATIENCE)

        assert (meta.revision, meta.reason) == (1, "trade")
        assert StateStore(path).load() == {"n": 1}
        assert state.meta == meta


def test_a_burst_is_two_saves_whatever_its_size(path, disk):
    bot = StateStore(path)
    state = bot.load()
    with bot.saver() as saver:
        futures = []
        for number in range(100):
            state["n"] = number
            futures.append(saver.save(state))
            assert disk.reached.wait(PATIENCE)  # the first is on its way
        state["n"] = "later"
        assert not any(future.done() for future in futures)
        disk.let_go.set()
        revisions = [future.result(PATIENCE).revision for future in futures]

    assert revisions == [1] + [2] * 99
    assert disk.saves == 2
    assert StateStore(path).load() == {"n": 99}


def test_close_waits_for_what_was_asked_for(path, disk):
    saver = StateStore(path).saver()
    future = saver.save({"n": 1})
    disk.reached.wait(PATIENCE)
    closer = threading.Thread(target=saver.close)
    closer.start()
    assert not future.done()

    disk.let_go.set()
    closer.join(PATIENCE)

    assert not closer.is_alive()
    assert future.done()
    saver.close()
    with pytest.raises(UsageError, match="closed"):
        saver.save({"n": 2})


def test_an_error_goes_to_everybody_who_waits_and_the_next_save_works(path, disk, monkeypatch):
    bot = StateStore(path)
    saver = bot.saver()
    first = saver.save({"n": 1})
    disk.reached.wait(PATIENCE)
    burst = [saver.save({"n": number}) for number in (2, 3, 4)]
    first.add_done_callback(lambda _: monkeypatch.setattr(os, "fsync", broken))
    disk.let_go.set()
    wait_for(burst, PATIENCE)
    monkeypatch.undo()

    assert first.result().revision == 1
    assert all(isinstance(future.exception(), SaveFailed) for future in burst)
    assert StateStore(path).load() == {"n": 1}
    assert saver.save({"n": 5}).result(PATIENCE).revision == 2
    saver.close()


def test_close_raises_if_the_newest_state_is_not_saved(path):
    StateStore(path).save({"n": 1})
    stale = StateStore(path)

    with pytest.raises(RevisionConflict), stale.saver() as saver:
        saver.save({"n": 2})
    with pytest.raises(ZeroDivisionError), stale.saver() as saver:
        saver.save({"n": 2})
        _ = 1 / 0  # what ends the block is not hidden by it


def test_a_refused_value_is_told_at_once_and_harms_nobody(path):
    with StateStore(path).saver() as saver:
        good = saver.save({"n": 1})
        with pytest.raises(StateInvalid, match="NaN"):
            saver.save({"n": float("nan")})

    assert good.result().revision == 1


def test_a_cancelled_call_stands_in_nobodys_way(path, disk):
    with StateStore(path).saver() as saver:
        first = saver.save({"n": 1})
        disk.reached.wait(PATIENCE)
        second, third = saver.save({"n": 2}), saver.save({"n": 3})
        assert second.cancel()
        assert not first.cancel()
        disk.let_go.set()

    assert (first.result().revision, third.result().revision) == (1, 2)
    with pytest.raises(CancelledError):
        second.result()


def test_a_callback_may_save_and_close(path):
    saver = StateStore(path).saver()
    done = threading.Event()

    def again(_):
        saver.save({"n": 2}).add_done_callback(lambda _: done.set())
        saver.close()

    saver.save({"n": 1}).add_done_callback(again)

    assert done.wait(PATIENCE)
    assert StateStore(path).load() == {"n": 2}


def test_between_bursts_there_is_no_thread_and_no_lock(path):
    saver = StateStore(path).saver()
    saver.save({"n": 1}).result(PATIENCE)
    for thread in threading.enumerate():
        if thread.name == "statestore saver":
            thread.join(PATIENCE)

    assert "statestore saver" not in {thread.name for thread in threading.enumerate()}
    other = StateStore(path, lock_timeout=0)
    assert other.save({**other.load(), "other": True}).revision == 2


def test_a_saver_nobody_holds_goes_away(path):
    saver = StateStore(path).saver()
    saver.save({"n": 1}).result(PATIENCE)
    saver.close()
    gone = weakref.ref(saver)
    del saver

    assert gone() is None


def test_threads_share_a_saver(path):
    bot = StateStore(path)
    last = {}
    with bot.saver() as saver:

        def work(name):
            for number in range(20):
                last[name] = saver.save({name: number})
            last[name].result(PATIENCE)

        workers = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)

    newest = max(future.result().revision for future in last.values())
    state = StateStore(path).load()
    assert list(state.values()) == [19]
    assert state.meta.revision == newest


def test_a_forked_child_saves_by_itself(path, disk):
    bot = StateStore(path)
    saver = bot.saver()
    first = saver.save({"n": 1})
    disk.reached.wait(PATIENCE)
    pid = os.fork()
    if pid == 0:
        try:
            disk.let_go.set()
            child = StateStore(path.with_name("child.json")).saver()
            child.save({"n": 2}).result(PATIENCE)
            child.close()
            saver.close()  # nothing is asked for here; it is the parent's
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    disk.let_go.set()

    assert first.result(PATIENCE).revision == 1
    saver.close()


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import atexit; atexit.register(late)"])
def test_an_interpreter_that_exits_finishes_the_saves_and_does_not_hang(path, end):
    program = f"""
from statestore import StateStore
saver = StateStore({str(path)!r}).saver()
def late(): saver.save({{"n": 199}})
for number in range(200):
    saver.save({{"n": number}})
{end}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)

    assert StateStore(path).load() == {"n": 199}


# asyncio


def test_asave_does_not_wait_for_the_disk_in_the_loop(path, disk):
    bot = StateStore(path)

    async def trade():
        saves = [asyncio.ensure_future(bot.asave({"n": number})) for number in range(3)]
        while not disk.reached.is_set():
            await asyncio.sleep(0)
        for _ in range(1000):  # the disk hangs, the loop does not
            await asyncio.sleep(0)
        assert not any(save.done() for save in saves)
        disk.let_go.set()
        return [meta.revision for meta in await asyncio.gather(*saves)]

    assert asyncio.run(trade()) == [1, 2, 3]


def test_a_saver_can_be_awaited(path, disk):
    async def trade():
        with StateStore(path).saver() as saver:
            futures = [asyncio.wrap_future(saver.save({"n": number})) for number in range(50)]
            while not disk.reached.is_set():
                await asyncio.sleep(0)
            disk.let_go.set()
            return [meta.revision for meta in await asyncio.gather(*futures)]

    revisions = asyncio.run(trade())
    assert revisions == sorted(revisions)
    assert StateStore(path).load() == {"n": 49}


def test_a_save_is_on_its_way_before_its_thread_is_and_until_it_is_done(state_store, monkeypatch):
    saver = state_store.saver()
    assert not saver.busy
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _thread: None)
        future = saver.save({"n": 1})
        assert saver.busy
    saver.close()
    assert not saver.busy
    assert future.result().revision == 1
