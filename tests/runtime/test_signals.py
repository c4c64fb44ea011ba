"""The inbox and what becomes of a signal: once, in order, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.errors import ReinsertRefused, SignalError, StateInvalid, StateLocked
from statestore.runtime.processing import (
    Decision,
    Processed,
    Processor,
    StateBook,
    Tracker,
    drain,
)
from statestore.runtime.reinsert import (
    Action,
    export_tokens,
    plan_reinsertion,
    steps,
    write_signals,
)
from statestore.runtime.signals import Inbox, Signal, new_signal, signal_id
from statestore.runtime.tokens import TokenId, tokens_in
from statestore.testing import CrashAfter

DEMO = TokenId("Demo1111", "solana")
ALICE = {"curator_id": "alice", "confidence": Decimal("0.9"), "is_primary": True}
BOB = {"curator_id": "bob", "confidence": Decimal("0.40")}
CAROL = {"curator_id": "carol", "confidence": 1}


def row(timeframe: str = "1h", contract: str = "Demo1111", **more: Any) -> dict[str, Any]:
    return {
        "token_contract": contract,
        "token_chain": "solana",
        "token_ticker": contract[:4].upper(),
        "timeframe": timeframe,
        "status": "active",
        "total_quantity": 0,
        **more,
    }


def three_timeframes() -> dict[str, Any]:
    return {
        "solana:Demo1111:15m": row(
            "15m", entry_context={"mcap": "micro"}, curator_sources=[ALICE, BOB]
        ),
        "solana:Demo1111:1h": row(
            "1h", entry_context={"mcap": "small", "score": Decimal("0.70")}, curator_sources=[CAROL]
        ),
        "solana:Demo1111:4h": row("4h", curator_sources=[BOB]),
    }


def mention(contract: str = "Demo1111", **content: Any) -> Signal:
    token = TokenId(contract, "solana")
    return new_signal(
        signal_id("an export", token),
        token,
        contract,
        tags=[],
        curator={"id": "alice"},
        action="track",
        content=content,
    )


def reinserted(
    inbox: Inbox, positions: Mapping[str, Any], origin: str = "sum", action: Action = "track"
) -> list[str]:
    """Write the signals of a state, as the command does, and return what was done for each."""
    planned = plan_reinsertion(export_tokens(positions), origin, positions, action=action)
    with inbox.exclusive():
        done = steps(inbox, planned)
        write_signals(inbox, done)
    return [step.outcome for step in done]


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "signals")


@pytest.fixture
def book(state_store: StateStore) -> StateBook:
    return StateBook(state_store)


class Says:
    """A processor that says one thing and remembers what it was given."""

    def __init__(self, decision: Any = None, *, raises: Exception | None = None) -> None:
        self.decision, self.raises = decision, raises
        self.given: list[Signal] = []

    def process(self, signal: Signal) -> Decision | None:
        self.given.append(signal)
        if self.raises is not None:
            raise self.raises
        return self.decision  # type: ignore[no-any-return]


def drained(inbox: Inbox, processor: Processor, book: StateBook, **more: Any) -> list[Processed]:
    return list(drain(inbox, processor, book, **more))


def places(inbox: Inbox) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for place in ("pending", "done", "failed"):
        found = [signal.symbol for signal in inbox.signals(place)[0]]  # type: ignore[arg-type]
        if found:
            named[place] = found
    return named


# Tokens


def test_three_timeframes_of_one_token_are_one_signal(inbox: Inbox) -> None:
    assert reinserted(inbox, three_timeframes()) == ["written"]

    (signal,), _ = inbox.signals("pending")
    assert signal.token == DEMO
    assert signal.prior["timeframes"] == ["15m", "1h", "4h"]
    assert list(signal.replaces) == list(three_timeframes())


def test_one_contract_on_two_chains_is_two_tokens() -> None:
    positions = {"a": row(), "b": {**row(), "token_chain": "base"}}

    assert [str(token.id) for token in tokens_in(positions)] == ["solana:Demo1111", "base:Demo1111"]


def test_a_position_without_a_contract_is_of_the_product_it_stands_under() -> None:
    (token,) = tokens_in({"ETH-USD": {"quantity": 0, "symbol": "ETH"}})

    assert (str(token.id), token.ticker) == ("ETH-USD", "ETH")


def test_drivers_of_a_regime_and_balances_are_no_tokens() -> None:
    positions = {
        "d": {"token_contract": "regime_btc", "token_chain": "regime", "timeframe": "1h"},
        "e": row(status="regime_driver"),
        "USD": {"available": 5, "hold": 0, "total": 5, "usd_value": 5},
    }

    assert tokens_in(positions) == []


def test_only_positions_of_the_status_are_chosen(inbox: Inbox) -> None:
    positions = {"a": row("15m"), "b": row("1h", status="paused"), "c": row(contract="Other222")}
    exported = export_tokens(positions, "paused")

    (found,) = plan_reinsertion(exported, "sum", positions, status="paused")
    assert [r.key for r in found.removed] == ["b"]


# What is refused


@pytest.mark.parametrize("units", [Decimal("0.5"), Decimal("-1"), None, "much", "1"])
def test_what_is_held_or_may_be_is_not_given_up(units: Any) -> None:
    positions = {"a": row(total_quantity=units), "b": row("4h")}
    exported = export_tokens(positions)

    with pytest.raises(ReinsertRefused, match=r"1 position is held, or may be: a \(quantity"):
        plan_reinsertion(exported, "sum", positions)
    (found,) = plan_reinsertion(exported, "sum", positions, allow_held=True)
    assert [r.key for r in found.kept] == ["a"]
    assert [r.key for r in found.removed] == ["b"]


def test_the_largest_of_two_quantities_that_differ_counts() -> None:
    positions = {"a": row(total_quantity=0, units=3)}

    with pytest.raises(ReinsertRefused, match="quantity 3"):
        plan_reinsertion(export_tokens(positions), "sum", positions)


def test_a_signal_says_track_and_buy_only_when_told(inbox: Inbox) -> None:
    reinserted(inbox, {"a": row()})
    reinserted(inbox, {"b": row(contract="Other222")}, action="buy")

    actions = {signal.symbol: signal.action for signal in inbox.signals("pending")[0]}
    assert actions == {"DEMO": "track", "OTHE": "buy"}


def test_nothing_is_bought_of_which_another_position_holds_units() -> None:
    positions = {"a": row("15m"), "b": row("1h", status="paused", total_quantity=2)}
    exported = export_tokens(positions, "active")

    plan_reinsertion(exported, "sum", positions, status="active")
    with pytest.raises(ReinsertRefused, match="--action buy"):
        plan_reinsertion(exported, "sum", positions, status="active", action="buy", allow_held=True)


def test_nothing_is_bought_of_which_an_export_does_not_say_the_quantity() -> None:
    legacy = [{"token_contract": "Demo1111", "token_chain": "solana", "curator": None}]

    assert len(plan_reinsertion(legacy, "sum", {})) == 1
    with pytest.raises(ReinsertRefused, match="quantity unknown"):
        plan_reinsertion(legacy, "sum", {}, action="buy")


def test_an_export_that_held_units_is_refused_after_the_wipe_too() -> None:
    exported = export_tokens({"a": row(total_quantity=Decimal("1.5"))})

    with pytest.raises(ReinsertRefused, match=r"1\.5 when it was exported"):
        plan_reinsertion(exported, "sum", {})
    assert plan_reinsertion(exported, "sum", {}, allow_held=True)[0].signal.prior["qty"] == Decimal(
        "1.5"
    )


# The record


def test_the_record_is_that_of_a_mention(inbox: Inbox) -> None:
    reinserted(inbox, {"a": row()}, origin="an export")
    (path,) = (inbox.folder / "pending").iterdir()
    record = json.loads(path.read_text())

    assert path.stem == record["id"] == signal_id("an export", DEMO)
    assert (record["kind"], record["module"], record["status"]) == (
        "social_lowcap",
        "social_ingest",
        "pending",
    )
    assert (record["symbol"], record["attempts"]) == ("DEMO", 0)
    assert "system_reinsert" in record["tags"]
    assert record["signal_pack"] == {
        "token": {"ticker": "DEMO", "contract": "Demo1111", "chain": "solana"},
        "curator": {"id": "system_reinsert", "confidence": 1.0},
        "trading_signals": {"action": "track", "timing": "immediate", "confidence": 0.8},
    }
    content = record["content"]
    assert content["summary"] == "reinsert of DEMO"
    assert (content["entry_context"], content["curator_sources"]) == ({}, [])
    assert content["prior_position"]["qty"] == 0
    assert content["prior_position"]["timeframes"] == ["1h"]


def test_all_that_was_learned_travels_and_comes_back(inbox: Inbox, book: StateBook) -> None:
    before = three_timeframes()
    reinserted(inbox, before)
    (signal,), _ = inbox.signals("pending")
    assert signal.content["curator_sources"] == [ALICE, BOB, CAROL]
    assert signal.record["signal_pack"]["curator"] == {"id": "alice", "confidence": Decimal("0.9")}

    drained(inbox, Tracker(), book)

    after = book.positions()
    for key in ("solana:Demo1111:15m", "solana:Demo1111:1h"):
        assert after[key]["entry_context"] == before[key]["entry_context"]
        assert after[key]["curator_sources"] == before[key]["curator_sources"]
    assert after["solana:Demo1111:4h"]["curator_sources"] == [BOB]
    assert after["solana:Demo1111:4h"]["entry_context"] == {"mcap": "micro"}


# Run again


def test_the_same_state_again_writes_no_second_signal(inbox: Inbox) -> None:
    assert reinserted(inbox, {"a": row()}) == ["written"]
    assert reinserted(inbox, {"a": row()}) == ["already pending"]

    assert places(inbox) == {"pending": ["DEMO"]}


def test_a_state_that_changed_since_brings_the_pending_signal_up_to_date(inbox: Inbox) -> None:
    reinserted(inbox, {"a": row(entry_context={"mcap": "micro"}, curator_sources=[ALICE])})
    first = inbox.signals("pending")[0][0].id
    later = {"b": row("4h", entry_context={"mcap": "small"}, curator_sources=[BOB])}

    assert reinserted(inbox, later, origin="another sum") == ["brought up to date"]
    assert reinserted(inbox, later, origin="another sum") == ["already pending"]
    (signal,), _ = inbox.signals("pending")
    assert signal.id == first
    assert signal.keys == {"a": "1h", "b": "4h"}
    assert list(signal.replaces) == ["b"]
    assert signal.content["curator_sources"] == [ALICE, BOB]
    assert signal.learned("1h") == ({"mcap": "micro"}, [ALICE])
    assert signal.learned("4h") == ({"mcap": "small"}, [BOB])


def test_a_settled_signal_is_opened_again_where_its_positions_stand_again(
    inbox: Inbox, book: StateBook
) -> None:
    reinserted(inbox, {"a": row()})
    drained(inbox, Says(), book)
    assert places(inbox) == {"done": ["DEMO"]}

    assert reinserted(inbox, {"a": row()}) == ["reopened"]
    assert places(inbox) == {"pending": ["DEMO"]}


def test_a_settled_signal_of_a_wiped_state_is_left_alone(inbox: Inbox, book: StateBook) -> None:
    exported = export_tokens({"a": row()})
    for outcome in ("written", "done before"):
        planned = plan_reinsertion(exported, "file", book.positions())
        with inbox.exclusive():
            done = steps(inbox, planned)
            write_signals(inbox, done)
        assert [step.outcome for step in done] == [outcome]
        drained(inbox, Tracker(), book)

    assert list(book.positions()) == ["a"]


# Processing


def test_the_four_calls_come_in_this_order(inbox: Inbox, book: StateBook) -> None:
    """Social signal, decision maker, position creation, backfill."""
    calls: list[tuple[str, Any]] = []

    class Social(Inbox):
        def update(self, signal: Signal) -> None:
            calls.append(("social signal", signal.symbol))
            super().update(signal)

    class DecisionMaker(Tracker):
        def process(self, signal: Signal) -> Decision:
            calls.append(("decision maker", signal.symbol))
            return super().process(signal)

        def backfill(self, symbol: str, timeframes: tuple[str, ...]) -> None:
            calls.append(("backfill", (symbol, timeframes)))

    class Noted(StateBook):
        def open(self, signal: Signal, positions: Mapping[str, Mapping[str, Any]]) -> None:
            calls.append(("position creation", list(positions)))
            super().open(signal, positions)

    social = Social(inbox.folder)
    social.add(mention())
    (processed,) = drain(social, DecisionMaker(), Noted(book.store))

    keys = [f"solana:Demo1111:{timeframe}" for timeframe in ("15m", "1h", "4h")]
    assert calls == [
        ("social signal", "Demo1111"),
        ("decision maker", "Demo1111"),
        ("position creation", keys),
        ("backfill", ("solana:Demo1111", ("15m", "1h", "4h"))),
    ]
    assert (processed.fate, list(processed.opened), processed.backfilled) == ("done", keys, True)


def test_a_new_position_holds_nothing_and_remembers_no_features(
    inbox: Inbox, book: StateBook
) -> None:
    reinserted(inbox, {"a": row(features={"ta": {"x": 1}}, total_quantity=0)})
    drained(inbox, Tracker(), book)
    position = book.positions()["a"]

    assert (position["quantity"], position["total_quantity"], position["features"]) == (0, 0, {})
    assert (position["token_contract"], position["timeframe"]) == ("Demo1111", "1h")


@pytest.mark.parametrize(
    ("bars", "status"), [(332, "dormant"), (333, "watchlist"), (0, "dormant"), (None, "dormant")]
)
def test_a_new_position_is_watched_from_333_bars_on(
    inbox: Inbox, book: StateBook, bars: int | None, status: str
) -> None:
    inbox.add(mention())
    drained(inbox, Tracker(bars=lambda *_: bars), book)

    found = {(p["status"], p["bars_count"]) for p in book.positions().values()}
    assert found == {(status, bars)}


def test_bars_are_asked_for_once_for_each_new_token(inbox: Inbox, book: StateBook) -> None:
    asked: list[str] = []
    book.store.save({"positions": {"x": row("1h", "Third333")}})
    for contract in ("Demo1111", "Other222"):
        inbox.add(mention(contract))
    inbox.add(mention("Third333", prior_position={"keys": {"y": "1h"}}))
    for _ in range(2):
        drained(inbox, Tracker(), book, backfill=lambda symbol, _: asked.append(symbol))

    assert sorted(asked) == ["solana:Demo1111", "solana:Other222"]


def test_a_position_that_is_there_under_another_key_is_not_made_again(
    inbox: Inbox, book: StateBook
) -> None:
    book.store.save({"positions": {"my own key": row("1h")}})
    inbox.add(mention())
    (processed,) = drained(inbox, Tracker(), book)

    assert processed.standing == ("solana:Demo1111:1h",)
    assert sorted(book.positions()) == [
        "my own key",
        "solana:Demo1111:15m",
        "solana:Demo1111:4h",
    ]


def test_a_processor_that_raises_fails_its_signal_and_the_next_one_is_processed(
    inbox: Inbox, book: StateBook
) -> None:
    for contract in ("Demo1111", "Other222"):
        inbox.add(mention(contract))
    broken = Says(raises=RuntimeError("no route"))
    found = drained(inbox, broken, book)

    assert [(p.fate, p.why) for p in found] == [("failed", "process: RuntimeError: no route")] * 2
    assert len(broken.given) == 2
    (signal, _), _ = inbox.signals("failed")
    assert signal.attempts == 1
    assert signal.record["last_error"]["why"] == "process: RuntimeError: no route"


def test_a_signal_is_tried_again_and_its_attempts_are_counted(
    inbox: Inbox, book: StateBook
) -> None:
    inbox.add(mention())
    for _ in range(2):
        drained(inbox, Says(raises=RuntimeError()), book)
        inbox.reopen(inbox.signals("failed")[0][0], "failed")
    drained(inbox, Says(), book)

    (signal,), _ = inbox.signals("done")
    assert signal.attempts == 3


def test_a_backfill_that_raises_fails_the_signal_and_a_retry_makes_no_second_position(
    inbox: Inbox, book: StateBook
) -> None:
    inbox.add(mention())

    def broken(symbol: str, timeframes: tuple[str, ...]) -> None:
        raise OSError("unreachable")

    assert drained(inbox, Tracker(), book, backfill=broken)[0].why.startswith("backfill: OSError")
    opened = dict(book.positions())
    inbox.reopen(inbox.signals("failed")[0][0], "failed")
    asked: list[str] = []
    (processed,) = drained(inbox, Tracker(), book, backfill=lambda symbol, _: asked.append(symbol))

    assert (processed.fate, asked) == ("done", ["solana:Demo1111"])
    assert book.positions() == opened


@pytest.mark.parametrize(
    "decision",
    [
        "buy it",
        {"positions": {}},
        Decision({"a": {"price": float("nan")}}),
        Decision({"a": {"when": object()}}),
        Decision({"a": 5}),  # type: ignore[dict-item]
    ],
)
def test_a_decision_that_cannot_be_written_fails_and_changes_nothing(
    inbox: Inbox, book: StateBook, decision: Any
) -> None:
    inbox.add(mention())
    (processed,) = drained(inbox, Says(decision), book)

    assert processed.fate == "failed"
    assert book.positions() == {}


def test_a_state_that_cannot_be_read_leaves_the_signal_pending(
    inbox: Inbox, state_store: StateStore
) -> None:
    state_store.path.write_text('{"positions": []}')
    inbox.add(mention())
    with pytest.raises(StateInvalid, match="positions has to be an object"):
        drained(inbox, Tracker(), StateBook(state_store))

    assert places(inbox) == {"pending": ["Demo1111"]}


def test_a_signal_waits_while_the_position_it_replaces_was_not_removed(
    inbox: Inbox, book: StateBook
) -> None:
    book.store.save({"positions": {"a": row()}})
    reinserted(inbox, book.positions())
    processor = Says()
    (processed,) = drained(inbox, processor, book)

    assert (processed.fate, processor.given) == ("waiting", [])
    assert "a that it replaces was not removed" in processed.why
    book.store.save({"positions": {}})
    assert [p.fate for p in drained(inbox, processor, book)] == ["done"]


def test_a_signal_waits_while_the_position_it_replaces_holds_units(
    inbox: Inbox, book: StateBook
) -> None:
    reinserted(inbox, {"a": row()})
    book.store.save({"positions": {"a": row(total_quantity=2)}})
    assert drained(inbox, Says(), book)[0].fate == "waiting"

    book.store.save({"positions": {"a": row(note="made by somebody else")}})
    (processed,) = drained(inbox, Tracker(), book)
    assert (processed.fate, processed.standing) == ("done", ("a",))


def test_two_programs_do_not_process_one_signal(
    inbox: Inbox, book: StateBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.runtime.signals._LOCK_SECONDS", 0.05)
    inbox.add(mention())
    first = drain(inbox, Tracker(), book)
    next(first)

    assert locked_out(inbox)
    assert list(first) == []
    assert not locked_out(inbox)


def locked_out(inbox: Inbox) -> bool:
    """Return whether another process is kept from changing signals."""
    child = os.fork()
    if not child:
        try:
            with Inbox(inbox.folder).exclusive():
                os._exit(0)
        except StateLocked:
            os._exit(7)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# Files


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "no signal: not JSON"),
        ("[]", "a list"),
        ('{"id": "other"}', "its name says 'x'"),
        ('{"id": "x"}', "no signal_pack.token"),
        ('{"id": "x", "signal_pack": {"token": {}}}', "neither a contract nor a product"),
        ('{"id": "x", "signal_pack": {"token": {"contract": 5}}}', "a number, not a text"),
        ('{"id": "x", "id": "x", "signal_pack": {"token": {"contract": "c"}}}', "twice"),
        (f'{{"id": "x", "n": {"[" * 9000}{"]" * 9000}}}', "deep"),
    ],
)
def test_a_file_that_is_no_signal_is_told_and_left_alone(
    inbox: Inbox, book: StateBook, content: str, why: str
) -> None:
    inbox.add(mention())
    bad = inbox.folder / "pending" / "x.json"
    bad.write_text(content)
    drained(inbox, Says(), book)
    found, damaged = inbox.signals("pending")

    assert found == []
    assert [d.path for d in damaged] == [bad]
    assert why in damaged[0].why
    assert bad.read_text() == content
    assert places(inbox) == {"done": ["Demo1111"]}


def test_an_id_names_no_file_outside_of_the_inbox(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")

    assert inbox.find("../../secret") is None
    (inbox.folder / "pending").mkdir(parents=True)
    (inbox.folder / "pending" / "x.json").write_text(json.dumps({"id": "../x"}))
    assert inbox.signals("pending")[0] == []


def test_a_folder_that_cannot_be_listed_is_not_an_empty_inbox(inbox: Inbox) -> None:
    inbox.folder.mkdir()
    (inbox.folder / "pending").write_text("a file where the folder should be")

    with pytest.raises(SignalError, match="cannot list"):
        inbox.signals("pending")


def moments(crash_after: CrashAfter, function: Any) -> Iterator[int]:
    for calls in itertools.count():
        if not crash_after(calls, function):
            return
        yield calls


def test_killed_at_any_moment_of_processing_no_position_is_doubled_and_no_signal_lost(
    crash_after: CrashAfter, tmp_path: Path
) -> None:
    calls, killed = 0, True
    while killed:
        folder = tmp_path / str(calls)
        inbox, store = Inbox(folder / "signals"), StateStore(folder / "state.json")
        inbox.add(mention())
        killed = crash_after(calls, lambda i=inbox, s=store: drained(i, Tracker(), StateBook(s)))
        drained(inbox, Tracker(), StateBook(store))

        assert places(inbox) == {"done": ["Demo1111"]}, calls
        assert len(StateStore(store.path).load()["positions"]) == 3
        assert StateStore(store.path).load().meta.revision == 1
        calls += 1
    assert calls > 20
