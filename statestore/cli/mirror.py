"""``statestore mirror status | push | restore``: the copy of the state in InfluxDB."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from statestore.backends.mirror import Mirror, document_of, require_mirror, restore_document
from statestore.backends.mirrored import Held
from statestore.cli.differences import preview, show_differences
from statestore.cli.exits import EPILOG, UNPROVEN, code_for
from statestore.cli.guarded import called_now, present, replace_state, retention
from statestore.cli.options import (
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.cli.output import note, print_json
from statestore.config import load_settings, load_trading_state_settings, places
from statestore.disk.contract import BeforeCommit
from statestore.disk.history import differences, read_document
from statestore.disk.store import StateMeta, StateStore
from statestore.errors import (
    BackendError,
    Place,
    RevisionConflict,
    StateCorrupt,
    StateError,
    StateMissing,
)
from statestore.times import format_instant
from statestore.urls import StateUrl


class _FileIsNewer(RevisionConflict):
    """The mirror is older than the file, and restoring it would throw saves away."""

    def __init__(self, path: Place, held: Held, found: int) -> None:
        lost = "the saves in between would be lost"
        if found == held.revision:
            lost = "another state: what the file has would be lost"
        StateError.__init__(
            self,
            path,
            f"{path} is at revision {found}, and the mirror holds {held.revision}; {lost}: look "
            "with --dry-run, and pass --older if that is wanted",
        )
        self.loaded, self.found = held.revision, found


@click.group("mirror", epilog=EPILOG)
def command() -> None:
    """Look at the mirror of a state in InfluxDB, bring it up, restore what it holds.

    Which one is said by TRADING_STATE_DB_TYPE=influxdb, TRADING_STATE_INFLUXDB_URL, _TOKEN, _ORG
    and _BUCKET; what the state is called there by TRADING_STATE_NAME, else it is the path of the
    state file.
    """


@command.command(epilog=EPILOG)
@state_option
@click.option("--exit-code", is_flag=True, help="Exit 3 if file and mirror are not level.")
def status(state: Path | StateUrl | None, exit_code: bool) -> int:
    """Say whether the mirror is up, and how far behind the file; writes nothing.

    Exit 10 if it cannot be asked.
    """
    store = StateStore(places(load_settings(), state=state).state)
    mirror = _mirror(store)
    meta = None
    try:
        meta = store.load(missing_ok=False).meta
    except (StateMissing, StateCorrupt) as error:
        note(str(error))
    report: dict[str, Any] = {
        "mirror": mirror.database.address,
        "name": mirror.name,
        "health": "ok",
        "version": None,
        "path": str(store.path),
        "revision": meta.revision if meta else None,
        "mirrored": None,
        "behind": None,
        "level": None,
        "names": None,
    }
    try:
        report["version"] = mirror.database.health().version
        report |= _compared(mirror, meta)
    except BackendError as error:
        note(str(error))
        print_json(report | {"health": str(error)})
        return code_for(BackendError)
    if report["mirrored"] is None:
        note(f"The mirror holds no {mirror.name}.")
    elif report["level"]:
        note(f"Level at revision {report['revision']}.")
    else:
        at = "unreadable" if meta is None else f"at revision {meta.revision}"
        note(f"The file is {at}, the mirror at {report['mirrored']['revision']}.")
    print_json(report)
    return UNPROVEN if exit_code and not report["level"] else 0


@command.command(epilog=EPILOG)
@state_option
def push(state: Path | StateUrl | None) -> None:
    """Write the present state to the mirror; the file is only read.

    For a bot that does not run, or a mirror that was made anew. A mirror that is ahead of the file
    is not written over.
    """
    store = StateStore(places(load_settings(), state=state).state)
    mirror = _mirror(store)
    meta = store.load(missing_ok=False).meta
    if meta.recovered_from is not None:
        raise StateCorrupt(
            store.path,
            f"{store.path} {meta.recovered_why}, so there is nothing to push; put it right first "
            "(`statestore restore`)",
        )
    if not meta.verified:
        raise StateCorrupt(
            store.path,
            f"{store.path} was not saved by statestore yet, so nothing vouches for it; "
            "`statestore seal` accepts it",
        )
    mirror.push(document_of(store))
    note(f"Revision {meta.revision} is in {mirror.database.address}.")
    print_json({"action": "push", "path": str(store.path), **mirror.status()})


@command.command(epilog=EPILOG)
@state_option
@click.option("--older", is_flag=True, help="Restore although the file is newer.")
@dry_run_option
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def restore(
    state: Path | StateUrl | None,
    older: bool,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> None:
    """Save what the mirror holds as the next revision of the state.

    A repair as "statestore restore" is: the present state is backed up first, the audit file tells
    it, "statestore undo" takes it back. A file that is newer than the mirror is refused (exit 9).
    """
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    mirror = _mirror(store)
    held = mirror.newest()
    if held is None:
        known = ", ".join(mirror.database.names()) or "none at all"
        raise StateMissing(
            store.path,
            f"{mirror.database.address} holds no state called {mirror.name}; it holds {known} "
            "(TRADING_STATE_NAME says which)",
        )
    document = held.document()
    called = f"the mirror at revision {held.revision}"
    before, why = present(store)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mirrored")
        path.write_bytes(document)
        report = differences(before, read_document(path))
    show_differences(report, called_now(store, why), called)
    facts = {"from": mirror.database.address, "mirror_revision": held.revision}
    if dry_run:
        preview("restore", store, report, {**facts, "present_is_not_good": why or None})
        return
    level = before is not None and before.identity == held.sha256
    if level and not why and not older:
        note(f"Nothing to do: file and mirror are level at revision {held.revision}.")
        print_json({"action": "restore", "dry_run": False, "path": str(store.path), **facts})
        return

    def require_older() -> None:
        now, not_good = present(store.onlooker())
        if now is not None and not not_good and not older and now.revision >= held.revision:
            raise _FileIsNewer(store.path, held, now.revision)

    def restored(check: BeforeCommit) -> StateMeta:
        def before_commit() -> None:
            require_older()  # a halted bot may save, as long as the question stands
            check()

        return restore_document(store, document, "restore", before_commit)

    require_older()
    replace_state(
        "restore",
        store,
        where,
        restored,
        keep=retention(settings),
        allow_live=allow_live,
        ask="" if yes else f"Replace {store.path} by {called}?",
        facts=facts,
        told=facts,
    )
    note("The mirror follows with the bot's next save, or by `statestore mirror push`.")


def _mirror(store: StateStore) -> Mirror:
    return require_mirror(load_trading_state_settings(), store)


def _compared(mirror: Mirror, meta: StateMeta | None) -> dict[str, Any]:
    held = mirror.newest()
    if held is None:
        return {"level": False, "names": mirror.database.names()}
    try:
        held.document()
        damage = None
    except BackendError as error:
        damage = str(error)
    return {
        "mirrored": {
            "revision": held.revision,
            "sha256": held.sha256,
            "at": format_instant(held.instant),
            "damage": damage,
        },
        "behind": None if meta is None else meta.revision - held.revision,
        "level": meta is not None
        and damage is None
        and (meta.revision, meta.sha256) == (held.revision, held.sha256),
        "names": mirror.database.names(),
    }
