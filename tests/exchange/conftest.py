"""The source under test, pointed at a simulated exchange, with waits written down, not waited."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from statestore.fills.sources.coinbase import CoinbaseSource
from statestore.fills.sources.credentials import Credentials
from statestore.fills.sources.pace import Pace
from statestore.simulated import SimulatedExchange
from tests.waits import pass_at_once

MakeSource = Callable[..., CoinbaseSource]


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited, in order."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return pass_at_once(monkeypatch)


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
