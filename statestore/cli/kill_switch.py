"""``statestore kill-switch engage | release | status``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import kill_switch_option, state_option
from statestore.cli.output import note, print_json
from statestore.config import load_settings, operator, places
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.urls import StateUrl


@click.group("kill-switch", epilog=EPILOG)
def command() -> None:
    """Halt a bot, release it, ask.

    The switch is a file: present, or impossible to check, means halted. Where the state is in a
    database there is a row beside it, which halts the bots of all machines. Nothing but
    "statestore kill-switch release" ever removes them.
    """


def _switch(state: Path | StateUrl | None, kill_switch: Path | None) -> KillSwitch:
    where = places(load_settings(), state=state, kill_switch=kill_switch)
    return StateStore(where.state).kill_switch(where.kill_switch)


def _warn_of_a_slip(state: Path | StateUrl) -> None:
    """A switch beside a mistyped state halts nobody, and whoever engages it believes otherwise."""
    if isinstance(state, Path) and not os.path.lexists(state):
        note(f"Warning: there is no {state}; a bot may be looking at another switch: check --state")


def _report(switch: KillSwitch) -> None:
    print_json({"kill_switch": str(switch), "status": switch.status(), **(switch.details() or {})})


@command.command(epilog=EPILOG)
@state_option
@kill_switch_option
@click.option("--reason", default="", help="Why, for whoever finds it.")
def engage(state: Path | StateUrl | None, kill_switch: Path | None, reason: str) -> None:
    """Halt: no new trades, no writes by a bot that respects it."""
    switch = _switch(state, kill_switch)
    switch.engage(reason=reason, by=operator())
    note(f"Engaged: {switch}")
    if state is not None and kill_switch is None:
        _warn_of_a_slip(state)
    _report(switch)


@command.command(epilog=EPILOG)
@state_option
@kill_switch_option
def release(state: Path | StateUrl | None, kill_switch: Path | None) -> None:
    """Let the bot trade again."""
    switch = _switch(state, kill_switch)
    was_there = switch.release()
    note(f"{'Released' if was_there else 'Was not engaged'}: {switch}")
    _report(switch)


@command.command(epilog=EPILOG)
@state_option
@kill_switch_option
def status(state: Path | StateUrl | None, kill_switch: Path | None) -> None:
    """Say whether it is engaged, and by whom."""
    _report(_switch(state, kill_switch))
