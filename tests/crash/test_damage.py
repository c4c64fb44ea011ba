"""Damage at rest is answered with a fallback that is told, or an error; never with wrong data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash import damage
from tests.crash.lab import Tally

STATE, BAK = "state.json", "state.json.bak"


@pytest.mark.parametrize("on_mismatch", ["refuse", "fallback"])
@pytest.mark.parametrize("backup", [False, True], ids=["no backup", "a backup"])
@pytest.mark.parametrize(
    "which", [(STATE,), (BAK,), (STATE, BAK)], ids=["the state", ".bak", "both"]
)
def test_damage_is_never_answered_with_wrong_or_empty_data(
    which: tuple[str, ...],
    backup: bool,
    on_mismatch: str,
    full: bool,
    clean: Callable[[Tally], None],
) -> None:
    step = 41 if not full else 1 if on_mismatch == "refuse" else 7

    clean(damage.damage_statestore(which, step, backup=backup, on_mismatch=on_mismatch))


def test_a_file_without_a_sum_is_seen_to_answer_with_wrong_data() -> None:
    """The test of the test: the same damage to plain JSON."""
    from tests.crash.subjects import PEERS, WRONG

    plain = next(peer for peer in PEERS if peer.name == "json + os.replace")

    assert WRONG in damage.damage_peer(plain, step=41).violations
