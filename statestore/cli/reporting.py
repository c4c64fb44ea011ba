"""``--report``: the page that explains a rebuild; see `statestore.repair.outcome`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.options import FILE
from statestore.config import Places

if TYPE_CHECKING:
    from statestore.repair.rebuild import Applied, Proposal


def report_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--report", type=FILE, help="Write a page (HTML) that explains it all to everybody else."
    )(function)


def check_report(path: Path | None) -> None:
    """Find out before anything else what would keep the report from being written.

    Raises:
        UsageError: as `statestore.repair.outcome.check_report` has it.
    """
    if path is not None:
        from statestore.repair import outcome

        outcome.check_report(path)


def reported(
    flags: dict[str, Any], where: Places, proposal: Proposal
) -> AbstractContextManager[Callable[[Applied], None]]:
    """Write the report that ``--report`` asks for when the block ends, after the state."""
    if flags["report"] is None:
        return nullcontext(lambda _: None)
    from statestore.cli.output import note
    from statestore.repair import outcome

    return outcome.reported(
        flags["report"], where, proposal, skip_unproven=flags["skip_unproven"], mention=note
    )
