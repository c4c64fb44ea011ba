"""Many real processes: killed at any moment, or saving all at once."""

from __future__ import annotations

import os
import random
import select
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from statestore.disk.store import StateStore
from tests.crash import subjects
from tests.crash.lab import LOST, STUCK, Tally
from tests.crash.subjects import LITTER, number_of, state_of


def kills_at_any_moment(kills: int) -> Tally:
    """Kill a bot that saves on and on; after each kill load, and save at once.

    Returns:
        `distinct` counts the kills that left a temporary file: those that hit a save.
    """
    tally, rng = Tally(), random.Random(20251120)
    with tempfile.TemporaryDirectory() as name:
        subjects.start(1)(Path(name))
        path = subjects.state_path(Path(name))
        for _ in range(kills):
            acknowledged = _killed_bot(path, rng.random() * 0.004)
            tally.cases += 1
            tally.distinct += any(path.parent.glob("*.tmp"))
            bot = StateStore(path, lock_timeout=0)
            state = bot.load()
            number = number_of(state)
            if number < acknowledged:
                tally.violated(LOST, f"{number} instead of {acknowledged}")
            state.update(state_of(number + 1))
            try:
                bot.save(state)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
                tally.violated(STUCK, repr(error))
            left = {entry.name for entry in path.parent.iterdir()}
            if len(left) > 3:
                tally.violated(LITTER, str(sorted(left)))
    assert tally.distinct, "no kill hit the middle of a save, so nothing was tested"
    return tally


def _killed_bot(path: Path, after: float) -> int:
    """Kill a bot some time after its first save; return the last number it was promised."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            bot = StateStore(path)
            state = bot.load()
            while True:
                number = number_of(state) + 1
                state.update(state_of(number))
                bot.save(state)
                os.write(told, b"%d\n" % number)
        os._exit(1)
    os.close(told)
    select.select([heard], [], [], 10)
    until = time.perf_counter() + after
    while time.perf_counter() < until:  # spun away: the kernel would round a sleep
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(heard) as stream:
        return int(stream.read().split()[-1])


def increments(processes: int, transactions: int) -> Tally:
    """Let processes add 1 in transactions of their own, all at once; each has to be there."""
    tally = Tally(cases=processes * transactions)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "state.json")
        StateStore(path).save({"n": 0})
        children = []
        for _ in range(processes):
            child = os.fork()
            if child == 0:
                code = 1
                with suppress(BaseException):
                    bot = StateStore(path, lock_timeout=60)
                    for _ in range(transactions):
                        with bot.transaction() as state:
                            state["n"] += 1
                    code = 0
                os._exit(code)
            children.append(child)
        for child in children:
            if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                tally.violated("a process failed", str(code))
        found = StateStore(path).load()["n"]
        if found != tally.cases:
            tally.violated(LOST, f"{found} increments of {tally.cases}")
    return tally
