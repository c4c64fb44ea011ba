"""``statestore diff``: what differs between two versions of the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from statestore.cli.differences import show_differences
from statestore.cli.exits import EPILOG, UNPROVEN
from statestore.cli.options import (
    FILE,
    backup_dir_option,
    place_of,
    state_of_plan,
    state_option,
)
from statestore.cli.output import note, print_json
from statestore.cli.versions import path_of
from statestore.config import load_settings, places
from statestore.disk.codec import Document, parse, to_json
from statestore.disk.history import differences
from statestore.disk.store import StateStore
from statestore.errors import Place, UsageError
from statestore.urls import StateUrl


@click.command("diff", epilog=EPILOG)
@click.argument("before", metavar="[A]", default=".bak")
@click.argument("after", metavar="[B]", default="state")
@state_option
@backup_dir_option
@click.option(
    "--plan",
    type=FILE,
    help="From the state to what this plan (rebuild --out) makes of it, instead of A and B.",
)
@click.option("--exit-code", is_flag=True, help="Exit 3 when they differ.")
def command(
    before: str,
    after: str,
    state: Path | StateUrl | None,
    backup_dir: Path | None,
    plan: Path | None,
    exit_code: bool,
) -> int:
    """Show what changed from A to B, per position and per section. Reads only.

    Each is a revision, a time (the newest version saved at or before it), a file, ".bak" or
    "state". Without any: from .bak to the state. Numbers are compared by value. A file whose
    checksum is wrong is compared as well, to show what was edited.
    """
    if plan is not None:
        report = _with_plan(plan, state)
        return UNPROVEN if exit_code and report["different"] else 0
    where = places(load_settings(), state=state, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    paths = path_of(store, before), path_of(store, after)
    old, new = (store.read(path) for path in paths)
    for path, document in zip(paths, (old, new), strict=True):
        if b'"statestore-export/' in document.sections.get("format", b""):
            raise UsageError(
                f"{path} is an export; `statestore import {path} --verify` compares it"
            )
        if document.why:
            note(f"Warning: {path} {document.why}")
    report = differences(old, new)
    show_differences(report, *map(_named, paths, (old, new)))
    print_json({"before": _about(paths[0], old), "after": _about(paths[1], new), **report})
    return UNPROVEN if exit_code and report["different"] else 0


def _with_plan(path: Path, state: Path | StateUrl | None) -> dict[str, Any]:
    """Show what a plan would change.

    Raises:
        PlanStale: the state is no longer the one the plan was made for.
    """
    from statestore.repair.planfile import load_plan, positions_after
    from statestore.repair.staleness import require_state

    saved = load_plan(path, place_of(state))
    store = StateStore(state_of_plan(saved.state_path, state, load_settings()))
    sections = store.load(numbers="decimal", missing_ok=False)
    require_state(saved, sections.meta)
    after = {**sections, "positions": positions_after(saved, sections.get("positions", {}))}
    report = differences(parse(to_json(sections)), parse(to_json(after)))
    show_differences(report, f"{store.path} (revision {sections.meta.revision})", str(path))
    about = {"path": str(store.path), "revision": sections.meta.revision}
    print_json({"before": about, "after": {"plan": str(path), "sha256": saved.sha256}, **report})
    return report


def _named(path: Place, document: Document) -> str:
    return f"{path} (revision {document.revision})"


def _about(path: Place, document: Document) -> dict[str, Any]:
    meta = document.meta
    return {
        "path": str(path),
        "revision": document.revision,
        "saved_at": meta.saved_at if meta else None,
        "saved_for": meta.reason if meta else None,
        "sha256": document.identity,
        "why": document.why,
    }
