"""``statestore doctor``: everything the other commands rely on, each with its remedy.

What is looked at is in `checkups`; a check that meets a bug costs its own lines only.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from statestore.cli.checkups import (
    BUG,
    CHECKS,
    CREDENTIALS,
    DATABASE,
    EXCHANGE,
    SETTINGS,
    STATE,
    Line,
    Lines,
    Patient,
    listing,
    versions,
)
from statestore.cli.exits import EPILOG, code_for
from statestore.cli.options import backup_dir_option, kill_switch_option, state_option
from statestore.cli.sources import set_up_logging, source_options
from statestore.config import load_settings, places
from statestore.errors import BackendError, ConfigError, StateStoreError

# Which one is the exit code where there are several: what has to be put right first.
_FIRST = (BUG, SETTINGS, DATABASE, STATE, CREDENTIALS, EXCHANGE)

_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@click.command("doctor", epilog=EPILOG)
@state_option
@source_options
@kill_switch_option
@backup_dir_option
@click.option("--offline", is_flag=True, help="Do not ask the exchange.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="What stdout gets.  [default: text]",
)
def command(**flags: Any) -> int:
    """Look at everything the other commands rely on, and say how to put it right. Writes nothing.

    Every check is made, whatever the others find. Exit 0 when nothing fails (warnings are allowed);
    else the first of these that does: 1 a bug, 2 settings, 10 the database, 8 the state and its
    files, 4 the key, 5 the exchange.
    """
    set_up_logging(0)
    lines: list[Line] = []
    bugs: list[str] = []
    told: list[StateStoreError] = []
    for name, check in _checks(flags):
        try:
            lines += check()
        except StateStoreError as error:
            if error in told:
                lines.append(Line(name, "warning", "not looked at, for that reason", "as above"))
                continue
            told.append(error)
            remedy = "statestore db status" if isinstance(error, BackendError) else ""
            lines.append(Line(name, "failure", str(error), remedy, code_for(type(error))))
        except OSError as error:
            said = f"cannot look at {error.filename}: {error.strerror or error}"
            lines.append(Line(name, "failure", said, listing(error.filename), STATE))
        except Exception as error:  # noqa: BLE001 - a bug in one check must not hide the others
            said = f"bug: {type(error).__name__}: {error}"
            lines.append(Line(name, "failure", said, "report it with the traceback below", BUG))
            bugs.append(traceback.format_exc())
    failed = {line.code for line in lines if line.level == "failure"}
    code = next((known for known in _FIRST if known in failed), max(failed, default=0))
    if flags["output"] == "json":
        from statestore.cli.output import print_json

        checks = [asdict(line) for line in lines]
        ok = not failed
        print_json({"schema": "statestore.doctor/1", "ok": ok, "exit_code": code, "checks": checks})
    else:
        _show(lines)
    from statestore.cli.screen import note

    for bug in bugs:
        note(bug)
    return code


def _checks(flags: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Lines]]]:
    yield "versions", versions
    try:
        settings = load_settings()
    except ConfigError as error:
        # Which files are meant is not known, so none is looked at.
        line = Line("settings", "failure", str(error), "correct it, then run this again", SETTINGS)
        yield "settings", lambda: iter([line])
        return
    where = places(
        settings,
        state=flags["state"],
        kill_switch=flags["kill_switch"],
        backup_dir=flags["backup_dir"],
    )
    patient = Patient(flags, settings, where)
    for name, check in CHECKS:
        # check=check: each of its own, not the last one of the loop
        yield name, lambda check=check: check(patient)  # type: ignore[misc]


def _show(lines: list[Line]) -> None:
    """Print one finding a line, wrapped to the terminal; a remedy is never wrapped: it is typed."""
    import textwrap

    from rich.text import Text

    from statestore.cli.screen import console

    terminal = console(highlight=False, width=None if sys.stdout.isatty() else 80)
    for line in lines:
        start = f"{line.level:<8} {line.check:<12} "
        wrapped = textwrap.wrap(
            line.message,
            max(terminal.width - len(start), 30),
            break_long_words=False,
            break_on_hyphens=False,
        )
        shown = Text(start, style=_STYLES[line.level])
        shown.append(("\n" + " " * len(start)).join(wrapped), style="default")
        if line.remedy:
            shown.append(f"\n{' ' * 9}-> {line.remedy}", style="default")
        terminal.print(shown, soft_wrap=True)
    count = {level: sum(line.level == level for line in lines) for level in _STYLES}
    terminal.print(f"{count['failure']} failure(s), {count['warning']} warning(s)")
