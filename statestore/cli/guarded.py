"""What seal and restore share: the kill switch before, the audit line after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from statestore.cli.output import note, print_json
from statestore.config import Places
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateMeta, StateStore
from statestore.repair.rebuild import halted, record_repair


def replace_state(
    action: str,
    store: StateStore,
    where: Places,
    write: Callable[[Callable[[], None]], StateMeta],
    *,
    allow_live: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Check the kill switch, write (which checks it again right before the rename), audit, print.

    Args:
        action: what the audit line says was done.
        write: saves; gets the check it has to pass on as ``before_commit``.
        facts: more for the audit line.
    """
    check = halted(KillSwitch(where.kill_switch), allow_live=allow_live)
    check()
    saved = write(check)
    record_repair(AuditLog(where.audit_file), action, saved, facts or {})
    note(f"{store.path} is at revision {saved.revision}.")
    print_json({"action": action, "path": str(store.path), "revision": saved.revision})
