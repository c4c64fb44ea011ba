"""The steps of a bootstrap that leave the state alone: each looks or fetches, and says what came.

A step returns a `StepResult` and knows of no other step; in which order they run, and what becomes
of one that raises, is `bootstrap`'s. What is promised: a step never writes the state; what it could
not read is unknown, never none; ``partial`` says which part is lacking. The report of all steps is
here as well: plain values, for machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Protocol

from statestore.amounts import text
from statestore.disk.store import StateMeta, StateStore
from statestore.errors import BackendUnavailable, SchemaOutdated, StateStoreError
from statestore.model import Balances
from statestore.runtime.collecting import BarCollector, Outcome, age_seconds
from statestore.times import format_instant

STALE_AFTER = 300  # seconds since the newest bar of 1m that a group collected was closed

StepStatus = Literal["ok", "partial", "failed", "disabled", "skipped"]
Overall = Literal["ok", "partial", "degraded", "failed"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step.

    Attributes:
        detail: in a sentence, for people.
        counts: for machines.
        ms: that it took; filled in by the system.
        data: what was found, plain values.
        errors: what was raised on the way; not part of the report.
    """

    name: str
    status: StepStatus
    detail: str
    counts: Mapping[str, int] = field(default_factory=dict)
    ms: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[Exception, ...] = ()


@dataclass(frozen=True, slots=True)
class BootstrapReport:
    """What became of all of them.

    Attributes:
        status: ``ok``; ``partial``: a step did a part of its work; ``degraded``: one failed;
            ``failed``: two or more did, or the storage, without which nothing holds.
    """

    started_at: str
    status: Overall
    steps: tuple[StepResult, ...]
    ms: int

    def step(self, name: str) -> StepResult:
        """Return the result of one step."""
        return next(step for step in self.steps if step.name == name)

    def as_json(self) -> dict[str, Any]:
        """Return plain values: amounts are texts, which nothing rounds."""
        return {
            "schema": "statestore.bootstrap/1",
            "status": self.status,
            "started_at": self.started_at,
            "ms": self.ms,
            "steps": [
                {
                    "name": step.name,
                    "status": step.status,
                    "detail": step.detail,
                    "counts": dict(step.counts),
                    "ms": step.ms,
                    **_plain(step.data),
                }
                for step in self.steps
            ],
        }


def overall(steps: Iterable[StepResult]) -> Overall:
    """Return the status of a report with these steps; see `BootstrapReport`."""
    failed = [step.name for step in steps if step.status == "failed"]
    if len(failed) > 1 or "storage" in failed:
        return "failed"
    if failed:
        return "degraded"
    return "partial" if any(step.status == "partial" for step in steps) else "ok"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return text(value) if isinstance(value, Decimal) else value


class BalanceSource(Protocol):
    """What knows the wallet; every `FillSource` does."""

    def balances(self) -> Balances | None:
        """Return what is owned now, or None: this source does not know."""


class Tables(Protocol):
    """A database, of the state or beside it: what it is called, and which tables it lacks."""

    @property
    def name(self) -> str: ...

    def missing(self) -> Iterable[str]: ...


def check_storage(
    onlooker: StateStore, tables: Iterable[Tables], bars: BarCollector | None
) -> StepResult:
    """Read the state and the bar store, and ask each database for its tables.

    Raises:
        StateStoreError: the state does not read.
        BackendUnavailable: a database is away, and no file stood in for it.
    """
    missing, away = _missing(tables)
    if missing:  # the state may be in one of them
        return _without_tables(missing)
    state = onlooker.load()
    if away is not None and state.meta.recovered_from is None:
        raise away  # and no file stands in for it
    aside = None if bars is None else bars.store.check()
    counts = {"revision": state.meta.revision, "missing_tables": 0}
    lost = "; ".join(_lost(state.meta, aside))
    if lost:
        return StepResult("storage", "partial", lost, counts, errors=(away,) if away else ())
    there = bool(state) or bool(state.meta.revision)
    detail = f"revision {state.meta.revision} reads" if there else "no state yet: a first start"
    return StepResult("storage", "ok", detail, counts)


def _missing(tables: Iterable[Tables]) -> tuple[dict[str, list[str]], BackendUnavailable | None]:
    """Return the tables that each database lacks, and the error of one that could not be asked."""
    missing: dict[str, list[str]] = {}
    away: BackendUnavailable | None = None
    for other in tables:
        try:
            names = sorted(other.missing())
        except BackendUnavailable as error:
            away = error
            continue
        if names:
            missing[other.name] = names
    return missing, away


def _without_tables(missing: Mapping[str, list[str]]) -> StepResult:
    named = "; ".join(f"{name}: {', '.join(names)}" for name, names in missing.items())
    why = f"tables are missing in {named}; `statestore db init` makes those that are ours"
    counts = {"missing_tables": sum(map(len, missing.values()))}
    data, errors = {"missing": missing}, (SchemaOutdated(why),)
    return StepResult("storage", "failed", why, counts, data=data, errors=errors)


def _lost(meta: StateMeta, aside: Path | None) -> Iterator[str]:
    if meta.recovered_from is not None:
        yield f"the state was read from {meta.recovered_from}: {meta.recovered_why}"
    if aside is not None:
        yield (
            f"the bar store was damaged, and moved to {aside}: what can be fetched is fetched "
            "again, what the bot collected itself is in there"
        )


def read_balances(
    source: BalanceSource | None, expected: Mapping[str, Decimal] | None
) -> StepResult:
    """Read what the wallet holds, and compare it with what was noted before; or say unknown."""
    unknown = {"balances": None}
    if source is None:
        return StepResult("balances", "disabled", "no source of balances", data=unknown)
    try:
        found = source.balances()
    except StateStoreError as error:
        detail = f"unknown: {error}"
        return StepResult("balances", "partial", detail, data=unknown, errors=(error,))
    if found is None:
        return StepResult("balances", "partial", "unknown to this source", data=unknown)
    amounts = {name: found.amounts[name] for name in sorted(found.amounts)}
    counts = {"currencies": len(amounts)}
    data: dict[str, Any] = {"balances": amounts}
    if expected is not None:
        data["differences"] = {
            name: {"noted": expected.get(name), "found": found.of(name)}
            for name in sorted({*expected, *amounts})
            if found.of(name) != expected.get(name, Decimal(0))
        }
        counts["differences"] = len(data["differences"])
        if data["differences"]:
            named = ", ".join(data["differences"])
            detail = f"not what was noted before: {named}"
            return StepResult("balances", "partial", detail, counts, data=data)
    if not any(amounts.values()):
        return StepResult("balances", "partial", "the wallet is empty", counts, data=data)
    return StepResult("balances", "ok", f"{len(amounts)} currencies", counts, data=data)


def check_collection(bars: BarCollector | None, present: int) -> StepResult:
    """Say which groups of bars that the bot collects itself are stale."""
    if bars is None:
        return StepResult("collection", "disabled", "no bars are kept")
    groups: dict[str, dict[str, Any]] = {}
    for (symbol, tf), extent in sorted(bars.store.extents().items()):
        one = bars.series.get(symbol)
        if tf == "1m" and (one is None or one.backfill != "composite"):
            group = one.group if one is not None else "lowcaps"
            age = age_seconds(extent.newest, tf, present)
            former = groups.get(group)
            if former is None or age < former["age_seconds"]:
                newest = format_instant(extent.newest)
                groups[group] = {"newest": newest, "age_seconds": age}
    at_start = {one.group for one in bars.series.values() if one.backfill == "at_start"}
    for name, found in groups.items():
        found["stale"] = found["age_seconds"] > STALE_AFTER
        found["fetched"] = name in at_start
    # What the bars step fetches is no matter; what only the bot collects is.
    lost = [name for name, found in groups.items() if found["stale"] and not found["fetched"]]
    counts = {"groups": len(groups), "stale": sum(g["stale"] for g in groups.values())}
    data = {"groups": groups}
    if lost:
        detail = f"nothing was collected for {STALE_AFTER} s and more: {', '.join(lost)}"
        return StepResult("collection", "partial", detail, counts, data=data)
    detail = f"{len(groups)} group(s) of bars" if groups else "nothing was collected yet"
    return StepResult("collection", "ok", detail, counts, data=data)


def connect(stream: Callable[[], object] | None) -> StepResult:
    """Connect whatever has to be, if anything was given."""
    if stream is None:
        return StepResult("stream", "disabled", "no stream is configured")
    stream()
    return StepResult("stream", "ok", "connected")


def fill_bars(bars: BarCollector | None, *, force: bool) -> StepResult:
    """Fetch what is missing in the series that are fetched at the start."""
    if bars is None:
        return StepResult("bars", "disabled", "no bars are kept")
    done = bars.backfill_majors(force=force)
    lacking = [one for one in done if one.why]
    counts = {
        "series": len(done),
        "asked": sum(one.asked for one in done),
        "written": sum(one.written for one in done),
        "lacking": len(lacking),
    }
    data: dict[str, Any] = {"series": {}}
    for one in done:
        data["series"].setdefault(one.symbol, {})[one.tf] = _told(one)
    detail = f"{counts['written']} bar(s) written, {counts['asked']} series asked for"
    if lacking:
        first = f"{lacking[0].symbol} {lacking[0].tf}: {lacking[0].why}"
        more = f"; {len(lacking) - 1} more lack something" if len(lacking) > 1 else ""
        detail = f"{detail}; {first}{more}"
    errors = tuple(one.error for one in done if one.error is not None)
    status: StepStatus = "partial" if lacking else "ok"
    return StepResult("bars", status, detail, counts, data=data, errors=errors)


def _told(one: Outcome) -> dict[str, Any]:
    return {
        "reason": one.reason,
        "asked": one.asked,
        "written": one.written,
        "bars": one.bars,
        "newest": None if one.newest is None else format_instant(one.newest),
        "enough": one.enough,
        "why": one.why or None,
    }
