"""What a bot needs beside its state, made or fetched at the start: eight steps, none of them fatal.

::

    system = BootstrapSystem(store, bars=BarCollector(bar_store, BinanceCandles()), ta=my_ta)
    report = system.bootstrap_all()                       # now, in this thread
    with TradingSession(store, bootstrap=system) as session: ...  # meanwhile, while it trades

=============  ================================================================================
storage        the state and the bar store read, databases have their tables
balances       what the wallet holds, by a `BalanceSource`; what could not be had is unknown
collection     whether the bars the bot collects itself are fresh, by group
stream         whatever has to be connected, if anything was given
drivers        the rows of the regime drivers are in the state, created once
bars           the series are full; see `runtime.collecting`
ta             indicators of each driver with enough bars, by a hook
states         the state of each driver, by a hook
=============  ================================================================================

What is promised:

* `bootstrap_all` never raises for what a step met with. A step that raises is ``failed``, one that
  could do a part of its work ``partial``, and the next one runs.
* Nothing is done twice: a second run sends no request and leaves the state at its revision.
* The state is written in short transactions, after what goes in was fetched and computed; others
  save meanwhile. A state that a running bot holds is not written: let the bot run the bootstrap
  (`TradingSession(bootstrap=...)`), and what is found is put in at its ticks, in its own thread.
* Only the section ``regime_drivers`` is written. A driver is no position: it holds nothing, and a
  rebuild has nothing to say of it.

It is long for a module because it is eight steps, each read with the one before it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol

from statestore.amounts import json_type, text
from statestore.disk.store import State, StateStore
from statestore.errors import (
    BackendUnavailable,
    LeaseHeld,
    SchemaOutdated,
    StateInvalid,
    StateStoreError,
    UsageError,
)
from statestore.model import Balances
from statestore.runtime.bars import MIN_BARS, Bar
from statestore.runtime.collecting import REGIME_TIMEFRAMES, BarCollector, Outcome, age_seconds
from statestore.times import format_instant, now

if TYPE_CHECKING:
    from statestore.runtime.session import TradingSession

logger = logging.getLogger(__name__)

STEPS = ("storage", "balances", "collection", "stream", "drivers", "bars", "ta", "states")
DRIVERS = ("BTC", "ALT", "nano", "small", "mid", "big", "BTC.d", "USDT.d")
SECTION = "regime_drivers"
STALE_AFTER = 300  # seconds since the newest bar of 1m that a group collected was closed

StepStatus = Literal["ok", "partial", "failed", "disabled", "skipped"]
Overall = Literal["ok", "partial", "degraded", "failed"]


class BalanceSource(Protocol):
    """What knows the wallet; every `FillSource` does."""

    def balances(self) -> Balances | None:
        """Return what is owned now, or None: this source does not know."""


class Tables(Protocol):
    """A database, of the state or beside it: what it is called, and which tables it lacks."""

    @property
    def name(self) -> str: ...

    def missing(self) -> Iterable[str]: ...


# Symbol, timeframe and bars, oldest first; at least `MIN_BARS` of them.
Ta = Callable[[str, str, Sequence[Bar]], Mapping[str, Any]]
# Symbol, timeframe, bars, and what `Ta` gave of them; None where no such hook is given.
States = Callable[[str, str, Sequence[Bar], Mapping[str, Any] | None], Mapping[str, Any]]
Change = Callable[[State], None]


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


Step = Callable[[bool], StepResult]


class BootstrapSystem:
    """See the module. One system serves one state; it may run any number of times.

    Attributes:
        report: of the newest run that ended; None before.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        bars: BarCollector | None = None,
        balances: BalanceSource | None = None,
        expected: Mapping[str, Decimal] | None = None,
        stream: Callable[[], object] | None = None,
        tables: Iterable[Tables] = (),
        drivers: Iterable[str] = DRIVERS,
        timeframes: Sequence[str] = REGIME_TIMEFRAMES,
        ta: Ta | None = None,
        states: States | None = None,
        steps: Mapping[str, Step | None] | None = None,
        background: bool = True,
        clock: Callable[[], int] = now,
    ) -> None:
        """Remember what to do; nothing is read or sent yet.

        Args:
            bars: keeps the bars; None disables the steps that need them.
            balances: None disables the step.
            expected: balances that were noted before a wipe, to compare with.
            stream: called to connect whatever has to be; None: nothing has.
            tables: what has to have its tables, as the `Database` of a state in PostgreSQL.
            drivers: symbols that get a row for each of ``timeframes``.
            ta: computes what is stored as ``features.ta`` of a driver's row.
            states: computes what is stored as ``features.states``; its ``state``, if it has one,
                becomes the row's.
            steps: in place of those of the same name, or after them; None takes one out. A step is
                called with ``force`` and returns its `StepResult`.
            background: whether a `TradingSession` goes on while the steps run.
            clock: the present instant.
        """
        self.report: BootstrapReport | None = None
        self._store = store
        # Reads without being taken for the writer who saw what it reads.
        self._onlooker = store.onlooker()
        self._bars = bars
        self._balances = balances
        self._expected = expected
        self._stream = stream
        self._tables = tuple(tables)
        self._drivers = tuple(drivers)
        self._timeframes = tuple(timeframes)
        self._ta = ta
        self._states = states
        self._background = background
        self._clock = clock
        own: dict[str, Step | None] = {
            "storage": self._storage,
            "balances": self._wallet,
            "collection": self._collection,
            "stream": self._connect,
            "drivers": self._create_drivers,
            "bars": self._fill_bars,
            "ta": self._compute_ta,
            "states": self._compute_states,
        }
        self._steps = {name: step for name, step in {**own, **(steps or {})}.items() if step}
        self._computed: dict[tuple[str, str], Mapping[str, Any]] = {}  # by `ta`, in this run
        self._session: TradingSession | None = None
        self._changes: deque[Change] = deque()
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None

    # Running

    def bootstrap_all(self, *, force: bool = False) -> BootstrapReport:
        """Run the steps in order and return what became of each; see the module.

        Args:
            force: fetch all bars anew, whatever is kept.

        Raises:
            UsageError: it is running already.
        """
        if self._session is not None and not self._session.running:
            self._session = None  # it has ended, and nobody would put in what is found
        self._claim()
        return self._run_all(force)

    def start(self, *, force: bool = False) -> None:
        """Run the steps in a thread of their own; `wait` for it, or look at `report`.

        The thread ends with the process; what it was about to write is written whole or not at all.

        Raises:
            UsageError: it is running already.
        """
        self._claim()  # here, where somebody is told that it is running already
        if self._session is not None and not self._session.running:
            self._session = None
        self._thread = threading.Thread(
            target=self._run_all, args=(force,), name="bootstrap", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> BootstrapReport | None:
        """Wait for `start` to end, for so long at most; return the newest report."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.report

    def _claim(self) -> None:
        if not self._running.acquire(blocking=False):
            raise UsageError("the bootstrap is running already; wait for it")

    def _run_all(self, force: bool) -> BootstrapReport:
        """Run the steps; what `_claim` took is given back."""
        try:
            started_at = format_instant(now())
            begun = time.monotonic()
            self._computed.clear()
            done = tuple(self._run(name, step, force) for name, step in self._steps.items())
            report = BootstrapReport(started_at, _overall(done), done, _ms(begun))
            self.report = report
        finally:
            self._running.release()
        logger.log(
            logging.INFO if report.status == "ok" else logging.WARNING,
            "bootstrap ended",
            extra={"status": report.status, "ms": report.ms},
        )
        return report

    # In a session

    def begin(self, session: TradingSession) -> None:
        """Called by a session that has started."""
        self._session = session
        if self._thread is not None and self._thread.is_alive():
            return  # from a session before: what it finds is for this one
        if self._background:
            self.start()
            return
        self.bootstrap_all()
        if self.deliver(session.state):
            session.save("bootstrap")

    def deliver(self, state: State) -> bool:
        """Put what is ready into the state, in the thread that owns it; return whether there was.

        Called by the session's ticks.
        """
        delivered = False
        while self._changes:
            change = self._changes.popleft()
            try:
                change(state)
            except Exception:  # whatever somebody put there, there are positions to mind
                logger.exception("what the bootstrap found cannot be put in")
            else:
                delivered = True
        return delivered

    # The steps

    def _run(self, name: str, step: Step, force: bool) -> StepResult:
        begun = time.monotonic()
        try:
            result = replace(step(force), name=name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a hook that exits or is cancelled ends no bot
            expected = isinstance(error, StateStoreError)
            logger.log(
                logging.WARNING if expected else logging.ERROR,
                "bootstrap step failed",
                extra={"step": name, "why": str(error)},
                exc_info=None if expected else error,
            )
            detail = str(error) if expected else f"{type(error).__name__}: {error}"
            met = (error,) if isinstance(error, Exception) else ()
            result = StepResult(name, "failed", detail, errors=met)
        return replace(result, ms=_ms(begun))

    def _storage(self, _force: bool) -> StepResult:
        missing: dict[str, list[str]] = {}
        away: BackendUnavailable | None = None
        for other in self._tables:
            try:
                names = sorted(other.missing())
            except BackendUnavailable as error:
                away = error
                continue
            if names:
                missing[other.name] = names
        if missing:  # the state may be in one of them
            named = "; ".join(f"{name}: {', '.join(names)}" for name, names in missing.items())
            why = f"tables are missing in {named}; `statestore db init` makes those that are ours"
            counts = {"missing_tables": sum(map(len, missing.values()))}
            data, errors = {"missing": missing}, (SchemaOutdated(why),)
            return StepResult("storage", "failed", why, counts, data=data, errors=errors)
        state = self._onlooker.load()
        if away is not None and state.meta.recovered_from is None:
            raise away  # and no file stands in for it
        there = bool(state) or bool(state.meta.revision)
        aside = None if self._bars is None else self._bars.store.check()
        counts = {"revision": state.meta.revision, "missing_tables": 0}
        lost = []
        if state.meta.recovered_from is not None:
            lost.append(
                f"the state was read from {state.meta.recovered_from}: {state.meta.recovered_why}"
            )
        if aside is not None:
            lost.append(
                f"the bar store was damaged, and moved to {aside}: what can be fetched is fetched "
                "again, what the bot collected itself is in there"
            )
        if lost:
            met = () if away is None else (away,)
            return StepResult("storage", "partial", "; ".join(lost), counts, errors=met)
        detail = f"revision {state.meta.revision} reads" if there else "no state yet: a first start"
        return StepResult("storage", "ok", detail, counts)

    def _wallet(self, _force: bool) -> StepResult:
        unknown = {"balances": None}
        if self._balances is None:
            return StepResult("balances", "disabled", "no source of balances", data=unknown)
        try:
            found = self._balances.balances()
        except StateStoreError as error:
            detail = f"unknown: {error}"
            return StepResult("balances", "partial", detail, data=unknown, errors=(error,))
        if found is None:
            return StepResult("balances", "partial", "unknown to this source", data=unknown)
        amounts = {name: found.amounts[name] for name in sorted(found.amounts)}
        counts = {"currencies": len(amounts)}
        data: dict[str, Any] = {"balances": amounts}
        if self._expected is not None:
            data["differences"] = {
                name: {"noted": self._expected.get(name), "found": found.of(name)}
                for name in sorted({*self._expected, *amounts})
                if found.of(name) != self._expected.get(name, Decimal(0))
            }
            counts["differences"] = len(data["differences"])
            if data["differences"]:
                named = ", ".join(data["differences"])
                detail = f"not what was noted before: {named}"
                return StepResult("balances", "partial", detail, counts, data=data)
        if not any(amounts.values()):
            return StepResult("balances", "partial", "the wallet is empty", counts, data=data)
        return StepResult("balances", "ok", f"{len(amounts)} currencies", counts, data=data)

    def _collection(self, _force: bool) -> StepResult:
        if self._bars is None:
            return StepResult("collection", "disabled", "no bars are kept")
        present, extents = self._clock(), self._bars.store.extents()
        groups: dict[str, dict[str, Any]] = {}
        for (symbol, tf), extent in sorted(extents.items()):
            one = self._bars.series.get(symbol)
            if tf == "1m" and (one is None or one.backfill != "composite"):
                group = one.group if one is not None else "lowcaps"
                age = age_seconds(extent.newest, tf, present)
                former = groups.get(group)
                if former is None or age < former["age_seconds"]:
                    newest = format_instant(extent.newest)
                    groups[group] = {"newest": newest, "age_seconds": age}
        at_start = {one.group for one in self._bars.series.values() if one.backfill == "at_start"}
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

    def _connect(self, _force: bool) -> StepResult:
        if self._stream is None:
            return StepResult("stream", "disabled", "no stream is configured")
        self._stream()
        return StepResult("stream", "ok", "connected")

    def _create_drivers(self, _force: bool) -> StepResult:
        wanted = self._rows()
        missing = wanted.keys() - _drivers_of(self._onlooker.load()).keys()
        if missing:
            self._write(lambda state: _merge(state, wanted))
        counts = {"created": len(missing), "drivers": len(wanted)}
        detail = f"{len(missing)} created, {len(wanted) - len(missing)} were there"
        return StepResult("drivers", "ok", detail, counts)

    def _fill_bars(self, force: bool) -> StepResult:
        if self._bars is None:
            return StepResult("bars", "disabled", "no bars are kept")
        done = self._bars.backfill_majors(force=force)
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

    def _compute_ta(self, _force: bool) -> StepResult:
        if self._ta is None:
            return StepResult("ta", "disabled", "no hook computes indicators")
        compute = self._ta

        def one(symbol: str, tf: str, bars: Sequence[Bar]) -> Mapping[str, Any]:
            self._computed[symbol, tf] = compute(symbol, tf, bars)
            return {"features": {"ta": dict(self._computed[symbol, tf])}}

        return self._each_driver("ta", one)

    def _compute_states(self, _force: bool) -> StepResult:
        if self._states is None:
            return StepResult("states", "disabled", "no hook computes states")
        compute = self._states

        def one(symbol: str, tf: str, bars: Sequence[Bar]) -> Mapping[str, Any]:
            found = dict(compute(symbol, tf, bars, self._computed.get((symbol, tf))))
            said = {"state": found["state"]} if "state" in found else {}
            return {**said, "features": {"states": found}}

        # Without its indicators, where there are any, a driver's state is not computed.
        return self._each_driver(
            "states", one, lambda symbol, tf: self._ta is None or (symbol, tf) in self._computed
        )

    def _each_driver(
        self,
        name: str,
        compute: Callable[[str, str, Sequence[Bar]], Mapping[str, Any]],
        ready: Callable[[str, str], bool] = lambda _symbol, _tf: True,
    ) -> StepResult:
        """Compute for each driver with enough bars, then write what came out in one go."""
        if self._bars is None:
            return StepResult(name, "disabled", "no bars are kept")
        found: dict[str, Mapping[str, Any]] = {}
        waiting = 0
        failed: dict[str, Exception] = {}
        for symbol in self._drivers:
            for tf in self._timeframes:
                bars = self._bars.store.bars(symbol, tf)
                if len(bars) < MIN_BARS or not ready(symbol, tf):
                    waiting += 1
                    continue
                try:
                    found[driver_key(symbol, tf)] = compute(symbol, tf, bars)
                except Exception as error:
                    failed[f"{symbol} {tf}"] = error
                    logger.exception(
                        "hook failed", extra={"hook": name, "symbol": symbol, "tf": tf}
                    )
        if found:
            rows = self._rows()
            self._write(lambda state: _merge(state, rows, found))
        counts = {"computed": len(found), "waiting": waiting, "failed": len(failed)}
        detail = f"{len(found)} computed, {waiting} wait for {MIN_BARS} bars or their indicators"
        if failed:
            first = "; ".join(f"{of}: {error}" for of, error in list(failed.items())[:1])
            detail = f"{detail}, {len(failed)} failed; {first}"
            return StepResult(name, "partial", detail, counts, errors=tuple(failed.values()))
        return StepResult(name, "ok", detail, counts)

    # The state

    def _rows(self) -> dict[str, dict[str, Any]]:
        return {
            driver_key(symbol, tf): driver_row(symbol, tf)
            for symbol in self._drivers
            for tf in self._timeframes
        }

    def _write(self, change: Change) -> None:
        """Change the state: now and durably, or by the session at its next tick.

        Raises:
            LeaseHeld: a bot holds the state.
        """
        if self._session is not None:
            self._changes.append(change)
            return
        holder = self._store.lease_holder()
        if holder is not None:
            raise LeaseHeld(
                self._store.path,
                f"a bot runs on {self._store.path}: process {holder.get('pid', 'unknown')} on "
                f"{holder.get('host', 'unknown host')}; let it run the bootstrap itself "
                "(TradingSession(bootstrap=...)), or stop it first",
            )
        # Exact: what is not changed keeps its digits.
        with self._store.transaction(reason="bootstrap", numbers="decimal") as state:
            change(state)


def driver_key(symbol: str, tf: str) -> str:
    """Return what a driver's row is found by in the section: ``regime_BTC/1h``."""
    return f"regime_{symbol}/{tf}"


def driver_row(symbol: str, tf: str) -> dict[str, Any]:
    """Return a driver that nothing was computed for yet."""
    return {
        "token_contract": f"regime_{symbol}",
        "token_chain": "regime",
        "token_ticker": symbol,
        "timeframe": tf,
        "status": "regime_driver",
        "state": "S4",
        "features": {},
    }


def _drivers_of(state: State) -> Mapping[str, Any]:
    found = state.get(SECTION, {})
    if not isinstance(found, Mapping):
        raise StateInvalid(
            state.meta.state_path,
            f"{state.meta.state_path}: {SECTION} is {json_type(found)}, and has to be an object; "
            "the bootstrap will not write over it: rename what is there, with `statestore edit`",
            SECTION,
        )
    return found


def _merge(
    state: State,
    rows: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Add the rows that are missing, and what was found to those it is of."""
    drivers = dict(_drivers_of(state))
    for key, row in rows.items():
        drivers.setdefault(key, dict(row))
    for key, new in (found or {}).items():
        row = drivers[key]
        features = {**(row.get("features") or {}), **new["features"]}
        drivers[key] = {**row, **new, "features": features}
    state[SECTION] = drivers


def _overall(steps: Iterable[StepResult]) -> Overall:
    failed = [step.name for step in steps if step.status == "failed"]
    if len(failed) > 1 or "storage" in failed:
        return "failed"
    if failed:
        return "degraded"
    return "partial" if any(step.status == "partial" for step in steps) else "ok"


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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return text(value) if isinstance(value, Decimal) else value


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1_000)
