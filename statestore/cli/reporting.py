"""``--report``: the page that explains a rebuild, written whichever way the run ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.options import FILE
from statestore.config import BESIDE_A_DATABASE, Places
from statestore.errors import (
    KillSwitchNotEngaged,
    Place,
    RebuildRefused,
    RevisionConflict,
    StateError,
    StateStoreError,
    UsageError,
)

if TYPE_CHECKING:
    from statestore.repair.rebuild import Applied, Proposal
    from statestore.repair.report import Outcome

# Errors that say for sure that nothing was written.
_REFUSALS = (RebuildRefused, KillSwitchNotEngaged, RevisionConflict)

_LONGEST_REASON = 300


def report_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--report", type=FILE, help="Write a page (HTML) that explains it all to everybody else."
    )(function)


def check_report(path: Path | None) -> None:
    """Find out before anything else what would keep the report from being written.

    Raises:
        UsageError: jinja2 is missing, there is no such folder, or something else stands there.
    """
    if path is None:
        return
    from statestore.repair.report import GENERATOR, require_jinja2

    require_jinja2()
    if not path.parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.parent}; make it first")
    if not os.path.lexists(path):
        return
    try:
        with path.open("rb") as file:
            ours = GENERATOR.encode() in file.read(1000)
    except OSError as error:
        raise UsageError(f"--report {path}: {error.strerror}; name another file") from error
    if not ours:
        raise UsageError(f"--report {path} is there already, and no report; name another file")


@contextmanager
def reported(
    flags: dict[str, Any], where: Places, proposal: Proposal
) -> Iterator[Callable[[Applied], None]]:
    """Write the report that ``--report`` asks for when the block ends, after the state.

    The block passes on what was applied, if anything was. An error of the run itself is never
    replaced by one of the report.

    Raises:
        StateError: the report could not be written; the message says whether the state was.
    """
    if flags["report"] is None:
        yield lambda _: None
        return
    applied: list[Applied] = []
    try:
        yield applied.append
    except StateStoreError as error:
        try:
            _write(flags, where, proposal, None, error)
        except StateStoreError as failed:
            from statestore.cli.output import note

            note(f"Beside that, the report could not be written: {failed}")
        raise
    try:
        _write(flags, where, proposal, applied[0] if applied else None)
    except StateStoreError as error:
        done = "nothing was to be written beside it"
        if applied:
            done = f"the state is at revision {applied[0].revision}"
            if applied[0].backup is not None:
                done += ", repaired; `statestore audit` has the record of it"
        raise StateError(
            flags["report"], f"the report could not be written ({error}), but {done}"
        ) from error


def _write(
    flags: dict[str, Any],
    where: Places,
    proposal: Proposal,
    applied: Applied | None = None,
    error: StateStoreError | None = None,
) -> None:
    from statestore import __version__
    from statestore.config import operator
    from statestore.disk.durable import replace_file
    from statestore.disk.store import StateStore
    from statestore.repair.report import Report, audit_line, render
    from statestore.times import format_instant, now

    meta = proposal.state.meta
    wrote = applied is not None and applied.backup is not None
    kill_switch = StateStore(where.state).kill_switch(where.kill_switch)
    report = Report(
        plan=proposal.plan,
        outcome=_outcome(flags, applied, error),
        state=str(meta.state_path),
        revision=meta.revision,
        sha256=meta.sha256,
        at=format_instant(now()),
        by=operator(),
        version=__version__,
        kill_switch=str(where.kill_switch.absolute()),
        halted=kill_switch.status(),
        halted_why=_why(kill_switch.details()),
        undo=_command("undo", meta.state_path, where, backups=True, halt=True, audit=True),
        reading=_reading(meta.state_path, where, meta.revision, wrote=wrote),
        skip_unproven=flags["skip_unproven"],
        written=(applied.revision, applied.sha256) if applied and wrote else None,
        backup=str(applied.backup.absolute()) if applied and applied.backup else None,
        audit_line=audit_line(applied.entry) if applied and applied.entry else None,
        error="" if error is None else str(error),
    )
    replace_file(flags["report"], render(report).encode())


def _outcome(
    flags: dict[str, Any], applied: Applied | None, error: StateStoreError | None
) -> Outcome:
    from statestore.repair.report import Outcome

    if error is not None:
        return Outcome.REFUSED if isinstance(error, _REFUSALS) else Outcome.FAILED
    if flags["dry_run"] or applied is None:
        return Outcome.PREVIEW
    return Outcome.NOTHING if applied.backup is None else Outcome.WRITTEN


def _why(details: dict[str, Any] | None) -> str:
    """What the kill switch says of itself."""
    said = {name: (details or {}).get(name) for name in ("reason", "by", "at")}
    parts = [f"{name}: {value}" for name, value in said.items() if value]
    why = ", ".join(parts)
    return why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"


def _reading(
    state: Place, where: Places, revision: int, *, wrote: bool
) -> tuple[tuple[str, str], ...]:
    commands = [
        (_command("audit", state, where, audit=True), "The record of all repairs of this state"),
        (_command("history", state, where, backups=True), "Every version that is at hand"),
    ]
    if wrote:
        diff = _command("diff", state, where, str(revision), backups=True)
        commands.insert(0, (diff, "What is different now from the state before the repair"))
    return tuple(commands)


def _command(
    name: str,
    state: Place,
    where: Places,
    *arguments: str,
    backups: bool = False,
    halt: bool = False,
    audit: bool = False,
) -> str:
    """A command as it has to be typed in any folder; places that are not the usual ones named."""
    from statestore.repair.report import command_line

    # The address of a state in a database says where it is, not who may in: that is configured.
    words = ["statestore", name, *arguments, "--state", str(state)]
    folder = state.parent if isinstance(state, Path) else BESIDE_A_DATABASE.absolute()
    places = (
        (backups, "--backup-dir", where.backup_dir, folder / "state_backups"),
        (halt, "--kill-switch", where.kill_switch, folder / "KILL_SWITCH"),
    )
    for wanted, option, place, usual in places:
        if wanted and place.absolute() != usual:
            words += [option, str(place.absolute())]
    if audit and where.audit_file.absolute() != folder / "state_audit.jsonl":
        words = ["env", f"STATESTORE_AUDIT_FILE={where.audit_file.absolute()}", *words]
    return command_line(*words)
