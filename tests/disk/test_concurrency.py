"""Many processes on one state: nothing is lost, nobody starves, and who is in the way is named."""

import errno
import multiprocessing
import os

import pytest

from statestore import times
from statestore.disk import locks, surroundings
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


def test_each_of_eight_processes_gets_its_turns_while_all_save_without_pause(path):
    """Counted, not timed, as above: none waits while others save as often as in 5 s."""
    start, turns = fork.Event(), 10
    names = [f"w{at}" for at in range(PROCESSES)]

    def work(name):
        start.wait()
        counter = StateStore(path, lock_timeout=PATIENCE)
        last = 0
        while True:
            with counter.transaction() as state:
                waited = state.meta.revision - last if last else 0
                last = state.meta.revision + 1
                state["longest"] = max(state.get("longest", 0), waited)
                state[name] = state.get(name, 0) + 1
                if all(state.get(other, 0) >= turns for other in names):
                    return

    workers = [fork.Process(target=work, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    start.set()
    finish(workers)

    state = StateStore(path).load()
    assert min(state[name] for name in names) >= turns
    assert 0 < state["longest"] < 5000


def test_a_stuck_holder_is_named(path):
    ready, done = fork.Event(), fork.Event()

    def hold():
        with StateStore(path).transaction():
            ready.set()
            done.wait()

    before = times.now() - 2 * times.NANOSECONDS  # the kernel counts in ticks, and we in seconds
    worker = fork.Process(target=hold)
    worker.start()
    ready.wait()
    waiter = StateStore(path, lock_timeout=0)
    with pytest.raises(StateLocked) as caught:
        waiter.save({"n": 1})
    report = waiter.check()
    done.set()
    finish([worker])

    since = report.lock_holder_since
    assert f"locked by process {worker.pid} (running since {since}) " in str(caught.value)
    assert report.lock_holder == worker.pid
    assert before <= times.parse_instant(since) <= times.now()
    assert (waiter.check().lock_holder, waiter.check().lock_holder_since) == (None, None)


def test_what_is_not_known_of_a_holder_is_not_told():
    gone = fork.Process(target=int)
    gone.start()
    gone.join()

    assert locks.holder_since(gone.pid) is None
    assert locks.describe_holder(gone.pid) == f"process {gone.pid}"
    assert locks.describe_holder(None) == "another process"


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


@pytest.mark.parametrize("found", ["nfs4", "cifs", "ext4 (data=ordered)"])
def test_a_state_on_a_network_file_system_is_warned_of_once(path, monkeypatch, caplog, found):
    monkeypatch.setattr(locks, "_looked_at", set())
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: found)
    for number in (1, 2):
        bot = StateStore(path)
        state = bot.load()
        state["n"] = number
        bot.save(state)
        bot.lease().release()

    told = [record.file_system for record in caplog.records if "network" in record.message]
    assert told == ([] if found.startswith("ext4") else [found])
    assert bot.check().file_system == found


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
