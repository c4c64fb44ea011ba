"""What a durable save costs beside the disk's own price, and beside other stores.

Every contender keeps one state in a folder of its own and saves it again and again with something
small changed, in turn with the floor (`floor.c`: the calls of the system a durable save is made of,
in C) and in a new order each round; the ratio of the two medians is what is compared. Contenders
that do not flush run by themselves, so that the floor does not flush for them. ``sqlite3`` and
``lmdb`` store what msgspec encodes, so that it is stores that are compared and not encoders.

    python benchmarks/save.py [--dir FOLDER ...] [--seconds N] [--sizes 16K,1M] [--markdown]

Each FOLDER has to be on a real disk; a file system in memory flushes nothing. Peers that are not
installed are left out (``pip install 'statestore[bench]'``). ``--markdown`` writes
``docs/benchmarks.md``. `startup.py`, beside this file, tells what a command costs before it works.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from statestore import StateStore
from statestore.disk.surroundings import file_system_of
from statestore.errors import UsageError

HERE = Path(__file__).resolve().parent
REAL_STATE = HERE.parent.parent / "shared/real/state/247trader/HEAD/.state.json"
PAGE = HERE.parent / "docs/benchmarks.md"
SIZES = {"1K": 1_000, "16K": 16_000, "56K": 56_000, "1M": 1_000_000, "16M": 16_000_000}
MAIN = "56K"
FLOOR, BARE = "floor, in C", "the same calls, in Python"
FULL, SINGLE, RELAXED = "statestore", "statestore, single-sync", "statestore, relaxed"

State = dict[str, Any]
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


# The states


def real_state() -> State | None:
    return json.loads(REAL_STATE.read_bytes()) if REAL_STATE.is_file() else None


def look_alike(size: int) -> State:
    """Return a state of a bot with about `size` bytes, two-space indent; the same each time."""
    rng = random.Random(size)
    state: State = {
        "trades_today": 13,
        "last_trade_timestamp": "2025-11-14T01:18:33.744041+00:00",
        "positions": {},
        "events": [],
    }
    rows: list[Callable[[int], None]] = [
        lambda at: state["positions"].__setitem__(
            f"C{at}-USD",
            {
                "side": "BUY",
                "units": rng.random(),
                "average_cost": rng.random() * 60_000,
                "entry_time": "2025-11-18T04:29:43.786756Z",
                "fees_paid": rng.random(),
            },
        )
    ]
    for part in range(8 if size > 100_000 else 1):  # as many sections as a large state has
        orders = state.setdefault(f"recent_orders_{part}", [])
        rows.append(
            lambda at, orders=orders: orders.append(
                {
                    "order_id": f"{rng.getrandbits(128):032x}",
                    "product_id": f"C{at % 40}-USD",
                    "side": "buy" if at % 2 else "sell",
                    "filled_value": rng.random() * 100,
                    "status": "FILLED",
                    "created_at": "2025-11-14T00:47:15.743710+00:00",
                }
            )
        )
    length, at = len(msgspec.json.format(encode(state), indent=2)), 0
    while length < size - 250:
        rows[0 if at < 20 else at % len(rows)](at)
        at += 1
        length += 220 if at <= 20 or at % len(rows) == 0 else 245
    return state


def state_of(label: str) -> State:
    found = real_state() if label == MAIN else None
    return found or look_alike(SIZES[label])


def change(state: State, number: int) -> None:
    """What a loop of a bot changes: a counter, a time, and a figure of one position."""
    state["trades_today"] = number
    state["last_trade_timestamp"] = f"2025-11-14T01:18:33.{number % 1_000_000:06d}+00:00"
    for position in state["positions"].values():
        position["usd_value"] = 2975.32 / (number + 1)  # not of one length
        break


# The contenders


@dataclass(frozen=True)
class Contender:
    """One way to keep a state.

    Attributes:
        start: prepares a folder; returns what saves, and what loads as after a start.
        durable: an acknowledged save survives a power cut.
        needs: a package; without it the contender is left out.
        everything: each save changes every section, by one value deep inside.
    """

    name: str
    start: Callable[[Path, State], tuple[Callable[[int], object], Callable[[], object]]]
    durable: bool = True
    needs: str | None = None
    everything: bool = False

    @property
    def installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def bytes_of(state: State, folder: Path) -> bytes:
    """Return the state as a file of `statestore`."""
    store = StateStore(folder / "sample.json", durability="relaxed")
    store.save(state)
    data = store.path.read_bytes()
    for left in folder.glob("sample.json*"):
        left.unlink()
    return data


def compiled(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "floor.so"
    source = HERE / "floor.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def floor_in_c(folder: Path, state: State):
    library = compiled(folder)
    assert library is not None
    data = bytes_of(state, folder)
    names = [folder, *(folder / name for name in ("s", "s.tmp", "s.bak", "s.bak.tmp"))]
    arguments = [*(os.fsencode(name) for name in names), data, ctypes.c_size_t(len(data))]

    def save(_number: int) -> None:
        if library.save(*arguments) != 0:
            raise OSError("the floor could not save")

    return save, lambda: decode((folder / "s").read_bytes())


def floor_in_python(folder: Path, state: State):
    data = bytes_of(state, folder)
    path, temporary, bak, bak_temporary = (
        f"{folder}/{name}" for name in ("s", "s.tmp", "s.bak", "s.bak.tmp")
    )

    def save(_number: int) -> None:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(file, data)
        os.fsync(file)
        os.close(file)
        if os.path.exists(path):  # noqa: PTH110
            os.link(path, bak_temporary)
            os.replace(bak_temporary, bak)  # noqa: PTH105
        os.replace(temporary, path)  # noqa: PTH105
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(directory)
        os.close(directory)

    return save, lambda: json.loads(Path(path).read_bytes())


def statestore(durability: Any, *, everything: bool = False):
    def start(folder: Path, state: State):
        path = folder / "state.json"
        store = StateStore(path, durability=durability)
        mine = store.load()
        mine.update(state)

        def save(number: int) -> None:
            change(mine, number)
            if everything:
                for section in mine.values():
                    if isinstance(section, list) and section and isinstance(section[-1], dict):
                        section[-1]["seen"] = number
            store.save(mine)

        return save, lambda: StateStore(path, durability=durability).load()

    return start


def sqlite(journal: str):
    def start(folder: Path, state: State):
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(folder / "state.db", isolation_level=None)
            connection.execute(f"PRAGMA journal_mode={journal}")
            connection.execute("PRAGMA synchronous=FULL")
            return connection

        connection = connect()
        connection.execute("CREATE TABLE state (id INTEGER PRIMARY KEY, document BLOB)")
        connection.execute("INSERT INTO state VALUES (1, x'')")

        def save(number: int) -> None:
            change(state, number)
            connection.execute("UPDATE state SET document = ? WHERE id = 1", (encode(state),))

        def load() -> object:
            fresh = connect()
            try:
                (row,) = fresh.execute("SELECT document FROM state WHERE id = 1")
                return decode(row[0])
            finally:
                fresh.close()

        return save, load

    return start


def lmdb(folder: Path, state: State):
    import lmdb

    environment = lmdb.open(str(folder / "lmdb"), map_size=1 << 30)

    def save(number: int) -> None:
        change(state, number)
        with environment.begin(write=True) as transaction:
            transaction.put(b"state", encode(state))

    def load() -> object:
        with environment.begin(buffers=True) as transaction:
            return decode(transaction.get(b"state"))

    return save, load


def diskcache(folder: Path, state: State):
    import diskcache

    def connect() -> diskcache.Cache:
        # Values in files of their own, its default from 32 KB on, would not be flushed.
        return diskcache.Cache(
            str(folder / "cache"), sqlite_synchronous=2, disk_min_file_size=1 << 40
        )

    cache = connect()

    def save(number: int) -> None:
        change(state, number)
        cache["state"] = state

    def load() -> object:
        with connect() as fresh:
            return fresh["state"]

    return save, load


def sqlitedict(folder: Path, state: State):
    from sqlitedict import SqliteDict

    table = SqliteDict(str(folder / "state.db"))

    def save(number: int) -> None:
        change(state, number)
        table["state"] = state
        table.commit(blocking=True)

    return save, lambda: table["state"]


def zodb(folder: Path, state: State):
    import transaction
    import ZODB
    import ZODB.FileStorage

    database = ZODB.DB(ZODB.FileStorage.FileStorage(str(folder / "state.fs")))
    connection = database.open()
    root = connection.root()

    def save(number: int) -> None:
        change(state, number)
        root["state"] = state
        transaction.commit()

    def load() -> object:
        fresh = database.open(transaction.TransactionManager())
        try:
            fresh.cacheMinimize()
            return dict(fresh.root()["state"])
        finally:
            fresh.close()

    return save, load


def json_and_replace(folder: Path, state: State):
    path = folder / "state.json"

    def save(number: int) -> None:
        change(state, number)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(path)

    return save, lambda: json.loads(path.read_text())


def tinydb(folder: Path, state: State):
    from tinydb import TinyDB

    path = str(folder / "state.json")
    database = TinyDB(path)
    database.insert(state)

    def save(number: int) -> None:
        change(state, number)
        database.update(state, doc_ids=[1])

    return save, lambda: TinyDB(path).get(doc_id=1)


CONTENDERS = [
    Contender(FLOOR, floor_in_c),
    Contender(BARE, floor_in_python),
    Contender(FULL, statestore("full")),
    Contender(f"{FULL}, every section changed", statestore("full", everything=True)),
    Contender(SINGLE, statestore("single-sync")),
    Contender("sqlite3, WAL, FULL", sqlite("WAL")),
    Contender("sqlite3, rollback journal, FULL", sqlite("DELETE")),
    Contender("lmdb", lmdb, needs="lmdb"),
    Contender("diskcache, FULL", diskcache, needs="diskcache"),
    Contender("ZODB", zodb, needs="ZODB"),
    Contender(RELAXED, statestore("relaxed"), durable=False),
    Contender("json + os.replace", json_and_replace, durable=False),
    # It sets synchronous=OFF, and leaves no choice.
    Contender("sqlitedict", sqlitedict, durable=False, needs="sqlitedict"),
    Contender("tinydb", tinydb, durable=False, needs="tinydb"),
]


# Measuring


@dataclass
class Figures:
    """Of one contender at one size; times in microseconds."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    written: float = 0.0
    floors: list[float] = field(default_factory=list)  # of the floor, measured in turn with it

    @property
    def ratio(self) -> float:
        return self.p50 / median(self.floors)

    @property
    def p50(self) -> float:
        return median(self.walls)

    @property
    def p99(self) -> float:
        return sorted(self.walls)[int(len(self.walls) * 0.99)]


@contextmanager
def started(
    folder: Path, label: str, *, durable: bool
) -> Iterator[dict[str, tuple[Callable[[int], object], Callable[[], object]]]]:
    """Start every contender that can run here, each with a state of its own."""
    running = {}
    scratch = Path(tempfile.mkdtemp(prefix="statestore-benchmark-", dir=folder))
    try:
        for at, contender in enumerate(CONTENDERS):
            if contender.durable is not durable or not contender.installed:
                continue
            if contender.name == FLOOR and not (shutil.which("gcc") or shutil.which("cc")):
                continue
            own = scratch / str(at)
            own.mkdir()
            try:
                running[contender.name] = contender.start(own, state_of(label))
            except UsageError:
                continue  # single-sync on a file system that it is not for
        yield running
    finally:
        running.clear()
        shutil.rmtree(scratch)


def bytes_written() -> int:
    return int(re.search(r"^write_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)[1])


def measure(folder: Path, label: str, seconds: float, *, durable: bool) -> dict[str, Figures]:
    """Save in turn with the floor, `seconds` or 400 rounds for each, but at least 12 rounds."""
    with started(folder, label, durable=durable) as running:
        figures = {name: Figures() for name in running}
        number = 0
        for name, (save, _) in running.items():
            for _ in range(3):  # the first saves make files, import and remember
                number += 1
                save(number)
            before = bytes_written()
            for _ in range(3):
                number += 1
                save(number)
            figures[name].written = (bytes_written() - before) / 3
        reference = next((name for name in (FLOOR, BARE) if name in running), None)
        for name, one in figures.items():
            os.sync()
            pair = [name] if reference in (None, name) else [name, reference]
            deadline, rounds = time.monotonic() + seconds, 0
            while rounds < 12 or (time.monotonic() < deadline and rounds < 400):
                rounds += 1
                for each in random.sample(pair, len(pair)):
                    number += 1
                    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
                    running[each][0](number)
                    wall = time.perf_counter_ns() - wall
                    cpu = time.process_time_ns() - cpu
                    if each == name:
                        one.walls.append(wall / 1e3)
                        one.cpus.append(cpu / 1e3)
                    else:
                        one.floors.append(wall / 1e3)
            for _ in range(min(rounds, 60)):
                wall = time.perf_counter_ns()
                running[name][1]()
                one.loads.append((time.perf_counter_ns() - wall) / 1e3)
    return figures


def settle(figures: dict[str, Figures]) -> None:
    """Give those that ran without the floor its times, measured just before."""
    for reference in (FLOOR, BARE):
        if reference in figures:
            for one in figures.values():
                one.floors = one.floors or figures[reference].walls


def changed_cost(folder: Path) -> tuple[float, float]:
    """Return microseconds of `StateStore.changed`, for the one that saved and one that loaded."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        writer = StateStore(Path(own) / "state.json")
        writer.save(state_of(MAIN))
        time.sleep(0.05)  # a reader that comes within a tick of the save looks twice
        reader = StateStore(writer.path)
        reader.load()
        costs = []
        for store in (writer, reader):
            walls = []
            for _ in range(200):
                wall = time.perf_counter_ns()
                for _ in range(20):
                    assert not store.changed()
                walls.append((time.perf_counter_ns() - wall) / 20e3)
            costs.append(median(walls))
        return costs[0], costs[1]


def memory_of_a_save(folder: Path) -> float:
    """Return the most memory a save of 16 MB takes on top, as a multiple of the file."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        store = StateStore(Path(own) / "state.json")
        state = store.load()
        state.update(state_of("16M"))
        peaks = []
        tracemalloc.start()
        for number in range(3):
            change(state, number)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            store.save(state)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        return max(peaks) / store.path.stat().st_size


def syncs(folder: Path) -> dict[str, float]:
    """Return how often each contender flushes per save, counted by strace; empty without it."""
    if shutil.which("strace") is None:
        return {}
    counts = {}
    for contender in CONTENDERS:
        if contender.installed:
            few, many = (_traced(folder, contender.name, saves) for saves in (5, 15))
            if few is not None and many is not None:
                counts[contender.name] = (many - few) / 10
    return counts


def _traced(folder: Path, name: str, saves: int) -> int | None:
    calls = "trace=fsync,fdatasync,msync,sync,syncfs"
    me = [sys.executable, str(Path(__file__).resolve()), "--dir", str(folder)]
    with tempfile.NamedTemporaryFile("r") as log:
        done = subprocess.run(
            ["strace", "-f", "-e", calls, "-o", log.name, *me, "--only", name, str(saves)],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return None if done.returncode else len(re.findall(r"sync\w*\(", log.read()))


def save_only(folder: Path, name: str, saves: int) -> None:
    (contender,) = (contender for contender in CONTENDERS if contender.name == name)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        try:
            save, _ = contender.start(Path(own), state_of("16K"))
        except UsageError as error:
            sys.exit(str(error))
        for number in range(saves):
            save(number)


# Telling


def print_size(label: str, figures: dict[str, Figures], counts: dict[str, float]) -> None:
    print(f"\n{label}: {len(next(iter(figures.values())).walls)} rounds, times in microseconds")
    print(f"{'':34}{'ratio':>7}{'p50':>9}{'p99':>9}{'CPU':>8}{'KB':>9}{'syncs':>7}{'load':>9}")
    for name, one in figures.items():
        flushes = f"{counts[name]:.3g}" if name in counts else "-"
        print(
            f"{name:34}{one.ratio:7.2f}{one.p50:9.0f}{one.p99:9.0f}{median(one.cpus):8.0f}"
            f"{one.written / 1e3:9.0f}{flushes:>7}{median(one.loads):9.0f}"
        )


@dataclass
class Report:
    """What was measured in one folder."""

    disk: str
    by_size: dict[str, dict[str, Figures]]
    counts: dict[str, float]
    changed: tuple[float, float]
    memory: float


def ratio_table(report: Report) -> list[str]:
    sizes = list(report.by_size)
    lines = [
        f"| p50 of a save, {FLOOR} = 1 | " + " | ".join(f"{size}B" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    names = [c.name for c in CONTENDERS if any(c.name in f for f in report.by_size.values())]
    for name in names:
        cells = [
            f"{figures[name].ratio:.2f}" if name in figures else ""
            for figures in report.by_size.values()
        ]
        durable = next(c.durable for c in CONTENDERS if c.name == name)
        lines.append(f"| {name}{'' if durable else ' (not durable)'} | " + " | ".join(cells) + " |")
    return lines


def detail_table(label: str, report: Report) -> list[str]:
    lines = [
        f"| {label}B, microseconds | p50 | p99 / p50 | CPU | KB written | syncs | load |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in report.by_size[label].items():
        flushes = f"{report.counts[name]:.3g}" if name in report.counts else ""
        lines.append(
            f"| {name} | {one.p50:.0f} | {one.p99 / one.p50:.1f} | {median(one.cpus):.0f} "
            f"| {one.written / 1e3:.0f} | {flushes} | {median(one.loads):.0f} |"
        )
    return lines


def page(reports: list[Report]) -> str:
    lines = [
        "# What a save costs",
        "",
        "Made by `benchmarks/save.py --markdown`; the figures are of one run on one machine "
        f"(Python {platform.python_version()}, Linux {platform.release().split('-')[0]}, "
        f"{os.cpu_count()} processors, virtual disk). Machines are noisy: read ratios and syncs.",
        "",
        "The floor is a C function that makes the calls a durable save is made of, and nothing "
        "else: write a file, fsync, link the former one to `.bak`, rename, fsync the folder. A "
        "save of `statestore` does that and takes a lock, compares revisions, finds what changed, "
        "encodes it and computes the checksum; between two saves a counter, a time and a position "
        'change, or ("every section changed") something in each list as well. Loading includes '
        "opening, checksum and validation. Each contender is measured in turn with the floor.",
        "",
        "Other stores keep the state as one value, encoded by msgspec for sqlite3 and lmdb; those "
        "from `sqlite3, WAL` to `ZODB` keep what they acknowledged through a power cut, with as "
        "many flushes as stand under syncs (lmdb's second one is a write through a descriptor "
        "opened for that), and sqlite3 writes only the pages that changed. What stands after "
        "`statestore, relaxed` may lose everything: `sqlitedict` sets `synchronous=OFF`, `tinydb` "
        "flushes, but writes over the only copy.",
        "",
        "Beyond the calls of the floor, which cost what the disk costs, a save computes: about "
        "0.1 ms plus 2 microseconds per KB, most of it to find what changed and for the checksum "
        "(from 256 KB on computed while the disk is at work). So the faster the disk, the higher "
        "the ratio. These disks are fast. In a loop without flushes the same takes half to a third "
        "of that: after a flush the processor's caches are cold.",
        "",
        "What a command costs before it does anything is measured by `benchmarks/startup.py`.",
    ]
    for report in reports:
        lines += ["", f"## On {report.disk}", "", *ratio_table(report)]
        if MAIN in report.by_size:
            lines += ["", *detail_table(MAIN, report)]
        lines += [
            "",
            f"`changed()` after a save {report.changed[0]:.1f}, after a load "
            f"{report.changed[1]:.1f} microseconds. A save of 16 MB takes at most "
            f"{report.memory:.1f} times its size in memory.",
        ]
    return "\n".join(lines) + "\n"


def describe(folder: Path) -> str:
    found = file_system_of(folder)
    return "ext4 with a journal (data=ordered)" if found == "ext4 (data=ordered)" else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dir", type=Path, nargs="+", default=[Path()], help="on a real disk")
    parser.add_argument("--seconds", type=float, default=1.0, help="per size and contender")
    parser.add_argument("--sizes", default=",".join(SIZES), help="some of " + ",".join(SIZES))
    parser.add_argument("--markdown", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "SAVES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        save_only(options.dir[0], options.only[0], int(options.only[1]))
        return
    reports = []
    for folder in options.dir:
        report = Report(describe(folder), {}, syncs(folder), (0, 0), 0)
        print(f"\nOn {report.disk}")
        for label in options.sizes.split(","):
            figures = measure(folder, label, options.seconds, durable=True)
            os.sync()
            figures |= measure(folder, label, options.seconds, durable=False)
            settle(figures)
            report.by_size[label] = figures
            print_size(label, figures, report.counts)
        report.changed = changed_cost(folder)
        report.memory = memory_of_a_save(folder)
        print(f"\nchanged(): {report.changed[0]:.1f} and {report.changed[1]:.1f} microseconds")
        print(f"memory of a 16 MB save: {report.memory:.1f} times its size")
        reports.append(report)
    if options.markdown:
        former = PAGE.read_text() if PAGE.exists() else ""
        others = former.partition("\n## In PostgreSQL")  # written by database.py
        PAGE.write_text(page(reports) + "".join(others[1:]))
        print(f"\nwrote {PAGE.name}")


if __name__ == "__main__":
    main()
