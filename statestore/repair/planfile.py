"""A plan kept as a file: what a rebuild would write, what it was made from, and the proof.

What is promised:

* the file stands for itself: state, window, options, balances, products, program version, and for
  every position that would be written the fills its figures come from;
* a plan that was damaged or edited is refused (``sha256`` covers all of it); one that was made up,
  with a sum that is right, can be no worse than refused: whatever it holds is looked at first.

Whether a plan may still be applied is for `staleness` to tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore import __version__
from statestore.amounts import json_type, parse_amount, text
from statestore.config import operator
from statestore.disk.codec import to_json
from statestore.errors import Place, UsageError
from statestore.fills.decoding import decode_json
from statestore.model import CASH, Fill, Method, Product
from statestore.repair.plan import Action
from statestore.repair.reading import Window
from statestore.repair.rebuild import Options, Proposal
from statestore.repair.told import document
from statestore.repair.trail import records_of
from statestore.times import format_instant, now, parse_instant

SCHEMA = "statestore.plan/1"

MAX_BYTES = 1 << 30
_MOST_HOURS = 1_000_000

_TEXT_OR_NULL = (str, type(None))
_AMOUNTS = {...: str}
# What has to be in a plan: types, objects with these keys or any (...), lists of one kind.
_SHAPE: dict[str, Any] = {
    "version": str,
    "state": {"path": str, "revision": int, "sha256": str},
    "source": str,
    "portfolio": _TEXT_OR_NULL,
    "recorded": {...: str},
    "options": {
        "max_hours": str,
        "method": str,
        "products": [str],
        "key": str,
        "accept_partial": bool,
        "strict_state": bool,
        "reserve": _AMOUNTS,
        "adopt": [str],
        "assume_entry": _AMOUNTS,
    },
    "window": {"since": str, "until": _TEXT_OR_NULL, "read_at": str, "hours": str},
    "products": {
        ...: {
            "product_id": str,
            "base": str,
            "quote": str,
            "base_increment": _TEXT_OR_NULL,
            "base_min_size": _TEXT_OR_NULL,
            "price": _TEXT_OR_NULL,
            "spot": bool,
        }
    },
    "inputs": {
        "balances": {...: _TEXT_OR_NULL},
        "fills": {...: {"count": int, "sha256": str}},
        "rejected": int,
    },
    "changes": [
        {
            "asset": str,
            "key": str,
            "action": str,
            "status": str,
            "reason": str,
            "after": (dict, type(None)),
        }
    ],
}

# Where a row stood is told by how it was read, not by what was filled.
_FACTS = [field.name for field in fields(Fill) if field.name != "origin"]


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan that was read back.

    Attributes:
        sha256: of its content; what the audit line names.
        body: the whole document.
        recorded: the files it was made from (``fills``, ``balances``); empty for an exchange.
    """

    path: Path
    sha256: str
    body: Mapping[str, Any]
    state_path: Place
    window: Window
    options: Options
    products: Mapping[str, Product]
    recorded: Mapping[str, Path]


def plan_file(proposal: Proposal, recorded: Mapping[str, Path | None]) -> bytes:
    """Return the content of a plan file.

    Args:
        recorded: the files fills and balances were read from, by name; None for an exchange.
    """
    meta, plan = proposal.state.meta, proposal.plan
    body = {
        "made_at": format_instant(now()),
        "made_by": operator(),
        "version": __version__,
        "state": {
            "path": _absolute(meta.state_path),
            "revision": meta.revision,
            "sha256": meta.sha256,
            "saved_at": meta.saved_at,
        },
        "source": plan.evidence.source,
        "portfolio": plan.evidence.portfolio,
        "recorded": {
            name: str(path.absolute()) for name, path in recorded.items() if path is not None
        },
        "options": _options_as_json(proposal.options),
        "window": _window_as_json(plan.window),
        "products": {
            product_id: _plain(asdict(product)) for product_id, product in proposal.products.items()
        },
        "inputs": inputs_of(proposal),
        **outcome_of(proposal),
        "evidence": _evidence(proposal),
    }
    return to_json({"schema": SCHEMA, "sha256": _sum(body), **body}) + b"\n"


def load_plan(path: Path, state: Place | None = None) -> SavedPlan:
    """Return the plan in a file.

    Args:
        state: the state that was named; None for the plan's own.

    Raises:
        UsageError: it is no plan, of another version, not what was written, or of another state.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read plan {path}: {error.strerror}; check the path, or make a plan with --out"
        ) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is longer than {MAX_BYTES} bytes, which no plan is")
    saved = read_plan(path, data)
    if state is not None and _resolved(state) != _resolved(saved.state_path):
        raise UsageError(
            f"{path} is a plan for {saved.state_path}, not for {state}; --state names the one meant"
        )
    return saved


def read_plan(path: Path, data: bytes) -> SavedPlan:
    """Return the plan of a file's content; see `load_plan`."""
    try:
        found = decode_json(data)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        body = {name: value for name, value in found.items() if name not in ("schema", "sha256")}
        wanted = _sum(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no plan: {error}; make one with --out") from error
    if found.get("sha256") != wanted:
        raise UsageError(
            f"{path} is not what was written: its checksum does not fit, so it was edited or "
            "damaged; make a new plan with --out"
        )
    try:
        _require(_SHAPE, body, "")
        return SavedPlan(
            path=path,
            sha256=wanted,
            body=body,
            state_path=_place(body["state"]["path"]),
            window=_window_of(body["window"]),
            options=_options_of(body["options"]),
            products={name: _product_of(value) for name, value in body["products"].items()},
            recorded={name: _path_of(value) for name, value in body["recorded"].items()},
        )
    except ValueError as error:
        raise UsageError(f"{path} is no whole plan: {error}; make one with --out") from error


def _require(shape: Any, value: object, where: str) -> None:
    """Raise `ValueError` where a value is not of the shape; names the first place."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'the document'} is {json_type(value)}")
        for name in value if ... in shape else shape:
            if name not in value:
                raise ValueError(f"{where}{name} is missing")
            _require(shape.get(..., shape.get(name)), value[name], f"{where}{name!s:.40}.")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {json_type(value)}")
        for number, inner in enumerate(value):
            _require(shape[0], inner, f"{where}{number}.")
    elif type(value) not in (shape if isinstance(shape, tuple) else (shape,)):
        raise ValueError(f"{where} is {json_type(value)}")


def _path_of(name: str) -> Path:
    if not name.startswith("/") or "\0" in name:
        raise ValueError(f"{name!r:.80} is no absolute path")
    return Path(name)


def _absolute(place: Place) -> str:
    return str(place.absolute()) if isinstance(place, Path) else place


def _resolved(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


def _place(text: str) -> Place:
    return text if "://" in text else _path_of(text)


def positions_after(saved: SavedPlan, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the positions section as the plan leaves it."""
    after = dict(before)
    for change in saved.body["changes"]:
        if change["action"] == Action.REMOVE:
            after.pop(change["key"], None)
        elif change["action"] in (Action.ADD, Action.UPDATE):
            after[change["key"]] = change["after"]
    return after


# What stands in the file


def inputs_of(proposal: Proposal) -> dict[str, Any]:
    """Return what a proposal rests on: balances, and the fills of each asset by their digest."""
    reading = proposal.reading
    scope = [change.asset for change in proposal.plan.changes]
    balances = reading.balances
    by_asset: dict[str, list[Fill]] = {}
    for fill in reading.fills:
        for asset in {fill.base, fill.quote} - CASH:
            by_asset.setdefault(asset, []).append(fill)
    return {
        "balances": {
            asset: None if balances is None else text(balances.of(asset)) for asset in scope
        },
        "fills": {asset: _digest(by_asset[asset]) for asset in sorted(by_asset)},
        "rejected": len(reading.read.rejected),
    }


def _digest(fills: Sequence[Fill]) -> dict[str, Any]:
    """How many fills, and the SHA-256 of what they say, oldest first, a line each."""
    total = hashlib.sha256()
    for fill in fills:
        facts = (str(getattr(fill, name)) for name in _FACTS)
        total.update(f"{' '.join(facts)}\n".encode())
    return {"count": len(fills), "sha256": total.hexdigest()}


def outcome_of(proposal: Proposal) -> dict[str, Any]:
    """Return what of a proposal has to be the same when it is made again."""
    shown = document(proposal.plan, dry_run=True, state={}, positions=proposal.positions)
    names = ("method", "changes", "unmanaged", "warnings")
    return {name: shown[name] for name in names}


def _evidence(proposal: Proposal) -> dict[str, list[dict[str, Any]]]:
    """The fills behind each position that would be written, with the running quantity."""
    plan = proposal.plan
    return {change.asset: list(records_of(change, plan.method)) for change in plan.writes}


def _sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Decimal) else value for name, value in fields.items()
    }


def _product_of(fields: Mapping[str, Any]) -> Product:
    amounts = ("base_increment", "base_min_size", "price")
    read = {name: None if fields[name] is None else parse_amount(fields[name]) for name in amounts}
    return Product(
        **{name: fields[name] for name in ("product_id", "base", "quote", "spot")} | read
    )


def _window_as_json(window: Window) -> dict[str, Any]:
    return {
        "since": format_instant(window.since),
        "until": None if window.until is None else format_instant(window.until),
        "read_at": format_instant(window.read_at),
        "hours": str(window.hours),
        "searched_since": format_instant(window.searched_since),
        "searched_hours": str(window.searched_hours),
    }


def _window_of(fields: Mapping[str, Any]) -> Window:
    """The window as it was asked for; how far back it takes to search is found out again."""
    hours = _hours_of(fields["hours"])
    return Window(
        since=parse_instant(fields["since"]),
        until=None if fields["until"] is None else parse_instant(fields["until"]),
        read_at=parse_instant(fields["read_at"]),
        hours=hours,
        searched_hours=hours,
    )


def _hours_of(value: str) -> Decimal:
    hours = parse_amount(value)
    if not 0 < hours <= _MOST_HOURS:
        raise ValueError(f"{value:.40} is not a number of hours up to {_MOST_HOURS}")
    return hours


def _options_as_json(options: Options) -> dict[str, Any]:
    return {
        "max_hours": str(options.max_hours),
        "method": options.method.value,
        "products": sorted(options.products),
        "key": options.key_style,
        "accept_partial": options.accept_partial,
        "strict_state": options.strict_state,
        "reserve": {asset: str(units) for asset, units in options.reserve.items()},
        "adopt": sorted(options.adopt),
        "assume_entry": {asset: str(price) for asset, price in options.assume_entry.items()},
    }


def _options_of(fields: Mapping[str, Any]) -> Options:
    def amounts(name: str) -> dict[str, Decimal]:
        return {asset: parse_amount(value) for asset, value in fields[name].items()}

    return Options(
        max_hours=_hours_of(fields["max_hours"]),
        method=Method(fields["method"]),
        products=frozenset(fields["products"]),
        key_style=fields["key"],
        accept_partial=fields["accept_partial"],
        strict_state=fields["strict_state"],
        reserve=amounts("reserve"),
        adopt=frozenset(fields["adopt"]),
        assume_entry=amounts("assume_entry"),
    )
