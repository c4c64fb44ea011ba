"""The regime drivers in a state: ``regime_drivers``, a row for each symbol and timeframe.

A driver is no position: it holds nothing, and a rebuild has nothing to say of it. What is promised:
a row that is there is never replaced, only what was computed is put into it; a section that is no
object is not written over. Nothing is read from disk or saved here; a `State` is changed in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from statestore.amounts import json_type
from statestore.disk.store import State
from statestore.errors import StateInvalid

SECTION = "regime_drivers"
DRIVERS = ("BTC", "ALT", "nano", "small", "mid", "big", "BTC.d", "USDT.d")

Rows = Mapping[str, Mapping[str, Any]]


def driver_key(symbol: str, tf: str) -> str:
    """Return what a driver's row is found by in the section: ``regime_BTC/1h``."""
    return f"regime_{symbol}/{tf}"


def driver_row(symbol: str, tf: str) -> dict[str, Any]:
    """Return a driver that nothing was computed for yet."""
    return {
        "token_contract": f"regime_{symbol}",
        "token_chain": "regime",
        "token_ticker": symbol,
        "timeframe": tf,
        "status": "regime_driver",
        "state": "S4",
        "features": {},
    }


def driver_rows(symbols: Iterable[str], timeframes: Sequence[str]) -> Rows:
    """Return a new row for each symbol and timeframe, by its key."""
    return {
        driver_key(symbol, tf): driver_row(symbol, tf) for symbol in symbols for tf in timeframes
    }


def drivers_of(state: State) -> Mapping[str, Any]:
    """Return the rows of a state; none where it has no such section.

    Raises:
        StateInvalid: the section is no object.
    """
    found = state.get(SECTION, {})
    if not isinstance(found, Mapping):
        raise StateInvalid(
            state.meta.state_path,
            f"{state.meta.state_path}: {SECTION} is {json_type(found)}, and has to be an object; "
            "the bootstrap will not write over it: rename what is there, with `statestore edit`",
            SECTION,
        )
    return found


def merge(state: State, rows: Rows, found: Rows | None = None) -> None:
    """Add the rows that are missing, and what was found to those it is of.

    Args:
        found: by key; what has ``features`` adds to those of the row, the rest replaces.

    Raises:
        StateInvalid: as in `drivers_of`.
    """
    drivers = dict(drivers_of(state))
    for key, row in rows.items():
        drivers.setdefault(key, dict(row))
    for key, new in (found or {}).items():
        row = drivers[key]
        features = {**(row.get("features") or {}), **new["features"]}
        drivers[key] = {**row, **new, "features": features}
    state[SECTION] = drivers
