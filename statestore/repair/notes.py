"""What the operator should know beside the plan: the warnings of a rebuild.

A warning stops nothing by itself: what may be written is decided in `plan`, and what refuses all of
it in `rebuild`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from statestore.amounts import exact, text
from statestore.disk.store import StateMeta
from statestore.fills.coverage import Finding
from statestore.model import CASH, PEGS
from statestore.repair.entries import Entries
from statestore.repair.plan import Change, Warn
from statestore.repair.reading import Reading
from statestore.times import format_instant


def notes(
    meta: StateMeta, entries: Entries, reading: Reading, changes: Sequence[Change]
) -> Iterator[Warn]:
    """Return the warnings, those about the state first, then those about fills and figures."""
    yield from _about_the_state(meta, entries)
    for change in changes:
        yield from _about_a_change(change, entries)
    yield from _about_the_fills(reading, {change.asset for change in changes})


def _about_the_state(meta: StateMeta, entries: Entries) -> Iterator[Warn]:
    if meta.recovered_from is not None:
        yield Warn(
            "state_recovered",
            f"{meta.state_path} {meta.recovered_why}; the state was read from "
            f"{meta.recovered_from}",
        )
    for key in entries.foreign:
        yield Warn("not_spot", f"positions.{key} names no spot product and is left alone")


def _about_a_change(change: Change, entries: Entries) -> Iterator[Warn]:
    asset, keys = change.asset, entries.keys.get(change.asset, ())
    conflict = conflict_of(asset, change.finding)
    if conflict is not None:
        yield conflict
    if len(keys) > 1:
        yield Warn("two_keys", f"{asset} is recorded as {', '.join(keys)}", asset)
    currency = change.finding.position.currency
    if currency not in (None, "USD") and change.usd is None:
        yield Warn(
            "no_route_to_usd",
            f"{asset} was paid in {currency} and has no price in USD; its exposure is unknown",
            asset,
        )


@exact
def conflict_of(asset: str, finding: Finding) -> Warn | None:
    """Say where the recorded quantity is at no time what the fills imply."""
    conflict = finding.conflict
    if conflict is None:
        return None
    facts = {
        "recorded": text(conflict.recorded),
        "implied": text(conflict.implied),
        "difference": text(conflict.recorded - conflict.implied),
        "time": format_instant(conflict.at),
    }
    message = (
        f"{asset}: the state records {facts['recorded']} at {facts['time']}, where the fills imply "
        f"{facts['implied']} (difference {facts['difference']})"
    )
    return Warn("state_conflict", message, asset, facts)


def _about_the_fills(reading: Reading, scope: set[str]) -> Iterator[Warn]:
    read = reading.read
    if read.rejected:
        yield Warn(
            "rejected_rows",
            f"{len(read.rejected)} fill row(s) cannot be read for certain, which stops any write; "
            f"first: {read.rejected[0].origin}: {read.rejected[0].reason}",
        )
    if read.fills and not reading.asked:
        yield Warn(
            "window_empty",
            "no fill lies in the window; the newest one read is of "
            f"{format_instant(read.fills[-1].time)} (--since and --until move the window)",
        )
    for entry_id, why in reading.misread.items():
        yield Warn("implausible_fee", f"fill {entry_id}: {why}", facts={"entry_id": entry_id})
    if read.skipped_products:
        products = ", ".join(read.skipped_products)
        yield Warn("futures_skipped", f"fills of {products} are no spot fills: not replayed")
    if any(fill.quote in PEGS for fill in reading.fills):
        pegs = ", ".join(f"1 {currency} = 1 {unit}" for currency, unit in PEGS.items())
        yield Warn("peg", f"counted by convention: {pegs}", facts=dict.fromkeys(PEGS, "1"))
    paid_with = {fill.quote for fill in reading.asked} - CASH - scope
    for asset in sorted(paid_with):
        yield Warn("paid_with", f"{asset} paid for fills and is not in the state", asset)
