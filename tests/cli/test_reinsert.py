"""``statestore reinsert`` and ``statestore signals``, as an operator types them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statestore.cli import cli
from statestore.cli.reinsert import command as reinsert_positions_as_signals
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.runtime.signals import Inbox
from statestore.testing import CrashAfter
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import sections, snapshot
from tests.runtime.test_signals import places, row

STATE = json.dumps(
    {
        "positions": {
            "solana:Demo1111:15m": row("15m", features={"ta": {"x": 1.5}}),
            "solana:Demo1111:1h": row("1h", entry_context={"mcap": "micro"}),
            "solana:Demo1111:4h": row("4h", curator_sources=[{"curator_id": "alice"}]),
            "solana:Other222:1h": row("1h", "Other222"),
            "solana:Third333:1h": row("1h", "Third333", status="watchlist"),
        },
        "learning": {"lessons": [0.10]},
    },
    indent=1,
).encode()

PROCESSORS = '''
from statestore.runtime.processing import Decision

given = []

class Watch:
    """Opens one position for each signal."""

    def process(self, signal):
        given.append(signal.symbol)
        return Decision({f"mine:{signal.symbol}": {"quantity": 0}}, ("1h",))

    def backfill(self, symbol, timeframes):
        given.append((symbol, timeframes))

class Broken:
    def process(self, signal):
        raise ConnectionError("no route to the learning system")

watch = Watch()
number = 5
'''


@pytest.fixture
def state(state_file: Path) -> Path:
    state_file.write_bytes(STATE)
    return state_file


@pytest.fixture
def inbox(state_file: Path) -> Inbox:
    return Inbox(state_file.with_name("signals"))


@pytest.fixture
def halted(kill_switch: KillSwitch) -> KillSwitch:
    kill_switch.engage(reason="a restart")
    return kill_switch


@pytest.fixture
def reinsert(statestore: Run, state: Path) -> Run:
    return lambda *arguments: statestore("reinsert", "--state", state, "--yes", *arguments)


@pytest.fixture
def processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"processors_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PROCESSORS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return name


def positions(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = StateStore(state).load()["positions"]
    return found


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.error


# Positions become signals


def test_the_positions_of_a_status_become_one_signal_for_each_token(
    reinsert: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    ran = reinsert("--status", "active")

    assert ran.code == 0, ran.err
    assert list(positions(state)) == ["solana:Third333:1h"]
    assert places(inbox) == {"pending": ["DEMO", "OTHE"]}
    assert (ran.json["tokens"], len(ran.json["positions_removed"])) == (2, 4)
    assert [signal["outcome"] for signal in ran.json["signals"]] == ["written"] * 2


def test_a_bot_that_was_halted_for_all_machines_is_halted(
    statestore: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kill switch was engaged elsewhere, so there is no file of it here."""
    monkeypatch.chdir(tmp_path)
    store = StateStore("memory://reinsert")
    store.restore(state)
    store.kill_switch(tmp_path / "there").engage("a restart")

    ran = statestore("reinsert", "--state", store.path, "--yes", "--status", "active")

    assert ran.code == 0, ran.err
    assert list(store.load()["positions"]) == ["solana:Third333:1h"]


def test_only_the_positions_change_and_undo_puts_them_back_byte_for_byte(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    ran = reinsert("--status", "active")
    assert sections(state.read_bytes())["learning"] == sections(STATE)["learning"]
    assert Path(ran.json["backup"]).read_bytes() == STATE

    undone = statestore("undo", "--state", state)

    assert undone.code == 0, undone.err
    assert undone.json["undone"]["action"] == "reinsert"
    assert sections(state.read_bytes()) == sections(STATE)
    entries = statestore("audit", "--state", state).json["entries"]
    assert [line["action"] for line in entries] == ["reinsert", "undo"]
    assert entries[0]["signals"] == [signal["id"] for signal in ran.json["signals"]]
    assert list(entries[0]["positions"]["removed"]) == ran.json["positions_removed"]


def test_after_an_undo_the_signals_wait_and_another_reinsert_uses_them(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    reinsert("--status", "active")
    statestore("undo", "--state", state)
    ran = statestore("signals", "process", "--state", state)
    assert ran.json["counts"] == {"done": 0, "failed": 0, "waiting": 2}
    assert "was not removed; run reinsert again" in ran.err
    listed = statestore("signals", "list", "--state", state)
    assert all(signal["waits"] for signal in listed.json["signals"])

    again = reinsert("--status", "active", "--auto-process")
    assert again.json["processed"]["counts"] == {"done": 2, "failed": 0, "waiting": 0}
    assert places(inbox) == {"done": ["DEMO", "OTHE"]}


@pytest.mark.parametrize("more", [[], ["--auto-process"], ["--status", "active"]])
def test_a_dry_run_leaves_every_byte_of_state_and_inbox(
    reinsert: Run, state: Path, inbox: Inbox, halted: KillSwitch, more: list[str]
) -> None:
    reinsert("--status", "watchlist")
    halted.release()
    before = snapshot(state.parent)
    ran = reinsert("--dry-run", *more)

    assert ran.code == 0, ran.err
    assert snapshot(state.parent) == before
    assert (ran.json["dry_run"], ran.json["tokens"]) == (True, 2)
    assert [signal["outcome"] for signal in ran.json["signals"]] == ["written"] * 2


def test_a_dry_run_says_what_the_real_run_does(
    reinsert: Run, state: Path, halted: KillSwitch
) -> None:
    dry, real = reinsert("--dry-run"), reinsert()

    for name in ("tokens", "positions_removed", "positions_kept", "signals", "from", "inbox"):
        assert dry.json[name] == real.json[name]


def test_without_the_kill_switch_nothing_is_written(reinsert: Run, state: Path) -> None:
    before = snapshot(state.parent)

    refused(reinsert(), 6, "kill-switch engage")
    assert snapshot(state.parent) == before


def test_while_a_bot_runs_nothing_is_written(
    reinsert: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    bot = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from statestore import StateStore\n"
            "with StateStore(sys.argv[1]).lease(): print('runs', flush=True); sys.stdin.read()",
            str(state),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert bot.stdout is not None
    bot.stdout.readline()
    try:
        refused(reinsert(), 7, f"process {bot.pid}")
        assert (places(inbox), state.read_bytes()) == ({}, STATE)
    finally:
        bot.communicate()
    assert reinsert().code == 0


def test_what_is_held_is_refused_by_name_and_nothing_is_written(
    reinsert: Run, state: Path, halted: KillSwitch
) -> None:
    held = json.loads(STATE)
    held["positions"]["ETH-USD"] = {"quantity": 0.5, "entry_price": 2000.10}
    state.write_text(json.dumps(held))
    before = snapshot(state.parent)

    refused(reinsert(), 3, "ETH-USD (quantity 0.5)", "--allow-held")
    refused(reinsert("--dry-run"), 3, "ETH-USD")
    refused(reinsert("--action", "buy", "--allow-held"), 3, "ETH-USD")
    assert snapshot(state.parent) == before


def test_what_is_held_stays_and_is_signalled_when_that_is_asked_for(
    reinsert: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    held = {"quantity": 0.5, "entry_price": 2000.10}
    state.write_text(json.dumps({"positions": {"ETH-USD": held, "a": row()}}))
    ran = reinsert("--allow-held", "--auto-process")

    assert ran.code == 0, ran.err
    assert ran.json["positions_kept"] == ["ETH-USD"]
    assert positions(state)["ETH-USD"] == held
    assert sorted(positions(state)) == ["ETH-USD", "a"]


def test_a_signal_for_what_is_held_alone_writes_no_state(
    reinsert: Run, state: Path, inbox: Inbox
) -> None:
    state.write_text(json.dumps({"positions": {"ETH-USD": {"quantity": 0.5}}}))
    before = state.read_bytes()
    for outcome in ("written", "already pending"):
        ran = reinsert("--allow-held")
        assert [signal["outcome"] for signal in ran.json["signals"]] == [outcome]

    assert state.read_bytes() == before
    assert places(inbox) == {"pending": ["ETH-USD"]}


def test_a_status_that_no_position_has_says_which_there_are(reinsert: Run) -> None:
    ran = reinsert("--status", "actve")

    assert (ran.code, ran.json["tokens"]) == (0, 0)
    assert "No tokens of status actve" in ran.err
    assert "there are active, watchlist" in ran.err


# Processing


def test_auto_process_gives_each_signal_to_the_processor_at_once(
    reinsert: Run, state: Path, inbox: Inbox, halted: KillSwitch, processors: str
) -> None:
    ran = reinsert("--auto-process", "--processor", f"{processors}:Watch")

    assert ran.code == 0, ran.err
    assert ran.json["processed"]["counts"] == {"done": 3, "failed": 0, "waiting": 0}
    assert sorted(positions(state)) == ["mine:DEMO", "mine:OTHE", "mine:THIR"]
    assert sys.modules[processors].given == [
        *("DEMO", ("solana:Demo1111", ("1h",))),
        *("OTHE", ("solana:Other222", ("1h",))),
        *("THIR", ("solana:Third333", ("1h",))),
    ]
    assert places(inbox) == {"done": ["DEMO", "OTHE", "THIR"]}


def test_without_auto_process_a_scheduled_job_drains_them_later(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    reinsert()
    assert positions(state) == {}
    halted.release()
    ran = statestore("signals", "process", "--state", state)

    assert ran.code == 0, ran.err
    assert ran.json["counts"]["done"] == 3
    assert sorted(positions(state)) == sorted(json.loads(STATE)["positions"])
    assert all(p["features"] == {} and p["quantity"] == 0 for p in positions(state).values())
    again = statestore("signals", "process", "--state", state)
    assert again.json["counts"] == {"done": 0, "failed": 0, "waiting": 0}


def test_what_failed_is_listed_with_the_reason_and_tried_again(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, halted: KillSwitch, processors: str
) -> None:
    ran = reinsert("--auto-process", "--processor", f"{processors}:Broken")
    assert ran.code == 3
    assert "no route to the learning system" in ran.err
    listed = statestore("signals", "list", "failed", "--state", state).json
    assert listed["counts"] == {"failed": 3}
    assert "ConnectionError" in listed["signals"][0]["why"]
    first = listed["signals"][0]["id"]

    retried = statestore("signals", "retry", first, "--state", state)
    assert retried.code == 0, retried.err
    assert places(inbox)["pending"] == ["DEMO"]
    assert statestore("signals", "retry", "--all", "--state", state).code == 0
    ran = statestore("signals", "process", "--state", state, "--processor", f"{processors}:watch")
    assert [signal["attempts"] for signal in ran.json["signals"]] == [2, 2, 2]


@pytest.mark.parametrize("arguments", [[], ["x", "--all"], ["x"]])
def test_a_retry_of_nothing_or_of_what_did_not_fail_is_refused(
    statestore: Run, state: Path, arguments: list[str]
) -> None:
    ran = statestore("signals", "retry", "--state", state, *arguments)

    refused(ran, 8 if arguments == ["x"] else 2, "signal")


def test_a_file_that_is_no_signal_is_exit_8_and_the_others_are_processed(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, halted: KillSwitch
) -> None:
    reinsert()
    (inbox.folder / "pending" / "x.json").write_text("{")
    for arguments in (["list"], ["process"]):
        ran = statestore("signals", *arguments, "--state", state)
        assert ran.code == 8
        assert ran.json["damaged"] == [str(inbox.folder / "pending" / "x.json")]
        assert "no signal: not JSON" in ran.err

    assert places(inbox) == {"done": ["DEMO", "OTHE", "THIR"]}


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("Watch", "not MODULE:OBJECT"),
        ("no_such_module:x", "ModuleNotFoundError"),
        ("{}:nothing", "AttributeError"),
        ("{}:number", "TypeError"),
        ("{}:Decision", "which has no process"),
    ],
)
def test_a_processor_that_cannot_be_had_is_refused_before_anything_is_written(
    reinsert: Run, state: Path, halted: KillSwitch, processors: str, named: str, why: str
) -> None:
    before = snapshot(state.parent)
    ran = reinsert("--auto-process", "--processor", named.format(processors))

    refused(ran, 2, "--processor", why)
    assert snapshot(state.parent) == before


# In two steps


def test_tokens_are_exported_the_state_wiped_and_the_tokens_reinserted(
    reinsert: Run, statestore: Run, state: Path, inbox: Inbox, tmp_path: Path, halted: KillSwitch
) -> None:
    file = tmp_path / "tokens.json"
    exported = reinsert("export", "--status", "active", "--output", file)
    assert exported.code == 0, exported.err
    assert exported.json["tokens"] == 2
    assert state.read_bytes() == STATE
    for path in sorted(state.parent.iterdir()):
        path.unlink()

    ran = reinsert("reinsert", file, "--auto-process")

    assert ran.code == 0, ran.err
    assert list(positions(state)) == [
        "solana:Demo1111:15m",
        "solana:Demo1111:1h",
        "solana:Demo1111:4h",
        "solana:Other222:1h",
    ]
    assert positions(state)["solana:Demo1111:1h"]["entry_context"] == {"mcap": "micro"}
    again = reinsert(file, "--auto-process")
    assert [signal["outcome"] for signal in again.json["signals"]] == ["done before"] * 2
    assert again.json["processed"]["signals"] == []


def test_positions_that_still_stand_go_when_their_file_is_reinserted(
    reinsert: Run, state: Path, inbox: Inbox, tmp_path: Path, halted: KillSwitch
) -> None:
    reinsert("export", "--status", "active", "--output", tmp_path / "tokens.json")
    ran = reinsert(tmp_path / "tokens.json")

    assert ran.code == 0, ran.err
    assert list(positions(state)) == ["solana:Third333:1h"]


def test_a_token_export_of_the_older_program_is_read(
    reinsert: Run, state: Path, inbox: Inbox, tmp_path: Path
) -> None:
    state.unlink()
    curator = {"curator_id": "alice", "confidence": 0.7, "is_primary": True, "signal_id": "s1"}
    tokens = [
        {
            "token_contract": "Demo1111",
            "token_chain": "solana",
            "token_ticker": "DEMO",
            "curator": curator,
        },
        {"token_contract": "0xabc", "token_chain": "base", "token_ticker": "B", "curator": None},
    ]
    legacy = {
        "exported_at": "2025-12-21T10:00:00+00:00",
        "count": 2,
        "status_filter": "active",
        "tokens": tokens,
    }
    file = tmp_path / "tokens_backup_active.json"
    file.write_text(json.dumps(legacy))
    ran = reinsert(file)

    assert ran.code == 0, ran.err
    signals = inbox.signals("pending")[0]
    assert [signal.symbol for signal in signals] == ["DEMO", "B"]
    assert signals[0].content["curator_sources"][0]["curator_id"] == "alice"
    assert [s.record["signal_pack"]["curator"]["id"] for s in signals] == [
        "alice",
        "system_reinsert",
    ]
    file.write_text(json.dumps(legacy | {"count": 3}))
    refused(reinsert(file), 8, "count is 3")


def test_an_export_of_positions_is_no_export_of_tokens(
    reinsert: Run, state: Path, tmp_path: Path
) -> None:
    file = tmp_path / "positions.json"
    file.write_text(json.dumps({"exported_at": "x", "count": 1, "positions": [row()]}))

    refused(reinsert(file), 8, "export of positions", "statestore import")
    refused(reinsert(tmp_path / "nothing.json"), 8, "there is no")


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--auto-process"],
        ["a.json", "b.json"],
        ["reinsert"],
        ["--output", "x.json"],
        ["x.json", "--status", "active"],
        ["--processor", "a:b"],
        ["--action", "sell"],
    ],
)
def test_words_that_contradict_each_other_are_a_usage_error(
    reinsert: Run, state: Path, arguments: list[str]
) -> None:
    before = snapshot(state.parent)
    ran = reinsert(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert snapshot(state.parent) == before


def test_an_export_never_replaces_the_state(reinsert: Run, state: Path) -> None:
    refused(reinsert("export", "--output", state), 2, "would overwrite it")


def test_the_other_names_are_the_same_command(run: Run, state: Path) -> None:
    from tests.test_docs import ROOT

    assert run(reinsert_positions_as_signals, "--state", state, "--dry-run").code == 0
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts/reinsert_positions_as_signals.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--auto-process" in ran.stdout


# Crashes


def killed_at(folder: Path, calls: int, crash_after: CrashAfter, *arguments: object) -> bool:
    """Run reinsert on a new state in `folder`, killed after so many calls; False if it ended."""
    folder.mkdir()
    state = folder / ".state.json"
    state.write_bytes(STATE)
    KillSwitch(folder / "KILL_SWITCH").engage()
    words = ["reinsert", "--state", str(state), "--yes", *map(str, arguments)]
    return crash_after(calls, lambda: cli.main(words, standalone_mode=False))


@pytest.mark.parametrize("more", [[], ["--auto-process"]], ids=["signals", "auto-process"])
def test_killed_at_any_moment_no_token_is_lost_and_none_is_doubled(
    statestore: Run, crash_after: CrashAfter, tmp_path: Path, more: list[str]
) -> None:
    """Every system call that changes a file is a moment; run again, and all is well."""
    tokens = {"Demo1111", "Other222"}
    left: list[str] = []
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        killed = killed_at(folder, calls, crash_after, "--status", "active", *more)
        state, inbox = folder / ".state.json", Inbox(folder / "signals")
        pending = {str(signal.token.contract) for signal in inbox.signals("pending")[0]}
        stand = {p["token_contract"] for p in positions(state).values()}
        assert tokens <= pending | stand, f"lost after {calls} calls"
        old = [p for p in positions(state).values() if p["status"] == "active"]
        left.append(f"{len(pending)} signals, {len(old)} positions")

        again = statestore("reinsert", "--state", state, "--yes", "--status", "active", *more)
        assert again.code == 0, again.err
        assert statestore("signals", "process", "--state", state).code == 0

        found = [(p["token_contract"], p["timeframe"]) for p in positions(state).values()]
        assert sorted(found) == [
            ("Demo1111", "15m"),
            ("Demo1111", "1h"),
            ("Demo1111", "4h"),
            ("Other222", "1h"),
            ("Third333", "1h"),
        ], f"after {calls} calls"
        assert places(inbox) == {"done": ["DEMO", "OTHE"]}, f"after {calls} calls"
        if not killed:
            break
    assert len(left) >= 50
    between = [moment for moment in left if moment == "2 signals, 4 positions"]
    assert len(between) >= 10, "moments between the signals and the removal"


def test_killed_between_the_signals_and_the_removal_a_drain_waits(
    statestore: Run, crash_after: CrashAfter, tmp_path: Path
) -> None:
    """A scheduled job that comes first must not use up the signals of positions that stand."""
    waited = 0
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        killed = killed_at(folder, calls, crash_after)
        state = folder / ".state.json"
        ran = statestore("signals", "process", "--state", state)
        assert ran.code == 0, ran.err
        waited += ran.json["counts"]["waiting"] == 3
        assert len(positions(state)) in (0, 5)
        if not killed:
            break
    assert waited >= 10


def test_the_inbox_is_where_it_is_configured(
    statestore: Run, state: Path, halted: KillSwitch, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("STATESTORE_SIGNALS_DIR", str(tmp_path / "mailbox"))
    assert statestore("reinsert", "--state", state, "--yes").code == 0

    assert places(Inbox(tmp_path / "mailbox")) == {"pending": ["DEMO", "OTHE", "THIR"]}
    assert not state.with_name("signals").exists()
    monkeypatch.delenv("STATESTORE_SIGNALS_DIR")
    listed = statestore("signals", "list", "--signals-dir", tmp_path / "mailbox", "--state", state)
    assert listed.json["counts"]["pending"] == 3
