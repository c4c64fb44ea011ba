"""The versions of a state that are at hand, and what differs between two of them. Reads only.

A version is one file: the state, its ``.bak``, a backup, or a damaged file that was moved aside; in
a database it is one revision (``former`` are those before the present one). What does not read is
listed with the reason, never raised and never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from statestore import times
from statestore.disk import codec, durable
from statestore.disk.checking import STATUS_OF
from statestore.errors import Place, StateCorrupt, StateError, StateInvalid, StateMissing

if TYPE_CHECKING:
    from statestore.disk.backups import Backups

Kind = Literal["state", "bak", "former", "backup", "quarantined"]
Status = Literal["good", "adopted", "mismatch", "damaged"]

_KINDS: tuple[Kind, ...] = ("state", "bak", "former", "backup", "quarantined")
_WHOLE = "*"
_MOMENT = 60 * times.NANOSECONDS


@dataclass(frozen=True, slots=True)
class Version:
    """One file that holds, or was meant to hold, a state.

    Attributes:
        time: when it was saved, an instant in nanoseconds. What does not say itself has the time in
            its name if it is a backup, else that of its last change.
        revision: None where it does not read.
        saved_for: the reason of the save.
        backup_reason: why the backup was made; empty for what is none.
        sha256: as `codec.Document.identity`; equal for equal contents.
        why: what is wrong with it.
    """

    path: Place
    kind: Kind
    status: Status
    time: int
    bytes: int
    revision: int | None = None
    saved_for: str = ""
    backup_reason: str = ""
    sha256: str = ""
    why: str = ""

    @property
    def valid(self) -> bool:
        return self.status in ("good", "adopted")


def versions_of_files(path: Path, backup_path: Path, backups: Backups) -> list[Version]:
    """Return every version of a state file that is at hand, newest first.

    Raises:
        StateMissing: there is none.
        StateError: a folder cannot be listed.
    """
    folder, name = path.parent, path.name
    try:
        beside = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise _not_listed(folder, error) from error
    found = [look_at_file(path, "state"), look_at_file(backup_path, "bak")]
    found += versions_of_backups(backups)
    found += [
        look_at_file(p, "quarantined") for p in beside if p.name.startswith(f"{name}.corrupt-")
    ]
    present = [version for version in found if version is not None]
    if not present:
        raise StateMissing(
            path,
            f"there is no {path}, no {backup_path.name} and no backup in "
            f"{backups.directory}; check the path",
        )
    return newest_first(present)


def versions_of_backups(backups: Backups) -> list[Version | None]:
    """Return the backups as versions, None for one that is gone by now.

    Raises:
        StateError: the folder cannot be listed.
    """
    try:
        listed = backups.list()
    except OSError as error:
        raise _not_listed(backups.directory, error) from error
    return [look_at_file(b.path, "backup", b.time, b.reason) for b in listed]


def newest_first(found: Sequence[Version]) -> list[Version]:
    """Return the versions in the order they are listed in."""
    return sorted((_dated(version, found) for version in found), key=_newest_first)


def _not_listed(folder: Path, error: OSError) -> StateError:
    return StateError(folder, f"cannot list {folder}: {error.strerror}; it has to be readable")


def of_revision(found: Sequence[Version], revision: int, path: Place) -> Version:
    """Return the newest valid version of a revision.

    Raises:
        StateMissing: it is not at hand; names what is.
        StateCorrupt: it is, but only in files that are not valid.
    """
    holding = [version for version in found if version.revision == revision]
    for version in holding:
        if version.valid:
            return version
    if holding:
        raise StateCorrupt(
            holding[0].path,
            f"revision {revision} is only in {holding[0].path}, which {holding[0].why}; "
            "`statestore history` lists what is at hand",
        )
    known = sorted({v.revision for v in found if v.valid and v.revision is not None})
    raise StateMissing(
        path,
        f"revision {revision} of {path} is not at hand; there are "
        f"{', '.join(map(str, known)) or 'no valid ones'} (`statestore history` says where)",
    )


def saved_by(found: Sequence[Version], instant: int, path: Place) -> Version:
    """Return the newest valid version that was saved at or before an instant.

    Raises:
        StateMissing: every one at hand is newer.
    """
    valid = [version for version in found if version.valid]
    for version in valid:
        if version.time <= instant:
            return version
    oldest = f"; the oldest is of {times.format_instant(valid[-1].time)}" if valid else ""
    raise StateMissing(
        path,
        f"no version of {path} saved at or before {times.format_instant(instant)} is at "
        f"hand{oldest} (`statestore history` lists them)",
    )


def read_document(path: Path) -> codec.Document:
    """Return what a file holds, whether its sum is right or not (`codec.Document.why` says).

    Raises:
        StateMissing: it is not there.
        StateCorrupt: it does not read as a state.
        StateInvalid: written by a newer version.
        StateError: it may not be read.
    """
    try:
        data, _ = durable.read_file(path, codec.MAX_BYTES)
        return codec.parse_whole(data)
    except FileNotFoundError as error:
        raise StateMissing(path, f"there is no {path}; check the path") from error
    except codec.TooNew as error:
        raise StateInvalid(path, f"{path} {error}; upgrade statestore") from error
    except (codec.Damaged, durable.NotAFile, durable.TooLarge) as error:
        raise StateCorrupt(
            path, f"{path} {error}; `statestore history` lists what else is at hand"
        ) from error
    except OSError as error:
        raise StateError(path, f"cannot read {path}: {error.strerror}") from error


def differences(before: codec.Document | None, after: codec.Document) -> dict[str, Any]:
    """Return what changed, as it is reported: by value, so that 1.50 and 1.5 do not differ.

    Args:
        before: None where nothing readable was there.

    Returns:
        ``different``: whether anything did. ``positions``: entries ``added`` and ``removed``, and
        per ``changed`` entry its fields with ``before`` and ``after``, either absent where the
        field is (a field ``*`` stands for an entry that is no object). ``sections``: for each, in
        the order of the file, ``change`` (added, removed, changed, same) and its length in bytes.
    """
    old = before.sections if before else {}
    new = after.sections
    names = [*new, *(name for name in old if name not in new)]
    sections = [_section(name, old.get(name), new.get(name)) for name in names]
    return {
        "different": any(section["change"] != "same" for section in sections),
        "positions": _positions(_value(old.get("positions")), _value(new.get("positions"))),
        "sections": sections,
    }


def changed_sections(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the sections that differ."""
    return [part["section"] for part in report["sections"] if part["change"] != "same"]


def look_at_file(
    path: Path, kind: Kind, made: int | None = None, why_made: str = ""
) -> Version | None:
    """Return a file as a version; None if it is not there.

    Args:
        made: when, by its name; unless given, by its mtime.
        why_made: of a backup.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        return Version(path, kind, "damaged", made or 0, 0, backup_reason=why_made, why=why)
    time = status.st_mtime_ns if made is None else made
    try:
        document = read_document(path)
    except StateMissing:
        return None
    except StateError as error:
        why = str(error.__cause__ or error)
        if isinstance(error.__cause__, OSError):
            why = f"cannot be read: {error.__cause__.strerror}"
        size = status.st_size
        return Version(path, kind, "damaged", time, size, backup_reason=why_made, why=why)
    return version_of(path, kind, document, status.st_size, time, why_made)


def version_of(
    path: Place, kind: Kind, document: codec.Document, size: int, time: int, why_made: str = ""
) -> Version:
    """Return a document that reads as a version; `time` counts where it does not say itself."""
    meta = document.meta or codec.Meta()
    return Version(
        path,
        kind,
        STATUS_OF[document.trust],
        _instant(meta.saved_at, time),
        size,
        revision=document.revision,
        saved_for=meta.reason,
        backup_reason=why_made,
        sha256=document.identity,
        why=document.why,
    )


def _dated(version: Version, others: Sequence[Version]) -> Version:
    """Return a backup of a file that does not say when it was saved as older than what replaced it.

    Such a backup is made under the lock of the save that replaces the file, so its name carries a
    time a moment after that save's.
    """
    if version.kind != "backup" or version.status != "adopted":
        return version
    replaced = [
        other.time - 1
        for other in others
        if other.revision and 0 <= version.time - other.time < _MOMENT
    ]
    return replace(version, time=min([version.time, *replaced]))


def _instant(saved_at: str, otherwise: int) -> int:
    try:
        return times.parse_instant(saved_at)
    except ValueError:
        return otherwise


def _newest_first(version: Version) -> tuple[int, int, int]:
    revision = -1 if version.revision is None else version.revision
    return -version.time, -revision, _KINDS.index(version.kind)


def _section(name: str, old: bytes | None, new: bytes | None) -> dict[str, Any]:
    if old is None:
        change = "added"
    elif new is None:
        change = "removed"
    else:
        same = old == new or same_value(_value(old), _value(new))
        change = "same" if same else "changed"
    sizes = {"bytes_before": len(old or b""), "bytes_after": len(new or b"")}
    return {"section": name, "change": change, **sizes}


def _positions(old: Any, new: Any) -> dict[str, dict[str, Any]]:
    old, new = (part if isinstance(part, dict) else {} for part in (old, new))
    changed = {key: _fields(old[key], new[key]) for key in new if key in old}
    return {
        "added": {key: entry for key, entry in new.items() if key not in old},
        "removed": {key: entry for key, entry in old.items() if key not in new},
        "changed": {key: fields for key, fields in changed.items() if fields},
    }


def _fields(old: Any, new: Any) -> dict[str, dict[str, Any]]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        old, new = {_WHOLE: old}, {_WHOLE: new}
    found = {}
    for name in [*new, *(name for name in old if name not in new)]:
        if name in old and name in new and same_value(old[name], new[name]):
            continue
        sides = (("before", old), ("after", new))
        found[name] = {side: entry[name] for side, entry in sides if name in entry}
    return found


def _value(raw: bytes | None) -> Any:
    return None if raw is None else codec.decode_section(raw, "decimal")


def same_value(old: Any, new: Any) -> bool:
    """Return whether two JSON values are equal; numbers by value, and true is no 1."""
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same_value(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same_value, old, new))
    return bool(old == new)
