"""Where a command reads fills from, over which window, and how they are accounted: once for all."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from statestore.cli.options import FILE, AssetAmount, Hours, Instant, once
from statestore.config import places
from statestore.errors import UsageError
from statestore.texts import printable

if TYPE_CHECKING:
    from statestore.config import Settings
    from statestore.fills.sources.slices import Progress
    from statestore.repair.opening import Opened
    from statestore.repair.rebuild import Options

Flags = dict[str, Any]
OnPage = Callable[["Progress"], None]
Command = Callable[..., Any]


def window_options(command: Command) -> Command:
    """``--hours --since --until --max-hours``."""
    return _all(
        command,
        click.option("--hours", type=Hours(), default="48", help="Lookback window, in hours."),
        click.option("--since", type=Instant(), help="Start of the window, instead of --hours."),
        click.option(
            "--until",
            type=Instant(),
            help="End of the window, exclusive; the past is for previews.  [default: now]",
        ),
        click.option(
            "--max-hours", type=Hours(), default="17520", help="Search no further back than this."
        ),
    )


def source_options(command: Command) -> Command:
    """Where to read: ``--source --fills --balances --key-file --base-url`` ..., and how."""
    return _all(
        command,
        click.option(
            "--source",
            metavar="NAME",
            help="Where to read: coinbase, ccxt:kraken or one that was added.  [default: coinbase]",
        ),
        click.option(
            "--fills", type=FILE, help="Read recorded fills, not the exchange: JSON or CSV."
        ),
        click.option("--balances", type=FILE, help="Recorded balances, for --fills."),
        click.option("--key-file", type=FILE, help="API key file.  [default: $COINBASE_KEY_FILE]"),
        click.option(
            "--base-url", metavar="HOST[:PORT]", help="Exchange.  [default: the source's own]"
        ),
        click.option(
            "--rate",
            type=click.IntRange(1, 30),
            default=10,
            help="Requests a second at most; other programs of this key share the exchange's 30.",
        ),
        click.option(
            "--require-view-only", is_flag=True, help="Refuse a key that can trade or transfer."
        ),
        click.option(
            "--no-ledger", is_flag=True, help="Read all from the exchange; keep and use no ledger."
        ),
    )


def accounting_options(command: Command) -> Command:
    """``--product --method --reserve --assume-entry``."""
    return _all(
        command,
        click.option(
            "--product",
            "products",
            multiple=True,
            help="Only the asset of this product. Repeatable.",
        ),
        click.option(
            "--method",
            type=click.Choice(["average", "fifo", "lifo"]),
            default="average",
            help="Which units a sell takes.",
        ),
        click.option(
            "--reserve",
            type=AssetAmount(),
            multiple=True,
            help="Units that are not the bot's. Repeatable.",
        ),
        click.option(
            "--assume-entry",
            type=AssetAmount(),
            multiple=True,
            help="Cost per unit where no fill tells. Repeatable.",
        ),
    )


def talk_options(command: Command) -> Command:
    """``--verbose --quiet``; see `set_up_logging` and `progress`."""
    return _all(
        command,
        click.option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say more; twice for everything.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    )


def _all(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def rebuild_options(flags: Flags, settings: Settings) -> Options:
    """Return what the flags ask of a rebuild; options that a command does not have are off."""
    from statestore.model import Method
    from statestore.repair.rebuild import Options

    if flags["balances"] and not flags["fills"]:
        raise UsageError("--balances goes with --fills; live balances are read from the exchange")
    return Options(
        hours=flags["hours"],
        since=flags["since"],
        until=flags["until"],
        max_hours=flags["max_hours"],
        method=Method(flags["method"]),
        products=frozenset(product.upper() for product in flags["products"]),
        key_style=flags.get("key_style", "product"),
        accept_partial=flags.get("accept_partial", False),
        strict_state=flags.get("strict_state", False),
        reserve={**settings.reserve, **once(flags["reserve"], "--reserve")},
        adopt=frozenset(asset.upper() for asset in flags.get("adopt", ())),
        assume_entry=once(flags["assume_entry"], "--assume-entry"),
    )


def open_source(flags: Flags, settings: Settings, on_page: OnPage | None = None) -> Opened:
    """Return the source that the flags and settings name; see `statestore.repair.opening`.

    A dry run does not write to the ledger.
    """
    from statestore.repair import opening

    origin = opening.Origin(
        source=flags["source"] or "",
        fills=flags["fills"],
        balances=flags["balances"],
        base_url=flags["base_url"],
        key_file=flags["key_file"],
        products=frozenset(flags["products"]),
        rate=flags["rate"],
        require_view_only=flags["require_view_only"],
        remember=not (flags["no_ledger"] or flags.get("plan_path")),
        keep=not flags.get("dry_run", False),
    )
    where = places(settings, state=flags.get("state"), kill_switch=flags.get("kill_switch"))
    return opening.open_source(origin, where, settings, on_page=on_page)


@contextmanager
def progress(quiet: bool) -> Iterator[OnPage | None]:
    """Show on a terminal how far the reading is; give what `open_source` tells it by."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from statestore.cli.screen import console

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[read]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        reading = bar.add_task("Reading the exchange", total=None, read="")

        def show(progress: Progress) -> None:
            known = progress.fraction is not None
            bar.update(
                reading,
                description="Reading fills",
                total=1.0 if known else None,
                completed=progress.fraction if known else 0.0,
                read=f"{progress.rows} in {progress.pages} page(s)",
            )

        yield show


class _WithFields(logging.Formatter):
    """The constant message, then its fields."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in self._own}
        return printable(
            " ".join([super().format(record), *(f"{n}={v!r}" for n, v in fields.items())])
        )


def set_up_logging(verbose: int, form: Literal["text", "json"] = "text") -> None:
    """Warnings of a rebuild are part of its result; the log is for whoever asks for more."""
    handler = logging.StreamHandler()
    if form == "json":
        from statestore.runtime.logs import JsonFormatter

        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(_WithFields("%(levelname)s %(name)s: %(message)s"))
    for name in ("statestore", "stamina"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel((logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)])
        logger.propagate = False
