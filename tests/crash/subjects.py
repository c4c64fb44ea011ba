"""What the laboratory is run on: a statestore, statestores with a planted mistake, and peers.

A `Subject` saves numbered states and reads back the number of the one it finds. `Reading` what is
not exactly one of the numbered states is a violation, and so is reading an older one than the
last that was acknowledged.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statestore.disk import codec, durable, store
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.errors import SaveFailed
from statestore.runtime.processing import StateBook, Tracker, drain
from statestore.runtime.signals import PLACES, Inbox, new_signal
from statestore.runtime.tokens import TokenId
from tests.crash.tracing import Report

Acknowledge = Callable[[int], None]

LITTER = "files are left behind"
WRONG = "what is loaded is no state that was ever saved"


class Violation(Exception):
    """A promise was broken.

    Attributes:
        example: what was seen in this case.
    """

    def __init__(self, what: str, example: str = "") -> None:
        super().__init__(what)
        self.example = example


@dataclass(frozen=True)
class Subject:
    """A way to keep numbered states in a folder.

    Attributes:
        prepare: untraced; makes the start and returns the number of the state that stands.
        work: traced; acknowledges the number of each state once it is said to be saved.
        read: returns the number of the state found, 0 for none; `Violation` if it is no state of
            ours. Any other exception means that the store refuses to answer.
        carry_on: after a crash and a `read`: the next save has to work and leave nothing behind.
        broken: what is planted or set, run in the process that works.
    """

    name: str
    prepare: Callable[[Path], int]
    work: Callable[[Path, Acknowledge], None]
    read: Callable[[Path], int]
    carry_on: Callable[[Path], None] = lambda _folder: None
    broken: Callable[[], object] = lambda: None

    def working(self, folder: Path) -> Callable[[Report], None]:
        def run(report: Report) -> None:
            self.broken()
            self.work(folder, lambda number: report(f"ack {number}"))

        return run


def state_of(number: int) -> dict[str, Any]:
    """Return the state of a number; every part of it tells which one it is of."""
    positions = {
        f"{base}-USD": {"quantity": number, "entry_price": 1000 + number / 8, "side": "BUY"}
        for base in ("BTC", "ETH", "SOL", "ADA", "DOT")
    }
    return {"n": number, "positions": positions, "history": [f"trade {number}"] * 300}


def number_of(state: object) -> int:
    """Return the number of a state; none at all is 0.

    Raises:
        Violation: it is not exactly one of the states that were saved.
    """
    if not state:
        return 0
    number = state.get("n") if isinstance(state, dict) else None
    if type(number) is not int or dict(state) != state_of(number):  # type: ignore[call-overload]
        raise Violation(WRONG)
    return number


# statestore

_BESIDE = {"state.json", "state.json.bak", "state.json.lock"}


def state_path(folder: Path) -> Path:
    return folder / "data" / "state.json"


def start(*numbers: int) -> Callable[[Path], int]:
    """Return a start with these states saved in turn."""

    def prepare(folder: Path) -> int:
        state_path(folder).parent.mkdir()
        writer = StateStore(state_path(folder))
        for number in numbers:
            writer.save(state_of(number))
        return numbers[-1]

    return prepare


def start_damaged(folder: Path) -> int:
    start(1, 2)(folder)
    data = state_path(folder).read_bytes()
    state_path(folder).write_bytes(data[: len(data) // 2])
    return 1


def start_without_bak(folder: Path) -> int:
    start(1, 2)(folder)
    Path(f"{state_path(folder)}.bak").unlink()
    return 2


def start_without_state(folder: Path) -> int:
    start(1, 2)(folder)
    state_path(folder).unlink()
    return 1


def start_edited(folder: Path) -> int:
    start(1, 2)(folder)
    path = state_path(folder)
    path.write_bytes(codec.to_json({"_meta": meta_of(path), **state_of(3)}))
    return 1


def start_with_backup(folder: Path) -> int:
    """Make a state at number 1, and a copy of number 3."""
    start(3, 1)(folder)
    Path(f"{state_path(folder)}.bak").rename(folder / "chosen.json")
    return 1


def nothing(_folder: Path) -> int:
    return 0


def meta_of(path: Path) -> object:
    return json.loads(path.read_bytes())["_meta"]


def save(*numbers: int) -> Callable[[Path, Acknowledge], None]:
    """Return the work of a process that loads the state and saves these in turn."""

    def work(folder: Path, acknowledge: Acknowledge) -> None:
        writer = StateStore(state_path(folder))
        state = writer.load()
        for number in numbers:
            state.clear()
            state.update(state_of(number))
            writer.save(state)
            acknowledge(number)

    return work


def take_for_large() -> None:
    """Have the disk given the bytes before their sum, as those of a large state."""
    vars(store)["_LARGE"] = 0


def save_again(folder: Path, acknowledge: Acknowledge) -> None:
    """Save what was loaded: nothing is to be written, but the promise is the same."""
    writer = StateStore(state_path(folder))
    state = writer.load()
    writer.save(state)
    acknowledge(number_of(state))


def transact(folder: Path, acknowledge: Acknowledge) -> None:
    with StateStore(state_path(folder)).transaction() as state:
        number = number_of(state) + 1
        state.update(state_of(number))
    acknowledge(number)


def restore(folder: Path, acknowledge: Acknowledge) -> None:
    StateStore(state_path(folder)).restore(folder / "chosen.json")
    acknowledge(3)


def seal(folder: Path, acknowledge: Acknowledge) -> None:
    StateStore(state_path(folder)).seal()
    acknowledge(3)


def back_up(folder: Path, acknowledge: Acknowledge) -> None:
    copy = StateStore(state_path(folder)).backup()
    acknowledge(3 if "-r2-" in copy.name else 2)  # 2: the state did not read, so .bak was copied


def save_through_failures(*numbers: int) -> Callable[[Path, Acknowledge], None]:
    """Return the work of a bot that goes on when a save fails: only what succeeds is a promise."""

    def work(folder: Path, acknowledge: Acknowledge) -> None:
        writer = StateStore(state_path(folder))
        writer.load()
        for number in numbers:
            with suppress(SaveFailed):
                writer.save(state_of(number))
                acknowledge(number)

    return work


def save_with_one_fsync(folder: Path, acknowledge: Acknowledge) -> None:
    writer = StateStore(state_path(folder), durability="single-sync")
    first = number_of(writer.load()) + 1
    for number in range(first, first + 3):
        with suppress(SaveFailed):
            writer.save(state_of(number))
            acknowledge(number)


def read(folder: Path) -> int:
    """Return the number of the state, of whichever file."""
    return number_of(StateStore(state_path(folder)).load())


def read_in_place(folder: Path) -> int:
    """Return the number of the state, which has to stand under its own name."""
    state = StateStore(state_path(folder)).load()
    if state.meta.recovered_from is not None:
        raise Violation("a fallback had to be loaded", str(state.meta.recovered_why))
    return number_of(state)


def read_edited(folder: Path) -> int:
    """Return 1 where the edit is (rightly) refused: .bak is what was acknowledged."""
    return number_of(StateStore(state_path(folder), on_mismatch="fallback").load())


def read_backed_up(folder: Path) -> int:
    """Return 3 if there is a valid backup of the state, which is number 2."""
    if read_in_place(folder) != 2:
        return 0
    bot = StateStore(state_path(folder))
    found = bot.backups.newest_valid(lambda path, why: _refuse(f"backup {path.name} {why}"))
    return 3 if found and number_of(codec.decode(found[2])) == 2 else 2


def _refuse(why: str) -> None:
    raise Violation("a backup does not read", why)


def save_next(folder: Path) -> None:
    """Make the next save, at once, and see that nothing but the documented files is left."""
    path = state_path(folder)
    bot = StateStore(path, lock_timeout=0, on_mismatch="fallback")
    state = bot.load()
    state.clear()
    state.update(state_of(99))
    bot.save(state)
    if number_of(StateStore(path).load()) != 99:
        raise Violation("the save after the crash is not there")
    require_no_litter(folder)


def require_no_litter(folder: Path) -> None:
    path = state_path(folder)
    if not path.parent.is_dir():
        return
    left = {entry.name for entry in path.parent.iterdir() if entry.is_file()} - _BESIDE
    litter = {n for n in left if not n.startswith("state.json.corrupt-") or n.endswith(".tmp")}
    if litter:
        raise Violation(LITTER, str(sorted(litter)))


STATESTORE = [
    Subject("a save", start(1, 2), save(3), read_in_place, save_next),
    Subject("three saves", start(1, 2), save(3, 4, 5), read_in_place, save_next),
    Subject("the first save ever, the folder too", nothing, save(1, 2), read, save_next),
    Subject("a save without .bak", start_without_bak, save(3), read_in_place, save_next),
    Subject("a save after a damaged state", start_damaged, save(3), read, save_next),
    Subject("a save after a missing state", start_without_state, save(3), read, save_next),
    Subject(
        "a save of a large state", start(1, 2), save(3), read_in_place, save_next, take_for_large
    ),
    Subject("a transaction", start(1, 2), transact, read_in_place, save_next),
    Subject("a save of nothing new", start(1, 2), save_again, read_in_place, save_next),
    Subject("sealing an edit", start_edited, seal, read_edited, save_next),
    Subject("a restore", start_with_backup, restore, read_in_place, save_next),
    Subject("a backup", start(1, 2), back_up, read_backed_up, save_next),
]


# The kill switch and the audit file


def engage(folder: Path, acknowledge: Acknowledge) -> None:
    KillSwitch(folder / "data" / "KILL_SWITCH").engage("a test", "laboratory")
    acknowledge(1)


def read_switch(folder: Path) -> int:
    return int(KillSwitch(folder / "data" / "KILL_SWITCH").engaged())


def engage_again(folder: Path) -> None:
    switch = KillSwitch(folder / "data" / "KILL_SWITCH")
    switch.engage()
    if not switch.engaged():
        raise Violation("the kill switch cannot be engaged")
    if left := [entry.name for entry in (folder / "data").iterdir() if entry != switch.path]:
        raise Violation(LITTER, str(left))


def append(*numbers: int) -> Callable[[Path, Acknowledge], None]:
    def work(folder: Path, acknowledge: Acknowledge) -> None:
        audit = AuditLog(folder / "data" / "audit.jsonl")
        for number in numbers:
            audit.append({"what": "x" * 700})
            acknowledge(number)

    return work


def start_audit(folder: Path) -> int:
    append(1, 2)(folder, lambda _number: None)
    return 2


def read_audit(folder: Path) -> int:
    """Return the number of whole lines; a line that is not chained is an error."""
    return AuditLog(folder / "data" / "audit.jsonl").verify()


def append_next(folder: Path) -> None:
    audit = AuditLog(folder / "data" / "audit.jsonl")
    before = audit.verify()
    audit.append({"what": "next"})
    if audit.verify() != before + 1:
        raise Violation("the line after the crash is not there")
    names = {entry.name for entry in (folder / "data").iterdir()}
    if litter := {name for name in names if name.endswith(".tmp")}:
        raise Violation(LITTER, str(litter))


BESIDE = [
    Subject("the kill switch", nothing, engage, read_switch, engage_again),
    Subject("the first audit lines", nothing, append(1, 2), read_audit, append_next),
    Subject("an audit line", start_audit, append(3), read_audit, append_next),
]


# Signals


def signals_in(folder: Path, count: int) -> Inbox:
    inbox = Inbox(folder / "signals")
    for number in range(count):
        token = TokenId(f"C{number}", "solana")
        inbox.add(
            new_signal(f"c{number}", token, "C", tags=[], curator={}, action="track", content={})
        )
    return inbox


def start_signals(folder: Path) -> int:
    signals_in(folder, 3)
    StateStore(folder / "data" / "state.json").save({"positions": {}})
    return 0


def drain_signals(folder: Path, acknowledge: Acknowledge) -> None:
    book = StateBook(StateStore(folder / "data" / "state.json"))
    if len(list(drain(Inbox(folder / "signals"), Tracker(), book))) == 3:
        acknowledge(1)


def read_signals(folder: Path) -> int:
    """Return 1 where all are done, 0 where some are pending; each is there, once and whole."""
    inbox = Inbox(folder / "signals")
    found = {place: inbox.signals(place) for place in PLACES}
    if damaged := [bad.why for _, bads in found.values() for bad in bads]:
        raise Violation("a signal does not read", damaged[0])
    names = sorted(signal.id for signals, _ in found.values() for signal in signals)
    if names != ["c0", "c1", "c2"]:
        raise Violation("a signal is lost, or there twice", str(names))
    positions = StateStore(folder / "data" / "state.json").load()["positions"]
    by_signal = {entry["signal_id"] for entry in positions.values()}
    if len(positions) not in (0, 9) or not {s.id for s in found["done"][0]} <= by_signal:
        raise Violation("a signal is done without its positions", str(list(positions)))
    return int(not found["pending"][0])


def drain_again(folder: Path) -> None:
    drain_signals(folder, lambda _number: None)
    if read_signals(folder) != 1:
        raise Violation("the next run does not finish what is pending")
    if litter := [path.name for path in folder.rglob("*.tmp")]:
        raise Violation(LITTER, str(litter))


# By a journal only: that a rename between two folders is one step is its promise, not POSIX's.
SIGNALS = Subject("a batch of signals", start_signals, drain_signals, read_signals, drain_again)


# Planted mistakes: savers that do one thing wrong


def planted(flaw: str) -> Callable[[], None]:
    """Return what makes the process save as `durable.replace_file` does, but for one flaw."""

    def plant() -> None:
        def replace(
            path: Path,
            data: bytes,
            *,
            keep_previous: Path | None = None,
            **_options: object,
        ) -> os.stat_result:
            return _flawed_replace(flaw, path, data, keep_previous)

        vars(durable)["replace_file"] = replace
        if flaw == "no fsync of the folder":
            vars(durable)["flush_folder"] = lambda _path: None

    return plant


def _flawed_replace(flaw: str, path: Path, data: bytes, keep: Path | None) -> os.stat_result:
    own_name = flaw == "temp named by pid, left behind"
    temporary = Path(f"{path}.{os.getpid()}.tmp" if own_name else f"{path}.tmp")
    link = Path(f"{path}.bak.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    with suppress(FileNotFoundError):
        link.unlink()
    if flaw == "written in place":
        temporary = path
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, data)
    if flaw != "no fsync of the file":
        try:
            os.fsync(descriptor)
        except OSError as error:
            if flaw != "fsync tried again on the same file":
                temporary.unlink()
                raise SaveFailed(path, "fsync", error) from error
            os.fsync(descriptor)
    if keep is not None and flaw == "damaged state rotated over .bak":
        keep = Path(f"{path}.bak")
    if keep is not None and flaw == ".bak by rename":
        path.rename(keep)
    elif keep is not None:
        os.link(path, link)
        link.rename(keep)
    temporary.rename(path)
    status = os.fstat(descriptor)
    os.close(descriptor)
    durable.flush_folder(path)
    return status


FLAWS = {
    "none": "a save",
    "no fsync of the folder": "a save",
    "no fsync of the file": "a save",
    ".bak by rename": "a save",
    "fsync tried again on the same file": "a save",
    "temp named by pid, left behind": "a save",
    "damaged state rotated over .bak": "a save after a damaged state",
    "written in place": "a save",
}
"""Each planted mistake, and the work in which it has to show."""


def with_flaw(subject: Subject, flaw: str) -> Subject:
    return Subject(
        flaw,
        subject.prepare,
        subject.work,
        subject.read,
        subject.carry_on,
        planted(flaw),
    )


# Peers


@dataclass(frozen=True)
class Peer:
    """Another way to keep one state.

    Attributes:
        save: opens the store in a folder and saves; returns what a bot would keep open.
        load: returns the state; None for nothing there.
    """

    name: str
    save: Callable[[Path, dict[str, Any]], Any]
    load: Callable[[Path], object]
    missing: str | None = None

    def subject(self, *, first: bool = False) -> Subject:
        def prepare(folder: Path) -> int:
            if first:
                return 0
            self.save_and_close(folder, 1)
            self.save_and_close(folder, 2)
            return 2

        def work(folder: Path, acknowledge: Acknowledge) -> None:
            kept = []
            for number in (1, 2) if first else (3, 4):
                kept.append(self.save(folder, state_of(number)))
                acknowledge(number)
            # The process ends by a power cut, by a kill or by `os._exit`: nothing is closed.

        def carry_on(folder: Path) -> None:
            before = {entry.name for entry in folder.iterdir()}
            self.save_and_close(folder, 99)
            if number_of(self.load(folder)) != 99:
                raise Violation("the save after the crash is not there")
            self.save_and_close(folder, 98)
            usual = self.usual_names(folder.parent)
            left = {entry.name for entry in folder.iterdir()} - usual
            if left & before:
                raise Violation(LITTER, str(sorted(left & before)))

        return Subject(self.name, prepare, work, lambda f: number_of(self.load(f)), carry_on)

    def save_and_close(self, folder: Path, number: int) -> None:
        kept = self.save(folder, state_of(number))
        if kept is not None:
            kept.close()

    def usual_names(self, scratch: Path) -> set[str]:
        """Return the files there are when nothing went wrong."""
        if self.name not in _usual:
            folder = scratch / "usual"
            folder.mkdir()
            self.save_and_close(folder, 1)
            self.save_and_close(folder, 2)
            _usual[self.name] = {entry.name for entry in folder.iterdir()}
            shutil.rmtree(folder)
        return _usual[self.name]


_usual: dict[str, set[str]] = {}


def _json_file(folder: Path) -> object:
    try:
        return json.loads((folder / "state.json").read_bytes())
    except FileNotFoundError:
        return None


def _json_in_place(folder: Path, state: dict[str, Any]) -> None:
    with (folder / "state.json").open("w") as stream:
        json.dump(state, stream)


def _json_replace(folder: Path, state: dict[str, Any]) -> None:
    temporary = folder / "state.json.tmp"
    temporary.write_text(json.dumps(state))
    temporary.replace(folder / "state.json")


def _json_fsync_replace(folder: Path, state: dict[str, Any]) -> None:
    temporary = folder / "state.json.tmp"
    with temporary.open("w") as stream:
        json.dump(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / "state.json")


def _atomicwrites(folder: Path, state: dict[str, Any]) -> None:
    from atomicwrites import atomic_write

    with atomic_write(folder / "state.json", overwrite=True) as stream:
        json.dump(state, stream)


def _sqlite_save(journal: str, synchronous: str) -> Callable[[Path, dict[str, Any]], object]:

    def save(folder: Path, state: dict[str, Any]) -> sqlite3.Connection:
        connection = sqlite3.connect(folder / "state.db")
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, v TEXT)")
            connection.execute("REPLACE INTO state VALUES (1, ?)", (json.dumps(state),))
        return connection

    return save


def _sqlite_load(folder: Path) -> object:
    if not (folder / "state.db").exists():
        return None
    connection = sqlite3.connect(folder / "state.db")
    try:
        row = connection.execute("SELECT v FROM state WHERE id = 1").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    finally:
        connection.close()
    return json.loads(row[0]) if row else None


def _shelf_save(folder: Path, state: dict[str, Any]) -> None:
    import dbm.dumb
    import shelve

    with shelve.Shelf(dbm.dumb.open(str(folder / "shelf"))) as shelf:
        shelf["state"] = state


def _shelf_load(folder: Path) -> object:
    import dbm.dumb
    import shelve

    if not (folder / "shelf.dir").exists():
        return None
    with shelve.Shelf(dbm.dumb.open(str(folder / "shelf"), "r")) as shelf:
        return shelf.get("state")


def _tinydb_save(folder: Path, state: dict[str, Any]) -> None:
    from tinydb import TinyDB

    with TinyDB(folder / "tiny.json") as database:
        table = database.table("state", cache_size=0)
        table.truncate()
        table.insert(state)


def _tinydb_load(folder: Path) -> object:
    from tinydb import TinyDB

    if not (folder / "tiny.json").exists():
        return None
    with TinyDB(folder / "tiny.json", access_mode="r") as database:
        rows = database.table("state", cache_size=0).all()
    return dict(rows[0]) if rows else None


def _diskcache_save(folder: Path, state: dict[str, Any]) -> object:
    from diskcache import Cache

    cache = Cache(str(folder / "cache"), eviction_policy="none")
    cache["state"] = state
    return cache


def _diskcache_load(folder: Path) -> object:
    from diskcache import Cache

    if not (folder / "cache" / "cache.db").exists():
        return None
    with Cache(str(folder / "cache"), eviction_policy="none") as cache:
        return cache.get("state")


def _missing(module: str) -> str | None:
    from importlib.util import find_spec

    return None if find_spec(module) else f"{module} is not installed"


PEERS = [
    Peer("json.dump in place", _json_in_place, _json_file),
    Peer("json + os.replace", _json_replace, _json_file),
    Peer("json + fsync + os.replace", _json_fsync_replace, _json_file),
    Peer("atomicwrites", _atomicwrites, _json_file, _missing("atomicwrites")),
    Peer("sqlite3 DELETE, FULL", _sqlite_save("DELETE", "FULL"), _sqlite_load),
    Peer("sqlite3 DELETE, EXTRA", _sqlite_save("DELETE", "EXTRA"), _sqlite_load),
    Peer("sqlite3 WAL, FULL", _sqlite_save("WAL", "FULL"), _sqlite_load),
    Peer("sqlite3 WAL, NORMAL", _sqlite_save("WAL", "NORMAL"), _sqlite_load),
    Peer("shelve (dbm.dumb)", _shelf_save, _shelf_load),
    Peer("tinydb", _tinydb_save, _tinydb_load, _missing("tinydb")),
    Peer("diskcache", _diskcache_save, _diskcache_load, _missing("diskcache")),
]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what a store says of the damage it is shown here by the thousand."""
    logger = logging.getLogger("statestore")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(former)
