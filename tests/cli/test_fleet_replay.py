"""``statestore fleet replay``: archives of many accounts, a partition at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.simulated import fills
from tests.cli.conftest import Ran, Run


def lines(path: Path, *texts: str, **overrides: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row | overrides for row in fills(*texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_account(ran: Ran) -> dict[str, dict[str, Any]]:
    return {one["account"]: one for one in ran.json["accounts"]}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Alice by asset; bob in one folder; carol sold what no fill bought; dave's file is torn."""
    root = tmp_path / "archive"
    btc, eth = (root / "account=alice" / f"asset={asset}" for asset in ("BTC", "ETH"))
    lines(btc / "part-0.jsonl", "BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
    lines(eth / "part-0.jsonl", "BUY 3 ETH-USD @ 10")
    lines(eth / "part-1.jsonl", "SELL 1 ETH-USD @ 12 at 2025-11-19T00:00:00Z")
    lines(root / "account=bob" / "fills.jsonl", "BUY 2 ETH-USD @ 10", "BUY 1 BTC-USD @ 300")
    lines(root / "account=carol" / "fills.jsonl", "BUY 1 BTC-USD @ 1", "SELL 2 BTC-USD @ 1")
    (root / "account=dave").mkdir()
    (root / "account=dave" / "fills.jsonl").write_text('{"entry_id": "1", ')
    (root / "account=dave" / "_SUCCESS").touch()
    return root


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_each_account_and_asset_is_replayed_by_itself(
    archive: Path, statestore: Run, executor: str
) -> None:
    ran = statestore("fleet", "replay", archive, "--executor", executor)
    told = by_account(ran)

    assert ran.code == 3
    assert {name: one["outcome"] for name, one in told.items()} == {
        "alice/BTC": "replayed",
        "alice/ETH": "replayed",
        "bob": "replayed",
        "carol": "unproven",
        "dave": "failed",
    }
    assert told["alice/BTC"]["assets"]["BTC"]["entry_price"] == 150
    assert told["alice/ETH"]["assets"]["ETH"]["units"] == 2
    assert told["bob"]["assets"]["BTC"]["cost"] == 300
    failures = {one["account"]: one for one in ran.json["failures"]}
    assert failures["carol"]["text"] == "BTC is UNCOVERED"
    assert (failures["dave"]["error"], failures["dave"]["exit_code"]) == ("RecordedFileError", 5)


def test_a_partition_is_what_replay_says_of_its_file(archive: Path, statestore: Run) -> None:
    fleet = by_account(statestore("fleet", "replay", archive / "account=bob"))["bob"]
    (single,) = statestore("replay", archive / "account=bob" / "fills.jsonl").json["files"]

    assert fleet["assets"] == single["assets"]


def test_a_cross_pair_has_no_place_in_a_partition_by_asset(tmp_path: Path, statestore: Run) -> None:
    folder = tmp_path / "account=alice" / "asset=ETH"
    lines(folder / "fills.jsonl", "BUY 1 ETH-USD @ 9", "SELL 1 ETH-BTC @ 0.05")
    ran = statestore("fleet", "replay", tmp_path)

    assert ran.code == 3
    (failure,) = ran.json["failures"]
    assert "move BTC as well as ETH; partition this archive by account alone" in failure["text"]
    assert "by account alone" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["fills.jsonl"], "does not say whose fills these are"),
        (["account=a/asset=BTC/f.jsonl", "account=a/f.jsonl"], "fills by asset and fills beside"),
        (["account=a/_SUCCESS"], "there is no file of fills"),
        (["account=a/f.jsonl", "account=a/notes.txt"], "notes.txt is no file of fills"),
    ],
)
def test_a_layout_that_is_not_understood_is_a_usage_error(
    tmp_path: Path, statestore: Run, paths: list[str], said: str
) -> None:
    for path in paths:
        lines(tmp_path / "in" / path, "BUY 1 BTC-USD @ 100")
    ran = statestore("fleet", "replay", tmp_path / "in")

    assert ran.code == 2
    assert said in ran.error


# Parquet -----------------------------------------------------------------------------------------


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True)
    write_table(arrow.Table.from_pylist(rows), path)


def test_parquet_says_what_the_same_rows_say_as_lines(tmp_path: Path, statestore: Run) -> None:
    texts = ("BUY 1.5 BTC-USD @ 100.25 fee 0.1", "BUY 50 BTC-USD @ 101 quote")
    lines(tmp_path / "account=alice" / "fills.jsonl", *texts)
    typed = [
        row
        | {name: Decimal(str(row[name])) for name in ("price", "size", "commission")}
        | {"trade_time": datetime(2025, 11, 18, 4, minute, 0, 123456, UTC), "liquidity": None}
        for minute, row in enumerate(fills(*texts))
    ]
    parquet(tmp_path / "account=bob" / "fills.parquet", fills(*texts))
    parquet(tmp_path / "account=carol" / "fills.parquet", typed)
    ran = statestore("fleet", "replay", tmp_path)
    told = by_account(ran)

    assert ran.code == 0, ran.err
    assert told["bob"]["assets"] == told["alice"]["assets"]
    btc = told["carol"]["assets"]["BTC"]
    assert btc.pop("first_fill") == "2025-11-18T04:00:00.123456Z"
    assert btc["entry_price"] == told["alice"]["assets"]["BTC"]["entry_price"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"price": 100.0}, "column price is double; expected a text or a decimal"),
        ({"trade_time": datetime(2025, 11, 18)}, "expected a zone, or a text"),  # noqa: DTZ001
    ],
)
def test_a_column_that_is_not_exact_is_refused(
    tmp_path: Path, statestore: Run, change: dict[str, object], said: str
) -> None:
    parquet(tmp_path / "account=a" / "f.parquet", [fills("BUY 1 BTC-USD @ 100")[0] | change])
    ran = statestore("fleet", "replay", tmp_path)

    assert ran.code == 3
    assert said in ran.json["failures"][0]["text"]
