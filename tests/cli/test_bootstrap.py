"""``statestore bootstrap`` as it is typed, against a Binance and a Coinbase of one's own."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest

from statestore.disk.store import StateStore
from statestore.formats import schema
from statestore.runtime import envelope
from statestore.runtime.bar_store import BarStore
from statestore.runtime.candles.binance import BinanceCandles
from statestore.simulated import FORBIDDEN
from tests.runtime.klines import serving


@pytest.fixture
def klines(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    init = BinanceCandles.__init__

    def quick(self, **options):
        init(self, **options, rate=30, wait_initial=0.001, wait_max=0.001)

    monkeypatch.setattr(BinanceCandles, "__init__", quick)
    with serving() as server:
        yield server


@pytest.fixture
def bootstrap(statestore, state_file, klines):
    """Type the command for `state_file`, with the bars of `klines`."""
    return lambda *arguments: statestore(
        "bootstrap", "--state", state_file, "--bars-url", klines.base_url, *arguments
    )


def steps(ran):
    return {step["name"]: step for step in ran.json["steps"]}


def test_a_first_start_and_a_second_that_does_nothing(bootstrap, klines, state_file):
    first = bootstrap()
    sent, state = len(klines.requests), state_file.read_bytes()
    second = bootstrap()

    assert (first.code, first.json["status"]) == (0, "ok")
    assert steps(first)["drivers"]["counts"] == {"created": 24, "drivers": 24}
    assert steps(first)["bars"]["series"]["ALT"]["1d"]["enough"] is True
    assert (second.code, len(klines.requests), sent) == (0, 12, 12)
    assert state_file.read_bytes() == state
    assert "drivers    ok" in first.err
    assert first.err.endswith("Bootstrap: ok.\n")


def test_json_says_nothing_to_people(bootstrap):
    assert bootstrap("--json").err == ""


def test_a_source_that_is_down_stops_no_start_unless_strict(bootstrap, klines, state_file):
    klines.faults.extend([(503, b"", {})] * 100)

    lenient, strict = bootstrap(), bootstrap("--strict")

    assert (lenient.code, lenient.json["status"]) == (0, "partial")
    assert (strict.code, strict.json["status"]) == (5, "partial")
    assert "BTC 1m: insufficient, and could not be fetched" in lenient.err
    assert "Traceback" not in lenient.err
    assert len(StateStore(state_file).load()["regime_drivers"]) == 24


def test_what_is_merely_missing_is_exit_3_when_strict(bootstrap, klines):
    klines.newest = 1_700_000_000_000

    lenient, strict = bootstrap(), bootstrap("--strict")

    assert (lenient.code, strict.code, strict.json["status"]) == (0, 3, "partial")
    assert "there are no more to be had" in steps(strict)["bars"]["series"]["BTC"]["1m"]["why"]


def test_recorded_balances_that_are_not_there_are_unknown(bootstrap):
    ran = bootstrap("--strict", "--balances", "none.json")

    assert ran.code == 5
    assert "unknown: cannot read none.json" in steps(ran)["balances"]["detail"]


def test_force_fetches_everything_anew(bootstrap, klines):
    bootstrap()

    forced = bootstrap("--force")

    assert len(klines.requests) == 24
    assert steps(forced)["bars"]["series"]["BTC"]["1h"]["reason"] == "forced"


def test_a_state_that_does_not_read_is_exit_8_and_stays(bootstrap, state_file):
    state_file.write_text("[]")

    ran = bootstrap()

    assert (ran.code, ran.json["status"]) == (8, "failed")
    assert state_file.read_text() == "[]"


def test_a_running_bot_is_left_alone(bootstrap, state_file):
    with StateStore(state_file).lease():
        ran = bootstrap()
        strict = bootstrap("--strict")

    assert (ran.code, ran.json["status"]) == (0, "degraded")
    assert strict.code == 7
    assert "TradingSession(bootstrap=...)" in ran.err


def test_balances_come_from_the_exchange_where_there_is_a_key(bootstrap, exchange):
    step = steps(bootstrap())["balances"]

    assert step["status"] == "ok"
    assert step["balances"]["BTC"] == "0.018"


def test_a_key_that_may_not_read_leaves_balances_unknown(bootstrap, exchange):
    exchange.script("accounts", FORBIDDEN, forever=True)

    lenient, strict = bootstrap(), bootstrap("--strict")

    assert lenient.code == 0
    assert steps(lenient)["balances"]["balances"] is None
    assert "unknown: " in steps(lenient)["balances"]["detail"]
    assert strict.code == 4


def test_without_a_key_nobody_is_asked_for_balances(bootstrap):
    step = steps(bootstrap())["balances"]

    assert (step["status"], step["balances"]) == ("disabled", None)


def test_balances_are_compared_with_an_export(bootstrap, tmp_path):
    export, now_held = tmp_path / "export.json", tmp_path / "balances.json"
    noted = {"USD": Decimal("127.45"), "SOL": 3}
    envelope.write(export, envelope.Envelope(kind="positions", balances=noted))
    now_held.write_text('{"USD": "127.45", "SOL": "2.5"}')

    step = steps(bootstrap("--balances", now_held, "--compare", export))["balances"]

    assert step["status"] == "partial"
    assert step["differences"] == {"SOL": {"noted": "3", "found": "2.5"}}

    export.write_bytes(export.read_bytes().replace(b"127.45", b"127.46"))
    ran = bootstrap("--balances", now_held, "--compare", export)
    assert ran.code == 8
    assert f"{export} is not as it was exported" in ran.error


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_balances_are_noted_in_every_form_of_export(bootstrap, tmp_path, form):
    export, now_held = tmp_path / "export", tmp_path / "balances.json"
    envelope.write(export, envelope.Envelope(kind="positions", balances={"SOL": 3}), form)
    now_held.write_text('{"SOL": "2.5"}')

    step = steps(bootstrap("--balances", now_held, "--compare", export))["balances"]

    assert step["differences"] == {"SOL": {"noted": "3", "found": "2.5"}}


def test_an_export_without_balances_is_nothing_to_compare_with(bootstrap, tmp_path):
    export = tmp_path / "export.json"
    envelope.write(export, envelope.Envelope(kind="positions"))

    ran = bootstrap("--compare", export)

    assert ran.code == 0
    assert "notes no balances" in ran.err


def test_accounts_are_compared_by_what_is_owned(bootstrap, tmp_path):
    export, now_held = tmp_path / "export.json", tmp_path / "balances.json"
    export.write_text(
        '{"balances": {"USD": {"available": 100, "hold": 27.45}, "SOL": {"total": 3, "hold": 1}}}'
    )
    now_held.write_text('{"USD": "127.45", "SOL": "3"}')

    assert (
        steps(bootstrap("--balances", now_held, "--compare", export))["balances"]["status"] == "ok"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty, and JSON is expected"),
        ("[]", "is a list"),
        ("{}", "no shape that is known"),
        ('{"balances": {"USD": "much"}}', "balances.USD: 'much' is not a decimal number"),
        ('{"balances": {"USD": [1]}}', "balances.USD: "),
    ],
)
def test_a_file_that_is_no_export_is_refused(bootstrap, tmp_path, text, said, klines):
    export = tmp_path / "export.json"
    export.write_text(text)

    ran = bootstrap("--compare", export)

    assert (ran.code, ran.out) == (8, "")
    assert f"{export}" in ran.error
    assert said in ran.error
    assert klines.requests == []


def test_coinbase_serves_the_bars_as_well(statestore, state_file, exchange):
    ran = statestore(
        "bootstrap", "--state", state_file, "--bars-source", "coinbase",
        "--bars-url", exchange.base_url,
    )  # fmt: skip

    assert "HTTP 404" in steps(ran)["bars"]["series"]["BTC"]["1m"]["why"]
    assert {request.method for request in exchange.requests} == {"GET"}


def test_a_recorded_file_serves_the_bars_as_well(statestore, state_file, tmp_path):
    file = tmp_path / "bars.jsonl"
    file.write_text("")

    ran = statestore("bootstrap", "--state", state_file, "--bars-source", f"file:{file}")

    assert ran.code == 0
    assert steps(ran)["bars"]["counts"]["asked"] == 12


def test_nobody_is_asked_when_nobody_is_to_be(statestore, state_file):
    ran = statestore("bootstrap", "--state", state_file, "--bars-source", "none", "--strict")

    assert ran.code == 3
    assert "there is no source to ask" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bars-source", "gecko"), "is no source of bars"),
        (("--bars-url", "http://example.com"), "is not https://"),
        (("--bars-url", "nonsense"), "is not https://"),
        (("--bars-source", "ccxt:mtgox2"), "knows no exchange"),
    ],
)
def test_a_source_that_is_none_is_a_usage_error(statestore, state_file, arguments, said):
    ran = statestore("bootstrap", "--state", state_file, *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.error
    assert list(state_file.parent.iterdir()) == []


def test_the_bars_go_over_no_file_of_the_state(bootstrap, state_file):
    ran = bootstrap("--bars", state_file)

    assert ran.code == 2
    assert "is that of another file" in ran.error


def test_the_place_of_the_bars_is_a_setting(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setenv("STATESTORE_BARS", str(tmp_path / "elsewhere.sqlite3"))

    bootstrap()

    assert BarStore(Path(tmp_path / "elsewhere.sqlite3")).extents()["BTC", "1d"].bars >= 665


def test_source_and_host_of_the_bars_are_settings(statestore, state_file, klines, monkeypatch):
    monkeypatch.setenv("STATESTORE_BARS_URL", klines.base_url)
    statestore("bootstrap", "--state", state_file)
    sent = len(klines.requests)
    monkeypatch.setenv("STATESTORE_BARS_SOURCE", "none")
    statestore("bootstrap", "--state", state_file, "--force")

    assert (sent, len(klines.requests)) == (12, 12)


def test_the_help_says_what_the_exit_codes_mean_here(statestore):
    said = " ".join(statestore("bootstrap", "--help").out.split())

    assert "ok, partial, or one of them failed" in said
    assert "with --strict that for anything but ok" in said


def test_the_report_is_one_json_document(bootstrap):
    report = json.loads(bootstrap("-q").out)

    jsonschema.validate(report, schema("bootstrap"))
    assert report["schema"] == "statestore.bootstrap/1"
