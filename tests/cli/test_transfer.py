"""``export`` and ``import`` as an operator types them, before a wipe and after it."""

from __future__ import annotations

import json
import os
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
    assert "--verify says if it is the same" in refused.error  # an import that was cut off
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


def test_include_is_another_name_of_section(at: Run, store: StateStore, tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    ran = at("export", "--include", "registry", "--section", "cash_balances", "--output", file)

    assert ran.json["sections"] == ["registry", "cash_balances"]
    assert envelope.read(file).sections["registry"] == STATE["registry"]


def test_a_diff_with_an_export_says_which_command_compares_it(
    at: Run, store: StateStore, tmp_path: Path
) -> None:
    at("export", "--output", tmp_path / "e.json")
    ran = at("diff", tmp_path / "e.json", "state")

    assert ran.code == 2
    assert "e.json --verify` compares it" in ran.error


def test_an_export_of_nothing_takes_no_other_ones_place(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "wipe.json"
    at("export", "--output", file)
    before = file.read_bytes()
    wipe(store)
    StateStore(store.path).save({"regime_drivers": {"regime_BTC/1h": {"status": "regime_driver"}}})
    ran = at("export", "--output", file)

    assert ran.code == 2
    assert f"{file} is there already, and nothing would come in its place" in ran.error
    assert file.read_bytes() == before
    assert at("export", "--output", tmp_path / "empty.json").code == 0


@pytest.mark.parametrize("command", [["export"], ["reinsert", "export"]])
def test_an_export_says_what_is_wrong_with_the_place_it_is_to_go_to(
    at: Run, store: StateStore, tmp_path: Path, command: list[str]
) -> None:
    missing = at(*command, "--output", tmp_path / "nowhere" / "e.json")
    folder = at(*command, "--output", tmp_path)
    os.mkfifo(tmp_path / "fifo")
    fifo = at(*command, "--output", tmp_path / "fifo")
    device = at(*command, "--output", "/dev/null")

    assert (missing.code, folder.code) == (2, 2)
    assert f"there is no folder {tmp_path / 'nowhere'}" in missing.error
    assert "is a folder; name a file in it" in folder.error
    assert (fifo.code, device.code) == (2, 2)
    assert "is no file, and would be replaced by one" in fifo.error
    assert (tmp_path / "fifo").is_fifo()


def test_an_export_to_a_link_replaces_the_file_it_points_to(
    at: Run, store: StateStore, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    real_file, link = tmp_path / "disk" / "real.json", tmp_path / "link.json"
    link.symlink_to(real_file)
    for command in (["export"], ["reinsert", "export"]):
        assert at(*command, "--output", link).code == 0

        assert link.is_symlink()
        assert envelope.read(real_file).verified
        assert real_file.stat().st_mode & 0o777 == 0o600


def test_a_dry_run_refuses_what_cannot_be_saved(
    at: Run, store: StateStore, kill_switch: Any, tmp_path: Path
) -> None:
    kill_switch.engage("import", "me")
    file = tmp_path / "half.json"
    file.write_text(
        '{"format": "statestore-export/1", "kind": "positions", "count": 1,'
        ' "positions": [{"_key": "\\ud800-USD", "quantity": 1}]}'
    )
    dry, real = at("import", file, "--dry-run"), at("import", file, "--yes")

    assert dry.code == real.code == 8
    assert "lone surrogate" in dry.error
    assert dry.out == ""


def test_a_quantity_that_is_no_number_is_pointed_at_and_long_lines_are_cut(
    at: Run, store: StateStore, tmp_path: Path
) -> None:
    file = tmp_path / "odd.csv"
    file.write_text(f"symbol,quantity\nODD-USD,lots\nNAN-USD,NaN\nOK-USD,1.50\n{'A' * 9999},1\n")
    ran = at("import", file, "--dry-run")

    assert "how much is held is no number: ODD-USD, NAN-USD; mend the file" in ran.err
    assert max(map(len, ran.err.splitlines())) <= 200
    assert len(ran.json["positions"][3]) == 9999


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
        (["export", "--schema", "x"], "name it with --db"),
        (["import"], "Missing argument"),
        (["import", "nothing.json", "--exchange", "kraken"], "name it with --db"),
        (
            ["undo", "--db", "postgresql://h/d", "--discard-later-saves"],
            "is for a state",
        ),
        (["undo", "--schema", "x"], "name it with --db"),
        (
            ["import", "nothing.json", "--db", "postgresql://h/d", "--replace"],
            "is for a state file",
        ),
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


def test_from_a_state_file_into_a_database_and_back_after_a_wipe_of_both(
    statestore: Run,
    at: Run,
    store: StateStore,
    kill_switch: Any,
    tmp_path: Path,
    postgres: Any,
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.save({"positions": {"ETH-USD": {"quantity": 0.5, "entry_price": 3000}, "D": ROW}})
    monkeypatch.setenv("STATE_FILE", str(store.path))
    there = ["--db", postgres.url, "--schema", database.schema]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    at("export", "--output", first)
    dry = statestore("import", first, "--dry-run", *there)
    halted = statestore("import", first, *there)
    kill_switch.engage("move", "me")
    moved = statestore("import", first, "--yes", *there)
    again = statestore("import", first, "--yes", *there)
    wipe(store)

    assert (dry.code, halted.code, moved.code, again.code) == (0, 6, 0, 3), moved.err
    assert dry.json["positions"] == moved.json["positions"] == ["ETH-USD", "D"]
    assert "positions.ETH-USD is there already" in again.error
    assert statestore("import", first, "--verify", *there).json["ok"]
    assert statestore("import", first, "--dry-run", "--skip-existing", *there).json["skipped"] == 2

    exported = statestore("export", "--output", second, "--status", "active", *there)
    with database.transaction() as connection:
        connection.execute(database.query("DELETE FROM {schema}.positions"))
    assert statestore("import", first, "--verify", *there).code == 3
    back = at("import", second, "--yes")

    assert exported.json["count"] == 2, exported.err
    assert back.code == 0, back.err
    assert StateStore(store.path).load()["positions"]["D"]["features"] == ROW["features"]
    assert at("import", first, "--verify").code == 0


def test_the_audit_file_says_which_rows_came_into_a_database(
    statestore: Run,
    at: Run,
    store: StateStore,
    kill_switch: Any,
    tmp_path: Path,
    postgres: Any,
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_FILE", str(store.path))
    store.save({"positions": {"D": ROW}})
    kill_switch.engage("move", "me")
    file = tmp_path / "first.json"
    at("export", "--output", file)
    ran = statestore("import", file, "--yes", "--db", postgres.url, "--schema", database.schema)

    line = list(AuditLog(store.path.parent / "state_audit.jsonl").entries())[-1]
    with database.transaction() as connection:
        found = connection.execute(database.query("SELECT id::text FROM {schema}.positions"))
        assert [line["positions"]["D"]] == [row[0] for row in found]
    assert (line["action"], line["state"]) == ("import", ran.json["path"])
    assert line["from_sha256"] == envelope.read(file).sha256


def test_an_import_into_a_database_is_undone_and_a_second_undo_goes_further_back(
    statestore: Run,
    at: Run,
    store: StateStore,
    kill_switch: Any,
    tmp_path: Path,
    postgres: Any,
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_FILE", str(store.path))
    there = ["--db", postgres.url, "--schema", database.schema]
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    kill_switch.engage("move", "me")
    for number, file in enumerate(files):
        store.save({"positions": {f"D{number}": ROW | {"token_contract": f"Demo{number}"}}})
        at("export", "--output", file)
        assert statestore("import", file, "--yes", *there).code == 0
    store.save({"positions": {}})
    assert at("import", files[0], "--yes").code == 0  # newer, and into another place
    audit = AuditLog(store.path.parent / "state_audit.jsonl")
    lines = audit.verify()

    dry = statestore("undo", "--dry-run", *there)
    assert (dry.code, dry.json["dry_run"], len(dry.json["positions"])) == (0, True, 1)
    assert statestore("import", files[1], "--verify", *there).code == 0
    assert audit.verify() == lines
    kill_switch.release()
    assert statestore("undo", "--yes", *there).code == 6
    kill_switch.engage("move", "me")
    for number in (1, 0):
        undone = statestore("undo", "--yes", *there)

        assert undone.code == 0, undone.err
        assert undone.json["undone"]["from"] == str(files[number])
        assert statestore("import", files[number], "--verify", *there).code == 3
        assert statestore("import", files[0], "--verify", *there).code == 3 * (number == 0)
    assert [line["action"] for line in audit.entries()][-2:] == ["undo", "undo"]
    nothing = statestore("undo", "--yes", *there)
    assert (nothing.code, "no import into" in nothing.error) == (8, True)
    assert StateStore(store.path).load()["positions"].keys() == {"D0"}


def test_an_import_into_a_database_that_the_bot_worked_on_is_not_undone(
    statestore: Run,
    at: Run,
    store: StateStore,
    kill_switch: Any,
    tmp_path: Path,
    postgres: Any,
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_FILE", str(store.path))
    there = ["--db", postgres.url, "--schema", database.schema]
    store.save({"positions": {"D": ROW}})
    kill_switch.engage("move", "me")
    at("export", "--output", tmp_path / "first.json")
    statestore("import", tmp_path / "first.json", "--yes", *there)
    with database.transaction() as connection:
        connection.execute(database.query("UPDATE {schema}.positions SET current_price = 2"))
    dry, real = statestore("undo", "--dry-run", *there), statestore("undo", "--yes", *there)

    assert (dry.code, dry.json["refused"], real.code) == (0, True, 3)
    assert "1 row(s) are not as they were imported" in real.error
    assert statestore("import", tmp_path / "first.json", "--dry-run", *there).json["refused"]


def test_an_import_that_was_recorded_without_its_times_is_not_undone(
    statestore: Run,
    store: StateStore,
    kill_switch: Any,
    postgres: Any,
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_FILE", str(store.path))
    kill_switch.engage("move", "me")
    AuditLog(store.path.parent / "state_audit.jsonl").append(
        {"action": "import", "state": database.address, "positions": {"D": "an id"}}
    )
    ran = statestore("undo", "--yes", "--db", postgres.url, "--schema", database.schema)

    assert ran.code == 8
    assert "delete by the ids it lists" in ran.error


def test_a_database_that_is_not_there_is_exit_10_and_shows_no_password(
    statestore: Run, at: Run, store: StateStore, tmp_path: Path, postgres: Any
) -> None:
    file = tmp_path / "first.json"
    at("export", "--output", file)
    url = "postgresql://me:s3cret@127.0.0.1:1/nothing"
    gone = statestore("import", file, "--db", url, "--dry-run")
    bare = statestore("import", file, "--db", postgres.url, "--schema", "never_made", "--dry-run")
    both = statestore("export", "--db", url, "--state", store.path)

    assert (gone.code, bare.code, both.code) == (10, 10, 2)
    assert "s3cret" not in gone.err + gone.out
    assert "db upgrade" in bare.error or "db init" in bare.error


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
