"""``statestore edit``: an editor on a private copy, and what becomes of it."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import STATE, sections, snapshot

Editor = Callable[..., None]


@pytest.fixture
def state(state_file: Path) -> Path:
    state_file.write_bytes(STATE)
    return state_file


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Make a Python program the editor; it finds ``path`` and its ``text``."""

    def editor(program: str, variable: str = "EDITOR") -> None:
        script = tmp_path / "an editor.py"
        script.write_text(
            "import os, pathlib, sys\n"
            "path = pathlib.Path(sys.argv[-1]); text = path.read_text()\n"
            f"{program}\n"
        )
        monkeypatch.setenv(variable, f"{sys.executable} '{script}' --wait")

    return editor


@pytest.fixture
def edit(statestore: Run, state: Path, kill_switch: KillSwitch) -> Run:
    kill_switch.engage()
    return lambda *arguments: statestore("edit", "--state", state, *arguments)


def replaced(old: str, new: str) -> str:
    return f"assert {old!r} in text; path.write_text(text.replace({old!r}, {new!r}))"


def kept_copy(ran: Ran) -> Path:
    line = next(line for line in ran.err.splitlines() if line.startswith("Your edited copy"))
    return Path(line.partition(": ")[2])


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.error


def litter(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "temporary").iterdir())


def test_what_was_edited_is_saved_and_all_else_keeps_its_bytes(
    edit: Run, editor: Editor, state: Path, tmp_path: Path
) -> None:
    editor(replaced('"entry_price": 100.0', '"entry_price": 101.25'))
    ran = edit()
    before, after = sections(STATE), sections(state.read_bytes())

    assert ran.code == 0, ran.err
    assert {name for name in after if after[name] != before[name]} == {"positions"}
    assert b'"entry_price": 101.25' in after["positions"]
    assert b'"stop_loss": 95.50' in after["positions"], "a number that was not edited, to the digit"
    assert ran.json["sections"] == ["positions"]
    assert "~ BTC-USD.entry_price  100.0 -> 101.25" in ran.err
    assert StateStore(state).load().meta.reason == "edit"
    assert litter(tmp_path) == []


def test_an_edit_is_backed_up_recorded_and_undone(
    edit: Run, editor: Editor, statestore: Run, state: Path
) -> None:
    editor(replaced('"trades_today": 13', '"trades_today": 14'))
    ran = edit()
    line = statestore("audit", "--state", state).json["entries"][0]

    assert Path(ran.json["backup"]).read_bytes() == STATE
    assert (line["action"], line["backup"]) == ("edit", ran.json["backup"])
    assert (line["revision_before"], line["revision"]) == (0, 1)
    assert line["sections"] == ["trades_today"]
    assert statestore("undo", "--state", state).code == 0
    assert sections(state.read_bytes()) == sections(STATE)


def test_the_first_save_of_a_bots_own_file_is_newer_than_the_backup_made_of_it(
    edit: Run, editor: Editor, statestore: Run, state: Path
) -> None:
    editor(replaced("13", "14"))
    edit()
    versions = statestore("history", "--state", state).json["versions"]
    shown = statestore("show", "--state", state, "--at", "2999-01-01T00:00:00Z")

    assert [v["kind"] for v in versions] == ["state", "backup", "bak"]
    assert shown.json["trades_today"] == 14


def test_the_copy_is_private_and_does_not_hold_what_is_the_stores(
    edit: Run, editor: Editor, state: Path, tmp_path: Path
) -> None:
    state.unlink()
    StateStore(state).save({"a": 1})
    seen = tmp_path / "seen"
    editor(
        f"pathlib.Path({str(seen)!r}).write_text(f'{{path.stat().st_mode}} "
        "{path.parent.stat().st_mode} {text}')"
    )
    assert edit().code == 0
    mode, folder_mode, text = seen.read_text().split(" ", 2)

    assert stat.S_IMODE(int(mode)) == 0o600
    assert stat.S_IMODE(int(folder_mode)) == 0o700
    assert json.loads(text) == {"a": 1}


def test_one_section_is_edited_alone(edit: Run, editor: Editor, state: Path) -> None:
    editor(
        "assert text.startswith('{\\n  \"BTC-USD\"'), text\n"
        + replaced('"quantity": 1', '"quantity": 3')
    )
    ran = edit("--section", "positions")

    assert ran.code == 0, ran.err
    assert StateStore(state).load()["positions"]["BTC-USD"]["quantity"] == 3
    assert sections(state.read_bytes())["open_orders"] == sections(STATE)["open_orders"]


def test_a_section_may_be_any_json_value(edit: Run, editor: Editor, state: Path) -> None:
    editor("assert text == '13\\n'; path.write_text('[1, {\"two\": 2.50}]')")

    assert edit("--section", "trades_today").code == 0
    assert b'"two": 2.50' in sections(state.read_bytes())["trades_today"]


def test_visual_comes_before_editor(
    edit: Run, editor: Editor, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(replaced("13", "14"), variable="VISUAL")
    monkeypatch.setenv("EDITOR", "false")

    assert edit().code == 0
    assert StateStore(state).load()["trades_today"] == 14


@pytest.mark.parametrize(
    "program",
    ["pass", "path.write_text(text)", "path.write_text(text.replace(': ', ':'))"],
    ids=["unchanged", "saved as it was", "only blanks"],
)
def test_an_edit_that_changes_nothing_writes_nothing(
    edit: Run, editor: Editor, state: Path, tmp_path: Path, program: str
) -> None:
    editor(program)
    before = snapshot(state.parent)
    ran = edit()

    assert ran.code == 0
    assert ran.json["revision"] == 0
    assert "Nothing was changed" in ran.err
    assert snapshot(state.parent) == before
    assert litter(tmp_path) == []


def test_an_editor_that_fails_changes_nothing(
    edit: Run, editor: Editor, state: Path, tmp_path: Path
) -> None:
    editor("sys.exit(3)")
    before = snapshot(state.parent)

    refused(edit(), 2, "Editing failed", "nothing was changed")
    assert snapshot(state.parent) == before
    assert litter(tmp_path) == []


def test_what_was_typed_before_an_editor_failed_is_kept(
    edit: Run, editor: Editor, state: Path
) -> None:
    editor("path.write_text('{\"a\": 1}'); sys.exit(3)")
    ran = edit()

    assert ran.code == 2
    assert kept_copy(ran).read_text() == '{"a": 1}'
    assert state.read_bytes() == STATE


@pytest.mark.parametrize("program", ["/nowhere/editor", "an 'unclosed quote"])
def test_an_editor_that_cannot_be_started_is_named(
    edit: Run, state: Path, monkeypatch: pytest.MonkeyPatch, program: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITOR", program)

    refused(edit(), 2, program)
    assert litter(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n  "positions": {},\n  "a": 1,\n}', ["line 4 column 1"]),
        ("", ["line 1 column 1"]),
        ('{"a": 1} x', ["line 1 column 10"]),
        ('{"a": NaN}', ["is not a JSON object"]),
        ('{"a": 1, "a": 2}', ["twice"]),
        ("[1]", ["not a JSON object"]),
        ('\ufeff{"a": 1}', ["byte order mark"]),
        ('{"_meta": {"format": 1, "revision": 7}, "a": 1}', ["_meta", "take it out"]),
        ('{"positions": {"BTC-USD": {"quantity": "a lot"}}}', ["positions.BTC-USD.quantity"]),
        ('{"positions": []}', ["positions is a list"]),
    ],
)
def test_a_copy_that_is_no_state_is_kept_and_the_place_is_named(
    edit: Run, editor: Editor, state: Path, text: str, words: list[str]
) -> None:
    editor(f"path.write_text({text!r}, encoding='utf-8')")
    before = snapshot(state.parent)
    ran = edit()

    refused(ran, 8, str(kept_copy(ran)), *words)
    assert kept_copy(ran).read_text(encoding="utf-8") == text
    assert stat.S_IMODE(kept_copy(ran).stat().st_mode) == 0o600
    assert snapshot(state.parent) == before


@pytest.mark.parametrize("text", ['1, "x": 2', "", "NaN", '{"a": 1, "a": 2}', "1}, {"])
def test_a_section_that_is_no_value_is_refused(
    edit: Run, editor: Editor, state: Path, text: str
) -> None:
    editor(f"path.write_text({text!r})")

    refused(edit("--section", "trades_today"), 8, "state.json")
    assert state.read_bytes() == STATE


def test_positions_that_were_of_another_shape_before_may_stay_so(
    edit: Run, editor: Editor, state: Path
) -> None:
    state.write_bytes(b'{"positions": ["BTC"]}')
    editor(replaced("BTC", "ETH"))

    assert edit().code == 0
    assert StateStore(state).load() == {"positions": ["ETH"]}


def test_a_bot_that_saves_while_the_editor_is_open_is_not_overwritten(
    edit: Run, editor: Editor, state: Path
) -> None:
    editor(
        "from statestore import StateStore\n"
        f"with StateStore({str(state)!r}).transaction() as bot: bot['trades_today'] = 99\n"
        + replaced('"pnl": -0.1402857474', '"pnl": 0')
    )
    ran = edit()

    refused(ran, 9, "revision 1", "load again")
    assert json.loads(kept_copy(ran).read_text())["pnl"] == 0
    assert StateStore(state).load()["trades_today"] == 99
    assert not state.with_name("state_audit.jsonl").exists()
    assert not state.with_name("state_backups").exists()


def test_a_kill_switch_released_while_the_editor_is_open_is_seen(
    edit: Run, editor: Editor, state: Path, kill_switch: KillSwitch
) -> None:
    editor(f"os.unlink({str(kill_switch.path)!r})\n" + replaced("13", "14"))
    ran = edit()

    refused(ran, 6, "kill-switch engage")
    assert json.loads(kept_copy(ran).read_text())["trades_today"] == 14
    assert state.read_bytes() == STATE


def test_without_the_kill_switch_no_editor_is_opened(
    edit: Run, editor: Editor, state: Path, kill_switch: KillSwitch, tmp_path: Path
) -> None:
    kill_switch.release()
    editor(f"pathlib.Path({str(tmp_path / 'opened')!r}).touch()")
    before = snapshot(state.parent)

    refused(edit(), 6, "kill-switch engage")
    assert not (tmp_path / "opened").exists()
    assert snapshot(state.parent) == before
    assert edit("--allow-live").code == 0


def test_an_edit_that_is_turned_down_on_a_terminal_is_kept(
    edit: Run, editor: Editor, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(replaced("13", "14"))
    before = snapshot(state.parent)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    ran = edit()

    assert ran.code == 130
    assert json.loads(kept_copy(ran).read_text())["trades_today"] == 14
    assert snapshot(state.parent) == before


def test_a_full_disk_keeps_the_edit(
    edit: Run, editor: Editor, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(replaced("13", "14"))
    state.with_name("state_backups").write_text("a file where the folder should be")
    ran = edit()

    refused(ran, 8, "no backup was made")
    assert kept_copy(ran).exists()
    assert state.read_bytes() == STATE


@pytest.mark.parametrize(
    ("content", "word"), [(b"{", "restore --file"), (b'{"_meta": {"revision": 1}}', "seal")]
)
def test_what_cannot_be_judged_is_not_edited(
    edit: Run, editor: Editor, state: Path, content: bytes, word: str, tmp_path: Path
) -> None:
    state.write_bytes(content)
    editor(f"pathlib.Path({str(tmp_path / 'opened')!r}).touch()")

    refused(edit(), 8, word)
    assert not (tmp_path / "opened").exists()


def test_a_section_that_is_not_there_is_a_usage_error(edit: Run, editor: Editor) -> None:
    ran = edit("--section", "position")

    assert ran.code == 2
    assert "trades_today, pnl, big, positions" in ran.err


def test_a_state_read_from_bak_is_edited_and_put_right(
    edit: Run, editor: Editor, state: Path
) -> None:
    store = StateStore(state)
    store.save(store.load() | {"trades_today": 14})
    state.write_bytes(b"torn")
    editor(replaced('"trades_today": 13', '"trades_today": 15'))
    ran = edit()

    assert ran.code == 0, ran.err
    assert "read from" in ran.err
    assert StateStore(state).load()["trades_today"] == 15
    assert [path.read_bytes() for path in state.parent.glob("*.corrupt-*")] == [b"torn"]


def test_ctrl_c_is_left_to_the_editor(edit: Run, editor: Editor, state: Path) -> None:
    editor(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n" + replaced("13", "14")
    )
    ran = edit()  # this process gets the signal, and goes on

    assert ran.code == 0, ran.err
    assert StateStore(state).load()["trades_today"] == 14
