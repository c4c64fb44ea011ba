"""How commands are told which version of a state is meant, and how they say which it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from statestore.disk.history import Version, of_revision, saved_by
from statestore.disk.store import StateStore
from statestore.errors import Place, UsageError
from statestore.times import format_instant, parse_instant

_NEITHER = "neither a revision nor an RFC 3339 time with a zone, as 2025-11-18T04:29:43Z"
_REVISION = re.compile(r"[0-9]{1,18}", re.ASCII)

Pick = Callable[[StateStore], Version]


class At(click.ParamType[Pick]):
    """A revision, or an RFC 3339 time: then the newest version saved at or before it."""

    name = "REV|TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> Pick:
        pick = value if callable(value) else _picked(value)
        if pick is None:
            self.fail(f"{value!r} is {_NEITHER}", param, ctx)
        return pick


def path_of(store: StateStore, named: str) -> Place:
    """Return where it is that ``state``, ``.bak``, a revision, a time or a path names.

    A version in a database is named by its address, as ``statestore history`` lists it.

    A file whose name is a number is named as ``./42``.

    Raises:
        UsageError: it names nothing.
        StateMissing, StateCorrupt: as `of_revision` and `saved_by`.
    """
    if named == "state":
        return store.path
    if named in (".bak", "bak"):
        return store.backup_path
    pick = _picked(named)
    if pick is not None:
        return pick(store).path
    if named.partition("#")[0] == str(store.path):
        return named
    if not Path(named).exists():
        raise UsageError(f"{named!r} is {_NEITHER}, and there is no file of that name")
    return Path(named)


def _picked(value: str) -> Pick | None:
    if _REVISION.fullmatch(value):
        return lambda store: of_revision(store.versions(), int(value), store.path)
    try:
        instant = parse_instant(value)
    except ValueError:
        return None
    return lambda store: saved_by(store.versions(), instant, store.path)


def described(version: Version) -> str:
    """Return what to call a version in a note."""
    if version.revision is None:
        return f"{version.path} ({version.why})"
    saved_for = f", {version.saved_for}" if version.saved_for else ""
    return (
        f"{version.path} (revision {version.revision}, {format_instant(version.time)}{saved_for})"
    )


def as_json(version: Version) -> dict[str, object]:
    return {
        "path": str(version.path),
        "kind": version.kind,
        "revision": version.revision,
        "time": format_instant(version.time),
        "saved_for": version.saved_for,
        "backup_reason": version.backup_reason,
        "bytes": version.bytes,
        "sha256": version.sha256,
        "status": version.status,
        "valid": version.valid,
        "why": version.why,
    }
