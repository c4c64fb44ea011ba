"""What others wrote reaches a terminal as text, never as something the terminal obeys."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from statestore.cli import screen
from statestore.cli.sources import set_up_logging
from statestore.disk.audit import AuditLog
from statestore.disk.store import StateStore
from statestore.runtime.logs import TextFormatter
from statestore.simulated import fill
from statestore.texts import printable
from tests.cli.conftest import Run

ROOT = Path(screen.__file__).parent
CLEAR = "\x1b[2J"
TITLE = "\x1b]0;all is well\x07"
HOSTILE = f"{CLEAR}{TITLE}\x9b31m\u202e[/x][bold]"


def obeyed(text: str) -> list[str]:
    """The characters of a text that are not simply shown."""
    return sorted({c for c in text if not c.isprintable() and c != "\n"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode ✓", "plain, ünïcode ✓"),
        ("two\nlines", "two\nlines"),
        (CLEAR, "␛[2J"),
        ("a\rb\tc\x7f", "a␍b␉c␡"),
        ("\x9b31m", "\\u009b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("\udc80", "\\udc80"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_is_not_seen_is_made_seen(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_only_one_module_prints() -> None:
    """Others go through `screen`, or a text of somebody else's would go around it."""
    doors = {"click.echo", "click.secho", "click.confirm", "click.prompt", "Console", "print"}
    for path in ROOT.glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        used = {ast.unparse(call.func) for call in calls}
        # watch measures how high a table is, by a console that prints nothing.
        allowed = {"screen.py": doors, "watch.py": {"Console"}}.get(path.name, set())
        assert used & doors <= allowed, path.name


@pytest.mark.parametrize("command", ["verify", "rebuild", "explain", "fills"])
def test_hostile_names_and_ids_reach_no_terminal(
    run: Run, statestore: Run, state_file: Path, tmp_path: Path, command: str
) -> None:
    asset = HOSTILE.upper().replace("-", "")
    state = {"positions": {HOSTILE: {"quantity": 1}, "[/RED]": {"quantity": 2}}}
    state_file.write_text(json.dumps(state))
    rows = [
        fill("BUY 1 BTC-USD @ 100", entry_id=HOSTILE, product_id=f"{asset}-USD"),
        fill("BUY 1 BTC-USD @ 100", entry_id=f"2{HOSTILE}", side=HOSTILE),
    ]
    paths = [tmp_path / "fills.json", tmp_path / "balances.json"]
    paths[0].write_text(json.dumps(rows))
    paths[1].write_text(json.dumps({asset: "3", f"B{asset}": "1"}))
    arguments = ["--state", state_file, "--fills", paths[0], "--balances", paths[1]]
    extra = {"rebuild": ["--dry-run"], "explain": [asset], "fills": ["--format", "csv"]}
    ran = statestore(
        command, *extra.get(command, []), *arguments, "--since", "2025-11-18T00:00:00Z"
    )

    assert ran.err
    assert obeyed(ran.out + ran.err) == []


def test_a_hostile_state_reaches_no_terminal(statestore: Run, state_file: Path) -> None:
    store = StateStore(state_file)
    store.save({"positions": {}, HOSTILE: 1}, reason=HOSTILE)
    store.save({"positions": {HOSTILE: {"side": HOSTILE}}, HOSTILE: 2}, reason=HOSTILE)
    AuditLog(state_file.with_name("state_audit.jsonl")).append({"action": HOSTILE})
    lines = [
        ["show"], ["history", "--format", "table"], ["diff"], ["watch", "--once"], ["check"],
        ["audit"], ["undo"], ["show", "--section", "absent"],
    ]  # fmt: skip
    for line in lines:
        ran = statestore(*line, "--state", state_file)
        assert obeyed(ran.out + ran.err) == [], line
    assert json.loads(statestore("show", "--state", state_file).out)[HOSTILE] == 2


def test_half_a_character_of_a_record_is_printed(statestore: Run, state_file: Path) -> None:
    """What a file name that is no text leaves in a record; no JSON can hold it."""
    StateStore(state_file).save({"positions": {}})
    AuditLog(state_file.with_name("state_audit.jsonl")).append({"action": "x", "by": "a\udc80"})
    ran = statestore("audit", "--state", state_file)

    assert ran.code == 0
    assert ran.json["entries"][0]["by"] == "a\\udc80"


def test_an_error_and_a_bug_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    program = (
        "import click, sys; from statestore.cli import exits\n"
        "@click.command()\n"
        "def broken(): raise ZeroDivisionError('\\x1b[2J')\n"
        "exits.entry(broken)()"
    )
    broken = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    missing = subprocess.run(
        [sys.executable, "-m", "statestore", "show", "--state", tmp_path / f"a{CLEAR}b"],
        capture_output=True,
        text=True,
    )

    assert "Traceback" in broken.stderr
    assert broken.returncode == 1
    assert missing.returncode == 8
    assert obeyed(broken.stderr + missing.stderr) == []


def test_log_lines_are_shown_and_not_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging(1)
    logging.getLogger("statestore.x").warning("said", extra={"what": HOSTILE})
    record = logging.makeLogRecord({"msg": HOSTILE, "reason": HOSTILE, "levelname": "INFO"})

    assert obeyed(capfd.readouterr().err) == []
    assert obeyed(TextFormatter("%(message)s").format(record)) == []
