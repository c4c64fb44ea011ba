"""What the database says of a state while nobody asks: LISTEN on a connection of its own.

A thread keeps in memory which revision is the present one, told by a notification, and asked for
every few seconds besides: a notification that a pooler or a broken network swallowed is late then,
not lost. While the connection is down nothing is known, and `Listener.heard` says so.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from statestore.backends.revisions import Pointer
from statestore.errors import BackendError

if TYPE_CHECKING:
    import psycopg

    from statestore.backends.database import Database

logger = logging.getLogger(__name__)

_LOOK_EVERY_SECONDS = 5.0
_AGAIN_AFTER_SECONDS = 1.0


class Listener:
    """Listens from `start` to `close`."""

    def __init__(self, database: Database, channel: str, look: bytes, state: str) -> None:
        """Remember what to listen to.

        Args:
            look: a statement that gives revision and checksum of the present one, if there is one.
        """
        self._database = database
        self._channel = channel
        self._look = look
        self._state = state
        self._known: tuple[float, Pointer | None] | None = None
        self._news = threading.Condition()
        self._awake, self._alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="statestore listener", daemon=True)
        self._thread.start()

    def heard(self) -> tuple[Pointer | None] | None:
        """Return which revision is the present one, in a tuple; None where that is not known."""
        known = self._known
        if known is None or time.monotonic() - known[0] > 3 * _LOOK_EVERY_SECONDS:
            return None
        return (known[1],)

    def wait(self, seconds: float) -> None:
        """Wait until something is heard, so long at most."""
        with self._news:
            self._news.wait(seconds)

    def close(self) -> None:
        self._stop.set()
        with suppress(OSError):
            os.write(self._alarm, b"x")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        for descriptor in (self._awake, self._alarm):
            with suppress(OSError):
                os.close(descriptor)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._database.dedicated() as connection:
                    connection.execute(f'LISTEN "{self._channel}"'.encode())
                    self._listen(connection)
            except BackendError as error:
                logger.info("not listening for changes of the state", extra={"why": str(error)})
            except (OSError, ValueError):
                return  # closed while at it
            self._known = None
            if not self._stop.is_set():
                select.select([self._awake], [], [], _AGAIN_AFTER_SECONDS)

    def _listen(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        while not self._stop.is_set():
            row = connection.execute(self._look, {"name": self._state}).fetchone()
            known = Pointer(*row) if row else None
            self._tell(known)
            until = time.monotonic() + _LOOK_EVERY_SECONDS
            while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
                said = self._next(connection, left)
                if said is None:
                    continue
                pointer = _pointer(said)
                if pointer is None or (known and pointer.revision < known.revision):
                    break  # not a notification of ours, or a late one: the next question finds out
                known = pointer
                self._tell(known)

    def _next(self, connection: psycopg.Connection[tuple[Any, ...]], seconds: float) -> str | None:
        """Wait for a notification, so long at most, and return the newest one's text.

        It is empty where something else came; None if nothing did.
        """
        # What came with an answer was read together with it, and psycopg keeps it: the socket has
        # nothing to say of it any more.
        notes = list(connection.notifies(timeout=0))
        if not notes:
            ready, _, _ = select.select([connection.fileno(), self._awake], [], [], seconds)
            if connection.fileno() not in ready:
                return None
            notes = list(connection.notifies(timeout=0))
        return notes[-1].payload if notes else ""

    def _tell(self, pointer: Pointer | None) -> None:
        with self._news:
            self._known = time.monotonic(), pointer
            self._news.notify_all()


class Ears:
    """The listener of a store, of this process: a fork leaves the thread behind."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._pid = os.getpid()
        self._turn = threading.Lock()

    def listener(self, make: Callable[[], Listener]) -> Listener:
        if self._listener is None or self._pid != os.getpid():
            if self._pid != os.getpid():
                self._turn, self._listener, self._pid = threading.Lock(), None, os.getpid()
            with self._turn:
                if self._listener is None:
                    self._listener = make()
                    self._listener.start()
        return self._listener

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None and self._pid == os.getpid():
            listener.close()


def _pointer(payload: str) -> Pointer | None:
    revision, _, sha256 = payload.partition(" ")
    # No longer than a bigint: `int` refuses thousands of digits, and that would end the listening.
    known = revision.isascii() and revision.isdigit() and len(revision) < 20 and sha256
    return Pointer(int(revision), sha256) if known else None
