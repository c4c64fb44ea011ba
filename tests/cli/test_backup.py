"""``statestore backup``: where the copy goes, what is verified, what is deleted after it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from statestore.config import load_settings
from statestore.disk import durable
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.errors import ConfigError
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import ROWS, STATE, WINDOW, snapshot


@pytest.fixture
def state(state_file: Path) -> Path:
    StateStore(state_file).save({"positions": {}, "trades_today": 13}, reason="trade")
    return state_file


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def old_backups(state: Path, *names: str) -> list[Path]:
    folder = state.with_name("state_backups")
    folder.mkdir(exist_ok=True)
    paths = [folder / f".state-{name}.json" for name in names]
    for path in paths:
        path.write_bytes(STATE)
    return paths


def test_a_backup_is_the_state_byte_for_byte_under_a_telling_name(
    statestore: Run, state: Path
) -> None:
    ran = statestore("backup", "--state", state, "--reason", "Before the move")
    path = Path(ran.json["backup"])

    assert ran.code == 0, ran.err
    assert path.read_bytes() == state.read_bytes()
    assert path.parent == state.with_name("state_backups")
    assert path.name.endswith("-r1-before-the-move.json")
    assert ran.json["revision"] == 1
    assert ran.json["bytes"] == path.stat().st_size
    assert ran.json["deleted"] == []


def test_a_backup_goes_to_another_folder(statestore: Run, state: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    ran = statestore("backup", "--state", state, "--output", disk)
    path = Path(ran.json["backup"])

    assert ran.code == 0, ran.err
    assert path.parent == disk
    assert path.read_bytes() == state.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(disk) == [path.name]
    assert not state.with_name("state_backups").exists()
    assert "same file system" in ran.err


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,  # noqa: PTH112, PTH116
    reason="needs a second file system",
)
def test_a_backup_goes_to_another_file_system(statestore: Run, state: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        ran = statestore("backup", "--state", state, "--output", disk)

        assert ran.code == 0, ran.err
        assert Path(ran.json["backup"]).read_bytes() == state.read_bytes()
        assert "same file system" not in ran.err


def test_a_backup_gets_the_name_that_is_asked_for_and_replaces_nothing(
    statestore: Run, state: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    ran = statestore("backup", "--state", state, "--output", copy)

    assert ran.json["backup"] == str(copy)
    assert copy.read_bytes() == state.read_bytes()
    refused(statestore("backup", "--state", state, "--output", copy), 2, "there already")


def test_a_disk_that_is_not_mounted_is_noticed(
    statestore: Run, state: Path, tmp_path: Path
) -> None:
    ran = statestore("backup", "--state", state, "--output", tmp_path / "usb" / "copy.json")

    refused(ran, 2, "mount its disk")
    assert not (tmp_path / "usb").exists()


@pytest.mark.parametrize(
    "name", [".state.json", ".state.json.bak", ".state.json.lock", "KILL_SWITCH"]
)
def test_a_copy_does_not_stand_where_something_of_the_state_belongs(
    statestore: Run, state: Path, name: str
) -> None:
    before = snapshot(state.parent)

    refused(statestore("backup", "--state", state, "--output", state.with_name(name)), 2, name)
    assert snapshot(state.parent) == before


def test_what_the_disk_makes_of_a_backup_is_checked(
    statestore: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = durable.write_all
    monkeypatch.setattr(durable, "write_all", lambda fd, data: original(fd, data[:-1] + b"X"))

    refused(statestore("backup", "--state", state, "--output", tmp_path), 8, "reads back other")


def test_a_full_disk_leaves_no_part_of_a_backup(
    statestore: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_all", refuse)
    ran = statestore("backup", "--state", state, "--output", disk)

    refused(ran, 8, "no backup was made", "No space left")
    assert names(disk) == []


@pytest.mark.parametrize(
    ("content", "word"), [(None, "there is no"), (b"{", "restore --file"), (b"{}", "")]
)
def test_only_what_reads_is_backed_up(
    statestore: Run, state_file: Path, content: bytes | None, word: str
) -> None:
    if content is not None:
        state_file.write_bytes(content)
    ran = statestore("backup", "--state", state_file)

    if content == b"{}":
        assert ran.code == 0
    else:
        refused(ran, 8, word)
        assert not state_file.with_name("state_backups").exists()


def test_a_state_that_was_edited_by_hand_is_not_backed_up_as_good(
    statestore: Run, state: Path
) -> None:
    state.write_bytes(state.read_bytes().replace(b"13", b"99"))

    refused(statestore("backup", "--state", state), 8, "statestore seal", "statestore restore")


# --verify


def test_verify_reads_every_backup_and_writes_nothing(statestore: Run, state: Path) -> None:
    for reason in ("one", "two"):
        statestore("backup", "--state", state, "--reason", reason)
    before = snapshot(state.parent)
    ran = statestore("backup", "--state", state, "--verify")

    assert ran.code == 0
    assert [backup["reason"] for backup in ran.json["backups"]] == ["two", "one"]
    assert ran.json["ok"] is True
    assert snapshot(state.parent) == before


def test_verify_finds_a_flipped_bit_and_a_wrong_name(statestore: Run, state: Path) -> None:
    flipped = Path(statestore("backup", "--state", state).json["backup"])
    data = bytearray(flipped.read_bytes())
    data[-10] ^= 1
    flipped.write_bytes(data)
    renamed = Path(statestore("backup", "--state", state).json["backup"])
    renamed = renamed.rename(renamed.with_name(renamed.name.replace("-r1-", "-r7-")))
    ran = statestore("backup", "--state", state, "--verify")

    assert ran.code == 8
    assert ran.json["ok"] is False
    why = {backup["path"]: backup["why"] for backup in ran.json["backups"]}
    assert why[str(renamed)] == "holds revision 1, other than its name says"
    assert why[str(flipped)]
    assert str(flipped) in ran.err


def test_verify_without_any_backup_is_no_success(statestore: Run, state: Path) -> None:
    refused(statestore("backup", "--state", state, "--verify"), 8, "no backup", "statestore backup")


def test_verify_takes_no_output(statestore: Run, state: Path, tmp_path: Path) -> None:
    ran = statestore("backup", "--state", state, "--verify", "--output", tmp_path)

    refused(ran, 2, "--backup-dir")


# What is deleted


def test_old_backups_go_after_a_new_one_and_those_of_repairs_stay(
    statestore: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "statestore.toml"
    settings.write_text("[backups]\nkeep_last = 1\nkeep_days = 30\nkeep_repairs_days = 1000000\n")
    monkeypatch.setenv("STATESTORE_CONFIG", str(settings))
    old, repair = old_backups(
        state, "20200101T000000.000000Z-r1-trade", "20200101T000000.000000Z-r1-rebuild"
    )
    ran = statestore("backup", "--state", state)

    assert ran.json["deleted"] == [str(old)]
    assert f"Deleted by retention: {old}" in ran.err
    assert not old.exists()
    assert repair.exists()


def test_without_settings_thirty_old_ones_stay(statestore: Run, state: Path) -> None:
    old = old_backups(state, *(f"202001{day:02}T000000.000000Z-r1-trade" for day in range(1, 32)))
    ran = statestore("backup", "--state", state)

    assert ran.json["deleted"] == [str(old[1]), str(old[0])]


def test_a_copy_elsewhere_deletes_nothing(statestore: Run, state: Path, tmp_path: Path) -> None:
    old_backups(state, *(f"202001{day:02}T000000.000000Z-r1-trade" for day in range(1, 32)))
    before = snapshot(state.with_name("state_backups"))
    ran = statestore("backup", "--state", state, "--output", tmp_path)

    assert ran.json["deleted"] == []
    assert snapshot(state.with_name("state_backups")) == before


def test_a_rebuild_deletes_old_backups_as_well(
    rebuild: Run, state_file: Path, kill_switch: KillSwitch
) -> None:
    state_file.write_bytes(STATE)
    old = old_backups(
        state_file, *(f"202001{day:02}T000000.000000Z-r1-trade" for day in range(1, 32))
    )
    kill_switch.engage()
    assert rebuild(*WINDOW, "--dry-run", fills=ROWS).code == 0
    assert all(path.exists() for path in old)
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)

    assert ran.code == 0
    assert [path.exists() for path in old[:3]] == [False, False, True]
    assert Path(ran.json["state"]["backup"]).exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[backups]\nkeep_lst = 1", "keep_lst"),
        ("[backups]\nkeep_last = -1", "keep_last"),
        ("[backups]\nkeep_days = true", "keep_days"),
        ('[backups]\nkeep_days = "30"', "keep_days"),
        ("[backups]\nkeep_days = 1.5", "keep_days"),
        ("backups = 3", "backups"),
    ],
)
def test_a_setting_of_the_backups_that_is_not_understood_is_an_error(
    tmp_path: Path, content: str, word: str
) -> None:
    path = tmp_path / "statestore.toml"
    path.write_text(content)

    with pytest.raises(ConfigError, match=word):
        load_settings({"STATESTORE_CONFIG": str(path)})
