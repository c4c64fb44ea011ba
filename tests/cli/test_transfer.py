"""``export`` and ``import`` as an operator types them, before a wipe and after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.audit import AuditLog
from statestore.disk.store import StateStore
from statestore.runtime import envelope
from tests import real
from tests.cli.conftest import Run
from tests.test_docs import ROOT

ROW = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "active",
    "total_quantity": 1500,
    "avg_entry_price": 0.00123,
    "features": {"pm_execution_history": [{"n": 1}]},
}
STATE = {
    "positions": {"ETH-USD": {"quantity": 0.00088729}, "solana:Demo1111:1h": ROW},
    "cash_balances": {"USD": 127.45},
    "registry": {"Demo1111": {"symbol": "DEMO"}},
}


@pytest.fixture
def store(state_file: Path) -> StateStore:
    store = StateStore(state_file)
    store.save(STATE)
    return store


@pytest.fixture
def at(statestore: Run, state_file: Path) -> Run:
    """Run a command of ``statestore`` on `state_file`."""

    def at(command: str, *arguments: object) -> Any:
        return statestore(command, *arguments, "--state", state_file)

    return at


def wipe(store: StateStore) -> None:
    for path in store.path.parent.iterdir():
        if path.is_file() and path.name != "KILL_SWITCH":
            path.unlink()


def seen(folder: Path) -> dict[str, Any]:
    """Every name in a folder, with its bytes and its times."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_export_wipe_import_verify_and_undo(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "before_the_wipe.json"
    exported = at("export", "--output", file, "--section", "registry")
    wipe(store)
    kill_switch.engage("wipe", "me")
    missing = at("import", file, "--verify")
    imported = at("import", file, "--yes")
    verified = at("import", file, "--verify")

    assert exported.code == 0, exported.err
    assert exported.json["count"] == 2
    assert exported.json["balances"] == {"USD": 127.45}
    assert exported.json["left_out"]["sections"] == ["cash_balances"]
    assert "Not in the file: cash_balances" in exported.err
    assert missing.code == 8
    assert imported.code == 0, imported.err
    assert (imported.json["imported"], imported.json["count"]) == (2, 2)
    assert imported.json["sections"] == {"registry": {"added": 1, "same": 0, "skipped": 0}}
    assert verified.code == 0
    assert verified.json["ok"]
    assert verified.json["balances"] == {"USD": 127.45}
    assert (
        StateStore(store.path).load()["positions"]["solana:Demo1111:1h"]["features"]
        == (ROW["features"])
    )

    undone = at("undo", "--yes")

    assert undone.code == 0, undone.err
    assert StateStore(store.path).load() == {"positions": {}}
    assert at("import", file, "--verify").code == 3
    assert at("undo", "--yes").code == 0
    assert at("import", file, "--verify").code == 0


def test_an_import_into_a_state_is_backed_up_recorded_and_undone(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "export.json"
    at("export", "--output", file)
    store.save({"positions": {"SOL-USD": {"quantity": 3}}, "n": 1})
    before = store.path.read_bytes()
    kill_switch.engage("import", "me")
    imported = at("import", file, "--yes")

    line = list(AuditLog(store.path.parent / "state_audit.jsonl").entries())[-1]
    assert imported.code == 0, imported.err
    assert Path(imported.json["backup"]).read_bytes() == before
    assert line["action"] == "import"
    assert line["from_sha256"] == envelope.read(file).sha256
    assert sorted(line["positions"]["added"]) == ["ETH-USD", "solana:Demo1111:1h"]
    assert line["sections"] == ["positions"]

    assert at("undo", "--yes").code == 0
    assert StateStore(store.path).load() == {"positions": {"SOL-USD": {"quantity": 3}}, "n": 1}


def test_a_dry_run_changes_nothing_and_counts_what_the_real_run_does(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "export.json"
    at("export", "--output", file, "--section", "registry")
    with store.transaction() as state:
        del state["positions"]["ETH-USD"]
    before = seen(tmp_path)

    refused = at("import", file, "--dry-run")
    skipping = at("import", file, "--dry-run", "--skip-existing")

    assert seen(tmp_path) == before
    assert (refused.code, skipping.code) == (0, 0)
    assert refused.json["refused"]
    assert refused.json["conflicts"] == [
        {"where": "positions", "key": "solana:Demo1111:1h", "why": "is there already"}
    ]
    assert "would be refused" in refused.err
    assert "+ ETH-USD" in skipping.err

    kill_switch.engage("import", "me")
    really = at("import", file, "--skip-existing", "--yes")
    kept = ("imported", "skipped", "refused", "positions", "skipped_positions", "sections", "count")
    assert {name: really.json[name] for name in kept} == {
        name: skipping.json[name] for name in kept
    }
    assert really.json["imported"] == really.json["skipped"] == 1


def test_what_is_there_already_is_refused(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "export.json"
    at("export", "--output", file)
    kill_switch.engage("import", "me")
    before = seen(store.path.parent)
    refused = at("import", file, "--yes")
    skipped = at("import", file, "--yes", "--skip-existing")

    assert refused.code == 3
    assert "2 conflict(s), so nothing was imported: positions.ETH-USD is there" in refused.error
    assert refused.out == ""
    assert skipped.code == 0
    assert (skipped.json["imported"], skipped.json["skipped"]) == (0, 2)
    assert "Nothing to do" in skipped.err
    after = seen(store.path.parent)
    after.pop(f"{store.path}.lock")
    before.pop(f"{store.path}.lock")
    assert after == before


def test_it_needs_the_kill_switch_until_the_very_end(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "export.json"
    at("export", "--output", file)
    store.save({"positions": {}})
    before = store.path.read_bytes()
    released = at("import", file, "--yes")
    kill_switch.engage("import", "me")
    backup = StateStore.backup

    def release_meanwhile(self: StateStore, *args: Any, **kwargs: Any) -> Path:
        kill_switch.release()
        return backup(self, *args, **kwargs)

    monkeypatch.setattr(StateStore, "backup", release_meanwhile)
    late = at("import", file, "--yes")

    assert (released.code, late.code) == (6, 6)
    assert store.path.read_bytes() == before
    assert at("import", file, "--yes", "--allow-live").code == 0


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_file_gets_a_name_that_says_what_is_in_it(
    at: Run, store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = at("export", "--status", "active", "--timeframe", "1h", "--format", form)

    path = Path(ran.json["path"])
    assert path.match(f"positions_backup_active_1h_????????_??????.{form}")
    assert envelope.read(path).count == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_whole_state_goes_out_and_comes_back(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "all.json"
    exported = at("export", "--kind", "state", "--output", file)
    store.save({"positions": {"SOL-USD": {}}})
    kill_switch.engage("import", "me")
    plain = at("import", file, "--yes")
    replaced = at("import", file, "--replace", "--yes")

    assert exported.json["count"] == 3
    assert plain.code == 2
    assert "--replace puts it in place" in plain.error
    assert replaced.code == 0, replaced.err
    assert StateStore(store.path).load() == STATE
    assert at("import", file, "--verify").code == 0
    assert at("undo", "--yes").code == 0
    assert list(StateStore(store.path).load()["positions"]) == ["SOL-USD"]


def test_an_export_never_lands_on_a_file_of_the_state(at: Run, store: StateStore) -> None:
    before = seen(store.path.parent)
    ran = at("export", "--output", store.backup_path)

    assert ran.code == 2
    assert "would overwrite it" in ran.error
    assert seen(store.path.parent) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--section", "learning"], "no section 'learning'"),
        (["export", "--kind", "state", "--status", "active"], "takes no filter"),
        (["export", "--kind", "state", "--format", "csv"], "csv holds rows"),
        (["import"], "Missing argument"),
        (["import", "nothing.json", "--verify", "--dry-run"], "--verify only reads"),
    ],
)
def test_usage(
    statestore: Run, store: StateStore, arguments: list[str], said: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(store.path.parent)
    ran = statestore(*arguments, "--state", store.path)

    assert ran.code == 2
    assert said in ran.err


def test_a_file_that_cannot_be_trusted_is_exit_8(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    kill_switch.engage("import", "me")
    file = tmp_path / "export.json"
    at("export", "--output", file)
    file.write_text(file.read_text().replace("1500", "1501"))
    before = store.path.read_bytes()
    ran = at("import", file, "--yes", "--skip-existing")
    gone = at("import", tmp_path / "nothing.json")

    assert (ran.code, gone.code) == (8, 8)
    assert f"{file} is not as it was exported" in ran.error
    assert f"there is no {tmp_path / 'nothing.json'}" in gone.error
    assert store.path.read_bytes() == before


def test_a_legacy_file_says_what_nothing_vouches_for_and_what_was_closed(
    at: Run, state_file: Path, kill_switch: Any, tmp_path: Path
) -> None:
    kill_switch.engage("import", "me")
    file = tmp_path / "positions_backup.json"
    rows = [ROW, ROW | {"timeframe": "1d", "status": "closed"}]
    file.write_text(json.dumps({"exported_at": "x", "count": 2, "filters": {}, "positions": rows}))
    ran = at("import", file, "--yes")

    assert ran.code == 0, ran.err
    assert "(exported positions) carries no checksum" in ran.err
    assert "not imported: solana:Demo1111:1d" in ran.err
    assert ran.json["closed"] == ["solana:Demo1111:1d"]
    assert list(StateStore(state_file).load()["positions"]) == ["solana:Demo1111:1h"]


@pytest.mark.parametrize("script", ["export_positions", "import_positions"])
def test_the_documents_names_run_as_scripts_and_are_the_commands(script: str) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "Exit codes" in ran.stdout
    assert (
        f'{script} = "statestore.cli.{script.partition("_")[0]}'
        in (ROOT / "pyproject.toml").read_text()
    )


@real.needed
@pytest.mark.parametrize("path", real.files("state/247trader/HEAD/**/*.json"), ids=lambda p: p.name)
def test_positions_of_a_real_bot_come_back(
    statestore: Run, state_file: Path, path: Path, tmp_path: Path, kill_switch: Any
) -> None:
    kill_switch.engage("import", "me")
    theirs, file = tmp_path / "real.json", tmp_path / "export.json"
    theirs.write_bytes(path.read_bytes())
    exported = statestore("export", "--output", file, "--state", theirs)
    imported = statestore("import", file, "--yes", "--state", state_file)
    verified = statestore("import", file, "--verify", "--state", state_file)

    assert (exported.code, imported.code, verified.code) == (0, 0, 0), imported.err
    held = json.loads(path.read_bytes())["positions"]
    assert exported.json["count"] == imported.json["imported"] == len(held) > 0
