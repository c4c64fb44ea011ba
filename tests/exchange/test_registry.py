"""Sources by name, those of other packages included. None of this needs ccxt."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from statestore.config import Keys, exchange_keys
from statestore.errors import CredentialsError, SourceError, UsageError
from statestore.fills.sources import registry
from statestore.fills.sources.registry import Context, source_named


def test_a_source_that_is_not_known_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match="--source krakn is not known; there are coinbase, ccxt:b"):
        source_named("krakn", Context())
    with pytest.raises(UsageError, match="ccxt needs an exchange: one of binance"):
        source_named("ccxt", Context())
    with pytest.raises(UsageError, match="ccxt:nothing cannot be read"):
        source_named("ccxt:nothing", Context())
    with pytest.raises(UsageError, match="takes nothing behind a colon"):
        source_named("coinbase:x", Context())


def test_keys_come_from_the_environment_and_are_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("API_KEY", "SECRET", "PASSWORD"):
        monkeypatch.delenv(f"CCXT_KRAKEN_{name}", raising=False)
    with pytest.raises(CredentialsError, match="CCXT_KRAKEN_API_KEY and CCXT_KRAKEN_SECRET"):
        source_named("ccxt:kraken", Context())
    with pytest.raises(CredentialsError, match="set CCXT_KRAKEN_SECRET "):
        exchange_keys("CCXT_KRAKEN", {"CCXT_KRAKEN_API_KEY": "k"})
    with pytest.raises(UsageError, match=r"--key-file is for coinbase.*CCXT_KRAKEN_API_KEY"):
        source_named("ccxt:kraken", Context(key_file=Path("key.json")))

    keys = exchange_keys("X", {"X_API_KEY": "open ", "X_SECRET": "sesame", "X_PASSWORD": "pw"})
    assert keys == Keys("open", "sesame", "pw")
    assert repr(keys) == "Keys()"


class Added:
    """A source of another package."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.name = f"added:{context.argument}"


def test_another_package_adds_a_source_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", f"{__name__}:Added", registry.GROUP),
        EntryPoint("broken", "no.such.module:open", registry.GROUP),
        EntryPoint("coinbase", "no.such.module:open", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    context = Context(products=frozenset({"A-B"}))

    opened = source_named("mine:main", context)
    assert isinstance(opened, Added)
    assert opened.name == "added:main"
    assert opened.context.products == {"A-B"}
    assert registry.names()[-2:] == ["broken", "mine"]
    with pytest.raises(SourceError, match=r"source broken .* ModuleNotFoundError"):
        source_named("broken", context)
    with pytest.raises(UsageError, match=r"there are coinbase,.* broken, mine$"):
        source_named("theirs", context)
