"""Values and options that several commands share: one name, one meaning, one help text each.

A value that is not understood ends the command before anything is read (exit 2). Where fills are
read from is in `sources`; an option that one command has is in its own module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from statestore.amounts import parse_amount
from statestore.config import Settings
from statestore.errors import Place, UsageError
from statestore.times import parse_instant
from statestore.urls import StateUrl, state_at

# Whether a file can be read is said by whoever reads it, with that error's own exit code.
FILE = click.Path(path_type=Path, readable=False)

_LONGEST_HOURS = 1_000_000  # 114 years; no exchange is older


class StatePlace(click.ParamType[Path | StateUrl]):
    """A state file, or the URL of a state in a database."""

    name = "FILE|URL"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> Path | StateUrl:
        return state_at(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:
        return FILE.shell_complete(ctx, param, incomplete)


class Version(click.ParamType[Place]):
    """A file, or the address of a version in a database."""

    name = "FILE"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> Place:
        return Path(value) if isinstance(value, str) and "://" not in value else value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:
        return FILE.shell_complete(ctx, param, incomplete)


class Instant(click.ParamType[int]):
    """An RFC 3339 time, to the nanosecond."""

    name = "RFC3339"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return value if isinstance(value, int) else parse_instant(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Hours(click.ParamType[Decimal]):
    """A positive number of hours."""

    name = "HOURS"

    def convert(self, value: Any, param: Any, ctx: Any) -> Decimal:
        try:
            hours = value if isinstance(value, Decimal) else parse_amount(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 0 < hours <= _LONGEST_HOURS:
            self.fail(
                f"{value} is not a number of hours above 0 and up to {_LONGEST_HOURS}", param, ctx
            )
        return hours


class Seconds(click.ParamType[Decimal]):
    """A number of seconds, at least ``least``."""

    name = "SECONDS"

    def __init__(self, least: str = "0") -> None:
        self.least = Decimal(least)

    def convert(self, value: Any, param: Any, ctx: Any) -> Decimal:
        try:
            seconds = value if isinstance(value, Decimal) else parse_amount(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self.least <= seconds <= 1_000_000_000:
            self.fail(f"{value} is not a number of seconds from {self.least}", param, ctx)
        return seconds


class AssetAmount(click.ParamType[tuple[str, Decimal]]):
    """``BTC=0.5``."""

    name = "ASSET=AMOUNT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Decimal]:
        if isinstance(value, tuple):
            return value
        asset, equals, amount = value.partition("=")
        try:
            if not (asset and equals):
                raise ValueError(f"{value!r} is not {self.name}, as BTC=0.5")
            number = parse_amount(amount)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if number < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return asset.upper(), number


def place_of(state: Path | StateUrl | None) -> Place | None:
    """Return where a state is, without what must not be printed."""
    return str(state) if isinstance(state, StateUrl) else state


def state_of_plan(
    planned: Place, state: Path | StateUrl | None, settings: Settings
) -> Path | StateUrl:
    """Return the state a plan is for: the one that is configured, if that is the same.

    A plan holds no credentials, and those of the URL that is configured are needed.
    """
    for known in (state, settings.state):
        if isinstance(known, StateUrl) and str(known) == planned:
            return known
    return planned if isinstance(planned, Path) else StateUrl(planned)


def refuse_target(option: str, target: Path | None, precious: Iterable[Path | None]) -> None:
    """Raise `UsageError` where a file that is asked for by name would replace one that matters."""
    known = {os.path.realpath(path) for path in precious if path is not None}
    if target is not None and os.path.realpath(target) in known:
        raise UsageError(f"{option} {target} would overwrite it; name another file")


def require_room(option: str, target: Path | None) -> None:
    """Raise `UsageError` where a file cannot be made: something else is there, or no folder is."""
    if target is not None and target.is_dir():
        raise UsageError(f"{option} {target} is a folder; name a file in it")
    if target is not None and target.exists() and not target.is_file():
        raise UsageError(f"{option} {target} is no file, and would be replaced by one; name a file")
    if target is not None and not target.parent.is_dir():
        raise UsageError(
            f"{option} {target}: there is no folder {target.parent}; make it, or mount its disk"
        )


def once(pairs: Sequence[tuple[str, Decimal]], option: str) -> dict[str, Decimal]:
    """Return the pairs as a mapping; an asset named twice is a mistake worth stopping for."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise click.BadParameter("an asset is named twice", param_hint=option)
    return result


def state_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        type=StatePlace(),
        help="State file, or postgresql://...  [default: $STATE_FILE, else data/.state.json]",
    )(function)


def kill_switch_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--kill-switch", type=FILE, help="Kill switch.  [default: KILL_SWITCH beside the state]"
    )(function)


def backup_dir_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--backup-dir", type=FILE, help="Backups.  [default: state_backups beside the state]"
    )(function)


def metrics_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--metrics-textfile",
        type=FILE,
        help="Write figures for Prometheus (node_exporter), NAME.prom; see docs/metrics.md.",
    )(function)


def log_format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="Of the log on stderr: json is an object on each line.",
    )(function)


def allow_live_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--allow-live", is_flag=True, help="Write although the bot may be trading. Risky."
    )(function)


def dry_run_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--dry-run", is_flag=True, help="Show what would change, write nothing.")(
        function
    )


def replay_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--method --since --until`` of what replays recorded fills, and no state."""
    for option in (
        click.option(
            "--until", type=Instant(), help="Take nothing that was filled at or after this."
        ),
        click.option("--since", type=Instant(), help="Take nothing that was filled before this."),
        click.option(
            "--method",
            type=click.Choice(["average", "fifo", "lifo"]),
            default="average",
            show_default=True,
            help="Which units a sell takes.",
        ),
    ):
        function = option(function)
    return function


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--yes", is_flag=True, help="Do not ask before writing; without a terminal nobody is asked."
    )(function)
