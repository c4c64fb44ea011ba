"""The kill switch: a file whose presence means that the bot must not trade.

Content is optional. ``touch`` engages it as well as `KillSwitch.engage`, which also notes who, when
and why. A switch that cannot be looked at counts as engaged. Nothing but `KillSwitch.release`
removes the file.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

from statestore import times
from statestore.disk import durable
from statestore.errors import SaveFailed, SaveNotDurable

logger = logging.getLogger(__name__)

Status = Literal["engaged", "released", "unknown"]

_MAX_BYTES = 1 << 20


class KillSwitch:
    """The switch at one path.

    Attributes:
        path: the file that engages it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def status(self) -> Status:
        """Return the status; ``unknown`` where the system does not let us look."""
        try:
            os.lstat(self.path)
        except FileNotFoundError:
            return "released"
        except OSError:
            return "unknown"
        return "engaged"

    def engaged(self) -> bool:
        """Return True unless the switch is surely released."""
        return self.status() != "released"

    def engage(self, reason: str = "", by: str = "") -> bool:
        """Engage the switch durably; return False if it was engaged before, and is left alone.

        The file is made first and its content after, not aside and renamed as other files are: on
        a full disk an empty file can still be made, and an empty file engages.

        Raises:
            SaveFailed: the file could not be made; the switch is not engaged.
            SaveNotDurable: it is engaged, but may not survive a power cut.
        """
        durable.make_directory(self.path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, durable.NEW_FILE_MODE)
        except FileExistsError:
            self._flush_name()  # whoever made it may have been killed before that
            return False
        except OSError as error:
            raise SaveFailed(
                self.path, "create", error, "the kill switch is NOT engaged"
            ) from error
        try:
            self._describe(descriptor, reason, by)
            os.fsync(descriptor)
        except OSError as error:
            raise SaveNotDurable(
                self.path, "fsync", error, "engaged, but a power cut may release it"
            ) from error
        finally:
            durable.close_quietly(descriptor)
        self._flush_name()
        return True

    def release(self) -> bool:
        """Remove the file durably; return False if there was none.

        Raises:
            SaveFailed: the file could not be removed; the switch stays engaged.
        """
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SaveFailed(self.path, "unlink", error, "the kill switch stays engaged") from error
        durable.flush_folder(self.path)
        return True

    def details(self) -> dict[str, Any] | None:
        """Return what the file says, ``{}`` if nothing readable, None if the switch is released.

        Text that is not ours (``echo maintenance > KILL_SWITCH``) is given as the reason.
        """
        if not self.engaged():
            return None
        try:
            data, _ = durable.read_file(self.path, _MAX_BYTES)
        except (OSError, durable.NotAFile, durable.TooLarge):
            return {}
        text = data.decode(errors="replace").strip()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = text
        if isinstance(content, dict):
            return content
        return {"reason": text} if text else {}

    def _flush_name(self) -> None:
        durable.flush_folder(self.path)
        durable.flush_folders_above(self.path)

    def _describe(self, descriptor: int, reason: str, by: str) -> None:
        content = {"reason": reason, "by": by, "at": times.format_instant(times.now())}
        try:
            durable.write_all(descriptor, f"{json.dumps(content)}\n".encode())
        except OSError as error:
            logger.warning(
                "kill switch engaged without its reason",
                extra={"path": str(self.path), "why": str(error)},
            )
