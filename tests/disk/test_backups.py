import errno
import os
import stat

import pytest

from statestore.disk import durable
from statestore.disk.backups import Backups
from statestore.errors import BackupFailed
from statestore.times import parse_instant

GOOD = b'{"positions": {}}'
TEN = parse_instant("2025-11-20T10:00:00.123456Z")


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def backups(tmp_path):
    return Backups(tmp_path / "state_backups", tmp_path / ".state.json")


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("statestore.disk.backups.times.now", lambda: TEN)


def test_a_backup_is_the_bytes_it_was_given_under_a_telling_name(backups, clock):
    path = backups.write(GOOD, "Before rebuild (72 h)", 42)

    assert path.name == ".state-20251120T100000.123456Z-r42-before-rebuild-72-h.json"
    assert path.read_bytes() == GOOD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == [path.name]


def test_backups_of_one_instant_do_not_collide(backups, clock):
    paths = [backups.write(text, "manual", 1) for text in (b"{}", b'{"a": 1}', b'{"a": 2}')]

    assert [path.read_bytes() for path in paths] == [b"{}", b'{"a": 1}', b'{"a": 2}']
    assert [backup.path for backup in backups.list()] == paths[::-1]


def test_names_tell_time_revision_and_reason(backups, clock):
    path = backups.write(GOOD, "trade", 7)

    (backup,) = backups.list()
    assert (backup.path, backup.time, backup.revision, backup.reason) == (path, TEN, 7, "trade")


@pytest.mark.parametrize("reason", ["", "///", "\ud800", "ünïcode"])
def test_any_reason_makes_a_name_that_is_found_again(backups, reason):
    path = backups.write(GOOD, reason, 1)

    assert [backup.path for backup in backups.list()] == [path]


def test_the_newest_comes_first_and_strangers_are_not_listed(backups):
    backups.directory.mkdir()
    names = [
        ".state-20251120T100000.000000Z-r9-a.json",
        ".state-20251121T100000.000000Z-r1-b.json",
        ".state-20251119T100000.000000Z-r5-c.json",
    ]
    strangers = [
        ".state-20251320T100000.000000Z-r9-a.json",
        ".state-20251120T100000.000000Z-r9-a.json.tmp",
        "state-20251118-222107.json",
        "Xstate-20251120T100000.000000Z-r9-a.json",
        "other.state-20251120T100000.000000Z-r9-a.json",
    ]
    for name in names + strangers:
        (backups.directory / name).write_bytes(GOOD)

    assert [backup.path.name for backup in backups.list()] == [names[1], names[0], names[2]]


def test_state_files_that_share_a_folder_do_not_mix(tmp_path):
    names = ["bot.json", "bot", "bot.state", "bot-2.json"]
    shared = [Backups(tmp_path, tmp_path / name) for name in names]

    written = [backups.write(GOOD, "manual", 1) for backups in shared]

    assert [[backup.path for backup in backups.list()] for backups in shared] == [
        [path] for path in written
    ]


def test_the_newest_valid_backup_passes_over_what_does_not_read(backups):
    good = backups.write(GOOD, "good", 1)
    torn = backups.write(GOOD[:-1], "torn", 2)
    wrong = backups.write(b'{"_meta": {"revision": 3, "sha256": "00"}}', "edited", 3)
    refused = {}

    backup, data, document = backups.newest_valid(refused.__setitem__)

    assert (backup.path, data, document.sections) == (good, GOOD, {"positions": b"{}"})
    assert list(refused) == [wrong, torn]


def test_without_a_folder_there_is_no_backup(backups):
    assert backups.list() == []
    assert backups.newest_valid() is None


@pytest.mark.parametrize("step", ["open", "write", "fsync"])
def test_a_backup_that_cannot_be_written_leaves_nothing(backups, monkeypatch, step):
    backups.directory.mkdir()

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(BackupFailed, match="no backup was made"):
        backups.write(GOOD, "manual", 1)
    monkeypatch.undo()

    assert names(backups.directory) == []


def test_a_backup_that_reads_back_otherwise_is_an_error(backups, monkeypatch):
    original = durable.write_all
    monkeypatch.setattr(durable, "write_all", lambda fd, data: original(fd, data[:-1] + b"X"))

    with pytest.raises(BackupFailed, match="reads back other"):
        backups.write(GOOD, "manual", 1)
