"""Servers and databases for the tests that need real ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers import PostgresServer, postgres_binaries, running_postgres

if TYPE_CHECKING:
    from statestore.backends.database import Database

_schemas = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL that all tests of this process share: do not kill this one."""
    pytest.importorskip("psycopg", reason="needs: pip install 'statestore[postgres]'")
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with running_postgres() as server:
        yield server


@pytest.fixture
def schema_name() -> str:
    """A name no other test uses."""
    return f"t{os.getpid()}_{next(_schemas)}"


@pytest.fixture
def database(postgres: PostgresServer, schema_name: str) -> Iterator[Database]:
    """A database with our tables, empty, in a schema of its own."""
    from statestore.backends.database import Database

    database = Database(postgres.url, schema=schema_name)
    database.upgrade()
    yield database
    database.close()
