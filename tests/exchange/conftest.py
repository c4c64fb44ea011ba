"""The source under test, pointed at a simulated exchange, with waits written down, not waited."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from statestore.fills.sources import pace
from statestore.fills.sources.coinbase import CoinbaseSource, Credentials
from statestore.fills.sources.pace import Pace
from statestore.simulated import SimulatedExchange

MakeSource = Callable[..., CoinbaseSource]


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited, in order; they pass on a clock that nothing else moves.

    Several threads that wait at once wait for the same seconds.
    """
    waited: list[float] = []
    here = 1_000.0

    def nap(seconds: float, stopping: threading.Event) -> None:
        nonlocal here
        if stopping.is_set():
            raise pace.Stopped
        waited.append(seconds)
        here = max(here, clock() + seconds)

    def clock() -> float:
        return here

    monkeypatch.setattr(pace, "nap", nap)
    monkeypatch.setattr(pace, "clock", clock)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return waited


@pytest.fixture
def abreast(monkeypatch: pytest.MonkeyPatch) -> float:
    """As if answers took so long that this many have to be under way at once."""
    monkeypatch.setattr(Pace, "abreast", 8.0)
    return 8.0


@pytest.fixture
def exchange(fake_exchange: SimulatedExchange) -> SimulatedExchange:
    return fake_exchange


@pytest.fixture
def credentials(exchange: SimulatedExchange) -> Credentials:
    return Credentials(exchange.api_key, exchange.api_secret)


@pytest.fixture
def make_source(exchange: SimulatedExchange, credentials: Credentials) -> MakeSource:
    def make(**options: object) -> CoinbaseSource:
        defaults = {"base_url": exchange.base_url, "ca_file": exchange.ca_file}
        return CoinbaseSource(credentials, **defaults | options)

    return make


@pytest.fixture
def source(make_source: MakeSource) -> CoinbaseSource:
    return make_source()
