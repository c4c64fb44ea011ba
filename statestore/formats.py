"""The shape of what this package writes, as types; `schema` makes JSON Schema of them.

For programs that read them in another language, and for people. ``format`` or ``schema`` in a file
names its version: a file of an older one is read for ever, one of a newer one is refused by name.
Keys that are not named here may be there: a bot's own sections, and what a later version adds.

An amount is a JSON number in a state, where bots read it, and a text (`Amount`) in reports, where
nothing may round it. An instant is RFC 3339 in UTC. What is not known is null.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Required, TypedDict

import msgspec

from statestore.errors import UsageError
from statestore.model import Status

Amount = str  # an exact decimal: digits, at most one point, at most one exponent
Instant = str
Number = int | float


class Meta(TypedDict):
    """``_meta`` of a state: made by a save, and never by hand."""

    format: Literal[1]
    revision: int
    saved_at: Instant
    reason: str
    writer: str
    sha256: str


class Position(TypedDict, total=False):
    """A position by product, as a rebuild writes it; fields of a bot's own are kept."""

    side: Required[str]
    quantity: Required[Number]
    units: Number
    base_qty: Number
    entry_price: Number | None
    entry_value_usd: Number | None
    usd_value: Number | None
    usd: Number | None
    fees_paid: Number | None
    entry_time: Instant | None
    last_updated: Instant
    last_fill_time: Instant | None
    last_fill_price: Number | None
    rebuild_source: str
    coverage: str
    mark_source: str | None


class Holding(TypedDict, total=False):
    """A position by currency."""

    total: Required[Number]
    available: Number
    hold: Number
    usd_value: Number | None


class StateFile(TypedDict, total=False):
    """The state; every other key is a section of the bot's own."""

    _meta: Meta
    positions: dict[str, Any]
    open_orders: dict[str, Any]
    pair_states: dict[str, Any]
    portfolio: dict[str, Any] | None
    session: dict[str, Any]
    config: dict[str, Any]
    strategy_state: dict[str, Any]


class KillSwitchNote(TypedDict, total=False):
    """What a kill switch says, if it says anything: an empty file engages as well."""

    reason: str
    by: str
    at: Instant


class Change(TypedDict):
    """What happens, or would, to one position, and why."""

    asset: str
    key: str | None
    action: Literal["add", "update", "remove", "keep", "none"]
    status: Status
    reason: str
    quantity: Amount | None
    entry_price: Amount | None
    cost: Amount | None
    cost_currency: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    fees: dict[str, Amount]
    fills: int


class Warned(TypedDict):
    code: str
    message: str


class Rebuild(TypedDict):
    """What ``rebuild_positions`` prints."""

    schema: Literal["statestore.rebuild/1"]
    dry_run: bool
    symbols_seen: int
    positions_updated: int
    positions_removed: int
    positions_kept: int
    positions_unproven: int
    method: Literal["average", "fifo", "lifo"]
    source: str
    portfolio: str | None
    window: dict[str, Any]
    fills: dict[str, Any]
    changes: list[Change]
    warnings: list[Warned]


class FillRecord(TypedDict):
    """One fill behind a quantity, and what was held after it."""

    asset: str
    time: Instant
    product_id: str
    side: Literal["BUY", "SELL"]
    trade_type: str
    price: Amount
    units: Amount
    running: Amount | None
    cost: Amount | None
    cost_currency: str | None
    entry_price: Amount | None
    realised: Amount | None
    counts: bool
    commission: Amount
    commission_currency: str
    entry_id: str
    trade_id: str
    order_id: str


class Plan(TypedDict):
    """What ``rebuild_positions --out`` keeps. ``sha256`` covers all of it."""

    schema: Literal["statestore.plan/1"]
    sha256: str
    made_at: Instant
    made_by: str
    version: str
    state: dict[str, Any]
    source: str
    portfolio: str | None
    recorded: dict[str, str]
    options: dict[str, Any]
    window: dict[str, Any]
    products: dict[str, Any]
    inputs: dict[str, Any]
    changes: list[Change]
    warnings: list[Warned]
    evidence: dict[str, list[FillRecord]]


class Verified(TypedDict):
    """What ``statestore verify`` prints."""

    schema: Literal["statestore.verify/1"]
    verdict: Literal["agrees", "unsettled", "unproven", "differs"]
    counts: dict[str, int]
    looks: int
    grace_seconds: Amount
    state: dict[str, Any]
    source: str
    portfolio: str | None
    window: dict[str, Any]
    positions: list[dict[str, Any]]
    warnings: list[Warned]


class FillsOf(TypedDict):
    """What ``statestore fills --format json`` prints; ``jsonl`` is the records alone."""

    schema: Literal["statestore.fills/1"]
    source: str
    portfolio: str | None
    method: Literal["average", "fifo", "lifo"]
    window: dict[str, Any]
    assets: list[dict[str, Any]]
    fills: list[FillRecord]
    read: dict[str, Any]
    warnings: list[Warned]


class Explained(TypedDict):
    """What ``statestore explain --format json`` prints."""

    schema: Literal["statestore.explain/1"]
    asset: str
    status: Status
    reason: str
    meaning: str
    proven: bool
    quantity: Amount | None
    entry_price: Amount | None
    balance: Amount | None
    recorded: dict[str, Any] | None
    differences: list[dict[str, Any]]
    would_settle_it: list[str]
    source: str
    portfolio: str | None
    method: Literal["average", "fifo", "lifo"]
    window: dict[str, Any]
    read: dict[str, Any]
    fills: list[FillRecord]
    warnings: list[Warned]


class Checked(TypedDict):
    """A finding of the doctor. ``code`` is the exit code of a failure, else 0."""

    check: str
    level: Literal["ok", "warning", "failure"]
    message: str
    remedy: str
    code: int


class Examined(TypedDict):
    """What ``statestore doctor --format json`` prints."""

    schema: Literal["statestore.doctor/1"]
    ok: bool
    exit_code: int
    checks: list[Checked]


class FleetFailure(TypedDict):
    """Of one account; ``exit_code`` is what it would have been alone."""

    account: str
    outcome: str
    error: str | None
    exit_code: int
    text: str
    trace: NotRequired[str]


class FleetSummary(TypedDict):
    """What ``statestore fleet`` prints. What differs from run to run stands under ``run``."""

    schema: Literal["statestore.fleet/1"]
    task: Literal["plan", "apply", "verify", "replay"]
    ok: bool
    counts: dict[str, int]
    failures: list[FleetFailure]
    accounts: list[dict[str, Any]]
    run: dict[str, Any]


class Export(TypedDict):
    """An export: what moves from one place to another. Columns of a row are whatever they are.

    ``positions`` or ``tokens`` by ``kind``; a whole ``state`` is all in ``sections``. ``sha256`` is
    that of the file with zeros in its place; who edits a file on purpose takes it out.
    """

    format: Literal["statestore-export/1"]
    kind: Literal["positions", "tokens", "state"]
    sha256: NotRequired[str]
    exported_at: Instant
    count: int
    filters: dict[str, Any]
    source: dict[str, Any]
    balances: dict[str, Any] | None
    positions: NotRequired[list[dict[str, Any]]]
    tokens: NotRequired[list[dict[str, Any]]]
    sections: dict[str, Any]


class SignalRecord(TypedDict):
    """A signal in the inbox: one file, ``signals/pending/<id>.json``, then ``done`` or ``failed``.

    ``signal_pack.token`` names ``contract`` and ``chain``, or a ``product``;
    ``signal_pack.trading_signals.action`` is ``track``, or ``buy`` when told so.
    """

    id: str
    kind: str
    module: NotRequired[str]
    status: NotRequired[Literal["pending", "done", "failed"]]
    created_at: NotRequired[Instant]
    symbol: NotRequired[str]
    attempts: NotRequired[int]
    tags: NotRequired[list[str]]
    signal_pack: dict[str, Any]
    content: NotRequired[dict[str, Any]]
    settled_at: NotRequired[Instant]
    last_error: NotRequired[dict[str, str]]


class BootstrapStep(TypedDict):
    """One step; more keys by step: ``balances``, ``groups``, ``series``."""

    name: str
    status: Literal["ok", "partial", "failed", "disabled", "skipped"]
    detail: str
    counts: dict[str, int]
    ms: int


class Bootstrapped(TypedDict):
    """What ``statestore bootstrap`` prints."""

    schema: Literal["statestore.bootstrap/1"]
    status: Literal["ok", "partial", "degraded", "failed"]
    started_at: Instant
    ms: int
    steps: list[BootstrapStep]


class AuditLine(TypedDict):
    """A line of the audit file. ``prev`` is the SHA-256 of the line before it.

    ``state`` is a file, or the address of a database, which has no ``revision`` and ``sha256``.
    """

    at: Instant
    action: str
    state: str
    by: str
    version: NotRequired[str]
    revision: int | None
    sha256: str | None
    revision_before: NotRequired[int | None]
    sha256_before: NotRequired[str | None]
    backup: NotRequired[str | None]
    changes: NotRequired[list[dict[str, Any]]]
    prev: str


FORMATS: dict[str, Any] = {
    "state": StateFile,
    "position": Position,
    "holding": Holding,
    "kill-switch": KillSwitchNote,
    "rebuild": Rebuild,
    "plan": Plan,
    "fill-record": FillRecord,
    "verify": Verified,
    "fills": FillsOf,
    "explain": Explained,
    "doctor": Examined,
    "fleet": FleetSummary,
    "export": Export,
    "signal": SignalRecord,
    "bootstrap": Bootstrapped,
    "audit": AuditLine,
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a format.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r:.40}; there are {', '.join(FORMATS)}")
    made = msgspec.json.schema(FORMATS[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
