"""Durable file replacement: after a crash the old bytes or the new bytes, never a mix.

Standard library only, and no knowledge of JSON, positions or bots.

What is promised, on a local POSIX file system whose fsync is honest:

* a reader never sees a half-written file (write aside, then rename);
* once `replace_file` returns, the new bytes survive a power cut (fsync the file, then fsync the
  folder that holds its name), and so do the names `create_file` and `make_directory` made;
* at every instant a whole file stands under the target's name or under ``keep_previous``;
* a call that fails leaves the target as it was and no temporary file behind;
* a failed fsync is final: the kernel may have dropped the pages and marked them clean, so a second
  fsync of the same file proves nothing. The file is dropped; the next call writes a new one.

The temporary name is fixed per target (``NAME.tmp``), so litter of a killed writer cannot pile up:
the next writer takes it away. Callers serialise writers of one target (`statestore.disk.store` by
its lock). NFS is out of scope: rename(2) is not atomic there for other clients.
"""

# Here one call is one system call, and tests make each of them fail by its name in `os`.
# ruff: noqa: PTH105, PTH108, PTH116

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from statestore import times
from statestore.errors import SaveFailed, SaveNotDurable

NEW_FILE_MODE = 0o600

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


def read_file(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
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
        os.close(descriptor)


def replace_file(
    path: Path,
    data: bytes,
    *,
    keep_previous: Path | None = None,
    mode: int | None = None,
    before_commit: Callable[[], None] | None = None,
) -> os.stat_result:
    """Put `data` under `path`, durably and in one step; return the status of the new file.

    Args:
        keep_previous: where the present file is kept (``.bak``); what stands there is replaced.
        mode: permission bits of a file that does not exist yet, 0600 unless given. An existing
            file keeps its mode, and its owner where the process may set it.
        before_commit: called when the new bytes are safe under the temporary name and nothing
            else has changed; if it raises, nothing does.

    Raises:
        SaveFailed: the system refused a step; the old bytes stand.
        SaveNotDurable: the new bytes stand, but the folder could not be flushed.
    """
    temporary = Path(f"{path}.tmp")
    descriptor = -1
    try:
        with _step(path, "create the temporary file"):
            descriptor = _create(temporary)
            previous = _status(path)
            _take_over_ownership(descriptor, previous, mode)
        _write_and_flush(path, descriptor, data)
        if before_commit is not None:
            before_commit()
        if keep_previous is not None and previous is not None:
            _keep(path, keep_previous)
        with _step(path, "rename"):
            os.replace(temporary, path)
        # After the rename: it changes the inode's ctime, which callers compare.
        status = os.fstat(descriptor)
    except BaseException:
        _drop(temporary)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    flush_folder(path)
    return status


def create_file(path: Path, data: bytes) -> None:
    """Make a new durable file of mode 0600 whose name appears only once it is whole.

    Raises:
        FileExistsError: the name is taken; it is left alone.
        SaveFailed, SaveNotDurable: as in `replace_file`.
    """
    temporary = Path(f"{path}.tmp")
    descriptor = -1
    try:
        with _step(path, "create the temporary file"):
            descriptor = _create(temporary)
        _write_and_flush(path, descriptor, data)
        _claim_name(temporary, path)
    finally:
        _drop(temporary)
        if descriptor >= 0:
            os.close(descriptor)
    flush_folder(path)


def make_directory(path: Path) -> None:
    """Make a folder and its missing parents; each new one is flushed into the one above it."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        with _step(folder, "make the folder"):
            # Somebody else may make it first; then flushing it again does no harm.
            with suppress(FileExistsError):
                folder.mkdir()
        flush_folder(folder)


def flush_folder(path: Path) -> None:
    """Fsync the folder that holds `path`, so that its name survives a power cut.

    Raises:
        SaveNotDurable: the folder could not be flushed.
    """
    try:
        fsync_directory(path.parent)
    except OSError as error:
        raise SaveNotDurable(
            path,
            "fsync of the folder",
            error,
            "the new content is in place and loads, but a power cut may still bring the former "
            "one back; save again, and look at the disk",
        ) from error


def fsync_directory(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may take fewer than it was given (a nearly full disk does)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _step(path: Path, step: str) -> Iterator[None]:
    """Turn the system's refusal of one step into `SaveFailed`."""
    try:
        yield
    except OSError as error:
        raise SaveFailed(path, step, error, _advice(step, error)) from error


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


def _create(temporary: Path) -> int:
    try:
        return os.open(temporary, _CREATE, NEW_FILE_MODE)
    except FileExistsError:
        # Left by a writer that was killed; whoever writes now is the only one who may.
        os.unlink(temporary)
        return os.open(temporary, _CREATE, NEW_FILE_MODE)


def _write_and_flush(path: Path, descriptor: int, data: bytes) -> None:
    with _step(path, "write"):
        write_all(descriptor, data)
    with _step(path, "fsync"):
        os.fsync(descriptor)


def _take_over_ownership(
    descriptor: int, previous: os.stat_result | None, mode: int | None
) -> None:
    """Give the new file the mode and owner of the one it replaces."""
    if previous is None:
        if mode is not None:
            os.fchmod(descriptor, mode)
        return
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (previous.st_uid, previous.st_gid):
        # Only root may give files away; others keep what they can, which is the mode.
        with suppress(PermissionError):
            os.fchown(descriptor, previous.st_uid, previous.st_gid)
    if stat.S_IMODE(new.st_mode) != stat.S_IMODE(previous.st_mode):
        os.fchmod(descriptor, stat.S_IMODE(previous.st_mode))


def _keep(path: Path, kept: Path) -> None:
    """Give the present file a second name, replacing what stood under it.

    A hard link, not a rename: between two renames there would be an instant with no file under
    the target's name at all, and a bot that starts in that instant starts from nothing.
    """
    # One name per target whatever it is kept as, so that the next writer finds what a kill left.
    link = Path(f"{path}.bak.tmp")
    try:
        with _step(path, "keep the former file"):
            _drop(link)
            try:
                os.link(path, link, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _LINKS_UNSUPPORTED:
                    raise
                _copy(path, link)
            os.replace(link, kept)
    finally:
        # rename(2) between two names of one inode does nothing and leaves both.
        _drop(link)


def _copy(source: Path, target: Path) -> None:
    """Copy durably; for file systems without hard links (FAT, some network and FUSE ones)."""
    data, status = read_file(source, limit=1 << 40)
    descriptor = os.open(target, _CREATE, NEW_FILE_MODE)
    try:
        _take_over_ownership(descriptor, status, None)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim_name(temporary: Path, path: Path) -> None:
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


def _drop(temporary: Path) -> None:
    """Remove a temporary name if it is there; what cannot be removed now, the next writer will."""
    with suppress(OSError):
        os.unlink(temporary)


def _status(path: Path) -> os.stat_result | None:
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
