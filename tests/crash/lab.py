"""The experiments: a power cut, a kill, a failing call; each returns a `Tally`."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from statestore.errors import StateStoreError
from tests.crash.disk import Disk, Image, Model, lay_out
from tests.crash.subjects import LITTER, Subject, Violation, state_path
from tests.crash.tracing import Call, Report, Trace, Work, trace

LOST = "an acknowledged save is lost"
EMPTY = "an empty state after an acknowledged save"
UNREADABLE = "nothing loads any more"
STUCK = "the next save fails"

_SEED = 20251120
MUTATING = re.compile("p?write|f(data)?sync|link|rename|unlink|mkdir|rmdir|f?truncate|fch")


@dataclass
class Tally:
    """What came of an experiment.

    Attributes:
        cases: crashes, kills or failures there were.
        distinct: how many different disks they left, as far as they were compared.
        violations: what went wrong, and how often.
        examples: one case of each.
    """

    cases: int = 0
    distinct: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def violated(self, what: str, example: str = "") -> None:
        self.violations[what] = self.violations.get(what, 0) + 1
        self.examples.setdefault(what, example)

    def __add__(self, other: Tally) -> Tally:
        both = Tally(self.cases + other.cases, self.distinct + other.distinct)
        both.examples = other.examples | self.examples
        for violations in (self.violations, other.violations):
            for what, count in violations.items():
                both.violations[what] = both.violations.get(what, 0) + count
        return both

    @property
    def failures(self) -> int:
        return sum(self.violations.values())


@contextmanager
def folder_for(subject: Subject) -> Iterator[tuple[Path, int]]:
    """Yield a folder with the subject's start in it, and the number of the state there."""
    with tempfile.TemporaryDirectory(prefix="crash-") as name:
        folder = Path(name, "disk")
        folder.mkdir()
        yield folder, subject.prepare(folder)


# Power cuts


def power_cut(
    subject: Subject,
    model: Model,
    *,
    limit: int = 1 << 30,
    faults: Sequence[str] = (),
) -> Tally:
    """Cut the power at every call of the subject's work, and after it."""
    with folder_for(subject) as (folder, standing):
        disk = Disk(folder, model)
        traced = trace(subject.working(folder), *faults)
        require_finished(traced)
    return _cut(subject, disk, [traced], standing, limit)


def power_cut_after_kill(
    subject: Subject,
    successor: Subject,
    model: Model,
    *,
    limit: int = 1 << 30,
) -> Tally:
    """Kill the work at each call; let a successor work on what is left; cut the power there.

    What the killed process did and did not flush is on the disk or not; the successor builds on
    it, and what the successor acknowledges has to survive.
    """
    tally = Tally()
    for call in calls_to_hit(subject, MUTATING):
        with folder_for(subject) as (folder, standing):
            disk = Disk(folder, model)
            killed = trace(subject.working(folder), _kill_at(call))
            successful = trace(successor.working(folder))
            require_finished(successful)
        tally += _cut(successor, disk, [killed, successful], standing, limit)
    return tally


def _cut(
    subject: Subject,
    disk: Disk,
    traces: Sequence[Trace],
    acknowledged: int,
    limit: int,
) -> Tally:
    tally, verdicts, rng = Tally(), _Verdicts(subject), random.Random(_SEED)
    with tempfile.TemporaryDirectory(prefix="cut-") as scratch:
        verdicts.scratch = Path(scratch)

        def look() -> None:
            tally.cases += disk.count() if limit >= 1 << 30 else 0
            for image in disk.images(limit, rng):
                if limit < 1 << 30:
                    tally.cases += 1
                verdicts.judge(image, acknowledged, tally)

        look()
        for traced in traces:
            disk.begin()
            for call in traced.calls:
                if disk.apply(call):
                    look()
                elif call.report is not None and call.report.startswith("ack "):
                    acknowledged = max(acknowledged, int(call.report[4:]))
                    look()
    tally.distinct = len(verdicts.known)
    return tally


class _Verdicts:
    """What each disk leads to, found out once per disk."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.scratch = Path()
        self.known: dict[int, Verdict] = {}

    def judge(self, image: Image, acknowledged: int, tally: Tally) -> None:
        key = hash(frozenset(image.items()))
        if key not in self.known:
            folder = self.scratch / "disk"
            folder.mkdir()
            lay_out(image, folder)
            self.known[key] = examine(self.subject, folder)
            shutil.rmtree(folder)
        self.known[key].judge(acknowledged, tally)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bot finds that starts after a crash: a state's number, or a problem."""

    number: int
    problem: str | None = None
    example: str = ""

    def judge(self, acknowledged: int, tally: Tally) -> None:
        if self.problem is not None:
            tally.violated(self.problem, self.example)
        elif self.number < acknowledged:
            tally.violated(
                LOST if self.number else EMPTY, f"{self.number} instead of {acknowledged}"
            )


def examine(subject: Subject, folder: Path) -> Verdict:
    """Load what a crash left, as a bot that starts again, and save the next state."""
    try:
        number = subject.read(folder)
    except Violation as violation:
        return Verdict(-1, str(violation), violation.example)
    except Exception as error:  # noqa: BLE001  # a peer may fail in any way
        return Verdict(-1, UNREADABLE, f"{type(error).__name__}: {error}")
    try:
        subject.carry_on(folder)
    except Violation as violation:
        return Verdict(-1, str(violation), violation.example)
    except Exception as error:  # noqa: BLE001  # as above
        return Verdict(-1, STUCK, f"{type(error).__name__}: {error}")
    return Verdict(number)


def require_finished(traced: Trace) -> None:
    """Make sure that the work went as it should have; else nothing was tested."""
    failed = [report for report in traced.reports if report.startswith("raised ")]
    assert traced.status == 0, failed or f"ended with {traced.status}"
    assert not failed, failed


# Kills and failures at one call


def calls_to_hit(subject: Subject, names: re.Pattern[str] | None = None) -> list[Call]:
    """Return the calls of the work at which something can go wrong, in order."""
    warm_up(subject)
    with folder_for(subject) as (folder, _):
        traced = trace(subject.working(folder))
        require_finished(traced)
    started = next((i for i, call in enumerate(traced.calls) if call.name == "read"), -1) + 1
    return [
        call
        for call in traced.calls[started:]
        if call.report is None and (names is None or names.match(call.name))
    ]


def warm_up(subject: Subject) -> None:
    """Do the work once in this process: what it imports only then would be traced as well."""
    with folder_for(subject) as (folder, _):
        subject.work(folder, lambda _number: None)
        examine(subject, folder)


def kill(subject: Subject, calls: Sequence[Call]) -> Tally:
    """Kill the work as it enters each of the calls."""
    tally = Tally()
    for call in calls:
        with folder_for(subject) as (folder, standing):
            traced = trace(subject.working(folder), _kill_at(call))
            # How often a file is looked at again depends on how fresh it is, so now and then a
            # call is not made; the work was done then, and there was no kill.
            tally.cases += traced.status == -signal.SIGKILL
            acknowledged = max(standing, traced.acknowledged())
            examine(subject, folder).judge(acknowledged, tally)
    return tally


def fail(subject: Subject, calls: Sequence[tuple[Call, str]]) -> Tally:
    """Let each of the calls fail with an error, once; then the work is done again.

    A clear error is one of ours; it has to leave the former state and no litter, and what is done
    again, by the same process and at once, has to succeed.
    """

    def twice(folder: Path, call: Call, error: str) -> Work:
        def work(report: Report) -> None:
            if call.name == "close":
                _fail_close(call.ordinal, error)
            once = subject.working(folder)
            try:
                once(report)
            except StateStoreError as refused:
                report(f"refused {type(refused).__name__}")
                with suppress(FileNotFoundError):
                    names = [entry.name for entry in state_path(folder).parent.iterdir()]
                    report(f"left {sorted(names)}")
                once(report)

        return work

    tally = Tally()
    for call, error in calls:
        with folder_for(subject) as (folder, standing):
            fault = f"{call.name}:error={error}:when={call.ordinal}"
            faults = [] if call.name == "close" else [fault]
            traced = trace(twice(folder, call, error), *faults)
            tally.cases += 1
            where = f"{call.name} number {call.ordinal} with {error}"
            for report in traced.reports:
                if report.startswith("raised "):
                    tally.violated(
                        "an error that is none of ours, or a second one", f"{where}: {report}"
                    )
                elif report.startswith("left ") and ".tmp'" in report and "unlink" not in call.name:
                    tally.violated(LITTER, f"{where}: {report}")
            if traced.status < 0:
                tally.violated("it hangs or is killed", f"{where}: {traced.status}")
            single = Tally()
            examine(subject, folder).judge(max(standing, traced.acknowledged()), single)
            for what, example in single.examples.items():
                tally.violated(what, f"{where}: {example}")
    return tally


def _fail_close(ordinal: int, error: str) -> None:
    """Let one close fail as Linux lets it: the file is closed, and then the error is told.

    strace would leave the file open, and with it a lock that was to go.
    """
    close, seen = os.close, itertools.count(1)

    def failing(descriptor: int) -> None:
        close(descriptor)
        if next(seen) == ordinal:
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    vars(os)["close"] = failing


def _kill_at(call: Call) -> str:
    return f"{call.name}:signal=SIGKILL:when={call.ordinal}"
