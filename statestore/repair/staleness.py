"""Whether a kept plan is still what a rebuild would write, and if not, what changed.

Before a plan is applied, everything is read and computed again as of the plan's own time; unless
state, source, balances and fills are what they were, and the result is the same to the digit,
`PlanStale` names what changed. Prices are not read again: a mark that moved stops nothing.

Balances count for the assets the plan answers for, fills for the whole window, to the present.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from statestore import __version__
from statestore.amounts import text
from statestore.disk.codec import to_json
from statestore.disk.store import StateMeta
from statestore.errors import PlanStale
from statestore.fills.decoding import decode_json
from statestore.fills.sources import FillSource
from statestore.model import Balances, Batch, Fill, Product
from statestore.repair.plan import Evidence
from statestore.repair.planfile import SavedPlan, inputs_of, outcome_of
from statestore.repair.rebuild import Proposal
from statestore.times import format_instant


class AsPlanned:
    """A `FillSource` that gives the products as the plan has them, and asks for all else anew."""

    def __init__(self, source: FillSource, saved: SavedPlan) -> None:
        self._source = source
        self._saved = saved
        self.name = source.name

    def fills(self, since: int, until: int | None) -> Batch:
        return self._source.fills(since, until)

    def balances(self) -> Balances | None:
        return self._source.balances()

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        known = self._saved.products
        return {name: known[name] for name in product_ids if name in known}


def require_state(saved: SavedPlan, meta: StateMeta) -> None:
    """Raise `PlanStale` unless the state is the one the plan was made for."""
    planned = saved.body["state"]
    if (meta.revision, meta.sha256) != (planned["revision"], planned["sha256"]):
        by = f", saved at {meta.saved_at} for {meta.reason!r}" if meta.saved_at else ""
        raise _stale(
            saved,
            [
                f"the state {meta.state_path} is at revision {meta.revision} "
                f"({meta.sha256[:12]}{by}), the plan is for revision {planned['revision']} "
                f"({planned['sha256'][:12]})"
            ],
        )


def require_same(saved: SavedPlan, proposal: Proposal) -> None:
    """Raise `PlanStale` unless the proposal, computed just now, is the plan."""
    require_state(saved, proposal.state.meta)
    changed = [
        *_changed_source(saved, proposal.plan.evidence),
        *_changed_inputs(saved.body["inputs"], proposal, saved.window.read_at),
    ]
    changed = changed or list(_changed_outcome(saved.body, _as_read(outcome_of(proposal))))
    if changed:
        raise _stale(saved, changed)


def _stale(saved: SavedPlan, changed: Sequence[str]) -> PlanStale:
    return PlanStale(
        f"{saved.path} is stale, so nothing was written: {'; '.join(changed)}. "
        "Make a new plan (--out), read it, and apply that"
    )


def _changed_source(saved: SavedPlan, evidence: Evidence) -> Iterator[str]:
    for what, today in (("source", evidence.source), ("portfolio", evidence.portfolio)):
        then = saved.body[what]
        if then != today:
            yield f"the {what} is {today}, the plan was made from {then}"


def _changed_inputs(then: Mapping[str, Any], proposal: Proposal, planned_at: int) -> Iterator[str]:
    today = _as_read(inputs_of(proposal))
    for asset in _both(then["balances"], today["balances"]):
        old, new = then["balances"].get(asset), today["balances"].get(asset)
        if old != new:
            yield f"the balance of {asset} is {new or 'unknown'}, was {old or 'unknown'}"
    for asset in _both(then["fills"], today["fills"]):
        old, new = (side["fills"].get(asset) for side in (then, today))
        if old != new:
            yield _changed_fills(asset, old, new, proposal.reading.fills, planned_at)
    if then["rejected"] != today["rejected"]:
        yield f"{today['rejected']} fill row(s) cannot be read, were {then['rejected']}"


def _changed_fills(
    asset: str,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any] | None,
    fills: Sequence[Fill],
    planned_at: int,
) -> str:
    counts = f"{new['count'] if new else 0} fill(s) of {asset}, were {old['count'] if old else 0}"
    later = [f for f in fills if f.time >= planned_at and asset in (f.base, f.quote)]
    if later:
        newest = later[-1]
        counts += (
            f" (the newest: {newest.side.value} {text(newest.units)} {newest.product_id} at "
            f"{format_instant(newest.time)}, entry_id {newest.entry_id})"
        )
    elif old and new and old["count"] == new["count"]:
        counts += ", not the same ones"
    return counts


def _changed_outcome(then: Mapping[str, Any], today: Mapping[str, Any]) -> Iterator[str]:
    old, new = ({change["asset"]: change for change in side["changes"]} for side in (then, today))
    for asset in _both(old, new):
        before, after = old.get(asset), new.get(asset)
        if before == after:
            continue
        if before is None or after is None:
            yield f"{asset} is {'no longer' if after is None else 'now'} in scope"
        elif before["status"] != after["status"]:
            yield f"{asset} is {after['status']} ({after['reason']}), was {before['status']}"
        else:
            fields = [name for name in _both(before, after) if before.get(name) != after.get(name)]
            yield (
                f"{asset} is computed otherwise ({', '.join(fields)}), by version {__version__}; "
                f"the plan was made by version {then['version']}"
            )


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


def _as_read(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """As it is once it has been a file, so that what is compared is of one kind."""
    read = decode_json(to_json(value))
    assert isinstance(read, dict)
    return read
