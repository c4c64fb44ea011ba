"""Where the real recordings lie: beside the checkout, never inside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "real"

needed = pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/real is not on this machine")


def files(pattern: str) -> list[Path]:
    """Return the recordings that match, none where the folder is absent."""
    return sorted(FOLDER.glob(pattern))
