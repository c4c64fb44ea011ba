"""``statestore audit`` and ``statestore audit verify``."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.cli.exits import EPILOG
from statestore.cli.options import state_option
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.disk.audit import AuditLog
from statestore.urls import StateUrl


@click.group("audit", epilog=EPILOG, invoke_without_command=True)
@state_option
@click.pass_context
def command(ctx: click.Context, state: Path | StateUrl | None) -> None:
    """Print what repairs have changed, oldest first."""
    ctx.obj = AuditLog(places(load_settings(), state=state).audit_file)
    if ctx.invoked_subcommand is None:
        print_json({"audit": str(ctx.obj.path), "entries": list(ctx.obj.entries())})


@command.command(epilog=EPILOG)
@state_option
@click.pass_obj
def verify(log: AuditLog, state: Path | StateUrl | None) -> None:
    """Check that each line carries the hash of the one before it."""
    if state is not None:
        log = AuditLog(places(load_settings(), state=state).audit_file)
    lines = log.verify()
    note(f"{log.path}: {lines} line(s), chain whole")
    print_json({"audit": str(log.path), "lines": lines, "whole": True})
