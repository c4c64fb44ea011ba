"""``statestore signals list | process | retry``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import EPILOG, code_for
from statestore.cli.options import FILE, allow_live_option, state_option
from statestore.cli.output import note, print_json
from statestore.cli.processors import (
    load_processor,
    process_pending,
    processor_option,
    summary,
)
from statestore.config import Places, load_settings, places
from statestore.disk.store import StateStore
from statestore.errors import SignalError, UsageError
from statestore.runtime.processing import StateBook, obstacle
from statestore.runtime.signals import PLACES, Damaged, Inbox, Place, Signal


@click.group("signals", epilog=EPILOG)
def command() -> None:
    """The inbox of signals: what is in it, process it, try again.

    A signal is one JSON file, in the folder "signals" beside the state ($STATESTORE_SIGNALS_DIR),
    which moves from "pending" to "done" or "failed".
    """


def _signals_option(function: Any) -> Any:
    return click.option(
        "--signals-dir", type=FILE, help="Inbox.  [default: signals beside the state]"
    )(function)


def _where(state: Path | None, signals_dir: Path | None) -> tuple[Places, Inbox]:
    where = places(load_settings(), state=state)
    return where, Inbox(signals_dir or where.signals_dir)


@command.command("list", epilog=EPILOG)
@click.argument("place", type=click.Choice(PLACES), required=False)
@state_option
@_signals_option
def list_(place: Place | None, state: Path | None, signals_dir: Path | None) -> int:
    """Print the signals that are pending, done or failed. Exit 8 when a file is no signal."""
    where, inbox = _where(state, signals_dir)
    listed: dict[Place, list[Signal]] = {}
    damaged: list[Damaged] = []
    for name in PLACES if place is None else (place,):
        listed[name], refused = inbox.signals(name)
        damaged += refused
    book = StateBook(StateStore(where.state))
    positions = book.positions() if listed.get("pending") else {}
    rows = []
    for name, signals in listed.items():
        for signal in signals:
            waits = obstacle(signal, positions) if name == "pending" else None
            rows.append({**_described(inbox, name, signal), "waits": waits})
            note(f"  {name:8} {signal.symbol:12} {signal.id}  {waits or rows[-1]['why'] or ''}")
    _tell_damaged(damaged)
    print_json(
        {
            "inbox": str(inbox.folder),
            "counts": {name: len(signals) for name, signals in listed.items()},
            "signals": rows,
            "damaged": [str(bad.path) for bad in damaged],
        }
    )
    return code_for(SignalError) if damaged else 0


@command.command(epilog=EPILOG)
@state_option
@_signals_option
@processor_option
@allow_live_option
def process(
    state: Path | None, signals_dir: Path | None, processor: str | None, allow_live: bool
) -> int:
    """Give each pending signal to the processor, oldest first. For a scheduled job.

    Positions go into the state, so no bot may run on it meanwhile (exit 7): a bot that runs drains
    its inbox itself, or --allow-live says that it can live with it. A processor that raises moves
    the signal to "failed" (exit 3), with the reason; "statestore signals retry" puts it back.
    """
    where, inbox = _where(state, signals_dir)
    chosen = load_processor(processor)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    damaged = inbox.signals("pending")[1]
    _tell_damaged(damaged)
    with nullcontext() if allow_live else store.lease():
        report, code = process_pending(inbox, chosen, store)
    print_json(
        {
            "action": "process",
            "inbox": str(inbox.folder),
            "path": str(store.path),
            **report,
            "damaged": [str(bad.path) for bad in damaged],
        }
    )
    return code or (code_for(SignalError) if damaged else 0)


@command.command(epilog=EPILOG)
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that failed.")
@state_option
@_signals_option
def retry(
    names: tuple[str, ...], every: bool, state: Path | None, signals_dir: Path | None
) -> None:
    """Put signals that failed back to "pending"; the next "process" takes them."""
    if every == bool(names):
        raise UsageError("name the signals to try again by their ids, or pass --all")
    _, inbox = _where(state, signals_dir)
    with inbox.exclusive():
        failed = {signal.id: signal for signal in inbox.signals("failed")[0]}
        missing = [name for name in names if name not in failed]
        if missing:
            raise SignalError(
                f"no signal {missing[0]} has failed in {inbox.folder}; nothing was moved "
                "(`statestore signals list failed`)"
            )
        moved = inbox.reopen("failed", *(failed[name] for name in dict.fromkeys(names or failed)))
    for signal in moved:
        note(f"  {signal.symbol} is pending again")
    print_json(
        {
            "action": "retry",
            "inbox": str(inbox.folder),
            "signals": [_described(inbox, "pending", signal) for signal in moved],
        }
    )


def _tell_damaged(damaged: list[Damaged]) -> None:
    for bad in damaged:
        note(bad.why)
    if damaged:
        note("What is no signal is left alone: mend it, or move it out of the inbox.")


def _described(inbox: Inbox, place: Place, signal: Signal) -> dict[str, Any]:
    error = signal.record.get("last_error")
    why = error.get("why") if isinstance(error, dict) and place == "failed" else None
    return {
        **summary(signal),
        "status": place,
        "created_at": signal.record.get("created_at"),
        "why": why,
        "path": str(inbox.path(place, signal.id)),
    }
