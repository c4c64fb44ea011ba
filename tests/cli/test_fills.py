"""``statestore fills``: the audit trail on stdout, in three formats."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.simulated import SimulatedExchange, fills
from tests.cli.conftest import Ran, Run

WINDOW = ("--since", "2025-11-18T04:00:00Z", "--until", "2025-11-20T00:00:00Z")
ROWS = fills(
    "BUY .010 BTC-USD @ 60000 fee 3.60",
    "BUY .020 BTC-USD @ 63000 fee 7.56",
    "SELL .012 BTC-USD @ 65000 fee 4.68",
    "BUY 2.6399716828 ETH-USD @ 2975.32 fee 0.0316796601936 quote",
)


@pytest.fixture
def trail(statestore: Run, state_file: Path, tmp_path: Path) -> Run:
    """Run ``statestore fills`` on recorded rows, without a state unless there is one."""

    def trail(*arguments: object, rows: Any = ROWS) -> Ran:
        recorded = tmp_path / "fills.json"
        recorded.write_text(json.dumps(rows))
        given = ("--state", state_file, "--fills", recorded, *WINDOW)
        return statestore("fills", *given, *arguments)

    return trail


def test_the_document_has_each_fill_and_what_it_led_to(trail: Run) -> None:
    ran = trail()

    assert ran.code == 0, ran.err
    assert ran.json["schema"] == "statestore.fills/1"
    steps = [
        (r["asset"], r["running"], r["cost"], r["entry_price"], r["realised"])
        for r in ran.json["fills"]
    ]
    assert steps == [
        ("BTC", "0.01", "600", "60000", "0"),
        ("BTC", "0.03", "1860", "62000", "0"),
        ("BTC", "0.018", "1116", "62000", "36"),
        ("ETH", "0.00088729", "2.6399716828", "2975.32", "0"),
    ]
    assert [a["status"] for a in ran.json["assets"]] == ["EXACT", "EXACT"]


def test_json_lines_are_the_same_records(trail: Run) -> None:
    lines = [json.loads(line) for line in trail("--format", "jsonl").out.splitlines()]

    assert lines == trail().json["fills"]


def test_csv_is_the_same_records_with_a_header(trail: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(trail("--format", "csv").out)))
    records = trail().json["fills"]

    assert [list(row) for row in rows] == [list(record) for record in records]
    for row, record in zip(rows, records, strict=True):
        for name, value in record.items():
            assert row[name] == ("true" if value is True else value or "")


def test_no_text_becomes_a_formula_and_no_number_becomes_a_text(trail: Run) -> None:
    rows = fills("BUY 1 =cmd|calc!A0-USD @ 100", "SELL .4 =cmd|calc!A0-USD @ 110 id @sum")
    bought, sold = csv.DictReader(io.StringIO(trail("--format", "csv", rows=rows).out))

    assert bought["product_id"] == "'=cmd|calc!A0-USD"
    assert bought["asset"] == "'=cmd|calc!A0"
    assert sold["entry_id"] == "'@sum"
    assert Decimal(sold["units"]) == Decimal("-0.4")
    for cell in (*bought.values(), *sold.values()):
        assert not cell.startswith(("=", "+", "@", "\t", "\r"))


def test_only_the_asset_that_was_asked_for(trail: Run) -> None:
    ran = trail("--asset", "eth-usd")

    assert {record["asset"] for record in ran.json["fills"]} == {"ETH"}
    assert [asset["asset"] for asset in ran.json["assets"]] == ["ETH"]


def test_a_name_that_nobody_knows_is_a_usage_error(trail: Run) -> None:
    ran = trail("--asset", "XYZ")

    assert ran.code == 2
    assert "XYZ" in ran.error
    assert ran.out == ""


def test_a_row_that_is_rejected_is_told(trail: Run) -> None:
    ran = trail(rows=[*ROWS, dict(ROWS[0]) | {"side": "?", "entry_id": "odd"}])

    assert ran.json["read"]["rejected"][0]["entry_id"] == "odd"
    assert "cannot be read for certain" in ran.err
    assert trail("--quiet").err == ""


def test_a_damaged_state_is_an_error(trail: Run, state_file: Path) -> None:
    state_file.write_bytes(b"{")

    assert trail().code == 8


def test_nothing_is_made_where_there_is_nothing(trail: Run, state_file: Path) -> None:
    trail()

    assert list(state_file.parent.iterdir()) == []


def test_figures_are_those_of_the_rebuild(
    statestore: Run, rebuild: Run, exchange: SimulatedExchange, state_file: Path
) -> None:
    planned = rebuild("--dry-run", state={"positions": {}})
    state_file.unlink()
    ran = statestore("fills", "--state", state_file)

    assert ran.code == 0, ran.err
    for asset in ran.json["assets"]:
        change = planned.change(asset["asset"])
        assert {name: change[name] for name in asset} == asset
        last = [r for r in ran.json["fills"] if r["asset"] == asset["asset"]][-1]
        assert [last["running"], last["cost"], last["entry_price"], last["realised"]] == [
            asset["quantity"],
            asset["cost"],
            asset["entry_price"],
            asset["realised"],
        ]
