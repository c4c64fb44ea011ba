"""``statestore check``: what stands around a state, and who holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from statestore.disk import surroundings
from statestore.disk.store import StateStore
from tests.cli.conftest import Run
from tests.cli.test_rebuild_apply import snapshot


@pytest.fixture
def state(state_file: Path) -> Path:
    StateStore(state_file).save({"positions": {}})
    return state_file


def test_what_killed_writers_left_is_told(statestore: Run, state: Path) -> None:
    backup = StateStore(state).backup()
    left = [state.with_name(f".state.json{end}") for end in (".tmp", ".bak.tmp")]
    left.append(backup.with_name(backup.name.replace("-r1-", "-r2-") + ".tmp"))
    for path in left:
        path.write_bytes(b"{")
    before = snapshot(state.parent)
    ran = statestore("check", "--state", state)

    assert ran.code == 0
    assert sorted(ran.json["leftovers"]) == sorted(map(str, left))
    for path in left:
        assert f"{path} was left by a writer that was killed" in ran.err
    assert snapshot(state.parent) == before


def test_what_was_moved_aside_is_told(statestore: Run, state: Path) -> None:
    aside = state.with_name(".state.json.corrupt-20251120T100000.000000Z")
    aside.write_bytes(b"{")
    ran = statestore("check", "--state", state)

    assert ran.code == 0
    assert ran.json["quarantined"] == [str(aside)]
    assert f"{aside} was damaged and moved aside" in ran.err


def test_a_good_state_alone_is_nothing_to_remark_on(statestore: Run, state: Path) -> None:
    ran = statestore("check", "--state", state)

    assert (ran.code, ran.err) == (0, "")
    assert (ran.json["lock_holder"], ran.json["lease"]) == (None, None)


def test_a_good_file_that_load_would_not_believe_is_exit_8(statestore: Run, state: Path) -> None:
    first, bot = state.read_bytes(), StateStore(state)
    for quantity in (1, 2):
        bot.save(bot.load() | {"positions": {"BTC-USD": {"quantity": quantity}}})
    state.write_bytes(first)
    older = statestore("check", "--state", state)
    state.write_text('{"positions": {}}')
    unsealed = statestore("check", "--state", state)

    assert older.code == unsealed.code == 8
    assert "is at revision 1, older than .state.json.bak at 2" in older.err
    assert "has no _meta, although .state.json.bak is at revision 2" in unsealed.err
    assert older.json["state"]["status"] == unsealed.json["state"]["status"] == "mismatch"


def test_a_state_that_is_not_there_is_said(statestore: Run, tmp_path: Path) -> None:
    ran = statestore("check", "--state", tmp_path / "none.json")

    assert ran.code == 8
    assert f"there is no {tmp_path}/none.json: check the path" in ran.err


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_path_that_names_no_file_is_no_state(statestore: Run, name: str) -> None:
    assert f"'{name}' names no state" in statestore("check", "--state", name).error


def test_a_bot_that_runs_is_named(statestore: Run, state: Path) -> None:
    with StateStore(state).lease():
        ran = statestore("check", "--state", state)
        lease = ran.json["lease"]

        assert (lease["pid"], lease["host"]) == (os.getpid(), os.uname().nodename)
        assert f"process {os.getpid()} on {lease['host']} since {lease['since']}" in ran.err
    assert statestore("check", "--state", state).json["lease"] is None


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not tell")
def test_a_process_that_hangs_in_a_save_is_named(statestore: Run, state: Path) -> None:
    program = (
        "import sys\n"
        "from statestore import StateStore\n"
        f"with StateStore({str(state)!r}).transaction():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        state.with_name(".state.json.tmp").write_bytes(b"{")
        ran = statestore("check", "--state", state)
        holder.kill()
    state.with_name(".state.json.tmp").unlink()

    if ran.json["lock_holder"] is None:
        pytest.skip("this system does not tell who holds a lock")
    assert ran.json["lock_holder"] == holder.pid
    assert f"process {holder.pid} on {os.uname().nodename} holds the lock" in ran.err
    assert f"it runs since {ran.json['lock_holder_since']})" in ran.err
    assert ran.json["leftovers"] == [], "what a writer at work has there is no leftover"
    assert statestore("check", "--state", state).json["lock_holder"] is None


def test_a_network_file_system_is_remarked_on(
    statestore: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: "nfs4")
    ran = statestore("check", "--state", state)

    assert (ran.code, ran.json["file_system"]) == (0, "nfs4")
    assert f"{state} is on nfs4, a network file system" in ran.err
    assert "put it on a local disk" in ran.err


def test_a_damaged_backup_is_exit_8(statestore: Run, state: Path) -> None:
    backup = StateStore(state).backup()
    backup.write_bytes(b"{")
    ran = statestore("check", "--state", state)

    assert ran.code == 8
    assert str(backup) in ran.err
    assert ran.json["ok"] is False


def test_a_state_that_is_older_than_it_may_be_is_exit_3(statestore: Run, state: Path) -> None:
    saved = datetime.now(UTC) - timedelta(hours=2)
    state.write_text('{"positions": {}}')
    state.with_name(".state.json.bak").unlink(missing_ok=True)
    os.utime(state, (saved.timestamp(), saved.timestamp()))
    fresh = statestore("check", "--state", state, "--max-age", "7300")
    stale = statestore("check", "--state", state, "--max-age", "7100")

    assert (fresh.code, fresh.json["stale"]) == (0, False)
    assert (stale.code, stale.json["stale"], stale.json["ok"]) == (3, True, True)
    assert 7200 <= stale.json["age_seconds"] < 7260
    assert "is stale: saved 720" in stale.err


def test_a_damaged_state_is_no_matter_of_age(statestore: Run, state: Path) -> None:
    state.write_bytes(b"{")
    ran = statestore("check", "--state", state, "--max-age", "0")

    assert ran.code == 8
    assert "stale" not in ran.err
