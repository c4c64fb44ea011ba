"""Damage at rest: what a bad disk, a bad copy or a cosmic ray makes of files nobody writes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from statestore.disk.store import StateStore
from statestore.errors import StateStoreError
from tests.crash import subjects
from tests.crash.disk import PAGE, SECTOR
from tests.crash.lab import EMPTY, Tally
from tests.crash.subjects import WRONG, Peer, Violation, number_of

STALE = "an older state is loaded, and nothing says so"


def damages(old: bytes, new: bytes, step: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield damaged forms of `new`, each with its kind; `old` is the version before.

    Args:
        step: every how many bytes it is cut, spliced and has a bit flipped; 1 is at each.
    """
    for at in range(0, len(new), step):
        yield "truncated", new[:at]
    for at in range(0, len(new), step):
        bits = range(8) if step == 1 else [rng.randrange(8)]
        for bit in bits:
            yield "a bit flipped", new[:at] + bytes([new[at] ^ 1 << bit]) + new[at + 1 :]
    for size in (SECTOR, PAGE):
        for at in range(0, len(new), size):
            piece = len(new[at : at + size])
            yield "zeros", new[:at] + bytes(piece) + new[at + piece :]
    for at in range(step, len(new), step):
        yield "spliced", old[:at] + new[at:]
        yield "spliced", new[:at] + old[at:]
    yield "all zeros", bytes(len(new))
    yield "noise", rng.randbytes(len(new))


def damage_statestore(
    which: tuple[str, ...], step: int, *, backup: bool = False, on_mismatch: str = "refuse"
) -> Tally:
    """Damage these files of a store (``state.json``, ``state.json.bak``) alike, and load."""
    tally, rng = Tally(), random.Random(len(which))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects.start(1, 2)(folder)
        path = subjects.state_path(folder)
        old = Path(f"{path}.bak").read_bytes()
        if backup:
            StateStore(path).backup()
        new = path.read_bytes()
        for kind, data in damages(old, new, step, rng):
            if data not in (old, new):
                for file in which:
                    (path.parent / file).write_bytes(data)
                tally.cases += 1
                _load_statestore(path, which, kind, tally, on_mismatch)
    return tally


def _load_statestore(
    path: Path, which: tuple[str, ...], kind: str, tally: Tally, on_mismatch: str
) -> None:
    try:
        state = StateStore(path, on_mismatch=on_mismatch).load()  # type: ignore[arg-type]
        number = number_of(state)
    except StateStoreError:
        if "state.json" not in which:
            tally.violated("a good state does not load", kind)
    except Violation as violation:
        tally.violated(str(violation), kind)
    else:
        if number == 0:
            tally.violated(EMPTY, kind)
        elif state.meta.recovered_from is None and "state.json" in which:
            tally.violated(WRONG if number == 2 else STALE, kind)
        elif state.meta.recovered_from is not None and "state.json" not in which:
            tally.violated("a good state is not loaded", kind)


def damage_peer(peer: Peer, step: int) -> Tally:
    """Damage each file of a peer in turn, and load. An error of whatever kind is an answer."""
    tally, rng = Tally(), random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "store")
        folder.mkdir()
        peer.save_and_close(folder, 1)
        before = _contents(folder)
        peer.save_and_close(folder, 2)
        after = _contents(folder)
        for file, new in after.items():
            for kind, data in damages(before.get(file, b""), new, step, rng):
                if data in (new, before.get(file)) or not new:
                    continue
                for other, content in after.items():
                    (folder / other).write_bytes(data if other == file else content)
                tally.cases += 1
                _load_peer(peer.load, folder, f"{file}: {kind}", tally)
                for extra in _contents(folder).keys() - after.keys():
                    (folder / extra).unlink()
    return tally


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _load_peer(load: Callable[[Path], object], folder: Path, kind: str, tally: Tally) -> None:
    try:
        number = number_of(load(folder))
    except Violation as violation:
        tally.violated(str(violation), kind)
    except Exception:  # noqa: BLE001  # it refuses, and that is right
        return
    else:
        if number < 2:
            tally.violated(STALE if number else EMPTY, kind)
