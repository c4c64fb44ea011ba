"""The shape of a state file on disk: JSON text to sections and back, byte for byte where unchanged.

Layout: one JSON object, two-space indent, ``_meta`` first and on one line::

    {
      "_meta": {"format": 1, "revision": 42, ..., "sha256": "<64 hex digits>"},
      "positions": { ... },
      ...
    }

``sha256`` is the SHA-256 of all bytes of the file with its own 64 digits replaced by zeros, so it
covers ``_meta`` and every blank as well. To verify by hand, in a shell::

    s=$(grep -om1 '"sha256": "[0-9a-f]*' F | cut -d'"' -f4)
    sed "s/$s/$(printf %064d 0)/" F | sha256sum

What is promised:

* what is refused is refused before a file is opened, with the path of the field;
* Decimals are written as exact JSON numbers, integers of any size (up to 4300 digits) as such;
* a section whose value did not change comes out byte for byte as it went in;
* a text that is not a whole, strict JSON document is `Damaged`, never a guess: no BOM, no NaN, no
  duplicate keys, no number that overflows a float, nothing deeper than `MAX_DEPTH` levels.

A right sum vouches for the file: this module wrote it, so the slow checks are skipped. The sum
finds damage and edits; it is no signature and proves nothing about who wrote the file.

Which values a state may hold is in `statestore.disk.values`. One module, because what is read and
what is written have to agree to the byte, and a change to one that forgets the other loses states.
"""

from __future__ import annotations

import functools
import hashlib
import json
import marshal
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import msgspec

from statestore.disk.values import (
    MAX_DEPTH,
    SCALARS,
    Refused,
    bad_key,
    dotted,
    examine,
    examine_value,
)
from statestore.errors import Place, StateInvalid

FORMAT = 1
META = "_meta"
MAX_BYTES = 64 * 1024 * 1024

Numbers = Literal["float", "decimal"]

_BLANK_SUM = b"0" * 64
_SUM = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEAD = re.compile(
    rb'\s*\{\s*"_meta"\s*:\s*\{\s*"format"\s*:\s*1\s*,\s*"revision"\s*:\s*(\d{1,18})\b'
)
# How our own first value begins; seen without a `_meta` key it means that the key is damaged.
_META_BODY = b'{"format": 1, "revision": '
HEAD_BYTES = 128

# Memory is not free: of a longer snapshot only the hash is remembered, and of a section whose text
# is longer nothing, since to examine its snapshot would mean to have it twice.
_LONG_SNAPSHOT = 1 << 18
_LONG_TEXT = 1 << 22
_TOO_LONG: tuple[object, None] = (object(), None)

_NOTHING: tuple[object, None] = (None, None)

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_float = msgspec.json.Decoder().decode
_decode_decimal: Any = msgspec.json.Decoder(float_hook=Decimal).decode
_decode_sections = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Trust(Enum):
    """How far a document that parses may be believed."""

    SEALED = "its sum is right"
    ADOPTED = "it has no _meta, so nothing vouches for it; any program may have written it"
    MISMATCH = "its sum is wrong or missing"


class Damaged(Exception):
    """The text is not a state document; the message says why, as a predicate of the file."""


class TooNew(Exception):
    """The document names a format this version does not know."""


class Meta(msgspec.Struct, frozen=True):
    """What ``_meta`` holds. `saved_at` is RFC 3339 in UTC, `writer` is ``pid@host``."""

    format: int = FORMAT
    revision: int = 0
    saved_at: str = ""
    reason: str = ""
    writer: str = ""
    sha256: str = ""


class Section(msgspec.Struct, frozen=True):
    """A value that is certain to be writable, as the text that goes into a file."""

    text: bytes
    decimals: bool


# By key: a scalar itself, or what tells two values apart (a snapshot by `marshal`, or its hash);
# and that value encoded, for what is no scalar once it was seen twice.
Remembered = dict[str, tuple[object, Section | None]]


class Document(msgspec.Struct, frozen=True):
    """A state document, not decoded below its top level.

    Attributes:
        meta: None where the file has none.
        sections: JSON text of each top-level key except ``_meta``, in the file's order.
        identity: tells two contents apart: the sum where it is right, else the hash of the bytes.
        why: why the document is not trusted, as a predicate of the file; empty if it is.
    """

    meta: Meta | None
    sections: dict[str, bytes]
    trust: Trust = Trust.SEALED
    identity: str = ""
    why: str = ""
    encoded: dict[str, Section] = {}  # where this process encoded it

    @property
    def revision(self) -> int:
        return self.meta.revision if self.meta else 0

    def distrusted(self, why: str) -> Document:
        """Return the same document, of which something says that it is not to be believed."""
        return msgspec.structs.replace(self, trust=Trust.MISMATCH, why=why)

    def holds(self, key: str, section: Section) -> bool:
        """Return whether the section under `key`, which is there, says what `section` does."""
        former = self.encoded.get(key)
        if former is not None and former.decimals == section.decimals:
            return former.text == section.text
        raw = self.sections[key]
        if raw == section.text:
            return True
        try:
            former_value = decode_section(raw, "decimal" if section.decimals else "float")
        except Damaged:
            return False
        return _text(former_value) == section.text


# Reading


def parse(data: bytes) -> Document:
    """Return the document that `data` is.

    Raises:
        Damaged: it is none; the message says why.
        TooNew: it is one of a later format.
    """
    if len(data) > MAX_BYTES:
        raise Damaged(f"is {len(data)} bytes long; more than {MAX_BYTES} are not read")
    if not data.strip(b" \t\r\n\0"):
        raise Damaged("is empty" if not data else f"is {len(data)} bytes of nothing")
    if data.startswith(b"\xef\xbb\xbf"):
        raise Damaged("begins with a byte order mark, which JSON does not allow")
    try:
        sections = {key: bytes(raw) for key, raw in _decode_sections(data).items()}
    except RecursionError:
        raise Damaged(f"is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"is not a JSON object: {error}") from None
    meta = _meta(sections.pop(META, None))
    if meta is not None and _sum_is_right(data, meta.sha256):
        return Document(meta, sections, Trust.SEALED, meta.sha256)
    _examine_strictly(data)
    trust, why = _distrust(data, meta)
    return Document(meta, sections, trust, hashlib.sha256(data).hexdigest(), why)


def parse_whole(data: bytes) -> Document:
    """Return what `parse` does, every section of it looked at even where the sum is right.

    Slower; for a sum anybody can compute is all that `parse` takes for proof that we wrote it.
    """
    document = parse(data)
    if document.trust is Trust.SEALED:
        decode(document, "decimal")
        decode(document)
    return document


def decode_section(raw: bytes, numbers: Numbers = "float") -> Any:
    """Return the value of one section, with floats or with exact Decimals for what has a point.

    Raises:
        Damaged: the text means nothing, although the sum of its file is right; so it is forged.
    """
    try:
        return _decode_float(raw) if numbers == "float" else _decode_decimal(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"has a right sum, but was not written by statestore: {error}") from error


def decode(document: Document, numbers: Numbers = "float") -> dict[str, Any]:
    """Return all sections as new Python values.

    Raises:
        Damaged: see `decode_section`.
    """
    return {key: decode_section(raw, numbers) for key, raw in document.sections.items()}


def members(raw: bytes) -> dict[str, bytes] | None:
    """Return the compact text of each member of an object, digits as they are; None if it is none.

    `raw` is a section of a document that was read.
    """
    if raw[:1] != b"{":
        return None
    return {key: msgspec.json.format(one, indent=-1) for key, one in _decode_sections(raw).items()}


def to_json(value: object, *, indent: int | None = 2) -> bytes:
    """Return JSON text for reports and exports; `Decimal`s are exact numbers, as in a state."""
    return msgspec.json.format(_encode(value), indent=-1 if indent is None else indent)


def peek_revision(head: bytes) -> int | None:
    """Return the revision the first `HEAD_BYTES` of a file of ours name, unverified."""
    match = _HEAD.match(head)
    return int(match[1]) if match else None


def _meta(raw: bytes | None) -> Meta | None:
    if raw is None:
        return None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("format", FORMAT)
        if type(version) is int and version > FORMAT:
            raise TooNew(
                f"is of format {version}, written by a newer statestore; this one reads {FORMAT}"
            )
        meta = msgspec.json.decode(raw, type=Meta)
    except RecursionError:
        raise Damaged(f"is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"has a {META} of the wrong shape: {error}") from None
    if meta.format != FORMAT or meta.revision < 0:
        raise Damaged(f"has a {META} with format {meta.format} and revision {meta.revision}")
    return meta


def _sum_is_right(data: bytes, claimed: str) -> bool:
    """Return whether the sum in the file is that of the file with zeros in place of the sum."""
    if not _SUM.fullmatch(claimed):
        return False
    before, _, after = data.partition(claimed.encode())
    digest = hashlib.sha256(before)
    digest.update(_BLANK_SUM)
    digest.update(after)
    return digest.hexdigest() == claimed


def _distrust(data: bytes, meta: Meta | None) -> tuple[Trust, str]:
    if meta is None:
        if _META_BODY in data[:HEAD_BYTES]:
            return Trust.MISMATCH, f"has its {META} under another name"
        return Trust.ADOPTED, ""
    if not meta.sha256:
        return Trust.MISMATCH, f"carries no sum in its {META}"
    return Trust.MISMATCH, "is valid JSON, but its sum does not match its content"


def _examine_strictly(data: bytes) -> None:
    """Refuse what a lenient reader would take: for texts that no sum vouches for."""
    try:
        data.decode()
        examine(_decode_float(data), MAX_DEPTH)
        json.loads(data, object_pairs_hook=_refuse_duplicates, parse_float=Decimal)
    except ArithmeticError:
        raise Damaged("holds a number whose exponent is beyond every magnitude") from None
    except RecursionError:
        raise Damaged(f"is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise Damaged(f"is not UTF-8 at byte {error.start}") from None
    except msgspec.MsgspecError as error:
        raise Damaged(f"is not strict JSON: {error}") from None
    except Refused as refused:
        raise Damaged(f"at {dotted(refused.steps)}: {refused}") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise Damaged(f"has the key {key!r:.80} twice in one object")
        seen.add(key)


# Writing


def encode(
    state: Mapping[str, Any], path: Place, remembered: Remembered | None = None
) -> dict[str, Section]:
    """Return every section of `state` in compact form; ``_meta`` is left out.

    Args:
        remembered: what former calls found out, empty at first, brought up to date by this one.
            A section that has not changed since is neither examined nor encoded again.

    Raises:
        StateInvalid: a value cannot be saved as JSON; names its field.
    """
    remembered = {} if remembered is None else remembered
    encoded = {}
    for key, value in state.items():
        if type(key) is not str:
            refused = bad_key(key)
            raise _invalid(path, refused.steps, str(refused))
        if key != META:
            former, section = remembered.get(key, _NOTHING)
            # A scalar that is the very same object is the same value: it cannot change.
            if section is None or former is not value or type(value) not in SCALARS:
                section = _section_again(key, value, path, remembered)
            encoded[key] = section
    if remembered.keys() != encoded.keys():
        for gone in remembered.keys() - encoded.keys():
            remembered.pop(gone, None)
    return encoded


def arrange(encoded: dict[str, Section], base: Document | None) -> Document:
    """Return the document to write: sections of `base` that did not change keep their bytes.

    Keys of `base` keep their order and new ones follow, so that a diff of two states is small.
    """
    sections = {}
    if base is not None:
        former = base.encoded
        for key, raw in base.sections.items():
            section = encoded.get(key)
            if section is not None:
                same = former.get(key) is section or base.holds(key, section)
                sections[key] = raw if same else section.text
    for key, section in encoded.items():
        if key not in sections:
            sections[key] = section.text
    return Document(None, sections, encoded=encoded)


def render(document: Document, meta: Meta) -> tuple[bytearray, slice]:
    """Return the bytes of the file with zeros for its sum, and where these are; see `seal`."""
    blank = msgspec.structs.replace(meta, sha256=_BLANK_SUM.decode())
    # The sum ends the first line: its zeros are the last 64 bytes before `"}`.
    head = b'{\n  "_meta": ' + msgspec.json.format(_encode(blank), indent=0)
    parts = [head]
    for key, raw in document.sections.items():
        parts.append(_opening(key))
        parts.append(raw)
    parts.append(b"\n}\n")
    end = len(head) - len(b'"}')
    return bytearray().join(parts), slice(end - len(_BLANK_SUM), end)


def seal(document: Document, meta: Meta, data: bytearray, where: slice) -> Document:
    """Fill in the sum of what `render` returned, in place; return the document that is."""
    digits = hashlib.sha256(data).hexdigest()
    data[where] = digits.encode()
    meta = msgspec.structs.replace(meta, sha256=digits)
    return msgspec.structs.replace(document, meta=meta, identity=digits)


@functools.lru_cache(maxsize=4096)
def _opening(key: str) -> bytes:
    """Return what stands between the former section's text and this one's."""
    return b",\n  " + _encode(key) + b": "


def _text(value: object) -> bytes:
    """Return a value as it stands in a file: two-space indent, one level deep."""
    if type(value) in SCALARS:
        return _encode(value)
    # Inside an object, which is taken off again: a second pass to indent would cost more.
    inside = msgspec.json.format(_encode({"": value}), indent=2)
    return inside[len(b'{\n  "": ') : -len(b"\n}")]


def _section(key: str, value: object, path: Place) -> Section:
    try:
        decimals = examine_value(value, MAX_DEPTH - 1)
        _encode(key)
        return Section(_text(value), decimals)
    except Refused as refused:
        raise _invalid(path, [*refused.steps, key], str(refused)) from None
    except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
        raise _invalid(path, *_culprit(key, value, error)) from None


def _section_again(key: str, value: object, path: Place, remembered: Remembered) -> Section:
    """Return what `_section` does, from memory if an equal snapshot was examined before.

    Marshal writes only objects that are exactly of a built-in type, and the type of each, so equal
    snapshots are equal values, keys included, and 1, 1.0 and True are told apart. (What offers a
    buffer is taken for bytes, which are refused as well.) A snapshot that is seen again is itself
    examined, not the value: that another thread may have changed since the snapshot was taken.
    """
    kind = type(value)
    if kind in SCALARS:
        section = _section(key, value, path)
        remembered[key] = value, section
        return section
    if kind is not dict and kind is not list:
        return _section(key, value, path)
    former, known = remembered.get(key, _NOTHING)
    if former is _TOO_LONG[0]:
        section = _section(key, value, path)
        if len(section.text) <= _LONG_TEXT:
            remembered.pop(key, None)
        return section
    try:
        snapshot = marshal.dumps(value)  # type: ignore[arg-type]  # what it refuses is handled
    except ValueError:  # a Decimal, a subclass, or something to be refused
        return _section(key, value, path)
    long = len(snapshot) > _LONG_SNAPSHOT
    mark = hashlib.sha256(snapshot).digest() if long else snapshot
    if former != mark:
        del snapshot  # it may be large, and is not needed any longer
        section = _section(key, value, path)
        remembered[key] = _TOO_LONG if len(section.text) > _LONG_TEXT else (mark, None)
        return section
    if known is None:
        known = _section(key, marshal.loads(snapshot), path)
        remembered[key] = mark, known
    return known


def _culprit(key: object, value: object, error: Exception) -> tuple[list[str], str]:
    """Return the steps to the innermost value that does not encode, from inside out, and why."""
    if isinstance(error, RecursionError):
        return [str(key)], f"nested deeper than {MAX_DEPTH} levels, or contains itself"
    for step, item in _children(value):
        for part in (item, step):
            try:
                _encode(part)
            except (UnicodeEncodeError, ValueError, TypeError) as inner:
                steps, why = _culprit(step, item, inner)
                return [*steps, str(key)], why
    if isinstance(error, UnicodeEncodeError):
        return [str(key)], f"a lone surrogate (at {error.start}) cannot be saved as UTF-8"
    return [str(key)], f"cannot be saved as JSON: {error}"


def _children(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _invalid(path: Place, steps: list[str], why: str) -> StateInvalid:
    name = dotted(steps)
    return StateInvalid(path, f"{name}: {why} ({path} is unchanged)", name)
