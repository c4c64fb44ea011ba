"""What differs between two versions of a state, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statestore.cli.output import note, print_json
from statestore.cli.screen import tell
from statestore.disk.codec import to_json
from statestore.disk.store import StateStore

_WIDEST = 60


def show_differences(report: Mapping[str, Any], before: str, after: str) -> None:
    """Print on stderr what `statestore.disk.history.differences` found."""
    note(f"From {before} to {after}:" if report["different"] else f"No difference to {after}.")
    if not report["different"]:
        return
    positions = report["positions"]
    for key, entry in positions["removed"].items():
        tell(f"  - {key}  {_entry(entry)}", err=True, fg="red")
    for key, entry in positions["added"].items():
        tell(f"  + {key}  {_entry(entry)}", err=True, fg="green")
    for key, fields in positions["changed"].items():
        for name, sides in fields.items():
            before, after = (_side(sides, side) for side in ("before", "after"))
            tell(f"  ~ {key}.{name}  {before} -> {after}", err=True, fg="yellow")
    for part in report["sections"]:
        if part["change"] != "same":
            sizes = f"{part['bytes_before']} -> {part['bytes_after']} bytes"
            note(f"  section {part['section']} {part['change']}: {sizes}")
    same = [part["section"] for part in report["sections"] if part["change"] == "same"]
    if same:
        note(f"  unchanged: {', '.join(same)}")


def preview(
    action: str, store: StateStore, report: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Print what a dry run would have done."""
    note("Dry run: nothing was written.")
    print_json(
        {
            "action": action,
            "dry_run": True,
            "path": str(store.path),
            "revision": store.revision,
            **facts,
            "difference": report,
        }
    )


def _entry(entry: object) -> str:
    if not isinstance(entry, dict):
        return _short(entry)
    shown = ("side", "quantity", "units", "entry_price")
    known = [f"{name} {_short(entry[name])}" for name in shown if name in entry]
    return " ".join(known) or _short(entry)


def _side(sides: Mapping[str, Any], side: str) -> str:
    return _short(sides[side]) if side in sides else "absent"


def _short(value: object) -> str:
    text = to_json(value, indent=None).decode()
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"
