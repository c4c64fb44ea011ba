"""``--report``: when it is written, what it may overwrite, and what it must never hide."""

from __future__ import annotations

import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from statestore.cli import exits
from statestore.cli.rebuild import command as rebuild_positions
from statestore.disk.store import StateStore
from statestore.testing import fills
from tests.cli.conftest import Run
from tests.cli.test_rebuild_apply import WINDOW, snapshot

pytest.importorskip("jinja2", reason="needs: pip install 'statestore[report]'")

ROWS = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")
STATE = {"positions": {"BTC-USD": {"quantity": 1, "entry_price": 100}}, "trades_today": 13}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    folder.mkdir()
    return folder / "incident.html"


def preformatted(page: Path) -> list[str]:
    """The audit line and the commands."""
    return [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page.read_text(), re.S)]


def test_a_dry_run_writes_the_report_and_nothing_else(
    rebuild: Run, state_file: Path, page: Path
) -> None:
    state_file.write_text(json.dumps(STATE))
    before = snapshot(state_file.parent)
    ran = rebuild("--dry-run", *WINDOW, "--report", page, "--exit-code", fills=ROWS)

    assert ran.code == exits.UNPROVEN
    assert ran.json["positions_updated"] == 1
    assert snapshot(state_file.parent) == before
    assert "Audit line" in page.read_text()
    assert "None: dry run" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_a_repair_is_reported_with_its_audit_line(
    rebuild: Run, state_file: Path, kill_switch: Any, page: Path
) -> None:
    kill_switch.engage("state torn", "night shift")
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS, state=STATE)
    text = page.read_text()

    assert ran.code == 0, ran.err
    assert preformatted(page)[0] + "\n" == state_file.with_name("state_audit.jsonl").read_text()
    assert "1 position repaired" in text
    assert "0 before, 1 after" in text
    assert ran.json["state"]["sha256"] in text
    assert ran.json["state"]["backup"] in text
    assert "reason: state torn, by: night shift" in text


def test_the_commands_of_a_report_do_what_they_say(
    rebuild: Run, statestore: Run, kill_switch: Any, page: Path, tmp_path: Path
) -> None:
    """Typed as they stand there, from another folder, with places that are not the usual ones."""
    odd = tmp_path / "it's a $HOME; `bot`"
    odd.mkdir()
    state, halt = odd / "state.json", tmp_path / "halt"
    state.write_text(json.dumps(STATE))
    halt.touch()
    places = ("--state", state, "--kill-switch", halt, "--backup-dir", tmp_path / "kept")
    ran = rebuild(*WINDOW, "--yes", "--report", page, *places, fills=ROWS)
    assert ran.code == 0, ran.err
    _, undo, *others = preformatted(page)

    assert shlex.split(undo)[:2] == ["statestore", "undo"]
    for line in (*others, undo):
        ran = statestore(*shlex.split(line)[1:])
        assert ran.code == 0, ran.err
    assert json.loads(state.read_bytes())["positions"] == STATE["positions"]


def test_a_second_run_replaces_the_report_of_the_first(
    rebuild: Run, kill_switch: Any, page: Path
) -> None:
    kill_switch.path.touch()
    rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS, state=STATE)
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS)

    assert ran.code == 0
    assert "Nothing to repair" in page.read_text()
    assert "still at revision 1" in page.read_text()


def test_a_refused_run_is_reported_as_such(rebuild: Run, state_file: Path, page: Path) -> None:
    state_file.write_text(json.dumps(STATE))
    before = snapshot(state_file.parent)
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS)
    halted = page.read_text()
    unproven = rebuild(*WINDOW, "--report", page, fills=fills("SELL 3 BTC-USD @ 1"))

    assert (ran.code, unproven.code) == (6, 3)
    assert "Refused: nothing was written" in halted
    assert "statestore kill-switch engage" in unescape(halted)
    assert "<dt>Kill switch</dt><dd>released" in halted
    assert "1 position(s) not proven" in page.read_text()
    assert snapshot(state_file.parent) == before


def test_a_repair_without_its_audit_line_is_reported_as_an_error(
    rebuild: Run, state_file: Path, kill_switch: Any, page: Path
) -> None:
    """What was written is said by the message; that nothing was must not be claimed."""
    kill_switch.path.touch()
    state_file.with_name("state_audit.jsonl").mkdir()
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS, state=STATE)

    assert ran.code == 8
    assert "The run ended with an error" in page.read_text()
    assert "was written as revision 1 (rebuild), but the audit line is missing" in page.read_text()
    for claim in ("Refused", "none made", "not corrected"):
        assert claim not in page.read_text()


def test_a_report_that_cannot_be_written_hides_no_repair(
    rebuild: Run, state_file: Path, kill_switch: Any, page: Path
) -> None:
    kill_switch.path.touch()
    page.with_name(page.name + ".tmp").mkdir()  # where it would be put together
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS, state=STATE)

    assert ran.code == 8
    assert ran.json["state"]["revision"] == 1, "stdout has the plan all the same"
    assert "the report could not be written" in ran.error
    assert "the state is at revision 1, repaired" in ran.error
    assert json.loads(state_file.read_bytes())["positions"]["BTC-USD"]["quantity"] == 2
    assert not page.exists()


def test_a_report_that_cannot_be_written_hides_no_error(rebuild: Run, page: Path) -> None:
    page.with_name(page.name + ".tmp").mkdir()
    ran = rebuild(*WINDOW, "--yes", "--report", page, fills=ROWS, state=STATE)

    assert ran.code == 6
    assert "kill switch" in ran.error
    assert "Beside that, the report could not be written" in ran.err


def test_without_jinja2_nothing_is_read_or_written(
    rebuild: Run, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    ran = rebuild("--report", page, "--fills", tmp_path / "none", "--state", tmp_path / "no/state")

    assert ran.code == 2
    assert "pip install 'statestore[report]'" in ran.error
    assert not page.exists()


@pytest.mark.parametrize("precious", ["state", "bak", "fills", "other", "folder", "audit-out"])
def test_a_report_overwrites_nothing_but_a_report(
    rebuild: Run, state_file: Path, tmp_path: Path, precious: str
) -> None:
    other = tmp_path / "notes.html"
    other.write_text("<!doctype html><title>mine</title>")
    target = {
        "state": state_file,
        "bak": state_file.with_name(".state.json.bak"),
        "fills": tmp_path / "fills.json",
        "other": other,
        "folder": tmp_path,
        "audit-out": tmp_path / "audit.html",
    }[precious]
    state_file.write_text(json.dumps(STATE))
    before = snapshot(state_file.parent)
    ran = rebuild(
        "--dry-run", "--audit-out", tmp_path / "audit.html", "--report", target, fills=ROWS
    )

    assert ran.code == 2
    assert str(target) in ran.error
    assert ran.out == ""
    assert snapshot(state_file.parent) == before
    assert other.read_text() == "<!doctype html><title>mine</title>"


def test_a_folder_that_is_missing_is_found_out_at_once(rebuild: Run, tmp_path: Path) -> None:
    ran = rebuild("--report", tmp_path / "none" / "r.html", "--fills", tmp_path / "missing")

    assert ran.code == 2
    assert "there is no folder" in ran.error


def test_credentials_are_in_no_report(
    run: Run, fake_exchange: Any, state_store: StateStore, page: Path, monkeypatch: Any
) -> None:
    state_store.save({"positions": {}})
    fake_exchange.add_fills("BUY 1 BTC-USD @ 100")
    fake_exchange.set_balance("BTC", "1")
    environment = fake_exchange.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran = run(rebuild_positions, "--state", state_store.path, "--dry-run", "--report", page)
    secrets = [value for name, value in environment.items() if "KEY" in name or "SECRET" in name]
    secrets += [Path(value).read_text() for value in secrets if Path(value).is_file()]
    lines = {line for value in secrets for line in re.split(r"\\n|\n", value) if len(line) > 15}

    assert ran.code == 0, ran.err
    assert len(lines) >= 2
    assert [line for line in lines if line in unescape(page.read_text())] == []
