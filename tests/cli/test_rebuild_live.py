"""``rebuild_positions`` against the simulated exchange, through the real SDK over real HTTPS."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore import simulated
from statestore.simulated import SimulatedExchange
from tests.cli.conftest import Run

STATE: dict[str, Any] = {"positions": {}, "open_orders": {"o1": {"side": "buy"}}}


def methods(exchange: SimulatedExchange) -> set[str]:
    return {request.method for request in exchange.requests}


def test_positions_are_rebuilt_from_the_exchange(rebuild: Run, exchange: SimulatedExchange) -> None:
    ran = rebuild("--hours", "72", "--dry-run", state=STATE)

    assert ran.code == 0, ran.err
    assert {c["asset"]: c["status"] for c in ran.json["changes"]} == dict.fromkeys(
        ("BTC", "DOGE", "ETH"), "EXACT"
    )
    assert ran.change("BTC")["entry_price"] == "62000"
    assert ran.change("BTC")["usd"] == "1188"
    assert ran.change("BTC")["mark_source"] == "product"
    assert ran.change("DOGE")["key"] == "DOGE-USD"
    assert ran.json["unmanaged"] == ["ADA"]
    assert ran.json["portfolio"] == exchange.permissions["portfolio_uuid"]
    assert methods(exchange) == {"GET"}


def test_an_apply_and_then_nothing_to_do(
    rebuild: Run, exchange: SimulatedExchange, kill_switch: Any, state_file: Path
) -> None:
    kill_switch.engage("test", "me")
    first = rebuild("--yes", state=STATE)
    exchange.set_product("BTC-USD", price="70000")
    second = rebuild("--yes")

    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.json["positions_updated"] == 3
    assert second.json["positions_updated"] == 0
    assert second.json["positions_kept"] == 3
    assert second.json["state"]["revision"] == first.json["state"]["revision"] == 1
    assert json.loads(state_file.read_text())["open_orders"] == STATE["open_orders"]
    assert methods(exchange) == {"GET"}


@pytest.mark.parametrize(
    "faults",
    [
        (simulated.RATE_LIMITED,),
        (simulated.UNAVAILABLE,),
        (simulated.UNAUTHORIZED,),
        (simulated.HTML,),
        (simulated.DROPPED,),
        (simulated.OK, simulated.RATE_LIMITED, simulated.UNAVAILABLE),
    ],
)
def test_passing_faults_do_not_change_the_result(
    rebuild: Run,
    exchange: SimulatedExchange,
    faults: tuple[simulated.Fault, ...],
    quick_retries: None,
) -> None:
    honest = rebuild("--dry-run", state=STATE).json["changes"]
    exchange.page_size = 2
    exchange.script("fills", *faults)
    ran = rebuild("--dry-run")

    assert ran.json["fills"]["pages"] == 3
    found = ran.json["changes"]
    for change in (*honest, *found):
        del change["after"]["last_updated"]
    assert found == honest


def test_a_duplicate_across_pages_counts_once(rebuild: Run, exchange: SimulatedExchange) -> None:
    exchange.page_size = 2
    exchange.add_fill(exchange._fills[0])
    ran = rebuild("--dry-run", state=STATE)

    assert ran.json["fills"]["duplicates"] == 1
    assert ran.change("BTC")["status"] == "EXACT"


@pytest.mark.parametrize(
    ("endpoint", "fault", "code"),
    [
        ("fills", simulated.PROOF_REQUIRED, 5),
        ("fills", simulated.REPEATED_CURSOR, 5),
        ("fills", simulated.NULL_FILLS, 5),
        ("fills", simulated.UNAVAILABLE, 5),
        ("fills", simulated.RATE_LIMITED, 5),
        ("fills", simulated.HTML, 5),
        ("fills", simulated.DROPPED, 5),
        ("fills", simulated.UNAUTHORIZED, 4),
        ("fills", simulated.FORBIDDEN, 4),
        ("accounts", simulated.UNAVAILABLE, 5),
        ("accounts", simulated.UNAUTHORIZED, 4),
        ("key_permissions", simulated.FORBIDDEN, 4),
        ("products", simulated.UNAVAILABLE, 5),
    ],
)
def test_e16_what_does_not_pass_is_an_error_and_nothing_is_written(
    rebuild: Run,
    exchange: SimulatedExchange,
    state_file: Path,
    kill_switch: Any,
    endpoint: str,
    fault: simulated.Fault,
    code: int,
    quick_retries: None,
) -> None:
    kill_switch.engage("test", "me")
    exchange.script(endpoint, fault, forever=True)
    ran = rebuild("--yes", state=STATE)

    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "<html" not in ran.err.lower()
    assert exchange.api_secret.splitlines()[1] not in ran.err
    assert json.loads(state_file.read_text()) == STATE
    assert ran.error
    assert methods(exchange) == {"GET"}


def test_e16_an_expired_token_is_explained_by_the_clock(
    rebuild: Run, exchange: SimulatedExchange, quick_retries: None
) -> None:
    exchange.clock_offset = 600
    ran = rebuild("--dry-run", state=STATE)

    assert ran.code == 4
    assert "clock" in ran.error


def test_a_key_that_can_trade_is_a_warning_and_an_error_on_demand(
    rebuild: Run, exchange: SimulatedExchange
) -> None:
    exchange.permissions["can_trade"] = True
    warned = rebuild("--dry-run", state=STATE)
    refused = rebuild("--dry-run", "--require-view-only")

    assert any(w["code"] == "key_can_do_more" for w in warned.json["warnings"])
    assert refused.code == 4
    assert "trade" in refused.error


def test_a_balance_that_moves_while_it_is_read_is_read_again(
    rebuild: Run, exchange: SimulatedExchange
) -> None:
    exchange.set_balance("BTC", "0.030")
    seen = 0

    def settle(request: simulated.Request) -> None:
        nonlocal seen
        seen += request.path.endswith("/fills")
        if seen == 1:
            exchange.set_balance("BTC", "0.018")

    exchange.on_request = settle
    ran = rebuild("--dry-run", state=STATE)

    assert ran.change("BTC")["status"] == "EXACT"
    assert seen == 2


def test_a_balance_that_never_rests_is_moving(
    rebuild: Run, exchange: SimulatedExchange, kill_switch: Any
) -> None:
    kill_switch.engage("test", "me")
    count = 0

    def move(request: simulated.Request) -> None:
        nonlocal count
        if request.path.endswith("/accounts"):
            count += 1
            exchange.set_balance("BTC", f"0.01{count}")

    exchange.on_request = move
    ran = rebuild("--yes", state=STATE)

    assert ran.code == 3
    assert "BTC MOVING" in ran.error


def test_the_window_is_extended_by_reading_older_fills_only(
    rebuild: Run, exchange: SimulatedExchange
) -> None:
    old = (datetime.now(UTC) - timedelta(hours=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
    exchange.add_fills("BUY 2 SOL-USD @ 100", start=old)
    exchange.set_balance("SOL", "2")
    state = {"positions": {"SOL-USD": {"quantity": 1}}}
    ran = rebuild("--hours", "48", "--dry-run", state=state)

    asked = [r.query for r in exchange.requests if r.path.endswith("/fills")]
    assert ran.change("SOL")["status"] == "EXACT"
    assert ran.json["window"]["searched_hours"] == 192
    assert "end_sequence_timestamp" not in asked[0]
    assert all("end_sequence_timestamp" in query for query in asked[1:])


def test_dust_that_is_left_is_no_position(rebuild: Run, exchange: SimulatedExchange) -> None:
    exchange.set_balance("DOGE", "1")
    state = {"positions": {"DOGE-USD": {"quantity": 100, "entry_price": 0.2}}}
    ran = rebuild("--dry-run", state=state)

    assert ran.change("DOGE")["status"] == "DUST"
    assert ran.change("DOGE")["action"] == "remove"
    assert ran.change("DOGE")["usd"] == "0.25"


def test_the_key_may_come_from_a_file(
    rebuild: Run,
    exchange: SimulatedExchange,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COINBASE_API_KEY")
    monkeypatch.delenv("COINBASE_API_SECRET")
    key_file = exchange.write_key_file(tmp_path / "key.json")
    given = rebuild("--dry-run", "--key-file", key_file, state=STATE)
    monkeypatch.setenv("COINBASE_KEY_FILE", str(key_file))
    found = rebuild("--dry-run")

    assert given.code == found.code == 0, given.err + found.err


def test_saved_fills_give_the_same_plan_offline(
    rebuild: Run, exchange: SimulatedExchange, tmp_path: Path
) -> None:
    saved = tmp_path / "fills.json"
    live = rebuild("--dry-run", "--save-fills", saved, state=STATE)
    asked = len(exchange.requests)
    offline = rebuild("--dry-run", "--fills", saved)

    def figures(ran: Any) -> list[Any]:
        return [(c["asset"], c["quantity"], c["entry_price"]) for c in ran.json["changes"]]

    assert figures(offline) == figures(live)
    assert len(exchange.requests) == asked
    assert Decimal(offline.change("ETH")["quantity"]) == Decimal("0.00088729")
    assert "COINBASE_API_SECRET" in os.environ


@pytest.mark.parametrize("rate", ["0", "31", "fast"])
def test_a_rate_the_exchange_does_not_allow_is_a_usage_error(rebuild: Run, rate: str) -> None:
    ran = rebuild("--dry-run", "--rate", rate, state=STATE)

    assert ran.code == 2
    assert "--rate" in ran.err


def test_the_rate_reaches_the_exchange(
    rebuild: Run, exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statestore.fills.sources import coinbase

    rates: list[int] = []

    class Watched(coinbase.Pace):
        def __init__(self, rate: int) -> None:
            rates.append(rate)
            super().__init__(rate)

    monkeypatch.setattr(coinbase, "Pace", Watched)

    assert rebuild("--dry-run", state=STATE).code == 0
    assert rebuild("--dry-run", "--rate", "25").code == 0
    assert rates == [10, 25]


def test_a_terminal_shows_a_bar_and_a_pipe_nothing(
    rebuild: Run, exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statestore.cli import sources

    piped = rebuild("--dry-run", state=STATE)
    monkeypatch.setattr(sources.sys.stderr, "isatty", lambda: True, raising=False)
    with sources.progress(quiet=True) as told:
        assert told is None

    assert "Reading" not in piped.err


def test_the_bar_tells_pages_and_rows(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from statestore.cli import sources
    from statestore.fills.sources.slices import Progress

    monkeypatch.setattr(sources.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with sources.progress(quiet=False) as told:
        assert told is not None
        told(Progress(1, 250, None))
        told(Progress(2, 500, 0.5))
        told(Progress(3, 501, 1.0))
    shown = capfd.readouterr()

    assert shown.out == ""
    assert "501 in 3 page(s)" in shown.err


def test_an_exchange_that_lists_no_account_has_not_said_that_nothing_is_held(
    rebuild: Run, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a key does that is bound to another, empty portfolio."""
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    recorded = {"positions": {"BTC-USD": {"quantity": 1, "entry_price": 100}}}
    ran = rebuild("--dry-run", state=recorded)

    assert ran.code == 5
    assert "lists no account at all, while the state records BTC" in ran.error
    assert rebuild("--dry-run", state={"positions": {}}).code == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem"), ("HTTPS_PROXY", "nonsense://127.0.0.1")],
)
def test_settings_that_let_no_request_leave_are_told_at_once(
    rebuild: Run,
    exchange: SimulatedExchange,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NO_PROXY", "")
    ran = rebuild("--dry-run", state=STATE)

    assert ran.code == 5
    assert "check the settings of proxy and certificates" in ran.error
    assert exchange.requests == []


def test_the_audit_line_says_which_portfolio_and_where_the_backup_is(
    rebuild: Run, exchange: SimulatedExchange, kill_switch: Any, state_file: Path
) -> None:
    kill_switch.engage("test", "me")
    rebuild("--yes", state=STATE)
    line = json.loads(state_file.with_name("state_audit.jsonl").read_text())

    assert line["portfolio"] == exchange.permissions["portfolio_uuid"]
    assert Path(line["backup"]).is_absolute()
