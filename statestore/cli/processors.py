"""What the commands that process signals share: which processor, and what became of each signal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from statestore.cli.exits import UNPROVEN
from statestore.cli.output import note
from statestore.disk.store import StateStore
from statestore.errors import UsageError
from statestore.runtime.processing import Processed, Processor, StateBook, Tracker, drain
from statestore.runtime.signals import Inbox, Signal


def processor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--processor",
        metavar="MODULE:OBJECT",
        help="What decides on a signal: an object with process(signal), or what makes one when it "
        "is called.  [default: a tracked position of quantity 0]",
    )(function)


def load_processor(named: str | None) -> Processor:
    """Return the processor of a name, ``my_bot.signals:DecisionMaker``; the default for None.

    The working directory is looked in as well, as by ``python -m``.

    Raises:
        UsageError: there is no such thing, or it cannot process.
    """
    if named is None:
        return Tracker()
    module_name, colon, path = named.partition(":")
    if not (module_name and colon and path):
        raise UsageError(f"--processor {named} is not MODULE:OBJECT, as my_bot.signals:processor")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
        processor = found() if isinstance(found, type) or not hasattr(found, "process") else found
    except Exception as error:  # another program's, whatever it raises
        raise UsageError(
            f"--processor {named} cannot be had: {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(processor, "process", None)):
        raise UsageError(
            f"--processor {named} gives a {type(processor).__name__}, which has no process(signal)"
        )
    return processor  # type: ignore[no-any-return]  # it is one now


def process_pending(
    inbox: Inbox, processor: Processor, store: StateStore
) -> tuple[dict[str, Any], int]:
    """Drain the inbox, telling each signal; return the report and the exit code."""
    counts = {"done": 0, "failed": 0, "waiting": 0}
    rows = []
    for processed in drain(inbox, processor, StateBook(store)):
        counts[processed.fate] += 1
        rows.append(_told(processed))
        note(_line(processed))
    return {"counts": counts, "signals": rows}, UNPROVEN if counts["failed"] else 0


def summary(signal: Signal) -> dict[str, Any]:
    """Return what tells one signal from another."""
    token = signal.token
    names: Mapping[str, Any] = {"contract": token.contract, "chain": token.chain}
    return {
        "id": signal.id,
        "symbol": signal.symbol,
        **({"product": token.product} if token.contract is None else names),
        "action": signal.action,
        "attempts": signal.attempts,
    }


def _told(processed: Processed) -> dict[str, Any]:
    asked = None
    if processed.backfill is not None:
        symbol, timeframes = processed.backfill
        asked = {"symbol": symbol, "timeframes": timeframes, "asked": processed.backfilled}
    return {
        **summary(processed.signal),
        "outcome": processed.fate,
        "opened": processed.opened,
        "standing": processed.standing,
        "backfill": asked,
        "why": processed.why or None,
    }


def _line(processed: Processed) -> str:
    parts = [processed.why] if processed.why else []
    if processed.opened:
        parts.append(f"position {', '.join(processed.opened)}")
    if processed.standing:
        parts.append(f"{', '.join(processed.standing)} was there before")
    if processed.backfill:
        symbol, timeframes = processed.backfill
        done = "asked for" if processed.backfilled else "to be fetched"
        parts.append(f"bars of {symbol} {', '.join(timeframes)} {done}")
    return f"  {processed.signal.symbol} {processed.fate}: {'; '.join(parts) or 'nothing to do'}"
