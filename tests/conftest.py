"""Servers and databases for the tests that need real ones."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers import (
    InfluxServer,
    PostgresServer,
    influx_program,
    postgres_binaries,
    running_influx,
    running_postgres,
)

if TYPE_CHECKING:
    from statestore.backends.database import Database

_schemas = itertools.count(1)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command sets up the logging of its process; here the process goes on."""
    loggers = [logging.getLogger(name) for name in ("statestore", "statestore.disk", "stamina")]
    before = [(log, log.level, log.propagate, log.handlers[:]) for log in loggers]
    yield
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers


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


def _require_influx() -> None:
    pytest.importorskip("influxdb_client", reason="needs: pip install 'statestore[influx]'")
    if influx_program() is None:
        pytest.skip("InfluxDB is not installed (Debian: apt-get install influxdb)")


@pytest.fixture(scope="session")
def influx() -> Iterator[InfluxServer]:
    """A running InfluxDB 1.x that all tests of this process share: do not stop this one."""
    _require_influx()
    with running_influx() as server:
        yield server


@pytest.fixture
def own_influx() -> Iterator[InfluxServer]:
    """A running InfluxDB 1.x of one's own, to be killed and started again."""
    _require_influx()
    with running_influx() as server:
        yield server
