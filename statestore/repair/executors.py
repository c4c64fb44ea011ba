"""Where work is done: threads, processes, a Dask cluster, or any executor that a function gives.

A process that dies takes one piece of work with it, and nothing else: each has a pool of its own,
since the pool of the standard library gives up all of its work when one of its processes dies. Nor
does any outlive the process that started it, however that one ends.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from statestore.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

# Pieces of work a cluster is given ahead, whatever its size: a value of a kilobyte each.
_AHEAD = 1_000

# Seconds a scheduler is waited for.
_PATIENCE = "10s"


@dataclass(frozen=True, slots=True)
class Workers:
    """An executor, and how many pieces of work it is given at once."""

    executor: Executor
    at_once: int


class Processes(ThreadPoolExecutor):
    """An executor over processes that die alone. Each thread waits for a process of its own."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return super().submit(lambda: self._elsewhere(fn, *args, **kwargs))

    def _elsewhere(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        pool = self._pool()
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            self._own.pool = None
            raise

    def _pool(self) -> ProcessPoolExecutor:
        pool: ProcessPoolExecutor | None = getattr(self._own, "pool", None)
        if pool is None:
            # Not forked: this process has threads.
            pool = self._own.pool = ProcessPoolExecutor(
                1, mp_context=multiprocessing.get_context("spawn"), initializer=_serve
            )
            self._pools.append(pool)
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait)


def _serve() -> None:
    """Leave it to the first process when to end, and end with it.

    Ctrl-C, and what a service manager sends, reaches every process: this one ends what it is at,
    the first one begins no more.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The pool of the standard library would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def open_executor(name: str, jobs: int) -> Iterator[Workers]:
    """Give the executor of a name, and shut it down.

    Args:
        name: ``threads``, ``processes``, ``dask:ADDRESS`` of a scheduler, or ``module:function``,
            which is called and has to return an executor.
        jobs: threads or processes; others have as many workers as they have.

    Raises:
        UsageError: there is no such executor, it cannot be had, or no scheduler answers.
    """
    if name == "threads":
        with ThreadPoolExecutor(jobs) as threads:
            yield Workers(threads, jobs)
    elif name == "processes":
        with Processes(jobs) as processes:
            yield Workers(processes, jobs)
    elif name.startswith("dask:"):
        with _dask(name.removeprefix("dask:")) as cluster:
            yield Workers(cluster, _AHEAD)
    else:
        with _added(name) as executor:
            yield Workers(executor, _AHEAD)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "--executor dask needs dask.distributed, which is not installed: "
            "pip install 'statestore[fleet]'"
        ) from error
    try:
        client: Any = Client(address, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--executor dask:{address}: no scheduler answers there ({type(error).__name__}); "
            "start one ('dask scheduler') or correct the address, as dask:tcp://HOST:8786"
        ) from error
    with client:
        # Not pure: the same work at another time is another answer.
        with client.get_executor(pure=False, retries=0) as executor:
            yield executor


def _added(name: str) -> Executor:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UsageError(
            f"--executor {name} is not known; there are threads, processes, dask:ADDRESS and "
            "module:function"
        )
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--executor {name} cannot be had: {error}; it has to be importable (PYTHONPATH)"
        ) from error
    if not isinstance(made, Executor):
        raise UsageError(
            f"--executor {name} gave {type(made).__name__}, which is no concurrent.futures.Executor"
        )
    return made
