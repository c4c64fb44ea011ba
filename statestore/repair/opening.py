"""Where fills are read from, opened: the one way from what was asked for to a source that answers.

What is asked for is a plain value (`Origin`): it names a key by its file or by the variables that
hold it, and the key itself is read here, where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from statestore.config import KeyNames, Places, Settings
from statestore.errors import ConfigError, UsageError
from statestore.fills.sources import FillSource, TellsPermissions, TellsTime
from statestore.fills.sources.pace import DEFAULT_RATE, Pace
from statestore.fills.sources.registry import DEFAULT, Context, source_named
from statestore.repair.plan import Warn
from statestore.repair.rebuild import check_permissions
from statestore.times import now

if TYPE_CHECKING:
    from statestore.fills.sources.slices import Progress

OnPage = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to read, and how.

    Attributes:
        source: by name, see `registry`; empty for the default one.
        fills, balances: recorded files, in place of an exchange.
        base_url, key_file: in place of those of the settings.
        key_names: of the variables that hold the key, in place of a file.
        products: a source that can read everything at once may ignore them.
        rate: requests a second at most.
        require_view_only: refuse a key that can do more.
        remember: read through the ledger; ``keep`` what is read in it.
    """

    source: str = ""
    fills: Path | None = None
    balances: Path | None = None
    base_url: str | None = None
    key_file: Path | None = None
    key_names: KeyNames | None = None
    products: frozenset[str] = frozenset()
    rate: int = DEFAULT_RATE
    require_view_only: bool = False
    remember: bool = True
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that answers, and what is known of the key.

    Attributes:
        portfolio: the exchange portfolio the key is bound to, None offline.
        warnings: what the key may do beyond reading; while the source is read, the list grows by
            what is the matter with the ledger.
    """

    source: FillSource
    portfolio: str | None
    warnings: list[Warn]


def open_source(
    origin: Origin,
    where: Places,
    settings: Settings,
    *,
    pace: Pace | None = None,
    on_page: OnPage | None = None,
) -> Opened:
    """Return the source of an origin.

    The exchange is read through the ledger of its portfolio. What is about to be written as planned
    rests on no memory, so that a change is seen.

    Args:
        pace: to be kept together with other sources; None for one of its own.

    Raises:
        ConfigError: the ledger's place is that of another file.
        UsageError: there is no such source, or it cannot keep what was asked of it.
        CredentialsError: there are none, they are refused, or they allow more than they may.
        SourceError: the exchange cannot be asked, or the file is none of fills.
    """
    if origin.fills:
        if origin.source:
            raise UsageError("--source and --fills exclude each other: a file needs no exchange")
        from statestore.fills.sources.recorded import RecordedFills

        return Opened(RecordedFills(origin.fills, origin.balances), None, [])
    name = origin.source or DEFAULT
    source = source_named(name, _context(origin, settings, pace, on_page))
    if not isinstance(source, TellsPermissions):
        if origin.require_view_only:
            raise UsageError(
                f"--require-view-only cannot be kept: {name} does not tell what its key may do"
            )
        return Opened(source, None, [])
    allowed = source.permissions()
    warnings = check_permissions(allowed, require_view_only=origin.require_view_only)
    if not origin.remember or not allowed.portfolio_id:
        return Opened(source, allowed.portfolio_id, warnings)
    from statestore.fills.ledger import LedgerSource

    remembering = LedgerSource(
        source,
        _ledger(where, origin.key_file, settings.key_file),
        allowed.portfolio_id,
        clock=source.server_time if isinstance(source, TellsTime) else now,
        warn=lambda message: warnings.append(Warn("ledger", message)),
        keep=origin.keep,
    )
    return Opened(remembering, allowed.portfolio_id, warnings)


def _context(
    origin: Origin, settings: Settings, pace: Pace | None, on_page: OnPage | None
) -> Context:
    return Context(
        settings=settings,
        base_url=origin.base_url,
        key_file=origin.key_file,
        key_names=origin.key_names,
        products=origin.products,
        rate=origin.rate,
        pace=pace,
        on_page=on_page,
    )


def _ledger(where: Places, *keys: Path | None) -> Path:
    """Return the ledger's place. One that is damaged is moved aside: it must be nothing else."""
    known = {path.resolve() for path in (*where.files, *keys) if path is not None}
    if where.ledger.resolve() in known:
        raise ConfigError(f"the ledger's place, {where.ledger}, is that of another file; name one")
    return where.ledger


def clock_of(source: FillSource) -> Callable[[], int]:
    """Return the clock that dates the fills: the exchange's, however wrong the one here is."""
    if not isinstance(source, TellsTime):
        return now
    asked = now()
    ahead = source.server_time() - (asked + now()) // 2
    return lambda: now() + ahead
