"""What a tired person types wrongly, and what is said to it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from statestore.disk.store import StateStore
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("typed", "meant"), [("chek", "check"), ("kill_switch", "kill-switch"), ("rebuilt", "rebuild")]
)
def test_a_command_that_is_none_is_told_what_was_meant(
    statestore: Run, typed: str, meant: str
) -> None:
    ran = statestore(typed)

    assert ran.code == 2
    assert f"No such command {typed!r}. Did you mean {meant!r}?" in ran.err


def test_a_switch_beside_a_state_that_is_not_there_warns(statestore: Run, state_file: Path) -> None:
    StateStore(state_file).save({"positions": {}})
    slip = state_file.with_name("stat.json")

    assert (
        f"Warning: there is no {slip}" in statestore("kill-switch", "engage", "--state", slip).err
    )
    assert "Warning" not in statestore("kill-switch", "engage", "--state", state_file).err


def test_a_window_of_too_many_hours_says_how_many_there_may_be(statestore: Run) -> None:
    ran = statestore("rebuild", "--dry-run", "--hours", "99999999999")

    assert ran.code == 2
    assert "above 0 and up to 1000000" in ran.err


@pytest.mark.parametrize("option", ["--out", "--save-fills", "--audit-out"])
def test_a_file_that_could_not_be_written_is_refused_before_anything_is_read(
    statestore: Run, tmp_path: Path, option: str
) -> None:
    read = ("--fills", tmp_path / "not-looked-at", "--dry-run")
    a_folder = statestore("rebuild", *read, option, tmp_path)
    nowhere = statestore("rebuild", *read, option, tmp_path / "nowhere" / "file")

    assert a_folder.code == nowhere.code == 2
    assert f"{option} {tmp_path} is a folder; name a file in it" in a_folder.error
    assert f"there is no folder {tmp_path}/nowhere" in nowhere.error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; expected a List Accounts payload"),
        ('{"positions": {}}', "balance of positions"),
        ('{"BTC": "1", "btc": "2"}', "names btc twice"),
        ('{"BTC": "1", "BTC": "2"}', "names BTC twice"),
    ],
)
def test_balances_that_are_none_or_ambiguous_are_refused(
    statestore: Run, state_file: Path, tmp_path: Path, content: str, words: str
) -> None:
    StateStore(state_file).save({"positions": {}})
    (tmp_path / "balances.json").write_text(content)
    (tmp_path / "fills.json").write_text('{"fills": []}')
    read = ("--fills", tmp_path / "fills.json", "--balances", tmp_path / "balances.json")
    ran = statestore("rebuild", "--state", state_file, *read, "--dry-run")

    assert ran.code == 5
    assert words in ran.error


def test_a_restore_into_nothing_says_that_nothing_was_there(
    statestore: Run, state_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    copy.write_text('{"positions": {}}')
    state_file.with_name("KILL_SWITCH").touch()
    ran = statestore("restore", "--state", state_file, "--file", copy, "--yes")

    assert ran.code == 0
    assert f"From {state_file} (there is none)" in ran.err
    assert "There was no state before, so there is no backup, and no undo." in ran.err


def test_a_plan_that_is_none_says_how_to_make_one(statestore: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()

    for name in ("empty.json", "none.json"):
        error = statestore("rebuild", "--apply", tmp_path / name).error
        assert "make" in error
        assert "--out" in error


def test_the_state_may_be_named_on_either_side_of_audit_verify(
    statestore: Run, state_file: Path
) -> None:
    StateStore(state_file).save({"positions": {}})
    before = statestore("audit", "--state", state_file, "verify")
    after = statestore("audit", "verify", "--state", state_file)

    assert before.json == after.json
    assert after.json["audit"] == str(state_file.with_name("state_audit.jsonl"))


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_difference_has_colours_unless_they_are_not_wanted(
    state_file: Path, no_color: str, coloured: bool
) -> None:
    bot = StateStore(state_file)
    for quantity in (1, 2):
        bot.save(bot.load() | {"positions": {"BTC-USD": {"quantity": quantity}}})
    terminal, end = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "statestore", "diff", "--state", state_file],
        env=os.environ | {"NO_COLOR": no_color},
        stdout=subprocess.DEVNULL,
        stderr=end,
        check=True,
    )
    os.close(end)
    said = os.read(terminal, 65536)
    os.close(terminal)

    assert b"BTC-USD.quantity  1 -> 2" in said
    assert (b"\x1b[33m" in said) is coloured
