"""The one file in which positions, tokens or a whole state travel: ``statestore-export/1``.

JSON, laid out like a state file, its short fields on lines of their own::

    {
      "format": "statestore-export/1",
      "kind": "positions",
      "sha256": "<64 hex digits>",
      "exported_at": "2025-11-20T10:00:00.123456Z",
      "count": 1,
      "filters": {"status": "active", "timeframe": null},
      "source": {"backend": "file", "revision": 42, "sha256": "..."},
      "balances": {"USD": 127.45},
      "positions": [{"token_contract": "Demo1111", ...}],
      "sections": {}
    }

``kind`` says what it is about: ``positions``, ``tokens`` (then the rows are under ``tokens``), or
``state``, a whole one: all of it in ``sections``, and no rows. ``count`` is the number of rows, or
of sections. Keys that are not known here are kept.

``jsonl`` is the same with the fields on the first line and then a line for each row; ``csv`` with
the fields on the first line after ``# ``, then the names of the columns, then a line for each row.
A cell is a number, ``true``, ``false``, ``null`` or a text as it stands; a text that would be read
as something else, a list or an object is JSON; a row without the column has an empty cell.

``sha256`` is the SHA-256 of all bytes of the file with its own 64 digits replaced by zeros. To
verify by hand, in a shell, whichever of the three it is::

    s=$(grep -om1 '"sha256": "[0-9a-f]*' F | head -1 | cut -d'"' -f4)
    sed "s/$s/$(printf %064d 0)/" F | sha256sum

It finds damage and edits; it is no signature. Whoever edits a file on purpose takes ``sha256`` out
of it: it is read then, and `Envelope.verified` says that nothing vouches for it.

What is promised: a file that was written is whole, durable and read back; one that reads is what
was written, to the last digit, and no row is in it twice. Files of other programs are read as
`statestore.runtime.legacy` understands them.

One module, because what is written here is what is read here: each check below has its counterpart
above, and a field is added in both. What is CSV, and what is a legacy file, is elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from statestore import times
from statestore.amounts import json_type
from statestore.disk import codec, durable, strict
from statestore.errors import (
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateInvalid,
    StateMissing,
    UsageError,
)
from statestore.runtime import legacy
from statestore.runtime.addresses import one_spelling
from statestore.runtime.cells import parsed, rows_of, table_of

Kind = Literal["positions", "tokens", "state"]
Format = Literal["json", "jsonl", "csv"]
Row = dict[str, Any]

NAME = "statestore-export"
FORMAT = f"{NAME}/1"
MAX_BYTES = 256 * 1024 * 1024
# In a row: the key of its entry where no column of it says that, and an entry that is no object.
KEY = "_key"
VALUE = "_value"

_ROWS = {"positions": "positions", "tokens": "tokens"}
_FIELDS = ("format", "kind", "sha256", "exported_at", "count", "filters", "source", "balances")
_OURS = frozenset({*_FIELDS, "sections"})
_BLANK = "0" * 64
_SUM = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FORMAT = re.compile(rf"{NAME}/([1-9]\d{{0,8}})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What an export holds.

    Attributes:
        rows: positions or tokens, each once; exact numbers. Empty for a whole state.
        sections: of a state, by name.
        filters: what was asked for when it was made.
        source: where it is from: ``backend``, ``revision``, ``sha256``.
        balances: units by asset as they were known then; None where nobody knew.
        exported_at: RFC 3339 in UTC; in a file of another program whatever that says.
        more: top-level keys that are not known here.
        shape: ``statestore-export/1``, or which legacy file it was read from.
        verified: its sum was there and right.
        sha256: of the whole file it was read from, as ``sha256sum`` prints it.
        closed: keys of positions that a legacy file calls closed, and that are not among the rows.
        unconfirmed: keys that only one of two lists in a legacy file names.
    """

    kind: Kind
    rows: Sequence[Row] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)
    filters: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    balances: Mapping[str, Any] | None = None
    exported_at: str = field(default_factory=lambda: times.format_instant(times.now()))
    more: Mapping[str, Any] = field(default_factory=dict)
    shape: str = FORMAT
    verified: bool = False
    sha256: str = ""
    closed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.sections) if self.kind == "state" else len(self.rows)


def key_of(row: Mapping[str, Any]) -> str | None:
    """Return the key a row has in ``positions``: the one it names, else what its columns say.

    ``chain:contract:timeframe`` of a token, as far as it says them, else the pair or the product.
    """
    if KEY not in row:
        return legacy.key_of(row)
    named = row[KEY]
    return named if isinstance(named, str) and named else None


def as_row(key: str, entry: Any) -> Row:
    """Return an entry of a section as a row; `as_entry` is the way back.

    Raises:
        ValueError: the entry has a column of ours.
    """
    if not isinstance(entry, Mapping):
        return {KEY: key, VALUE: entry}
    for name in (KEY, VALUE):
        if name in entry:
            raise ValueError(f"{key} has a field {name}, which an export needs for itself")
    return dict(entry) if legacy.key_of(entry) == key else {KEY: key, **entry}


def as_entry(row: Mapping[str, Any]) -> Any:
    """Return the entry a row stands for."""
    if VALUE in row:
        return row[VALUE]
    return {name: value for name, value in row.items() if name != KEY}


# Writing


def write(path: Path, envelope: Envelope, form: Format = "json", *, new: bool = False) -> str:
    """Write a file in one durable step and read it back; return the sum that stands in it.

    Args:
        new: never over a file that is there.

    Raises:
        StateInvalid: it cannot be written: a value that is no JSON, a row without a key or a key
            twice, or more than `MAX_BYTES`. Names the field.
        UsageError: a whole state as csv.
        FileExistsError: `new`, and the name is taken.
        SaveFailed, SaveNotDurable: the system refused; what was there stands.
        StateCorrupt: it does not read back.
    """
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    _require_unique(path, envelope.rows, lambda number: f"row {number}")
    data, digits = _seal(_RENDER[form](path, envelope))
    if len(data) > MAX_BYTES:
        raise StateInvalid(
            path,
            f"the export is {len(data)} bytes long, and more than {MAX_BYTES} are not read again; "
            "nothing was written: export in parts (--status, --timeframe)",
        )
    if new:
        durable.create_file(path, data)
    else:
        durable.replace_file(path, data)
    if _bytes(path) != data:
        raise StateCorrupt(path, f"{path} does not read back as it was written; look at the disk")
    return digits


def _seal(data: bytes) -> tuple[bytes, str]:
    """Fill in the sum: its zeros are the first, since only our own words stand before them."""
    digits = hashlib.sha256(data).hexdigest()
    return data.replace(_BLANK.encode(), digits.encode(), 1), digits


def _fields(envelope: Envelope) -> dict[str, Any]:
    more = {n: value for n, value in envelope.more.items() if n not in _OURS and n not in _ROWS}
    return {
        "format": FORMAT,
        "kind": envelope.kind,
        "sha256": _BLANK,
        "exported_at": envelope.exported_at,
        "count": envelope.count,
        "filters": dict(envelope.filters),
        "source": dict(envelope.source),
        "balances": None if envelope.balances is None else dict(envelope.balances),
        **more,
    }


def _render_json(path: Path, envelope: Envelope) -> bytes:
    fields = _fields(envelope)
    if envelope.kind in _ROWS:
        fields[_ROWS[envelope.kind]] = list(envelope.rows)
    fields["sections"] = dict(envelope.sections)
    parts = [
        b"  " + codec.to_json(name) + b": " + section.text
        for name, section in codec.encode(fields, path).items()
    ]
    return b"{\n" + b",\n".join(parts) + b"\n}\n"


def _render_jsonl(path: Path, envelope: Envelope) -> bytes:
    return b"".join(line + b"\n" for line in _lines(path, envelope))


def _render_csv(path: Path, envelope: Envelope) -> bytes:
    if envelope.kind not in _ROWS:
        raise UsageError("csv holds rows, and a whole state has none; use json")
    head = next(_lines(path, envelope))  # which refuses what is no JSON, and names it
    return b"# " + head + b"\n" + table_of(envelope.rows)


def _lines(path: Path, envelope: Envelope) -> Iterator[bytes]:
    """Yield the fields and then each row, as JSON on one line."""
    fields = _fields(envelope) | {"sections": dict(envelope.sections)}
    codec.encode({**fields, _ROWS.get(envelope.kind, ""): list(envelope.rows)}, path)
    for value in (fields, *envelope.rows):
        yield codec.to_json(value, indent=0)


_RENDER = {"json": _render_json, "jsonl": _render_jsonl, "csv": _render_csv}


# Reading


def read(path: Path) -> Envelope:
    """Return what an export holds, whichever of the forms or of the legacy shapes it is.

    Raises:
        StateMissing: it is not there.
        StateCorrupt: it is no text of these, or more than `MAX_BYTES`.
        StateChecksumMismatch: it is not as it was written.
        StateInvalid: written by a newer version, of a wrong count, a row twice, or no export.
        StateError: it may not be read.
    """
    path = Path(path)
    data = _bytes(path)
    if data.startswith(b"#"):
        return _read_lines(path, data, rows_of)
    if _is_header(data.partition(b"\n")[0]):
        return _read_lines(path, data, _json_rows)
    if path.suffix.lower() == ".csv" and not data.lstrip().startswith((b"{", b"[")):
        return _bare_csv(path, data)
    document = parsed(path, data)
    if not isinstance(document, dict) or "format" not in document:
        return _legacy(path, data, document)
    _require_format(path, document)
    kind = _kind(path, document)
    rows = document.pop(_ROWS[kind], None) if kind in _ROWS else []
    return _envelope(path, data, document, kind, rows, lambda number: f"{kind}.{number}")


def _read_lines(path: Path, data: bytes, rows_from: Callable[[Path, bytes], list[Row]]) -> Envelope:
    head, _, rest = data.partition(b"\n")
    document = parsed(path, head.removeprefix(b"#"), "line 1")
    if not isinstance(document, dict):
        raise StateInvalid(path, f"{path} line 1 is {json_type(document)}, an object is expected")
    _require_format(path, document)
    kind = _kind(path, document)
    rows = rows_from(path, rest)
    first = 3 if rows_from is rows_of else 2
    return _envelope(path, data, document, kind, rows, lambda number: f"line {first + number}")


def _envelope(
    path: Path,
    data: bytes,
    document: dict[str, Any],
    kind: Kind,
    rows: Any,
    where: Callable[[int], str],
) -> Envelope:
    """Judge a document of our own format."""
    verified = _require_sum(path, data, document)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StateInvalid(path, f"{path}: {kind} has to be a list of objects", kind)
    sections = _object(path, document, "sections") or {}
    envelope = Envelope(
        kind=kind,
        rows=rows,
        sections=sections,
        filters=_object(path, document, "filters") or {},
        source=_object(path, document, "source") or {},
        balances=_object(path, document, "balances"),
        exported_at=str(document.get("exported_at") or ""),
        more={name: value for name, value in document.items() if name not in _OURS},
        verified=verified,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    _require_count(path, document, envelope)
    _require_unique(path, rows, where)
    return envelope


def _require_format(path: Path, document: Mapping[str, Any]) -> None:
    found = document.get("format")
    known = _FORMAT.fullmatch(found) if isinstance(found, str) else None
    if known is None:
        raise StateInvalid(
            path,
            f"{path}: format is {found!r:.40}, expected is {FORMAT}; is it an export?",
            "format",
        )
    if known[1] != "1":
        raise StateInvalid(
            path,
            f"{path} is of format {found}, written by a newer statestore; this one reads {FORMAT}: "
            "upgrade statestore",
            "format",
        )


def _kind(path: Path, document: Mapping[str, Any]) -> Kind:
    for kind in get_args(Kind):
        if document.get("kind") == kind:
            return kind  # type: ignore[no-any-return]  # it is one of them
    raise StateInvalid(
        path,
        f"{path}: kind is {document.get('kind')!r:.40}, expected {', '.join(get_args(Kind))}",
        "kind",
    )


def _require_sum(path: Path, data: bytes, document: Mapping[str, Any]) -> bool:
    """Return whether the sum is right; False where there is none to be wrong."""
    if "sha256" not in document:
        return False
    claimed = document["sha256"]
    if isinstance(claimed, str) and _SUM.fullmatch(claimed):
        blank = data.replace(claimed.encode(), _BLANK.encode(), 1)
        found = hashlib.sha256(blank).hexdigest()
        if found == claimed:
            return True
        said = f"its sum is {found}, and it says {claimed}"
    else:
        said = f"sha256 is {claimed!r:.80}, and no sum"
    raise StateChecksumMismatch(
        path,
        f"{path} is not as it was exported ({said}); export again, or take sha256 out of it if it "
        "was changed on purpose",
    )


def _require_count(path: Path, document: Mapping[str, Any], envelope: Envelope) -> None:
    said = document.get("count")
    if type(said) is not int or said != envelope.count:
        raise StateInvalid(
            path,
            f"{path}: count is {said!r:.20}, but there are {envelope.count} "
            f"{_ROWS.get(envelope.kind, 'sections')}; the file was cut or edited",
            "count",
        )


def _require_unique(path: Path, rows: Iterable[Row], where: Callable[[int], str]) -> None:
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        key = key_of(row)
        if key is None:
            raise StateInvalid(
                path,
                f"{path}: {where(number)} does not say what it is about: expected is "
                f"token_contract, product_id, symbol, pair or {KEY}",
                where(number),
            )
        spelling = one_spelling(key)
        if spelling in first:
            raise StateInvalid(
                path,
                f"{path}: {key} is there twice, at {where(first[spelling])} and at {where(number)}",
                where(number),
            )
        first[spelling] = number


def _legacy(path: Path, data: bytes, document: Any) -> Envelope:
    if isinstance(document, dict) and codec.META in document:
        raise StateInvalid(
            path,
            f"{path} is a state or a backup of one, no export: `statestore restore --file {path}`",
        )
    digest = hashlib.sha256(data).hexdigest()
    found = legacy.understand(path, digest, document)
    sections = {name: value for name, value in found.sections.items() if value}
    rest = sections.get("legacy", {})
    filters = rest.get("filters")
    if found.shape == legacy.TOKENS:
        rows = list(sections.pop("watchlist", {}).values())
        filters = {"status": rest.get("status_filter")}
    else:
        try:
            rows = [as_row(key, entry) for key, entry in sections.pop("positions", {}).items()]
        except ValueError as error:
            raise StateInvalid(path, f"{path}: {error}") from None
    if found.shape != legacy.BACKUP:
        sections.pop("legacy", None)
    return Envelope(
        kind="tokens" if found.shape == legacy.TOKENS else "positions",
        rows=rows,
        sections=sections,
        filters=filters if isinstance(filters, dict) else {},
        exported_at=str(found.taken_at),
        shape=found.shape,
        sha256=digest,
        closed=found.closed,
        unconfirmed=found.unconfirmed,
    )


def _is_header(line: bytes) -> bool:
    """Return whether the first line is an object of its own, and not all of an export."""
    try:
        found = strict.parse(line)
    except strict.NotStrict:
        return False
    return isinstance(found, dict) and "format" in found and found.keys().isdisjoint(_ROWS)


def _json_rows(path: Path, data: bytes) -> list[Row]:
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [_row(path, parsed(path, line, f"line {n}"), n) for n, line in enumerate(lines, 2)]


def _bare_csv(path: Path, data: bytes) -> Envelope:
    """Return rows that nothing vouches for: of a spreadsheet, say."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        raise StateCorrupt(path, f"{path} is empty")
    if text.startswith(b'"#'):
        raise StateCorrupt(path, f"{path} line 1 was written anew by a spreadsheet: delete it")
    rows = rows_of(path, text, 1)
    _require_unique(path, rows, lambda number: f"line {number + 2}")
    return Envelope(
        kind="positions",
        rows=rows,
        exported_at="",
        shape="csv without a header",
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _row(path: Path, value: Any, number: int) -> Row:
    if not isinstance(value, dict):
        raise StateInvalid(
            path, f"{path} line {number} is {json_type(value)}, an object is expected"
        )
    return value


def _object(path: Path, document: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise StateInvalid(path, f"{path}: {name} is {json_type(value)}, not an object", name)
    return value


def _bytes(path: Path) -> bytes:
    try:
        return durable.read_file(path, MAX_BYTES)[0]
    except FileNotFoundError as error:
        raise StateMissing(path, f"there is no {path}; check the path") from error
    except (durable.NotAFile, durable.TooLarge) as error:
        raise StateCorrupt(path, f"{path} {error}") from error
    except OSError as error:
        raise StateError(
            path, f"cannot read {path}: {error.strerror}; it has to be readable"
        ) from error
