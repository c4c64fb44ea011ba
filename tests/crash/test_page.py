"""docs/durability.md names tests: they exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TESTS.parent / "docs/durability.md").read_text()))
    defined = {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }

    assert len(named) > 20
    assert named - defined == set()


def test_every_guarantee_is_on_the_page() -> None:
    page = (TESTS.parent / "docs/durability.md").read_text()

    assert [n for n in range(1, 21) if f"| G{n} |" not in page] == []
