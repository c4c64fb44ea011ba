"""Archives of fills, from the file to positions, without holding the fills in memory.

The figures are those of `normalise`, `movements_of` and `replay` on the whole file. What is
different is the way there: JSON Lines are read a block at a time, and each fill is taken into its
asset's account and forgotten (`folding`). That is the same thing as long as an asset's fills stand
in the file in the order they are replayed in, and no identity comes twice. Both are checked for
every fill. An asset for which one does not hold is replayed from its own rows in a second reading
of the file; a file that is not one fill a line (pages, a list, a CSV) is read whole.

With several processes each reads a range of the file. A range but the first does not know what was
held before it, so it guesses where its first lifecycle ends, keeps the fills until then, and folds
on from flat. Afterwards the kept fills are applied to what really was held: where that ends flat
the guess was right, and where it does not the asset is read again.
"""

from __future__ import annotations

import multiprocessing
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from statestore.amounts import exact
from statestore.errors import RecordedFileError
from statestore.fills.decoding import decode_json, names_of
from statestore.fills.folding import BLANKS, Fold, NotLines, Replayed, Rules, legs_of, origin_of
from statestore.fills.movements import movements_of
from statestore.fills.normalise import normalise
from statestore.fills.replay import replay
from statestore.fills.sources.recorded import read_fills
from statestore.model import CASH, Batch, FillKind, Method, Normalised, Rejected, Row, Side

# Larger blocks are slower: beyond 128 KiB the system is asked for fresh memory each time.
_BLOCK = 1 << 16

# Identities that are compared at once; each takes 60 bytes while they are.
_MOST_AT_ONCE = 600_000

# Parts they are split into until they are no more than that, and how often at most: by a byte of
# theirs each time, of which the first is left to the processes.
_PARTS = 2
_MOST_SPLITS = 7

# How long one process is listened to before the next one is.
_PATIENCE_SECONDS = 0.01

# Bytes after which a process tells how far it is.
_TOLD_EVERY = 1 << 22

# A range of the file that is worth a process.
_LEAST_RANGE = 1 << 20

# A line that is longer holds more than one fill.
_LONGEST_LINE = 1 << 20

_BOM = b"\xef\xbb\xbf"

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Archive:
    """What a file of fills alone says.

    Attributes:
        assets: by name, those that were filled in the window, as a rebuild has them in scope.
        rejected, duplicates, skipped, skipped_products: of the whole file, see `Normalised`.
        read_again: assets that were replayed from a second reading.
        moved: the assets, and those that only paid for something: all but cash.
    """

    assets: Mapping[str, Replayed]
    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_products: tuple[str, ...] = ()
    read_again: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()


# The whole file, or some of it, at once: what defines the figures


@exact
def replay_fills(read: Normalised, rules: Rules, only: Collection[str] | None = None) -> Archive:
    """Return the archive of fills that are in memory; ``only``: of these assets."""
    fills = rules.in_window(read.fills)
    names = {fill.base for fill in fills} | {
        fill.quote for fill in fills if fill.side is Side.SELL and fill.quote not in CASH
    }
    assets = {}
    for name in sorted(names if only is None else names & set(only)):
        movements = movements_of(name, fills)
        assets[name] = Replayed(
            replay(movements, rules.method, increment=rules.increment),
            len(movements),
            movements[0].fill.time,
            movements[-1].fill.time,
            any(movement.fill.kind is not FillKind.FILL for movement in movements),
        )
    return Archive(
        assets,
        read.rejected,
        read.duplicates,
        read.skipped,
        read.skipped_products,
        moved=frozenset(names | {fill.quote for fill in fills} - CASH),
    )


def _rows_of(path: Path, assets: Collection[str]) -> Batch:
    """The rows of a file of lines that move any of the assets."""
    rows = []
    for number, line in _numbered_lines(path):
        if not set(assets).isdisjoint(legs_of(names_of(line)[1])):
            payload = decode_json(line)
            assert isinstance(payload, dict)  # as when it was first read
            rows.append(Row(payload, origin_of(path.name, number)))
    return Batch(tuple(rows), pages=1, exhausted=True)


def _sharing(path: Path, hashes: Collection[int]) -> set[str]:
    """Assets of all rows whose identity has one of the hashes."""
    found: set[str] = set()
    for _, line in _numbered_lines(path):
        names, product_id = names_of(line)
        if any(hash(name) in hashes for name in names):
            found.update(
                leg for n, leg in enumerate(legs_of(product_id)) if not n or leg not in CASH
            )
    return found


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip(BLANKS):
                yield number, line.removeprefix(_BOM)


# The whole of it


@exact
def replay_archive(
    path: Path, rules: Rules, *, jobs: int = 1, on_bytes: OnBytes | None = None
) -> Archive:
    """Return what the fills of a file say, exactly as `replay_fills` does.

    Args:
        jobs: processes that share the reading, for average cost; the figures are the same.
        on_bytes: is told how many more bytes have been read.

    Raises:
        RecordedFileError, IncompleteRead: see `read_fills`.
    """
    try:
        size = path.stat().st_size
        if jobs > 1 and rules.method is Method.AVERAGE and size >= jobs * _LEAST_RANGE:
            fold, shared = _fold_in_ranges(path, rules, size, jobs, on_bytes)
        else:
            fold = Fold(path.name, rules)
            for block in _blocks(path, 0, size):
                fold.take(block)
                if on_bytes:
                    on_bytes(len(block))
            shared = _twice(fold.hashes)
        return _finished(path, rules, fold, shared)
    except NotLines:
        return replay_fills(normalise([read_fills(path)]), rules)
    except OSError as error:
        raise RecordedFileError(f"cannot read {path}: {error.strerror or error}") from error


def _finished(path: Path, rules: Rules, fold: Fold, shared: Collection[int]) -> Archive:
    if fold.rows < 2:
        raise NotLines  # one object is not yet a file of lines, and is spoken of otherwise
    again = {asset for asset, account in fold.accounts.items() if account.again}
    if shared:
        again |= _sharing(path, shared)
    assets = {
        asset: account.replayed()
        for asset, account in fold.accounts.items()
        if account.filled and asset not in again
    }
    rejected = {
        (entry_id or origin_of(path.name, line), reason): Rejected(
            entry_id, origin_of(path.name, line), reason
        )
        for line, entry_id, reason in reversed(fold.rejected)
    }
    duplicates = 0
    if again:
        second = replay_fills(normalise([_rows_of(path, again)]), rules, only=again)
        assets |= second.assets
        duplicates = second.duplicates
        for one in second.rejected:
            rejected.setdefault((one.entry_id or one.origin, one.reason), one)
    return Archive(
        dict(sorted(assets.items())),
        tuple(rejected.values()),
        duplicates,
        {category: len(rows) for category, rows in fold.skipped.items()},
        tuple(sorted(fold.skipped_products - {""})),
        tuple(sorted(again & assets.keys())),
        frozenset(fold.accounts),
    )


def _blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The lines that begin in ``[start, end)``, many at a time.

    Raises:
        NotLines: one is longer than any fill.
    """
    with path.open("rb", buffering=0) as file:
        at = _next_line(file, start) if start else len(_BOM) * (file.read(len(_BOM)) == _BOM)
        file.seek(at)
        rest = b""
        while at < end:
            read = file.read(_BLOCK)
            if not read:
                break
            data = rest + read
            cut = data.rfind(b"\n") + 1
            if at + cut >= end:
                cut = data.index(b"\n", end - at - 1) + 1
                yield data[:cut]
                return
            rest = data[cut:]
            if len(rest) > _LONGEST_LINE:
                raise NotLines
            at += cut
            if cut:
                yield data[:cut]
        if rest and at < end:
            yield rest


def _next_line(file: BinaryIO, start: int) -> int:
    """Where the first line begins that begins at ``start`` or after."""
    file.seek(start - 1)
    at = start - 1
    while read := file.read(_BLOCK):  # its readline would ask for a byte at a time
        end = read.find(b"\n")
        if end >= 0:
            return at + end + 1
        at += len(read)
        if at - start > _LONGEST_LINE:
            raise NotLines
    return at


def _twice(hashes: array[int], byte: int = 1) -> set[int]:
    """Those that are in it more than once. A part at a time, so that the parts fit into memory."""
    if len(hashes) > _MOST_AT_ONCE and byte <= _MOST_SPLITS:
        found = (_twice(part, byte + 1) for part in _split(hashes, _PARTS, byte))
        return set().union(*found)
    if len(set(hashes)) == len(hashes):
        return set()
    return {one for one, times in Counter(hashes).items() if times > 1}


def _split(hashes: array[int], parts: int, byte: int = 0) -> Iterator[array[int]]:
    """The hashes in parts by one of their bytes, so that equal ones are in one part."""
    column = memoryview(hashes).cast("B")[byte :: hashes.itemsize].tobytes()
    for part in range(parts):
        of_part = bytes(value % parts == part for value in range(256))
        yield array("q", compress(hashes, column.translate(of_part)))


# Several processes


def _fold_in_ranges(
    path: Path, rules: Rules, size: int, jobs: int, on_bytes: OnBytes | None
) -> tuple[Fold, set[int]]:
    """Fold as many ranges of the file as there are jobs, each in a process of its own."""
    # Forked ones share the secret that texts are hashed with, and import nothing again.
    processes = multiprocessing.get_context("fork")
    # The first range is a tenth longer: it knows what is held, the others guess and are asked.
    cuts = [0, *(size * (10 * number + 1) // (10 * jobs + 1) for number in range(1, jobs + 1))]
    workers = []
    try:
        for start, end in pairwise(cuts):
            ours, theirs = processes.Pipe()
            arguments = (theirs, path, rules, start, end, jobs)
            worker = processes.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            workers.append((worker, ours))
        return _merged([connection for _, connection in workers], path, rules, on_bytes)
    except EOFError as error:
        raise RecordedFileError(
            f"a process that read a part of {path} was ended; run again, with --jobs 1 if need be"
        ) from error
    finally:
        for worker, connection in workers:
            worker.terminate()
            worker.join()
            connection.close()


def _merged(
    connections: list[Connection], path: Path, rules: Rules, on_bytes: OnBytes | None
) -> tuple[Fold, set[int]]:
    folded: dict[int, tuple[Fold, list[bytes]]] = {}
    while len(folded) < len(connections):
        for number, connection in enumerate(connections):
            if number not in folded and connection.poll(_PATIENCE_SECONDS):
                answer = _received(connection)
                if not isinstance(answer, int):
                    folded[number] = answer
                elif on_bytes:
                    on_bytes(answer)
    for number, connection in enumerate(connections):
        connection.send([hashes[number] for _, hashes in folded.values()])
    whole = Fold(path.name, rules)
    for number, connection in enumerate(connections):
        whole.append(folded[number][0])
        connection.send(whole.accounts)
        whole.accounts = _received(connection)
    return whole, set().union(*map(_received, connections))


def _received(connection: Connection) -> Any:
    answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(
    connection: Connection, path: Path, rules: Rules, start: int, end: int, jobs: int
) -> None:
    """Fold one range; then tell what follows from what was held before it, and which identities
    come twice among those of all ranges that fall to this process."""
    try:
        _work_on(connection, path, rules, start, end, jobs)
    except Exception as error:  # noqa: BLE001 - raised again where it can be seen
        connection.send(error)


@exact
def _work_on(
    connection: Connection, path: Path, rules: Rules, start: int, end: int, jobs: int
) -> None:
    fold = Fold(path.name, rules, guessing=start > 0)
    told = read = 0
    for block in _blocks(path, start, end):
        fold.take(block)
        read += len(block)
        if read - told > _TOLD_EVERY:
            connection.send(read - told)
            told = read
    connection.send(read - told)
    connection.send((fold.summary(), [part.tobytes() for part in _split(fold.hashes, jobs)]))
    hashes = array("q", b"".join(connection.recv()))
    connection.send(fold.after(connection.recv()))
    connection.send(_twice(hashes))
