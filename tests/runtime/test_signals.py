"""The inbox and what becomes of a signal: once, in order, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
import signal as signals
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from statestore.disk import codec, linux
from statestore.disk.store import StateStore
from statestore.errors import ReinsertRefused, SignalError, StateInvalid, StateLocked
from statestore.formats import schema
from statestore.runtime.envelope import as_row, key_of
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
from statestore.runtime.tokens import TokenId, statuses, tokens_in
from statestore.runtime.transfer import Contents, export_positions
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


def test_one_contract_in_two_spellings_is_one_token_on_a_chain_of_ethereums_kind(
    inbox: Inbox, book: StateBook
) -> None:
    checked, lower = "0x" + "aB" * 20, "0x" + "ab" * 20
    positions = {"a": row("15m", checked), "b": row("1h", lower), "c": row("15m", "demo1111")}
    positions["d"] = row("15m", "Demo1111")

    assert [[r.key for r in token.rows] for token in tokens_in(positions)] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert signal_id("x", TokenId(checked, "base")) == signal_id("x", TokenId(lower, "base"))
    reinserted(inbox, {"a": positions["a"]})
    assert reinserted(inbox, {"b": positions["b"]}, origin="later") == ["brought up to date"]
    book.store.save({"positions": {"own": row("15m", lower)}})
    (processed,) = drained(inbox, Tracker(), book)
    assert (processed.standing, processed.opened) == (("a",), ("b",))


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


@pytest.mark.parametrize("status", ["active", "ACTIVE", "closed", "paused", None])
def test_an_export_and_a_reinsertion_take_one_status_for_the_same(status: str | None) -> None:
    positions = {
        "said": row("15m", contract="A"),
        "shouted": row("15m", contract="B", status="Active", total_quantity=1),
        "open": row("15m", contract="C", status="OPEN", total_quantity=1),
        "held": {"quantity": 2},
        "unknown": {"note": "how much, nobody knows"},
        "flat": {"quantity": 0},
        "paused": row("15m", contract="D", status="paused"),
        "driver": row("15m", contract="E", status="Regime_Driver"),
    }
    state = Contents("state", positions, {}, {})
    exported = export_positions(state, status=status).envelope.rows
    taken = [r.key for token in tokens_in(positions, status) for r in token.rows]

    assert {key_of(row) for row in exported} == {
        key_of(as_row(key, positions[key])) for key in taken
    }
    assert ("held" in taken, "unknown" in taken) == (status not in ("closed", "paused"),) * 2
    assert statuses(positions) == ["active", "closed", "open", "paused"]


def test_the_oldest_signal_comes_first_whatever_its_time_is_written_like(inbox: Inbox) -> None:
    times = ["2025-11-20T10:00:00Z", "2025-11-20T10:00:00.5Z", "2025-11-20T10:00:00.500001Z"]
    for number, created_at in enumerate(reversed(times)):
        inbox.add(mention(f"C{number}").but(created_at=created_at))

    assert [signal.symbol for signal in inbox.signals("pending")[0]] == ["C2", "C1", "C0"]


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
        def count_attempt(self, signals: Iterable[Signal]) -> list[Signal]:
            counted = super().count_attempt(signals)
            calls.extend(("social signal", signal.symbol) for signal in counted)
            return counted

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
        inbox.reopen("failed", *inbox.signals("failed")[0])
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
    inbox.reopen("failed", *inbox.signals("failed")[0])
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


def test_what_somebody_else_saves_meanwhile_is_seen_and_kept(inbox: Inbox, book: StateBook) -> None:
    for contract in ("Demo1111", "Other222"):
        inbox.add(mention(contract, prior_position={"keys": {contract: "1h"}}))
    going = drain(inbox, Tracker(), book, batch=1)
    next(going)
    with StateStore(book.store.path).transaction() as state:
        state["positions"]["Other222"] = row("1h", "Other222", quantity=1)
    (processed,) = going

    assert processed.standing == ("Other222",)
    assert book.positions()["Other222"]["quantity"] == 1


def test_what_is_saved_while_a_batch_is_decided_is_seen_and_kept(
    inbox: Inbox, book: StateBook
) -> None:
    for number, contract in enumerate(("Demo1111", "Other222")):
        keys = {contract: "1h"}
        at = f"2025-11-20T10:00:0{number}Z"
        inbox.add(mention(contract, prior_position={"keys": keys}).but(created_at=at))

    class Slow(Tracker):
        def process(self, signal: Signal) -> Decision:
            if signal.symbol == "Other222":
                with StateStore(book.store.path).transaction() as state:
                    state["positions"] = {"Demo1111": row("1h", quantity=1)}
            return super().process(signal)

    demo, other = drained(inbox, Slow(), book, batch=2)

    assert (demo.opened, demo.standing, other.opened) == ((), ("Demo1111",), ("Other222",))
    assert book.positions()["Demo1111"]["quantity"] == 1


def test_what_stands_under_a_key_by_the_time_of_the_save_is_left_alone(book: StateBook) -> None:
    book.positions()
    StateStore(book.store.path).save({"positions": {"ETH-USD": {"quantity": 2}}})
    with book.together():
        book.open(mention(), {"ETH-USD": {"quantity": 0}, "SOL-USD": {"quantity": 0}})

    assert book.positions() == {"ETH-USD": {"quantity": 2}, "SOL-USD": {"quantity": 0}}


def test_two_signals_of_a_batch_for_one_position_make_it_once(
    inbox: Inbox, book: StateBook
) -> None:
    for number, name in enumerate(("one", "two")):
        signal = mention(prior_position={"keys": {f"key {name}": "1h"}})
        inbox.add(signal.but(id=name, created_at=f"2025-11-20T10:00:0{number}Z"))
    one, two = drained(inbox, Tracker(), book)

    assert (one.opened, two.opened, two.standing) == (("key one",), (), ("key two",))
    assert list(book.positions()) == ["key one"]


def test_two_signals_of_a_batch_for_one_key_make_it_once(inbox: Inbox, book: StateBook) -> None:
    for number, name in enumerate(("one", "two")):
        inbox.add(mention(name).but(created_at=f"2025-11-20T10:00:0{number}Z"))
    one, two = drained(inbox, Says(Decision({"ETH-USD": {"quantity": 0}})), book, batch=2)

    assert (one.opened, two.opened, two.standing) == (("ETH-USD",), (), ("ETH-USD",))
    assert book.positions()["ETH-USD"]["signal_id"] == one.signal.id


def test_what_was_taken_up_before_goes_alone(
    inbox: Inbox, book: StateBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for number, attempts in enumerate([0, 0, 0, 1, 2, 0, 0]):
        at = f"2025-11-20T10:00:0{number}Z"
        inbox.add(mention(f"C{number}").but(created_at=at, attempts=attempts))
    settle = Inbox.settle
    monkeypatch.setattr(
        Inbox,
        "settle",
        lambda self, *given: taken.append([s.symbol for s in given]) or settle(self, *given),  # type: ignore[func-returns-value]
    )
    drained(inbox, Says(), book, batch=2)

    assert taken == [["C0", "C1"], ["C2"], ["C3"], ["C4"], ["C5", "C6"]]


def flushes(monkeypatch: pytest.MonkeyPatch, function: Any) -> int:
    """Return how often it waited for the disk."""
    made = 0

    def counted(original: Any) -> Any:
        def call(descriptor: int) -> None:
            nonlocal made
            made += 1
            original(descriptor)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(linux, "syncfs", counted(linux.syncfs))
        function()
    return made


@pytest.mark.skipif(not linux.syncfs_tells(), reason="the kernel has no syncfs")
def test_a_batch_waits_for_the_disk_as_often_as_one_signal_does(
    inbox: Inbox, book: StateBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    contracts = [f"C{number}" for number in range(100)]
    for folder in ("pending", "done"):
        (inbox.folder / folder).mkdir(parents=True)
    book.store.save({"positions": {}})
    tokens = {contract: row(contract=contract) for contract in contracts}

    assert flushes(monkeypatch, lambda: reinserted(inbox, tokens)) < 10
    assert flushes(monkeypatch, lambda: drained(inbox, Tracker(), book)) < 10
    assert len(inbox.signals("done")[0]) == len(book.positions()) == 100
    assert book.store.load().meta.revision == 2


def test_a_processor_that_does_not_say_otherwise_sees_what_the_signal_before_opened(
    inbox: Inbox, book: StateBook
) -> None:
    book.store.save({"positions": {}})
    for contract in ("Demo1111", "Other222"):
        inbox.add(mention(contract))

    class AtMostOne(Tracker):
        def process(self, signal: Signal) -> Decision:
            full = len(book.store.load()["positions"]) > 0
            return Decision() if full else Decision({signal.symbol: {"quantity": 0}})

    drained(inbox, AtMostOne(), book)

    assert len(book.positions()) == 1


def test_in_a_batch_too_a_processor_that_raises_fails_its_own_signal_only(
    inbox: Inbox, book: StateBook
) -> None:
    for number in range(3):
        inbox.add(mention(f"C{number}").but(created_at=f"2025-11-20T10:00:0{number}Z"))

    class Picky(Tracker):
        def process(self, signal: Signal) -> Decision:
            if signal.symbol == "C1":
                raise RuntimeError("no route")
            return super().process(signal)

    found = drained(inbox, Picky(), book, batch=3)

    assert [(p.signal.symbol, p.fate) for p in found] == [
        ("C0", "done"),
        ("C1", "failed"),
        ("C2", "done"),
    ]
    assert places(inbox) == {"done": ["C0", "C2"], "failed": ["C1"]}
    assert len(book.positions()) == 6
    assert [s.attempts for s in inbox.signals("done")[0] + inbox.signals("failed")[0]] == [1, 1, 1]


class Interrupted:
    """A processor during which Ctrl-C is pressed at one signal, or at its backfill."""

    batch = 3

    def __init__(self, *, process: str = "", backfill: str = "") -> None:
        self.at = process, backfill

    def process(self, signal: Signal) -> Decision:
        if signal.symbol == self.at[0]:
            raise KeyboardInterrupt
        return Decision({signal.symbol: {"quantity": 0}}, ("1h",) if self.at[1] else ())

    def backfill(self, symbol: str, _timeframes: tuple[str, ...]) -> None:
        if symbol.endswith(self.at[1]):
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("processor", "opened"),
    [(Interrupted(process="C1"), ["C0"]), (Interrupted(backfill="C1"), ["C0", "C1", "C2"])],
)
def test_an_interrupt_loses_nothing_of_a_batch(
    inbox: Inbox, book: StateBook, processor: Interrupted, opened: list[str]
) -> None:
    for number in range(3):
        inbox.add(mention(f"C{number}").but(created_at=f"2025-11-20T10:00:0{number}Z"))
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        for processed in drain(inbox, processor, book):
            told.append(processed.signal.symbol)

    assert told == ["C0"]
    assert places(inbox) == {"done": ["C0"], "pending": ["C1", "C2"]}
    assert list(book.positions()) == opened
    drained(inbox, Interrupted(), book)
    assert places(inbox) == {"done": ["C0", "C1", "C2"]}
    assert list(book.positions()) == ["C0", "C1", "C2"]


def test_a_signal_that_takes_the_process_down_keeps_no_others_from_being_settled(
    crash_after: CrashAfter, inbox: Inbox, book: StateBook
) -> None:
    for number in range(3):
        inbox.add(mention(f"C{number}").but(created_at=f"2025-11-20T10:00:0{number}Z"))

    class Deadly:
        batch = 3

        def process(self, signal: Signal) -> Decision:
            if signal.symbol == "C1":
                os.kill(os.getpid(), signals.SIGKILL)
            return Decision({signal.symbol: {"quantity": 0}})

    for _ in range(2):
        assert crash_after(10_000, lambda: drained(inbox, Deadly(), book))

    assert places(inbox) == {"done": ["C0"], "pending": ["C1", "C2"]}
    assert [signal.attempts for signal in inbox.signals("pending")[0]] == [2, 1]


def test_a_signal_that_would_not_be_read_again_is_not_written(inbox: Inbox) -> None:
    inbox.add(mention())
    with pytest.raises(SignalError, match="more than 4194304 are not read again"):
        inbox.add(mention("Other222"), mention("Third333", entry_context={"x": "y" * (1 << 22)}))

    assert places(inbox) == {"pending": ["Demo1111"]}


@pytest.mark.parametrize("fate", ["done", "failed"])
def test_what_was_settled_before_a_crash_is_moved_and_not_processed_again(
    inbox: Inbox, book: StateBook, fate: str
) -> None:
    inbox.add(mention().but(status=fate))
    processor = Says()

    assert drained(inbox, processor, book) == []
    assert processor.given == []
    assert places(inbox) == {fate: ["Demo1111"]}


def test_a_reinsert_opens_again_what_was_settled_before_a_crash(inbox: Inbox) -> None:
    reinserted(inbox, {"a": row()})
    (signal,), _ = inbox.signals("pending")
    inbox.update(signal.but(status="done"))

    assert reinserted(inbox, {"a": row()}) == ["reopened"]
    assert inbox.signals("pending")[0][0].status == "pending"


def test_a_signal_as_long_as_may_be_has_room_for_what_becomes_of_it(
    inbox: Inbox, book: StateBook
) -> None:
    room = (1 << 22) - len(codec.to_json(dict(mention(x="").record)))
    inbox.add(mention(x="y" * room))
    drained(inbox, Says(raises=RuntimeError("z" * 1000)), book)

    assert places(inbox) == {"failed": ["Demo1111"]}
    assert inbox.signals("failed")[0][0].attempts == 1


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
    with pytest.raises(SignalError, match="no id of a signal"):
        inbox.add(mention().but(id="../../secret"))
    assert (tmp_path / "secret.json").read_text() == "{}"
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


def test_killed_at_any_moment_of_writing_many_signals_the_same_again_writes_the_rest(
    crash_after: CrashAfter, tmp_path: Path
) -> None:
    tokens = {contract: row(contract=contract) for contract in ("C0", "C1", "C2")}
    calls, killed = 0, True
    while killed:
        inbox = Inbox(tmp_path / str(calls))
        killed = crash_after(calls, lambda i=inbox: reinserted(i, tokens))
        reinserted(inbox, tokens)

        assert {place: len(found) for place, found in places(inbox).items()} == {"pending": 3}
        assert not list(inbox.folder.rglob("*.tmp"))
        calls += 1
    assert calls > 10


def test_killed_at_any_moment_of_a_batch_no_position_is_doubled_and_no_signal_lost(
    crash_after: CrashAfter, tmp_path: Path
) -> None:
    tokens = {contract: row(contract=contract) for contract in ("C0", "C1", "C2")}
    calls, killed = 0, True
    while killed:
        folder = tmp_path / str(calls)
        inbox, store = Inbox(folder / "signals"), StateStore(folder / "state.json")
        reinserted(inbox, tokens)
        killed = crash_after(calls, lambda i=inbox, s=store: drained(i, Tracker(), StateBook(s)))
        drained(inbox, Tracker(), StateBook(store))

        assert {place: len(found) for place, found in places(inbox).items()} == {"done": 3}, calls
        positions = StateStore(store.path).load()["positions"]
        assert {p["signal_id"] for p in positions.values()} == {
            signal.id for signal in inbox.signals("done")[0]
        }
        assert len(positions) == 3
        assert not list(inbox.folder.rglob("*.tmp"))
        calls += 1
    assert calls > 30


@pytest.mark.parametrize("place", ["pending", "done", "failed"])
def test_a_signal_on_disk_has_the_shape_its_schema_says(
    inbox: Inbox, book: StateBook, place: str
) -> None:
    reinserted(inbox, {"a": row(entry_context={"mcap": "micro"}, curator_sources=[ALICE])})
    if place != "pending":
        drained(inbox, Says(raises=OSError("down") if place == "failed" else None), book)
    (path,) = (inbox.folder / place).iterdir()

    jsonschema.validate(json.loads(path.read_text()), schema("signal"))


@pytest.mark.parametrize("written", ["{}", '{"positions": null}'])
def test_a_state_without_positions_gets_them(
    inbox: Inbox, state_store: StateStore, written: str
) -> None:
    state_store.path.write_text(written)
    inbox.add(mention())
    drained(inbox, Tracker(), StateBook(state_store))

    assert len(StateStore(state_store.path).load()["positions"]) == 3
