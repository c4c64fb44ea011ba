"""An archive says what the same fills say in memory, whatever is in it and however it is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.amounts import exact, written
from statestore.errors import IncompleteRead, RecordedFileError
from statestore.fills import archive
from statestore.fills.archive import Archive, replay_archive, replay_fills
from statestore.fills.folding import Fold, Rules
from statestore.fills.normalise import normalise
from statestore.fills.sources.recorded import read_fills
from statestore.model import Method
from statestore.simulated import fill, fills
from statestore.times import format_instant, parse_instant
from tests import real

START = parse_instant("2025-11-18T04:00:00Z")
Rows = list[dict[str, object]]


# What is compared


def said(found: Archive) -> dict[str, Any]:
    """Every figure as it is reported."""
    return {
        "assets": {
            name: [_written(one.position.__getattribute__(field)) for field in _FIGURES]
            + [one.fills, one.first, one.last, one.adjusted]
            for name, one in found.assets.items()
        },
        "rejected": {(one.entry_id, one.origin, one.reason) for one in found.rejected},
        "duplicates": found.duplicates,
        "skipped": (found.skipped, found.skipped_products),
    }


_FIGURES = (
    "units",
    "currency",
    "cost",
    "entry_price",
    "break_even",
    "fee_value",
    "fees",
    "realised",
    "realised_net",
    "uncovered",
    "opened_at",
    "ambiguous",
)


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: written(amount) for name, amount in value.items()}
    return written(value) if isinstance(value, Decimal) else value


def in_memory(path: Path, rules: Rules) -> Archive:
    return replay_fills(normalise([read_fills(path)]), rules)


@exact
def in_ranges(path: Path, rules: Rules, cuts: list[int]) -> Archive:
    """What several processes do, one after the other."""
    whole, hashes = Fold(path.name, rules), archive.array("q")
    for start, end in pairwise(cuts):
        fold = Fold(path.name, rules, guessing=start > 0)
        for block in archive._blocks(path, start, end):
            fold.take(block)
        hashes += fold.hashes
        whole.append(pickle.loads(pickle.dumps(fold.summary())))
        whole.accounts = pickle.loads(pickle.dumps(fold.after(whole.accounts)))
    return archive._finished(path, rules, whole, archive._twice(hashes))


def written_to(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(tmp_path: Path, *texts: str) -> Path:
    return written_to(tmp_path / "fills.jsonl", fills(*texts))


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_BLOCK", size)
        patch.setattr("statestore.fills.folding._SURE_AFTER", 2)
        patch.setattr("statestore.fills.average._MOST_STEPS", 3)
        yield


# For all fills

amounts = st.decimals("0.0001", "4", places=4)
plain_products = st.sampled_from(["AAA-USD", "BBB-USD", "CCC-EUR", "DDD-USDC"])
all_products = st.sampled_from(
    ["AAA-USD", "AAA-USD", "AAA-USDC", "BBB-USD", "AAA-BBB", "CCC-EUR", "USDC-USD", "AAA-PERP-X"]
)

ODDITIES: list[dict[str, Any]] = [
    {"size": "0"},
    {"size": "1_0"},
    {"size": " 1"},
    {"price": "NaN"},
    {"price": "1e1"},
    {"price": 12},
    {"price": "0.00"},
    {"price": "-1"},
    {"size": "1" * 45},
    {"size": "٣"},
    {"side": "buy"},
    {"commission": ""},
    {"commission": "-0.01"},
    {"commission": "1-1"},
    {"commission_currency": "AAA", "commission": "0.00001"},
    {"commission_currency": "EUR"},
    {"trade_type": "REVERSAL"},
    {"trade_type": "SETTLED"},
    {"size_in_quote": "true"},
    {"entry_id": ""},
    {"entry_id": None, "trade_id": "77"},
    {"order_id": 5},
    {"product_id": "AAA"},
    {"trade_time": "2025-11-18T04:00:00X"},
    {"trade_time": "2025-02-30T04:00:00.000000000Z"},
    {"trade_time": "2025-11-18T24:00:00.000000000Z"},
    {"trade_time": "2025-11-18T04:60:00.000000000Z"},
    {"trade_time": "2025-11-18T04:00:60.000000000Z"},
    {"trade_time": "2025-11-18 05:00:00+01:00"},
    {"sequence_timestamp": None},
    {"sequence_timestamp": "soon"},
    {"trade_id": "12"},
    {"note": "a \\ and a \u00e9"},
]


@st.composite
def streams(draw: st.DrawFn, products: st.SearchStrategy[str], odd: bool) -> Rows:
    """Rows in the order of a file: mostly as they were filled, many selling all that is held."""
    rows: Rows = []
    held: dict[str, Decimal] = {}
    time = START
    for number in range(draw(st.integers(2, 30))):
        product = draw(products)
        side = draw(st.sampled_from(["BUY", "SELL"]))
        size, quoted = draw(amounts), draw(st.integers(0, 5)) == 0
        if side == "SELL" and held.get(product) and draw(st.booleans()):
            size, quoted = held[product], False
        elif side == "SELL" and not odd:
            size, quoted = min(size, held.get(product, Decimal(0))) / 2, False
            if not size:
                side, size = "BUY", Decimal(1)
        price = draw(st.decimals("0.5", "9", places=2))
        units = size / price if quoted else size
        held[product] = held.get(product, Decimal(0)) + (units if side == "BUY" else -units)
        time += draw(
            st.sampled_from([0, 1, 1_000, 7_000_000, 3_600_000_000_000]) if odd else st.just(1_000)
        )
        again = draw(st.integers(1, 99)) if odd and draw(st.integers(0, 20)) == 0 else 0
        row = fill(
            f"{side} {size:f} {product} @ {price}" + (" fee 0.01" if draw(st.booleans()) else ""),
            entry_id=f"e{again or 100 + number}",
            trade_time=format_instant(time),
            sequence_timestamp=format_instant(time + 5),
            size_in_quote=quoted,
        )
        rows.append(row)
        if odd and draw(st.integers(0, 7)) == 0:
            row.update(draw(st.sampled_from(ODDITIES)))
    if odd and draw(st.booleans()):
        at = draw(st.integers(0, len(rows) - 1))
        rows.insert(draw(st.integers(0, len(rows))), dict(rows[at]))
    if odd and draw(st.integers(0, 3)) == 0:
        rows.reverse()
    return rows


@given(
    streams(all_products, odd=True),
    st.sampled_from(Method),
    st.integers(400, 4000),
    st.sampled_from([(None, None), (START + 1_000, None), (START, START + 9_000_000)]),
)
@settings(max_examples=100, deadline=None)
def test_an_archive_says_what_its_fills_say_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    rows: Rows,
    method: Method,
    block: int,
    window: tuple[int | None, int | None],
) -> None:
    path = written_to(tmp_path_factory.getbasetemp() / "stream.jsonl", rows)
    rules = Rules(method, since=window[0], until=window[1])

    with small_blocks(block):
        assert said(replay_archive(path, rules)) == said(in_memory(path, rules))


@given(
    st.one_of(streams(plain_products, odd=False), streams(all_products, odd=True)),
    st.lists(st.floats(0, 1), max_size=3),
    st.integers(400, 4000),
)
@settings(max_examples=100, deadline=None)
def test_wherever_the_file_is_cut_the_digits_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, parts: list[float], block: int
) -> None:
    path = written_to(tmp_path_factory.getbasetemp() / "ranges.jsonl", rows)
    size = path.stat().st_size
    cuts = sorted({0, size, *(int(part * size) for part in parts)})

    with small_blocks(block):
        assert said(in_ranges(path, Rules(), cuts)) == said(in_memory(path, Rules()))


@pytest.mark.parametrize("oddity", ODDITIES, ids=str)
def test_every_oddity_among_plain_rows_is_read_as_it_is_in_memory(
    tmp_path: Path, oddity: dict[str, Any]
) -> None:
    rows = fills("BUY 1 AAA-USD @ 2", "BUY 2 AAA-USD @ 3", "SELL 0.5 AAA-USD @ 4")
    rows[1].update(oddity)
    path = written_to(tmp_path / "fills.jsonl", rows)

    assert said(replay_archive(path, Rules())) == said(in_memory(path, Rules()))


# One by one


def test_plain_fills_in_order_are_not_read_again(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        "BUY .010 BTC-USD @ 60000 fee 3.60",
        "BUY .020 BTC-USD @ 63000 fee 7.56",
        "SELL .012 BTC-USD @ 65000 fee 4.68",
    )
    found = replay_archive(path, Rules())
    position = found.assets["BTC"].position

    assert found.read_again == ()
    assert written(position.units) == Decimal(".018")
    assert written(position.entry_price or Decimal(0)) == 62000
    assert written(position.realised or Decimal(0)) == 36
    assert written(position.realised_net or Decimal(0)) == Decimal("26.856")


@pytest.mark.parametrize(
    "texts",
    [
        ["BUY 1 BTC-USD @ 2 at 2025-11-18T05:00:00Z", "BUY 1 BTC-USD @ 3 at 2025-11-18T04:00:00Z"],
        ["BUY 1 BTC-USD @ 2 id a", "SELL 1 ETH-USD @ 3", "BUY 1 BTC-USD @ 2 id a"],
        ["BUY 1 BTC-USD @ 2", "BUY 1 ETH-BTC @ .5 at 2025-11-18T03:00:00Z"],
        [
            "BUY 2 BTC-USD @ 2 at 2025-11-18T04:00:00Z",
            "BUY 1 BTC-USD @ 3 at 2025-11-18T05:00:00Z",
            "SELL 1 BTC-USD @ 3 at 2025-11-18T05:00:00.000Z",
        ],
    ],
    ids=["out of order", "an identity twice", "a cross pair from before", "a tie"],
)
def test_what_needs_a_look_back_is_read_again(tmp_path: Path, texts: list[str]) -> None:
    path = lines(tmp_path, *texts)
    found = replay_archive(path, Rules())

    assert "BTC" in found.read_again
    assert said(found) == said(in_memory(path, Rules()))


def test_one_identity_with_two_contents_is_refused_however_far_apart(tmp_path: Path) -> None:
    texts = ["BUY 1 BTC-USD @ 2 id a", *["BUY 1 ETH-USD @ 3"] * 500, "BUY 3 SOL-USD @ 2 id a"]
    found = replay_archive(lines(tmp_path, *texts), Rules())

    assert [one.origin for one in found.rejected] == ["fills.jsonl line 502"]
    assert "SOL" not in found.assets
    assert found.assets["BTC"].position.units == 1


@pytest.mark.parametrize("ids", ["abc", "acb", "cab", "bca"])
@pytest.mark.parametrize("sells", [("1", "1", "1"), ("0.000000009", "1", "2"), ("1", ".5", ".5")])
def test_tied_sells_may_stand_in_any_order(
    tmp_path: Path, ids: str, sells: tuple[str, ...]
) -> None:
    """Yet what goes flat on the way in one order, and not in another, is told apart."""
    at = "at 2025-11-18T05:00:00Z"
    tied = [f"SELL {size} BTC-USD @ 3 {at} id {one}" for one, size in zip(ids, sells, strict=True)]
    path = lines(tmp_path, "BUY 3 BTC-USD @ 2", *tied)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[1:]:
        row["sequence_timestamp"] = "2025-11-18T05:00:00Z"
    written_to(path, rows)

    assert said(replay_archive(path, Rules())) == said(in_memory(path, Rules()))


def test_a_sell_of_what_is_not_held_accounts_no_currency(tmp_path: Path) -> None:
    """It is dropped, so all that was ever spent are 4 BBB, and the net result is known to be 0."""
    path = lines(tmp_path, "SELL 1 AAA-USD @ 3", "BUY 2 AAA-BBB @ 2")
    found = replay_archive(path, Rules())
    position = found.assets["AAA"].position

    assert found.read_again == ()
    assert (position.units, position.currency, position.cost) == (2, "BBB", 4)
    assert (position.realised, position.realised_net, position.uncovered) == (0, 0, 1)
    assert said(found) == said(in_memory(path, Rules()))


@pytest.mark.parametrize("twice", [set(), {7}, {-1, 40, 2**62}], ids=["none", "one", "three"])
def test_identities_that_come_twice_are_found_part_by_part(
    monkeypatch: pytest.MonkeyPatch, twice: set[int]
) -> None:
    monkeypatch.setattr(archive, "_MOST_AT_ONCE", 3)
    once = [number * 0x9E37_79B9_7F4A_7C15 % 2**63 for number in range(1, 1000)]

    assert archive._twice(archive.array("q", [*twice, *once, *twice])) == twice


def test_pages_and_csv_are_read_whole(tmp_path: Path) -> None:
    page = tmp_path / "pages.jsonl"
    rows = fills("BUY 1 BTC-USD @ 2", "SELL 1 BTC-USD @ 3")
    page.write_text("".join(json.dumps({"fills": [row], "cursor": ""}) + "\n" for row in rows))

    assert replay_archive(page, Rules()).assets["BTC"].position.realised == 1


def test_a_page_among_fills_is_no_fill(tmp_path: Path) -> None:
    rows = fills("BUY 1 BTC-USD @ 2", "BUY 1 BTC-USD @ 2")
    rows[1] |= {"fills": [], "cursor": "more"}
    with pytest.raises(IncompleteRead, match="cursor 'more'"):
        replay_archive(written_to(tmp_path / "fills.jsonl", rows), Rules())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data.replace(b"\n", b"", 1),
        lambda data: data.replace(b"}\n", b"}\nnot json\n", 1),
        lambda data: data.replace(b"\n", b"", 1) + b"\n",
        lambda data: data.replace(b", ", b",\n", 1),
        lambda data: data.replace(b"\n", b"", 1).replace(b", ", b",\n", 1),
        lambda data: data[:40] + b"\xff" + data[41:],
        lambda _: b"",
    ],
    ids=[
        "torn",
        "two on a line",
        "a foreign line",
        "two on a line and none on one",
        "one on two lines",
        "two on a line and one on two",
        "no text",
        "empty",
    ],
)
def test_a_damaged_archive_is_refused_as_in_memory(tmp_path: Path, damage: Any) -> None:
    path = lines(tmp_path, *["BUY 1 BTC-USD @ 2"] * 5)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecordedFileError) as expected:
        read_fills(path)

    with pytest.raises(RecordedFileError) as refused:
        replay_archive(path, Rules())
    assert str(refused.value) == str(expected.value)


def test_blank_lines_a_mark_and_a_last_line_without_an_end_do_no_harm(tmp_path: Path) -> None:
    path = lines(
        tmp_path, "BUY 1 BTC-USD @ 2", "BUY 1 BTC-USD @ 3", "SELL 9 BTC-USD @ x".replace("x", "4")
    )
    data = path.read_bytes().replace(b"}\n", b"}\n\n \n", 1).rstrip()
    path.write_bytes(b"\xef\xbb\xbf" + data)

    assert said(replay_archive(path, Rules())) == said(in_memory(path, Rules()))


def test_a_single_row_is_spoken_of_as_in_memory(tmp_path: Path) -> None:
    path = written_to(tmp_path / "fills.jsonl", [fill("BUY 1 BTC-USD @ 2", size="1_0")])
    found = replay_archive(path, Rules())

    assert [one.origin for one in found.rejected] == ["fills.jsonl"]
    assert said(found) == said(in_memory(path, Rules()))


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordedFileError, match=r"cannot read .*nowhere.jsonl: No such file"):
        replay_archive(tmp_path / "nowhere.jsonl", Rules())


def test_the_kept_fills_of_a_range_are_let_go_once_it_was_flat(tmp_path: Path) -> None:
    """Otherwise a range would hold all of its fills."""
    path = lines(tmp_path, *["BUY 1 BTC-USD @ 2", "SELL 1 BTC-USD @ 3"] * 200)
    fold = Fold(path.name, Rules(), guessing=True)
    fold.take(path.read_bytes())

    assert fold.guesses["BTC"]._since is None


def test_a_wrong_guess_is_noticed(tmp_path: Path) -> None:
    """It looks flat again and again, and never is: one is held from before the cut."""
    round_trips = ["BUY 1 BTC-USD @ 2", "SELL 1 BTC-USD @ 3"] * 200
    path = lines(tmp_path, "BUY 1 BTC-USD @ 1", *round_trips)
    size = path.stat().st_size
    found = in_ranges(path, Rules(), [0, size // 3, size])

    assert found.read_again == ("BTC",)
    assert said(found) == said(in_memory(path, Rules()))


def test_processes_say_the_same_and_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_LEAST_RANGE", 1)
    path = lines(
        tmp_path, *["BUY 2 BTC-USD @ 2 fee .1", "SELL 1 BTC-USD @ 3", "BUY 1 ETH-USD @ 7"] * 99
    )
    read: list[int] = []

    assert said(replay_archive(path, Rules(), jobs=3, on_bytes=read.append)) == said(
        in_memory(path, Rules())
    )
    assert sum(read) == path.stat().st_size


def test_a_process_meets_a_line_that_is_no_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_LEAST_RANGE", 1)
    path = lines(tmp_path, *["BUY 2 BTC-USD @ 2"] * 9)
    path.write_bytes(path.read_bytes() + b"{}\n")

    with pytest.raises(RecordedFileError, match="line 10 is an object that is neither a fill"):
        replay_archive(path, Rules(), jobs=2)


@real.needed
@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(
    "source",
    [
        path
        for path in real.files("fills/*.json") + real.files("fills/*.csv")
        if "expected" not in path.name
        and not path.name.startswith(("binance_emohd123_", "kraken_gocryptoadmin.csv"))
    ],
    ids=lambda path: path.name,
)
def test_a_real_file_as_lines_says_what_it_says_in_memory(
    tmp_path: Path, source: Path, method: Method
) -> None:
    rows = [dict(row.payload) for row in read_fills(source).rows]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    rules = Rules(method)
    size = path.stat().st_size

    assert said(replay_archive(path, rules)) == said(in_memory(path, rules))
    if method is Method.AVERAGE:
        cuts = [0, size // 3, size // 2, size]
        assert said(in_ranges(path, rules, cuts)) == said(in_memory(path, rules))
