"""Run a piece of work in a forked child under strace: see its system calls, or make one go wrong.

strace attaches to the child when everything is imported and nothing has begun, so that calls are
counted from the first one of the work and one case costs about 15 ms. What is recorded is what the
kernel was asked, whichever library asked: a statestore, SQLite and a shelf are measured alike.
Writes through a shared memory map are no system calls, and not seen.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[str], None]
Work = Callable[[Report], None]

_PR_SET_PTRACER = 0x59616D61
_READY = "ready"
_PATIENCE_SECONDS = 60  # work that waits for ever ends by SIGALRM
_LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|\?)(?: (\w+))?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call.

    Attributes:
        ordinal: how many calls of this name, itself included, the work has made.
        result: what it returned; -1 on an error, named by `error`.
        report: what the work said by this call; None if it is any other call.
    """

    name: str
    arguments: tuple[str, ...]
    result: int
    error: str | None
    ordinal: int
    report: str | None = None

    def text(self, position: int) -> bytes:
        """Return an argument that is text or data."""
        return b"".join(
            bytes.fromhex(match.replace("\\x", ""))
            for match in _TEXT.findall(self.arguments[position])
        )

    def number(self, position: int) -> int:
        return int(self.arguments[position], 0)


@dataclass(frozen=True, slots=True)
class Trace:
    """What a piece of work did.

    Attributes:
        status: exit code, or minus the signal that ended it.
        reports: what it said, in order.
    """

    calls: list[Call]
    status: int
    reports: list[str]

    def acknowledged(self) -> int:
        """Return the highest number the work reported as saved."""
        numbers = [int(report[4:]) for report in self.reports if report.startswith("ack ")]
        return max(numbers, default=0)


@functools.cache
def why_not() -> str | None:
    """Return why nothing can be traced here; None if it can."""
    if sys.platform != "linux":
        return "strace is for Linux"
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        traced = trace(lambda report: report("ack 1"))
    except RuntimeError as error:
        return f"strace cannot attach to a process here: {error}"
    if traced.acknowledged() != 1 or not any(call.report for call in traced.calls):
        return "strace shows no system calls here"
    return None


def trace(work: Work, *inject: str) -> Trace:
    """Run `work` in a forked child; return what it did.

    Args:
        work: gets a function to report by (one short line each time).
        inject: what strace is to make of its calls: ``fsync:error=EIO:when=2``.
    """
    start, go = os.pipe()
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(work, start, told)
    os.close(start)
    os.close(told)
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        output = Path(folder, "calls")
        options = [option for fault in inject for option in ("-e", f"inject={fault}")]
        try:
            _wait_until_it_waits(child, heard)
            with subprocess.Popen(
                ["strace", "-p", str(child), "-xx", "-s", "1000000000", "-o", str(output)]
                + ["-e", "trace=%file,%desc", "-e", "signal=none", *options],
                stderr=subprocess.PIPE,
                text=True,
            ) as tracer:
                assert tracer.stderr is not None
                first = tracer.stderr.readline()
                if "attached" not in first:
                    raise RuntimeError(first.strip() or "it said nothing")
                os.write(go, b"g")
                _, status = os.waitpid(child, 0)
                child = 0
            reports = _read_all(heard).decode().splitlines()
            return Trace(
                list(_parse(output.read_text(), told)), os.waitstatus_to_exitcode(status), reports
            )
        finally:
            if child:
                os.kill(child, 9)
                os.waitpid(child, 0)
            os.close(go)
            os.close(heard)


def _wait_until_it_waits(child: int, heard: int) -> None:
    """What strace sees has to begin with the work: calls made before it would count as well."""
    said = os.read(heard, len(_READY) + 1).decode()
    while said == f"{_READY}\n":
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "S":
            return
        if state in "ZX":
            break
        time.sleep(0.001)
    raise RuntimeError("the process that was to be traced did not start")


def _run_in_child(work: Work, start: int, told: int) -> None:
    code = 1
    try:
        # Where the Yama security module runs, a process is traced only by whom it allows.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        # What fails here on purpose is told by reports; Python's own complaints help nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE_SECONDS)
        _say(told, _READY)
        os.read(start, 1)
        try:
            work(lambda line: _say(told, line))
            code = 0
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent is to hear of it
            _say(told, f"raised {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _say(told: int, line: str) -> None:
    os.write(told, f"{line}\n".encode(errors="replace"))


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 65536):
        chunks.append(chunk)
    return b"".join(chunks)


def _parse(output: str, told: int) -> Iterator[Call]:
    counts: Counter[str] = Counter()
    for line in output.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue  # the end of the process, or the call it was killed at
        name, arguments, result, error = match.groups()
        counts[name] += 1
        if result == "?":
            continue
        call = Call(name, tuple(arguments.split(", ")), int(result), error, counts[name])
        if name == "write" and call.arguments[0] == str(told):
            report = call.text(1).decode().rstrip("\n")
            call = Call(name, call.arguments, call.result, error, call.ordinal, report)
        yield call
