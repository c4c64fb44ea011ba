"""``rebuild_positions --source``: kraken through the real ccxt, from recorded answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ccxt", reason="the extra 'ccxt' is not installed")

from tests.cli.conftest import Run
from tests.exchange.venue_server import VenueServer, keys_for, serving

STATE: dict[str, Any] = {"positions": {}, "open_orders": {"o1": {"side": "buy"}}}
SINCE = ("--since", "2025-11-18T00:00:00Z", "--hours", "72")


@pytest.fixture
def kraken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VenueServer]:
    keys = keys_for("kraken")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # ccxt paces itself
    with serving("kraken", tmp_path) as venue:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(venue.ca_file))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("CCXT_KRAKEN_API_KEY", keys.api_key)
        monkeypatch.setenv("CCXT_KRAKEN_SECRET", keys.secret)
        yield venue


def test_positions_are_rebuilt_from_kraken(rebuild: Run, kraken: VenueServer) -> None:
    given = ("--source", "ccxt:kraken", "--base-url", kraken.base_url)
    ran = rebuild(*given, *SINCE, "--dry-run", state=STATE)

    assert ran.code == 0, ran.err
    change = ran.change("BTC")
    # 0.01 at 60000 and 0.02 at 63000 are 0.03 at 62000; 0.012 of them are sold
    assert (change["status"], change["quantity"], change["entry_price"]) == (
        "EXACT",
        "0.018",
        "62000",
    )
    assert (change["usd"], change["mark_source"]) == ("1188", "product")
    assert ran.json["source"] == "ccxt:kraken"
    assert ran.json["unmanaged"] == ["DOT.S"]
    assert ran.json["fills"]["skipped"] == {"futures": 1}  # the one on margin
    assert {r.path.rpartition("/")[2] for r in kraken.requests if r.method == "POST"} == {
        "BalanceEx",
        "TradesHistory",
    }
    keys = keys_for("kraken")
    assert keys.secret not in ran.out + ran.err
    assert keys.api_key not in ran.out + ran.err


def test_fills_that_were_kept_rebuild_the_same_offline(
    rebuild: Run, kraken: VenueServer, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    given = ("--source", "ccxt:kraken", "--base-url", kraken.base_url)
    live = rebuild(*given, *SINCE, "--dry-run", "--save-fills", kept, state=STATE)
    offline = rebuild(*SINCE, "--dry-run", "--fills", kept, balances={"BTC": "0.018"})

    assert offline.change("BTC")["entry_price"] == live.change("BTC")["entry_price"] == "62000"


def test_an_unproven_balance_is_not_written(rebuild: Run, kraken: VenueServer) -> None:
    kraken.on("BalanceEx", {"error": [], "result": {"XXBT": {"balance": "0.5"}}})
    given = ("--source", "ccxt:kraken", "--base-url", kraken.base_url)
    ran = rebuild(*given, *SINCE, "--dry-run", "--exit-code", state=STATE)

    assert ran.code == 3
    assert ran.change("BTC")["status"] == "PARTIAL"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--source", "krakn"), 2, "there are coinbase, ccxt:binance"),
        (("--source", "ccxt:deribit"), 2, "ccxt:deribit cannot be read"),
        (("--source", "ccxt:kraken", "--require-view-only"), 2, "cannot be kept"),
        (("--source", "ccxt:kraken", "--key-file", "k.json"), 2, "CCXT_KRAKEN_API_KEY"),
        (("--source", "ccxt:kraken", "--fills", "f.json"), 2, "exclude each other"),
        (("--source", "ccxt:binance"), 4, "CCXT_BINANCE_API_KEY and CCXT_BINANCE_SECRET"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    rebuild: Run, kraken: VenueServer, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = rebuild(*arguments, "--dry-run", state=STATE)

    assert (ran.code, said in ran.error) == (code, True), ran.err


def test_a_refused_key_is_exit_4(rebuild: Run, kraken: VenueServer) -> None:
    kraken.on("BalanceEx", {"error": ["EAPI:Invalid key"]})
    given = ("--source", "ccxt:kraken", "--base-url", kraken.base_url)
    ran = rebuild(*given, "--dry-run", state=STATE)

    assert ran.code == 4
    assert "EAPI:Invalid key: the key is refused" in ran.error
