"""``statestore fleet``: many accounts at once, each as if it were alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore import errors
from statestore.cli.exits import EPILOG, INTERRUPTED, UNPROVEN, code_for
from statestore.cli.options import FILE, allow_live_option, replay_options, yes_option
from statestore.cli.sources import set_up_logging, talk_options
from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.repair.fleet import Piece, Result, Task
    from statestore.repair.fleetwork import Account

_MOST_SHOWN = 20
_STYLES = {"proposed": "yellow", "written": "green", "unsettled": "cyan"}


@click.group("fleet", epilog=EPILOG)
def command() -> None:
    """Plan, apply or verify many accounts, named in a fleet.toml.

    Each account fails alone, by name. stdout gets one JSON document about all of them; the exit
    code is 3 if any failed, or is not proven or not as recorded. docs/fleets.md has the file, the
    executors and what it costs.
    """


def _executor_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        talk_options,
        click.option(
            "--jobs",
            type=click.IntRange(1, 1_000),
            help="Threads or processes.  [default: 16 threads, or a process for each core]",
        ),
        click.option(
            "--executor",
            default="threads",
            show_default=True,
            metavar="NAME",
            help="threads, processes, dask:ADDRESS, or module:function that gives an Executor.",
        ),
    ):
        function = option(function)
    return function


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    only = click.option(
        "--account", "only", multiple=True, metavar="NAME", help="Only this one. Repeatable."
    )
    fleet = click.argument("fleet", type=FILE, metavar="FLEET.TOML")
    return fleet(only(_executor_options(function)))


def _report_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--report",
        type=FILE,
        metavar="FOLDER",
        help="Write a page about each account, and one of all.",
    )(function)


@command.command("plan", epilog=EPILOG)
@_report_option
@_options
def plan(**flags: Any) -> int:
    """Show what an apply would write to each account's state. Writes nothing.

    An account whose bot runs (it holds the lease) without its kill switch engaged is refused: such
    a plan would be stale before it is read.
    """
    return _run("plan", flags)


@command.command("apply", epilog=EPILOG)
@_report_option
@allow_live_option
@yes_option
@_options
def apply(**flags: Any) -> int:
    """Rebuild each account's state, by the rules of a single rebuild.

    Kill switch, revision, backup, audit: see 'statestore rebuild --help'. An account that is not
    proven is not written, and does not keep the others from being written. --allow-live does not
    hold for an account whose bot runs.
    """
    return _run("apply", flags)


@command.command("verify", epilog=EPILOG)
@_options
def verify(**flags: Any) -> int:
    """Compare each account's recorded positions with balances and fills. Reads only."""
    return _run("verify", flags)


@command.command("replay", epilog=EPILOG)
@click.argument("paths", type=FILE, nargs=-1, required=True, metavar="FOLDER...")
@replay_options
@_executor_options
def replay(paths: tuple[Path, ...], **flags: Any) -> int:
    """Replay archives of many accounts, each account and asset by itself.

    Below a FOLDER, account=NAME/ or account=NAME/asset=ASSET/ hold files of fills: JSON Lines, or
    Parquet. No state is read, no balance and no exchange, as in 'statestore replay'.
    """
    set_up_logging(flags["verbose"])
    from statestore.fills.folding import Rules
    from statestore.fills.partitions import partitions_of
    from statestore.model import Method
    from statestore.repair.fleet import Task
    from statestore.repair.fleetwork import Partitioned

    since, until = flags["since"], flags["until"]
    if since is not None and until is not None and since >= until:
        raise UsageError("--since is not before --until")
    rules = Rules(Method(flags["method"]), since=since, until=until)
    pieces = [Partitioned(partition, rules) for partition in partitions_of(paths)]
    names = [piece.partition.name for piece in pieces]
    told, whole = _told(Task.REPLAY, pieces, names, flags)
    return _print(told, whole, flags)


def _run(task_name: str, flags: dict[str, Any]) -> int:
    set_up_logging(flags["verbose"])
    from statestore.repair.fleet import Task
    from statestore.repair.fleetfile import load_fleet
    from statestore.repair.fleetwork import works_of

    task = Task(task_name)
    accounts = _chosen(flags, load_fleet(flags["fleet"]))
    reports = flags.get("report")
    _check_reports(reports, accounts)
    if task is Task.APPLY and not flags["yes"] and sys.stdin.isatty():
        from statestore.cli.screen import confirm

        confirm(f"Write to the states of {len(accounts)} account(s)?")
    works = works_of(
        accounts,
        task,
        allow_live=flags.get("allow_live", False),
        reports=None if reports is None else reports.absolute(),
    )
    told, whole = _told(task, works, [account.name for account in accounts], flags)
    code = _print(told, whole, flags)
    if reports is not None:
        _write_overview(reports, told)
    return code


def _told(
    task: Task, pieces: Sequence[Piece], names: Sequence[str], flags: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Do all of it; return the summary, and whether no interrupt came."""
    from statestore.repair.executors import open_executor
    from statestore.repair.fleet import run_all, summary

    executor, quiet = flags["executor"], flags["quiet"]
    jobs = flags["jobs"] or _usual_jobs(executor)
    started = time.monotonic()
    with open_executor(executor, jobs) as workers, _progress(len(names), quiet) as tell:
        found, whole = run_all(pieces, workers.executor, at_once=workers.at_once, tell=tell)
    results = [found[name] for name in names]
    run = {
        "executor": executor,
        "seconds": round(time.monotonic() - started, 3),
        "seconds_by_account": {one.account: round(one.seconds, 3) for one in results},
    }
    return {**summary(task, results, _exit_code), "run": run}, whole


def _print(told: dict[str, Any], whole: bool, flags: dict[str, Any]) -> int:
    from statestore.cli.output import print_json

    print_json(told)
    if told["failures"] or not flags["quiet"]:
        _show(told, flags["quiet"])
    if not whole:
        return INTERRUPTED
    return 0 if told["ok"] else UNPROVEN


def _chosen(flags: dict[str, Any], accounts: Sequence[Account]) -> Sequence[Account]:
    unknown = sorted(set(flags["only"]) - {account.name for account in accounts})
    if unknown:
        raise UsageError(f"{flags['fleet']} has no account {', '.join(unknown)}")
    return [one for one in accounts if not flags["only"] or one.name in flags["only"]]


def _usual_jobs(executor: str) -> int:
    """Threads wait for the exchange most of the time; processes are for the work in between."""
    return os.cpu_count() or 1 if executor == "processes" else 16


def _check_reports(folder: Path | None, accounts: Sequence[Account]) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is no folder; make it first"
        raise UsageError(f"--report {folder} {what}")
    from statestore.repair.fleetwork import report_path
    from statestore.repair.outcome import check_report

    for page in (folder / "index.html", *(report_path(folder, one.name) for one in accounts)):
        check_report(page)


def _exit_code(result: Result) -> int:
    """As if the account had been run alone."""
    if result.failure is None or not result.failure.kind:
        return 0 if result.ok else UNPROVEN
    if result.failure.kind == "Interrupted":
        return INTERRUPTED
    kind = getattr(errors, result.failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.StateStoreError):
        return code_for(kind)
    return 1


def _write_overview(folder: Path, told: dict[str, Any]) -> None:
    from statestore import __version__
    from statestore.config import operator
    from statestore.disk.durable import replace_file
    from statestore.repair.report import render_overview
    from statestore.times import format_instant, now

    page = render_overview(told, at=format_instant(now()), by=operator(), version=__version__)
    replace_file(folder / "index.html", page.encode())


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[Result], None]]:
    """Show on a terminal how many accounts are done, and how many of them are amiss."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from statestore.cli.screen import console

    columns = (
        TextColumn("Accounts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[amiss]}", style="red"),
        TimeRemainingColumn(),
    )
    amiss = 0
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, amiss="")

        def tell(result: Result) -> None:
            nonlocal amiss
            amiss += not result.ok
            bar.update(task, advance=1, amiss=f"{amiss} not ok" if amiss else "")

        yield tell


def _show(told: dict[str, Any], quiet: bool) -> None:
    """Print what is amiss and, unless quiet, what is or would be written; then one sentence."""
    from rich.table import Table

    from statestore.cli.screen import console

    terminal = console(stderr=True, width=None if sys.stderr.isatty() else 140, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Account", overflow="fold")
    table.add_column("Outcome", no_wrap=True)
    table.add_column("Exit", no_wrap=True, justify="right")
    table.add_column("Why", overflow="fold")
    for one in told["failures"]:
        error = f"{one['error']}: " if one["error"] else ""
        why = error + one["text"]
        table.add_row(one["account"], one["outcome"], str(one["exit_code"]), why, style="red")
    changed = [one for one in told["accounts"] if one["outcome"] in _STYLES and not quiet]
    for one in changed[:_MOST_SHOWN]:
        table.add_row(
            one["account"], one["outcome"], "0", _what(one), style=_STYLES[one["outcome"]]
        )
    if table.row_count:
        terminal.print(table)
    if len(changed) > _MOST_SHOWN:
        terminal.print(f"... and {len(changed) - _MOST_SHOWN} more; the JSON has all of them")
    for one in told["failures"]:
        if "trace" in one:
            terminal.print(f"{one['account']}:\n{one['trace']}", soft_wrap=True)
    terminal.print(_sentence(told), markup=False, soft_wrap=True)


def _what(one: dict[str, Any]) -> str:
    if "changes" not in one:
        return ", ".join(position["key"] for position in one["positions"])
    writes = [
        change for change in one["changes"] if change["action"] in ("add", "update", "remove")
    ]
    return ", ".join(f"{change['action']} {change['key']}" for change in writes)


def _sentence(told: dict[str, Any]) -> str:
    counts = told["counts"]
    rest = ("accounts", "ok", "not_ok")
    parts = [f"{count} {name}" for name, count in counts.items() if name not in rest]
    plural = "" if counts["accounts"] == 1 else "s"
    sentence = f"{counts['accounts']} account{plural}: {', '.join(parts)}"
    if told["task"] == "plan" and counts.get("proposed"):
        sentence += "; to write what is proposed: statestore fleet apply"
    return sentence
