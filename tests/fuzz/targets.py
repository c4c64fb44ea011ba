"""One function for each door through which bytes come in that somebody else may have written.

A target takes bytes and a folder that is its own. It returns, or raises an error of the
`StateStoreError` tree; whatever else it raises is a finding. Where two readers of the same bytes
have to agree, the target compares them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, redirect_stderr, suppress
from copy import deepcopy
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, get_args

from statestore import times
from statestore.amounts import parse_amount, text
from statestore.cli.output import json_line, show_plan
from statestore.cli.undo import _newest_repair
from statestore.config import load_settings, origins, places
from statestore.disk import codec, strict
from statestore.disk.audit import AuditLog
from statestore.disk.backups import Backups, Retention
from statestore.disk.history import differences, read_document
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.errors import StateInvalid, StateStoreError
from statestore.fills.archive import Archive, replay_archive, replay_fills
from statestore.fills.decoding import decode_json
from statestore.fills.folding import Rules
from statestore.fills.ledger import LedgerSource
from statestore.fills.normalise import normalise
from statestore.fills.sources import coinbase, coinbase_client, coinbase_reader
from statestore.fills.sources.recorded import read_balances, read_fills
from statestore.model import Balances, Batch, Product, Row
from statestore.repair import planfile, staleness
from statestore.repair.entries import read_entries, recorded_of
from statestore.repair.outcome import _why
from statestore.repair.rebuild import Options, Proposal, propose
from statestore.repair.report import Outcome, Report, render
from statestore.repair.told import document
from statestore.repair.trail import fill_trail
from statestore.runtime import envelope
from statestore.runtime.legacy import read_legacy
from statestore.runtime.risk import RiskEngine
from statestore.runtime.signals import Inbox
from statestore.runtime.transfer import contents_of, plan_import
from statestore.runtime.validation import problems
from statestore.simulated import fill, fills
from statestore.texts import printable

Target = Callable[[bytes, Path], object]

AT = times.parse_instant("2025-11-19T00:00:00Z")
SUM = re.compile(rb'("sha256"\s*:\s*")[0-9a-f]{64}"')


# The state file


def state(data: bytes, folder: Path) -> None:
    """What is accepted is strict JSON, reads the same again once written, and keeps its bytes."""
    for content in {data, sealed(data)}:
        try:
            document = codec.parse(content)
        except (codec.Damaged, codec.TooNew):
            continue
        # A right sum can be forged: then decoding may refuse what parsing did not look at.
        try:
            floats, exact = codec.decode(document), codec.decode(document, "decimal")
        except codec.Damaged:
            assert document.trust is codec.Trust.SEALED
            continue
        if document.trust is not codec.Trust.SEALED:
            strict = json.loads(content, parse_constant=_no_constant)
            strict.pop(codec.META, None)
            assert floats == strict
        again = codec.arrange(codec.encode(exact, folder), document)
        assert {**again.sections} == {**document.sections}, "an unchanged section changed"
        meta = codec.Meta(revision=1)
        text, where = codec.render(codec.arrange(codec.encode(exact, folder), None), meta)
        codec.seal(again, meta, text, where)
        read = codec.parse(bytes(text))
        assert read.trust is codec.Trust.SEALED
        assert _same(codec.decode(read, "decimal"), exact)
        assert codec.peek_revision(bytes(text)[: codec.HEAD_BYTES]) == 1
        to_terminal(codec.to_json(exact).decode())


def store(data: bytes, folder: Path) -> None:
    """A file of these bytes as state and as ``.bak``: loaded, compared, judged, saved."""
    first, _, second = data.partition(b"\0\n")
    path = folder / "state.json"
    path.write_bytes(sealed(first))
    if second:
        path.with_name("state.json.bak").write_bytes(sealed(second))
    opened = StateStore(path, durability="relaxed")
    with suppress(StateStoreError):
        opened.versions()
    opened.check()
    try:
        differences(None, read_document(path))
        found = opened.load(numbers="decimal")
    except StateStoreError:
        return
    with suppress(ValueError):
        entries = read_entries(found.get("positions", {}))
        for key, entry in entries.by_key.items():
            with suppress(ValueError):
                recorded_of(entry, key, None)
    problems(found)
    if isinstance(found.get("positions"), dict):
        RiskEngine(Decimal(1000), Decimal("0.1")).look(found["positions"], {})
    found["more"] = {"n": Decimal("1.10")}
    before = codec.to_json(dict(found))
    try:
        opened.save(found)
    except StateStoreError:
        return  # a file with a forged sum may hold what is never written
    assert codec.to_json(dict(StateStore(path).load(numbers="decimal"))) == before


def sealed(data: bytes) -> bytes:
    """The same file with the sum it ought to have, for anybody can compute one."""
    found = SUM.search(data)
    if found is None:
        return data
    start = found.start() + len(found[1])
    blank = data[:start] + b"0" * 64 + data[start + 64 :]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[start + 64 :]


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} was accepted")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (int, Decimal)) and not isinstance(one, bool):
        return bool(one == other) and not isinstance(other, bool)  # 0e0 is written as 0
    return type(one) is type(other) and one == other


# What stands beside it


def audit(data: bytes, folder: Path) -> None:
    """An audit file of these bytes, as they are and with a chain that holds."""
    log = AuditLog(folder / "state_audit.jsonl")
    opened = StateStore(folder / "state.json", durability="relaxed")
    for content in (data, _chained(data)):
        log.path.write_bytes(content)
        with suppress(StateStoreError):
            log.verify()
        with suppress(StateStoreError):
            to_terminal(json_line([_texts(entry) for entry in log.entries()]).decode())
        with suppress(StateStoreError):
            repair = _newest_repair(log, opened)
            to_terminal(f"{repair} {repair.backup}")
        with suppress(StateStoreError):
            log.append({"action": "seal"})
            assert log.path.read_bytes().endswith(b"\n")


def _chained(data: bytes) -> bytes:
    """Each line that is an object with the hash of the one before, and the state it is about."""
    lines, before = [], "0" * 64
    for line in data.splitlines():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entry["prev"] = before
                lines.append(json.dumps(entry).encode() + b"\n")
                before = hashlib.sha256(lines[-1]).hexdigest()
    return b"".join(lines)


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner) for inner in value]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def kill_switch(data: bytes, folder: Path) -> None:
    switch = KillSwitch(folder / "KILL_SWITCH")
    switch.path.write_bytes(data)
    assert switch.engaged()
    details = switch.details()
    assert details is not None
    to_terminal(_why(details))
    to_terminal(json_line(_texts(details)).decode())


def backup_names(data: bytes, folder: Path) -> None:
    """Files of any names in the folder of backups: only a backup's own is ever deleted."""
    names = [name for name in data.decode(errors="replace").split("\n") if _is_a_name(name)]
    inside = folder / "state_backups"
    inside.mkdir(exist_ok=True)
    for name in names[:20]:
        with suppress(OSError):
            (inside / name).write_bytes(b'{"positions": {}}')
    backups = Backups(inside, folder / "state.json")
    listed = {backup.path.name for backup in backups.list()}
    before = set(os.listdir(inside))
    backups.leftovers()
    backups.newest_valid()
    backups.prune(Retention(0, 0, 0))
    assert before - set(os.listdir(inside)) <= listed


def _is_a_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def settings(data: bytes, folder: Path) -> None:
    path = folder / "statestore.toml"
    path.write_bytes(data)
    environ = {"STATESTORE_CONFIG": str(path)}
    with suppress(StateStoreError):
        places(load_settings(environ))
        origins(environ)


def legacy(data: bytes, folder: Path) -> None:
    path = folder / "old.json"
    path.write_bytes(data)
    with suppress(StateStoreError):
        found = read_legacy(path)
        codec.encode(found.sections, path)


# Fills


def recorded_fills(data: bytes, folder: Path) -> None:
    """Fills read whole and a line at a time come to the same figures."""
    path = folder / "fills"
    path.write_bytes(data)
    whole = streamed = None
    with suppress(StateStoreError):
        whole = replay_fills(normalise([read_fills(path)]), Rules())
    with suppress(StateStoreError):
        streamed = replay_archive(path, Rules())
    if whole is None or streamed is None:
        assert whole is streamed
        return
    assert _figures(whole) == _figures(streamed)
    assert whole.skipped == streamed.skipped
    assert whole.skipped_products == streamed.skipped_products
    assert {one.reason for one in whole.rejected} == {one.reason for one in streamed.rejected}
    for replayed in whole.assets.values():
        to_terminal(f"{text(replayed.position.units)} {text(replayed.position.entry_price)}")


def _figures(found: Archive) -> dict[str, Any]:
    """As they are reported."""
    return {
        name: (
            *(text(getattr(one.position, figure)) for figure in _FIGURES),
            one.position.currency,
            (one.fills, one.first, one.last, one.adjusted),
        )
        for name, one in found.assets.items()
    }


_FIGURES = ("units", "cost", "entry_price", "break_even", "fee_value", "realised", "uncovered")


def recorded_balances(data: bytes, folder: Path) -> None:
    path = folder / "balances"
    path.write_bytes(data)
    with suppress(StateStoreError):
        for asset, amount in read_balances(path).amounts.items():
            to_terminal(f"{asset} {text(amount)}")


class Answers:
    """A CoinbaseSource's way out, which these bodies come back by."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies

    def __call__(self, path: str, params: Mapping[str, object], stopping: object) -> Any:
        import requests

        response = requests.Response()
        response.status_code = 200
        response.raw = io.BytesIO(self.bodies.pop(0) if self.bodies else b"{}")
        try:
            return coinbase_client._answer(response)
        except coinbase_client.Refused as refused:
            raise coinbase_reader._explained(refused, "exchange.test", path, 1, "") from None


def answers(data: bytes, folder: Path) -> None:
    """An exchange that answers with these bodies, one for each request."""
    source = exchange_source()
    for ask in (
        lambda: normalise([source.fills(AT, AT + 1)]),
        source.balances,
        lambda: source.products(["BTC-USD"]),
        source.permissions,
        source.server_time,
    ):
        source._get = Answers(data.split(b"\0\n"))
        with suppress(StateStoreError):
            to_terminal(repr(ask()))
    to_terminal(coinbase_client._message(data))


@cache
def exchange_source() -> Any:
    return coinbase.CoinbaseSource(
        coinbase_client.of_nobody(), base_url="exchange.test", attempts=1, max_pages=20
    )


# Everything that a repair makes of a state, fills, balances and products


class Hostile:
    """A `FillSource` of values that were read from bytes."""

    name = "exchange.test"

    def __init__(self, given: Mapping[str, Any]) -> None:
        rows = given.get("fills")
        self._rows = tuple(
            Row(row, f"row {number}")
            for number, row in enumerate(rows if isinstance(rows, list) else ())
            if isinstance(row, dict)
        )
        self._amounts: dict[str, Decimal] | None = None
        if isinstance(given.get("balances"), dict):
            self._amounts = {}
            for asset, amount in given["balances"].items():
                with suppress(ValueError):
                    self._amounts[asset] = abs(parse_amount(amount))
        self._products = given.get("products")

    def fills(self, since: int, until: int | None) -> Batch:
        return Batch(self._rows, 1, exhausted=True)

    def balances(self) -> Balances | None:
        return None if self._amounts is None else Balances(self._amounts)

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        found = {}
        for name, answer in (self._products if isinstance(self._products, dict) else {}).items():
            if name in product_ids and isinstance(answer, dict):
                found[name] = coinbase._product(name, answer)
        return found


def repair(data: bytes, folder: Path) -> None:
    """State, fills, balances and products from one document; plan, trail, page and table of it."""
    try:
        given = codec.decode(codec.parse(data), "decimal")
    except codec.Damaged:
        return
    path = folder / "state.json"
    positions = given.get("positions", {})
    with suppress(StateStoreError):
        opened = StateStore(path, durability="relaxed")
        opened.save({"positions": positions})
        options = Options(since=AT - 86_400 * 10**9, accept_partial=True)
        shown(propose(opened, Hostile(given), options), folder)


def shown(proposal: Proposal, folder: Path) -> None:
    """Put a proposal into every form it is ever seen in."""
    plan = proposal.plan
    written = document(plan, dry_run=True, state={}, positions=proposal.positions)
    json.loads(codec.to_json(written))
    list(fill_trail(plan))
    page = render(
        Report(
            plan=plan,
            outcome=Outcome.PREVIEW,
            state=str(proposal.state.meta.state_path),
            revision=1,
            sha256="0" * 64,
            at=times.format_instant(AT),
            by="somebody",
            version="1",
            kill_switch="KILL_SWITCH",
            halted="engaged",
            undo="statestore undo",
        )
    )
    assert "<script" not in page.lower()
    terminal = io.StringIO()
    with redirect_stderr(terminal):
        show_plan(plan)
    assert all(c.isprintable() or c == "\n" for c in terminal.getvalue())
    saved = planfile.read_plan(folder / "plan.json", planfile.plan_file(proposal, {}))
    assert saved.state_path == proposal.state.meta.state_path
    planfile.positions_after(saved, proposal.positions)


# Files of our own making


def plan(data: bytes, folder: Path) -> None:
    """Plan files: as they are, with a forged checksum, and a good one with parts replaced."""
    path = folder / "plan.json"
    for content in (data, _resummed(data), _edited(_good_plan(folder), data)):
        try:
            saved = planfile.read_plan(path, content)
        except StateStoreError:
            continue
        with suppress(StateStoreError):
            proposal = _proposal(folder)
            staleness.require_state(saved, proposal.state.meta)
        with suppress(StateStoreError):
            staleness.require_same(saved, proposal)
        planfile.positions_after(saved, {})
        staleness.AsPlanned(Hostile({}), saved).products(["BTC-USD"])


def _proposal(folder: Path) -> Proposal:
    path = folder / "state.json"
    if not path.exists():
        path.write_bytes(b'{"positions": {"BTC-USD": {"quantity": 2, "entry_price": 100}}}')
    given = {
        "fills": fills("BUY 1 BTC-USD @ 100 fee 0.6", "BUY 2 ETH-USD @ 10 quote"),
        "balances": {"BTC": "1", "ETH": "0.2"},
        "products": {"BTC-USD": {"price": "110", "base_increment": "0.00000001"}},
    }
    options = Options(
        since=AT - 86_400 * 10**9, until=AT, reserve={"BTC": Decimal("0.1")}, accept_partial=True
    )
    return propose(StateStore(path), Hostile(given), options)


_plans: list[bytes] = []


def _good_plan(folder: Path) -> bytes:
    if not _plans:
        _plans.append(planfile.plan_file(_proposal(folder), {}))
    return _plans[0]


def _resummed(data: bytes) -> bytes:
    try:
        found = codec.decode_section(data, "decimal")
        body = {name: value for name, value in found.items() if name not in ("schema", "sha256")}
        return codec.to_json({"schema": planfile.SCHEMA, "sha256": planfile._sum(body), **body})
    except (ValueError, AttributeError, codec.Damaged):
        return data


_HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**400,
    "",
    "x",
    "NaN",
    "1e999999999",
    "../../etc/passwd",
    "\0",
    [],
)
_HOSTILE += ({}, [[]], {"": {}}, Decimal("1E+999999"), Decimal("0E-999999"), "\x1b[2J")
_HOSTILE += ("2025-11-18T04:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z")


def _edited(good: bytes, data: bytes) -> bytes:
    """The good document with a few of its values replaced, as the bytes say, and its sum right."""
    document = json.loads(good)
    for first, second, third in zip(data[:12:3], data[1:12:3], data[2:12:3], strict=False):
        holders = list(_holders(document))
        holder, key = holders[(first * 256 + second) % len(holders)]
        holder[key] = deepcopy(_HOSTILE[third % len(_HOSTILE)])
    body = {name: value for name, value in document.items() if name not in ("schema", "sha256")}
    with suppress(ValueError):
        document["sha256"] = planfile._sum(decode_json(codec.to_json(body)))  # type: ignore[arg-type]
    with suppress(ValueError):
        return codec.to_json(document)
    return good


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(steps):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _holders(inner)


def envelopes(data: bytes, folder: Path) -> None:
    """Exports in each of their forms; what reads is written and reads the same, in each form."""
    for name in ("export.json", "export.csv"):
        path = folder / name
        for content in {data, sealed(data)}:
            path.write_bytes(content)
            with suppress(StateStoreError):
                read = envelope.read(path)
                contents = contents_of(StateStore(folder / "state.json").load(), path)
                plan_import(read, contents, replace=read.kind == "state")
                for form in (
                    ("json", "jsonl") if read.kind == "state" else get_args(envelope.Format)
                ):
                    again = folder / f"again.{form}"
                    try:
                        envelope.write(again, read, form)
                    except StateInvalid:
                        continue  # a legacy file may hold what is never written
                    found = envelope.read(again)
                    order = _by_name if form == "csv" else dict
                    rows = ([order(row) for row in one.rows] for one in (found, read))
                    assert _same(*rows), form
                    assert _same(dict(found.sections), dict(read.sections)), form


def _by_name(row: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(row.items()))  # the columns of a table have one order, its rows another


def signals(data: bytes, folder: Path) -> None:
    """Files in the inbox, under their own id and under another: told, or left alone."""
    inbox = Inbox(folder / "inbox")
    name = "x"
    with suppress(ValueError, AttributeError):
        name = str(strict.parse(data).get("id"))
    for stem in {"x", name}:
        with suppress(StateStoreError):  # else it is no name of a file there
            path = inbox.path("pending", stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    found, damaged = inbox.signals("pending")
    to_terminal("".join(f"{one.path} {one.why}" for one in damaged))
    for signal in found:
        to_terminal(f"{signal.id} {signal.symbol} {signal.status} {signal.action} {signal.ticker}")
        _ = signal.prior, signal.keys, signal.replaces, signal.learned("1m"), signal.attempts
        with suppress(StateStoreError):
            inbox.settle(signal.but(status="done"))
    with inbox.exclusive():
        pass  # what was left half moved is moved


class _Remembered:
    """What the ledger is a memory of."""

    name = "exchange.test"

    def fills(self, since: int, until: int | None) -> Batch:
        return Batch((Row(fill("BUY 1 BTC-USD @ 100"), "page 1"),), 1, exhausted=True)

    def balances(self) -> Balances | None:
        return None

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        return {}


def ledger(data: bytes, folder: Path) -> None:
    """A database with some of its bytes replaced: the fills are those of the exchange."""
    path = folder / "fills.sqlite3"
    content = bytearray(_good_ledger(folder)) if data[:1] == b"\0" else bytearray(data)
    if data[:1] == b"\0":
        for high, low, byte in zip(data[1::3], data[2::3], data[3::3], strict=False):
            content[(high * 256 + low) % len(content)] = byte
    path.write_bytes(bytes(content))
    warned: list[str] = []
    source = LedgerSource(_Remembered(), path, "p", clock=lambda: AT, warn=warned.append)
    read = source.fills(AT - 86_400 * 10**9, AT)
    assert normalise([read]).fills == normalise([_Remembered().fills(0, None)]).fills
    to_terminal("".join(warned))


_ledgers: list[bytes] = []


def _good_ledger(folder: Path) -> bytes:
    if not _ledgers:
        path = folder / "good.sqlite3"
        LedgerSource(_Remembered(), path, "p", clock=lambda: AT, warn=str).fills(AT - 10**9, AT)
        _ledgers.append(path.read_bytes())
    return _ledgers[0]


def ledger_schema(data: bytes, folder: Path) -> None:
    """A database that another program made up, by any statements: never run, never believed."""
    path = folder / "fills.sqlite3"
    with closing(sqlite3.connect(path)) as made:
        made.execute(f"PRAGMA application_id = {0x66696C6C}")
        made.execute("PRAGMA user_version = 1")
        for statement in data.decode(errors="replace").split(";")[:20]:
            with suppress(sqlite3.Error, ValueError):
                if statement.lstrip()[:6].upper() in ("CREATE", "INSERT"):
                    made.execute(statement)
        made.commit()
    source = LedgerSource(_Remembered(), path, "p", clock=lambda: AT, warn=lambda _: None)
    source.fills(AT - 86_400 * 10**9, AT)


# Small things


def values(data: bytes, folder: Path) -> None:
    """Numbers, times and texts on their own."""
    given = data.decode(errors="surrogateescape")
    with suppress(ValueError):
        amount = parse_amount(given)
        assert amount.is_finite()
        assert len(text(amount) or "") < 200
    with suppress(ValueError):
        instant = times.parse_instant(given)
        assert times.parse_instant(times.format_instant(instant)) == instant
    to_terminal(given)


def to_terminal(shown: str) -> None:
    """Nothing but printable characters, spaces and ends of lines reaches a terminal."""
    assert all(c.isprintable() or c == "\n" for c in printable(shown))


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        state,
        store,
        audit,
        kill_switch,
        backup_names,
        settings,
        legacy,
        recorded_fills,
        recorded_balances,
        answers,
        repair,
        plan,
        envelopes,
        signals,
        ledger,
        ledger_schema,
        values,
    )
}
