"""The file beside a database: where saves go while the database is away.

In good days it is a copy of the present revision, written after the database has it. While the
database is away it goes on from there, revision by revision, and ``NAME.pending`` says from which
revision of the database, and which save was on its way there when the connection broke. What is to
be done when the database is back follows from these three, and nothing is ever merged:

=====================  =============================  ==========================================
the database is at     the file                       then
=====================  =============================  ==========================================
where it left off      has moved                      the file's state is put into the database
the file's revision    -                              nothing: it got there
elsewhere              has not moved, or its          the file is moved aside, to
                       revision is in the history     ``NAME.dropped-<time>``
elsewhere              has moved                      `StateForked`; an operator chooses
anywhere               has moved, and is damaged      `StateForked`, likewise: a save is lost
behind the file, and   has not moved                  `StateForked`, likewise: an old dump was put
has never heard of it                                 back, or a standby lacks the last saves
=====================  =============================  ==========================================

A file that was there before, and that the database has never heard of, is never written over: it is
moved aside, or, if the database has no state at all, it is for the operator to say what it is.

``NAME.owner`` says whose state the file is, by its address. Another state that was given the same
file is refused: with its database away it would go on from a stranger's positions. The address
alone does not decide while the database has what is in the file, so the same state may be reached
by two addresses. A file without an owner (put there by hand, or by a version before this) is
anybody's, by the table.

One module, because what is to be done follows from the file, what is pending and whose it is, all
three at once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from statestore import times
from statestore.backends.revisions import Pointer, Present
from statestore.disk import codec, durable
from statestore.disk.backups import read_valid
from statestore.disk.locks import WriterLock
from statestore.errors import (
    BackendError,
    BackendUnavailable,
    StateCorrupt,
    StateError,
    StateForked,
)

logger = logging.getLogger(__name__)

Verdict = Literal["nothing", "push", "drop", "forked"]

T = TypeVar("T")

# Says whether the database has, or had, this revision.
Knows = Callable[[Pointer], bool]

_MAX_PENDING_BYTES = 1 << 20
_MAX_OWNER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Pending:
    """What ``NAME.pending`` says.

    Attributes:
        base: the revision of the database the file went on from; None if it had no state.
        sent: saves that were on their way to the database when the connection broke.
        since, why: when the first save went to the file, and for what reason.
    """

    base: Pointer | None
    sent: tuple[Pointer, ...]
    since: str
    why: str

    def to_json(self) -> bytes:
        body = {
            "base": _plain(self.base),
            "sent": [_plain(pointer) for pointer in self.sent],
            "since": self.since,
            "why": self.why,
        }
        return json.dumps(body, indent=2).encode() + b"\n"


class Fallback:
    """One file, with ``.owner``, ``.pending``, ``.bak`` and ``.lock`` beside it.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, address: str, lock_timeout: float) -> None:
        self.path = path
        self.pending_path = Path(f"{path}.pending")
        self.backup_path = Path(f"{path}.bak")
        self.owner_path = Path(f"{path}.owner")
        self._address = address
        self._timeout = lock_timeout
        self._lock = WriterLock(path, Path(f"{path}.lock"))

    @property
    def is_pending(self) -> bool:
        """Whether there is something to reconcile."""
        return os.path.lexists(self.pending_path)

    def owner(self) -> str | None:
        """Return the address of the state whose file this is; None if nobody noted it.

        Raises:
            StateCorrupt: somebody did, and it does not read.
            StateError: it may not be read.
        """
        return _read_note(
            self.owner_path,
            _MAX_OWNER_BYTES,
            _owner,
            f"so it is not known whose state {self.path} holds; look at it, and remove "
            f"{self.owner_path} if that is the state of {self._address}",
        )

    def require_ours(self, knows: Knows | None = None) -> str | None:
        """Raise unless this file is of this state, or of nobody; return whose it is noted to be.

        Args:
            knows: says whether our database has what is in the file. Then it is ours, by another
                address: the sum is over time and writer as well. Saves that no database has yet
                are for an operator to judge.

        Raises:
            StateError: it is another's.
        """
        owner = self.owner()
        if owner in (None, self._address):
            return owner
        if not any(map(os.path.lexists, (self.path, self.backup_path, self.pending_path))):
            return owner
        file = self.present()
        if file is not None and knows is not None:
            with suppress(BackendUnavailable):
                if knows(file.pointer):
                    return owner
        raise StateError(
            self.path,
            f"{self.path} is the file_fallback of {owner}, not of {self._address}, and one file "
            "keeps one state: nothing of it was taken over or changed. Give this state a "
            "file_fallback of its own; or, if that is this very state under its former address, "
            f"remove {self.owner_path}",
        )

    def pending(self) -> Pending | None:
        """Return what is to be reconciled; None if nothing is.

        Raises:
            StateCorrupt: something is, but what does not read.
            StateError: it may not be read.
        """
        return _read_note(
            self.pending_path,
            _MAX_PENDING_BYTES,
            _pending,
            f"so it is not known what of {self.path} the database has; compare them, then "
            "`statestore db reconcile --take file` or `--take database`",
        )

    def present(self, why: str = "") -> Present | None:
        """Return the state in the file, or in its ``.bak``; None if there is none that reads.

        A file without a right sum was not written by us, and is none. ``why`` of the result says
        besides what is wrong with the file where it is not the source.
        """
        wrong: list[str] = []
        for path in (self.path, self.backup_path):
            valid = _sealed(path, wrong)
            if valid is not None:
                data, document = valid
                pointer = Pointer(document.revision, document.identity)
                if path != self.path:
                    said = wrong[0] if wrong else "is gone"
                    why = f"{why}; {self.path} {said}".removeprefix("; ")
                return Present(pointer, data, path, why or None)
        return None

    def documents(self, knows: Knows | None = None) -> list[tuple[int, bytes]]:
        """Return the revisions that are here, in the file and its ``.bak``, newest first.

        Raises as `require_ours`.
        """
        self.require_ours(knows)
        found = {}
        for path in (self.backup_path, self.path):
            valid = _sealed(path, [])
            if valid is not None:
                found[valid[1].revision] = valid[0]
        return sorted(found.items(), reverse=True)

    def verdict(self, database: Pointer | None, knows: Knows) -> Verdict:
        """Return what is to be done, by the table above; raises as `require_ours`."""
        self.require_ours(knows)
        pending, file = self.pending(), self.present()
        here = file.pointer if file else None
        if pending is not None and (file is None or file.source != self.path):
            return "forked"  # what was saved last, and acknowledged, does not read
        if here == database:
            return "nothing"
        if pending is None:
            if here is None or (database is not None and knows(here)):
                return "nothing"  # a copy that is behind
            # A database that is behind its copy has lost what it acknowledged.
            behind = database is None or database.revision < here.revision
            return "forked" if behind else "drop"
        assert here is not None
        if here == pending.base:
            return "drop"
        if database == pending.base or database in pending.sent:
            return "push"
        return "drop" if knows(here) else "forked"

    def take(
        self, former: Pointer | None, to: Pointer, data: bytes, why: str, *, uncertain: bool
    ) -> bool:
        """Save a revision here, in place of the database; False if `former` is not the present.

        Args:
            uncertain: it was on its way to the database, and may be there.

        Raises:
            SaveFailed: it could not be saved here either.
            StateError: the file is another state's.
        """

        def act() -> bool:
            owner = self.require_ours(lambda pointer: pointer == former)
            pending, file = self.pending(), self.present()
            here = file.pointer if file else None
            if pending is None:
                if here not in (None, former):
                    self._move_aside("the database was ahead of it")
                pending = Pending(former, (), times.format_instant(times.now()), why)
            elif here != former and not (here is None and former == pending.base):
                return False
            if uncertain:
                pending = Pending(pending.base, (*pending.sent, to), pending.since, pending.why)
            # Before the state, so that there is never one here of which nobody knows where it came
            # from; and whose it is before that.
            self._note_owner(owner)
            durable.replace_file(self.pending_path, pending.to_json())
            self._write(data)
            return True

        done = self.exclusively(act)
        if done:
            logger.error(
                "state saved in the file only: the database is away",
                extra={"path": str(self.path), "revision": to.revision, "why": why},
            )
        return done

    def copy(self, to: Pointer, data: bytes, knows: Knows) -> None:
        """Keep a copy of what the database has; what was here goes, or is moved aside.

        That no copy could be made is logged: the database has the state.
        """

        def act() -> None:
            owner = self.require_ours(knows)
            file = self.present()
            if file is not None and file.pointer == to:
                return
            if self.path.exists() and (file is None or not knows(file.pointer)):
                self._move_aside("the database does not know it")
            self._note_owner(owner)
            self._write(data)

        try:
            self.exclusively(act)
        except (StateError, BackendError) as error:
            logger.warning(
                "no copy of the state beside the database",
                extra={"path": str(self.path), "why": str(error)},
            )

    def done(self) -> None:
        """Note that there is nothing to reconcile any more."""
        self.pending_path.unlink(missing_ok=True)
        durable.flush_folder(self.pending_path)

    def exclusively(self, act: Callable[[], T]) -> T:
        """Run `act` while nobody else saves here: what it decides on stays as it is."""
        return self._lock.exclusively(act, self._timeout)

    def drop(self, why: str) -> Path | None:
        """Move the file aside, and note that there is nothing to reconcile; return where it is."""
        aside = self._move_aside(why)
        self.done()
        return aside

    def forked(self, database: Pointer | None) -> StateForked:
        file, pending = self.present(), self.pending()
        there = f"revision {database.revision}" if database else "no state"
        if pending is not None and (file is None or file.source != self.path):
            left = "its .bak does not read either"
            if file is not None:
                left = f"its .bak has revision {file.pointer.revision} ({file.why})"
            return StateForked(
                self.path,
                f"{self.path} does not read, and it had the newest saves, since {pending.since}: "
                f"{left}, {self._address} has {there}. Put a copy of the file back if there is; "
                "or `statestore db reconcile --take file` (what the .bak has) or `--take database`",
            )
        here = f"revision {file.pointer.revision}" if file else "nothing that reads"
        since = f", saved there since {pending.since}" if pending else ""
        look = f"statestore show --state {self.path}"
        if database is not None:
            # Not "state": which one that is nobody can say. Quoted, for the & in it.
            look = f"statestore diff '{self._address}#{database.revision}' {self.path}"
        return StateForked(
            self.path,
            f"there are two states: {self.path} has {here}{since}, {self._address} has {there}, "
            f"and neither follows from the other. Nothing is merged: look at both (`{look}`), then "
            "`statestore db reconcile --take file` or `--take database`; the other one is kept",
        )

    def _note_owner(self, noted: str | None) -> None:
        if noted != self._address:
            durable.make_directory(self.path.parent)
            note = json.dumps({"state": self._address}, indent=2).encode() + b"\n"
            durable.replace_file(self.owner_path, note)

    def _write(self, data: bytes) -> None:
        keep: Path | None = None
        if self.path.exists():
            reads = read_valid(self.path, lambda _path, _why: None) is not None
            keep = self.backup_path if reads else durable.quarantine_path(self.path)
        durable.replace_file(self.path, data, keep_previous=keep)

    def _move_aside(self, why: str) -> Path | None:
        if not self.path.exists():
            return None
        stamp = durable.file_stamp(times.now())
        aside = Path(f"{self.path}.dropped-{stamp}")
        self.path.rename(aside)
        if self.backup_path.exists():  # or the next one who looks takes it for the state
            self.backup_path.rename(f"{aside}.bak")
        durable.flush_folder(self.path)
        logger.warning(
            "file beside the database moved aside",
            extra={"path": str(self.path), "aside": str(aside), "why": why},
        )
        return aside


def _read_note(path: Path, most: int, understand: Callable[[Any], T], lost: str) -> T | None:
    """Return what a note beside the file says; None if there is none.

    Args:
        most: bytes it may have.
        lost: what is not known where it does not read, and what to do about it.

    Raises:
        StateCorrupt: it does not read.
        StateError: it may not be read.
    """
    try:
        data, _ = durable.read_file(path, most)
        return understand(json.loads(data))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(path, f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, durable.NotAFile, durable.TooLarge) as error:
        raise StateCorrupt(path, f"{path} does not read ({error!r:.80}), {lost}") from error


def _owner(body: Any) -> str:
    state = body["state"]
    if not isinstance(state, str):
        raise ValueError("no address")
    return state


def _pending(body: Any) -> Pending:
    return Pending(
        _pointer(body["base"]),
        tuple(Pointer(p["revision"], p["sha256"]) for p in body["sent"]),
        body["since"],
        body["why"],
    )


def _sealed(path: Path, wrong: list[str]) -> tuple[bytes, codec.Document] | None:
    """Return a file that has a right sum; else None, and why, unless it is not there."""
    valid = read_valid(path, lambda _path, said: wrong.append(said))
    if valid is not None and valid[1].trust is not codec.Trust.SEALED:
        wrong.append(valid[1].why or f"has no {codec.META}")
        return None
    return valid


def _plain(pointer: Pointer | None) -> dict[str, object] | None:
    if pointer is None:
        return None
    return {"revision": pointer.revision, "sha256": pointer.sha256}


def _pointer(value: dict[str, object] | None) -> Pointer | None:
    if value is None:
        return None
    revision, sha256 = value["revision"], value["sha256"]
    if type(revision) is not int or not isinstance(sha256, str):
        raise ValueError("no revision")
    return Pointer(revision, sha256)
