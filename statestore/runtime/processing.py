"""From a signal to a position: a processor decides, a book takes the positions, bars are asked for.

What is promised for every signal that is drained:

* the order is: signal, decision, positions, backfill; then it moves to ``done``;
* a processor that raises moves it to ``failed``, with the reason and the count of attempts;
* a crash anywhere in between leaves it pending, and the next run does not make a position twice:
  what this signal has made carries its ``signal_id``. Processors that act outside of the book use
  the signal's id for the same purpose, and may be given a signal again;
* a signal waits while a position that it replaces stands as it was, or is held: whoever was to
  remove it was killed, or it was put back by an undo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from statestore import times
from statestore.amounts import ZERO
from statestore.disk import codec
from statestore.disk.store import StateStore
from statestore.errors import StateInvalid
from statestore.runtime.signals import Inbox, Signal
from statestore.runtime.tokens import TokenId, digest_of, units_of

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
    """Decides what a signal leads to. May have ``backfill(symbol, timeframes)`` as well."""

    def process(self, signal: Signal) -> Decision | None: ...


class Book(Protocol):
    """Where positions are."""

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


@dataclass(frozen=True, slots=True)
class StateBook:
    """The positions of a state file; each signal's are opened by one save."""

    store: StateStore

    def positions(self) -> Mapping[str, Any]:
        """Return the section as it is on disk now; numbers with a point are Decimals."""
        return positions_of(self.store.refresh(numbers="decimal"), self.store)

    def open(self, signal: Signal, positions: Mapping[str, Mapping[str, Any]]) -> None:
        """Add them, durably; what stands under a key is left alone."""
        reason = f"signal {signal.symbol}"
        with self.store.transaction(reason=reason, numbers="decimal") as state:
            section = dict(positions_of(state, self.store))
            for key, entry in positions.items():
                section.setdefault(key, dict(entry))
            state["positions"] = section


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
) -> Iterator[Processed]:
    """Process the pending signals, oldest first; yield what became of each as it is settled.

    The inbox is locked meanwhile, so that two drains never process one signal.

    Args:
        backfill: asked once for each new token; else ``processor.backfill``, where it has one.
        only: ids; all of them where None.

    Raises:
        StateLocked: another program changes signals.
        StateStoreError: the state cannot be read or saved. The signal stays pending.
    """
    fetch = backfill or getattr(processor, "backfill", None)
    chosen = None if only is None else frozenset(only)
    with inbox.exclusive():
        inbox.tidy()
        for signal in inbox.signals("pending")[0]:
            if chosen is None or signal.id in chosen:
                yield _process(inbox, signal, processor, book, fetch)


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
    section = state.get("positions", {})
    if not isinstance(section, Mapping):
        raise StateInvalid(
            store.path, f"{store.path}: positions has to be an object by key", "positions"
        )
    return section


def _process(
    inbox: Inbox, signal: Signal, processor: Processor, book: Book, fetch: Backfill | None
) -> Processed:
    why = obstacle(signal, book.positions())
    if why is not None:
        return Processed(signal, "waiting", why=why)
    # Counted first: a processor that takes the process down with it has had its attempt.
    signal = signal.but(attempts=signal.attempts + 1)
    inbox.update(signal)
    try:
        decision = _checked(processor.process(signal), inbox.path("pending", signal.id))
    except Exception as error:  # noqa: BLE001  # another program's; it is told, and kept
        return _failed(inbox, signal, "process", error)
    opened, standing = _open(book, signal, decision)
    asked = (str(signal.token), tuple(decision.backfill)) if opened and decision.backfill else None
    if asked and fetch:
        try:
            fetch(*asked)
        except Exception as error:  # noqa: BLE001  # as above
            return _failed(inbox, signal, "backfill", error)
    settled = inbox.settle(signal, "done", settled_at=times.format_instant(times.now()))
    return Processed(settled, "done", opened, standing, asked, bool(asked and fetch))


def _checked(decision: Decision | None, path: Path) -> Decision:
    """Return what a processor said, if it is something that can be written."""
    if decision is None:
        return Decision()
    if not isinstance(decision, Decision):
        raise TypeError(f"a Decision or None is expected, not a {type(decision).__name__}")
    codec.encode({"positions": {key: dict(p) for key, p in decision.positions.items()}}, path)
    return decision


def _open(
    book: Book, signal: Signal, decision: Decision
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Open what is not there yet; return the keys that are this signal's, and the others."""
    present = book.positions()
    by_identity = {_identity(entry): entry for entry in present.values()}
    by_identity.pop(None, None)
    wanted, foreign = {}, []
    for key, entry in decision.positions.items():
        found = present.get(key, by_identity.get(_identity(entry), _NOTHING))
        if found is _NOTHING:
            wanted[key] = {**entry, "signal_id": signal.id}
        elif not _made_by(signal, found):
            foreign.append(key)
    if wanted:
        book.open(signal, wanted)
    return tuple(key for key in decision.positions if key not in foreign), tuple(foreign)


def _identity(entry: object) -> tuple[str, ...] | None:
    """Return contract, chain and timeframe, of which a state has one position; None without."""
    if not isinstance(entry, Mapping) or not entry.get("token_contract"):
        return None
    return tuple(str(entry.get(name)) for name in ("token_contract", "token_chain", "timeframe"))


def _failed(inbox: Inbox, signal: Signal, step: str, error: Exception) -> Processed:
    why = f"{step}: {type(error).__name__}: {error}"[:_LONGEST_REASON]
    at = times.format_instant(times.now())
    settled = inbox.settle(signal, "failed", last_error={"why": why, "at": at})
    return Processed(settled, "failed", why=why)


def _made_by(signal: Signal, entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("signal_id") == signal.id
