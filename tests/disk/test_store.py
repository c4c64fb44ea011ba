import asyncio
import copy
import errno
import json
import logging
import multiprocessing
import os
import pickle
import signal
import stat
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from statestore.disk import durable, reading, store
from statestore.disk.store import State, StateStore
from statestore.errors import (
    BackupFailed,
    LeaseHeld,
    RevisionConflict,
    SaveFailed,
    SaveNotDurable,
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateLocked,
    StateMissing,
    UsageError,
)

fork = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def bot(path):
    return StateStore(path)


def saved(path, *numbers):
    """Save states {"n": number} in turn; the last is the state file, the one before ``.bak``."""
    writer = StateStore(path)
    for number in numbers:
        state = writer.load()
        state["n"] = number
        writer.save(state)
    return writer


def tear(path):
    path.write_bytes(path.read_bytes()[:-7])


def edit(path):
    path.write_bytes(path.read_bytes().replace(b'"n": ', b'"n": 1'))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def image(folder):
    return {
        entry.name: (entry.stat().st_mtime_ns, entry.stat().st_ino, entry.read_bytes())
        for entry in folder.iterdir()
        if entry.is_file()
    }


def refuse(monkeypatch, name, code=errno.EIO, *, on_call=1):
    original, calls = getattr(os, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == on_call:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


# Loading and saving


def test_a_first_start_is_an_empty_state_at_revision_0(bot):
    state = bot.load()

    assert (state, state.meta.revision, bot.revision) == ({}, 0, 0)
    assert names(bot.path.parent) == []


def test_a_missing_state_is_an_error_when_the_caller_says_so(bot):
    with pytest.raises(StateMissing, match="check the path"):
        bot.load(missing_ok=False)


def test_what_is_saved_is_loaded(bot):
    state = bot.load()
    state["positions"] = {"ETH-USD": {"units": Decimal("0.00088729"), "price": 2975.32}}

    meta = bot.save(state, reason="trade")

    again = StateStore(bot.path).load()
    assert again == {"positions": {"ETH-USD": {"units": 0.00088729, "price": 2975.32}}}
    assert again.meta == meta == state.meta
    assert (meta.revision, meta.reason, meta.verified) == (1, "trade", True)
    assert meta.writer.startswith(f"{os.getpid()}@")
    exact = StateStore(bot.path).load(numbers="decimal")
    assert exact["positions"]["ETH-USD"]["price"] == Decimal("2975.32")


def test_a_plain_dict_can_be_saved_again_and_again(bot):
    for number in (1, 2, 3):
        assert bot.save({"n": number}).revision == number

    assert bot.load() == {"n": 3}


def test_a_state_can_be_saved_again_and_again(bot):
    state = bot.load()
    for number in (1, 2, 3):
        state["n"] = number
        bot.save(state)

    assert state.meta.revision == bot.revision == 3


def test_bak_is_the_former_file_byte_for_byte(bot):
    bot.save({"n": 1})
    before = bot.path.read_bytes()

    bot.save({"n": 2})

    assert bot.backup_path.read_bytes() == before
    assert names(bot.path.parent) == ["state.json", "state.json.bak", "state.json.lock"]


def test_a_save_of_unchanged_content_touches_nothing(path):
    writer = saved(path, 1, 2)
    before = image(path.parent)

    meta = writer.save(writer.load())
    StateStore(path).save(StateStore(path).load(numbers="decimal"))

    assert meta.revision == 2
    assert image(path.parent) == before


def test_a_file_without_meta_is_adopted_at_its_first_save(bot):
    legacy = b'{"positions":{"BTC":{"quantity":1.10}},\n "odd" : [1,  2]}'
    bot.path.write_bytes(legacy)
    state = bot.load()
    assert (state.meta.revision, state.meta.verified) == (0, False)

    assert bot.save(state).revision == 1

    assert bot.backup_path.read_bytes() == legacy
    assert b'"odd": [1,  2]' in bot.path.read_bytes()
    assert bot.load().meta.verified


def test_sections_that_did_not_change_keep_their_bytes(bot):
    bot.path.write_bytes(b'{"a": { "x":1.10,"y" : 1e5 }, "b": [123456789012345678901234567890]}')
    state = bot.load()
    state["c"] = True
    bot.save(state)
    state["c"] = False
    bot.save(state)

    text = bot.path.read_bytes()
    assert b'"a": { "x":1.10,"y" : 1e5 },' in text
    assert b'"b": [123456789012345678901234567890],' in text


def test_a_refused_value_names_its_field_before_any_file_is_touched(bot):
    with pytest.raises(StateInvalid) as caught:
        bot.save({"positions": {"BTC-USD": {"entry_price": float("nan")}}})

    assert caught.value.field == "positions.BTC-USD.entry_price"
    assert str(caught.value).startswith("positions.BTC-USD.entry_price: NaN cannot be saved")
    assert names(bot.path.parent) == []


def test_a_nan_in_a_section_that_held_null_is_refused_as_well(bot):
    bot.save({"mark": None})

    with pytest.raises(StateInvalid):
        bot.save({"mark": float("nan")})


def test_a_reason_of_any_text_is_saved(bot):
    assert bot.save({"n": 1}, reason='\ud800 "quoted"\n').reason == '\\ud800 "quoted"\n'
    assert bot.load().meta.verified


def test_a_state_too_large_to_be_loaded_again_is_not_saved(bot, monkeypatch):
    monkeypatch.setattr(store.codec, "MAX_BYTES", 1000)

    with pytest.raises(StateInvalid, match="not loaded again"):
        bot.save({"text": "x" * 1000})
    assert names(bot.path.parent) == ["state.json.lock"]


def test_a_symlinked_state_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "state.json"
    link.symlink_to("real/state.json")

    saved(link, 1, 2)

    assert link.is_symlink()
    assert names(tmp_path) == ["real", "state.json"]
    assert names(tmp_path / "real") == ["state.json", "state.json.bak", "state.json.lock"]
    assert json.loads(link.read_bytes())["n"] == 2


def test_a_missing_folder_is_made(tmp_path):
    deep = StateStore(tmp_path / "a" / "b" / "state.json")

    deep.save({"n": 1})

    assert deep.load() == {"n": 1}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_the_file_is_kept(path, mode):
    saved(path, 1)
    path.chmod(mode)

    saved(path, 2)

    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_state_can_be_copied_and_pickled(bot):
    bot.save({"n": {"m": 1}})
    state = bot.load()

    for twin in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert (type(twin), twin, twin.meta) == (State, state, state.meta)


def test_loading_writes_nothing_and_takes_no_lock(path, monkeypatch):
    saved(path, 1, 2)
    path.with_name("state.json.lock").unlink()
    before = image(path.parent)
    original = os.open

    def read_only(name, flags, *args, **kwargs):
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return original(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    reader = StateStore(path)
    reader.load()
    reader.check()
    reader.refresh()
    reader.changed()

    assert image(path.parent) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_can_be_loaded_and_not_saved(path):
    saved(path, 1)
    path.parent.chmod(0o500)

    assert StateStore(path).load() == {"n": 1}
    with pytest.raises(SaveFailed):
        StateStore(path).save({"n": 2}, expected_revision=1)
    path.parent.chmod(0o700)


# Two writers


def test_a_stale_writer_cannot_overwrite(path):
    running = StateStore(path)
    state = running.load()
    running.save(state)
    saved(path, 1)

    with pytest.raises(RevisionConflict) as caught:
        running.save({**state, "late": True})

    assert (caught.value.loaded, caught.value.found) == (1, 2)
    assert StateStore(path).load() == {"n": 1}


def test_a_writer_that_never_loaded_finds_a_conflict(path):
    saved(path, 1)

    with pytest.raises(RevisionConflict, match="never loaded it") as caught:
        StateStore(path).save({"n": 2})
    assert caught.value.loaded is None


def test_a_state_loaded_by_another_store_may_be_saved(path):
    saved(path, 1)
    state = StateStore(path).load()
    state["n"] = 2

    assert StateStore(path).save(state).revision == 2


def test_an_explicit_revision_is_compared(path):
    saved(path, 1, 2)

    with pytest.raises(RevisionConflict):
        StateStore(path).save({"n": 3}, expected_revision=1)
    assert StateStore(path).save({"n": 3}, expected_revision=2).revision == 3


def test_the_revision_of_a_state_of_another_file_means_nothing_here(path):
    other = saved(path.with_name("other.json"), 1, 2).load()
    saved(path, 1, 2)

    with pytest.raises(RevisionConflict, match="never loaded"):
        StateStore(path).save(other)


def test_a_deleted_state_is_not_brought_back_by_a_running_bot(path):
    running = saved(path, 1)
    path.unlink()

    with pytest.raises(RevisionConflict):
        running.save({"n": 2})


@pytest.mark.parametrize("first", [b'{"n": 1}', None])
def test_another_content_of_the_same_revision_is_a_conflict(path, tmp_path, first):
    if first is None:
        saved(path, 1)
        foreign = tmp_path / "elsewhere" / "state.json"
        saved(foreign, 9)
        second = foreign.read_bytes()
    else:
        path.write_bytes(first)
        second = b'{"n": 9}'
    running = StateStore(path)
    state = running.load()
    path.write_bytes(second)
    state["n"] = 2

    with pytest.raises(RevisionConflict, match="the content is another"):
        running.save(state)


def test_four_processes_lose_no_increment(path):
    def work():
        counter = StateStore(path)
        for _ in range(50):
            with counter.transaction() as state:
                state["n"] = state.get("n", 0) + 1

    workers = [fork.Process(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    state = StateStore(path).load()
    assert (state["n"], state.meta.revision) == (200, 200)


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "a store each"])
def test_threads_lose_no_increment(path, shared):
    one = StateStore(path)

    def work():
        counter = one if shared else StateStore(path)
        for _ in range(10):
            with counter.transaction() as state:
                state["n"] = state.get("n", 0) + 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert one.load()["n"] == 40


def test_a_reader_without_lock_sees_whole_states_in_order(path):
    saved(path, 0)

    def write():
        writer = StateStore(path)
        for number in range(100):
            writer.save({"n": number, "fill": ["x" * 50] * number}, expected_revision=number + 1)

    worker = fork.Process(target=write)
    worker.start()
    reader, last = StateStore(path), 0
    while worker.is_alive():
        state = reader.load()
        assert (state.meta.recovered_from, state.meta.verified) == (None, True)
        assert state.meta.revision >= last
        assert len(state.get("fill", [])) == state["n"]
        last = state.meta.revision
    worker.join()

    assert reader.load().meta.revision == 101


def test_a_held_lock_is_waited_for_only_so_long_and_its_holder_named(path):
    ready, done = fork.Event(), fork.Event()

    def hold():
        with StateStore(path).transaction():
            ready.set()
            done.wait()

    worker = fork.Process(target=hold)
    worker.start()
    ready.wait()
    with pytest.raises(StateLocked, match=rf"process {worker.pid} \(.*\) for longer than 0.05"):
        StateStore(path, lock_timeout=0.05).save({"n": 1})
    done.set()
    worker.join()

    assert StateStore(path).save({"n": 1}, expected_revision=1).revision == 2


def test_the_lock_of_a_killed_process_is_free_at_once(path):
    ready = fork.Event()

    def hold():
        with StateStore(path).transaction():
            ready.set()
            signal.pause()

    worker = fork.Process(target=hold)
    worker.start()
    ready.wait()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()

    assert StateStore(path, lock_timeout=0).save({"n": 1}).revision == 1


def test_a_deleted_lock_file_is_made_again(path):
    writer = saved(path, 1)
    writer.lock_path.unlink()

    writer.save({"n": 2})

    assert writer.lock_path.exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error(bot, monkeypatch, code):
    def flock(descriptor, blocking):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("filelock.lock_descriptor", flock)

    with pytest.raises(SaveFailed, match="offers no locks"):
        bot.save({"n": 1})
    assert not bot.path.exists()


def test_a_transaction_that_fails_saves_nothing(path):
    writer = saved(path, 1)
    before = image(path.parent)

    with pytest.raises(ZeroDivisionError), writer.transaction() as state:
        state["n"] = 1 / 0

    assert image(path.parent) == before
    assert writer.save({"n": 2}).revision == 2


@pytest.mark.parametrize("same", [True, False], ids=["same store", "another store"])
def test_a_save_inside_a_transaction_is_refused_at_once(path, same):
    writer = saved(path, 1)

    with writer.transaction() as state:
        with pytest.raises(UsageError, match="inside a transaction"):
            (writer if same else StateStore(path)).save({"n": 3})
        state["n"] = 2

    assert writer.load() == {"n": 2}


def test_a_forked_child_has_a_lock_of_its_own(path):
    parent = saved(path, 1)

    def child():
        with parent.transaction() as state:
            state["n"] += 1

    with parent.transaction() as state:
        worker = fork.Process(target=child)
        worker.start()
        state["n"] = 10
    worker.join()

    assert worker.exitcode == 0
    assert parent.load() == {"n": 11}


def test_a_child_forked_inside_a_transaction_cannot_finish_it(path):
    writer = saved(path, 1)
    pid = None
    try:
        with writer.transaction() as state:
            pid = os.fork()
            state["n"] = 3 if pid == 0 else 2
    except UsageError:
        os._exit(42 if pid == 0 else 1)
    finally:
        if pid == 0:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert writer.load() == {"n": 2}


# Fallback


def test_a_torn_state_is_answered_with_bak_and_one_warning(path, caplog):
    saved(path, 1, 2)
    tear(path)

    state = StateStore(path).load()

    assert state == {"n": 1}
    assert state.meta.recovered_from == state.meta.path == path.with_name("state.json.bak")
    assert "not a JSON object" in state.meta.recovered_why
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "state loaded from a fallback")
    assert (record.path, record.source) == (str(path), f"{path}.bak")
    assert record.age_seconds >= 0
    assert record.why == state.meta.recovered_why


def test_a_missing_state_is_answered_with_bak(path):
    saved(path, 1, 2)
    path.unlink()

    state = StateStore(path).load(missing_ok=False)

    assert (state, state.meta.recovered_why) == ({"n": 1}, "is missing")


def test_without_bak_the_newest_valid_backup_is_used(path):
    writer = saved(path, 1)
    writer.backup()
    newest = writer.backup()
    saved(path, 2)
    tear(path)
    tear(writer.backup_path)

    state = StateStore(path).load()

    assert (state, state.meta.recovered_from) == ({"n": 1}, newest)


def test_a_damaged_state_with_nothing_behind_it_is_never_an_empty_one(path):
    writer = saved(path, 1, 2)
    backup = writer.backup()
    for victim in (path, writer.backup_path, backup):
        tear(victim)
    before = image(path.parent)

    with pytest.raises(StateCorrupt) as caught:
        StateStore(path).load()

    assert all(str(victim) in str(caught.value) for victim in (path, writer.backup_path, backup))
    assert "statestore restore" in str(caught.value)
    assert image(path.parent) == before


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4096, b"[]", b"\xef\xbb\xbf{}", b'{"a":1,"a":2}'])
def test_garbage_is_damage(path, garbage):
    path.write_bytes(garbage)

    with pytest.raises(StateCorrupt):
        StateStore(path).load()
    with pytest.raises(StateCorrupt):
        StateStore(path).save({"n": 1})


def test_a_save_after_a_fallback_moves_the_damaged_file_aside(path, caplog):
    saved(path, 1, 2)
    tear(path)
    damaged, good = path.read_bytes(), path.with_name("state.json.bak").read_bytes()
    writer = StateStore(path)
    state = writer.load()
    state["n"] = 3

    meta = writer.save(state)

    assert meta.revision == 3
    assert (meta.recovered_from, writer.recovered_from) == (None, None)
    (aside,) = path.parent.glob("state.json.corrupt-*")
    assert aside.read_bytes() == damaged
    assert writer.backup_path.read_bytes() == good
    assert StateStore(path).load() == {"n": 3}
    assert "moved aside" in caplog.text


def test_unchanged_content_is_saved_after_a_fallback(path):
    saved(path, 1, 2)
    tear(path)
    writer = StateStore(path)

    writer.save(writer.load())

    assert StateStore(path).load().meta.recovered_from is None


def test_a_save_after_a_fallback_to_a_backup_exceeds_every_revision_seen(path):
    writer = saved(path, 1)
    writer.backup()
    saved(path, 2, 3, 4)
    tear(path)
    tear(writer.backup_path)
    late = StateStore(path)

    assert late.save(late.load()).revision == 5


def test_a_failed_save_after_a_fallback_leaves_no_second_name(path, monkeypatch):
    saved(path, 1, 2)
    tear(path)
    writer = StateStore(path)
    state = writer.load()
    before = names(path.parent)
    refuse(monkeypatch, "replace", on_call=2)

    with pytest.raises(SaveFailed):
        writer.save(state)
    monkeypatch.undo()

    assert names(path.parent) == before
    assert writer.save(state).revision == 3


def test_a_writer_that_did_not_see_the_damage_may_not_overwrite_it(path):
    writer = saved(path, 1, 2)
    saved(path, 3)  # somebody else's, which is then damaged
    tear(path)

    with pytest.raises(RevisionConflict, match="has not seen it"):
        writer.save({"n": 9})


def test_a_writer_that_holds_the_damaged_state_in_memory_may_save_it_again(path):
    writer = saved(path, 1, 2)
    tear(path)

    assert writer.save({"n": 3}).revision == 3
    assert StateStore(path).load() == {"n": 3}
    assert len(list(path.parent.glob("*.corrupt-*"))) == 1


def test_the_higher_revision_of_state_and_bak_wins(path, caplog):
    writer = saved(path, 1, 2, 3)
    newest = path.read_bytes()
    path.write_bytes(writer.backup_path.read_bytes())
    writer.backup_path.write_bytes(newest)

    late = StateStore(path)
    state = late.load()

    assert (state, state.meta.revision, state.meta.recovered_from) == (
        {"n": 3},
        3,
        late.backup_path,
    )
    assert "older than state.json.bak at 3" in caplog.records[-1].why
    state["n"] = 4
    assert late.save(state).revision == 4
    assert late.backup_path.read_bytes() == newest


def test_a_damaged_bak_does_not_win_by_its_revision(path):
    writer = saved(path, 1, 2)
    text = writer.backup_path.read_bytes()
    writer.backup_path.write_bytes(text.replace(b'"revision": 1', b'"revision": 9'))

    state = StateStore(path).load()

    assert (state, state.meta.recovered_from) == ({"n": 2}, None)


def test_a_file_of_another_program_over_a_saved_state_is_not_taken_for_a_first_start(path):
    saved(path, 1, 2)
    path.write_bytes(b'{"n": 9}')

    with pytest.raises(StateChecksumMismatch, match=r"although state\.json\.bak is at revision 1"):
        StateStore(path).load()
    assert StateStore(path, on_mismatch="fallback").load() == {"n": 1}
    assert StateStore(path).seal().revision == 2
    assert StateStore(path).load() == {"n": 9}


def test_a_reader_that_was_overtaken_by_two_saves_does_not_believe_bak(path, monkeypatch):
    saved(path, 1)
    reader = StateStore(path)
    original = durable.read_file
    raced = []

    def slow(name, limit):
        found = original(name, limit)
        if name == path and not raced:
            raced.append(name)
            saved(path, 2, 3)
        return found

    monkeypatch.setattr(durable, "read_file", slow)
    state = reader.load()

    assert raced
    assert (state, state.meta.recovered_from) == ({"n": 1}, None)


def test_a_state_that_appears_while_the_fallback_is_read_is_believed(path, monkeypatch):
    saved(path, 1, 2)
    good = path.read_bytes()
    path.unlink()
    original = reading.read_valid

    def slow(name, refused):
        path.write_bytes(good)
        return original(name, refused)

    monkeypatch.setattr(reading, "read_valid", slow)

    assert StateStore(path).load() == {"n": 2}


def test_what_stands_in_place_of_the_state_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(StateCorrupt, match="is a directory"):
        StateStore(tmp_path / "folder").load()
    with pytest.raises(StateCorrupt, match="is a FIFO"):
        StateStore(tmp_path / "fifo").load()
    with pytest.raises(StateError, match="Not a directory"):
        StateStore(tmp_path / "file" / "state.json").load()
    with pytest.raises(StateError):
        StateStore(tmp_path / "loop").load()


def test_a_state_that_may_not_be_read_is_not_a_missing_one(path, monkeypatch):
    saved(path, 1, 2)
    original = os.open

    def forbid(name, flags, *args, **kwargs):
        if name == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", forbid)

    with pytest.raises(StateError, match="Permission denied") as caught:
        StateStore(path).load()
    assert not isinstance(caught.value, StateMissing)


def test_an_unreadable_sector_is_damage(path, monkeypatch):
    saved(path, 1, 2)
    refuse(monkeypatch, "read", errno.EIO, on_call=2)  # the first looks at the head of .bak

    assert StateStore(path).load() == {"n": 1}


def test_a_state_of_a_newer_version_is_neither_loaded_nor_replaced(path):
    saved(path, 1)
    path.write_bytes(b'{"_meta": {"format": 2}}')

    with pytest.raises(StateInvalid, match="upgrade statestore"):
        StateStore(path).load()
    with pytest.raises(StateInvalid, match="upgrade statestore"):
        StateStore(path).save({"n": 2}, expected_revision=1)


# A wrong sum


def test_an_edited_state_is_refused_with_the_remedies(path):
    saved(path, 1, 2)
    edit(path)

    with pytest.raises(StateChecksumMismatch, match=r"statestore seal.*statestore restore"):
        StateStore(path).load()
    with pytest.raises(StateChecksumMismatch):
        StateStore(path).save({"n": 3}, expected_revision=2)


def test_an_edited_state_loads_with_a_warning_for_those_who_say_so(path, caplog):
    saved(path, 1, 2)
    edit(path)
    edited = path.read_bytes()
    warned = StateStore(path, on_mismatch="warn")

    state = warned.load()

    assert (state, state.meta.verified) == ({"n": 12}, False)
    assert caplog.records[-1].message == "state loaded although its checksum is wrong"
    bak = warned.backup_path.read_bytes()
    assert warned.save(state).revision == 3
    assert warned.backup_path.read_bytes() == bak
    (aside,) = path.parent.glob("*.corrupt-*")
    assert aside.read_bytes() == edited


def test_an_edited_state_is_damage_for_those_who_say_so(path):
    saved(path, 1, 2)
    edit(path)

    state = StateStore(path, on_mismatch="fallback").load()

    assert state == {"n": 1}
    assert "does not match" in state.meta.recovered_why


def test_an_unknown_policy_is_refused(path):
    with pytest.raises(UsageError, match="on_mismatch"):
        StateStore(path, on_mismatch="ignore")


def test_sealing_accepts_an_edit_and_keeps_bak(path):
    writer = saved(path, 1, 2)
    edit(path)
    bak = writer.backup_path.read_bytes()

    meta = StateStore(path).seal()

    assert (meta.revision, meta.reason) == (3, "seal")
    assert StateStore(path).load() == {"n": 12}
    assert writer.backup_path.read_bytes() == bak
    with pytest.raises(RevisionConflict):
        writer.save({"n": 4})


def test_sealing_a_good_state_changes_nothing(path):
    saved(path, 1, 2)
    before = image(path.parent)

    assert StateStore(path).seal().revision == 2
    assert image(path.parent) == before


def test_there_is_nothing_to_seal_in_a_torn_or_missing_state(path):
    with pytest.raises(StateMissing):
        StateStore(path).seal()
    saved(path, 1, 2)
    tear(path)
    with pytest.raises(StateCorrupt):
        StateStore(path).seal()


def test_any_flipped_bit_is_recovered_from_or_raised_and_never_loaded(path):
    saved(path, 1, 2)
    good = path.read_bytes()

    for at in range(len(good)):
        bit = 1 << at % 8
        path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        try:
            state = StateStore(path).load()
        except (StateCorrupt, StateInvalid):
            continue
        assert state == {"n": 1}, f"byte {at}"
        assert state.meta.recovered_from is not None


# Restore, backup, check


@pytest.mark.parametrize("harm", [None, tear, edit], ids=["good", "torn", "edited"])
def test_restoring_brings_a_backup_back_as_the_next_revision(path, harm):
    writer = saved(path, 1)
    backup = writer.backup()
    saved(path, 2, 3)
    present = path.read_bytes()
    if harm:
        harm(path)

    meta = StateStore(path).restore(backup)

    assert (meta.revision, meta.reason) == (4, "restore")
    assert StateStore(path).load() == {"n": 1}
    assert len(list(path.parent.glob("*.corrupt-*"))) == bool(harm)
    assert (writer.backup_path.read_bytes() == present) == (harm is None)
    with pytest.raises(RevisionConflict):
        writer.save({"n": 9})


def test_restoring_works_when_everything_else_is_damaged(path, tmp_path):
    writer = saved(path, 1)
    source = tmp_path / "copy.json"
    source.write_bytes(path.read_bytes())
    saved(path, 2)
    tear(path)
    tear(writer.backup_path)

    assert StateStore(path).restore(source).revision == 3
    assert StateStore(path).load() == {"n": 1}


def test_restoring_from_what_does_not_read_changes_nothing(path):
    saved(path, 1, 2)
    before = image(path.parent)
    torn = path.with_name("torn.json")

    with pytest.raises(StateMissing):
        StateStore(path).restore(torn)
    torn.write_bytes(b"{")
    with pytest.raises(StateCorrupt, match="another backup"):
        StateStore(path).restore(torn)

    torn.unlink()
    assert image(path.parent) == before


def test_a_backup_is_the_state_byte_for_byte(path):
    writer = saved(path, 1, 2)

    backup = writer.backup("before rebuild")

    assert backup.read_bytes() == path.read_bytes()
    assert backup.parent == path.parent / "state_backups"
    assert "-r2-before-rebuild.json" in backup.name


def test_there_is_no_backup_of_nothing_or_of_a_wrong_sum(path):
    with pytest.raises(StateMissing):
        StateStore(path).backup()
    saved(path, 1)
    edit(path)
    with pytest.raises(StateChecksumMismatch):
        StateStore(path).backup()
    with pytest.raises(BackupFailed):
        StateStore(path, on_mismatch="warn").backup()


def test_check_tells_what_stands_in_the_folder(path):
    writer = saved(path, 1, 2)
    writer.backup()
    assert writer.check().ok
    tear(path)
    edit(writer.backup_path)
    path.with_name("state.json.tmp").touch()
    (killed,) = writer.backups.list()
    killed.path.with_name(f"{killed.path.name}.tmp").touch()
    path.with_name("state.json.corrupt-20251120T100000.000000Z").touch()

    report = StateStore(path).check()

    assert (report.state.status, report.bak.status) == ("damaged", "mismatch")
    assert [backup.status for backup in report.backups] == ["good"]
    assert [found.name for found in report.leftovers] == [
        "state.json.tmp",
        f"{killed.path.name}.tmp",
    ]
    assert len(report.quarantined) == 1
    assert (report.ok, report.lock_holder, report.lease) == (False, None, None)


def test_check_names_who_saves_and_who_runs(path):
    writer = saved(path, 1)

    with writer.lease(), writer.transaction():
        report = StateStore(path).check()

    assert report.lock_holder == report.lease["pid"] == os.getpid()


# Failing disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["write", "fsync", "link", "replace"])
def test_a_save_that_fails_leaves_the_former_state_and_the_next_one_works(
    path, monkeypatch, step, code
):
    writer = saved(path, 1, 2)
    before = names(path.parent)
    refuse(monkeypatch, step, code)
    with pytest.raises(SaveFailed) as caught:
        writer.save({"n": 3})
    monkeypatch.undo()

    assert caught.value.errno == code
    assert StateStore(path).load() == {"n": 2}
    assert names(path.parent) == before
    assert writer.save({"n": 3}).revision == 3


@pytest.mark.parametrize("same", [True, False], ids=["unchanged", "changed"])
def test_an_owed_flush_of_the_folder_is_paid_by_the_next_save(path, monkeypatch, same):
    writer = saved(path, 1)
    state = writer.load()
    state["n"] = 2
    refuse(monkeypatch, "fsync", on_call=2)
    with pytest.raises(SaveNotDurable):
        writer.save(state)
    monkeypatch.undo()
    assert StateStore(path).load() == {"n": 2}
    assert state.meta.revision == writer.revision == 2
    flushed, original = [], durable.fsync_directory
    monkeypatch.setattr(
        durable, "fsync_directory", lambda folder: flushed.append(Path(folder)) or original(folder)
    )

    state["n"] = 2 if same else 3
    writer.save(state)
    writer.save(state)

    assert flushed == [path.parent]
    assert writer.revision == (2 if same else 3)


def test_an_owed_flush_that_fails_again_is_owed_still(path, monkeypatch):
    writer = saved(path, 1)
    refuse(monkeypatch, "fsync", on_call=2)
    with pytest.raises(SaveNotDurable):
        writer.save({"n": 2})
    monkeypatch.undo()

    with monkeypatch.context() as patched:
        refuse(patched, "fsync")
        with pytest.raises(SaveNotDurable):
            writer.save({"n": 2})
    writer.save({"n": 2})

    assert not writer._flush_owed


def test_what_before_commit_raises_changes_nothing(path):
    writer = saved(path, 1, 2)
    before = image(path.parent)

    def stop():
        assert writer.path.with_name("state.json.tmp").exists()
        raise PermissionError("the kill switch was released")

    with pytest.raises(PermissionError, match="kill switch"):
        writer.save({"n": 3}, before_commit=stop)

    assert image(path.parent) == before
    assert writer.save({"n": 3}).revision == 3


def test_ctrl_c_at_any_moment_of_a_save_leaves_a_store_that_saves(path):
    class Stop(Exception):
        pass

    def interrupt(signum, frame):
        raise Stop

    writer = saved(path, 0)
    state = writer.load()
    former = signal.signal(signal.SIGALRM, interrupt)
    stopped = 0
    try:
        for number in range(1, 400):
            state["n"] = number
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + (number % 80) * 2.5e-5)
                writer.save(state)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                stopped += 1
                assert StateStore(path).load()["n"] in (number, number - 1)
                writer.save(state)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

    assert stopped > 20
    assert StateStore(path).load() == {"n": 399}
    assert names(path.parent) == ["state.json", "state.json.bak", "state.json.lock"]


# Polling


def test_changed_and_refresh_follow_another_writer(path, monkeypatch):
    saved(path, 1)
    reader = StateStore(path)
    assert reader.changed()
    assert reader.refresh() == {"n": 1}
    assert not reader.changed()

    saved(path, 2)

    assert reader.changed()
    assert reader.refresh().meta.revision == 2
    assert not reader.changed()


def test_refresh_of_an_unchanged_state_reads_no_file_and_gives_new_values(path, monkeypatch):
    saved(path, 1)
    os.utime(path, ns=(0, 0))
    monkeypatch.setattr(reading, "_CLOCK_TICK_NS", -1)  # as if it was read long after it changed
    reader = StateStore(path)
    first = reader.load()
    first["n"] = "mine"
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))

    assert (reader.changed(), reader.refresh()) == (False, {"n": 1})
    assert reader.refresh(numbers="decimal") == {"n": 1}


def test_a_change_within_one_tick_of_the_clock_is_seen(path, monkeypatch):
    saved(path, 1)
    monkeypatch.setattr(reading, "_CLOCK_TICK_NS", 10**12)  # however slow this machine is
    reader = StateStore(path)
    reader.load()
    frozen = reading._signature_of(path)
    monkeypatch.setattr(reading, "_signature", lambda _status: frozen)
    assert not reader.changed()

    saved(path, 2)

    assert reader.changed()


def test_a_state_that_comes_or_goes_is_a_change(path):
    reader = StateStore(path)
    reader.load()
    assert not reader.changed()
    saved(path, 1)
    assert reader.changed()
    reader.load()
    path.unlink()
    assert reader.changed()


def test_a_fallback_is_announced_again_only_when_it_is_loaded_again(path, caplog):
    saved(path, 1, 2)
    tear(path)
    reader = StateStore(path)
    reader.load()
    reader.save(reader.load())

    assert [record.message for record in caplog.records].count("state loaded from a fallback") == 2


# Lease


def test_a_second_bot_is_refused_and_told_who_runs(path):
    ready, done = fork.Event(), fork.Event()

    def run():
        with StateStore(path).lease():
            ready.set()
            done.wait()

    worker = fork.Process(target=run)
    worker.start()
    ready.wait()
    host = os.uname().nodename
    with pytest.raises(LeaseHeld, match=f"process {worker.pid} on {host} since 20..-"):
        StateStore(path).lease()
    assert StateStore(path).lease_holder()["pid"] == worker.pid
    done.set()
    worker.join()

    assert StateStore(path).lease_holder() is None
    StateStore(path).lease().release()


def test_a_killed_bot_holds_no_lease(path):
    ready = fork.Event()

    def run():
        lease = StateStore(path).lease()
        ready.set()
        signal.pause()
        lease.release()

    worker = fork.Process(target=run)
    worker.start()
    ready.wait()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()

    assert StateStore(path).lease_holder() is None
    with StateStore(path).lease():
        pass


def test_a_child_does_not_keep_its_parents_lease(path):
    done = fork.Event()
    lease = StateStore(path).lease()
    worker = fork.Process(target=done.wait)
    worker.start()

    lease.release()

    StateStore(path).lease().release()
    done.set()
    worker.join()


def test_a_lease_does_not_stand_in_the_way_of_saves(path):
    with StateStore(path).lease() as lease:
        saved(path, 1, 2)
        lease.release()
    assert StateStore(path).load() == {"n": 2}


# asyncio, and the guard of the test plugin


def test_asave_saves_what_the_state_was_when_it_was_called(bot):
    async def trade():
        state = bot.load()
        saves = []
        for number in range(5):
            state["n"] = number
            saves.append(asyncio.ensure_future(bot.asave(state)))
            await asyncio.sleep(0)
        state["n"] = "later"
        return [meta.revision for meta in await asyncio.gather(*saves)]

    assert asyncio.run(trade()) == [1, 2, 3, 4, 5]
    assert bot.load() == {"n": 4}


def test_asave_does_not_block_the_loop(bot):
    entered, leave = threading.Event(), threading.Event()

    def wait():
        entered.set()
        assert leave.wait(10)

    async def trade():
        save = asyncio.ensure_future(bot.asave({"n": 1}, before_commit=wait))
        while not entered.is_set():
            await asyncio.sleep(0)
        leave.set()  # reached only because the loop goes on while the save waits
        return await save

    assert asyncio.run(trade()).revision == 1


def test_asave_refuses_and_conflicts_like_save(path):
    saved(path, 1)

    with pytest.raises(RevisionConflict):
        asyncio.run(StateStore(path).asave({"n": 1}))
    with pytest.raises(StateInvalid):
        asyncio.run(StateStore(path).asave({"n": float("nan")}))


def test_a_guarded_path_is_not_written(path, monkeypatch):
    writer = saved(path, 1)
    before = image(path.parent)

    def guard(resolved):
        raise UsageError(f"{resolved} is live")

    monkeypatch.setattr(store, "path_guard", guard)
    for write in (
        lambda: writer.save({"n": 2}),
        writer.seal,
        writer.backup,
        writer.lease,
        lambda: writer.restore(path),
        lambda: writer.transaction().__enter__(),
    ):
        with pytest.raises(UsageError, match="is live"):
            write()

    assert image(path.parent) == before
    assert writer.load() == {"n": 1}


def test_saves_are_logged_and_say_nothing_of_the_content(bot, caplog):
    with caplog.at_level(logging.INFO):
        bot.save({"secret": "hunter2"}, reason="trade")

    (record,) = caplog.records
    assert (record.message, record.revision, record.reason) == ("state saved", 1, "trade")
    assert "hunter2" not in str(vars(record))
