"""``rebuild_positions`` and ``statestore rebuild``: one command, two names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN, entry
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    state_option,
)
from statestore.cli.sources import (
    accounting_options,
    open_source,
    progress,
    rebuild_options,
    set_up_logging,
    source_options,
    talk_options,
    window_options,
)
from statestore.config import Places, Settings, load_settings, places
from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.repair.rebuild import Proposal


@click.command(
    "rebuild_positions",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@window_options
@state_option
@click.option("--dry-run", is_flag=True, help="Show what would be written, write nothing.")
@source_options
@click.option("--save-fills", type=FILE, help="Keep the fills that were read, for --fills later.")
@click.option("--audit-out", type=FILE, help="Write one JSON line per fill, with running quantity.")
@accounting_options
@click.option(
    "--key",
    "key_style",
    type=click.Choice(["product", "base"]),
    default="product",
    help="Key of a new entry: ETH-USD or ETH.",
)
@click.option(
    "--adopt", multiple=True, metavar="ASSET", help="Take a held asset into the state. Repeatable."
)
@click.option("--accept-partial", is_flag=True, help="Write quantities whose cost is not proven.")
@click.option("--skip-unproven", is_flag=True, help="Write the proven positions, leave the others.")
@click.option("--strict-state", is_flag=True, help="Refuse a record the fills cannot explain.")
@kill_switch_option
@backup_dir_option
@allow_live_option
@click.option("--yes", is_flag=True, help="Do not ask before writing.")
@click.option("--exit-code", is_flag=True, help="Exit 3 when a dry run finds differences.")
@talk_options
def command(**flags: Any) -> int:
    """Rebuild the positions of a state file from exchange fills.

    Reads balances and fills (never sends an order: only GET leaves the process), works out what is
    held and what it cost, and repairs the "positions" of the state file. Everything it cannot prove
    is left alone and named. --dry-run prints the plan as JSON and writes nothing.
    """
    set_up_logging(flags["verbose"])
    settings = load_settings()
    where = places(
        settings,
        state=flags["state"],
        kill_switch=flags["kill_switch"],
        backup_dir=flags["backup_dir"],
    )
    options = rebuild_options(flags, settings)
    _refuse_targets(flags, where)
    from statestore.disk.store import StateStore
    from statestore.repair.rebuild import propose, refuse_unproven

    store = StateStore(where.state, backup_dir=where.backup_dir)
    with progress(flags["quiet"]) as on_page:
        opened = open_source(flags, settings, on_page)
        proposal = propose(
            store,
            opened.source,
            options,
            portfolio=opened.portfolio,
            warnings=opened.warnings,
        )
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
