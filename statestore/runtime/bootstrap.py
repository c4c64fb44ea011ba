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

What the first steps look at is in `steps`, what a row of a driver is in `drivers`; here is when
they run, and how what was found gets into the state.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from statestore.disk.locks import lease_held
from statestore.disk.store import State, StateStore
from statestore.errors import StateStoreError, UsageError
from statestore.runtime.bars import MIN_BARS, Bar
from statestore.runtime.collecting import REGIME_TIMEFRAMES, BarCollector
from statestore.runtime.drivers import (
    DRIVERS,
    Rows,
    driver_key,
    driver_rows,
    drivers_of,
    merge,
)
from statestore.runtime.steps import (
    BalanceSource,
    BootstrapReport,
    StepResult,
    Tables,
    check_collection,
    check_storage,
    connect,
    fill_bars,
    overall,
    read_balances,
)
from statestore.times import format_instant, now

if TYPE_CHECKING:
    from statestore.runtime.session import TradingSession

__all__ = [
    "STEPS",
    "BootstrapReport",
    "BootstrapSystem",
    "StepResult",
]

logger = logging.getLogger(__name__)

STEPS = ("storage", "balances", "collection", "stream", "drivers", "bars", "ta", "states")

# Symbol, timeframe and bars, oldest first; at least `MIN_BARS` of them.
Ta = Callable[[str, str, Sequence[Bar]], Mapping[str, Any]]
# Symbol, timeframe, bars, and what `Ta` gave of them; None where no such hook is given.
States = Callable[[str, str, Sequence[Bar], Mapping[str, Any] | None], Mapping[str, Any]]
Change = Callable[[State], None]


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
        self._drivers = tuple(drivers)
        self._timeframes = tuple(timeframes)
        self._ta = ta
        self._states = states
        self._background = background
        databases = tuple(tables)
        own: dict[str, Step | None] = {
            "storage": lambda _: check_storage(self._onlooker, databases, bars),
            "balances": lambda _: read_balances(balances, expected),
            "collection": lambda _: check_collection(bars, clock()),
            "stream": lambda _: connect(stream),
            "drivers": self._create_drivers,
            "bars": lambda force: fill_bars(bars, force=force),
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
            report = BootstrapReport(started_at, overall(done), done, _ms(begun))
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

    def _create_drivers(self, _force: bool) -> StepResult:
        wanted = self._rows()
        missing = wanted.keys() - drivers_of(self._onlooker.load()).keys()
        if missing:
            self._write(lambda state: merge(state, wanted))
        counts = {"created": len(missing), "drivers": len(wanted)}
        detail = f"{len(missing)} created, {len(wanted) - len(missing)} were there"
        return StepResult("drivers", "ok", detail, counts)

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
            self._write(lambda state: merge(state, rows, found))
        counts = {"computed": len(found), "waiting": waiting, "failed": len(failed)}
        detail = f"{len(found)} computed, {waiting} wait for {MIN_BARS} bars or their indicators"
        if failed:
            first = "; ".join(f"{of}: {error}" for of, error in list(failed.items())[:1])
            detail = f"{detail}, {len(failed)} failed; {first}"
            return StepResult(name, "partial", detail, counts, errors=tuple(failed.values()))
        return StepResult(name, "ok", detail, counts)

    # The state

    def _rows(self) -> Rows:
        return driver_rows(self._drivers, self._timeframes)

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
            raise lease_held(
                self._store.path,
                holder,
                "let it run the bootstrap itself (TradingSession(bootstrap=...)), or stop it first",
            )
        # Exact: what is not changed keeps its digits.
        with self._store.transaction(reason="bootstrap", numbers="decimal") as state:
            change(state)


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1_000)
