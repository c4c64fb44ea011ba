import errno
import os
import stat
from pathlib import Path

import pytest

from statestore.disk import durable, linux, single_sync
from statestore.errors import SaveFailed, SaveNotDurable

ERRNOS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]


def fail(monkeypatch, name, code, *, on_call=1):
    """Make the given call of an `os` function fail with an errno; return the count of calls."""
    original, calls = getattr(os, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == on_call:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    return path


def test_the_new_bytes_replace_the_old_ones_which_are_kept(target):
    kept = target.with_name("state.json.bak")

    durable.replace_file(target, b"new", keep_previous=kept)

    assert (target.read_bytes(), kept.read_bytes()) == (b"new", b"old")
    assert names(target.parent) == ["state.json", "state.json.bak"]


def test_a_save_costs_two_fsyncs_the_file_then_its_folder(target, monkeypatch):
    synced, original = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)) or original(fd),
    )

    durable.replace_file(target, b"new", keep_previous=target.with_name("state.json.bak"))

    assert synced == [False, True]


def test_the_state_has_a_whole_file_under_its_name_at_every_call(target, monkeypatch):
    kept = target.with_name("state.json.bak")
    seen = []
    for name in ("open", "write", "fsync", "link", "replace", "unlink"):
        original = getattr(os, name)

        def call(*args, _original=original, **kwargs):
            result = _original(*args, **kwargs)
            seen.append(target.read_text())
            return result

        monkeypatch.setattr(os, name, call)

    durable.replace_file(target, b"new", keep_previous=kept)

    monkeypatch.undo()
    assert set(seen) == {"old", "new"}


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["open", "write", "fsync", "link", "replace"])
def test_a_failed_step_leaves_the_old_bytes_and_no_litter(target, monkeypatch, step, code):
    fail(monkeypatch, step, code)
    with pytest.raises(SaveFailed) as caught:
        durable.replace_file(target, b"new", keep_previous=target.with_name("state.json.bak"))
    monkeypatch.undo()

    assert caught.value.errno == code
    assert str(target) in str(caught.value)
    assert not isinstance(caught.value, SaveNotDurable)
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["state.json"]
    durable.replace_file(target, b"next")
    assert target.read_bytes() == b"next"


def test_a_failed_rename_of_the_state_keeps_the_old_bytes_under_both_names(target, monkeypatch):
    kept = target.with_name("state.json.bak")
    fail(monkeypatch, "replace", errno.EIO, on_call=2)
    with pytest.raises(SaveFailed):
        durable.replace_file(target, b"new", keep_previous=kept)
    monkeypatch.undo()

    assert (target.read_bytes(), kept.read_bytes()) == (b"old", b"old")

    durable.replace_file(target, b"next", keep_previous=kept)

    assert (target.read_bytes(), kept.read_bytes()) == (b"next", b"old")
    assert names(target.parent) == ["state.json", "state.json.bak"]


def test_a_failed_fsync_is_never_tried_again_on_the_same_file(target, monkeypatch):
    calls = fail(monkeypatch, "fsync", errno.EIO)

    with pytest.raises(SaveFailed):
        durable.replace_file(target, b"new")

    assert len(calls) == 1


def test_a_failed_fsync_of_the_folder_says_that_the_new_bytes_stand(target, monkeypatch):
    fail(monkeypatch, "fsync", errno.EIO, on_call=2)

    with pytest.raises(SaveNotDurable, match="may still bring the former"):
        durable.replace_file(target, b"new")

    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["state.json"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV], ids=errno.errorcode.get)
def test_a_bind_mounted_file_gets_the_advice_to_mount_the_folder(target, monkeypatch, code):
    fail(monkeypatch, "replace", code)

    with pytest.raises(SaveFailed, match="mount the folder"):
        durable.replace_file(target, b"new")


@pytest.mark.parametrize(
    "code",
    [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV],
    ids=errno.errorcode.get,
)
def test_without_hard_links_the_old_bytes_are_kept_by_a_copy(target, monkeypatch, code):
    kept = target.with_name("state.json.bak")
    target.chmod(0o640)
    fail(monkeypatch, "link", code)

    durable.replace_file(target, b"new", keep_previous=kept)

    assert (target.read_bytes(), kept.read_bytes()) == (b"new", b"old")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    assert names(target.parent) == ["state.json", "state.json.bak"]


def test_short_writes_are_continued(target, monkeypatch):
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: original(fd, data[:3]))

    durable.replace_file(target, b"0123456789")

    assert target.read_bytes() == b"0123456789"


def test_litter_of_a_killed_writer_is_taken_away(target):
    for name in ("state.json.tmp", "state.json.bak.tmp"):
        target.with_name(name).write_bytes(b"torn")

    durable.replace_file(target, b"new", keep_previous=target.with_name("state.json.bak"))

    assert names(target.parent) == ["state.json", "state.json.bak"]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(target, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    target.with_name("state.json.tmp").symlink_to(victim)

    durable.replace_file(target, b"new")

    assert (victim.read_bytes(), target.read_bytes()) == (b"mine", b"new")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_an_existing_file_keeps_its_mode(target, mode):
    target.chmod(mode)

    durable.replace_file(target, b"new")

    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_file_is_for_its_owner_only(tmp_path):
    durable.replace_file(tmp_path / "state.json", b"new")

    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_keeps_the_owner_of_the_file(target):
    os.chown(target, 1234, 1235)

    durable.replace_file(target, b"new")

    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 1235)


def test_what_takes_long_to_compute_is_filled_in_while_the_disk_works(target, monkeypatch):
    data, started = bytearray(b"sum: 000, " + b"x" * 10_000), []
    monkeypatch.setattr(single_sync, "start_writing", started.append)

    def finish():
        assert started
        assert target.with_name("state.json.tmp").read_bytes() == data
        data[5:8] = b"123"
        return slice(5, 8)

    durable.replace_file(target, data, finish=finish)

    assert target.read_bytes() == data
    assert data.startswith(b"sum: 123, x")


def test_a_disk_that_takes_no_hint_takes_the_save(target, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(linux, "sync_file_range", refuse)

    durable.replace_file(target, bytearray(b"new"), finish=lambda: slice(0, 1))

    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_what_stops_a_save_before_the_rename_changes_nothing(target, error):
    def stop():
        assert target.with_name("state.json.tmp").read_bytes() == b"new"
        raise error

    with pytest.raises(error):
        durable.replace_file(
            target, b"new", keep_previous=target.with_name("state.json.bak"), before_commit=stop
        )

    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["state.json"]


def test_each_new_folder_is_flushed_into_the_one_above_it(tmp_path, monkeypatch):
    flushed, original = [], durable.fsync_directory
    monkeypatch.setattr(
        durable, "fsync_directory", lambda folder: flushed.append(Path(folder)) or original(folder)
    )

    durable.make_directory(tmp_path / "a" / "b" / "c")

    assert flushed == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SaveFailed, match="make the folder"):
        durable.make_directory(tmp_path / "file" / "state")


def test_a_created_file_never_replaces_one(target):
    with pytest.raises(FileExistsError):
        durable.create_file(target, b"new")

    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["state.json"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_created_file_never_replaces_one_where_links_are_unsupported(
    tmp_path, monkeypatch, taken
):
    path = tmp_path / "backup.json"
    if taken:
        path.write_bytes(b"old")
    fail(monkeypatch, "link", errno.EPERM)

    if taken:
        with pytest.raises(FileExistsError):
            durable.create_file(path, b"new")
    else:
        durable.create_file(path, b"new")

    assert path.read_bytes() == (b"old" if taken else b"new")
    assert names(tmp_path) == ["backup.json"]


@pytest.mark.parametrize("step", ["open", "write", "fsync"])
def test_a_file_that_cannot_be_created_leaves_nothing(tmp_path, monkeypatch, step):
    fail(monkeypatch, step, errno.ENOSPC)

    with pytest.raises(SaveFailed):
        durable.create_file(tmp_path / "backup.json", b"new")

    assert names(tmp_path) == []


def test_quarantine_names_do_not_collide(target, monkeypatch):
    monkeypatch.setattr(durable.times, "now", lambda: 1_763_632_800_123_456_000)
    names = []
    for _ in range(3):
        names.append(durable.quarantine_path(target))
        names[-1].write_bytes(b"")

    assert [name.name for name in names] == [
        "state.json.corrupt-20251120T100000.123456Z",
        "state.json.corrupt-20251120T100000.123457Z",
        "state.json.corrupt-20251120T100000.123458Z",
    ]


def test_what_is_not_a_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(durable.NotAFile, match="a FIFO"):
        durable.read_file(tmp_path / "fifo", 10)
    with pytest.raises(durable.NotAFile, match="a directory"):
        durable.read_file(tmp_path, 10)


def test_a_file_over_the_limit_is_refused_before_it_is_read(target, monkeypatch):
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("read"))

    with pytest.raises(durable.TooLarge, match="3 bytes"):
        durable.read_file(target, 2)


def test_a_moved_file_has_one_name_and_both_folders_are_flushed(tmp_path, monkeypatch):
    source, target = tmp_path / "pending" / "a", tmp_path / "done" / "a"
    for path in (source, target):
        path.parent.mkdir()
        path.write_text(str(path.parent.name))
    synced, original = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or original(fd))

    durable.move_files({source: target})

    assert synced == [path.parent.stat().st_ino for path in (target, source)]
    assert (source.exists(), target.read_text()) == (False, "pending")


@pytest.fixture(params=[True, False], ids=["flushed together", "flushed one by one"])
def together(request, monkeypatch):
    if request.param and not linux.syncfs_tells():
        pytest.skip("the kernel has no syncfs")
    monkeypatch.setattr(linux, "syncfs_tells", lambda: request.param)
    return request.param


def test_the_first_of_many_files_flush_the_folders_above_and_later_ones_do_not(
    tmp_path, monkeypatch
):
    flushed = []
    monkeypatch.setattr(durable, "flush_folders_above", flushed.append)
    (tmp_path / "pending").mkdir()

    durable.replace_files(tmp_path / "pending", {"a": b"1", "b": b"2"})
    assert [path.parent for path in flushed] == [tmp_path / "pending"]
    durable.replace_files(tmp_path / "pending", {"a": b"3", "b": b"4"})
    assert len(flushed) == 1


def test_what_replaces_a_link_or_a_fifo_has_not_its_mode(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo", 0o666)
    for name in ("link", "fifo"):
        durable.replace_file(tmp_path / name, b"new")

        assert (tmp_path / name).lstat().st_mode & 0o7777 == 0o600


def test_many_files_are_safe_before_the_first_of_them_gets_its_name(
    tmp_path, monkeypatch, together
):
    (tmp_path / "b").write_text("old")
    (tmp_path / "b").chmod(0o640)
    calls = []

    def spied(name, original):
        return lambda *given: calls.append(name) or original(*given)

    for holder, name in ((os, "fsync"), (linux, "syncfs"), (os, "replace")):
        monkeypatch.setattr(holder, name, spied(name, getattr(holder, name)))
    durable.replace_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})

    before = calls[: calls.index("replace")]
    assert before == (["syncfs"] if together else ["fsync"] * 3)
    assert calls[len(before) : len(before) + 4] == ["replace"] * 3 + ["fsync"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a": "1",
        "b": "2",
        "c": "3",
    }
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o600, 0o640]


@pytest.mark.parametrize("call", ["open", "write", "flush"])
def test_many_files_of_which_one_cannot_be_written_are_all_as_they_were(
    tmp_path, monkeypatch, together, call
):
    (tmp_path / "b").write_text("old")
    if call == "flush" and together:
        monkeypatch.setattr(linux, "syncfs", refusing(errno.EIO))
    else:
        fail(monkeypatch, "fsync" if call == "flush" else call, errno.ENOSPC)

    with pytest.raises(SaveFailed):
        durable.replace_files(tmp_path, {"a": b"1", "b": b"2"})
    monkeypatch.undo()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "old"}


def refusing(code):
    def call(*_given):
        raise OSError(code, os.strerror(code))

    return call


def test_where_a_sandbox_knows_no_flush_for_all_each_file_is_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(linux, "syncfs_tells", lambda: True)
    monkeypatch.setattr(linux, "syncfs", refusing(errno.ENOSYS))
    flushed, original = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(fd) or original(fd))
    durable.replace_files(tmp_path, {"a": b"1", "b": b"2"}, flush_names=False)

    assert len(flushed) == 2
    assert (tmp_path / "b").read_text() == "2"


@pytest.mark.parametrize(
    ("release", "can"),
    [("6.18.44", True), ("5.8.0-rc1", True), ("5.7.19", False), ("4.19", False), ("odd", False)],
)
def test_a_file_system_is_flushed_only_where_the_kernel_says_what_failed(monkeypatch, release, can):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", release, "v", "m")))

    assert linux.syncfs_tells() is can


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_move_that_the_system_refuses_is_said(tmp_path, monkeypatch, call):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    fail(monkeypatch, call, errno.EIO)

    with pytest.raises(SaveFailed if call == "replace" else SaveNotDurable):
        durable.move_files({source: target})
    assert source.exists() is (call == "replace")
