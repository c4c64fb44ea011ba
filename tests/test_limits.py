"""Input that is too large, too deep or too long is refused by name, before it costs anything."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from statestore import config
from statestore.disk import audit, codec, killswitch, strict
from statestore.disk.audit import AuditLog
from statestore.disk.history import read_document
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.errors import (
    AuditBroken,
    ConfigError,
    RecordedFileError,
    StateCorrupt,
    StateStoreError,
    UsageError,
)
from statestore.fills import archive
from statestore.fills.archive import replay_archive
from statestore.fills.folding import Rules
from statestore.fills.ledger import LedgerSource
from statestore.fills.normalise import normalise
from statestore.fills.sources import recorded
from statestore.fills.sources.recorded import CSV_COLUMNS, read_balances, read_fills
from statestore.repair import planfile
from statestore.runtime import legacy
from statestore.runtime.legacy import read_legacy
from statestore.simulated import fill, fills
from statestore.times import format_instant, parse_instant
from tests.fuzz.targets import AT, _Remembered, sealed

DEEP = "[" * 100_000
FORGED = '{"_meta": {"format": 1, "revision": 1, "sha256": "%s"}, "a": %s}'


def read_settings(path: Path) -> object:
    return config.load_settings({"STATESTORE_CONFIG": str(path)})


def read_audit(path: Path) -> object:
    return AuditLog(path).verify()


READERS: dict[str, tuple[Callable[[Path], object], object, str]] = {
    "state": (read_document, codec, "MAX_BYTES"),
    "settings": (read_settings, config, "_LONGEST_FILE"),
    "fills": (read_fills, recorded, "MAX_BYTES"),
    "balances": (read_balances, recorded, "MAX_BYTES"),
    "plan": (planfile.load_plan, planfile, "MAX_BYTES"),
    "legacy": (read_legacy, legacy, "_MAX_BYTES"),
    "audit": (read_audit, audit, "_LONGEST_LINE"),
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_larger_than_the_limit_is_refused_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, module, limit = READERS[name]
    monkeypatch.setattr(module, limit, 10)
    path = tmp_path / name
    path.write_text('{"a": "longer than that"}\n')

    with pytest.raises(StateStoreError, match=r"10 (bytes|are not)|(than|of) 10"):
        read(path)


@pytest.mark.parametrize("name", [name for name in READERS if name != "settings"])
@pytest.mark.parametrize("text", [DEEP, f'{{"a": {DEEP}'], ids=["list", "object"])
def test_what_is_nested_without_end_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"{text}\n{{}}\n")

    with pytest.raises(StateStoreError):
        READERS[name][0](path)


@pytest.mark.parametrize("name", ["fills", "balances", "legacy", "audit", "state", "plan"])
@pytest.mark.parametrize("number", ["1e99999999999999999999", "9" * 10_000], ids=["e", "digits"])
def test_a_number_that_cannot_be_computed_with_is_refused(
    name: str, number: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(f'{{"schema": "statestore.plan/1", "a": {number}}}\n{{}}\n')

    with pytest.raises(StateStoreError):
        READERS[name][0](path)


@pytest.mark.parametrize(
    "text",
    [
        "state = " + "[" * 5_000,
        "[backups]\nkeep_last = " + "9" * 5_000,
        'state = "~nobody-of-that-name/state.json"',
        'state = "a\\u0000b"',
        'kill_switch = ""',
        '[reserve]\nBTC = "1e999999999"',
    ],
    ids=["deep", "digits", "home", "nul", "nowhere", "exponent"],
)
def test_settings_that_mean_nothing_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "statestore.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"statestore\.toml"):
        read_settings(path)


@pytest.mark.parametrize("value", ["1e999", "1e99999999999999999999", '"\udcff"', "9" * 5_000])
def test_a_right_sum_is_no_pass_for_what_we_would_never_write(value: str, tmp_path: Path) -> None:
    """Anybody can compute the sum: it finds damage, and proves nothing."""
    path = tmp_path / "state.json"
    path.write_bytes(sealed((FORGED % ("0" * 64, value)).encode(errors="surrogateescape")))
    store = StateStore(path)

    assert codec.parse(path.read_bytes()).trust is codec.Trust.SEALED
    with pytest.raises(StateCorrupt, match="not written by statestore"):
        read_document(path)
    with pytest.raises(StateCorrupt, match="not written by statestore"):
        store.load()
    assert store.revision is None, "what did not load is not what this store saw"
    assert not store.check().ok


def test_an_audit_line_of_another_world_is_neither_read_nor_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(audit, "_BLOCK", 64)
    path = tmp_path / "audit.jsonl"
    path.write_text("x" * 5000)

    with pytest.raises(AuditBroken, match="longer than 1000 bytes"):
        AuditLog(path).append({"action": "seal"})
    assert path.read_text() == "x" * 5000


def test_the_last_line_of_an_audit_file_is_found_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_BLOCK", 64)
    log = AuditLog(tmp_path / "audit.jsonl")
    for length in (1, 63, 64, 65, 1000, 10_000):
        log.append({"action": "x" * length})

    assert log.verify() == 6


def test_a_kill_switch_is_engaged_whatever_is_in_it(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "KILL_SWITCH")
    switch.path.write_bytes(b"\0" * (killswitch._MAX_BYTES + 1))

    assert switch.engaged()
    assert switch.details() == {}


@pytest.mark.parametrize("name", ["BTC\x1b[2J-USD", "BTC\x7f-USD", "BTC\u202e-USD", "BTC-U\nSD"])
def test_a_product_whose_name_cannot_be_seen_is_none(name: str, tmp_path: Path) -> None:
    """Whole or a line at a time: it would become a key of the state."""
    path = tmp_path / "fills.jsonl"
    rows = [fill("BUY 1 BTC-USD @ 100", product_id=name, entry_id=str(n)) for n in range(2)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))

    assert [one.reason[-18:] for one in normalise([read_fills(path)]).rejected] == [
        " is not BASE-QUOTE"
    ] * 2
    assert replay_archive(path, Rules()).assets == {}


def test_one_line_of_a_gigabyte_is_no_file_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read whole, within the limit for that, and not block by block for hours."""
    monkeypatch.setattr(archive, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(archive, "_BLOCK", 64)
    path = tmp_path / "fills.json"
    path.write_text(json.dumps(fills(*["BUY 1 BTC-USD @ 100"] * 5)))

    assert replay_archive(path, Rules()).assets["BTC"].position.units == 5
    with path.open("rb") as file, pytest.raises(archive.NotLines):
        archive._next_line(file, 10)


def test_a_field_of_a_statement_that_is_a_book_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "statement.csv"
    path.write_text(",".join(CSV_COLUMNS) + "\n" + "x" * 200_000)

    with pytest.raises(RecordedFileError, match="field larger than field limit"):
        read_fills(path)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_of_no_market_is_refused_and_the_others_come_back(time: str) -> None:
    with pytest.raises(ValueError, match="1000 to 8999"):
        parse_instant(time)
    for known in ("1000-01-01T00:00:00Z", "8999-12-31T23:59:59.999999999Z"):
        assert format_instant(parse_instant(known)) == known


def test_a_long_text_that_is_no_time_is_not_repeated_in_full() -> None:
    with pytest.raises(ValueError) as caught:
        parse_instant("x" * 10_000)

    assert len(str(caught.value)) < 200


def test_an_oversell_that_says_nothing_of_the_unit_of_its_size_is_replayed(tmp_path: Path) -> None:
    """Found by fuzzing: a row without size_in_quote that sells more than was bought."""
    rows = [
        fill(text) | {"entry_id": str(number), "size_in_quote": None}
        for number, text in enumerate(("BUY 1 BTC-USD @ 100", "SELL 2 BTC-USD @ 100"))
    ]
    path = tmp_path / "fills.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    streamed = replay_archive(path, Rules()).assets["BTC"].position
    assert streamed.uncovered == 1
    assert normalise([read_fills(path)]).fills[1].units == 2


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"exported_at": 1, "tokens": [{"b": 1, "b": 2}]}']
)
def test_a_legacy_file_with_one_key_twice_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)

    with pytest.raises(StateCorrupt, match="stands twice"):
        read_legacy(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("window", "hours"), "1e30"),
        (("options", "max_hours"), "-1"),
        (("options", "reserve", "BTC"), "NaN"),
        (("state", "path"), "state.json"),
        (("state", "path"), "/a\0b"),
        (("state", "revision"), "1"),
        (("inputs", "balances"), []),
        (("changes",), [{}]),
        (("products",), {"BTC-USD": {"price": 1}}),
    ],
)
def test_a_plan_that_was_made_up_is_refused_whatever_its_sum(
    tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    from tests.fuzz.targets import _good_plan

    plan = json.loads(_good_plan(tmp_path))
    holder = plan
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = value
    body = {name: value for name, value in plan.items() if name not in ("schema", "sha256")}
    plan["sha256"] = planfile._sum(body)

    with pytest.raises(UsageError, match="is no whole plan"):
        planfile.read_plan(tmp_path / "plan.json", codec.to_json(plan))


@pytest.mark.parametrize("read", [codec.parse, strict.parse], ids=["state", "export"])
def test_a_key_that_comes_again_after_many_others_is_found_in_one_pass(
    read: Callable[[bytes], object],
) -> None:
    """Counting each of them among all the others took hours for a file of 64 MB."""
    keys = ", ".join(f'"{number}": 1' for number in range(100_000))

    with pytest.raises((codec.Damaged, strict.NotStrict), match="twice"):
        read(f'{{{keys}, "99999": 2}}'.encode())


def test_a_ledger_with_the_tables_of_somebody_else_is_set_aside_and_never_run(
    tmp_path: Path,
) -> None:
    """A view would be computed as we read, for as long as its author likes."""
    path = tmp_path / "fills.sqlite3"
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA application_id = 1718185068")
        made.execute("PRAGMA user_version = 1")
        made.execute(
            "CREATE VIEW origins AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
            " SELECT x AS id, 'exchange.test' AS source, 'p' AS portfolio, 0 AS whole_since FROM n"
        )
        made.commit()
    warned: list[str] = []
    source = LedgerSource(_Remembered(), path, "p", clock=lambda: AT, warn=warned.append)

    assert len(source.fills(AT - 86_400 * 10**9, AT).rows) == 1
    assert "its tables are not those of a ledger" in warned[0]
    assert len(list(tmp_path.glob("fills.sqlite3.corrupt-*"))) == 1


@pytest.mark.parametrize("text", ['{"id": "a\\ud800"}', '["\\udc00"]', '{"\\uD83D": 1}'])
def test_a_lone_surrogate_is_refused_where_it_is_read(text: str) -> None:
    """It cannot be written again, so whoever moved a signal with it would be stopped half way."""
    with pytest.raises(strict.NotStrict, match="lone surrogate"):
        strict.parse(text)


def test_two_halves_are_a_character() -> None:
    assert strict.parse(r'["\ud83d\ude00"]') == ["\N{GRINNING FACE}"]
