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
    "bootstrap": "Make or fetch what a bot needs beside its state.",
    "check": "Say whether the state, its .bak and its backups are good.",
    "db": "The database a state is in: init, upgrade, status, reconcile.",
    "demo": "The main job on a simulated exchange, without any key.",
    "diff": "Show what differs between two versions of the state.",
    "doctor": "Look at everything the other commands rely on.",
    "edit": "Change the state by hand, in an editor, safely.",
    "export": "Write positions to one file, before a wipe (also: export_positions).",
    "explain": "Say how a quantity and its entry price came about.",
    "fills": "Print the fills behind each quantity: the audit trail.",
    "fleet": "Plan, apply or verify many accounts at once.",
    "history": "List every version of the state that is at hand.",
    "import": "Bring positions back from a file (also: import_positions).",
    "inventory": "What a wipe would lose, and what can be regenerated.",
    "kill-switch": "Halt a bot, release it, ask.",
    "mirror": "Look at the mirror in InfluxDB, bring it up, restore it.",
    "orders": "List positions and orders in PostgreSQL; what is unprotected; what differs.",
    "rebuild": "Rebuild positions from exchange fills (also: rebuild_positions).",
    "reinsert": "Turn positions into signals again (also: reinsert_positions_as_signals).",
    "replay": "Replay recorded fills into positions: no state, no exchange.",
    "restore": "Put a backup in place of the state.",
    "schema": "Print the JSON Schema of a file or document.",
    "seal": "Accept an edited state file as it is.",
    "show": "Print the state, or a former version, and where it was read from.",
    "signals": "The inbox of signals: list, process, retry.",
    "undo": "Put back the state before the newest repair.",
    "verify": "Compare the recorded positions with balances and fills.",
    "watch": "Watch the state as a bot saves it.",
}


_MODULES = {"import": "import_"}  # no module may have a keyword's name


class _Lazy(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = _MODULES.get(cmd_name, cmd_name.replace("-", "_"))
        module = importlib.import_module(f"statestore.cli.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1, cutoff=0.5)
            if near:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.command(cls=_Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="statestore")
def cli(**_: Any) -> None:
    """A trading bot's state in one file that no crash can tear, and tools to repair it.

    In an incident, one after the other: "kill-switch engage", "doctor", "rebuild --hours 72 --out
    plan.json", "diff --plan plan.json", "rebuild --apply plan.json", "verify", "kill-switch
    release". What was repaired wrongly is taken back by "undo".
    """


main = entry(cli)
