"""What a position says it is: the one rule for every ``--status``, and for what drives a regime.

A status is read in any case. A position that does not say one is ``active`` while it is held or
may be, else ``closed``. A database of trades calls ``open`` and ``partially_closed`` what others
call ``active``: who asks for the active ones gets these as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statestore.runtime import legacy

REGIME = "regime_driver"

_ACTIVE = frozenset({"active", "open", "partially_closed"})


def status_of(entry: Any) -> str:
    """Return what a position says it is, in lower case; by what is held where it does not say."""
    said = entry.get("status") if isinstance(entry, Mapping) else None
    if isinstance(said, str) and said:
        return said.lower()
    return "closed" if legacy.is_closed(entry) else "active"


def is_of_status(entry: Any, status: str | None) -> bool:
    """Return whether a position is one of those that are asked for; None: all are."""
    if status is None:
        return True
    wanted, found = status.lower(), status_of(entry)
    return found == wanted or (wanted == "active" and found in _ACTIVE)


def is_driver(entry: Any) -> bool:
    """Return whether a position drives a regime: it holds nothing, and a bootstrap makes it."""
    if not isinstance(entry, Mapping):
        return False
    return status_of(entry) == REGIME or str(entry.get("token_chain", "")).lower() == "regime"
