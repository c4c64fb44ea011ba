"""What is done with one account of a fleet, on a worker, as if it were alone.

What is promised:

* A key is named, by its file or by the variables that hold it, and read here, where it is used; it
  is in no value that travels.
* Accounts that share a key (or a ``rate_group``) are one piece of work: one worker takes them one
  after the other at one pace, so the rate holds wherever that worker is.
* `apply` writes by the rules of a single rebuild (`statestore.repair.rebuild.apply`). One is added,
  since nobody looks at each account: while a bot holds the lease and its kill switch is not
  engaged, neither a plan is made nor anything is written (`LeaseHeld`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore.amounts import text
from statestore.config import Places, Settings
from statestore.disk.audit import AuditLog
from statestore.disk.backups import Retention
from statestore.disk.killswitch import KillSwitch
from statestore.disk.locks import lease_held
from statestore.disk.store import StateStore
from statestore.errors import RebuildRefused, StateStoreError
from statestore.fills.archive import Archive
from statestore.fills.folding import Rules
from statestore.fills.partitions import Partition, replay_partition
from statestore.fills.sources.pace import Pace
from statestore.fills.told import document as archive_document
from statestore.fills.told import status_of
from statestore.repair.entries import QUANTITY_FIELDS, said
from statestore.repair.fleet import Failure, Outcome, Result, Task, failure_of
from statestore.repair.opening import Origin, clock_of, open_source
from statestore.repair.plan import PROVEN, Action, Change, Plan
from statestore.repair.rebuild import (
    Applied,
    Options,
    Proposal,
    apply,
    propose,
    refuse_unproven,
)
from statestore.repair.verify import GRACE_SECONDS, Verdict, Verification, verify
from statestore.repair.verify import document as verify_document


@dataclass(frozen=True, slots=True)
class Account:
    """One account: where its files are, where its fills come from, what is asked of a rebuild.

    Attributes:
        settings: holds no key.
        grace: of a verify, in seconds.
        group: of accounts that keep to one rate; empty for one that shares it with nobody.
    """

    name: str
    where: Places
    settings: Settings
    origin: Origin
    options: Options
    skip_unproven: bool = False
    grace: Decimal = GRACE_SECONDS
    group: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Accounts that one worker takes one after the other.

    Attributes:
        reports: folder for a page about each, None for none.
    """

    accounts: tuple[Account, ...]
    task: Task
    allow_live: bool = False
    reports: Path | None = None

    def run(self) -> list[Result]:
        """Return a result for each account."""
        pace = Pace(min(account.origin.rate for account in self.accounts))
        return [_run_one(account, self, pace) for account in self.accounts]

    def unanswered(self, kind: str, why: str) -> list[Result]:
        """Return failures that say what is not known."""
        results = []
        for account in self.accounts:
            said = f"{why}; run it again"
            if self.task is Task.APPLY:
                said += f"; whether it was written stands in {account.where.audit_file}"
            facts = {"state": str(account.where.state)}
            results.append(Result(account.name, Outcome.FAILED, facts, Failure(kind, said)))
        return results


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A partition of an archive, to be replayed by itself."""

    partition: Partition
    rules: Rules

    def run(self) -> list[Result]:
        """Return one result, of the partition."""
        name = self.partition.name
        started = time.monotonic()
        try:
            result = Result(name, *_replayed(replay_partition(self.partition, self.rules)))
        except Exception as error:  # noqa: BLE001 - as for an account
            result = Result(name, Outcome.FAILED, failure=failure_of(error))
        files = [str(file) for file in self.partition.files]
        return [
            replace(
                result, facts={"files": files, **result.facts}, seconds=time.monotonic() - started
            )
        ]

    def unanswered(self, kind: str, why: str) -> list[Result]:
        """Return the failure."""
        failure = Failure(kind, f"{why}; run it again")
        return [Result(self.partition.name, Outcome.FAILED, failure=failure)]


def works_of(
    accounts: Iterable[Account],
    task: Task,
    *,
    allow_live: bool = False,
    reports: Path | None = None,
) -> list[Work]:
    """Return the pieces of work; accounts of one group are one piece."""
    groups: dict[str, list[Account]] = {}
    for account in accounts:
        groups.setdefault(account.group or f"only {account.name}", []).append(account)
    return [Work(tuple(group), task, allow_live, reports) for group in groups.values()]


def report_path(folder: Path, account: str) -> Path:
    """Return where the page about an account is written."""
    return folder / f"account-{account}.html"


def _run_one(account: Account, work: Work, pace: Pace) -> Result:
    started = time.monotonic()
    try:
        result = (_verified if work.task is Task.VERIFY else _rebuilt)(account, work, pace)
    except Exception as error:  # noqa: BLE001 - it ends this account, and is told
        facts = {"state": str(account.where.state)}
        result = Result(account.name, Outcome.FAILED, facts, failure_of(error))
    return replace(result, seconds=time.monotonic() - started)


def _rebuilt(account: Account, work: Work, pace: Pace) -> Result:
    where = account.where
    store = StateStore(where.state, backup_dir=where.backup_dir)
    _refuse_a_trading_bot(store, store.kill_switch(where.kill_switch))
    dry_run = work.task is Task.PLAN
    origin = replace(account.origin, keep=not dry_run)
    opened = open_source(origin, where, account.settings, pace=pace)
    proposal = propose(
        store,
        opened.source,
        account.options,
        portfolio=opened.portfolio,
        warnings=opened.warnings,
    )
    facts = _facts_of(proposal)
    notes: list[str] = []
    page = None if work.reports is None else report_path(work.reports, account.name)
    try:
        with _reported(page, account, proposal, notes.append) as tell:
            if not dry_run:
                applied = _apply(store, account, proposal, allow_live=work.allow_live)
                tell(applied)
                facts |= _written(applied)
        if dry_run:
            refuse_unproven(proposal.plan, skip_unproven=account.skip_unproven)
    except StateStoreError as error:
        refused = isinstance(error, RebuildRefused)
        outcome = Outcome.UNPROVEN if refused else Outcome.FAILED
        facts["warnings"] += notes
        facts |= _page(page)
        return Result(account.name, outcome, facts, failure_of(error))
    facts |= _page(page)
    if not proposal.plan.writes:
        return Result(account.name, Outcome.NOTHING, facts)
    return Result(account.name, Outcome.PROPOSED if dry_run else Outcome.WRITTEN, facts)


def _refuse_a_trading_bot(store: StateStore, kill_switch: KillSwitch) -> None:
    """A halted bot takes a repair over; one that trades makes a plan stale before it is read."""
    holder = store.lease_holder()
    if holder is None or kill_switch.status() == "engaged":
        return
    raise lease_held(
        store.path,
        holder,
        f"its kill switch {kill_switch} is not engaged; engage it, or stop the bot, and run this "
        "again",
    )


def _apply(store: StateStore, account: Account, proposal: Proposal, *, allow_live: bool) -> Applied:
    kill_switch = store.kill_switch(account.where.kill_switch)
    _refuse_a_trading_bot(store, kill_switch)  # again: it took minutes to read the fills
    applied = apply(
        store,
        proposal,
        kill_switch,
        AuditLog(account.where.audit_file),
        skip_unproven=account.skip_unproven,
        allow_live=allow_live,
    )
    if applied.backup is not None:
        store.backups.prune(Retention(**account.settings.backups))
    return applied


def _reported(
    page: Path | None, account: Account, proposal: Proposal, mention: Callable[[str], None]
) -> AbstractContextManager[Callable[[Applied], None]]:
    if page is None:
        return nullcontext(lambda _: None)
    from statestore.repair.outcome import reported

    return reported(
        page, account.where, proposal, skip_unproven=account.skip_unproven, mention=mention
    )


def _verified(account: Account, _: Work, pace: Pace) -> Result:
    where = account.where
    opened = open_source(account.origin, where, account.settings, pace=pace)
    found = verify(
        StateStore(where.state, backup_dir=where.backup_dir),
        opened.source,
        account.options,
        # Recorded files do not move.
        grace_seconds=Decimal(0) if account.origin.fills else account.grace,
        clock=clock_of(opened.source),
        portfolio=opened.portfolio,
        warnings=opened.warnings,
    )
    outcome = Outcome(found.verdict.value)
    facts = _facts_of_verification(found)
    return Result(account.name, outcome, facts, None if found.ok else _found_bad(found))


def _found_bad(found: Verification) -> Failure:
    parts = [
        f"{judged.key} {judged.verdict.value}: {judged.reason}"
        for judged in found.positions
        if judged.verdict in (Verdict.DIFFERS, Verdict.UNPROVEN)
    ]
    rejected = len(found.proposal.plan.evidence.rejected)
    if rejected:
        parts.append(f"{rejected} fill row(s) cannot be read for certain")
    return Failure("", "; ".join(parts))


def _page(page: Path | None) -> dict[str, Any]:
    return {} if page is None or not page.exists() else {"report": str(page)}


def _facts_of(proposal: Proposal) -> dict[str, Any]:
    plan, meta = proposal.plan, proposal.state.meta
    told = [change for change in plan.changes if change.writes or not change.allowed]
    return {
        "state": str(meta.state_path),
        "revision": meta.revision,
        "source": plan.evidence.source,
        "portfolio": plan.evidence.portfolio,
        "positions": _counts(plan),
        "changes": [_change(change) for change in told],
        "unmanaged": list(plan.unmanaged),
        "warnings": [warning.message for warning in plan.warnings],
    }


def _counts(plan: Plan) -> dict[str, int]:
    return {
        "updated": plan.count(Action.ADD, Action.UPDATE),
        "removed": plan.count(Action.REMOVE),
        "kept": plan.count(Action.KEEP),
        "unproven": len(plan.unproven),
        "rejected_fills": len(plan.evidence.rejected),
    }


def _change(change: Change) -> dict[str, Any]:
    finding, before = change.finding, change.before or {}
    return {
        "asset": change.asset,
        "key": change.key,
        "action": change.action.value,
        "status": finding.status.value,
        "reason": finding.reason,
        "quantity": {"before": _plain(said(before, QUANTITY_FIELDS)), "after": text(finding.units)},
        "entry_price": {
            "before": _plain(before.get("entry_price")),
            "after": text(finding.position.entry_price),
        },
    }


def _plain(value: Any) -> str | None:
    return None if value is None else str(value)


def _replayed(archive: Archive) -> tuple[Outcome, dict[str, Any], Failure | None]:
    doubted = [
        f"{name} is {status.value}"
        for name, one in archive.assets.items()
        if (status := status_of(one)) not in PROVEN
    ]
    if archive.rejected:
        first = archive.rejected[0]
        doubted.append(
            f"{len(archive.rejected)} row(s) are rejected and in no figure; the first is "
            f"{first.origin}: {first.reason}"
        )
    facts = archive_document(archive)
    if doubted:
        return Outcome.UNPROVEN, facts, Failure("", "; ".join(doubted))
    return Outcome.REPLAYED, facts, None


def _written(applied: Applied) -> dict[str, Any]:
    if applied.backup is None:
        return {}
    return {"written": applied.revision, "backup": str(applied.backup)}


def _facts_of_verification(found: Verification) -> dict[str, Any]:
    shown = verify_document(found)
    return {
        "state": shown["state"]["path"],
        "revision": shown["state"]["revision"],
        "source": shown["source"],
        "portfolio": shown["portfolio"],
        "counts": shown["counts"],
        "positions": [p for p in shown["positions"] if p["verdict"] != Verdict.AGREES],
        "unmanaged": shown["unmanaged"],
        "warnings": [warning["message"] for warning in shown["warnings"]],
    }
