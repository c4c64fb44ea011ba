import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.disk import durable
from statestore.disk.backups import Backup, Backups, Retention, copy_to, expired
from statestore.errors import BackupFailed, UsageError
from statestore.times import NANOSECONDS, parse_instant

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


# Retention

DAY = 86_400 * NANOSECONDS
NOW = parse_instant("2025-11-20T10:00:00Z")


def made(*moments):
    """One backup for each ``"<age> [reason]"``; an age is days (``3``) or seconds (``16s``)."""
    found = []
    for number, moment in enumerate(moments):
        age, _, reason = moment.partition(" ")
        age_ns = int(age[:-1]) * NANOSECONDS if age.endswith("s") else float(age) * DAY
        found.append(Backup(Path(moment), NOW - int(age_ns), number, reason or "manual"))
    return found


def went(backups, keep, damaged=()):
    going = expired(backups, keep, NOW, lambda backup: str(backup.path) not in damaged)
    return [str(backup.path) for backup in going]


# The ten that were kept when a count alone decided: seven within 16 s, then real history.
BURST = ["0s", "2s", "5s", "8s", "11s", "14s", "16s"]


@pytest.mark.parametrize(
    ("moments", "keep", "gone"),
    [
        ([], Retention(), []),
        (["1", "2", "3"], Retention(2, 0, 0), ["3"]),
        (["1", "2", "3"], Retention(2, 7, 0), []),
        (["1", "8", "9"], Retention(2, 7, 0), ["9"]),
        (["8", "9"], Retention(2, 7, 0), []),
        (["1", "2", "3"], Retention(0, 0, 0), ["2", "3"]),
        (["400"], Retention(0, 0, 0), []),
        (["1", "9 rebuild", "9 trade"], Retention(1, 7, 30), ["9 trade"]),
        (["1", "31 rebuild", "32 trade"], Retention(1, 7, 30), ["31 rebuild", "32 trade"]),
        (["1", "8 undo", "8 edit", "8 seal", "8 import", "8 restore"], Retention(1, 7, 30), []),
        (["1", "8 before-rebuild"], Retention(1, 7, 30), ["8 before-rebuild"]),
        (["1", "5 rebuild"], Retention(1, 7, 3), []),
        (["-5", "1", "2"], Retention(1, 0, 0), ["1", "2"]),
        ([*BURST, "1", "2", "3"], Retention(10, 30, 365), []),
        ([*BURST, "40", "50", "60"], Retention(4, 30, 365), []),
        ([*BURST, "40", "50", "60"], Retention(3, 30, 365), ["60"]),
        ([*BURST, "40", "50", "60"], Retention(4, 0, 0), BURST[1:]),
        (["1", "2", "40", "40.0001", "40.0002", "50"], Retention(4, 7, 0), ["40.0001", "40.0002"]),
        (["1", "40", "41", "42"], Retention(30, 30, 365), []),
    ],
)
def test_a_backup_goes_only_when_it_is_beyond_both_the_count_and_the_age(moments, keep, gone):
    assert went(made(*moments), keep) == gone
    assert went(made(*reversed(moments)), keep) == gone


def test_a_damaged_backup_takes_no_ones_place_and_the_newest_valid_one_stays():
    moments = ["40", "41", "42", "43"]

    assert went(made(*moments), Retention(1, 30, 365), damaged={"40"}) == ["42", "43"]
    assert went(made(*moments), Retention(0, 0, 0), damaged={"40", "41"}) == ["43"]
    assert went(made(*moments), Retention(1, 30, 365), damaged=moments) == []


def test_nothing_is_read_while_nothing_is_old_enough_to_go():
    def never(_backup):
        raise AssertionError

    assert expired(made("1", "2"), Retention(1, 30, 365), NOW, never) == []


@given(
    ages=st.sets(st.integers(0, 350_000), max_size=60),
    seconds=st.sampled_from([1, 120]),
    keep=st.builds(Retention, st.integers(0, 40), st.integers(0, 400), st.integers(0, 400)),
    data=st.data(),
)
def test_whatever_the_ages_what_is_young_or_counted_or_the_last_good_one_stays(
    ages, seconds, keep, data
):
    reasons = st.sampled_from(["manual", "rebuild"])
    backups = [
        Backup(Path(str(n)), NOW - age * seconds * NANOSECONDS, n, data.draw(reasons))
        for n, age in enumerate(ages)
    ]
    valid = {backup.path for backup in backups if data.draw(st.booleans())}

    going = expired(backups, keep, NOW, lambda backup: backup.path in valid)

    newest_first = sorted(backups, key=lambda b: (b.time, b.revision), reverse=True)
    assert all(NOW - backup.time > keep.keep_days * DAY for backup in going)
    for backup in going:
        if backup.reason == "rebuild":
            assert NOW - backup.time > keep.keep_repairs_days * DAY
    newest_valid = next((b for b in newest_first if b.path in valid), None)
    assert newest_valid not in going
    if seconds > 60 and valid & {backup.path for backup in going}:  # no bursts
        assert len(valid - {backup.path for backup in going}) >= keep.keep_last


def test_pruning_deletes_what_is_ours_and_old_and_nothing_else(backups, monkeypatch, caplog):
    monkeypatch.setattr("statestore.disk.backups.times.now", lambda: NOW)
    backups.directory.mkdir()
    stay = [
        ".state-20251120T095900.000000Z-r9-manual.json",
        ".state-20250101T000000.000000Z-r1-manual.json.tmp",
        "state-20250101-000000.json",
        "other-20250101T000000.000000Z-r1-manual.json",
        "state_20250101.json",
    ]
    go = [
        ".state-20250101T000000.000000Z-r1-manual.json",
        ".state-20250102T000000.000000Z-r2-x.json",
    ]
    for name in stay + go:
        (backups.directory / name).write_bytes(GOOD)
    folder = ".state-20250103T000000.000000Z-r3-manual.json"
    (backups.directory / folder).mkdir()
    link = ".state-20250104T000000.000000Z-r4-manual.json"
    (backups.directory / link).symlink_to(backups.directory / stay[0])

    with caplog.at_level("INFO", "statestore.disk.backups"):
        deleted = backups.prune(Retention(1, 30, 365))

    assert [backup.path.name for backup in deleted] == go[::-1]
    assert names(backups.directory) == sorted([*stay, folder, link])
    assert [record.revision for record in caplog.records] == [2, 1]


def test_a_backup_that_cannot_be_deleted_is_logged_and_stays(backups, monkeypatch, caplog):
    monkeypatch.setattr("statestore.disk.backups.times.now", lambda: NOW)
    backups.directory.mkdir()
    for name in ("20251120T095900.000000Z-r9-a", "20250101T000000.000000Z-r1-a"):
        (backups.directory / f".state-{name}.json").write_bytes(GOOD)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "unlink", refuse)
    assert backups.prune(Retention(1, 30, 365)) == []
    monkeypatch.undo()

    assert len(names(backups.directory)) == 2
    assert "not deleted" in caplog.text


def test_without_a_folder_there_is_nothing_to_prune(backups):
    assert backups.prune(Retention()) == []


def test_a_negative_count_is_refused():
    with pytest.raises(UsageError, match="keep_days"):
        Retention(keep_days=-1)


def test_a_copy_elsewhere_takes_no_name_that_is_taken(tmp_path):
    path = tmp_path / "copy.json"

    assert copy_to(path, GOOD).read_bytes() == GOOD
    with pytest.raises(UsageError, match="there already"):
        copy_to(path, b"{}")
    with pytest.raises(BackupFailed, match="no backup was made"):
        copy_to(tmp_path / "none" / "copy.json", GOOD)
    assert path.read_bytes() == GOOD
    assert names(tmp_path) == ["copy.json"]
