"""``statestore undo``: put back the state before the newest repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from statestore.cli.differences import preview, show_differences
from statestore.cli.exits import EPILOG
from statestore.cli.guarded import replace_state, retention
from statestore.cli.options import (
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.cli.output import note
from statestore.config import load_settings, places
from statestore.disk.audit import AuditLog
from statestore.disk.backups import REPAIRS
from statestore.disk.codec import Document
from statestore.disk.history import differences, read_document
from statestore.disk.store import StateStore
from statestore.errors import (
    AuditBroken,
    Place,
    RevisionConflict,
    StateCorrupt,
    StateError,
    StateMissing,
)
from statestore.urls import StateUrl

_OTHERWISE = "`statestore history` lists what is at hand, `statestore restore --file` takes one"


class _SavedSince(RevisionConflict):
    """The state was saved after the repair, and an undo would throw that away."""

    def __init__(self, path: Place, repair: _Repair, found: int) -> None:
        StateError.__init__(
            self,
            path,
            f"{path} was saved after {repair} (it is at revision {found} now), and an undo puts "
            "back the whole state before that, so those saves would be lost; look with --dry-run, "
            "then either change what is wrong (`statestore edit`), or pass --discard-later-saves",
        )
        self.loaded, self.found = repair.revision, found


@dataclass(frozen=True, slots=True)
class _Repair:
    """The newest repair, as the audit file has it.

    Attributes:
        revision, sha256: of the state it wrote.
        backup: of the state before.
    """

    action: str
    at: str
    revision: int
    sha256: str
    backup: Path
    sha256_before: str | None

    def __str__(self) -> str:
        return f"the {self.action} of {self.at} (revision {self.revision})"


@click.command("undo", epilog=EPILOG)
@state_option
@dry_run_option
@kill_switch_option
@backup_dir_option
@allow_live_option
@click.option(
    "--discard-later-saves", is_flag=True, help="Undo although the bot saved since the repair."
)
@yes_option
def command(
    state: Path | StateUrl | None,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    discard_later_saves: bool,
    yes: bool,
) -> None:
    """Put back the whole state as it was before the newest repair: rebuild, restore, seal, edit.

    The audit file says which that was and where its backup is. An undo is a repair itself, backed
    up and recorded, so a second undo takes the first one back; to go further back, "statestore
    restore --file". A state that was saved after the repair is left alone (exit 9), since those
    saves would be lost, unless --discard-later-saves says so.
    """
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    repair = _newest_repair(AuditLog(where.audit_file), store)
    wanted = _read_backup(repair)
    found = store.load(missing_ok=False).meta
    saved_since = found.sha256 != repair.sha256
    report = differences(store.read(found.path), wanted)
    note(f"To undo: {repair}.")
    if found.recovered_from is not None:
        note(f"Warning: {store.path} {found.recovered_why}; read from {found.path}")
    if saved_since:
        note(f"{store.path} is not what that wrote: it is at revision {found.revision} now.")
    show_differences(report, str(store.path), str(repair.backup))
    undone = {"action": repair.action, "at": repair.at, "revision": repair.revision}
    facts = {"from": str(repair.backup), "undone": undone, "saved_since": saved_since}
    if dry_run:
        preview("undo", store, report, facts)
        return
    if saved_since and not discard_later_saves:
        raise _SavedSince(store.path, repair, found.revision)
    replace_state(
        "undo",
        store,
        where,
        lambda check: store.restore(repair.backup, reason="undo", before_commit=check),
        keep=retention(settings),
        allow_live=allow_live,
        replacing=found,
        ask="" if yes else f"Replace {store.path} by {repair.backup}?",
        facts=facts,
        told=facts,
    )


def _newest_repair(log: AuditLog, store: StateStore) -> _Repair:
    """Return the newest repair of this state.

    Raises:
        StateMissing: there is none, or what was there before it could not be kept.
        AuditBroken: the record was changed, so it is not to be relied on.
    """
    try:
        log.verify()
    except AuditBroken as error:
        raise AuditBroken(log.path, f"{error}; nothing was undone: {_OTHERWISE}") from error
    except OSError as error:
        raise StateError(log.path, f"cannot read {log.path}: {error.strerror}") from error
    newest: Mapping[str, Any] | None = None
    others = set()
    for line in log.entries():
        if str(line.get("action")) not in REPAIRS:
            continue
        if line.get("state") == str(store.path):
            newest = line
        else:
            others.add(str(line.get("state")))
    if newest is None:
        of_others = f" (those in it are of {', '.join(sorted(others))})" if others else ""
        raise StateMissing(
            log.path, f"{log.path} has no repair of {store.path}{of_others}; {_OTHERWISE}"
        )
    if not newest.get("backup"):
        raise StateMissing(
            store.path,
            f"the newest repair of {store.path}, a {newest['action']} of {newest.get('at')}, "
            "replaced nothing that could be read, so no backup was made that could be put back; "
            f"{_OTHERWISE}",
        )
    try:
        return _Repair(
            action=_of(newest, "action", str),
            at=_of(newest, "at", str),
            revision=_of(newest, "revision", int),
            sha256=_of(newest, "sha256", str),
            backup=_at_hand(Path(_of(newest, "backup", str)), store),
            sha256_before=_of(newest, "sha256_before", str, type(None)),
        )
    except ValueError as error:
        raise AuditBroken(
            log.path,
            f"{log.path}: the newest repair of {store.path} is no record of ours: {error}; "
            f"nothing was undone: {_OTHERWISE}",
        ) from error


def _of(line: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = line.get(name)
    if type(value) not in kinds or value == "" or "\0" in str(value):
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _at_hand(recorded: Path, store: StateStore) -> Path:
    """Return where a backup is now: its name is its own, its folder may have been moved."""
    moved = store.backups.directory / recorded.name
    return moved if moved.exists() else recorded


def _read_backup(repair: _Repair) -> Document:
    try:
        document = read_document(repair.backup)
    except StateMissing as error:
        raise StateMissing(
            repair.backup,
            f"the backup {repair.backup} of the state before {repair} is gone; {_OTHERWISE}",
        ) from error
    if document.why:
        raise StateCorrupt(repair.backup, f"{repair.backup} {document.why}; {_OTHERWISE}")
    if repair.sha256_before is not None and document.identity != repair.sha256_before:
        raise StateCorrupt(
            repair.backup,
            f"the backup {repair.backup} is not what the audit file says was there before "
            f"{repair}: its sum is {document.identity}, recorded is {repair.sha256_before}; "
            f"{_OTHERWISE}",
        )
    return document
