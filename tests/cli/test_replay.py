"""``statestore replay``: one JSON document on stdout, what is odd about it on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statestore.simulated import fills


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in fills(*texts)))
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "statestore", "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def only(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["files"]
    return dict(found)


def test_positions_come_out_with_every_figure(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "fills.jsonl",
        "BUY .010 BTC-USD @ 60000 fee 3.60",
        "BUY .020 BTC-USD @ 63000 fee 7.56",
        "SELL .012 BTC-USD @ 65000 fee 4.68",
    )
    ran = run(path)

    assert only(ran)["assets"] == {
        "BTC": {
            "status": "EXACT",
            "units": 0.018,
            "entry_price": 62000,
            "cost": 1116,
            "currency": "USD",
            "break_even": 62372,
            "realised": 36,
            "realised_net": 26.856,
            "fees": {"USD": 6.696},
            "uncovered": 0,
            "opened_at": "2025-11-18T04:00:00Z",
            "fills": 3,
            "first_fill": "2025-11-18T04:00:00Z",
            "last_fill": "2025-11-18T04:02:00Z",
        }
    }
    assert ran.stderr == ""


def test_what_was_sold_and_never_bought_is_named(tmp_path: Path) -> None:
    ran = run(lines(tmp_path / "fills.jsonl", "BUY 1 BTC-USD @ 2", "SELL 3 BTC-USD @ 2"))

    assert only(ran)["assets"]["BTC"]["status"] == "UNCOVERED"
    assert only(ran)["assets"]["BTC"]["uncovered"] == 2
    assert "2 BTC more were sold than the fills bought" in ran.stderr


def test_what_no_fill_can_tell_is_ambiguous(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "fills.jsonl",
        "BUY .5 BTC-USD @ 60000 trade t1",
        "REVERSAL BUY .5 BTC-USD @ 60000 trade t1",
    )
    ran = run(path)

    assert only(ran)["ambiguous"] == ["BTC"]
    assert only(ran)["assets"]["BTC"]["status"] == "AMBIGUOUS"
    assert "BTC is ambiguous" in ran.stderr


def test_rejected_skipped_and_double_rows_are_told(tmp_path: Path) -> None:
    path = lines(tmp_path / "fills.jsonl", "BUY 1 BTC-USD @ 2", "BUY 1 BIP-20DEC30-CDE @ 2")
    first = path.read_text().splitlines()[0]
    unknown_side = first.replace('"BUY"', '"HOLD"')
    path.write_text(f"{path.read_text()}{first}\n{unknown_side}\n")
    ran = run(path)
    found = only(ran)

    assert found["duplicates"] == 1
    assert found["fills_skipped"] == {"futures": 1}
    assert found["skipped_products"] == ["BIP-20DEC30-CDE"]
    assert [row["origin"] for row in found["fills_rejected"]] == ["fills.jsonl line 4"]
    assert "1 row(s) are rejected and in no figure" in ran.stderr
    assert "line 4: side is 'HOLD', neither BUY nor SELL" in ran.stderr


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_window_leaves_out_what_was_filled_outside_of_it(tmp_path: Path, jobs: str) -> None:
    path = lines(tmp_path / "fills.jsonl", *["BUY 1 BTC-USD @ 2"] * 4)
    window = ["--since", "2025-11-18T04:01:00Z", "--until", "2025-11-18T04:03:00Z"]

    assert only(run(path, "--jobs", jobs, *window))["assets"]["BTC"]["fills"] == 2


def test_several_processes_print_the_same_document(tmp_path: Path) -> None:
    texts = ["BUY 2 BTC-USD @ 2 fee .1", "SELL 1 BTC-USD @ 3", "SELL 1 BTC-USD @ 4"]
    path = lines(tmp_path / "fills.jsonl", *texts * 2000)
    assert path.stat().st_size > 2 << 20

    assert run(path, "--jobs", "2").stdout == run(path).stdout


@pytest.mark.parametrize("method", ["fifo", "lifo"])
def test_lots_are_taken_in_turn(tmp_path: Path, method: str) -> None:
    path = lines(
        tmp_path / "fills.jsonl", "BUY 1 BTC-USD @ 2", "BUY 1 BTC-USD @ 3", "SELL 1 BTC-USD @ 5"
    )
    entry = only(run(path, "--method", method, "--jobs", "2"))["assets"]["BTC"]["entry_price"]

    assert entry == {"fifo": 3, "lifo": 2}[method]


def test_every_file_has_an_answer_of_its_own(tmp_path: Path) -> None:
    one, other = lines(tmp_path / "a", "BUY 1 A-USD @ 2"), lines(tmp_path / "b", "BUY 1 B-USD @ 2")

    answers = json.loads(run(one, other).stdout)["files"]
    assert [list(answer["assets"]) for answer in answers] == [["A"], ["B"]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.jsonl"], 5, "cannot read nowhere.jsonl"),
        ([__file__], 5, "expected a List Fills page"),
        ([], 2, "Missing argument 'FILE...'"),
        (
            ["x", "--since", "2025-01-02T00:00:00Z", "--until", "2025-01-01T00:00:00Z"],
            2,
            "is not before",
        ),
        (["x", "--jobs", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], code: int, words: str) -> None:
    ran = run(*arguments)

    assert ran.returncode == code
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
