"""Settings: flag before environment before ``statestore.toml`` before default.

The only reader of ``os.environ``, and one module for that: what a process takes from outside is
looked for in one place. A setting that is not understood is an error, never ignored: a mistyped
``reserve`` would otherwise sell what is not the bot's.

=================  ==========================  ======================================
setting            environment                 default
=================  ==========================  ======================================
``state``          ``STATE_FILE``              ``data/.state.json``; or ``postgresql://...``
``kill_switch``    ``STATESTORE_KILL_SWITCH``  ``KILL_SWITCH`` beside the state
``backup_dir``     ``STATESTORE_BACKUP_DIR``   ``state_backups`` beside the state
``audit_file``     ``STATESTORE_AUDIT_FILE``   ``state_audit.jsonl`` beside the state
``ledger``         ``STATESTORE_LEDGER``       ``fills.sqlite3`` beside the state
``bars``           ``STATESTORE_BARS``         ``bars.sqlite3`` beside the state
``signals_dir``    ``STATESTORE_SIGNALS_DIR``  ``signals`` beside the state
``key_file``       ``COINBASE_KEY_FILE``       none
``base_url``       ``COINBASE_BASE_URL``       ``api.coinbase.com``
``bars_source``    ``STATESTORE_BARS_SOURCE``  ``binance``
``bars_url``       ``STATESTORE_BARS_URL``     the source's own host
none               ``STATESTORE_DATABASE``     ``STATE_FILE``, where that is a database
``reserve`` table                              nothing is reserved
``backups`` table                              see below
none               ``VISUAL``, ``EDITOR``      ``vi``
none               ``NO_COLOR``                colours on a terminal
none               ``COINBASE_API_KEY``        none
none               ``COINBASE_API_SECRET``     none
none               ``CCXT_KRAKEN_API_KEY``     none; ``_SECRET`` and ``_PASSWORD`` likewise,
                                               and so for every exchange
none               ``NOTIFY_SOCKET``,          set by systemd, see `service_manager`
                   ``WATCHDOG_USEC``,
                   ``WATCHDOG_PID``
=================  ==========================  ======================================

For `statestore.runtime.manager` and the mirror, by the names their document gives them:

========================================  ============================================
environment                               default
========================================  ============================================
``TRADING_STATE_DB_TYPE``                 ``file``; also ``influxdb``, ``postgres``
``TRADING_STATE_INFLUXDB_URL``            ``http://localhost:8086``
``TRADING_STATE_INFLUXDB_TOKEN``          none; ``user:password`` for 1.x
``TRADING_STATE_INFLUXDB_ORG``            ``quant-system``
``TRADING_STATE_INFLUXDB_BUCKET``         ``quant-data``
``TRADING_STATE_ENABLE_VALIDATION``       ``true``
``TRADING_STATE_ENABLE_FILE_FALLBACK``    ``true``
``TRADING_STATE_FALLBACK_DIR``            ``state_fallback``
``TRADING_STATE_NAME``                    the state file's path; what a mirror calls it
``TRADING_STATE_POSTGRES_URL``            ``STATE_FILE``, where that is one
========================================  ============================================

``statestore.toml`` is looked for in the working directory, then in the user's configuration folder;
``STATESTORE_CONFIG`` names another file. Credentials have no place in it.

A command that made a backup deletes old ones, if they are beyond the count and the age to keep::

    [backups]
    keep_last = 30            # the newest, whatever their age; a burst within a minute is one
    keep_days = 30            # and all that are younger
    keep_repairs_days = 365   # those that undo needs: made before a rebuild, restore, edit ...

"Beyond" is both, so a large number keeps everything. The newest valid one is always kept.

Where the state is in a database, what is "beside the state" by default is in ``data``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from statestore.amounts import parse_amount
from statestore.errors import ConfigError, CredentialsError
from statestore.urls import StateUrl, state_at

_PATHS = {
    "state": "STATE_FILE",
    "kill_switch": "STATESTORE_KILL_SWITCH",
    "backup_dir": "STATESTORE_BACKUP_DIR",
    "audit_file": "STATESTORE_AUDIT_FILE",
    "ledger": "STATESTORE_LEDGER",
    "bars": "STATESTORE_BARS",
    "signals_dir": "STATESTORE_SIGNALS_DIR",
    "key_file": "COINBASE_KEY_FILE",
}
_TEXTS = {
    "base_url": "COINBASE_BASE_URL",
    "bars_source": "STATESTORE_BARS_SOURCE",
    "bars_url": "STATESTORE_BARS_URL",
}
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True}
_BOOLEANS |= {"false": False, "0": False, "no": False, "off": False}
_DB_TYPES = ("file", "influxdb", "postgres")
_LONGEST_FILE = 1 << 20
_POSTGRES = re.compile("postgres(ql)?://")
_RETENTION = ("keep_last", "keep_days", "keep_repairs_days")

BESIDE_A_DATABASE = Path("data")  # where the rest is of a state that is no file


@dataclass(frozen=True, slots=True)
class Settings:
    """What was configured, before any flag. None: the default, beside the state."""

    state: Path | StateUrl = Path("data/.state.json")
    kill_switch: Path | None = None
    backup_dir: Path | None = None
    audit_file: Path | None = None
    ledger: Path | None = None
    bars: Path | None = None
    signals_dir: Path | None = None
    key_file: Path | None = None
    base_url: str = "api.coinbase.com"
    bars_source: str = "binance"
    bars_url: str | None = None
    reserve: Mapping[str, Decimal] = field(default_factory=dict)
    backups: Mapping[str, int] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    api_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """An exchange key of the environment. Never printed: its ``repr`` shows nothing of it.

    Attributes:
        password: what some exchanges want besides (kucoin's passphrase), empty for most.
    """

    api_key: str = field(repr=False)
    secret: str = field(repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class KeyNames:
    """The variables that hold a key: their names, which are no secret."""

    api_key: str
    secret: str
    password: str = ""


def exchange_keys(prefix: str, environ: Mapping[str, str] = os.environ) -> Keys:
    """Return what ``PREFIX_API_KEY``, ``PREFIX_SECRET`` and ``PREFIX_PASSWORD`` hold.

    Raises:
        CredentialsError: there is no key, or only half of it.
    """
    names = KeyNames(f"{prefix}_API_KEY", f"{prefix}_SECRET", f"{prefix}_PASSWORD")
    return read_keys(names, environ)


def read_keys(names: KeyNames, environ: Mapping[str, str] = os.environ) -> Keys:
    """Return what the variables of these names hold.

    Raises:
        CredentialsError: there is no key, or only half of it.
    """
    missing = [name for name in (names.api_key, names.secret) if not environ.get(name, "").strip()]
    if missing:
        raise CredentialsError(
            f"no credentials for the exchange: set {' and '.join(missing)} "
            "(a key that may only read is enough)"
        )
    held = (names.api_key, names.secret, names.password)
    return Keys(*(environ.get(name, "").strip() for name in held))


def database_url(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return where positions and orders are: as given, or as ``STATESTORE_DATABASE`` or, where
    the state is in a database, ``STATE_FILE`` says.

    It may hold a password, so it is read from no file and is in no message.

    Raises:
        ConfigError: nothing says it.
    """
    state = environ.get("STATE_FILE", "")
    url = given or environ.get("STATESTORE_DATABASE") or (state if _POSTGRES.match(state) else "")
    if not url:
        raise ConfigError(
            "which database? set STATESTORE_DATABASE, or give --database: "
            "postgresql://user@host:5432/name (its password is best left to ~/.pgpass)"
        )
    return url


@dataclass(frozen=True, slots=True)
class TradingStateSettings:
    """The ``TRADING_STATE_*`` variables."""

    db_type: str = "file"
    influxdb_url: str = "http://localhost:8086"
    influxdb_token: str | None = field(default=None, repr=False)
    influxdb_org: str = "quant-system"
    influxdb_bucket: str = "quant-data"
    enable_validation: bool = True
    enable_file_fallback: bool = True
    fallback_dir: Path = Path("state_fallback")
    name: str | None = None
    postgres_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Places:
    """The files that belong to one state; it is one of them, unless it is in a database."""

    state: Path | StateUrl
    kill_switch: Path
    backup_dir: Path
    audit_file: Path
    ledger: Path
    bars: Path
    signals_dir: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Return what no output may replace; the caches, ledger and bars, are not among them."""
        ours: tuple[Path, ...] = ()
        if not isinstance(self.state, StateUrl):
            ours = files_of_state(self.state)
        elif fallback := self.state.parameters.get("file_fallback"):
            ours = (*files_of_state(Path(fallback)), Path(f"{os.path.realpath(fallback)}.pending"))
        return (*ours, self.kill_switch, self.audit_file)


def files_of_state(state: Path) -> tuple[Path, ...]:
    """Return the names that a state file has, itself first: beside the file a link leads to."""
    file = os.path.realpath(state)
    return tuple(Path(f"{file}{end}") for end in ("", ".bak", ".lock", ".lease"))


def places(
    settings: Settings,
    *,
    state: Path | StateUrl | None = None,
    kill_switch: Path | None = None,
    backup_dir: Path | None = None,
) -> Places:
    """Return where everything is: the flag, else the setting, else beside the state file."""
    path = state or settings.state
    folder = path.parent if isinstance(path, Path) else BESIDE_A_DATABASE
    return Places(
        state=path,
        kill_switch=kill_switch or settings.kill_switch or folder / "KILL_SWITCH",
        backup_dir=backup_dir or settings.backup_dir or folder / "state_backups",
        audit_file=settings.audit_file or folder / "state_audit.jsonl",
        ledger=settings.ledger or folder / "fills.sqlite3",
        bars=settings.bars or folder / "bars.sqlite3",
        signals_dir=settings.signals_dir or folder / "signals",
    )


def operator() -> str:
    """Return who runs this, for the record: ``uid 1000 at host``."""
    return f"uid {os.getuid()} at {os.uname().nodename}"


def editor(environ: Mapping[str, str] = os.environ) -> str:
    """Return the command that edits a file for this user."""
    return environ.get("VISUAL") or environ.get("EDITOR") or "vi"


def no_color(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this user wants no colours, as no-color.org has it; rich looks by itself."""
    return bool(environ.get("NO_COLOR"))


def service_manager(
    environ: Mapping[str, str] = os.environ,
) -> tuple[str | None, float | None]:
    """Return the socket of the service manager and its watchdog's seconds, None where not asked.

    As sd_notify(3) and sd_watchdog_enabled(3) have it: a watchdog of another process is not ours.
    """
    seconds = None
    if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        microseconds = environ.get("WATCHDOG_USEC", "")
        if microseconds.isascii() and microseconds.isdigit() and int(microseconds):
            seconds = int(microseconds) / 1_000_000
    return environ.get("NOTIFY_SOCKET") or None, seconds


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of the environment and of the configuration file.

    Raises:
        ConfigError: the file is not TOML, or holds a setting that is not understood.
    """
    values = _from_file(environ)
    if environ.get("COINBASE_API_KEY"):
        values.pop("key_file", None)  # a key of the environment beats a key of the file
    for name, variable in _PATHS.items():
        if environ.get(variable):
            given = environ[variable]
            values[name] = state_at(given) if name == "state" else Path(given)
    for name, variable in _TEXTS.items():
        if environ.get(variable):
            values[name] = environ[variable]
    return Settings(
        **values,
        api_key=environ.get("COINBASE_API_KEY") or None,
        api_secret=environ.get("COINBASE_API_SECRET") or None,
    )


def load_trading_state_settings(environ: Mapping[str, str] = os.environ) -> TradingStateSettings:
    """Return the ``TRADING_STATE_*`` settings.

    Raises:
        ConfigError: one of them is not understood. The token is in no message.
    """
    values: dict[str, Any] = {}
    for setting in fields(TradingStateSettings):
        variable = f"TRADING_STATE_{setting.name.upper()}"
        text = environ.get(variable)
        if not text:
            continue
        if isinstance(setting.default, bool):
            if text.lower() not in _BOOLEANS:
                raise ConfigError(f"{variable} is {text!r:.40}; true or false is expected")
            values[setting.name] = _BOOLEANS[text.lower()]
        else:
            values[setting.name] = Path(text) if setting.name == "fallback_dir" else text
    if values.get("db_type", "file") not in _DB_TYPES:
        raise ConfigError(
            f"TRADING_STATE_DB_TYPE is {values['db_type']!r:.40}; "
            f"one of {', '.join(_DB_TYPES)} is expected"
        )
    return TradingStateSettings(**values)


def settings_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the configuration file that counts, None without one."""
    named = environ.get("STATESTORE_CONFIG")
    if named:
        return Path(named)
    path = Path("statestore.toml")
    if not path.is_file():
        from platformdirs import user_config_path  # 20 ms that only a missing local file costs

        path = user_config_path("statestore") / "statestore.toml"
    return path if path.is_file() else None


def origins(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return where each setting comes from: a variable, the configuration file, or ``default``.

    Raises:
        ConfigError: as in `load_settings`.
    """
    in_file = _from_file(environ)
    file = str(settings_file(environ))
    found = {}
    for name, variable in {**_PATHS, **_TEXTS}.items():
        found[name] = file if name in in_file else "default"
        if environ.get(variable):
            found[name] = f"${variable}"
    return found


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    path = Path(environ.get("STATESTORE_CONFIG") or "statestore.toml")
    try:
        found = settings_file(environ)
        if found is None:
            return {}
        path = found
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise ConfigError(f"{path} is longer than {_LONGEST_FILE} bytes, which no settings are")
        table = tomllib.loads(data.decode())
    except OSError as error:
        # Not "no settings": what is in there may be a reserve.
        raise ConfigError(
            f"cannot read {error.filename or path}: {error.strerror or error}; make it readable, "
            "or name another file in STATESTORE_CONFIG"
        ) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of 5000 digits
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return {name: _value(path, name, value) for name, value in table.items()}


def _value(path: Path, name: str, value: object) -> Any:
    if name == "reserve" and isinstance(value, dict):
        return {asset.upper(): _reserved(path, asset, units) for asset, units in value.items()}
    if name == "backups" and isinstance(value, dict):
        return {setting: _retained(path, setting, number) for setting, number in value.items()}
    if name == "state" and isinstance(value, str) and "://" in value:
        if StateUrl(value).has_password:
            raise ConfigError(
                f"{path}: state has a password in it, and credentials have no place here; put it "
                "into ~/.pgpass, or the whole URL into STATE_FILE"
            )
        return StateUrl(value)
    if name in _PATHS and isinstance(value, str):
        return _named(path, name, value)
    if name in _TEXTS and isinstance(value, str):
        return value
    known = ", ".join([*_PATHS, *_TEXTS, "reserve", "backups"])
    raise ConfigError(f"{path}: {name} = {value!r:.40} is not understood; settings are {known}")


def _named(path: Path, name: str, value: str) -> Path:
    """Relative to the file that says so, not to wherever the command was started."""
    if not value or "\0" in value:
        raise ConfigError(f"{path}: {name} = {value!r:.80} is no path")
    try:
        found = Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {name} = {value!r:.80}: nobody's home: {error}") from error
    return path.parent / found


def _reserved(path: Path, asset: str, units: object) -> Decimal:
    try:
        amount = parse_amount(units)  # a TOML float is refused: it is no exact number
    except ValueError as error:
        raise ConfigError(f'{path}: reserve.{asset}: {error}; write it as a text, "0.5"') from error
    if amount < 0:
        raise ConfigError(f"{path}: reserve.{asset} is {amount}; units held back are not negative")
    return amount


def _retained(path: Path, name: str, number: object) -> int:
    if name not in _RETENTION:
        known = ", ".join(_RETENTION)
        raise ConfigError(f"{path}: backups.{name} is not understood; settings are {known}")
    if type(number) is not int or not 0 <= number <= 1_000_000:
        raise ConfigError(f"{path}: backups.{name} = {number!r:.40} is not a whole number from 0")
    return number
