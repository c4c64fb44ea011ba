"""``rebuild_positions`` and ``statestore rebuild``: one command, two names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN, entry
from statestore.cli.options import (
    FILE,
    AssetAmount,
    Hours,
    Instant,
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    once,
    state_option,
)
from statestore.config import Places, Settings, load_settings, places
from statestore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statestore.fills.sources import FillSource
    from statestore.repair.plan import Warn
    from statestore.repair.rebuild import Options, Proposal


@click.command(
    "rebuild_positions",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--hours", type=Hours(), default="48", help="Lookback window, in hours.")
@click.option("--since", type=Instant(), help="Start of the window, instead of --hours.")
@click.option(
    "--until",
    type=Instant(),
    help="End of the window, exclusive; the past is for previews.  [default: now]",
)
@click.option(
    "--max-hours", type=Hours(), default="17520", help="Search no further back than this."
)
@state_option
@click.option("--dry-run", is_flag=True, help="Show what would be written, write nothing.")
@click.option("--fills", type=FILE, help="Read recorded fills, not the exchange: JSON or CSV.")
@click.option("--balances", type=FILE, help="Recorded balances, for --fills.")
@click.option("--save-fills", type=FILE, help="Keep the fills that were read, for --fills later.")
@click.option("--audit-out", type=FILE, help="Write one JSON line per fill, with running quantity.")
@click.option(
    "--product", "products", multiple=True, help="Only the asset of this product. Repeatable."
)
@click.option(
    "--method",
    type=click.Choice(["average", "fifo", "lifo"]),
    default="average",
    help="Which units a sell takes.",
)
@click.option(
    "--key",
    "key_style",
    type=click.Choice(["product", "base"]),
    default="product",
    help="Key of a new entry: ETH-USD or ETH.",
)
@click.option(
    "--reserve", type=AssetAmount(), multiple=True, help="Units that are not the bot's. Repeatable."
)
@click.option(
    "--adopt", multiple=True, metavar="ASSET", help="Take a held asset into the state. Repeatable."
)
@click.option(
    "--assume-entry",
    type=AssetAmount(),
    multiple=True,
    help="Cost per unit where no fill tells. Repeatable.",
)
@click.option("--accept-partial", is_flag=True, help="Write quantities whose cost is not proven.")
@click.option("--skip-unproven", is_flag=True, help="Write the proven positions, leave the others.")
@click.option("--strict-state", is_flag=True, help="Refuse a record the fills cannot explain.")
@click.option("--key-file", type=FILE, help="API key file.  [default: $COINBASE_KEY_FILE]")
@click.option("--base-url", metavar="HOST[:PORT]", help="Exchange.  [default: api.coinbase.com]")
@click.option("--require-view-only", is_flag=True, help="Refuse a key that can trade or transfer.")
@kill_switch_option
@backup_dir_option
@allow_live_option
@click.option("--yes", is_flag=True, help="Do not ask before writing.")
@click.option("--exit-code", is_flag=True, help="Exit 3 when a dry run finds differences.")
@click.option(
    "-v", "--verbose", count=True, show_default=False, help="Say more; twice for everything."
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def command(**flags: Any) -> int:
    """Rebuild the positions of a state file from exchange fills.

    Reads balances and fills (never sends an order: only GET leaves the process), works out what is
    held and what it cost, and repairs the "positions" of the state file. Everything it cannot prove
    is left alone and named. --dry-run prints the plan as JSON and writes nothing.
    """
    _set_up_logging(flags["verbose"])
    settings = load_settings()
    where = places(
        settings,
        state=flags["state"],
        kill_switch=flags["kill_switch"],
        backup_dir=flags["backup_dir"],
    )
    options = _options(flags, settings)
    _refuse_targets(flags, where)
    from statestore.disk.store import StateStore
    from statestore.repair.rebuild import propose, refuse_unproven

    store = StateStore(where.state, backup_dir=where.backup_dir)
    with _progress(flags["quiet"]) as on_page:
        source, portfolio, warnings = _source(flags, settings, on_page)
        proposal = propose(store, source, options, portfolio=portfolio, warnings=warnings)
    _keep(flags, proposal)
    if not flags["quiet"]:
        from statestore.cli.output import show_plan

        show_plan(proposal.plan)
    if flags["dry_run"]:
        _print(proposal, store.path, dry_run=True)
        plan = proposal.plan
        differs = bool(plan.writes or plan.unproven or plan.evidence.rejected)
        return UNPROVEN if flags["exit_code"] and differs else 0
    refuse_unproven(proposal.plan, skip_unproven=flags["skip_unproven"])
    return _apply(store, proposal, where, settings, flags)


main = entry(command)


def _options(flags: dict[str, Any], settings: Settings) -> Options:
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
        key_style=flags["key_style"],
        accept_partial=flags["accept_partial"],
        strict_state=flags["strict_state"],
        reserve={**settings.reserve, **once(flags["reserve"], "--reserve")},
        adopt=frozenset(asset.upper() for asset in flags["adopt"]),
        assume_entry=once(flags["assume_entry"], "--assume-entry"),
    )


def _source(
    flags: dict[str, Any], settings: Settings, on_page: Callable[[int, int], None] | None
) -> tuple[FillSource, str | None, list[Warn]]:
    if flags["fills"]:
        from statestore.fills.sources.recorded import RecordedFills

        return RecordedFills(flags["fills"], flags["balances"]), None, []
    from statestore.fills.sources.coinbase import CoinbaseSource, read_credentials
    from statestore.repair.rebuild import check_permissions

    key_file = flags["key_file"] or settings.key_file
    credentials = read_credentials(key_file, settings.api_key, settings.api_secret)
    source = CoinbaseSource(
        credentials, base_url=flags["base_url"] or settings.base_url, on_page=on_page
    )
    allowed = source.permissions()
    warnings = check_permissions(allowed, require_view_only=flags["require_view_only"])
    return source, allowed.portfolio_id, warnings


def _apply(
    store: Any, proposal: Proposal, where: Places, settings: Settings, flags: dict[str, Any]
) -> int:
    from statestore.disk.audit import AuditLog
    from statestore.disk.backups import Retention
    from statestore.disk.killswitch import KillSwitch
    from statestore.repair.rebuild import apply

    count = len(proposal.plan.writes)
    if count and not flags["yes"] and sys.stdin.isatty():
        click.confirm(f"Write {count} position(s) to {store.path}?", abort=True, err=True)
    applied = apply(
        store,
        proposal,
        KillSwitch(where.kill_switch),
        AuditLog(where.audit_file),
        skip_unproven=flags["skip_unproven"],
        allow_live=flags["allow_live"],
    )
    if applied.backup is not None:
        store.backups.prune(Retention(**settings.backups))
    if not flags["quiet"]:
        from statestore.cli.output import note

        if applied.backup is None:
            note("Nothing to write: the positions are as the fills say.")
            if proposal.state.meta.recovered_from is not None:
                note(f"{store.path} is still damaged: 'statestore restore' replaces it.")
        else:
            note(
                f"Wrote revision {applied.revision} of {store.path}. "
                f"Former state: {applied.backup} and {store.backup_path}."
            )
    _print(proposal, store.path, dry_run=False, applied=applied)
    return 0


def _print(proposal: Proposal, path: Path, *, dry_run: bool, applied: Any = None) -> None:
    from statestore.cli.output import print_json
    from statestore.repair.plan import document

    meta = applied or proposal.state.meta
    backup = None if applied is None or applied.backup is None else str(applied.backup)
    state = {"path": str(path), "revision": meta.revision, "sha256": meta.sha256, "backup": backup}
    print_json(document(proposal.plan, dry_run=dry_run, state=state, positions=proposal.positions))


def _keep(flags: dict[str, Any], proposal: Proposal) -> None:
    """Write the files that were asked for by name, dry run or not."""
    if not (flags["save_fills"] or flags["audit_out"]):
        return
    from statestore.disk.codec import to_json
    from statestore.disk.durable import replace_file
    from statestore.repair.rebuild import fill_trail

    if flags["save_fills"]:
        rows = [to_json(row.payload) for batch in proposal.batches for row in batch.rows]
        # Reads overlap; but two rows of one id that differ are a conflict, and stay one.
        listed = b",\n".join(dict.fromkeys(rows))
        replace_file(flags["save_fills"], b'{"fills": [\n' + listed + b'\n], "cursor": ""}\n')
    if flags["audit_out"]:
        lines = [to_json(line, indent=None) + b"\n" for line in fill_trail(proposal.plan)]
        replace_file(flags["audit_out"], b"".join(lines))


def _refuse_targets(flags: dict[str, Any], where: Places) -> None:
    """A file that is asked for by name must not replace one that matters."""
    state = where.state
    precious = [state, where.kill_switch, where.audit_file, flags["fills"], flags["balances"]]
    precious += [state.with_name(state.name + suffix) for suffix in (".bak", ".lock", ".lease")]
    known = {path.resolve() for path in precious if path is not None}
    for option in ("save_fills", "audit_out"):
        target = flags[option]
        if target is not None and target.resolve() in known:
            name = option.replace("_", "-")
            raise UsageError(f"--{name} {target} would overwrite it; name another file")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("Reading the exchange") as status:
        yield lambda pages, rows: status.update(f"Reading fills: {rows} in {pages} page(s)")


class _WithFields(logging.Formatter):
    """The constant message, then its fields."""

    _own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in self._own}
        return " ".join([super().format(record), *(f"{n}={v!r}" for n, v in fields.items())])


def _set_up_logging(verbose: int) -> None:
    """Warnings of a rebuild are part of its result; the log is for whoever asks for more."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithFields("%(levelname)s %(name)s: %(message)s"))
    for name in ("statestore", "stamina"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel((logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)])
        logger.propagate = False
