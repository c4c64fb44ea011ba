"""statestore: a trading bot's memory in one JSON file, and a read-only way to rebuild it.

The public names, each imported when it is first used: a command that prints its help does not pay
for the file locks of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from statestore.disk.killswitch import KillSwitch as KillSwitch
    from statestore.disk.store import State as State
    from statestore.disk.store import StateMeta as StateMeta
    from statestore.disk.store import StateStore as StateStore
    from statestore.errors import LeaseHeld as LeaseHeld
    from statestore.errors import RevisionConflict as RevisionConflict
    from statestore.errors import SaveFailed as SaveFailed
    from statestore.errors import StateCorrupt as StateCorrupt
    from statestore.errors import StateStoreError as StateStoreError
    from statestore.runtime.bootstrap import BootstrapSystem as BootstrapSystem
    from statestore.runtime.collecting import BarCollector as BarCollector
    from statestore.runtime.manager import UnifiedStateManager as UnifiedStateManager
    from statestore.runtime.monitor import PositionMonitor as PositionMonitor
    from statestore.runtime.orders import PositionManager as PositionManager
    from statestore.runtime.session import TradingSession as TradingSession

_HOMES = {
    "BarCollector": "statestore.runtime.collecting",
    "BootstrapSystem": "statestore.runtime.bootstrap",
    "KillSwitch": "statestore.disk.killswitch",
    "LeaseHeld": "statestore.errors",
    "PositionManager": "statestore.runtime.orders",
    "PositionMonitor": "statestore.runtime.monitor",
    "RevisionConflict": "statestore.errors",
    "SaveFailed": "statestore.errors",
    "State": "statestore.disk.store",
    "StateCorrupt": "statestore.errors",
    "StateMeta": "statestore.disk.store",
    "StateStore": "statestore.disk.store",
    "StateStoreError": "statestore.errors",
    "TradingSession": "statestore.runtime.session",
    "UnifiedStateManager": "statestore.runtime.manager",
}

__all__ = [
    "BarCollector",
    "BootstrapSystem",
    "KillSwitch",
    "LeaseHeld",
    "PositionManager",
    "PositionMonitor",
    "RevisionConflict",
    "SaveFailed",
    "State",
    "StateCorrupt",
    "StateMeta",
    "StateStore",
    "StateStoreError",
    "TradingSession",
    "UnifiedStateManager",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
