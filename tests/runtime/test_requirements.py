"""docs/requirements.md has every row, and names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.runtime.conftest import ROOT

PAGE = (ROOT / "docs" / "requirements.md").read_text()
ROWS = {"S0": 41, "S1": 82, "S2": 46, "S3": 68, "S4": 63}


def test_every_test_that_is_named_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)", PAGE))

    assert len(named) > 300
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []


@pytest.mark.parametrize("document", ROWS)
def test_every_row_is_there_once(document):
    rows = [int(number) for number in re.findall(rf"^\| {document}\.(\d+) \|", PAGE, re.M)]

    assert rows == list(range(1, ROWS[document] + 1))


def test_every_row_names_a_test_a_page_other_rows_or_why_not():
    shown = dict(re.findall(r"^\| (S\d\.\d+) \|.*\| ([^|]*) \|$", PAGE, re.M))
    known = r"`test_\w+|\]\(|S\d\.\d|left out|nothing is promised|ruff"

    assert len(shown) == 300
    assert [row for row, by in shown.items() if not re.search(known, by)] == []
