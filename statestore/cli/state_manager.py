"""``scripts/state_manager.py check | backup | restore``: for operators of a trading state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from statestore.backends.mirror import configured_mirror
from statestore.cli import restore
from statestore.cli.backup import told
from statestore.cli.exits import EPILOG, code_for, entry
from statestore.cli.options import FILE, backup_dir_option, kill_switch_option, state_option
from statestore.cli.output import note, print_json
from statestore.cli.screen import tell
from statestore.config import (
    Places,
    TradingStateSettings,
    load_settings,
    load_trading_state_settings,
    places,
)
from statestore.disk import durable
from statestore.disk.checking import CheckReport
from statestore.disk.store import State, StateStore
from statestore.errors import BackendError, ConfigError, SaveFailed, StateCorrupt, StateError
from statestore.runtime.legacy import is_closed
from statestore.runtime.sections import describe
from statestore.runtime.validation import problems
from statestore.times import NANOSECONDS, now, parse_instant
from statestore.urls import StateUrl


@click.group(
    "state_manager", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
def command() -> None:
    """Look at a trading state, copy it, put a copy back."""


@command.command(epilog=EPILOG)
@state_option
@kill_switch_option
@backup_dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "table"]),
    default="table",
    show_default=True,
    help="What stdout is.",
)
@click.option(
    "--max-age",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Not healthy if the last save is older. A bot saves only what changed.",
)
def check(
    state: Path | StateUrl | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    form: str,
    max_age: float | None,
) -> int:
    """Show positions, pair states and portfolio, and whether all is well; writes nothing.

    A health check: exit 0 if the state and all its copies are good and, with --max-age, fresh; 8 if
    not. What does not validate is named and does not count: it does not stop a bot either. Nor does
    a configured InfluxDB that is down, since the file is good without it; "statestore mirror
    status" is a check of that.
    """
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    report = _report(store, where, max_age)
    for why in report["unhealthy"]:
        note(f"Not healthy: {why}")
    if form == "json":
        print_json(report)
    else:
        tell("\n".join(_table(report)))
    return code_for(StateCorrupt) if report["unhealthy"] else 0


@command.command(epilog=EPILOG)
@state_option
@click.option(
    "--dir",
    "folder",
    type=FILE,
    help="Where to.  [default: $TRADING_STATE_FALLBACK_DIR, else state_fallback]",
)
def backup(state: Path | StateUrl | None, folder: Path | None) -> None:
    """Copy the state, byte for byte, to FOLDER/trading_state_backup_YYYYmmdd_HHMMSS.json (UTC).

    The folder is made if need be, the copy is read back, and nothing is ever deleted there.
    """
    store = StateStore(places(load_settings(), state=state).state)
    folder = folder or load_trading_state_settings().fallback_dir
    try:
        durable.make_directory(folder)
    except SaveFailed as error:
        raise StateError(folder, f"cannot make {folder}: {error.__cause__}") from error
    print_json(told(store, store.backup(to=_free_name(folder))))


command.add_command(restore.command)


def _free_name(folder: Path) -> Path:
    stem = f"trading_state_backup_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    path, number = folder / f"{stem}.json", 1
    while path.exists():  # two within one second
        number += 1
        path = folder / f"{stem}_{number}.json"
    return path


def _report(store: StateStore, where: Places, max_age: float | None) -> dict[str, Any]:
    try:
        files = store.check()
    except OSError as error:
        raise StateError(
            store.path, f"cannot list {error.filename}: {error.strerror}; it has to be readable"
        ) from error
    state, why = _loaded(store)
    age = _age(state)
    unhealthy = _faults(files, why, age, max_age)
    settings = load_trading_state_settings()
    switch = store.kill_switch(where.kill_switch)
    found: Mapping[str, Any] = state if state is not None else {}
    return {
        "healthy": not unhealthy,
        "unhealthy": unhealthy,
        "path": str(store.path),
        "revision": state.meta.revision if state is not None else None,
        "saved_at": state.meta.saved_at or None if state is not None else None,
        "age_seconds": age,
        "reason": state.meta.reason or None if state is not None else None,
        "session": found.get("session"),
        "positions": {
            key: position
            for key, position in _object(found, "positions").items()
            if not is_closed(position)
        },
        "pair_states": _object(found, "pair_states"),
        "portfolio": found.get("portfolio"),
        "invalid": problems(found),
        "backups": {str(f.path): f.status for f in (files.bak, *files.backups)},
        "leftovers": [str(path) for path in files.leftovers],
        "quarantined": [str(path) for path in files.quarantined],
        "lease": files.lease,
        "kill_switch": switch.status(),
        "backend": {"file": "ok" if state is not None else "failed"} | _database(settings, store),
    }


def _loaded(store: StateStore) -> tuple[State | None, str]:
    """Return the state, or None and why it does not read."""
    try:
        return store.load(numbers="decimal", missing_ok=False), ""
    except StateError as error:
        return None, str(error)


def _faults(files: CheckReport, why: str, age: float | None, max_age: float | None) -> list[str]:
    """Return what is wrong with the files, with reading them, and with how old the state is."""
    looked_at = (files.state, files.bak, *files.backups)
    found = [f"{file.path} {file.why}" for file in looked_at if file.why]
    if files.state.status == "missing":
        found.append(f"there is no {files.state.path}")
    if why and why not in found:
        found.append(why)
    if max_age is not None and (age is None or age > max_age):
        found.append(
            f"the last save is {'of unknown age' if age is None else f'{age:.0f} s old'}, "
            f"{max_age:g} s are allowed"
        )
    return found


def _database(settings: TradingStateSettings, store: StateStore) -> dict[str, str]:
    """Return how the configured database is: its name, and ``ok`` or what is wrong."""
    if settings.db_type == "file":
        return {}
    try:
        mirror = configured_mirror(settings, store)
        if mirror is None:
            return {settings.db_type: "not read by this command"}
        mirror.database.health()
    except (BackendError, ConfigError) as error:
        return {settings.db_type: str(error)}
    return {settings.db_type: "ok"}


def _age(state: State | None) -> float | None:
    if state is None or not state.meta.saved_at:
        return None
    return round((now() - parse_instant(state.meta.saved_at)) / NANOSECONDS, 3)


def _object(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = state.get(name)
    return value if isinstance(value, Mapping) else {}


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"State      {report['path']}"
    saved = f", saved {report['saved_at']} ({report['reason']})" if report["saved_at"] else ""
    yield f"Revision   {'unknown' if report['revision'] is None else report['revision']}{saved}"
    session = report["session"] or {}
    yield f"Mode       {session.get('mode', 'unknown')}, kill switch {report['kill_switch']}"
    lease = report["lease"]
    runs = f"process {lease.get('pid')} since {lease.get('since')}" if lease else "no"
    yield f"Runs       {runs}"
    yield f"Positions  {len(report['positions'])}"
    for key, position in report["positions"].items():
        yield f"  {key}: {describe(position)}"
    yield f"Pairs      {len(report['pair_states'])}"
    for pair, said in report["pair_states"].items():
        cooldown = said.get("cooldown") if isinstance(said, Mapping) else None
        yield f"  {pair}: cooldown {'unknown' if cooldown is None else cooldown}"
    portfolio = report["portfolio"]
    if not isinstance(portfolio, Mapping):
        yield "Portfolio  unknown"
    else:
        figures = ("unknown" if v is None else v for v in portfolio.values())
        told = ", ".join(f"{k} {v}" for k, v in zip(portfolio, figures, strict=True))
        yield f"Portfolio  {told}"
    good = sum(status in ("good", "adopted") for status in report["backups"].values())
    for name, how in report["backend"].items():
        if name != "file":
            yield f"{name.capitalize():10} {how}"
    yield f"Copies     {good} good of {len(report['backups'])}"
    for name in ("leftovers", "quarantined"):
        for path in report[name]:
            yield f"{name.capitalize():10} {path}"
    for field, why in report["invalid"].items():
        yield f"Invalid    {field} {why}"
    yield f"Healthy    {'yes' if report['healthy'] else 'NO'}"


main = entry(command)
