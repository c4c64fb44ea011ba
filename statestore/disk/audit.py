"""An append-only record of what was changed and why: JSON Lines, chained by hashes.

Each line carries ``at`` (when) and ``prev``: the SHA-256 of the line before it, its newline
included, 64 zeros in the first. To verify by hand: ``sed -n 3p FILE | sha256sum`` is the ``prev``
of line 4.

What is promised, on a local POSIX file system:

* once `AuditLog.append` returns, the line survives a power cut;
* appenders in several processes and threads do not break the chain;
* a line torn by a crash is moved aside (``NAME.corrupt-<time>``) before the next one is written.

The chain shows that a line inside it was changed, removed or put in. It does not show that lines
were cut off its end, nor that the whole file was written anew: it is no signature.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore import times
from statestore.disk import durable
from statestore.disk.locks import describe_holder, flock_holder
from statestore.errors import AuditBroken, SaveFailed, StateInvalid, StateLocked

logger = logging.getLogger(__name__)

FIRST = "0" * 64

LOCK_TIMEOUT_SECONDS = 10.0

_OWN_KEYS = ("at", "prev")
_BLOCK = 1 << 16
# A record of a restore holds the positions before and after: no state can make it longer.
_LONGEST_LINE = 1 << 29
_POLL_SECONDS = 0.002


class AuditLog:
    """The audit file at one path.

    Attributes:
        path: the file; it and its folder are made by the first `append`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Add one line, durably; return it with ``at`` and ``prev``.

        Decimals are written as text, so that nothing rounds them.

        Raises:
            StateInvalid: the record cannot be written as JSON, or has a key of ours.
            StateLocked: another process holds the file for longer than `LOCK_TIMEOUT_SECONDS`.
            SaveFailed: the system refused; the file ends with the line before.
        """
        self._encode(record)
        durable.make_directory(self.path.parent)
        with self._exclusive() as descriptor:
            # The line before may be of a process that was killed before it flushed it. Flushed
            # now, it stays whole whatever becomes of the one after it.
            os.fsync(descriptor)
            end, last = self._last_line(descriptor)
            prev = hashlib.sha256(last).hexdigest() if last else FIRST
            entry = {"at": times.format_instant(times.now()), **record, "prev": prev}
            self._write(descriptor, end, self._encode(entry, own=True))
        # Whoever made the file may have been killed before its name was on disk.
        durable.flush_folder(self.path)
        durable.flush_folders_above(self.path)
        return entry

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines, oldest first. Numbers with a point are exact Decimals.

        Raises:
            AuditBroken: a line is not a JSON object, or longer than any of ours.
        """
        for number, line in self._lines():
            yield self._decode(number, line)

    def verify(self) -> int:
        """Return the number of lines; a file that is not there has none.

        Raises:
            AuditBroken: a line does not carry the hash of the line before it.
        """
        expected, count = FIRST, 0
        for number, line in self._lines():
            found = self._decode(number, line).get("prev")
            if found != expected:
                raise AuditBroken(
                    self.path,
                    f"{self.path} line {number} carries the hash {found}, but the line before it "
                    f"has {expected}; a line was changed, removed or put in before line {number}",
                )
            expected, count = hashlib.sha256(line).hexdigest(), number
        return count

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            number, line = 0, stream.readline(_LONGEST_LINE)
            while line:
                number, following = number + 1, stream.readline(_LONGEST_LINE)
                if len(line) == _LONGEST_LINE:
                    raise AuditBroken(
                        self.path,
                        f"{self.path} line {number} is longer than {_LONGEST_LINE} bytes, which no "
                        "record is; another program wrote it",
                    )
                if following or _is_whole(line):
                    yield number, line
                else:
                    # Never acknowledged: torn by a crash, or being written just now.
                    logger.warning(
                        "audit file ends in an unfinished line",
                        extra={"path": str(self.path), "line": number},
                    )
                line = following

    def _decode(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line, parse_float=Decimal, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise AuditBroken(
                self.path, f"{self.path} line {number} is not JSON: {error}"
            ) from error
        except ArithmeticError as error:
            raise AuditBroken(
                self.path,
                f"{self.path} line {number} holds a number whose exponent is beyond all magnitude",
            ) from error
        if not isinstance(entry, dict):
            raise AuditBroken(self.path, f"{self.path} line {number} is not a JSON object")
        return entry

    def _encode(self, record: Mapping[str, Any], *, own: bool = False) -> bytes:
        taken = [] if own else [key for key in _OWN_KEYS if key in record]
        if taken:
            raise StateInvalid(
                self.path, f"{taken[0]}: the audit file sets this key itself", taken[0]
            )
        try:
            text = json.dumps(dict(record), allow_nan=False, default=_exact)
        except (TypeError, ValueError, RecursionError) as error:
            raise StateInvalid(
                self.path, f"audit record cannot be saved as JSON: {error}"
            ) from error
        return f"{text}\n".encode()

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """Open the file and hold its lock; the kernel frees the lock of a process that dies."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, durable.NEW_FILE_MODE)
        except OSError as error:
            raise SaveFailed(self.path, "open the audit file", error) from error
        try:
            try:
                self._lock(descriptor)
                yield descriptor
            except OSError as error:
                raise SaveFailed(self.path, "append", error, "nothing was recorded") from error
        finally:
            durable.close_quietly(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            with suppress(BlockingIOError):
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.monotonic() >= deadline:
                raise StateLocked(
                    self.path,
                    f"{self.path} is locked by {describe_holder(flock_holder(self.path))} "
                    f"for longer than {LOCK_TIMEOUT_SECONDS:g} s; nothing was recorded: see what "
                    "holds it",
                )
            time.sleep(_POLL_SECONDS)

    def _last_line(self, descriptor: int) -> tuple[int, bytes]:
        """Return where the whole lines end, and the last of them; what follows is moved aside."""
        size = os.fstat(descriptor).st_size
        line, start = self._line_before(descriptor, size)
        if line and not _is_whole(line):
            self._move_aside(descriptor, line, start)
            size = start
            line, _ = self._line_before(descriptor, size)
        return size, line

    def _line_before(self, descriptor: int, end: int) -> tuple[bytes, int]:
        """Return the last line before ``end``, finished or not, and where it starts."""
        tail, start, block = b"", end, _BLOCK
        while start and b"\n" not in tail[:-1] and len(tail) < _LONGEST_LINE:
            length = min(block, start)
            start -= length
            tail = os.pread(descriptor, length, start) + tail
            block = len(tail)  # twice as much each time, or a long line would be copied for ever
        cut = tail.rfind(b"\n", 0, max(len(tail) - 1, 0)) + 1
        if start and not cut:
            raise AuditBroken(
                self.path,
                f"{self.path} ends in a line longer than {_LONGEST_LINE} bytes, which no record "
                "is; another program wrote it, and nothing was recorded: move the file away",
            )
        return tail[cut:], start + cut

    def _move_aside(self, descriptor: int, torn: bytes, end: int) -> None:
        aside = durable.quarantine_path(self.path)
        durable.create_file(aside, torn)
        os.ftruncate(descriptor, end)
        logger.warning(
            "unfinished line of the audit file moved aside",
            extra={"path": str(self.path), "aside": str(aside), "bytes": len(torn)},
        )

    def _write(self, descriptor: int, end: int, line: bytes) -> None:
        try:
            os.lseek(descriptor, end, os.SEEK_SET)
            durable.write_all(descriptor, line)
            os.fsync(descriptor)
        except BaseException:
            # Not acknowledged, so not there: the next line must not be chained to it.
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise


def _is_whole(line: bytes) -> bool:
    """Return whether a line was written whole: a power cut may keep its end and lose the rest."""
    if not line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _exact(value: object) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    raise TypeError(f"a {type(value).__name__} ({value!r}) is not a JSON value")
