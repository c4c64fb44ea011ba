"""Timestamped copies of one state file: ``state-20251120T100000.123456Z-r42-manual.json``.

A backup is byte for byte what it was given, written durably under a name nothing else has, and
read back before `Backups.write` returns. Names carry time, revision and reason, so a listing needs
to open nothing. State files of different names may share a folder; two of the same name may not,
since a backup does not say which folder its state came from.

Nothing is deleted unless `Backups.prune` is called, and then only what `expired` names: beyond the
count and the age that are to be kept. A program that makes ten backups in as many seconds does not
push out ten days of history, since a burst counts as one.
"""

from __future__ import annotations

import builtins
import logging
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from statestore import times
from statestore.disk import codec, durable
from statestore.errors import BackupFailed, SaveFailed, UsageError

logger = logging.getLogger(__name__)

# Made before something replaced the state, so needed to take that back.
REPAIRS = frozenset({"rebuild", "restore", "undo", "import", "reinsert", "seal", "edit"})

_BURST = 60 * times.NANOSECONDS
_DAY = 86_400 * times.NANOSECONDS
_REASON = "[a-z0-9]+(?:-[a-z0-9]+)*"
_STAMP = r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2}\.\d{6}Z)"
_MICROSECOND = 1_000


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup, as its name describes it. `time` is an instant in nanoseconds."""

    path: Path
    time: int
    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Retention:
    """How long backups are kept: the newest `keep_last`, and all that are younger than `keep_days`.

    Attributes:
        keep_last: a burst (each within a minute of its newest) counts as one; damaged ones as none.
        keep_repairs_days: for a backup made before a repair (`REPAIRS`), so that it can be undone.
    """

    keep_last: int = 30
    keep_days: int = 30
    keep_repairs_days: int = 365

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_days", "keep_repairs_days"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it has to be 0 or more")


class Backups:
    """The backups of one state file.

    Attributes:
        directory: where they are; made when the first one is written.
    """

    def __init__(self, directory: Path, state_path: Path) -> None:
        self.directory = directory
        self._stem, self._suffix = state_path.stem, state_path.suffix
        self._name = re.compile(
            rf"{re.escape(self._stem)}-{_STAMP}-r(\d+)-({_REASON}){re.escape(self._suffix)}",
            re.ASCII,
        )

    def write(self, data: bytes, reason: str, revision: int) -> Path:
        """Keep `data` as a new backup; return its path.

        Raises:
            BackupFailed: it could not be written, or did not read back as it was written.
        """
        instant = times.now()
        try:
            durable.make_directory(self.directory)
            while True:
                path = self._path(instant, reason, revision)
                try:
                    durable.create_file(path, data)
                    break
                except FileExistsError:
                    instant += _MICROSECOND
        except SaveFailed as error:
            raise BackupFailed(self.directory, f"no backup was made: {error}") from error
        _verify(path, data)
        return path

    def list(self) -> list[Backup]:
        """Return the backups, newest first by the time in their names.

        Raises:
            OSError: the folder is there, but cannot be listed.
        """
        backups = [backup for name in self._names() if (backup := self._parse(name))]
        return sorted(backups, key=_order, reverse=True)

    def hold(self, path: Path) -> bool:
        """Return whether a path is of a backup, as its folder and its name say."""
        here = path.parent.resolve() == self.directory.resolve()
        return here and self._parse(path.name) is not None

    def newest_valid(
        self, on_refused: Callable[[Path, str], None] = lambda _path, _why: None
    ) -> tuple[Backup, bytes, codec.Document] | None:
        """Return the newest backup that reads as a state and has no wrong sum.

        Args:
            on_refused: told each newer one and why it was passed over.
        """
        for backup in self.list():
            if (found := read_valid(backup.path, on_refused)) is not None:
                return backup, *found
        return None

    def prune(self, keep: Retention) -> builtins.list[Backup]:
        """Delete the backups that are `expired`; return them. Other files are never touched.

        What cannot be deleted is logged and stays: that is no reason for a backup to fail.
        """
        try:
            present = self.list()
        except OSError as error:
            _log_kept(self.directory, error)
            return []
        going = expired(present, keep, times.now(), lambda backup: _reads(backup.path))
        return [backup for backup in going if self._delete(backup)]

    def leftovers(self) -> builtins.list[Path]:
        """Return what writers that were killed, or are at work just now, have not finished."""
        unfinished = (name for name in self._names() if name.endswith(".tmp"))
        return [self.directory / name for name in unfinished if self._parse(name[: -len(".tmp")])]

    def _delete(self, backup: Backup) -> bool:
        try:
            if not stat.S_ISREG(backup.path.lstat().st_mode):
                return False  # somebody's link or folder under a name like ours
            backup.path.unlink()
        except FileNotFoundError:
            return False  # another one that prunes was first
        except OSError as error:
            _log_kept(backup.path, error)
            return False
        logger.info(
            "backup deleted",
            extra={
                "path": str(backup.path),
                "revision": backup.revision,
                "reason": backup.reason,
                "age_days": (times.now() - backup.time) // _DAY,
            },
        )
        return True

    def _names(self) -> builtins.list[str]:
        try:
            return sorted(entry.name for entry in self.directory.iterdir())
        except FileNotFoundError:
            return []

    def _path(self, instant: int, reason: str, revision: int) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:40].strip("-") or "backup"
        stamp = durable.file_stamp(instant)
        return self.directory / f"{self._stem}-{stamp}-r{revision}-{slug}{self._suffix}"

    def _parse(self, name: str) -> Backup | None:
        match = self._name.fullmatch(name)
        if match is None:
            return None
        year, month, day, hour, minute, second, revision, reason = match.groups()
        try:
            instant = times.parse_instant(f"{year}-{month}-{day}T{hour}:{minute}:{second}")
        except ValueError:
            return None  # a month 13: not a name of ours
        return Backup(self.directory / name, instant, int(revision), reason)


def expired(
    backups: Iterable[Backup],
    keep: Retention,
    now: int,
    is_valid: Callable[[Backup], bool] = lambda _backup: True,
) -> list[Backup]:
    """Return the backups that need not be kept any longer, newest first.

    One goes only if it is older than ``keep_days`` and beyond the newest ``keep_last``. The newest
    valid one never goes, nor one made before a repair within ``keep_repairs_days``.

    Args:
        backups: in any order.
        now: an instant in nanoseconds. A backup from the future is young.
        is_valid: asked only if something is old enough to go.
    """
    newest_first = sorted(backups, key=_order, reverse=True)
    if not any(_is_old(backup, keep, now) for backup in newest_first):
        return []
    to_keep = max(keep.keep_last, 1)
    counted: list[Backup] = []
    going = []
    for backup in newest_first:
        if counted and counted[-1].time - backup.time <= _BURST:
            within_count = False  # the newest valid one of its burst stands for it
        elif len(counted) < to_keep and is_valid(backup):
            counted.append(backup)
            within_count = True
        else:
            within_count = len(counted) < to_keep
        if not within_count and _is_old(backup, keep, now):
            going.append(backup)
    return going


def copy_to(path: Path, data: bytes) -> Path:
    """Keep `data` under a name of the caller's choice; the folder has to be there.

    Raises:
        UsageError: the name is taken.
        BackupFailed: it could not be written, or did not read back as it was written.
    """
    try:
        durable.create_file(path, data)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is there already and is left alone; name a new file, or a folder"
        ) from error
    except SaveFailed as error:
        raise BackupFailed(path, f"no backup was made: {error}") from error
    _verify(path, data)
    return path


def read_valid(
    path: Path, on_refused: Callable[[Path, str], None]
) -> tuple[bytes, codec.Document] | None:
    """Return a file that may stand in for the state file; None if it is missing or refused.

    A file without a sum may (any older backup has none), one with a wrong sum may not.
    """
    try:
        data, _ = durable.read_file(path, codec.MAX_BYTES)
        document = codec.parse(data)
    except FileNotFoundError:
        return None
    except (codec.Damaged, codec.TooNew, durable.NotAFile, durable.TooLarge) as error:
        on_refused(path, str(error))
        return None
    except OSError as error:
        on_refused(path, f"cannot be read: {error.strerror}")
        return None
    if document.trust is codec.Trust.MISMATCH:
        on_refused(path, document.why)
        return None
    return data, document


def _verify(path: Path, data: bytes) -> None:
    try:
        found, _ = durable.read_file(path, len(data))
    except (OSError, durable.NotAFile, durable.TooLarge) as error:
        raise BackupFailed(path, f"backup {path} cannot be read back: {error}") from error
    if found != data:
        raise BackupFailed(
            path, f"backup {path} reads back other than it was written; look at the disk"
        )


def _order(backup: Backup) -> tuple[int, int]:
    return backup.time, backup.revision


def _is_old(backup: Backup, keep: Retention, now: int) -> bool:
    days = keep.keep_days
    if backup.reason in REPAIRS:
        days = max(days, keep.keep_repairs_days)
    return now - backup.time > days * _DAY


def _reads(path: Path) -> bool:
    return read_valid(path, lambda _path, _why: None) is not None


def _log_kept(path: Path, error: OSError) -> None:
    logger.warning("old backups not deleted", extra={"path": str(path), "why": error.strerror})
