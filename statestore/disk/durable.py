"""Durable file replacement: after a crash the old bytes or the new bytes, never a mix.

Standard library only, and no knowledge of JSON, positions or bots.

What is promised, on a local POSIX file system whose fsync is honest:

* a reader never sees a half-written file (write aside, then rename);
* once `replace_file` returns, the new bytes survive a power cut (fsync the file, then fsync the
  folder that holds its name), and so do the names `create_file` and `make_directory` made;
* at every instant a whole file stands under the target's name or under ``keep_previous``;
* the new file's mtime is never that of the file it replaces, so one stat tells two saves apart,
  within one tick of the clock and with an inode number that is used again as well;
* a call that fails leaves the target as it was and no temporary file behind;
* a power cut takes nothing of this, unless the caller says otherwise (`Durability`);
* a failed fsync is final: the kernel may have dropped the pages and marked them clean, so a second
  fsync of the same file proves nothing. The file is dropped; the next call writes a new one.

The temporary name is fixed per target (``NAME.tmp``), so litter of a killed writer cannot pile up:
the next writer takes it away. Callers serialise writers of one target (`statestore.disk.store` by
its lock). NFS is out of scope: rename(2) is not atomic there for other clients.

One module, because a test or a person that asks what can happen to a file looks in one place, and
`replace_file` is long because the order of its calls is what is promised: they stand there in that
order, each under the name that an error gives it.
"""

# Here one call is one system call, and tests make each of them fail by its name in `os`. On the way
# of a save names are text and few objects are made: after each flush the processor's caches are
# cold, and what Python does then costs a multiple of its usual price.
# ruff: noqa: PTH105, PTH108, PTH116, PTH120

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from statestore import times
from statestore.disk import linux, single_sync
from statestore.errors import SaveFailed, SaveNotDurable

# full: fsync of the file, rename, fsync of the folder. relaxed: no fsync at all. single-sync: the
# data is written out before the rename, and one fsync after it flushes both; see that module.
Durability = Literal["full", "relaxed", "single-sync"]

NEW_FILE_MODE = 0o600
NEW_FOLDER_MODE = 0o700  # a state says what is held, and its folder what there is
# Kernels tick 100 to 1000 times a second; what happens within one tick has one timestamp.
CLOCK_TICK_NS = 20_000_000
_LATER_NS = 1_000  # the finest that every file system keeps whose clock is not coarse

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that stands where a file should be must not wait for a writer.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LINKS_UNSUPPORTED = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
}
_BLOCK = 1 << 20


class NotAFile(Exception):
    """A directory, a FIFO or a device stands where a file is expected."""


class TooLarge(Exception):
    """The file is larger than the reader is willing to read."""


def read_file(path: str | Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Return a regular file's bytes and its status, both of the same inode.

    Raises:
        NotAFile, TooLarge: found before a byte is read; the text says what was found.
        OSError: as the system reported it.
    """
    descriptor = os.open(path, _READ)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile(f"is {_kind(status.st_mode)}, not a file")
        if status.st_size > limit:
            raise TooLarge(f"is {status.st_size} bytes long; more than {limit} are not read")
        data = bytearray()
        while block := os.read(descriptor, max(status.st_size + 1 - len(data), _BLOCK)):
            data += block
            if len(data) > limit:
                raise TooLarge(f"grows while it is read; more than {limit} bytes are not read")
        return bytes(data), status
    finally:
        close_quietly(descriptor)


def replace_file(
    path: Path,
    data: bytes | bytearray,
    *,
    keep_previous: Path | None = None,
    before_commit: Callable[[], None] | None = None,
    durability: Durability = "full",
    finish: Callable[[], slice] | None = None,
) -> os.stat_result:
    """Put `data` under `path`, durably and in one step; return the status of the new file.

    A new file is its owner's only (0600). One that is there keeps its mode, and its owner where the
    process may set it.

    Args:
        keep_previous: where the present file is kept (``.bak``); what stands there is replaced.
        before_commit: called when the new bytes are safe under the temporary name and nothing
            else has changed; if it raises, nothing does.
        durability: one fsync is enough only where the former file is kept, to be loaded if the
            power goes between rename and fsync; elsewhere ``single-sync`` makes two as well.
        finish: called while the disk is at work on `data`, to fill in what takes long to compute;
            returns the part of `data`, in its first page, that is to be written again.

    Raises:
        UsageError: the file system is none that one fsync is enough for.
        SaveFailed: the system refused a step; the old bytes stand.
        SaveNotDurable: the new bytes stand, but the folder could not be flushed.
    """
    name = os.fspath(path)
    temporary, link = f"{name}.tmp", _link_name(name)
    descriptor = -1
    step: str | None = "create the temporary file"
    try:
        descriptor = _create(temporary)
        previous = _status(name)
        if durability == "single-sync" and (keep_previous is None or previous is None):
            durability = "full"
        step = "write"
        write_all(descriptor, data)
        if finish is not None:
            if durability != "relaxed":
                single_sync.start_writing(descriptor)
            _write_again(descriptor, data, finish())
        _take_over(descriptor, previous)
        if durability == "full":
            step = "fsync"
            os.fsync(descriptor)
        elif durability == "single-sync":
            if previous is None or not single_sync.is_fit(previous.st_dev):
                single_sync.require(path)
            step = "write out"
            single_sync.write_out(descriptor)
        if before_commit is not None:
            step = None  # what it raises is the caller's
            before_commit()
        if keep_previous is not None and previous is not None:
            step = "keep the former file"
            _keep(name, link, keep_previous)
        if keep_previous is None or previous is None or previous.st_nlink > 1:
            # Left by a killed writer, or by a rename over another name of the same inode, which
            # does nothing and leaves both. Where there is one name, the rename took the link.
            _drop(link)
        step = "rename"
        os.replace(temporary, name)
        status = _status_in_place(path, descriptor, previous)
        if durability == "single-sync":
            _fsync_or_take_back(path, descriptor, keep_previous)
    except OSError as error:
        _drop(temporary)
        if step is None:
            raise
        raise SaveFailed(path, step, error, _advice(step, error)) from error
    except BaseException:
        _drop(temporary)
        raise
    finally:
        if descriptor >= 0:
            close_quietly(descriptor)
    if durability == "full":
        flush_folder(path)
        if previous is None:
            flush_folders_above(path)
    return status


def replace_files(folder: Path, files: Mapping[str, bytes], *, flush_names: bool = True) -> None:
    """Put each of `files` under its name in `folder`, as `replace_file` does, by one flush for all.

    Each is replaced in one step, all of them together are not: a crash leaves some old, some new,
    each of them whole, and in that order nothing is promised.

    Where the system can flush a whole file system (`syncfs`), that is one call however many files
    there are; it also waits for what other programs wrote. Elsewhere each file is flushed.

    Args:
        flush_names: else a power cut may bring back the former content of some.

    Raises:
        SaveFailed: the system refused a step; before the first rename, nothing was replaced.
        SaveNotDurable: the new bytes stand, but the folder could not be flushed.
    """
    if not files:
        return
    names = {name: f"{folder}/{name}" for name in files}
    descriptor, new = -1, False
    try:
        with _step(folder, "open the folder"):  # before the writes: it tells of what fails since
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        together = len(files) > 1 and linux.syncfs_tells()
        for name, path in names.items():
            previous = _status(path)
            new |= previous is None
            with _step(Path(path), "write"):
                _write_aside(f"{path}.tmp", files[name], previous, flush=not together)
        if together:
            with _step(folder, "flush"):
                _flush_together(descriptor, names.values())
        for path in names.values():
            with _step(Path(path), "rename"):
                os.replace(f"{path}.tmp", path)
    except BaseException:
        for path in names.values():
            _drop(f"{path}.tmp")
        raise
    finally:
        if descriptor >= 0:
            close_quietly(descriptor)
    if flush_names:
        flush_folder(folder / "any")
        if new:
            flush_folders_above(folder / "any")


def create_file(path: Path, data: bytes) -> None:
    """Make a new durable file of mode 0600 whose name appears only once it is whole.

    Raises:
        FileExistsError: the name is taken; it is left alone.
        SaveFailed, SaveNotDurable: as in `replace_file`.
    """
    temporary = f"{path}.tmp"
    descriptor = -1
    try:
        with _step(path, "create the temporary file"):
            descriptor = _create(temporary)
        with _step(path, "write"):
            write_all(descriptor, data)
        with _step(path, "fsync"):
            os.fsync(descriptor)
        _claim_name(temporary, path)
    finally:
        _drop(temporary)
        if descriptor >= 0:
            close_quietly(descriptor)
    flush_folder(path)
    flush_folders_above(path)


def move_files(moves: Mapping[Path, Path]) -> None:
    """Move files that are durable within their file system, durably and each in one step.

    What stands under a target is replaced. Each folder is flushed once for all; after a power cut
    each file has one of its two names.

    Args:
        moves: source -> target.

    Raises:
        SaveFailed: the system refused one; it and those after it are where they were.
        SaveNotDurable: they were moved, but a power cut may bring some back.
    """
    for source, target in moves.items():
        with _step(target, "rename"):
            os.replace(source, target)
    for folder in dict.fromkeys([*(t.parent for t in moves.values()), *(s.parent for s in moves)]):
        flush_folder(folder / "any")


def make_directory(path: Path) -> None:
    """Make a folder and its missing parents; each new one is flushed into the one above it."""
    missing = []
    with _step(path, "look for the folder"):
        while not path.is_dir():
            missing.append(path)
            if path == path.parent:
                break
            path = path.parent
    for folder in reversed(missing):
        with _step(folder, "make the folder"):
            # Somebody else may make it first; then flushing it again does no harm.
            with suppress(FileExistsError):
                folder.mkdir(mode=NEW_FOLDER_MODE)
        flush_folder(folder)


def flush_folder(path: Path) -> None:
    """Fsync the folder that holds `path`, so that its name survives a power cut.

    Raises:
        SaveNotDurable: the folder could not be flushed.
    """
    try:
        fsync_directory(os.path.dirname(path) or ".")
    except OSError as error:
        raise _not_durable(path, "fsync of the folder", error) from error


def flush_folders_above(path: Path) -> None:
    """Fsync the folders above the one that holds `path`, as far as its file system goes.

    For the first file in a folder: a process that was killed may have made the folder, or one
    above it, without flushing its name, and nobody can see that.

    Raises:
        SaveNotDurable: a folder could not be flushed. One that may not be opened is left out.
    """
    try:
        device = os.stat(path.parent).st_dev
        for folder in path.parent.parents:
            if os.stat(folder).st_dev != device:
                break
            with suppress(PermissionError):
                fsync_directory(folder)
    except OSError as error:
        raise _not_durable(path, "fsync of a folder above", error) from error


def flush_file(path: Path) -> None:
    """Flush a file that another process may have left unflushed, its name, and those above it.

    Raises:
        SaveNotDurable: one of them could not be flushed.
    """
    try:
        descriptor = os.open(path, _READ)
        try:
            os.fsync(descriptor)
        finally:
            close_quietly(descriptor)
    except OSError as error:
        raise _not_durable(path, "fsync", error) from error
    flush_folder(path)
    flush_folders_above(path)


def fsync_directory(folder: str | Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def quarantine_path(path: Path) -> Path:
    """Return ``NAME.corrupt-<UTC time>``, a name beside `path` that nothing has yet."""
    instant = times.now()
    while True:
        name = Path(f"{path}.corrupt-{file_stamp(instant)}")
        if not os.path.lexists(name):
            return name
        instant += 1_000


def file_stamp(instant: int) -> str:
    """Return an instant for a file name, to the microsecond: ``20251120T100000.123456Z``."""
    seconds, nanoseconds = divmod(instant, times.NANOSECONDS)
    whole = times.format_instant(seconds * times.NANOSECONDS).rstrip("Z")
    return f"{whole.replace('-', '').replace(':', '')}.{nanoseconds // 1_000:06d}Z"


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write every byte: the system may take fewer than it was given (a nearly full disk does)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_again(descriptor: int, data: bytes | bytearray, part: slice) -> None:
    os.lseek(descriptor, part.start, os.SEEK_SET)
    write_all(descriptor, data[part])


def _status_in_place(
    path: Path, descriptor: int, previous: os.stat_result | None
) -> os.stat_result:
    """Return the status of the new file, and give it the group of the one it replaced.

    After the rename: that changes the inode's ctime, which callers compare.
    """
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise _not_durable(path, "fstat", error) from error
    if previous is not None and status.st_gid != previous.st_gid:
        # The folder gave it another group than the process has (setgid).
        with suppress(OSError):
            os.fchown(descriptor, -1, previous.st_gid)
            status = os.fstat(descriptor)
    return status


def _fsync_or_take_back(path: Path, descriptor: int, kept: Path | None) -> None:
    """Flush the new file; where that fails, put the former one under its name again.

    It may not be on the disk, and a second fsync would not tell.

    Raises:
        SaveFailed: the former file stands again.
        SaveNotDurable: it could not be put back.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        _take_back(path, kept, error)


def _flush_together(descriptor: int, names: Iterable[str]) -> None:
    try:
        linux.syncfs(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        for name in names:  # a sandbox that knows no such call
            file = os.open(f"{name}.tmp", _READ)
            try:
                os.fsync(file)
            finally:
                close_quietly(file)


def _write_aside(
    temporary: str, data: bytes, previous: os.stat_result | None, *, flush: bool
) -> None:
    descriptor = _create(temporary)
    try:
        write_all(descriptor, data)
        _take_over(descriptor, previous)
        if flush:
            os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def _take_back(path: Path, kept: Path | None, error: OSError) -> None:
    try:
        if kept is None:
            raise error
        link = _link_name(path)
        _drop(link)
        _link_or_copy(kept, link)
        os.replace(link, path)
    except OSError:
        raise _not_durable(path, "fsync", error) from error
    raise SaveFailed(path, "fsync", error, _advice("fsync", error)) from error


class _step:  # a class, since a generator costs several times as much
    """Turn the system's refusal of one step into `SaveFailed`."""

    __slots__ = ("_path", "_step")

    def __init__(self, path: Path, step: str) -> None:
        self._path = path
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise SaveFailed(self._path, self._step, error, _advice(self._step, error)) from error


def _not_durable(path: Path, step: str, error: OSError) -> SaveNotDurable:
    return SaveNotDurable(
        path,
        step,
        error,
        "the new content is in place and loads, but a power cut may still bring the former one "
        "back; save again, and look at the disk",
    )


def _advice(step: str, error: OSError) -> str:
    if step == "rename" and error.errno in (errno.EBUSY, errno.EXDEV):
        return (
            "the file is probably bind-mounted on its own, so it cannot be replaced; "
            "mount the folder that holds it instead"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the former content stands; free some space and save again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "the former content stands; the folder has to be writable for this user"
    return "the former content stands"


def close_quietly(descriptor: int) -> None:
    """Close a file whose bytes were flushed, or only read: a late error says nothing of them."""
    try:  # noqa: SIM105  # `suppress` costs more than the call
        os.close(descriptor)
    except OSError:
        pass


def _create(temporary: str) -> int:
    try:
        return os.open(temporary, _CREATE, NEW_FILE_MODE)
    except FileExistsError:
        # Left by a writer that was killed; whoever writes now is the only one who may.
        os.unlink(temporary)
        return os.open(temporary, _CREATE, NEW_FILE_MODE)


def _take_over(descriptor: int, previous: os.stat_result | None) -> None:
    """Give the new file the mode and owner of the one it replaces, and another mtime."""
    if previous is None or not stat.S_ISREG(previous.st_mode):
        return  # a link's mode says that all may write, and is nothing a file should have
    if (previous.st_uid, previous.st_gid) == (os.geteuid(), os.getegid()):
        # The new file is not looked at: on a kernel with fine timestamps (6.13 and later) a file
        # that somebody looked at gets a new one at the rename, and the log one more block.
        if (former := stat.S_IMODE(previous.st_mode)) != NEW_FILE_MODE:
            os.fchmod(descriptor, former)
    else:
        _take_over_ownership(descriptor, os.fstat(descriptor), previous)
    now = time.time_ns()
    if abs(now - previous.st_mtime_ns) < CLOCK_TICK_NS:
        os.utime(descriptor, ns=(now, max(now, previous.st_mtime_ns + _LATER_NS)))


def _take_over_ownership(descriptor: int, new: os.stat_result, previous: os.stat_result) -> None:
    if (new.st_uid, new.st_gid) != (previous.st_uid, previous.st_gid):
        # Only root may give files away; others keep what they can, which is the mode.
        with suppress(PermissionError):
            os.fchown(descriptor, previous.st_uid, previous.st_gid)
    if stat.S_IMODE(new.st_mode) != stat.S_IMODE(previous.st_mode):
        os.fchmod(descriptor, stat.S_IMODE(previous.st_mode))


def _keep(path: str, link: str, kept: Path) -> None:
    """Give the present file a second name, replacing what stood under it.

    A hard link, not a rename: between two renames there would be an instant with no file under
    the target's name at all, and a bot that starts in that instant starts from nothing.
    """
    try:
        try:
            _link_or_copy(path, link)
        except FileExistsError:
            os.unlink(link)  # left by a writer that was killed
            _link_or_copy(path, link)
        os.replace(link, kept)
    except BaseException:
        _drop(link)
        raise


def _link_name(path: str | Path) -> str:
    """One name per target whatever it is kept as: the next writer finds what a kill left."""
    return f"{path}.bak.tmp"


def _link_or_copy(source: str | Path, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _LINKS_UNSUPPORTED:
            raise
        _copy(source, target)


def _copy(source: str | Path, target: str) -> None:
    """Copy durably; for file systems without hard links (FAT, some network and FUSE ones)."""
    data, status = read_file(source, limit=1 << 40)
    descriptor = os.open(target, _CREATE, NEW_FILE_MODE)
    try:
        _take_over_ownership(descriptor, os.fstat(descriptor), status)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def _claim_name(temporary: str, path: Path) -> None:
    """Name a finished file, never over an existing one: link(2) refuses what rename(2) replaces."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _LINKS_UNSUPPORTED and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        with _step(path, "rename"):
            if error.errno not in _LINKS_UNSUPPORTED:
                raise
            os.replace(temporary, path)


def _drop(temporary: str) -> None:
    """Remove a temporary name if it is there; what cannot be removed now, the next writer will."""
    with suppress(OSError):
        os.unlink(temporary)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
