"""The inbox: a signal is one JSON file, which moves from ``pending`` to ``done`` or ``failed``.

What is promised, on a local POSIX file system:

* once `Inbox.add` returns, the signal survives a power cut, and it is never in no folder;
* a signal moves by one rename, so it is never in two folders;
* what is done to many at once costs as many flushes as for one, and each signal is whole;
* what is in a folder and is no signal is told, and left alone.

The folder a file is in says what became of its signal. There is one exception, which lasts as long
as it takes to rename: a file in ``pending`` whose ``status`` says that it was settled was settled;
whoever takes the lock next moves it.

Two programs that change signals at once are kept apart by `Inbox.exclusive`; listing takes no lock.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from statestore import times
from statestore.amounts import json_type
from statestore.disk import codec, durable, strict
from statestore.disk.locks import WriterLock
from statestore.errors import SignalError
from statestore.runtime.tokens import TokenId

Place = Literal["pending", "done", "failed"]
PLACES: tuple[Place, ...] = get_args(Place)

KIND = "social_lowcap"

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "statestore signal")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_MAX_BYTES = 1 << 22
_ROOM = 1 << 16  # for what is noted in a signal later: attempts, errors
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal.

    Attributes:
        record: the whole of it, as it stands in its file; numbers with a point are Decimals.
    """

    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """What it is told apart by, also by whom it is given to: once is enough for each."""
        return str(self.record["id"])

    @property
    def symbol(self) -> str:
        return str(self.record.get("symbol") or self.token)

    @property
    def status(self) -> str:
        return str(self.record.get("status"))

    @property
    def created(self) -> int:
        """An instant; before all others where the record does not say."""
        try:
            return times.parse_instant(str(self.record.get("created_at")))
        except ValueError:
            return 0

    @property
    def attempts(self) -> int:
        """How often it was given to a processor."""
        attempts = self.record.get("attempts")
        return attempts if type(attempts) is int else 0

    @property
    def token(self) -> TokenId:
        token = self.record["signal_pack"]["token"]
        return TokenId(token.get("contract"), token.get("chain"), token.get("product"))

    @property
    def ticker(self) -> str | None:
        ticker = self.record["signal_pack"]["token"].get("ticker")
        return ticker if isinstance(ticker, str) else None

    @property
    def action(self) -> str:
        """``track``; ``buy`` only where an operator asked for it."""
        signals = self.record["signal_pack"].get("trading_signals")
        return str(signals.get("action", "track")) if isinstance(signals, Mapping) else "track"

    @property
    def content(self) -> Mapping[str, Any]:
        content = self.record.get("content")
        return content if isinstance(content, Mapping) else {}

    @property
    def prior(self) -> Mapping[str, Any]:
        """What is known of the position the token had before; empty for a new token."""
        prior = self.content.get("prior_position")
        return prior if isinstance(prior, Mapping) else {}

    @property
    def keys(self) -> Mapping[str, str | None]:
        """The keys its positions had before, and their timeframes."""
        found = self.prior.get("keys")
        return found if isinstance(found, Mapping) else {}

    @property
    def replaces(self) -> Mapping[str, str]:
        """The positions that are removed once this signal is safe: key, and sum of the entry."""
        found = self.prior.get("replaces")
        return found if isinstance(found, Mapping) else {}

    def learned(self, timeframe: str | None) -> tuple[Any, Any]:
        """Return ``entry_context`` and ``curator_sources`` for a position.

        As its own was before, where there was one; else the token's.
        """
        contexts = self.content.get("contexts")
        own = contexts.get(timeframe) if isinstance(contexts, Mapping) and timeframe else None
        known = own if isinstance(own, Mapping) else {}
        return (
            known.get("entry_context") or self.content.get("entry_context") or {},
            known.get("curator_sources") or self.content.get("curator_sources") or [],
        )

    def but(self, **changes: Any) -> Signal:
        """Return it with some keys of its record changed."""
        return Signal({**self.record, **changes})


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file in the inbox that is no signal, and why."""

    path: Path
    why: str


def signal_id(origin: str, token: TokenId) -> str:
    """Return the id of the signal for a token of one export: the same export, the same id.

    Args:
        origin: the sum of the export, or of the state.
    """
    token = token.identity
    named = [token.product] if token.contract is None else [token.contract, token.chain or ""]
    return str(uuid.uuid5(_NAMESPACE, json.dumps([origin, *named])))


Encoded = list[tuple[Signal, bytes]]


class Inbox:
    """The signals in one folder.

    Attributes:
        folder: holds the three; made when the first signal is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = WriterLock(folder, folder / ".lock")

    def signals(self, place: Place) -> tuple[list[Signal], list[Damaged]]:
        """Return what is in a folder, oldest first, and the files that are no signals.

        Raises:
            SignalError: the folder cannot be listed.
        """
        signals, damaged = [], []
        for path in self._files(place):
            try:
                signals.append(self._read(path))
            except SignalError as error:
                damaged.append(Damaged(path, str(error)))
            except FileNotFoundError:
                continue  # settled by another process since it was listed
        signals.sort(key=lambda signal: (signal.created, signal.id))
        return signals, damaged

    def find(self, name: str) -> tuple[Place, Signal] | None:
        """Return a signal by its id, and where it is.

        Raises:
            SignalError: its file does not read.
        """
        if not _ID.fullmatch(name):
            return None
        for place in PLACES:
            try:
                return place, self._read(self.path(place, name))
            except FileNotFoundError:
                continue
        return None

    def add(self, *signals: Signal) -> None:
        """Write new signals to ``pending``, durably."""
        encoded = _bounded(signals)
        durable.make_directory(self.folder / "pending")
        self._write("pending", encoded)

    def update(self, *signals: Signal) -> None:
        """Replace the records of signals that are pending, durably."""
        self._write("pending", _bounded(signals))

    def count_attempt(self, signals: Iterable[Signal]) -> list[Signal]:
        """Return pending signals with one attempt more, written down before it is made.

        Whoever is killed by a signal has counted it; a power cut may take the count back.
        """
        counted = [signal.but(attempts=signal.attempts + 1) for signal in signals]
        self._write("pending", _encoded(counted), flush_names=False)
        return counted

    def settle(self, *signals: Signal) -> None:
        """Note what became of pending signals, which their ``status`` says, and move them there."""
        self._write("pending", _encoded(signals), flush_names=False)
        self._move((signal, "pending", _settled_in(signal)) for signal in signals)

    def reopen(self, place: Place, *signals: Signal) -> list[Signal]:
        """Move signals back to ``pending``, with these records."""
        opened = [signal.but(status="pending") for signal in signals]
        self._write(place, _encoded(opened), flush_names=False)
        self._move((signal, place, "pending") for signal in opened)
        return opened

    def path(self, place: Place, name: str) -> Path:
        """Return the file of a signal.

        Raises:
            SignalError: the id is none that a file may be named after.
        """
        if not _ID.fullmatch(name):
            raise SignalError(f"{name!r:.60} is no id of a signal: letters, digits, - and _")
        return self.folder / place / f"{name}.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other program from changing signals.

        Raises:
            StateLocked: one has been at it for longer than ten seconds; names it.
        """
        durable.make_directory(self.folder)
        self._lock.refuse_reentry()
        try:
            self._lock.acquire(_LOCK_SECONDS)
            self._finish_moves()
            yield
        finally:
            self._lock.release()

    def _finish_moves(self) -> None:
        """Move what a program that was killed had settled, and not moved yet."""
        self._move(
            (signal, "pending", _settled_in(signal))
            for signal in self.signals("pending")[0]
            if signal.status in ("done", "failed")
        )

    def _files(self, place: Place) -> list[Path]:
        folder = self.folder / place
        try:
            return sorted(path for path in folder.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SignalError(
                f"cannot list {folder}: {error.strerror}; it has to be a readable folder"
            ) from error

    def _read(self, path: Path) -> Signal:
        try:
            data, _ = durable.read_file(path, _MAX_BYTES + _ROOM)
            return _examined(path, strict.parse(data))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SignalError(
                f"cannot read {path}: {error.strerror}; it has to be readable"
            ) from error
        except (durable.NotAFile, durable.TooLarge) as error:
            raise SignalError(f"{path} {error}") from error
        except ValueError as error:
            raise SignalError(f"{path} is no signal: {error}") from error

    def _write(self, place: Place, encoded: Encoded, *, flush_names: bool = True) -> None:
        durable.replace_files(
            self.folder / place,
            {self.path(place, signal.id).name: data + b"\n" for signal, data in encoded},
            flush_names=flush_names,
        )

    def _move(self, moves: Iterable[tuple[Signal, Place, Place]]) -> None:
        listed = list(moves)
        for place in dict.fromkeys(target for _, _, target in listed):
            durable.make_directory(self.folder / place)
        durable.move_files(
            {
                self.path(source, signal.id): self.path(target, signal.id)
                for signal, source, target in listed
            }
        )


def new_signal(
    name: str,
    token: TokenId,
    ticker: str,
    *,
    tags: list[str],
    curator: Mapping[str, Any],
    action: str,
    content: Mapping[str, Any],
) -> Signal:
    """Return the record of a signal that says that somebody mentioned a token."""
    known = {"ticker": ticker, "contract": token.contract, "chain": token.chain}
    if token.contract is None:
        known = {"ticker": ticker, "product": token.product}
    return Signal(
        {
            "id": name,
            "kind": KIND,
            "module": "social_ingest",
            "status": "pending",
            "created_at": times.format_instant(times.now()),
            "symbol": ticker,
            "attempts": 0,
            "tags": tags,
            "signal_pack": {
                "token": known,
                "curator": dict(curator),
                "trading_signals": {
                    "action": action,
                    "timing": "immediate",
                    "confidence": Decimal("0.8"),
                },
            },
            "content": dict(content),
        }
    )


def _settled_in(signal: Signal) -> Place:
    return "done" if signal.status == "done" else "failed"


def _encoded(signals: Iterable[Signal]) -> Encoded:
    return [(signal, codec.to_json(dict(signal.record))) for signal in signals]


def _bounded(signals: Iterable[Signal]) -> Encoded:
    """Return the bytes of each, unless one has more than are read again."""
    encoded = _encoded(signals)
    for signal, data in encoded:
        if len(data) > _MAX_BYTES:
            raise SignalError(
                f"the signal for {signal.symbol:.60} is {len(data)} bytes long, and more than "
                f"{_MAX_BYTES} are not read again; nothing was written: its entry_context and "
                "curator_sources have to be shorter"
            )
    return encoded


def _examined(path: Path, record: Any) -> Signal:
    """Return the signal a record is; a file that any program may have put there is not trusted."""
    if not isinstance(record, dict):
        raise ValueError(f"it is {json_type(record)}, an object is expected")
    name = record.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name) or name != path.stem:
        raise ValueError(f"its id is {name!r:.60}, its name says {path.stem!r:.60}")
    pack = record.get("signal_pack")
    token = pack.get("token") if isinstance(pack, dict) else None
    if not isinstance(token, dict):
        raise ValueError("it has no signal_pack.token")
    for field in ("contract", "chain", "product"):
        if not isinstance(token.get(field), str | None):
            raise ValueError(f"signal_pack.token.{field} is {json_type(token[field])}, not a text")
    if not (token.get("contract") or token.get("product")):
        raise ValueError("signal_pack.token names neither a contract nor a product")
    return Signal(record)
