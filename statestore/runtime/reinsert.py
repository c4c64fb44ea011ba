"""Positions become signals again: what is written, in which order, and what is refused.

A token that is reinserted takes the way every token took: a signal, a decision, a new position,
bars. What was learned about it goes with the signal. What is promised:

* signals are durable before a position is removed, and all positions are removed by one save, so a
  crash at any instant loses no token: run the same again;
* a token has one pending signal, however often this is run;
* a position that holds units, or may, is not given up: `ReinsertRefused`, before anything is
  written, unless the caller allows it; then it is kept, and only the signal is added;
* a signal says ``track``. It says ``buy`` only when told so, of tokens of which nothing is held.

The two forms are one: the direct one exports the tokens and reinserts what it exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeVar

from statestore.amounts import ZERO, parse_amount, text
from statestore.errors import ReinsertRefused, SignalError
from statestore.runtime.signals import PLACES, Inbox, Place, Signal, new_signal, signal_id
from statestore.runtime.tokens import Row, Token, TokenId, identity_of, sum_of_units, tokens_in

Action = Literal["track", "buy"]
Outcome = Literal["written", "brought up to date", "already pending", "reopened", "done before"]

CURATOR = {"id": "system_reinsert", "confidence": Decimal("1.0")}

Kept = TypeVar("Kept", dict[str, Any], list[Any])

_TAGS = ["curated", "social_signal", "dm_candidate", "verified", "system_reinsert"]
_OWN = ("id", "created_at", "attempts", "status")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Mention:
    """One token that is to be signalled.

    Attributes:
        removed: its positions that go once the signal is safe.
        kept: its positions that hold units, or may.
    """

    signal: Signal
    removed: tuple[Row, ...]
    kept: tuple[Row, ...]


class Step(NamedTuple):
    """What is done to the inbox for one token; `place` is where its signal is now."""

    signal: Signal
    outcome: Outcome
    place: Place | None


def export_tokens(positions: Mapping[str, Any], status: str | None = None) -> list[dict[str, Any]]:
    """Return the tokens of the positions of a status, and what was learned about each."""
    return [_exported(token) for token in tokens_in(positions, status)]


def plan_reinsertion(
    exported: Iterable[Mapping[str, Any]],
    origin: str,
    positions: Mapping[str, Any],
    *,
    status: str | None = None,
    action: Action = "track",
    allow_held: bool = False,
) -> list[Mention]:
    """Return what would be signalled and removed. Nothing is written.

    Args:
        exported: what `export_tokens` gave, or the rows of an older program's export.
        origin: the sum of the file or state they are from; makes the ids.
        positions: of the state as it is now.
        status: as in `export_tokens`; positions of another status are left alone.

    Raises:
        ReinsertRefused: a position is held; or it is to be bought, and nothing says it is not.
        SignalError: a row names no token, or one that another row names.
    """
    standing = {token.id.identity: token for token in tokens_in(positions, status)}
    every = {token.id.identity: token.rows for token in tokens_in(positions)}
    mentions: list[Mention] = []
    refused: list[str] = []
    named: set[TokenId] = set()
    for number, row in enumerate(exported):
        token_id = identity_of(row)
        if token_id is None:
            raise SignalError(f"token {number} names neither a token_contract nor a product_id")
        identity = token_id.identity
        if identity in named:
            raise SignalError(f"token {number} is {token_id}, which is there before")
        named.add(identity)
        name = signal_id(origin, token_id)
        token = _without(standing.get(identity), token_id, name)
        if action == "buy":
            refused += _not_surely_flat(row, token_id, every.get(identity, ()))
        elif not allow_held:
            refused += _held(row, token)
        removed = tuple(r for r in token.rows if r not in token.held)
        mentions.append(Mention(_signal(name, token, row, action, removed), removed, token.held))
    if refused:
        raise _refusal(refused, action)
    return mentions


def steps(inbox: Inbox, mentions: Sequence[Mention]) -> list[Step]:
    """Return what the inbox needs so that each token has one signal. Reads only.

    Raises:
        SignalError: a signal that is concerned does not read.
    """
    waiting = {signal.token.identity: signal for signal in inbox.signals("pending")[0]}
    return [
        _step(inbox, mention, waiting.get(mention.signal.token.identity)) for mention in mentions
    ]


def write_signals(inbox: Inbox, planned: Iterable[Step]) -> None:
    """Take the steps; all are durable on return. `Inbox.exclusive` is the caller's to hold."""
    listed = list(planned)
    inbox.add(*(step.signal for step in listed if step.outcome == "written"))
    inbox.update(*(step.signal for step in listed if step.outcome == "brought up to date"))
    for place in PLACES:
        inbox.reopen(
            place, *(s.signal for s in listed if (s.outcome, s.place) == ("reopened", place))
        )


def _step(inbox: Inbox, mention: Mention, pending: Signal | None) -> Step:
    if pending is not None:
        merged = _merged(pending, mention.signal)
        same = merged.record == pending.record
        return Step(merged, "already pending" if same else "brought up to date", "pending")
    found = inbox.find(mention.signal.id)
    if found is None:
        return Step(mention.signal, "written", None)
    place, signal = found
    if place == "pending":  # it is of another token than its id says
        raise SignalError(f"{inbox.path(place, signal.id)} is a signal for {signal.token}")
    if place == "done" and not mention.removed:
        return Step(signal, "done before", place)
    # It was settled, and yet its positions stand again: somebody put back the state.
    return Step(mention.signal, "reopened", place)


# What is exported


def _exported(token: Token) -> dict[str, Any]:
    rows = token.rows
    sources = _union(row.entry.get("curator_sources") for row in rows)
    contexts = {
        row.timeframe: {
            name: row.entry[name]
            for name in ("entry_context", "curator_sources")
            if name in row.entry
        }
        for row in rows
        if row.timeframe is not None
    }
    return {
        "token_contract": token.id.contract,
        "token_chain": token.id.chain,
        "token_ticker": token.ticker,
        "product_id": token.id.product,
        "curator": _primary(sources),
        "qty": sum_of_units(rows),
        "timeframes": list(contexts),
        "keys": {row.key: row.timeframe for row in rows},
        "entry_context": _first(row.entry.get("entry_context") for row in rows) or {},
        "curator_sources": sources,
        "contexts": {timeframe: known for timeframe, known in contexts.items() if known},
    }


def _union(lists: Iterable[Any]) -> list[Any]:
    """Return all curators, each once, in order; what is no list is one."""
    found: list[Any] = []
    for value in lists:
        if value:
            found += value if isinstance(value, list) else [value]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def _primary(sources: Sequence[Any]) -> Mapping[str, Any] | None:
    known = [source for source in sources if isinstance(source, Mapping)]
    return next((s for s in known if s.get("is_primary") is True), known[0] if known else None)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value), None)


# What is signalled


def _without(token: Token | None, token_id: TokenId, name: str) -> Token:
    """Return the token less the positions that this very signal has made before."""
    if token is None:
        return Token(token_id, "", ())
    rows = tuple(row for row in token.rows if row.entry.get("signal_id") != name)
    return Token(token.id, token.ticker, rows, token.others)


def _signal(
    name: str, token: Token, row: Mapping[str, Any], action: Action, removed: tuple[Row, ...]
) -> Signal:
    ticker = row.get("token_ticker")
    ticker = ticker if isinstance(ticker, str) and ticker else token.id.contract or str(token.id)
    curator, sources = row.get("curator"), _as(list, row, "curator_sources")
    sources = sources or ([curator] if curator else [])
    prior = {
        "qty": row.get("qty"),
        "timeframes": _as(list, row, "timeframes"),
        "keys": _as(dict, row, "keys"),
        "replaces": {r.key: r.digest for r in removed},
    }
    content = {
        "summary": f"reinsert of {ticker}",
        "prior_position": prior,
        "entry_context": row.get("entry_context") or {},
        "curator_sources": sources,
        "contexts": _as(dict, row, "contexts"),
    }
    return new_signal(
        name,
        token.id,
        ticker,
        tags=_TAGS,
        curator=_curator(sources),
        action=action,
        content=content,
    )


def _as(kind: type[Kept], row: Mapping[str, Any], name: str) -> Kept:
    """Return what a row says, empty where it says nothing or something else: it may be foreign."""
    value = row.get(name)
    return value if isinstance(value, kind) else kind()


def _curator(sources: Sequence[Any]) -> Mapping[str, Any]:
    found = _primary(sources)
    if found is None:
        return CURATOR
    confidence = found.get("confidence")
    return {
        "id": found.get("curator_id") or found.get("id") or CURATOR["id"],
        "confidence": CURATOR["confidence"] if confidence is None else confidence,
    }


def _merged(old: Signal, new: Signal) -> Signal:
    """Return the signal that is pending, brought up to date; nothing that was learned is lost."""
    was, now = old.content, new.content
    sources = _union([was.get("curator_sources"), now.get("curator_sources")])
    contexts = _as(dict, was, "contexts")
    for timeframe, known in _as(dict, now, "contexts").items():
        former = _as(dict, contexts, timeframe)
        learned = {name: value for name, value in known.items() if value}
        contexts = {**contexts, timeframe: {**known, **former, **learned}}
    prior = {
        **new.prior,
        "timeframes": _union([old.prior.get("timeframes"), new.prior.get("timeframes")]),
        "keys": {**old.keys, **new.keys},
    }
    content = {
        **now,
        "prior_position": prior,
        "entry_context": now.get("entry_context") or was.get("entry_context") or {},
        "curator_sources": sources,
        "contexts": contexts,
    }
    pack = {**new.record["signal_pack"], "curator": _curator(sources)}
    own = {name: old.record[name] for name in _OWN if name in old.record}
    return Signal({**new.record, **own, "signal_pack": pack, "content": content})


# What is refused


def _held(row: Mapping[str, Any], token: Token) -> Iterator[str]:
    for held in token.held:
        yield f"{held.key} ({_quantity(held.units)})"
    if not token.rows and "qty" in row and _units(row["qty"]) != ZERO:
        yield f"{token.id} ({_quantity(_units(row['qty']))} when it was exported)"


def _not_surely_flat(row: Mapping[str, Any], token: TokenId, rows: Sequence[Row]) -> Iterator[str]:
    held = [r for r in rows if r.units != ZERO]
    for r in held:
        yield f"{r.key} ({_quantity(r.units)})"
    if not held and _units(row.get("qty")) != ZERO:
        yield f"{token} ({_quantity(_units(row.get('qty')))} when it was exported)"


def _units(value: Any) -> Decimal | None:
    try:
        return parse_amount(value)
    except ValueError:
        return None


def _quantity(units: Decimal | None) -> str:
    return "quantity unknown" if units is None else f"quantity {text(units)}"


def _refusal(refused: Sequence[str], action: Action) -> ReinsertRefused:
    named = ", ".join(refused[:_SHOWN]) + (" ..." if len(refused) > _SHOWN else "")
    many = "position is" if len(refused) == 1 else "positions are"
    if action == "buy":
        return ReinsertRefused(
            f"{len(refused)} {many} held, or may be: {named}; a signal to buy is given only for "
            "tokens of quantity 0, so nothing was written: leave out --action buy, or choose "
            "others by --status"
        )
    return ReinsertRefused(
        f"{len(refused)} {many} held, or may be: {named}; a signal in its place would lose what "
        "is held, so nothing was written: close it first, choose others by --status, or pass "
        "--allow-held, which keeps the position and only adds the signal"
    )
