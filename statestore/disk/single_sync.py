"""Where one fsync is enough for a save, and the call of Linux that makes it so.

A save that is ``single-sync`` hands its bytes to the disk before the rename (`write_out`), and one
fsync after it flushes both. That is half the cost of flushing the file and then its folder.

What is promised: on xfs, and on ext4 with a journal and ordered data, a power cut takes no more
than it does of two fsyncs, provided that the former file is kept and loaded where the new one does
not read. Everywhere else it is refused (`require`), before a byte is written.

What is not: this relies on how these two file systems are built, and on no word of POSIX.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from statestore.disk import linux, surroundings
from statestore.errors import UsageError

_FIT = ("xfs", "ext4 (data=ordered)")
_PAGE = 4096

_fit_devices: set[int] = set()


def require(path: Path) -> None:
    """Refuse a file on a file system that one fsync is not enough for.

    Raises:
        UsageError: it is neither xfs nor ext4 with a journal and ordered data, or cannot be told.
    """
    device = _device_of(path)
    _fit_devices.discard(device)
    found = surroundings.file_system_of(path)
    if found not in _FIT:
        raise UsageError(
            f'durability="single-sync" needs xfs, or ext4 with a journal and data=ordered; '
            f'{path} is on {found}: use durability="full"'
        )
    _fit_devices.add(device)


def is_fit(device: int) -> bool:
    """Return whether `require` has let this device pass, so that a save need not ask again."""
    return device in _fit_devices


def write_out(descriptor: int) -> None:
    """Hand a file's bytes to the disk and wait until it has them, if only in its cache.

    The file system then has nothing left to write before it may log the rename, and on the way to
    the disk its log flushes the disk's cache first. So on ext4 and xfs, which log in order, whoever
    finds the new name finds the new bytes. No POSIX call promises that.
    """
    linux.sync_file_range(descriptor, 0, linux.WRITE_AND_WAIT)


def start_writing(descriptor: int) -> None:
    """Hint that a file is to be written out; its first page, which will change again, later.

    For any save that is to be flushed. That it cannot be done means nothing, and an error of the
    disk is the next fsync's to tell.
    """
    with suppress(OSError, ImportError, AttributeError):
        linux.sync_file_range(descriptor, _PAGE, linux.START_WRITING)


def _device_of(path: Path) -> int:
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # it will be made on the file system of the one above it
    return folder.stat().st_dev
