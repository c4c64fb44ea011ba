"""Whether the recorded positions are what balances and fills prove. Reads only.

A bot that trades is never of one moment: a fill is listed before the balance moves or after it, and
the state is saved later still. So one comparison of a state with an exchange proves nothing. Given
the grace, the time within which a fill is listed, in the balance and in the state:

* What is recorded and what the balance says are each true of some recent moment, so they are apart
  by a run of consecutive recent fills, or one of them is wrong. A difference that is such a run is
  UNSETTLED: a save that is due.
* A fill that explains a difference may not be listed yet. So before anything is said to differ, the
  grace is waited for, and the first look judged again by the fills that are listed then. What has
  come to agree meanwhile agrees. Where nothing differs, nobody waits.
* A wrong quantity is found while its asset goes on trading, unless it is off by just what was
  traded within the grace. An entry price is compared when its asset rested for the grace.
* What nothing proves right or wrong is UNPROVEN, never taken for agreement.

A fill that is older than the grace and not in the state is a difference, whether the bot is slow or
dead.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate
from typing import Any

from statestore.amounts import ZERO, exact, text
from statestore.disk.store import StateStore
from statestore.fills.coverage import Recorded
from statestore.fills.movements import Movement, movements_of
from statestore.fills.sources import FillSource
from statestore.fills.told import rejected
from statestore.model import Fill, Status
from statestore.repair.entries import QUANTITY_FIELDS, read_entries, recorded_of
from statestore.repair.marks import increment_of
from statestore.repair.plan import PROVEN, Action, Change, Warn
from statestore.repair.rebuild import Options, Proposal, propose
from statestore.repair.told import warning_document
from statestore.times import NANOSECONDS, format_instant, now, parse_instant

GRACE_SECONDS = Decimal(10)
# What is in flight mostly arrives while it is looked at again; nobody waits for the rest.
_LOOKS = 3

# A recorded price is a quotient that somebody rounded: its seventh digit says nothing.
_PRICE_TOLERANCE = Decimal("1E-6")


class Verdict(StrEnum):
    """From the best to the worst."""

    AGREES = "agrees"
    UNSETTLED = "unsettled"
    UNPROVEN = "unproven"
    DIFFERS = "differs"


_SEVERITY = {verdict: number for number, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True)
class Judged:
    """What is to be said of one asset.

    Attributes:
        key: of its entry; the one it would get where there is none.
        status: what the fills prove.
        about: what the verdict is about, "quantity" or "entry_price"; a wrong quantity comes first.
        recorded: units, 0 without an entry, None where the entry names no quantity.
        found: units the balance (offline: the fills) says are the bot's.
        recorded_entry, found_entry: average cost per unit; None where it is not known.
    """

    asset: str
    key: str
    verdict: Verdict
    status: Status
    about: str
    reason: str
    recorded: Decimal | None
    found: Decimal
    recorded_entry: Decimal | None
    found_entry: Decimal | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Attributes:
        positions: by asset.
        proposal: of the last look.
        looks: how many it took.
    """

    positions: tuple[Judged, ...]
    proposal: Proposal
    looks: int
    grace_seconds: Decimal

    @property
    def verdict(self) -> Verdict:
        """The worst there is; a fill row that cannot be read leaves everything unproven."""
        found = [judged.verdict for judged in self.positions]
        if self.proposal.plan.evidence.rejected:
            found.append(Verdict.UNPROVEN)
        return max(found, key=_SEVERITY.__getitem__, default=Verdict.AGREES)

    @property
    def ok(self) -> bool:
        """Whether there is nothing to be alarmed about."""
        return self.verdict in (Verdict.AGREES, Verdict.UNSETTLED)

    def count(self, verdict: Verdict) -> int:
        return sum(judged.verdict is verdict for judged in self.positions)


# What tells an entry by fills, or by the operator's word; a carried one is the record's own.
_TELLING = PROVEN - {Status.CARRIED}


@dataclass(frozen=True, slots=True)
class _Look:
    """One proposal, and the instant before any of it was read, by the exchange's clock."""

    started: int
    proposal: Proposal


def verify(
    store: StateStore,
    source: FillSource,
    options: Options,
    *,
    grace_seconds: Decimal = GRACE_SECONDS,
    clock: Callable[[], int] = now,
    wait: Callable[[float], None] = time.sleep,
    portfolio: str | None = None,
    warnings: Sequence[Warn] = (),
) -> Verification:
    """Compare the state with balances and fills, and look again before saying that they differ.

    Args:
        grace_seconds: how long exchange and bot may take from a fill to the save of it.
        clock: the exchange's, by which its fills are dated.
        wait: called with the grace, once, and only if something seems to differ.
        portfolio, warnings: as in `statestore.repair.rebuild.propose`.

    Raises:
        StateError, SourceError, UsageError: as in `statestore.repair.rebuild.propose`.
    """
    grace = int(grace_seconds * NANOSECONDS)
    # A record that is carried on would be compared with itself.
    options = replace(options, prove_entries=True)
    looks: list[_Look] = []
    ripe = 0
    while True:
        started = clock()
        proposal = propose(store, source, options, portfolio=portfolio, warnings=warnings)
        looks.append(_Look(started, proposal))
        judged = _judge(looks, grace)
        alarming = any(_SEVERITY[j.verdict] >= _SEVERITY[Verdict.UNPROVEN] for j in judged)
        settled = all(j.verdict is Verdict.AGREES for j in judged)
        if ripe or settled or (not alarming and len(looks) >= _LOOKS):
            return Verification(
                _confirmed(looks, ripe, judged), proposal, len(looks), grace_seconds
            )
        if alarming:
            ripe = len(looks)
            wait(float(grace_seconds))


def _judge(looks: Sequence[_Look], grace: int) -> tuple[Judged, ...]:
    """Judge every asset of the last look: the best that any look says of it counts."""
    fills = {f.entry_id: f for look in looks for f in look.proposal.reading.read.fills}
    known = sorted(fills.values(), key=lambda fill: (fill.time, fill.sequence or 0))
    judged = []
    for asset in (change.asset for change in looks[-1].proposal.plan.changes):
        seen = [found for look in looks if (found := _judge_asset(look, asset, known, grace))]
        judged.append(min(reversed(seen), key=lambda found: _SEVERITY[found.verdict]))
    return tuple(judged)


def _confirmed(looks: Sequence[_Look], ripe: int, judged: Sequence[Judged]) -> tuple[Judged, ...]:
    """Take back what is said against an asset that was first seen after the wait."""
    before = {c.asset for look in looks[:ripe] for c in look.proposal.plan.changes}
    return tuple(
        found
        if found.verdict is Verdict.AGREES or found.asset in before
        else replace(found, verdict=Verdict.UNSETTLED)
        for found in judged
    )


@exact
def _judge_asset(look: _Look, asset: str, known: Sequence[Fill], grace: int) -> Judged | None:
    """Judge an asset by one look; None where it was not in question then.

    Args:
        known: the fills of all looks, oldest first.
    """
    proposal = look.proposal
    change = next((c for c in proposal.plan.changes if c.asset == asset), None)
    if change is None:
        return None
    recorded = _recorded(proposal, change)
    recent = movements_of(asset, [fill for fill in known if fill.time > look.started - grace])
    tolerance = increment_of(asset, proposal.products) * max(
        1, sum(movement.fill.quoted for movement in change.finding.movements)
    )
    about = "quantity"
    verdict, reason = _verdict(proposal, change, recorded, recent, tolerance)
    if verdict is Verdict.AGREES:
        about = "entry_price"
        verdict, reason = _verdict_of_entry(change, recorded, recent)
    units = ZERO if change.before is None else None
    position = change.finding.position
    return Judged(
        asset=asset,
        key=change.key,
        verdict=verdict,
        status=change.finding.status,
        about=about,
        reason=reason,
        recorded=units if recorded is None else recorded.units,
        found=change.finding.units,
        recorded_entry=None if recorded is None else recorded.entry_price,
        found_entry=position.entry_price if change.finding.status in _TELLING else None,
    )


def _verdict(
    proposal: Proposal,
    change: Change,
    recorded: Recorded | None,
    recent: Sequence[Movement],
    tolerance: Decimal,
) -> tuple[Verdict, str]:
    finding = change.finding
    why_not = _no_comparison(proposal, change, recorded)
    if why_not is not None:
        return Verdict.UNPROVEN, why_not
    if finding.status is Status.DUST and change.action is not Action.REMOVE:
        return Verdict.AGREES, finding.reason
    if recorded is None and change.before is not None:
        return Verdict.DIFFERS, f"its entry names no quantity; {text(finding.units)} are held"
    difference = (ZERO if recorded is None else recorded.units) - finding.units
    if abs(difference) > tolerance:
        if _is_run_of(recent, difference, tolerance):
            return Verdict.UNSETTLED, "it was traded just now, and that accounts for the difference"
        return Verdict.DIFFERS, finding.reason
    others = [n for n in _quantities(change.before) if abs(abs(n) - abs(finding.units)) > tolerance]
    if others:
        return Verdict.DIFFERS, f"its entry names two quantities; {text(others[0])} is not held"
    return Verdict.AGREES, finding.reason


def _quantities(entry: Mapping[str, Any] | None) -> list[Decimal]:
    """The numbers an entry gives for its quantity, under whatever names; bots keep several."""
    values = [(entry or {}).get(name) for name in QUANTITY_FIELDS]
    return [Decimal(n) for n in values if isinstance(n, (int, Decimal)) and n is not True]


def _no_comparison(proposal: Proposal, change: Change, recorded: Recorded | None) -> str | None:
    """Return why balance and fills say nothing about the record at all; None if they do."""
    keys = read_entries(proposal.positions).keys.get(change.asset, ())
    short = recorded is not None and recorded.units < 0
    later = movements_of(change.asset, proposal.reading.later)
    if len(keys) > 1 or short or later or change.finding.status is Status.UNCOVERED:
        return change.finding.reason
    return None


def _verdict_of_entry(
    change: Change, recorded: Recorded | None, recent: Sequence[Movement]
) -> tuple[Verdict, str]:
    """The quantity is right; what of the price that is recorded for it?"""
    finding, position = change.finding, change.finding.position
    dust = finding.status is Status.DUST
    if recorded is None or recorded.entry_price is None or not finding.units or dust:
        return Verdict.AGREES, finding.reason
    if finding.status is Status.CARRIED:
        return (
            Verdict.UNPROVEN,
            f"its quantity is right, its entry rests on itself: {finding.reason}",
        )
    proven = finding.status in PROVEN and position.currency == recorded.currency
    found = position.entry_price if proven else None
    if found is not None and abs(recorded.entry_price - found) <= abs(found) * _PRICE_TOLERANCE:
        return Verdict.AGREES, finding.reason
    if recent or finding.status is Status.MOVING:
        return Verdict.UNSETTLED, "its quantity is right, its entry is compared when it rests"
    if found is None:
        return Verdict.UNPROVEN, f"its quantity is right, its entry is not proven: {finding.reason}"
    return Verdict.DIFFERS, f"its quantity is right, its entry is not: {finding.reason}"


def _is_run_of(recent: Sequence[Movement], difference: Decimal, tolerance: Decimal) -> bool:
    """Return whether consecutive recent movements add up to the difference, in either direction."""
    totals = [ZERO, *accumulate(movement.units for movement in recent)]
    ordered = sorted(totals)
    for total in totals:
        at = bisect_left(ordered, total + difference - tolerance)
        if at < len(ordered) and ordered[at] <= total + difference + tolerance:
            return True
    return False


def _recorded(proposal: Proposal, change: Change) -> Recorded | None:
    if change.before is None:
        return None
    saved_at = proposal.state.meta.saved_at
    return recorded_of(change.before, change.key, parse_instant(saved_at) if saved_at else None)


def document(verification: Verification) -> dict[str, Any]:
    """Return the one JSON document on stdout (schema ``statestore.verify/1``).

    Exact numbers are texts; what is not known is null.
    """
    proposal, plan = verification.proposal, verification.proposal.plan
    meta = proposal.state.meta
    return {
        "schema": "statestore.verify/1",
        "verdict": verification.verdict.value,
        "counts": {verdict.value: verification.count(verdict) for verdict in Verdict},
        "looks": verification.looks,
        "grace_seconds": text(verification.grace_seconds),
        "state": {
            "path": str(meta.state_path),
            "revision": meta.revision,
            "saved_at": meta.saved_at or None,
        },
        "source": plan.evidence.source,
        "portfolio": plan.evidence.portfolio,
        "window": {
            "since": format_instant(plan.window.searched_since),
            "until": format_instant(plan.window.end),
        },
        "positions": [_position(judged) for judged in verification.positions],
        "rejected": rejected(plan.evidence.rejected),
        "unmanaged": list(plan.unmanaged),
        "warnings": [warning_document(warning) for warning in plan.warnings],
    }


def _position(judged: Judged) -> Mapping[str, Any]:
    recorded = judged.recorded
    return {
        "asset": judged.asset,
        "key": judged.key,
        "verdict": judged.verdict.value,
        "status": judged.status.value,
        "about": judged.about,
        "reason": judged.reason,
        "quantity": {
            "recorded": text(recorded),
            "found": text(judged.found),
            "difference": None if recorded is None else text(recorded - judged.found),
        },
        "entry_price": {
            "recorded": text(judged.recorded_entry),
            "found": text(judged.found_entry),
        },
    }
