"""The rebuild, from the exchange's fills to the repaired state: the one place that knows the order.

    sources -> normalise -> replay -> coverage -> plan -> store

`propose` only reads, and gives a plan; `apply` writes exactly that plan, once, at the very end. In
between lies whatever time the operator needs: nothing is locked meanwhile, and a state that was
saved by somebody else in between refuses the plan (`RevisionConflict`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statestore import __version__
from statestore.config import operator
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import State, StateMeta, StateStore
from statestore.errors import (
    AuditBroken,
    CredentialsError,
    KillSwitchNotEngaged,
    Place,
    RebuildRefused,
    RevisionConflict,
    StateCorrupt,
    StateError,
)
from statestore.fills.sources import FillSource, RememberingSource
from statestore.model import CASH, KeyPermissions, Product
from statestore.repair.notes import notes
from statestore.repair.plan import Evidence, Plan, Rules, Warn, plan_change
from statestore.repair.reading import Reading, Window, window_of
from statestore.repair.search import Options as Options
from statestore.repair.search import Search, records_of, searched
from statestore.times import format_instant


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan, and what it was made from.

    Attributes:
        state: as it was read; `apply` writes onto this one only.
        positions: its positions section.
        reading: balances and fills, as far back as was searched.
        products: what the exchange said of the products in question.
    """

    plan: Plan
    state: State
    positions: Mapping[str, Any]
    reading: Reading
    products: Mapping[str, Product]
    options: Options


def propose(
    store: StateStore,
    source: FillSource,
    options: Options,
    *,
    window: Window | None = None,
    portfolio: str | None = None,
    warnings: Sequence[Warn] = (),
    missing_ok: bool = False,
) -> Proposal:
    """Read the state, balances and fills, and return what a rebuild would write. Writes nothing.

    What a remembering source leaves in doubt is read once more without the memory.

    Args:
        window: of an earlier proposal, to make it again; None for what the options ask for.
        portfolio: the exchange portfolio the key is bound to, for the report.
        warnings: what is known to be amiss; taken up at the end, so the source may add to it.
        missing_ok: no state file is an empty state.

    Raises:
        StateError: the state is missing, corrupt or not of the expected shape.
        SourceError: fills or balances could not be read whole.
        UsageError: options that cannot be.
    """
    window = window or window_of(options.since, options.until, options.hours)
    state = store.load(numbers="decimal", missing_ok=missing_ok)
    records = records_of(store.path, state)
    search = searched(source, options, records, window)
    afresh = _afresh(source, search)
    again = () if afresh is None else (_read_again(search),)
    if afresh is not None:
        search = searched(afresh, options, records, window)
    scope = search.scope
    rules = Rules(options.accept_partial, options.key_style)
    changes = tuple(
        plan_change(
            asset,
            search.findings[asset],
            records.entries,
            search.reading.fills,
            search.products,
            rules,
            search.reading.window.read_at,
        )
        for asset in scope
    )
    found = notes(state.meta, records.entries, search.reading, changes)
    plan = Plan(
        changes=changes,
        window=search.reading.window,
        evidence=_evidence(source, search.reading, portfolio),
        method=options.method,
        warnings=(*warnings, *again, *found),
        unmanaged=_unmanaged(search.reading, scope, options),
    )
    return Proposal(plan, state, records.entries.by_key, search.reading, search.products, options)


def check_permissions(allowed: KeyPermissions, *, require_view_only: bool) -> list[Warn]:
    """Say what the key may do beyond reading: a rebuild needs View, and nothing else.

    Raises:
        CredentialsError: the key cannot read; or, with ``require_view_only``, it can do more.
    """
    if not allowed.can_view:
        raise CredentialsError(
            "the API key may not view its portfolio; create one with the permission View"
        )
    more = " and ".join(
        name
        for name, can in (("trade", allowed.can_trade), ("transfer", allowed.can_transfer))
        if can
    )
    if not more:
        return []
    message = f"the API key can also {more}; a rebuild needs the permission View only"
    if require_view_only:
        raise CredentialsError(f"{message} (--require-view-only)")
    return [Warn("key_can_do_more", message)]


def refuse_unproven(plan: Plan, *, skip_unproven: bool) -> None:
    """Raise `RebuildRefused` when the plan holds anything that must not be written."""
    rejected = plan.evidence.rejected
    if rejected:
        first = rejected[0]
        raise RebuildRefused(
            f"{len(rejected)} fill row(s) cannot be read for certain, so nothing was written; "
            f"first: {first.origin} (entry_id {first.entry_id or 'missing'}): {first.reason}; "
            "correct the row or report it to the exchange, then run again"
        )
    if plan.unproven and not skip_unproven:
        listed = "; ".join(
            f"{change.asset} {change.finding.status}: {change.finding.reason}"
            for change in plan.unproven
        )
        raise RebuildRefused(
            f"{len(plan.unproven)} position(s) not proven, so nothing was written: {listed}. "
            "Read more history (--max-hours), give what is known (--assume-entry, --reserve, "
            "--balances), accept it (--accept-partial), or write only the proven (--skip-unproven)"
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What was written.

    Attributes:
        backup: verified copy of the former state, None when there was nothing to write.
        entry: the line of the audit file, None when there was nothing to write.
    """

    revision: int
    sha256: str
    backup: Path | None
    entry: Mapping[str, Any] | None = None


def apply(
    store: StateStore,
    proposal: Proposal,
    kill_switch: KillSwitch,
    audit: AuditLog,
    *,
    skip_unproven: bool = False,
    allow_live: bool = False,
    plan_sha256: str | None = None,
) -> Applied:
    """Write exactly the proposal: backup, save, read back, audit. All of it or nothing.

    Args:
        plan_sha256: of the plan file it was kept in, for the audit line.

    Raises:
        RebuildRefused: something in scope is not proven.
        KillSwitchNotEngaged: the bot may trade; checked again right before the rename.
        RevisionConflict: the state was saved by somebody else since it was read.
        AuditBroken: the state is repaired, but its audit line could not be written.
    """
    refuse_unproven(proposal.plan, skip_unproven=skip_unproven)
    meta = proposal.state.meta
    if not proposal.plan.writes:
        return Applied(meta.revision, meta.sha256, None)
    check = halted(kill_switch, allow_live=allow_live)
    check()
    _require_unchanged(store, meta)
    backup = store.backup(reason="rebuild")
    repaired = _repaired(proposal)
    saved = store.save(repaired, reason="rebuild", before_commit=check)
    _read_back(store, repaired, saved.revision)
    entry = record_repair(
        audit,
        "rebuild",
        saved,
        {
            "revision_before": meta.revision,
            "sha256_before": meta.sha256,
            "backup": str(backup.absolute()),  # the record is read from other folders
            **({} if plan_sha256 is None else {"plan_sha256": plan_sha256}),
            **_audited(proposal.plan),
        },
    )
    return Applied(saved.revision, saved.sha256, backup, entry)


def halted(kill_switch: KillSwitch, *, allow_live: bool) -> Callable[[], None]:
    """Return the check that every write of a repair has to pass, twice: before, and at the rename.

    A switch that cannot be looked at halts a bot, but it is no proof that the bot is halted.
    """

    def check() -> None:
        status = kill_switch.status()
        if not allow_live and status != "engaged":
            found = f"is {status}"
            if status == "unknown":
                found = "cannot be looked at (`statestore doctor` says why)"
            raise KillSwitchNotEngaged(
                f"the kill switch {kill_switch} {found}, so a bot may be trading on this "
                "state; engage it ('statestore kill-switch engage', or touch the file) and run "
                "this again, or pass --allow-live if no bot runs"
            )

    return check


def record_repair(
    audit: AuditLog, action: str, saved: StateMeta, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Append the line that explains a save that has just been made, and return it; see `record`."""
    return record(audit, action, saved.state_path, facts, saved.revision, saved.sha256)


def record(
    audit: AuditLog,
    action: str,
    state: Place,
    facts: Mapping[str, Any],
    revision: int | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Append the line that explains a write that has just been made, and return it.

    Args:
        revision, sha256: of what was written; None where it has none, as tables.

    Raises:
        AuditBroken: it could not be appended; the message says what was written all the same.
    """
    line = {
        "action": action,
        "state": str(state),
        "by": operator(),
        "version": __version__,
        "revision": revision,
        "sha256": sha256,
        **facts,
    }
    try:
        return audit.append(line)
    except StateError as error:
        written = "" if revision is None else f" as revision {revision}"
        raise AuditBroken(
            audit.path,
            f"{state} was written{written} ({action}), but the audit line is missing: {error}",
        ) from error


def _require_unchanged(store: StateStore, meta: StateMeta) -> None:
    """Before a backup is made for nothing; the save compares again, under the lock."""
    found = store.load().meta
    if (found.revision, found.sha256) != (meta.revision, meta.sha256):
        raise RevisionConflict(store.path, meta.revision, found.revision)


def _repaired(proposal: Proposal) -> State:
    sections = dict(proposal.state)
    sections["positions"] = proposal.plan.positions_after(proposal.positions)
    return State(sections, proposal.state.meta)


def _read_back(store: StateStore, repaired: Mapping[str, Any], revision: int) -> None:
    found = store.load(numbers="decimal")
    if found.meta.revision == revision and found["positions"] != repaired["positions"]:
        raise StateCorrupt(
            store.path,
            f"{store.path} does not read back as it was written at revision {revision}; "
            "restore the backup ('statestore restore') and suspect the disk",
        )


def _audited(plan: Plan) -> dict[str, Any]:
    return {
        "source": plan.evidence.source,
        "portfolio": plan.evidence.portfolio,
        "window": [format_instant(plan.window.searched_since), format_instant(plan.window.end)],
        "fills": plan.evidence.fills,
        "changes": [
            {
                "key": change.key,
                "action": change.action.value,
                "status": change.finding.status.value,
                "reason": change.finding.reason,
                "before": change.before,
                "after": change.after,
            }
            for change in plan.writes
        ],
    }


def _afresh(source: FillSource, search: Search) -> FillSource | None:
    """Return the source without its memory, where that may answer what is in doubt."""
    if not isinstance(source, RememberingSource):
        return None
    return source.afresh() if search.in_doubt or search.reading.read.rejected else None


def _read_again(search: Search) -> Warn:
    about = ", ".join(search.in_doubt) or "a row that cannot be read for certain"
    return Warn(
        "ledger_reread",
        f"with the fills kept in the ledger {about} could not be proven, so all of the window "
        "was read from the exchange again; what follows does not rest on the ledger",
    )


def _unmanaged(reading: Reading, scope: Sequence[str], options: Options) -> tuple[str, ...]:
    if reading.balances is None or options.products or options.asked:
        return ()
    held = {asset for asset, units in reading.balances.amounts.items() if units}
    return tuple(sorted(held - set(scope) - CASH))


def _evidence(source: FillSource, reading: Reading, portfolio: str | None) -> Evidence:
    return Evidence(
        source=source.name,
        fills=len(reading.fills),
        products_seen=len({fill.product_id for fill in reading.asked}),
        pages=reading.pages,
        duplicates=reading.read.duplicates,
        rejected=reading.read.rejected,
        skipped=reading.read.skipped,
        portfolio=portfolio,
    )
