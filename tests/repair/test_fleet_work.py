"""Work on many workers, what dies there, and the file that names the accounts."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.config import KeyNames, read_keys
from statestore.disk.store import StateStore
from statestore.errors import ConfigError, CredentialsError
from statestore.repair import fleet
from statestore.repair.executors import open_executor
from statestore.repair.fleet import Outcome, Result, Task, run_all
from statestore.repair.fleetfile import load_fleet
from statestore.repair.fleetwork import Work, works_of
from statestore.simulated import fills
from statestore.urls import StateUrl

RECORDED = (
    '[defaults]\nstate = "{account}/s.json"\nfills = "{account}/fills.json"\n'
    'since = "2025-11-01T00:00:00Z"\n'
)


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


@pytest.fixture
def works(tmp_path: Path) -> list[Work]:
    """Four accounts: each bought 1 BTC, none has it in its state."""
    names = ("a", "b", "c", "d")
    for name in names:
        StateStore(tmp_path / name / "s.json").save({"positions": {}})
        (tmp_path / name / "fills.json").write_text(json.dumps(fills("BUY 1 BTC-USD @ 100")))
    text = RECORDED + "".join(f"[accounts.{name}]\n" for name in names)
    return works_of(load_fleet(written(tmp_path, text)), Task.PLAN)


def outcomes(results: dict[str, Result]) -> dict[str, str]:
    return {name: result.outcome.value for name, result in results.items()}


def test_a_bot_that_was_halted_for_all_machines_lets_a_plan_be_made(
    works: list[Work], tmp_path: Path
) -> None:
    """Its kill switch was engaged elsewhere, so there is no file of it here."""
    store = StateStore("memory://fleet")
    store.save({"positions": {}})
    account = works[0].accounts[0]
    moved = replace(account, where=replace(account.where, state=StateUrl("memory://fleet")))
    work = replace(works[0], accounts=(moved,))

    with store.lease():
        (before,) = work.run()
        store.kill_switch(tmp_path / "there").engage("positions look wrong")
        (after,) = work.run()

    assert before.failure is not None
    assert before.failure.kind == "LeaseHeld"
    assert not account.where.kill_switch.exists()
    assert after.outcome is Outcome.PROPOSED


class _Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (3,)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_dies_takes_no_other_account_with_it(works: list[Work], jobs: int) -> None:
    deadly: Any = _Deadly()
    works[1] = replace(works[1], accounts=(replace(works[1].accounts[0], settings=deadly),))
    with open_executor("processes", jobs) as workers:
        results, whole = run_all(works, workers.executor, at_once=workers.at_once)

    assert whole
    assert outcomes(results) == dict.fromkeys("acd", "proposed") | {"b": "failed"}
    lost = results["b"].failure
    assert lost is not None
    assert lost.kind == "BrokenProcessPool"
    assert "its worker was lost" in lost.text


class _Closing(Executor):
    """Takes two pieces of work, and no more."""

    def __init__(self) -> None:
        self.inner = ThreadPoolExecutor(1)
        self.left = 2

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.left:
            raise RuntimeError("cannot schedule new futures after shutdown, secret=hunter2")
        self.left -= 1
        return self.inner.submit(fn, *args, **kwargs)


def test_an_executor_that_takes_no_more_leaves_what_it_took(works: list[Work]) -> None:
    results, _ = run_all(works, _Closing(), at_once=10)

    assert outcomes(results) == {"a": "proposed", "b": "proposed", "c": "failed", "d": "failed"}
    assert "hunter2" not in repr(results)


def test_a_bug_in_one_account_is_told_with_its_trace_and_without_its_message(
    works: list[Work],
) -> None:
    secret = "-".join(["hunter", "2"])

    class Broken:
        def __getattr__(self, name: str) -> None:
            raise ZeroDivisionError(secret)

    broken: Any = Broken()
    account = replace(works[0].accounts[0], options=broken)
    (result,) = fleet.run(replace(works[0], accounts=(account,)))

    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert result.failure.kind == "ZeroDivisionError"
    assert "in propose" in result.failure.trace
    assert secret not in repr(result.failure)


def test_an_interrupt_lets_what_is_under_way_end_and_begins_no_more(works: list[Work]) -> None:
    began = threading.Event()
    go_on = threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            def late() -> Any:
                began.set()
                assert go_on.wait(30)
                return fn(*args, **kwargs)

            return super().submit(late)

    former = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        assert began.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not former:  # until it has been heard
            go_on.wait(0.001)
        go_on.set()

    thread = threading.Thread(target=interrupt)
    with Slow(1) as executor:
        thread.start()
        results, whole = run_all(works, executor, at_once=2)
        thread.join()

    assert not whole
    assert results["a"].outcome is Outcome.PROPOSED
    assert {name for name, result in results.items() if result.failure} >= {"c", "d"}
    assert results["d"].failure is not None
    assert results["d"].failure.kind == "Interrupted"


def test_what_travels_is_a_value_and_holds_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "the-key-itself")
    monkeypatch.setenv("A_SECRET", "the-secret-itself")
    (tmp_path / "key.json").write_text('{"name": "the-key-itself", "privateKey": "x"}')
    text = (
        '[accounts.a]\nstate = "a.json"\napi_key_env = "A_KEY"\napi_secret_env = "A_SECRET"\n'
        '[accounts.b]\nstate = "b.json"\nkey_file = "key.json"\n'
    )
    works = works_of(load_fleet(written(tmp_path, text)), Task.APPLY)
    travelled = pickle.dumps(works)

    assert pickle.loads(travelled) == works
    assert b"itself" not in travelled
    assert b"A_SECRET" in travelled
    for work in works:
        assert "itself" not in repr(fleet.run(work))


def test_the_variables_of_a_key_are_read_where_they_are_and_missing_ones_are_named() -> None:
    names = KeyNames("BOB_KEY", "BOB_SECRET")

    assert read_keys(names, {"BOB_KEY": " k ", "BOB_SECRET": "s"}).api_key == "k"
    with pytest.raises(CredentialsError, match="set BOB_SECRET"):
        read_keys(names, {"BOB_KEY": "k"})


def test_accounts_of_one_key_are_one_piece_of_work_and_others_are_not(tmp_path: Path) -> None:
    text = '[defaults]\nstate = "{account}/s.json"\nkey_file = "one.json"\nrate = 7\n'
    text += (
        '[accounts.a]\n[accounts.b]\nkey_file = "./one.json"\n[accounts.c]\nkey_file = "c.json"\n'
    )
    text += '[accounts.d]\nkey_file = "d.json"\nrate_group = "u"\n'
    text += '[accounts.e]\nkey_file = "e.json"\nrate_group = "u"\n'
    works = works_of(load_fleet(written(tmp_path, text)), Task.PLAN)

    assert [[one.name for one in work.accounts] for work in works] == [
        ["a", "b"],
        ["c"],
        ["d", "e"],
    ]
    assert {one.origin.rate for work in works for one in work.accounts} == {7}


# The file ------------------------------------------------------------------------------------


def test_an_account_is_its_own_settings_over_the_defaults(tmp_path: Path) -> None:
    text = (
        '[defaults]\nstate = "bots/{account}.json"\nkey_file = "keys/{account}"\nhours = 72\n'
        'reserve = {BTC = "0.5"}\nbackup_dir = "/backups"\n'
        '[accounts.alice]\n[accounts.bob]\nhours = "1.5"\nreserve = {}\nproducts = ["eth-usd"]\n'
        'method = "fifo"\nskip_unproven = true\nbackups = {keep_last = 3}\n'
        'since = "2025-11-18T04:00:00.5Z"\n'
    )
    alice, bob = load_fleet(written(tmp_path, text))

    assert alice.where.state == tmp_path / "bots/alice.json"
    assert alice.where.backup_dir == Path("/backups")
    assert alice.where.kill_switch == tmp_path / "bots/KILL_SWITCH"
    assert alice.origin.key_file == tmp_path / "keys/alice"
    assert (alice.options.hours, alice.options.reserve) == (72, {"BTC": Decimal("0.5")})
    assert (bob.options.hours, bob.options.reserve) == (Decimal("1.5"), {})
    assert bob.options.products == bob.origin.products == {"ETH-USD"}
    assert (bob.options.method.value, bob.skip_unproven) == ("fifo", True)
    assert bob.settings.backups == {"keep_last": 3}
    assert bob.options.since == 1_763_438_400_500_000_000


ONE = '[accounts.alice]\nstate = "s.json"\nkey_file = "k.json"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no accounts"),
        ("[accounts", "is not TOML"),
        ("[account.alice]", "account is not understood"),
        ('[accounts."../x"]', "'../x': a name is"),
        ("[accounts]\nalice = 1", "alice is no table"),
        ("[accounts.alice]", "account alice: state: it is missing"),
        ('[accounts.alice]\nstate = "s.json"', "account alice: key_file: no key is named"),
        (f"{ONE}hour = 72", "account alice: hour: not understood"),
        (f"[defaults]\nhour = 72\n{ONE}", r"\[defaults\]: hour: not understood"),
        (f"{ONE}hours = 1.5", "account alice: hours: 1.5 is not a decimal number"),
        (f"{ONE}hours = 0", "account alice: hours: a number from"),
        (f"{ONE}rate = 31", "account alice: rate: a whole number from 1 to 30"),
        (f"{ONE}since = 2025-11-18T04:00:00Z", "account alice: since: an instant is expected"),
        (f'{ONE}method = "hifo"', "account alice: method: one of average, fifo, lifo"),
        (f"{ONE}reserve = {{BTC = 0.5}}", "account alice: reserve.BTC"),
        (f'{ONE}reserve = {{BTC = "1", btc = "2"}}', "reserve.btc: the asset is named twice"),
        (f"{ONE}accept_partial = 1", "account alice: accept_partial: true or false"),
        (f'{ONE}products = "BTC-USD"', "account alice: products: a list"),
        (f"{ONE}backups = {{keep = 1}}", "account alice: backups.keep: settings are keep_last"),
        (f'{ONE}balances = "b.json"', "account alice: balances: it goes with fills"),
        (f'{ONE}api_key_env = "A"', "account alice: api_key_env: it goes with"),
        (f'{ONE}api_key_env = "A"\napi_secret_env = "B"', "account alice: key_file: api_key_env"),
        (f'{ONE}fills = "f"\nsource = "coinbase"', "account alice: source: fills are recorded"),
        (
            f'{ONE}[accounts.bob]\nstate = "./s.json"\nkey_file = "b"',
            "account bob: state: .* alice",
        ),
        (f'{ONE}ledger = "s.json.bak"', "account alice: ledger: it is the state of account alice"),
        (
            '[defaults]\nbackup_dir = "b"\nstate = "{account}/s.json"\nkey_file = "k/{account}"\n'
            "[accounts.alice]\n[accounts.bob]",
            "account bob: backup_dir: it is the backup_dir of account alice",
        ),
    ],
)
def test_a_mistake_names_account_and_setting(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_fleet(written(tmp_path, text))


@pytest.mark.parametrize(
    "line",
    [
        'api_secret = "HUNTER2"',
        'api_key_env = "organizations/HUNTER2/apiKeys"',
        'api_secret_env = "hunter2HUNTER2"',
        'key_file = """-----BEGIN EC PRIVATE KEY-----\nHUNTER2"""',
        "key_file = '-----BEGIN EC PRIVATE KEY-----\\nHUNTER2'",
    ],
)
def test_a_key_in_the_file_is_refused_and_not_printed(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="account alice") as refused:
        load_fleet(written(tmp_path, f'[accounts.alice]\nstate = "s.json"\n{line}\n'))

    assert "hunter2" not in str(refused.value).lower()
