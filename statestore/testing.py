"""pytest plugin: a state file, a kill switch, an exchange and fills for the tests of a bot.

Loaded by pytest wherever statestore is installed, so it imports nothing heavy until a test asks.

Fixtures:
    state_file     path of a state file under ``tmp_path``; nothing is there yet
    state_store    `StateStore` on it
    kill_switch    `KillSwitch` beside it, released
    fake_exchange  a running `statestore.simulated.SimulatedExchange`
    crash_after    kill a piece of the bot in the middle of what it does to files

Builders, for rows as the exchange sends them: `fill`, `fills`.

And a guard: as long as pytest runs, its process writes no state outside of a temporary folder, and
none into a database of another machine. A test that reaches the live one by a default path fails
with the path and what to use instead.
Other processes that a test starts are not covered.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from statestore.disk.killswitch import KillSwitch
    from statestore.disk.store import StateStore
    from statestore.simulated import SimulatedExchange

_STORE = "statestore.disk.store"


def fill(text: str, **overrides: object) -> dict[str, object]:
    """Return a List Fills row from ``BUY 1 BTC-USD @ 100``; see `statestore.fill_text.fill`."""
    from statestore import fill_text

    return fill_text.fill(text, **overrides)


def fills(
    *texts: str,
    start: str | int = "2025-11-18T04:00:00Z",
    every: timedelta = timedelta(minutes=1),
) -> list[dict[str, object]]:
    """Return one row for each text, a minute apart; see `statestore.fill_text.fills`."""
    from statestore import fill_text

    return fill_text.fills(*texts, start=start, every=every)


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    """Path of a state file in a folder of its own; the file is not there yet."""
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    return folder / ".state.json"


@pytest.fixture
def state_store(state_file: Path) -> StateStore:
    """A store on `state_file`."""
    from statestore.disk.store import StateStore

    return StateStore(state_file)


@pytest.fixture
def kill_switch(state_file: Path) -> KillSwitch:
    """The kill switch beside `state_file`, released; ``engage(reason, by)`` engages it."""
    from statestore.disk.killswitch import KillSwitch

    return KillSwitch(state_file.with_name("KILL_SWITCH"))


@pytest.fixture
def fake_exchange() -> Iterator[SimulatedExchange]:
    """A running exchange of one's own, empty; skipped without the extra ``simulated``."""
    for needed in ("trustme", "jwt"):
        pytest.importorskip(needed, reason="needs: pip install 'statestore[simulated]'")
    from statestore.simulated import SimulatedExchange

    with SimulatedExchange() as exchange:
        yield exchange


CrashAfter = Callable[[int, Callable[[], object]], bool]

_CALLS = (
    *("write", "pwrite", "writev", "sendfile", "copy_file_range", "fsync", "fdatasync"),
    *("truncate", "ftruncate", "link", "symlink", "rename", "replace", "unlink", "remove"),
    *("mkdir", "rmdir", "chmod", "fchmod", "chown", "fchown"),
)
_OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@pytest.fixture
def crash_after() -> CrashAfter:
    """``crash_after(calls, function)``: run `function` until it has made so many calls, then kill.

    It runs in a forked child, which gets SIGKILL as it is about to make the next call; what it did
    to the disk stays, what it had in memory is gone. Returns False if it ended before, so that
    every moment is tried by::

        for calls in itertools.count():
            if not crash_after(calls, lambda: my_bot.save()):
                break
            assert StateStore(path).load() in (before, after)

    Counted are the functions of `os` that change files, and files opened for writing by `open`,
    each both before and after. Reads and timestamps are not: a store looks twice at a file that is
    milliseconds old, and with those counted a slow machine would try other moments than a fast one.
    What C code writes by itself (sqlite3) and the moments inside a call are not seen, and a kill is
    no power cut: the kernel still has what was not flushed.
    """
    return _crash_after


def _crash_after(calls: int, function: Callable[[], object]) -> bool:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            _kill_after(calls)
            function()
            code = 0
        except BaseException:  # noqa: BLE001  # all of it is told, and none of it runs pytest again
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        pytest.fail(f"what was to be killed ended by itself, with exit code {code}; see stderr")
    return code != 0


def _kill_after(calls: int) -> None:
    """Have this process killed as it is about to make one call more than `calls`."""
    left = calls

    def count() -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            count()
            return call(*arguments, **options)

        return counting

    def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) <= set("rbt"):
            return former(file, mode, *arguments, **options)
        count()
        opened = former(file, mode, *arguments, **options)
        count()  # it is empty now
        return opened

    def opening_descriptor(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & _OPENED_TO_WRITE:
            count()
        return former_descriptor(path, flags, *arguments, **options)

    former, former_descriptor = open, os.open
    for name in _CALLS:
        if hasattr(os, name):
            setattr(os, name, counted(getattr(os, name)))
    os.open = opening_descriptor
    builtins.open = io.open = opening


# The guard ------------------------------------------------------------------------------------


class _GuardedImport(MetaPathFinder):
    """Sets the store's ``path_guard`` as the store is imported, whoever imports it and when.

    Importing the store here instead would cost every test run, and setting the guard before each
    test would miss a test that imports its bot in its body.
    """

    def __init__(self, guard: Callable[[Path | str], None]) -> None:
        self.guard = guard

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _STORE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_guard(module: ModuleType) -> None:
                load(module)
                vars(module)["path_guard"] = self.guard

            vars(spec.loader)["exec_module"] = load_and_guard
        return spec


def pytest_configure(config: pytest.Config) -> None:
    def guard(path: Path | str) -> None:
        if isinstance(path, str):
            # Elsewhere than on this machine there may be a bot's own.
            if urlsplit(path).hostname not in (None, "localhost", "127.0.0.1", "::1"):
                pytest.fail(
                    f"a test was about to write the state at {path}, which is not on this machine; "
                    "use a database of the test's own on 127.0.0.1, memory://, or the fixture "
                    "state_store"
                )
            return
        temporary = [tempfile.gettempdir(), os.environ.get("PYTEST_DEBUG_TEMPROOT")]
        temporary.append(config.getoption("basetemp", None))
        resolved = path.resolve()
        if not any(resolved.is_relative_to(Path(root).resolve()) for root in temporary if root):
            # Not an Exception: a bot that logs a failed save and trades on must not hide it.
            pytest.fail(
                f"a test was about to write {resolved}, which is outside of every temporary "
                "folder; use the fixture state_file (a path), state_store (a StateStore) or "
                "tmp_path",
            )

    finder = _GuardedImport(guard)
    sys.meta_path.insert(0, finder)
    config.add_cleanup(lambda: sys.meta_path.remove(finder))
    store = sys.modules.get(_STORE)
    if store is not None:
        former = vars(store).get("path_guard")
        vars(store)["path_guard"] = guard
        config.add_cleanup(lambda: vars(store).update(path_guard=former))
