import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import stat
from decimal import Decimal

import pytest

from statestore.disk import audit
from statestore.disk.audit import FIRST, AuditLog
from statestore.errors import AuditBroken, SaveFailed, StateInvalid, StateLocked


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "data" / "audit.jsonl")


def test_each_line_carries_the_hash_of_the_line_before_it(log):
    first = log.append({"action": "rebuild"})
    second = log.append({"action": "undo"})

    lines = log.path.read_bytes().splitlines(keepends=True)
    assert first["prev"] == FIRST
    assert second["prev"] == hashlib.sha256(lines[0]).hexdigest()
    assert [entry["action"] for entry in log.entries()] == ["rebuild", "undo"]
    assert log.verify() == 2
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_decimals_are_recorded_digit_for_digit(log):
    log.append({"units": Decimal("0.00088729000000000000000001")})

    assert [entry["units"] for entry in log.entries()] == ["0.00088729000000000000000001"]


def test_a_log_nobody_wrote_is_empty(log):
    assert (list(log.entries()), log.verify()) == ([], 0)


@pytest.mark.parametrize("damage", ["changed", "removed", "inserted", "swapped"])
def test_a_touched_line_is_found(log, damage):
    for number in range(4):
        log.append({"number": number})
    lines = log.path.read_bytes().splitlines(keepends=True)
    if damage == "changed":
        lines[1] = lines[1].replace(b'"number": 1', b'"number": 9')
    elif damage == "removed":
        del lines[1]
    elif damage == "inserted":
        lines.insert(1, lines[1])
    else:
        lines[1], lines[2] = lines[2], lines[1]
    log.path.write_bytes(b"".join(lines))

    with pytest.raises(
        AuditBroken, match=r"line [23] carries the hash [0-9a-f]{64}.* has [0-9a-f]"
    ):
        log.verify()


def test_a_line_that_is_no_object_is_named(log):
    log.append({})
    with log.path.open("ab") as stream:
        stream.write(b"[]\n")

    with pytest.raises(AuditBroken, match="line 2 is not a JSON object"):
        list(log.entries())


@pytest.mark.parametrize("whole_lines", [0, 1, 3])
def test_a_torn_last_line_is_moved_aside_and_the_chain_goes_on(log, whole_lines, caplog):
    log.path.parent.mkdir()
    for number in range(whole_lines):
        log.append({"number": number, "text": "x" * 100_000})
    with log.path.open("ab") as stream:
        stream.write(b'{"at": "2025-11-')
    assert log.verify() == whole_lines
    assert len(list(log.entries())) == whole_lines

    log.append({"number": "next"})

    assert log.verify() == whole_lines + 1
    (aside,) = log.path.parent.glob("audit.jsonl.corrupt-*")
    assert aside.read_bytes() == b'{"at": "2025-11-'
    assert "moved aside" in caplog.text


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_line_that_was_not_acknowledged_is_not_there(log, monkeypatch, step):
    log.append({"number": 1})
    before = log.path.read_bytes()

    def refuse(descriptor, *data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(SaveFailed, match="nothing was recorded"):
        log.append({"number": 2})
    monkeypatch.undo()

    assert log.path.read_bytes() == before
    log.append({"number": 3})
    assert log.verify() == 2


@pytest.mark.parametrize(
    "record", [{"x": float("nan")}, {"x": Decimal("NaN")}, {"x": object()}, {"at": 1}, {"prev": 1}]
)
def test_what_cannot_be_recorded_is_refused_before_the_file_is_made(log, record):
    with pytest.raises(StateInvalid):
        log.append(record)

    assert not log.path.parent.exists()


def append_many(path, count):
    log = AuditLog(path)
    for number in range(count):
        log.append({"pid": os.getpid(), "number": number})


def test_appenders_in_several_processes_keep_one_chain(log):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=append_many, args=(log.path, 25)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert log.verify() == 100
    assert len({json.loads(line)["prev"] for line in log.path.read_bytes().splitlines()}) == 100


def test_a_file_that_another_process_keeps_locked_is_an_error_that_names_it(log, monkeypatch):
    monkeypatch.setattr(audit, "LOCK_TIMEOUT_SECONDS", 0.05)
    log.append({"n": 1})
    with log.path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)

        with pytest.raises(StateLocked, match=f"process {os.getpid()} .*nothing was recorded"):
            log.append({"n": 2})

    log.append({"n": 3})
    assert [entry["n"] for entry in log.entries()] == [1, 3]
