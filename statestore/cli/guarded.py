"""What the commands that replace a state share: halt, back up, write, record, report.

What is promised: nothing is written while the bot may trade (but for ``--allow-live``), nor before
what is replaced was backed up, if it reads; what was written is in the audit file, even where it
does not read back. That two commands do not meet is seen to by the store's lock and revision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statestore.cli.output import note, print_json
from statestore.cli.screen import confirm
from statestore.config import Places, Settings
from statestore.disk import codec
from statestore.disk.audit import AuditLog
from statestore.disk.backups import Retention
from statestore.disk.history import changed_sections, differences, read_document
from statestore.disk.store import StateMeta, StateStore
from statestore.errors import RevisionConflict, StateCorrupt, StateMissing
from statestore.repair.rebuild import halted, record_repair

_NOTHING_HELD = b'{"positions": {}}\n'


@dataclass(frozen=True, slots=True)
class Former:
    """The state that is about to be replaced, and the backup that was made of it."""

    backup: Path
    document: codec.Document


def replace_state(
    action: str,
    store: StateStore,
    where: Places,
    write: Callable[[Callable[[], None]], StateMeta],
    *,
    keep: Retention,
    allow_live: bool = False,
    replacing: StateMeta | None = None,
    ask: str = "",
    facts: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
    then: Callable[[], Mapping[str, Any]] | None = None,
    may_begin: bool = False,
) -> None:
    """Check the kill switch, ask, back up, write, audit, print; old backups go at the very end.

    The backup is made under the lock, immediately before the rename, so it is what is replaced
    and nothing else; and the kill switch is checked once more after it.

    Args:
        action: what the audit line says was done, and the reason of the backup.
        write: saves; gets what it has to pass on as ``before_commit``.
        replacing: the state that the operator was shown; another one is not replaced.
        ask: a question to put, on a terminal.
        facts: more for the audit line.
        told: more for the report.
        then: done once all of it is; returns more for the report.
        may_begin: there may be no state yet; then an undo goes back to one without positions.

    Raises:
        KillSwitchNotEngaged: the bot may trade.
        BackupFailed: nothing was changed.
        RevisionConflict: the state is not the one of `replacing` any more.
    """
    check = halted(store.kill_switch(where.kill_switch), allow_live=allow_live)
    check()
    if ask and sys.stdin.isatty():
        confirm(ask)
    former: list[Former | None] = []
    began: list[bool] = []

    def before_commit() -> None:
        check()
        if replacing is not None:
            _require(store, replacing)
        former.append(_keep_former(store, action, may_begin=may_begin))
        began.append(former[0] is None and is_missing(store))
        check()

    saved = write(before_commit)
    if not former:
        note(f"Nothing to do: {store.path} is good at revision {saved.revision}.")
        print_json(_report(action, store, saved.revision, None, []) | dict(told or {}))
        return
    kept = former[0]
    audited = _former_facts(kept) | dict(facts or {})
    try:
        audited |= _changes(store, kept, saved)
    finally:  # what does not read back is recorded all the same
        record_repair(AuditLog(where.audit_file), action, saved, audited)
    note(f"{store.path} is at revision {saved.revision}.")
    if began[0]:
        note("There was no state before, so there is no backup, and no undo.")
    elif kept is None:
        note("What it replaced did not read, so there is no backup of it, and no undo.")
    else:
        note(f"Former state: {kept.backup} (revision {kept.document.revision}).")
    report = _report(action, store, saved.revision, kept, prune(store, keep))
    print_json(report | dict(told or {}) | dict(then() if then else {}))


def retention(settings: Settings) -> Retention:
    """Return how long backups are kept, as configured."""
    return Retention(**settings.backups)


def prune(store: StateStore, keep: Retention) -> list[str]:
    """Delete the old backups; return their paths, and say so."""
    deleted = [str(backup.path) for backup in store.backups.prune(keep)]
    for path in deleted:
        note(f"Deleted by retention: {path}")
    return deleted


def present(store: StateStore) -> tuple[codec.Document | None, str]:
    """Return the state as `StateStore.load` would find it, and why not if it would not.

    A file that holds a state of a wrong sum is what an operator wants to see compared, so it is
    given, and the reason with it.
    """
    try:
        found = store.load(missing_ok=False).meta
        return store.read(found.path), ""
    except StateMissing as error:
        return None, str(error)
    except StateCorrupt as error:
        try:
            return store.read(store.path), str(error)
        except (StateCorrupt, StateMissing):
            return None, str(error)


def called_now(store: StateStore, why: str) -> str:
    """Return what to call the present state beside another: its place, and that it is not good."""
    if not why:
        return str(store.path)
    return f"{store.path} ({'there is none' if is_missing(store) else 'not good'})"


def is_missing(store: StateStore) -> bool:
    """Return whether there is nothing where the state should be, whatever stands behind it."""
    return store.check().state.status == "missing"


def _require(store: StateStore, shown: StateMeta) -> None:
    found = store.onlooker().load().meta
    if (found.revision, found.sha256) != (shown.revision, shown.sha256):
        raise RevisionConflict(store.path, shown.revision, found.revision)


def _keep_former(store: StateStore, action: str, *, may_begin: bool) -> Former | None:
    """Back up the state; None if nothing reads.

    In place of a file whose sum is wrong, what the next load would have had to fall back to.
    """
    trusting = store.onlooker(on_mismatch="fallback")
    try:
        path = trusting.backup(action).absolute()  # the record is read from other folders
    except StateMissing:
        if not may_begin:
            return None
        path = store.backups.write(_NOTHING_HELD, action, 0).absolute()
    except StateCorrupt:
        return None
    return Former(path, read_document(path))


def _former_facts(kept: Former | None) -> dict[str, Any]:
    return {
        "revision_before": kept.document.revision if kept else None,
        "sha256_before": kept.document.identity if kept else None,
        "backup": str(kept.backup) if kept else None,
    }


def _changes(store: StateStore, kept: Former | None, saved: StateMeta) -> dict[str, Any]:
    written = store.read(store.path)
    if written.identity != saved.sha256:
        return {}  # somebody saved since, and that is not ours to explain
    report = differences(kept.document if kept else None, written)
    return {"sections": changed_sections(report), "positions": report["positions"]}


def _report(
    action: str, store: StateStore, revision: int, kept: Former | None, deleted: list[str]
) -> dict[str, Any]:
    return {
        "action": action,
        "dry_run": False,
        "path": str(store.path),
        "revision": revision,
        "backup": str(kept.backup) if kept else None,
        "deleted": deleted,
    }
