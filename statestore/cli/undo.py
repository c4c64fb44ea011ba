"""``statestore undo``: put back the state before the newest repair, or take out an import."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from statestore.cli.output import note, print_json
from statestore.cli.screen import confirm, tell
from statestore.cli.transfers import db_options, opened, refuse_lone
from statestore.config import Places, load_settings, places
from statestore.disk.audit import AuditLog
from statestore.disk.backups import REPAIRS
from statestore.disk.codec import Document
from statestore.disk.history import differences, read_document
from statestore.disk.store import StateStore
from statestore.errors import (
    AuditBroken,
    BackendUnavailable,
    Place,
    RevisionConflict,
    StateCorrupt,
    StateError,
    StateMissing,
    UsageError,
)
from statestore.repair.rebuild import halted, record
from statestore.times import format_instant, parse_instant
from statestore.urls import StateUrl

if TYPE_CHECKING:
    from statestore.backends.positions import PositionTables, Stamps
    from statestore.runtime.tables import Removal

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
@db_options
@yes_option
def command(
    state: Path | StateUrl | None,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    discard_later_saves: bool,
    db: str | None,
    schema: str | None,
    yes: bool,
) -> None:
    """Put back the whole state as it was before the newest repair: rebuild, restore, seal, edit.

    The audit file says which that was and where its backup is. An undo is a repair itself, backed
    up and recorded, so a second undo takes the first one back; to go further back, "statestore
    restore --file". A state that was saved after the repair is left alone (exit 9), since those
    saves would be lost, unless --discard-later-saves says so.

    With --db: the newest "statestore import --db" is taken out of the tables positions and orders
    again, exactly the rows that it added, in one transaction. One row that was changed since, and
    nothing is (exit 3): a price that was noted is a change as well. A second undo goes further
    back.
    """
    refuse_lone(db, schema=schema)
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    if db is not None:
        if discard_later_saves:
            raise UsageError("--discard-later-saves is for a state; rows that changed are kept")
        with opened(db, schema, state=state) as tables:
            _take_out(tables, where, dry_run=dry_run, allow_live=allow_live, yes=yes)
        return
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


def _take_out(
    tables: PositionTables, where: Places, *, dry_run: bool, allow_live: bool, yes: bool
) -> None:
    """Take the newest import out of a database again."""
    from statestore.runtime.tables import read_removal, remove_import

    log, address = AuditLog(where.audit_file), tables.database.address
    line = _newest_import(log, address)
    written = _written(log, line)
    removal = read_removal(tables, written)
    note(f"To undo: the import of {line['at']} from {line.get('from')}.")
    for name, at in removal.rows.positions.items():
        tell(f"  - position {name}, of {format_instant(at)}", err=True, fg="red")
    for name in removal.rows.orders:
        tell(f"  - order {name:.80}", err=True, fg="red")
    for conflict in removal.conflicts:
        tell(f"  ! {conflict.where}.{conflict.key} {conflict.why}", err=True, fg="red")
    if removal.gone:
        note(f"Gone already: {len(removal.gone)} row(s).")
    if dry_run:
        if removal.conflicts:
            note("It would be refused: what was changed since is not taken out.")
        note("Dry run: nothing was written.")
        print_json(_removal_report(address, line, removal, dry_run=True))
        return
    removal.refuse()
    # The bot's: where its state is in a database, that halts it as well as the file does.
    store = StateStore(where.state, backup_dir=where.backup_dir)
    check = halted(store.kill_switch(where.kill_switch), allow_live=allow_live)
    check()
    if not yes and sys.stdin.isatty():
        confirm(f"Delete these rows of {address}?")
    try:
        done = remove_import(tables, written, before_commit=check)
    except BackendUnavailable as error:
        if error.uncertain:
            note("They may be out all the same: look with --dry-run.")
        raise
    facts = {
        "undone": {"action": "import", "at": line["at"]},
        "deleted": {name: list(rows) for name, rows in done.rows._asdict().items()},
        "gone": list(done.gone),
    }
    record(log, "undo", address, facts)
    note(f"{len(done.rows.positions)} position(s) are out of {address} again.")
    print_json(_removal_report(address, line, done, dry_run=False))


def _removal_report(
    address: str, line: Mapping[str, Any], removal: Removal, *, dry_run: bool
) -> dict[str, Any]:
    return {
        "action": "undo",
        "dry_run": dry_run,
        "path": address,
        "undone": {"action": "import", "at": line["at"], "from": line.get("from")},
        "refused": bool(removal.conflicts),
        "positions": list(removal.rows.positions),
        "orders": list(removal.rows.orders),
        "gone": list(removal.gone),
        "conflicts": [{"where": c.where, "key": c.key, "why": c.why} for c in removal.conflicts],
    }


def _newest_import(log: AuditLog, address: str) -> dict[str, Any]:
    """Return the line of the newest import into a database that was not undone.

    Raises:
        StateMissing: there is none.
        AuditBroken: the record was changed, so it is not to be relied on.
    """
    _verify(log)
    imports: dict[str, dict[str, Any]] = {}
    for line in log.entries():
        if line.get("state") != address:
            continue
        undone = line.get("undone")
        if line.get("action") == "import" and "positions" in line:
            imports[str(line.get("at"))] = line
        elif line.get("action") == "undo" and isinstance(undone, Mapping):
            imports.pop(str(undone.get("at")), None)
    if not imports:
        raise StateMissing(
            log.path,
            f"{log.path} has no import into {address} that could be taken out again; imports are "
            "recorded where they are made, under the address as it was given with --db",
        )
    return list(imports.values())[-1]


def _written(log: AuditLog, line: Mapping[str, Any]) -> Stamps:
    """Return which rows an import added, and when."""
    from statestore.backends.positions import Stamps

    try:
        tables = [line["written"][name] for name in Stamps._fields]
        return Stamps(*({row: parse_instant(at) for row, at in rows.items()} for rows in tables))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AuditBroken(
            log.path,
            f"{log.path}: the import of {line.get('at')} does not say when each of its rows was "
            "written, so nobody knows which were changed since; nothing was undone: delete by the "
            "ids it lists what is not wanted",
        ) from error


def _verify(log: AuditLog) -> None:
    try:
        log.verify()
    except AuditBroken as error:
        raise AuditBroken(log.path, f"{error}; nothing was undone: {_OTHERWISE}") from error
    except OSError as error:
        raise StateError(log.path, f"cannot read {log.path}: {error.strerror}") from error


def _newest_repair(log: AuditLog, store: StateStore) -> _Repair:
    """Return the newest repair of this state.

    Raises:
        StateMissing: there is none, or what was there before it could not be kept.
        AuditBroken: the record was changed, so it is not to be relied on.
    """
    _verify(log)
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
