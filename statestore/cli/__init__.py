"""The command line: parse, call one function, print, exit code. One file per command.

stdout is data (one JSON document), stderr is for people.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from statestore import __version__
from statestore.cli.exits import EPILOG, entry

# A command is imported when it is asked for: help must not pay for what it does not use.
_COMMANDS = {
    "audit": "What repairs have changed, and whether that record is whole.",
    "backup": "Make a verified copy of the state, or verify those there are.",
    "check": "Say whether the state, its .bak and its backups are good.",
    "demo": "The main job on a simulated exchange, without any key.",
    "diff": "Show what differs between two versions of the state.",
    "doctor": "Look at everything the other commands rely on.",
    "edit": "Change the state by hand, in an editor, safely.",
    "explain": "Say how a quantity and its entry price came about.",
    "fills": "Print the fills behind each quantity: the audit trail.",
    "fleet": "Plan, apply or verify many accounts at once.",
    "history": "List every version of the state that is at hand.",
    "kill-switch": "Halt a bot, release it, ask.",
    "rebuild": "Rebuild positions from exchange fills (also: rebuild_positions).",
    "replay": "Replay recorded fills into positions: no state, no exchange.",
    "restore": "Put a backup in place of the state.",
    "seal": "Accept an edited state file as it is.",
    "show": "Print the state, or a former version, and where it was read from.",
    "undo": "Put back the state before the newest repair.",
    "verify": "Compare the recorded positions with balances and fills.",
    "watch": "Watch the state as a bot saves it.",
}


class _Lazy(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"statestore.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.command(cls=_Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="statestore")
def cli(**_: Any) -> None:
    """A trading bot's state in one file that no crash can tear, and tools to repair it."""


main = entry(cli)
