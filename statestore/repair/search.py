"""What is asked of every asset in scope, and how far back that is looked for.

    state, balances, fills, products -> a `Finding` for each asset

Nothing is planned and nothing written here. What is asked for (`Options`) and which assets are
answered for are decided once; only the fills are read further back, for as long as an asset needs
older ones and the options allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from statestore.amounts import ZERO, exact, text
from statestore.disk.store import State
from statestore.errors import IncompleteRead, Place, StateInvalid, UsageError
from statestore.fills.coverage import Finding, Question, Recorded, explain
from statestore.fills.movements import movements_of
from statestore.fills.sources import FillSource
from statestore.model import CASH, Method, Product, Side, Status, quote_of, settled_in
from statestore.repair.entries import Entries, read_entries, recorded_of
from statestore.repair.marks import dust_of, increment_of, products_needed
from statestore.repair.reading import (
    ALL_HISTORY_HOURS,
    ATTEMPTS,
    Reading,
    Window,
    read_older,
    read_steadily,
)
from statestore.times import parse_instant


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator asked for.

    Attributes:
        hours: lookback, unless ``since`` is given.
        since, until: bounds of the window, ``[since, until)``; ``until`` None is the present.
        max_hours: how far back the search may go for the fill that opened a position.
        products: limits the rebuild to the assets of these products; empty is everything.
        reserve: units by asset that are in the wallet and not the bot's.
        adopt: assets to take into the state that only the balances show.
        asked: assets a question is about: in scope, and alone, wherever they are known from.
        assume_entry: cost per unit, by asset, of units no fill explains.
        prove_entries: a recorded entry is believed only where no older fills can tell.
    """

    hours: Decimal = Decimal(48)
    since: int | None = None
    until: int | None = None
    max_hours: Decimal = ALL_HISTORY_HOURS
    method: Method = Method.AVERAGE
    products: frozenset[str] = frozenset()
    key_style: str = "product"
    accept_partial: bool = False
    strict_state: bool = False
    reserve: Mapping[str, Decimal] = field(default_factory=dict)
    adopt: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    assume_entry: Mapping[str, Decimal] = field(default_factory=dict)
    prove_entries: bool = False


# What the state records


@dataclass(frozen=True, slots=True)
class Records:
    """The entries of the state, and what each says of its asset."""

    entries: Entries
    by_asset: Mapping[str, Recorded | None]


def records_of(path: Place, state: State) -> Records:
    """Return what the state records.

    Raises:
        StateInvalid: an entry is not of the expected shape; names the field.
    """
    meta = state.meta
    saved_at = parse_instant(meta.saved_at) if meta.saved_at else None
    try:
        entries = read_entries(state.get("positions", {}))
        by_asset = {
            asset: recorded_of(entries.by_key[keys[0]], keys[0], saved_at)
            for asset, keys in entries.keys.items()
        }
    except ValueError as error:
        field_path = str(error).split(maxsplit=1)[0].rstrip(":")
        raise StateInvalid(
            path, f"{path}: {error}; correct it with the bot halted, then run again", field_path
        ) from error
    return Records(entries, by_asset)


# What is in scope


def _scope(reading: Reading, entries: Entries, options: Options) -> tuple[str, ...]:
    """Assets to answer for: recorded, filled in the window asked for, or adopted.

    A currency that a cross pair brought in counts as filled; one that only paid for something does
    not, unless it is recorded.
    """
    found = set(entries.keys)
    for fill in reading.asked:
        found.add(fill.base)
        if fill.side is Side.SELL and fill.quote not in CASH:
            found.add(fill.quote)
    wanted = {product.replace("/", "-").partition("-")[0] for product in options.products}
    _require_known(reading, found, options, wanted)
    found |= options.adopt | options.asked
    wanted |= options.asked
    return tuple(sorted(asset for asset in found if not wanted or asset in wanted))


def _require_known(reading: Reading, found: set[str], options: Options, wanted: set[str]) -> None:
    """A name nobody knows is a typing mistake, and a reserve that holds nothing back is a loss."""
    amounts = {} if reading.balances is None else reading.balances.amounts
    named = {
        "--product": wanted - found - options.adopt,
        "--adopt": options.adopt - set(amounts) - found,
        "--reserve": set(options.reserve) - set(amounts) - found if amounts else set(),
        "--assume-entry": set(options.assume_entry) - found - options.adopt - options.asked,
        "the command": options.asked - set(amounts) - found,
    }
    for option, unknown in named.items():
        if unknown:
            raise UsageError(
                f"{option} names {', '.join(sorted(unknown))}, which is neither in the state, nor "
                "filled in the window, nor in the balances; check the spelling"
            )


# Explaining

# Answers that a fill which is not at hand may be the cause of.
_IN_DOUBT = frozenset(
    {Status.ASSUMED, Status.PARTIAL, Status.AMBIGUOUS, Status.UNEXPLAINED_OUTFLOW}
)


def searched(source: FillSource, options: Options, records: Records, window: Window) -> Search:
    """Return the search, done.

    Raises:
        SourceError: fills or balances could not be read whole.
        UsageError: the options name an asset that nobody knows.
    """
    reading = read_steadily(source, window)
    _require_an_account(source, reading, records)
    search = Search(source, options, records, _scope(reading, records.entries, options), reading)
    search.run()
    return search


def _require_an_account(source: FillSource, reading: Reading, records: Records) -> None:
    """An exchange that lists no account at all has not said that nothing is held."""
    balances, recorded = reading.balances, records.entries.keys
    if balances is not None and balances.complete and not balances.amounts and recorded:
        raise IncompleteRead(
            f"{source.name} lists no account at all, while the state records "
            f"{', '.join(sorted(recorded))}: as if the key were bound to another portfolio; check "
            "that; nothing was computed"
        )


class Search:
    """Asks for every asset in scope, and reads further back while one needs older fills."""

    def __init__(
        self,
        source: FillSource,
        options: Options,
        records: Records,
        scope: tuple[str, ...],
        reading: Reading,
    ) -> None:
        self.source = source
        self.options = options
        self.records = records
        self.scope = scope
        self.reading = reading
        self.products: dict[str, Product] = {}
        self.findings: dict[str, Finding] = {}
        self._asked_for: set[str] = set()

    def run(self) -> None:
        while True:
            self._fetch_products()
            for asset in self.scope:
                if asset not in self.findings:
                    question = self._question(asset)
                    finding = explain(question)
                    if finding is not None:
                        self.findings[asset] = self._doubted(question, finding)
            if len(self.findings) == len(self.scope):
                return
            self.reading = read_older(self.source, self.reading, self._max_hours)

    @property
    def in_doubt(self) -> tuple[str, ...]:
        """Assets whose answer may be for want of a fill."""
        return tuple(a for a, found in self.findings.items() if found.status in _IN_DOUBT)

    @property
    def _max_hours(self) -> Decimal:
        return max(self.options.max_hours, self.reading.window.hours)

    def _fetch_products(self) -> None:
        keys = self.records.entries.keys
        quotes = {a: [q for key in keys[a] if (q := quote_of(key))] for a in keys}
        needed = products_needed(self.scope, self.reading.fills, quotes)
        self.products |= self.source.products(sorted(needed - self._asked_for))
        self._asked_for |= needed

    @exact
    def _question(self, asset: str) -> Question:
        reading, options = self.reading, self.options
        complete = reading.complete()
        return Question(
            asset=asset,
            movements=movements_of(asset, reading.fills),
            balance=self._balance(asset),
            increment=increment_of(asset, self.products),
            dust=dust_of(asset, self.products, self._last_price(asset)),
            since=reading.window.searched_since,
            exhausted=complete or reading.window.searched_hours >= self._max_hours,
            complete=complete,
            method=options.method,
            recorded=self.records.by_asset.get(asset),
            assumed_entry=options.assume_entry.get(asset),
            strict=options.strict_state,
            prove_entry=options.prove_entries,
        )

    def _balance(self, asset: str) -> Decimal | None:
        """Units that are the bot's at the end of the window, None when not at hand.

        That the balances do not list an asset means that none is owned, if it is an asset at all:
        a key nobody but the state knows may be any spelling of something that is held.
        """
        balances = self.reading.balances
        if balances is None:
            return None
        owned = balances.of(asset)
        if owned is None or (asset not in balances.amounts and not self._is_known(asset)):
            return None
        later = movements_of(asset, self.reading.later)
        owned -= sum((movement.units for movement in later), ZERO)
        reserve = self.options.reserve.get(asset, ZERO)
        if reserve and reserve > owned:
            raise UsageError(
                f"--reserve {asset}={text(reserve)} is more than the wallet holds ({text(owned)})"
            )
        return owned - reserve

    def _is_known(self, asset: str) -> bool:
        return any(product.base == asset for product in self.products.values()) or any(
            asset in (fill.base, fill.quote) for fill in self.reading.read.fills
        )

    def _last_price(self, asset: str) -> Decimal | None:
        """USD price of the newest fill, for the dust threshold only."""
        fills = (fill for fill in reversed(self.reading.fills) if fill.base == asset)
        return next((fill.price for fill in fills if settled_in(fill.quote) == "USD"), None)

    def _doubted(self, question: Question, finding: Finding) -> Finding:
        """Take back what was found where something beside the fills speaks against it."""
        asset = question.asset
        keys = self.records.entries.keys.get(asset, ())
        if asset in self.reading.moving:
            reason = f"the balance moved in each of {ATTEMPTS} readings; stop what trades it"
            return replace(finding, status=Status.MOVING, reason=reason)
        if movements_of(asset, self.reading.later):
            reason = "it was traded after --until: this is what was held then, not what is held now"
            return replace(finding, status=Status.MOVING, reason=reason)
        if len(keys) > 1:
            reason = f"the state records it twice, as {' and '.join(keys)}; remove one of them"
            return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        if question.recorded is not None and question.recorded.units < 0:
            reason = "the state records a short, which neither spot fills nor a balance can prove"
            return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        if question.balance is None and finding.status is Status.EXACT:
            return self._doubted_size(finding)
        return finding

    def _doubted_size(self, finding: Finding) -> Finding:
        """Without a balance nothing but the fee can tell a size in the wrong unit."""
        for movement in finding.movements:
            why = self.reading.misread.get(movement.fill.entry_id)
            if why is not None:
                reason = f"{movement.fill.origin}: {why}; its size may be in the wrong unit"
                return replace(finding, status=Status.AMBIGUOUS, reason=reason)
        return finding
