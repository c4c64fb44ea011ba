"""What ``statestore doctor`` looks at: each check gives lines, and does not know of the others.

But for two things: the state is read once for all that look at it (`Patient.report`), and a key is
not asked about at an exchange that did not answer. Nothing is written: no lock, no probe file, no
cache.

One module, because it is the list that an operator gets, in its order: what is looked at is found
by reading down, and a new check is one function and one line of `CHECKS`.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from statestore import __version__, times
from statestore.config import Places, Settings, origins, settings_file
from statestore.errors import CredentialsError, Place, SourceError, StateStoreError
from statestore.times import NANOSECONDS

if TYPE_CHECKING:
    from statestore.disk.checking import CheckReport, FileReport
    from statestore.disk.store import StateStore

Level = Literal["ok", "warning", "failure"]

BUG, SETTINGS, CREDENTIALS, EXCHANGE, STATE, DATABASE = 1, 2, 4, 5, 8, 10
_LITTLE_ROOM = 100 << 20
_FEW_INODES = 1_000
_TOKEN_LIVES = 120  # seconds; a clock that is off by more is refused
_CLOCK_IS_OFF = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. ``remedy`` is a command to type or a thing to do; ``code`` of a failure."""

    check: str
    level: Level
    message: str
    remedy: str = ""
    code: int = 0


@dataclass
class Patient:
    """What is looked at. Paths are those the other commands would use."""

    flags: dict[str, Any]
    settings: Settings
    where: Places
    reachable: bool = True

    @cached_property
    def store(self) -> StateStore:
        from statestore.disk.store import StateStore

        return StateStore(self.where.state, backup_dir=self.where.backup_dir)

    @property
    def report(self) -> CheckReport:
        if isinstance(self._checked, StateStoreError):
            raise self._checked
        return self._checked

    @cached_property
    def _checked(self) -> CheckReport | StateStoreError:
        try:
            return self.store.check()
        except StateStoreError as error:
            return error  # once: a server that does not answer is waited for

    @property
    def folder(self) -> Path:
        path = self.store.path
        return path.parent if isinstance(path, Path) else self.where.backup_dir.absolute().parent

    @property
    def key_file(self) -> Path | None:
        found = self.flags["key_file"] or self.settings.key_file
        return None if found is None else Path(found)


Lines = Iterator[Line]


def versions() -> Lines:
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    python = ".".join(map(str, sys.version_info[:3]))
    yield Line("versions", "ok", f"statestore {__version__}, Python {python}")
    try:
        needed = [r for r in requires("statestore") or () if "extra ==" not in r]
    except PackageNotFoundError:
        remedy = "pip install ."
        yield Line("versions", "warning", "statestore runs without being installed", remedy)
        return
    found, missing = [], []
    for requirement in needed:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(requirement)
    if found:
        yield Line("versions", "ok", ", ".join(found))
    if missing:
        remedy = f"pip install {' '.join(shlex.quote(requirement) for requirement in missing)}"
        message = f"not installed: {', '.join(missing)}"
        yield Line("versions", "failure", message, remedy, SETTINGS)


def _settings(patient: Patient) -> Lines:
    path, origin = settings_file(), origins()
    yield Line("settings", "ok", f"file: {path}" if path else "no statestore.toml: none is needed")
    where = patient.where
    for name in ("state", "kill_switch", "backup_dir", "audit_file"):
        said = f"--{name.replace('_', '-')}" if patient.flags.get(name) else origin[name]
        if said == "default" and name != "state":
            said = "beside the state"
        yield Line("settings", "ok", f"{name}: {getattr(where, name)} ({said})")
    reserve = patient.settings.reserve
    if reserve:
        held = ", ".join(f"{asset} {units}" for asset, units in reserve.items())
        yield Line("settings", "ok", f"reserve: {held}")


def _permissions(patient: Patient) -> Lines:
    folder = patient.folder
    if not isinstance(patient.store.path, Path) and not folder.is_dir():
        yield Line("permissions", "ok", f"{folder} is made when the first backup is")
        return
    if not folder.is_dir():
        message = f"there is no folder {folder}"
        yield Line("permissions", "failure", message, f"mkdir -p {_quoted(folder)}", STATE)
        return
    if os.access(folder, os.W_OK | os.X_OK):
        yield Line("permissions", "ok", f"{folder} can be written")
    else:
        message = f"{folder} cannot be written by user {os.geteuid()}: no save works here"
        yield Line("permissions", "failure", message, f"chmod u+rwx {_quoted(folder)}", STATE)
    for path in (patient.store.path, patient.store.backup_path, patient.key_file):
        if not isinstance(path, Path):
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # the check that needs the file says so
        remedy = f"chmod 600 {_quoted(path)}"
        if mode & 0o077:
            message = f"{path} can be read or written by others (mode {mode:04o})"
            yield Line("permissions", "warning", message, remedy)
        else:
            yield Line("permissions", "ok", f"{path} is its owner's only (mode {mode:04o})")


def _disk(patient: Patient) -> Lines:
    from statestore.disk.surroundings import file_system_of, promise_of, room_at

    path = patient.store.path
    if not isinstance(path, Path):
        message = f"{path} is not on a disk of ours: statestore db status"
        yield Line("disk", "ok", message)
        return
    kind = file_system_of(patient.folder)
    advice = "put the state on a local disk: ext4, xfs, btrfs or zfs (docs/durability.md)"
    said: dict[str, tuple[Level, str, str]] = {
        "kept": ("ok", "a local file system keeps what was saved", ""),
        "volatile": ("warning", "gone with the next reboot, or with the container", advice),
        "not-kept": ("failure", "no guarantee holds on a network file system", advice),
        "unknown": ("warning", "not one the durability was tested for", advice),
    }
    level, message, remedy = said[promise_of(kind)]
    code = STATE if level == "failure" else 0
    yield Line("disk", level, f"{patient.folder} is on {kind}: {message}", remedy, code)
    room = room_at(_nearest(patient.folder))
    size = path.stat().st_size if path.is_file() else 0
    free = f"{room.bytes / (1 << 20):,.0f} MiB free"
    remedy = f"df -h {_quoted(patient.folder)}; free some space"
    yield _left(room.bytes, 4 * size + (1 << 20), _LITTLE_ROOM, free, "little", remedy)
    if room.inodes is not None:
        remedy = f"df -i {_quoted(patient.folder)}; delete files that nobody needs"
        yield _left(room.inodes, 10, _FEW_INODES, f"{room.inodes:,} inodes free", "few", remedy)


def _left(found: int, needed: int, wanted: int, free: str, scarce: str, remedy: str) -> Line:
    """Judge what is left on the disk, of bytes or of inodes."""
    if found < needed:
        message = f"{free}: not enough for a save and its backup"
        return Line("disk", "failure", message, remedy, STATE)
    if found < wanted:
        return Line("disk", "warning", f"{free}: {scarce}", remedy)
    return Line("disk", "ok", free)


def _state(patient: Patient) -> Lines:
    report, state = patient.report, patient.report.state
    if state.status in ("good", "adopted"):
        saved = f", saved {state.saved_at}" if state.saved_at else ", not saved by us yet"
        yield Line("state", "ok", f"{state.path}: revision {state.revision}{saved}")
    elif state.status == "mismatch":
        remedy = f"statestore diff; then statestore seal, or restore{_at(patient)}"
        yield Line("state", "failure", f"{state.path} {state.why}", remedy, STATE)
    elif state.status == "missing":
        behind = [f for f in (report.bak, *report.backups) if f.status in ("good", "adopted")]
        remedy = f"statestore restore{_at(patient)}" if behind else "check the path (--state)"
        message = f"there is no {state.path}"
        if behind:
            message += f", but {behind[0].path} reads"
        yield Line("state", "failure", message, remedy, STATE)
    else:
        message = f"{state.path} {state.why}"
        yield Line("state", "failure", message, f"statestore restore{_at(patient)}", STATE)
    if report.bak.status in ("good", "adopted"):
        yield Line("state", "ok", f"{report.bak.path}: revision {report.bak.revision}")
    elif report.bak.status != "missing":
        message = f"{report.bak.path} {report.bak.why}"
        remedy = "it is replaced by the next save, if the state reads"
        yield Line("state", "failure", message, remedy, STATE)
    for path in report.quarantined:
        message = f"{path} was damaged and moved aside"
        remedy = f"look at it, then rm {_quoted(path)}"
        yield Line("state", "warning", message, remedy)
    for path in report.leftovers:
        message = f"{path} was left by a writer that was killed"
        yield Line("state", "warning", message, f"rm {_quoted(path)}")


def _backups(patient: Patient) -> Lines:
    backups, folder = patient.report.backups, patient.store.backups.directory
    valid = [backup for backup in backups if backup.status in ("good", "adopted")]
    for bad in _bad(backups):
        yield Line("backups", "failure", f"{bad.path} {bad.why}", f"rm {_quoted(bad.path)}", STATE)
    if valid:
        newest = f"newest {Path(valid[0].path).name}"
        yield Line("backups", "ok", f"{len(valid)} valid in {folder}, {newest}")
    else:
        message = f"no valid backup in {folder}"
        yield Line("backups", "warning", message, f"statestore backup{_at(patient)}")


def _bad(files: list[FileReport]) -> list[FileReport]:
    return [found for found in files if found.status not in ("good", "adopted", "missing")]


def _holders(patient: Patient) -> Lines:
    report = patient.report
    if report.lock_holder is not None:
        message = f"process {report.lock_holder} holds the lock: it is saving, or it hangs"
        remedy = f"run this again; if it stays: ps -fp {report.lock_holder}"
        yield Line("locks", "warning", message, remedy)
    else:
        yield Line("locks", "ok", "nobody holds the lock")
    if report.lease is None:
        yield Line("locks", "ok", "no bot holds the lease")
    else:
        who = {name: report.lease.get(name, "unknown") for name in ("pid", "host", "since")}
        message = f"a bot runs: process {who['pid']} on {who['host']} since {who['since']}"
        yield Line("locks", "ok", message)


def _kill_switch(patient: Patient) -> Lines:
    from statestore.disk.killswitch import KillSwitch

    switch = patient.store.kill_switch(patient.where.kill_switch)
    status = switch.status()
    if status == "released":
        yield Line("kill-switch", "ok", f"{switch.path} is released")
    elif status == "unknown":
        message = f"{switch} cannot be looked at, which halts the bot"
        remedy, code = f"ls -ld {_quoted(switch.path.parent)}", STATE
        if KillSwitch(switch.path).status() != "unknown":
            remedy, code = "statestore db status", DATABASE
        yield Line("kill-switch", "failure", message, remedy, code)
    else:
        details = switch.details() or {}
        why = "".join(f", {n} {details[n]}" for n in ("reason", "by", "at") if details.get(n))
        message = f"{switch.path} is engaged{why}: the bot must not trade"
        remedy = "when that is over: statestore kill-switch release"
        yield Line("kill-switch", "warning", message, remedy)


def _audit(patient: Patient) -> Lines:
    from statestore.disk.audit import AuditLog
    from statestore.errors import AuditBroken

    log = AuditLog(patient.where.audit_file)
    try:
        count = log.verify()
    except AuditBroken as error:
        remedy = "statestore audit verify; compare with a copy of the file"
        yield Line("audit", "failure", str(error), remedy, STATE)
    except OSError as error:
        message = f"cannot read {log.path}: {error.strerror}"
        yield Line("audit", "failure", message, f"ls -l {_quoted(log.path)}", STATE)
    else:
        message = f"{log.path}: {count} line(s), the chain holds" if count else "no repair so far"
        yield Line("audit", "ok", message)


def _ledger(patient: Patient) -> Lines:
    path = patient.folder / "fills.sqlite3"
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        yield Line("ledger", "ok", f"no {path}: fills are read from the exchange each time")
    except OSError as error:
        message = f"cannot look at {path}: {error.strerror}"
        yield Line("ledger", "warning", message, f"ls -l {_quoted(path)}")
    else:
        yield Line("ledger", "ok", f"{path}: {size:,} bytes")


def _recorded(patient: Patient) -> Lines:
    if patient.flags["fills"]:
        from statestore.fills.sources.recorded import RecordedFills

        source = RecordedFills(patient.flags["fills"], patient.flags["balances"])
        rows = len(source.fills(0, None).rows)
        balances = "" if source.balances() is None else ", and balances"
        yield Line("recorded", "ok", f"{patient.flags['fills']}: {rows} fill row(s){balances}")


def _clock(patient: Patient) -> Lines:
    if patient.flags["offline"]:
        yield Line("exchange", "ok", "not asked (--offline)")
        return
    from statestore.fills.sources.coinbase import server_time

    host = patient.flags["base_url"] or patient.settings.base_url
    before = times.now()
    try:
        there = server_time(host)
    except SourceError as error:
        patient.reachable = False
        remedy = f"curl -sS https://{host}/api/v3/brokerage/time; or use --offline"
        yield Line("exchange", "failure", str(error), remedy, EXCHANGE)
        return
    after = times.now()
    off = ((before + after) // 2 - there) / NANOSECONDS
    yield Line("exchange", "ok", f"{host} answers in {(after - before) / NANOSECONDS:.1f} s")
    message = f"the clock here is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} {host}'s"
    remedy = "timedatectl set-ntp true"
    if abs(off) >= _TOKEN_LIVES:
        message += f"; a token lives {_TOKEN_LIVES} s, so each is refused"
        yield Line("clock", "failure", message, remedy, EXCHANGE)
    elif abs(off) >= _CLOCK_IS_OFF:
        ahead = "a token made here may not be valid there yet"
        message += f"; {ahead if off > 0 else f'a token lives {_TOKEN_LIVES} s'}"
        yield Line("clock", "warning", message, remedy)
    else:
        yield Line("clock", "ok", message)


def _key(patient: Patient) -> Lines:
    from statestore.fills.sources.coinbase import CoinbaseSource
    from statestore.fills.sources.credentials import read_credentials

    settings, file = patient.settings, patient.key_file
    if file is None and not (settings.api_key or settings.api_secret):
        message = "no credentials: balances and fills cannot be read from the exchange"
        remedy = "export COINBASE_KEY_FILE=FILE, a key with the permission View"
        yield Line("key", "warning", message, remedy)
        return
    remedy = "make a new key with the permission View, and name its file in COINBASE_KEY_FILE"
    try:
        credentials = read_credentials(file, settings.api_key, settings.api_secret)
        origin = str(file) if file else "the environment"
        host = patient.flags["base_url"] or settings.base_url
        source = CoinbaseSource(credentials, base_url=host, attempts=2, give_up_after=20.0)
        if patient.flags["offline"]:
            yield Line("key", "ok", f"a key that can sign, from {origin}; not asked (--offline)")
            return
        if not patient.reachable:
            message = f"a key that can sign, from {origin}; what it may do was not asked"
            yield Line("key", "warning", message, "reach the exchange, then run this again")
            return
        allowed = source.permissions()
    except CredentialsError as error:
        yield Line("key", "failure", str(error), remedy, CREDENTIALS)
        return
    more = [name for name in ("trade", "transfer") if getattr(allowed, f"can_{name}")]
    if not allowed.can_view:
        message = f"the key from {origin} may not view its portfolio"
        yield Line("key", "failure", message, remedy, CREDENTIALS)
    elif more and patient.flags["require_view_only"]:
        message = f"the key from {origin} can also {' and '.join(more)} (--require-view-only)"
        yield Line("key", "failure", message, remedy, CREDENTIALS)
    elif more:
        message = f"the key from {origin} can also {' and '.join(more)}; reading needs View only"
        yield Line("key", "warning", message, remedy)
    else:
        yield Line("key", "ok", f"the key from {origin} can view, and nothing else")


CHECKS: tuple[tuple[str, Callable[[Patient], Lines]], ...] = (
    ("settings", _settings),
    ("permissions", _permissions),
    ("disk", _disk),
    ("state", _state),
    ("backups", _backups),
    ("locks", _holders),
    ("kill-switch", _kill_switch),
    ("audit", _audit),
    ("ledger", _ledger),
    ("recorded", _recorded),
    ("clock", _clock),
    ("key", _key),
)


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it in which it would be made."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _quoted(path: Place) -> str:
    return shlex.quote(str(path))


def listing(name: object) -> str:
    return f"ls -ld {shlex.quote(str(name))}" if name else ""


def _at(patient: Patient) -> str:
    """The option that names the state, where a command needs it."""
    given = patient.flags["state"]
    return f" --state {_quoted(given)}" if given else ""
