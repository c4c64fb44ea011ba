"""The wire format of 2.x, driven by the real influxdb-client against a server that records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from statestore import StateStore
from statestore.backends.influx import Influx
from statestore.backends.mirror import Mirror
from statestore.backends.mirrored import Revision, Series
from statestore.errors import BackendError, BackendUnavailable
from tests.backends.influx_v2 import TOKEN, Recorder, recording_influx

pytest.importorskip("influxdb_client", reason="needs: pip install 'statestore[influx]'")

NAME = 'a bot, "${x}"'


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recording_influx() as recorder:
        yield recorder


@pytest.fixture
def mirror(server: Recorder) -> Iterator[Mirror]:
    database = Influx(server.url, token=TOKEN, org="quant-system", bucket='quant"data')
    mirror = Mirror(database, NAME)
    yield mirror
    mirror.close()


def save(store: StateStore, mirror: Mirror, **sections: object) -> None:
    mirror.saved(store, store.save(sections))
    mirror.flush()


def test_a_save_is_exact_lines_and_the_one_it_is_found_by_comes_alone(
    server: Recorder, mirror: Mirror, state_store: StateStore
) -> None:
    save(state_store, mirror, positions={"ETH-USD": {"venue": "coinbase", "q": Decimal("1.10")}})

    asked = server.asked("/api/v2/write")
    for one in asked:
        assert one.method == "POST"
        assert one.query == {"org": "quant-system", "bucket": 'quant"data', "precision": "ns"}
        assert one.headers["Authorization"] == f"Token {TOKEN}"
    at = server.points[0]["at"]
    document = state_store.path.read_text().replace("\\", "\\\\").replace('"', '\\"')
    sha = state_store.load().meta.sha256
    assert [one.body.decode() for one in asked] == [
        'positions,state=a\\ bot\\,\\ "${x}",symbol=ETH-USD,venue=coinbase deleted=false,'
        f'id="ETH-USD",payload="{{\\"venue\\":\\"coinbase\\",\\"q\\":1.10}}",seq=1i {at}',
        'trading_states,part=0,state=a\\ bot\\,\\ "${x}" deleted=false,'
        f'id="{sha}",parts=1i,payload="{document}",seq=1i {at}',
    ]


def test_no_request_is_empty_and_none_larger_than_a_proxy_takes(
    server: Recorder, mirror: Mirror, state_store: StateStore
) -> None:
    save(state_store, mirror, n=1)
    assert len(server.asked("/api/v2/write")) == 1
    save(state_store, mirror, note='"' * 2_000_000)

    sizes = [len(asked.body) for asked in server.asked("/api/v2/write")]
    assert min(sizes) > 0
    assert max(sizes) <= 1 << 20  # what nginx lets through unless told otherwise
    held = mirror.newest()
    assert held is not None
    assert held.document() == state_store.path.read_bytes()


def test_queries_have_no_horizon_and_no_text_can_leave_its_quotes(
    server: Recorder, mirror: Mirror, state_store: StateStore
) -> None:
    save(state_store, mirror, positions={})
    mirror.newest()

    queries = [asked.flux for asked in server.asked("/api/v2/query")]
    assert queries
    for flux in queries:
        assert 'from(bucket: "quant\\"data")' in flux
        assert 'r.state == "a bot, \\"\\${x}\\""' in flux
        assert "range(start: 0, stop: 2262-01-01" in flux or "range(start: time(v: " in flux
    mirror.database.names()
    assert "start: 0)" in server.asked("/api/v2/query")[-1].flux
    assert {asked.query["org"] for asked in server.asked("/api/v2/query")} == {"quant-system"}


def test_what_was_saved_comes_back_byte_for_byte_and_tombstones_are_known(
    server: Recorder, mirror: Mirror, state_store: StateStore, tmp_path: Path
) -> None:
    nasty = 'a"b\\ \n, =\t é \u2028' * 10_000
    save(state_store, mirror, positions={"BTC-USD": {"q": 1}, "a,b c\n": {"q": 2}}, note=nasty)
    save(state_store, mirror, positions={"a,b c\n": {"q": Decimal("0.10")}}, note=nasty)

    held = mirror.newest()
    assert held is not None
    assert len(held.parts) > 1
    assert held.document() == state_store.path.read_bytes()
    assert mirror.database.series(NAME) == {
        Series("position", "BTC-USD"): True,
        Series("position", "a,b c\n"): False,
    }
    assert mirror.database.names() == [NAME]
    other = StateStore(tmp_path / "other.json")
    mirror.take_over(other, wait=0)
    assert other.load(numbers="decimal")["positions"]["a,b c\n"]["q"] == Decimal("0.10")


def test_an_empty_bucket_holds_nothing(mirror: Mirror) -> None:
    assert mirror.newest() is None
    assert mirror.database.names() == []


def test_health_is_asked_of_the_health_page(server: Recorder, mirror: Mirror) -> None:
    health = mirror.database.health()
    assert (health.checked, health.version) == ("/health", "2.7.6")

    server.health = 503
    with pytest.raises(BackendUnavailable, match="503 to /health: still starting"):
        mirror.database.health()


@pytest.mark.parametrize("path", ["write", "query"])
@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, BackendError, "TRADING_STATE_INFLUXDB_TOKEN"),
        (403, BackendError, "no permission for quant"),
        (404, BackendError, "make quant"),
        (503, BackendUnavailable, "not up"),
        (429, BackendUnavailable, "too much to do"),
    ],
)
def test_a_refusal_is_named_and_the_token_is_not(
    server: Recorder,
    mirror: Mirror,
    state_store: StateStore,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
    kind: type[BackendError],
    said: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    if path == "write":
        mirror.newest()
    server.status = status
    with pytest.raises(BackendError, match=said) as caught:
        if path == "write":
            state_store.save({"positions": {}})
            data = state_store.path.read_bytes()
            mirror.database.write(Revision(NAME, 1, "", 1, data, ()))
        else:
            mirror.database.health()

    assert type(caught.value) is kind
    assert f"answered {status} to /api/v2/{path}" in str(caught.value)
    mirror.saved(state_store, state_store.save({"n": 1}))
    with pytest.raises(BackendUnavailable):
        mirror.flush()
    told = f"{caught.value!r} {mirror.status()} {mirror.database!r} {caplog.text}"
    assert TOKEN not in told
    assert all(TOKEN not in str(vars(record)) for record in caplog.records)


def test_a_wrong_token_is_named(server: Recorder) -> None:
    database = Influx(server.url, token="wr0ng-token", org="o", bucket="b")

    with pytest.raises(BackendError, match="401 to /api/v2/query: unauthorized access") as caught:
        database.health()
    assert "wr0ng-token" not in str(caught.value)


def test_a_flux_error_inside_an_answer_is_an_error(
    server: Recorder, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (
        "#datatype,string,string\r\n#group,true,true\r\n#default,,\r\n,error,reference\r\n"
        ",Failed to parse query,897\r\n\r\n"
    )
    monkeypatch.setattr(server, "answer", lambda _flux: table)

    with pytest.raises(BackendError, match="Failed to parse query"):
        mirror.newest()


def test_nothing_but_these_paths_is_asked(
    server: Recorder, mirror: Mirror, state_store: StateStore
) -> None:
    mirror.database.health()
    save(state_store, mirror, positions={"BTC-USD": {}})

    assert {asked.path for asked in server.requests} == {
        "/ping",
        "/health",
        "/api/v2/write",
        "/api/v2/query",
    }
