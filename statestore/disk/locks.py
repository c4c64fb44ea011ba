"""Who may write, and who runs: one writer of a state at a time, one bot. The only user of filelock.

What is promised, on a local file system:

* between `WriterLock.acquire` and `release` no other thread, store or process writes this state;
* a lock is the kernel's, so it is free the moment its holder dies; it is no file that a killed
  process could leave behind, and no process id has to be judged;
* a file system without locks is an error (`SaveFailed`), never a save without exclusion;
* a forked child starts without its parent's locks and cannot keep them alive.

What is not: NFS without locks, two hosts on one file, and programs that take no lock. Never delete
a lock file: a process that waits on the deleted one and one that made a new one would both get in.
A waiter polls, so writers are not served in the order they came.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from statestore import times
from statestore.disk import durable, surroundings
from statestore.errors import LeaseHeld, Place, SaveFailed, StateError, StateLocked, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 0.002
_LEASE_PATIENCE_SECONDS = 0.25  # `lease_holder` of another process locks the file for an instant


class WriterLock:
    """The right to write one state: a mutex among threads, flock among processes and stores."""

    def __init__(self, state_path: Path, lock_path: Path) -> None:
        self._state_path = state_path
        self._key = str(state_path)
        self._lock = _OsLock(lock_path)
        # A program may make a store for each save.
        weakref.finalize(self, self._lock.close).atexit = False

    @property
    def held(self) -> bool:
        """Whether this thread holds it, through whichever store of this process."""
        return exclusion(self._key).owner == threading.get_ident()

    def exclusively(self, act: Callable[[], T], timeout: float) -> T:
        """Run `act` with every other writer kept out.

        Raises:
            UsageError, StateLocked, SaveFailed: as in `refuse_reentry` and `acquire`.
        """
        self.refuse_reentry()
        try:
            # Inside the try, so that Ctrl-C at any instant gives back what was taken.
            self.acquire(timeout)
            return act()
        finally:
            try:
                self.release()
            except BaseException:
                self.release()  # a signal came between the two lines above
                raise

    def refuse_reentry(self) -> None:
        """Raise `UsageError` if this thread holds the lock: to be asked before `acquire`."""
        if self.held:
            raise UsageError(
                f"{self._state_path} is already locked by this thread: a save inside a "
                "transaction, or inside a signal handler that interrupted one; change the "
                "transaction's state instead, or save later"
            )

    def acquire(self, timeout: float) -> None:
        """Wait `timeout` seconds for the lock; whatever comes of it, `release` has to follow.

        Raises:
            StateLocked: somebody else holds it for longer; names the process where it is known.
            SaveFailed: the lock file cannot be made, or there are no locks on this file system.
        """
        mine = exclusion(self._key)
        deadline = time.monotonic() + timeout
        if not mine.mutex.acquire(timeout=max(timeout, 0)):
            raise self._held_for_longer(timeout)
        mine.owner = threading.get_ident()
        if not _acquire_until(deadline, self._lock, self._state_path):
            raise self._held_for_longer(timeout)

    def release(self) -> None:
        """Give back whatever of the two `acquire` took; again does no harm."""
        mine = exclusion(self._key)
        if mine.owner == threading.get_ident():
            self._lock.release()
            mine.owner = None
        try:  # noqa: SIM105  # `suppress` costs more than the call
            mine.mutex.release()
        except RuntimeError:
            pass  # not ours: the wait for it failed

    def _held_for_longer(self, timeout: float) -> StateLocked:
        pid = flock_holder(self._lock.path)
        who = describe_holder(pid)
        if pid == os.getpid():
            who = "another thread or store of this process"
        return StateLocked(
            self._state_path,
            f"{self._state_path} is locked by {who} for longer than {timeout:g} s; nothing was "
            "changed: try again, or see what holds it",
        )


class Lease:
    """The right to be the one bot on a state; see `StateStore.lease`."""

    @property
    def held(self) -> bool:
        """Whether it still is: one that another machine keeps for us may be lost."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the lease back; doing so twice does no harm."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class FileLease(Lease):
    """A lease that the kernel keeps: it is held until it is given back."""

    def __init__(self, lock: _OsLock) -> None:
        self._lock = lock
        self._released = False

    @property
    def held(self) -> bool:
        return not self._released

    def release(self) -> None:
        self._released = True
        self._lock.describe({})
        self._lock.close()


def take_lease(state_path: Path, lease_path: Path) -> Lease:
    """Take the lease of a state, held until it is released or the process ends.

    Raises:
        LeaseHeld: another bot holds it; names its process, host and since when.
        SaveFailed: as in `WriterLock.acquire`.
    """
    durable.make_directory(lease_path.parent)
    lock = _OsLock(lease_path)
    try:
        if not _acquire_until(time.monotonic() + _LEASE_PATIENCE_SECONDS, lock, state_path):
            raise lease_held(state_path, lease_holder(lease_path) or {})
        lock.describe(new_holder())
    except BaseException:
        lock.close()
        raise
    return FileLease(lock)


def new_holder() -> dict[str, Any]:
    """Return what is said of a lease that this process takes now: ``pid``, ``host``, ``since``."""
    return {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "since": times.format_instant(times.now()),
    }


def lease_holder(lease_path: Path) -> dict[str, Any] | None:
    """Return ``pid``, ``host`` and ``since`` of the lease's holder; None if nobody holds it.

    Empty where it is held, but the holder has not yet said who it is.
    """
    from filelock import lock_descriptor

    try:
        descriptor = os.open(lease_path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(lease_path, f"cannot look at {lease_path}: {error.strerror}") from error
    try:
        if lock_descriptor(descriptor, blocking=False):
            return None  # closing the descriptor gives it back
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    finally:
        os.close(descriptor)
    return holder if isinstance(holder, dict) else {}


def holder_since(pid: int) -> str | None:
    """Return since when a process of this machine runs, to the second; None if that is not told.

    It tells a bot that hangs from a command that was just typed, and a process from another one
    that was given its number later.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        up = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        age = up - int(fields[19]) * times.NANOSECONDS // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    started = (times.now() - age) // times.NANOSECONDS
    return times.format_instant(started * times.NANOSECONDS)


def describe_holder(pid: int | None) -> str:
    """Return who holds a lock, for a message: flock is local, so the process is of this machine."""
    if not pid:
        return "another process"
    since = holder_since(pid)
    return f"process {pid} (running since {since})" if since else f"process {pid}"


def flock_holder(lock_path: Path) -> int | None:
    """Return the process that holds a lock; None if none does or the system does not tell.

    Read from the kernel when it is asked for, rather than written into the file at every save.
    """
    with suppress(OSError):
        status = lock_path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and "FLOCK" in fields and device in fields:
                return int(fields[4]) or None
    return None


def lease_held(state: Place, who: Mapping[str, Any], remedy: str = "stop it first") -> LeaseHeld:
    """Return the error that names who holds a lease.

    Args:
        who: as `lease_holder` tells.
        remedy: what to do next, as the rest of the sentence.
    """
    return LeaseHeld(
        state,
        f"a bot runs on {state}: process {who.get('pid', 'unknown')} on "
        f"{who.get('host', 'unknown host')} since {who.get('since', 'an unknown time')}; "
        f"{remedy}",
    )


def _acquire_until(deadline: float, lock: _OsLock, state_path: Path) -> bool:
    """Try at least once, and again until `deadline`; return whether the lock was taken."""
    while not _try(lock, state_path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _try(lock: _OsLock, state_path: Path) -> bool:
    try:
        try:
            return lock.acquire()
        except FileNotFoundError:
            durable.make_directory(lock.path.parent)
            return lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            advice = "this file system offers no locks, so writers cannot be kept apart; put "
            advice += "the state on a local disk"
        else:
            advice = "nothing was changed; a save has to make and lock a file beside the state"
        raise SaveFailed(state_path, f"lock {lock.path.name}", error, advice) from error


class _OsLock:
    """A lock of the operating system on one file, taken on a descriptor that stays open.

    `filelock.lock_descriptor` is flock(2) and nothing else: it never falls back to a lock that is
    a mere file, which would outlive a process that dies. A file system without locks is an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._descriptor: int | None = None
        self._inode = (0, 0)
        _os_locks.add(self)

    def acquire(self) -> bool:
        """Try once."""
        take = _filelock().lock_descriptor
        while True:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, durable.NEW_FILE_MODE)
                status = os.fstat(self._descriptor)
                self._inode = (status.st_dev, status.st_ino)
                _warn_of_network(self.path, status.st_dev)
            if not take(self._descriptor, blocking=False):
                return False
            if self._is_current():
                return True
            self.close()  # the file was deleted, and a lock on its remains keeps nobody out

    def release(self) -> None:
        if self._descriptor is not None:
            try:
                _filelock().unlock_descriptor(self._descriptor)
            except OSError:
                self.close()  # which gives it back as well

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            durable.close_quietly(descriptor)

    def describe(self, holder: Mapping[str, Any]) -> None:
        """Write who holds the lock into its file; a full disk may keep that, not the lock."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(dict(holder)).encode(), 0)

    def _is_current(self) -> bool:
        try:
            named = os.lstat(self._name)
        except FileNotFoundError:
            return False
        return self._inode == (named.st_dev, named.st_ino)


def _warn_of_network(path: Path, device: int) -> None:
    """Say once for each file system that locks and renames on it are another machine's affair."""
    if device in _looked_at:
        return
    _looked_at.add(device)
    found = surroundings.file_system_of(path)
    if surroundings.is_network(found):
        logger.warning(
            "the state is on a network file system, where writers may not be kept apart and a "
            "power cut may take what was saved",
            extra={"path": str(path), "file_system": found},
        )


@functools.cache
def _filelock() -> ModuleType:
    """Import it when first needed: it costs a short command more than everything else it does."""
    import filelock

    return filelock


@dataclass(slots=True)
class Exclusion:
    """Keeps threads of this process apart: flock knows descriptors, not threads."""

    mutex: threading.RLock = field(default_factory=threading.RLock)
    owner: int | None = None


_exclusions: dict[str, Exclusion] = {}  # by state file
_looked_at: set[int] = set()  # devices
_os_locks: weakref.WeakSet[_OsLock] = weakref.WeakSet()


def exclusion(key: str) -> Exclusion:
    """Return what keeps the threads of this process apart on one state, by its place."""
    return _exclusions.get(key) or _exclusions.setdefault(key, Exclusion())


def _after_fork_in_child() -> None:
    """Start without locks: a child's copies of descriptors would keep the parent's locks alive."""
    _exclusions.clear()
    for lock in _os_locks:
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
