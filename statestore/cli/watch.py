"""``statestore watch``: the state as a bot saves it, on a terminal.

The view is the result, so it goes to stdout. It asks by one stat each interval whether the state is
another one, reads it only then, and takes no lock. A state that is damaged or gone is shown as
that, and the watch goes on. It writes nothing.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.amounts import json_type
from statestore.cli.exits import EPILOG
from statestore.cli.options import (
    Seconds,
    backup_dir_option,
    kill_switch_option,
    state_option,
)
from statestore.cli.sources import set_up_logging
from statestore.config import load_settings, places
from statestore.errors import BackendError, Place, StateError, UsageError
from statestore.times import NANOSECONDS, now, parse_instant
from statestore.urls import StateUrl

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from statestore.disk.killswitch import KillSwitch
    from statestore.disk.store import State, StateStore

_USD = ("usd_value", "usd")
_NARROW = 64


@click.command("watch", epilog=EPILOG, context_settings={"show_default": True})
@state_option
@kill_switch_option
@backup_dir_option
@click.option("--interval", type=Seconds("0.1"), default="1", help="Look every so many seconds.")
@click.option("--once", is_flag=True, help="Print one view and end; for a pipe or a file.")
def command(
    state: Path | StateUrl | None,
    kill_switch: Path | None,
    backup_dir: Path | None,
    interval: Decimal,
    once: bool,
) -> None:
    """Watch the state as a bot saves it: revision, age, positions, kill switch, who holds what.

    Reads only and takes no lock. Ctrl-C is how it ends, with exit 0. With --once a state that does
    not read is exit 8.
    """
    if not once and not sys.stdout.isatty():
        raise UsageError("watch needs a terminal; use --once, or 'statestore show' for JSON")
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    set_up_logging(0)  # a recovery is in the view; a line of log would tear it
    from statestore.cli.screen import console
    from statestore.disk.store import StateStore

    watcher = Watcher(
        store := StateStore(where.state, backup_dir=where.backup_dir),
        store.kill_switch(where.kill_switch),
    )
    terminal = console(highlight=False, width=None if sys.stdout.isatty() else 80)
    if once:
        view = watcher.look()
        terminal.print(render(view, now(), terminal.width))
        if view.error is not None:
            raise view.error
        return
    _live(watcher, terminal, float(interval))


def _live(watcher: Watcher, console: Console, interval: float) -> None:
    """Show it until Ctrl-C or a signal ends it; either way the terminal is as it was."""
    from rich.live import Live

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    pause = threading.Event()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                view = render(watcher.look(), now(), console.width, console.height)
                live.update(view, refresh=True)
                pause.wait(interval)
    except KeyboardInterrupt:
        return


@dataclass(frozen=True, slots=True)
class View:
    """What there was to see at one moment.

    Attributes:
        state: None where none reads; ``error`` says why.
        lease: as in `StateStore.lease_holder`; ``holders_error`` where that cannot be looked at.
    """

    path: Place
    state: State | None
    error: StateError | BackendError | None
    kill_switch: str
    lock_holder: int | None
    lease: Mapping[str, Any] | None
    holders_error: str = ""


class Watcher:
    """Looks at one state again and again; reads it only when it changed."""

    def __init__(self, store: StateStore, kill_switch: KillSwitch) -> None:
        self.store = store
        self.kill_switch = kill_switch

    def look(self) -> View:
        state, error = None, None
        try:
            state = self._state()
        except (StateError, BackendError) as found:
            error = found
        lease, holders_error = None, ""
        try:
            lease = self.store.lease_holder()
        except (StateError, BackendError) as found:
            holders_error = str(found)
        return View(
            self.store.path,
            state,
            error,
            self._kill_switch(),
            self._lock_holder(),
            lease,
            holders_error,
        )

    def _lock_holder(self) -> int | None:
        from statestore.disk.locks import flock_holder

        path = self.store.path
        return flock_holder(Path(f"{path}.lock")) if isinstance(path, Path) else None

    def _state(self) -> State:
        state = self.store.refresh(numbers="decimal")
        # A new and empty state is what a bot makes of no file at all; here that is said.
        return state if state.meta.revision or state else self.store.load(missing_ok=False)

    def _kill_switch(self) -> str:
        status = self.kill_switch.status()
        details = (self.kill_switch.details() or {}) if status == "engaged" else {}
        why = ", ".join(str(details[name]) for name in ("reason", "by", "at") if details.get(name))
        return f"{status} ({why})" if why else status


def render(view: View, at: int, width: int, height: int | None = None) -> RenderableType:
    """Return the view as of an instant; positions that a terminal has no lines for are counted."""
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("state", Text(str(view.path)))
    parts: list[RenderableType] = [facts]
    if view.error is not None:
        facts.add_row("error", Text(str(view.error), style="bold red"))
    if view.state is not None:
        meta = view.state.meta
        facts.add_row("revision", str(meta.revision))
        facts.add_row("saved", Text(_saved(meta.saved_at, at)))
        if meta.writer or meta.reason:
            facts.add_row("by", Text(f"{meta.writer or 'unknown'} ({meta.reason or 'no reason'})"))
        if meta.recovered_from is not None:
            name = meta.state_path.name if isinstance(meta.state_path, Path) else meta.state_path
            said = f"{name} {meta.recovered_why}; read from {meta.recovered_from}"
            facts.add_row("damaged", Text(said, style="bold red"))
    style = "green" if view.kill_switch == "released" else "bold yellow"
    facts.add_row("kill switch", Text(view.kill_switch, style=style))
    facts.add_row("bot", Text(_bot(view)))
    if view.lock_holder is not None:
        facts.add_row("lock", f"held by process {view.lock_holder}")
    if view.state is not None:
        used = len(Console(width=width).render_lines(facts))
        room = None if height is None else max(height - used - 3, 1)  # the heading, blank lines
        parts += [Text(), *_positions(view.state, room, narrow=width < _NARROW)]
    return Group(*parts)


def _saved(saved_at: str, at: int) -> str:
    try:
        seconds = (at - parse_instant(saved_at)) // NANOSECONDS
    except ValueError:
        return saved_at or "unknown: not saved by statestore yet"
    return f"{_ago(seconds)} ({saved_at})"


def _ago(seconds: int) -> str:
    if seconds < 0:
        return f"{-seconds} s in the future: a clock was set"
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2]) + " ago"


def _bot(view: View) -> str:
    if view.holders_error:
        return view.holders_error
    if view.lease is None:
        return "none holds the lease"
    who = {name: view.lease.get(name, "unknown") for name in ("pid", "host", "since")}
    return f"process {who['pid']} on {who['host']} since {who['since']}"


def _positions(state: Mapping[str, Any], room: int | None, *, narrow: bool) -> list[RenderableType]:
    """The positions as a table of at most so many rows; what does not fit is counted."""
    from rich.text import Text

    positions = state.get("positions", {})
    if not isinstance(positions, Mapping):
        said = f"positions is {json_type(positions)}, not an object of entries"
        return [Text(said, style="bold red")]
    if not positions:
        return [Text("no positions", style="dim")]
    shown = sorted(positions.items())
    if room is not None and len(shown) > room:
        shown = shown[: max(room - 1, 1)]
    left_out = len(positions) - len(shown)
    more: list[RenderableType] = [Text(f"and {left_out} more", style="dim")] if left_out else []
    return [_table(shown, narrow=narrow), *more]


def _table(positions: list[tuple[str, Any]], *, narrow: bool) -> Table:
    """A narrow one has fewer columns and digits: half a number would be taken for a whole one."""
    from rich.table import Table
    from rich.text import Text

    from statestore.repair.entries import QUANTITY_FIELDS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Position", overflow="fold")
    if not narrow:
        table.add_column("Side", overflow="fold")
    for heading in ("Quantity", "Entry price") if narrow else ("Quantity", "Entry price", "USD"):
        table.add_column(heading, overflow="fold", justify="right")
    for key, entry in positions:
        if not isinstance(entry, Mapping):
            table.add_row(Text(key), Text(json_type(entry), style="bold red"))
            continue
        cells = [
            _number(entry, QUANTITY_FIELDS, 4 if narrow else 10),
            _number(entry, ("entry_price",), 2 if narrow else 8),
        ]
        if not narrow:
            cells = [str(entry.get("side", "")), *cells, _number(entry, _USD, 2)]
        table.add_row(*(Text(cell) for cell in (key, *cells)))
    return table


def _number(entry: Mapping[str, Any], names: tuple[str, ...], digits: int) -> str:
    """The first of the fields that says something, cut to so many digits after the point."""
    from statestore.repair.entries import said

    value = said(entry, names)
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return str(value)
    whole, point, fraction = f"{Decimal(value):f}".partition(".")
    return (
        f"{whole}.{fraction[:digits]}…" if len(fraction) > digits else f"{whole}{point}{fraction}"
    )
