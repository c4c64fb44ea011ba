"""What an installation consists of: what is lost if it is wiped, and what makes itself anew.

One table, `ITEMS`, says it all: class, impact, action, time to rebuild; it is what the decision to
wipe or to recover rests on. Here each line is looked up on disk, and in the database where the
state is in one. Nothing is written, nothing is asked of an exchange; what cannot be looked at is
unknown (None), never absent. A section of the state that the table does not know counts as
critical: only its bot knows.

One module, because half of it is that table: a line and the function that looks it up are read
together, and what a line of sections does not name, the line "other sections" has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from statestore import errors
from statestore.amounts import ZERO
from statestore.disk.backups import Backups
from statestore.disk.killswitch import KillSwitch
from statestore.errors import BackendError, SignalError, StateError
from statestore.runtime.drivers import SECTION as DRIVERS_SECTION
from statestore.runtime.signals import PLACES, Inbox, Place
from statestore.runtime.statuses import is_driver
from statestore.runtime.tokens import units_of

Class = Literal["critical", "regenerable"]
Impact = Literal["HIGH", "MEDIUM", "LOW"]

_FORWARD = "builds up over time"


@dataclass(frozen=True, slots=True)
class Installation:
    """Where things are, and what the state says.

    Attributes:
        state: its sections; None where it does not read, and then they are unknown.
        revision, why: of the state; why it does not read.
        kill_switch: that of the state: a file, and what a database has beside it.
        settings: the configuration file; None without one.
        database: ``postgres`` or ``influxdb`` where that is configured; None for the file alone.
        rows: how many the tables of that database hold, by name; None where it was not asked.
    """

    path: errors.Place
    state: Mapping[str, Any] | None
    revision: int | None
    why: str
    backups: Backups
    audit_file: Path
    kill_switch: KillSwitch
    ledger: Path
    bars: Path
    signals_dir: Path
    settings: Path | None = None
    database: str | None = None
    rows: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether something is there. None: unknown.

    Attributes:
        count: of what it holds, in `counted`.
        bytes: on disk.
    """

    present: bool | None
    path: Path | None = None
    count: int | None = None
    counted: str = ""
    bytes: int | None = None
    note: str = ""


Look = Callable[[Installation], Presence]


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the table.

    Attributes:
        impact: of losing it; None for what makes itself anew.
        action: before a wipe; for what makes itself anew, what does that.
        rebuild: how long that takes; empty where nothing can.
    """

    name: str
    kind: Literal["file", "section", "database"]
    classed: Class
    what: str
    impact: Impact | None
    action: str
    rebuild: str
    look: Look


@dataclass(frozen=True, slots=True)
class Listed:
    """An item and what was found of it."""

    item: Item
    found: Presence


# How to look


def _file(name: str) -> Look:
    def look(at: Installation) -> Presence:
        path = getattr(at, name)
        return Presence(False) if path is None else _stat(path)

    return look


def _beside(end: str) -> Look:
    def look(at: Installation) -> Presence:
        if not isinstance(at.path, Path):
            return Presence(False)  # a database keeps former revisions itself
        return _stat(at.path.with_name(at.path.name + end))

    return look


def _state(at: Installation) -> Presence:
    if isinstance(at.path, Path):
        found = _stat(at.path)
    else:
        found = Presence(None if at.why else at.state is not None, note=at.path)
    said = at.why or (f"revision {at.revision}" if found.present else "")
    return Presence(found.present, found.path, bytes=found.bytes, note=said)


def _backups(at: Installation) -> Presence:
    try:
        found = at.backups.list()
        size = sum(backup.path.stat().st_size for backup in found)
    except OSError as error:
        return Presence(None, at.backups.directory, note=str(error.strerror))
    return Presence(bool(found), at.backups.directory, len(found), "kept", size)


def _kill_switch(at: Installation) -> Presence:
    status = at.kill_switch.status()
    there = {"engaged": True, "released": False}.get(status)
    return Presence(there, at.kill_switch.path, note=status)


def _signals(at: Installation) -> Presence:
    inbox = Inbox(at.signals_dir)
    try:
        counts = {place: _held_in(inbox, place) for place in PLACES}
    except SignalError as error:
        return Presence(None, inbox.folder, note=str(error))
    said = ", ".join(f"{count} {place}" for place, count in counts.items() if count)
    present = counts["pending"] + counts["failed"] > 0  # what is done is in the state
    return Presence(present, inbox.folder, counts["pending"], "pending", note=said)


@dataclass(frozen=True, slots=True)
class _Sections:
    """Looks for sections of the state by their names."""

    names: tuple[str, ...]

    def __call__(self, at: Installation) -> Presence:
        return _those(at, self.names)


def _sections(*names: str) -> _Sections:
    return _Sections(names)


def _others(at: Installation) -> Presence:
    known = {"positions", DRIVERS_SECTION}
    for item in ITEMS:
        if isinstance(item.look, _Sections):
            known.update(item.look.names)
    return _those(at, [name for name in at.state or {} if name not in known])


def _those(at: Installation, names: Sequence[str]) -> Presence:
    if at.state is None:
        return Presence(None)
    found = [name for name in names if at.state.get(name)]
    return Presence(bool(found), count=len(found), counted="with content", note=", ".join(found))


def _held_in(inbox: Inbox, place: Place) -> int:
    signals, damaged = inbox.signals(place)
    return len(signals) + len(damaged)


def _positions(wanted: Callable[[Mapping[str, Any]], bool], counted: str, *sections: str) -> Look:
    def look(at: Installation) -> Presence:
        if at.state is None:
            return Presence(None)
        count = 0
        for name in sections or ("positions",):
            section = at.state.get(name) or {}
            if not isinstance(section, Mapping):
                return Presence(None, note=f"{name} is no object")
            count += sum(wanted(e if isinstance(e, Mapping) else {}) for e in section.values())
        return Presence(count > 0, count=count, counted=counted)

    return look


def _is_held(entry: Mapping[str, Any]) -> bool:
    return not is_driver(entry) and units_of(entry) != ZERO


def _is_tracked(entry: Mapping[str, Any]) -> bool:
    return not is_driver(entry) and units_of(entry) == ZERO


def _features(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    def wanted(entry: Mapping[str, Any]) -> bool:
        features = entry.get("features")
        return isinstance(features, Mapping) and any(map(features.get, names))

    return wanted


def _database(kind: str) -> Look:
    def look(at: Installation) -> Presence:
        if at.database != kind:
            return Presence(False, note="not configured")
        if at.rows is None:
            return Presence(None, note="configured, and not asked here")
        said = ", ".join(f"{count} {name}" for name, count in at.rows.items())
        return Presence(True, count=sum(at.rows.values()), counted="rows", note=said)

    return look


def _stat(path: Path) -> Presence:
    try:
        status = path.stat()
    except FileNotFoundError:
        return Presence(False, path)
    except OSError as error:
        return Presence(None, path, note=str(error.strerror))
    return Presence(True, path, bytes=status.st_size)


# The table

ITEMS: tuple[Item, ...] = (
    Item(
        "state", "file", "critical",
        "the state file: all sections below, under one checksum",
        "HIGH",
        "statestore backup --output FOLDER, on another disk",
        "",
        _state,
    ),
    Item(
        "positions", "section", "critical",
        "what is held: quantities and entry prices; without it nothing knows what it owns",
        "HIGH",
        "statestore export before a wipe, statestore import after; what fills prove: "
        "rebuild_positions",
        "",
        _positions(_is_held, "held"),
    ),
    Item(
        "tracked", "section", "critical",
        "positions of quantity 0: the tokens that are watched, and what was learned about each",
        "MEDIUM",
        "statestore reinsert, which makes them anew, or statestore export",
        "",
        _positions(_is_tracked, "watched"),
    ),
    Item(
        "orders", "section", "critical",
        "open orders: the exchange has them too, but not what they are for",
        "HIGH",
        "statestore export --section open_orders; or cancel them before a wipe",
        "",
        _sections("open_orders"),
    ),
    Item(
        "balances", "section", "critical",
        "balances as they were known",
        "MEDIUM",
        "note them before a wipe (an export carries them); read anew at the next start",
        "< 1 second",
        _sections("cash_balances", "balances", "portfolio"),
    ),
    Item(
        "registry", "section", "critical",
        "tokens that were entered by hand: contract, chain, symbol",
        "MEDIUM",
        "statestore export --section registry; most tokens come from signals anyway",
        "",
        _sections("registry", "token_registry"),
    ),
    Item(
        "strategy", "section", "critical",
        "what strategies remember: cooldowns, pair states",
        "MEDIUM",
        "statestore export --section pair_states --section strategy_state",
        _FORWARD,
        _sections("pair_states", "strategy_state", "cooldowns"),
    ),
    Item(
        "other sections", "section", "critical",
        "sections of the bot's own: only the bot knows what they are worth",
        "MEDIUM",
        "statestore export --section NAME",
        "",
        _others,
    ),
    Item(
        "signals", "file", "critical",
        "the inbox: a token whose positions were removed is nowhere else until it is processed; "
        "empty after a wipe",
        "MEDIUM",
        "statestore signals process before a wipe, or copy the folder",
        "",
        _signals,
    ),
    Item(
        "backups", "file", "critical",
        "former states: what undo and restore go back to",
        "MEDIUM",
        "copy the folder",
        "",
        _backups,
    ),
    Item(
        "audit", "file", "critical",
        "the record of every repair, and what undo reads",
        "MEDIUM",
        "copy the file",
        "",
        _file("audit_file"),
    ),
    Item(
        "kill switch", "file", "critical",
        "halts the bot while it is there: gone with a wipe, it lets the bot trade",
        "HIGH",
        "statestore kill-switch engage again, before the bot is started",
        "instant",
        _kill_switch,
    ),
    Item(
        "settings", "file", "critical",
        "statestore.toml: reserves, retention, places",
        "MEDIUM",
        "copy the file",
        "",
        _file("settings"),
    ),
    Item(
        "postgres", "database", "critical",
        "the tables of the states, positions and orders, where they are in PostgreSQL",
        "HIGH",
        "statestore export, and with --db URL what is in the tables positions and orders, before "
        "they are dropped; statestore import, both ways, after",
        "",
        _database("postgres"),
    ),
    Item(
        "bak", "file", "regenerable",
        "the state before the last save",
        None,
        "the next save makes it; keep it until the state is known to be good",
        "instant",
        _beside(".bak"),
    ),
    Item(
        "ledger", "file", "regenerable",
        "fills that were read from the exchange",
        None,
        "the next rebuild reads them again",
        "minutes, by the number of fills",
        _file("ledger"),
    ),
    Item(
        "bars", "file", "regenerable",
        "prices of the majors and their composite; none of lowcaps and dominance, which are only "
        "collected going forward",
        None,
        "statestore bootstrap fetches at most 666 bars for each timeframe",
        f"~2-5 minutes; lowcaps and dominance: {_FORWARD}",
        _file("bars"),
    ),
    Item(
        "drivers", "section", "regenerable",
        "positions that drive the regime: BTC, ALT, buckets, dominance",
        None,
        "statestore bootstrap makes those that are missing",
        "instant",
        _positions(is_driver, "found", "positions", DRIVERS_SECTION),
    ),
    Item(
        "ta", "section", "regenerable",
        "technical analysis, computed from bars",
        None,
        "statestore bootstrap computes it once there are bars",
        "~1-2 minutes after prices",
        _positions(_features("ta"), "found", "positions", DRIVERS_SECTION),
    ),
    Item(
        "states", "section", "regenerable",
        "states of the regime, computed from technical analysis",
        None,
        "statestore bootstrap computes them once there is technical analysis",
        "~1-2 minutes after ta",
        _positions(_features("states", "uptrend_engine_v4"), "found", "positions", DRIVERS_SECTION),
    ),
    Item(
        "learning", "section", "regenerable",
        "what the learning system knows: strands, lessons, patterns; starts fresh",
        None,
        "statestore export --section learning, if it is worth it",
        _FORWARD,
        _sections("learning", "lessons", "strands"),
    ),
    Item(
        "history", "section", "regenerable",
        "closed positions and past trades; starts fresh",
        None,
        "statestore export --section NAME, if it is worth it; fills are at the exchange",
        _FORWARD,
        _sections("history", "trade_history", "fill_history", "closed_positions", "events"),
    ),
    Item(
        "mirror", "database", "regenerable",
        "what InfluxDB has of the state",
        None,
        "the next save writes it again",
        "instant",
        _database("influxdb"),
    ),
    Item(
        "lock", "file", "regenerable",
        "keeps writers apart; never delete it while one runs",
        None,
        "the next save makes it",
        "instant",
        _beside(".lock"),
    ),
    Item(
        "lease", "file", "regenerable",
        "says which bot runs; never delete it while one does",
        None,
        "the next start makes it",
        "instant",
        _beside(".lease"),
    ),
)  # fmt: skip


def take_inventory(at: Installation) -> list[Listed]:
    """Return every line of the table, and what was found."""
    return [Listed(item, item.look(at)) for item in ITEMS]


def at_stake(listed: Sequence[Listed]) -> list[str]:
    """Return what a wipe would lose: critical, and there, or perhaps there."""
    return [
        line.item.name
        for line in listed
        if line.item.classed == "critical" and line.found.present is not False
    ]


def read_state(
    load: Callable[[], Mapping[str, Any]],
) -> tuple[Mapping[str, Any] | None, StateError | BackendError | None]:
    """Return the sections, or None and why they cannot be told."""
    try:
        return load(), None
    except (StateError, BackendError) as error:
        return None, error
