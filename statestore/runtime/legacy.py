"""States and backups of other programs, read into the sections of ours. Reads only.

Three shapes, told apart by their keys:

* a backup of a pair trading system: ``backup_timestamp positions current_state portfolio_summary``;
* an export of positions: ``exported_at count filters positions``, a row for each token, chain and
  timeframe;
* an export of tokens: ``exported_at count status_filter tokens``.

What is closed (a tombstone, a status that says so, a quantity of 0) does not come back. Nothing
else is dropped: what has no section of its own goes to ``legacy``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore.amounts import json_type, parse_amount
from statestore.disk import strict
from statestore.errors import StateCorrupt, StateInvalid, StateMissing
from statestore.runtime.sections import quantity

# The shapes.
BACKUP, POSITIONS, TOKENS = "pair trading backup", "exported positions", "exported tokens"

_MAX_BYTES = 64 * 1024 * 1024
_CLOSED = frozenset({"closed", "archived", "deleted"})


@dataclass(frozen=True, slots=True)
class Legacy:
    """What one file holds.

    Attributes:
        shape: which of the three.
        sha256: of the file.
        taken_at: when it was made, as it says.
        sections: for a state of ours; exact Decimals.
        closed: keys of positions that are not taken over.
        unconfirmed: keys of positions that only one of two lists in the file names.
    """

    path: Path
    shape: str
    sha256: str
    taken_at: Any
    sections: dict[str, Any]
    closed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()


def read_legacy(path: Path) -> Legacy:
    """Return what a file of another program holds.

    Raises:
        StateMissing: it is not there.
        StateCorrupt: it cannot be read, or is no JSON.
        StateInvalid: it is of none of the shapes, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        document = strict.parse(data)
    except FileNotFoundError as error:
        raise StateMissing(path, f"there is no {path}; nothing was migrated") from error
    except OSError as error:
        raise StateCorrupt(path, f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise StateCorrupt(path, f"{path} is no JSON document: {error}") from error
    return understand(path, hashlib.sha256(data).hexdigest(), document)


def understand(path: Path, digest: str, document: Any) -> Legacy:
    """Return what a document of another program holds.

    Args:
        path, digest: of the file it was read from.

    Raises:
        StateInvalid: as in `read_legacy`.
    """
    if not isinstance(document, dict):
        raise StateInvalid(path, f"{path} is {json_type(document)}, an object is expected")
    if "backup_timestamp" in document:
        return _pair_trading(path, digest, document)
    if "exported_at" in document and "positions" in document:
        return _exported_positions(path, digest, document)
    if "exported_at" in document and "tokens" in document:
        return _exported_tokens(path, digest, document)
    found = ", ".join(list(document)[:8]) or "no keys"
    raise StateInvalid(
        path,
        f"{path} is of no shape that is known: an export of ours (format), of positions or tokens "
        f"(exported_at), or a backup (backup_timestamp); it has {found}. A state "
        "or a backup of ours is put back by `statestore restore --file`",
    )


def key_of(row: Mapping[str, Any]) -> str | None:
    """Return the key in ``positions`` of a row that says what it is about; None if it does not.

    ``chain:contract:timeframe`` of a token, as far as it says them, else the pair or the product.
    """
    return _token(row) or _pair(row)


def is_closed(position: Any) -> bool:
    """Return whether an entry says of itself that it is no position any more."""
    if not isinstance(position, Mapping):
        return False
    said = {str(position.get(name, "")).lower() for name in ("status", "operation", "state")}
    if position.get("deleted") is True or said & _CLOSED or "delete" in said:
        return True
    if position.get("closed_at"):
        return True
    with suppress(ValueError):
        return parse_amount(_amount(position)) == 0
    return False


def _amount(position: Mapping[str, Any]) -> Any:
    value = quantity(position)
    return repr(value) if isinstance(value, float) else value


def _pair_trading(path: Path, digest: str, document: dict[str, Any]) -> Legacy:
    current = _object(path, document, "current_state")
    active = _object(path, current, "active_positions")
    listed = dict(_keyed(path, _rows(path, document, "positions"), _pair))
    both = active | listed
    closed = tuple(key for key in both if is_closed(both[key]))
    confirmed = listed.keys() & active.keys()
    known = {"backup_timestamp", "positions", "current_state", "portfolio_summary"}
    rest = {name: value for name, value in document.items() if name not in known}
    more = {
        name: value
        for name, value in current.items()
        if name not in ("active_positions", "pair_states")
    }
    return Legacy(
        path,
        BACKUP,
        digest,
        document["backup_timestamp"],
        {
            "positions": {key: both[key] for key in both if key not in closed},
            "pair_states": _object(path, current, "pair_states"),
            "portfolio": document.get("portfolio_summary") or None,
            "legacy": rest | ({"current_state": more} if more else {}),
        },
        closed,
        tuple(k for k in both if active and k not in closed and k not in confirmed),
    )


def _exported_positions(path: Path, digest: str, document: dict[str, Any]) -> Legacy:
    rows = dict(_keyed(path, _rows(path, document, "positions", counted=True), _token))
    open_ones, watched, closed = {}, {}, []
    for key, row in rows.items():
        if _amount(row) in (None, 0):
            watched[key] = row  # a token that is watched was never bought, so nothing was closed
        elif is_closed(row):
            closed.append(key)
        else:
            open_ones[key] = row
    return Legacy(
        path,
        POSITIONS,
        digest,
        document["exported_at"],
        {
            "positions": open_ones,
            "watchlist": watched,
            "legacy": {"filters": document.get("filters")},
        },
        tuple(closed),
    )


def _exported_tokens(path: Path, digest: str, document: dict[str, Any]) -> Legacy:
    rows = _rows(path, document, "tokens", counted=True)
    return Legacy(
        path,
        TOKENS,
        digest,
        document["exported_at"],
        {
            "watchlist": dict(_keyed(path, rows, _token)),
            "legacy": {"status_filter": document.get("status_filter")},
        },
    )


def _rows(
    path: Path, document: Mapping[str, Any], name: str, *, counted: bool = False
) -> list[dict[str, Any]]:
    rows = document.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StateInvalid(path, f"{path}: {name} has to be a list of objects", name)
    if counted and document.get("count") != len(rows):
        raise StateInvalid(
            path,
            f"{path}: count is {document.get('count')!r:.20}, but there are {len(rows)} {name}; "
            "the file was cut or edited",
            "count",
        )
    return rows


def _object(path: Path, holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StateInvalid(path, f"{path}: {name} is {json_type(value)}, not an object", name)
    return value


def _keyed(
    path: Path, rows: Iterable[dict[str, Any]], name_of: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    seen = set()
    for number, row in enumerate(rows):
        key = name_of(row)
        if key is None:
            raise StateInvalid(path, f"{path}: row {number} does not say what it is about")
        if key in seen:
            raise StateInvalid(path, f"{path}: {key} is there twice (row {number})")
        seen.add(key)
        yield key, row


def _pair(row: Mapping[str, Any]) -> str | None:
    if _named(row, "symbol1") and _named(row, "symbol2"):
        return f"{row['symbol1']}-{row['symbol2']}"
    return next(filter(None, (_named(row, n) for n in ("pair", "product_id", "symbol"))), None)


def _token(row: Mapping[str, Any]) -> str | None:
    if not _named(row, "token_contract"):
        return None
    parts = (_named(row, name) for name in ("token_chain", "token_contract", "timeframe"))
    return ":".join(part for part in parts if part)


def _named(row: Mapping[str, Any], column: str) -> str:
    """Return what a column says; empty where it is no name. A table may have made one a number."""
    value = row.get(column)
    if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool) and value:
        return str(value)
    return ""
