"""The rebuild, from the exchange's fills to the repaired state: the one place that knows the order.

    sources -> normalise -> replay -> coverage -> plan -> store

`propose` only reads, and gives a plan; `apply` writes exactly that plan, once, at the very end. In
between lies whatever time the operator needs: nothing is locked meanwhile, and a state that was
saved by somebody else in between refuses the plan (`RevisionConflict`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore import __version__
from statestore.amounts import ZERO, exact, text
from statestore.config import operator
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import State, StateMeta, StateStore
from statestore.errors import (
    AuditBroken,
    CredentialsError,
    IncompleteRead,
    KillSwitchNotEngaged,
    Place,
    RebuildRefused,
    RevisionConflict,
    StateCorrupt,
    StateError,
    StateInvalid,
    UsageError,
)
from statestore.fills.coverage import Finding, Question, Recorded, explain
from statestore.fills.replay import movements_of
from statestore.fills.sources import FillSource, RememberingSource
from statestore.model import (
    CASH,
    KeyPermissions,
    Method,
    Product,
    Side,
    Status,
    quote_of,
    settled_in,
)
from statestore.repair.marks import dust_of, increment_of, products_needed
from statestore.repair.notes import notes
from statestore.repair.plan import (
    Entries,
    Evidence,
    Plan,
    Rules,
    Warn,
    plan_change,
    read_entries,
    recorded_of,
)
from statestore.repair.reading import (
    ALL_HISTORY_HOURS,
    ATTEMPTS,
    Reading,
    Window,
    read_older,
    read_steadily,
    window_of,
)
from statestore.times import format_instant, parse_instant


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
        asked: assets a question is about: in scope, and alone, wherever they are known from.
        assume_entry: cost per unit, by asset, of units no fill explains.
        prove_entries: a recorded entry is believed only where no older fills can tell.
    """

    hours: Decimal = Decimal(48)
    since: int | None = None
    until: int | None = None
    max_hours: Decimal = ALL_HISTORY_HOURS
    method: Method = Method.AVERAGE
    products: frozenset[str] = frozenset()
    key_style: str = "product"
    accept_partial: bool = False
    strict_state: bool = False
    reserve: Mapping[str, Decimal] = field(default_factory=dict)
    adopt: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    assume_entry: Mapping[str, Decimal] = field(default_factory=dict)
    prove_entries: bool = False


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
    records = _records(store.path, state)
    search = _searched(source, options, records, window)
    afresh = _afresh(source, search)
    again = () if afresh is None else (_read_again(search),)
    if afresh is not None:
        search = _searched(afresh, options, records, window)
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
    """Append the line that explains a write that has just been made, and return it.

    Raises:
        AuditBroken: it could not be appended; the message says what was written all the same.
    """
    record = {
        "action": action,
        "state": str(saved.state_path),
        "by": operator(),
        "version": __version__,
        "revision": saved.revision,
        "sha256": saved.sha256,
        **facts,
    }
    try:
        return audit.append(record)
    except StateError as error:
        raise AuditBroken(
            audit.path,
            f"{saved.state_path} was written as revision {saved.revision} ({action}), but the "
            f"audit line is missing: {error}",
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


# What the state records


@dataclass(frozen=True, slots=True)
class _Records:
    """The entries of the state, and what each says of its asset."""

    entries: Entries
    by_asset: Mapping[str, Recorded | None]


def _records(path: Place, state: State) -> _Records:
    meta = state.meta
    saved_at = parse_instant(meta.saved_at) if meta.saved_at else None
    try:
        entries = read_entries(state.get("positions", {}))
        by_asset = {
            asset: recorded_of(entries.by_key[keys[0]], keys[0], saved_at)
            for asset, keys in entries.keys.items()
        }
    except ValueError as error:
        field_path = str(error).split(maxsplit=1)[0].rstrip(":")
        raise StateInvalid(
            path, f"{path}: {error}; correct it with the bot halted, then run again", field_path
        ) from error
    return _Records(entries, by_asset)


# What is in scope


def _scope(reading: Reading, entries: Entries, options: Options) -> tuple[str, ...]:
    """Assets to answer for: recorded, filled in the window asked for, or adopted.

    A currency that a cross pair brought in counts as filled; one that only paid for something does
    not, unless it is recorded.
    """
    found = set(entries.keys)
    for fill in reading.asked:
        found.add(fill.base)
        if fill.side is Side.SELL and fill.quote not in CASH:
            found.add(fill.quote)
    wanted = {product.replace("/", "-").partition("-")[0] for product in options.products}
    _require_known(reading, found, options, wanted)
    found |= options.adopt | options.asked
    wanted |= options.asked
    return tuple(sorted(asset for asset in found if not wanted or asset in wanted))


def _require_known(reading: Reading, found: set[str], options: Options, wanted: set[str]) -> None:
    """A name nobody knows is a typing mistake, and a reserve that holds nothing back is a loss."""
    amounts = {} if reading.balances is None else reading.balances.amounts
    named = {
        "--product": wanted - found - options.adopt,
        "--adopt": options.adopt - set(amounts) - found,
        "--reserve": set(options.reserve) - set(amounts) - found if amounts else set(),
        "--assume-entry": set(options.assume_entry) - found - options.adopt - options.asked,
        "the command": options.asked - set(amounts) - found,
    }
    for option, unknown in named.items():
        if unknown:
            raise UsageError(
                f"{option} names {', '.join(sorted(unknown))}, which is neither in the state, nor "
                "filled in the window, nor in the balances; check the spelling"
            )


def _unmanaged(reading: Reading, scope: Sequence[str], options: Options) -> tuple[str, ...]:
    if reading.balances is None or options.products or options.asked:
        return ()
    held = {asset for asset, units in reading.balances.amounts.items() if units}
    return tuple(sorted(held - set(scope) - CASH))


# Explaining

# Answers that a fill which is not at hand may be the cause of.
_IN_DOUBT = frozenset(
    {Status.ASSUMED, Status.PARTIAL, Status.AMBIGUOUS, Status.UNEXPLAINED_OUTFLOW}
)


def _searched(source: FillSource, options: Options, records: _Records, window: Window) -> _Search:
    reading = read_steadily(source, window)
    _require_an_account(source, reading, records)
    search = _Search(source, options, records, _scope(reading, records.entries, options), reading)
    search.run()
    return search


def _require_an_account(source: FillSource, reading: Reading, records: _Records) -> None:
    """An exchange that lists no account at all has not said that nothing is held."""
    balances, recorded = reading.balances, records.entries.keys
    if balances is not None and balances.complete and not balances.amounts and recorded:
        raise IncompleteRead(
            f"{source.name} lists no account at all, while the state records "
            f"{', '.join(sorted(recorded))}: as if the key were bound to another portfolio; check "
            "that; nothing was computed"
        )


def _afresh(source: FillSource, search: _Search) -> FillSource | None:
    """Return the source without its memory, where that may answer what is in doubt."""
    if not isinstance(source, RememberingSource):
        return None
    return source.afresh() if search.in_doubt or search.reading.read.rejected else None


def _read_again(search: _Search) -> Warn:
    about = ", ".join(search.in_doubt) or "a row that cannot be read for certain"
    return Warn(
        "ledger_reread",
        f"with the fills kept in the ledger {about} could not be proven, so all of the window "
        "was read from the exchange again; what follows does not rest on the ledger",
    )


class _Search:
    """Asks for every asset in scope, and reads further back while one needs older fills."""

    def __init__(
        self,
        source: FillSource,
        options: Options,
        records: _Records,
        scope: tuple[str, ...],
        reading: Reading,
    ) -> None:
        self.source = source
        self.options = options
        self.records = records
        self.scope = scope
        self.reading = reading
        self.products: dict[str, Product] = {}
        self.findings: dict[str, Finding] = {}
        self._asked_for: set[str] = set()

    def run(self) -> None:
        while True:
            self._fetch_products()
            for asset in self.scope:
                if asset not in self.findings:
                    question = self._question(asset)
                    finding = explain(question)
                    if finding is not None:
                        self.findings[asset] = self._doubted(question, finding)
            if len(self.findings) == len(self.scope):
                return
            self.reading = read_older(self.source, self.reading, self._max_hours)

    @property
    def in_doubt(self) -> tuple[str, ...]:
        """Assets whose answer may be for want of a fill."""
        return tuple(a for a, found in self.findings.items() if found.status in _IN_DOUBT)

    @property
    def _max_hours(self) -> Decimal:
        return max(self.options.max_hours, self.reading.window.hours)

    def _fetch_products(self) -> None:
        keys = self.records.entries.keys
        quotes = {a: [q for key in keys[a] if (q := quote_of(key))] for a in keys}
        needed = products_needed(self.scope, self.reading.fills, quotes)
        self.products |= self.source.products(sorted(needed - self._asked_for))
        self._asked_for |= needed

    @exact
    def _question(self, asset: str) -> Question:
        reading, options = self.reading, self.options
        complete = reading.complete()
        return Question(
            asset=asset,
            movements=movements_of(asset, reading.fills),
            balance=self._balance(asset),
            increment=increment_of(asset, self.products),
            dust=dust_of(asset, self.products, self._last_price(asset)),
            since=reading.window.searched_since,
            exhausted=complete or reading.window.searched_hours >= self._max_hours,
            complete=complete,
            method=options.method,
            recorded=self.records.by_asset.get(asset),
            assumed_entry=options.assume_entry.get(asset),
            strict=options.strict_state,
            prove_entry=options.prove_entries,
        )

    def _balance(self, asset: str) -> Decimal | None:
        """Units that are the bot's at the end of the window, None when not at hand.

        That the balances do not list an asset means that none is owned, if it is an asset at all:
        a key nobody but the state knows may be any spelling of something that is held.
        """
        balances = self.reading.balances
        if balances is None:
            return None
        owned = balances.of(asset)
        if owned is None or (asset not in balances.amounts and not self._is_known(asset)):
            return None
        later = movements_of(asset, self.reading.later)
        owned -= sum((movement.units for movement in later), ZERO)
        reserve = self.options.reserve.get(asset, ZERO)
        if reserve and reserve > owned:
            raise UsageError(
                f"--reserve {asset}={text(reserve)} is more than the wallet holds ({text(owned)})"
            )
        return owned - reserve

    def _is_known(self, asset: str) -> bool:
        return any(product.base == asset for product in self.products.values()) or any(
            asset in (fill.base, fill.quote) for fill in self.reading.read.fills
        )

    def _last_price(self, asset: str) -> Decimal | None:
        """USD price of the newest fill, for the dust threshold only."""
        fills = (fill for fill in reversed(self.reading.fills) if fill.base == asset)
        return next((fill.price for fill in fills if settled_in(fill.quote) == "USD"), None)

    def _doubted(self, question: Question, finding: Finding) -> Finding:
        """Take back what was found where something beside the fills speaks against it."""
        asset = question.asset
        keys = self.records.entries.keys.get(asset, ())
        if asset in self.reading.moving:
            reason = f"the balance moved in each of {ATTEMPTS} readings; stop what trades it"
            return replace(finding, status=Status.MOVING, reason=reason)
        if movements_of(asset, self.reading.later):
            reason = "it was traded after --until: this is what was held then, not what is held now"
            return replace(finding, status=Status.MOVING, reason=reason)
        if len(keys) > 1:
            reason = f"the state records it twice, as {' and '.join(keys)}; remove one of them"
            return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        if question.recorded is not None and question.recorded.units < 0:
            reason = "the state records a short, which neither spot fills nor a balance can prove"
            return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        if question.balance is None and finding.status is Status.EXACT:
            return self._doubted_size(finding)
        return finding

    def _doubted_size(self, finding: Finding) -> Finding:
        """Without a balance nothing but the fee can tell a size in the wrong unit."""
        for movement in finding.movements:
            why = self.reading.misread.get(movement.fill.entry_id)
            if why is not None:
                reason = f"{movement.fill.origin}: {why}; its size may be in the wrong unit"
                return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        return finding


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
