"""``statestore explain``: what a tired person reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statestore.model import Status
from statestore.simulated import SimulatedExchange, fills
from tests.cli.conftest import Ran, Run
from tests.cli.test_fills import ROWS, WINDOW


@pytest.fixture
def explain(statestore: Run, state_file: Path, tmp_path: Path) -> Run:
    def explain(
        asset: str, *arguments: object, rows: Any = ROWS, state: object = None, **balances: str
    ) -> Ran:
        given: list[object] = ["--state", state_file, "--fills", tmp_path / "fills.json", *WINDOW]
        (tmp_path / "fills.json").write_text(json.dumps(rows))
        if balances:
            (tmp_path / "balances.json").write_text(json.dumps(balances))
            given += ["--balances", tmp_path / "balances.json"]
        if state is not None:
            state_file.write_text(json.dumps({"positions": state}))
        ran = statestore("explain", asset, *given, *arguments)
        assert all(len(line) <= 80 for line in ran.out.splitlines()) or "--format" in arguments
        return ran

    return explain


def test_the_whole_story_of_a_proven_quantity(explain: Run) -> None:
    state = {"BTC-USD": {"quantity": 0.03, "entry_price": 62000.0}}
    ran = explain("btc", state=state, BTC="0.018")

    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert ran.out.startswith("BTC: EXACT\nProven: ")
    assert "Balance      0.018" in ran.out
    assert "Entry price  62000 USD" in ran.out
    assert "reach zero before this one: BUY 0.01 BTC" in " ".join(ran.out.split())
    assert "2025-11-18 04:02:00              -0.012               65000" in ran.out
    assert "0.018                1116               62000                  36" in ran.out
    assert "quantity  0.03 -> 0.018" in ran.out
    assert "entry_price  62000" not in ran.out
    assert "settle" not in ran.out


def test_what_is_recorded_the_same_is_said_to_be(explain: Run) -> None:
    state = {
        "BTC-USD": {
            "quantity": 0.018,
            "entry_price": 62000,
            "entry_time": "2025-11-18T04:00:00.000000+00:00",
        }
    }

    assert "BTC-USD: the same." in explain("BTC", state=state, BTC="0.018").out


@pytest.mark.parametrize(
    ("status", "balances", "state", "words"),
    [
        (
            Status.PARTIAL,
            {"BTC": "0.6"},
            {},
            ["--assume-entry BTC=PRICE", "0.582 BTC", "--accept-partial"],
        ),
        (Status.UNEXPLAINED_OUTFLOW, {"BTC": "0.001"}, {}, ["withdrawal", "go below zero"]),
        (Status.UNCOVERED, {}, {"BTC-USD": {"quantity": 5}}, ["--balances FILE", "not at hand"]),
        (
            Status.AMBIGUOUS,
            {"BTC": "0.018"},
            {"BTC-USD": {"quantity": 1}, "BTC": {"quantity": 1}},
            ["statestore edit"],
        ),
    ],
)
def test_what_is_not_proven_says_what_would_settle_it(
    explain: Run, status: Status, balances: dict[str, str], state: object, words: list[str]
) -> None:
    ran = explain("BTC", state=state, **balances)

    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"BTC: {status.value}\n")
    assert "What would settle it" in ran.out
    for word in words:
        assert word in " ".join(ran.out.split())


def test_what_was_said_is_followed(explain: Run) -> None:
    ran = explain("BTC", "--assume-entry", "BTC=50000", BTC="0.6")

    assert ran.out.startswith("BTC: ASSUMED\n")
    assert "0.582 BTC: at 50000 USD, as you said" in " ".join(ran.out.split())


def test_a_carried_entry_is_the_recorded_one(explain: Run) -> None:
    state = {
        "BTC-USD": {"quantity": 1, "entry_price": 50000, "last_updated": "2025-11-18T04:00:00Z"}
    }
    rows = fills("SELL .4 BTC-USD @ 60000", start="2025-11-18T05:00:00Z")
    ran = explain("BTC", rows=rows, state=state, BTC="0.6")

    assert ran.out.startswith("BTC: CARRIED\n")
    assert "1 BTC: at 50000 USD, as the state records" in " ".join(ran.out.split())
    assert "4000" in ran.out


def test_a_long_trail_is_cut_in_the_middle(explain: Run) -> None:
    rows = fills(*["BUY 1 BTC-USD @ 100"] * 50)
    cut, whole = explain("BTC", rows=rows, BTC="50"), explain("BTC", "--all", rows=rows, BTC="50")

    assert "... 10 fills left out; --all shows them ..." in cut.out
    assert cut.out.count("2025-11-18 04:") == 40
    assert whole.out.count("2025-11-18 04:") == 50


def test_the_document_has_every_digit_and_the_text_says_where_it_cuts(explain: Run) -> None:
    rows = fills("BUY 1.234567890123456789012 BTC-USD @ 3", "BUY 2 BTC-USD @ 7")
    text = explain("BTC", rows=rows)
    document = explain("BTC", "--format", "json", rows=rows).json

    assert "1.2345678901234567" in text.out
    assert "…" in text.out
    assert document["schema"] == "statestore.explain/1"
    assert document["fills"][0]["units"] == "1.234567890123456789012"
    assert document["proven"] is True
    assert document["balance"] is None
    assert document["would_settle_it"] == []


def test_a_flat_asset_is_explained_too(explain: Run) -> None:
    rows = fills("BUY 1 BTC-USD @ 100", "SELL 1 BTC-USD @ 110")
    ran = explain("BTC", rows=rows, BTC="0")

    assert "Nothing is held" in ran.out
    assert "Realised     10 before fees" in ran.out


def test_a_name_that_nobody_knows_is_a_usage_error(explain: Run) -> None:
    ran = explain("XYZ")

    assert ran.code == 2
    assert "XYZ" in ran.error


def test_what_is_held_and_neither_recorded_nor_filled_is_explained(
    statestore: Run, exchange: SimulatedExchange, state_file: Path
) -> None:
    ran = statestore("explain", "ADA", "--state", state_file)

    assert ran.code == 0, ran.err
    assert ran.out.startswith("ADA: PARTIAL\n")
