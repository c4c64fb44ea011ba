"""The URL of a state in a database: what libpq gets of it, and what anybody may see of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from statestore import StateStore
from statestore.backends.database import Database
from statestore.backends.postgres import PostgresStore
from statestore.config import database_url, load_settings
from statestore.errors import ConfigError
from statestore.runtime.bootstrap import BootstrapSystem
from statestore.urls import StateUrl
from tests.servers import PostgresServer


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bot:se@cret@host/db",
        "postgresql://bot:se/cret@host/db",
        "postgresql://bot:se#cret@host/db",
        "postgresql://bot:se?cret@host/db",
        "postgresql://bot:secret",
        "postgresql://bot:secret/db",
        "postgresql://bot@host/db?secret",
        "postgresql://[bot:secret@host/db",
    ],
)
def test_a_url_that_libpq_reads_otherwise_is_refused_before_it_is_shown(url: str) -> None:
    """A part of the password was taken for the host, and told as the address of the state."""
    for take in (StateUrl, StateStore, Database):
        with pytest.raises(ConfigError, match="%40") as refused:
            take(url)
        assert "cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://bot:a%40b%2Fc@h:5432/db", "postgresql://h:5432/db"),
        ("postgres://bot@[::1]:5432,h2:5433/db?target_session_attrs=read-write",
         "postgresql://[::1]:5432,h2:5433/db"),
        ("postgresql://bot:x@h/db?password=secret", "postgresql://h/db"),
        ("postgresql:///db?host=/tmp", "postgresql:///tmp/db"),
        ("postgresql://%2Ftmp/db", "postgresql://%2Ftmp/db"),
    ],
)  # fmt: skip
def test_what_libpq_understands_is_shown_without_user_and_password(url: str, address: str) -> None:
    assert str(StateUrl(url)) == f"{address}?schema=statestore&state=default"


@pytest.mark.parametrize(
    "theirs",
    [
        "postgresql://bot@h/db?options=-c%20statement_timeout%3D5s&application_name=a+b",
        "postgresql:///db?host=/tmp&password=%E4%FF",
        "postgresql://bot:a%40b@h1:1,h2:2/db",
    ],
)
def test_what_is_not_ours_goes_to_libpq_as_it_was_written(theirs: str) -> None:
    sign = "&" if "?" in theirs else "?"
    url = StateUrl(f"{theirs}{sign}state=one%20two&file_fallback=a+b.json")
    assert url.without_parameters == theirs
    assert url.parameters == {"state": "one two", "file_fallback": "a+b.json"}
    assert url.having(state="x&y").parameters["state"] == "x&y"
    assert url.having(state="x").without_parameters == theirs


def test_options_of_the_url_reach_the_server(database: Database, postgres: PostgresServer) -> None:
    url = f"{postgres.url}?options=-c%20work_mem%3D5MB&schema={database.schema}"
    opened = Database(url)
    with opened.transaction() as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)
    assert opened.schema == database.schema
    opened.close()


@pytest.mark.parametrize("secret", ["bot:hunter2@h/db", "bot@h/db?password=hunter2"])
def test_a_settings_file_holds_no_password_in_either_place(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "statestore.toml"
    file.write_text(f'state = "postgresql://{secret}"')
    with pytest.raises(ConfigError, match=r"~/\.pgpass") as refused:
        load_settings({"STATESTORE_CONFIG": str(file)})
    assert "hunter2" not in str(refused.value)


def test_orders_are_looked_for_where_the_state_is() -> None:
    url = "postgresql://bot@h/db?schema=mine"
    assert database_url(environ={"STATE_FILE": url}) == url
    assert database_url(environ={"STATE_FILE": url, "STATESTORE_DATABASE": "other"}) == "other"
    with pytest.raises(ConfigError, match="STATESTORE_DATABASE"):
        database_url(environ={"STATE_FILE": "state.json"})


def test_a_bootstrap_looks_as_the_user_of_the_url(
    postgres: PostgresServer, database: Database, tmp_path: Path
) -> None:
    """It opened the address that is shown, which names no user, and so was refused."""
    tenant = f"tenant_{database.schema}"
    with database.transaction() as connection:
        connection.execute(f"CREATE ROLE {tenant} LOGIN SUPERUSER".encode())
    url = f"{postgres.url.replace('bot@', f'{tenant}@')}?schema={database.schema}"
    store = PostgresStore(url, backup_dir=tmp_path)
    store.save({"positions": {}})
    report = BootstrapSystem(store).bootstrap_all()
    assert [(step.name, step.status) for step in report.steps if step.status == "failed"] == []
    store.close()
