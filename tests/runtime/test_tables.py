"""Positions of a state file in the tables of a real PostgreSQL, and of the tables in a file."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from statestore.backends.positions import PositionTables
from statestore.disk.store import StateStore
from statestore.errors import BackendError, ImportRefused, KillSwitchNotEngaged
from statestore.model import (
    Order,
    OrderSide,
    OrderType,
    Position,
    PositionSide,
    PositionStatus,
)
from statestore.runtime import envelope
from statestore.runtime.envelope import Envelope
from statestore.runtime.tables import (
    import_tables,
    prepare,
    read_removal,
    read_tables,
    rehearse_tables,
    remove_import,
)
from statestore.runtime.transfer import (
    contents_of,
    export_positions,
    import_positions,
    verify_import,
)
from tests.runtime.test_transfer import H4, HELD, STATE, but_the_record

OPENED = datetime(2025, 10, 10, 16, 13, 1, 505817, tzinfo=UTC)
ETH = {
    "side": "BUY",
    "quantity": Decimal("0.00088729"),
    "units": Decimal("0.00088729"),
    "entry_price": Decimal("2975.32"),
    "entry_time": "2025-11-18T04:29:43.786756123Z",
    "stop_loss": None,
    "note": "a column of theirs",
}
TOKEN = HELD | {"avg_entry_price": Decimal("0.000012345678901234567890")}
POSITIONS = {"ETH-USD": ETH, "solana:Demo1111:1h": TOKEN, "solana:Demo1111:4h": H4}


@pytest.fixture
def tables(database):
    return PositionTables(database)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "export.json"


@pytest.fixture
def file(state_store, path):
    """An export of a state file, with the three positions."""
    state_store.save(STATE | {"positions": POSITIONS})
    contents = contents_of(state_store.load(numbers="decimal"), state_store.path)
    envelope.write(path, export_positions(contents).envelope)
    return envelope.read(path)


def take(tables, file, **asked):
    return imported(tables, file, **asked)[0]


def imported(tables, file, **asked):
    return import_tables(tables, file, exchange="coinbase", before_commit=lambda: None, **asked)


def exported(tables, path, form="json"):
    contents = read_tables(tables).contents
    made = export_positions(contents, sections=["orders"] if contents.sections["orders"] else [])
    envelope.write(path, made.envelope, form)
    return envelope.read(path)


def position(symbol="BTC/USDT", **said):
    given = {
        "position_id": str(uuid4()),
        "exchange": "coinbase",
        "symbol": symbol,
        "side": PositionSide.LONG,
        "quantity": Decimal("0.00048"),
        "entry_price": Decimal("119170.84"),
        "entry_time": OPENED,
        "metadata": {
            "strategy": "grid",
            "deep": [{"n": None}],
            "exact": Decimal("0.1234567890123"),
        },
    }
    return Position(**given | said)


def stop(of, **said):
    given = {
        "order_id": str(uuid4()),
        "exchange": of.exchange,
        "position_id": of.position_id,
        "symbol": of.symbol,
        "side": OrderSide.SELL,
        "order_type": OrderType.STOP_LOSS,
        "quantity": of.quantity,
        "price": Decimal("100.10"),
        "created_at": OPENED,
    }
    return Order(**given | said)


def test_what_a_state_file_holds_goes_into_the_tables_and_comes_back(
    tables, file, path, tmp_path, state_store
):
    plan = take(tables, file)
    back = exported(tables, path.with_name("back.json"))

    assert list(plan.positions) == list(POSITIONS)
    assert but_the_record(read_tables(tables).contents.entries) == but_the_record(POSITIONS)
    assert back.source["backend"] == "postgres"
    other = StateStore(tmp_path / "other" / ".state.json")
    import_positions(other, back)
    assert but_the_record(other.load(numbers="decimal")["positions"]) == but_the_record(POSITIONS)
    assert list(verify_import(file, read_tables(tables).contents)) == []


def test_the_columns_of_the_table_say_what_the_row_says(tables, file):
    take(tables, file)

    rows = {p.metadata["_import"]["key"]: p for p in tables.load(held_only=False)[0]}
    eth, token, watched = (rows[key] for key in POSITIONS)
    assert (eth.exchange, eth.symbol, eth.side) == ("coinbase", "ETH-USD", PositionSide.LONG)
    assert (eth.quantity, eth.entry_price) == (ETH["quantity"], ETH["entry_price"])
    assert eth.entry_time == datetime(2025, 11, 18, 4, 29, 43, 786756, tzinfo=UTC)
    assert eth.metadata["note"] == "a column of theirs"
    assert (token.exchange, token.symbol) == ("solana", "solana:Demo1111:1h")
    assert token.entry_price == TOKEN["avg_entry_price"]
    assert token.metadata["features"] == HELD["features"]
    assert watched.status is PositionStatus.CLOSED
    assert [p.symbol for p in tables.load()[0]] == ["solana:Demo1111:1h", "ETH-USD"]


def test_what_the_database_changed_since_is_what_comes_back(tables, file):
    take(tables, file)
    with tables.transaction() as connection:
        token, eth = tables.positions(connection)  # oldest first
        sold = replace(eth, quantity=Decimal(0), status=PositionStatus.CLOSED, closed_at=OPENED)
        grown = replace(token, stop_loss=Decimal("0.5"), metadata=token.metadata | {"new": 1})
        tables.update_positions(connection, [sold, grown])

    entries = read_tables(tables).contents.entries
    closed = entries[eth.position_id]
    assert (closed["status"], closed["quantity"], closed["note"]) == ("CLOSED", 0, ETH["note"])
    assert closed["closed_at"] == "2025-10-10T16:13:01.505817Z"
    assert entries["solana:Demo1111:1h"]["stop_loss"] == Decimal("0.5")
    assert entries["solana:Demo1111:1h"]["metadata"] == {"new": 1}
    assert "ETH-USD" not in entries  # it may be opened, and imported, again


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_positions_and_orders_of_a_database_survive_a_wipe(tables, path, form):
    held, closed = position(), position(status=PositionStatus.CLOSED, quantity=Decimal(0))
    short = position(side=PositionSide.SHORT, leverage=None)
    loose = stop(held, position_id=None, order_type=OrderType.LIMIT)
    orders = [stop(held, oco_group=str(uuid4()), exchange_order_id="x-1"), stop(short), loose]
    tables.insert([held, short, closed], orders)
    before = tables.load(held_only=False)

    file = exported(tables, path, form)
    with tables.transaction() as connection:
        for table in ("orders", "positions"):
            connection.execute(tables.database.query(f"DELETE FROM {{schema}}.{table}"))
    plan = take(tables, file, keep_ids=True)

    assert file.count == 3
    assert len(plan.positions) == 3
    after = tables.load(held_only=False)
    assert after[1] == before[1]
    for was, now in zip(before[0], after[0], strict=True):
        assert now.metadata.pop("_import")["was"]["id"] == was.position_id
        times = {"created_at", "updated_at"}
        assert {n: v for n, v in now.metadata.items() if n not in times} == was.metadata
        now.metadata = was.metadata
        assert now == was
    assert list(verify_import(file, read_tables(tables).contents)) == []


def test_new_ids_take_the_orders_along(tables, path):
    held = position()
    tables.insert([held], [stop(held)])
    file = exported(tables, path)
    with tables.transaction() as connection:
        for table in ("orders", "positions"):
            connection.execute(tables.database.query(f"DELETE FROM {{schema}}.{table}"))

    take(tables, file)

    (back,), (order,) = tables.load()
    assert back.position_id != held.position_id
    assert back.metadata["imported_from_id"] == held.position_id
    assert order.position_id == back.position_id


def test_a_position_that_is_there_is_refused_and_nothing_is_written(tables, file):
    tables.insert([position("ETH-USD")])

    with pytest.raises(ImportRefused, match=r"positions\.ETH-USD is there already"):
        take(tables, file)
    assert len(tables.load(held_only=False)[0]) == 1

    plan = take(tables, file, skip_existing=True)
    assert (len(plan.positions), plan.skipped) == (2, ("ETH-USD",))


def test_one_position_of_a_symbol_and_side_whatever_its_key(tables):
    tables.insert([position("ETH-USD")])
    row = {"_key": "mine", "symbol": "ETH-USD", "quantity": 1, "entry_price": 1}
    file = Envelope(kind="positions", rows=[row, row | {"_key": "short", "side": "SHORT"}])

    with pytest.raises(ImportRefused, match="mine is there already, as coinbase ETH-USD LONG"):
        take(tables, file)
    plan = take(tables, file, skip_existing=True)
    assert (list(plan.positions), plan.skipped) == (["short"], ("mine",))

    row |= {"_key": "new", "symbol": "SOL-USD"}
    with pytest.raises(ImportRefused, match="newer is there already"):  # twice in the file
        take(tables, replace(file, rows=[row, row | {"_key": "newer"}]))


def test_an_order_the_exchange_knows_comes_in_once(tables, path):
    held = position()
    tables.insert([held], [stop(held)])
    row = exported(tables, path).rows[0] | {"symbol": "SOL/USDT"}
    file = Envelope(kind="positions", rows=[row])

    with pytest.raises(ImportRefused, match=r"has the order .* which is there already"):
        take(tables, file)
    assert take(tables, file, skip_existing=True).skipped == ("SOL/USDT",)


def test_a_dry_run_says_what_the_real_run_does(tables, file):
    dry = prepare(file, read_tables(tables), exchange="coinbase")
    assert read_tables(tables).contents.entries == {}

    really = take(tables, file)

    assert list(dry.plan.positions) == list(really.positions)
    again = prepare(file, read_tables(tables), exchange="coinbase")
    assert len(again.plan.conflicts) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"quantity": 1}, "no entry price"),
        ({"entry_price": 1}, "does not say how much"),
        ({"quantity": "many", "entry_price": 1}, "quantity that is not understood"),
        ({"quantity": 1, "entry_price": 1, "side": "UP"}, "side 'UP'"),
        (
            {"quantity": 1, "entry_price": 1, "metadata": {"quantity2": 1}, "quantity2": 2},
            "quantity2",
        ),
        ({"quantity": 1, "entry_price": 1, "_orders": [{"order_id": "x"}]}, "not understood"),
        ({"quantity": 1, "entry_price": 1, "_orders": [{"order_id": 7}]}, "without an order_id"),
        ({"quantity": 1, "entry_price": 1, "_orders": 7}, "are no list"),
        ({"_value": True}, "no object"),
    ],
)
def test_what_the_table_cannot_hold_is_a_conflict_and_never_made_up(tables, row, said):
    file = Envelope(kind="positions", rows=[{"_key": "ETH-USD", **row}])

    with pytest.raises(ImportRefused, match=said):
        take(tables, file)


def test_sections_and_ids_of_others_have_no_place_there(tables):
    file = Envelope(kind="positions", sections={"registry": {"A": 1}})
    with pytest.raises(ImportRefused, match=r"sections\.registry is no position"):
        take(tables, file)

    row = {"_key": "ETH-USD", "id": "e-1", "quantity": 1, "entry_price": 1}
    file = Envelope(kind="positions", rows=[row])
    with pytest.raises(ImportRefused, match="needs a UUID"):
        take(tables, file, keep_ids=True)
    assert take(tables, file).positions["ETH-USD"]["imported_from_id"] == "e-1"


def test_a_key_longer_than_the_column_comes_back_whole(tables, path):
    contract = "So1anaContractOfFortyFourCharactersXXXXXXXXX"
    file = Envelope(kind="positions", rows=[TOKEN | {"token_contract": contract}])
    take(tables, file)

    assert len(tables.load()[0][0].symbol) == 50
    assert list(read_tables(tables).contents.entries) == [f"solana:{contract}:1h"]


def test_a_switch_released_meanwhile_takes_all_of_it_back(tables, file):
    def released():
        raise KillSwitchNotEngaged("released")

    with pytest.raises(KillSwitchNotEngaged):
        import_tables(tables, file, exchange="coinbase", before_commit=released)
    assert read_tables(tables).contents.entries == {}


# Said before it is done


ENTRY = {"_key": "ETH-USD", "quantity": Decimal(1), "entry_price": Decimal(3000)}
AN_ORDER = {
    "order_id": "one",
    "exchange": "coinbase",
    "symbol": "ETH-USD",
    "side": "sell",
    "order_type": "stop_loss",
    "quantity": Decimal(1),
    "price": Decimal(2500),
    "status": "pending",
}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"_key": "A\0B"},
        {"note": "a\0b"},
        {"exchange": "a\0b"},
        {"entry_price": Decimal(-1)},
        {"initial_quantity": Decimal(-1)},
        {"quantity": Decimal("1." + "1" * 60)},
        {"quantity": Decimal("1E-20000")},
        {"margin": Decimal("1E+300")},
        {"closed_at": "2025-01-01T00:00:00"},
        {"opened_at": "9999-12-31T23:59:59.999999999Z"},
        {"metadata": {"a": "\0"}},
        {"side": "both"},
        *(
            {"_orders": [AN_ORDER | more]}
            for more in (
                {},
                {"order_id": ""},
                {"order_id": "x" * 101},
                {"quantity": Decimal(0)},
                {"price": None},
                {"status": "filled"},
                {"symbol": "x" * 51},
                {"oco_group": "not one"},
                {"exchange_order_id": ""},
                {"metadata": [1]},
                {"created_at": None},
            )
        ),
        {"_orders": [AN_ORDER | {"order_id": name, "exchange_order_id": "e"} for name in "ab"]},
    ],
    ids=lambda said: str(said)[:40],
)
def test_a_dry_run_says_exactly_what_the_real_run_does(tables, said):
    """The rules of the tables are theirs: whatever refuses a row refuses it in a dry run too."""
    file = Envelope(kind="positions", rows=[ENTRY | said])

    def of(run):
        try:
            return run().conflicts
        except ImportRefused:
            return plan.conflicts
        except BackendError as error:
            return str(error).partition("Failing row")[0]

    plan = None
    dry = of(lambda: rehearse_tables(tables, file, exchange="coinbase"))
    assert read_tables(tables).contents.entries == {}
    plan = prepare(file, read_tables(tables), exchange="coinbase").plan
    assert of(lambda: take(tables, file)) == dry
    assert bool(read_tables(tables).contents.entries) == (dry == ())


# Taken out again


STOP = {
    "order_id": "a stop",
    "exchange": "coinbase",
    "symbol": "ETH-USD",
    "side": "sell",
    "order_type": "stop_loss",
    "quantity": Decimal("0.0008"),
    "price": Decimal(2500),
    "status": "pending",
}


@pytest.fixture
def with_a_stop(file):
    """The export, its first position with an order of its own."""
    rows = [
        row | ({"_orders": [STOP]} if number == 0 else {}) for number, row in enumerate(file.rows)
    ]
    return replace(file, rows=rows)


def of_a_bot(tables):
    """Put in a position that is none of the import's."""
    position = Position(
        position_id=str(uuid4()),
        exchange="coinbase",
        symbol="BTC-USD",
        side=PositionSide.LONG,
        quantity=Decimal(1),
        entry_price=Decimal(60000),
        entry_time=OPENED,
    )
    tables.insert([position])
    return position.position_id


def removed(tables, stamps):
    return remove_import(tables, stamps, before_commit=lambda: None)


def test_an_import_is_taken_out_again_with_its_orders_and_nothing_else(tables, with_a_stop):
    own = of_a_bot(tables)
    before = tables.load(held_only=False)
    plan, stamps = imported(tables, with_a_stop)
    dry = read_removal(tables, stamps)

    assert set(stamps.positions) == {entry["id"] for entry in plan.positions.values()}
    assert (list(stamps.orders), dry.conflicts) == (["a stop"], ())
    assert removed(tables, stamps) == dry
    assert tables.load(held_only=False) == before
    assert [p.position_id for p in before[0]] == [own]
    assert removed(tables, stamps).gone == (*stamps.positions, "a stop")


@pytest.mark.parametrize("change", ["a price", "a note of the order", "an order that came to it"])
def test_an_import_of_which_a_row_was_changed_since_stays_whole(tables, with_a_stop, change):
    _, stamps = imported(tables, with_a_stop)
    positions, (order,) = tables.load(held_only=False)
    (eth,) = [p for p in positions if p.symbol == "ETH-USD"]
    if change == "a price":
        eth.current_price = Decimal(3000)
        with tables.transaction() as connection:
            tables.update_prices(connection, [eth])
        named = f"positions.{eth.position_id} was changed at 20"
    elif change == "a note of the order":
        with tables.transaction() as connection:
            tables.update_orders(connection, [replace(order, error_message="late")])
        named = "orders.a stop was changed at 20"
    else:
        tables.insert([], [replace(order, order_id="another")])
        named = "orders.another came to an imported position since"
    before = tables.load(held_only=False)

    assert [
        named in f"{c.where}.{c.key} {c.why}" for c in read_removal(tables, stamps).conflicts
    ] == [True]
    with pytest.raises(ImportRefused, match="not as they were imported, so nothing was taken out"):
        removed(tables, stamps)
    assert tables.load(held_only=False) == before


def test_a_row_that_is_gone_keeps_nothing_else_of_an_import(tables, with_a_stop):
    _, stamps = imported(tables, with_a_stop)
    with tables.transaction() as connection:
        connection.execute(tables.database.query("DELETE FROM {schema}.orders"))

    assert removed(tables, stamps).gone == ("a stop",)
    assert tables.load(held_only=False) == ([], [])


def test_a_switch_released_while_an_import_is_taken_out_keeps_all_of_it(tables, with_a_stop):
    _, stamps = imported(tables, with_a_stop)
    before = tables.load(held_only=False)

    def released():
        raise KillSwitchNotEngaged("released")

    with pytest.raises(KillSwitchNotEngaged):
        remove_import(tables, stamps, before_commit=released)
    assert tables.load(held_only=False) == before


def test_killed_before_the_commit_nothing_is_there(tables, file, postgres, schema_name):
    from statestore.backends.database import Database

    child = os.fork()
    if not child:
        try:
            own = PositionTables(Database(postgres.url, schema=schema_name))
            import_tables(
                own,
                file,
                exchange="coinbase",
                before_commit=lambda: os.kill(os.getpid(), signal.SIGKILL),
            )
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    assert read_tables(tables).contents.entries == {}
    assert len(take(tables, file).positions) == 3


def test_what_the_database_refuses_leaves_nothing(tables, file):
    rows = [*file.rows, {"_key": "X-USD", "quantity": 1, "entry_price": -1}]

    with pytest.raises(BackendError, match="entry_price"):
        take(tables, replace(file, rows=rows))
    assert read_tables(tables).contents.entries == {}
