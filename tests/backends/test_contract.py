"""One contract for every store: a file, a database, the memory of a process. See `StateStore`."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore import KillSwitch, State, StateStore, TradingSession
from statestore.backends.influx import Influx
from statestore.backends.mirror import Mirror
from statestore.disk import codec
from statestore.disk.history import differences
from statestore.errors import (
    BackupFailed,
    LeaseHeld,
    RevisionConflict,
    StateChecksumMismatch,
    StateCorrupt,
    StateInvalid,
    StateLocked,
    StateMissing,
    UsageError,
)
from tests.servers import InfluxServer

fork = multiprocessing.get_context("fork")

PATIENCE = 60  # seconds until a test that hangs is given up

Make = Callable[..., StateStore]
KINDS = ("file", "memory", "postgres")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return what makes stores on one state, which is not there yet."""
    if kind == "file":
        url: Any = tmp_path / "state.json"
    elif kind == "memory":
        url = f"memory://{tmp_path.name}-{os.getpid()}"
    else:
        database = request.getfixturevalue("database")
        url = f"{request.getfixturevalue('postgres').url}?schema={database.schema}"
    made = []

    def make(**options: Any) -> StateStore:
        store = StateStore(url, backup_dir=tmp_path / "backups", **options)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> StateStore:
    return make()


def saved(store: StateStore, *numbers: int) -> StateStore:
    """Save states {"n": number} in turn."""
    for number in numbers:
        state = store.load()
        state["n"] = number
        store.save(state)
    return store


def damage(store: StateStore, make: Callable[[bytes], bytes]) -> None:
    """Change the present document behind the store's back."""
    if isinstance(store.path, Path):
        store.path.write_bytes(make(store.path.read_bytes()))
    elif store.path.startswith("memory"):
        documents = store._memory.documents
        newest = max(documents)
        documents[newest] = make(documents[newest])
    else:
        (present,) = store._tables.rows(
            "SELECT revision, document FROM {schema}.revisions "
            "WHERE name = %(name)s ORDER BY revision DESC LIMIT 1"
        )
        store._tables.rows(
            "UPDATE {schema}.revisions SET document = %(document)s "
            "WHERE name = %(name)s AND revision = %(revision)s RETURNING 1",
            revision=present[0],
            document=make(bytes(present[1])),
        )


def tear(data: bytes) -> bytes:
    return data[:-7]


def edit(data: bytes) -> bytes:
    return data.replace(b'"n": ', b'"n": 1')


# Loading and saving


def test_a_first_start_is_an_empty_state_at_revision_0(store: StateStore) -> None:
    state = store.load()

    assert state == {}
    assert (state.meta.revision, state.meta.state_path) == (0, store.path)
    with pytest.raises(StateMissing, match="restore --empty"):
        store.load(missing_ok=False)


def test_what_is_saved_is_loaded_with_every_digit(make: Make) -> None:
    exact = Decimal("0.1000000000000000000000000001")
    first = make().save({"positions": {"BTC": {"quantity": exact}}, "big": 10**30})
    state = make().load(numbers="decimal")

    assert state["positions"]["BTC"]["quantity"] == exact
    assert state["big"] == 10**30
    assert state.meta == first
    assert (first.revision, first.verified, first.recovered_from) == (1, True, None)
    assert make().load()["positions"]["BTC"]["quantity"] == 0.1


def test_the_document_is_the_same_text_everywhere(make: Make, tmp_path: Path) -> None:
    """Byte for byte what the file of that revision would be: so it can be restored anywhere."""
    store = saved(make(), 1)
    copy = store.backup(to=tmp_path / "copy.json")
    document = codec.parse(copy.read_bytes())

    assert copy.read_bytes().startswith(b'{\n  "_meta": {"format": 1, "revision": 1, ')
    assert copy.read_bytes().endswith(b'},\n  "n": 1\n}\n')
    assert document.trust is codec.Trust.SEALED
    assert document.identity == store.load().meta.sha256


def test_a_state_can_be_saved_again_and_again(make: Make) -> None:
    state = make().load()
    store = make()
    for number in range(1, 4):
        state["n"] = number
        assert store.save(state).revision == number
    assert make().load()["n"] == 3


def test_unchanged_content_makes_no_revision(make: Make) -> None:
    store = saved(make(), 1)
    state = store.load()

    assert store.save(state) == state.meta
    assert store.save({"n": 1.0}).revision == 2  # another text, so another value to a reader
    assert make().load().meta.revision == 2


def test_unknown_sections_and_their_order_come_out_as_they_went_in(make: Make) -> None:
    make().save({"z": {"b": 1, "a": [1.50, None]}, "a": "é"})
    store = make()
    state = store.load()
    state["m"] = 1
    store.save(state)

    assert list(make().load()) == ["z", "a", "m"]
    assert list(make().load()["z"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "field"),
    [({"p": {"x": float("nan")}}, "p.x"), ({"p": [{1: 2}]}, "p.0.1"), ({"p": object()}, "p")],
)
def test_a_refused_value_names_its_field_and_nothing_is_written(
    make: Make, value: Any, field: str
) -> None:
    store = saved(make(), 1)
    with pytest.raises(StateInvalid) as caught:
        store.save(value)

    assert caught.value.field == field
    assert make().load() == {"n": 1}


def test_a_reason_of_any_text_is_saved(make: Make) -> None:
    make().save({"n": 1}, reason='trade "BTC" \ud800 é\n')

    assert make().load().meta.reason == 'trade "BTC" \\ud800 é\n'


def test_saves_are_logged_and_say_nothing_of_the_content(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "statestore")
    store.save({"secret": "hunter2"}, reason="trade")

    (record,) = [r for r in caplog.records if r.message == "state saved"]
    assert (record.revision, record.reason, record.path) == (1, "trade", str(store.path))
    assert "hunter2" not in str(vars(record))


# Revisions


def test_a_stale_writer_cannot_overwrite(make: Make) -> None:
    bot, operator = saved(make(), 1), make()
    state = bot.load()
    saved(operator, 2)
    state["n"] = 3
    with pytest.raises(RevisionConflict) as caught:
        bot.save(state)

    assert (caught.value.loaded, caught.value.found) == (1, 2)
    assert make().load()["n"] == 2


def test_a_stale_writer_finds_out_even_if_it_changes_nothing(make: Make) -> None:
    bot = saved(make(), 1)
    state = bot.load()
    saved(make(), 2)
    with pytest.raises(RevisionConflict):
        bot.save(state)


def test_a_writer_that_never_loaded_finds_a_conflict(make: Make) -> None:
    saved(make(), 1)
    with pytest.raises(RevisionConflict) as caught:
        make().save({"n": 2})
    assert (caught.value.loaded, caught.value.found) == (None, 1)


def test_of_two_first_saves_one_is_a_conflict(make: Make) -> None:
    one, two = make(), make()
    first, second = one.load(), two.load()
    first["n"], second["n"] = 1, 2
    one.save(first)
    with pytest.raises(RevisionConflict):
        two.save(second)


def test_an_explicit_revision_is_compared(make: Make) -> None:
    saved(make(), 1, 2)
    with pytest.raises(RevisionConflict):
        make().save({"n": 9}, expected_revision=1)
    assert make().save({"n": 9}, expected_revision=2).revision == 3


def test_after_a_conflict_a_writer_loads_and_goes_on(make: Make) -> None:
    bot = saved(make(), 1)
    saved(make(), 2)
    with pytest.raises(RevisionConflict):
        bot.save({"n": 3})
    saved(bot, 4)
    assert make().load().meta.revision == 3


def test_what_before_commit_raises_changes_nothing(make: Make) -> None:
    store = saved(make(), 1)

    def refuse() -> None:
        raise UsageError("not now")

    with pytest.raises(UsageError, match="not now"):
        store.save({"n": 2}, before_commit=refuse)
    assert make().load()["n"] == 1
    called = []
    store.save({"n": 2}, before_commit=lambda: called.append(1))
    assert called == [1]


# Several writers


def test_threads_lose_no_increment(make: Make) -> None:
    make().load()

    def work() -> None:
        store = make(lock_timeout=PATIENCE)
        for _ in range(10):
            with store.transaction() as state:
                state["n"] = state.get("n", 0) + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    state = make().load()
    assert (state["n"], state.meta.revision) == (40, 40)


@pytest.mark.parametrize("kind", ["file", "postgres"], indirect=True)
def test_processes_lose_no_increment(make: Make) -> None:
    """Half of them in transactions, half by saving and, at a conflict, doing it again."""

    def in_transactions(store: StateStore) -> None:
        with store.transaction() as state:
            state["n"] = state.get("n", 0) + 1

    def at_once(store: StateStore) -> None:
        while True:
            state = store.load()
            state["n"] = state.get("n", 0) + 1
            try:
                store.save(state)
                return
            except RevisionConflict:
                continue

    def work(one: Callable[[StateStore], None]) -> None:
        store = make(lock_timeout=PATIENCE)
        for _ in range(25):
            one(store)

    workers = [fork.Process(target=work, args=(w,)) for w in (in_transactions, at_once) * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * 4
    state = make().load()
    assert (state["n"], state.meta.revision) == (100, 100)


def test_a_transaction_that_fails_saves_nothing(make: Make) -> None:
    store = saved(make(), 1)
    with pytest.raises(ZeroDivisionError), store.transaction() as state:
        state["n"] = 2
        raise ZeroDivisionError
    assert make().load()["n"] == 1
    with store.transaction(reason="after") as state:
        state["n"] = 3
    assert make().load().meta.reason == "after"


@pytest.mark.parametrize("same", [True, False])
def test_a_save_inside_a_transaction_is_refused_at_once(make: Make, same: bool) -> None:
    store = saved(make(), 1)
    with store.transaction() as state:
        state["n"] = 2
        with pytest.raises(UsageError, match="transaction"):
            (store if same else make()).save({"n": 9})
        with pytest.raises(UsageError), (store if same else make()).transaction():
            pass
    assert make().load()["n"] == 2


def test_others_wait_for_a_transaction_only_so_long(make: Make) -> None:
    store, told = saved(make(), 1), []

    def work() -> None:
        other = make(lock_timeout=0.1)
        other.load()
        try:
            other.save({"n": 9})
        except StateLocked as error:
            told.append(str(error))

    with store.transaction() as state:
        state["n"] = 2
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)
    assert "0.1 s" in told[0]
    assert make().load()["n"] == 2


@pytest.mark.parametrize("kind", ["file", "postgres"], indirect=True)
def test_a_forked_child_goes_on_with_the_store(make: Make) -> None:
    store = saved(make(), 1)
    store.changed()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            state = store.load()
            state["n"] = 2
            store.save(state)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.load()["n"] == 2  # the parent's connections stand
    saved(store, 3)
    assert make().load()["n"] == 3


# Damage


def test_a_torn_state_is_answered_with_the_one_before_and_a_warning(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(make(), 1, 2)
    damage(store, tear)
    state = make().load()

    assert (state["n"], state.meta.revision) == (1, 1)
    assert state.meta.recovered_from is not None
    assert state.meta.recovered_why
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.message == "state loaded from a fallback"


def test_after_a_fallback_saving_goes_on_with_a_higher_revision(make: Make) -> None:
    damage(saved(make(), 1, 2), tear)
    store = make()
    state = store.load()
    state["n"] = 3
    assert store.save(state).revision == 3
    assert make().load().meta.recovered_from is None


def test_a_writer_that_did_not_see_the_damage_may_not_overwrite_it(make: Make) -> None:
    damage(saved(make(), 1, 2), tear)
    with pytest.raises(RevisionConflict):
        make().save({"n": 3}, expected_revision=1)


def test_a_damaged_state_with_nothing_behind_it_is_never_an_empty_one(make: Make) -> None:
    damage(saved(make(), 1), tear)
    with pytest.raises(StateCorrupt, match="Nothing was changed"):
        make().load()


def test_an_edited_state_is_refused_with_the_remedies(make: Make) -> None:
    damage(saved(make(), 1, 2), edit)
    with pytest.raises(StateChecksumMismatch, match="statestore restore"):
        make().load()
    assert make(on_mismatch="warn").load()["n"] == 12
    assert make(on_mismatch="fallback").load()["n"] == 1
    with pytest.raises(BackupFailed):
        make(on_mismatch="warn").backup()


# Copies and history


def test_a_backup_is_restored_as_the_next_revision(make: Make) -> None:
    store = saved(make(), 1)
    backup = store.backup("before")
    saved(store, 2)
    meta = make().restore(backup)

    assert (meta.revision, meta.reason) == (3, "restore")
    assert make().load()["n"] == 1


def test_restoring_works_when_everything_else_is_damaged(make: Make) -> None:
    store = saved(make(), 1)
    backup = store.backup()
    damage(store, tear)
    assert make().restore(backup).revision >= 2
    assert make().load()["n"] == 1


def test_the_state_before_is_restored_by_its_place(make: Make) -> None:
    store = saved(make(), 1, 2)
    assert make().restore(store.backup_path).revision == 3
    assert make().load()["n"] == 1


def test_restoring_what_does_not_read_changes_nothing(make: Make, tmp_path: Path) -> None:
    store = saved(make(), 1)
    (tmp_path / "torn.json").write_text('{"n": ')
    with pytest.raises(StateCorrupt):
        store.restore(tmp_path / "torn.json")
    with pytest.raises(StateMissing):
        store.restore(tmp_path / "none.json")
    assert make().load()["n"] == 1


def test_a_backup_goes_from_one_kind_of_store_to_another(make: Make, tmp_path: Path) -> None:
    file = StateStore(tmp_path / "other.json")
    file.save({"n": 1, "exact": Decimal("0.10")})
    make().restore(file.backup(to=tmp_path / "copy.json"))

    assert make().load(numbers="decimal")["exact"] == Decimal("0.10")
    back = make().backup(to=tmp_path / "back.json")
    assert b'"exact": 0.10\n' in back.read_bytes()


def test_history_lists_every_version_with_what_it_was_for(make: Make) -> None:
    store = make()
    state = store.load()
    for number, reason in ((1, "start"), (2, "trade"), (3, "stop")):
        state["n"] = number
        store.save(state, reason=reason)
    store.backup("manual")
    found = store.versions()

    assert all(version.valid for version in found)
    assert found[0].kind == "state"
    assert {(v.revision, v.saved_for) for v in found} >= {(3, "stop"), (2, "trade")}
    (backup,) = [v for v in found if v.kind == "backup"]
    assert (backup.revision, backup.backup_reason) == (3, "manual")
    report = differences(store.read(store.backup_path), store.read(store.path))
    assert [s["section"] for s in report["sections"] if s["change"] == "changed"] == ["n"]


def test_history_of_nothing_is_an_error(store: StateStore) -> None:
    with pytest.raises(StateMissing):
        store.versions()


def test_check_tells_good_from_damaged(make: Make) -> None:
    store = saved(make(), 1, 2)
    store.backup()
    report = store.check()
    assert report.ok
    assert (report.state.status, report.state.revision, report.bak.revision) == ("good", 2, 1)
    damage(store, tear)
    assert not make().check().ok
    assert make().check().state.status == "damaged"


def test_check_of_nothing_says_missing(store: StateStore) -> None:
    assert store.check().state.status == "missing"


# Following


def test_changed_and_refresh_follow_another_writer(make: Make) -> None:
    writer, reader = make(), make()
    assert reader.changed()
    assert reader.load() == {}
    saved(writer, 1)
    wait_until(reader.changed)
    assert reader.refresh()["n"] == 1
    assert not reader.changed()
    saved(writer, 2)
    wait_until(reader.changed)
    assert reader.refresh()["n"] == 2


def test_ones_own_saves_are_no_change(make: Make) -> None:
    store = make()
    store.changed()
    for number in range(5):
        saved(store, number)
        assert not store.changed()


def test_refresh_gives_new_values_each_time(make: Make) -> None:
    store = make()
    store.save({"n": [1]})
    store.refresh()["n"].append(2)
    assert store.refresh() == {"n": [1]}


def test_an_onlooker_has_seen_nothing(make: Make) -> None:
    store = saved(make(), 1)
    onlooker = store.onlooker()
    try:
        assert (onlooker.path, onlooker.revision) == (store.path, None)
        assert onlooker.load()["n"] == 1
    finally:
        onlooker.close()


# Saving from elsewhere


def test_asave_saves_what_the_state_was_when_it_was_called(make: Make) -> None:
    store = make()

    async def run() -> None:
        state = store.load()
        state["n"] = 1
        task = asyncio.ensure_future(store.asave(state))
        await asyncio.sleep(0)
        state["n"] = 2
        await task

    asyncio.run(run())
    assert make().load()["n"] == 1


def test_a_saver_makes_few_saves_of_many_and_the_last_one_counts(make: Make) -> None:
    store = make()
    state = store.load()
    with store.saver() as saver:
        for number in range(50):
            state["n"] = number
            saver.save(state)
    loaded = make().load()
    assert loaded["n"] == 49
    assert loaded.meta.revision <= 50


# Who runs, and who may trade


def test_a_second_bot_is_refused_and_told_who_runs(make: Make) -> None:
    first = make().lease()
    assert first.held
    who = make().lease_holder()
    assert who is not None
    assert (who["pid"], who["host"]) == (os.getpid(), os.uname().nodename)
    with pytest.raises(LeaseHeld, match=rf"{os.getpid()} on .* since {who['since'][:10]}"):
        make().lease()
    first.release()
    first.release()
    assert not first.held
    assert make().lease_holder() is None
    with make().lease() as again:
        assert again.held


@pytest.mark.parametrize("kind", ["file", "postgres"], indirect=True)
def test_a_killed_bot_holds_no_lease(make: Make) -> None:
    ready, child_ready = fork.Pipe()

    def bot() -> None:
        lease = make().lease()
        child_ready.send(lease.held)
        signal.pause()

    process = fork.Process(target=bot)
    process.start()
    assert ready.recv()
    with pytest.raises(LeaseHeld, match=str(process.pid)):
        make().lease()
    process.kill()
    process.join(PATIENCE)
    store = make()
    wait_until(lambda: store.lease_holder() is None)
    store.lease().release()


def test_a_lease_does_not_stand_in_the_way_of_saves(make: Make) -> None:
    with make().lease():
        saved(make(), 1)


def test_the_kill_switch_halts_whoever_shares_the_state(make: Make, tmp_path: Path) -> None:
    """In a file the file is what is shared; elsewhere each machine has a file of its own."""
    shared = isinstance(make().path, Path)
    here = make().kill_switch(tmp_path / "here")
    there = make().kill_switch(tmp_path / ("here" if shared else "there"))
    assert (here.status(), here.details()) == ("released", None)
    assert here.engage("maintenance", "operator")
    assert not here.engage("again", "operator")
    assert there.engaged()
    details = there.details()
    assert details is not None
    assert (details["reason"], details["by"]) == ("maintenance", "operator")
    assert details["at"].endswith("Z")
    assert there.release()
    assert not here.engaged()
    assert not there.release()


@pytest.mark.parametrize("reason", ["\udcff\0", "5 € lost"], ids=ascii)
def test_it_halts_whatever_its_reason_is_made_of(make: Make, tmp_path: Path, reason: str) -> None:
    """What a shell passes on need be no text."""
    assert make().kill_switch(tmp_path / "here").engage(reason, "\udcff")
    shared = isinstance(make().path, Path)
    there = make().kill_switch(tmp_path / ("here" if shared else "there"))
    assert there.status() == "engaged"
    assert there.details()


def test_a_file_halts_as_well(make: Make, tmp_path: Path) -> None:
    switch = make().kill_switch(tmp_path / "KILL_SWITCH")
    (tmp_path / "KILL_SWITCH").touch()
    assert switch.status() == "engaged"
    assert switch.release()
    assert switch.status() == "released"


# The same bot


def run_bot(store: StateStore, switch: KillSwitch, rounds: int) -> dict[str, Any]:
    session = TradingSession(store, kill_switch=switch, mode="PAPER", signals=False)
    with session:
        for number in range(rounds):
            if session.tick():
                session.state["positions"][f"P{number}"] = {"quantity": number}
                assert session.on_trade()
        return session.health()


def test_the_same_bot_runs_on_each(make: Make, tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    health = run_bot(make(), switch, 3)
    assert health["ok"]
    assert (health["positions"], health["lease"], health["saves"]["trade"]) == (3, True, 3)
    state = make().load()
    assert list(state["positions"]) == ["P0", "P1", "P2"]
    assert state["session"]["stopped_by"] == "exit"


def test_a_session_takes_over_what_somebody_else_saved(make: Make, tmp_path: Path) -> None:
    with TradingSession(make(), kill_switch=KillSwitch(tmp_path / "K"), signals=False) as session:
        operator = make()
        with operator.transaction(reason="rebuild") as state:
            state["positions"] = {"BTC": {"quantity": 1}}
        wait_until(session.store.changed)
        assert session.tick()
        assert session.state["positions"] == {"BTC": {"quantity": 1}}
        assert session.health()["reloads"] == 1


def test_a_session_saves_from_asyncio(make: Make, tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        session = TradingSession(make(), kill_switch=KillSwitch(tmp_path / "K"), signals=False)
        async with session:
            session.state["positions"]["BTC"] = {"quantity": 1}
            assert await session.aon_trade("BTC")
            assert await session.atick()
            return session.health()

    assert asyncio.run(run())["saves"]["trade"] == 1
    assert make().load()["positions"] == {"BTC": {"quantity": 1}}


def test_a_switch_of_all_machines_halts_a_session_that_named_a_file_of_its_own(
    make: Make, tmp_path: Path
) -> None:
    own = KillSwitch(tmp_path / "own")
    with TradingSession(make(), kill_switch=own, signals=False) as session:
        assert session.tick()
        make().kill_switch(own.path).engage("halt", "operator")
        assert not session.tick()
        assert not session.may_trade


# What is no kind of store


def test_an_unknown_scheme_names_what_is_known() -> None:
    with pytest.raises(UsageError, match=r"mysql:// is no store.*postgresql://.*memory://"):
        StateStore("mysql://host/name")


def test_options_that_mean_nothing_are_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="on_mismatch"):
        make(on_mismatch="guess")


def test_sealing_is_for_files(kind: str, make: Make) -> None:
    store = saved(make(), 1)
    if kind == "file":
        assert store.seal().revision == 1
    else:
        with pytest.raises(UsageError, match="statestore edit"):
            store.seal()


def test_a_loaded_state_is_a_dict_with_its_meta(make: Make) -> None:
    state = saved(make(), 1).load()
    assert isinstance(state, State)
    assert json.loads(json.dumps(state)) == {"n": 1}


def wait_until(true: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(PATIENCE * 100):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it never came")


# What follows into a mirror


def test_what_is_saved_in_any_store_and_mirrored_is_restored_equal(
    make: Make, influx: InfluxServer, tmp_path: Path
) -> None:
    store, name = make(), f"contract-{tmp_path}"
    mirror = Mirror(Influx(influx.url, bucket=influx.database), name)
    held = {"BTC-USD": {"quantity": Decimal("0.100")}, "a,b\n": {"quantity": Decimal("1E-18")}}
    with TradingSession(store, mirror=mirror, numbers="decimal") as session:
        session.state["positions"] = {**held, "OLD-USD": {"quantity": 1}}
        assert session.on_trade()
        session.state["positions"] = held
        assert session.on_trade()
    mirror.flush()
    copy = store.backup(to=tmp_path / "copy.json").read_bytes()

    newest = mirror.newest()
    assert newest is not None
    assert newest.document() == copy
    other = StateStore(tmp_path / "other.json")
    Mirror(mirror.database, name).take_over(other)
    assert other.load(numbers="decimal") == store.load(numbers="decimal")
    assert other.load(numbers="decimal")["positions"] == held
    listed = {series.key: deleted for series, deleted in mirror.database.series(name).items()}
    assert listed == {"BTC-USD": False, "a,b\n": False, "OLD-USD": True}


def test_a_mirror_that_is_ahead_is_restored_into_any_store(
    make: Make, influx: InfluxServer, tmp_path: Path
) -> None:
    ahead = saved(StateStore(tmp_path / "ahead.json"), 1, 2, 3)
    name = f"ahead-{tmp_path}"
    mirror = Mirror(Influx(influx.url, bucket=influx.database), name)
    mirror.push((tmp_path / "ahead.json").read_bytes())
    behind = saved(make(), 7)

    taken = Mirror(mirror.database, name).take_over(behind)

    assert taken is not None
    assert taken.revision == 4
    assert behind.load() == ahead.load() == {"n": 3}


def test_another_package_adds_a_store_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from statestore.backends.memory import MemoryStore\nclass Elsewhere(MemoryStore): pass\n"
    )
    told = tmp_path / "elsewhere-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (told / "entry_points.txt").write_text(
        "[statestore.backends]\nelsewhere = elsewhere:Elsewhere\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    store = StateStore("elsewhere://one")

    assert type(store).__name__ == "Elsewhere"
    with pytest.raises(UsageError, match="elsewhere://"):
        StateStore("nowhere://one")
