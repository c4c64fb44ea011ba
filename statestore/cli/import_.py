"""``import_positions``, also ``statestore import``: bring positions back from a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN, entry
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.cli.output import note, print_json
from statestore.cli.screen import confirm, tell
from statestore.cli.transfers import db_options, import_halted, opened, refuse_lone
from statestore.config import Places, Settings, load_settings, places
from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.backends.positions import PositionTables
    from statestore.runtime.envelope import Envelope
    from statestore.runtime.transfer import Conflict, Contents, Import

_SHOWN = 20
_WIDTH = 200  # of a line for people


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is asked for, wherever it goes.

    Attributes:
        read: what is in the file.
        asked: how it is planned, by the names of `plan_import`; for tables, of `prepare`.
    """

    settings: Settings
    where: Places
    file: Path
    read: Envelope
    asked: Mapping[str, Any]
    dry_run: bool
    verify: bool
    allow_live: bool
    yes: bool


@click.command("import_positions", epilog=EPILOG)
@click.argument("file", type=FILE)
@dry_run_option
@click.option("--skip-existing", is_flag=True, help="Keep what is there already, take the rest.")
@click.option("--keep-ids", is_flag=True, help="Positions keep their ids.")
@click.option("--replace", is_flag=True, help="Put a whole state (--kind state) in place of it.")
@click.option("--verify", is_flag=True, help="Only compare: exit 3 unless all of it is there.")
@state_option
@db_options
@click.option("--exchange", help="With --db: of positions that name none.  [default: coinbase]")
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def command(
    file: Path,
    dry_run: bool,
    skip_existing: bool,
    keep_ids: bool,
    replace: bool,
    verify: bool,
    state: Path | None,
    db: str | None,
    schema: str | None,
    exchange: str | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> int:
    """Add the positions of FILE, an export, to a state: all of them, or none.

    A position is known by its token, chain and timeframe, or by its product; one that is there
    already is an error (exit 3), and nothing is written, unless --skip-existing. Positions get new
    ids (the old one is kept as imported_from_id); created_at and updated_at are now, the time they
    were opened stays. Sections in the file come along; an entry of them that is there already has
    to be the same.

    The kill switch has to be engaged. The state is backed up first, so that "statestore undo" takes
    this back. --dry-run says what would be done, and writes nothing; --verify says afterwards
    whether it is all there. Exports and backups of other programs are read as well.

    With --db it is one transaction on the tables positions and orders; the audit file lists the new
    rows, and "statestore undo --db" takes them out again while nothing has changed them.
    """
    from statestore.runtime import envelope

    if verify and (dry_run or skip_existing or keep_ids or replace):
        raise UsageError("--verify only reads; it takes none of the options that say how to write")
    refuse_lone(db, schema=schema, exchange=exchange)
    if db is not None and replace:
        raise UsageError("--replace is for a state file; a database takes positions")
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    read = envelope.read(file)
    _tell(file, read)
    asked: dict[str, Any] = {"skip_existing": skip_existing, "keep_ids": keep_ids}
    if db is not None:
        asked["exchange"] = exchange or "coinbase"
    task = _Task(
        settings=settings,
        where=where,
        file=file,
        read=read,
        asked=asked,
        dry_run=dry_run,
        verify=verify,
        allow_live=allow_live,
        yes=yes,
    )
    if db is None:
        return _into_state(task, replace=replace)
    with opened(db, schema, state=state) as tables:
        return _into_tables(task, tables)


def _into_state(task: _Task, *, replace: bool) -> int:
    from statestore.disk.store import StateStore
    from statestore.runtime.transfer import (
        NOTHING,
        contents_of,
        plan_import,
        rehearse_import,
        save_import,
    )

    file, read, where = task.file, task.read, task.where
    store = StateStore(where.state, backup_dir=where.backup_dir)
    found = store.load(numbers="decimal", missing_ok=not task.verify)
    if found.meta.recovered_from is not None:
        note(f"Warning: {store.path} {found.meta.recovered_why}; read from {found.meta.path}")
    held = NOTHING if replace else contents_of(found, store.path)
    if task.verify:
        return _verify(file, read, held)
    plan = plan_import(read, held, replace=replace, **task.asked)
    report = _report(file, read, plan)
    _show(plan)
    if task.dry_run:
        rehearse_import(store, found, plan)
        _preview(plan, report | {"path": str(store.path), "revision": found.meta.revision})
        return 0
    plan.refuse()
    from statestore.cli.guarded import replace_state, retention

    replace_state(
        "import",
        store,
        where,
        lambda check: save_import(store, found, plan, check),
        keep=retention(task.settings),
        allow_live=task.allow_live,
        ask="" if task.yes else f"Write this to {store.path}?",
        facts={"from": str(file.absolute()), "from_sha256": read.sha256},
        told=report,
        may_begin=True,
    )
    return 0


def _into_tables(task: _Task, tables: PositionTables) -> int:
    from statestore.runtime.tables import prepare, read_tables, rehearse_tables

    file, read = task.file, task.read
    if task.verify:
        return _verify(file, read, read_tables(tables).contents)
    if task.dry_run:
        plan = rehearse_tables(tables, read, **task.asked)
    else:
        plan = prepare(read, read_tables(tables), **task.asked).plan
    _show(plan)
    about = {"path": tables.database.address}
    if task.dry_run:
        _preview(plan, _report(file, read, plan) | about)
        return 0
    plan.refuse()
    if not task.yes and sys.stdin.isatty():
        confirm(f"Write this to {tables.database.address}?")
    done = import_halted(
        tables, read, task.where, file, allow_live=task.allow_live, asked=task.asked
    )
    note(f"{len(done.positions)} position(s) are in {tables.database.address}.")
    print_json({"action": "import", "dry_run": False, **about, **_report(file, read, done)})
    return 0


def _preview(plan: Import, report: Mapping[str, Any]) -> None:
    if plan.conflicts:
        note("It would be refused: keep what is there with --skip-existing, or remove it first.")
    note("Dry run: nothing was written.")
    print_json({"action": "import", "dry_run": True, **report})


def _tell(file: Path, read: Envelope) -> None:
    """Say what is to be known of a file before anything is done with it."""
    if not read.verified:
        note(f"Warning: {file} ({read.shape}) carries no checksum, so nothing vouches for it.")
    if read.closed:
        note(f"Closed by its own account, and not imported: {_some(read.closed)}.")
    if read.unconfirmed:
        note(
            f"Warning: only one list in the file names {_some(read.unconfirmed)}; "
            "rebuild to be sure."
        )


def _report(file: Path, read: Envelope, plan: Import) -> dict[str, Any]:
    return {
        "from": str(file),
        "kind": read.kind,
        "shape": read.shape,
        "verified": read.verified,
        "exported_at": read.exported_at,
        "count": read.count,
        "imported": len(plan.positions),
        "skipped": len(plan.skipped),
        "refused": bool(plan.conflicts),
        "positions": list(plan.positions),
        "skipped_positions": list(plan.skipped),
        "sections": plan.counts,
        "conflicts": _as_json(plan.conflicts),
        "closed": list(read.closed),
        "unconfirmed": list(read.unconfirmed),
        "balances": read.balances,
    }


def _as_json(conflicts: Iterable[Conflict]) -> list[dict[str, str]]:
    return [{"where": c.where, "key": c.key, "why": c.why} for c in conflicts]


def _show(plan: Import) -> None:
    """Print for people what comes in: the JSON on stdout has all of it."""
    from statestore.runtime.sections import describe, quantity
    from statestore.runtime.tokens import units_of

    for key, position in list(plan.positions.items())[:_SHOWN]:
        tell(f"  + {key:.80}  {describe(position)}"[:_WIDTH], err=True, fg="green")
    if len(plan.positions) > _SHOWN:
        note(f"  + {len(plan.positions) - _SHOWN} more")
    for conflict in plan.conflicts[:_SHOWN]:
        tell(f"  ! {conflict.where}.{conflict.key} {conflict.why}", err=True, fg="red")
    if len(plan.conflicts) > _SHOWN:
        note(f"  ! {len(plan.conflicts) - _SHOWN} more")
    unreadable = tuple(
        key
        for key, position in plan.positions.items()
        if quantity(position) is not None and units_of(position) is None
    )
    if unreadable:
        note(f"Warning: how much is held is no number: {_some(unreadable)}; mend the file first.")
    for name, count in plan.counts.items():
        note(f"  section {name}: {_counted(count)}")
    skipped = f", {len(plan.skipped)} there already" if plan.skipped else ""
    note(f"{len(plan.positions)} position(s) to import{skipped}.")


def _counted(count: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in count.items() if number) or "empty"


def _verify(file: Path, read: Envelope, held: Contents) -> int:
    from statestore.runtime.transfer import verify_import

    missing = list(verify_import(read, held))
    for conflict in missing[:_SHOWN]:
        tell(f"  ! {conflict.where}.{conflict.key} {conflict.why}", err=True, fg="red")
    if len(missing) > _SHOWN:
        note(f"  ! {len(missing) - _SHOWN} more")
    note(
        f"Not all of {file} is in {held.name} as it was."
        if missing
        else f"All {read.count} of {file} are in {held.name}."
    )
    print_json(
        {
            "action": "verify",
            "from": str(file),
            "path": held.name,
            "kind": read.kind,
            "count": read.count,
            "ok": not missing,
            "differences": _as_json(missing),
            "balances": read.balances,
        }
    )
    return UNPROVEN if missing else 0


def _some(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key[:80] for key in keys[:_SHOWN]) + more


main = entry(command)
