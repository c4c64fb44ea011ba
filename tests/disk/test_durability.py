"""``durability=``: what each choice flushes, refuses, and leaves behind when the disk fails."""

import errno
import os
import stat
from pathlib import Path

import pytest

from statestore.disk import single_sync, surroundings
from statestore.disk.store import StateStore
from statestore.errors import SaveFailed, SaveNotDurable, UsageError

EIO = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def flushed(monkeypatch):
    """What was flushed, in order: ``file``, ``folder``, ``write out``, and renames in between."""
    done = []
    fsync, replace, write_out = os.fsync, os.replace, single_sync.write_out

    def flush(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(source, target):
        done.append(f"rename {str(target).rpartition('/')[2]}")
        replace(source, target)

    def out(descriptor):
        done.append("write out")
        write_out(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(single_sync, "write_out", out)
    return done


@pytest.fixture
def fit(monkeypatch):
    """As if every file system were one that a single fsync is enough for."""
    monkeypatch.setattr(single_sync, "_fit_devices", set())
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: "xfs")


def saved(path, *numbers, **options):
    bot = StateStore(path, **options)
    state = bot.load()
    for number in numbers:
        state["n"] = number
        bot.save(state)
    return bot


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_full_save_flushes_the_file_then_its_folder(path, flushed):
    bot = saved(path, 1, 2)
    flushed.clear()

    bot.save({"n": 3})

    assert flushed == ["file", "rename state.json.bak", "rename state.json", "folder"]


def test_an_unknown_durability_is_refused(path):
    with pytest.raises(UsageError, match=r"'fast'.*'full', 'relaxed', 'single-sync'"):
        StateStore(path, durability="fast")


# relaxed


def test_a_relaxed_save_flushes_nothing_and_is_otherwise_the_same(path, flushed):
    bot = saved(path, 1, durability="relaxed")
    former = path.read_bytes()
    flushed.clear()

    meta = bot.save({"n": 2})
    bot.save({"n": 2})

    assert flushed == ["rename state.json.bak", "rename state.json"]
    assert bot.backup_path.read_bytes() == former
    assert StateStore(path).load().meta == meta


def test_a_relaxed_store_says_so(path, caplog):
    caplog.set_level("INFO")
    bot = saved(path, 1, durability="relaxed")

    assert caplog.records[0].levelname == "WARNING"
    assert "do not survive a power cut" in caplog.records[0].message
    assert caplog.records[-1].durability == "relaxed"
    assert bot.load().meta.durability == "relaxed"
    assert StateStore(path).load().meta.durability == "full"


def test_what_a_relaxed_store_left_is_flushed_by_one_that_is_not(path, flushed):
    saved(path, 1, durability="relaxed")
    careful = StateStore(path)
    flushed.clear()

    careful.save(careful.load())

    assert flushed[:2] == ["file", "folder"]


# single-sync


def test_a_single_sync_save_flushes_once_after_the_rename(path, fit, flushed):
    bot = saved(path, 1, durability="single-sync")
    flushed.clear()

    meta = bot.save({"n": 2})

    assert flushed == ["write out", "rename state.json.bak", "rename state.json", "file"]
    assert StateStore(path).load().meta == meta


@pytest.mark.parametrize("start", ["nothing", "edited"])
def test_where_no_former_state_is_kept_a_single_sync_save_flushes_twice(path, fit, flushed, start):
    bot = StateStore(path, durability="single-sync")
    if start == "edited":
        saved(path, 1, 2)
        path.write_bytes(path.read_bytes().replace(b'"n": ', b'"n": 1'))
    flushed.clear()

    bot.save({"n": 1}) if start == "nothing" else bot.seal()

    assert flushed[:3] == ["file", "rename state.json", "folder"]


@pytest.mark.parametrize(
    "found",
    [
        *("btrfs", "tmpfs", "nfs4", "overlay", "an unknown file system"),
        *("ext4 (no journal)", "ext4 (data=writeback)", "ext4 (data=journal)"),
    ],
)
def test_single_sync_is_refused_where_it_is_not_enough(path, monkeypatch, found):
    monkeypatch.setattr(single_sync, "_fit_devices", set())
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: found)

    with pytest.raises(UsageError) as caught:
        StateStore(path.parent / "new" / "state.json", durability="single-sync")

    assert f"is on {found}" in str(caught.value)
    assert names(path.parent) == []


def test_single_sync_is_taken_where_this_very_file_system_is_fit_for_it(path):
    found = surroundings.file_system_of(path)

    if found in ("xfs", "ext4 (data=ordered)"):
        saved(path, 1, 2, durability="single-sync")
        assert StateStore(path).load() == {"n": 2}
    else:
        with pytest.raises(UsageError, match="single-sync"):
            StateStore(path, durability="single-sync")


def test_a_folder_that_is_mounted_over_later_is_asked_about_again(path, fit, monkeypatch):
    bot = saved(path, 1, durability="single-sync")
    monkeypatch.setattr(single_sync, "_fit_devices", set())
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: "btrfs")

    with pytest.raises(UsageError, match="btrfs"):
        bot.save({"n": 2})

    assert StateStore(path).load() == {"n": 1}
    assert names(path.parent) == ["state.json", "state.json.lock"]


def test_a_device_that_was_mounted_anew_is_looked_at_by_the_next_store(path, fit, monkeypatch):
    """A number is used again; the memory of a process once let data=writeback pass."""
    saved(path, 1, durability="single-sync")
    monkeypatch.setattr(surroundings, "file_system_of", lambda _path: "ext4 (data=writeback)")

    with pytest.raises(UsageError, match="writeback"):
        StateStore(path, durability="single-sync")


def test_the_file_system_is_found_in_the_mount_table(tmp_path):
    assert surroundings.file_system_of(Path("/proc/self/status")) == "proc"
    assert surroundings.file_system_of(tmp_path / "not there yet").split()[0].isalnum()


def test_a_failed_write_out_leaves_the_former_state(path, fit, monkeypatch):
    bot = saved(path, 1, 2, durability="single-sync")

    def fail(_descriptor):
        raise EIO

    with monkeypatch.context() as patched:
        patched.setattr(single_sync, "write_out", fail)
        with pytest.raises(SaveFailed, match="write out") as caught:
            bot.save({"n": 3})

    assert not isinstance(caught.value, SaveNotDurable)
    assert StateStore(path).load() == {"n": 2}
    assert names(path.parent) == ["state.json", "state.json.bak", "state.json.lock"]
    assert bot.save({"n": 3}).revision == 3


def test_a_failed_fsync_after_the_rename_brings_the_former_state_back(path, fit, monkeypatch):
    bot = saved(path, 1, 2, durability="single-sync")
    former = path.read_bytes()

    def fail(_descriptor):
        raise EIO

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(SaveFailed, match="the former content stands") as caught:
            bot.save({"n": 3})

    assert not isinstance(caught.value, SaveNotDurable)
    assert path.read_bytes() == former
    assert bot.save({"n": 3}).revision == 3
    assert bot.backup_path.read_bytes() == former
    assert names(path.parent) == ["state.json", "state.json.bak", "state.json.lock"]


@pytest.mark.parametrize("number", [3, 4], ids=["the same again", "another"])
def test_a_state_whose_only_fsync_failed_never_becomes_bak(path, fit, monkeypatch, number):
    bot = saved(path, 1, 2, durability="single-sync")
    former = path.read_bytes()
    link = os.link

    def fail(*_args, **_kwargs):
        raise EIO

    def link_once(*args, **kwargs):
        patched.setattr(os, "link", fail)  # so that the former state cannot be brought back
        return link(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        patched.setattr(os, "link", link_once)
        with pytest.raises(SaveNotDurable):
            bot.save({"n": 3})
    assert StateStore(path).load() == {"n": 3}
    suspect = path.stat().st_ino

    assert bot.save({"n": number}).revision == 4

    assert path.stat().st_ino != suspect
    assert bot.backup_path.read_bytes() == former
    assert StateStore(path).load() == {"n": number}
