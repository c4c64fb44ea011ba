"""``history``, ``show --at`` and ``diff``: which versions there are, and what is in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from statestore.disk import codec
from statestore.disk.history import differences
from statestore.disk.store import StateStore
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import snapshot


@pytest.fixture
def state(state_file: Path) -> Path:
    """Revision 3; ``.bak`` is revision 2; a backup each of 1 and 2."""
    store = StateStore(state_file)
    sections: dict[str, Any] = {
        "positions": {
            "BTC-USD": {"side": "BUY", "quantity": 1, "entry_price": 100.5},
            "SOL-USD": {"side": "BUY", "quantity": 7, "entry_price": 20},
        },
        "open_orders": {},
    }
    store.save(sections, reason="first")
    store.backup("daily")
    sections["positions"]["BTC-USD"] |= {"quantity": 2, "stop_loss": 90}
    store.save(sections, reason="second")
    store.backup("rebuild")
    del sections["positions"]["SOL-USD"]
    sections["positions"]["ETH-USD"] = {"side": "BUY", "quantity": 3, "entry_price": 5}
    sections["trades_today"] = 13
    store.save(sections, reason="third")
    return state_file


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err


def saved_at(path: Path) -> str:
    found: str = json.loads(path.read_bytes())["_meta"]["saved_at"]
    return found


# history


def test_history_lists_every_version_newest_first(statestore: Run, state: Path) -> None:
    before = snapshot(state.parent)
    ran = statestore("history", "--state", state)
    found = ran.json["versions"]

    assert ran.code == 0
    assert [(v["kind"], v["revision"], v["saved_for"], v["backup_reason"]) for v in found] == [
        ("state", 3, "third", ""),
        ("bak", 2, "second", ""),
        ("backup", 2, "second", "rebuild"),
        ("backup", 1, "first", "daily"),
    ]
    assert [v["valid"] for v in found] == [True] * 4
    assert found[0]["time"] == saved_at(state)
    assert found[0]["bytes"] == state.stat().st_size
    assert found[1]["sha256"] == found[2]["sha256"] != found[0]["sha256"]
    assert snapshot(state.parent) == before


def test_history_is_json_for_programs_and_a_table_for_people(statestore: Run, state: Path) -> None:
    both = statestore("history", "--state", state)
    only_json = statestore("history", "--state", state, "--format", "json")
    only_table = statestore("history", "--state", state, "--format", "table")

    assert both.out == only_json.out
    assert both.err == only_table.err
    assert only_json.err == only_table.out == ""
    assert [line.split()[1] for line in only_table.err.splitlines()[1:]] == ["3", "2", "2", "1"]


def test_history_lists_what_is_damaged_with_the_reason(statestore: Run, state: Path) -> None:
    store = StateStore(state)
    daily, rebuild = sorted(store.backups.directory.iterdir())
    daily.write_bytes(daily.read_bytes()[:-20])
    rebuild.write_bytes(rebuild.read_bytes().replace(b'"quantity": 2', b'"quantity": 9'))
    state.write_bytes(b"\0" * 4096)
    aside = state.with_name(".state.json.corrupt-20251120T100000.000000Z")
    aside.write_bytes(b"")
    found = {v["path"]: v for v in statestore("history", "--state", state).json["versions"]}

    assert found[str(daily)]["status"] == "damaged"
    assert found[str(daily)]["revision"] is None
    assert found[str(daily)]["backup_reason"] == "daily"
    assert (found[str(rebuild)]["status"], found[str(rebuild)]["revision"]) == ("mismatch", 2)
    assert found[str(state)]["why"] == "is 4096 bytes of nothing"
    assert (found[str(aside)]["kind"], found[str(aside)]["why"]) == ("quarantined", "is empty")
    assert found[f"{state}.bak"]["valid"] is True
    assert [v["valid"] for v in found.values()].count(True) == 1


def test_history_lists_a_folder_and_a_dangling_link_without_falling_over(
    statestore: Run, state: Path
) -> None:
    bak = state.with_name(".state.json.bak")
    bak.unlink()
    bak.mkdir()
    backup = next(state.with_name("state_backups").iterdir())
    backup.unlink()
    backup.symlink_to("nowhere")
    found = {v["path"]: v for v in statestore("history", "--state", state).json["versions"]}

    assert found[str(bak)]["why"] == "is a directory, not a file"
    assert str(backup) not in found


def test_history_of_nothing_is_an_error(statestore: Run, state_file: Path) -> None:
    refused(statestore("history", "--state", state_file), 8, "there is no", "check the path")


# show --at


@pytest.mark.parametrize(("revision", "quantity"), [(1, 1), (2, 2), (3, 2)])
def test_show_prints_a_revision(statestore: Run, state: Path, revision: int, quantity: int) -> None:
    ran = statestore("show", "--state", state, "--at", revision, "--section", "positions")

    assert ran.code == 0
    assert ran.json["BTC-USD"]["quantity"] == quantity
    assert f"revision {revision}" in ran.err


def test_show_prints_the_newest_version_saved_at_or_before_a_time(
    statestore: Run, state: Path
) -> None:
    times = {n: saved_at(path) for n, path in enumerate(sorted(
        state.with_name("state_backups").iterdir()), start=1)}  # fmt: skip

    for revision, time in times.items():
        ran = statestore("show", "--state", state, "--at", time)
        assert f"(revision {revision}," in ran.err
    later = statestore("show", "--state", state, "--at", "2999-01-01T00:00:00+01:00")
    assert "(revision 3," in later.err
    earlier = statestore("show", "--state", state, "--at", "2001-01-01T00:00:00Z")
    refused(earlier, 8, "no version", f"the oldest is of {times[1]}")


def test_show_at_passes_over_what_is_damaged(statestore: Run, state: Path) -> None:
    daily, rebuild = sorted(state.with_name("state_backups").iterdir())
    rebuild.write_bytes(b"{")
    from_bak = statestore("show", "--state", state, "--at", "2")
    state.with_name(".state.json.bak").unlink()
    data = daily.read_bytes()
    daily.write_bytes(data.replace(b'"quantity": 1', b'"quantity": 8'))

    assert f"{state}.bak" in from_bak.err
    refused(statestore("show", "--state", state, "--at", "2"), 8, "not at hand", "there are 3")
    refused(statestore("show", "--state", state, "--at", "1"), 8, str(daily), "its sum")


def test_show_at_works_when_the_state_itself_does_not_read(statestore: Run, state: Path) -> None:
    state.write_bytes(b"")
    for path in (state.with_name(".state.json.bak"), *state.parent.glob("state_backups/*-r2-*")):
        path.unlink()

    ran = statestore("show", "--state", state, "--at", "1")
    assert ran.json["positions"]["BTC-USD"] == {"side": "BUY", "quantity": 1, "entry_price": 100.5}


@pytest.mark.parametrize("at", ["yesterday", "2025-11-18T04:00:00", "-1", "1.5", ""])
def test_what_names_no_version_is_a_usage_error(statestore: Run, state: Path, at: str) -> None:
    refused(statestore("show", "--state", state, f"--at={at}"), 2, "neither a revision")


# diff


def test_without_arguments_diff_shows_what_the_last_save_changed(
    statestore: Run, state: Path
) -> None:
    before = snapshot(state.parent)
    ran = statestore("diff", "--state", state)

    assert ran.code == 0
    assert (ran.json["before"]["revision"], ran.json["after"]["revision"]) == (2, 3)
    assert ran.json["different"] is True
    assert ran.json["positions"] == {
        "added": {"ETH-USD": {"side": "BUY", "quantity": 3, "entry_price": 5}},
        "removed": {"SOL-USD": {"side": "BUY", "quantity": 7, "entry_price": 20}},
        "changed": {},
    }
    changes = {part["section"]: part["change"] for part in ran.json["sections"]}
    assert changes == {"positions": "changed", "open_orders": "same", "trades_today": "added"}
    assert "+ ETH-USD  side BUY quantity 3 entry_price 5" in ran.err.replace('"', "")
    assert "- SOL-USD" in ran.err
    assert snapshot(state.parent) == before


def test_diff_takes_revisions_times_and_files(statestore: Run, state: Path) -> None:
    daily, _ = sorted(state.with_name("state_backups").iterdir())
    named = [
        statestore("diff", "--state", state, before, after).json["positions"]
        for before, after in [
            ("1", "2"),
            (saved_at(daily), ".bak"),
            (daily, "2"),
        ]
    ]

    assert named[0]["changed"] == {
        "BTC-USD": {"quantity": {"before": 1, "after": 2}, "stop_loss": {"after": 90}}
    }
    assert named[1] == named[0]
    assert named[2] == named[0]


def test_diff_shows_an_edit_by_hand_that_no_load_accepts(statestore: Run, state: Path) -> None:
    state.write_bytes(state.read_bytes().replace(b"100.5", b"100.25"))
    good = next(state.with_name("state_backups").glob("*-r2-*"))
    ran = statestore("diff", "--state", state, good, "state")

    assert ran.code == 0
    assert "its sum does not match" in ran.json["after"]["why"]
    assert "~ BTC-USD.entry_price  100.5 -> 100.25" in ran.err
    assert "Warning" in ran.err


@pytest.mark.parametrize(("arguments", "code"), [(("2", "3"), 3), (("2", ".bak"), 0)])
def test_exit_code_tells_whether_they_differ(
    statestore: Run, state: Path, arguments: tuple[str, str], code: int
) -> None:
    assert statestore("diff", "--state", state, *arguments, "--exit-code").code == code
    assert statestore("diff", "--state", state, *arguments).code == 0


@pytest.mark.parametrize(
    ("named", "code", "word"),
    [
        ("nonsense", 2, "no file of that name"),
        ("9", 8, "there are 1, 2, 3"),
        ("2001-01-01T00:00:00Z", 8, "no version"),
        (".", 8, "is a directory"),
    ],
)
def test_diff_says_what_is_wrong_with_a_name(
    statestore: Run, state: Path, named: str, code: int, word: str
) -> None:
    refused(statestore("diff", "--state", state, named), code, word)


def documents(old: str, new: str) -> dict[str, Any]:
    return differences(codec.parse(old.encode()), codec.parse(new.encode()))


@pytest.mark.parametrize(
    ("old", "new", "different"),
    [
        ('{"a": 1.50}', '{"a":1.5}', False),
        ('{"a": 100}', '{"a": 1e2}', False),
        ('{"a": 1}', '{"a": true}', True),
        ('{"a": 0}', '{"a": false}', True),
        ('{"a": "1"}', '{"a": 1}', True),
        ('{"a": null}', '{"a": 0}', True),
        ('{"a": null}', "{}", True),
        ('{"a": {"b": 1, "c": [1, 2]}}', '{"a": {"c": [1, 2.0], "b": 1}}', False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', True),
        ('{"a": 0.1, "b": 1}', '{"b": 1, "a": 0.1}', False),
        ('{"a": 0.30000000000000004}', '{"a": 0.3}', True),
        ('{"a": 12345678901234567890.1}', '{"a": 12345678901234567890.2}', True),
    ],
)
def test_values_are_compared_and_not_how_they_are_written(
    old: str, new: str, different: bool
) -> None:
    assert documents(old, new)["different"] is different
    assert documents(new, old)["different"] is different


def test_positions_of_another_shape_are_compared_as_a_section() -> None:
    report = documents('{"positions": [1]}', '{"positions": {"BTC": 1}}')
    inner = documents('{"positions": {"BTC": 1}}', '{"positions": {"BTC": {"quantity": 1}}}')

    assert report["sections"][0]["change"] == "changed"
    assert report["positions"]["added"] == {"BTC": 1}
    assert inner["positions"]["changed"] == {"BTC": {"*": {"before": 1, "after": {"quantity": 1}}}}


def test_history_of_a_folder_that_may_not_be_listed_is_one_line(
    statestore: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("state_backups"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    for command in ("history", "check"):
        refused(statestore(command, "--state", state), 8, "cannot list", "state_backups")
