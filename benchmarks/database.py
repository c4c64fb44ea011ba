"""What a state in PostgreSQL costs beside the same state in a file: save, load, and being told.

Both stores save the same state with the same small changes, in turn and in a new order each round;
the ratio of the two medians is what is compared. The server runs on this machine, on the same disk
as the file, so what a network adds is one round trip for each figure marked so. Besides, for
scale: what the server itself takes to flush one row (an UPDATE of one number), and for how long
another store is not told of a save: by notification, and (a file) by looking.

    python benchmarks/database.py [--dir FOLDER] [--rounds N] [--url URL] [--markdown]

FOLDER has to be on a real disk. Without ``--url`` a server is started (Debian: apt-get install
postgresql). ``--markdown`` writes the section of ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from save import PAGE, change, state_of  # noqa: E402

from statestore import StateStore  # noqa: E402
from statestore.backends.database import Database  # noqa: E402
from tests.servers import running_postgres  # noqa: E402

SECTION = "\n## In PostgreSQL, beside a file\n"
SIZES = ("1K", "16K", "56K", "1M")
FILE, DATABASE, BESIDE, ROW = "file", "PostgreSQL", "PostgreSQL, file_fallback", "UPDATE of a row"


def measure(url: str, folder: Path, label: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return medians in microseconds, by what was done and where."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        stores = {
            FILE: StateStore(Path(own) / "state.json"),
            DATABASE: StateStore(url, state=f"plain-{label}"),
            BESIDE: StateStore(
                url, state=f"beside-{label}", file_fallback=Path(own) / "fallback.json"
            ),
        }
        readers = {name: store.onlooker() for name, store in stores.items()}
        states = {name: store.load() for name, store in stores.items()}
        for name, store in stores.items():
            states[name].update(state_of(label))
            store.save(states[name])
            readers[name].load()
            readers[name].changed()  # begins to listen
        database = Database(url)
        with database.dedicated() as connection:
            connection.execute("CREATE TABLE statestore.bench (n int)")
            connection.execute("INSERT INTO statestore.bench VALUES (0)")
            found: dict[str, dict[str, list[float]]] = {
                what: {name: [] for name in (*stores, ROW)}
                for what in ("save", "load", "told", "changed")
            }
            for number in range(rounds):
                for name in random.sample([*stores, ROW], len(stores) + 1):
                    if name == ROW:
                        found["save"][name].append(
                            timed(lambda: connection.execute("UPDATE statestore.bench SET n = n+1"))
                        )
                        continue
                    one(number, stores[name], readers[name], states[name], found, name)
            connection.execute("DROP TABLE statestore.bench")
        database.close()
        for store in (*stores.values(), *readers.values()):
            store.close()
    return {
        what: {name: median(values) for name, values in by.items() if values}
        for what, by in found.items()
    }


def one(
    number: int,
    store: StateStore,
    reader: StateStore,
    state: dict[str, object],
    found: dict[str, dict[str, list[float]]],
    name: str,
) -> None:
    """Save once, see how long until a reader knows, load there, and look again."""
    change(state, number)
    began = time.perf_counter()
    store.save(state)
    saved = time.perf_counter()
    while not reader.changed():
        time.sleep(2e-5)  # the listener is a thread of this process
    told = time.perf_counter()
    found["save"][name].append((saved - began) * 1e6)
    found["told"][name].append((told - saved) * 1e6)
    found["load"][name].append(timed(reader.load))
    while reader.changed():  # a file that was read within a tick of its change is read once more
        pass
    found["changed"][name].append(timed(reader.changed))


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e6


def section(by_size: dict[str, dict[str, dict[str, float]]], version: str) -> str:
    sizes = list(by_size)
    lines = [
        SECTION,
        f"Made by `benchmarks/database.py --markdown`: PostgreSQL {version} on the same machine "
        f"and the same disk as the file ({os.cpu_count()} processors, Python "
        f"{platform.python_version()}), each measured in turn with the file. A save is one round "
        "trip to the server, a load another one; on a network add its latency to each. With "
        "`file_fallback` every save is written to the file as well. `changed()` costs no round "
        "trip as long as the listener is connected: a reader in the same process was told so long "
        "after the save had returned as the table says. (A file is looked at, so it knows as soon "
        "as it looks.)",
        "",
        "| ratio to the file | " + " | ".join(f"{size}B" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for what, names in (("save", (DATABASE, BESIDE, ROW)), ("load", (DATABASE, BESIDE))):
        for name in names:
            cells = [f"{by_size[s][what][name] / by_size[s][what][FILE]:.2f}" for s in sizes]
            lines.append(f"| {what}, {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| microseconds | " + " | ".join(f"{size}B" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for what in ("save", "load", "told", "changed"):
        for name in (FILE, DATABASE):
            cells = [f"{by_size[s][what][name]:.0f}" for s in sizes]
            said = {"told": "told after a save", "changed": "`changed()`, nothing new"}
            lines.append(f"| {said.get(what, what)}, {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@contextmanager
def server(url: str | None, folder: Path) -> Iterator[str]:
    if url is not None:
        yield url
        return
    tempfile.tempdir = str(folder.resolve())
    with running_postgres() as started:
        tempfile.tempdir = None
        yield started.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dir", type=Path, default=Path(), help="on a real disk")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--sizes", default=",".join(SIZES), help="some of " + ",".join(SIZES))
    parser.add_argument("--url", help="of a server that is there")
    parser.add_argument("--markdown", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    by_size = {}
    with server(options.url, options.dir) as url:
        database = Database(url)
        database.upgrade()
        with database.transaction() as connection:
            row = connection.execute("SHOW server_version").fetchone()
        database.close()
        for label in options.sizes.split(","):
            by_size[label] = found = measure(url, options.dir, label, options.rounds)
            print(f"\n{label}B: {options.rounds} rounds, microseconds (ratio to the file)")
            for what, by in found.items():
                told = ", ".join(f"{n} {v:.0f} ({v / by[FILE]:.2f})" for n, v in by.items())
                print(f"  {what:8} {told}")
    if options.markdown:
        text = PAGE.read_text().partition(SECTION)[0]
        PAGE.write_text(text + section(by_size, str(row[0] if row else "?").split()[0]))
        print(f"\nwrote {PAGE.name}")


if __name__ == "__main__":
    main()
