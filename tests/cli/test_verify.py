"""``statestore verify``: no false alarm while a bot trades, and no wrong quantity missed."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.fills.decoding import decode_json
from statestore.fills.sources import coinbase_client, coinbase_reader
from statestore.simulated import UNAVAILABLE, Request, SimulatedExchange, fill
from statestore.times import NANOSECONDS, format_instant, now
from tests.cli.conftest import Run
from tests.waits import pass_at_once

HOUR = 3600 * NANOSECONDS
RUNS = 200
WRONG = Decimal(50)  # units a test adds to what is recorded; no sum of a bot's small trades


class Bot:
    """Trades at 100, one step at a time: a fill is listed, the balance moves, the state is saved.

    The first two come in either order, and the next trade may begin before the save of the last.
    """

    def __init__(
        self, exchange: SimulatedExchange, state_file: Path, rng: random.Random, *assets: str
    ) -> None:
        self.exchange, self.rng, self.assets = exchange, rng, assets
        self.store = StateStore(state_file)
        self.held = dict.fromkeys(assets, Decimal(1))
        self.booked = dict(self.held)
        self.waiting: list[Callable[[], None]] = []
        self.trades = 0
        self.steps = 0
        self.allowed = 0  # steps of a thread so far; else a slow machine reads ever more fills
        self.stepped = threading.Condition()
        for asset in assets:
            opened = format_instant(now() - HOUR)
            exchange.add_fill(f"BUY 1 {asset}-USD @ 100 at {opened} id first-{asset}")
            exchange.set_balance(asset, "1")
            exchange.set_product(f"{asset}-USD", price="100")
        self.save()

    def step(self) -> None:
        if not self.waiting:
            self.waiting = self._trade()
        self.waiting.pop(0)()
        with self.stepped:
            self.steps += 1
            self.stepped.notify_all()

    def catch_up(self, _seconds: float = 0) -> None:
        """Do what takes a bot less than the grace: finish what it had begun."""
        for _ in range(3):
            self.step()

    def wait_for(self, steps: int) -> None:
        """Wait until a thread has taken so many steps more."""
        with self.stepped:
            target = self.steps + steps
            self.allowed = max(self.allowed, target)
            assert self.stepped.wait_for(lambda: self.steps >= target, timeout=60)

    def _trade(self) -> list[Callable[[], None]]:
        asset = self.rng.choice(self.assets)
        units = Decimal(self.rng.randint(1, 9)).scaleb(-3)
        side = self.rng.choice(("BUY", "SELL"))
        self.trades += 1
        row = fill(
            f"{side} {units} {asset}-USD @ 100 at {format_instant(now())} id {self.trades:06d}"
        )
        signed = units if side == "BUY" else -units
        seen = [lambda: self.exchange.add_fill(row), lambda: self._move(asset, signed)]
        self.rng.shuffle(seen)
        return [*seen, lambda: self._book(asset, signed)]

    def _move(self, asset: str, units: Decimal) -> None:
        self.held[asset] += units
        self.exchange.set_balance(asset, str(self.held[asset]))

    def _book(self, asset: str, units: Decimal) -> None:
        self.booked[asset] += units
        self.save()

    def save(self, **wrong: Decimal) -> None:
        for asset, units in wrong.items():
            self.booked[asset] += units
        self.store.save(
            {
                "positions": {
                    f"{asset}-USD": {"quantity": units, "entry_price": Decimal(100)}
                    for asset, units in self.booked.items()
                }
            },
            reason="trade",
        )


class Wire:
    """What the SDK's client is used for, without a network: hundreds of runs take seconds.

    The exchange answers by its own code, each request at its own moment; only TLS and tokens are
    left out.
    """

    def __init__(self, exchange: SimulatedExchange) -> None:
        self.exchange = exchange
        self.session = SimpleNamespace(hooks={"response": []})  # nobody looks at headers

    def get(self, url_path: str, params: dict[str, object] | None = None) -> dict[str, object]:
        query = {name: [str(value)] for name, value in (params or {}).items()}
        fault, answer = self.exchange._answer(Request("GET", url_path, query, signed=True), "")
        if answer is None:
            raise coinbase_client.Refused(f"HTTP {fault.status}", fault.status)
        document = decode_json(json.dumps(answer).encode())
        assert isinstance(document, dict)
        return document


@pytest.fixture
def verify(
    statestore: Run,
    fake_exchange: SimulatedExchange,
    state_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run ``verify --exit-code`` on `state_file`, with the exchange at the end of a `Wire`."""
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fake_exchange, "_problem_with", lambda *_: "")
    monkeypatch.setattr(coinbase_reader, "read_only_client", lambda *_, **__: Wire(fake_exchange))
    pass_at_once(monkeypatch)
    monkeypatch.setattr("statestore.cli.verify._wait", lambda _: None)
    return lambda *arguments: statestore("verify", "--state", state_file, "--exit-code", *arguments)


@pytest.fixture
def bot(fake_exchange: SimulatedExchange, state_file: Path, request: pytest.FixtureRequest) -> Bot:
    seed = getattr(request, "param", 7)
    return Bot(fake_exchange, state_file, random.Random(seed), "BTC", "ETH")


@pytest.fixture
def trading(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bot]:
    """A bot that trades in a thread of its own, some 200 steps a second, as far as allowed."""
    # The grace is longer than a trade takes, whatever the machine is busy with: four steps here.
    monkeypatch.setattr("statestore.cli.verify._wait", lambda _: bot.wait_for(4))
    stop = threading.Event()

    def trade() -> None:
        while not stop.wait(0.004):
            if bot.steps < bot.allowed:
                bot.step()

    thread = threading.Thread(target=trade)
    thread.start()
    yield bot
    stop.set()
    thread.join()


def verdicts(document: Any) -> dict[str, str]:
    return {position["asset"]: position["verdict"] for position in document["positions"]}


# While a bot trades


def test_no_false_alarm_while_a_bot_trades(verify: Run, trading: Bot) -> None:
    found = []
    for _ in range(RUNS):
        trading.allowed += 16
        ran = verify()
        found.append(ran.json["verdict"])

        assert ran.code == 0, ran.out
    assert set(found) <= {"agrees", "unsettled"}
    assert trading.trades > RUNS / 4, "hardly anything was in flight: hardly anything is shown"


@pytest.fixture
def restless(
    bot: Bot, verify: Run, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> Bot:
    """A bot that takes up to four steps between any two requests, the same in each run."""

    def meanwhile(_: Request) -> None:
        for _ in range(bot.rng.choice((0, 0, 0, 1, 1, 2, 4))):
            bot.step()

    fake_exchange.on_request = meanwhile
    monkeypatch.setattr("statestore.cli.verify._wait", bot.catch_up)
    return bot


@pytest.mark.parametrize("bot", range(10), indirect=True)
def test_no_false_alarm_where_something_moves_between_any_two_requests(
    verify: Run, restless: Bot
) -> None:
    found = [verify() for _ in range(RUNS // 10)]

    assert {ran.json["verdict"] for ran in found} <= {"agrees", "unsettled"}
    assert {ran.code for ran in found} == {0}
    assert any(ran.json["looks"] > 1 for ran in found), "nothing was in flight: nothing is shown"


def test_a_wrong_quantity_is_found_each_time_while_its_asset_is_traded(
    verify: Run, restless: Bot
) -> None:
    restless.save(BTC=WRONG)
    for _ in range(20):
        ran = verify()

        assert ran.code == 3
        assert verdicts(ran.json)["BTC"] == "differs"
        assert verdicts(ran.json)["ETH"] in ("agrees", "unsettled")


def test_a_wrong_quantity_is_found_each_time_while_a_thread_trades(
    verify: Run, trading: Bot
) -> None:
    trading.booked["ETH"] += WRONG
    trading.wait_for(4)  # until it was saved
    for _ in range(20):
        ran = verify()

        assert ran.code == 3
        assert verdicts(ran.json)["ETH"] == "differs"
        assert verdicts(ran.json)["BTC"] in ("agrees", "unsettled")


# One at a time


def entry(quantity: str, price: str = "100") -> dict[str, Decimal]:
    return {"quantity": Decimal(quantity), "entry_price": Decimal(price)}


@pytest.fixture
def holding(fake_exchange: SimulatedExchange) -> SimulatedExchange:
    """One BTC, bought at 100 an hour ago."""
    fake_exchange.add_fill(f"BUY 1 BTC-USD @ 100 at {format_instant(now() - HOUR)} id one")
    fake_exchange.set_balance("BTC", "1")
    fake_exchange.set_product("BTC-USD", price="100")
    return fake_exchange


@pytest.mark.parametrize(
    ("recorded", "verdict", "about"),
    [
        (entry("1"), "agrees", "entry_price"),
        (entry("1.00000000000001"), "agrees", "entry_price"),
        (entry("1", "100.00000001"), "agrees", "entry_price"),
        ({"quantity": Decimal(1)}, "agrees", "entry_price"),
        (entry("1.0001"), "differs", "quantity"),
        (entry("1", "101"), "differs", "entry_price"),
        (entry("1") | {"units": Decimal(2)}, "differs", "quantity"),
        ({"note": "no quantity"}, "differs", "quantity"),
        (entry("1") | {"side": "SELL"}, "unproven", "quantity"),
        (None, "differs", "quantity"),
    ],
)
def test_a_record_is_judged_by_what_it_says(
    verify: Run,
    holding: SimulatedExchange,
    state_store: StateStore,
    recorded: Any,
    verdict: str,
    about: str,
) -> None:
    state_store.save({"positions": {} if recorded is None else {"BTC-USD": recorded}})
    ran = verify()
    [position] = ran.json["positions"]

    assert (position["verdict"], position["about"]) == (verdict, about)
    assert ran.json["verdict"] == verdict
    assert ran.code == (0 if verdict == "agrees" else 3)


def test_a_fill_older_than_the_grace_that_was_never_booked_is_a_difference(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    holding.add_fill(f"SELL .4 BTC-USD @ 110 at {format_instant(now() - 60 * NANOSECONDS)} id two")
    holding.set_balance("BTC", "0.6")

    assert verdicts(verify("--grace", "10").json) == {"BTC": "differs"}
    assert verdicts(verify("--grace", "120").json) == {"BTC": "unsettled"}


def test_a_clock_that_is_ahead_makes_no_fill_look_old(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    holding.clock_offset = -60
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    holding.add_fill(f"SELL .4 BTC-USD @ 110 at {format_instant(now() - 61 * NANOSECONDS)} id two")
    holding.set_balance("BTC", "0.6")

    assert verdicts(verify().json) == {"BTC": "unsettled"}


def test_an_entry_is_not_judged_while_its_asset_is_traded(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    for number, side in enumerate(("SELL", "BUY")):
        holding.add_fill(f"{side} 1 BTC-USD @ 200 at {format_instant(now())} id again-{number}")
    ran = verify()

    assert ran.code == 0
    assert verdicts(ran.json) == {"BTC": "unsettled"}


def test_a_repair_during_the_wait_is_no_alarm(
    verify: Run,
    holding: SimulatedExchange,
    state_store: StateStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("2")}})
    waited = []

    def repair(seconds: float) -> None:
        waited.append(seconds)
        state_store.save({"positions": {"BTC-USD": entry("1")}})

    monkeypatch.setattr("statestore.cli.verify._wait", repair)
    ran = verify("--grace", "2.5")

    assert (ran.code, ran.json["verdict"], ran.json["looks"]) == (0, "agrees", 2)
    assert waited == [2.5]


def test_a_fill_that_is_listed_late_explains_what_was_seen_before(
    verify: Run,
    holding: SimulatedExchange,
    state_store: StateStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    holding.set_balance("BTC", "0.6")
    late = f"SELL .4 BTC-USD @ 110 at {format_instant(now())} id two"
    monkeypatch.setattr("statestore.cli.verify._wait", lambda _: holding.add_fill(late))
    ran = verify()

    assert (ran.code, verdicts(ran.json)) == (0, {"BTC": "unsettled"})


def test_nobody_waits_where_nothing_differs(
    verify: Run,
    holding: SimulatedExchange,
    state_store: StateStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("statestore.cli.verify._wait", lambda _: pytest.fail("waited"))
    state_store.save({"positions": {"BTC-USD": entry("1")}})

    assert verify().json["looks"] == 1


def test_dust_and_holdings_of_others_are_no_difference(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    holding.set_balance("ADA", "12")
    holding.set_balance("DOGE", "1")
    holding.set_product("DOGE-USD", price="0.1", base_increment="0.1")
    positions = {"BTC-USD": entry("1"), "DOGE-USD": entry("1", "7")}
    state_store.save({"positions": positions})
    ran = verify()

    assert (ran.code, ran.json["unmanaged"]) == (0, ["ADA"])
    assert verdicts(ran.json) == {"BTC": "agrees", "DOGE": "agrees"}


def test_a_row_that_cannot_be_read_leaves_nothing_confirmed(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    holding.add_fill(fill(f"BUY 1 X-USD @ 1 at {format_instant(now() - HOUR)}", side=""))
    ran = verify()

    assert (ran.code, ran.json["verdict"]) == (3, "unproven")
    assert "1 fill row(s) cannot be read" in ran.err


def test_recorded_files_are_compared_without_a_wait(
    verify: Run, state_store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.cli.verify._wait", lambda s: s and pytest.fail("waited"))
    fills = tmp_path / "fills.json"
    fills.write_text(json.dumps([fill("BUY 1 BTC-USD @ 100")]))
    balances = tmp_path / "balances.json"
    balances.write_text('{"BTC": "1"}')
    state_store.save({"positions": {"BTC-USD": entry("2")}})
    given = ("--fills", fills, "--since", "2025-11-18T00:00:00Z")

    assert verdicts(verify(*given, "--balances", balances).json) == {"BTC": "differs"}
    assert verdicts(verify(*given).json) == {"BTC": "unproven"}


# What is printed


def test_cron_hears_nothing_while_all_is_well(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("1")}})
    quiet = verify("-q")
    state_store.save({"positions": {"BTC-USD": entry("3")}})
    loud = verify("-q")

    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert (loud.code, loud.json["verdict"]) == (3, "differs")
    assert "1 differs; to see the repair: rebuild_positions --dry-run" in loud.err


def test_without_the_option_a_difference_is_told_with_exit_0(
    statestore: Run, verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("3")}})
    ran = statestore("verify", "--state", state_store.path)

    assert (ran.code, ran.json["verdict"]) == (0, "differs")


def test_text_is_for_people_and_fits_80_columns(
    verify: Run, holding: SimulatedExchange, state_store: StateStore
) -> None:
    state_store.save({"positions": {"BTC-USD": entry("3.123456789"), "ETH-USD": entry("0")}})
    ran = verify("--format", "text")
    *table, sentence = ran.out.splitlines()

    assert ran.err == ""
    assert max(len(line) for line in table) <= 80
    assert "\x1b" not in ran.out
    assert str(state_store.path) in sentence


def test_a_bot_over_https_with_real_tokens_agrees(
    statestore: Run, bot: Bot, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    ran = statestore("verify", "--state", bot.store.path, "--exit-code")

    assert (ran.code, ran.json["verdict"]) == (0, "agrees")
    assert {request.method for request in fake_exchange.requests} == {"GET"}


def test_a_log_for_machines_is_all_that_is_on_stderr(
    statestore: Run,
    bot: Bot,
    fake_exchange: SimulatedExchange,
    monkeypatch: pytest.MonkeyPatch,
    quick_retries: None,
) -> None:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    bot.save(BTC=WRONG)
    fake_exchange.script("fills", UNAVAILABLE)
    given = ("--state", bot.store.path, "--grace", "0", "--log-format", "json")
    ran = statestore("verify", *given, "-v")
    lines = [json.loads(line) for line in ran.err.splitlines()]

    assert (ran.code, ran.json["verdict"]) == (0, "differs")
    assert lines
    assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "WARNING" in {line["level"] for line in lines}, "the retry is one"


def test_an_entry_that_only_the_record_tells_is_no_agreement(
    verify: Run, fake_exchange: SimulatedExchange, state_store: StateStore
) -> None:
    """ETH was bought at 100, before the window; SOL before there was any history."""
    bought = format_instant(now() - 100 * HOUR)
    fake_exchange.add_fill(f"BUY 1 ETH-USD @ 100 at {bought}")
    for asset in ("ETH", "SOL"):
        fake_exchange.set_balance(asset, "1")
        fake_exchange.set_product(f"{asset}-USD", price="100")
    wrong = {"quantity": 1, "entry_price": 777}
    state_store.save({"positions": {"ETH-USD": wrong, "SOL-USD": wrong}})
    ran = verify("--hours", "48", "--max-hours", "200")

    assert ran.code == 3
    assert verdicts(ran.json) == {"ETH": "differs", "SOL": "unproven"}
    sol = next(p for p in ran.json["positions"] if p["asset"] == "SOL")
    assert sol["about"] == "entry_price"
