"""Taking back what was done: restore, undo, seal; what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import FileStore, StateStore
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import ROWS, STATE, WINDOW, sections, snapshot


@pytest.fixture
def state(state_file: Path) -> Path:
    state_file.write_bytes(STATE)
    return state_file


@pytest.fixture
def halted(kill_switch: KillSwitch) -> KillSwitch:
    kill_switch.engage(reason="positions look wrong")
    return kill_switch


@pytest.fixture
def rebuilt(rebuild: Run, state: Path, halted: KillSwitch) -> dict[str, Any]:
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = ran.json["state"]
    return found


def bot_saves(state: Path, **values: object) -> None:
    with StateStore(state).transaction(reason="trade") as sections:
        sections.update(values)


def audit(statestore: Run, state: Path) -> list[dict[str, Any]]:
    assert statestore("audit", "--state", state, "verify").code == 0
    entries: list[dict[str, Any]] = statestore("audit", "--state", state).json["entries"]
    return entries


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.error


# Undo


def test_undo_after_a_rebuild_puts_back_the_bytes_of_every_section(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    ran = statestore("undo", "--state", state)

    assert ran.code == 0, ran.err
    assert sections(state.read_bytes()) == sections(STATE)
    assert ran.json["revision"] == rebuilt["revision"] + 1
    assert ran.json["undone"]["action"] == "rebuild"
    assert ran.json["from"] == rebuilt["backup"]
    assert "BTC-USD.quantity  2 -> 1" in ran.err


def test_an_undo_is_a_repair_itself(statestore: Run, state: Path, rebuilt: dict[str, Any]) -> None:
    repaired = state.read_bytes()
    ran = statestore("undo", "--state", state)
    line = audit(statestore, state)[-1]

    assert Path(ran.json["backup"]).read_bytes() == repaired
    assert "-undo" in ran.json["backup"]
    assert line["action"] == "undo"
    assert line["undone"]["revision"] == rebuilt["revision"]
    assert (line["revision_before"], line["sha256_before"]) == (1, rebuilt["sha256"])
    assert line["backup"] == ran.json["backup"]
    assert line["sections"] == ["positions"]
    assert line["positions"]["changed"]["BTC-USD"]["quantity"] == {"before": 2, "after": 1}


def test_an_undo_of_an_undo_brings_the_repair_back(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    repaired = sections(state.read_bytes())
    seen = []
    for _ in range(4):
        assert statestore("undo", "--state", state).code == 0
        seen.append(sections(state.read_bytes()))

    assert seen == [sections(STATE), repaired, sections(STATE), repaired]
    assert [line["action"] for line in audit(statestore, state)] == ["rebuild"] + ["undo"] * 4
    assert StateStore(state).load().meta.revision == 5


def test_an_undo_would_lose_what_the_bot_saved_since_and_is_refused(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    bot_saves(state, trades_today=14)
    before = snapshot(state.parent)
    ran = statestore("undo", "--state", state, "--yes")

    refused(ran, 9, "rebuild", "revision 2", "--discard-later-saves", "statestore edit")
    assert snapshot(state.parent) == before


def test_later_saves_are_discarded_when_that_is_asked_for_and_kept_in_a_backup(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    bot_saves(state, trades_today=14)
    since = state.read_bytes()
    ran = statestore("undo", "--state", state, "--discard-later-saves")

    assert ran.code == 0, ran.err
    assert sections(state.read_bytes()) == sections(STATE)
    assert Path(ran.json["backup"]).read_bytes() == since
    assert ran.json["saved_since"] is True
    assert statestore("undo", "--state", state).code == 0
    assert sections(state.read_bytes()) == sections(since)


@pytest.mark.parametrize("saved_since", [False, True])
def test_a_dry_run_of_undo_writes_nothing_and_needs_no_kill_switch(
    statestore: Run, state: Path, rebuilt: dict[str, Any], halted: KillSwitch, saved_since: bool
) -> None:
    if saved_since:
        bot_saves(state, trades_today=14)
    halted.release()
    before = snapshot(state.parent)
    ran = statestore("undo", "--state", state, "--dry-run")

    assert ran.code == 0, ran.err
    assert snapshot(state.parent) == before
    assert ran.json["dry_run"] is True
    assert ran.json["saved_since"] is saved_since
    changed = ran.json["difference"]["positions"]["changed"]["BTC-USD"]
    assert changed["quantity"] == {"before": 2, "after": 1}


def test_an_undo_needs_the_kill_switch(
    statestore: Run, state: Path, rebuilt: dict[str, Any], halted: KillSwitch
) -> None:
    halted.release()
    before = snapshot(state.parent)

    refused(statestore("undo", "--state", state), 6, "kill-switch engage")
    assert snapshot(state.parent) == before
    assert statestore("undo", "--state", state, "--allow-live").code == 0


def test_a_bot_that_saves_while_the_undo_is_at_work_is_not_overwritten(
    statestore: Run, state: Path, rebuilt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = FileStore.restore

    def meanwhile(self: StateStore, *args: Any, **kwargs: Any) -> Any:
        bot_saves(state, trades_today=14)
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(FileStore, "restore", meanwhile)
    ran = statestore("undo", "--state", state)

    refused(ran, 9, "revision 2")
    assert StateStore(state).load()["trades_today"] == 14
    assert list(state.parent.glob("state_backups/*undo*")) == []


def test_without_a_repair_there_is_nothing_to_undo(
    statestore: Run, state: Path, halted: KillSwitch
) -> None:
    refused(statestore("undo", "--state", state), 8, "has no repair", "statestore history")


def test_repairs_of_another_state_are_not_undone_here(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    other = state.with_name("other.json")
    other.write_bytes(STATE)

    refused(statestore("undo", "--state", other), 8, "has no repair", str(state))


def test_a_backup_that_is_not_what_was_recorded_is_not_put_back(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    Path(rebuilt["backup"]).write_bytes(STATE.replace(b"13", b"99"))
    before = snapshot(state.parent)

    refused(statestore("undo", "--state", state), 8, rebuilt["backup"], "recorded is")
    assert snapshot(state.parent) == before


def test_a_backup_that_is_gone_is_named(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    Path(rebuilt["backup"]).unlink()

    refused(statestore("undo", "--state", state), 8, rebuilt["backup"], "is gone")


def test_backups_that_were_moved_to_another_folder_are_found(
    statestore: Run, state: Path, rebuilt: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(rebuilt["backup"]).parent
    moved = folder.rename(tmp_path / "moved")

    assert statestore("undo", "--state", state, "--backup-dir", moved).code == 0
    assert sections(state.read_bytes()) == sections(STATE)


def test_an_undo_is_typed_in_another_folder_than_the_repair(
    statestore: Run, rebuild: Run, state: Path, halted: KillSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent.parent)
    assert statestore("restore", "--state", "data/.state.json", "--file", state).code == 0
    monkeypatch.chdir("/")
    ran = statestore("undo", "--state", state)

    assert ran.code == 0, ran.err
    assert Path(ran.json["from"]).is_absolute()


def test_a_record_that_was_changed_is_not_relied_on(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    statestore("undo", "--state", state)
    log = state.with_name("state_audit.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"rebuild"', b'"REBUILD"', 1))

    refused(statestore("undo", "--state", state), 8, "line 2", "restore --file")


# Restore


def test_a_restore_is_undone(statestore: Run, state: Path, halted: KillSwitch) -> None:
    store = StateStore(state)
    store.save(store.load() | {"trades_today": 14})
    before = sections(state.read_bytes())
    assert statestore("restore", "--state", state).code == 0
    assert sections(state.read_bytes()) == sections(STATE)

    assert statestore("undo", "--state", state).code == 0
    assert sections(state.read_bytes()) == before


def test_what_a_restore_replaces_is_backed_up_and_recorded(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    present = state.read_bytes()
    ran = statestore("restore", "--state", state, "--file", rebuilt["backup"])
    line = audit(statestore, state)[-1]

    assert Path(ran.json["backup"]).read_bytes() == present
    assert Path(ran.json["backup"]).name.endswith("-r1-restore.json")
    assert line["backup"] == ran.json["backup"]
    assert line["from"] == rebuilt["backup"]
    assert line["sha256_before"] == rebuilt["sha256"]


def test_a_dry_run_of_restore_shows_the_difference_and_writes_nothing_at_all(
    statestore: Run, state: Path, rebuilt: dict[str, Any], halted: KillSwitch
) -> None:
    halted.release()
    state.with_name(".state.json.lock").unlink()
    before = snapshot(state.parent)
    ran = statestore("restore", "--state", state, "--file", rebuilt["backup"], "--dry-run")

    assert ran.code == 0, ran.err
    assert snapshot(state.parent) == before
    assert ran.json["dry_run"] is True
    assert ran.json["difference"]["positions"]["changed"]["BTC-USD"]["quantity"] == {
        "before": 2,
        "after": 1,
    }
    changes = {part["section"]: part["change"] for part in ran.json["difference"]["sections"]}
    assert changes["positions"] == "changed"
    assert changes["open_orders"] == "same"
    assert "~ BTC-USD.quantity  2 -> 1" in ran.err


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_state_is_restored_and_what_load_would_have_found_is_kept(
    statestore: Run, state: Path, rebuilt: dict[str, Any], damage: str
) -> None:
    repaired = sections(state.read_bytes())
    if damage == "torn":
        state.write_bytes(state.read_bytes()[:100])
    else:
        state.unlink()
    bak = state.with_name(".state.json.bak").read_bytes()
    ran = statestore("restore", "--state", state, "--file", rebuilt["backup"])

    assert ran.code == 0, ran.err
    assert Path(ran.json["backup"]).read_bytes() == bak
    assert sections(state.read_bytes()) == sections(STATE) != repaired
    assert len(list(state.parent.glob("*.corrupt-*"))) == (damage == "torn")


def test_a_restore_over_nothing_that_reads_is_recorded_as_what_cannot_be_undone(
    statestore: Run, state: Path, halted: KillSwitch, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.json"
    saved.write_bytes(STATE)
    state.write_bytes(b"{")
    preview = statestore("restore", "--state", state, "--file", saved, "--dry-run")
    ran = statestore("restore", "--state", state, "--file", saved)

    assert preview.code == 0
    assert "no state can be read" in preview.json["present_is_not_good"]
    assert ran.code == 0, ran.err
    assert ran.json["backup"] is None
    assert audit(statestore, state)[-1]["backup"] is None
    refused(statestore("undo", "--state", state), 8, "a restore of", "no backup was made")


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "there is no"), (b"{", "not a JSON object"), (b'{"_meta": {"revision": 1}}', "no sum")],
)
@pytest.mark.parametrize("option", ["--dry-run", "--yes"])
def test_what_does_not_read_is_not_restored(
    statestore: Run,
    state: Path,
    halted: KillSwitch,
    tmp_path: Path,
    content: bytes | None,
    word: str,
    option: str,
) -> None:
    saved = tmp_path / "saved.json"
    if content is not None:
        saved.write_bytes(content)
    before = snapshot(state.parent)

    refused(statestore("restore", "--state", state, "--file", saved, option), 8, str(saved), word)
    assert snapshot(state.parent) == before


PACKAGE = {"name": "bot", "version": "1", "config": {}, "scripts": {}, "license": "MIT"}
BOT = {"positions": {"BTC-USD": {"quantity": 2}}, "config": {}, "version": "1", "cash": 5}


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (PACKAGE, ["it has name, version, config, scripts, license", "statestore seal"]),
        ({}, ["it has nothing"]),
        ({"positions": []}, ["it has positions", "an object"]),
        ({"positions": None, "cash": 5}, ["it has positions, cash"]),
        ({"exported_at": "T", "count": 0, "positions": {}}, ["exported_at", "statestore import"]),
        ({"backup_timestamp": "T", "cash": 5}, ["backup_timestamp", "statestore import"]),
    ],
)
@pytest.mark.parametrize("option", ["--dry-run", "--yes"])
def test_what_is_plainly_no_state_is_not_restored(
    statestore: Run,
    state_store: StateStore,
    halted: KillSwitch,
    tmp_path: Path,
    foreign: dict[str, Any],
    words: list[str],
    option: str,
) -> None:
    """A package.json shares a version and a config with this state, and holds no position."""
    state_store.save(BOT)
    file = tmp_path / "package.json"
    file.write_text(json.dumps(foreign))
    before = snapshot(state_store.path.parent)
    ran = statestore("restore", "--state", state_store.path, "--file", file, option)

    refused(ran, 8, str(file), *words)
    assert snapshot(state_store.path.parent) == before


@pytest.mark.parametrize(
    "present", [BOT, {"cash": 4, "pairs": {}, "positions": []}, None], ids=["like", "list", "none"]
)
def test_a_state_of_before_the_first_save_is_restored(
    statestore: Run,
    state_store: StateStore,
    halted: KillSwitch,
    tmp_path: Path,
    present: dict[str, Any] | None,
) -> None:
    if present is not None:
        state_store.save(present)
    file = tmp_path / "state_of_last_year.json"
    former = {"pnl": 1, "drawdown": 2, "positions": {"ETH": {"quantity": 1}}}
    file.write_text(json.dumps(former))
    ran = statestore("restore", "--state", state_store.path, "--file", file)

    assert ran.code == 0, ran.err
    assert StateStore(state_store.path).load() == former


def test_without_positions_it_is_known_by_the_sections_of_the_present_state(
    statestore: Run, state_store: StateStore, halted: KillSwitch, tmp_path: Path
) -> None:
    state_store.save({"cash": 5, "pnl": 1, "positions": {}, "session": {}})
    file = tmp_path / "adopted.json"
    file.write_text('{"cash": 4, "pnl": 2, "since": 0, "by": 1}')
    assert statestore("restore", "--state", state_store.path, "--file", file).code == 0

    file.write_text('{"cash": 4, "since": 0, "by": 1}')
    state_store.path.write_text('{"cash": 5, "positions": {}}')
    refused(statestore("restore", "--state", state_store.path, "--file", file), 8, "since, by")


@pytest.mark.parametrize("kept", ["backup", "bak"])
def test_what_was_kept_of_the_state_itself_is_restored_whatever_it_looks_like(
    statestore: Run, state_store: StateStore, halted: KillSwitch, kept: str
) -> None:
    state_store.path.write_text('{"odd": 1}')
    state_store.load()
    file = state_store.backup() if kept == "backup" else state_store.backup_path
    state_store.save({"a": 1, "b": 2})
    ran = statestore("restore", "--state", state_store.path, "--file", file)

    assert ran.code == 0, ran.err
    assert StateStore(state_store.path).load() == {"odd": 1}


def test_the_advice_for_a_state_that_is_not_known_again_is_followed(
    statestore: Run, state_store: StateStore, halted: KillSwitch, tmp_path: Path
) -> None:
    for cash in (1, 2):
        state_store.save({"cash": cash})
    file = tmp_path / "mine.json"
    file.write_text('{"funds": 1}')
    refused(statestore("restore", "--state", state_store.path, "--file", file), 8, "seal")

    state_store.path.write_bytes(file.read_bytes())
    ran = statestore("seal", "--state", state_store.path)

    assert ran.code == 0, ran.err
    assert StateStore(state_store.path).load() == {"funds": 1}


def test_a_full_disk_for_the_backup_leaves_the_state_as_it_was(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    folder = Path(rebuilt["backup"]).parent
    saved = folder.rename(folder.with_name("elsewhere")) / Path(rebuilt["backup"]).name
    folder.write_text("a file where the folder of backups should be")
    before = snapshot(state.parent)
    ran = statestore("restore", "--state", state, "--file", saved)

    refused(ran, 8, "no backup was made")
    state.with_name(".state.json.lock").touch()
    after = snapshot(state.parent)
    assert {path: found[0] for path, found in after.items()} == {
        path: found[0] for path, found in before.items()
    }


# Seal


def test_a_seal_is_undone_to_what_restore_would_have_put_back(
    statestore: Run, state: Path, halted: KillSwitch
) -> None:
    store = StateStore(state)
    saved = store.load()
    for count in (14, 15):
        saved["trades_today"] = count
        store.save(saved)
    state.write_bytes(state.read_bytes().replace(b": 15", b": 99"))
    ran = statestore("seal", "--state", state)

    assert ran.code == 0, ran.err
    assert StateStore(state).load()["trades_today"] == 99
    assert "-r1-seal" in ran.json["backup"]
    assert audit(statestore, state)[-1]["revision_before"] == 1
    assert statestore("undo", "--state", state).code == 0
    assert StateStore(state).load()["trades_today"] == 14


def test_sealing_what_is_good_does_nothing_and_records_nothing(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    before = state.read_bytes()
    ran = statestore("seal", "--state", state)

    assert ran.code == 0
    assert state.read_bytes() == before
    assert [line["action"] for line in audit(statestore, state)] == ["rebuild"]


# The operator is asked on a terminal only


def test_on_a_terminal_undo_asks_and_no_writes_nothing(
    statestore: Run, state: Path, rebuilt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(state.parent)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    ran = statestore("undo", "--state", state)

    assert ran.code == 130
    assert snapshot(state.parent) == before
    assert statestore("undo", "--state", state, "--yes").code == 0


def test_what_cannot_be_read_points_to_restore_and_history(
    statestore: Run, state: Path, halted: KillSwitch
) -> None:
    state.write_bytes(b"{")

    ran = statestore("show", "--state", state)
    refused(ran, 8, "statestore restore --file", "statestore history")
    assert "fills" not in ran.error


def test_the_report_of_an_undo_is_one_json_document(
    statestore: Run, state: Path, rebuilt: dict[str, Any]
) -> None:
    ran = statestore("undo", "--state", state)

    report = json.loads(ran.out)
    assert (report["action"], report["dry_run"], report["deleted"]) == ("undo", False, [])
    assert {"path", "revision", "backup", "from", "undone", "saved_since"} <= set(report)
