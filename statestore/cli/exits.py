"""Exit codes: one table, printed by every help, and the one place that turns errors into them."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import click

from statestore import errors
from statestore.cli.screen import note

UNPROVEN = 3
INTERRUPTED = 130

MEANINGS = {
    0: "done; for a dry run: preview made",
    1: "a bug, with a traceback",
    2: "usage, or a setting that is not understood",
    3: "refused: a position is not proven, is held, or is there already; or differences"
    " (--exit-code), stale (--max-age), incomplete (--strict); or a signal or an account failed",
    4: "credentials missing or refused",
    5: "exchange unreachable, or what it (or a recorded file) gave is incomplete or not understood",
    6: "kill switch not engaged",
    7: "locked, or another bot holds the lease",
    8: "state (or a signal) missing, corrupt or invalid; or it could not be written",
    9: "state changed since it was read, or a plan is stale",
    10: "database backend failed",
    130: "interrupted",
}

# The first class that fits decides, so the special ones come before the general.
CODES: tuple[tuple[type[errors.StateStoreError], int], ...] = (
    (errors.UsageError, 2),
    (errors.ConfigError, 2),
    (errors.RebuildRefused, UNPROVEN),
    (errors.ReinsertRefused, UNPROVEN),
    (errors.SignalError, 8),
    (errors.ImportRefused, UNPROVEN),
    (errors.CredentialsError, 4),
    (errors.SourceError, 5),
    (errors.KillSwitchNotEngaged, 6),
    (errors.StateLocked, 7),
    (errors.RevisionConflict, 9),
    (errors.StateForked, 9),
    (errors.PlanStale, 9),
    (errors.BackendError, 10),
    (errors.StateError, 8),
)

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in MEANINGS.items())


def code_for(kind: type[errors.StateStoreError]) -> int:
    """Return the exit code of a class of expected errors."""
    return next((code for known, code in CODES if issubclass(kind, known)), 1)


def run(command: click.Command) -> NoReturn:
    """Run a command to its exit code. An expected error is one line; a bug keeps its traceback."""
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        note(said.getvalue().rstrip("\n"))
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        note("Interrupted; nothing further is written.")
        code = INTERRUPTED
    except errors.StateStoreError as error:
        note(f"Error: {' '.join(str(error).split())}")
        code = code_for(type(error))
    except (BrokenPipeError, SystemExit) as gone:
        if isinstance(gone, SystemExit) and not gone.code:
            raise  # how click ends when it has answered a shell's completion
        # Whoever read us went away (`... | head`; click makes that a SystemExit), perhaps before
        # anything was done: no success. Python must not complain when it flushes what is left.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def entry(command: click.Command) -> Callable[[], NoReturn]:
    """Return the function a console script calls."""

    def main() -> NoReturn:
        sys.excepthook = _show_bug
        run(command)

    return main


def _show_bug(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """The whole traceback; what a terminal would obey in the message is shown instead."""
    note("".join(traceback.format_exception(kind, error, where)).rstrip("\n"))
