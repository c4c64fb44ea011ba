"""Two calls of Linux that Python has no name for: `sync_file_range` and `syncfs`.

What is promised: a call that fails raises OSError with the system's number. Where there is no such
call (another system, another C library) the first use raises AttributeError or ImportError.

What they are good for is said where they are used: `single_sync` and `durable`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
WRITE_AND_WAIT = 7  # and SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WAIT_AFTER

_libc: Any = None


def sync_file_range(descriptor: int, start: int, flags: int) -> None:
    """Have a file's bytes from `start` on written out, as `flags` say."""
    _call("sync_file_range", descriptor, start, 0, flags)


def syncfs(descriptor: int) -> None:
    """Flush all that was written to the file system of an open file."""
    _call("syncfs", descriptor)


def syncfs_tells() -> bool:
    """Return whether `syncfs` waits, and fails if something did not reach the disk: since 5.8."""
    if sys.platform != "linux":
        return False
    numbers = os.uname().release.split(".")[:2]
    return len(numbers) == 2 and all(map(str.isdigit, numbers)) and [*map(int, numbers)] >= [5, 8]


def _call(name: str, *arguments: int) -> None:
    global _libc
    if _libc is None:
        import ctypes  # it costs a short command more than all of `disk`

        libc = ctypes.CDLL(None, use_errno=True)
        libc.sync_file_range.argtypes = (
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_uint,
        )
        libc.syncfs.argtypes = (ctypes.c_int,)
        _libc = libc
    if getattr(_libc, name)(*arguments) != 0:
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
