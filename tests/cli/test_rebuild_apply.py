"""Writing a repair: who may, what changes, what is left behind, what is refused."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.testing import fills
from tests.cli.conftest import Ran, Run

WINDOW = ("--since", "2025-11-18T04:00:00Z", "--until", "2025-11-20T00:00:00Z")
ROWS = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 200")

# Whatever a bot wrote: odd blanks, odd numbers, keys of its own.
STATE = b"""{"trades_today":13,   "pnl": -0.1402857474, "big": 1e5,
 "positions": {"BTC-USD": {"side":"BUY","quantity":1,"entry_price":100.0,"stop_loss":95.50}},
 "open_orders": {"o1": {"price": 0.30000000000000004, "tags": [ 1,  2 ]}},
 "cooldowns": {}, "last_win_time": null}
"""


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file below: bytes, mtime, inode; and every folder's mtime."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (content, status.st_mtime_ns, status.st_ino)
    return found


def sections(data: bytes) -> dict[str, bytes]:
    from statestore.disk import codec

    return codec.parse(data).sections


@pytest.fixture
def damaged(state_file: Path) -> Path:
    state_file.write_bytes(STATE)
    return state_file


def test_a_dry_run_changes_no_byte_no_mtime_and_no_entry(rebuild: Run, damaged: Path) -> None:
    before = snapshot(damaged.parent)
    ran = rebuild("--dry-run", *WINDOW, fills=ROWS)

    assert ran.code == 0
    assert ran.json["positions_updated"] == 1
    assert snapshot(damaged.parent) == before


def test_without_the_kill_switch_nothing_is_written(rebuild: Run, damaged: Path) -> None:
    before = snapshot(damaged.parent)
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)

    assert ran.code == 6
    assert "kill-switch engage" in ran.error
    assert ran.out == ""
    assert snapshot(damaged.parent) == before


def test_only_positions_and_meta_differ(rebuild: Run, damaged: Path, kill_switch: Any) -> None:
    kill_switch.path.touch()
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)
    before, after = sections(STATE), sections(damaged.read_bytes())

    assert ran.code == 0, ran.err
    assert list(after) == list(before)
    assert {name for name in after if after[name] != before[name]} == {"positions"}
    entry = json.loads(after["positions"])["BTC-USD"]
    assert entry["quantity"] == 2
    assert b'"stop_loss": 95.50' in after["positions"], "a field that is not ours, to the digit"


def test_bak_backup_and_audit_hold_what_was_there(
    rebuild: Run, statestore: Run, damaged: Path, kill_switch: Any
) -> None:
    kill_switch.path.touch()
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)
    backup = Path(ran.json["state"]["backup"])
    listed = statestore("audit", "--state", damaged)
    verified = statestore("audit", "--state", damaged, "verify")

    assert damaged.with_name(".state.json.bak").read_bytes() == STATE
    assert backup.read_bytes() == STATE
    assert backup.parent == damaged.parent / "state_backups"
    assert ran.json["state"]["revision"] == 1
    line = listed.json["entries"][0]
    assert line["action"] == "rebuild"
    assert line["backup"] == str(backup)
    assert line["changes"][0]["before"]["quantity"] == 1
    assert verified.json["lines"] == 1


def test_an_audit_line_that_was_changed_is_found(
    rebuild: Run, statestore: Run, damaged: Path, kill_switch: Any
) -> None:
    kill_switch.path.touch()
    rebuild(*WINDOW, "--yes", fills=ROWS)
    rebuild(*WINDOW, "--yes", fills=fills("BUY 3 ETH-USD @ 5", "BUY 1 BTC-USD @ 1"))
    audit = damaged.with_name("state_audit.jsonl")
    audit.write_bytes(audit.read_bytes().replace(b"rebuild", b"REBUILD", 1))
    ran = statestore("audit", "--state", damaged, "verify")

    assert ran.code == 8
    assert "line 2" in ran.error


def test_a_state_that_was_saved_in_between_is_not_overwritten(
    rebuild: Run, damaged: Path, kill_switch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_switch.path.touch()
    from statestore.repair import rebuild as module

    propose = module.propose

    def bot_saves_meanwhile(*args: Any, **kwargs: Any) -> Any:
        proposal = propose(*args, **kwargs)
        bot = StateStore(damaged)
        state = bot.load()
        state["trades_today"] = 14
        bot.save(state)
        return proposal

    monkeypatch.setattr(module, "propose", bot_saves_meanwhile)
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)

    assert ran.code == 9
    assert "load again" in ran.error
    assert json.loads(damaged.read_bytes())["trades_today"] == 14
    assert not damaged.with_name("state_backups").exists()


def test_a_bot_that_kept_the_old_state_cannot_undo_the_repair(
    rebuild: Run, damaged: Path, kill_switch: Any
) -> None:
    from statestore.errors import RevisionConflict

    bot = StateStore(damaged)
    state = bot.load()
    kill_switch.path.touch()
    rebuild(*WINDOW, "--yes", fills=ROWS)

    assert bot.changed()
    with pytest.raises(RevisionConflict):
        bot.save(state | {"trades_today": 14})
    with pytest.raises(RevisionConflict):
        state["trades_today"] = 14
        bot.save(state)
    assert bot.refresh()["positions"]["BTC-USD"]["quantity"] == 2


def test_a_repair_is_taken_back_by_restore(
    rebuild: Run, statestore: Run, damaged: Path, kill_switch: Any
) -> None:
    kill_switch.path.touch()
    backup = rebuild(*WINDOW, "--yes", fills=ROWS).json["state"]["backup"]
    ran = statestore("restore", "--state", damaged, "--file", backup)

    assert ran.code == 0, ran.err
    assert sections(damaged.read_bytes()) == sections(STATE)
    assert ran.json["revision"] == 2


def test_a_kill_switch_released_at_the_last_moment_is_seen(
    rebuild: Run, damaged: Path, kill_switch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_switch.path.touch()
    backup = StateStore.backup

    def release(self: StateStore, reason: str = "manual") -> Path:
        path = backup(self, reason)
        kill_switch.path.unlink()
        return path

    monkeypatch.setattr(StateStore, "backup", release)
    ran = rebuild(*WINDOW, "--yes", fills=ROWS)

    assert ran.code == 6
    assert damaged.read_bytes() == STATE


def test_allow_live_writes_without_a_kill_switch(rebuild: Run, damaged: Path) -> None:
    assert rebuild(*WINDOW, "--yes", "--allow-live", fills=ROWS).code == 0


# Bad input: one line, the documented code, nothing changed.


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.error


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b'{"positions": {"BTC-USD": {"quant', ""),
        (b'{"positions": {}, "x": NaN}', ""),
        (DEEP, "deep"),
        (b"[]", ""),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"\xff\xfe{}", ""),
        (b'\xef\xbb\xbf{"positions": {}}', ""),
    ],
    ids=["empty", "truncated", "nan", "deep", "list", "duplicate", "utf16", "bom"],
)
@pytest.mark.parametrize("mode", ["--dry-run", "--yes"])
def test_a_state_that_does_not_read(
    rebuild: Run, state_file: Path, content: bytes, word: str, mode: str, kill_switch: Any
) -> None:
    kill_switch.path.touch()
    state_file.write_bytes(content)
    before = snapshot(state_file.parent)
    refused(rebuild(*WINDOW, mode, fills=ROWS), 8, str(state_file))
    assert snapshot(state_file.parent) == before


def test_a_hundred_megabytes_of_blanks(rebuild: Run, state_file: Path) -> None:
    with state_file.open("wb") as file:
        for _ in range(100):
            file.write(b" " * 1_000_000)
    refused(rebuild(*WINDOW, "--dry-run", fills=ROWS), 8, str(state_file), "restore")


def test_a_missing_state(rebuild: Run, state_file: Path) -> None:
    refused(rebuild(*WINDOW, "--dry-run", fills=ROWS), 8, str(state_file))
    assert list(state_file.parent.iterdir()) == []


def test_a_folder_in_place_of_the_state(rebuild: Run, state_file: Path) -> None:
    state_file.mkdir()
    refused(rebuild(*WINDOW, "--dry-run", fills=ROWS), 8, str(state_file))


def test_a_state_without_permission(
    rebuild: Run, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rebuild(*WINDOW, "--dry-run", fills=ROWS).code == 0  # everything is imported now
    with tempfile.TemporaryDirectory() as shared:
        folder = Path(shared)
        folder.chmod(0o755)
        state = folder / "state.json"
        state.write_bytes(STATE)
        state.chmod(0)
        rows = folder / "fills.json"
        rows.write_text(json.dumps(ROWS))
        monkeypatch.setenv("XDG_CONFIG_HOME", shared)
        arguments = (*WINDOW, "--state", state, "--fills", rows)
        with unprivileged():
            previewed = rebuild(*arguments, "--dry-run")
            applied = rebuild(*arguments, "--yes")
        state.chmod(0o444)
        folder.chmod(0o555)
        with unprivileged():
            locked_out = rebuild(*arguments, "--yes", "--allow-live")
        folder.chmod(0o755)

        refused(previewed, 8, str(state), "readable")
        refused(applied, 8, str(state), "readable")
        refused(locked_out, 8, str(folder), "Permission denied")
        assert sorted(path.name for path in folder.iterdir()) == ["fills.json", "state.json"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as nobody where the tests run as root, who may do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("positions", [[], 1, "x", {"BTC-USD": True}, {"BTC-USD": None}])
def test_positions_of_another_shape(rebuild: Run, positions: Any) -> None:
    state = {"positions": positions}
    refused(rebuild(*WINDOW, "--dry-run", fills=ROWS, state=state), 8, "positions")


@pytest.mark.parametrize(
    ("field", "value"), [("quantity", "a lot"), ("entry_price", []), ("quantity", True)]
)
def test_a_position_whose_numbers_are_none(rebuild: Run, field: str, value: Any) -> None:
    entry = {"quantity": 1, "entry_price": 1} | {field: value}
    state = {"positions": {"BTC-USD": entry}}
    refused(rebuild(*WINDOW, "--dry-run", fills=ROWS, state=state), 8, f"positions.BTC-USD.{field}")


HEADER = (
    "portfolio,trade id,product,side,created at,size,size unit,price,fee,total,"
    "price/fee/total unit\n"
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("   \n", ["empty"]),
        ("a,b\n1,2\n", ["line 1", "portfolio,trade id"]),
        (HEADER + "default,1,BTC-USD\n", ["line 2", "columns"]),
        ('{"fills": [', ["not valid JSON"]),
        ('{"fills": null}', ["not a list"]),
        ('{"fills": [], "cursor": "abc"}', ["cursor"]),
        ('{"fills": [], "proof_token_required": true}', ["proof_token_required"]),
        ('{"orders": []}', ["neither a fill nor a page", "expected a List Fills page"]),
        ("[1]", ["fill 1"]),
        ('{"product_id": "BTC-USD"}\n{"nonsense"}\n', ["line 2"]),
        ("[" * 100_000, ["JSON"]),
    ],
)
def test_a_file_of_fills_that_is_not_understood(
    rebuild: Run, damaged: Path, tmp_path: Path, content: str, words: list[str]
) -> None:
    path = tmp_path / "recorded"
    path.write_text(content)
    refused(rebuild(*WINDOW, "--dry-run", "--fills", path), 5, str(path), *words)


def test_a_file_of_fills_that_is_not_there(rebuild: Run, damaged: Path, tmp_path: Path) -> None:
    refused(rebuild("--dry-run", "--fills", tmp_path / "none"), 5, "No such file")
    refused(rebuild("--dry-run", "--fills", tmp_path), 5, "directory")


@pytest.mark.parametrize("content", ["[]x", "1", '{"BTC": "much"}', '{"BTC": null}'])
def test_a_file_of_balances_that_is_not_understood(
    rebuild: Run, damaged: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "balances"
    path.write_text(content)
    refused(rebuild("--dry-run", "--balances", path, fills=ROWS), 5, str(path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("default,1,BTC-USD,HOLD,2025-11-18T04:00:00Z,1,BTC,100,0,-100,USD", "side"),
        ("default,1,BTC-USD,BUY,2025-11-18T04:00:00Z,-1,BTC,100,0,-100,USD", "negative"),
        ("default,1,BTC-USD,BUY,yesterday,1,BTC,100,0,-100,USD", "created at"),
    ],
)
def test_a_statement_line_that_leaves_something_open(
    rebuild: Run, damaged: Path, tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "fills.csv"
    path.write_text(HEADER + line + "\n")
    ran = rebuild(*WINDOW, "--yes", "--fills", path)

    assert ran.code == 3
    assert "fills.csv line 2" in ran.error


@pytest.mark.parametrize(
    "arguments",
    [
        ("--hours", "0"),
        ("--hours", "-1"),
        ("--hours", "soon"),
        ("--hours", "nan"),
        ("--since", "yesterday"),
        ("--since", "2025-11-18T04:00:00"),
        ("--since", "2025-11-20T00:00:00Z", "--until", "2025-11-20T00:00:00Z"),
        ("--method", "hifo"),
        ("--reserve", "BTC"),
        ("--reserve", "BTC=-1"),
        ("--reserve", "BTC=1", "--reserve", "BTC=2"),
        ("--nonsense",),
    ],
)
def test_options_that_mean_nothing(rebuild: Run, damaged: Path, arguments: tuple[str, ...]) -> None:
    ran = rebuild("--dry-run", *arguments, fills=ROWS)

    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
