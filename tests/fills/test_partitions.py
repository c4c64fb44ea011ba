"""Folders of fills: nothing is passed over, and the parts say what the whole says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.errors import RecordedFileError, StateStoreError, UsageError
from statestore.fills.archive import Archive, replay_fills
from statestore.fills.folding import Rules
from statestore.fills.normalise import normalise
from statestore.fills.partitions import partitions_of, replay_partition
from statestore.fills.told import document
from statestore.model import Batch, Method, Row
from statestore.simulated import fills

Rows = list[dict[str, Any]]


def written(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def replayed(root: Path, rules: Rules | None = None) -> dict[str, Archive]:
    parts = partitions_of([root])
    return {part.name: replay_partition(part, rules or Rules()) for part in parts}


# The parts and the whole --------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> Rows:
    texts = []
    for _ in range(draw(st.integers(1, 25))):
        side = draw(st.sampled_from(["BUY", "BUY", "SELL"]))
        product = draw(st.sampled_from(["AAA-USD", "AAA-USDC", "BBB-USD", "CCC-EUR"]))
        size, price = (draw(st.decimals("0.01", "9", places=2)) for _ in "sp")
        fee, quote = draw(st.sampled_from(["", " fee 0.01"])), draw(st.sampled_from(["", " quote"]))
        texts.append(f"{side} {size:f} {product} @ {price:f}{fee}{quote}")
    return fills(*texts)


@given(histories(), st.sampled_from(Method), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_parts_by_account_and_asset_in_files_that_overlap_say_what_one_process_says(
    tmp_path_factory: pytest.TempPathFactory,
    rows: Rows,
    method: Method,
    by_asset: bool,
    data: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("lake")
    in_files: dict[Path, Rows] = {}
    for row in data.draw(st.permutations(rows)):
        asset = str(row["product_id"]).split("-")[0]
        folder = root / "account=a" / (f"asset={asset}" if by_asset else "")
        for part in data.draw(st.sets(st.integers(0, 2), min_size=1)):
            in_files.setdefault(folder / f"part-{part}.jsonl", []).append(row)
    for path, part_rows in in_files.items():
        written(path, part_rows)
    rules = Rules(method)
    whole = replay_fills(normalise([_batch(rows)]), rules)
    parts = replayed(root, rules)
    found: dict[str, Any] = {}
    for part in parts.values():
        assert not part.rejected
        found |= document(part)["assets"]

    assert len(parts) == (len(found) if by_asset else 1)
    assert found == document(whole)["assets"]


def _batch(rows: Rows) -> Batch:
    return Batch(tuple(Row(row, f"row {n}") for n, row in enumerate(rows)), 1, exhausted=True)


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_what_paid_for_another_asset_is_moved_as_well(
    tmp_path: Path, side: str, files: int
) -> None:
    """Else the BTC that were paid for ETH would be held for ever: no fill of theirs says so."""
    folder = tmp_path / "account=a" / "asset=ETH"
    for number in range(files):
        texts = ("BUY 2 ETH-USD @ 9", f"{side} 1 ETH-BTC @ 0.05")
        written(folder / f"part-{number}.jsonl", fills(*texts))

    with pytest.raises(RecordedFileError, match="move BTC as well as ETH"):
        replayed(tmp_path)


# What is in a folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["part-1.jsonl.gz", "part-1.JSONL", "part-1", "part-1.csv.bak"])
def test_a_file_that_would_be_left_out_is_an_error(tmp_path: Path, name: str) -> None:
    """Half of the fills are another position."""
    part = written(tmp_path / "account=a" / "part-0.jsonl", fills("BUY 1 BTC-USD @ 2"))
    part.with_name(name).write_bytes(b"\x1f\x8b")

    with pytest.raises(UsageError, match=f"{name} is no file of fills .* would be left out"):
        partitions_of([tmp_path])


def test_a_link_that_leads_nowhere_or_to_a_folder_is_an_error(tmp_path: Path) -> None:
    written(tmp_path / "in" / "account=a" / "part-0.jsonl", fills("BUY 1 BTC-USD @ 2"))
    folder = tmp_path / "in" / "account=b"
    for target in (tmp_path / "nowhere.jsonl", tmp_path / "in" / "account=a"):
        folder.symlink_to(target)
        with pytest.raises(UsageError, match="account=b is no file of fills"):
            partitions_of([tmp_path / "in"])
        folder.unlink()


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "account=a" / "part-0.jsonl", fills("BUY 1 BTC-USD @ 2"))
    written(tmp_path / "account=b" / "part-0.jsonl", fills("BUY 1 BTC-USD @ 2"))
    scandir = os.scandir

    def refused(path: str) -> Any:
        if str(path).endswith("account=b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(RecordedFileError, match=r"cannot list .*account=b: Permission denied"):
        partitions_of([tmp_path])


def test_what_a_writer_left_unfinished_is_no_data(tmp_path: Path) -> None:
    row = fills("BUY 1 BTC-USD @ 2")
    written(tmp_path / "account=a" / "part-0.jsonl", row)
    for name in ("_temporary/0/part-1.jsonl", ".hive-staging/part-1.jsonl", "_SUCCESS", ".x.crc"):
        written(tmp_path / "account=a" / name, [row[0] | {"entry_id": name}])

    assert replayed(tmp_path)["a"].assets["BTC"].fills == 1


# Parquet ------------------------------------------------------------------------------------------


def of_parquet(folder: Path, **columns: Any) -> Archive:
    """Replay one fill, BUY 1 BTC-USD @ 100, with other columns."""
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    from pyarrow.parquet import write_table

    plain: Mapping[str, Any] = fills("BUY 1 BTC-USD @ 100")[0]
    table = arrow.table({name: [value] for name, value in plain.items()} | columns)
    (folder / "account=a").mkdir()
    write_table(table, folder / "account=a" / "part-0.parquet")
    return replayed(folder)["a"]


def test_a_decimal_of_40_digits_keeps_every_one(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    size = Decimal("1.123456789012345678901234567890123456789")
    archive = of_parquet(tmp_path, size=arrow.array([size], arrow.decimal256(60, 39)))

    assert archive.assets["BTC"].position.units == size


def test_a_short_number_of_a_wide_column_is_that_number(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    archive = of_parquet(tmp_path, size=arrow.array([Decimal("1.5")], arrow.decimal256(76, 60)))

    assert archive.assets["BTC"].position.units == Decimal("1.5")


def test_a_decimal_beyond_every_market_is_rejected_and_not_rounded(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    size = Decimal("1234567890." + "1234567890" * 6)
    archive = of_parquet(tmp_path, size=arrow.array([size], arrow.decimal256(76, 60)))

    assert "beyond every market" in archive.rejected[0].reason
    assert not archive.assets


@pytest.mark.parametrize(
    "columns",
    [
        lambda arrow: {
            "trade_time": arrow.array([253402300799000000], arrow.timestamp("us", "UTC"))
        },
        lambda arrow: {"price": arrow.array([100.1], arrow.float32())},
        lambda arrow: {"price": arrow.array([100.1]).dictionary_encode()},
    ],
    ids=["a time out of range", "a float", "floats by number"],
)
def test_a_column_that_cannot_be_exact_is_an_error_that_names_the_file(
    tmp_path: Path, columns: Any
) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")

    with pytest.raises(StateStoreError, match=r"part-0\.parquet"):
        of_parquet(tmp_path, **columns(arrow))


@pytest.mark.parametrize(
    "columns",
    [{"price": [[100.1]]}, {"price": [b"100"]}, {"price": [None]}, {"size_in_quote": [1]}],
    ids=["a list", "bytes", "null", "a number for a truth"],
)
def test_a_value_of_another_type_is_a_rejected_row(tmp_path: Path, columns: Any) -> None:
    archive = of_parquet(tmp_path, **columns)

    assert (len(archive.rejected), dict(archive.assets)) == (1, {})
