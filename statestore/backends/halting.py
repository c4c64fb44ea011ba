"""The kill switch of a state that several machines share: a file here, and a row for all of them.

Either halts. Where one of them cannot be looked at, and the other does not halt, the status is
``unknown``, which counts as engaged for a bot and not for a repair, as ever.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from statestore.disk.killswitch import KillSwitch, Status
from statestore.errors import BackendError

logger = logging.getLogger(__name__)


class Row(Protocol):
    """The part that all machines see. Each may raise `BackendError`."""

    def look(self) -> dict[str, Any] | None:
        """Return ``reason``, ``by`` and ``at``; None if it does not halt."""
        ...

    def put(self, reason: str, by: str) -> bool:
        """Halt; return False if it did before, and is left alone."""
        ...

    def take(self) -> bool:
        """Halt no longer; return False if it did not."""
        ...


class SharedKillSwitch(KillSwitch):
    """A file and a row.

    Attributes:
        path: the file.
    """

    def __init__(self, local: KillSwitch, row: Row, address: str) -> None:
        super().__init__(local.path)
        self._local = local
        self._row = row
        self._address = address

    def __str__(self) -> str:
        return f"{self.path} (or of {self._address})"

    def status(self) -> Status:
        here = self._local.status()
        if here == "engaged":
            return here
        try:
            return here if self._row.look() is None else "engaged"
        except BackendError as error:
            logger.debug("kill switch cannot be looked at", extra={"why": str(error)})
            return "unknown"

    def engage(self, reason: str = "", by: str = "") -> bool:
        """Engage the row, for all machines; the file, where the row cannot be reached.

        Raises:
            BackendError: the row could not be set; the file is, so this machine is halted.
        """
        try:
            return self._row.put(reason, by)
        except BackendError as error:
            self._local.engage(reason, by)
            raise type(error)(
                f"the kill switch is engaged on this machine only ({self.path}): {error}; engage "
                "it on the others, or try again"
            ) from error

    def release(self) -> bool:
        """Release the row and the file; return False if there was neither.

        Raises:
            BackendError: the row could not be reached; nothing is released.
            SaveFailed: the file could not be removed; the switch stays engaged.
        """
        shared = self._row.take()
        return self._local.release() or shared

    def details(self) -> dict[str, Any] | None:
        status = self._local.status()
        if status == "engaged":
            return self._local.details()
        try:
            said = self._row.look()
        except BackendError:
            return {}
        return {} if said is None and status == "unknown" else said
