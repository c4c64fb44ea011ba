"""``statestore restore``: put a backup in place of the state."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from statestore.cli.differences import preview, show_differences
from statestore.cli.exits import EPILOG
from statestore.cli.guarded import called_now, present, replace_state, retention
from statestore.cli.options import (
    Version,
    allow_live_option,
    backup_dir_option,
    dry_run_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.cli.versions import At, Pick
from statestore.config import load_settings, places
from statestore.disk.codec import META, Document
from statestore.disk.history import differences
from statestore.disk.store import StateStore
from statestore.errors import (
    Place,
    StateChecksumMismatch,
    StateCorrupt,
    StateInvalid,
    StateMissing,
    UsageError,
)
from statestore.urls import StateUrl

# Top-level keys by which exports, and backups of other programs, are known.
_FOREIGN = ("backup_timestamp", "exported_at")


@click.command("restore", epilog=EPILOG)
@state_option
@click.option(
    "--file",
    "file",
    type=Version(),
    help="What to restore, a file or what history lists.  [default: the state's .bak]",
)
@click.option("--at", type=At(), help="What to restore: a revision; or the newest before a time.")
@click.option("--empty", is_flag=True, help="An empty state, where nothing reads any more.")
@dry_run_option
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def command(
    state: Path | StateUrl | None,
    file: Place | None,
    at: Pick | None,
    empty: bool,
    dry_run: bool,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> None:
    """Save what a backup holds as the next revision of the state.

    The present state is backed up first, so that "statestore undo" takes this back, and becomes
    .bak; if it is not good it is moved aside. Nothing is deleted. "statestore history" lists what
    there is to restore; --dry-run shows what would change and writes nothing. A file without _meta
    is restored if it looks like a state: with positions, or mostly the sections of the present one.

    --empty begins again where neither the state nor a copy reads; what fills explain comes
    back by a rebuild.
    """
    if empty + (file is not None) + (at is not None) > 1:
        raise UsageError("--empty, --file and --at are different states; name one")
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    if empty:
        _require_unreadable(store)
    if at is not None:
        file = at(store).path
    origin = _empty_state() if empty else file or store.backup_path
    called = "empty" if empty else str(origin)
    wanted = store.read(origin)
    if wanted.why:
        raise StateCorrupt(origin, f"{origin} {wanted.why}; restore from another backup")
    before, why = present(store)
    ours = _is_ours(store, origin)
    if wanted.meta is None and not ours:
        _refuse_foreign(origin, wanted, before, store.path)
    report = differences(before, wanted)
    show_differences(report, called_now(store, why), called)
    if dry_run:
        preview("restore", store, report, {"from": called, "present_is_not_good": why or None})
        return
    replace_state(
        "restore",
        store,
        where,
        lambda check: store.restore(origin, before_commit=check),
        keep=retention(settings),
        allow_live=allow_live,
        ask="" if yes else f"Replace {store.path} by {called}?",
        facts={"from": called},
        told={"from": called},
    )


def _is_ours(store: StateStore, origin: Place) -> bool:
    """Whether a version was made by this store, so that nothing has to vouch for its shape."""
    if not isinstance(origin, Path) or not isinstance(store.backup_path, Path):
        return not isinstance(origin, Path) or store.backups.hold(origin)
    return origin.resolve() == store.backup_path.resolve() or store.backups.hold(origin)


def _empty_state() -> Path:
    """Return a file that holds an empty state, there until the command ends."""
    folder = click.get_current_context().with_resource(tempfile.TemporaryDirectory())
    path = Path(folder, "an empty state")
    path.write_text('{"positions": {}}')
    return path


def _require_unreadable(store: StateStore) -> None:
    """Raise `UsageError` where something reads: an empty state would be the loss of it."""
    try:
        found = store.load(missing_ok=False)
    except StateChecksumMismatch:
        raise
    except (StateCorrupt, StateMissing):
        return
    where = found.meta.recovered_from or store.path
    raise UsageError(
        f"{where} reads, so nothing has to begin again; rebuild_positions repairs its positions"
    )


def _refuse_foreign(path: Place, wanted: Document, before: Document | None, state: Place) -> None:
    """Raise `StateInvalid` where a file without ``_meta`` is JSON, but plainly no state.

    Restored, an export or somebody's settings would be a state in which nothing is held.

    Args:
        before: the present state; None where nothing reads.
    """
    foreign = [name for name in _FOREIGN if name in wanted.sections]
    if foreign:
        raise StateInvalid(
            path,
            f"{path} is an export, or a backup of another program ({', '.join(foreign)}), not a "
            f"state; `statestore import {path}` brings in what it holds",
        )
    if not _looks_like_a_state(wanted.sections, before.sections if before else {}):
        names = list(wanted.sections)
        found = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        raise StateInvalid(
            path,
            f"{path} has no {META} and does not look like a state: it has {found or 'nothing'}; "
            f"expected are positions (an object), or mostly the sections of {state}. If it is this "
            f"bot's state, copy it over {state} and run `statestore seal`",
        )


def _looks_like_a_state(wanted: Mapping[str, bytes], present: Mapping[str, bytes]) -> bool:
    held = wanted.get("positions")
    if held is not None:
        return held[:1] in (b"{", present.get("positions", b"")[:1])
    shared = wanted.keys() & present.keys()
    # Not one of them: any program may have a version, or a config.
    return 0 < len(wanted) <= 2 * len(shared)
