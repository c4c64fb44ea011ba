"""Asking again where that may help, for what asks one question after the other.

What reads many pages at once (`coinbase`) has its own way: there a failure has to wake and end the
others, and a refusal has to hold them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from statestore.fills.sources.pace import LONGEST_HOLD

T = TypeVar("T")


class Failed(Exception):
    """One request without an answer to work with; its text is made for people.

    Attributes:
        passing: whether the same request may well succeed later.
        retry_after: seconds the other side asks to wait.
        tries: requests that were made until it was given up.
    """

    def __init__(self, said: str, *, passing: bool, retry_after: float | None = None) -> None:
        super().__init__(said)
        self.passing = passing
        self.retry_after = retry_after
        self.tries = 0


class Patience:
    """How often a host is asked, and for how long.

    Args:
        attempts: requests for one answer at most.
        give_up_after: seconds after which it is not asked for again.
        wait_initial, wait_max: seconds between two attempts, doubling from one to the other.
        wary: a host that was given up on is asked once for each answer, until one comes.
    """

    def __init__(
        self,
        *,
        attempts: int,
        give_up_after: float,
        wait_initial: float,
        wait_max: float,
        wary: bool = False,
    ) -> None:
        self._attempts = attempts
        self._give_up_after = give_up_after
        self._waits = wait_initial, wait_max
        self._wary = wary
        self._down = False

    def ask(self, once: Callable[[], T]) -> T:
        """Return what `once` gives.

        Raises:
            Failed: the last one, where it does not pass or came too often.
        """
        import stamina

        tries = 0
        initial, longest = self._waits
        try:
            for attempt in stamina.retry_context(
                on=_again,
                attempts=1 if self._down else self._attempts,
                timeout=self._give_up_after,
                wait_initial=initial,
                wait_max=longest,
                wait_jitter=initial,
            ):
                with attempt:
                    tries += 1
                    answer = once()
                    self._down = False
                    return answer
        except Failed as failed:
            self._down = self._wary and failed.passing
            failed.tries = tries
            raise
        raise AssertionError("a retry context ends by a return or an error")


def _again(error: Exception) -> bool | float:
    if not isinstance(error, Failed):
        return False
    if error.passing and error.retry_after is not None:
        return min(error.retry_after, LONGEST_HOLD)
    return error.passing
