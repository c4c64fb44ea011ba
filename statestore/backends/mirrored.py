"""What a mirror is given of a state, and what comes back of it: values, and no database.

What is promised: a position or a pair's state has one series for as long as its key and venue are
the same, and its entry stands there with the digits of the file; what comes back as a document is
the file of that revision byte for byte, or an error that says what is wrong with it.

What is not: a key of more than `LONGEST_KEY` characters has no series. The document has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from statestore.disk import codec
from statestore.errors import BackendError

LONGEST_KEY = 200  # characters

Kind = Literal["position", "pair"]


@dataclass(frozen=True, slots=True)
class Series:
    """What has a history of its own: a position at a venue, or a pair's state."""

    kind: Kind
    key: str
    venue: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision says about one series.

    Attributes:
        id: the entry's own (``position_id``, ``id``), else its key.
        payload: the entry as JSON, digits as they are in the file; ``null`` where it is deleted.
    """

    series: Series
    id: str
    payload: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision on its way into a mirror.

    Attributes:
        name: what the mirror calls the state.
        instant: of the save, or a nanosecond after the revision before: it never goes back.
        document: the state file, byte for byte.
        changes: to positions and pairs since the revision before.
    """

    name: str
    revision: int
    sha256: str
    instant: int
    document: bytes
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """The highest revision a mirror holds of a state, as it came back.

    Attributes:
        parts: the pieces of the document, None for one that is missing.
        address: of the database, for messages.
    """

    name: str
    revision: int
    sha256: str
    instant: int
    parts: tuple[bytes | None, ...]
    address: str

    def document(self) -> bytes:
        """Return the state file of this revision, byte for byte.

        Raises:
            BackendError: it is not whole, or not what was saved; says what is wrong.
        """
        missing = [str(number) for number, part in enumerate(self.parts) if part is None]
        if missing:
            raise BackendError(
                f"{self._what()} is incomplete: of {len(self.parts)} parts there is no "
                f"{', '.join(missing)}; restore from a backup"
            )
        data = b"".join(part for part in self.parts if part is not None)
        try:
            found = codec.parse(data)
        except (codec.Damaged, codec.TooNew) as error:
            raise BackendError(f"{self._what()} {error}; restore from a backup") from error
        # An identity is the sum only where that is right.
        if (found.revision, found.identity) != (self.revision, self.sha256):
            why = found.why or f"holds a document of revision {found.revision} with another sum"
            raise BackendError(f"{self._what()} {why}; restore from a backup")
        return data

    def _what(self) -> str:
        return f"{self.address}: revision {self.revision} of {self.name}"


def changes_of(document: codec.Document) -> dict[Series, Change]:
    """Return what the mirror lists of a state: positions and pair states that are objects' members.

    A key of more than `LONGEST_KEY` characters gets no series; the document has it.
    """
    found: dict[Series, Change] = {}
    sections: tuple[tuple[Kind, str], ...] = (("position", "positions"), ("pair", "pair_states"))
    for kind, section in sections:
        for key, text in (codec.members(document.sections.get(section, b"")) or {}).items():
            if len(key) > LONGEST_KEY:
                continue
            entry = codec.decode_section(text)
            said: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
            venue = ""
            if kind == "position":
                venue = _text(said, "venue") or _text(said, "exchange")
            series = Series(kind, key, venue[:LONGEST_KEY])
            name = _text(said, "position_id") or _text(said, "id") or key
            found[series] = Change(series, name[:LONGEST_KEY], text.decode())
    return found


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""
