"""What a session does every so often: called when it is due, and never its end.

What is promised: a hook is due at once, then in its rhythm, and what was missed meanwhile is not
made up for. What it raises is logged and in `Hooks.errors` until it is called again and does not.
No hook is called before its former call has returned, whoever looks meanwhile, or gave up waiting
for it: a turn that comes too early is left out, logged and in `Hooks.errors`.

What is not: a thread or a timer. A hook is called when somebody looks, and as long as it takes; so
hold no lock that others wait for while it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from statestore.errors import StateStoreError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Hook:
    """What is done every so often.

    Attributes:
        due: when it is to be called next, by the clock of its `Hooks`.
        error: what it raised the last time, None when it did not.
    """

    do: Callable[[], object]
    seconds: float
    due: float
    error: str | None = None
    _running: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return getattr(self.do, "__qualname__", None) or repr(self.do)

    def takes_its_turn(self, clock: float) -> bool:
        """Whether it is due; if so, the next time is. What was missed is not made up for."""
        if clock < self.due:
            return False
        self.due += self.seconds * (1 + (clock - self.due) // self.seconds)
        return True

    def run(self) -> None:
        if not self._running.acquire(blocking=False):
            self.error = "it is due again, and the call before has not returned"
            logger.error("hook failed", extra={"hook": self.name, "why": self.error})
            return
        try:
            self._call()
        finally:
            self._running.release()

    def _call(self) -> None:
        try:
            self.do()
        except Exception as error:  # whatever it is, there are positions to mind
            self.error = f"{type(error).__name__}: {error}"
            expected = isinstance(error, StateStoreError)
            logger.error(
                "hook failed",
                extra={"hook": self.name, "why": str(error)},
                exc_info=None if expected else error,
            )
        else:
            self.error = None


class Hooks:
    """All of a session's, in the order they were added.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all: list[Hook] = []

    def add(self, do: Callable[[], object], seconds: float) -> None:
        """Have `due` return it now, then every so many seconds."""
        self._all.append(Hook(do, seconds, self._clock()))

    def due(self) -> list[Hook]:
        """Return those whose turn it is; each is given once."""
        return [hook for hook in self._all if hook.takes_its_turn(self._clock())]

    @property
    def errors(self) -> dict[str, str]:
        """What those raised that raised the last time they were called, by name."""
        return {hook.name: hook.error for hook in self._all if hook.error}
