"""Many processes on one state: nothing is lost, nobody starves, and who is in the way is named."""

import errno
import multiprocessing
import os

import pytest

from statestore.disk.store import StateStore
from statestore.errors import SaveFailed, StateLocked

fork = multiprocessing.get_context("fork")

PROCESSES, TRANSACTIONS = 8, 200
PATIENCE = 120  # seconds until a test that hangs is given up


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


def finish(workers):
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def test_eight_processes_lose_none_of_their_transactions(path):
    start = fork.Event()

    def work(name):
        start.wait()
        counter = StateStore(path, lock_timeout=PATIENCE)
        for number in range(1, TRANSACTIONS + 1):
            with counter.transaction() as state:
                state["n"] = state.get("n", 0) + 1
                state[name] = number

    workers = [fork.Process(target=work, args=(f"w{at}",)) for at in range(PROCESSES)]
    for worker in workers:
        worker.start()
    start.set()
    finish(workers)

    state = StateStore(path).load()
    total = PROCESSES * TRANSACTIONS
    assert (state["n"], state.meta.revision) == (total, total)
    assert all(state[f"w{at}"] == TRANSACTIONS for at in range(PROCESSES))


def test_nobody_starves_while_others_save_without_pause(path):
    """Counted, not timed: 5 s of a disk that takes 1 ms for a save are 5,000 saves of others."""
    stop = fork.Event()

    def hog():
        counter = StateStore(path, lock_timeout=PATIENCE)
        while not stop.is_set():
            with counter.transaction() as state:
                state["n"] = state.get("n", 0) + 1

    workers = [fork.Process(target=hog) for _ in range(3)]
    for worker in workers:
        worker.start()
    patient = StateStore(path, lock_timeout=PATIENCE)
    waited = []
    for _ in range(20):
        before = patient.load().meta.revision
        with patient.transaction() as state:
            waited.append(state.meta.revision - before)
            state["mine"] = state.get("mine", 0) + 1
    stop.set()
    finish(workers)

    assert StateStore(path).load()["mine"] == 20
    assert max(waited) < 5000


def test_a_stuck_holder_is_named(path):
    ready, done = fork.Event(), fork.Event()

    def hold():
        with StateStore(path).transaction():
            ready.set()
            done.wait()

    worker = fork.Process(target=hold)
    worker.start()
    ready.wait()
    waiter = StateStore(path, lock_timeout=0)
    with pytest.raises(StateLocked, match=f"locked by process {worker.pid} "):
        waiter.save({"n": 1})
    assert waiter.check().lock_holder == worker.pid
    done.set()
    finish([worker])

    assert waiter.check().lock_holder is None


def test_parent_and_children_go_on_with_one_store(path):
    bot = StateStore(path, lock_timeout=PATIENCE)
    bot.save({"n": 0})

    def work():
        for _ in range(25):
            with bot.transaction() as state:
                state["n"] += 1

    workers = [fork.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    work()
    finish(workers)

    assert bot.refresh()["n"] == 100


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV], ids=errno.errorcode.get)
def test_a_state_that_is_mounted_on_its_own_is_told_what_to_mount(path, monkeypatch, code):
    bot = StateStore(path)
    bot.save({"n": 1})
    replace = os.replace

    def refuse(source, target):
        if str(target) == str(path):
            raise OSError(code, os.strerror(code))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(SaveFailed, match=r"bind-mounted.*mount the folder"):
            bot.save({"n": 2})

    assert StateStore(path).load() == {"n": 1}
    assert bot.save({"n": 2}).revision == 2
