"""``statestore replay``: what recorded fills alone say, however many there are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from statestore.amounts import written
from statestore.cli.exits import EPILOG
from statestore.cli.options import FILE, replay_options
from statestore.cli.output import note, print_json
from statestore.cli.screen import console
from statestore.errors import UsageError
from statestore.fills.archive import Archive, OnBytes, replay_archive
from statestore.fills.folding import Rules
from statestore.fills.told import document, status_of
from statestore.model import PEGS, Method, Status
from statestore.times import format_instant


@click.command("replay", epilog=EPILOG)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share a file of one fill a line, for average cost.",
)
@replay_options
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def command(
    files: tuple[Path, ...],
    jobs: int,
    method: str,
    since: int | None,
    until: int | None,
    quiet: bool,
) -> None:
    """Replay recorded FILEs of fills (JSON Lines, pages or CSV) into positions.

    No state is read, no balance and no exchange: units held before the first fill are not known
    of, and an asset that sold more than it bought is UNCOVERED. Several files are several
    answers; a file is what one portfolio did.
    """
    if since is not None and until is not None and since >= until:
        raise UsageError(
            f"--since {format_instant(since)} is not before --until {format_instant(until)}"
        )
    rules = Rules(Method(method), since=since, until=until)
    answers = []
    for path in files:
        with _progress(path, quiet) as on_bytes:
            archive = replay_archive(path, rules, jobs=jobs, on_bytes=on_bytes)
        if not quiet:
            _mention(path, archive)
        answers.append({"file": str(path), **document(archive)})
    print_json({"method": method, "pegs": dict(PEGS), "files": answers})


def _mention(path: Path, archive: Archive) -> None:
    if archive.rejected:
        first = archive.rejected[0]
        note(
            f"{path}: {len(archive.rejected)} row(s) are rejected and in no figure; the first is "
            f"{first.origin}: {first.reason}"
        )
    for name, one in archive.assets.items():
        if one.position.uncovered and not one.adjusted:
            note(
                f"{path}: {written(one.position.uncovered):f} {name} more were sold than the fills "
                "bought; what was held before is not in this file"
            )
        elif status_of(one) is Status.AMBIGUOUS:
            note(f"{path}: {name} is ambiguous; a rebuild with balances may tell")


@contextmanager
def _progress(path: Path, quiet: bool) -> Iterator[OnBytes | None]:
    """Show on a terminal how much of the file is read."""
    if quiet or not sys.stderr.isatty() or not path.is_file():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    # No thread of its own: processes are forked while it stands.
    bar = Progress(*columns, console=console(stderr=True), auto_refresh=False, transient=True)
    with bar:
        task = bar.add_task(path.name, total=path.stat().st_size)
        unseen = 0

        def on_bytes(read: int) -> None:
            nonlocal unseen
            unseen += read
            if unseen >= 1 << 22:
                bar.advance(task, unseen)
                bar.refresh()
                unseen = 0

        yield on_bytes
