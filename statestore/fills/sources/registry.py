"""Sources by name: ``coinbase``, ``ccxt:kraken``, and whatever another package adds.

A package adds one by an entry point of the group ``statestore.sources``: its name is what
``--source`` takes, what it names is called with a `Context` and returns a `FillSource`. What stands
behind a colon (``mine:main``) is the opener's to read. docs/add-a-source.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from statestore.config import KeyNames, Keys, Settings, exchange_keys, read_keys
from statestore.errors import SourceError, StateStoreError, UsageError
from statestore.fills.sources import FillSource
from statestore.fills.sources.pace import DEFAULT_RATE, Pace
from statestore.fills.sources.slices import Progress

GROUP = "statestore.sources"
DEFAULT = "coinbase"


@dataclass(frozen=True, slots=True)
class Context:
    """What a source is opened with.

    Attributes:
        settings: of the environment and the configuration file.
        argument: what stands behind the colon (``kraken`` of ``ccxt:kraken``), empty without one.
        base_url: ``--base-url``, None for the exchange's own.
        key_file: ``--key-file``; None: not given.
        key_names: variables that hold the key, in place of the source's own; None: not given.
        products: ``--product``; a source that can read everything at once may ignore them.
        rate: ``--rate``, requests a second at most; ``pace`` where others keep to the same one.
        on_page: to be told how far it is after each page of fills; None: nobody listens.
    """

    settings: Settings = field(default_factory=Settings)
    argument: str = ""
    base_url: str | None = None
    key_file: Path | None = None
    key_names: KeyNames | None = None
    products: frozenset[str] = frozenset()
    rate: int = DEFAULT_RATE
    pace: Pace | None = None
    on_page: Callable[[Progress], None] | None = None

    def keys(self, prefix: str) -> Keys:
        """Return the key of ``PREFIX_API_KEY``, ``PREFIX_SECRET`` and ``PREFIX_PASSWORD``.

        Where other variables were named, theirs.

        Raises:
            CredentialsError: there is none, or half of it.
        """
        return exchange_keys(prefix) if self.key_names is None else read_keys(self.key_names)


Opener = Callable[[Context], FillSource]


def source_named(name: str, context: Context) -> FillSource:
    """Open the source of this name.

    Raises:
        UsageError: there is none of this name; the message lists those there are.
        SourceError: it cannot be opened.
    """
    kind, _, argument = name.partition(":")
    opener = _BUILT_IN.get(kind) or _loaded(kind)
    if opener is None:
        raise UsageError(f"--source {name} is not known; there are {', '.join(names())}")
    return opener(replace(context, argument=argument))


def names() -> list[str]:
    """Return what ``--source`` takes."""
    from statestore.fills.sources.venues import known

    built_in = [DEFAULT, *(f"ccxt:{exchange}" for exchange in known())]
    return [*built_in, *sorted(_added().keys() - _BUILT_IN.keys())]


def _coinbase(context: Context) -> FillSource:
    from statestore.fills.sources.coinbase import CoinbaseSource
    from statestore.fills.sources.credentials import Credentials, read_credentials

    if context.argument:
        raise UsageError(f"--source coinbase takes nothing behind a colon ({context.argument!r})")
    settings = context.settings
    if context.key_names is None:
        credentials = read_credentials(
            context.key_file or settings.key_file, settings.api_key, settings.api_secret
        )
    else:
        keys = context.keys("COINBASE")
        credentials = Credentials(keys.api_key, keys.secret)
    return CoinbaseSource(
        credentials,
        base_url=context.base_url or settings.base_url,
        rate=context.rate,
        pace=context.pace,
        on_page=context.on_page,
    )


def _ccxt(context: Context) -> FillSource:
    from statestore.fills.sources.ccxt import CcxtSource
    from statestore.fills.sources.ccxt_client import venue_of
    from statestore.fills.sources.venues import known

    exchange = context.argument
    if not exchange:
        raise UsageError(f"--source ccxt needs an exchange: one of {', '.join(known())}")
    venue_of(exchange)
    prefix = f"CCXT_{exchange.upper()}"
    if context.key_file is not None:
        raise UsageError(
            f"--key-file is for coinbase; ccxt:{exchange} reads its key from {prefix}_API_KEY, "
            f"{prefix}_SECRET and {prefix}_PASSWORD"
        )
    return CcxtSource(
        exchange,
        context.keys(prefix),
        base_url=context.base_url,
        products=context.products,
        on_page=context.on_page,
    )


_BUILT_IN: Mapping[str, Opener] = {DEFAULT: _coinbase, "ccxt": _ccxt}


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _loaded(kind: str) -> Opener | None:
    point = _added().get(kind)
    if point is None:
        return None
    try:
        opener: Opener = point.load()
    except StateStoreError:
        raise
    except Exception as error:
        raise SourceError(
            f"source {kind} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return opener
