"""Exact numbers, exact instants, settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.amounts import exact, parse_amount, text
from statestore.backends.fallback import Fallback
from statestore.config import load_settings, places
from statestore.disk.store import StateStore
from statestore.errors import ConfigError
from statestore.times import format_instant, instant_of, parse_instant

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@exact
def quotient(a: int, b: int) -> Decimal:
    return Decimal(a) / Decimal(b)


@exact
def there_and_back(a: int, b: int) -> Decimal:
    return Decimal(a) / Decimal(b) * Decimal(b)


def test_a_quotient_that_does_not_end_is_written_with_28_digits() -> None:
    assert text(quotient(1, 3)) == "0.3333333333333333333333333333"
    assert text(quotient(2, 3)) == "0.6666666666666666666666666667"


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_value_that_ends_is_written_in_full(a: int, b: int) -> None:
    assert text(there_and_back(a, b)) == str(a)


def test_a_callers_context_changes_nothing() -> None:
    with localcontext(prec=3):
        assert text(quotient(1, 3)) == "0.3333333333333333333333333333"
        assert text(parse_amount("123456789.123456789")) == "123456789.123456789"


@pytest.mark.parametrize("value", ["62000", "6.2E+4", "6200000e-2"])
def test_plain_notation(value: str) -> None:
    assert text(parse_amount(value)) == "62000"


@pytest.mark.parametrize("value", ["", "NaN", "Infinity", " 1", "1_0", None, True, 1.5, [], "1e99"])
def test_what_is_no_amount(value: object) -> None:
    with pytest.raises(ValueError):
        parse_amount(value)


@pytest.mark.parametrize(
    "value",
    [
        "2025-11-18T04:29:43Z",
        "2025-11-18T04:29:43.786Z",
        "2025-11-18T04:29:43.786756Z",
        "2025-11-18T04:29:43.786756001Z",
    ],
)
def test_an_instant_comes_out_as_it_went_in(value: str) -> None:
    assert format_instant(parse_instant(value)) == value


@given(st.integers(0, 4_102_444_800_000_000).map(lambda n: EPOCH + timedelta(microseconds=n)))
def test_an_instant_of_a_datetime(moment: datetime) -> None:
    shifted = moment.astimezone(timezone(timedelta(hours=3)))

    assert parse_instant(format_instant(instant_of(moment))) == instant_of(shifted)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2025-11-18",
        "2025-11-18T04:29:43",
        "2025-13-18T04:29:43Z",
        "2025-11-18T04:29:43.1234567890Z",
    ],
)
def test_what_is_no_instant(value: str) -> None:
    with pytest.raises(ValueError):
        parse_instant(value)


def test_a_naive_datetime_is_refused() -> None:
    naive = datetime(2025, 11, 18, tzinfo=UTC).replace(tzinfo=None)

    with pytest.raises(ValueError, match="time zone"):
        instant_of(naive)


class TestSettings:
    def test_the_environment_beats_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "statestore.toml"
        path.write_text('state = "a.json"\nkey_file = "k.json"\n[reserve]\nBTC = "0.5"\n')
        found = load_settings({"STATESTORE_CONFIG": str(path), "STATE_FILE": "b.json"})

        assert found.state == Path("b.json")
        assert found.key_file == tmp_path / "k.json"
        assert found.reserve == {"BTC": Decimal("0.5")}

    @pytest.mark.parametrize(
        "content",
        [
            "reserv = 1",
            "[reserve]\nBTC = 0.5",
            '[reserve]\nBTC = "-1"',
            'api_secret = "x"',
            "=",
            "state = 1",
        ],
    )
    def test_a_setting_that_is_not_understood_is_an_error(
        self, tmp_path: Path, content: str
    ) -> None:
        path = tmp_path / "statestore.toml"
        path.write_text(content)

        with pytest.raises(ConfigError, match=r"statestore\.toml"):
            load_settings({"STATESTORE_CONFIG": str(path)})

    @pytest.mark.parametrize(
        ("environment", "key_file"),
        [
            ({}, "from-file.json"),
            ({"COINBASE_API_KEY": "k"}, None),
            ({"COINBASE_API_KEY": "k", "COINBASE_KEY_FILE": "env.json"}, "env.json"),
        ],
    )
    def test_a_key_of_the_environment_beats_a_key_file_of_the_settings(
        self, tmp_path: Path, environment: dict[str, str], key_file: str | None
    ) -> None:
        path = tmp_path / "statestore.toml"
        path.write_text('key_file = "from-file.json"\n')
        found = load_settings({"STATESTORE_CONFIG": str(path)} | environment).key_file

        assert (None if found is None else found.name) == key_file

    def test_secrets_are_in_no_repr(self) -> None:
        found = load_settings({"COINBASE_API_KEY": "KEY", "COINBASE_API_SECRET": "SECRET"})

        assert found.api_secret == "SECRET"
        assert "SECRET" not in repr(found)

    def test_everything_lies_beside_the_state_unless_told_otherwise(self) -> None:
        found = places(load_settings({"STATE_FILE": "/srv/bot/s.json"}), backup_dir=Path("/b"))

        assert found.kill_switch == Path("/srv/bot/KILL_SWITCH")
        assert found.backup_dir == Path("/b")
        assert found.audit_file == Path("/srv/bot/state_audit.jsonl")

    def test_no_output_may_replace_a_name_that_the_store_of_a_linked_state_uses(
        self, tmp_path: Path
    ) -> None:
        file, link = tmp_path / "disk" / "s.json", tmp_path / "s.json"
        link.symlink_to(file)
        store = StateStore(link)

        files = places(load_settings({"STATE_FILE": str(link)})).files
        used = {store.path, store.backup_path, store.lock_path, store.lease_path}
        assert used == {
            file,
            *(file.with_name(f"s.json.{end}") for end in ("bak", "lock", "lease")),
        }
        assert used <= set(files)

    def test_no_output_may_replace_the_note_that_the_fallback_is_ahead(
        self, tmp_path: Path
    ) -> None:
        url = f"postgresql://bot@host/db?file_fallback={tmp_path}/f.json"
        fallback = Fallback(tmp_path / "f.json", "there", 1.0)

        files = places(load_settings({"STATE_FILE": url})).files
        assert {fallback.path, fallback.backup_path, fallback.pending_path} <= set(files)
