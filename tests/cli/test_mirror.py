"""``statestore mirror``, on a real InfluxDB 1.6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statestore import StateStore
from statestore.cli import mirror as module
from tests.cli.conftest import Run
from tests.servers import InfluxServer, free_port

HOLDING = {"BTC-USD": {"quantity": 1, "entry_price": 100}}


@pytest.fixture
def mirrored(
    statestore: Run, influx: InfluxServer, state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """``statestore mirror``, with a mirror that is configured."""
    monkeypatch.setenv("TRADING_STATE_DB_TYPE", "influxdb")
    monkeypatch.setenv("TRADING_STATE_INFLUXDB_URL", influx.url)
    return lambda command, *arguments: statestore(
        "mirror", command, "--state", state_file, *arguments
    )


@pytest.fixture
def lost(mirrored: Run, state_file: Path, kill_switch: Any) -> Path:
    """A state that was pushed at revision 2 and then lost; the bot is halted."""
    store = StateStore(state_file)
    store.save({"positions": {}})
    store.save({"positions": HOLDING})
    assert mirrored("push").code == 0
    state_file.unlink()
    store.backup_path.unlink()
    kill_switch.engage("test", "me")
    return state_file


def test_push_makes_file_and_mirror_level(mirrored: Run, state_file: Path) -> None:
    store = StateStore(state_file)
    store.save({"positions": HOLDING})
    before = mirrored("status", "--exit-code")
    pushed = mirrored("push")
    after = mirrored("status", "--exit-code")
    store.save({"positions": {}})
    behind = mirrored("status", "--exit-code")

    assert (before.code, before.json["mirrored"]) == (3, None)
    assert pushed.code == 0, pushed.err
    assert pushed.json["mirrored"] == 1
    assert (after.code, after.json["level"], after.json["health"]) == (0, True, "ok")
    assert (behind.code, behind.json["behind"]) == (3, 1)
    assert str(state_file) in behind.json["names"]
    assert mirrored("status").code == 0


def test_a_lost_state_is_restored_backed_up_audited_and_can_be_undone(
    mirrored: Run, statestore: Run, lost: Path
) -> None:
    StateStore(lost).save({"n": "begun anew"})
    shown = mirrored("restore", "--dry-run")
    assert shown.json["dry_run"]
    assert StateStore(lost).load().meta.revision == 1
    restored = mirrored("restore", "--yes")

    assert restored.code == 0, restored.err
    assert restored.json["mirror_revision"] == 2
    state = StateStore(lost).load()
    assert state["positions"] == HOLDING
    assert state.meta.revision == 3
    assert Path(restored.json["backup"]).exists()
    line = json.loads((lost.parent / "state_audit.jsonl").read_text())
    assert line["action"] == "restore"
    assert line["mirror_revision"] == 2
    assert statestore("undo", "--state", lost, "--yes").code == 0
    assert StateStore(lost).load()["n"] == "begun anew"


def test_it_restores_where_nothing_is_left_at_all(mirrored: Run, lost: Path) -> None:
    assert mirrored("restore", "--yes").code == 0
    assert StateStore(lost).load()["positions"] == HOLDING


def test_it_restores_over_a_file_that_does_not_read(mirrored: Run, lost: Path) -> None:
    lost.write_bytes(b"torn")

    assert mirrored("restore", "--yes").code == 0
    assert StateStore(lost).load()["positions"] == HOLDING


def test_a_restore_needs_the_kill_switch(mirrored: Run, lost: Path, kill_switch: Any) -> None:
    kill_switch.release()

    assert mirrored("restore", "--yes").code == 6
    assert not lost.exists()


def test_a_file_that_is_newer_is_not_put_back_by_accident(mirrored: Run, lost: Path) -> None:
    store = StateStore(lost)
    for number in range(3):
        store.save({"n": number})
    refused = mirrored("restore", "--yes")
    assert refused.code == 9
    assert "--older" in refused.error
    assert store.load()["n"] == 2

    assert mirrored("restore", "--yes", "--older").code == 0
    assert store.load()["positions"] == HOLDING


def test_a_file_that_became_newer_while_the_operator_was_asked_is_not_put_back(
    mirrored: Run, lost: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = module.restore_document

    def asked_for_long(*arguments: Any) -> Any:
        for number in range(3):
            bot.save({"n": number})
        return restore(*arguments)

    bot = StateStore(lost)
    monkeypatch.setattr(module, "restore_document", asked_for_long)
    refused = mirrored("restore", "--yes")

    assert refused.code == 9
    assert "--older" in refused.error
    assert StateStore(lost).load()["n"] == 2


def test_another_state_of_the_same_revision_is_not_put_back_by_accident(
    mirrored: Run, lost: Path
) -> None:
    store = StateStore(lost)
    store.save({"n": 1})
    store.save({"n": 2})
    refused = mirrored("restore", "--yes")

    assert refused.code == 9
    assert "another state" in refused.error
    assert store.load()["n"] == 2


def test_a_restore_of_what_is_level_does_nothing(
    mirrored: Run, state_file: Path, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    StateStore(state_file).save({"n": 1})
    mirrored("push")
    before = state_file.read_bytes()
    level = mirrored("restore", "--yes")

    assert level.code == 0
    assert "level" in level.err
    assert state_file.read_bytes() == before


def test_a_name_that_is_not_there_names_those_that_are(
    mirrored: Run, lost: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADING_STATE_NAME", "other")

    ran = mirrored("restore", "--yes")

    assert ran.code == 8
    assert str(lost) in ran.error
    assert "TRADING_STATE_NAME" in ran.error


def test_a_mirror_that_is_ahead_is_not_written_over(mirrored: Run, lost: Path) -> None:
    StateStore(lost).save({"n": 1})
    ran = mirrored("push")

    assert ran.code == 10
    assert "mirror restore" in ran.error
    assert ran.err.count("\n") == 1


def test_a_state_that_nothing_vouches_for_is_not_pushed(mirrored: Run, state_file: Path) -> None:
    state_file.write_text('{"positions": {}}')
    assert "statestore seal" in mirrored("push").error
    state_file.write_bytes(b"torn")
    assert mirrored("push").code == 8
    state_file.unlink()
    assert mirrored("push").code == 8


@pytest.mark.parametrize("command", ["status", "push", "restore"])
def test_a_mirror_that_is_down_is_exit_10_without_the_token(
    mirrored: Run, state_file: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    StateStore(state_file).save({"n": 1})
    monkeypatch.setenv("TRADING_STATE_INFLUXDB_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TRADING_STATE_INFLUXDB_TOKEN", "s3cret")

    ran = mirrored(command)

    assert ran.code == 10
    assert "Connection refused" in ran.err
    assert "s3cret" not in ran.out + ran.err
    if command == "status":
        assert ran.json["mirrored"] is None
        assert ran.json["revision"] == 1


def test_without_a_mirror_it_says_what_to_set(statestore: Run, state_file: Path) -> None:
    ran = statestore("mirror", "status", "--state", state_file)

    assert ran.code == 2
    assert "TRADING_STATE_DB_TYPE=influxdb" in ran.error
