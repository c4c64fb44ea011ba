"""The rebuild, from the exchange's fills to the repaired state: the one place that knows the order.

    sources -> normalise -> replay -> coverage -> plan -> store

`propose` only reads, and gives a plan; `apply` writes exactly that plan, once, at the very end. In
between lies whatever time the operator needs: nothing is locked meanwhile, and a state that was
saved by somebody else in between refuses the plan (`RevisionConflict`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore import __version__
from statestore.amounts import exact, text
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import State, StateStore
from statestore.errors import (
    CredentialsError,
    KillSwitchNotEngaged,
    RebuildRefused,
    RevisionConflict,
    StateCorrupt,
    StateInvalid,
    UsageError,
)
from statestore.fills.coverage import Finding, Question, explain
from statestore.fills.normalise import implausible_fees, normalise
from statestore.fills.replay import movements_of
from statestore.fills.sources import FillSource
from statestore.model import (
    PEGS,
    Balances,
    Batch,
    Fill,
    KeyPermissions,
    Method,
    Normalised,
    Product,
    Status,
)
from statestore.repair.marks import CASH, dust_of, increment_of, products_needed
from statestore.repair.plan import (
    Change,
    Entries,
    Evidence,
    Plan,
    Rules,
    Warn,
    Window,
    conflict_warning,
    plan_change,
    read_entries,
    recorded_of,
)
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

# A balance that moves while it is read is read again; a market maker's never rests.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator asked for.

    Attributes:
        hours: lookback, unless ``since`` is given.
        since, until: bounds of the window, ``[since, until)``; ``until`` None is the present.
        max_hours: how far back the search may go for the fill that opened a position.
        products: limits the rebuild to the assets of these products; empty is everything.
        reserve: units by asset that are in the wallet and not the bot's.
        adopt: assets to take into the state that only the balances show.
        assume_entry: cost per unit in USD, by asset, of units no fill explains.
    """

    hours: Decimal = Decimal(48)
    since: int | None = None
    until: int | None = None
    max_hours: Decimal = Decimal(17_520)
    method: Method = Method.AVERAGE
    products: frozenset[str] = frozenset()
    key_style: str = "product"
    accept_partial: bool = False
    strict_state: bool = False
    reserve: Mapping[str, Decimal] = field(default_factory=dict)
    adopt: frozenset[str] = frozenset()
    assume_entry: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan, and everything it was made from.

    Attributes:
        state: as it was read; `apply` writes onto this revision only.
        searched: fills of the window as far back as was searched, oldest first.
        batches: every row that was read.
    """

    plan: Plan
    state: State
    positions: Mapping[str, Any]
    searched: tuple[Fill, ...]
    batches: tuple[Batch, ...]


def propose(
    store: StateStore,
    source: FillSource,
    options: Options,
    *,
    portfolio: str | None = None,
    warnings: Sequence[Warn] = (),
) -> Proposal:
    """Read the state, balances and fills, and return what a rebuild would write. Writes nothing.

    Raises:
        StateError: the state is missing, corrupt or not of the expected shape.
        SourceError: fills or balances could not be read whole.
        UsageError: options that cannot be.
    """
    state = store.load(numbers="decimal", missing_ok=False)
    positions = _positions(store.path, state)
    entries = _entries(store.path, positions)
    window = _window(options)
    reading = _read_steadily(source, window, entries, options)
    scope = _scope(reading, entries, options)
    products = source.products(products_needed(scope, reading.read.fills))
    saved_at = parse_instant(state.meta.saved_at) if state.meta.saved_at else None
    findings, reading = _explain(
        source, reading, scope, entries, products, options, store.path, saved_at
    )
    rules = Rules(options.accept_partial, options.key_style)
    changes = tuple(
        plan_change(asset, finding, entries, reading.fills, products, rules, reading.window.read_at)
        for asset, finding in findings.items()
    )
    plan = Plan(
        changes=changes,
        window=reading.window,
        evidence=_evidence(source, reading, portfolio),
        method=options.method,
        warnings=(*warnings, *_warnings(findings, entries, reading, state, changes)),
        unmanaged=_unmanaged(reading.balances, scope, options),
    )
    return Proposal(plan, state, positions, reading.fills, reading.batches)


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
    """

    revision: int
    sha256: str
    backup: Path | None


def apply(
    store: StateStore,
    proposal: Proposal,
    kill_switch: KillSwitch,
    audit: AuditLog,
    *,
    skip_unproven: bool = False,
    allow_live: bool = False,
) -> Applied:
    """Write exactly the proposal: backup, save, read back, audit. All of it or nothing.

    Raises:
        RebuildRefused: something in scope is not proven.
        KillSwitchNotEngaged: the bot may trade; checked again right before the rename.
        RevisionConflict: the state was saved by somebody else since it was read.
    """
    refuse_unproven(proposal.plan, skip_unproven=skip_unproven)
    meta = proposal.state.meta
    if not proposal.plan.writes:
        return Applied(meta.revision, meta.sha256, None)

    check = halted(kill_switch, allow_live=allow_live)
    check()
    _require_unchanged(store, proposal.state)
    backup = store.backup(reason="rebuild")
    repaired = _repaired(proposal)
    saved = store.save(repaired, reason="rebuild", before_commit=check)
    _read_back(store, repaired, saved.revision)
    audit.append(_audit_record(store.path, proposal, saved.revision, saved.sha256, backup))
    return Applied(saved.revision, saved.sha256, backup)


def halted(kill_switch: KillSwitch, *, allow_live: bool) -> Callable[[], None]:
    """Return the check that every write of a repair has to pass, twice: before, and at the rename.

    A switch that cannot be looked at halts a bot, but it is no proof that the bot is halted.
    """

    def check() -> None:
        status = kill_switch.status()
        if not allow_live and status != "engaged":
            raise KillSwitchNotEngaged(
                f"the kill switch {kill_switch.path} is {status}, so a bot may be trading on this "
                "state; engage it ('statestore kill-switch engage', or touch the file) and run "
                "this again, or pass --allow-live if no bot runs"
            )

    return check


def audited_by() -> dict[str, str]:
    """Return who writes, for an audit line."""
    return {"by": f"uid {os.getuid()} at {socket.gethostname()}", "version": __version__}


def _require_unchanged(store: StateStore, state: State) -> None:
    """Before a backup is made for nothing; the save compares again, under the lock."""
    found = store.load().meta
    if (found.revision, found.sha256) != (state.meta.revision, state.meta.sha256):
        raise RevisionConflict(store.path, state.meta.revision, found.revision)


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
            f"restore the backup ('statestore restore') and suspect the disk",
        )


def _audit_record(
    path: Path, proposal: Proposal, revision: int, sha256: str, backup: Path
) -> dict[str, Any]:
    plan, meta = proposal.plan, proposal.state.meta
    return {
        "action": "rebuild",
        "state": str(path),
        **audited_by(),
        "revision_before": meta.revision,
        "revision": revision,
        "sha256_before": meta.sha256,
        "sha256": sha256,
        "backup": str(backup),
        "source": plan.evidence.source,
        "window": [format_instant(plan.window.since), format_instant(plan.window.read_at)],
        "fills": plan.evidence.fills,
        "changes": [_audited(change) for change in plan.writes],
    }


def _audited(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "action": change.action.value,
        "status": change.finding.status.value,
        "reason": change.finding.reason,
        "before": change.before,
        "after": change.after,
    }


def fill_trail(proposal: Proposal) -> Iterator[dict[str, Any]]:
    """Return one record per fill and asset in the plan: what it moved, and the running quantity.

    The running quantity starts at what was held before the first fill; without a balance, at zero.
    """
    fills = proposal.searched
    for change in proposal.plan.changes:
        running = change.finding.opening
        for movement in movements_of(change.asset, fills):
            running = exact_sum(running, movement.units)
            fill = movement.fill
            yield {
                "asset": change.asset,
                "time": format_instant(fill.time),
                "product_id": fill.product_id,
                "side": fill.side.value,
                "trade_type": fill.kind.value,
                "price": text(fill.price),
                "units": text(movement.units),
                "running": text(running),
                "commission": text(fill.commission),
                "commission_currency": fill.commission_currency,
                "entry_id": fill.entry_id,
                "trade_id": fill.trade_id,
                "order_id": fill.order_id,
            }


@exact
def exact_sum(one: Decimal, other: Decimal) -> Decimal:
    return one + other


# Reading


@dataclass(frozen=True, slots=True)
class _Reading:
    """Everything read so far.

    Attributes:
        fills: of the window searched so far, before ``until``.
        asked: those of the window that was asked for.
        later: fills at or after ``until``; the balances know of them already.
        moving: assets whose balance changed while it was read, each time.
        exhausted: the source holds nothing older.
    """

    window: Window
    batches: tuple[Batch, ...]
    read: Normalised
    balances: Balances | None
    moving: frozenset[str]
    exhausted: bool

    @property
    def fills(self) -> tuple[Fill, ...]:
        return self.between(_searched_since(self.window), self.window.until)

    @property
    def asked(self) -> tuple[Fill, ...]:
        return self.between(self.window.since, self.window.until)

    @property
    def later(self) -> tuple[Fill, ...]:
        return () if self.window.until is None else self.between(self.window.until, None)

    def between(self, since: int, until: int | None) -> tuple[Fill, ...]:
        return tuple(
            fill
            for fill in self.read.fills
            if since <= fill.time and (until is None or fill.time < until)
        )


def _window(options: Options) -> Window:
    read_at = now()
    end = read_at if options.until is None else options.until
    hours = options.hours
    since = end - _nanoseconds(hours)
    if options.since is not None:
        since = options.since
        if since >= end:
            raise UsageError(
                f"--since {format_instant(since)} is not before --until {format_instant(end)}"
            )
        hours = Decimal(end - since) / (3600 * NANOSECONDS)
    return Window(since, options.until, read_at, hours, hours)


def _nanoseconds(hours: Decimal) -> int:
    return int(hours * 3600 * NANOSECONDS)


def _searched_since(window: Window) -> int:
    if window.searched_hours == window.hours:
        return window.since
    end = window.read_at if window.until is None else window.until
    return end - _nanoseconds(window.searched_hours)


def _read_steadily(
    source: FillSource, window: Window, entries: Entries, options: Options
) -> _Reading:
    """Read balances, fills, balances; again while a balance in scope moved in between."""
    for _ in range(_ATTEMPTS):
        before = source.balances()
        window = replace(window, read_at=now())
        batch = source.fills(window.since, None)
        after = source.balances() if before is not None else None
        moving = _moved(before, after)
        read = normalise([batch])
        reading = _Reading(window, (batch,), read, after, moving, batch.exhausted)
        if not moving & set(_scope(reading, entries, options)):
            return replace(reading, moving=frozenset())
    return reading


def _moved(before: Balances | None, after: Balances | None) -> frozenset[str]:
    if before is None or after is None:
        return frozenset()
    assets = {*before.amounts, *after.amounts}
    return frozenset(asset for asset in assets if before.of(asset) != after.of(asset))


def _read_older(source: FillSource, reading: _Reading, options: Options) -> _Reading:
    """Double the window, read what that adds."""
    former = _searched_since(reading.window)
    hours = min(reading.window.searched_hours * 2, max(options.max_hours, options.hours))
    window = replace(reading.window, searched_hours=hours)
    if reading.exhausted:
        return replace(reading, window=window)
    batch = source.fills(_searched_since(window), former)
    batches = (*reading.batches, batch)
    return replace(reading, window=window, batches=batches, read=normalise(batches))


def _at_the_end(reading: _Reading, options: Options) -> bool:
    """Whether searching further back is impossible or useless."""
    if reading.window.searched_hours >= options.max_hours:
        return True
    oldest = min((fill.time for fill in reading.read.fills), default=None)
    return reading.exhausted and (oldest is None or _searched_since(reading.window) <= oldest)


def _scope(reading: _Reading, entries: Entries, options: Options) -> list[str]:
    """Assets to answer for: recorded, filled in the window asked for, or adopted.

    A currency that a cross pair brought in counts as filled; one that only paid for something does
    not, unless it is recorded.
    """
    found = dict.fromkeys(entries.keys)
    for fill in reading.asked:
        found.setdefault(fill.base)
        if fill.side == "SELL" and fill.quote not in CASH:
            found.setdefault(fill.quote)
    found.update(dict.fromkeys(sorted(options.adopt)))
    wanted = {product.partition("-")[0] for product in options.products}
    return sorted(asset for asset in found if not wanted or asset in wanted)


# Explaining


def _explain(
    source: FillSource,
    reading: _Reading,
    scope: Collection[str],
    entries: Entries,
    products: Mapping[str, Product],
    options: Options,
    path: Path,
    saved_at: int | None,
) -> tuple[dict[str, Finding], _Reading]:
    """Ask for every asset; read further back while one of them needs older fills."""
    findings: dict[str, Finding] = {}
    while True:
        at_the_end = _at_the_end(reading, options)
        for asset in scope:
            if asset not in findings:
                question = _question(
                    asset, reading, entries, products, options, path, saved_at, at_the_end
                )
                finding = explain(question)
                if finding is not None:
                    findings[asset] = _downgraded(asset, finding, reading, entries, question)
        if len(findings) == len(scope):
            return {asset: findings[asset] for asset in scope}, reading
        reading = _read_older(source, reading, options)


@exact
def _question(
    asset: str,
    reading: _Reading,
    entries: Entries,
    products: Mapping[str, Product],
    options: Options,
    path: Path,
    saved_at: int | None,
    exhausted: bool,
) -> Question:
    movements = movements_of(asset, reading.fills)
    return Question(
        asset=asset,
        movements=movements,
        balance=_balance(asset, reading, options),
        increment=increment_of(asset, products),
        dust=dust_of(asset, products, _last_price(asset, reading.fills)),
        since=_searched_since(reading.window),
        exhausted=exhausted,
        method=options.method,
        recorded=_recorded(asset, entries, path, saved_at),
        assumed_entry=options.assume_entry.get(asset),
        strict=options.strict_state,
    )


def _balance(asset: str, reading: _Reading, options: Options) -> Decimal | None:
    """Units that are the bot's at the end of the window, None when not at hand."""
    owned = None if reading.balances is None else reading.balances.of(asset)
    if owned is None:
        return None
    owned -= sum(movement.units for movement in movements_of(asset, reading.later))
    reserve = options.reserve.get(asset, Decimal(0))
    if reserve > owned:
        raise UsageError(
            f"--reserve {asset}={text(reserve)} is more than the wallet holds ({text(owned)})"
        )
    return owned - reserve


def _last_price(asset: str, fills: Sequence[Fill]) -> Decimal | None:
    """USD price of the newest fill, for the dust threshold only."""
    return next(
        (
            fill.price
            for fill in reversed(fills)
            if fill.base == asset and PEGS.get(fill.quote, fill.quote) == "USD"
        ),
        None,
    )


def _recorded(asset: str, entries: Entries, path: Path, saved_at: int | None) -> Any:
    key = entries.keys.get(asset, (None,))[0]
    if key is None:
        return None
    try:
        return recorded_of(entries.by_key[key], key, saved_at)
    except ValueError as error:
        raise StateInvalid(
            path, f"{path}: {error}; correct it, then run again", str(error).partition(":")[0]
        ) from error


def _downgraded(
    asset: str, finding: Finding, reading: _Reading, entries: Entries, question: Question
) -> Finding:
    """Take back what was found where something outside of the fills speaks against it."""
    keys = entries.keys.get(asset, ())
    if asset in reading.moving:
        reason = f"the balance moved in each of {_ATTEMPTS} readings; stop what trades it"
        return replace(finding, status=Status.MOVING, reason=reason)
    if len(keys) > 1:
        reason = f"the state records it twice, as {' and '.join(keys)}; remove one of them"
        return replace(finding, status=Status.AMBIGUOUS, reason=reason)
    if question.balance is None and finding.status is Status.EXACT:
        fills = [m.fill for m in question.movements if m.fill.base == asset]
        misread = implausible_fees(reading.fills)
        for fill in fills:
            if fill.entry_id in misread:
                reason = (
                    f"{fill.origin}: {misread[fill.entry_id]}; its size may be in the wrong unit"
                )
                return replace(finding, status=Status.AMBIGUOUS, reason=reason)
    return finding


# Reporting


def _positions(path: Path, state: State) -> dict[str, Any]:
    positions = state.get("positions", {})
    if not isinstance(positions, dict):
        raise StateInvalid(
            path,
            f"{path}: positions is {type(positions).__name__}, expected an object of entries by "
            "product; a rebuild cannot repair another shape",
            "positions",
        )
    return positions


def _entries(path: Path, positions: Mapping[str, Any]) -> Entries:
    try:
        return read_entries(positions)
    except ValueError as error:
        raise StateInvalid(path, f"{path}: {error}", str(error).partition(" ")[0]) from error


def _evidence(source: FillSource, reading: _Reading, portfolio: str | None) -> Evidence:
    return Evidence(
        source=source.name,
        fills=len(reading.fills),
        products_seen=len({fill.product_id for fill in reading.asked}),
        pages=sum(batch.pages for batch in reading.batches),
        duplicates=reading.read.duplicates,
        rejected=reading.read.rejected,
        skipped=reading.read.skipped,
        portfolio=portfolio,
    )


def _warnings(
    findings: Mapping[str, Finding],
    entries: Entries,
    reading: _Reading,
    state: State,
    changes: Sequence[Change],
) -> Any:
    if state.meta.recovered_from is not None:
        yield Warn(
            "state_recovered",
            f"{state.meta.state_path} {state.meta.recovered_why}; the state was read from "
            f"{state.meta.recovered_from}",
        )
    if reading.read.fills and not reading.asked:
        newest = reading.read.fills[-1]
        yield Warn(
            "window_empty",
            f"no fill lies in the window; the newest one read is {newest.entry_id} of "
            f"{format_instant(newest.time)} (--since and --until move the window)",
        )
    for asset, finding in findings.items():
        conflict = conflict_warning(asset, finding)
        if conflict is not None:
            yield conflict
        if len(entries.keys.get(asset, ())) > 1:
            yield Warn(
                "two_keys", f"{asset} is recorded as {', '.join(entries.keys[asset])}", asset
            )
    for entry_id, why in implausible_fees(reading.fills).items():
        yield Warn("implausible_fee", f"fill {entry_id}: {why}", facts={"entry_id": entry_id})
    for key in entries.foreign:
        yield Warn("not_spot", f"positions.{key} names no spot product and is left alone")
    if reading.read.skipped_products:
        yield Warn(
            "futures_skipped",
            f"fills of {', '.join(reading.read.skipped_products)} are no spot fills: not replayed",
        )
    if any(fill.quote in PEGS for fill in reading.fills):
        pegs = ", ".join(f"1 {a} = 1 {b}" for a, b in PEGS.items())
        yield Warn("peg", f"counted by convention: {pegs}", facts=dict.fromkeys(PEGS, "1"))
    spent = {f.quote for f in reading.asked if f.quote not in CASH} - set(findings)
    for asset in sorted(spent):
        yield Warn("paid_with", f"{asset} paid for fills and is not in the state", asset)
    for change in changes:
        currency = change.finding.position.currency
        if currency not in (None, "USD") and change.usd is None:
            yield Warn(
                "no_route_to_usd",
                f"{change.asset} was paid in {currency} and has no price in USD; exposure unknown",
                change.asset,
            )


def _unmanaged(
    balances: Balances | None, scope: Collection[str], options: Options
) -> tuple[str, ...]:
    if balances is None or options.products:
        return ()
    return tuple(
        sorted(
            asset
            for asset, units in balances.amounts.items()
            if units and asset not in scope and asset not in CASH
        )
    )
