"""What is written, where, for whom to read; and that no content of any file decides that."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestore.disk.audit import AuditLog
from statestore.disk.backups import Retention
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.simulated import SimulatedExchange, fills

STATE = {"positions": {"BTC-USD": {"quantity": 1, "entry_price": 100}}}


@pytest.fixture
def wide_open() -> Iterator[None]:
    """A umask that takes nothing away: whoever asks for 0666 gets it."""
    before = os.umask(0)
    yield
    os.umask(before)


def statestore(
    folder: Path, *arguments: object, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "statestore", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.usefixtures("wide_open")
def test_every_new_file_is_for_its_owner_alone(
    tmp_path: Path, fake_exchange: SimulatedExchange
) -> None:
    data = tmp_path / "new" / "data"
    store = StateStore(data / "state.json")
    store.save(STATE)
    store.save(STATE | {"more": 1})
    store.lease().release()
    KillSwitch(data / "KILL_SWITCH").engage("test")
    fake_exchange.add_fills("BUY 1 BTC-USD @ 200")
    fake_exchange.set_balance("BTC", "1")
    pytest.importorskip("jinja2", reason="needs: pip install 'statestore[report]'")
    named = [
        word
        for option in ("out", "save-fills", "audit-out", "report")
        for word in (f"--{option}", data / f"{option}.file")
    ]
    window = ("--since", "2025-11-18T00:00:00Z", "--state", store.path)
    looked = statestore(tmp_path, "rebuild", *window, *named, **fake_exchange.environment())
    ran = statestore(tmp_path, "rebuild", *window, "--yes", **fake_exchange.environment())

    assert (looked.returncode, ran.returncode) == (0, 0), looked.stderr + ran.stderr
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    names = {path.name for path in modes}
    assert {"state.json", "state.json.bak", "state_audit.jsonl", "KILL_SWITCH"} <= names
    assert {"fills.sqlite3", "out.file", "save-fills.file", "audit-out.file"} <= names
    assert {"report.file", "state.json.lock", "state.json.lease", "state_backups"} <= names
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o600"}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}


def test_no_audit_record_has_anything_written_or_deleted_where_it_says(tmp_path: Path) -> None:
    """An undo reads the backup that the record names, and writes the state alone."""
    data, outside = tmp_path / "data", tmp_path / "outside"
    outside.mkdir()
    secret = outside / "victim.json"
    secret.write_text('{"positions": {}}')
    store = StateStore(data / "state.json")
    saved = store.save(STATE)
    AuditLog(data / "state_audit.jsonl").append(
        {
            "action": "rebuild",
            "state": str(store.path),
            "revision": saved.revision,
            "sha256": saved.sha256,
            "sha256_before": "0" * 64,
            "backup": str(secret),
        }
    )
    KillSwitch(data / "KILL_SWITCH").engage()
    before = tree(tmp_path)
    ran = statestore(tmp_path, "undo", "--state", store.path, "--yes")

    assert ran.returncode == 8
    assert "is not what the audit file says" in ran.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [{"backup": 7}, {"backup": "a\0b"}, {"at": None}, {"revision": "1"}, {"sha256": []}],
    ids=str,
)
def test_an_audit_record_that_is_none_of_ours_undoes_nothing(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    store = StateStore(tmp_path / "state.json")
    saved = store.save(STATE)
    record = {
        "action": "rebuild",
        "state": str(store.path),
        "revision": saved.revision,
        "sha256": saved.sha256,
        "backup": "b",
        **wrong,
    }
    (tmp_path / "state_audit.jsonl").write_text(
        json.dumps({"at": "2025-11-18T04:00:00Z", **record, "prev": "0" * 64}) + "\n"
    )
    before = tree(tmp_path)
    ran = statestore(tmp_path, "undo", "--state", store.path, "--yes")

    assert ran.returncode == 8
    assert "no record of ours" in ran.stderr
    assert tree(tmp_path) == before


def test_pruning_deletes_no_file_but_a_backup_of_this_state(tmp_path: Path) -> None:
    """Not by another's name, not through a link, not in another folder."""
    store = StateStore(tmp_path / "state.json")
    store.save(STATE)
    old, newer = "state-20200101T000000.000000Z-r1-x.json", store.backup()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = store.backups.directory
    (folder / old).write_bytes(newer.read_bytes())
    linked = folder / "state-20190101T000000.000000Z-r1-x.json"
    linked.symlink_to(victim)
    (folder / "state-20180101T000000.000000Z-r1-x.json").mkdir()
    others = ["other-20200101T000000.000000Z-r1-x.json", f"{old}.txt", "notes"]
    for name in others:
        (folder / name).touch()

    gone = store.backups.prune(Retention(0, 0, 0))

    assert [backup.path.name for backup in gone] == [old]
    assert victim.read_text() == "precious"
    assert linked.is_symlink()
    assert {path.name for path in folder.iterdir()} > set(others)


def test_no_name_of_a_product_reaches_the_file_system(
    tmp_path: Path, fake_exchange: SimulatedExchange
) -> None:
    """A product named as a path is a key in a document, and nothing else."""
    rows = fills("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 100")
    for row, name in zip(rows, ("../../etc/passwd-USD", "/tmp/x-USD"), strict=True):
        row["product_id"] = name
    for row in rows:
        fake_exchange.add_fill(row)
    fake_exchange.set_balance("BTC", "1")
    (tmp_path / "data").mkdir()
    state = tmp_path / "data" / "state.json"
    state.write_text(json.dumps(STATE))
    before = set(tmp_path.rglob("*"))
    arguments = ("--state", state, "--dry-run", "--since", "2025-11-18T00:00:00Z")
    ran = statestore(tmp_path, "rebuild", *arguments, **fake_exchange.environment())

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["fills"]["count"] == 2
    assert set(tmp_path.rglob("*")) == before
    assert not [request for request in fake_exchange.requests if "passwd" in request.path]


@pytest.mark.parametrize("kind", ["KILL_SWITCH", "state_audit.jsonl.tmp", "report.html"])
def test_a_link_laid_in_wait_is_not_written_through(tmp_path: Path, kind: str) -> None:
    """Of what we make new, or replace: the kill switch, temporary files, reports, plans."""
    from statestore.disk.durable import create_file, replace_file

    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / kind
    path.symlink_to(victim)
    if kind == "KILL_SWITCH":
        KillSwitch(path).engage("test")
    elif path.suffix == ".tmp":
        create_file(path.with_suffix(""), b"new")
    else:
        replace_file(path, b"new")

    assert victim.read_text() == "precious"
