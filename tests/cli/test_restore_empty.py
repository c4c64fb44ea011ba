"""``restore --empty``: the way on where neither the state nor any copy of it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.simulated import SimulatedExchange
from tests.cli.conftest import Run

RECORDED = {"positions": {"BTC-USD": {"quantity": 1, "entry_price": 100}}}


@pytest.fixture
def lost(state_file: Path, kill_switch: Any) -> Path:
    """A state and a ``.bak`` that are both torn, no backups, and a halted bot."""
    kill_switch.engage("test", "me")
    StateStore(state_file).save(RECORDED)
    state_file.write_bytes(b"torn")
    state_file.with_name(".state.json.bak").write_bytes(b"torn as well")
    return state_file


def test_a_rebuild_of_what_is_lost_names_the_way_on_and_it_leads_there(
    statestore: Run, rebuild: Run, lost: Path, exchange: SimulatedExchange
) -> None:
    refused = rebuild("--yes")
    begun = statestore("restore", "--empty", "--state", lost, "--yes")
    rebuilt = rebuild("--yes")

    assert refused.code == 8
    assert "restore --empty" in refused.error
    assert begun.code == 0, begun.err
    assert begun.json["from"] == "empty"
    assert [path.read_bytes() for path in lost.parent.glob("*.corrupt-*")] == [b"torn"]
    assert rebuilt.code == 0, rebuilt.err
    assert sorted(StateStore(lost).load()["positions"]) == ["BTC-USD", "DOGE-USD", "ETH-USD"]


def test_where_nothing_is_left_at_all_it_begins_as_well(statestore: Run, lost: Path) -> None:
    lost.unlink()
    lost.with_name(".state.json.bak").unlink()

    assert statestore("restore", "--empty", "--state", lost, "--yes").code == 0
    assert StateStore(lost).load() == {"positions": {}}


def test_a_state_that_reads_is_never_emptied(
    statestore: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    store = StateStore(state_file)
    store.save(RECORDED)
    good = statestore("restore", "--empty", "--state", state_file, "--yes")
    store.save({**RECORDED, "n": 1})
    state_file.write_bytes(b"torn")
    fallen_back = statestore("restore", "--empty", "--state", state_file, "--yes")

    assert (good.code, fallen_back.code) == (2, 2)
    assert ".bak reads" in fallen_back.error
    assert state_file.read_bytes() == b"torn"


def test_a_hand_edit_is_no_reason_to_begin_again(
    statestore: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    StateStore(state_file).save(RECORDED)
    state_file.write_text(state_file.read_text().replace("100", "101"))

    assert statestore("restore", "--empty", "--state", state_file, "--yes").code == 8
    assert "101" in state_file.read_text()


def test_it_needs_the_kill_switch_and_a_dry_run_writes_nothing(
    statestore: Run, lost: Path, kill_switch: Any
) -> None:
    assert statestore("restore", "--empty", "--state", lost, "--dry-run").code == 0
    kill_switch.release()
    assert statestore("restore", "--empty", "--state", lost, "--yes").code == 6
    assert statestore("restore", "--empty", "--file", "x", "--state", lost).code == 2
    assert lost.read_bytes() == b"torn"
