"""``rebuild_positions`` and ``statestore rebuild``: one command, two names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from statestore.cli.exits import EPILOG, UNPROVEN, entry
from statestore.cli.options import (
    FILE,
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    place_of,
    refuse_target,
    require_room,
    state_of_plan,
    state_option,
    yes_option,
)
from statestore.cli.reporting import check_report, report_option, reported
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
from statestore.errors import Place, UsageError

if TYPE_CHECKING:
    from statestore.cli.sources import OnPage
    from statestore.disk.store import StateStore
    from statestore.repair.planfile import SavedPlan
    from statestore.repair.rebuild import Applied, Options, Proposal


@click.command(
    "rebuild_positions",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@window_options
@state_option
@click.option("--dry-run", is_flag=True, help="Show what would be written, write nothing.")
@click.option("--out", type=FILE, help="Keep the plan, with its proof, for --apply. A dry run.")
@click.option(
    "--apply",
    "plan_path",
    metavar="PLAN",
    type=FILE,
    help="Write exactly this plan, if nothing has changed since.",
)
@source_options
@click.option("--save-fills", type=FILE, help="Keep the fills that were read, for --fills later.")
@click.option(
    "--audit-out",
    type=FILE,
    help="Write one JSON line per fill, with running quantity, cost, entry price and gain.",
)
@report_option
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
@yes_option
@click.option("--exit-code", is_flag=True, help="Exit 3 when a dry run finds differences.")
@talk_options
def command(**flags: Any) -> int:
    """Rebuild the positions of a state file from exchange fills.

    Reads balances and fills (never sends an order: only reads leave the process), works out what is
    held and what it cost, and repairs the "positions" of the state file. Everything it cannot prove
    is left alone and named. --dry-run prints the plan as JSON and writes nothing.
    """
    set_up_logging(flags["verbose"])
    flags["dry_run"] |= flags["out"] is not None
    check_report(flags["report"])
    settings = load_settings()
    saved = _saved_plan(flags, settings)
    state = flags["state"]
    where = places(
        settings,
        state=state_of_plan(saved.state_path, state, settings) if saved else state,
        kill_switch=flags["kill_switch"],
        backup_dir=flags["backup_dir"],
    )
    options = saved.options if saved else rebuild_options(flags, settings)
    _refuse_targets(flags, where)
    from statestore.disk.store import StateStore
    from statestore.repair.rebuild import refuse_unproven

    store = StateStore(where.state, backup_dir=where.backup_dir)
    with progress(flags["quiet"]) as on_page:
        proposal = _propose(store, flags, settings, options, saved, on_page)
    _keep(flags, proposal)
    if not flags["quiet"]:
        from statestore.cli.output import show_plan

        show_plan(proposal.plan)
    with reported(flags, where, proposal) as tell:
        if flags["dry_run"]:
            if flags["out"] and not flags["quiet"]:
                from statestore.cli.output import note

                apply = f"--apply {flags['out']}"
                if flags["state"]:
                    apply += f" --state {flags['state']}"
                note(f"Kept the plan: 'rebuild_positions {apply}' writes just it.")
            _print(proposal, store.path, dry_run=True)
            plan = proposal.plan
            differs = bool(plan.writes or plan.unproven or plan.evidence.rejected)
            return UNPROVEN if flags["exit_code"] and differs else 0
        refuse_unproven(proposal.plan, skip_unproven=flags["skip_unproven"])
        tell(_apply(store, proposal, where, settings, flags, saved))
        return 0


main = entry(command)

# What a plan has settled already.
_WINDOW = ("hours", "since", "until", "max_hours")
_RULES = ("products", "method", "key_style", "reserve", "adopt", "assume_entry")
_SETTLED = ("out", *_WINDOW, *_RULES, "accept_partial", "strict_state")


def _saved_plan(flags: dict[str, Any], settings: Settings) -> SavedPlan | None:
    """Return the plan to apply, if one is named; it says which recordings are meant.

    Which state is written is for the operator to say (--state, or the settings), not for a file.
    """
    path = flags["plan_path"]
    if path is None:
        return None
    from statestore.repair.planfile import load_plan

    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if parameter.name in _SETTLED and given is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]} does not go with --apply: the plan has settled that; "
                "make another plan (--out)"
            )
    saved = load_plan(path, place_of(flags["state"] or settings.state))
    if not flags["fills"]:
        flags.update(fills=saved.recorded.get("fills"), balances=saved.recorded.get("balances"))
    return saved


def _propose(
    store: StateStore,
    flags: dict[str, Any],
    settings: Settings,
    options: Options,
    saved: SavedPlan | None,
    on_page: OnPage | None,
) -> Proposal:
    """Return what is to be written; with a plan, that plan or an error."""
    from statestore.repair.rebuild import propose

    if saved is None:
        opened = open_source(flags, settings, on_page)
        return propose(
            store,
            opened.source,
            options,
            portfolio=opened.portfolio,
            warnings=opened.warnings,
        )
    from statestore.repair.staleness import AsPlanned, require_same, require_state

    require_state(saved, store.load(missing_ok=False).meta)  # before anything is asked for
    opened = open_source(flags, settings, on_page)
    proposal = propose(
        store,
        AsPlanned(opened.source, saved),
        options,
        window=saved.window,
        portfolio=opened.portfolio,
        warnings=opened.warnings,
    )
    require_same(saved, proposal)
    return proposal


def _apply(
    store: StateStore,
    proposal: Proposal,
    where: Places,
    settings: Settings,
    flags: dict[str, Any],
    saved: SavedPlan | None,
) -> Applied:
    from statestore.disk.audit import AuditLog
    from statestore.disk.backups import Retention
    from statestore.repair.rebuild import apply

    count = len(proposal.plan.writes)
    if count and not flags["yes"] and sys.stdin.isatty():
        from statestore.cli.screen import confirm

        confirm(f"Write {count} position(s) to {store.path}?")
    applied = apply(
        store,
        proposal,
        store.kill_switch(where.kill_switch),
        AuditLog(where.audit_file),
        skip_unproven=flags["skip_unproven"],
        allow_live=flags["allow_live"],
        plan_sha256=saved.sha256 if saved else None,
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
                f"Former state: {applied.backup} and {store.backup_path}; "
                "'statestore undo' puts it back."
            )
    _print(proposal, store.path, dry_run=False, applied=applied)
    return applied


def _print(proposal: Proposal, path: Place, *, dry_run: bool, applied: Any = None) -> None:
    from statestore.cli.output import print_json
    from statestore.repair.told import document

    meta = applied or proposal.state.meta
    backup = None if applied is None or applied.backup is None else str(applied.backup)
    state = {"path": str(path), "revision": meta.revision, "sha256": meta.sha256, "backup": backup}
    print_json(document(proposal.plan, dry_run=dry_run, state=state, positions=proposal.positions))


def _keep(flags: dict[str, Any], proposal: Proposal) -> None:
    """Write the files that were asked for by name, dry run or not."""
    if not (flags["save_fills"] or flags["audit_out"] or flags["out"]):
        return
    from statestore.disk.codec import to_json
    from statestore.disk.durable import replace_file
    from statestore.repair.trail import fill_trail

    if flags["save_fills"]:
        rows = [to_json(row.payload) for batch in proposal.reading.batches for row in batch.rows]
        # Reads overlap; but two rows of one id that differ are a conflict, and stay one.
        listed = b",\n".join(dict.fromkeys(rows))
        replace_file(flags["save_fills"], b'{"fills": [\n' + listed + b'\n], "cursor": ""}\n')
    if flags["audit_out"]:
        lines = [to_json(line, indent=None) + b"\n" for line in fill_trail(proposal.plan)]
        replace_file(flags["audit_out"], b"".join(lines))
    if flags["out"]:
        from statestore.repair.planfile import plan_file

        recorded = {"fills": flags["fills"], "balances": flags["balances"]}
        replace_file(flags["out"], plan_file(proposal, recorded))


def _refuse_targets(flags: dict[str, Any], where: Places) -> None:
    """A file that is asked for by name must not replace one that matters, nor another of them."""
    read = [flags[option] for option in ("fills", "balances", "plan_path", "key_file")]
    precious = [*where.files, where.ledger, *read]
    for option in ("save_fills", "audit_out", "out", "report"):
        name = f"--{option.replace('_', '-')}"
        refuse_target(name, flags[option], precious)
        require_room(name, flags[option])  # before minutes of reading, not after
        precious.append(flags[option])
