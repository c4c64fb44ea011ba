"""Fixtures of the crash laboratory: a fast disk to put images on, and how much is to be run.

A default run is bounded to about a minute; ``STATESTORE_CRASH=full`` runs all of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import subjects, tracing
from tests.crash.lab import Tally

FULL = os.environ.get("STATESTORE_CRASH") == "full"


@pytest.fixture
def full() -> bool:
    return FULL


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put images into memory: what a flush does is decided by the laboratory, not by this disk."""
    memory = Path("/dev/shm")  # a folder of our own is made in it
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="lab-", dir=memory if usable else None) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with subjects.quiet():
            yield


@pytest.fixture
def strace() -> None:
    if why := tracing.why_not():
        pytest.skip(why)


@pytest.fixture
def clean(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> object:
    """Print a tally and require that nothing was violated."""

    def check(tally: Tally) -> None:
        print(f"{request.node.name}: {tally.cases} cases, {tally.distinct} distinct disks")  # noqa: T201
        assert tally.cases
        assert tally.violations == {}, tally.examples

    return check
