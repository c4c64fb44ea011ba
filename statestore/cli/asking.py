"""What a rebuild would find out, for commands that only ask. Nothing but the ledger is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from statestore.cli.sources import (
    Flags,
    open_source,
    progress,
    rebuild_options,
    set_up_logging,
)
from statestore.config import load_settings, places

if TYPE_CHECKING:
    from statestore.repair.plan import Plan


def plan_about(assets: Iterable[str], flags: Flags) -> Plan:
    """Return the plan a rebuild of these assets would propose; of all in scope where none is named.

    No state file is an empty state: the balances are the anchor.

    Args:
        assets: ``ETH`` or ``ETH-USD``, in any case.
        flags: of the window, source, accounting and talk options, and ``--state``.
    """
    set_up_logging(flags["verbose"])
    settings = load_settings()
    where = places(settings, state=flags["state"])
    asked = frozenset(asset.upper().replace("/", "-").partition("-")[0] for asset in assets)
    options = replace(rebuild_options(flags, settings), asked=asked)
    from statestore.disk.store import StateStore
    from statestore.repair.rebuild import propose

    with progress(flags["quiet"]) as on_page:
        opened = open_source(flags, settings, on_page)
        proposal = propose(
            StateStore(where.state, backup_dir=where.backup_dir),
            opened.source,
            options,
            portfolio=opened.portfolio,
            warnings=opened.warnings,
            missing_ok=True,
        )
    return proposal.plan


def note_warnings(plan: Plan) -> None:
    """Tell the warnings of the plan on stderr."""
    from statestore.cli.output import note

    for warning in plan.warnings:
        note(f"Warning: {warning.message}")
