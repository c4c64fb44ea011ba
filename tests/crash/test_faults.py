"""Every system call failing once, with every error a disk or a full table of files gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.crash import lab
from tests.crash.lab import Tally
from tests.crash.subjects import BESIDE, STATESTORE, Subject
from tests.crash.tracing import Call

pytestmark = pytest.mark.usefixtures("strace")

ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EINTR", "EMFILE"]


def cases(calls: list[Call], full: bool) -> list[tuple[Call, str]]:
    """Return each call with each error; in a bounded run with one error, in turn."""
    if full:
        return list(itertools.product(calls, ERRORS))
    return list(zip(calls, itertools.cycle(ERRORS), strict=False))


@pytest.mark.parametrize("subject", STATESTORE + BESIDE, ids=lambda subject: subject.name)
def test_a_failing_call_is_a_clear_error_and_changes_nothing(
    subject: Subject, full: bool, clean: Callable[[Tally], None]
) -> None:
    clean(lab.fail(subject, cases(lab.calls_to_hit(subject), full)))
