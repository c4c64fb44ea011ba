"""docs/requirements.md names tests that exist."""

from __future__ import annotations

import re

from tests.runtime.conftest import ROOT

PAGE = (ROOT / "docs" / "requirements.md").read_text()


def test_every_test_that_is_named_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))

    assert named
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []


def test_every_row_of_s3_that_is_no_database_is_there():
    rows = {int(number) for number in re.findall(r"^\| S3\.(\d+) \|", PAGE, re.M)}
    databases = {12, 28, 29, 32, 34, 35, 41, 51}

    assert set(range(1, 69)) - rows == databases


def test_every_row_names_a_test_a_page_or_other_rows():
    shown = dict(re.findall(r"^\| (S3\.\d+) \|[^|]*\| ([^|]*) \|$", PAGE, re.M))

    assert len(shown) == 60
    bare = [row for row, by in shown.items() if not re.search(r"`test_\w+`|\]\(|S3\.\d", by)]
    assert bare == []
