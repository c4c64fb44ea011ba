"""How an answer of Coinbase is got, by many threads at once: asked again where that may help.

What is promised: a request is sent again with a fresh token and never beyond the pace of all; a
failure wakes and ends the others; a final failure says what was asked, what was answered, and what
to do. What is given out is no client, just a function that reads; what may leave at all is decided
in `coinbase_client`. Each thread that reads has a client of its own.

What asks one question after the other has `patience`.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from statestore.errors import CredentialsError, ExchangeError, IncompleteRead, NotFound, SourceError
from statestore.fills.sources import pace as pacing
from statestore.fills.sources.coinbase_client import (
    BASE_URL,
    NEVER_SENT,
    TIME,
    Client,
    Refused,
    of_nobody,
    read_only_client,
)
from statestore.fills.sources.credentials import Credentials
from statestore.fills.sources.pace import DEFAULT_RATE, LONGEST_HOLD, Pace
from statestore.times import NANOSECONDS, now

# Path, parameters, and an event that ends the asking.
Get = Callable[[str, Mapping[str, object], threading.Event], dict[str, object]]
NEVER = threading.Event()  # of what is asked until there is an answer


def reader(
    credentials: Credentials,
    pace: Pace,
    *,
    base_url: str,
    timeout: tuple[float, float],
    ca_file: Path | None,
    attempts: int,
    **patience: float,
) -> Get:
    """Return what reads a path with its parameters, from any thread.

    Args:
        attempts: requests for one answer at most.
        patience: ``give_up_after``, ``wait_initial`` and ``wait_max``, all of them.

    Raises:
        CredentialsError: the secret cannot sign; found out here, before anything is sent.
        UsageError: ``base_url`` is not a host.
    """

    def make() -> Client:
        return read_only_client(credentials, base_url=base_url, timeout=timeout, ca_file=ca_file)

    return _Asking(_lender(make, pace), pace, host=base_url, attempts=attempts, **patience)


def public_reader(
    *,
    base_url: str = BASE_URL,
    ca_file: Path | None = None,
    rate: int = DEFAULT_RATE,
    attempts: int = 5,
    **patience: float,
) -> Callable[[str, Mapping[str, object]], dict[str, object]]:
    """Return what reads a public path with its parameters, as `reader` does. Needs no key.

    Args:
        attempts: for one answer at most; one, while the exchange was just given up on.
        patience: ``give_up_after``, ``wait_initial`` and ``wait_max``, all of them.

    Raises:
        UsageError: ``base_url`` is not a host, or ``rate`` none the exchange allows.
    """
    pace = Pace(rate)
    nobody = of_nobody()
    lend = _lender(lambda: read_only_client(nobody, base_url=base_url, ca_file=ca_file), pace)
    patiently, once = (
        _Asking(lend, pace, host=base_url, attempts=number, **patience) for number in (attempts, 1)
    )
    given_up = False

    def read(path: str, params: Mapping[str, object]) -> dict[str, object]:
        nonlocal given_up
        try:
            answer = (once if given_up else patiently)(path, params, NEVER)
        except _GaveUp:
            given_up = True
            raise
        given_up = False
        return answer

    return read


class _GaveUp(ExchangeError):
    """Asked as often as allowed, without an answer; later there may well be one."""


Lend = Callable[[], AbstractContextManager[Client]]


def _lender(make: Callable[[], Client], pace: Pace) -> Lend:
    """Return what lends a client that nobody else uses meanwhile: a session is for one thread.

    As many clients come to be as are needed at once.
    """

    def made() -> Client:
        client = make()
        client.session.hooks["response"].append(
            lambda response, **_options: pace.heed(response.headers)
        )
        return client

    idle = [made()]  # at once: a secret that cannot sign is found out before anything is sent

    @contextmanager
    def lend() -> Iterator[Client]:
        try:
            client = idle.pop()
        except IndexError:
            client = made()
        try:
            yield client
        finally:
            idle.append(client)

    return lend


class _Asking:
    """Asks again where that may help, each time with a fresh token, and explains a final failure.

    Args:
        lend: gives a client for one request.
        host: for messages.
        attempts: requests for one answer at most; ``give_up_after`` in seconds.
        wait_initial, wait_max: seconds between two attempts, doubling from one to the other.
    """

    def __init__(
        self,
        lend: Lend,
        pace: Pace,
        *,
        host: str,
        attempts: int,
        give_up_after: float,
        wait_initial: float,
        wait_max: float,
    ) -> None:
        self._lend = lend
        self._pace = pace
        self._host = host
        self._attempts = attempts
        self._give_up_after = give_up_after
        self._wait_initial = wait_initial
        self._wait_max = wait_max

    def __call__(
        self, path: str, params: Mapping[str, object], stopping: threading.Event
    ) -> dict[str, object]:
        import stamina

        tries = 0
        wait = 0.0
        try:
            for attempt in stamina.retry_context(
                on=_again(),
                attempts=self._attempts,
                timeout=self._give_up_after,
                wait_initial=self._wait_initial,
                wait_max=self._wait_max,
            ):
                with attempt:
                    if wait:
                        pacing.nap(wait, stopping)
                    tries += 1
                    try:
                        return self._once(path, params, stopping, attempt.next_wait)
                    except Refused as refused:
                        wait = refused.wait
                        raise
        except Refused as refused:
            clock = ""
            if refused.status == 401:
                clock = _clock(lambda: self._once(TIME, {}, stopping))
            raise _explained(refused, self._host, path, tries, clock) from refused
        raise AssertionError("a retry context ends by a return or an error")

    def _once(
        self,
        path: str,
        params: Mapping[str, object],
        stopping: threading.Event,
        next_wait: float = 0.0,
    ) -> dict[str, object]:
        with self._lend() as client:  # made before its turn comes, which is when it has to be sent
            turn = self._pace.turn(stopping)
            try:
                return client.get(path, params=dict(params))
            except Refused as refused:
                jittered = min(next_wait + random.uniform(0, self._wait_initial), self._wait_max)
                asked_for = refused.retry_after
                refused.wait = jittered if asked_for is None else min(asked_for, LONGEST_HOLD)
                if refused.status == 429:
                    self._pace.refused(turn, refused.wait)
                    refused.wait = 0.0
                raise
            finally:
                self._pace.answered(turn)


def _again() -> Callable[[Exception], bool | float]:
    """Return the judge of one request's failures: ask again or not.

    "Again" is said as 0.0, no seconds: stamina would sleep where nothing can wake it.
    """
    unauthorised = 0

    def judge(error: Exception) -> bool | float:
        nonlocal unauthorised
        if not isinstance(error, Refused):
            return False
        if error.status == 401:
            # Valid tokens are refused now and then. Once; a wrong key stays wrong.
            unauthorised += 1
            return 0.0 if unauthorised == 1 else False
        return 0.0 if error.passing else False

    return judge


def _explained(refused: Refused, host: str, path: str, tries: int, clock: str) -> SourceError:
    what = f"{host}: GET {path}: {refused}"
    if refused.status == 401:
        return CredentialsError(
            f"{what}: the key is refused; {clock}; otherwise check that key and "
            "secret belong together, that the key still exists, and the addresses it is limited to"
        )
    if refused.status == 403:
        return CredentialsError(
            f"{what}: the key may not read this; give it the View permission for its portfolio"
        )
    if refused.status == 404:
        return NotFound(what)
    if 300 <= refused.status < 400:
        return ExchangeError(f"{what}: a redirect, which is never followed; check the base URL")
    if refused.status == NEVER_SENT:
        return ExchangeError(f"{what}; check the settings of proxy and certificates")
    if not refused.passing:
        return ExchangeError(what)
    return _GaveUp(f"{what}; gave up after {tries} attempts, nothing was computed; try again later")


def _clock(ask: Callable[[], dict[str, object]]) -> str:
    """Return how far the clock here is off, the usual reason for a refused token."""
    try:
        ahead = (now() - server_instant(ask())) / NANOSECONDS
    except (Refused, IncompleteRead):
        return "if the clock here is off, set it (a token lives 120 s)"
    if abs(ahead) < 2:
        return "the clock here agrees with the exchange's"
    direction = "ahead of" if ahead > 0 else "behind"
    return (
        f"the clock here is {abs(ahead):.0f} s {direction} the exchange's and a token lives "
        "120 s: set the clock"
    )


def server_instant(answer: Mapping[str, object]) -> int:
    """Return what an answer of `TIME` says the time is.

    Raises:
        IncompleteRead: it does not say.
    """
    milliseconds = answer.get("epochMillis")
    if not re.fullmatch(r"\d{1,13}", str(milliseconds), re.ASCII):
        raise IncompleteRead(f"{TIME}: epochMillis is {milliseconds!r:.40}, not a number")
    return int(str(milliseconds)) * 1_000_000
