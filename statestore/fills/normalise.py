"""Rows as an exchange sends them, made into fills that mean one thing only.

What is promised: exact numbers, a known side, a known unit of the size, an exact time, one fill per
``entry_id``, oldest first. A row that leaves any of that open is rejected with the reason, never
guessed; rows of products that are not spot are counted and named, never replayed.

Nothing is accounted here: units are gross, fees stay beside them (see `replay`).
The names of a row's fields are the exchange's (List Fills), and end here and in `decoding`.
``size`` is an amount of quote where ``size_in_quote`` is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from statistics import median

from statestore.amounts import ZERO, exact, json_type, parse_amount
from statestore.errors import IncompleteRead
from statestore.fills.decoding import LONGEST_TEXT
from statestore.model import Batch, Fill, FillKind, Normalised, Rejected, Row, Side
from statestore.times import parse_instant

# Of the notional. Fee schedules lie between 0.001 % (stable pairs) and about 4 % (simple app);
# outside of it, the size was most likely read in the wrong unit.
_PLAUSIBLE_RATE = (Decimal("0.00001"), Decimal("0.1"))
_PLAUSIBLE_REBATE = Decimal("-0.01")
_FAR_BELOW = 50  # times less than the median of the product's other fills


class Skipped(Exception):
    """The row is understood, and not ours to replay."""

    def __init__(self, category: str, product_id: str = "") -> None:
        super().__init__(category)
        self.category = category
        self.product_id = product_id


@exact
def normalise(batches: Iterable[Batch]) -> Normalised:
    """Return the fills of all batches, oldest first, each ``entry_id`` once.

    A row that comes twice within one batch counts as a duplicate; one that two batches share does
    not, since reads overlap on purpose. The same id with another content is a conflict, and
    rejected.
    """
    known: dict[str, Fill] = {}
    rejected: dict[tuple[str, str], Rejected] = {}
    skipped: dict[str, set[str]] = {}
    skipped_products: set[str] = set()
    duplicates = 0
    for batch in batches:
        of_this_batch: set[str] = set()
        for row in batch.rows:
            try:
                fill = fill_from_row(row)
                duplicates += fill.entry_id in of_this_batch
                of_this_batch.add(fill.entry_id)
                former = known.setdefault(fill.entry_id, fill)
                if former is not fill:
                    _refuse_conflict(former, fill)
            except Skipped as skip:
                identity = str(row.payload.get("entry_id") or row.origin)
                skipped.setdefault(skip.category, set()).add(identity)
                skipped_products.add(skip.product_id)
            except ValueError as error:
                entry_id = str(row.payload.get("entry_id") or "")
                reason = Rejected(entry_id, row.origin, str(error))
                rejected.setdefault((entry_id or row.origin, reason.reason), reason)
    return Normalised(
        fills=tuple(oldest_first(known.values())),
        rejected=tuple(rejected.values()),
        duplicates=duplicates,
        skipped={category: len(rows) for category, rows in skipped.items()},
        skipped_products=tuple(sorted(skipped_products - {""})),
    )


def oldest_first(fills: Iterable[Fill]) -> list[Fill]:
    """Return the fills in the order they are replayed in; rows still tied stand by ``entry_id``."""
    return sorted(fills, key=lambda fill: (*instant(fill), fill.entry_id))


def instant(fill: Fill) -> tuple[int, int, int]:
    """Return what orders a fill: execution, posting, then the trade id where ids are numbers.

    Two fills of one instant are tied: nothing the exchange says puts one before the other.
    """
    posted = fill.time if fill.sequence is None else fill.sequence
    return fill.time, posted, trade_number(fill.trade_id)


def trade_number(trade_id: str) -> int:
    """Return the trade id where ids are numbers, -1 where they are not."""
    return int(trade_id) if trade_id.isascii() and trade_id.isdigit() else -1


@exact
def fill_from_row(row: Row) -> Fill:
    """Return the one fill a List Fills row means.

    Raises:
        ValueError: the row leaves something open; the message names the field, what it holds and
            what it has to be.
    """
    payload = row.payload
    product_id = _text(payload, "product_id")
    base, quote = _spot_pair(product_id)
    kind = _kind(payload)
    trade_id = _text(payload, "trade_id", needed=False)
    # Trade ids are unique for kind FILL only; a row of another kind needs its own identity.
    fallback = trade_id if kind is FillKind.FILL else ""
    entry_id = _text(payload, "entry_id", needed=not fallback) or fallback
    side = _side(payload)
    price = _amount(payload, "price")
    size = _amount(payload, "size")
    if price <= 0:
        raise ValueError(f"price {price} is not above zero")
    if size < 0:
        raise ValueError(f"size {size} is negative; the side says buy or sell, the size how much")
    if size == 0:
        raise Skipped("zero")
    quoted = _quoted(payload)
    fill = Fill(
        entry_id=entry_id,
        trade_id=trade_id,
        order_id=_text(payload, "order_id", needed=False),
        product_id=product_id,
        base=base,
        quote=quote,
        side=side,
        units=size / price if quoted else size,
        price=price,
        notional=size if quoted else size * price,
        commission=_commission(payload),
        commission_currency=_text(payload, "commission_currency", needed=False) or quote,
        time=_time(payload, "trade_time"),
        sequence=_time(payload, "sequence_timestamp")
        if payload.get("sequence_timestamp")
        else None,
        kind=kind,
        quoted=quoted,
        origin=row.origin,
    )
    if fill.commission_currency == base and fill.commission >= fill.units:
        raise ValueError(f"commission {fill.commission} {base} is not below the size {fill.units}")
    return fill


@exact
def implausible_fees(fills: Sequence[Fill]) -> dict[str, str]:
    """Return, by ``entry_id``, fills whose fee hints that the size was read in the wrong unit.

    A fee that is no plausible share of the notional, or is far below what the product's other
    fills paid, is what 2.64 USD worth of ETH looks like when it is read as 2.64 ETH.
    """
    rates: dict[str, dict[str, Decimal]] = {}
    for fill in fills:
        if fill.commission and fill.commission_currency == fill.quote:
            rates.setdefault(fill.product_id, {})[fill.entry_id] = fill.commission / fill.notional
    found: dict[str, str] = {}
    for by_id in rates.values():
        typical = median(by_id.values()) if len(by_id) > 3 else None
        for entry_id, rate in by_id.items():
            if not (
                _PLAUSIBLE_REBATE <= rate < 0 or _PLAUSIBLE_RATE[0] <= rate <= _PLAUSIBLE_RATE[1]
            ):
                found[entry_id] = f"its fee is {rate:.2e} of its notional, which no schedule has"
            elif typical is not None and 0 < rate * _FAR_BELOW < typical:
                found[entry_id] = f"its fee rate {rate:.2e} is far below the others' {typical:.2e}"
    return found


@exact
def balances_of(accounts: Iterable[object], origin: str) -> dict[str, Decimal]:
    """Return what is owned by currency: available plus held by open orders, over all accounts.

    Args:
        accounts: List Accounts rows: ``currency``, ``available_balance.value``, ``hold.value``.
            One that slid onto the next page between two reads comes twice, with one ``uuid``, and
            counts once.
        origin: where they come from, for the message.

    Raises:
        IncompleteRead: a row is not an account, or an amount is not a number.
    """
    total: dict[str, Decimal] = {}
    counted: set[str] = set()
    for number, account in enumerate(accounts, 1):
        try:
            if not isinstance(account, Mapping):
                raise ValueError(f"it is {json_type(account)}, not an object")
            uuid = _text(account, "uuid", needed=False)
            if uuid and uuid in counted:
                continue
            counted.add(uuid)
            currency = _text(account, "currency")
            owned = _money(account, "available_balance", needed=True) + _money(account, "hold")
        except ValueError as error:
            raise IncompleteRead(
                f"{origin}: account {number} cannot be read: {error}; "
                "without it the balances are not whole, so nothing was computed"
            ) from error
        total[currency] = total.get(currency, ZERO) + owned
    return total


def _money(account: Mapping[str, object], name: str, *, needed: bool = False) -> Decimal:
    money = account.get(name)
    if money is None and not needed:
        return ZERO
    value = money.get("value") if isinstance(money, Mapping) else money
    if value == "" and not needed:
        return ZERO
    try:
        return parse_amount(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _text(payload: Mapping[str, object], name: str, *, needed: bool = True) -> str:
    value = payload.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value):
        found = "is missing" if value in (None, "") else f"is {value!r:.40}, not a text"
        raise ValueError(f"{name} {found}")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{name} is {len(value)} characters long, more than {LONGEST_TEXT}")
    return value


def _amount(payload: Mapping[str, object], name: str) -> Decimal:
    if payload.get(name) in (None, ""):
        raise ValueError(f"{name} is missing")
    try:
        return parse_amount(payload[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _commission(payload: Mapping[str, object]) -> Decimal:
    detail = payload.get("commission_detail_total")
    restated = detail.get("total_commission") if isinstance(detail, Mapping) else None
    for name, value in (("commission", payload.get("commission")), ("commission", restated)):
        if value not in (None, ""):
            return _amount({name: value}, name)
    return ZERO


def _time(payload: Mapping[str, object], name: str) -> int:
    try:
        return parse_instant(_text(payload, name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _side(payload: Mapping[str, object]) -> Side:
    side = payload.get("side")
    if side not in ("BUY", "SELL"):
        raise ValueError(f"side is {side!r:.40}, neither BUY nor SELL")
    return Side(str(side))


def _kind(payload: Mapping[str, object]) -> FillKind:
    kind = payload.get("trade_type") or FillKind.FILL
    try:
        return FillKind(str(kind))
    except ValueError:
        raise ValueError(
            f"trade_type is {kind!r:.40}, none of {', '.join(FillKind)}; its sign is not known"
        ) from None


def _quoted(payload: Mapping[str, object]) -> bool:
    quoted = payload.get("size_in_quote")
    if quoted is None:
        return False
    if not isinstance(quoted, bool):
        raise ValueError(f"size_in_quote is {quoted!r:.40}, neither true nor false")
    return quoted


def _spot_pair(product_id: str) -> tuple[str, str]:
    parts = product_id.split("-")
    if len(parts) > 2:
        raise Skipped("futures", product_id)
    if len(parts) != 2 or not all(parts) or not product_id.isprintable():
        raise ValueError(f"product_id {product_id!r:.40} is not BASE-QUOTE")
    return parts[0], parts[1]


def _refuse_conflict(former: Fill, fill: Fill) -> None:
    if replace(former, origin="") != replace(fill, origin=""):
        raise ValueError(
            f"this entry_id was read before with another content ({former.origin or 'earlier row'})"
        )
