"""``statestore backup``: a verified copy of the state, here or on another disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, code_for
from statestore.cli.guarded import prune, retention
from statestore.cli.options import FILE, backup_dir_option, state_option
from statestore.cli.output import note, print_json
from statestore.config import Places, Settings, load_settings, places
from statestore.disk.checking import check_file
from statestore.disk.history import read_document
from statestore.disk.store import StateStore
from statestore.errors import StateCorrupt, StateError, StateMissing, UsageError
from statestore.urls import StateUrl


@click.command("backup", epilog=EPILOG)
@state_option
@backup_dir_option
@click.option("--output", type=FILE, help="Copy to this folder, or to this new file, instead.")
@click.option("--reason", default="manual", show_default=True, help="Why, for its name.")
@click.option("--verify", is_flag=True, help="Only read all backups again, and say what is good.")
def command(
    state: Path | StateUrl | None,
    backup_dir: Path | None,
    output: Path | None,
    reason: str,
    verify: bool,
) -> int:
    """Copy the state, byte for byte, durably, and read the copy back.

    Old backups are deleted after it, as [backups] in statestore.toml says. --output makes a copy
    on another disk, and deletes nothing: its folder has to be there, since a disk that is not
    mounted should not go unnoticed.
    """
    settings = load_settings()
    where = places(settings, state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    if verify:
        if output is not None:
            raise UsageError("--verify reads the backups in --backup-dir; it takes no --output")
        return _verify(store)
    _make(store, where, settings, output, reason)
    return 0


def told(store: StateStore, path: Path) -> dict[str, Any]:
    """Read a backup that was just made, say which it is, and return what is reported of it."""
    document = read_document(path)
    note(f"Backup of revision {document.revision}: {path}")
    return {
        "action": "backup",
        "path": str(store.path),
        "backup": str(path),
        "revision": document.revision,
        "sha256": document.identity,
    }


def _make(
    store: StateStore, where: Places, settings: Settings, output: Path | None, reason: str
) -> None:
    if output is not None:
        _refuse_target(where, output)
    path = store.backup(reason, to=output)
    made = told(store, path)
    if output is not None and _shares_its_disk(store, path):
        note("Warning: it is on the same file system as the state.")
    print_json(
        {
            **made,
            "bytes": path.stat().st_size,
            "deleted": [] if output is not None else prune(store, retention(settings)),
        }
    )


def _refuse_target(where: Places, output: Path) -> None:
    """A copy must not come to stand where something of the state belongs, and is missing."""
    if output.resolve() in {path.resolve() for path in where.files}:
        raise UsageError(f"--output {output} is a file of the state's own; name another one")
    if not output.is_dir() and not output.parent.is_dir():
        raise UsageError(
            f"--output {output}: there is no folder {output.parent}; make it, or mount its disk"
        )


def _shares_its_disk(store: StateStore, copy: Path) -> bool:
    if not isinstance(store.path, Path):
        return False
    return copy.stat().st_dev == store.path.parent.stat().st_dev


def _verify(store: StateStore) -> int:
    try:
        backups = store.backups.list()
    except OSError as error:
        folder = store.backups.directory
        raise StateError(folder, f"cannot list {folder}: {error.strerror}") from error
    if not backups:
        raise StateMissing(
            store.path,
            f"there is no backup of {store.path} in {store.backups.directory}; make one "
            "(`statestore backup`), or check the paths",
        )
    reports = []
    for backup in backups:
        found = check_file(backup.path)
        why = found.why
        if not why and found.revision != backup.revision:
            why = f"holds revision {found.revision}, other than its name says"
        if why:
            note(f"{backup.path} {why}")
        reports.append(
            {
                "path": str(backup.path),
                "revision": backup.revision,
                "reason": backup.reason,
                "status": found.status,
                "ok": not why,
                "why": why,
            }
        )
    good = sum(1 for report in reports if report["ok"])
    note(f"{good} of {len(reports)} backup(s) good.")
    print_json({"ok": good == len(reports), "backups": reports})
    return 0 if good == len(reports) else code_for(StateCorrupt)
