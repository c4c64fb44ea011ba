"""What goes to a real InfluxDB 1.x and comes back, and what a failure is."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore import StateStore
from statestore.backends import points
from statestore.backends.influx import Influx
from statestore.backends.mirror import Mirror
from statestore.backends.mirrored import Change, Revision, Series
from statestore.backends.points import lines, tag, untag
from statestore.errors import BackendError, BackendUnavailable, ConfigError, ContentRefused
from tests.servers import InfluxServer, free_port, running_influx

INSTANT = 1763440183786756000
BTC = Series("position", "BTC-USD")


def revision(number: int = 42, document: bytes = b"{}", *changes: Change, **more: Any) -> Revision:
    told = {"name": "bot", "sha256": "5e1c", "instant": INSTANT + number} | more
    return Revision(revision=number, document=document, changes=changes, **told)


def sealed(path: Path, state: dict[str, Any]) -> Revision:
    """Return what a mirror would write of a state that was saved."""
    store = StateStore(path)
    store.load()
    meta = store.save(state)
    return revision(meta.revision, path.read_bytes(), sha256=meta.sha256, name=str(path))


@pytest.fixture
def database(influx: InfluxServer) -> Influx:
    return Influx(influx.url, bucket=influx.database)


# Line protocol


def test_a_position_is_one_exact_line() -> None:
    series = Series("position", "ETH-USD", "coinbase")
    change = Change(series, "5e1c", '{"quantity":0.00088729,"note":"a \\"b\\""}')

    line = next(lines(revision(42, b"{}", change))).decode()

    assert line == (
        "positions,state=bot,symbol=ETH-USD,venue=coinbase deleted=false,"
        'id="5e1c",payload="{\\"quantity\\":0.00088729,\\"note\\":\\"a \\\\\\"b\\\\\\"\\"}",'
        "seq=42i 1763440183786756042"
    )


def test_a_pair_a_tombstone_and_a_document_are_lines_too() -> None:
    pair = Change(Series("pair", "A=B, C"), "A=B, C", '{"z":1}')
    gone = Change(BTC, "BTC-USD", "null", deleted=True)

    told = [line.decode() for line in lines(revision(1, b'{"a": 1}\n', pair, gone, instant=7))]

    assert told == [
        'pair_states,pair=A\\=B\\,\\ C,state=bot deleted=false,id="A=B, C",'
        'payload="{\\"z\\":1}",seq=1i 7',
        'positions,state=bot,symbol=BTC-USD deleted=true,id="BTC-USD",payload="null",seq=1i 7',
        'trading_states,part=0,state=bot deleted=false,id="5e1c",parts=1i,'
        'payload="{\\"a\\": 1}\n",seq=1i 7',
    ]


@given(st.text())
def test_a_tag_comes_back_and_cannot_end_a_line(text: str) -> None:
    written = tag(text)

    assert untag(written) == text
    assert written
    assert not set(written) & set("\n\r\t\\\0")


def test_two_keys_never_become_one() -> None:
    keys = ["", "%", "%25", "%0A", "\n", "\\n", "a\\", "a", "a%"]

    assert len({tag(key) for key in keys}) == len(keys)


def test_a_long_document_is_cut_between_characters_and_its_first_piece_comes_last() -> None:
    document = ('{"a": "' + "é" * 100_000 + '"}').encode()
    told = list(lines(revision(1, document)))

    assert [line.decode().split(",")[1] for line in told] == [
        "part=3",
        "part=2",
        "part=1",
        "part=0",
    ]
    assert all(len(line) < 65_535 for line in told)
    assert b"".join(part.encode() for part in points._parts(document)) == document


# A real server


KEYS = [
    "BTC-USD",
    "",
    " ",
    "a b",
    "a,b=c",
    "é",
    'quo"te',
    "new\nline",
    "back\\",
    "%41",
    "${x}",
    "'",
]


def test_every_key_and_payload_comes_back_as_it_went(
    database: Influx, influx: InfluxServer
) -> None:
    nasty = json.dumps({"k": 'a"b\\ \n\t, = é \u2028', "q": 1}, ensure_ascii=False)
    changes = [Change(Series("position", key, "x y"), "\\", nasty) for key in KEYS]
    changes += [Change(Series("pair", key), '"', nasty) for key in KEYS]
    database.write(revision(1, b"{}", *changes, name="nasty, name"))

    assert database.series("nasty, name") == dict.fromkeys([c.series for c in changes], False)
    rows = influx.query("SELECT * FROM positions WHERE state = 'nasty, name'")
    assert {row["payload"] for row in rows} == {nasty}
    assert {row["id"] for row in rows} == {"\\"}
    assert {row["seq"] for row in rows} == {1}


@pytest.mark.parametrize("size", [10, 59_999, 60_001, 200_000, 18_000_000])
def test_a_document_of_any_size_comes_back_byte_for_byte(
    database: Influx, state_file: Path, size: int
) -> None:
    wanted = sealed(state_file, {"positions": {}, "note": "é" * (size // 2), "n": Decimal("1.10")})
    database.write(wanted)

    held = database.newest(wanted.name)

    assert held is not None
    assert held.document() == state_file.read_bytes()
    assert (held.revision, held.sha256, held.instant) == (1, wanted.sha256, wanted.instant)


def test_the_highest_revision_counts_not_the_last_in_time_nor_the_last_written(
    database: Influx, state_file: Path
) -> None:
    first = sealed(state_file, {"n": 1})
    second = sealed(state_file, {"n": 2})
    early = revision(2, second.document, sha256=second.sha256, name=first.name, instant=5)
    database.write(early)
    database.write(first)

    held = database.newest(first.name)

    assert held is not None
    assert held.document() == second.document


def test_what_was_written_long_ago_is_found(database: Influx, state_file: Path) -> None:
    years = 20 * 365 * 86_400 * 10**9
    old = sealed(state_file, {"positions": {"BTC-USD": {"quantity": 1}}})
    database.write(
        revision(
            1,
            old.document,
            Change(BTC, "x", '{"quantity":1}'),
            sha256=old.sha256,
            name=old.name,
            instant=INSTANT - years,
        )
    )

    held = database.newest(old.name)
    assert held is not None
    assert held.document() == old.document
    assert database.series(old.name) == {BTC: False}


def test_a_state_that_is_not_there_is_none_and_others_are_named(database: Influx) -> None:
    database.write(revision(1, name="some/bot.json"))

    assert database.newest("other") is None
    assert database.series("other") == {}
    assert "some/bot.json" in database.names()


def test_a_missing_piece_is_named(database: Influx, influx: InfluxServer, state_file: Path) -> None:
    wanted = sealed(state_file, {"note": "x" * 200_000})
    database.write(wanted)
    influx.query(f"DROP SERIES FROM trading_states WHERE part = '2' AND state = '{wanted.name}'")

    held = database.newest(wanted.name)

    assert held is not None
    with pytest.raises(BackendError, match=r"revision 1 of .* of 4 parts there is no 2"):
        held.document()


def test_a_piece_of_another_state_of_the_same_revision_does_not_stand_in(
    database: Influx, influx: InfluxServer, state_file: Path, tmp_path: Path
) -> None:
    first = sealed(state_file, {"note": "x" * 100_000})
    other = sealed(tmp_path / "other.json", {"note": "y" * 100_000})
    later = revision(1, other.document, sha256=other.sha256, name=first.name, instant=INSTANT + 9)
    database.write(first)
    database.write(later)
    lost = f"part = '1' AND state = '{first.name}' AND time = {later.instant}"
    influx.query(f"DELETE FROM trading_states WHERE {lost}")

    held = database.newest(first.name)

    assert held is not None
    with pytest.raises(BackendError, match=r"of 2 parts there is no 1"):
        held.document()


@pytest.mark.parametrize("change", [("1.10", "1.11"), ('"_meta"', '"_mata"'), ("{", "")])
def test_a_document_that_is_not_what_was_saved_is_refused(
    database: Influx, state_file: Path, change: tuple[str, str]
) -> None:
    wanted = sealed(state_file, {"n": Decimal("1.10")})
    damaged = wanted.document.decode().replace(*change, 1).encode()
    database.write(revision(1, damaged, sha256=wanted.sha256, name=wanted.name))

    held = database.newest(wanted.name)

    assert held is not None
    with pytest.raises(BackendError, match="revision 1 of"):
        held.document()


def test_a_good_document_under_another_revision_is_refused(
    database: Influx, state_file: Path
) -> None:
    one, two = sealed(state_file, {"n": 1}), sealed(state_file, {"n": 2})
    database.write(revision(2, one.document, sha256=two.sha256, name=one.name))

    held = database.newest(one.name)

    assert held is not None
    with pytest.raises(BackendError, match="holds a document of revision 1"):
        held.document()


def test_a_position_that_is_too_long_for_a_field_is_null_in_its_series(
    database: Influx, influx: InfluxServer
) -> None:
    database.write(revision(1, b"{}", Change(BTC, "x", f'"{"x" * 70_000}"'), name="long"))

    (row,) = influx.query("SELECT payload FROM positions WHERE state = 'long'")
    assert row["payload"] == "null"


def test_writing_the_same_again_changes_nothing(database: Influx, influx: InfluxServer) -> None:
    one = revision(1, b"{}", Change(BTC, "x", "{}"), name="again")
    database.write(one)
    database.write(one)

    assert len(influx.query("SELECT * FROM positions WHERE state = 'again'")) == 1


# Health, and what a failure is


def test_1_6_has_no_health_page_so_ping_is_asked(database: Influx) -> None:
    health = database.health()

    assert health.checked == "/ping"
    assert health.version.startswith("1.")


def test_a_server_that_is_down_is_an_error_for_every_question_and_never_an_answer() -> None:
    database = Influx(f"http://127.0.0.1:{free_port()}", token="s3cret", bucket="b")

    for ask in (
        database.health,
        database.names,
        lambda: database.newest("bot"),
        lambda: database.series("bot"),
        lambda: database.write(revision()),
    ):
        with pytest.raises(BackendUnavailable, match="cannot be reached: Connection refused"):
            ask()


def test_neither_a_proxy_nor_a_netrc_comes_between(
    database: Influx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    assert database.health().checked == "/ping"


def test_a_database_that_does_not_exist_is_said_and_not_empty(influx: InfluxServer) -> None:
    database = Influx(influx.url, bucket="nope")

    for ask in (database.health, lambda: database.newest("x"), lambda: database.write(revision())):
        with pytest.raises(BackendError, match=r"database not found.*make nope") as caught:
            ask()
        assert not isinstance(caught.value, BackendUnavailable)


def test_a_dashboard_with_the_same_names_and_other_types_is_said(influx: InfluxServer) -> None:
    influx.query('CREATE DATABASE "other"')
    database = Influx(influx.url, bucket="other")
    taken = f"trading_states seq=1.5 {INSTANT}".encode()
    database._send("POST", "/write", params={"db": "other"}, data=taken)

    with pytest.raises(ContentRefused, match="field type conflict"):
        database.write(revision())


def test_users_of_1_x_are_told_apart_by_what_they_may(own_users: InfluxServer) -> None:
    good = Influx(own_users.url, token="bot:pa:ss", bucket="quant-data")
    good.write(revision(1))
    held = good.newest("bot")
    assert held is not None
    assert held.revision == 1
    good.health()

    wrong = Influx(own_users.url, token="bot:wr0ng", bucket="quant-data")
    reader = Influx(own_users.url, token="reader:s3cret", bucket="quant-data")
    stranger = Influx(own_users.url, token="stranger:s3cret", bucket="quant-data")
    nobody = Influx(own_users.url, bucket="quant-data")
    for database, ask in (
        (wrong, wrong.health),
        (nobody, nobody.health),
        (wrong, lambda: wrong.newest("bot")),
    ):
        with pytest.raises(BackendError, match=r"401.*TRADING_STATE_INFLUXDB_TOKEN") as caught:
            ask()
        assert "wr0ng" not in f"{caught.value!r} {database!r} {database}"
    assert reader.newest("bot") is not None
    for database in (reader, stranger):
        with pytest.raises(BackendError, match=r"answered 40[13] to /write") as caught:
            database.write(revision(2))
        assert "s3cret" not in str(caught.value)
    with pytest.raises(BackendError, match="not authorized"):
        stranger.newest("bot")


@pytest.fixture
def own_users(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    request.getfixturevalue("influx")  # skips where there is none
    with running_influx(users=True) as server:
        server.query("CREATE USER admin WITH PASSWORD 'admin' WITH ALL PRIVILEGES")
        for text in (
            f'CREATE DATABASE "{server.database}"',
            "CREATE USER bot WITH PASSWORD 'pa:ss'",
            f'GRANT ALL ON "{server.database}" TO bot',
            "CREATE USER reader WITH PASSWORD 's3cret'",
            f'GRANT READ ON "{server.database}" TO reader',
            "CREATE USER stranger WITH PASSWORD 's3cret'",
        ):
            server.query(text, user="admin", password="admin")
        yield server


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8086",
        "ftp://host",
        "http://bot:s3cret@host:8086",
        "bot:s3cret@host",
        "http://h/?t=s3cret",
        "http://[s3cret",
        "http://h:s3cret",
        "http://h\ns3cret",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8086") as caught:
        Influx(url)

    assert "s3cret" not in str(caught.value)


# The page


PAGE = Path(__file__).resolve().parents[2] / "docs" / "influxdb.md"


def test_the_queries_of_the_page_answer_what_it_says(
    influx: InfluxServer, state_file: Path
) -> None:
    mirror = Mirror(Influx(influx.url, bucket=influx.database), "pairs-live")
    store = StateStore(state_file)
    held = {"BTC-USD": {"quantity": 1}, "ETH-USD": {"quantity": 2}}
    for positions in (held, {**held, "BTC-USD": {"quantity": 3}}, {"BTC-USD": {"quantity": 3}}):
        pairs = {"BTCUSD-ETHUSD": {"cooldown": len(positions)}}
        mirror.saved(store, store.save({"positions": positions, "pair_states": pairs}))
    mirror.flush()
    mirror.close()
    asked = re.findall(r"```sql\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    open_now, hourly, history, last, pair = (influx.query(query) for query in asked)

    assert [(row["symbol"], row["payload"]) for row in open_now] == [("BTC-USD", '{"quantity":3}')]
    assert sum(row["count"] for row in hourly) == 4
    assert [(row["seq"], row["payload"]) for row in history] == [
        (2, '{"quantity":3}'),
        (1, '{"quantity":1}'),
    ]
    assert [row["last"] for row in last] == [3]
    assert [row["last"] for row in pair] == ['{"cooldown":1}']
