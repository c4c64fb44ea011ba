"""What `encode` remembers of the save before changes no answer, only what it costs."""

from __future__ import annotations

import array
import copy
import datetime
import math
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.disk import codec
from statestore.disk.values import MAX_DEPTH
from statestore.errors import StateInvalid

PATH = Path("/var/lib/bot/state.json")


class Colour(StrEnum):
    RED = "red"


class One(IntEnum):
    ONE = 1


class Text(str):
    pass


def answer(state: Mapping[str, object], remembered: codec.Remembered | None = None) -> object:
    try:
        return codec.encode(state, PATH, remembered)
    except StateInvalid as error:
        return str(error), error.field


ODD = [
    math.nan,
    -math.inf,
    math.inf,
    Decimal("1"),
    Decimal("NaN"),
    Decimal("1.0"),
    b"red",
    bytearray(b"red"),
    memoryview(b"red"),
    array.array("d", [1.0]),
    {1},
    frozenset({1}),
    1j,
    Colour.RED,
    One.ONE,
    Text("red"),
    datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
    uuid.UUID(int=1),
    object(),
    ...,
    "\ud800",
    10**5000,
    OrderedDict(a=1),
    defaultdict(int, a=1),
    (1, 2),
    {1: 2},
    {True: 2},
    {1.0: 2},
    {None: 2},
    {b"a": 1},
    {(1,): 1},
    {Colour.RED: 1},
    {Text("red"): 1},
    {"\ud800": 1},
    type,
    len,
    StopIteration,
    compile("1", "", "eval"),
]
LIKE = [
    1,
    1.0,
    True,
    "1",
    "red",
    None,
    0.0,
    -0.0,
    0,
    False,
    "",
    [1, 2],
    [1.0],
    {"1": 2},
    {"a": 1},
    {"red": 1},
    {"None": 2},
    [],
    {},
]


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"a": [0, {"b": v}]}], ids=["list", "deep"]
)
def test_a_look_alike_is_never_taken_for_a_remembered_value(
    wrap: Callable[[object], object],
) -> None:
    for before in LIKE + ODD:
        for after in LIKE + ODD:
            remembered = {}
            for value in (before, before, before, after, after, after, before, after):
                state = {"s": wrap(value)}
                assert answer(state, remembered) == answer(state)


values = st.recursive(
    st.sampled_from([v for v in LIKE + ODD if not (type(v) is int and v > 9)])
    | st.floats()
    | st.integers()
    | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", 1, "1", None]), inner)
    ),
    max_leaves=8,
)
states = st.dictionaries(st.sampled_from(["p", "q", "_meta"]), values)


@settings(max_examples=300, deadline=None)
@given(st.lists(states, max_size=4), st.lists(st.integers(0, 3), max_size=12))
def test_memory_changes_no_answer(pool: list[dict[str, object]], order: list[int]) -> None:
    remembered = {}
    for at in order:
        if pool:
            state = pool[at % len(pool)]
            assert answer(state, remembered) == answer(state)


def test_a_change_in_place_is_seen() -> None:
    state, remembered = {"p": {"BTC-USD": {"units": 1.0, "legs": [1, 2]}}}, {}
    for change in (None, None, None, 2.0, 2.0, 2, True, math.nan, 1.0, 1.0, 1.0):
        if change is not None:
            state["p"]["BTC-USD"]["units"] = change
        assert answer(state, remembered) == answer(copy.deepcopy(state))
    assert remembered["p"][1] is codec.encode(state, PATH, remembered)["p"]


def test_what_left_the_state_is_forgotten() -> None:
    remembered = {}
    for _ in range(3):
        codec.encode({"p": [1], "q": [2]}, PATH, remembered)
    codec.encode({"p": [1]}, PATH, remembered)
    assert remembered.keys() == {"p"}


def test_cycles_and_depth_are_refused_every_time() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    deep = []
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    deeper = []
    for _ in range(5000):
        deeper = [deeper]
    for value in (cycle, deep, deeper):
        remembered = {}
        for _ in range(3):
            with pytest.raises(StateInvalid, match="nested deeper than 200"):
                codec.encode({"p": value}, PATH, remembered)
