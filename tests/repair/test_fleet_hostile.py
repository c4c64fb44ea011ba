"""Executors that lose answers, workers of another version, signals, files that are two things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.errors import ConfigError
from statestore.repair import fleet, fleetfile, fleetwork
from statestore.repair.executors import open_executor
from statestore.repair.fleet import Outcome, Result, Task, run_all
from statestore.repair.fleetfile import load_fleet
from statestore.repair.fleetwork import Work, works_of
from statestore.simulated import fills
from statestore.times import NANOSECONDS, format_instant, now

HEAD = '[defaults]\nstate = "{account}/s.json"\nfills = "{account}/f.json"\nhours = 72\n'


def recorded(folder: Path, *names: str, more: str = "") -> Path:
    """Write a fleet of accounts that bought 3 BTC at 100, halted, with 1 in their states."""
    start = format_instant(now() - 2 * 3600 * NANOSECONDS)
    rows = json.dumps(fills("BUY 3 BTC-USD @ 100", start=start))
    for name in names:
        StateStore(folder / name / "s.json").save({"positions": {"BTC-USD": {"quantity": 1}}})
        (folder / name / "f.json").write_text(rows)
        (folder / name / "b.json").write_text('{"BTC": "3"}')
        (folder / name / "KILL_SWITCH").touch()
    path = folder / "fleet.toml"
    tables = "".join(f"[accounts.{name}]\n{more}" for name in names)
    path.write_text(f'{HEAD}balances = "{{account}}/b.json"\n{tables}')
    return path


@pytest.fixture
def works(tmp_path: Path) -> list[Work]:
    return works_of(load_fleet(recorded(tmp_path, "a", "b", "c")), Task.APPLY)


def outcomes(results: dict[str, Result]) -> dict[str, str]:
    return {name: result.outcome.value for name, result in results.items()}


# Answers ------------------------------------------------------------------------------------------


class _Answering(Executor):
    """Does the work at once, and answers what ``answer`` makes of it."""

    def __init__(self, answer: Callable[[list[Result], list[Result]], object]) -> None:
        self.answer = answer
        self.former: list[Result] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        found = fn(*args, **kwargs)
        future: Future[Any] = Future()
        future.set_result(self.answer(found, self.former))
        self.former = found
        return future


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (lambda _found, _former: None, "abc"),
        (lambda _found, _former: [], "abc"),
        (lambda _found, _former: [{"account": "a"}], "abc"),
        (lambda found, _former: found * 2, "abc"),
        (lambda found, former: former or found, "bc"),
    ],
    ids=["none", "no result", "no Result", "twice", "that of another"],
)
def test_what_an_executor_loses_or_mixes_up_is_named_and_the_rest_stands(
    works: list[Work], answer: Any, lost: str
) -> None:
    results, whole = run_all(works, _Answering(answer), at_once=2)

    assert whole
    assert list(results) == ["a", "b", "c"]
    assert {name for name, one in results.items() if one.outcome is Outcome.FAILED} == set(lost)
    for name in lost:
        failure = results[name].failure
        assert failure is not None
        assert failure.kind == "NoAnswer"
        assert (
            f"whether it was written stands in {works[0].accounts[0].where.state.parent.parent}"
            in (failure.text)
        )


def test_answers_in_another_order_are_those_of_their_accounts(works: list[Work]) -> None:
    held: list[tuple[Future[Any], Any]] = []

    class LastFirst(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            held.append((future, fn(*args, **kwargs)))
            if len(held) == 3:
                for waiting, found in reversed(held):
                    waiting.set_result(found)
            return future

    results, _ = run_all(works, LastFirst(), at_once=3)

    assert outcomes(results) == dict.fromkeys("cba", "written")
    for name in "abc":
        assert results[name].facts["state"].endswith(f"/{name}/s.json")


def test_a_worker_of_another_version_does_nothing(works: list[Work]) -> None:
    (result,) = fleet.run(works[0], "0.0.1")

    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert "this is 0.0.1: nothing was done" in result.failure.text
    assert StateStore(str(result.facts["state"])).load().meta.revision == 1


def test_the_version_is_handed_over_with_the_work(
    works: list[Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_executor("processes", 1) as workers:
        monkeypatch.setattr(fleet, "__version__", "0.0.1")  # here, and not there
        results, _ = run_all(works, workers.executor, at_once=1)

    assert outcomes(results) == dict.fromkeys("abc", "failed")


# Signals ------------------------------------------------------------------------------------------


def _started(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "statestore", "fleet", *options, str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("to_all", [False, True], ids=["to the first process", "to all of them"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_apply_that_is_ended_says_which_were_written(
    tmp_path: Path, executor: str, to_all: bool, number: signal.Signals
) -> None:
    """A service manager sends to all processes of a unit, a terminal to all of a group."""
    names = [f"n{one:03}" for one in range(300)]
    path = recorded(tmp_path, *names)
    ran = _started(path, "apply", "--yes", "--executor", executor, "--jobs", "1")
    _until(lambda: (tmp_path / "n005" / "state_audit.jsonl").exists())
    (os.killpg if to_all else os.kill)(ran.pid, number)
    out, err = ran.communicate(timeout=60)

    assert ran.returncode == 130, err
    told = {one["account"]: one["outcome"] for one in json.loads(out)["accounts"]}
    assert list(told) == names
    found = {one for one in names if (tmp_path / one / "state_audit.jsonl").exists()}
    assert 5 < len(found) < 300
    assert {name for name, outcome in told.items() if outcome == "written"} == found


def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    path = recorded(tmp_path, *(f"n{one:03}" for one in range(300)))
    ran = _started(path, "apply", "--yes", "--executor", "processes", "--jobs", "2")
    _until(lambda: (tmp_path / "n005" / "state_audit.jsonl").exists())
    workers = _children(ran.pid)
    ran.kill()
    ran.communicate(timeout=60)

    assert workers
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def _children(pid: int) -> list[int]:
    if not Path(f"/proc/{pid}/task/{pid}/children").exists():
        pytest.skip("needs /proc/PID/task/PID/children")
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(one) for task in tasks for one in (task / "children").read_text().split()]


# A bot that begins to run -------------------------------------------------------------------------


def test_a_bot_that_began_to_run_while_the_fills_were_read_is_not_written_under(
    works: list[Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    account = works[0].accounts[0]
    account.where.kill_switch.unlink()
    store = StateStore(account.where.state)
    leases = []
    propose = fleetwork.propose

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        proposal = propose(*args, **kwargs)
        leases.append(store.lease())
        return proposal

    monkeypatch.setattr(fleetwork, "propose", meanwhile)
    (result,) = replace(works[0], allow_live=True).run()
    with leases[0]:
        pass

    assert result.failure is not None
    assert result.failure.kind == "LeaseHeld"
    assert store.load().meta.revision == 1


# The file -----------------------------------------------------------------------------------------

A, B = (f'[accounts.{name}]\nkey_file = "k.json"\n' for name in "ab")


def load(folder: Path, text: str) -> tuple[fleetwork.Account, ...]:
    path = folder / "fleet.toml"
    path.write_text(text)
    return load_fleet(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{A}state = "s"\n{B}state = "s.bak"', "account b: state: it is the state of account a"),
        (f'{A}state = "a/s"\n{B}state = "a/fills.sqlite3"', "state: it is the ledger of account a"),
        (f'{A}state = "s"\nkill_switch = "x"\naudit_file = "x"', "it is the kill_switch of"),
        (f'{A}state = "s"\nkill_switch = "k.json"', "key_file: it is the kill_switch of account a"),
        (
            f'{A}state = "a/s"\n{B}state = "b/s"\nledger = "a/state_audit.jsonl"',
            "account b: ledger: it is the audit_file of account a",
        ),
        (f'{A}state = "real"\n{B}state = "link"', "account b: state: it is the state of account a"),
        (f'{A}state = "real"\n{B}state = "hard"', "account b: state: it is the state of account a"),
        (f'{A}state = "real"\n{B}state = "d/../real"', "account b: state: it is the state of"),
        ('[accounts.a]\nstate = "s"\n[accounts.A]\nstate = "t"', "a and A differ in case only"),
        (f'{A}state = "~nobody-has-this-name/s"', "account a: state: there is no such user's home"),
        (f"{A}state = 's'\nhours = {'9' * 5000}", "is not TOML"),
        (f"{A}state = 's'\nhours = {'[' * 50_000}", "is not TOML"),
        (f"{A}{A}", "is not TOML"),
        (f'{A}state = "s\\u0000"', "account a: state"),
        (f'{A}state = "s"\nproducts = ["BTC-USD\\u001b[2J"]', "account a: products"),
    ],
)
def test_no_file_is_two_things_and_no_hostile_text_is_a_traceback(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.link(tmp_path / "real", tmp_path / "hard")

    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


def test_kill_switch_audit_file_ledger_and_backups_may_be_shared(tmp_path: Path) -> None:
    text = '[defaults]\nstate = "{account}.json"\nkey_file = "k.json"\n[accounts.a]\n[accounts.b]\n'
    a, b = load(tmp_path, text)

    for name in ("kill_switch", "audit_file", "ledger", "backup_dir"):
        assert getattr(a.where, name) == getattr(b.where, name)


def test_a_file_that_is_too_large_or_has_no_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleetfile, "_MOST_BYTES", 1000)

    with pytest.raises(ConfigError, match="larger than a fleet file"):
        load_fleet(Path("/dev/zero"))


def test_a_password_in_an_address_is_refused_and_not_printed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="account a: base_url: host or host:port") as refused:
        load(tmp_path, f'{A}state = "s"\nbase_url = "https://me:hunter2@host"')

    assert "hunter2" not in "".join(map(str, [refused.value, refused.value.__cause__]))


def test_the_default_exchange_by_name_and_unsaid_is_one_rate(tmp_path: Path) -> None:
    accounts = load(tmp_path, f'{A}state = "s"\n{B}state = "t"\nsource = "coinbase"')

    assert len(works_of(accounts, Task.PLAN)) == 1
