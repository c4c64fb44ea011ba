"""Saves in the background, as few as the disk can keep up with: many calls, one fsync.

What is promised:

* `Saver.save` takes the state as it is, and returns before the disk is asked for anything;
* its future is done when that state, or a newer one of the same saver, is on the disk as durably as
  the store saves; or it carries the error of the save that would have put it there;
* states reach the disk in the order of the calls; those overtaken before their turn never do;
* between bursts there is no thread and no lock, so there is nothing to hang at a fork or at exit.

What is not: a state whose future is not done may be lost. An interpreter that exits by itself
finishes what was asked for first; one that is killed does not. A forked child has a saver with
nothing to do, and must not wait for its parent's futures.
"""

from __future__ import annotations

# Here, since some versions of filelock import it when they are first used, and an interpreter that
# is about to exit does not let anybody: a save asked for last would be lost without a word.
import concurrent.futures.thread  # noqa: F401
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from statestore.errors import UsageError

if TYPE_CHECKING:
    from statestore.disk.store import StateMeta

# Takes a state and a reason; encodes at once, and returns what saves it when it is called.
Prepare = Callable[[Mapping[str, Any], str], "Callable[[], StateMeta]"]


class Saver:
    """Made by `StateStore.saver`. Threads may share one."""

    _changed: threading.Condition
    _preparing: bool
    _worker: threading.Thread | None
    _newest: Callable[[], StateMeta] | None
    _waiting: list[Future[StateMeta]]
    _failed: BaseException | None

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._closed = False
        self._start_over()
        _savers.add(self)

    def save(self, state: Mapping[str, Any], *, reason: str = "save") -> Future[StateMeta]:
        """Have `state` saved as it is now; what happens to it after the call is not in the save.

        Raises:
            StateInvalid: a value cannot be saved as JSON; no future waits for it.
            UsageError: the saver is closed, or this is a signal handler that interrupted a call.
        """
        future: Future[StateMeta] = Future()
        # Encoded under the lock, so that of two calls the later one has the newer state.
        with self._changed:
            if self._closed:
                raise UsageError("this saver is closed; ask the store for another one")
            if self._preparing:
                raise UsageError(
                    "a save inside a signal handler that interrupted a save; set a flag there, and "
                    "save later"
                )
            self._preparing = True
            try:
                self._newest = self._prepare(state, reason)
            finally:
                self._preparing = False
            self._waiting.append(future)
            idle = self._worker is None
        if idle:
            try:
                threading.Thread(target=self._work, name="statestore saver").start()
            except RuntimeError:  # no more threads, or the interpreter is about to exit
                self._work()
        return future

    @property
    def busy(self) -> bool:
        """Whether something is on its way to the disk, also where nobody waits for it any more."""
        with self._changed:
            return self._worker is not None or self._newest is not None

    def close(self) -> None:
        """Wait until everything is saved that was asked for; doing so twice does no harm.

        Raises:
            StateStoreError: what the last save raised, if it failed: the newest state is not saved.
        """
        with self._changed:
            self._closed = True
        self._work()  # in case no thread could be started
        with self._changed:
            if self._worker is not threading.current_thread():  # a future's callback may close
                self._changed.wait_for(lambda: self._worker is None and self._newest is None)
            failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise  # else the error that ended the block says more, and the futures the rest

    def _start_over(self) -> None:
        self._changed = threading.Condition()  # its lock lets a signal handler in: no deadlock
        self._preparing = False
        self._worker = None
        self._newest = None
        self._waiting = []
        self._failed = None

    def _work(self) -> None:
        """Save until there is nothing to save, unless another thread is at it."""
        with self._changed:
            if self._worker is not None:
                return
            self._worker = threading.current_thread()
        while True:
            with self._changed:
                save, self._newest = self._newest, None
                waiting, self._waiting = self._waiting, []
                if save is None:
                    self._worker = None
                    self._changed.notify_all()
                    return
            self._failed = _settle(waiting, save)


def _settle(
    waiting: list[Future[StateMeta]], save: Callable[[], StateMeta]
) -> BaseException | None:
    """Save, and tell everybody who waits; return the error, if any.

    A call that was cancelled is carried out nevertheless, since it may have overtaken others.
    """
    told = [future for future in waiting if future.set_running_or_notify_cancel()]
    try:
        meta = save()
    except BaseException as error:  # noqa: BLE001  # it belongs to those who wait
        for future in told:
            future.set_exception(error)
        return error
    for future in told:
        future.set_result(meta)
    return None


_savers: weakref.WeakSet[Saver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for saver in list(_savers):
        saver._start_over()


os.register_at_fork(after_in_child=_after_fork_in_child)
