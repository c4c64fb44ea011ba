"""What a target has to keep to: an expected error or a value, in time, in its own folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_SECONDS = 20

# Where a target may write, as long as one runs; what an audit hook sees cannot be undone by it.
_allowed: list[str] = []
_hooked = False

_PATHS = {
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.truncate": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


class Escaped(BaseException):
    """The program under test reached beyond its folder; no `Exception`, so nothing swallows it."""


class Hung(BaseException):
    """It took far too long."""


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Raise `Escaped` or `Hung` unless what runs inside writes below `folder` only, and ends."""
    _install()

    def hung(*_: object) -> None:
        raise Hung(f"longer than {LONGEST_SECONDS} s")

    former = signal.signal(signal.SIGALRM, hung)
    signal.alarm(LONGEST_SECONDS)
    _allowed.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _allowed.clear()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _install() -> None:
    global _hooked
    if not _hooked:
        sys.addaudithook(_look)
        _hooked = True


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event == "open":
        path, _, flags = arguments
        if flags & _WRITES and isinstance(path, (str, bytes, os.PathLike)):
            _require_inside(event, path)
    elif event in _PATHS:
        for position in _PATHS[event]:
            _require_inside(event, arguments[position])
    elif event in _FORBIDDEN:
        raise Escaped(f"{event}{arguments!r:.200}")


def _require_inside(event: str, path: Any) -> None:
    if isinstance(path, int):
        return
    name = os.fsdecode(path)
    real = os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
    if name != os.devnull and not f"{real}/".startswith(f"{_allowed[-1]}/"):
        raise Escaped(f"{event} {real!r:.200}")
