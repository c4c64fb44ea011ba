"""``statestore reinsert`` and ``reinsert_positions_as_signals``: positions become signals again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, entry
from statestore.cli.guarded import replace_state, retention
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    refuse_target,
    require_room,
    state_option,
    yes_option,
)
from statestore.cli.output import note, print_json
from statestore.cli.processors import (
    load_processor,
    process_pending,
    processor_option,
    summary,
)
from statestore.config import Places, Settings, load_settings, places
from statestore.disk.store import State, StateMeta, StateStore
from statestore.errors import StateInvalid, UsageError
from statestore.repair.rebuild import halted
from statestore.runtime import envelope
from statestore.runtime.processing import Processor, positions_of
from statestore.runtime.reinsert import (
    Action,
    Mention,
    Step,
    export_tokens,
    plan_reinsertion,
    steps,
    write_signals,
)
from statestore.runtime.signals import Inbox
from statestore.runtime.tokens import statuses
from statestore.runtime.transfer import source_of


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Which tokens, and where they are from.

    Attributes:
        origin: a sum that is another one for every other export or state.
        called: the file, or the state.
    """

    rows: Sequence[Mapping[str, Any]]
    origin: str
    called: str
    status: str | None


@dataclass(frozen=True, slots=True)
class _Task:
    """All that is known before anything is written."""

    settings: Settings
    where: Places
    store: StateStore
    state: State
    inbox: Inbox
    tokens: _Tokens
    mentions: Sequence[Mention]
    action: Action

    @property
    def removed(self) -> list[str]:
        return [row.key for mention in self.mentions for row in mention.removed]


@click.command("reinsert", epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[export | [reinsert] FILE]")
@state_option
@click.option("--status", help="Positions of this status only, as export takes it.  [default: all]")
@click.option(
    "--action",
    type=click.Choice(["track", "buy"]),
    default="track",
    help="What the signal says; buy only where nothing is held.  [default: track]",
)
@click.option("--auto-process", is_flag=True, help="Process the pending signals at once.")
@processor_option
@click.option("--allow-held", is_flag=True, help="Signal tokens that are held, too, and keep them.")
@click.option("--output", type=FILE, help="Of export.  [default: tokens_backup_STATUS_TIME.json]")
@dry_run_option
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def command(
    words: tuple[str, ...],
    state: Path | None,
    status: str | None,
    action: Action,
    auto_process: bool,
    processor: str | None,
    allow_held: bool,
    output: Path | None,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> int:
    """Remove positions and put a signal for each token into the inbox, as if it were new.

    One signal for all timeframes of a token; it carries what was learned (entry_context,
    curator_sources). Signals are on disk before a position is removed, and run again after a crash,
    the command finishes what it began. The state is backed up first: "statestore undo" puts the
    positions back. What is held is refused (exit 3).

    In two steps, around a wipe: "export" writes the tokens to a file and changes nothing;
    "reinsert FILE" reads it (or an export of tokens by another program).

    Signals wait for "statestore signals process", or --auto-process.
    """
    exporting = words == ("export",)
    file = None if exporting else _file(words)
    if exporting and (auto_process or allow_held or processor or action != "track"):
        raise UsageError("export only writes the tokens; those options belong to reinsert FILE")
    if not exporting and output is not None:
        raise UsageError("--output names the file of an export: `statestore reinsert export`")
    if file is not None and status is not None:
        raise UsageError("--status was chosen when the tokens were exported")
    if processor is not None and not auto_process:
        raise UsageError("--processor is for --auto-process; else for `statestore signals process`")
    chosen = load_processor(processor) if auto_process else None
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    loaded = store.load(numbers="decimal", missing_ok=file is not None)
    if exporting:
        _export(where, loaded, store, status, output, dry_run)
        return 0
    positions = positions_of(loaded, store)
    tokens = _direct(loaded, positions, status) if file is None else _of_file(file)
    mentions = plan_reinsertion(
        tokens.rows,
        tokens.origin,
        positions,
        status=tokens.status,
        action=action,
        allow_held=allow_held,
    )
    task = _Task(settings, where, store, loaded, Inbox(where.signals_dir), tokens, mentions, action)
    _say_what_is_chosen(task, positions)
    if dry_run:
        _rehearse(task, auto_process)
        return 0
    return _carry_out(task, chosen, allow_live=allow_live, yes=yes)


def _file(words: tuple[str, ...]) -> Path | None:
    given = words[1:] if words[:1] == ("reinsert",) else words
    if len(given) > 1 or (words and not given):
        raise UsageError(
            f"{' '.join(words)!r} is not understood; expected is nothing, export, or one FILE"
        )
    return Path(given[0]) if given else None


# What is read


def _direct(state: State, positions: Mapping[str, Any], status: str | None) -> _Tokens:
    rows = export_tokens(positions, status)
    return _Tokens(rows, state.meta.sha256, str(state.meta.path), status)


def _of_file(file: Path) -> _Tokens:
    found = envelope.read(file)
    if found.kind != "tokens":
        raise StateInvalid(
            file,
            f"{file} is an export of {found.kind}, and tokens are expected (`statestore reinsert "
            f"export` makes one); to put positions back as they were, `statestore import {file}`",
        )
    if not found.verified:
        note(f"Nothing vouches for {file}: it is {found.shape}, without a sum.")
    status = found.filters.get("status")
    return _Tokens(found.rows, found.sha256, str(file), status if isinstance(status, str) else None)


# What is written


def _export(
    where: Places,
    state: State,
    store: StateStore,
    status: str | None,
    output: Path | None,
    dry_run: bool,
) -> None:
    rows = export_tokens(positions_of(state, store), status)
    path = output or Path(_default_name(status))
    refuse_target("--output", path, (*where.files, where.ledger))
    require_room("--output", path)
    if not rows and path.exists():
        raise UsageError(
            f"{path} is there already, and nothing would come in its place: {store.path} holds no "
            "token that was asked for; name another file with --output, or delete this one"
        )
    if not dry_run:
        found = envelope.Envelope(
            kind="tokens", rows=rows, filters={"status": status}, source=source_of(state)
        )
        envelope.write(path, found, new=output is None)
    note(f"{len(rows)} token(s) of {store.path} {'would be ' if dry_run else ''}written to {path}.")
    print_json(
        {
            "action": "export",
            "dry_run": dry_run,
            "path": str(store.path),
            "output": str(path),
            "tokens": len(rows),
            "status": status,
        }
    )


def _default_name(status: str | None) -> str:
    of_status = re.sub(r"\W+", "-", f"_{status}") if status else ""
    return f"tokens_backup{of_status}_{datetime.now(UTC):%Y%m%d_%H%M%S}.json"


def _rehearse(task: _Task, auto_process: bool) -> None:
    planned = steps(task.inbox, task.mentions)
    _say_steps(task, planned)
    note("Dry run: nothing was written.")
    facts = {"auto_process": auto_process, **_facts(task, planned)}
    print_json({**_head(task, dry_run=True), **facts})


def _carry_out(task: _Task, processor: Processor | None, *, allow_live: bool, yes: bool) -> int:
    """Signals, then positions, then what was asked for besides; return the exit code."""
    removed, store = task.removed, task.store
    planned: list[Step] = []
    code = 0

    def write(before_commit: Callable[[], None]) -> StateMeta:
        planned.extend(_signal(task))
        return store.save(
            _without(task.state, removed), reason="reinsert", before_commit=before_commit
        )

    def then() -> dict[str, Any]:
        nonlocal code
        report = _facts(task, planned)
        if processor is not None:
            report["processed"], code = process_pending(task.inbox, processor, store)
        return report

    if removed:  # said again by whoever writes; here so that a refusal leaves no trace
        halted(store.kill_switch(task.where.kill_switch), allow_live=allow_live)()
    with ExitStack() as stack:
        if not allow_live and (removed or processor is not None):
            stack.enter_context(store.lease())
        if removed:
            replace_state(
                "reinsert",
                store,
                task.where,
                write,
                keep=retention(task.settings),
                allow_live=allow_live,
                replacing=task.state.meta,
                ask="" if yes else f"Remove {len(removed)} positions of {store.path}?",
                facts={
                    "from": task.tokens.called,
                    "inbox": str(task.inbox.folder),
                    "signals": [mention.signal.id for mention in task.mentions],
                },
                then=then,
            )
        else:
            planned.extend(_signal(task))
            print_json({**_head(task, dry_run=False), **then()})
    return code


def _signal(task: _Task) -> list[Step]:
    with task.inbox.exclusive():
        planned = steps(task.inbox, task.mentions)
        write_signals(task.inbox, planned)
    _say_steps(task, planned)
    return planned


def _without(state: State, keys: Sequence[str]) -> State:
    gone = frozenset(keys)
    left = {key: entry for key, entry in state["positions"].items() if key not in gone}
    return State({**state, "positions": left}, state.meta)


# What is told


def _head(task: _Task, *, dry_run: bool) -> dict[str, Any]:
    return {
        "action": "reinsert",
        "dry_run": dry_run,
        "path": str(task.store.path),
        "revision": task.store.revision,
    }


def _facts(task: _Task, planned: Sequence[Step]) -> dict[str, Any]:
    return {
        "from": task.tokens.called,
        "inbox": str(task.inbox.folder),
        "status": task.tokens.status,
        "tokens": len(planned),
        "positions_removed": task.removed,
        "positions_kept": [row.key for mention in task.mentions for row in mention.kept],
        "signals": [{**summary(step.signal), "outcome": step.outcome} for step in planned],
    }


def _say_what_is_chosen(task: _Task, positions: Mapping[str, Any]) -> None:
    if not task.mentions:
        named = task.tokens.status
        of_status = f" of status {named}" if named else ""
        there = f"; there are {', '.join(statuses(positions))}" if statuses(positions) else ""
        note(f"No tokens{of_status} in {task.tokens.called}{there if named else ''}.")
    if task.action == "buy":
        note("These signals say buy: what processes them may place orders.")


def _say_steps(task: _Task, planned: Sequence[Step]) -> None:
    for mention, step in zip(task.mentions, planned, strict=True):
        gone = f"; removed: {', '.join(r.key for r in mention.removed)}" if mention.removed else ""
        kept = f"; kept: {', '.join(r.key for r in mention.kept)}" if mention.kept else ""
        note(f"  {step.signal.symbol}: signal {step.signal.id} {step.outcome}{gone}{kept}")


main = entry(command)
