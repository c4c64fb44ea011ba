"""Many accounts at once: values that travel to workers and back, and the summary of them.

What is promised:

* What goes to a worker (a `Piece` of work) and what comes back (`Result`) are plain values that can
  be pickled, so any `concurrent.futures.Executor` will do.
* One account's error is that account's result. That holds for a bug, for a worker that dies, for
  one of another version, which does nothing, and for an executor that loses or mixes up answers.
* The summary does not depend on the executor, nor on the order in which accounts end.

What is not: a worker that was killed in the middle of an apply has said nothing. The state is whole
as always, but whether it was written is for the audit file to say.

What is done with an account is in `statestore.repair.fleetwork`, which accounts there are in
`fleetfile`, where work is done in `executors`.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from statestore import __version__
from statestore.errors import StateStoreError


class Task(StrEnum):
    """What is done with every account; a replay has no account but its archive."""

    PLAN = "plan"
    APPLY = "apply"
    VERIFY = "verify"
    REPLAY = "replay"


class Outcome(StrEnum):
    """How an account ended.

    Of a plan: NOTHING or PROPOSED to be written. Of an apply: NOTHING or WRITTEN. Of either:
    UNPROVEN, so refused. Of a verify: AGREES, UNSETTLED, UNPROVEN, DIFFERS. Of a replay: REPLAYED,
    or UNPROVEN. FAILED: an error.
    """

    NOTHING = "nothing"
    PROPOSED = "proposed"
    WRITTEN = "written"
    REPLAYED = "replayed"
    AGREES = "agrees"
    UNSETTLED = "unsettled"
    UNPROVEN = "unproven"
    DIFFERS = "differs"
    FAILED = "failed"


_ALARMING = frozenset({Outcome.UNPROVEN, Outcome.DIFFERS, Outcome.FAILED})


class Piece(Protocol):
    """What one worker does at a time: a value that can be pickled."""

    def run(self) -> list[Result]:
        """Return the results, whatever happens to any of them."""

    def unanswered(self, kind: str, why: str) -> list[Result]:
        """Return them where none came."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an account is not as it should be.

    Attributes:
        kind: name of the error's class; empty where nothing failed, and what was found is bad.
        trace: of a bug, where it happened. Its message is left out: it may hold anything.
    """

    kind: str
    text: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How one account ended.

    Attributes:
        facts: what is known of it, as JSON has it; exact numbers are texts.
        seconds: of the wall clock, on the worker.
    """

    account: str
    outcome: Outcome
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.outcome not in _ALARMING


def failure_of(error: Exception) -> Failure:
    """Return an error as a value."""
    names = (known.__name__ for known in type(error).__mro__)
    kind = next(name for name in names if not name.startswith("_"))  # a class that is documented
    if isinstance(error, StateStoreError):
        return Failure(kind, " ".join(str(error).split()))
    return Failure(
        kind,
        f"a bug: {kind}; run this account alone to see all of it, and report it",
        "".join(traceback.format_tb(error.__traceback__)),
    )


def run(piece: Piece, version: str = __version__) -> list[Result]:
    """Do a piece of work; what is handed to an executor.

    Args:
        version: of whoever handed it over. Another one may count otherwise, so it does nothing.
    """
    if version == __version__:
        return piece.run()
    failure = Failure(
        "UsageError",
        f"its worker has statestore {__version__}, this is {version}: nothing was done; install "
        "the same version there and run it again",
    )
    return [replace(one, failure=failure) for one in piece.unanswered("", "")]


# Over many workers ----------------------------------------------------------------------------


def run_all(
    works: Sequence[Piece],
    executor: Executor,
    *,
    at_once: int,
    tell: Callable[[Result], None] = lambda _: None,
) -> tuple[dict[str, Result], bool]:
    """Run all of the work; return the result of each account, and whether no interrupt came.

    An interrupt lets what is under way come to its end, and begins nothing more.

    Args:
        at_once: pieces of work that are handed over and not back yet, at most.
        tell: called with each result as it comes, by this thread.
    """
    results: dict[str, Result] = {}
    running: dict[Future[list[Result]], Piece] = {}
    ended: SimpleQueue[Future[list[Result]] | None] = SimpleQueue()  # None: an interrupt
    waiting = iter(works)

    def take(found: Iterable[Result]) -> None:
        for result in found:
            results[result.account] = result
            tell(result)

    def hand_over() -> None:
        while len(running) < at_once and (work := next(waiting, None)) is not None:
            try:
                future = executor.submit(run, work, __version__)
            except Exception as error:  # noqa: BLE001 - an executor that broke takes no more
                take(_lost(work, error))
                continue
            running[future] = work
            future.add_done_callback(ended.put)

    whole = True
    with _told_of_interrupts(lambda: ended.put(None)):
        hand_over()
        while running:
            future = _next(ended)
            if future is not None:
                take(_results(future, running.pop(future)))
                hand_over()
            elif whole:
                whole = False
                for work in waiting:
                    take(_interrupted(work))
                for one in running:
                    one.cancel()
    return results, whole


def _next(ended: SimpleQueue[Future[list[Result]] | None]) -> Future[list[Result]] | None:
    """Wait for what comes next; by the second, since a signal just before the wait is not seen."""
    while True:
        with suppress(Empty):
            return ended.get(timeout=1)


@contextmanager
def _told_of_interrupts(tell: Callable[[], None]) -> Iterator[None]:
    """Pass on the first Ctrl-C, or request to end, so that it comes between two steps; the second
    one is as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(*_: object) -> None:
        restore()
        tell()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    former = {
        number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        restore()


def _results(future: Future[list[Result]], work: Piece) -> list[Result]:
    if future.cancelled():
        return _interrupted(work)
    error = future.exception()  # asked for, not raised: a SystemExit there must not end this run
    if error is not None:
        return _lost(work, error)
    found: object = future.result()
    mixed_up = work.unanswered("NoAnswer", "no answer: what came back from its worker is none")
    names = [one.account for one in mixed_up]
    if isinstance(found, list) and [getattr(one, "account", None) for one in found] == names:
        return found
    return mixed_up


def _interrupted(work: Piece) -> list[Result]:
    return work.unanswered("Interrupted", "no answer: the run was interrupted")


def _lost(work: Piece, error: BaseException) -> list[Result]:
    """A worker died, or could not be reached. Its message is not ours, so it is not passed on."""
    kind = type(error).__name__
    return work.unanswered(kind, f"no answer: its worker was lost ({kind})")


# The summary ----------------------------------------------------------------------------------


def summary(
    task: Task, results: Sequence[Result], exit_code_of: Callable[[Result], int]
) -> dict[str, Any]:
    """Return the one JSON document on stdout (schema ``statestore.fleet/1``).

    All that depends on the run and not on the accounts stands under ``run``, which the caller adds.
    """
    outcomes = [result.outcome for result in results]
    return {
        "schema": "statestore.fleet/1",
        "task": task.value,
        "ok": all(result.ok for result in results),
        "counts": {
            "accounts": len(results),
            "ok": sum(result.ok for result in results),
            "not_ok": sum(not result.ok for result in results),
            **{
                outcome.value: outcomes.count(outcome) for outcome in Outcome if outcome in outcomes
            },
        },
        "failures": [
            {
                "account": result.account,
                "outcome": result.outcome.value,
                "error": result.failure.kind or None if result.failure else None,
                "exit_code": exit_code_of(result),
                "text": result.failure.text if result.failure else "",
                **(
                    {"trace": result.failure.trace}
                    if result.failure and result.failure.trace
                    else {}
                ),
            }
            for result in results
            if not result.ok
        ],
        "accounts": [
            {"account": result.account, "outcome": result.outcome.value, **result.facts}
            for result in results
        ],
    }
