"""The sections a session keeps in the state, and how it says what it restored or took over.

A section that is missing is added, empty or null; one that is there and is no object is an error,
never written over. What is said is for a log: a position of whichever shape is one line, and what
it does not say is "unknown". Nothing is judged here: see `validation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from statestore.amounts import json_type
from statestore.errors import Place, StateInvalid

OBJECTS = ("positions", "open_orders", "pair_states", "session", "config", "strategy_state")
CONFIG = ("data_provider", "broker", "strategy", "pairs")

_RULE = "=" * 60
_SIDES = ("side", "direction")
# By which names a position says how much is held, in whichever shape, and what it cost a unit.
QUANTITIES = ("quantity", "units", "base_qty")
UNITS = (*QUANTITIES, "total", "total_quantity")
ENTRIES = ("entry_price", "avg_entry_price")
_TIMES = ("entry_time", "timestamp", "opened_at", "first_entry_timestamp")


def complete(state: dict[str, Any], path: Place) -> None:
    """Add the sections that are missing: objects are empty, the portfolio is null, not made up.

    Raises:
        StateInvalid: one of them is there, and is no object.
    """
    for name in (*OBJECTS[:3], "portfolio", *OBJECTS[3:]):
        state.setdefault(name, None if name == "portfolio" else {})
    for name in OBJECTS:
        if not isinstance(state[name], Mapping):
            raise StateInvalid(
                path,
                f"{path}: {name} is {json_type(state[name])}, and has to be an object; the session "
                "will not write over it: rename what is there, with `statestore edit`",
                name,
            )


def configuration(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the session runs with; what was not said is null."""
    return {**dict.fromkeys(CONFIG), **given}


def portfolio(
    positions: Mapping[str, Any], total_value: Any, total_pnl: Any, **more: Any
) -> dict[str, Any]:
    """Return a summary; figures that are not known are null, the count is counted."""
    return {
        "total_value": total_value,
        "total_pnl": total_pnl,
        "open_positions": len(positions),
        **more,
    }


def banner() -> list[str]:
    return [_RULE, "RESTORING PREVIOUS TRADING STATE", _RULE]


def restored(state: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines that say which positions and pair states there are."""
    positions, pairs = state["positions"], state["pair_states"]
    yield f"Found {len(positions)} stored positions"
    if positions:
        yield "Restored Positions:"
        for key, position in positions.items():
            yield f"  {key}: {describe(position)}"
    if pairs:
        yield f"Restored Pair States: {len(pairs)} pairs"


def held(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the positions; none where the bot has put something else there for the moment."""
    found = state.get("positions")
    return found if isinstance(found, Mapping) else {}


def differences(mine: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, str]:
    """Return what happened to each position, for the log: ``{"BTC-USD": "2 -> 1"}``."""
    before, after = held(mine), held(fresh)
    return {
        key: f"{_units(before.get(key))} -> {_units(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def _units(position: object) -> str:
    return "none" if position is None else str(quantity(position))


def quantity(position: Any) -> Any:
    """Return the recorded quantity of a position in whichever shape; None if there is none."""
    return _first(position, UNITS)


def describe(position: Any) -> str:
    """Return side, entry, quantity and time of a position in whichever shape, on one line."""
    side, entry, units, time = (
        "unknown" if value is None else value
        for value in (
            _first(position, _SIDES),
            _first(position, ENTRIES),
            quantity(position),
            _first(position, _TIMES),
        )
    )
    return f"{side} | Entry: {entry} | Qty: {units} | Time: {time}"


def _first(position: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(position, Mapping):
        return None
    return next((position[name] for name in names if position.get(name) is not None), None)
