"""Finding the state: the state file, else ``.bak``, else the newest valid backup. Writes nothing.

What is promised:

* the last acknowledged save is found, or a newer attempted one, while writers go on writing: no
  lock is taken, and a reader that is overtaken does not mistake an older file for the state;
* of the state file and a ``.bak`` of higher revision the higher one is believed, since a file
  system may lose a rename;
* a file that is there but does not read is never answered with "nothing is there";
* a file that was read or saved once is known again by one stat (`Reader.still_stands`): no save
  has the mtime of the file it replaced (`statestore.disk.durable`), and a file that was read
  within a tick of its change is compared byte for byte when it is asked about. What one stat can
  hide is an edit in place, of equal length, by another program, within the tick after our save.

What is found is said in a `Found`, or raised; what to tell the operator is the store's to decide.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from statestore import times
from statestore.disk import codec, durable
from statestore.disk.backups import Backups, read_valid
from statestore.errors import (
    Place,
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateMissing,
)

OnMismatch = Literal["refuse", "warn", "fallback"]

# Two changes within one tick of the clock have one timestamp. Some file systems have a clock of
# their own (FAT: 2 s), known by its round figures.
_CLOCK_TICK_NS = durable.CLOCK_TICK_NS
_COARSE_TICK_NS = 2 * times.NANOSECONDS
_COARSE_FIGURE_NS = 10_000_000

_Signature = tuple[int, int, int, int, int]
_UNREADABLE: _Signature = (-1, -1, -1, -1, -1)


@dataclass(slots=True)
class Found:
    """What was found on disk at one moment.

    Attributes:
        signature: of the state file; None if it is missing.
        document: the state; None if there is none, or (`why` says so) none that reads.
        data: the bytes of the document's file, where it was read.
        source: the document's file; its address where it is in a database.
        why: what is wrong with the state file; None if nothing is.
        settled: no change since can hide behind an equal signature.
    """

    signature: _Signature | None
    source: Place
    document: codec.Document | None = None
    data: bytes = b""
    why: str | None = None
    settled: bool = False

    @classmethod
    def just_written(
        cls, path: Path, status: os.stat_result, document: codec.Document, data: bytes | bytearray
    ) -> Self:
        """Return what stands on disk after a save, without reading it."""
        signature = _signature(status)
        if _is_coarse(signature):
            return cls(signature, path, document, bytes(data))
        return cls(signature, path, document, settled=True)

    @property
    def revision(self) -> int:
        return self.document.revision if self.document else 0

    @property
    def identity(self) -> str:
        return self.document.identity if self.document else ""

    @property
    def readable(self) -> bool:
        """The state file itself holds the document, and nothing speaks against it."""
        return (
            self.document is not None
            and self.why is None
            and self.document.trust is not codec.Trust.MISMATCH
        )

    @property
    def sealed(self) -> bool:
        return (
            self.readable
            and self.document is not None
            and self.document.trust is codec.Trust.SEALED
        )

    def age_seconds(self) -> float | None:
        """Return how long ago the document was saved, by itself or else by its file."""
        meta = self.document.meta if self.document else None
        with suppress(ValueError, OSError):
            if meta and meta.saved_at:
                saved = times.parse_instant(meta.saved_at)
            elif isinstance(self.source, Path):
                saved = self.source.stat().st_mtime_ns
            else:
                return None
            return round((times.now() - saved) / times.NANOSECONDS, 3)
        return None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one state."""

    path: Path
    backup_path: Path
    backups: Backups
    name: str  # of `path`, which costs more to look at than a text

    def find(self, on_mismatch: OnMismatch) -> Found:
        """Return the state; without document if there is no file of it at all.

        Raises:
            StateCorrupt: something is there, but nothing that reads.
            StateChecksumMismatch: the sum of the state file is wrong, and is to be refused.
            StateInvalid: written by a newer version.
            StateError: it may not be read.
        """
        while True:
            found = self._look(on_mismatch)
            # A fallback is believed only if the state file still is what it was refused for:
            # a writer may have put it right (or made it) while the fallback was read.
            if found.why is None or _signature_of(self.path) == found.signature:
                return found

    def state_file(self) -> Found:
        """Return the state file alone. Missing: no document and no `why`; damaged: a `why`."""
        started = time.time_ns()
        found = Found(_signature_of(self.path), self.path)
        try:
            found.data, status = durable.read_file(self.path, codec.MAX_BYTES)
            found.signature = _signature(status)
            found.settled = _has_settled(found.signature, started)
            found.document = codec.parse(found.data)
        except FileNotFoundError:
            return Found(None, self.path)
        except (codec.Damaged, durable.TooLarge) as error:
            found.why = str(error)
        except codec.TooNew as error:
            raise StateInvalid(self.path, f"{self.path} {error}; upgrade statestore") from error
        except durable.NotAFile as error:
            raise StateCorrupt(
                self.path, f"{self.path} {error}; name the state file, or move this away"
            ) from error
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector is damage; the rest is not about content
                raise StateError(
                    self.path,
                    f"cannot read {self.path}: {error.strerror}; it has to be readable for user "
                    f"{os.geteuid()}",
                ) from error
            found.why = f"cannot be read: {error.strerror}"
        return found

    def still_stands(self, found: Found) -> bool:
        """Return whether the state file still is the one that was found."""
        signature = _signature_of(self.name)
        if signature != found.signature:
            return False
        if found.settled or signature is None:
            return True
        if not found.readable:
            return False
        started = time.time_ns()
        try:
            data, status = durable.read_file(self.path, codec.MAX_BYTES)
        except (OSError, durable.NotAFile, durable.TooLarge):
            return False
        if data != found.data or _signature(status) != signature:
            return False
        found.settled = _has_settled(signature, started)
        return True

    def missing(self) -> StateMissing:
        return StateMissing(
            self.path,
            f"there is no {self.path}, no {self.backup_path.name} and no backup in "
            f"{self.backups.directory}; check the path, or begin with `statestore restore --empty`",
        )

    def corrupt(self, refused: Mapping[Path, str]) -> StateCorrupt:
        return nothing_reads(self.path, refused)

    def _look(self, on_mismatch: OnMismatch) -> Found:
        # Before the state file: what is `.bak` now was the state file before, so a state file
        # that is opened later has at least its revision, whatever writers do in between.
        ahead = peek_revision(self.backup_path)
        found = self.state_file()
        document = found.document
        if document is None:
            return self._fall_back(found, found.why)
        if document.trust is codec.Trust.ADOPTED and ahead:
            # Not the file as it was before its first save: that is long gone.
            why = lost_meta(self.backup_path, ahead)
            document = found.document = document.distrusted(why)
        if document.trust is codec.Trust.MISMATCH:
            if on_mismatch == "refuse":
                raise self._mismatch(document)
            if on_mismatch == "warn":
                return found
            return self._fall_back(found, document.why)
        if document.revision < ahead:
            higher = read_valid(self.backup_path, lambda _path, _why: None)
            if higher is not None and higher[1].revision > document.revision:
                why = fell_behind(document.revision, self.backup_path, higher[1].revision)
                return replace(
                    found, document=higher[1], data=higher[0], source=self.backup_path, why=why
                )
        return found

    def _fall_back(self, primary: Found, why: str | None) -> Found:
        """Return what stands in for a state file that is missing, or that `why` speaks against."""
        refused = {} if why is None else {self.path: why}
        valid = read_valid(self.backup_path, refused.__setitem__)
        source = self.backup_path
        if valid is None:
            try:
                newest = self.backups.newest_valid(refused.__setitem__)
            except OSError as error:
                refused[self.backups.directory] = f"cannot be listed: {error.strerror}"
                newest = None
            if newest is not None:
                source, valid = newest[0].path, newest[1:]
        if valid is not None:
            data, document = valid
            return replace(
                primary, document=document, data=data, source=source, why=why or "is missing"
            )
        if refused:
            raise self.corrupt(refused)
        return primary

    def _mismatch(self, document: codec.Document) -> StateChecksumMismatch:
        return StateChecksumMismatch(
            self.path,
            f"{self.path} {document.why}: it was edited by hand, written by another program, or "
            "damaged. `statestore seal` accepts it as it is, `statestore restore` takes "
            f"{self.backup_path.name} or a backup",
        )


def lost_meta(backup_path: Path, ahead: int) -> str:
    """Return what is wrong with a state without ``_meta`` that has a saved one behind it."""
    return f"has no {codec.META}, although {backup_path.name} is at revision {ahead}"


def fell_behind(revision: int, backup_path: Path, ahead: int) -> str:
    """Return what is wrong with a state that is older than the one behind it."""
    return (
        f"is at revision {revision}, older than {backup_path.name} at {ahead}; the file system "
        "lost a rename, or an older file was put in its place (`statestore seal` accepts that)"
    )


def nothing_reads(path: Place, refused: Mapping[Path, str] | Mapping[Place, str]) -> StateCorrupt:
    """Return the error for a state of which neither itself nor a copy reads, with each reason."""
    found = "; ".join(f"{place} {why}" for place, why in refused.items())
    return StateCorrupt(
        path,
        f"no state can be read: {found}. Nothing was changed. Put a good copy back with "
        "`statestore restore --file FILE` (`statestore history` lists what is at hand), or "
        "begin again with `statestore restore --empty` and a rebuild",
    )


def peek_revision(path: Path) -> int:
    """Return the revision in a file's first line, unverified; 0 if there is none to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return codec.peek_revision(os.read(descriptor, codec.HEAD_BYTES)) or 0
    except OSError:
        return 0
    finally:
        durable.close_quietly(descriptor)


def _signature(status: os.stat_result) -> _Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _signature_of(path: str | Path) -> _Signature | None:
    try:
        return _signature(os.stat(path))  # noqa: PTH116  # called for every save and every poll
    except FileNotFoundError:
        return None
    except OSError:
        return _UNREADABLE


def _has_settled(signature: _Signature, read_at: int) -> bool:
    """Return whether a change after `read_at` is sure to show in the signature ("racily clean")."""
    tick = _COARSE_TICK_NS if _is_coarse(signature) else _CLOCK_TICK_NS
    return read_at - signature[4] > tick


def _is_coarse(signature: _Signature) -> bool:
    return signature[4] % _COARSE_FIGURE_NS == 0
