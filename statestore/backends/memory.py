"""A state in the memory of this process, for tests of a bot: ``StateStore("memory://name")``.

All stores of one name share it, in all threads; a forked child has a copy. It does what a file and
a database do, revision for revision, and is gone with the process. Backups are files, as ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from statestore import times
from statestore.backends.halting import Row
from statestore.backends.revisions import Pointer, Present, RevisionStore
from statestore.disk.contract import BeforeCommit
from statestore.disk.locks import Lease, lease_held, new_holder
from statestore.disk.reading import OnMismatch
from statestore.urls import StateUrl


@dataclass(slots=True)
class _Memory:
    """One state. `turn` is held for each step that has to be one."""

    turn: threading.RLock = field(default_factory=threading.RLock)
    pointer: Pointer | None = None
    documents: dict[int, bytes] = field(default_factory=dict)
    holder: dict[str, Any] | None = None
    halted: dict[str, Any] | None = None


_memories: dict[str, _Memory] = {}


class MemoryStore(RevisionStore):
    """A state in memory; see `StateStore`."""

    def __init__(
        self,
        path: str | StateUrl = "memory://",
        *,
        backup_dir: str | os.PathLike[str] | None = None,
        lock_timeout: float = 10.0,
        on_mismatch: OnMismatch = "refuse",
        keep_revisions: int = 100,
    ) -> None:
        """Take part in the state of that name; see `statestore.disk.store.FileStore`."""
        self._name = str(path).partition("://")[2] or "state"
        self._begin(path, backup_dir, lock_timeout, on_mismatch, keep_revisions)
        self._memory = _memories.setdefault(self.path, _Memory())

    def changed(self) -> bool:
        return self._seen is None or self._pointer() != self._seen.pointer

    def lease(self) -> Lease:
        with self._memory.turn:
            if self._memory.holder is not None:
                raise lease_held(self.path, self._memory.holder)
            holder = self._memory.holder = new_holder()
            return _MemoryLease(self._memory, holder)

    def lease_holder(self) -> dict[str, Any] | None:
        return self._memory.holder

    def _row(self) -> Row:
        return _Row(self._memory)

    def _file_name(self) -> str:
        return self._name.replace("/", "-")

    def _present(self) -> Present | None:
        with self._memory.turn:
            pointer = self._memory.pointer
            if pointer is None:
                return None
            return Present(pointer, self._memory.documents.get(pointer.revision))

    def _pointer(self) -> Pointer | None:
        return self._memory.pointer

    def _document(self, revision: int) -> bytes | None:
        return self._memory.documents.get(revision)

    def _documents(self) -> list[tuple[int, bytes]]:
        return sorted(self._memory.documents.items(), reverse=True)

    def _swap(
        self, former: Pointer | None, to: Pointer, data: bytes, before_commit: BeforeCommit | None
    ) -> bool:
        with self._memory.turn:
            if self._memory.pointer != former:
                return False
            if before_commit is not None:
                before_commit()
            self._memory.documents[to.revision] = data
            self._memory.pointer = to
            for old in sorted(self._memory.documents)[: -self.keep_revisions]:
                del self._memory.documents[old]
            return True

    @contextmanager
    def _held(self) -> Iterator[None]:
        yield  # `_alone` keeps out everybody there is


class _MemoryLease(Lease):
    def __init__(self, memory: _Memory, holder: dict[str, Any]) -> None:
        self._memory = memory
        self._holder = holder

    @property
    def held(self) -> bool:
        return self._memory.holder is self._holder

    def release(self) -> None:
        with self._memory.turn:
            if self.held:
                self._memory.holder = None


class _Row:
    """The kill switch of a memory."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory

    def look(self) -> dict[str, Any] | None:
        return self._memory.halted

    def put(self, reason: str, by: str) -> bool:
        was = self._memory.halted
        said = {"reason": reason, "by": by, "at": times.format_instant(times.now())}
        self._memory.halted = was or said
        return was is None

    def take(self) -> bool:
        was, self._memory.halted = self._memory.halted, None
        return was is not None
