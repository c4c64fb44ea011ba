"""Positions out of a state and into another: what comes along, what is new, what is refused."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from uuid import UUID

import pytest

from statestore import times
from statestore.disk.store import StateStore
from statestore.errors import ImportRefused, StateError, StateInvalid, UsageError
from statestore.runtime import envelope
from statestore.runtime.envelope import Envelope
from statestore.runtime.statuses import status_of
from statestore.runtime.transfer import (
    RECORD,
    contents_of,
    export_positions,
    export_state,
    import_positions,
    plan_import,
    verify_import,
)

ETH = {"side": "BUY", "quantity": Decimal("0.00088729"), "entry_time": "2025-11-18T04:29:43Z"}
HELD = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "active",
    "total_quantity": Decimal("1500.5"),
    "opened_at": "2025-11-18T04:29:43Z",
    "id": "11111111-1111-4111-8111-111111111111",
    "created_at": "2025-11-01T00:00:00Z",
    "updated_at": "2025-11-02T00:00:00Z",
    "features": {
        "uptrend_engine_v4": {"episodes": [{"n": 1, "trim_pools": [Decimal("0.1"), []]}]},
        "ta": {"rsi": Decimal("41.25"), "geometry": {"lines": [[1, 2], [3, None]]}},
        "pm_execution_history": [{"at": "2025-11-18T04:29:43Z", "usd": Decimal("2.6399716828")}],
    },
}
H4 = HELD | {"timeframe": "4h", "status": "watchlist", "total_quantity": 0, "id": "old"}
REGIME = HELD | {"token_contract": "regime_BTC", "token_chain": "regime", "status": "regime_driver"}
STATE = {
    "positions": {
        "ETH-USD": ETH,
        "solana:Demo1111:1h": HELD,
        "solana:Demo1111:4h": H4,
        "regime:regime_BTC:1h": REGIME,
    },
    "cash_balances": {"USD": Decimal("127.45")},
    "registry": {"Demo1111": {"symbol": "DEMO"}},
    "lessons": ["sell late"],
    "empty": {},
}


@pytest.fixture
def store(state_store):
    state_store.save(STATE)
    return state_store


@pytest.fixture
def other(tmp_path):
    """A store where nothing is yet."""
    return StateStore(tmp_path / "other" / ".state.json")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "export.json"


def export(store, path, form="json", **asked):
    exported = export_positions(contents(store), **asked)
    envelope.write(path, exported.envelope, form)
    return exported


def contents(store):
    return contents_of(store.load(numbers="decimal"), store.path)


def but_the_record(positions):
    """Positions without what is new wherever they arrive."""
    return {
        key: {name: value for name, value in entry.items() if name not in RECORD}
        for key, entry in positions.items()
    }


# Export


def test_all_positions_but_those_of_regime_drivers_are_exported(store, path):
    exported = export(store, path)

    assert [envelope.key_of(row) for row in exported.envelope.rows] == list(STATE["positions"])[:3]
    assert exported.envelope.rows[1] == HELD
    assert exported.regime == 1
    assert exported.envelope.balances == {"USD": Decimal("127.45")}
    assert exported.envelope.source["revision"] == 1
    assert exported.sections_left == ("cash_balances", "registry", "lessons")
    assert export(store, path, include_regime=True).envelope.count == 4
    assert export(store, path, status="regime_driver").envelope.count == 1


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({"status": "active"}, ["ETH-USD", "solana:Demo1111:1h"]),
        ({"status": "ACTIVE", "timeframe": "1h"}, ["solana:Demo1111:1h"]),
        ({"status": "watchlist"}, ["solana:Demo1111:4h"]),
        ({"timeframe": "4h"}, ["solana:Demo1111:4h"]),
        ({"timeframe": "1d"}, []),
    ],
)
def test_status_and_timeframe_filter_and_combine(store, path, asked, keys):
    exported = export(store, path, **asked)

    assert [envelope.key_of(row) for row in exported.envelope.rows] == keys
    assert sum(exported.unmatched.values()) == 3 - len(keys)
    assert exported.envelope.filters == {"status": None, "timeframe": None} | asked


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ({"quantity": 1}, "active"),
        ({"quantity": 0}, "closed"),
        ({"status": "OPEN", "quantity": 1}, "open"),
        ({"available": 1, "hold": 0, "total": 1}, "active"),
        (True, "active"),
    ],
)
def test_a_position_that_does_not_say_its_status_is_active_while_it_is_held(entry, status):
    assert status_of(entry) == status


def test_what_a_database_calls_open_is_active(state_store, path):
    state_store.save({"positions": {"A-USD": {"status": "OPEN"}, "B-USD": {"status": "CLOSED"}}})

    assert export(state_store, path, status="active").envelope.count == 1


def test_sections_come_along_when_they_are_named(store, path):
    export(store, path, sections=["registry", "lessons", "registry"])

    assert envelope.read(path).sections == {
        "registry": STATE["registry"],
        "lessons": STATE["lessons"],
    }
    with pytest.raises(UsageError, match="no section 'learning'; it has: cash_balances, registry"):
        export(store, path, sections=["learning"])
    with pytest.raises(UsageError, match="always exported"):
        export(store, path, sections=["positions"])


def test_positions_that_are_no_object_are_refused_by_name(state_store):
    state_store.save({"positions": [1]})

    with pytest.raises(StateInvalid, match="positions is a list"):
        contents(state_store)


# There and back


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_ten_thousand_positions_survive_a_wipe_but_for_ids_and_times(state_store, path, form):
    positions = {
        f"solana:C{n}:1h": HELD
        | {"token_contract": f"C{n}", "id": f"old-{n}", "total_quantity": Decimal(n) / 7}
        for n in range(10_000)
    }
    state_store.save({"positions": positions})
    export(state_store, path, form)
    state_store.path.unlink()
    state_store.backup_path.unlink(missing_ok=True)
    before = times.format_instant(times.now())

    plan, _ = import_positions(state_store, envelope.read(path))

    back = StateStore(state_store.path).load(numbers="decimal")["positions"]
    assert len(plan.positions) == 10_000
    assert but_the_record(back) == but_the_record(positions)
    assert len({UUID(entry["id"], version=4) for entry in back.values()}) == 10_000
    assert [entry["imported_from_id"] for entry in back.values()] == [
        entry["id"] for entry in positions.values()
    ]
    for entry in back.values():
        assert before <= entry["created_at"] == entry["updated_at"]
        assert entry["opened_at"] == HELD["opened_at"]


def test_every_shape_of_entry_comes_back_under_its_key(state_store, other, path):
    held = {
        "ETH": ETH,
        "BTC-USD": {"product_id": "BTC-USD", "quantity": 1},
        "odd one": {"symbol": "SOL", "available": 1, "total": 2},
        "flag": True,
    }
    state_store.save({"positions": held})
    export(state_store, path)

    import_positions(other, envelope.read(path))

    back = other.load(numbers="decimal")["positions"]
    assert back.pop("flag") is True
    assert but_the_record(back) == {key: held[key] for key in ("ETH", "BTC-USD", "odd one")}


def test_ids_are_kept_when_asked_and_never_given_twice(store, other, path):
    export(store, path)
    import_positions(other, envelope.read(path), keep_ids=True)

    back = other.load()["positions"]
    assert back["solana:Demo1111:1h"]["id"] == HELD["id"]
    assert "imported_from_id" not in back["solana:Demo1111:1h"]
    assert UUID(back["ETH-USD"]["id"]).version == 4

    one = {"_key": "A", "id": HELD["id"]}
    two = {"_key": "B", "id": "same"}
    file = Envelope(kind="positions", rows=[one, two, two | {"_key": "C"}])
    plan = plan_import(file, contents(other), keep_ids=True)
    assert [(c.key, c.why) for c in plan.conflicts] == [
        ("A", f"has the id {HELD['id']} of solana:Demo1111:1h"),
        ("C", "has the id same of B"),
    ]
    assert not plan_import(file, contents(other)).conflicts


# What is there already


def test_a_position_that_is_there_is_an_error_and_nothing_is_written(store, path):
    export(store, path)
    with store.transaction() as state:
        del state["positions"]["solana:Demo1111:1h"]
    before = store.path.read_bytes()

    with pytest.raises(ImportRefused, match=r"2 conflict.*positions\.ETH-USD is there already"):
        import_positions(store, envelope.read(path))
    assert store.path.read_bytes() == before

    plan, _ = import_positions(store, envelope.read(path), skip_existing=True)
    assert list(plan.positions) == ["solana:Demo1111:1h"]
    assert plan.skipped == ("ETH-USD", "solana:Demo1111:4h")
    assert store.load(numbers="decimal")["positions"]["ETH-USD"] == ETH


def test_a_product_under_another_key_is_the_same_product(state_store):
    state_store.save({"positions": {"ETH": ETH}})
    file = Envelope(kind="positions", rows=[{"_key": "ETH-USD", "quantity": 1}])

    plan = plan_import(file, contents(state_store))

    assert [c.why for c in plan.conflicts] == ["is there already, as ETH"]


def test_a_contract_in_another_spelling_is_the_same_position(state_store, path):
    one = HELD | {"token_contract": "0x" + "aB" * 20, "token_chain": "base"}
    there, key = f"base:0x{'ab' * 20}:1h", f"base:0x{'aB' * 20}:1h"
    state_store.save({"positions": {there: one | {"token_contract": "0x" + "ab" * 20}}})
    plan = plan_import(Envelope(kind="positions", rows=[one]), contents(state_store))

    assert [(c.key, c.why) for c in plan.conflicts] == [(key, f"is there already, as {there}")]


def test_what_the_import_does_not_own_stays_byte_for_byte(store, path):
    export(store, path, timeframe="4h")
    odd = '{"positions" : {}, "odd" : [1.10,   2], "open_orders":{"o1":  {}}}'
    store.path.write_text(odd)
    import_positions(StateStore(store.path), envelope.read(path))

    text = store.path.read_text()
    assert "[1.10,   2]" in text
    assert '{"o1":  {}}' in text


def test_sections_are_merged_by_key_and_another_value_is_a_conflict(store, path):
    export(store, path, timeframe="none", sections=["registry", "lessons", "empty"])
    with store.transaction() as state:
        state["registry"] = {"Other": 1}
        state["lessons"] = None
    plan, _ = import_positions(store, envelope.read(path))
    assert store.load()["registry"] == {"Other": 1, "Demo1111": {"symbol": "DEMO"}}
    assert store.load()["lessons"] == ["sell late"]
    assert plan.counts["registry"] == {"added": 1, "same": 0, "skipped": 0}

    plan, meta = import_positions(store, envelope.read(path))
    assert plan.counts["registry"] == {"added": 0, "same": 1, "skipped": 0}
    assert meta.revision == 3  # nothing new, so nothing was saved

    with store.transaction() as state:
        state["registry"]["Demo1111"] = {"symbol": "ANOTHER"}
        state["lessons"] = ["buy early"]
    with pytest.raises(ImportRefused, match=r"registry\.Demo1111 is there already, with another"):
        import_positions(store, envelope.read(path))
    plan, _ = import_positions(store, envelope.read(path), skip_existing=True)
    assert plan.counts["registry"]["skipped"] == plan.counts["lessons"]["skipped"] == 1
    assert store.load()["lessons"] == ["buy early"]


@pytest.mark.parametrize("name", ["positions", "_meta"])
def test_a_section_cannot_smuggle_positions_in(state_store, name):
    file = Envelope(kind="positions", sections={name: {"X": 1}})

    assert plan_import(file, contents(state_store)).conflicts


def test_somebody_who_saves_meanwhile_is_not_overwritten(store, other, path):
    from statestore.errors import RevisionConflict
    from statestore.runtime.transfer import save_import

    export(store, path)
    found = other.load(numbers="decimal")
    plan = plan_import(envelope.read(path), contents_of(found, other.path))
    StateStore(other.path).save({"positions": {"SOL-USD": {}}})

    with pytest.raises(RevisionConflict):
        save_import(other, found, plan)
    assert list(other.load()["positions"]) == ["SOL-USD"]


# A whole state


def test_a_whole_state_takes_the_place_of_another(store, other, path):
    envelope.write(path, export_state(store.load(numbers="decimal")))
    other.save({"positions": {"SOL-USD": {}}, "later": 1})

    with pytest.raises(UsageError, match="--replace puts it in place"):
        import_positions(other, envelope.read(path))
    import_positions(other, envelope.read(path), replace=True)

    assert other.load(numbers="decimal") == STATE
    assert other.load().meta.revision == 2
    assert list(verify_import(envelope.read(path), contents(other))) == []
    with pytest.raises(UsageError, match="for a whole state"):
        import_positions(other, Envelope(kind="positions"), replace=True)


# All or nothing


def test_killed_at_any_moment_all_of_it_is_there_or_nothing(store, other, path, crash_after):
    export(store, path, sections=["registry"])
    file = envelope.read(path)
    other.save({"positions": {}, "n": 1})
    base = other.path.read_bytes()
    seen = set()
    for calls in itertools.count():
        for left in other.path.parent.iterdir():
            if left.is_file():
                left.unlink()
        other.path.write_bytes(base)
        if not crash_after(calls, lambda: import_positions(StateStore(other.path), file)):
            break
        found = StateStore(other.path).load()
        seen.add((len(found["positions"]), "registry" in found))

    assert seen == {(0, False), (3, True)}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"count": 3', '"count": 4', "not as it was exported"),
        ("1500.5", "1500.6", "not as it was exported"),
        ("statestore-export/1", "statestore-export/9", "newer statestore"),
        ('"timeframe": "1h"', '"timeframe": "1h", "timeframe": "4h"', "stands twice"),
    ],
)
def test_a_file_that_is_not_whole_changes_nothing(store, other, path, old, new, said):
    export(store, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    with pytest.raises(StateError, match=said):
        import_positions(other, envelope.read(path))
    assert not other.path.exists()


# Verify


def test_what_is_missing_or_another_is_named(store, other, path):
    export(store, path, sections=["registry", "lessons"])
    file = envelope.read(path)
    import_positions(other, file)
    assert list(verify_import(file, contents(other))) == []

    with other.transaction(numbers="decimal") as state:
        del state["positions"]["ETH-USD"], state["lessons"]
        state["positions"]["solana:Demo1111:1h"]["total_quantity"] = 1
        state["positions"]["solana:Demo1111:4h"]["new"] = 1
        state["registry"]["Demo1111"] = 2
        state["positions"]["SOL-USD"] = {}  # what came since is no loss

    assert [f"{c.where}.{c.key} {c.why}" for c in verify_import(file, contents(other))] == [
        "positions.ETH-USD is missing",
        "positions.solana:Demo1111:1h has another total_quantity",
        "positions.solana:Demo1111:4h has another new",
        "registry.Demo1111 is another",
        "sections.lessons is missing",
    ]


# Files of other programs


def test_the_three_legacy_shapes_are_imported(other, path):
    row = json.loads(json.dumps(HELD, default=float))
    path.write_text(
        json.dumps(
            {
                "exported_at": "2025-11-20T10:00:00",
                "count": 3,
                "filters": {"status": None, "timeframe": None},
                "positions": [
                    row,
                    row | {"timeframe": "4h", "status": "watchlist", "total_quantity": 0},
                    row | {"timeframe": "1d", "status": "closed"},
                ],
            }
        )
    )
    import_positions(other, envelope.read(path))
    state = other.load(numbers="decimal")
    assert but_the_record(state["positions"]) == but_the_record({"solana:Demo1111:1h": HELD})
    assert list(state["watchlist"]) == ["solana:Demo1111:4h"]

    token = {"token_contract": "New", "token_chain": "solana", "curator": {"curator_id": "c"}}
    path.write_text(
        json.dumps({"exported_at": "x", "count": 1, "status_filter": None, "tokens": [token]})
    )
    import_positions(other, envelope.read(path))
    assert other.load()["watchlist"]["solana:New"] == token

    path.write_text(
        json.dumps(
            {
                "backup_timestamp": "2025-07-20T08:00:00",
                "positions": [{"symbol1": "BTCUSD", "symbol2": "ETHUSD", "quantity": 1}],
                "current_state": {
                    "active_positions": {"XAU-XAG": {"quantity": 2}},
                    "pair_states": {"BTCUSD-ETHUSD": {"cooldown": 3}},
                },
                "portfolio_summary": {"total_value": 7},
                "system_status": {},
            }
        )
    )
    file = envelope.read(path)
    import_positions(other, file)
    state = other.load()
    assert {"XAU-XAG", "BTCUSD-ETHUSD", "solana:Demo1111:1h"} == set(state["positions"])
    assert state["pair_states"] == {"BTCUSD-ETHUSD": {"cooldown": 3}}
    assert state["portfolio"] == {"total_value": 7}
    assert file.unconfirmed == ("XAU-XAG", "BTCUSD-ETHUSD")  # each is in one list only
