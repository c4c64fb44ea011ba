"""The books of a session's saves: what was asked for, what is done, what is owed.

What is promised: what was asked for is either done or owed, never forgotten. A save that begins
takes on what is owed; what becomes of it becomes of all of that. What is owed is only struck out
(`Books.drop`) where the state it was of is gone.

Counting, and nothing else: nothing is saved, locked or logged here. `TradingSession` holds its lock
where two threads could meet.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from statestore import times
from statestore.disk.store import State, StateMeta


@dataclass(frozen=True, slots=True)
class Save:
    """A save that is under way.

    Attributes:
        revision: of the state before it.
        counts: what is done with it, by kind.
        begun: monotonic seconds.
    """

    state: State
    revision: int
    reason: str
    counts: Counter[str]
    begun: float


class Books:
    """See the module.

    Attributes:
        owed: how many saves of which kind were asked for and are not done.
        last_save: what is told of the newest one; None before.
        last_error: what is told of the newest one that failed; None before.
    """

    def __init__(self) -> None:
        self.owed: Counter[str] = Counter()
        self.last_save: dict[str, Any] | None = None
        self.last_error: dict[str, Any] | None = None
        self._done: Counter[str] = Counter()
        self._failures = 0

    def begin(self, state: State, kind: str | None, reason: str) -> Save:
        """Open a save: what was owed is done with it, or owed again. A retry is of no kind."""
        if kind is not None:
            self.owed[kind] += 1
        counts, self.owed = self.owed, Counter()
        return Save(state, state.meta.revision, reason, counts, time.monotonic())

    def done(self, save: Save, meta: StateMeta, size: int | None) -> dict[str, Any]:
        """Close a save that is on disk; return what is told of it.

        Args:
            size: of the file, in bytes; None where there is none.
        """
        self._done += save.counts
        self.last_save = {
            "at": times.format_instant(times.now()),
            "revision": meta.revision,
            "reason": save.reason,
            "written": meta.revision != save.revision,
            "bytes": size,
            "seconds": round(time.monotonic() - save.begun, 6),
        }
        return self.last_save

    def failed(self, save: Save, error: Exception) -> None:
        """Note that a save failed; whether it is still owed is said by `owe`."""
        self._failures += 1
        self.last_error = {
            "at": times.format_instant(times.now()),
            "reason": save.reason,
            "error": f"{type(error).__name__}: {error}",
        }

    def owe(self, save: Save) -> None:
        """Have the next save do what this one did not, or perhaps did and told nobody."""
        self.owed += save.counts

    def owe_rescue(self) -> None:
        """Have the state in memory saved: it is the newest there is."""
        self.owed["rescue"] = 1

    def drop(self) -> list[str]:
        """Strike out what is owed, since the state it was of is gone; return its kinds."""
        kinds = list(self.owed)
        self.owed.clear()
        return kinds

    def status(self) -> dict[str, Any]:
        """Return how it stands: plain values, for `TradingSession.health`."""
        return {
            "saves": dict(self._done),
            "unsaved": dict(self.owed),
            "failed_saves": self._failures,
            "last_save": self.last_save,
            "last_error": self.last_error,
        }
