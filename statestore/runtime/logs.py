"""Log lines for people or for machines; only a program sets these up, never the library.

Fields of others are made fit to be looked at, and what JSON has no form for is said in its own
words. Lines go to stderr; nothing is rotated or sent here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from statestore.disk.codec import to_json
from statestore.texts import printable
from statestore.times import NANOSECONDS, format_instant

LogFormat = Literal["text", "json"]

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """``WARNING kill switch engaged: no trading  reason=... by=...``"""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        return f"{_at(record)} {super().formatMessage(record)}{' ' if fields else ''}{fields}"


class JsonFormatter(logging.Formatter):
    """One object on each line: ``at level logger message``, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _at(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: _plain(value) for name, value in _fields(record).items()},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return to_json(line, indent=None).decode()
        except (TypeError, ValueError):  # a field of another program's log call
            return to_json({k: str(v) for k, v in line.items()}, indent=None).decode()


def set_up(form: LogFormat, level: int = logging.INFO) -> None:
    """Have this program log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if form == "json" else TextFormatter("%(levelname)s %(message)s")
    )
    logger = logging.getLogger("statestore")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    # What the session says of a save says all that the store would.
    logging.getLogger("statestore.disk").setLevel(max(level, logging.WARNING))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _plain(value: Any) -> Any:
    """A value of JSON as it is, others in their own words: those of credentials hold no key."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, Decimal, type(None))) else str(value)


def _at(record: logging.LogRecord) -> str:
    return format_instant(int(record.created * 1000) * (NANOSECONDS // 1000))
