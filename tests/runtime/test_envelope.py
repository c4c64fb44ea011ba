"""The file in which positions travel: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
from dataclasses import replace
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import (
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateMissing,
    UsageError,
)
from statestore.formats import schema
from statestore.runtime import envelope
from statestore.runtime.envelope import Envelope

FORMS = ["json", "jsonl", "csv"]
ROW = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "active",
    "total_quantity": Decimal("1500.000000000000000000000000000000001"),
    "avg_entry_price": Decimal("0.000012345678901234567890"),
    "features": {"pm_execution_history": [{"at": "2025-11-18T04:29:43Z", "n": None}], "ta": {}},
    "a column of theirs": True,
}
ETH = {"_key": "ETH-USD", "side": "BUY", "quantity": Decimal("0.00088729")}
EXPORT = Envelope(
    kind="positions",
    rows=[ROW, ETH],
    sections={"registry": {"Demo1111": {"symbol": "DEMO"}}, "lessons": ["sell late"]},
    filters={"status": "active", "timeframe": None},
    source={"backend": "file", "revision": 42, "sha256": "f" * 64},
    balances={"USD": Decimal("127.45")},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "export"


def altered(path, old, new):
    """Change the file as an editor would; the sum is not brought up to date."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def unsealed(path):
    """Take the sum out, as the message says."""
    path.write_text(re.sub(r'\n? *"sha256": "[0-9a-f]{64}",', "", path.read_text(), count=1))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_to_the_last_digit(path, form):
    digits = envelope.write(path, EXPORT, form)

    found = envelope.read(path)

    assert digits in path.read_text()
    assert found.verified
    assert replace(found, verified=False, sha256="") == EXPORT
    assert [list(row) for row in found.rows] == [list(row) for row in EXPORT.rows]
    assert str(found.rows[0]["total_quantity"]) == str(ROW["total_quantity"])


def test_it_is_json_that_any_program_reads(path):
    envelope.write(path, EXPORT)

    document = json.loads(path.read_text())

    assert list(document) == [
        *("format", "kind", "sha256", "exported_at", "count", "filters", "source", "balances"),
        *("positions", "sections"),
    ]
    assert document["format"] == "statestore-export/1"
    assert document["count"] == 2
    assert document["balances"] == {"USD": 127.45}


def test_it_has_the_shape_its_schema_says(path):
    state = Envelope(kind="state", sections={"positions": {}})
    for made in (EXPORT, state, Envelope(kind="tokens", rows=[ROW])):
        envelope.write(path, made)
        jsonschema.validate(json.loads(path.read_text()), schema("export"))


@pytest.mark.parametrize("form", FORMS)
def test_the_sum_is_verified_by_hand_as_documented(path, form):
    digits = envelope.write(path, EXPORT, form)
    by_hand = (
        """s=$(grep -om1 '"sha256": "[0-9a-f]*' F | head -1 | cut -d'"' -f4)\n"""
        """sed "s/$s/$(printf %064d 0)/" F | sha256sum"""
    )
    assert all(line in envelope.__doc__ for line in by_hand.splitlines())

    ran = subprocess.run(
        ["sh", "-c", by_hand.replace("F", str(path))], capture_output=True, text=True, check=True
    )

    assert ran.stdout.split()[0] == digits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("old", "new"), [("1500.0", "1501.0"), ("127.45", "127.46"), ("late", "soon"), (" 42", " 43")]
)
def test_any_change_is_found(path, form, old, new):
    envelope.write(path, EXPORT, form)
    altered(path, old, new)

    with pytest.raises(StateChecksumMismatch, match="is not as it was exported") as caught:
        envelope.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_refused(path, form):
    envelope.write(path, EXPORT, form)
    data = path.read_bytes()

    for length in range(0, len(data) - 1, 7):
        path.write_bytes(data[:length])
        with pytest.raises(StateError):
            envelope.read(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_change_on_purpose_is_read_without_the_sum_and_vouched_for_by_nothing(path, form):
    envelope.write(path, EXPORT, form)
    altered(path, "1500.0", "1501.0")
    unsealed(path)

    found = envelope.read(path)

    assert not found.verified
    assert str(found.rows[0]["total_quantity"]).startswith("1501.0")


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_count_is_refused(path, form):
    envelope.write(path, EXPORT, form)
    altered(path, '"count": 2', '"count": 3')
    unsealed(path)

    with pytest.raises(StateInvalid, match="count is 3, but there are 2 positions") as caught:
        envelope.read(path)
    assert caught.value.field == "count"


@pytest.mark.parametrize("count", ["true", "2.0", '"2"', "null"])
def test_a_count_is_a_whole_number(path, count):
    envelope.write(path, EXPORT)
    altered(path, '"count": 2', f'"count": {count}')
    unsealed(path)

    with pytest.raises(StateInvalid, match="count"):
        envelope.read(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_newer_schema_is_refused(path, form):
    envelope.write(path, EXPORT, form)
    altered(path, "statestore-export/1", "statestore-export/2")

    with pytest.raises(StateInvalid, match=r"statestore-export/2, written by a newer statestore"):
        envelope.read(path)


@pytest.mark.parametrize(
    ("form", "places"),
    [
        ("json", "positions.0 and at positions.1"),
        ("jsonl", "line 2 and at line 3"),
        ("csv", "line 3 and at line 4"),
    ],
)
def test_a_position_that_is_there_twice_is_refused_and_both_places_named(path, form, places):
    envelope.write(path, replace(EXPORT, rows=[ROW, ROW | {"timeframe": "4h"}]), form)
    altered(path, "4h", "1h")
    unsealed(path)

    with pytest.raises(StateInvalid, match=f"solana:Demo1111:1h is there twice, at {places}"):
        envelope.read(path)


@pytest.mark.parametrize(
    "row",
    [
        {envelope.KEY: {"a": 1}},
        {envelope.KEY: ""},
        {envelope.KEY: True},
        {envelope.KEY: None, "quantity": 1},
        {"product_id": ["ETH-USD"]},
        {"symbol": True},
        {"token_contract": {"a": 1}, "token_chain": "base"},
    ],
)
def test_what_is_no_name_names_no_position(path, row):
    document = {"format": envelope.FORMAT, "kind": "positions", "count": 1, "positions": [row]}
    path.write_text(json.dumps(document))

    with pytest.raises(StateInvalid, match="does not say what it is about"):
        envelope.read(path)


def test_one_contract_in_two_spellings_is_there_twice_on_a_chain_of_ethereums_kind(path):
    rows = [
        {"token_contract": f"0x{digits * 20}", "token_chain": "base"} for digits in ("aB", "ab")
    ]
    with pytest.raises(StateInvalid, match="is there twice"):
        envelope.write(path, Envelope(kind="positions", rows=rows))

    solana = [
        {"token_contract": name, "token_chain": "solana"} for name in ("DemoAAAA", "Demoaaaa")
    ]
    envelope.write(path, Envelope(kind="positions", rows=solana))
    assert envelope.read(path).count == 2


def test_a_key_twice_in_one_object_is_refused_and_the_place_named(path):
    envelope.write(path, EXPORT)
    altered(path, '"pm_execution_history"', '"ta": 1, "pm_execution_history"')

    with pytest.raises(StateCorrupt, match=r"the key 'ta' stands twice in positions\.0\.features"):
        envelope.read(path)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", StateCorrupt, "empty, and JSON is expected; take another copy"),
        ("[]", StateInvalid, "is a list"),
        ('{"count": %s}' % ("9" * 5_000), StateCorrupt, r"99999\.\.\. has 5000 digits"),
        ('{"a": 1}\n{x}', StateCorrupt, r"Extra data \(line 2, column 1\)"),
        ('{"format": "statestore-export/1"', StateCorrupt, "not JSON"),
        ('{"format": "tar/1"}', StateInvalid, "format is 'tar/1'"),
        ('{"format": "statestore-export/1", "kind": "cats"}', StateInvalid, "kind is 'cats'"),
        ('{"format": "statestore-export/1", "kind": "positions"}', StateInvalid, "count is None"),
        (
            '{"format": "statestore-export/1", "kind": "positions", "positions": {}}',
            StateInvalid,
            "list of objects",
        ),
        ('{"format": "statestore-export/1", "sha256": 7, "kind": "state"}', StateError, "no sum"),
        ('{"_meta": {"format": 1}, "positions": {}}', StateInvalid, "restore --file"),
        ('{"a": NaN}', StateCorrupt, "NaN is no number"),
        ('{"a": 1e999}', StateCorrupt, "beyond the range of a float"),
        ('{"a": ' * 300 + "1" + "}" * 300, StateCorrupt, "nested deeper than 200 levels"),
        ('{"a": ' * 100_000, StateCorrupt, "nested deeper than 200 levels"),
    ],
)
def test_what_is_no_export_is_refused_with_its_name_and_why(path, text, error, said):
    path.write_text(text)

    with pytest.raises(error, match=said) as caught:
        envelope.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800", {1: 2}])
def test_what_is_no_json_is_not_written_in_any_form_and_named(path, form, value):
    wrong = Envelope(kind="positions", rows=[{"symbol": "BTC-USD", "note": value}])

    with pytest.raises(StateInvalid, match=r"positions\.0\.note"):
        envelope.write(path, wrong, form)
    assert not path.exists()


def test_200_levels_are_read_and_201_are_not(path):
    for levels, good in ((200, True), (201, False)):
        inside = levels - 4  # the document, positions, the row, and the innermost object
        deep = '{"a":' * inside + "{}" + "}" * inside
        path.write_text(
            '{"format": "statestore-export/1", "kind": "positions", "count": 1, '
            f'"positions": [{{"symbol": "X", "deep": {deep}}}]}}'
        )
        if good:
            assert envelope.read(path).count == 1
        else:
            with pytest.raises(StateCorrupt, match="nested deeper"):
                envelope.read(path)


def test_a_file_that_is_too_large_or_no_file_or_not_there_is_refused(path, monkeypatch):
    with pytest.raises(StateMissing):
        envelope.read(path)
    envelope.write(path, EXPORT)
    monkeypatch.setattr(envelope, "MAX_BYTES", 100)
    with pytest.raises(StateCorrupt, match="more than 100 are not read"):
        envelope.read(path)
    with pytest.raises(StateInvalid, match=r"more than 100 are not read again"):
        envelope.write(path, EXPORT)
    with pytest.raises(StateCorrupt, match="directory"):
        envelope.read(path.parent)


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_read_again_is_not_written(path, form):
    path.write_text("what was there")

    with pytest.raises(StateInvalid, match=r"positions\.0\.quantity: NaN"):
        envelope.write(path, replace(EXPORT, rows=[{**ETH, "quantity": float("nan")}]), form)
    with pytest.raises(StateInvalid, match="ETH-USD is there twice, at row 0 and at row 1"):
        envelope.write(path, replace(EXPORT, rows=[ETH, ETH]), form)
    with pytest.raises(StateInvalid, match="row 0 does not say what it is about"):
        envelope.write(path, replace(EXPORT, rows=[{"quantity": 1}]), form)

    assert [p.name for p in path.parent.iterdir()] == ["export"]
    assert path.read_text() == "what was there"


def test_a_new_file_replaces_nothing(path):
    path.write_text("what was there")

    with pytest.raises(FileExistsError):
        envelope.write(path, EXPORT, new=True)
    assert path.read_text() == "what was there"


@pytest.mark.parametrize("new", [False, True])
def test_killed_at_any_moment_there_is_the_old_file_or_the_whole_new_one(path, crash_after, new):
    outcomes = set()
    for calls in itertools.count():
        path.unlink(missing_ok=True)
        if not new:
            envelope.write(path, replace(EXPORT, rows=[]))
        if not crash_after(calls, lambda: envelope.write(path, EXPORT, new=new)):
            break
        outcomes.add(envelope.read(path).count if path.exists() else None)

    assert outcomes == ({None, 2} if new else {0, 2})
    assert envelope.read(path).count == 2


def test_tokens_and_a_whole_state_travel_in_the_same_file(path):
    tokens = Envelope(kind="tokens", rows=[{"token_contract": "A", "token_chain": "solana"}])
    for form in FORMS:
        envelope.write(path, tokens, form)
        assert replace(envelope.read(path), verified=False, sha256="") == tokens
    state = Envelope(kind="state", sections={"positions": {"ETH-USD": {"quantity": 1}}, "n": 1})
    for form in FORMS[:2]:
        envelope.write(path, state, form)
        found = envelope.read(path)
        assert (found.sections, found.count) == (state.sections, 2)
    with pytest.raises(UsageError, match="csv holds rows"):
        envelope.write(path, state, "csv")


def test_unknown_keys_of_the_file_are_kept(path):
    envelope.write(path, replace(EXPORT, more={"note": "before the wipe", "count": 99}))

    assert envelope.read(path).more == {"note": "before the wipe"}


def test_an_entry_that_is_no_object_and_a_key_no_column_tells_come_back(path):
    held = {"BTC": True, "ETH-USD": {"quantity": 1}, "SOL-USD": {"product_id": "SOL-USD"}}

    rows = [envelope.as_row(key, entry) for key, entry in held.items()]

    assert rows[1:] == [{"_key": "ETH-USD", "quantity": 1}, {"product_id": "SOL-USD"}]
    assert {envelope.key_of(row): envelope.as_entry(row) for row in rows} == held
    with pytest.raises(ValueError, match="has a field _key"):
        envelope.as_row("BTC", {"_key": 1})


# csv

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.decimals(allow_nan=False, allow_infinity=False, places=12),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", "null", "1e5", "-1", "007", "1.", "=1+1", "@x", "{}", '"', "a\nb", " 1 "]),
)
values = st.one_of(scalars, st.lists(scalars, max_size=3))
columns = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda name: not name.startswith("_")
)


@given(st.lists(st.dictionaries(columns, values, max_size=5), max_size=5), st.sampled_from(FORMS))
def test_any_row_comes_back_as_it_was(tmp_path_factory, rows, form):
    path = tmp_path_factory.mktemp("any") / "export"
    named = [{"_key": f"row {n}", **row} for n, row in enumerate(rows)]

    envelope.write(path, Envelope(kind="positions", rows=named), form)

    found = envelope.read(path).rows
    assert found == named
    kinds = [{name: type(value) for name, value in row.items()} for row in found]
    assert kinds == [{name: _kind(form, value) for name, value in row.items()} for row in named]
    if form != "csv":  # the columns of a table have one order
        assert [[*row] for row in found] == [[*row] for row in named]


def _kind(form, value):
    # A Decimal without a point or an exponent is written as a whole number, and is read as one.
    whole = isinstance(value, Decimal) and str(value).lstrip("-").isdigit()
    return int if whole else type(value)


def test_no_text_of_an_export_is_a_formula_in_a_spreadsheet(path):
    row = {
        "_key": "X",
        "note": "=HYPERLINK(1)",
        "plus": "+1",
        "at": "@SUM",
        "loss": Decimal("-1.5"),
    }
    envelope.write(path, Envelope(kind="positions", rows=[row]), "csv")

    assert path.read_text().splitlines()[1:] == [
        "_key,note,plus,at,loss",
        'X,"""=HYPERLINK(1)""","""+1""","""@SUM""",-1.5',
    ]


def test_a_table_of_a_spreadsheet_is_read_too(tmp_path):
    path = tmp_path / "by_hand.csv"
    path.write_bytes(b"\xef\xbb\xbfsymbol,quantity,note\r\nETH-USD,0.10,\r\nBTC-USD,1,007\r\n")

    found = envelope.read(path)

    assert not found.verified
    assert found.rows == [
        {"symbol": "ETH-USD", "quantity": Decimal("0.10")},
        {"symbol": "BTC-USD", "quantity": 1, "note": "007"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,a\n1,2\n", "line 1: the column 'a' is there twice"),
        ("symbol,\nX,2\n", "line 1: a column has no name"),
        ("symbol,n\nX,1\nY\n", "line 3 has 1 cells, and 2 columns"),
        ("symbol,n\nX,{\n", "line 2: not JSON"),
        ('symbol,n\nX,"1\n', "line 2 is not CSV"),
        ("symbol,n\n,1\n", "line 2 does not say what it is about"),
        ("symbol,n\nX,1\nX,2\n", "X is there twice, at line 2 and at line 3"),
        ('"# {""format"": 1}",,\nsymbol,n\n', "line 1 was written anew by a spreadsheet"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "by_hand.csv"
    path.write_text(text)

    with pytest.raises(StateError, match=said):
        envelope.read(path)


# Files of other programs


def test_the_three_legacy_shapes_are_read(path):
    def read(document):
        path.write_text(json.dumps(document))
        return envelope.read(path)

    row = {"token_contract": "D", "token_chain": "solana", "timeframe": "1h", "total_quantity": 1.5}
    found = read(
        {
            "exported_at": "2025-11-20T10:00:00",
            "count": 3,
            "filters": {"status": None, "timeframe": "1h"},
            "positions": [
                row,
                row | {"timeframe": "4h", "total_quantity": 0},
                row | {"timeframe": "1d", "status": "closed"},
            ],
        }
    )
    assert (found.kind, found.shape) == ("positions", "exported positions")
    assert found.rows == [row | {"total_quantity": Decimal("1.5")}]
    assert list(found.sections) == ["watchlist"]
    assert found.filters == {"status": None, "timeframe": "1h"}
    assert found.closed == ("solana:D:1d",)

    found = read({"exported_at": "x", "count": 1, "status_filter": "active", "tokens": [row]})
    assert (found.kind, found.shape, found.count) == ("tokens", "exported tokens", 1)
    assert found.filters == {"status": "active"}
    assert found.sections == {}

    found = read(
        {
            "backup_timestamp": "2025-07-20T08:00:00",
            "positions": [{"symbol1": "A", "symbol2": "B", "quantity": 1}],
            "current_state": {
                "active_positions": {"C-D": {"quantity": 2}},
                "pair_states": {"A-B": {"cooldown": 3}},
            },
            "portfolio_summary": {"total_value": 7},
            "system_status": {"ok": True},
        }
    )
    assert (found.kind, found.shape) == ("positions", "pair trading backup")
    assert [envelope.key_of(row) for row in found.rows] == ["C-D", "A-B"]
    assert found.sections == {
        "pair_states": {"A-B": {"cooldown": 3}},
        "portfolio": {"total_value": 7},
        "legacy": {"system_status": {"ok": True}},
    }


def test_a_file_that_may_not_be_read_says_so_and_what_to_do(path, monkeypatch):
    envelope.write(path, EXPORT)
    opened = os.open

    def refused(name, *rest, **more):
        if os.fspath(name) == os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return opened(name, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StateError, match=r"Permission denied; it has to be readable"):
        envelope.read(path)


def test_the_names_of_what_is_no_column_stay_what_files_have():
    """Files of former versions have them, so they are no matter of taste."""
    assert envelope.as_row("A", True) == {"_key": "A", "_value": True}
    assert envelope.as_entry({"_key": "A", "_value": True}) is True
