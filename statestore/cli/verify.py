"""``statestore verify``: the recorded positions against balances and fills."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN
from statestore.cli.metrics import recording
from statestore.cli.options import (
    Seconds,
    backup_dir_option,
    kill_switch_option,
    log_format_option,
    metrics_option,
    refuse_target,
    state_option,
)
from statestore.cli.sources import (
    accounting_options,
    open_source,
    progress,
    rebuild_options,
    set_up_logging,
    source_options,
    talk_options,
    window_options,
)
from statestore.config import load_settings, places

if TYPE_CHECKING:
    from statestore.repair.verify import Judged, Verification

_STYLES = {"agrees": "dim", "unsettled": "cyan", "unproven": "yellow", "differs": "red"}


@click.command("verify", epilog=EPILOG, context_settings={"show_default": True})
@window_options
@state_option
@source_options
@accounting_options
@click.option(
    "--grace",
    type=Seconds(),
    default="10",
    help="How long exchange and bot may take from a fill to its save, in seconds.",
)
@click.option("--exit-code", is_flag=True, help="Exit 3 when the positions are not confirmed.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["json", "text"]),
    default="json",
    help="What stdout gets; with json, stderr gets the text.",
)
@metrics_option
@kill_switch_option
@backup_dir_option
@talk_options
@log_format_option
def command(**flags: Any) -> int:
    """Say whether the recorded positions are what balances and fills prove. Reads only.

    Each position agrees, differs, is unproven (the fills cannot tell), or is unsettled: it was
    traded just now, and what the bot has yet to save accounts for the difference. Before anything
    is said to differ, the grace is waited for and everything is read again.

    --exit-code makes it exit 3 when a position differs or is unproven; an unsettled one is no
    alarm. With -q nothing is printed when there is none, so it fits cron. With --log-format json
    stderr is left to the log (-v for its warnings), and the text for people only comes as --format.
    """
    set_up_logging(flags["verbose"], flags["log_format"])
    settings = load_settings()
    where = places(
        settings,
        state=flags["state"],
        kill_switch=flags["kill_switch"],
        backup_dir=flags["backup_dir"],
    )
    options = rebuild_options(flags, settings)
    read = (flags["fills"], flags["balances"])
    precious = (*where.files, where.ledger, *read)
    refuse_target("--metrics-textfile", flags["metrics_textfile"], precious)
    from statestore.disk.store import StateStore
    from statestore.repair.opening import clock_of
    from statestore.repair.verify import Verdict, verify

    store = StateStore(where.state, backup_dir=where.backup_dir)
    with recording(flags["metrics_textfile"], "verify", store.path) as figures:
        figures.kill_switch(store.kill_switch(where.kill_switch))
        collected = flags["log_format"] == "json"
        with progress(flags["quiet"] or collected) as on_page:
            opened = open_source(flags, settings, on_page)
            found = verify(
                store,
                opened.source,
                options,
                # Recorded files do not move.
                grace_seconds=Decimal(0) if flags["fills"] else flags["grace"],
                clock=clock_of(opened.source),
                wait=_wait,
                portfolio=opened.portfolio,
                warnings=opened.warnings,
            )
        if not (flags["quiet"] and found.ok):
            _print(found, flags["output"], only_stdout=collected)
        figures.verification(found)
        figures.success = found.verdict is Verdict.AGREES
        figures.exit_code = UNPROVEN if flags["exit_code"] and not found.ok else 0
        return figures.exit_code


def _wait(seconds: float) -> None:
    """Give exchange and bot the time they may take, before anything is said to differ."""
    time.sleep(seconds)


def _print(found: Verification, output: str, *, only_stdout: bool) -> None:
    from statestore.cli.output import print_json
    from statestore.repair.verify import document

    if output == "json":
        print_json(document(found))
        if only_stdout:
            return
    _show(found, to_stderr=output == "json")


def _show(found: Verification, *, to_stderr: bool) -> None:
    """Print what does not agree as a table, the warnings, and one sentence."""
    from rich.table import Table

    from statestore.cli.screen import console

    terminal = console(stderr=to_stderr, highlight=False)
    amiss = [judged for judged in found.positions if judged.verdict.value != "agrees"]
    if amiss:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("Position", overflow="fold")
        table.add_column("Verdict", no_wrap=True)
        table.add_column("Recorded", overflow="fold", justify="right")
        table.add_column("Found", overflow="fold", justify="right")
        table.add_column("Why", overflow="fold")
        for judged in amiss:
            table.add_row(*_row(judged), style=_STYLES[judged.verdict.value])
        terminal.print(table)
    for warning in found.proposal.plan.warnings:
        terminal.print(f"Warning: {warning.message}", style="yellow")
    terminal.print(_sentence(found), soft_wrap=True)


def _row(judged: Judged) -> tuple[str, ...]:
    """The two figures that are apart: the quantity, or the entry where that is right."""
    from statestore.amounts import text
    from statestore.cli.output import short

    prices = judged.about == "entry_price"
    before = judged.recorded_entry if prices else judged.recorded
    after = judged.found_entry if prices else judged.found
    at = "@ " if prices else ""
    return (
        judged.key,
        judged.verdict.value,
        f"{at}{short(text(before))}",
        f"{at}{short(text(after))}",
        judged.reason,
    )


def _sentence(found: Verification) -> str:
    from statestore.repair.verify import Verdict

    meta = found.proposal.state.meta
    what = f"{meta.state_path} (revision {meta.revision})"
    parts = [
        f"{count} {verdict.value if verdict is not Verdict.AGREES or count == 1 else 'agree'}"
        for verdict in reversed(Verdict)
        if (count := found.count(verdict))
    ]
    counted = ", ".join(parts) or "nothing is recorded, nothing was filled"
    rejected = len(found.proposal.plan.evidence.rejected)
    unread = f"; {rejected} fill row(s) cannot be read for certain" if rejected else ""
    remedy = "" if found.ok else "; to see the repair: rebuild_positions --dry-run"
    return f"{what}: {counted}{unread}{remedy}"
