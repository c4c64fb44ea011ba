"""Recorded files are recognised by content, whatever their name."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from statestore.errors import IncompleteRead
from statestore.fills.normalise import normalise
from statestore.fills.sources.recorded import CSV_COLUMNS, read_balances, read_fills
from statestore.simulated import fills

ROWS = fills("BUY 1 BTC-USD @ 100", "SELL .5 BTC-USD @ 110", "BUY 2 ETH-USD @ 3 quote")
PAGE = {"fills": ROWS, "cursor": ""}
CSV = (
    ",".join(CSV_COLUMNS)
    + "\ndefault,7,BTC-USD,BUY,2025-11-18T04:00:00.5Z,1.5,BTC,100,.3,-150.3,USD"
    + "\ndefault,7,ETH-BTC,SELL,2025-11-18T05:00:00Z,1E+1,ETH,.05,1e-3,.499,BTC"
)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(PAGE),
        json.dumps(PAGE, indent=2),
        json.dumps(ROWS),
        "\n".join(json.dumps(row) for row in ROWS),
        "\n\n".join(json.dumps(row) for row in ROWS) + "\n",
        "\ufeff" + json.dumps(PAGE),
        "\n".join(
            [
                json.dumps({"fills": ROWS[:2], "cursor": "a+b/c="}),
                json.dumps({"fills": ROWS[2:], "cursor": ""}),
            ]
        ),
    ],
    ids=["page", "indented", "list", "lines", "blank lines", "bom", "pages"],
)
def test_formats_of_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "whatever.csv"
    path.write_text(content)
    found = normalise([read_fills(path)])

    assert [fill.entry_id for fill in found.fills] == [row["entry_id"] for row in ROWS]
    assert not found.rejected


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_statement(tmp_path: Path, end: str, mark: str) -> None:
    path = tmp_path / "statement.json"
    path.write_text(mark + CSV + end)
    bought, sold = normalise([read_fills(path)]).fills

    assert (bought.units, bought.notional, bought.commission) == (
        Decimal("1.5"),
        Decimal(150),
        Decimal(".3"),
    )
    assert (sold.base, sold.quote, sold.units) == ("ETH", "BTC", 10)
    assert bought.entry_id != sold.entry_id, "one trade id numbers two products"
    assert bought.origin == "statement.json line 2"


def test_a_statement_line_that_stands_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "statement.csv"
    path.write_text(CSV + "\n" + CSV.splitlines()[1])
    found = normalise([read_fills(path)])

    assert (len(found.fills), found.duplicates) == (2, 1)


def test_pages_that_lead_on_are_not_the_whole_story(tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps(PAGE | {"cursor": "789100"}))

    with pytest.raises(IncompleteRead, match="789100"):
        read_fills(path)


ACCOUNT = {"currency": "BTC", "available_balance": {"value": "1"}, "hold": {"value": ".5"}}


@pytest.mark.parametrize(
    ("content", "complete"),
    [
        ({"BTC": "1.5"}, False),
        ({"BTC": 1.5}, False),
        ({"accounts": [ACCOUNT], "has_next": False, "cursor": ""}, True),
        ([{"accounts": [ACCOUNT], "has_next": True}, {"accounts": [], "has_next": False}], True),
        ([ACCOUNT], True),
    ],
)
def test_formats_of_balances(tmp_path: Path, content: object, complete: bool) -> None:
    path = tmp_path / "balances"
    path.write_text(json.dumps(content))
    found = read_balances(path)

    assert found.of("BTC") == Decimal("1.5")
    assert found.of("ETH") == (0 if complete else None)


def test_accounts_that_go_on_are_not_the_whole_wallet(tmp_path: Path) -> None:
    path = tmp_path / "balances"
    path.write_text(json.dumps({"accounts": [ACCOUNT], "has_next": True, "cursor": "x"}))

    with pytest.raises(IncompleteRead):
        read_balances(path)
