"""A revision as points of InfluxDB, in its line protocol: what is written, and nothing of how.

Three measurements, each with the fields ``id`` (text), ``seq`` (the revision), ``payload`` (JSON
text, digits as they are in the file) and ``deleted``:

=================  ==============================  ================================================
measurement        tags                            a point is
=================  ==============================  ================================================
``positions``      ``state symbol [venue]``        a position that a revision changed or removed
``pair_states``    ``state pair``                  the same of a pair's state
``trading_states`` ``state part``                  the file of a revision, in pieces of 60,000
                                                   bytes; ``parts`` says how many; ``id``: its sum
=================  ==============================  ================================================

Tags are what has a bounded number of values: states, keys that are held or were (see
`statestore.backends.mirror.MOST_SERIES`), pieces. Never a revision, an id or a time. In a tag,
control characters, backslashes and ``%`` stand as ``%0A``.

What is promised: no key can end a line or forge one, two keys never become one tag, and the piece 0
of a document comes last: it is what a revision is found by. An entry too long for a
field has a null payload; the document has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from statestore.backends.mirrored import Change, Kind, Revision

PART_BYTES = 60_000  # InfluxDB documents 64 KB for a text; a long position's payload is null
REQUEST_BYTES = 1_000_000  # what a proxy lets through that nobody told otherwise

MEASUREMENTS: dict[Kind, tuple[str, str]] = {
    "position": ("positions", "symbol"),
    "pair": ("pair_states", "pair"),
}
STATES = "trading_states"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f%\\]")


def lines(revision: Revision) -> Iterator[bytes]:
    """Return the lines of a revision, the one that makes it visible last."""
    state = _escaped_tag(revision.name)
    for change in revision.changes:
        yield _line_of(change, state, revision)
    parts = _parts(revision.document)
    for number in reversed(range(len(parts))):
        yield (
            f"{STATES},part={number:d},state={state} deleted=false,id={_text(revision.sha256)},"
            f"parts={len(parts):d}i,payload={_text(parts[number])},seq={revision.revision:d}i "
            f"{revision.instant:d}"
        ).encode()


def _line_of(change: Change, state: str, revision: Revision) -> bytes:
    measurement, key = MEASUREMENTS[change.series.kind]
    # Tags in the order of their names: the server need not sort them.
    tags = {"state": state, key: _escaped_tag(change.series.key)}
    if change.series.venue:
        tags["venue"] = _escaped_tag(change.series.venue)
    told = ",".join(f"{name}={value}" for name, value in sorted(tags.items()))
    fits = len(change.payload.encode()) <= PART_BYTES
    return (
        f"{measurement},{told} deleted={'true' if change.deleted else 'false'},"
        f"id={_text(change.id)},payload={_text(change.payload if fits else 'null')},"
        f"seq={revision.revision:d}i {revision.instant:d}"
    ).encode()


def tag(text: str) -> str:
    """Return `text` as the value of a tag, before the escapes of the line protocol."""
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text) or "%"


def untag(text: str) -> str:
    """Return what `tag` was given."""
    return re.sub("%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), text.removesuffix("%"))


def _escaped_tag(text: str) -> str:
    return re.sub("([ ,=])", r"\\\1", tag(text))


def _text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parts(document: bytes) -> Sequence[str]:
    """Return the document in pieces that fit into a field, cut between characters."""
    pieces, begin = [], 0
    while begin < len(document):
        end = min(begin + PART_BYTES, len(document))
        while end < len(document) and document[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(document[begin:end].decode())
        begin = end
    return pieces


def requests_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Return bodies of at most `REQUEST_BYTES`, a longer line by itself."""
    body: list[bytes] = []
    size = 0
    for line in lines:
        if body and size + len(line) > REQUEST_BYTES:
            yield b"\n".join(body)
            body, size = [], 0
        body.append(line)
        size += len(line) + 1
    if body:
        yield b"\n".join(body)
