"""Fills and balances that were recorded in a file: to rebuild offline, without any key.

Recognised by content, never by the file's name:

* a List Fills page, ``{"fills": [...], "cursor": ""}``;
* a list of fills, ``[{...}, {...}]``;
* JSON Lines, one fill or one page a line;
* the fills statement of Coinbase as CSV (columns: `CSV_COLUMNS`).

A page whose cursor is not followed to its end is refused: what comes after it is not in the file.
What a row means is not decided here (see `statestore.fills.normalise`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from statestore.amounts import json_type, parse_amount
from statestore.errors import IncompleteRead, RecordedFileError
from statestore.fills.decoding import decode_json
from statestore.fills.normalise import balances_of
from statestore.model import Balances, Batch, Product, Row

CSV_COLUMNS = (
    "portfolio",
    "trade id",
    "product",
    "side",
    "created at",
    "size",
    "size unit",
    "price",
    "fee",
    "total",
    "price/fee/total unit",
)

# Of what is read whole. Larger ones of a fill a line are replayed without being held in memory.
MAX_BYTES = 1 << 30

_FORMATS = "a List Fills page, a list of fills, JSON Lines, or Coinbase's fills CSV"
_BALANCES = 'a List Accounts payload, or {"BTC": "0.5"}'
_BLANKS = b" \t\r\n"
_ROW_KEYS = frozenset({"entry_id", "trade_id", "product_id"})  # any of them says: a fill


class RecordedFills:
    """A `FillSource` over one file of fills and, at will, one of balances."""

    def __init__(self, fills: Path, balances: Path | None = None) -> None:
        self._batch = read_fills(fills)
        self._balances = None if balances is None else read_balances(balances)
        self.name = fills.name

    def fills(self, since: int, until: int | None) -> Batch:
        """Return all rows of the file; there is nothing older to be had."""
        del since, until
        return self._batch

    def balances(self) -> Balances | None:
        """Return the recorded balances, or None where no file of them was given."""
        return self._balances

    def products(self, product_ids: Collection[str]) -> Mapping[str, Product]:
        """Return nothing: a file of fills knows no increments and no marks."""
        del product_ids
        return {}


def read_fills(path: Path) -> Batch:
    """Return the rows of a file of recorded fills.

    Raises:
        RecordedFileError: not one of the known formats; the message names file and line.
        IncompleteRead: pages whose last cursor leads on to something that is not in the file.
    """
    data = _read(path)
    start = data[: 64 * 1024].lstrip(_BLANKS)[:1] or data.lstrip(_BLANKS)[:1]
    if not start:
        raise RecordedFileError(f"{path} is empty; expected {_FORMATS}")
    if start == b"[":
        documents = _decoded(path, data, "")
        return _batch(path, [(f" fill {n}", one) for n, one in enumerate(documents, 1)])
    if start == b"{":
        return _objects(path, data)
    return Batch(tuple(_csv_rows(path, data)), pages=1, exhausted=True)


def read_balances(path: Path) -> Balances:
    """Return the balances of a file: List Accounts payload(s), or ``{"BTC": "0.5"}``.

    A payload is complete: what it does not list is not owned. The short form is not: what it does
    not list is not known.

    Raises:
        RecordedFileError: neither form, or an amount is not a number.
        IncompleteRead: an accounts payload that says there are more pages.
    """
    data = _read(path)
    if not data.strip(_BLANKS):
        raise RecordedFileError(f"{path} is empty; expected {_BALANCES}")
    document = _decoded(path, data, "")
    if isinstance(document, dict) and "accounts" in document:
        document = [document]
    if isinstance(document, list):
        return Balances(balances_of(_accounts(path, document), str(path)))
    if not isinstance(document, dict):
        raise RecordedFileError(f"{path} holds no object; expected {_BALANCES}")
    _refuse_twice(path, data)
    amounts = {}
    for currency, value in document.items():
        try:
            amount = parse_amount(value)
            if amount < 0:
                raise ValueError(f"{amount} is negative, and nobody owns less than nothing")
        except ValueError as error:
            raise RecordedFileError(
                f"{path}: balance of {currency}: {error}; expected {_BALANCES}"
            ) from error
        amounts[currency.upper()] = amount
    return Balances(amounts, complete=False)


def _refuse_twice(path: Path, data: bytes) -> None:
    """Refuse balances that name an asset twice: a JSON reader takes the last one, silently."""
    seen: set[str] = set()
    for currency, _ in json.loads(data, object_pairs_hook=list):
        if currency.upper() in seen:
            raise RecordedFileError(f"{path} names {currency} twice; which is right?")
        seen.add(currency.upper())


def _accounts(path: Path, pages: list[Any]) -> Iterator[object]:
    for page in pages:
        if isinstance(page, dict) and isinstance(page.get("accounts"), list):
            yield from page["accounts"]
        else:
            yield page
    last = pages[-1] if pages else {}
    if isinstance(last, dict) and last.get("has_next"):
        raise IncompleteRead(f"{path} says there are more accounts; record every page of them")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecordedFileError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RecordedFileError(
            f"{path} is longer than {MAX_BYTES} bytes; record a shorter window, or split it"
        )
    return data.removeprefix(b"\xef\xbb\xbf")


def _decoded(path: Path, data: bytes, line: str) -> Any:
    try:
        return decode_json(data)
    except ValueError as error:
        raise RecordedFileError(f"{path}{line} is not valid JSON: {error}") from error


def _objects(path: Path, data: bytes) -> Batch:
    """One object, or one a line; each is a page or a fill."""
    try:
        documents: list[tuple[str, object]] = [("", decode_json(data))]
    except ValueError as whole:
        lines = [(n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip(_BLANKS)]
        first_line_is_whole = len(lines) > 1 and lines[0][1].rstrip(_BLANKS).endswith(b"}")
        if not first_line_is_whole:
            raise RecordedFileError(f"{path} is not valid JSON: {whole}") from whole
        documents = [(f" line {n}", _decoded(path, line, f" line {n}")) for n, line in lines]
    return _batch(path, documents)


def _batch(path: Path, documents: Sequence[tuple[str, object]]) -> Batch:
    """Pages or fills, each with where it stands in the file."""
    rows: list[Row] = []
    pages, cursor = 0, ""
    for where, document in documents:
        if isinstance(document, dict) and "fills" in document:
            pages += 1
            rows.extend(_page(document, path, where))
            cursor = document.get("cursor") or ""
        elif is_fill(document):
            rows.append(Row(document, f"{path.name}{where}"))
        else:
            raise RecordedFileError(
                f"{path}{where} is {json_type(document)} that is neither a fill nor a page of "
                f"fills; expected {_FORMATS}"
            )
    if cursor:
        raise IncompleteRead(
            f"{path}: its last page has the cursor {cursor!r:.40}, so older fills are missing; "
            "record every page (as JSON Lines, a page a line)"
        )
    return Batch(tuple(rows), pages=max(pages, 1), exhausted=True)


def is_fill(document: object) -> TypeGuard[dict[str, Any]]:
    """Return whether a document is one row, and no page of rows."""
    if not isinstance(document, dict) or "fills" in document:
        return False
    return not _ROW_KEYS.isdisjoint(document)


def _page(document: dict[str, Any], path: Path, where: str) -> Iterator[Row]:
    if document.get("proof_token_required"):
        raise IncompleteRead(
            f"{path}{where}: proof_token_required is set, so the exchange withheld fills; "
            "record again after the two-factor proof"
        )
    fills = document["fills"]
    if not isinstance(fills, list):
        raise RecordedFileError(f"{path}{where}: fills is {json_type(fills)}, not a list")
    for number, payload in enumerate(fills, 1):
        if not isinstance(payload, dict):
            raise RecordedFileError(
                f"{path}{where}: fill {number} is {json_type(payload)}, not an object"
            )
        yield Row(payload, f"{path.name}{where} fill {number}")


def _csv_rows(path: Path, data: bytes) -> Iterator[Row]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RecordedFileError(
            f"{path} is neither JSON nor UTF-8 text: {error}; expected {_FORMATS}"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    portfolios: set[str] = set()
    try:
        header = next(reader)
        if sorted(header) != sorted(CSV_COLUMNS):
            raise RecordedFileError(
                f"{path} line 1 is {','.join(header)!r:.120}; expected {_FORMATS}, "
                f"whose header is {','.join(CSV_COLUMNS)!r}"
            )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise RecordedFileError(
                    f"{path} line {reader.line_num} has {len(values)} columns, not {len(header)}"
                )
            columns = dict(zip(header, values, strict=True))
            portfolios.add(columns["portfolio"])
            if len(portfolios) > 1:
                raise RecordedFileError(
                    f"{path} line {reader.line_num} begins a second portfolio "
                    f"({columns['portfolio']!r:.40}); a state belongs to one: split the file"
                )
            try:
                row = _statement_row(columns)
            except ValueError as error:
                raise RecordedFileError(f"{path} line {reader.line_num}: {error}") from error
            yield Row(row, f"{path.name} line {reader.line_num}")
    except csv.Error as error:
        raise RecordedFileError(f"{path} line {reader.line_num}: {error}") from error


def _statement_row(columns: Mapping[str, str]) -> dict[str, object]:
    """A line of the statement in the shape of List Fills.

    The statement has no ``entry_id``, and its trade ids number each product on its own; so a line
    is known by what it says of itself.

    Raises:
        ValueError: an amount is in a unit that is not the product's.
    """
    identity = ("portfolio", "product", "trade id", "side", "created at")
    row: dict[str, object] = {
        "entry_id": "/".join(columns[name] for name in identity),
        "trade_id": columns["trade id"],
        "trade_time": columns["created at"],
        "price": columns["price"],
        "size": columns["size"],
        "commission": columns["fee"],
        "product_id": columns["product"],
        "side": columns["side"],
    }
    base, _, quote = columns["product"].partition("-")
    size_unit, money_unit = columns["size unit"], columns["price/fee/total unit"]
    if size_unit not in (base, quote):
        raise ValueError(f"size unit is {size_unit!r:.20}, neither {base} nor {quote}")
    if money_unit != quote:
        raise ValueError(f"price/fee/total unit is {money_unit!r:.20}, not {quote}")
    row["size_in_quote"] = size_unit == quote
    return row
