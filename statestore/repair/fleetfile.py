"""``fleet.toml``: many accounts in one file, with what they share said once.

::

    [defaults]
    state = "bots/{account}/data/.state.json"      # {account} is its name
    key_file = "keys/{account}.json"
    hours = 72

    [accounts.alice]
    reserve = {BTC = "0.5"}

    [accounts.bob]
    key_file = ""                                  # not that of the defaults
    api_key_env = "BOB_KEY"                        # names of variables, on the worker
    api_secret_env = "BOB_SECRET"

What is promised: a mistake is an error that names account and setting, before anything is read or
written; paths are relative to the file; nothing but the file decides (no ``statestore.toml``, no
``STATE_FILE``, no ``COINBASE_API_KEY``), so that an account is the same on every machine; no two
accounts write to one state or one set of backups, and no file is two things (an audit file that is
a kill switch would be engaged for ever); no key is in the file, and what looks like one is
not printed.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore.amounts import parse_amount
from statestore.config import KeyNames, Settings, files_of_state, places
from statestore.disk.backups import Retention
from statestore.errors import ConfigError, UsageError
from statestore.fills.sources.http import require_host
from statestore.fills.sources.pace import DEFAULT_RATE, HIGHEST_RATE
from statestore.fills.sources.registry import DEFAULT
from statestore.model import Method
from statestore.repair.fleetwork import Account
from statestore.repair.opening import Origin
from statestore.repair.rebuild import Options
from statestore.repair.verify import GRACE_SECONDS
from statestore.times import parse_instant

# It is a part of a file's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}", re.ASCII)

_LONGEST_TEXT = 4_000
_MOST_BYTES = 1 << 26  # of 10^5 accounts


def load_fleet(path: Path) -> tuple[Account, ...]:
    """Return the accounts of a fleet file, in its order.

    Raises:
        ConfigError: it cannot be read, or a setting is not understood.
    """
    table = _read(path)
    unknown = sorted(table.keys() - {"defaults", "accounts"})
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is not understood; tables are defaults, accounts")
    defaults, accounts = (table.get(name, {}) for name in ("defaults", "accounts"))
    if not isinstance(defaults, dict) or not isinstance(accounts, dict) or not accounts:
        raise ConfigError(f"{path} has no accounts; expected tables as [accounts.alice]")
    _Settings(path, "[defaults]", defaults).refuse_unknown()
    _refuse_like_names(path, accounts)
    found = tuple(_account(path, name, values, defaults) for name, values in accounts.items())
    _refuse_sharing(path, found)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than a fleet file can be; make several of it")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of a number's digits, say, as well
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _account(path: Path, name: str, values: object, defaults: Mapping[str, Any]) -> Account:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: account {name!r:.60}: a name is letters, digits, '.', '_', '-', at most 100"
        )
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: account {name} is no table; write [accounts.{name}]")
    own = {**_named(defaults, name), **values}
    given = _Settings(path, f"account {name}", own)
    given.refuse_unknown()
    state = given.path("state")
    if state is None:
        raise given.wrong("state", "it is missing; name the account's state file")
    settings = Settings(
        state=state,
        kill_switch=given.path("kill_switch"),
        backup_dir=given.path("backup_dir"),
        audit_file=given.path("audit_file"),
        ledger=given.path("ledger"),
        reserve=given.amounts("reserve"),
        backups=given.retention("backups"),
    )
    origin = _origin(given)
    return Account(
        name=name,
        where=places(settings),
        settings=settings,
        origin=origin,
        options=_options(given, settings, origin),
        skip_unproven=given.flag("skip_unproven"),
        grace=given.amount("grace", GRACE_SECONDS, Decimal(0)),
        group=_group(given, origin),
    )


def _named(defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        setting: value.replace("{account}", name) if isinstance(value, str) else value
        for setting, value in defaults.items()
    }


def _origin(given: _Settings) -> Origin:
    names = tuple(given.variable(f"api_{part}_env") for part in ("key", "secret", "password"))
    origin = Origin(
        source=given.text("source"),
        fills=given.path("fills"),
        balances=given.path("balances"),
        base_url=given.host("base_url"),
        key_file=given.path("key_file"),
        key_names=KeyNames(*names) if names[0] and names[1] else None,
        products=given.texts("products"),
        rate=given.whole("rate", DEFAULT_RATE, 1, HIGHEST_RATE),
        require_view_only=given.flag("require_view_only"),
        remember=not given.flag("no_ledger"),
    )
    if bool(names[0]) != bool(names[1]):
        raise given.wrong("api_key_env", "it goes with api_secret_env; one of them is missing")
    if origin.balances and not origin.fills:
        raise given.wrong("balances", "it goes with fills")
    if origin.fills:
        if origin.source:
            raise given.wrong("source", "fills are recorded; a file needs no exchange")
    elif origin.key_file and origin.key_names:
        raise given.wrong("key_file", 'api_key_env names a key as well; set one of them to ""')
    elif (origin.source or DEFAULT) == DEFAULT and not (origin.key_file or origin.key_names):
        raise given.wrong(
            "key_file", "no key is named: key_file, or api_key_env and api_secret_env"
        )
    return origin


def _options(given: _Settings, settings: Settings, origin: Origin) -> Options:
    most = Decimal(1_000_000)
    plain = Options()
    return Options(
        hours=given.amount("hours", plain.hours, Decimal("0.001"), most),
        since=given.instant("since"),
        until=given.instant("until"),
        max_hours=given.amount("max_hours", plain.max_hours, Decimal("0.001"), most),
        method=Method(given.one_of("method", tuple(Method))),
        products=origin.products,
        key_style=given.one_of("key", ("product", "base")),
        accept_partial=given.flag("accept_partial"),
        strict_state=given.flag("strict_state"),
        reserve=settings.reserve,
        adopt=given.texts("adopt"),
        assume_entry=given.amounts("assume_entry"),
    )


def _group(given: _Settings, origin: Origin) -> str:
    """What accounts have in common that have to keep to one rate."""
    named = given.text("rate_group")
    if named:
        return f"group {named}"
    if origin.fills:
        return ""
    exchange = f"{origin.source or DEFAULT} {origin.base_url}"
    if origin.key_file is not None:
        return f"{exchange} file {os.path.realpath(origin.key_file)}"
    if origin.key_names is not None:
        return f"{exchange} variable {origin.key_names.api_key}"
    return ""


_KNOWN = (
    *("state", "kill_switch", "backup_dir", "audit_file", "ledger", "backups"),
    *("source", "base_url", "key_file", "api_key_env", "api_secret_env", "api_password_env"),
    *("fills", "balances", "rate", "rate_group", "require_view_only", "no_ledger"),
    *("hours", "since", "until", "max_hours", "products", "method", "key", "reserve", "adopt"),
    *("assume_entry", "accept_partial", "skip_unproven", "strict_state", "grace"),
)


class _Settings:
    """The settings of one account, each read as what it has to be."""

    def __init__(self, path: Path, whose: str, values: Mapping[str, Any]) -> None:
        self._path = path
        self._whose = whose
        self._values = values

    def wrong(self, name: str, expected: str) -> ConfigError:
        """Return the error. What was found is in no message: it may be a key, in a wrong place."""
        return ConfigError(f"{self._path}: {self._whose}: {name}: {expected}")

    def refuse_unknown(self) -> None:
        for name in self._values:
            if name in ("api_key", "api_secret", "api_password", "secret", "password"):
                raise self.wrong(
                    name, "no key is written here; name its variable (api_key_env) or its key_file"
                )
            if name not in _KNOWN:
                raise self.wrong(f"{name:.60}", f"not understood; settings are {', '.join(_KNOWN)}")

    def text(self, name: str) -> str:
        value = self._values.get(name, "")
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
            raise self.wrong(name, "a text is expected")
        if "PRIVATE KEY" in value or not value.isprintable():
            raise self.wrong(name, "what stands there is no name or path; is it a key?")
        return value

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        if "://" in value:
            raise self.wrong(name, "a path is expected; of states, a fleet takes files only")
        try:
            # Whole, since a worker is at home elsewhere.
            return self._path.parent.absolute() / Path(value).expanduser() if value else None
        except RuntimeError as error:
            raise self.wrong(name, "there is no such user's home; write the whole path") from error

    def host(self, name: str) -> str | None:
        value = self.text(name)
        try:
            if value:
                require_host(value)
        except UsageError:  # its message quotes the value
            raise self.wrong(name, "host or host:port is expected, without https://") from None
        return value or None

    def variable(self, name: str) -> str:
        value = self.text(name)
        if value and not _VARIABLE.fullmatch(value):
            raise self.wrong(name, "the NAME of a variable is expected, in capitals, as BOB_KEY")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false is expected")
        return value

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most} is expected")
        return value

    def amount(
        self, name: str, default: Decimal, least: Decimal, most: Decimal | None = None
    ) -> Decimal:
        return self._amount(name, self._values.get(name, default), least, most)

    def amounts(self, name: str) -> dict[str, Decimal]:
        found: dict[str, Decimal] = {}
        for asset, value in self._table(name).items():
            if asset.upper() in found:
                raise self.wrong(f"{name}.{asset}", "the asset is named twice")
            found[asset.upper()] = self._amount(f"{name}.{asset}", value, Decimal(0))
        return found

    def retention(self, name: str) -> dict[str, int]:
        table = self._table(name)
        known = [field.name for field in fields(Retention)]
        for setting in table:
            if setting not in known:
                raise self.wrong(f"{name}.{setting}", f"settings are {', '.join(known)}")
        inner = _Settings(self._path, f"{self._whose}: {name}", table)
        return {setting: inner.whole(setting, 0, 0, 1_000_000) for setting in table}

    def texts(self, name: str) -> frozenset[str]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(
            isinstance(one, str) and one and one.isprintable() for one in value
        ):
            raise self.wrong(name, 'a list of texts is expected, as ["BTC-USD"]')
        return frozenset(one.upper() for one in value)

    def one_of(self, name: str, known: Iterable[str]) -> str:
        names = [str(one) for one in known]
        value = self.text(name) or names[0]
        if value not in names:
            raise self.wrong(name, f"one of {', '.join(names)} is expected")
        return value

    def instant(self, name: str) -> int | None:
        value = self._values.get(name, "")
        try:
            return parse_instant(value) if value != "" else None
        except (ValueError, TypeError, AttributeError) as error:
            raise self.wrong(
                name, 'an instant is expected as a text, as "2025-11-18T04:00:00Z"'
            ) from error

    def _table(self, name: str) -> dict[str, Any]:
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "a table is expected")
        return value

    def _amount(
        self, name: str, value: object, least: Decimal, most: Decimal | None = None
    ) -> Decimal:
        try:
            amount = value if isinstance(value, Decimal) else parse_amount(value)
        except ValueError as error:  # a TOML float is refused: it is no exact number
            raise self.wrong(name, f'{error}; write it as a text, "0.5"') from error
        if amount < least or (most is not None and amount > most):
            upper = "" if most is None else f" to {most}"
            raise self.wrong(name, f"a number from {least}{upper} is expected")
        return amount


def _refuse_like_names(path: Path, names: Iterable[str]) -> None:
    """A name is part of a file's name, and not every file system tells cases apart."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"{path}: accounts {other} and {name} differ in case only; rename one"
            )


def _refuse_sharing(path: Path, accounts: Iterable[Account]) -> None:
    """Two accounts of one state would repair it twice; of one set of backups, mix them up.

    All else may be shared, but as one thing only.
    """
    taken: dict[str, tuple[str, str]] = {}
    for account in accounts:
        for what, place, own in _taken_by(account):
            other, owner = taken.setdefault(place, (what, account.name))
            if other != what or (own and owner != account.name):
                raise ConfigError(
                    f"{path}: account {account.name}: {what}: it is the {other} of account "
                    f"{owner}, or one of the files that go with it; name another place"
                )


def _taken_by(account: Account) -> Iterator[tuple[str, str, bool]]:
    """What an account uses: as what, where, and whether it has to be its own."""
    where = account.where
    assert isinstance(where.state, Path)  # a table gives nothing else
    for path in files_of_state(where.state):
        yield "state", str(path), True
    with suppress(OSError):  # by a hard link, a bind mount, or in another case
        found = where.state.stat()
        yield "state", f"inode {found.st_dev} {found.st_ino}", True
    backups = os.path.realpath(where.backup_dir)
    yield "backup_dir", f"{where.state.name} in {backups}", True
    shared = {name: getattr(where, name) for name in ("kill_switch", "audit_file", "ledger")}
    shared |= {name: getattr(account.origin, name) for name in ("key_file", "fills", "balances")}
    for name, place in (*shared.items(), ("backup_dir", backups)):
        if place is not None:
            yield name, os.path.realpath(place), False
