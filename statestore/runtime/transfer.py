"""Positions out of one place and into another: export, import, and whether it arrived.

What is promised:

* an export holds every row that was asked for, and says what it left out;
* an import is all or nothing: one position that is there already, and nothing is written;
* a dry run is `plan_import`, and the real run writes what that says;
* what an import does not own stays as it is, every unknown column of a row comes along.

A row keeps everything but what belongs to the record and not to the position: it gets a new ``id``
(the old one stays as ``imported_from_id``), and ``created_at`` and ``updated_at`` are now.

Rows go between an `Envelope` and a place that has `Contents`: a state file here, the tables of a
database in `statestore.runtime.tables`. Nothing here writes a state by itself: callers save what
`Import.sections_of` gives, under whatever guards them.

One module, because what an export leaves out is what an import does not expect, row for row.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statestore import times
from statestore.amounts import json_type
from statestore.disk.codec import META, encode
from statestore.disk.contract import BeforeCommit, State, StateMeta, StateStore
from statestore.disk.history import same_value
from statestore.errors import ImportRefused, Place, StateInvalid, UsageError
from statestore.model import asset_of
from statestore.runtime.addresses import one_spelling
from statestore.runtime.envelope import Envelope, Row, as_entry, as_row, key_of
from statestore.runtime.statuses import REGIME, is_driver, is_of_status, status_of

POSITIONS = "positions"
WATCHLIST = "watchlist"
# Of the record, not of the position: new wherever it arrives.
RECORD = ("id", "imported_from_id", "created_at", "updated_at")

# Of an export; the first that the state has, and has something in.
_BALANCES = ("cash_balances", "balances")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a place holds.

    Attributes:
        name: the place, for messages.
        entries: positions by key; exact numbers.
        sections: everything else, by name; empty where a place has only positions.
        source: for the envelope: ``backend``, ``revision``, ``sha256``.
        by_asset: two keys for one asset are one position (no two exchanges are in it).
    """

    name: str
    entries: Mapping[str, Any]
    sections: Mapping[str, Any]
    source: Mapping[str, Any]
    by_asset: bool = True


NOTHING = Contents("nothing", {}, {}, {})


def contents_of(state: State, place: Place) -> Contents:
    """Return what a state holds.

    Args:
        state: loaded with exact numbers.

    Raises:
        StateInvalid: its positions are no object.
    """
    entries = state.get(POSITIONS)
    if entries is not None and not isinstance(entries, Mapping):
        raise StateInvalid(
            place,
            f"{place}: positions is {json_type(entries)}, an object by key is expected; "
            "export the whole state (--kind state), or change it with `statestore edit`",
            POSITIONS,
        )
    rest = {name: value for name, value in state.items() if name != POSITIONS}
    return Contents(str(place), entries or {}, rest, source_of(state))


def source_of(state: State) -> dict[str, Any]:
    """Return what an envelope says of the state it is from."""
    place = state.meta.state_path
    backend = "file" if isinstance(place, Path) else place.partition(":")[0]
    return {"backend": backend, "revision": state.meta.revision, "sha256": state.meta.sha256}


# Export


@dataclass(frozen=True, slots=True)
class Exported:
    """An export, and what is not in it.

    Attributes:
        regime: positions of regime drivers that were left out; a bootstrap makes them again.
        unmatched: positions that the filters left out, by status.
        sections_left: other sections of the state that have something in them.
    """

    envelope: Envelope
    regime: int = 0
    unmatched: Mapping[str, int] = field(default_factory=dict)
    sections_left: tuple[str, ...] = ()


def export_positions(
    contents: Contents,
    *,
    status: str | None = None,
    timeframe: str | None = None,
    sections: Iterable[str] = (),
    include_regime: bool = False,
) -> Exported:
    """Return an export of all positions, or of those of a status or a timeframe.

    Args:
        status: as `statuses.is_of_status` understands it.
        sections: other sections that come along.
        include_regime: positions of regime drivers as well.

    Raises:
        UsageError: a section is not there.
        StateInvalid: an entry has a column of ours.
    """
    named = list(dict.fromkeys(sections))
    for name in named:
        if name == POSITIONS:
            raise UsageError("positions are always exported; --section names what comes along")
        if name not in contents.sections:
            known = ", ".join(contents.sections) or "none"
            raise UsageError(f"{contents.name} has no section {name!r}; it has: {known}")
    wanted_regime = include_regime or (status or "").lower() == REGIME
    rows, regime, unmatched = [], 0, dict[str, int]()
    for key, entry in contents.entries.items():
        if not wanted_regime and is_driver(entry):
            regime += 1
        elif is_of_status(entry, status) and _is_of_timeframe(entry, timeframe):
            rows.append(_as_row(contents.name, key, entry))
        else:
            unmatched[status_of(entry)] = unmatched.get(status_of(entry), 0) + 1
    known_as = next((name for name in _BALANCES if contents.sections.get(name)), None)
    balances = contents.sections[known_as] if known_as else None
    envelope = Envelope(
        kind="positions",
        rows=rows,
        sections={name: contents.sections[name] for name in named},
        filters={"status": status, "timeframe": timeframe},
        source=contents.source,
        balances=balances if isinstance(balances, Mapping) else None,
    )
    left = (n for n, value in contents.sections.items() if value and n not in named)
    return Exported(envelope, regime, unmatched, tuple(left))


def export_state(state: State) -> Envelope:
    """Return an export of everything a state holds."""
    return Envelope(kind="state", sections=dict(state), source=source_of(state))


def default_name(envelope: Envelope, form: str) -> str:
    """Return a name that says what is in the file: ``positions_backup_active_1h_<UTC>.json``."""
    parts = {"positions": "positions_backup", "tokens": "tokens_backup", "state": "state_export"}
    said = [
        str(envelope.filters[name])
        for name in ("status", "timeframe")
        if envelope.filters.get(name)
    ]
    stamp = (
        times.format_instant(times.now())[:19].replace("-", "").replace(":", "").replace("T", "_")
    )
    words = ("".join(c if c.isalnum() else "-" for c in word.lower()) for word in said)
    return "_".join([parts[envelope.kind], *words, stamp]) + f".{form}"


def _as_row(name: str, key: str, entry: Any) -> Row:
    try:
        return as_row(key, entry)
    except ValueError as error:
        raise StateInvalid(Path(name), f"{name}: positions.{error}", f"positions.{key}") from None


def _is_of_timeframe(entry: Any, timeframe: str | None) -> bool:
    said = entry.get("timeframe") if isinstance(entry, Mapping) else None
    return timeframe is None or said == timeframe


# Import


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why a row or a part of a section cannot be taken over. ``where``: the section."""

    where: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Import:
    """What an import will do, or why it will not.

    Attributes:
        positions: entries to add, by key, as they will be written.
        skipped: keys of positions that are there already, and stay as they are.
        sections: whole new values of the other sections that change.
        counts: for each section of the file, how many parts are ``added``, the ``same`` and
            ``skipped``.
        conflicts: any, and nothing is written.
        replaces: the whole state becomes ``sections``.
    """

    positions: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    replaces: bool = False

    def sections_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sections of a state as they are after the import.

        Raises:
            ImportRefused: there are conflicts.
        """
        self.refuse()
        if self.replaces:
            return dict(self.sections)
        after = {**state, **self.sections}
        if self.positions:
            after[POSITIONS] = {**(state.get(POSITIONS) or {}), **self.positions}
        return after

    def refuse(self) -> None:
        """Raise `ImportRefused` if anything of it cannot be taken over."""
        if not self.conflicts:
            return
        shown = "; ".join(f"{c.where}.{c.key} {c.why}" for c in self.conflicts[:5])
        more = f" and {len(self.conflicts) - 5} more" if len(self.conflicts) > 5 else ""
        raise ImportRefused(
            f"{len(self.conflicts)} conflict(s), so nothing was imported: {shown}{more}. Keep what "
            "is there with --skip-existing, or remove it first; --verify says if it is the same"
        )


def plan_import(
    envelope: Envelope,
    contents: Contents,
    *,
    skip_existing: bool = False,
    keep_ids: bool = False,
    replace: bool = False,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
) -> Import:
    """Return what an import of a file into a place will do. Pure but for the ids and the time.

    Args:
        skip_existing: leave what is there as it is, and take the rest.
        keep_ids: rows keep their ids.
        replace: of a whole state: it takes the place of what is there.

    Raises:
        UsageError: a whole state without `replace`, or `replace` for anything else.
    """
    if replace != (envelope.kind == "state"):
        raise UsageError(
            "--replace is for a whole state; positions are added to what is there"
            if replace
            else "the file is a whole state: --replace puts it in place of what is there"
        )
    if replace:
        kept = {name: value for name, value in envelope.sections.items() if name != META}
        counts = {name: {"added": 1, "same": 0, "skipped": 0} for name in kept}
        return Import(sections=kept, counts=counts, replaces=True)
    now = times.format_instant(times.now())
    conflicts: list[Conflict] = []
    added: dict[str, Any] = {}
    skipped: list[str] = []
    if envelope.kind == "positions":
        there = _There(contents, keep_ids)
        for row in envelope.rows:
            key = str(key_of(row))
            why = there.why_not(key, row)
            if why and skip_existing:
                skipped.append(key)
            elif why:
                conflicts.append(Conflict(POSITIONS, key, why))
            else:
                added[key] = _arrived(as_entry(row), now, keep_ids, new_id)
    sections, counts, more = _merge_sections(envelope, contents, skip_existing)
    return Import(added, tuple(skipped), sections, counts, (*conflicts, *more))


def import_positions(
    store: StateStore,
    envelope: Envelope,
    *,
    skip_existing: bool = False,
    keep_ids: bool = False,
    replace: bool = False,
    before_commit: BeforeCommit | None = None,
) -> tuple[Import, StateMeta]:
    """Import into a state file: all of it in one save, or nothing.

    Args:
        before_commit: as in `StateStore.save`; where the kill switch is looked at.

    Raises:
        ImportRefused: a conflict.
        RevisionConflict: somebody else saved meanwhile.
        StateStoreError: as in `StateStore.save`.
    """
    state = store.load(numbers="decimal")
    plan = plan_import(
        envelope,
        NOTHING if replace else contents_of(state, store.path),
        skip_existing=skip_existing,
        keep_ids=keep_ids,
        replace=replace,
    )
    return plan, save_import(store, state, plan, before_commit)


def save_import(
    store: StateStore, state: State, plan: Import, before_commit: BeforeCommit | None = None
) -> StateMeta:
    """Save what `plan` makes of the state it was made for; raises as `import_positions`."""
    after = State(plan.sections_of(state), state.meta)
    return store.save(after, reason="import", before_commit=before_commit)


def rehearse_import(store: StateStore, state: State, plan: Import) -> None:
    """Encode what `save_import` would save, for a dry run to say what that would say.

    Raises:
        StateInvalid: a value cannot be saved; names its field.
    """
    if not plan.conflicts:
        encode(plan.sections_of(state), store.path)


class _There:
    """What is in a place already, and so cannot come in again."""

    def __init__(self, contents: Contents, keep_ids: bool) -> None:
        self._keys = {one_spelling(key): key for key in contents.entries}
        keys = contents.entries if contents.by_asset else ()
        self._assets = {asset: key for key in keys if (asset := asset_of(key))}
        self._ids: dict[str, str] | None = {} if keep_ids else None
        if self._ids is not None:
            for key, entry in contents.entries.items():
                if isinstance(entry, Mapping) and entry.get("id"):
                    self._ids[str(entry["id"])] = key

    def why_not(self, key: str, row: Row) -> str:
        """Return why a row cannot come in; empty if it can."""
        if (there := self._keys.get(one_spelling(key))) is not None:
            return "is there already" + ("" if there == key else f", as {there}")
        asset = asset_of(key)
        if asset is not None and asset in self._assets:
            # Two entries for one asset would count what is held twice.
            return f"is there already, as {self._assets[asset]}"
        if self._ids is not None and row.get("id"):
            holder = self._ids.setdefault(str(row["id"]), key)
            if holder != key:
                return f"has the id {row['id']!s:.40} of {holder}"
        return ""


def _arrived(entry: Any, now: str, keep_ids: bool, new_id: Callable[[], str]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    former = entry.get("id")
    if keep_ids and former:
        ids = {"id": former}
    else:
        ids = {"id": new_id()} | ({} if former is None else {"imported_from_id": former})
    return {**entry, **ids, "created_at": now, "updated_at": now}


def _incoming(envelope: Envelope) -> Mapping[str, Any]:
    """Return the sections of a file; tokens are watched, as where they are migrated."""
    if envelope.kind == "tokens":
        return {
            **envelope.sections,
            WATCHLIST: {str(key_of(row)): as_entry(row) for row in envelope.rows},
        }
    return envelope.sections


def _merge_sections(
    envelope: Envelope, contents: Contents, skip_existing: bool
) -> tuple[dict[str, Any], dict[str, dict[str, int]], list[Conflict]]:
    """Return new sections, counts and conflicts: an object is merged by key, others are taken."""
    merged: dict[str, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    conflicts: list[Conflict] = []
    for name, value in _incoming(envelope).items():
        if name in (POSITIONS, META):
            conflicts.append(Conflict("sections", name, "cannot come as a section of an export"))
            continue
        there = contents.sections.get(name)
        count = counts[name] = {"added": 0, "same": 0, "skipped": 0}
        if there in (None, {}, []) and not isinstance(there, bool):
            merged[name] = value
            count["added"] = len(value) if isinstance(value, (dict, list)) else 1
        elif isinstance(there, Mapping) and isinstance(value, Mapping):
            new = {}
            for key, part in value.items():
                if key not in there:
                    new[key] = part
                    count["added"] += 1
                elif same_value(there[key], part):
                    count["same"] += 1
                elif skip_existing:
                    count["skipped"] += 1
                else:
                    conflicts.append(Conflict(name, key, "is there already, with another value"))
            if new:
                merged[name] = {**there, **new}
        elif same_value(there, value):
            count["same"] = 1
        elif skip_existing:
            count["skipped"] = 1
        else:
            conflicts.append(Conflict("sections", name, "is there already, with another value"))
    return merged, counts, conflicts


# Verify


def verify_import(envelope: Envelope, contents: Contents) -> Iterator[Conflict]:
    """Yield what of a file is not in a place as the file has it.

    Numbers are compared by value; ids and the times of the record are another's by right.
    """
    if envelope.kind == "positions":
        for row in envelope.rows:
            key = str(key_of(row))
            if key not in contents.entries:
                yield Conflict(POSITIONS, key, "is missing")
            else:
                yield from _differs(key, as_entry(row), contents.entries[key])
    held = {**contents.sections, POSITIONS: contents.entries}
    for name, value in _incoming(envelope).items():
        there = held.get(name)
        if name not in held:
            yield Conflict("sections", name, "is missing")
        elif not (isinstance(value, Mapping) and isinstance(there, Mapping)):
            if not same_value(there, value):
                yield Conflict("sections", name, "is another")
        else:
            for key, part in value.items():
                if key not in there:
                    yield Conflict(name, key, "is missing")
                elif not same_value(there[key], part):
                    yield Conflict(name, key, "is another")


def _differs(key: str, wanted: Any, found: Any) -> Iterator[Conflict]:
    if not (isinstance(wanted, Mapping) and isinstance(found, Mapping)):
        wanted, found = {"*": wanted}, {"*": found}
    for name in dict.fromkeys([*wanted, *found]):
        if name in RECORD:
            continue
        sides = (wanted, found)
        if not all(name in side for side in sides) or not same_value(wanted[name], found[name]):
            yield Conflict(POSITIONS, key, f"has another {name}")
