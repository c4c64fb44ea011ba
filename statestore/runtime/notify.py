"""What systemd is told: ready, alive, stopping. A few datagrams; nothing where nobody listens.

See sd_notify(3). A unit of ``Type=notify`` with ``WatchdogSec=`` restarts a bot that hangs.
"""

from __future__ import annotations

import logging
import math
import socket

logger = logging.getLogger(__name__)


class ServiceManager:
    """The process that started this one, if it wants to be told.

    Attributes:
        watchdog_seconds: it expects a sign of life within this; None: it does not.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        # A leading @ is an abstract socket, whose name begins with a zero byte.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds if address else None

    @property
    def step_seconds(self) -> float:
        """How long to wait at most before the next sign of life."""
        return self.watchdog_seconds / 2 if self.watchdog_seconds else math.inf

    def tell(self, *assignments: str) -> bool:
        """Send ``READY=1`` and the like; return whether it was sent. Never raises."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            logger.warning("service manager not told", extra={"why": str(error)})
            return False
        return True
