"""What a position, a pair state and a portfolio have to look like, and what is wrong with one.

Three shapes of a position are read: by product (``side quantity entry_price ...``, the quantity as
``quantity``, ``units`` or ``base_qty``; ``direction`` for ``side``), by currency (``available hold
total``) and by token (``token_contract total_quantity avg_entry_price``). Null is "unknown", and an
entry price may be that; a number that is there has to be one. Fields that are not named here are
the bot's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from statestore.amounts import json_type, parse_amount
from statestore.runtime.sections import QUANTITIES

Problem = tuple[str, str]  # dotted path of the field, and what is wrong with it

_SIDES = ("BUY", "SELL", "LONG", "SHORT")


def problems(state: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the sections, by dotted path of the field; empty if nothing is."""
    return dict(_problems(state))


def _problems(state: Mapping[str, Any]) -> Iterator[Problem]:
    for name, check in (("positions", _position), ("pair_states", _pair_state)):
        section = state.get(name)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            yield name, f"is {json_type(section)}, an object is expected"
            continue
        for key, value in section.items():
            yield from check(f"{name}.{key}", value)
    yield from _portfolio("portfolio", state.get("portfolio"))


def _position(path: str, position: Any) -> Iterator[Problem]:
    if not isinstance(position, Mapping):
        yield path, f"is {json_type(position)}, an object is expected"
        return
    if "token_contract" in position:
        yield from _numbers(path, position, ("total_quantity", "avg_entry_price"), _not_negative)
        return
    if "total" in position and "entry_price" not in position:
        yield from _numbers(path, position, ("available", "hold", "total"), _not_negative)
        return
    named = [name for name in QUANTITIES if name in position]
    if not named:
        yield f"{path}.quantity", "is missing"
    yield from _numbers(path, position, named, _positive)
    values = {_exact(position[name]) for name in named} - {None}
    if len(values) > 1:
        yield f"{path}.{named[0]}", f"differs from {', '.join(named[1:])}, which say the same"
    if "entry_price" not in position:
        yield f"{path}.entry_price", "is missing"
    yield from _numbers(path, position, ("entry_price", "stop_loss", "take_profit"), _positive)
    for name in ("side", "direction"):
        if name in position and str(position[name]).upper() not in _SIDES:
            yield f"{path}.{name}", f"is {position[name]!r:.40}, BUY, SELL, long or short expected"
    if not {"side", "direction"} & position.keys():
        yield f"{path}.side", "is missing"
    yield from _texts(path, position, ("entry_time",))


def _pair_state(path: str, state: Any) -> Iterator[Problem]:
    if not isinstance(state, Mapping):
        yield path, f"is {json_type(state)}, an object is expected"
        return
    if state.get("position") not in (None, "none", "long", "short"):
        yield f"{path}.position", f"is {state['position']!r:.40}, none, long or short expected"
    yield from _numbers(path, state, ("cooldown",), _not_negative)
    yield from _numbers(path, state, ("spread", "z_score"), lambda _: "")
    yield from _texts(path, state, ("last_update",))


def _portfolio(path: str, portfolio: Any) -> Iterator[Problem]:
    if portfolio is None:
        return
    if not isinstance(portfolio, Mapping):
        yield path, f"is {json_type(portfolio)}, an object or null is expected"
        return
    amounts = ("total_value", "available_balance", "open_positions", "peak_value")
    yield from _numbers(path, portfolio, amounts, _not_negative)
    yield from _numbers(path, portfolio, ("total_pnl", "daily_pnl"), lambda _: "")


def _numbers(
    path: str, holder: Mapping[str, Any], names: Any, wrong: Callable[[Decimal], str]
) -> Iterator[Problem]:
    for name in names:
        value = holder.get(name)
        if value is None:
            continue
        number = _exact(value)
        if number is None:
            yield f"{path}.{name}", f"is {value!r:.40}, a number is expected"
        elif wrong(number):
            yield f"{path}.{name}", f"is {value}, {wrong(number)}"


def _texts(path: str, holder: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        if not isinstance(holder.get(name), str | None):
            yield f"{path}.{name}", f"is {json_type(holder[name])}, a time as text is expected"


def _positive(number: Decimal) -> str:
    return "" if number > 0 else "and has to be above 0"


def _not_negative(number: Decimal) -> str:
    return "" if number >= 0 else "and may not be below 0"


def _exact(value: Any) -> Decimal | None:
    try:
        return parse_amount(repr(value) if isinstance(value, float) else value)
    except ValueError:
        return None
