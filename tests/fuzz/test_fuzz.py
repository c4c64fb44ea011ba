"""The bounded run: every seed, and hundreds of changes; ``python -m tests.fuzz`` is long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statestore.disk.codec import to_json
from tests.fuzz import running
from tests.fuzz.guard import Escaped, Hung, guarded
from tests.fuzz.running import CORPUS, TARGETS, mutated, seeds

QUICK = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

names = st.sampled_from(
    ["positions", "fills", "BTC-USD", "[/x]", "quantity", "entry_price", "units", "side", "\x1b[2J"]
)
numbers = st.one_of(
    st.integers(), st.decimals(allow_nan=False, allow_infinity=False), st.floats(-1e9, 1e9)
)
documents = st.dictionaries(
    names | st.text(max_size=5),
    st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=10)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with running.silence():
        yield


def test_every_target_has_seeds_and_every_seed_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(seeds(name) for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_a_value_or_an_error_of_ours(name: str) -> None:
    for seed in seeds(name):
        running.run(name, seed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_changed_seed_is_a_value_or_an_error_of_ours(name: str) -> None:
    chance, known = Random(name), [b"", *seeds(name)]
    for _ in range(40):
        running.run(name, mutated(chance.choice(known), chance))


@pytest.mark.parametrize("name", ["state", "store", "legacy", "repair"])
@QUICK
@given(document=documents)
def test_every_document_is_a_value_or_an_error_of_ours(
    name: str, document: dict[str, object]
) -> None:
    try:
        data = to_json(document)
    except UnicodeEncodeError:
        return  # a lone surrogate cannot be written at all
    running.run(name, data)


@pytest.mark.parametrize("escape", ["write", "rename", "remove", "link"])
def test_the_guard_sees_what_leaves_the_folder(tmp_path: Path, escape: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    (inside / "file").touch()
    outside.touch()
    ways = {
        "write": lambda: (inside / "../new").write_text(""),
        "rename": lambda: os.rename(inside / "file", tmp_path / "moved"),
        "remove": outside.unlink,
        "link": lambda: os.link(inside / "file", tmp_path / "linked"),
    }

    with pytest.raises(Escaped), guarded(inside):
        ways[escape]()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]


def test_the_guard_ends_what_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.guard.LONGEST_SECONDS", 1)

    with pytest.raises(Hung), guarded(tmp_path):
        while True:
            pass
