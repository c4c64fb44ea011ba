"""What a state file stands on: the file system, what it keeps, and how much room there is.

Reads only. docs/durability.md has the promises and the file systems they were made for.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from statestore.disk import durable

# kept: a local file system with an honest fsync, as far as its type tells. volatile: gone with a
# reboot or the container. not-kept: rename or locks are not what they are on a local disk.
Promise = Literal["kept", "volatile", "not-kept", "unknown"]

_PROMISES: dict[str, Promise] = {
    **dict.fromkeys(("ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"), "kept"),
    **dict.fromkeys(("tmpfs", "ramfs", "overlay"), "volatile"),
}


@dataclass(frozen=True, slots=True)
class Room:
    """What is left on a file system for this user. ``inodes`` None: it does not count them."""

    bytes: int
    inodes: int | None


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds `path`, "unknown" where nothing tells.

    By the mount point, not by the device number, which btrfs makes up for each subvolume.

    Args:
        mounts: text of ``/proc/self/mountinfo``, read unless given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return "unknown"
    real = Path(os.path.realpath(path))
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4]))
        depth = len(point.parts)
        if real.is_relative_to(point) and depth >= best:  # the later of two hides the earlier
            best, kind = depth, after.split()[0]
    return kind


def promise_of(kind: str) -> Promise:
    """Return what a type of file system keeps of the promises."""
    return "not-kept" if durable.is_network(kind) else _PROMISES.get(kind, "unknown")


def room_at(folder: Path) -> Room:
    """Return what is left for this user where `folder` is.

    Raises:
        OSError: as the system reported it.
    """
    status = os.statvfs(folder)
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)
