"""The file first, then the mirror: outages, order, restores; all on a real InfluxDB 1.6."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore import StateStore, times
from statestore.backends import mirror as module
from statestore.backends.influx import Influx
from statestore.backends.mirror import Mirror, restore_document
from statestore.backends.mirrored import Series
from statestore.config import load_trading_state_settings
from statestore.errors import BackendError, BackendUnavailable, ConfigError, StateCorrupt
from tests.servers import InfluxServer, free_port

PATIENCE = 60  # seconds; for a machine that is busy
BTC, ETH = Series("position", "BTC-USD"), Series("position", "ETH-USD")
HOLDING = {"BTC-USD": {"quantity": 1}, "ETH-USD": {"quantity": 2}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(state_file: Path) -> StateStore:
    return StateStore(state_file)


@pytest.fixture
def mirror_of(state_file: Path, clock: Clock) -> Iterator[Callable[..., Mirror]]:
    """Make mirrors of `state_file` in a server; each is waited for at the end."""
    made: list[Mirror] = []

    def mirror_of(server: InfluxServer | str, **options: Any) -> Mirror:
        url = server if isinstance(server, str) else server.url
        name = options.pop("name", str(state_file))
        made.append(Mirror(Influx(url), name, clock=clock, **options))
        return made[-1]

    yield mirror_of
    for mirror in made:
        mirror.close(PATIENCE)


@pytest.fixture
def mirror(influx: InfluxServer, mirror_of: Callable[..., Mirror]) -> Mirror:
    return mirror_of(influx)


def save(store: StateStore, mirror: Mirror, **sections: Any) -> int:
    meta = store.save(sections)
    mirror.saved(store, meta)
    return meta.revision


def settle(mirror: Mirror) -> None:
    """Wait until the mirror's thread has done what it will do for now."""
    with mirror._changed:
        assert mirror._changed.wait_for(lambda: mirror._worker is None, PATIENCE)


def revisions(server: InfluxServer, name: object) -> list[int]:
    rows = server.query(f"SELECT seq FROM trading_states WHERE state = '{name}' AND part = '0'")
    return [row["seq"] for row in rows]


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"


# What a save is in the mirror


def test_each_save_is_a_revision_and_only_what_changed_is_a_point(
    store: StateStore, mirror: Mirror, influx: InfluxServer
) -> None:
    save(store, mirror, positions=HOLDING, pair_states={"BTC-ETH": {"cooldown": 3}})
    save(store, mirror, positions={**HOLDING, "ETH-USD": {"quantity": 3}}, pair_states={})
    mirror.flush()

    where = f"WHERE state = '{store.path}'"
    told = influx.query(f"SELECT symbol, seq, payload, deleted FROM positions {where}")
    pairs = influx.query(f"SELECT pair, seq, payload, deleted FROM pair_states {where}")
    assert [(row["symbol"], row["seq"], row["payload"], row["deleted"]) for row in told] == [
        ("BTC-USD", 1, '{"quantity":1}', False),
        ("ETH-USD", 1, '{"quantity":2}', False),
        ("ETH-USD", 2, '{"quantity":3}', False),
    ]
    assert [(row["pair"], row["seq"], row["deleted"]) for row in pairs] == [
        ("BTC-ETH", 1, False),
        ("BTC-ETH", 2, True),
    ]
    assert revisions(influx, store.path) == [1, 2]
    assert mirror.status()["pending"] is None
    assert mirror.status()["mirrored"] == 2


def test_venue_and_id_are_taken_from_the_position(
    store: StateStore, mirror: Mirror, influx: InfluxServer
) -> None:
    held = {"ETH-USD": {"venue": "coinbase", "position_id": "5e1c", "quantity": 1}}
    save(store, mirror, positions=held)
    mirror.flush()

    (row,) = influx.query(f"SELECT * FROM positions WHERE state = '{store.path}'")
    assert (row["venue"], row["symbol"], row["id"]) == ("coinbase", "ETH-USD", "5e1c")


def test_a_closed_position_is_a_tombstone_and_does_not_come_back(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, tmp_path: Path
) -> None:
    one = mirror_of(influx)
    save(store, one, positions=HOLDING)
    save(store, one, positions={"ETH-USD": {"quantity": 2}})
    one.flush()

    assert one.database.series(one.name) == {BTC: True, ETH: False}
    elsewhere = StateStore(tmp_path / "elsewhere" / "state.json")
    elsewhere.path.parent.mkdir()
    for _ in range(2):  # a second load in one process is as good as the first
        mirror_of(influx).take_over(elsewhere, wait=0)
        assert elsewhere.load()["positions"] == {"ETH-USD": {"quantity": 2}}


def test_a_position_that_closed_while_no_bot_ran_is_marked_by_the_next(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer
) -> None:
    one = mirror_of(influx)
    save(store, one, positions=HOLDING)
    one.flush()
    store.save({"positions": {"ETH-USD": {"quantity": 2}}}, reason="rebuild")
    other = mirror_of(influx)
    save(store, other, positions={"ETH-USD": {"quantity": 2}}, n=1)
    other.flush()

    assert other.database.series(other.name) == {BTC: True, ETH: False}


def test_numbers_are_exact_in_the_mirror_and_after_a_restore(
    store: StateStore, mirror: Mirror, influx: InfluxServer, tmp_path: Path
) -> None:
    exact = Decimal("0.123456789012345678901234567890")
    save(store, mirror, positions={"ETH-USD": {"quantity": exact, "price": Decimal("2975.3200")}})
    mirror.flush()

    (row,) = influx.query(f"SELECT payload FROM positions WHERE state = '{store.path}'")
    assert row["payload"] == '{"quantity":0.123456789012345678901234567890,"price":2975.3200}'
    held = mirror.newest()
    assert held is not None
    assert held.document() == store.path.read_bytes()
    other = StateStore(tmp_path / "other.json")
    restore_document(other, held.document(), "restore")
    assert other.load(numbers="decimal")["positions"]["ETH-USD"]["quantity"] == exact


def test_a_save_that_changed_nothing_writes_nothing(
    store: StateStore, mirror: Mirror, influx: InfluxServer
) -> None:
    for _ in range(3):
        save(store, mirror, n=1)
        mirror.flush()

    assert revisions(influx, store.path) == [1]


def test_a_clock_that_goes_back_does_not_turn_the_order(
    store: StateStore,
    mirror: Mirror,
    influx: InfluxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(store, mirror, positions=HOLDING)
    mirror.flush()
    monkeypatch.setattr("statestore.backends.mirror._instant", lambda _document: 5)
    save(store, mirror, positions={})
    mirror.flush()

    assert revisions(influx, store.path) == [1, 2]
    assert mirror.database.series(mirror.name) == {BTC: True, ETH: True}


def test_two_states_in_one_bucket_do_not_meet(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, tmp_path: Path
) -> None:
    other = StateStore(tmp_path / "other.json")
    mine, theirs = mirror_of(influx), mirror_of(influx, name=str(other.path))
    save(other, theirs, positions=HOLDING)
    save(store, mine, positions={"BTC-USD": {"quantity": 9}})
    mine.flush()
    theirs.flush()

    assert mine.database.series(mine.name) == {BTC: False}
    assert theirs.database.series(theirs.name) == {BTC: False, ETH: False}
    assert mine.newest().document() == store.path.read_bytes()  # type: ignore[union-attr]


def test_only_so_many_keys_get_a_series_and_the_document_has_them_all(
    store: StateStore,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_SERIES", 3)
    for number in range(5):
        save(store, mirror, positions={f"A{number}": {}}, pair_states={"x" * 201: {}})
    mirror.flush()

    assert sorted(series.key for series in mirror.database.series(mirror.name)) == [
        "A0",
        "A1",
        "A2",
    ]
    assert mirror.status()["unlisted"] == 1
    assert mirror.newest().document() == store.path.read_bytes()  # type: ignore[union-attr]


def test_sections_of_another_shape_are_in_the_document_only(
    store: StateStore, mirror: Mirror
) -> None:
    save(store, mirror, positions=[1, 2], pair_states=None)
    mirror.flush()

    assert mirror.database.series(mirror.name) == {}
    assert mirror.newest().document() == store.path.read_bytes()  # type: ignore[union-attr]


# When it is down


def test_an_hour_of_saves_while_it_is_down_is_in_the_file_and_then_in_the_mirror_in_order(
    store: StateStore,
    own_influx: InfluxServer,
    mirror_of: Callable[..., Mirror],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mirror = mirror_of(own_influx)
    save(store, mirror, positions=HOLDING, n=0)
    mirror.flush()
    own_influx.kill()
    attempts = 0
    write = mirror._write

    def counted(document: bytes) -> None:
        nonlocal attempts
        attempts += 1
        write(document)

    monkeypatch.setattr(mirror, "_write", counted)
    for number in range(720):  # every 5 s
        clock.now += 5
        assert save(store, mirror, positions={"ETH-USD": {"quantity": number}}) == number + 2
        settle(mirror)
        assert StateStore(store.path).load()["positions"]["ETH-USD"]["quantity"] == number

    assert attempts <= 4 + 60  # 5, 10, 20, 40 s, then once a minute
    assert "Connection refused" in str(mirror.degraded)
    assert mirror.status()["pending"] == {"revisions": 720, "from": 2, "to": 721}
    assert len([r for r in caplog.records if r.message == "state mirror is behind"]) == 1

    own_influx.start()
    clock.now += 60
    mirror.poke()
    settle(mirror)

    assert mirror.degraded is None
    assert mirror.status()["pending"] is None
    assert mirror.status()["passed_over"] == 0
    assert revisions(own_influx, store.path) == list(range(1, 722))
    held = mirror.newest()
    assert held is not None
    assert held.document() == store.path.read_bytes()
    rows = own_influx.query("SELECT payload, deleted FROM positions WHERE symbol = 'ETH-USD'")
    assert [json.loads(row["payload"])["quantity"] for row in rows] == [2, *range(720)]
    assert mirror.database.series(mirror.name) == {BTC: True, ETH: False}


def test_a_backlog_that_grows_too_large_passes_over_the_oldest_and_keeps_the_newest(
    store: StateStore,
    own_influx: InfluxServer,
    mirror_of: Callable[..., Mirror],
    clock: Clock,
) -> None:
    mirror = mirror_of(own_influx, backlog_bytes=10_000)
    save(store, mirror, positions=HOLDING, note="x" * 3_000)
    mirror.flush()
    own_influx.kill()
    for number in range(20):
        positions = HOLDING if number < 5 else {"BTC-USD": {"quantity": 1}}
        save(store, mirror, positions=positions, note=f"{number}" + "x" * 3_000)
        settle(mirror)
    assert mirror.status()["pending"]["revisions"] == 3
    own_influx.start()
    mirror.flush()

    assert revisions(own_influx, store.path) == [1, 19, 20, 21]
    assert mirror.status()["passed_over"] == 17
    assert mirror.database.series(mirror.name) == {BTC: False, ETH: True}


def test_a_save_does_not_wait_for_a_server_that_does_not_answer(
    store: StateStore, mirror_of: Callable[..., Mirror]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = mirror_of(f"http://127.0.0.1:{silent.getsockname()[1]}")
        mirror.database._timeout = 0.5
        for number in range(5):  # none of which waits for the thread that does
            save(store, mirror, n=number)
        assert mirror.status()["written"] == 0
        with pytest.raises(BackendUnavailable, match=r"no answer within 0\.5 s"):
            mirror.flush()


def test_a_server_that_is_killed_and_started_again_has_every_revision_once(
    store: StateStore, own_influx: InfluxServer, mirror_of: Callable[..., Mirror], clock: Clock
) -> None:
    mirror = mirror_of(own_influx)
    for number in range(60):
        clock.now += 60
        save(store, mirror, positions={"BTC-USD": {"quantity": number}})
        if number % 20 == 10:
            own_influx.kill()  # perhaps in the middle of a write
        if number % 20 == 15:
            own_influx.start()
    mirror.flush()

    assert revisions(own_influx, store.path) == list(range(1, 61))
    assert mirror.newest().document() == store.path.read_bytes()  # type: ignore[union-attr]


def test_what_a_killed_bot_owed_is_brought_by_the_next(
    store: StateStore, own_influx: InfluxServer, mirror_of: Callable[..., Mirror]
) -> None:
    killed = mirror_of(own_influx)
    save(store, killed, positions=HOLDING)
    killed.flush()
    own_influx.kill()
    save(store, killed, positions={"BTC-USD": {"quantity": 1}})
    settle(killed)
    own_influx.start()

    after = mirror_of(own_influx)
    assert after.take_over(store, wait=0) is None
    save(store, after, positions={"BTC-USD": {"quantity": 1}})  # unchanged: still revision 2
    after.flush()

    assert revisions(own_influx, store.path) == [1, 2]
    assert after.database.series(after.name) == {BTC: False, ETH: True}


def test_a_database_that_lost_everything_gets_every_open_position_again(
    store: StateStore,
    influx: InfluxServer,
    own_influx: InfluxServer,
    mirror_of: Callable[..., Mirror],
) -> None:
    mirror = mirror_of(own_influx)
    save(store, mirror, positions=HOLDING)
    mirror.flush()
    own_influx.query(f'DROP DATABASE "{own_influx.database}"')
    save(store, mirror, positions=HOLDING, n=1)
    settle(mirror)
    assert "database not found" in str(mirror.degraded)
    own_influx.query(f'CREATE DATABASE "{own_influx.database}"')
    mirror.flush()

    assert mirror.database.series(mirror.name) == {BTC: False, ETH: False}
    assert revisions(own_influx, store.path) == [2]


def test_a_revision_that_is_refused_for_what_it_is_does_not_keep_newer_ones_out(
    store: StateStore, mirror: Mirror, influx: InfluxServer
) -> None:
    save(store, mirror, n=1)
    mirror.flush()
    mirror.record(store.path.read_bytes().replace(b'"n": 1', b'"n": 2'))
    settle(mirror)
    assert "its sum does not match" in str(mirror.degraded)
    save(store, mirror, n=3)
    mirror.flush()

    assert revisions(influx, store.path) == [1, 2]
    assert mirror.degraded is None
    assert mirror.status()["passed_over"] == 1


def test_a_revision_that_was_refused_in_part_is_not_in_the_mirror(
    store: StateStore, own_influx: InfluxServer, mirror_of: Callable[..., Mirror]
) -> None:
    mirror = mirror_of(own_influx)
    taken = f"positions payload=1.5 {times.now()}".encode()  # a dashboard's, of another type
    mirror.database._send("POST", "/write", params={"db": own_influx.database}, data=taken)
    save(store, mirror, positions=HOLDING)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="field type conflict"):
            mirror.flush()

    assert revisions(own_influx, store.path) == []
    assert mirror.newest() is None
    assert mirror.status()["mirrored"] is None


def test_what_a_passed_over_revision_left_behind_is_put_right_by_the_next(
    store: StateStore, mirror: Mirror, influx: InfluxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positions of revision 2 arrive, its document does not; revision 3 is as revision 1."""
    mirror._backlog_bytes = 1
    save(store, mirror, positions={"BTC-USD": {"quantity": 1}})
    mirror.flush()
    api = mirror.database._connected()
    write = api.write

    def cut(body: bytes) -> None:
        if not body.startswith(b"positions"):
            raise BackendUnavailable("the connection was cut")
        write(body)

    with monkeypatch.context() as patch:
        patch.setattr(api, "write", cut)
        save(store, mirror, positions={"BTC-USD": {"quantity": 5}, "ETH-USD": {"quantity": 2}})
        settle(mirror)
        save(store, mirror, positions={"BTC-USD": {"quantity": 1}})
    mirror.flush()

    assert revisions(influx, store.path) == [1, 3]
    assert mirror.database.series(str(store.path)) == {BTC: False, ETH: True}
    last = f"SELECT LAST(payload) AS p FROM positions WHERE state = '{store.path}' GROUP BY symbol"
    assert [row["p"] for row in influx.query(last)] == ['{"quantity":1}', "null"]


def test_a_question_that_is_refused_costs_no_revision_that_is_owed(
    store: StateStore,
    mirror: Mirror,
    influx: InfluxServer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a proxy in between that answers 400 to everything for a while."""
    refused = mirror.database._refused(400, "", "/query")

    def newest(_name: str) -> None:
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(mirror.database, "newest", newest)
        for number in range(3):
            save(store, mirror, n=number)
        settle(mirror)
        assert mirror.status()["pending"]["revisions"] == 3
    clock.now += 60
    mirror.flush()

    assert revisions(influx, store.path) == [1, 2, 3]


def test_a_failure_is_told_once_and_the_recovery_too(
    store: StateStore,
    own_influx: InfluxServer,
    mirror_of: Callable[..., Mirror],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="statestore.backends")
    mirror = mirror_of(own_influx)
    own_influx.kill()
    for number in range(3):
        save(store, mirror, n=number)
        with pytest.raises(BackendUnavailable, match="not in the mirror"):
            mirror.flush()
    own_influx.start()
    mirror.flush()

    told = [r.message for r in caplog.records if r.name == "statestore.backends.mirror"]
    assert told == ["state mirror is behind", "state mirror answers again"]


def test_a_bug_in_the_mirror_is_logged_and_costs_no_save(
    store: StateStore,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("division")

    monkeypatch.setattr(mirror.database, "newest", broken)
    save(store, mirror, n=1)
    settle(mirror)

    assert "a bug" in caplog.text
    assert "division" in str(mirror.degraded)


def test_a_state_file_that_is_gone_costs_no_save(store: StateStore, mirror: Mirror) -> None:
    meta = store.save({"n": 1})
    store.path.unlink()
    mirror.saved(store, meta)

    assert "cannot read" in str(mirror.degraded)


def test_an_older_document_that_comes_late_is_left_out(
    store: StateStore, mirror: Mirror, influx: InfluxServer
) -> None:
    store.save({"n": 1})
    late = store.path.read_bytes()
    save(store, mirror, n=2)
    mirror.record(late)
    mirror.flush()

    assert revisions(influx, store.path) == [2]
    assert mirror.status()["revision"] == 2


def test_a_forked_child_leaves_what_is_owed_to_its_parent(
    store: StateStore, mirror_of: Callable[..., Mirror]
) -> None:
    mirror = mirror_of(nowhere())
    save(store, mirror, n=1)
    settle(mirror)
    child = os.fork()
    if not child:
        os._exit(0 if mirror.status()["pending"] is None else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mirror.status()["pending"]["revisions"] == 1


# Which of the two is taken


def test_a_mirror_that_is_ahead_is_restored_and_the_former_state_backed_up(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer
) -> None:
    one = mirror_of(influx)
    save(store, one, n=1)
    old = store.path.read_bytes()
    save(store, one, n=2)
    one.flush()
    store.path.write_bytes(old)
    store.backup_path.unlink()

    fresh = StateStore(store.path)
    saved = mirror_of(influx).take_over(fresh, wait=0)

    assert saved is not None
    assert (saved.revision, saved.reason) == (3, "mirror at revision 2")
    assert fresh.load()["n"] == 2
    assert [backup.path.read_bytes() for backup in fresh.backups.list()] == [old]


@pytest.mark.parametrize("saves", [1, 2])
def test_a_file_that_is_ahead_or_level_stands(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, saves: int
) -> None:
    one = mirror_of(influx)
    save(store, one, n=1)
    one.flush()
    if saves == 2:
        store.save({"n": 2})
    before = store.path.read_bytes()

    assert mirror_of(influx).take_over(store, wait=0) is None
    assert store.path.read_bytes() == before


def test_of_two_states_of_one_revision_the_file_counts_and_it_is_said(
    store: StateStore,
    mirror_of: Callable[..., Mirror],
    influx: InfluxServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = mirror_of(influx)
    save(store, one, n=1)
    one.flush()
    other = StateStore(tmp_path / "other.json")
    other.save({"n": "another"})
    fork = mirror_of(influx)

    assert fork.take_over(other, wait=0) is None
    fork.flush()
    assert caplog.text.count("another state of the same revision") == 1
    assert fork.newest().document() == other.path.read_bytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [b"torn", b'{"positions": {}}'])
def test_what_nothing_vouches_for_is_not_brought_to_the_mirror(
    store: StateStore, mirror: Mirror, damage: bytes
) -> None:
    store.save({"n": 1})
    store.save({"n": 2})
    store.path.write_bytes(damage)
    assert mirror.take_over(StateStore(store.path, on_mismatch="warn")) is None
    settle(mirror)

    assert mirror.newest() is None
    assert mirror.status()["revision"] is None
    assert mirror.degraded is None


def test_where_there_is_no_file_the_mirror_is_restored(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, tmp_path: Path
) -> None:
    one = mirror_of(influx)
    save(store, one, positions=HOLDING)
    one.flush()
    new = StateStore(tmp_path / "new.json")

    mirror_of(influx).take_over(new, wait=0)

    assert new.load()["positions"] == HOLDING


def test_a_mirror_that_cannot_be_asked_leaves_the_file_and_says_so(
    store: StateStore, mirror_of: Callable[..., Mirror]
) -> None:
    store.save({"n": 1})
    mirror = mirror_of(nowhere())

    assert mirror.take_over(store, wait=0) is None
    assert "Connection refused" in str(mirror.degraded)
    assert store.load()["n"] == 1


def test_a_start_waits_a_moment_for_a_database_that_is_just_starting(
    store: StateStore, mirror_of: Callable[..., Mirror], own_influx: InfluxServer, tmp_path: Path
) -> None:
    one = mirror_of(own_influx)
    save(store, one, n=1)
    one.flush()
    own_influx.kill()
    starting = threading.Timer(0.3, own_influx.start)
    starting.start()
    new = StateStore(tmp_path / "new.json")

    saved = mirror_of(own_influx).take_over(new, wait=PATIENCE)
    starting.join()

    assert saved is not None
    assert new.load()["n"] == 1


def test_a_state_that_does_not_read_is_not_replaced_silently(
    store: StateStore,
    mirror_of: Callable[..., Mirror],
    influx: InfluxServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = mirror_of(influx)
    save(store, one, n=1)
    one.flush()
    store.path.write_bytes(b"torn")

    with pytest.raises(StateCorrupt):
        mirror_of(influx).take_over(StateStore(store.path), wait=0)
    assert "statestore mirror restore" in caplog.text


def test_a_damaged_document_in_the_mirror_is_not_taken(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, tmp_path: Path
) -> None:
    one = mirror_of(influx)
    save(store, one, n=1)
    old = store.path.read_bytes()
    save(store, one, note="x" * 200_000)
    one.flush()
    influx.query(f"DROP SERIES FROM trading_states WHERE part = '1' AND state = '{one.name}'")
    store.path.write_bytes(old)
    store.backup_path.unlink()
    mirror = mirror_of(influx)

    assert mirror.take_over(StateStore(store.path), wait=0) is None
    assert "there is no 1" in str(mirror.degraded)
    assert store.path.read_bytes() == old
    with pytest.raises(BackendError, match="there is no 1"):
        mirror_of(influx).take_over(StateStore(tmp_path / "new.json"), wait=0)


def test_where_there_is_no_file_a_mirror_that_cannot_be_asked_is_no_first_start(
    store: StateStore, mirror_of: Callable[..., Mirror]
) -> None:
    with pytest.raises(BackendUnavailable, match=r"what the mirror holds .* is not known"):
        mirror_of(nowhere()).take_over(store, wait=0)

    assert mirror_of(nowhere()).take_over(store, wait=0, may_begin_empty=True) is None
    assert not store.path.exists()


def test_a_mirror_that_is_ahead_of_a_running_bot_is_never_written_over(
    store: StateStore, mirror_of: Callable[..., Mirror], influx: InfluxServer, tmp_path: Path
) -> None:
    one = mirror_of(influx)
    for number in range(5):
        save(store, one, n=number)
    one.flush()
    behind = StateStore(tmp_path / "behind.json")
    late = mirror_of(influx)
    save(behind, late, n="other")
    with pytest.raises(BackendError, match=r"holds revision 5 .* the file is at 1"):
        late.flush()

    assert late.newest().document() == store.path.read_bytes()  # type: ignore[union-attr]


# Settings


def test_the_mirror_is_made_from_the_settings(store: StateStore) -> None:
    settings = load_trading_state_settings(
        {
            "TRADING_STATE_DB_TYPE": "influxdb",
            "TRADING_STATE_INFLUXDB_TOKEN": "s3cret",
            "TRADING_STATE_NAME": "bot",
        }
    )
    made = module.configured_mirror(settings, store)

    assert made is not None
    assert made.name == "bot"
    assert made.status()["database"] == "InfluxDB at http://localhost:8086 (quant-data)"
    assert "s3cret" not in f"{made.database!r} {made.status()}"
    assert module.configured_mirror(load_trading_state_settings({}), store) is None
    with pytest.raises(ConfigError, match="no mirror is configured"):
        module.require_mirror(load_trading_state_settings({}), store)
