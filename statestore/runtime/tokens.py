"""Which tokens the positions of a state are about, one for all timeframes. Pure, no files.

A position that names a ``token_contract`` is of that contract on its ``token_chain``; any other is
of the product it is recorded under. What is not a token of a bot's choice is left out: the drivers
of a regime, which are made anew at every start, and balances of a currency.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from statestore.amounts import ZERO, exact, parse_amount
from statestore.runtime.addresses import one_spelling
from statestore.runtime.sections import QUANTITIES, UNITS
from statestore.runtime.statuses import is_driver, is_of_status, status_of

_TICKERS = ("token_ticker", "product_id", "symbol")


class TokenId(NamedTuple):
    """What a token is told apart by: its contract and chain, or where it has none, its product."""

    contract: str | None
    chain: str | None
    product: str | None = None

    @property
    def identity(self) -> TokenId:
        """What it is compared by: one contract in two spellings is one token."""
        return self._replace(contract=one_spelling(self.contract)) if self.contract else self

    def __str__(self) -> str:
        """Return what its bars are kept under: ``solana:Demo1111``, or ``ETH-USD``."""
        if self.contract is None:
            return str(self.product)
        return f"{self.chain}:{self.contract}" if self.chain else self.contract


@dataclass(frozen=True, slots=True)
class Row:
    """One position as the state has it."""

    key: str
    entry: Mapping[str, Any]

    @property
    def token(self) -> TokenId:
        """The key is what a product is known by, whatever else its entry calls it."""
        named = identity_of(self.entry)
        return named if named and named.contract is not None else TokenId(None, None, self.key)

    @property
    def timeframe(self) -> str | None:
        return _text(self.entry, "timeframe")

    @property
    def units(self) -> Decimal | None:
        return units_of(self.entry)

    @property
    def digest(self) -> str:
        return digest_of(self.entry)


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its positions.

    Attributes:
        rows: those that were asked for, in the order of the state.
        others: its other ones, of another status.
    """

    id: TokenId
    ticker: str
    rows: tuple[Row, ...]
    others: tuple[Row, ...] = ()

    @property
    def held(self) -> tuple[Row, ...]:
        """The rows that hold units, or may: what is not known is not nothing."""
        return tuple(row for row in self.rows if row.units != ZERO)


def tokens_in(positions: Mapping[str, Any], status: str | None = None) -> list[Token]:
    """Return each token that has a position of this status (of any, where None), once.

    Args:
        status: as `statuses.is_of_status` understands it.
    """
    found: dict[TokenId, list[Row]] = {}
    for row in _rows(positions):
        found.setdefault(row.token.identity, []).append(row)
    tokens = []
    for rows in found.values():
        asked = tuple(row for row in rows if is_of_status(row.entry, status))
        if asked:
            others = tuple(row for row in rows if row not in asked)
            token = asked[0].token
            tokens.append(Token(token, ticker_of(asked[0].entry, token), asked, others))
    return tokens


def statuses(positions: Mapping[str, Any]) -> list[str]:
    """Return which statuses there are to ask for."""
    return sorted({status_of(row.entry) for row in _rows(positions)})


def ticker_of(entry: Mapping[str, Any], token: TokenId) -> str:
    """Return what people call the token."""
    named = (_text(entry, name) for name in _TICKERS)
    return next((name for name in named if name), token.contract or str(token))


@exact
def units_of(entry: object) -> Decimal | None:
    """Return how much a position holds; None where it does not say, or says what is no number.

    Where its fields contradict each other, the largest counts: it may be held.
    """
    if not isinstance(entry, Mapping):
        return None
    try:
        said = [parse_amount(entry[name]) for name in UNITS if entry.get(name) is not None]
    except ValueError:
        return None
    return max(said, key=abs, default=None)


@exact
def sum_of_units(rows: tuple[Row, ...]) -> Decimal | None:
    """Return the units of all rows together, None where one is not known."""
    units = [row.units for row in rows]
    known = [amount for amount in units if amount is not None]
    return sum(known, ZERO) if len(known) == len(units) else None


def digest_of(value: object) -> str:
    """Return a sum that is equal for equal values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(positions: Mapping[str, Any]) -> Iterator[Row]:
    for key, entry in positions.items():
        row = Row(key, entry if isinstance(entry, Mapping) else {})
        if not (is_driver(row.entry) or _is_balance(row)):
            yield row


def _is_balance(row: Row) -> bool:
    """A currency with ``available hold total``, which nobody opened."""
    return "available" in row.entry and not any(name in row.entry for name in QUANTITIES)


def identity_of(row: Mapping[str, Any]) -> TokenId | None:
    """Return the token that a position, or a row of an export, names by itself; None if none."""
    contract = _text(row, "token_contract")
    if contract is not None:
        return TokenId(contract, _text(row, "token_chain"))
    product = _text(row, "product_id")
    return None if product is None else TokenId(None, None, product)


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return value if isinstance(value, str) and value else None
