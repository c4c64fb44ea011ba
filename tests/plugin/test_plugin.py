"""The pytest plugin, as a project that has statestore installed gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import statestore
from statestore.simulated import SimulatedExchange
from statestore.testing import fill, fills

ROOT = Path(statestore.__file__).parents[1]


@pytest.fixture
def pytest_says(tmp_path):
    """Run a test file in a pytest of its own; return its exit code and what it said.

    Its temporary folder is ``tmp_path/tmp``; everything beside that is live to it.
    """

    def run(source: str, *options: str) -> tuple[int, str]:
        folder, temporary = tmp_path / "project", tmp_path / "tmp"
        folder.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        (folder / "test_it.py").write_text(source)
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *options],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_state_file_is_in_a_folder_of_its_own_and_not_there(state_file, tmp_path):
    assert state_file == tmp_path / "data" / ".state.json"
    assert not state_file.exists()
    assert state_file.parent.is_dir()


def test_the_state_store_is_on_the_state_file(state_store, state_file):
    state_store.save({"positions": {}})

    assert state_file.exists()


def test_the_kill_switch_is_released_and_beside_the_state(kill_switch, state_file):
    assert not kill_switch.engaged()

    kill_switch.engage("a test", "me")

    assert kill_switch.engaged()
    assert (state_file.parent / "KILL_SWITCH").exists()


def test_the_fake_exchange_runs(fake_exchange):
    assert isinstance(fake_exchange, SimulatedExchange)
    assert fake_exchange.base_url.startswith("127.0.0.1:")


def test_the_builders_are_at_hand():
    assert fill("BUY 1 BTC-USD @ 100")["size"] == "1"
    assert [row["side"] for row in fills("BUY 1 BTC-USD @ 1", "SELL 1 BTC-USD @ 2")] == [
        "BUY",
        "SELL",
    ]


def test_the_plugin_costs_no_heavy_import(pytest_says):
    source = """
import sys

def test_nothing_heavy():
    heavy = {"statestore.disk.store", "statestore.simulated", "msgspec", "ssl", "coinbase"}
    assert not heavy & set(sys.modules)
"""
    assert pytest_says(source)[0] == 0


LIVE_WRITE = """
from pathlib import Path
{at_import}

def test_a_bot_with_a_default_path():
    from statestore.disk.store import StateStore

    try:
        StateStore(Path({path!r})).save({{"positions": {{}}}})
    except Exception:
        pass  # as a bot does, that logs a failed save and trades on
"""


@pytest.mark.parametrize("at_import", ["", "import statestore.disk.store"])
def test_a_test_that_reaches_the_live_state_fails_and_writes_nothing(
    pytest_says, tmp_path, at_import
):
    live = tmp_path / "live" / ".state.json"

    code, said = pytest_says(LIVE_WRITE.format(path=str(live), at_import=at_import))

    assert code == 1
    assert f"about to write {live}" in said
    assert "use the fixture state_file" in said
    assert not live.parent.exists()


def test_a_test_that_reaches_a_database_elsewhere_fails_before_it_connects(pytest_says):
    pytest.importorskip("psycopg")
    source = LIVE_WRITE.format(path="", at_import="").replace(
        "Path('')", "'postgresql://bot:hunter2@db.example.org/trading'"
    )
    code, said = pytest_says(source)

    assert code == 1
    assert "about to write the state at postgresql://db.example.org/trading" in said
    assert "memory://" in said


def test_a_link_out_of_the_temporary_folder_is_seen_through(pytest_says, tmp_path):
    (tmp_path / "live").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "data").symlink_to(tmp_path / "live")
    path = tmp_path / "tmp" / "data" / ".state.json"

    assert pytest_says(LIVE_WRITE.format(path=str(path), at_import=""))[0] == 1
    assert not path.exists()


def test_a_temporary_folder_may_be_written(pytest_says, tmp_path):
    path = tmp_path / "tmp" / ".state.json"

    assert pytest_says(LIVE_WRITE.format(path=str(path), at_import=""))[0] == 0
    assert path.exists()


def test_the_folder_given_by_basetemp_may_be_written(pytest_says, tmp_path):
    base = tmp_path / "base"
    source = LIVE_WRITE.format(path=str(base / ".state.json"), at_import="")
    source += "\ndef test_use_it(tmp_path): pass\n"

    assert pytest_says(source, f"--basetemp={base}")[0] == 0
