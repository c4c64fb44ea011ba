"""From a signal to a position: a processor decides, a book takes the positions, bars are asked for.

What is promised for every signal that is drained:

* the order is: signal, decision, positions, backfill; then it moves to ``done``;
* a processor that raises moves it to ``failed``, with the reason and the count of attempts;
* a crash anywhere in between leaves it pending, and the next run does not make a position twice:
  what this signal has made carries its ``signal_id``. Processors that act outside of the book use
  the signal's id for the same purpose, and may be given a signal again;
* a signal waits while a position that it replaces stands as it was, or is held: whoever was to
  remove it was killed, or it was put back by an undo.

Signals are taken up in batches, as many at once as the processor says. What a signal costs is not
its decision but that the disk is waited for, and a batch waits as often as one signal does: all its
attempts are counted, all decisions made, all positions opened by one save, all signals moved. A
decision of a batch does not see in the state what the ones before it open, so a batch is one signal
where the processor does not say otherwise. A signal that was taken up before goes alone: one that
takes the process down with it keeps no others from being settled.

An interrupt (Ctrl-C) while a processor decides ends the batch there: what was decided is carried
out and settled, the rest stays pending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from statestore import times
from statestore.amounts import ZERO
from statestore.disk import codec
from statestore.disk.store import State, StateStore
from statestore.errors import StateInvalid
from statestore.runtime.addresses import one_spelling
from statestore.runtime.signals import Inbox, Signal
from statestore.runtime.tokens import TokenId, digest_of, units_of

# Of a batch. It waits for the disk some ten times whatever it holds, so with 100 signals that is
# nothing beside reading and writing them; and no more than these are decided again after a kill.
BATCH = 100
BARS_NEEDED = 333
TIMEFRAMES = ("15m", "1h", "4h")

_LONGEST_REASON = 500
_NOTHING = object()

Fate = Literal["done", "failed", "waiting"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a processor makes of a signal.

    Attributes:
        positions: to be opened, by the key they get in the state.
        backfill: the timeframes to fetch bars for, none if empty.
    """

    positions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    backfill: tuple[str, ...] = ()


class Processor(Protocol):
    """Decides what a signal leads to. May have ``backfill(symbol, timeframes)`` as well.

    And ``batch``: how many signals it decides on before the positions of the first are saved. More
    than 1, which is the default, is for decisions that do not look at what is open.
    """

    def process(self, signal: Signal) -> Decision | None: ...


class Book(Protocol):
    """Where positions are.

    May have ``together()``: a context in which what is opened may wait until it ends.
    """

    def positions(self) -> Mapping[str, Any]: ...

    def open(self, signal: Signal, positions: Mapping[str, Mapping[str, Any]]) -> None: ...


Backfill = Callable[[str, tuple[str, ...]], object]
BarsCount = Callable[[str, str], int | None]


@dataclass(frozen=True, slots=True)
class Processed:
    """What became of one signal.

    Attributes:
        opened: keys of the positions that are there because of it.
        standing: keys it would have had a position under, had there not been one.
        backfill: symbol and timeframes that were asked for; None where nothing was.
        backfilled: whether there was somebody to ask.
        why: it failed or waits.
    """

    signal: Signal
    fate: Fate
    opened: tuple[str, ...] = ()
    standing: tuple[str, ...] = ()
    backfill: tuple[str, tuple[str, ...]] | None = None
    backfilled: bool = False
    why: str = ""


class StateBook:
    """The positions of a state file; those of a signal, or of a batch, are opened by one save."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self._state: State | None = None
        self._waiting: list[tuple[Signal, Mapping[str, Mapping[str, Any]]]] | None = None

    def positions(self) -> Mapping[str, Any]:
        """Return the section as it is on disk now; numbers with a point are Decimals."""
        known = self._state
        # The revision besides: what this very store saved is no change to it.
        if known is None or self.store.changed() or known.meta.revision != self.store.revision:
            known = self._state = self.store.load(numbers="decimal")
        return positions_of(known, self.store)

    def open(self, signal: Signal, positions: Mapping[str, Mapping[str, Any]]) -> None:
        """Add them, durably; what stands under a key is left alone."""
        if self._waiting is not None:
            self._waiting.append((signal, positions))
        else:
            self._save([(signal, positions)])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Save what is opened within by one save at the end; nothing of it where that raises."""
        self._waiting = []
        try:
            yield
            opened = self._waiting
        finally:
            self._waiting = None
        if opened:
            self._save(opened)

    def _save(self, opened: list[tuple[Signal, Mapping[str, Mapping[str, Any]]]]) -> None:
        self._state = None
        reason = f"signal {opened[0][0].symbol}" if len(opened) == 1 else f"{len(opened)} signals"
        with self.store.transaction(reason=reason, numbers="decimal") as state:
            section = dict(positions_of(state, self.store))
            for _, positions in opened:
                for key, entry in positions.items():
                    section.setdefault(key, dict(entry))
            state["positions"] = section
        self._state = state


@dataclass(frozen=True, slots=True)
class Tracker:
    """The processor there is without another: a new position of quantity 0, to be watched.

    One for each the token had before, under its key, else for each of `timeframes`; a product has
    one. Nothing is bought, whatever the signal says.

    Attributes:
        bars: how many bars there are of a symbol and timeframe; None where that is not known.
        bars_needed: as many make a position ``watchlist``; with fewer it is ``dormant``.
    """

    bars: BarsCount = lambda _symbol, _timeframe: None
    bars_needed: int = BARS_NEEDED
    timeframes: tuple[str, ...] = TIMEFRAMES

    @property
    def batch(self) -> int:
        """It never looks at what is open; what is derived from it may."""
        return BATCH if type(self) is Tracker else 1

    def process(self, signal: Signal) -> Decision:
        places = signal.keys or self._places(signal.token)
        positions = {key: self._position(signal, frame) for key, frame in places.items()}
        frames = tuple(dict.fromkeys(frame for frame in places.values() if frame))
        return Decision(positions, frames)

    def _places(self, token: TokenId) -> Mapping[str, str | None]:
        if token.contract is None:
            return {str(token): None}
        return {f"{token}:{frame}": frame for frame in self.timeframes}

    def _position(self, signal: Signal, timeframe: str | None) -> dict[str, Any]:
        count = self.bars(str(signal.token), timeframe) if timeframe else None
        enough = count is not None and count >= self.bars_needed
        context, curators = signal.learned(timeframe)
        now = times.format_instant(times.now())
        token = signal.token
        names = {"token_contract": token.contract, "token_chain": token.chain}
        return {
            **({"product_id": token.product} if token.contract is None else names),
            "token_ticker": signal.ticker,
            **({"timeframe": timeframe} if timeframe else {}),
            "status": "watchlist" if enough else "dormant",
            "quantity": 0,
            "total_quantity": 0,
            "bars_count": count,
            "bars_threshold": self.bars_needed,
            "features": {},
            "entry_context": context,
            "curator_sources": curators,
            "signal_id": signal.id,
            "created_at": now,
            "updated_at": now,
        }


def drain(
    inbox: Inbox,
    processor: Processor,
    book: Book,
    *,
    backfill: Backfill | None = None,
    only: Iterable[str] | None = None,
    batch: int | None = None,
) -> Iterator[Processed]:
    """Process the pending signals, oldest first; yield what became of each once it is settled.

    The inbox is locked meanwhile, so that two drains never process one signal.

    Args:
        backfill: asked once for each new token; else ``processor.backfill``, where it has one.
        only: ids; all of them where None.
        batch: how many are taken up at once; else ``processor.batch``, else 1.

    Raises:
        StateLocked: another program changes signals.
        StateStoreError: the state cannot be read or saved. The signals of the batch stay pending.
    """
    fetch = backfill or getattr(processor, "backfill", None)
    chosen = None if only is None else frozenset(only)
    size: int = getattr(processor, "batch", 1) if batch is None else batch
    with inbox.exclusive():
        pending = inbox.signals("pending")[0]
        wanted = [s for s in pending if chosen is None or s.id in chosen]
        for taken in _batches(wanted, size):
            yield from _process(inbox, taken, processor, book, fetch)


def obstacle(signal: Signal, positions: Mapping[str, Any]) -> str | None:
    """Return why a signal has to wait; None if it does not."""
    for key, digest in signal.replaces.items():
        entry = positions.get(key)
        if entry is None or _made_by(signal, entry):
            continue
        if digest_of(entry) == digest:
            return f"the position {key} that it replaces was not removed; run reinsert again"
        if units_of(entry) != ZERO:
            return f"the position {key} that it replaces holds units, or may"
    return None


def positions_of(state: Mapping[str, Any], store: StateStore) -> Mapping[str, Any]:
    """Return the section ``positions``, empty where there is none.

    Raises:
        StateInvalid: it is no object.
    """
    section = state.get("positions")
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise StateInvalid(
            store.path, f"{store.path}: positions has to be an object by key", "positions"
        )
    return section


def _batches(signals: Iterable[Signal], size: int) -> Iterator[list[Signal]]:
    """Yield them in order, as many at once as may be; alone what was taken up before."""
    taken: list[Signal] = []
    for signal in signals:
        if taken and (signal.attempts or len(taken) >= size):
            yield taken
            taken = []
        taken.append(signal)
        if signal.attempts:
            yield taken
            taken = []
    if taken:
        yield taken


def _process(
    inbox: Inbox,
    signals: Sequence[Signal],
    processor: Processor,
    book: Book,
    fetch: Backfill | None,
) -> Iterator[Processed]:
    """Process a batch; an interrupt is raised again once what it left whole is settled."""
    present = book.positions()
    fates = {
        signal.id: Processed(signal, "waiting", why=why)
        for signal in signals
        if (why := obstacle(signal, present)) is not None
    }
    # Counted first: a processor that takes the process down with it has had its attempt.
    given = inbox.count_attempt(signal for signal in signals if signal.id not in fates)
    decided: list[tuple[Signal, Decision]] = []
    interrupt: BaseException | None = None
    for signal in given:
        try:
            decision = _checked(processor.process(signal), inbox.path("pending", signal.id))
        except Exception as error:  # noqa: BLE001  # another program's; it is told, and kept
            fates[signal.id] = _failed(signal, "process", error)
        except BaseException as error:  # noqa: BLE001  # raised again below
            interrupt = error
            break
        else:
            decided.append((signal, decision))
    for signal, decision, opened, standing in _open(book, decided):
        asked = (str(signal.token), tuple(decision.backfill))
        told = asked if opened and decision.backfill else None
        if told and fetch:
            if interrupt is not None:
                continue
            try:
                fetch(*told)
            except Exception as error:  # noqa: BLE001  # as above
                fates[signal.id] = _failed(signal, "backfill", error)
                continue
            except BaseException as error:  # noqa: BLE001  # as above
                interrupt = error
                continue
        settled = signal.but(status="done", settled_at=times.format_instant(times.now()))
        fates[signal.id] = Processed(settled, "done", opened, standing, told, bool(told and fetch))
    inbox.settle(*(one.signal for one in fates.values() if one.fate != "waiting"))
    yield from (fates[signal.id] for signal in signals if signal.id in fates)
    if interrupt is not None:
        raise interrupt


def _checked(decision: Decision | None, path: Path) -> Decision:
    """Return what a processor said, if it is something that can be written."""
    if decision is None:
        return Decision()
    if not isinstance(decision, Decision):
        raise TypeError(f"a Decision or None is expected, not a {type(decision).__name__}")
    codec.encode({"positions": {key: dict(p) for key, p in decision.positions.items()}}, path)
    return decision


def _open(
    book: Book, decided: Iterable[tuple[Signal, Decision]]
) -> list[tuple[Signal, Decision, tuple[str, ...], tuple[str, ...]]]:
    """Open what is not there yet; return the keys that are each signal's, and the others."""
    present = dict(book.positions())
    by_identity = {_identity(entry): entry for entry in present.values()}
    by_identity.pop(None, None)
    found: list[tuple[Signal, Decision, tuple[str, ...], tuple[str, ...]]] = []
    with getattr(book, "together", nullcontext)():
        for signal, decision in decided:
            wanted, foreign = {}, []
            for key, entry in decision.positions.items():
                there = present.get(key, by_identity.get(_identity(entry), _NOTHING))
                if there is _NOTHING:
                    wanted[key] = {**entry, "signal_id": signal.id}
                elif not _made_by(signal, there):
                    foreign.append(key)
            if wanted:
                book.open(signal, wanted)
            present |= wanted
            by_identity |= {i: e for e in wanted.values() if (i := _identity(e)) is not None}
            ours = tuple(key for key in decision.positions if key not in foreign)
            found.append((signal, decision, ours, tuple(foreign)))
    return found


def _identity(entry: object) -> tuple[str, ...] | None:
    """Return contract, chain and timeframe, of which a state has one position; None without."""
    if not isinstance(entry, Mapping) or not entry.get("token_contract"):
        return None
    names = ("token_contract", "token_chain", "timeframe")
    return tuple(one_spelling(str(entry.get(name))) for name in names)


def _failed(signal: Signal, step: str, error: Exception) -> Processed:
    why = f"{step}: {type(error).__name__}: {error}"[:_LONGEST_REASON]
    last = {"why": why, "at": times.format_instant(times.now())}
    return Processed(signal.but(status="failed", last_error=last), "failed", why=why)


def _made_by(signal: Signal, entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("signal_id") == signal.id
