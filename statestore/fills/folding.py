"""Fills of one asset after the other taken into account, a line at a time, and forgotten.

The figures are those of `replay` as long as an asset's fills stand in the file in the order they
are replayed in. That is checked for every fill; an asset for which it does not hold is marked to be
replayed from a second reading. Rows that leave nothing open (`PlainRow`) go into an `Average` as
they are, all others by `movements_of` into a `Book`. That no identity comes twice is for the caller
to check, who gets the hashes of all.

A range of a file but its first does not know what was held before it: see `_Guess`.

It is long for a module because which way a row may go (the average, the book, a second reading) is
kept by the fold, its accounts and their guesses together, in fields that all three of them set.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from statestore.fills.average import Average
from statestore.fills.book import Book, Position, position_of
from statestore.fills.decoding import PlainRow, PlainRows, decode_json, plain_rows, widened
from statestore.fills.movements import movements_of
from statestore.fills.normalise import Skipped, fill_from_row, trade_number
from statestore.fills.sources.recorded import is_fill
from statestore.model import CASH, Fill, FillKind, Method, Row, Side, settled_in
from statestore.times import format_instant, parse_instant

# A guess is trusted when it was right and has seen so many fills.
_SURE_AFTER = 128

BLANKS = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Rules:
    """How fills are accounted, and which: those in ``[since, until)``."""

    method: Method = Method.AVERAGE
    increment: Decimal = Decimal("1E-8")
    since: int | None = None
    until: int | None = None

    def in_window(self, fills: Iterable[Fill]) -> list[Fill]:
        return [fill for fill in fills if self.covers(fill.time)]

    def covers(self, time: int) -> bool:
        return (self.since is None or self.since <= time) and (
            self.until is None or time < self.until
        )


# A row, its time, its price, its size, its commission.
_Columns = tuple[PlainRow, str, Decimal, Decimal, Decimal]


class NotLines(Exception):
    """The file is not one fill a line."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One asset.

    Attributes:
        fills: how many moved it; ``first`` and ``last``: instants of the oldest and the newest.
        adjusted: some were of a kind whose sign only a balance can tell; taken as they stand.
    """

    position: Position
    fills: int
    first: int
    last: int
    adjusted: bool = False


def legs_of(product_id: str) -> tuple[str, ...]:
    """Assets a fill of the product moves; none where it is not spot."""
    legs = tuple(product_id.split("-"))
    return legs if len(legs) == 2 and all(legs) else ()


def origin_of(name: str, line: int) -> str:
    return f"{name} line {line}"


class _Account:
    """One asset while its fills are read.

    Attributes:
        average: the account while average cost in one currency is all it takes; else ``book`` is.
        buy, sell: of the average, or of the guess that stands before it.
        last: the newest row, or fill, so far; ``time`` and ``first`` are times as wide texts.
        orderly: tied rows stood by their identity so far.
        filled: it was traded as such, and has not only paid for something.
        again: it has to be replayed from a second reading.
    """

    __slots__ = (
        "adjusted",
        "again",
        "average",
        "book",
        "buy",
        "filled",
        "fills",
        "first",
        "last",
        "orderly",
        "products",
        "sell",
        "time",
    )

    def __init__(self) -> None:
        self.average: Average | None = None
        self.book: Book | None = None
        self.buy: Callable[..., object] = _nothing
        self.sell: Callable[..., bool] = _nothing
        self.last: PlainRow | Fill | None = None
        self.products: list[str] = []
        self.time = self.first = ""
        self.fills = 0
        self.adjusted = self.filled = self.again = False
        self.orderly = True

    def use(self, average: Average) -> None:
        self.average = average
        self.buy, self.sell = average.buy, average.sell

    def follows(self, row: PlainRow | Fill, time: str, units: Decimal | None) -> bool:
        """Whether a row no later than the last one still stands where it is replayed.

        Args:
            units: those of a plain row, None for a fill that the book takes.
        """
        last = self.last
        if time < self.time or last is None:
            return last is None
        before, this = _place(last), _place(row)
        if before != this:
            self.orderly = before < this
            return self.orderly
        if (last.product_id, last.side) != (row.product_id, row.side):
            return False
        self.orderly &= last.entry_id < row.entry_id
        if self.orderly and (units is not None or isinstance(last, Fill)):
            return True
        # The sums are the same in any order, unless one of them goes flat on the way.
        if self.average is None or units is None:
            return False
        return row.side == "BUY" or self.average.stays_open(units)

    def continue_from(self, before: _Account | None, guess: _Guess | None) -> None:
        """Be the account of all fills: those of ``before``, and one's own."""
        opening = None if self.average is None else self.average.fresh()
        if before is not None:
            earlier = before.average
            if earlier and opening and before.time < self.first:
                opening = earlier if earlier.charged == opening.charged else None
            else:
                opening = None
            self.first = before.first
            self.fills += before.fills
            self.filled |= before.filled
        resolved = None if opening is None or guess is None else guess.resolve(opening)
        self.average = resolved
        self.again = resolved is None

    def replayed(self) -> Replayed:
        book = self.book if self.average is None else self.average.book()
        assert book is not None
        return Replayed(
            position_of(book),
            self.fills,
            parse_instant(self.first),
            parse_instant(self.time),
            self.adjusted,
        )


def _nothing(*_: object) -> bool:
    return False


def _place(row: PlainRow | Fill) -> tuple[str, int]:
    """What orders rows of one time: posting, then the trade id."""
    if isinstance(row, PlainRow):
        return widened(row.sequence_timestamp), trade_number(row.trade_id or "")
    return _wide(row.time if row.sequence is None else row.sequence), trade_number(row.trade_id)


class Fold:
    """Takes lines into accounts.

    Attributes:
        accounts: by asset.
        hashes: of the identities of all rows; two that are equal are looked into.
        lines, rows: how many so far; a blank line is none of the rows.
        guessing: it is not known what was held before the first line.
    """

    def __init__(self, name: str, rules: Rules, *, guessing: bool = False) -> None:
        self.name = name
        self.rules = rules
        self.guessing = guessing
        self.accounts: dict[str, _Account] = {}
        self.guesses: dict[str, _Guess] = {}
        self.hashes = array("q")
        self.rejected: list[tuple[int, str, str]] = []
        self.skipped: dict[str, set[str]] = {}
        self.skipped_products: set[str] = set()
        self.lines = self.rows = 0
        self._routes: dict[str, _Account] = {}
        everything = rules.since is None and rules.until is None
        self._since = "" if rules.since is None else _wide(rules.since)
        self._until = "" if everything else "~" if rules.until is None else _wide(rules.until)

    def take(self, block: bytes) -> None:
        """Take in whole lines.

        Raises:
            NotLines: one of them is no fill.
        """
        read = plain_rows(block)
        if read is not None:
            self._plain(read)
        else:
            for line in block.splitlines(keepends=True):
                self._line(line)

    def _line(self, line: bytes) -> None:
        read = plain_rows(line)
        if read is not None:
            self._plain(read)
            return
        self.lines += 1
        if not line.strip(BLANKS):
            return
        self.rows += 1
        try:
            document = decode_json(line)
        except ValueError:
            raise NotLines from None
        if not is_fill(document):
            raise NotLines
        fill = self._read(Row(document, origin_of(self.name, self.lines)), self.lines)
        if fill is not None:
            self.hashes.append(hash(fill.entry_id))
            self._take_fill(fill)

    def _plain(self, read: PlainRows) -> None:
        self.hashes.extend(map(hash, read.ids))
        columns: Iterable[_Columns]
        columns = zip(read.rows, read.times, read.prices, read.sizes, read.commissions, strict=True)
        if self._since or self._until:
            columns = self._within(read, columns)
        route = self._routes.get
        for row, time, price, size, fee in columns:
            account = route(row.product_id) or self._route(row, time)
            if account is None:
                self._odd(read, row)
                continue
            quoted = row.size_in_quote
            if quoted:
                units, notional = size / price, size
            else:
                units, notional = size, size * price
            if time <= account.time and not account.follows(row, time, units):
                self._leave(account)
                continue
            if row.side == "BUY":
                account.buy(units, notional, fee, time, quoted)
            elif not account.sell(units, notional, fee, quoted):
                self._odd(read, row)
                continue
            account.time = time
            account.last = row
            account.fills += 1
        self.lines += len(read.rows)
        self.rows += len(read.rows)

    def _within(self, read: PlainRows, columns: Iterable[_Columns]) -> Iterator[_Columns]:
        for one in columns:
            if self._since <= one[1] < self._until:
                yield one
            elif not legs_of(one[0].product_id):
                self._odd(read, one[0])  # what is skipped and rejected is so of the whole file

    def _route(self, row: PlainRow, time: str) -> _Account | None:
        """The account that takes rows of this product as they are; None: there is none."""
        legs = legs_of(row.product_id)
        if len(legs) != 2 or self.rules.method is not Method.AVERAGE:
            return None
        base, quote = legs
        if base in CASH or quote not in CASH:
            return None
        account = self._account(base)
        if account.again or account.book is not None:
            return None
        if account.average is None:
            self._begin(base, account, Average(settled_in(quote), quote, self.rules.increment))
            account.first = time
        if account.average is None or account.average.charged != quote:
            return None
        account.filled = True
        account.products.append(row.product_id)
        self._routes[row.product_id] = account
        return account

    def _begin(self, asset: str, account: _Account, average: Average) -> None:
        account.use(average)
        if self.guessing:
            self.guesses[asset] = _Guess(account, average)

    def _account(self, asset: str) -> _Account:
        account = self.accounts.get(asset)
        if account is None:
            account = self.accounts[asset] = _Account()
            account.again = asset in CASH  # what it paid for is not followed
        return account

    def _odd(self, read: PlainRows, row: PlainRow) -> None:
        """Take in a row that is plain, but not so for its account."""
        base, quote = legs_of(row.product_id) or ("", "")
        account = self.accounts.get(base)
        if account is not None and account.again and quote in CASH:
            return
        line = self.lines + 1 + next(n for n, one in enumerate(read.rows) if one is row)
        fill = self._read(row.row(origin_of(self.name, line)), line)
        if fill is not None:
            self._take_fill(fill)

    def _read(self, row: Row, line: int) -> Fill | None:
        entry_id = row.payload.get("entry_id")
        try:
            return fill_from_row(row)
        except Skipped as skip:
            self.skipped.setdefault(skip.category, set()).add(str(entry_id or row.origin))
            self.skipped_products.add(skip.product_id)
        except ValueError as error:
            self.rejected.append((line, str(entry_id or ""), str(error)))
        return None

    def _take_fill(self, fill: Fill) -> None:
        """Take in a fill the way every fill can be."""
        if not self.rules.covers(fill.time):
            return
        self._account(fill.base).filled = True
        self._take_leg(fill.base, fill)
        if fill.quote not in CASH and fill.quote != fill.base:
            self._account(fill.quote).filled |= fill.side is Side.SELL
            self._take_leg(fill.quote, fill)

    def _take_leg(self, asset: str, fill: Fill) -> None:
        account = self.accounts[asset]
        time = _wide(fill.time)
        is_base = asset == fill.base
        if account.again:
            return
        if self.guessing or (
            time <= account.time and not (is_base and account.follows(fill, time, None))
        ):
            self._leave(account)
            return
        if account.book is None:
            self._widen(account)
        assert account.book is not None
        for movement in movements_of(asset, [fill]):
            account.book.apply(movement)
        account.first = account.first or time
        account.time = time
        account.last = fill
        account.fills += 1
        account.adjusted |= fill.kind is not FillKind.FILL

    def summary(self) -> Fold:
        """Return what is to be said of the rows, without the accounts and the identities."""
        summary = Fold(self.name, self.rules)
        summary.rejected, summary.skipped = self.rejected, self.skipped
        summary.skipped_products = self.skipped_products
        summary.lines, summary.rows = self.lines, self.rows
        return summary

    def append(self, summary: Fold) -> None:
        """Add what is to be said of the rows that follow."""
        self.rejected += [(self.lines + line, name, why) for line, name, why in summary.rejected]
        for category, rows in summary.skipped.items():
            self.skipped.setdefault(category, set()).update(rows)
        self.skipped_products |= summary.skipped_products
        self.lines += summary.lines
        self.rows += summary.rows

    def after(self, accounts: dict[str, _Account]) -> dict[str, _Account]:
        """Return the accounts when these are those before the first line. They come from another
        process, and go to one."""
        if self.guessing:
            for asset, account in self.accounts.items():
                account.continue_from(accounts.get(asset), self.guesses.get(asset))
        accounts |= self.accounts
        for account in accounts.values():
            account.buy = account.sell = _nothing
        return accounts

    def _widen(self, account: _Account) -> None:
        rules = self.rules
        if account.average is None:
            account.book = Book(rules.method, increment=rules.increment)
        else:
            account.book = account.average.book()
        self._close(account)

    def _leave(self, account: _Account) -> None:
        account.again = True
        account.book = None
        self._close(account)

    def _close(self, account: _Account) -> None:
        account.average = None
        account.buy = account.sell = _nothing
        for product_id in account.products:
            self._routes.pop(product_id, None)


class _Guess:
    """Stands before an average whose opening is not known; keeps what may have to be told again.

    Where nothing is sold that is not held, an asset is flat whenever its running total is lowest.
    So every sell beyond what the average holds makes it begin anew, flat, after that sell. Once it
    goes flat by itself it is likely to have been right: the fills since are kept no longer, and
    the average is on its own. `resolve` tells whether it was right.
    """

    def __init__(self, account: _Account, average: Average) -> None:
        self._account = account
        self._fresh = average.fresh
        self._before: list[_Kept] = []
        self._since: list[_Kept] | None = []
        self._begin(average)

    def _begin(self, average: Average) -> None:
        self.average = average
        self._account.average = average
        self._account.buy, self._account.sell = self._buy, self._sell

    def _buy(self, *values: Any) -> None:
        assert self._since is not None
        self._since.append(("BUY", values))
        self.average.buy(*values)

    def _sell(self, *values: Any) -> bool:
        assert self._since is not None
        self._since.append(("SELL", values))
        if not self.average.sell(*values):
            self._before += self._since
            self._since = []
            self._begin(self._fresh())
        elif not self.average.units and len(self._since) >= _SURE_AFTER:
            self._since = None
            self._account.use(self.average)
        return True

    def resolve(self, opening: Average) -> Average | None:
        """Return the account of the opening and everything since; None: only the file can tell."""
        if not _apply(self._before, opening):
            return None
        if self._since is not None:
            return opening if _apply(self._since, opening) else None
        return None if opening.units else opening.followed_by(self.average)


_Kept = tuple[str, tuple[Any, ...]]


def _apply(kept: Iterable[_Kept], average: Average) -> bool:
    """Whether every one of them could be taken in."""
    for side, values in kept:
        if side == "BUY":
            average.buy(*values)
        elif not average.sell(*values):
            return False
    return True


def _wide(time: int) -> str:
    """The instant with nine fraction digits: such texts are ordered as the instants are."""
    whole, _, fraction = format_instant(time).rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}Z"
