"""What strategies remember: three methods, each of them optional.

``get_current_state()``
    ``{"pair_states": {pair: {...}}, "indicators": {...}, "custom_data": {...}}``, or any other
    object. Its ``pair_states`` go to the section of that name, where an operator looks for
    cooldowns; the rest goes to ``strategy_state.<name>.state``.
``get_state_metadata()``
    ``{"strategy_version": "1.0", ...}``; goes to ``strategy_state.<name>.metadata``.
``restore_state(metadata)``
    Gets ``{"strategy_metadata": ..., "strategy_state": ...}``, each as the other two gave it, and
    only those that were saved. Called at the start, and when the state was changed underneath.

A strategy is known by its ``name``, else by its class. One that raises, or gives what no file can
hold, costs nobody else a save: what was saved of it before is kept, and the error is logged with
its name. One that could not take its state back is not asked for another: it would write its
ignorance over what it once knew.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from statestore.amounts import json_type
from statestore.disk import codec
from statestore.errors import Place, UsageError

logger = logging.getLogger(__name__)


class Strategies:
    """The strategies of one session.

    Attributes:
        errors: by name, what went wrong with a strategy the last time it was asked.
        untold: names of those that did not take their state.
    """

    def __init__(self, strategies: Iterable[object], path: Place) -> None:
        """Raises: UsageError, where two have one name."""
        self._path = path
        self._by_name: dict[str, object] = {}
        self.errors: dict[str, str] = {}
        self.untold: set[str] = set()
        for strategy in strategies:
            name = str(getattr(strategy, "name", None) or type(strategy).__name__)
            if name in self._by_name:
                raise UsageError(
                    f"two strategies are called {name!r}, and one would be saved over the other; "
                    "give each a `name` of its own"
                )
            self._by_name[name] = strategy

    def collect(self, state: dict[str, Any]) -> None:
        """Put what the strategies remember into `state`."""
        self.errors = {name: why for name, why in self.errors.items() if name in self.untold}
        for name, strategy in self._by_name.items():
            if name not in self.untold:
                self._collect(name, strategy, state)

    def tell(self, state: Mapping[str, Any]) -> bool:
        """Give every strategy what was saved of it; return whether all of them took it."""
        self.untold.clear()
        self.errors.clear()
        for name, strategy in self._by_name.items():
            restore = getattr(strategy, "restore_state", None)
            metadata = _metadata(name, state)
            if restore is None or not metadata:
                continue
            try:
                restore(metadata)
            except Exception as error:  # noqa: BLE001  # it is the author's, and the others go on
                self._note(name, "strategy did not take its state", error)
                self.untold.add(name)
        return not self.untold

    def deaf(self) -> list[str]:
        """Return the names of those that save a state and cannot be given another."""
        return [
            name
            for name, strategy in self._by_name.items()
            if hasattr(strategy, "get_current_state") and not hasattr(strategy, "restore_state")
        ]

    def _collect(self, name: str, strategy: object, state: dict[str, Any]) -> None:
        given = {}
        for part, method in (("state", "get_current_state"), ("metadata", "get_state_metadata")):
            try:
                said = self._ask(name, strategy, part, method)
            except Exception as error:  # noqa: BLE001  # see tell
                self._note(name, "strategy not saved; what was saved before is kept", error)
                continue
            if said is not None:
                given[part] = said
        if given:
            self._store(name, given, state)

    def _store(self, name: str, given: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
        former = _part(state, name)
        part = dict(former) | given
        if "state" in given:
            others = {
                pair
                for other in self._by_name.keys() - {name}
                for pair in _part(state, other).get("pairs") or ()
            }
            lifted = part["state"].pop("pair_states", None)
            _lift(former.get("pairs") or (), others, lifted, part, state)
        state["strategy_state"] = {**state["strategy_state"], name: part}

    def _ask(self, name: str, strategy: object, part: str, method: str) -> dict[str, Any] | None:
        """Return a copy of what a strategy says, proven to fit into a file; None for nothing."""
        ask = getattr(strategy, method, None)
        said = None if ask is None else ask()
        if said is None:
            return None
        if not isinstance(said, Mapping):
            raise TypeError(f"{method} gave {type(said).__name__}; a dict is expected")
        if not isinstance(said.get("pair_states", {}), Mapping):
            raise TypeError(f"pair_states is {json_type(said['pair_states'])}; a dict is expected")
        # A copy, so that what is kept of it is what was said now.
        copied = copy.deepcopy(dict(said))
        codec.encode({"strategy_state": {name: {part: copied}}}, self._path)
        return copied

    def _note(self, name: str, message: str, error: Exception) -> None:
        self.errors[name] = f"{type(error).__name__}: {error}"
        logger.error(message, extra={"strategy": name, "why": self.errors[name]}, exc_info=error)


def _lift(
    former: Iterable[str],
    others: set[str],
    pairs: Mapping[str, Any] | None,
    part: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Move pair states to their section; those of a pair that is another's stay where they are."""
    part.pop("pairs", None)
    section = {k: v for k, v in state["pair_states"].items() if k not in former or k in others}
    if pairs is not None:
        own = {pair: value for pair, value in pairs.items() if pair not in others}
        kept = {pair: value for pair, value in pairs.items() if pair in others}
        part["pairs"] = sorted(own)
        if kept:
            part["state"]["pair_states"] = kept
        section |= own
    # Where a pair stood it stays: a diff of two states is to be small.
    order = [pair for pair in state["pair_states"] if pair in section]
    state["pair_states"] = {pair: section[pair] for pair in dict.fromkeys([*order, *section])}


def _metadata(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    part = copy.deepcopy(dict(_part(state, name)))
    told: dict[str, Any] = {}
    if "metadata" in part:
        told["strategy_metadata"] = part["metadata"]
    if "state" in part:
        said = dict(part["state"])
        if "pairs" in part:
            lifted = copy.deepcopy(state.get("pair_states") or {})
            own = {pair: lifted[pair] for pair in part["pairs"] if pair in lifted}
            said["pair_states"] = own | said.get("pair_states", {})
        told["strategy_state"] = said
    return told


def _part(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = (state.get("strategy_state") or {}).get(name)
    return part if isinstance(part, Mapping) else {}
