"""Power cuts: every legal disk after every system call, in two models of a file system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from statestore.disk import single_sync
from tests.crash import lab, subjects
from tests.crash.disk import MODELS, Model
from tests.crash.lab import Tally
from tests.crash.subjects import BESIDE, STATESTORE, Subject

pytestmark = pytest.mark.usefixtures("strace")

by_name = {subject.name: subject for subject in STATESTORE + BESIDE}
everything = [
    subject for subject in STATESTORE + BESIDE if not subject.name.endswith(("lines", "line"))
]

SAVE = by_name["a save"]
FIRST = by_name["the first save ever, the folder too"]
NEXT = replace(SAVE, name="the next save", work=subjects.transact, read=subjects.read)
AGAIN = replace(by_name["a save of nothing new"], read=subjects.read)

SUCCESSIONS = {
    "a first save, then another": (FIRST, NEXT),
    "a first save, then the same": (FIRST, AGAIN),
    "a save, then another": (SAVE, NEXT),
    "a save, then the same": (SAVE, AGAIN),
    "a save after damage, then another": (by_name["a save after a damaged state"], NEXT),
    "a restore, then a save of the same": (by_name["a restore"], AGAIN),
    "an edit sealed, then sealed again": (by_name["sealing an edit"],) * 2,
    "a backup, then another": (by_name["a backup"],) * 2,
}

FAILURES = {
    "of the file": "fsync:error=EIO:when=1",
    "of the folder": "fsync:error=EIO:when=2",
    "of the file, twice": "fsync:error=EIO:when=1..2",
    "of the file, the disk full": "fsync:error=ENOSPC:when=1",
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("subject", everything, ids=lambda subject: subject.name)
def test_no_power_cut_loses_what_was_acknowledged(
    subject: Subject, model: Model, clean: Callable[[Tally], None]
) -> None:
    clean(lab.power_cut(subject, model))


def test_no_power_cut_loses_a_signal_of_a_batch_or_opens_a_position_twice(
    clean: Callable[[Tally], None],
) -> None:
    clean(lab.power_cut(subjects.SIGNALS, "journal"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("succession", SUCCESSIONS)
def test_what_follows_a_killed_process_is_as_durable_as_any(
    succession: str, model: Model, clean: Callable[[Tally], None]
) -> None:
    """Nobody can see what the killed one did not flush: its folder, its rename, its bytes."""
    killed, successor = SUCCESSIONS[succession]

    clean(lab.power_cut_after_kill(killed, successor, model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_power_cut_after_a_failed_fsync_loses_nothing_acknowledged(
    failure: str, model: Model, clean: Callable[[Tally], None]
) -> None:
    bot = replace(SAVE, work=subjects.save_through_failures(3, 4), read=subjects.read)

    clean(lab.power_cut(bot, model, faults=[FAILURES[failure]]))


AUDIT, FIRST_AUDIT = by_name["an audit line"], by_name["the first audit lines"]
SWITCH = by_name["the kill switch"]


@pytest.mark.parametrize("subject", [AUDIT, FIRST_AUDIT], ids=lambda subject: subject.name)
def test_an_audit_line_survives_a_power_cut_where_data_is_ordered(
    subject: Subject, clean: Callable[[Tally], None]
) -> None:
    clean(lab.power_cut(subject, "journal"))


@pytest.mark.parametrize("subject", [AUDIT, FIRST_AUDIT], ids=lambda subject: subject.name)
def test_an_audit_line_survives_any_power_cut(
    subject: Subject, clean: Callable[[Tally], None]
) -> None:
    clean(lab.power_cut(subject, "strict"))


@pytest.mark.parametrize("subject", [SWITCH, FIRST_AUDIT], ids=lambda subject: subject.name)
def test_what_a_killed_process_made_beside_the_state_is_flushed_by_the_next(
    subject: Subject, clean: Callable[[Tally], None]
) -> None:
    clean(lab.power_cut_after_kill(subject, subject, "strict"))


@pytest.fixture
def ordered_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this file system for one that one fsync is enough for; the laboratory has its own."""
    monkeypatch.setattr(single_sync, "require", lambda _path: None)


@pytest.mark.usefixtures("ordered_data")
@pytest.mark.parametrize("prepare", [SAVE.prepare, FIRST.prepare], ids=["good", "first save"])
@pytest.mark.parametrize("failure", [None, *FAILURES])
def test_one_fsync_is_enough_where_data_is_ordered(
    prepare: Callable[[Path], int], failure: str | None, clean: Callable[[Tally], None]
) -> None:
    bot = replace(SAVE, prepare=prepare, work=subjects.save_with_one_fsync, read=subjects.read)
    faults = [FAILURES[failure]] if failure else []

    clean(lab.power_cut(bot, "journal", faults=faults))


@pytest.mark.usefixtures("ordered_data")
def test_a_full_save_after_a_killed_one_with_one_fsync_is_durable(
    clean: Callable[[Tally], None],
) -> None:
    killed = replace(SAVE, work=subjects.save_with_one_fsync)

    clean(lab.power_cut_after_kill(killed, NEXT, "journal"))
    clean(lab.power_cut_after_kill(killed, AGAIN, "journal"))


def test_what_is_unflushed_can_be_lost_in_the_laboratory() -> None:
    """The disks are not all alike: of an unflushed file they hold nothing, parts, zeros and all."""
    bare = subjects.with_flaw(SAVE, "no fsync of the file")

    seen = lab.power_cut(bare, "strict")

    assert set(seen.violations) == {"a fallback had to be loaded"}
    assert seen.distinct > lab.power_cut(SAVE, "strict").distinct
