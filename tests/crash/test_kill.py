"""SIGKILL at every system call of a piece of work, and a thousand at any moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash import lab, soak
from tests.crash.lab import Tally
from tests.crash.subjects import BESIDE, STATESTORE, Subject


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("subject", STATESTORE + BESIDE, ids=lambda subject: subject.name)
def test_a_kill_at_each_system_call_loses_nothing_and_leaves_nothing(
    subject: Subject, clean: Callable[[Tally], None]
) -> None:
    calls = lab.calls_to_hit(subject)

    tally = lab.kill(subject, calls)

    clean(tally)
    assert tally.cases > len(calls) * 0.8


def test_kills_at_any_moment_leave_no_file_and_no_lock(
    full: bool, clean: Callable[[Tally], None]
) -> None:
    clean(soak.kills_at_any_moment(1_000 if full else 100))


def test_no_increment_of_eight_processes_is_lost(
    full: bool, clean: Callable[[Tally], None]
) -> None:
    clean(soak.increments(processes=8, transactions=200 if full else 50))
