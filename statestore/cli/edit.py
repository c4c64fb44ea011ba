"""``statestore edit``: change the state by hand, in an editor, safely."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from statestore.cli.differences import show_differences
from statestore.cli.exits import EPILOG
from statestore.cli.guarded import replace_state, retention
from statestore.cli.options import (
    allow_live_option,
    backup_dir_option,
    kill_switch_option,
    state_option,
    yes_option,
)
from statestore.cli.output import note, print_json
from statestore.config import editor, load_settings, places
from statestore.disk import codec, durable
from statestore.disk.history import changed_sections, differences
from statestore.disk.store import State, StateStore
from statestore.errors import StateInvalid, UsageError
from statestore.repair.entries import read_entries, recorded_of
from statestore.repair.rebuild import halted
from statestore.urls import StateUrl


@click.command("edit", epilog=EPILOG)
@state_option
@click.option("--section", help="Only this section of it.")
@kill_switch_option
@backup_dir_option
@allow_live_option
@yes_option
def command(
    state: Path | StateUrl | None,
    section: str | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    allow_live: bool,
    yes: bool,
) -> None:
    """Open the state in $VISUAL or $EDITOR, as a private copy, and save what became of it.

    What is saved is valid, shown first, backed up, recorded, and undone by "statestore undo". If
    anything else saved meanwhile, nothing is written (exit 9) and the edited copy is kept; so it
    is if it is not valid JSON. A copy that was not changed, or an editor that fails, changes
    nothing.
    """
    settings = load_settings()
    where = places(settings, state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    store = StateStore(where.state, backup_dir=where.backup_dir)
    halted(store.kill_switch(where.kill_switch), allow_live=allow_live)()  # before any work is done
    found = store.load(numbers="decimal", missing_ok=False)
    if found.meta.recovered_from is not None:
        note(f"Warning: {store.path} {found.meta.recovered_why}; read from {found.meta.path}")
    if section is not None and section not in found:
        raise click.BadParameter(f"the state has {', '.join(found)}", param_hint="--section")
    with _copy(found if section is None else found[section]) as copy:
        edited = _edited(found, section, copy)
        before, after = _document(found), _document(edited)
        report = differences(before, after)
        if not report["different"]:
            note(
                "Nothing was changed, so nothing is written. (An editor that returns at once needs "
                "to be told to wait, as in EDITOR='code --wait'.)"
            )
            print_json({"action": "edit", "path": str(store.path), "revision": found.meta.revision})
            return
        show_differences(report, str(store.path), "your edit")
        replace_state(
            "edit",
            store,
            where,
            lambda check: store.save(edited, reason="edit", before_commit=check),
            keep=retention(settings),
            allow_live=allow_live,
            ask="" if yes else f"Write this to {store.path}?",
            told={"sections": changed_sections(report)},
        )


@contextmanager
def _copy(value: object) -> Iterator[Path]:
    """Give a private copy; keep it, and say where, if an edit in it came to nothing."""
    folder = Path(tempfile.mkdtemp(prefix="statestore-edit-"))
    copy = folder / "state.json"
    text = codec.to_json(value) + b"\n"
    try:
        durable.create_file(copy, text)
        yield copy
    except BaseException:
        if _is_edited(copy, text):
            note(f"Your edited copy is kept: {copy}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_edited(copy: Path, text: bytes) -> bool:
    try:
        return copy.read_bytes() != text
    except OSError:
        return copy.exists()  # what cannot be read is not ours to judge


def _edited(found: State, section: str | None, copy: Path) -> State:
    """Let the operator edit the copy; return the state it makes.

    Raises:
        UsageError: the editor could not be started, or failed.
        StateInvalid: the copy is not what a state can hold; says where.
    """
    _run_editor(copy)
    try:
        data, _ = durable.read_file(copy, codec.MAX_BYTES)
    except (OSError, durable.NotAFile, durable.TooLarge) as error:
        raise StateInvalid(copy, f"cannot read {copy} after the edit: {error}") from error
    _require_json(copy, data)
    whole = data if section is None else b"{%s: %s}" % (codec.to_json(section), data)
    try:
        document = codec.parse(whole)
    except (codec.Damaged, codec.TooNew) as error:
        raise StateInvalid(copy, f"{copy} {error}; nothing was changed") from error
    if document.meta is not None:
        raise StateInvalid(
            copy, f"{copy} has a {codec.META}, which is not edited: take it out", codec.META
        )
    values = codec.decode(document, "decimal")
    edited = values if section is None else {**found, **values}
    _require_positions(copy, found, edited)
    return State(edited, found.meta)


def _run_editor(copy: Path) -> None:
    program = editor()
    with _without_interrupt():
        try:
            click.edit(filename=str(copy), editor=program)
        except click.ClickException as error:
            raise UsageError(
                f"{error.message}; nothing was changed (VISUAL or EDITOR names another editor)"
            ) from error
        except ValueError as error:  # quotes that do not match
            raise UsageError(f"the editor {program!r} is not a command: {error}") from error


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Leave Ctrl-C to the editor, which gets it as well and knows what it means there."""
    try:
        before = signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    except ValueError:  # not in the main thread, where there is nothing to leave
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _require_json(copy: Path, data: bytes) -> None:
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        raise StateInvalid(
            copy,
            f"{copy} is not JSON at line {error.lineno} column {error.colno}: {error.msg}; "
            "nothing was changed",
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise StateInvalid(copy, f"{copy} is not JSON: {error}; nothing was changed") from error


def _require_positions(copy: Path, found: Mapping[str, Any], edited: Mapping[str, Any]) -> None:
    """Refuse an edit after which positions do not read any more, if they did before."""
    if _unreadable(found) is None and (why := _unreadable(edited)) is not None:
        raise StateInvalid(
            copy, f"{copy}: {why}; nothing was changed", why.split(maxsplit=1)[0].rstrip(":")
        )


def _unreadable(state: Mapping[str, Any]) -> str | None:
    """Return why a rebuild could not read the positions; None if it can."""
    try:
        entries = read_entries(state.get("positions", {}))
        for keys in entries.keys.values():
            for key in keys:
                recorded_of(entries.by_key[key], key, None)
    except ValueError as error:
        return str(error)
    return None


def _document(state: Mapping[str, Any]) -> codec.Document:
    return codec.parse(codec.to_json(dict(state)))
