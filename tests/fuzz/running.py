"""A target run on one input: silent, guarded, in a folder that is gone afterwards."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.guard import guarded
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
LONGEST_INPUT = 1 << 14


def run(name: str, data: bytes) -> None:
    """Run a target; whatever it raises is a finding."""
    folder = Path(tempfile.mkdtemp(prefix="statestore-fuzz-"))
    try:
        with guarded(folder):
            TARGETS[name](data, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def silence() -> Iterator[None]:
    """Without the log, where what is recovered from stands, and without waiting for the disk."""
    before, fsync = logging.root.manager.disable, os.fsync
    logging.disable(logging.CRITICAL)
    os.fsync = lambda _: None
    try:
        yield
    finally:
        os.fsync = fsync
        logging.disable(before)


def seeds(name: str) -> list[bytes]:
    """Return the corpus of a target, in the order of its names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def finding(error: BaseException) -> str:
    """Return what tells two findings apart: the error, and where in our own code it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/statestore/" in frame.filename] or list(frames)
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
    return f"{type(error).__name__} at {where}"


_TOKENS = (
    b"1e999999999",
    b"1e99999999999999999999",
    b"0e-999999999",
    b"-0",
    b"NaN",
    b"9" * 5000,
    b"\x00",
    b"\x1b[2J",
    b"\xff",
    b"\\ud800",
    b"null",
    b"[" * 300,
    b'"a":1,"a":2,',
    b"2025-11-18T04:00:00Z",
    b"0001-01-01T00:00:00+14:00",
    b"\n",
    b'"',
    b"",
)


def mutated(data: bytes, chance: Random) -> bytes:
    """Return the bytes with a few changes of the kind that breaks parsers."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(content))
        end = min(len(content), at + chance.choice((0, 1, 1, 4, 16)))
        kind = chance.randrange(4)
        if kind == 0:
            content[at:end] = chance.choice(_TOKENS)
        elif kind == 1:
            content[at:end] = chance.randbytes(end - at)
        elif kind == 2:
            other = chance.randint(0, len(content))
            content[at:at] = content[other : other + chance.randint(1, 64)]
        else:
            _replace_a_token(content, chance)
    return bytes(content[:LONGEST_INPUT])


def _replace_a_token(content: bytearray, chance: Random) -> None:
    """Put something else in place of one value between two marks of JSON."""
    marks = [at for at, byte in enumerate(content) if byte in b':,"[]{}\n=']
    if len(marks) > 1:
        first = chance.randrange(len(marks) - 1)
        content[marks[first] + 1 : marks[first + 1]] = chance.choice(_TOKENS)
