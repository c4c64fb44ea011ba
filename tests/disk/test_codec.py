import datetime
import hashlib
import json
import math
import re
from contextlib import suppress
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.disk import codec
from statestore.disk.values import MAX_DEPTH
from statestore.errors import StateInvalid

PATH = Path("/var/lib/bot/state.json")


class Colour(StrEnum):
    RED = "red"


def written(state, base=None, **meta):
    document = codec.arrange(codec.encode(state, PATH), base)
    data, blank = codec.render(document, codec.Meta(**meta))
    codec.seal(document, codec.Meta(**meta), data, blank)
    return data


def sections(text: str, **trust):
    return codec.parse(text.encode()).sections


def test_the_file_is_readable_and_starts_with_its_meta():
    data = written(
        {"positions": {"ETH-USD": {"units": Decimal("0.00088729")}}, "open_orders": {}},
        revision=42,
        saved_at="2025-11-20T10:00:00.123456Z",
        reason="trade",
        writer="4711@host",
    )

    digits = codec.parse(data).meta.sha256
    assert data.decode() == (
        "{\n"
        '  "_meta": {"format": 1, "revision": 42, "saved_at": "2025-11-20T10:00:00.123456Z", '
        f'"reason": "trade", "writer": "4711@host", "sha256": "{digits}"}},\n'
        '  "positions": {\n'
        '    "ETH-USD": {\n'
        '      "units": 0.00088729\n'
        "    }\n"
        "  },\n"
        '  "open_orders": {}\n'
        "}\n"
    )


def test_an_empty_state_is_a_whole_file():
    data = written({}, revision=1)

    assert json.loads(data).keys() == {"_meta"}
    assert codec.parse(data).trust is codec.Trust.SEALED


def test_the_sum_can_be_verified_by_hand():
    data = written({"a": 1}, revision=1)
    digits = json.loads(data)["_meta"]["sha256"]

    assert hashlib.sha256(data.replace(digits.encode(), b"0" * 64)).hexdigest() == digits


def test_every_single_changed_byte_breaks_the_sum_or_the_document():
    data = written({"positions": {"BTC-USD": [1, 2.5, "x"]}}, revision=7, reason="trade")

    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            try:
                trust = codec.parse(flipped).trust
            except (codec.Damaged, codec.TooNew):
                continue
            assert trust is codec.Trust.MISMATCH, f"byte {at} bit {bit}: {flipped!r}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n\n", "bytes of nothing"),
        ("\0\0\0\0", "bytes of nothing"),
        ("\ufeff{}", "byte order mark"),
        ("[]", "not a JSON object"),
        ("7", "not a JSON object"),
        ('{"a": 1', "not a JSON object"),
        ('{"a": 1} x', "not a JSON object"),
        ('{"a": NaN}', "not a JSON object"),
        ('{"a": [Infinity]}', "not a JSON object"),
        ('{"a": 01}', "not a JSON object"),
        ('{"a": [1e999]}', "out of range"),
        ('{"a": 1, "a": 2}', "key 'a' twice"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "key 'c' twice"),
        ('{"_meta": 7}', "wrong shape"),
        ('{"_meta": {"revision": "7"}}', "wrong shape"),
        ('{"_meta": {"revision": true}}', "wrong shape"),
        ('{"_meta": {"revision": -1}}', "revision -1"),
        ('{"_meta": {"format": 0}}', "format 0"),
        ('{"a": "\\ud800", "b": 1}', "hex escape"),
    ],
)
def test_what_is_not_a_strict_document_is_damaged(text, why):
    with pytest.raises(codec.Damaged, match=re.escape(why)):
        codec.parse(text.encode())


def test_text_that_is_not_utf8_is_damaged():
    with pytest.raises(codec.Damaged, match="not UTF-8 at byte 8"):
        codec.parse(b'{"a": ["\xff"]}')


@pytest.mark.parametrize("opening", ["[", '{"x":'])
def test_nesting_of_any_depth_is_damaged_and_never_a_crash(opening):
    closing = "]" if opening == "[" else "}"
    for depth in (MAX_DEPTH, 100_000):
        text = '{"a":' + opening * depth + "1" + closing * depth + "}"
        with pytest.raises(codec.Damaged, match="nested deeper than 200"):
            codec.parse(text.encode())


def test_nesting_up_to_the_limit_goes_both_ways():
    value: list = []
    for _ in range(MAX_DEPTH - 2):
        value = [value]

    data = written({"a": value}, revision=1)

    assert codec.decode(codec.parse(data)) == {"a": value}
    codec.parse(b'{"a":' + codec.parse(data).sections["a"] + b"}")


def test_a_text_over_the_limit_is_damaged(monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 5)

    with pytest.raises(codec.Damaged, match="is 8 bytes long"):
        codec.parse(b'{"a": 1}')


def test_a_later_format_is_said_to_be_too_new():
    with pytest.raises(codec.TooNew, match="newer statestore"):
        codec.parse(b'{"_meta": {"format": 2, "revision": "x"}}')


def test_a_file_without_meta_is_adopted_at_revision_0():
    document = codec.parse(b'{"positions": {}}')

    assert (document.trust, document.revision, document.meta) == (codec.Trust.ADOPTED, 0, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"_meta": {"revision": 3}}', "carries no sum"),
        ('{"_meta": {"revision": 3, "sha256": "abc"}}', "does not match"),
        ('{"_meta": {"revision": 3, "sha256": "%s"}}' % ("0" * 64), "does not match"),
        ('{"_mdta": {"format": 1, "revision": 3}, "a": 1}', "another name"),
    ],
)
def test_a_wrong_or_missing_sum_is_a_mismatch_and_no_damage(text, why):
    document = codec.parse(text.encode())

    assert document.trust is codec.Trust.MISMATCH
    assert why in document.why


def test_an_edited_file_is_a_mismatch():
    data = written({"quantity": 1}, revision=3).replace(b'"quantity": 1', b'"quantity": 2')

    assert codec.parse(data).trust is codec.Trust.MISMATCH


ODD = (
    '{ "a" : 1.10 ,\t"b":1e5,"c" : [ 0.30000000000000004 ,1E-7 ] , "d":'
    "123456789012345678901234567890"
    ',"e":"caf\\u00e9 \\/ \\ud83d\\ude00","f":{"z": -0 ,  "y" :-0.0}'
    ',"g":100000000000000000000.5,'
    '"h":\n[\n\n]\n,"i":null, "j":true,"k":1.0}'
)


@pytest.mark.parametrize("numbers", ["float", "decimal"])
def test_sections_that_did_not_change_come_out_byte_for_byte(numbers):
    base = codec.parse(ODD.encode())
    state = codec.decode(base, numbers)
    state["j"] = False

    document = codec.arrange(codec.encode(state, PATH), base)

    assert document.sections == {**base.sections, "j": b"false"}


@pytest.mark.parametrize(
    ("before", "after"), [("1", 1.0), ("1", True), ("1.0", 1), ("true", 1), ("null", 0), ('"1"', 1)]
)
def test_values_python_calls_equal_are_still_changes(before, after):
    base = codec.parse(f'{{"a": {before}}}'.encode())

    assert codec.arrange(codec.encode({"a": after}, PATH), base).sections != base.sections


def test_known_keys_keep_their_place_and_new_ones_follow():
    base = codec.parse(b'{"a": 1, "b": 2, "c": 3}')

    document = codec.arrange(codec.encode({"new": 0, "c": 3, "a": 9}, PATH), base)

    assert list(document.sections.items()) == [("a", b"9"), ("c", b"3"), ("new", b"0")]


@pytest.mark.parametrize(
    "text", ["0.00088729", "1.10", "1E+22", "0E-8", "-0.000", "1E-400", "1234567890" * 5 + ".5"]
)
def test_decimals_are_written_exactly_as_numbers(text):
    raw = codec.encode({"a": Decimal(text)}, PATH)["a"].text

    back = codec.decode_section(raw, "decimal")
    assert (str(back), raw.decode()) == (str(Decimal(text)), str(Decimal(text)))


def test_integers_of_any_size_stay_integers():
    value = 10**4000 + 7

    raw = codec.encode({"a": [value, 2**64, -(2**63) - 1]}, PATH)["a"].text

    assert codec.decode_section(raw) == [value, 2**64, -(2**63) - 1]


def cycle():
    value: dict = {}
    value["self"] = value
    return value


def deep():
    value: list = []
    for _ in range(5000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "field", "why"),
    [
        (math.nan, "p.x", "NaN cannot be saved as JSON"),
        (math.inf, "p.x", "Infinity cannot be saved"),
        (-math.inf, "p.x", "Infinity cannot be saved"),
        (Decimal("NaN"), "p.x", "NaN cannot be saved"),
        (Decimal("sNaN"), "p.x", "NaN cannot be saved"),
        (Decimal("-Infinity"), "p.x", "Infinity cannot be saved"),
        (Decimal("1E999"), "p.x", "beyond the range of a float"),
        ([10**5000], "p.x.0", "cannot be saved as JSON"),
        ([1, {"y": math.nan}], "p.x.1.y", "NaN"),
        ((0, (math.nan,)), "p.x.1.0", "NaN"),
        ({1: 2}, "p.x.1", "key 1 is a int"),
        ({None: 2}, "p.x.None", "key None is a NoneType"),
        ({"a": {Colour.RED: 2}}, "p.x.a.red", "is a Colour"),
        ("\ud800", "p.x", "lone surrogate"),
        ({"a": ["", "b\udfff"]}, "p.x.a.1", "lone surrogate"),
        ({"\ud800": 1}, r"p.x.\ud800", "lone surrogate"),
        (datetime.datetime(2025, 11, 20, tzinfo=datetime.UTC), "p.x", "a datetime"),
        ({1, 2}, "p.x", "a set"),
        (b"x", "p.x", "a bytes"),
        (object(), "p.x", "a object"),
        (Colour.RED, "p.x", "a Colour"),
        ([1, Path("/")], "p.x.1", "Path"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_field(value, field, why):
    with pytest.raises(StateInvalid, match=why) as caught:
        codec.encode({"p": {"ok": 1, "x": value}}, PATH)

    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("value", [cycle(), deep()], ids=["cycle", "deep"])
def test_what_is_too_deep_or_contains_itself_is_refused(value):
    with pytest.raises(StateInvalid, match="nested deeper than 200 levels, or contains itself"):
        codec.encode({"p": value}, PATH)


@pytest.mark.parametrize("key", [1, None, "\ud800"])
def test_a_top_level_key_that_is_no_text_is_refused(key):
    with pytest.raises(StateInvalid):
        codec.encode({key: 1}, PATH)


def test_meta_in_the_callers_mapping_is_left_out():
    assert codec.encode({"_meta": {"revision": 9}, "a": 1}, PATH).keys() == {"a"}


def test_the_head_of_a_file_tells_its_revision():
    data = written({"a": 1}, revision=123, reason="x" * 1000)

    assert codec.peek_revision(data[: codec.HEAD_BYTES]) == 123
    assert codec.peek_revision(b'{"a": 1}') is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)
states = st.dictionaries(
    st.text(st.characters(codec="utf-8")).filter(lambda key: key != "_meta"), json_values
)


@given(states)
def test_any_state_comes_back_as_it_was(state):
    document = codec.parse(written(state, revision=1))

    assert document.trust is codec.Trust.SEALED
    assert repr(codec.decode(document)) == repr(state)


@given(states, st.sampled_from(["float", "decimal"]))
def test_any_loaded_state_is_unchanged_when_it_is_encoded_again(state, numbers):
    base = codec.parse(json.dumps(state, indent=3).encode())

    encoded = codec.encode(codec.decode(base, numbers), PATH)

    assert codec.arrange(encoded, base).sections == base.sections


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**300), max_value=10**300))
def test_any_decimal_comes_back_digit_for_digit(value):
    document = codec.parse(written({"a": [value]}, revision=1))

    (back,) = codec.decode(document, "decimal")["a"]
    assert str(back) == str(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_damaged(data):
    with suppress(codec.Damaged):
        codec.decode(codec.parse(data))
