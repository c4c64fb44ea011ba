"""Requests at once: waits are written down, and pass on a clock that nothing else moves."""

from __future__ import annotations

import threading

import pytest

from statestore.fills.sources import pace


def pass_at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that would have been waited from now on, in order.

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
    return waited
