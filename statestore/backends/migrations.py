"""The numbered SQL files that come with the package, and how far a database got with them.

What is promised: a database that was made by other files than these, or by newer ones, is refused
and never worked on: each file is known again by the hash of its bytes, so none is ever edited, and
a change of the schema is one more file (``sql/0001_state.sql`` is the first).

Nothing is asked or applied here: that is `statestore.backends.database`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Self

from statestore.errors import SchemaOutdated

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file. `sha256` is that of its bytes."""

    number: int
    name: str
    sha256: str
    text: str

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables it makes."""
        return tuple(_TABLE.findall(self.text))


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration as the database remembers it. `at` is aware."""

    number: int
    name: str
    sha256: str
    at: datetime


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What of the schema is there: `applied` in order, `pending` still to do."""

    schema: str
    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]

    @property
    def version(self) -> int:
        return self.applied[-1].number if self.applied else 0

    @classmethod
    def judged(
        cls,
        schema: str,
        address: str,
        applied: tuple[Applied, ...],
        known: tuple[Migration, ...],
    ) -> Self:
        """Return how far a schema got, by what it remembers and by the files there are.

        Args:
            address: of the database, for messages.
            applied: in order.

        Raises:
            SchemaOutdated: it was made by a newer version, or by other files than these.
        """
        for was, file in zip(applied, known, strict=False):
            if (was.number, was.sha256) != (file.number, file.sha256):
                raise SchemaOutdated(
                    f"{address}: migration {was.number} ({was.name}) is not the one of this "
                    f"version ({file.number}, {file.name}): the schema was made by other files; "
                    "use another schema name, or the version it was made with"
                )
        if len(applied) > len(known):
            raise SchemaOutdated(
                f"{address} is at schema version {applied[-1].number}, made by a newer "
                f"statestore; this one knows {known[-1].number}: install the newer one"
            )
        return cls(schema, applied, known[len(applied) :])


def migrations() -> tuple[Migration, ...]:
    """Return the numbered SQL files of this version, in order."""
    found = []
    for file in resources.files("statestore.backends").joinpath("sql").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            found.append(Migration(int(match[1]), match[2], digest, data.decode()))
    return tuple(sorted(found, key=lambda migration: migration.number))
