"""When the next request may go: one limit over all threads, and everyone waits when told to.

What is promised:

* At most ``rate`` requests reach the exchange in any second. Requests arrive as late as the network
  likes, so that is counted at the other end: one that took longer than the quickest may have
  arrived later by the difference, and its place stays taken for as long (0.15 s at most). That
  leaves 99 % of the rate to be used where answers take the same time, 86 % where they never do.
* A "too many requests" stops every thread, and thins out what follows; so does an answer that says
  that none remain.

Only seconds are counted here; what a request is, nobody knows.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from statestore.errors import UsageError

DEFAULT_RATE = 10  # a third of what the exchange allows a user
HIGHEST_RATE = 30
LONGEST_HOLD = 30.0

_SECOND = 1.01
_LATE = 0.15  # at most, and as long as no answer tells
_LATE_UNTOLD = 0.09  # where no answer can be there within the second
_CLEAN_SECONDS = 10  # without a refusal, for one more request a second

clock = time.monotonic


class Stopped(Exception):
    """The read that this request belongs to has ended."""


def nap(seconds: float, stopping: threading.Event) -> None:
    """Wait, unless and until the read has ended.

    Raises:
        Stopped: it has.
    """
    if stopping.wait(seconds):
        raise Stopped


@dataclass(eq=False)
class Turn:
    """The right to send one request at ``at``; another may go in its place from ``free_at`` on."""

    at: float
    free_at: float


class Pace:
    """See the module. Safe to use from any thread.

    Raises:
        UsageError: ``rate`` is no whole number from 1 to `HIGHEST_RATE`.
    """

    def __init__(self, rate: int = DEFAULT_RATE) -> None:
        if type(rate) is not int or not 1 <= rate <= HIGHEST_RATE:
            raise UsageError(
                f"a rate of {rate!r:.40} is no whole number of requests per second from 1 to "
                f"{HIGHEST_RATE}, the most the exchange allows"
            )
        self.rate = rate
        self._places = [Turn(0.0, 0.0) for _ in range(rate)]  # the last of each
        self._took: deque[float] = deque(maxlen=60)
        self._held_until = 0.0
        self._slowed_at = 0.0
        self._door = threading.Lock()  # whoever holds it goes next
        self._lock = threading.Lock()

    @property
    def abreast(self) -> float:
        """How many requests have to be under way at once to use the rate, at the latency seen."""
        with self._lock:
            average = sum(self._took) / len(self._took) if self._took else 0.0
            return len(self._places) * average

    def turn(self, stopping: threading.Event) -> Turn:
        """Wait until a request may go.

        Raises:
            Stopped: ``stopping`` was set meanwhile.
        """
        with self._door:
            while True:
                with self._lock:
                    here = clock()
                    former = min(self._places, key=lambda turn: turn.free_at)
                    if max(former.free_at, self._held_until) <= here and not stopping.is_set():
                        told = min(self._took, default=1.0) < 1.0
                        late = _LATE if told else _LATE_UNTOLD
                        turn = Turn(here, here + _SECOND + late)
                        self._places[self._places.index(former)] = turn
                        return turn
                    free = here
                    if former.free_at > here:
                        # An answer that is still to come may free a place once its second is over.
                        seconds = (turn.at + _SECOND for turn in self._places)
                        free = min([former.free_at, *(end for end in seconds if end > here)])
                nap(max(free, self._held_until) - here, stopping)

    def answered(self, turn: Turn) -> None:
        """Say that the answer to a request is here, or never comes."""
        with self._lock:
            here = clock()
            took = here - turn.at
            self._took.append(took)
            turn.free_at = turn.at + _SECOND + min(took - min(self._took), _LATE)
            if here - self._slowed_at > _CLEAN_SECONDS and len(self._places) < self.rate:
                self._slowed_at = here
                self._places.append(Turn(here, here + _SECOND + _LATE))

    def refused(self, turn: Turn, seconds: float) -> None:
        """Let nobody send for so many seconds, and a third less from then on.

        Requests that were sent before the last refusal say nothing new about the rate.
        """
        with self._lock:
            here = clock()
            self._held_until = max(self._held_until, here + min(seconds, LONGEST_HOLD))
            if turn.at > self._slowed_at:
                # The places that are free last stay, so that no second sees more than before.
                self._places.sort(key=lambda turn: turn.free_at)
                del self._places[: -max(1, len(self._places) * 2 // 3)]
            self._slowed_at = here

    def heed(self, headers: Mapping[str, str]) -> None:
        """Let nobody send until the limit is reset, where an answer says that nothing remains.

        The reset is read as seconds to wait, or as the second since 1970 when it is one.
        """
        remaining = _number(headers.get("x-ratelimit-remaining"))
        if remaining is None or remaining >= 1:
            return
        reset = _number(headers.get("x-ratelimit-reset"))
        seconds = 1.0 if reset is None else reset
        if seconds > 1e9:
            seconds -= time.time()
        with self._lock:
            until = clock() + min(max(seconds, 0.0), LONGEST_HOLD)
            self._held_until = max(self._held_until, until)


def _number(text: str | None) -> float | None:
    # Not float(): "nan" and "inf" are none.
    return float(text) if text and re.fullmatch(r"\d{1,13}(\.\d{1,9})?", text, re.ASCII) else None
