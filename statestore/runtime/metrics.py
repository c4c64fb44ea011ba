"""Figures of a running session, for a program that serves them to Prometheus.

::

    prometheus_client.REGISTRY.register(SessionCollector(session))
    prometheus_client.start_http_server(9000, addr="127.0.0.1")

What is promised:

* nothing is kept here: each scrape asks `TradingSession.health`, at that moment. It waits for a
  save that is under way (not for one of asyncio), so a disk that hangs is a scrape that fails;
* what is not known has no sample; it is never 0;
* a name that `statestore.cli.metrics` writes too means the same there.

Needs the extra ``metrics`` (prometheus_client), so nothing else imports this module.
docs/metrics.md lists the figures with their alerts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from statestore.runtime.session import TradingSession
from statestore.times import NANOSECONDS, parse_instant

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ModuleNotFoundError(
        "a session's figures need prometheus_client, which is not installed: "
        "pip install 'statestore[metrics]'",
        name="prometheus_client",
    ) from error

Health = Mapping[str, Any]
_Figure = tuple[str, Callable[[Health], float | None]]


def _last_save(health: Health, name: str) -> Any:
    return (health["last_save"] or {}).get(name)


def _saved_at(health: Health) -> float | None:
    at = _last_save(health, "at")
    return None if at is None else parse_instant(at) / NANOSECONDS


GAUGES: Mapping[str, _Figure] = {
    "statestore_session_ok": (
        "1 if every save that was asked for is done, nothing on disk waits to be taken over and "
        "every strategy is saved, else 0.",
        lambda health: None if health["revision"] is None else health["ok"],
    ),
    "statestore_session_last_save_timestamp_seconds": (
        "When a save was last done, be it of unchanged content.",
        _saved_at,
    ),
    "statestore_session_last_save_duration_seconds": (
        "How long the last save took.",
        lambda health: _last_save(health, "seconds"),
    ),
    "statestore_session_positions": (
        "Positions in memory.",
        lambda health: health["positions"],
    ),
    "statestore_session_lease_held": (
        "1 if the session holds the lease of the state, else 0.",
        lambda health: health["lease"],
    ),
    "statestore_state_bytes": (
        "Size of the state file after the last save.",
        lambda health: _last_save(health, "bytes"),
    ),
    "statestore_state_revision": (
        "Revision of the state.",
        lambda health: health["revision"],
    ),
    "statestore_kill_switch_engaged": (
        "1 if the kill switch is engaged, 0 if it is released.",
        lambda health: {"engaged": 1, "released": 0}.get(health["kill_switch"]),
    ),
}
COUNTERS: Mapping[str, _Figure] = {
    "statestore_session_failed_saves_total": (
        "Saves that failed since the session was made.",
        lambda health: health["failed_saves"],
    ),
}


class SessionCollector(Collector):
    """The figures of one session, labelled with the path of its state.

    A registry takes one collector of a kind, so a process with several sessions, each on a state
    of its own, makes one collector of them all.
    """

    def __init__(self, session: TradingSession, *more: TradingSession) -> None:
        self._sessions = {_path(each): each for each in (session, *more)}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Return every figure; one that no session knows is a name without a sample."""
        healths = {path: session.health() for path, session in self._sessions.items()}
        for kind, figures in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (what, read) in figures.items():
                family = kind(name, what, labels=["state"])
                for path, health in healths.items():
                    if (value := read(health)) is not None:
                        family.add_metric([path], value)
                yield family


def _path(session: TradingSession) -> str:
    # A file name may hold bytes that are no text; they must not make every figure unreadable.
    return str(session.store.path).encode("utf-8", "replace").decode()
