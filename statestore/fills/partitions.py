"""Archives of many accounts: folders that say whose fills they hold, ``account=alice/asset=BTC/``.

That is how a data lake keeps them (Hive's partitions, as pyarrow, Dask and Spark write them). A
partition is what one account did, in one asset or in all; its files, JSON Lines or Parquet, are one
archive together. A partition of one file of lines is read a block at a time; else it is in memory.

What is promised: the figures are those of `statestore.fills.archive` on the same fills. A fill of
ETH-BTC moves two assets, so in a partition by asset it would be half of the truth: such a partition
is refused, and the archive has to be partitioned by account alone. Nothing in a folder is passed
over: what is no file of fills, or cannot be looked into, is an error. But names that begin with "_"
or "." are no data by the custom of lakes (``_SUCCESS``, ``_temporary/``).

Parquet needs the extra ``parquet`` (pyarrow), imported when it is used. Exact numbers are texts or
decimals there, instants are texts or timestamps with a zone; null is absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from statestore.errors import RecordedFileError, UsageError
from statestore.fills.archive import Archive, replay_archive, replay_fills
from statestore.fills.folding import Rules
from statestore.fills.normalise import normalise
from statestore.fills.sources.recorded import read_fills
from statestore.model import Batch, Row
from statestore.times import format_instant

if TYPE_CHECKING:
    import pyarrow

_PARQUET = ".parquet"
_NO_DATA = ("_", ".")
_NUMBERS = ("price", "size", "commission")
_WIDEST = Context(prec=76)  # of Parquet's decimals
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", _PARQUET)


@dataclass(frozen=True, slots=True)
class Partition:
    """The fills of one account, in one asset; ``asset`` is empty for all of them."""

    account: str
    asset: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{self.account}/{self.asset}" if self.asset else self.account


def partitions_of(paths: Iterable[Path]) -> tuple[Partition, ...]:
    """Return the partitions below folders, and of files, by account and asset.

    Raises:
        UsageError: a file whose path names no account, no file at all, one that is none of fills,
            or an account that is partitioned by asset in one place and not in another.
        RecordedFileError: a folder cannot be listed.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    # Folders may overlap; a file counts once.
    for file in dict.fromkeys(file.absolute() for path in paths for file in _files(path)):
        named = dict(part.split("=", 1) for part in file.parts[:-1] if "=" in part)
        account, asset = unquote(named.get("account", "")), unquote(named.get("asset", ""))
        if not account or "/" in account + asset:
            raise UsageError(
                f"{file}: its path does not say whose fills these are; expected folders as "
                "account=alice/ or account=alice/asset=BTC/"
            )
        found.setdefault((account, asset), []).append(file)
    if not found:
        raise UsageError(f"there is no file of fills ({', '.join(_SUFFIXES)}) in what was named")
    whole = {account for account, asset in found if not asset}
    both = sorted(account for account, asset in found if asset and account in whole)
    if both:
        raise UsageError(f"account {both[0]} has fills by asset and fills beside that; name one")
    return tuple(Partition(*key, tuple(files)) for key, files in sorted(found.items()))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = []
    try:
        for folder, folders, names in os.walk(path, onerror=_unlisted):
            folders[:] = [name for name in folders if not name.startswith(_NO_DATA)]
            files += [Path(folder, name) for name in names if not name.startswith(_NO_DATA)]
            # A link to a folder is not followed, it might lead back; so it is refused below.
            files += [one for name in folders if (one := Path(folder, name)).is_symlink()]
    except OSError as error:
        raise RecordedFileError(f"cannot list {error.filename}: {error.strerror}") from error
    for file in files:
        if file.suffix not in _SUFFIXES or not file.is_file():
            raise UsageError(
                f"{file} is no file of fills ({', '.join(_SUFFIXES)}), and would be left out; "
                "unpack it, or move it elsewhere"
            )
    return sorted(files)


def _unlisted(error: OSError) -> NoReturn:
    raise error


def replay_partition(partition: Partition, rules: Rules) -> Archive:
    """Return what the fills of a partition say.

    Raises:
        RecordedFileError: a file is not one of fills, or fills move an asset beside the
            partition's own.
        IncompleteRead: see `read_fills`.
        UsageError: pyarrow is missing.
    """
    first, *more = partition.files
    if more or first.suffix == _PARQUET:
        archive = replay_fills(normalise([_read(file) for file in partition.files]), rules)
    else:
        archive = replay_archive(first, rules)
    others = sorted(archive.moved - {partition.asset})
    if partition.asset and others:
        raise RecordedFileError(
            f"{first.parent}: its fills move {', '.join(others)} as well as {partition.asset}; "
            "partition this archive by account alone"
        )
    return archive


def _read(file: Path) -> Batch:
    if file.suffix != _PARQUET:
        return read_fills(file)
    rows = (Row(row, f"{file.name} row {n}") for n, row in enumerate(_parquet_rows(file), 1))
    return Batch(tuple(rows), pages=1, exhausted=True)


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"{file} needs pyarrow, which is not installed: pip install 'statestore[parquet]'"
        ) from error
    try:
        table = parquet.read_table(file, partitioning=None)
        columns = {name: list(_column(file, name, table[name])) for name in table.column_names}
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # a year that is none, say
        raise RecordedFileError(f"cannot read {file} as Parquet: {error}") from error
    for values in zip(*columns.values(), strict=True):
        yield {n: v for n, v in zip(columns, values, strict=True) if v is not None}


def _column(file: Path, name: str, column: pyarrow.ChunkedArray) -> Iterator[Any]:
    """The values as the exchange would have sent them: texts, and what is true or false."""
    from pyarrow import types

    kind = column.type
    if name in _NUMBERS and types.is_floating(kind):
        raise RecordedFileError(f"{file}: column {name} is {kind}; expected a text or a decimal")
    if types.is_timestamp(kind):
        if kind.tz is None:
            raise RecordedFileError(f"{file}: column {name} is {kind}; expected a zone, or a text")
        import pyarrow

        nanoseconds = column.cast(pyarrow.timestamp("ns", kind.tz)).cast(pyarrow.int64())
        yield from (None if v is None else format_instant(v) for v in nanoseconds.to_pylist())
        return
    for value in column.to_pylist():
        # Never rounded here, whatever its scale.
        yield format(value.normalize(_WIDEST), "f") if isinstance(value, Decimal) else value
