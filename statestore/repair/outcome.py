"""How a rebuild ended, as the page that explains it, written whichever way it ended.

The page is put in place after the state, and never in place of anything but a page. An error of
the run itself is never replaced by one of the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statestore import __version__
from statestore.config import BESIDE_A_DATABASE, Places, operator
from statestore.disk.durable import replace_file
from statestore.disk.store import StateStore
from statestore.errors import (
    KillSwitchNotEngaged,
    Place,
    RebuildRefused,
    RevisionConflict,
    StateError,
    StateStoreError,
    UsageError,
)
from statestore.repair.html import GENERATOR, require_jinja2
from statestore.repair.report import Outcome, Report, audit_line, command_line, render
from statestore.times import format_instant, now

if TYPE_CHECKING:
    from statestore.repair.rebuild import Applied, Proposal

# Errors that say for sure that nothing was written.
_REFUSALS = (RebuildRefused, KillSwitchNotEngaged, RevisionConflict)

_LONGEST_REASON = 300


def check_report(path: Path) -> None:
    """Find out before anything else what would keep the report from being written.

    Raises:
        UsageError: jinja2 is missing, there is no such folder, or none to write to, or something
            else stands there.
    """
    require_jinja2()
    if not path.parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--report {path}: {path.parent} cannot be written to; name another one")
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
    path: Path,
    where: Places,
    proposal: Proposal,
    *,
    skip_unproven: bool,
    mention: Callable[[str], None],
) -> Iterator[Callable[[Applied], None]]:
    """Write the report when the block ends.

    The block passes on what was applied, if anything was.

    Args:
        mention: is told of a report that could not be written beside an error of the block.

    Raises:
        StateError: the report could not be written; the message says whether the state was.
    """

    def write(applied: Applied | None = None, error: StateStoreError | None = None) -> None:
        report = _report(where, proposal, applied, error, skip_unproven=skip_unproven)
        replace_file(path, render(report).encode())

    applied: list[Applied] = []
    try:
        yield applied.append
    except StateStoreError as error:
        try:
            write(error=error)
        except StateStoreError as failed:
            mention(f"Beside that, the report could not be written: {failed}")
        raise
    try:
        write(applied[0] if applied else None)
    except StateStoreError as error:
        done = "nothing was to be written beside it"
        if applied:
            done = f"the state is at revision {applied[0].revision}"
            if applied[0].backup is not None:
                done += ", repaired; `statestore audit` has the record of it"
        raise StateError(path, f"the report could not be written ({error}), but {done}") from error


def _report(
    where: Places,
    proposal: Proposal,
    applied: Applied | None,
    error: StateStoreError | None,
    *,
    skip_unproven: bool,
) -> Report:
    meta = proposal.state.meta
    wrote = applied is not None and applied.backup is not None
    kill_switch = StateStore(where.state).kill_switch(where.kill_switch)
    return Report(
        plan=proposal.plan,
        outcome=_outcome(applied, error),
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
        skip_unproven=skip_unproven,
        written=(applied.revision, applied.sha256) if applied and wrote else None,
        backup=str(applied.backup.absolute()) if applied and applied.backup else None,
        audit_line=audit_line(applied.entry) if applied and applied.entry else None,
        error="" if error is None else str(error),
    )


def _outcome(applied: Applied | None, error: StateStoreError | None) -> Outcome:
    if error is not None:
        return Outcome.REFUSED if isinstance(error, _REFUSALS) else Outcome.FAILED
    if applied is None:
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
