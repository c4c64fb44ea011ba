"""``statestore check``: whether the state, its .bak and its backups are good."""

from __future__ import annotations

import os
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN, code_for
from statestore.cli.metrics import recording
from statestore.cli.options import (
    Seconds,
    backup_dir_option,
    kill_switch_option,
    metrics_option,
    refuse_target,
    state_option,
)
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.checking import CheckReport, FileReport, saved_at
from statestore.disk.store import StateStore
from statestore.disk.surroundings import is_network
from statestore.errors import StateCorrupt, StateError
from statestore.times import format_instant, now
from statestore.urls import StateUrl


@click.command("check", epilog=EPILOG)
@state_option
@backup_dir_option
@kill_switch_option
@click.option(
    "--max-age",
    type=Seconds(),
    help="Exit 3 when the state was saved longer ago than this, in seconds.",
)
@metrics_option
def command(
    state: Path | StateUrl | None,
    backup_dir: Path | None,
    kill_switch: Path | None,
    max_age: Decimal | None,
    metrics_textfile: Path | None,
) -> int:
    """Look at every file of the state. Reads only; exit 8 when something is wrong.

    With --max-age, exit 3 when the state is good but old: the bot hangs, is dead, or cannot save.
    """
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    refuse_target("--metrics-textfile", metrics_textfile, (*where.files, where.ledger))
    store = StateStore(where.state, backup_dir=where.backup_dir)
    with recording(metrics_textfile, "check", store.path) as figures:
        figures.kill_switch(store.kill_switch(where.kill_switch))
        report = _look(store)
        age = _age(report.state)
        stale = None if max_age is None else age is None or age > max_age
        for found in (report.state, report.bak, *report.backups):
            if found.why:
                note(f"{found.path} {found.why}")
        if report.state.status == "missing":
            note(f"there is no {report.state.path}: check the path (--state, STATE_FILE)")
        _mention(store, report)
        if max_age is not None and stale and report.ok:
            note(_staleness(report.state, age, max_age))
        print_json({"ok": report.ok, "age_seconds": age, "stale": stale, **_plain(asdict(report))})
        figures.state(report.state.revision, saved_at(report.state))
        figures.files(report)
        figures.success = report.ok and not stale
        figures.exit_code = 0 if report.ok else code_for(StateCorrupt)
        if report.ok and stale:
            figures.exit_code = UNPROVEN
        return figures.exit_code


def _look(store: StateStore) -> CheckReport:
    try:
        return store.check()
    except OSError as error:
        raise StateError(
            store.path, f"cannot list {error.filename}: {error.strerror}; it has to be readable"
        ) from error


def _age(state: FileReport) -> Decimal | None:
    """Seconds since the state was saved, None where nothing says when that was."""
    saved = saved_at(state)
    return None if saved is None else Decimal((now() - saved) // 1_000) / 1_000_000


def _staleness(state: FileReport, age: Decimal | None, max_age: Decimal) -> str:
    saved = saved_at(state)
    if saved is None or age is None:
        return f"nothing says when {state.path} was saved, so it counts as stale"
    return (
        f"{state.path} is stale: saved {age:.0f} s ago ({format_instant(saved)}), more than "
        f"--max-age {max_age:f} s; see whether the bot runs and can save (statestore doctor)"
    )


def _mention(store: StateStore, report: CheckReport) -> None:
    """Say what is no fault of the state, but may explain one."""
    for path in report.quarantined:
        note(f"{path} was damaged and moved aside; delete it when nothing in it is needed")
    for path in report.leftovers:
        note(f"{path} was left by a writer that was killed; it may be deleted")
    if report.lock_holder is not None:
        note(
            f"process {report.lock_holder} on {os.uname().nodename} holds the lock "
            f"{store.path}.lock: it is saving, or it hangs (it runs since "
            f"{report.lock_holder_since or 'an unknown time'})"
        )
    if is_network(report.file_system):
        note(
            f"{store.path} is on {report.file_system}, a network file system: writers may not be "
            "kept apart there, and a power cut may take what was saved; put it on a local disk"
        )
    if report.lease is not None:
        who = {name: report.lease.get(name, "unknown") for name in ("pid", "host", "since")}
        note(f"a bot runs: process {who['pid']} on {who['host']} since {who['since']}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
