"""Values that travel through the package, and the unit of every number in them.

Amounts are `decimal.Decimal`, exact from the exchange's text. ``units`` are amounts of the base
asset, ``notional`` and ``cost`` amounts of a quote currency, ``price`` quote per base. Instants are
nanoseconds since 1970 in UTC (see `statestore.times`), but for what stands in a database: positions
and orders of a bot carry aware `datetime`s, as it does.

Nothing is checked or computed here but what a word itself says. One module, because a word of the
field is looked up in one place, whoever uses it: an exchange, or a bot's database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self

from statestore.amounts import exact

# Currencies counted as another one at 1, by the venue's own convention; said in every report.
PEGS: Mapping[str, str] = {"USDC": "USD"}

# Currencies that pay for positions and are none themselves: never reported as an unmanaged holding.
_FIAT = "AED AUD BRL CAD CHF CZK DKK EUR GBP HKD HUF INR JPY MXN NOK NZD PLN SEK SGD TRY USD ZAR"
_STABLE = "DAI EURC FDUSD GUSD PYUSD RLUSD TUSD USD1 USDC USDP USDS USDT"
CASH = frozenset(f"{_FIAT} {_STABLE}".split())


def settled_in(currency: str) -> str:
    """Return the unit of account of a quote currency: USDC counts as USD, others as themselves."""
    return PEGS.get(currency, currency)


_DERIVATIVES = frozenset({"PERP", "SWAP", "FUT", "INTX"})
_KEY = re.compile(r"([A-Z0-9]+)(?:[-/_]([A-Z][A-Z0-9]*))?", re.ASCII)


def asset_of(key: str) -> str | None:
    """Return the asset a key of a state's positions is about, None when it is about none.

    ``ETH``, ``ETH-USD``, ``eth/usd`` and ``ETH_USD`` are ETH.
    """
    match = _KEY.fullmatch(key.upper())
    return None if match is None or match[2] in _DERIVATIVES else match[1]


def quote_of(key: str) -> str | None:
    """Return the quote currency a key names, None when it names none."""
    match = _KEY.fullmatch(key.upper())
    return match[2] if match else None


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"


class FillKind(StrEnum):
    """``trade_type`` of a fill row. Only FILL has a certain sign."""

    FILL = "FILL"
    REVERSAL = "REVERSAL"
    CORRECTION = "CORRECTION"
    SYNTHETIC = "SYNTHETIC"


class Method(StrEnum):
    """Which units a sell takes: all alike (average cost), the oldest, or the newest."""

    AVERAGE = "average"
    FIFO = "fifo"
    LIFO = "lifo"


class Status(StrEnum):
    """What a window of fills proves about one asset. FILL_RECONCILIATION.md has the table."""

    EXACT = "EXACT"
    CARRIED = "CARRIED"
    ASSUMED = "ASSUMED"
    PARTIAL = "PARTIAL"
    AMBIGUOUS = "AMBIGUOUS"
    UNEXPLAINED_OUTFLOW = "UNEXPLAINED_OUTFLOW"
    DUST = "DUST"
    UNCOVERED = "UNCOVERED"
    MOVING = "MOVING"


# What to tell somebody who has never heard of them.
STATUS_MEANINGS: Mapping[Status, str] = {
    Status.EXACT: "Proven: the fills explain every unit that is held, and what it cost.",
    Status.CARRIED: "Proven: the fills do not reach back to the purchase, but they lead from the "
    "recorded quantity to the balance, so the recorded entry carries on.",
    Status.ASSUMED: "The quantity is proven; the cost of the units no fill explains is what the "
    "operator said it was.",
    Status.PARTIAL: "Not proven: the quantity is certain, the entry price is not. Units are left "
    "over that no fill explains, or the cost was paid in more than one currency.",
    Status.AMBIGUOUS: "Not proven: there is more than one way to read it, and they disagree.",
    Status.UNEXPLAINED_OUTFLOW: "Not proven: the quantity is certain, but units left without a "
    "fill (a withdrawal, a conversion), so what is left may have another cost than the fills say.",
    Status.DUST: "Too little to be a position: worth under 1 USD, or less than the smallest order.",
    Status.UNCOVERED: "Not proven: there is no balance to start from, and the fills alone do not "
    "add up to what is recorded.",
    Status.MOVING: "Not proven: it was traded while it was read, or after --until.",
}


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution the exchange reports, as it is read: no accounting has happened yet.

    Attributes:
        entry_id: identity of the row within a portfolio; what duplicates are found by.
        product_id: as submitted, ``BTC-USD``.
        units: base units, positive, before any fee.
        price: quote per base.
        notional: quote, positive, before any fee.
        commission: positive is paid, negative is a rebate; in ``commission_currency``.
        time: when it was executed.
        sequence: when it was posted, None where the row does not say.
        quoted: the size was given in quote, so ``units`` is a quotient that may not end.
        origin: where the row stands, for messages (``fills.csv line 4``, or
            ``row 17 of 2025-11-18T04:29:43Z``, counted from the newest row that was read).
    """

    entry_id: str
    trade_id: str
    order_id: str
    product_id: str
    base: str
    quote: str
    side: Side
    units: Decimal
    price: Decimal
    notional: Decimal
    commission: Decimal
    commission_currency: str
    time: int
    sequence: int | None
    kind: FillKind = FillKind.FILL
    quoted: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """A market of the exchange.

    Attributes:
        base_increment: smallest step of base units, None when unknown.
        base_min_size: smallest order in base units, None when unknown.
        price: last price, quote per base, None when unknown.
        spot: False for futures and perpetuals.
    """

    product_id: str
    base: str
    quote: str
    base_increment: Decimal | None = None
    base_min_size: Decimal | None = None
    price: Decimal | None = None
    spot: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One undecoded fill row and where it stands."""

    payload: Mapping[str, object]
    origin: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read of a source gave.

    Attributes:
        rows: in the source's own order.
        pages: how many answers they came in.
        exhausted: the source holds nothing older than these rows.
    """

    rows: tuple[Row, ...]
    pages: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class KeyPermissions:
    """What an exchange key may do, and the portfolio it is bound to."""

    can_view: bool
    can_trade: bool
    can_transfer: bool
    portfolio_id: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A fill row that could not be read for certain; one of these stops a rebuild from writing."""

    entry_id: str
    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Normalised:
    """Fills read for certain, oldest first, and everything that was not."""

    fills: tuple[Fill, ...]
    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_products: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Balances:
    """What is owned by currency, available and held together.

    Attributes:
        amounts: by currency.
        complete: a currency that is not listed is not owned. False: it is just not known here.
    """

    amounts: Mapping[str, Decimal]
    complete: bool = True

    def of(self, asset: str) -> Decimal | None:
        """Return what is owned of ``asset``, None when that is not known."""
        return self.amounts.get(asset, Decimal(0) if self.complete else None)


# Positions and orders of a bot, as they stand in a database ------------------------------------


class _CaseBlind(StrEnum):
    """Read in upper or lower case; written as it is spelt here."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        wanted = value.strip().casefold() if isinstance(value, str) else None
        return next((member for member in cls if member.value.casefold() == wanted), None)


class PositionSide(_CaseBlind):
    """LONG, or SHORT; ``buy`` and ``sell`` are understood as the fills that open them."""

    LONG = "LONG"
    SHORT = "SHORT"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        said = value.strip().casefold() if isinstance(value, str) else value
        return super()._missing_({"buy": "LONG", "sell": "SHORT"}.get(str(said), value))


class PositionStatus(_CaseBlind):
    OPEN = "OPEN"
    PARTIALLY_CLOSED = "PARTIALLY_CLOSED"
    CLOSED = "CLOSED"
    LIQUIDATED = "LIQUIDATED"

    @property
    def held(self) -> bool:
        return self in (PositionStatus.OPEN, PositionStatus.PARTIALLY_CLOSED)


class OrderSide(_CaseBlind):
    BUY = "buy"
    SELL = "sell"


class OrderType(_CaseBlind):
    MARKET = "market"
    LIMIT = "limit"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"

    @property
    def protects(self) -> bool:
        return self in (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)


class OrderStatus(_CaseBlind):
    """PENDING: known here, not (surely) at the exchange. OPEN: at the exchange, perhaps partly
    filled. The others are final."""

    PENDING = "pending"
    OPEN = "open"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        said = value.strip().casefold() if isinstance(value, str) else value
        return super()._missing_("cancelled" if said == "canceled" else value)

    @property
    def live(self) -> bool:
        return self in (OrderStatus.PENDING, OrderStatus.OPEN)


_sum = exact(Decimal.__add__)


@dataclass(slots=True, kw_only=True)
class Position:
    """What a bot holds of one symbol on one side.

    Attributes:
        position_id: a UUID; the same in every process, for ever.
        quantity: still held, in base units; never negative, the side says the direction.
        initial_quantity: everything that was ever opened; equals ``quantity`` until some is closed.
        entry_price: average cost per base unit of what is held, fees excluded.
        current_price: the last price known; ``entry_price`` until there is one.
        unrealized_pnl: of what is held, at ``current_price``, before fees.
        unrealized_pnl_pct: the same in percent of its cost.
        realized_pnl: of what was closed, before fees.
        total_pnl: both together.
        stop_loss, take_profit: prices, None where there is none. The orders are what counts.
        entry_time: when it was opened; aware.
        closed_at: when nothing was left; aware.
        metadata: anything else; numbers in it are exact.
    """

    position_id: str
    exchange: str
    symbol: str
    side: PositionSide
    quantity: Decimal
    entry_price: Decimal
    entry_time: datetime
    initial_quantity: Decimal = None  # type: ignore[assignment]  # quantity
    current_price: Decimal = None  # type: ignore[assignment]  # entry_price
    unrealized_pnl: Decimal = Decimal(0)
    unrealized_pnl_pct: Decimal = Decimal(0)
    realized_pnl: Decimal = Decimal(0)
    total_pnl: Decimal = None  # type: ignore[assignment]  # realised + unrealised
    stop_loss: Decimal | None = None
    take_profit: Decimal | None = None
    status: PositionStatus = PositionStatus.OPEN
    leverage: Decimal | None = Decimal(1)
    margin: Decimal | None = None
    closed_at: datetime | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.initial_quantity is None:
            self.initial_quantity = self.quantity
        if self.current_price is None:
            self.current_price = self.entry_price
        if self.total_pnl is None:
            self.total_pnl = _sum(self.realized_pnl, self.unrealized_pnl)


@dataclass(slots=True, kw_only=True)
class Order:
    """One order of a bot, linked to the position it opens, grows or closes.

    Attributes:
        order_id: ours. It is sent to the exchange as the client's order id, which makes it refuse
            the same order twice.
        quantity: asked for, in base units.
        price: the trigger of a stop-loss or take-profit, the limit of a limit order.
        filled_quantity, filled_value: all fills so far, in base and in quote, before fees.
        filled_price: their average, None before the first.
        fees: as far as they are known, in quote.
        oco_group: orders of which one cancels the others.
        exchange_order_id: None until the exchange has it.
        triggered_at: when somebody was last told to act on a price that crossed.
        cancel_wanted_at: it should go, but only the exchange can say that it is gone.
    """

    order_id: str
    exchange: str
    symbol: str
    side: OrderSide
    order_type: OrderType
    quantity: Decimal
    position_id: str | None = None
    price: Decimal | None = None
    status: OrderStatus = OrderStatus.PENDING
    filled_quantity: Decimal = Decimal(0)
    filled_value: Decimal = Decimal(0)
    filled_price: Decimal | None = None
    fees: Decimal | None = None
    filled_at: datetime | None = None
    oco_group: str | None = None
    exchange_order_id: str | None = None
    triggered_at: datetime | None = None
    cancel_wanted_at: datetime | None = None
    error_message: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None

    @property
    def left(self) -> Decimal:
        """What of it is not filled."""
        return max(self.quantity - self.filled_quantity, Decimal(0))


@dataclass(frozen=True, slots=True)
class ExchangeOrder:
    """What an exchange says of one order, in all: not what happened since the last time.

    Attributes:
        client_order_id: the id its sender gave it, None without one.
        status: None where the exchange's own word, ``said``, is not one we know.
        filled_quantity, filled_value: in base and in quote, before fees.
        fees: in quote, None when not known.
        reason: why it was refused, empty where it was not.
        venue: who says it.
    """

    exchange_order_id: str
    symbol: str
    side: OrderSide
    status: OrderStatus | None
    said: str
    filled_quantity: Decimal
    filled_value: Decimal
    quantity: Decimal | None = None
    price: Decimal | None = None
    client_order_id: str | None = None
    fees: Decimal | None = None
    filled_at: datetime | None = None
    reason: str = ""
    venue: str = "the exchange"
