"""`UnifiedStateManager`: positions, pair states and the portfolio by name, over one state file.

For programs that think in "save this position" rather than in a document. Each call is one durable
change of the state file. What is promised beyond the store's promises:

* a position that was closed does not come back, not from an older version, not from a legacy file;
* a figure that nobody gave is null, never made up;
* a value that fails validation is saved, marked in the section ``invalid`` by the path of its
  field and logged, since a wrong figure must not stop trading; with ``strict=True`` it is refused;
* a legacy file is read once, where there is no state yet, and left as it is.

Beside a running `TradingSession` give it the session: both then work on one state in memory.
Without one it refuses to write while a bot holds the lease.

With ``TRADING_STATE_DB_TYPE=influxdb`` every change goes to the file, then to the mirror
(`statestore.backends.mirror`). A mirror that is down is said in `UnifiedStateManager.degraded`, and
the change stands in the file; where ``file_fallback`` is off, the call waits for the mirror and
raises what is wrong with it. With ``TRADING_STATE_DB_TYPE=postgres`` the state is in the database
of ``TRADING_STATE_POSTGRES_URL``, and with the file fallback in the state file while that is away.

One module, because it is one class of many short methods, whose names other programs call; all of
them go through `_load` and `_change`, and what a change means depends on where the state is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from statestore import times
from statestore.backends.mirror import Mirror, configured_mirror
from statestore.config import (
    TradingStateSettings,
    load_settings,
    load_trading_state_settings,
    places,
)
from statestore.disk import codec
from statestore.disk.locks import lease_held
from statestore.disk.store import Numbers, State, StateStore
from statestore.errors import (
    BackendUnavailable,
    ConfigError,
    StateError,
    StateInvalid,
    StateMissing,
    StateStoreError,
    UsageError,
)
from statestore.runtime.legacy import is_closed, read_legacy
from statestore.runtime.session import TradingSession
from statestore.runtime.validation import problems
from statestore.urls import StateUrl

logger = logging.getLogger(__name__)

_BACKUPS = "trading_state_backup_*.json"
_MIRROR_SECONDS = 30.0
_PORTFOLIO = ("total_value", "available_balance", "total_pnl", "daily_pnl", "peak_value")


class UnifiedStateManager:
    """The facade.

    Attributes:
        store: the state file.
        mirror: the database that follows it, if one is configured.
    """

    def __init__(
        self,
        auto_migrate: bool = True,
        enable_validation: bool | None = None,
        file_fallback: bool | None = None,
        *,
        store: StateStore | None = None,
        session: TradingSession | None = None,
        strict: bool = False,
        fallback_dir: Path | None = None,
        numbers: Numbers = "float",
    ) -> None:
        """Find the state, and migrate a legacy backup if there is no state yet.

        Args:
            auto_migrate: read the newest ``trading_state_backup_*.json`` of `fallback_dir` where
                there is no state.
            enable_validation: ``TRADING_STATE_ENABLE_VALIDATION`` unless given, else True.
            file_fallback: ``TRADING_STATE_ENABLE_FILE_FALLBACK`` unless given, else True.
            store: that of `session`, else the configured state file.
            session: the running session whose state this is.
            strict: refuse what does not validate.
            fallback_dir: ``TRADING_STATE_FALLBACK_DIR`` unless given, else ``state_fallback``.
            numbers: of what is read.

        Raises:
            ConfigError: a setting is not understood, or names a database that this installation
                has no client for while `file_fallback` is off.
            BackendError: the mirror is down or refuses, and `file_fallback` is off.
            StateStoreError: the state or the legacy file cannot be read.
        """
        settings = load_trading_state_settings()
        if store is not None and session is not None and store is not session.store:
            raise UsageError("the session has a store of its own; give one of the two")
        self._fallback = settings.enable_file_fallback if file_fallback is None else file_fallback
        if store is None:
            store = session.store if session else _configured_store(settings, self._fallback)
        self.store = store
        self.fallback_dir = fallback_dir or settings.fallback_dir
        self.mirror: Mirror | None = None
        self._file_only: str | None = None  # why, although more was configured
        self._session = session
        self._strict = strict
        self._numbers: Numbers = numbers
        self._validates = (
            settings.enable_validation if enable_validation is None else enable_validation
        )
        self._db_type = settings.db_type
        if settings.db_type != "file":
            self._connect(settings)
        if auto_migrate and session is None:
            self._migrate_once()

    @property
    def degraded(self) -> str | None:
        """Why the state is in the file only, or further there than in the mirror; else None."""
        if self._file_only is not None:
            return self._file_only
        if not isinstance(self.store.path, Path):
            return self._away()
        return self.mirror.degraded if self.mirror is not None else None

    # Reading

    def get_all_positions(self) -> list[dict[str, Any]]:
        """Return the open positions, each with its ``key``; closed ones are not among them."""
        held = self._load().get("positions")
        if held is None:
            return []
        if not isinstance(held, Mapping):
            raise StateInvalid(
                self.store.path, f"{self.store.path}: positions is no object", "positions"
            )
        return [
            {**position, "key": key}
            for key, position in held.items()
            if isinstance(position, Mapping) and not is_closed(position)
        ]

    def get_position(self, key: str) -> dict[str, Any] | None:
        """Return one open position; None if there is none."""
        return next((p for p in self.get_all_positions() if p["key"] == key), None)

    def get_pair_states(self) -> dict[str, Any]:
        """Return all pair states by pair."""
        return dict(self._load().get("pair_states") or {})

    def get_portfolio(self) -> dict[str, Any] | None:
        """Return the portfolio's summary; None if nobody gave one."""
        portfolio = self._load().get("portfolio")
        return None if portfolio is None else dict(portfolio)

    def get_system_status(self) -> dict[str, Any]:
        """Return how the state is: plain values. A mirror is asked whether it is up.

        ``state revision saved_at reason positions pair_states portfolio validated invalid backend
        configured_backend degraded mirror recovered_from lease migrated_from healthy``; ``mirror``
        is what `Mirror.status` says, and ``health``: ``ok``, or what is wrong.
        """
        state = self._load()
        invalid = problems(state) if self._validates else {}
        lease = self._lease_holder()
        mirror = self._mirror_status()
        in_file = isinstance(self.store.path, Path)
        degraded = self.degraded
        if degraded is None and mirror is not None and mirror["health"] != "ok":
            degraded = mirror["health"]
        return {
            "state": str(self.store.path),
            "revision": state.meta.revision,
            "saved_at": state.meta.saved_at or None,
            "reason": state.meta.reason or None,
            "positions": len(self.get_all_positions()),
            "pair_states": len(state.get("pair_states") or {}),
            "portfolio": state.get("portfolio") is not None,
            "validated": self._validates,
            "invalid": invalid,
            "backend": "file" if in_file and mirror is None else self._db_type,
            "configured_backend": self._db_type,
            "degraded": degraded,
            "mirror": mirror,
            "recovered_from": str(state.meta.recovered_from) if state.meta.recovered_from else None,
            "lease": lease,
            "migrated_from": state.get("migrated_from"),
            "healthy": not (invalid or degraded or state.meta.recovered_from),
        }

    # Writing

    def save_position(
        self, key: str, position: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Add a position, or replace what is recorded of it; keyword arguments are fields.

        Raises:
            StateInvalid: it cannot be saved, or does not validate and `strict` was asked for.
            LeaseHeld: a bot runs on this state, and this is not its session.
            StateStoreError: it could not be saved; nothing was changed.
        """
        entry = {**(position or {}), **more}
        entry.pop("key", None)
        if is_closed(entry):
            raise UsageError(
                f"{key} is closed by its own account; close_position removes a position"
            )
        with self._change(f"position {key}") as state:
            state["positions"] = {**(state.get("positions") or {}), key: entry}

    def close_position(self, key: str) -> dict[str, Any] | None:
        """Remove a position; return what it was, None if it was not there.

        Raises:
            LeaseHeld, StateStoreError: as in `save_position`.
        """
        former: dict[str, Any] | None = (self._load().get("positions") or {}).get(key)
        if former is None:
            logger.warning("no position to close", extra={"position": key})
            return None
        with self._change(f"close {key}") as state:
            held = state.get("positions") or {}
            state["positions"] = {name: held[name] for name in held if name != key}
        return former

    def save_pair_state(
        self, pair: str, state: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Set what a pair remembers (cooldown, z-score); raises as `save_position` does."""
        said = {**(state or {}), **more}
        with self._change(f"pair {pair}") as whole:
            whole["pair_states"] = {**(whole.get("pair_states") or {}), pair: said}

    def save_portfolio(self, portfolio: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set the summary; figures that are not given are null; raises as `save_position` does."""
        said = {**(portfolio or {}), **more}
        with self._change("portfolio") as state:
            counted = sum(not is_closed(p) for p in (state.get("positions") or {}).values())
            state["portfolio"] = {
                **dict.fromkeys(_PORTFOLIO),
                "open_positions": counted,
                **said,
            }

    def migrate(self, path: Path) -> dict[str, Any]:
        """Take a legacy file over into a state that does not exist yet; return what was recorded.

        Raises:
            UsageError: there is a state already, and it would have to be merged.
            StateMissing, StateCorrupt, StateInvalid: as in `statestore.runtime.legacy.read_legacy`.
        """
        found = read_legacy(path)
        record = {
            "path": str(path),
            "shape": found.shape,
            "sha256": found.sha256,
            "taken_at": found.taken_at,
            "at": times.format_instant(times.now()),
            "closed": list(found.closed),
            "unconfirmed": list(found.unconfirmed),
        }
        with self._change(f"migrate {path.name}") as state:
            if state or state.meta.revision:
                raise UsageError(
                    f"{self.store.path} is there already; a legacy file is only taken over where "
                    "there is no state, so that nothing that was closed since comes back"
                )
            state.update(found.sections)
            state["migrated_from"] = record
        logger.info("legacy state taken over", extra=record)
        if found.unconfirmed:
            logger.warning(
                "positions that only one list of the legacy file names: rebuild to be sure",
                extra={"positions": list(found.unconfirmed)},
            )
        return record

    def _migrate_once(self) -> None:
        state = self.store.load()
        if state.meta.revision or state:
            return
        backups = sorted(self.fallback_dir.glob(_BACKUPS))  # the name is the time
        if backups and codec.peek_revision(_head(backups[-1])) is not None:
            raise StateMissing(
                self.store.path,
                f"there is no {self.store.path}, but {backups[-1]} is a copy of one: put it back "
                f"with `statestore restore --file {backups[-1]}`, or start without one "
                "(auto_migrate=False)",
            )
        if backups:
            self.migrate(backups[-1])

    def _connect(self, settings: TradingStateSettings) -> None:
        """Find the mirror, and take over what it holds if that is ahead of the file."""
        try:
            if settings.db_type == "postgres":
                if isinstance(self.store.path, Path):
                    raise ConfigError(f"postgres is configured, and the state is {self.store.path}")
                return
            if self._session is not None and self._session.mirror is None:
                raise ConfigError("the session has no mirror: TradingSession(store, mirror=...)")
            self.mirror = (
                self._session.mirror if self._session else configured_mirror(settings, self.store)
            )
        except ConfigError as error:
            if not self._fallback:
                raise ConfigError(
                    f"TRADING_STATE_DB_TYPE is {settings.db_type}, and the file fallback is off: "
                    f"{error}"
                ) from error
            self._file_only = str(error)
            logger.warning("state is kept in the file only", extra={"why": self._file_only})
            return
        if self.mirror is None:
            return
        if not self._fallback:
            self.mirror.database.health()
        if self._session is None and self.store.lease_holder() is None:
            self.mirror.take_over(self.store, may_begin_empty=self._fallback)

    def _lease_holder(self) -> dict[str, Any] | None:
        """Return who holds the lease; None where nobody does, or a database cannot be asked.

        What is saved then goes to the file beside it, where there is one, and what another bot
        saves meanwhile in the database makes a fork of the two; else it raises.
        """
        try:
            return self.store.lease_holder()
        except BackendUnavailable:
            return None

    def _away(self) -> str | None:
        """Return why the state is in the file beside its database; None if it is not."""
        status = getattr(self.store, "fallback_status", None)
        said = status() if status is not None else None
        return f"the state is in {said['path']}: {said['why']}" if said and said["why"] else None

    def _mirror_status(self) -> dict[str, Any] | None:
        if self.mirror is None:
            return None
        try:
            self.mirror.database.health()
            health = "ok"
        except StateStoreError as error:
            health = str(error)
        return {**self.mirror.status(), "health": health}

    def _require_mirrored(self, reason: str) -> None:
        """Wait for the mirror where the file alone is not enough."""
        if self.mirror is None or self._fallback:
            return
        try:
            self.mirror.flush(_MIRROR_SECONDS)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"{reason} is saved in {self.store.path}, but {error}; it is tried again with the "
                "next change (the file fallback is off)"
            ) from error

    def _load(self) -> State:
        if self._session is not None:
            return self._session.state
        return self.store.refresh(numbers=self._numbers)

    @contextmanager
    def _change(self, reason: str) -> Iterator[State]:
        if self._session is not None:
            state = self._session.state
            former = dict(state)
            try:
                yield state
                self._examine(state)
            except BaseException:
                state.update(former)
                raise
            if self._session.mode != "DRY_RUN" and not self._session.save(reason):
                why = (self._session.health()["last_error"] or {}).get("error")
                kept = self._session.state is state
                raise StateError(
                    self.store.path,
                    f"{reason} is not saved: {why}; "
                    + ("the next tick tries again" if kept else "do it again on the new state"),
                )
            self._require_mirrored(reason)
            return
        holder = self._lease_holder()
        if holder is not None:
            raise lease_held(
                self.store.path,
                holder,
                "change its state through it (UnifiedStateManager(session=...)), or stop it first",
            )
        # Exact, whatever is asked for in reading: what is not changed keeps its digits.
        with self.store.transaction(reason=reason, numbers="decimal") as state:
            yield state
            self._examine(state)
        if self.mirror is not None:
            self.mirror.saved(self.store, state.meta)
        self._require_mirrored(reason)

    def _examine(self, state: State) -> None:
        """Mark what does not validate, or refuse it."""
        if not self._validates:
            return
        found = problems(state)
        known = state.get("invalid")
        for field, why in found.items():
            if self._strict:
                raise StateInvalid(
                    self.store.path, f"{self.store.path}: {field} {why}; nothing was saved", field
                )
            if not isinstance(known, Mapping) or known.get(field) != why:
                logger.error(
                    "saved although it does not validate", extra={"field": field, "why": why}
                )
        if found:
            state["invalid"] = found
        elif "invalid" in state:
            del state["invalid"]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(codec.HEAD_BYTES)
    except OSError:
        return b""  # what is wrong with it is said by whoever reads it


def _configured_store(settings: TradingStateSettings, file_fallback: bool) -> StateStore:
    where = places(load_settings())
    if settings.db_type != "postgres":
        return StateStore(where.state, backup_dir=where.backup_dir)
    if settings.postgres_url:
        url = StateUrl(settings.postgres_url)
        file = None if isinstance(where.state, StateUrl) else str(where.state)
    elif isinstance(where.state, StateUrl):
        url, file = where.state, None
    else:
        raise ConfigError(
            "TRADING_STATE_DB_TYPE is postgres, and there is no TRADING_STATE_POSTGRES_URL: "
            "postgresql://user@host/database is expected"
        )
    if file_fallback and "file_fallback" not in url.parameters:
        url = url.having(file_fallback=file)
    return StateStore(url, backup_dir=where.backup_dir)
