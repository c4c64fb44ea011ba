"""The life of a bot on one state file: restore, trade, save, stop.

::

    with TradingSession(StateStore("data/.state.json"), strategies=[strategy]) as session:
        while session.running:                  # until SIGINT or SIGTERM
            if session.tick():                  # saves that are due, repairs, the kill switch
                session.state["positions"]["BTC-USD"] = {...}
                session.on_trade()              # on disk when this returns True
            session.wait(1)                     # seconds; a signal ends it early
    sys.exit(session.exit_code)

What is promised:

* one bot at a time: the lease is held from start to stop (`LeaseHeld` names who has it);
* a save is done when it says so. One that failed is logged, counted, handed to ``on_save_error``,
  tried again at the next tick and visible in `TradingSession.health`; trading goes on;
* SIGINT, SIGTERM, an exception and the end of the block save once. No signal interrupts a save;
* a state that somebody else saved (an operator's repair) replaces the one in memory at the next
  tick, or at the save that finds out; the one in memory never goes over it;
* with a `Mirror`, what it holds is taken over at the start where it is ahead of the file, and every
  save follows into it; the bot never waits for it, and what it owes is in `health`;
* a halted bot may save. While the kill switch is engaged, or cannot be looked at, `tick` says no;
  so it does while the lease of a state in a database is lost.

What is not: `TradingSession.state` is another object after a reload, so what was taken out of it
before is stale; take it anew in each cycle. What was not saved when a repair arrived is dropped
and named in the log. A bot that hangs in code of its own does not see the flag of a signal; kill it
with SIGKILL, which costs nothing that was saved. In ``DRY_RUN`` nothing is written, not even a
lease, so it can run beside the bot.

What has to be done every so often (`every`) is done by `tick`: at the next one, then in its rhythm.
What such a hook raises is logged and in `health`; the next time it is called again.

Where systemd started the bot (``Type=notify``, ``WatchdogSec=``), it is told of the start, of the
end, and by `tick` and `wait` that the bot is alive.

It is long for a module because it is one object: what a save, a reload, a tick and a signal may do
depends on what the others have begun, under the same lock. What does not is elsewhere: the books of
its saves in `books`, what is done every so often in `hooks`, the sections it keeps in `sections`,
signals in `interrupts`, systemd in `notify`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import statestore
from statestore import times
from statestore.config import service_manager
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import Numbers, State, StateMeta, StateStore
from statestore.errors import Place, RevisionConflict, StateStoreError, UsageError
from statestore.runtime import sections
from statestore.runtime.books import Books, Save
from statestore.runtime.hooks import Hook, Hooks
from statestore.runtime.interrupts import StopFlag
from statestore.runtime.notify import ServiceManager
from statestore.runtime.strategies import Strategies

if TYPE_CHECKING:
    from statestore.backends.mirror import Mirror
    from statestore.disk.locks import Lease
    from statestore.disk.saver import Saver

logger = logging.getLogger(__name__)

Mode = Literal["DRY_RUN", "PAPER", "LIVE"]
OnSaveError = Callable[[Exception], None]

INTERRUPTED = 130


class Bootstrap(Protocol):
    """What is to be run at the start of a session; `statestore.runtime.bootstrap` has one."""

    def begin(self, session: TradingSession) -> None: ...

    def deliver(self, state: State) -> bool: ...


class TradingSession:
    """One run of a bot. Made once, started once; threads may share it.

    Attributes:
        store: the state.
        kill_switch: what halts this bot.
        mode: as it stands in the ``session`` section.
        mirror: what follows the saves, if anything.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        kill_switch: KillSwitch | None = None,
        interval: float = 300,
        strategies: Iterable[object] = (),
        mode: Mode = "PAPER",
        config: Mapping[str, Any] | None = None,
        numbers: Numbers = "float",
        clock: Callable[[], float] = time.monotonic,
        on_save_error: OnSaveError | None = None,
        signals: bool = True,
        bootstrap: Bootstrap | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """Remember what to do; nothing is read, made or locked yet.

        Args:
            kill_switch: ``KILL_SWITCH`` beside the state unless given; what halts all machines
                that share the state counts as well.
            interval: seconds between two periodic saves.
            strategies: see `statestore.runtime.strategies`.
            config: what the bot runs with (``data_provider``, ``broker``, ``strategy``, ``pairs``
                and more); what is not said is null.
            numbers: ``float`` as bots expect, or ``decimal``; as in `StateStore.load`.
            clock: monotonic seconds.
            on_save_error: gets the error of every save that failed. What it raises is logged.
            signals: whether SIGINT and SIGTERM are to stop the session. Only the main thread can.
            bootstrap: begun once the session has started, except in ``DRY_RUN``; what it finds is
                put in and saved at ticks. See `statestore.runtime.bootstrap`.
            mirror: a database that the saves are to follow into, see `statestore.backends.mirror`;
                closed at the end. Not used in ``DRY_RUN``.

        Raises:
            UsageError: an option means nothing, or two strategies have one name.
        """
        if mode not in get_args(Mode):
            raise UsageError(f"mode is {mode!r}; it has to be one of {', '.join(get_args(Mode))}")
        if not interval > 0:
            raise UsageError(f"interval is {interval!r}; it has to be a number of seconds above 0")
        self.store = store
        self.kill_switch = store.kill_switch(kill_switch)
        self.mode: Mode = mode
        self._interval = interval
        self._config = None if config is None else sections.configuration(config)
        self._numbers: Numbers = numbers
        self._clock = clock
        self._on_save_error = on_save_error
        self._telling: int | None = None  # the thread that calls it
        self._signals = signals
        self._bootstrap = None if mode == "DRY_RUN" else bootstrap
        self.mirror = None if mode == "DRY_RUN" else mirror
        self._strategies = Strategies(strategies, store.path)
        self._manager = ServiceManager(*service_manager())
        # Reads without being taken for the writer who saw what it reads.
        self._onlooker = store.onlooker()

        self._lock = threading.RLock()
        self._state: State | None = None
        self._pid: int | None = None  # of the process that started it; None before and after
        self._ended = False
        self._flag = StopFlag()
        self._lease: Lease | None = None
        self._saver: Saver | None = None
        self._stopping: asyncio.Event | None = None
        self._started_at: str | None = None
        self._stopped: tuple[str, str] | None = None  # when, and by what
        self._began = 0.0
        self._periods = 0  # periodic saves that were due
        self._hooks = Hooks(clock)
        self._halted = False

        self._books = Books()
        self._in_flight = 0  # saves of other tasks
        self._reloads = 0
        self._reload_error: str | None = None
        self._restored_from: Place | None = None

    # What the bot looks at

    @property
    def state(self) -> State:
        """The state: change it in place, then `on_trade` or `save`. Another object after a reload.

        Raises:
            UsageError: the session was not started.
        """
        if self._state is None:
            raise UsageError("the session is not started: use it in a with block, or call start()")
        return self._state

    @property
    def running(self) -> bool:
        """Started, not stopped, and nobody asked to stop."""
        return self._pid == os.getpid() and self._flag.asked_by is None

    @property
    def may_trade(self) -> bool:
        """Running, the lease held, and the kill switch surely released at this moment."""
        return self.running and not self._lease_lost() and not self.kill_switch.engaged()

    @property
    def stopped_by(self) -> str | None:
        """What asked to stop: ``SIGINT``, ``SIGTERM``, or what `request_stop` was given."""
        return self._flag.asked_by

    @property
    def stopped_during(self) -> str | None:
        """The reason of the save that the signal came in the middle of; None if it did not."""
        return self._flag.during

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 130 after Ctrl-C, else 0."""
        return INTERRUPTED if self._flag.asked_by == "SIGINT" else 0

    def health(self) -> dict[str, Any]:
        """Return how the session is; plain values, for a health check or a metric.

        ``restored_from`` is the fallback that was read in place of the state file, if one was;
        ``ok`` is False while a save is owed, the state on disk cannot be taken over, a strategy is
        not saved, what is done `every` so often raised, or the lease is lost (of a state in a
        database, with its connection). ``saves`` counts those that were asked for and are done, by
        kind.
        """
        with self._lock:
            meta = self._state.meta if self._state is not None else None
            held = self._state.get("positions") if self._state is not None else None
            hooks = self._hooks.errors
            return {
                "ok": not (
                    self._books.owed
                    or self._reload_error
                    or self._strategies.errors
                    or hooks
                    or self._lease_lost()
                ),
                "running": self.running,
                "mode": self.mode,
                "started_at": self._started_at,
                "stopped_by": self.stopped_by,
                "kill_switch": self.kill_switch.status(),
                "lease": self._lease is not None and self._lease.held,
                "revision": meta.revision if meta else None,
                "restored_from": str(self._restored_from) if self._restored_from else None,
                "positions": len(held) if isinstance(held, Mapping) else None,
                **self._books.status(),
                "reloads": self._reloads,
                "reload_error": self._reload_error,
                "strategies": dict(self._strategies.errors),
                "hooks": hooks,
                "mirror": self.mirror.status() if self.mirror is not None else None,
            }

    # The life

    def start(self) -> Self:
        """Take the lease, restore the state, tell the strategies, save that a session began.

        Raises:
            LeaseHeld: another bot runs on this state; names its process, host and since when.
            StateCorrupt, StateChecksumMismatch, StateInvalid, StateError: as in `StateStore.load`.
            BackendError: there is no state, and the mirror that may hold one cannot be asked.
            UsageError: it was started before.
        """
        if self._pid is not None or self._ended:
            raise UsageError("a session is started once; make another one")
        self._pid = os.getpid()
        try:
            self._flag.open()
            if self._signals:
                self._flag.install()
            if self.mode != "DRY_RUN":
                self._lease = self.store.lease()
            if self.mirror is not None:
                self.mirror.take_over(self.store)
            self._started_at = times.format_instant(times.now())
            self.restore()
            self._began = self._clock()
            atexit.register(self._at_exit)
            self._save("start", "start")
            if self._bootstrap is not None:
                self._bootstrap.begin(self)
        except BaseException:
            self._let_go()
            raise
        self._tell_manager("READY=1")
        return self

    initialize = start

    def stop(self, reason: str = "stop") -> None:
        """Save once more, give the lease and the signals back; doing so twice does no harm.

        Raises:
            StateStoreError: the last save failed, so what happened since the one before is lost.
        """
        with self._lock:
            if self._pid != os.getpid():
                return
            self._tell_manager("STOPPING=1")
            try:
                self._stopped = times.format_instant(times.now()), reason
                if self.mode == "DRY_RUN":
                    return
                mine = self._state
                error = self._attempt("stop", reason)
                if error is not None and self._state is not mine:
                    # What somebody else saved was taken over: that is what this session ends with.
                    error = self._attempt("stop", reason)
                if error is not None:
                    raise error
            finally:
                self._let_go()

    def request_stop(self, why: str = "request") -> None:
        """Have the main loop find `running` False, from any thread."""
        self._flag.ask(why)

    def wait(self, seconds: float) -> bool:
        """Wait, until a signal or `request_stop` at most; return whether to go on."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            if self._flag.wait(min(left, self._manager.step_seconds)):
                return self.running
            if left <= self._manager.step_seconds:
                return self.running
            self._tell_manager("WATCHDOG=1")

    def tick(self) -> bool:
        """Do what is due; return whether the bot may trade in this cycle.

        A repair is taken over, saves that failed and the periodic one are made, and the kill switch
        is looked at - before anything else, so that a bot that was just released has the repaired
        state.
        """
        with self._lock:
            halted = self._look_at_kill_switch()
            self.refresh()
            self._poke_mirror()
            due = self._delivered() or self._due()
            if due is not None and self.mode != "DRY_RUN":
                self._attempt(*due)
        for hook in self._hooks_due():
            hook.run()  # without the lock: it may take its time, and others save meanwhile
        self._tell_manager("WATCHDOG=1")
        return self.running and not halted and not self._lease_lost()

    def every(self, seconds: float, do: Callable[[], object]) -> None:
        """Have `tick` call ``do`` when it is due: at the next tick, then every so many seconds.

        As `statestore.runtime.monitor.PositionMonitor.cycle`, every 10. It is called halted or
        not; with `atick` in a thread of its own.

        Raises:
            UsageError: ``seconds`` is not above 0.
        """
        if not seconds > 0:
            raise UsageError(f"every {seconds!r} seconds; a number of seconds above 0 is expected")
        self._hooks.add(do, seconds)

    # Saving

    def on_trade(self, detail: str = "") -> bool:
        """Save after a trade; return whether it is on disk (else the next tick tries again)."""
        return self._save("trade", f"trade {detail}" if detail else "trade")

    def save(self, reason: str = "manual") -> bool:
        """Save now; return whether it is on disk (else the next tick tries again).

        Content that did not change is on disk already: nothing is written, and the save is done.
        """
        return self._save("manual", reason)

    def save_current_trading_state(self, label: str = "manual") -> bool:
        """`save` under its name in the documents; the label is the revision's reason."""
        return self.save(label)

    def update_portfolio(self, total_value: Any = None, total_pnl: Any = None, **more: Any) -> None:
        """Set the portfolio's summary; what is not known is null. Not saved by itself."""
        state = self.state
        state["portfolio"] = sections.portfolio(
            sections.held(state), total_value, total_pnl, **more
        )

    # Restoring

    def restore(self) -> State:
        """Load the state from disk, in place of the one in memory, and tell the strategies.

        Raises:
            StateMissing: it is gone, and this is no start.
            StateCorrupt, StateChecksumMismatch, StateInvalid, StateError: as in `StateStore.load`;
                the state in memory is what it was.
        """
        with self._lock:
            # Nothing at all is a first start; under a running bot it is a loss.
            fresh = self.store.load(numbers=self._numbers, missing_ok=self._state is None)
            found = bool(fresh)
            sections.complete(fresh, self.store.path)
            self._books.drop()
            self._reload_error = None
            self._restored_from = fresh.meta.recovered_from
            if not found:
                self._take(fresh)
                logger.info("no previous trading state", extra={"path": str(self.store.path)})
                return fresh
            for line in sections.banner():
                logger.info(line)
            for line in sections.restored(fresh):
                logger.info(line)
            if self._state is None:
                self._say_how_the_last_one_ended(fresh)
            if self._take(fresh):
                self._say_what_was_restored(fresh.meta)
            return fresh

    _restore_trading_state = restore

    def refresh(self) -> bool:
        """Take over what somebody else saved; return whether there was anything.

        A state that cannot be read or is older than the one in memory is not taken over: that is
        logged and in `health`, and the next tick looks again.
        """
        with self._lock:
            # What a save of ours changes meanwhile is not somebody else's; and if somebody else
            # was first, that save finds out.
            if self._in_flight or (self._saver is not None and self._saver.busy):
                return False
            if self.store.changed():
                return self._reload()
            self._reload_error = None  # it stands, or is reached, again
            return False

    # For asyncio

    async def atick(self) -> bool:
        """`tick` for asyncio: the disk is waited for in a thread."""
        with self._lock:
            halted = self._look_at_kill_switch()
            self.refresh()
            self._poke_mirror()
            due = self._delivered() or self._due()
        if due is not None:
            await self._asave(*due)
        for hook in self._hooks_due():
            await asyncio.to_thread(hook.run)
        self._tell_manager("WATCHDOG=1")
        return self.running and not halted and not self._lease_lost()

    async def aon_trade(self, detail: str = "") -> bool:
        """`on_trade` for asyncio. What happens to the state after the call is not in this save."""
        return await self._asave("trade", f"trade {detail}" if detail else "trade")

    async def asave(self, reason: str = "manual") -> bool:
        """`save` for asyncio. What happens to the state after the call is not in this save."""
        return await self._asave("manual", reason)

    async def await_stop(self, seconds: float) -> bool:
        """`wait` for asyncio."""
        if self._stopping is None:
            raise UsageError("await_stop belongs into an `async with` block of the session")
        until = time.monotonic() + seconds
        while self.running:
            left = until - time.monotonic()
            with suppress(TimeoutError):
                step = min(left, self._manager.step_seconds)
                await asyncio.wait_for(self._stopping.wait(), max(0.0, step))
            if left <= self._manager.step_seconds:
                break
            self._tell_manager("WATCHDOG=1")
        return self.running

    # Blocks

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        reason = self._flag.asked_by or "exit"
        if kind is not None:
            reason = f"exception: {kind.__name__}"
        try:
            self.stop(reason)
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"and the state could not be saved: {failed}")

    async def __aenter__(self) -> Self:
        # Saves of several tasks, and the last one, reach the disk in the order they were asked for.
        self._saver = self.store.saver()
        self.start()
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self._flag.fileno()

        def wake() -> None:
            loop.remove_reader(descriptor)
            event.set()

        # The handler stays a flag; the loop is woken by the pipe it writes to.
        loop.add_reader(descriptor, wake)
        self._stopping = event
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The last save is not awaited: whoever cancels the task would cancel it.
        if self._flag.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._flag.fileno())
        self.__exit__(kind, error, traceback)

    # One save

    def _save(self, kind: str, reason: str) -> bool:
        return self.mode != "DRY_RUN" and self._attempt(kind, reason) is None

    def _attempt(self, kind: str | None, reason: str) -> Exception | None:
        """Save; return what went wrong, which is logged, counted and owed."""
        with self._lock:
            save = self._begin(kind, reason)
            try:
                self._compose()
                if self._saver is None:
                    meta = self.store.save(save.state, reason=reason)
                else:
                    meta = self._saver.save(save.state, reason=reason).result()
            except Exception as error:  # noqa: BLE001  # whatever it is, there are positions to mind
                self._failed(save, error)
                return error
            except BaseException:
                self._books.owe(save)
                raise
            self._saved(save, meta)
            return None

    async def _asave(self, kind: str | None, reason: str) -> bool:
        if self._saver is None:
            raise UsageError("to save asynchronously, use the session in an `async with` block")
        if self.mode == "DRY_RUN":
            return False
        with self._lock:
            save = self._begin(kind, reason)
            self._in_flight += 1
        try:
            with self._lock:
                self._compose()
                future = self._saver.save(save.state, reason=reason)
            meta = await asyncio.wrap_future(future)
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(save, error)
            return False
        except BaseException:
            self._books.owe(save)  # it was cancelled: carried out perhaps, told to nobody
            raise
        finally:
            with self._lock:
                self._in_flight -= 1
        self._saved(save, meta)
        return True

    def _begin(self, kind: str | None, reason: str) -> Save:
        if self._pid != os.getpid():
            raise UsageError("the session does not run in this process: it has no lease to save")
        self._flag.busy = reason
        return self._books.begin(self.state, kind, reason)

    def _compose(self) -> None:
        """Bring the sections that are the session's up to date."""
        state = self.state
        sections.complete(state, self.store.path)
        stopped_at, stopped_by = self._stopped or (None, None)
        state["session"] = {
            **state["session"],
            "mode": self.mode,
            "version": statestore.__version__,
            "started_at": self._started_at,
            "stopped_at": stopped_at,
            "stopped_by": stopped_by,
        }
        if self._config is not None:
            state["config"] = {**state["config"], **self._config}
        self._strategies.collect(state)

    def _saved(self, save: Save, meta: StateMeta) -> None:
        with self._lock:
            self._flag.busy = None
            size = None
            if isinstance(self.store.path, Path):
                with suppress(OSError):
                    size = self.store.path.stat().st_size
            said = self._books.done(save, meta, size)
        logger.info("trading state saved", extra={"path": str(self.store.path), **said})
        if self.mirror is not None:
            self.mirror.saved(self.store, meta)

    def _failed(self, save: Save, error: Exception) -> None:
        with self._lock:
            self._flag.busy = None
            self._books.failed(save, error)
            fields = {"path": str(self.store.path), "reason": save.reason, "why": str(error)}
            expected = isinstance(error, StateStoreError)
            logger.error(
                "trading state NOT saved", extra=fields, exc_info=None if expected else error
            )
            if save.state is self._state:  # else it was replaced, and nothing of it is owed
                conflict = isinstance(error, RevisionConflict)
                if not (conflict and self._reload(lost=save.reason)):
                    self._books.owe(save)
        # A save of its own that fails is owed as any, and not told it in turn, without an end.
        if self._on_save_error is not None and self._telling != threading.get_ident():
            self._telling = threading.get_ident()
            try:
                self._on_save_error(error)
            except Exception:
                logger.exception("on_save_error raised", extra=fields)
            finally:
                self._telling = None

    # What others did

    def _reload(self, lost: str | None = None) -> bool:
        """Take over the state on disk, unless it is ours, or older than ours; return whether."""
        mine = self.state
        fresh = self._on_disk(mine)
        if fresh is None:
            return False
        self._reload_error = None
        if (fresh.meta.revision, fresh.meta.sha256) == (mine.meta.revision, mine.meta.sha256):
            return False
        dropped = sorted(filter(None, {lost, *self._books.drop()}))
        self._reloads += 1
        logger.log(
            logging.ERROR if dropped else logging.WARNING,
            "state was saved by somebody else and is taken over",
            extra={
                "path": str(self.store.path),
                "revision": fresh.meta.revision,
                "reason": fresh.meta.reason,
                "writer": fresh.meta.writer,
                "positions": sections.differences(mine, fresh),
                "dropped": dropped,
            },
        )
        self._take(fresh)
        for name in self._strategies.deaf():
            logger.warning(
                "strategy keeps what it had in memory: it has no restore_state",
                extra={"strategy": name},
            )
        return True

    def _on_disk(self, mine: State) -> State | None:
        """Return the state on disk; None where what we hold is newer, or it cannot be used."""
        try:
            seen = self._onlooker.load(missing_ok=False).meta
            if seen.recovered_from is not None and seen.revision <= mine.meta.revision:
                if self.mode != "DRY_RUN":
                    self._books.owe_rescue()
                return None
            fresh = self.store.load(numbers=self._numbers, missing_ok=False)
            sections.complete(fresh, self.store.path)
        except StateStoreError as error:
            self._reload_error = f"{type(error).__name__}: {error}"
            logger.error(
                "the state on disk changed and cannot be taken over",
                extra={"path": str(self.store.path), "why": str(error)},
            )
            return None
        return fresh

    def _take(self, fresh: State) -> bool:
        self._state = fresh
        return self._strategies.tell(fresh)

    def _say_how_the_last_one_ended(self, fresh: State) -> None:
        former = fresh["session"]
        if self._lease is not None and former.get("started_at") and not former.get("stopped_at"):
            logger.warning(
                "the previous session was killed, or the machine died",
                extra={"started_at": former["started_at"], "saved_at": fresh.meta.saved_at},
            )

    def _say_what_was_restored(self, meta: StateMeta) -> None:
        if meta.recovered_from is not None:
            logger.warning(
                "Trading state restored from a fallback",
                extra={"source": str(meta.recovered_from), "revision": meta.revision},
            )
        elif any(self.state[name] for name in self.state if name not in ("session", "config")):
            logger.info("Previous trading state successfully restored")

    def _lease_lost(self) -> bool:
        """Return whether a lease that was taken is not held: another bot may be at work."""
        return self._lease is not None and not self._lease.held

    def _look_at_kill_switch(self) -> bool:
        halted = self.kill_switch.engaged()
        if halted != self._halted:
            self._halted = halted
            if halted:
                details = self.kill_switch.details() or {}
                said = {name: details.get(name) for name in ("reason", "by", "at")}
                logger.warning("kill switch engaged: no trading", extra=said)
            else:
                logger.warning("kill switch released: trading goes on")
        return halted

    def _poke_mirror(self) -> None:
        if self.mirror is not None:
            self.mirror.poke()

    def _tell_manager(self, what: str) -> None:
        said = "NOT SAVED" if self._books.owed else "ok"
        self._manager.tell(what, f"STATUS=revision {self.state.meta.revision}, {said}")

    # When, and the end

    def _delivered(self) -> tuple[str | None, str] | None:
        """Take what the bootstrap has ready; return the save that it asks for."""
        if self._bootstrap is not None and self._bootstrap.deliver(self.state):
            return "bootstrap", "bootstrap"
        return None

    def _due(self) -> tuple[str | None, str] | None:
        """Return kind and reason of a save that is due; a retry is of no kind of its own."""
        periods = int((self._clock() - self._began) // self._interval)
        if periods > self._periods:
            self._periods = periods
            return "periodic", "periodic"
        owed = self._books.owed
        return (None, f"again: {', '.join(owed)}") if owed else None

    def _hooks_due(self) -> list[Hook]:
        with self._lock:
            return self._hooks.due()

    def _at_exit(self) -> None:
        try:
            self.stop("exit of the interpreter")
        except Exception:
            logger.exception("trading state NOT saved at exit")

    def _let_go(self) -> None:
        try:
            if self._saver is not None:
                self._saver.close()
        except StateStoreError:
            logger.debug("the saver's last error was told before")
        finally:
            if self.mirror is not None:
                self.mirror.close()
            if self._lease is not None:
                self._lease.release()
                self._lease = None
            self._onlooker.close()
            self._flag.uninstall()
            self._flag.close()
            atexit.unregister(self._at_exit)
            self._pid, self._ended = None, True
