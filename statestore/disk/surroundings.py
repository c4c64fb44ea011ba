"""What a state file stands on: the file system, what it keeps, and how much room there is.

Reads only. docs/durability.md has the promises and the file systems they were made for.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# kept: a local file system with an honest fsync, as far as its type tells. volatile: gone with a
# reboot or the container. not-kept: rename or locks are not what they are on a local disk.
Promise = Literal["kept", "volatile", "not-kept", "unknown"]

_PROMISES: dict[str, Promise] = {
    **dict.fromkeys(("ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"), "kept"),
    **dict.fromkeys(("tmpfs", "ramfs", "overlay"), "volatile"),
}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"}
_NETWORK |= {"fuse.sshfs", "fuse.glusterfs"}


@dataclass(frozen=True, slots=True)
class Room:
    """What is left on a file system for this user. ``inodes`` None: it does not count them."""

    bytes: int
    inodes: int | None


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that `path` is on, or will be on; for people too.

    With ext4's treatment of data: ``ext4 (data=ordered)``. "unknown" where nothing tells. By the
    mount point, not by the device number, which btrfs makes up for each subvolume.

    Args:
        mounts: text of ``/proc/self/mountinfo``, read unless given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return "unknown"
    real = Path(os.path.realpath(path))
    best, kind, device = -1, "unknown", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        point = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        depth = len(point.parts)
        if real.is_relative_to(point) and depth >= best:  # the later of two hides the earlier
            best, kind, device = depth, after.split()[0], fields[2]
    return f"ext4 ({_data_mode(device)})" if kind == "ext4" else kind


def is_network(kind: str) -> bool:
    """Return whether a type of file system is another machine's: nothing is promised there."""
    return kind in _NETWORK


def promise_of(kind: str) -> Promise:
    """Return what a type of file system keeps of the promises."""
    return "not-kept" if is_network(kind) else _PROMISES.get(kind.partition(" ")[0], "unknown")


def room_at(folder: Path) -> Room:
    """Return what is left for this user where `folder` is.

    Raises:
        OSError: as the system reported it.
    """
    status = os.statvfs(folder)
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def _data_mode(device: str) -> str:
    """Return what ext4 on a device (``8:1``) does with data: ``data=ordered``, or ``no journal``.

    Only the options the kernel lists tell: a mount shows none where they are the default's.
    """
    try:
        name = Path(f"/sys/dev/block/{device}").resolve().name
        options = Path(f"/proc/fs/ext4/{name}/options").read_text().split()
    except OSError as error:
        return f"that cannot be looked at: {error.strerror}"
    return next((option for option in options if option.startswith("data=")), "no journal")
