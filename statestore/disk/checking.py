"""What stands in the folder of a state file, file by file, for an operator. Reads only.

Nothing here decides which file is the state: that is `statestore.disk.reading`. A file that does
not read is reported, never raised; only a folder that cannot be listed is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from statestore import times
from statestore.disk import codec, durable, surroundings
from statestore.disk.backups import Backups
from statestore.disk.locks import holder_since
from statestore.disk.reading import fell_behind, lost_meta
from statestore.errors import Place

# What is said of a document that reads.
STATUS_OF: Mapping[codec.Trust, Literal["good", "adopted", "mismatch"]] = {
    codec.Trust.SEALED: "good",
    codec.Trust.ADOPTED: "adopted",
    codec.Trust.MISMATCH: "mismatch",
}


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file as `StateStore.check` found it."""

    path: Place
    status: Literal["good", "adopted", "mismatch", "damaged", "missing"]
    revision: int | None = None
    saved_at: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What stands in the folder of a state file.

    Attributes:
        leftovers: temporary files of writers that were killed. The next save takes those beside
            the state file away; those of a backup stay, and may be deleted.
        lock_holder: process id, None if nobody saves at this instant or the system does not say.
        lock_holder_since: since when that process runs, RFC 3339 in UTC.
        lease: ``pid``, ``host`` and ``since`` of the running bot, None if there is none.
        file_system: that the state is on, ``nfs4`` for example.
    """

    state: FileReport
    bak: FileReport
    backups: list[FileReport]
    quarantined: list[Path]
    leftovers: list[Path]
    lock_holder: int | None
    lock_holder_since: str | None
    lease: dict[str, Any] | None
    file_system: str

    @property
    def ok(self) -> bool:
        """The state file is good, and so is what stands behind it."""
        behind = [self.bak, *self.backups]
        return self.state.status in ("good", "adopted") and all(
            report.status in ("good", "adopted", "missing") for report in behind
        )


def check_files(
    path: Path,
    backup_path: Path,
    backups: Backups,
    *,
    lock_holder: int | None,
    lease: dict[str, Any] | None,
) -> CheckReport:
    """Look at every file of one state.

    Args:
        lock_holder: asked before the files are looked at, since a temporary file of a writer at
            work is not a leftover.
    """
    folder, name = path.parent, path.name
    beside = sorted(folder.iterdir()) if folder.is_dir() else []
    leftovers = [p for p in beside if p.name.startswith(name) and p.name.endswith(".tmp")]
    leftovers += backups.leftovers()
    bak = check_file(backup_path)
    return CheckReport(
        state=_beside(check_file(path), bak),
        bak=bak,
        backups=[check_file(backup.path) for backup in backups.list()],
        quarantined=[p for p in beside if p.name.startswith(f"{name}.corrupt-")],
        leftovers=[] if lock_holder else leftovers,
        lock_holder=lock_holder,
        lock_holder_since=holder_since(lock_holder) if lock_holder else None,
        lease=lease,
        file_system=surroundings.file_system_of(path),
    )


def _beside(state: FileReport, bak: FileReport) -> FileReport:
    """Return what a state file is with that ``.bak`` behind it: good alone may not be good."""
    if bak.status != "good" or not bak.revision or state.revision is None:
        return state
    if state.status == "adopted":
        why = lost_meta(Path(bak.path), bak.revision)
    elif state.status == "good" and state.revision < bak.revision:
        why = fell_behind(state.revision, Path(bak.path), bak.revision)
    else:
        return state
    return replace(state, status="mismatch", why=why)


def check_file(path: Path) -> FileReport:
    """Look at one file as a state."""
    try:
        data, _ = durable.read_file(path, codec.MAX_BYTES)
    except FileNotFoundError:
        return FileReport(path, "missing")
    except (durable.NotAFile, durable.TooLarge) as error:
        return FileReport(path, "damaged", why=str(error))
    except OSError as error:
        return FileReport(path, "damaged", why=f"cannot be read: {error.strerror}")
    return check_text(path, data)


def check_text(path: Place, data: bytes) -> FileReport:
    """Look at one text as a state."""
    try:
        document = codec.parse_whole(data)
    except (codec.Damaged, codec.TooNew) as error:
        return FileReport(path, "damaged", why=str(error))
    saved_at = document.meta.saved_at if document.meta else ""
    return FileReport(path, STATUS_OF[document.trust], document.revision, saved_at, document.why)


def saved_at(report: FileReport) -> int | None:
    """Return when a file was saved: by itself, else by its mtime; None where neither tells."""
    if report.status not in ("good", "adopted", "mismatch"):
        return None
    with suppress(ValueError, OSError):
        if report.saved_at:
            return times.parse_instant(report.saved_at)
        return Path(report.path).stat().st_mtime_ns
    return None
