"""Where fills come from. A source reads, and can do nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from statestore.model import Balances, Batch, ExchangeOrder, KeyPermissions, Product


class ReadOnlyViolation(RuntimeError):
    """Something tried to do more than read. A bug, so not a `StateStoreError`."""


class FillSource(Protocol):
    """The least a rebuild needs of an exchange, a file or a cache.

    Every method raises a `statestore.errors.SourceError` when it cannot give a whole answer; none
    answers a failure with an empty value.
    """

    @property
    def name(self) -> str:
        """Where the fills come from, for reports (``api.coinbase.com``, ``fills.csv``)."""

    def fills(self, since: int, until: int | None) -> Batch:
        """Return at least every row executed in ``[since, until)``; more does no harm."""

    def balances(self) -> Balances | None:
        """Return what is owned now, or None: this source does not know."""

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        """Return the products that are known, by id; an unknown id is left out."""


@runtime_checkable
class OrderSource(Protocol):
    """What became of orders, told by the exchange. It can do nothing else: nothing is placed.

    Every method raises a `statestore.errors.SourceError` when it cannot give a whole answer.
    """

    @property
    def name(self) -> str:
        """Who says it, for reports."""

    def orders(self, since: int) -> Sequence[ExchangeOrder]:
        """Return every order made at or after an instant, whatever became of it."""

    def order(self, exchange_order_id: str) -> ExchangeOrder | None:
        """Return one order, None where the exchange does not know it."""


@runtime_checkable
class RememberingSource(FillSource, Protocol):
    """A source that may give rows from an earlier read."""

    def afresh(self) -> FillSource | None:
        """Return the same source without its memory, or None if it gave nothing from memory."""


@runtime_checkable
class TellsPermissions(Protocol):
    """A source that can say what its key may do. Others cannot keep ``--require-view-only``."""

    def permissions(self) -> KeyPermissions:
        """Return what the key may do, asked of the exchange now."""


@runtime_checkable
class TellsTime(Protocol):
    """A source that knows what the exchange's clock says."""

    def server_time(self) -> int:
        """Return the instant by the exchange's clock, asked for now."""
