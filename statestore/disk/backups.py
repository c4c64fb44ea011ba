"""Timestamped copies of one state file: ``state-20251120T100000.123456Z-r42-manual.json``.

A backup is byte for byte what it was given, written durably under a name nothing else has, and
read back before `Backups.write` returns. Names carry time, revision and reason, so a listing needs
to open nothing. State files of different names may share a folder; two of the same name may not,
since a backup does not say which folder its state came from.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from statestore import times
from statestore.disk import codec, durable
from statestore.errors import BackupFailed, SaveFailed

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
        self._verify(path, data)
        return path

    def list(self) -> list[Backup]:
        """Return the backups, newest first by the time in their names.

        Raises:
            OSError: the folder is there, but cannot be listed.
        """
        backups = [backup for name in self._names() if (backup := self._parse(name))]
        return sorted(backups, key=lambda backup: (backup.time, backup.revision), reverse=True)

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

    def leftovers(self) -> builtins.list[Path]:
        """Return what writers that were killed, or are at work just now, have not finished."""
        unfinished = (name for name in self._names() if name.endswith(".tmp"))
        return [self.directory / name for name in unfinished if self._parse(name[: -len(".tmp")])]

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

    def _verify(self, path: Path, data: bytes) -> None:
        try:
            found, _ = durable.read_file(path, len(data))
        except (OSError, durable.NotAFile, durable.TooLarge) as error:
            raise BackupFailed(path, f"backup {path} cannot be read back: {error}") from error
        if found != data:
            raise BackupFailed(
                path, f"backup {path} reads back other than it was written; look at the disk"
            )


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
