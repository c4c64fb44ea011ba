"""The commands on a state in PostgreSQL: the URL in place of a file, and ``statestore db``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statestore.backends.postgres import PostgresStore
from statestore.cli.main_loop import command as main_loop
from statestore.cli.rebuild import command as rebuild_positions
from statestore.cli.state_manager import command as state_manager
from statestore.disk import codec
from statestore.simulated import SimulatedExchange
from tests.backends.proxy import Proxy
from tests.cli.conftest import Run
from tests.cli.test_rebuild_apply import ROWS, STATE, WINDOW
from tests.servers import PostgresServer


@pytest.fixture
def url(
    postgres: PostgresServer, schema_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Where the commands find the state, by STATE_FILE; with a password that nobody asks for."""
    monkeypatch.chdir(tmp_path)
    url = f"{postgres.url}?schema={schema_name}".replace("bot@", "bot:hunter2@")
    monkeypatch.setenv("STATE_FILE", url)
    return url


@pytest.fixture
def store(url: str, statestore: Run, tmp_path: Path) -> Iterator[PostgresStore]:
    """A store on it, with what the tests of rebuild have in a file."""
    ran = statestore("db", "init")
    assert ran.code == 0, ran.err
    store = PostgresStore(url)
    (tmp_path / "seed.json").write_bytes(STATE)
    store.restore(tmp_path / "seed.json")
    yield store
    store.close()


@pytest.fixture
def halted(store: PostgresStore, statestore: Run) -> None:
    assert statestore("kill-switch", "engage", "--reason", "positions look wrong").code == 0


@pytest.fixture
def rebuilt(run: Run, store: PostgresStore, halted: None, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "fills.json").write_text(json.dumps(ROWS))
    ran = run(rebuild_positions, *WINDOW, "--fills", "fills.json", "--yes")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = ran.json["state"]
    return found


def test_the_tables_are_made_once(url: str, statestore: Run, schema_name: str) -> None:
    ran = statestore("show")
    assert ran.code == 10
    assert "statestore db init" in ran.error
    ran = statestore("db", "status")
    assert (ran.code, "db init" in ran.error) == (10, True)

    ran = statestore("db", "init")
    assert ran.code == 0, ran.err
    assert (ran.json["schema"], ran.json["applied"][0]) == (schema_name, "state")
    ran = statestore("db", "upgrade")
    assert (ran.code, ran.json["applied"]) == (0, [])
    assert "nothing to do" in ran.err
    ran = statestore("db", "status")
    assert ran.code == 0, ran.err
    assert (ran.json["pending"], ran.json["server"]["fsync"]) == ([], "on")
    assert ran.json["states"] == []
    assert "hunter2" not in ran.out + ran.err


def test_show_check_and_history(store: PostgresStore, statestore: Run) -> None:
    ran = statestore("show", "--section", "positions")
    assert ran.code == 0, ran.err
    assert ran.json == json.loads(STATE)["positions"]
    with store.transaction(reason="trade") as state:
        state["trades_today"] = 99
    assert statestore("show", "--at", "1").json["trades_today"] == 13
    ran = statestore("check")
    assert ran.code == 0, ran.err
    assert ran.json["state"]["revision"] == 2
    ran = statestore("history")
    assert [v["revision"] for v in ran.json["versions"]] == [2, 1]
    assert "#1" in ran.err
    ran = statestore("diff")
    assert ran.code == 0, ran.err
    assert "section trades_today changed" in ran.err
    assert statestore("diff", ran.json["before"]["path"], "state").code == 0
    ran = statestore("watch", "--once")
    assert (ran.code, "BTC-USD" in ran.out) == (0, True)


def test_backups_go_to_a_file_and_come_back(
    store: PostgresStore, statestore: Run, halted: None, tmp_path: Path
) -> None:
    ran = statestore("backup")
    assert ran.code == 0, ran.err
    backup = Path(ran.json["backup"])
    assert backup.parent == Path("data/state_backups")
    assert statestore("backup", "--verify").code == 0
    with store.transaction() as state:
        state["trades_today"] = 99
    ran = statestore("restore", "--file", backup, "--dry-run")
    assert (ran.code, store.load()["trades_today"]) == (0, 99)
    ran = statestore("restore", "--file", backup, "--yes")
    assert ran.code == 0, ran.err
    assert (ran.json["revision"], store.load()["trades_today"]) == (3, 13)
    # Any version by its address, as history lists it, or by revision.
    address = next(v["path"] for v in statestore("history").json["versions"] if v["revision"] == 2)
    assert statestore("restore", "--file", address, "--yes").code == 0
    assert store.load()["trades_today"] == 99
    assert statestore("restore", "--at", "1", "--yes").code == 0
    assert store.load()["trades_today"] == 13
    assert statestore("restore", "--yes").code == 0  # the one before
    assert store.load()["trades_today"] == 99
    lines = statestore("audit").json["entries"]
    assert {line["state"] for line in lines} == {store.path}


def test_a_restore_needs_the_bot_halted(store: PostgresStore, statestore: Run) -> None:
    with store.transaction() as state:
        state["trades_today"] = 99
    ran = statestore("restore", "--yes")
    assert ran.code == 6
    assert "statestore kill-switch engage" in ran.error


def test_the_switch_is_for_all_machines(
    store: PostgresStore, statestore: Run, halted: None, tmp_path: Path, monkeypatch: Any
) -> None:
    assert not (tmp_path / "data" / "KILL_SWITCH").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = statestore("kill-switch", "status")
    assert (ran.json["status"], ran.json["reason"]) == ("engaged", "positions look wrong")
    assert statestore("kill-switch", "release").code == 0
    monkeypatch.chdir(tmp_path)
    assert statestore("kill-switch", "status").json["status"] == "released"


def test_a_rebuild_of_a_dry_run_writes_nothing(
    run: Run, store: PostgresStore, tmp_path: Path
) -> None:
    (tmp_path / "fills.json").write_text(json.dumps(ROWS))
    before = sorted(tmp_path.rglob("*"))
    ran = run(rebuild_positions, *WINDOW, "--fills", "fills.json", "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.json["positions_updated"] == 1
    assert store.load().meta.revision == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rebuild_writes_and_undo_takes_it_back(
    store: PostgresStore, statestore: Run, rebuilt: dict[str, Any]
) -> None:
    assert (rebuilt["path"], rebuilt["revision"]) == (store.path, 2)
    assert store.load()["positions"]["BTC-USD"]["quantity"] == 2
    ran = statestore("undo")
    assert ran.code == 0, ran.err
    assert (ran.json["revision"], ran.json["undone"]["action"]) == (3, "rebuild")
    present = codec.decode(store.read(store.path), "decimal")
    assert present == codec.decode(store.read(f"{store.path}#1"), "decimal")
    assert statestore("audit", "verify").code == 0


def test_a_plan_is_applied_to_the_database_it_was_made_for(
    run: Run, store: PostgresStore, halted: None, tmp_path: Path, statestore: Run
) -> None:
    (tmp_path / "fills.json").write_text(json.dumps(ROWS))
    ran = run(rebuild_positions, *WINDOW, "--fills", "fills.json", "--out", "plan.json")
    assert ran.code == 0, ran.err
    assert "hunter2" not in (tmp_path / "plan.json").read_text()
    assert statestore("diff", "--plan", "plan.json").code == 0
    ran = run(rebuild_positions, "--apply", "plan.json", "--yes")
    assert ran.code == 0, ran.err
    assert store.load()["positions"]["BTC-USD"]["quantity"] == 2
    ran = run(rebuild_positions, "--apply", "plan.json", "--yes")
    assert ran.code == 9
    ran = run(rebuild_positions, "--apply", "plan.json", "--state", "other.json", "--yes")
    assert ran.code == 2


def test_a_state_that_a_bot_saves_meanwhile_is_not_overwritten(
    store: PostgresStore, statestore: Run, rebuilt: dict[str, Any]
) -> None:
    with store.transaction(reason="trade") as state:
        state["trades_today"] = 14
    ran = statestore("undo")
    assert ran.code == 9
    assert store.load()["trades_today"] == 14


def test_an_edit_is_saved(
    store: PostgresStore, statestore: Run, halted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "sed -i 's/13/42/'")
    monkeypatch.delenv("VISUAL", raising=False)
    ran = statestore("edit", "--section", "trades_today", "--yes")
    assert ran.code == 0, ran.err
    assert store.load()["trades_today"] == 42


def test_sealing_says_what_works(store: PostgresStore, statestore: Run) -> None:
    ran = statestore("seal")
    assert ran.code == 2
    assert "statestore edit" in ran.error


def test_a_paper_bot_runs_and_is_looked_at(
    store: PostgresStore, run: Run, statestore: Run, tmp_path: Path
) -> None:
    ran = run(main_loop, "--mode", "PAPER", "--once", "--interval", "0")
    assert ran.code == 0, ran.err
    assert ran.json["state"] == store.path
    ran = run(state_manager, "check", "--format", "json")
    assert ran.code == 0, ran.err
    assert (ran.json["healthy"], ran.json["path"]) == (True, store.path)
    assert run(state_manager, "check").code == 0
    ran = run(state_manager, "backup", "--dir", "copies")
    assert ran.code == 0, ran.err
    ran = statestore("doctor", "--offline", "--format", "json")
    assert ran.code in (0, 4), ran.out
    assert [c for c in ran.json["checks"] if c["level"] == "failure" and c["check"] != "key"] == []
    ran = statestore("verify", *WINDOW, "--fills", "fills.json")
    assert ran.code != 1


def test_no_password_is_printed_by_any_of_them(
    run: Run, statestore: Run, store: PostgresStore, rebuilt: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    report = ("--dry-run", "--report", "page.html")
    run(rebuild_positions, *WINDOW, "--fills", "fills.json", *report)
    for words in (
        ("show",), ("check",), ("history",), ("diff",), ("doctor", "--offline"), ("audit",),
        ("db", "status"), ("kill-switch", "status"), ("watch", "--once"), ("undo", "--dry-run"),
        ("check", "--metrics-textfile", "state.prom"), ("db", "reconcile"),
    ):  # fmt: skip
        ran = statestore(*words)
        assert ran.code != 1, ran.err
        assert "hunter2" not in ran.out + ran.err
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes(), file


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a state on a server that is not there, in an empty folder."""
    pytest.importorskip("psycopg")
    monkeypatch.chdir(tmp_path)
    proxy = Proxy(1)
    proxy.close()
    return f"postgresql://bot:hunter2@127.0.0.1:{proxy.port}/postgres"


def test_a_server_that_is_away_is_exit_10(statestore: Run, away: str, tmp_path: Path) -> None:
    for words in (("show",), ("check",), ("history",), ("db", "status"), ("backup",)):
        ran = statestore(*words, "--state", away)
        assert ran.code == 10, (words, ran.err)
        assert "cannot be reached" in ran.error
        assert "hunter2" not in ran.err
    ran = statestore("kill-switch", "engage", "--state", away)
    assert ran.code == 10
    assert "on this machine only" in ran.error
    assert (tmp_path / "data" / "KILL_SWITCH").exists()


def test_a_doctor_names_the_database_once_and_what_to_type(statestore: Run, away: str) -> None:
    ran = statestore("doctor", "--offline", "--format", "json", "--state", away)
    assert ran.code == 10
    failures = [line for line in ran.json["checks"] if line["level"] == "failure"]
    assert [line["check"] for line in failures] == ["state", "kill-switch"]
    assert {line["remedy"] for line in failures} == {"statestore db status"}
    ran = statestore("edit", "--state", away)
    assert (ran.code, "cannot be looked at (`statestore doctor`" in ran.error) == (6, True)


def test_orders_are_found_by_the_url_of_the_state(store: PostgresStore, statestore: Run) -> None:
    ran = statestore("orders", "list")
    assert (ran.code, ran.json["positions"]) == (0, []), ran.err


def test_db_commands_need_a_database(statestore: Run, tmp_path: Path) -> None:
    for words in (("init",), ("status",), ("upgrade",), ("reconcile",)):
        ran = statestore("db", *words, "--state", tmp_path / "state.json")
        assert ran.code == 2
        assert "postgresql://" in ran.error


def test_a_fork_is_for_an_operator_to_decide(
    statestore: Run, url: str, store: PostgresStore, postgres: PostgresServer, tmp_path: Path
) -> None:
    proxy = Proxy(postgres.port)
    proxy.run()
    with_file = f"{url.replace(str(postgres.port), str(proxy.port))}&file_fallback=fallback.json"
    bot = PostgresStore(with_file, failover_seconds=0.1)
    state = bot.load()
    state["trades_today"] = 14
    bot.save(state)
    proxy.down()
    state["trades_today"] = 15
    bot.save(state)
    bot.close()
    with store.transaction(reason="elsewhere") as theirs:
        theirs["trades_today"] = 20
    proxy.up()

    ran = statestore("show", "--state", with_file)
    assert ran.code == 9
    assert "statestore db reconcile" in ran.error
    # What the message says to type shows both, though nobody can say which is the state.
    look = re.search(r"look at both \(`statestore (diff .*?)`\)", ran.error)
    assert look is not None, ran.error
    looked = statestore(*shlex.split(look[1]), "--state", with_file)
    assert looked.code == 0, looked.err
    assert "section trades_today changed" in looked.err
    assert statestore("db", "reconcile", "--state", with_file).code == 9
    ran = statestore("db", "reconcile", "--state", with_file, "--take", "file")
    assert ran.code == 6
    assert statestore("kill-switch", "engage").code == 0
    with store.lease():
        ran = statestore("db", "reconcile", "--state", with_file, "--take", "file")
        assert ran.code == 7
    ran = statestore("db", "reconcile", "--state", with_file, "--take", "file")
    assert ran.code == 0, ran.err
    assert store.load()["trades_today"] == 15
    assert ran.json["aside"].startswith(str(tmp_path / "fallback.json.dropped-"))
    ran = statestore("db", "status", "--state", with_file)
    assert ran.json["fallback"]["pending_since"] is None
    proxy.close()


def test_a_password_has_no_place_in_the_settings_file(
    statestore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATE_FILE", raising=False)
    Path("statestore.toml").write_text('state = "postgresql://bot:hunter2@h/x"\n')
    ran = statestore("show")
    assert ran.code == 2
    assert ".pgpass" in ran.error
    assert "hunter2" not in ran.err


def test_the_commands_of_the_page_run(
    statestore: Run,
    run: Run,
    url: str,
    tmp_path: Path,
    exchange: SimulatedExchange,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[2] / "docs/postgresql.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.S)
    monkeypatch.setenv("STATE_FILE", f"{url}&file_fallback=data/fallback.json")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.state.json").write_bytes(STATE)
    lines = [
        shlex.split(line.removeprefix("$ ")) for block in blocks for line in block.splitlines()
    ]
    assert len(lines) > 12
    for program, *words in lines:
        ran = statestore(*words) if program == "statestore" else run(rebuild_positions, *words)
        # There is one revision when `diff` is shown, and nothing before it.
        assert ran.code == 0 or (words == ["diff"] and ran.code == 8), (words, ran.err)


def test_the_inventory_asks_the_database_of_the_state(
    url: str, statestore: Run, postgres: PostgresServer
) -> None:
    ran = statestore("inventory")
    items = {item["name"]: item for item in ran.json["items"]}
    assert ran.code == 10  # no tables yet, so what is in them is unknown
    assert items["positions"]["present"] is items["postgres"]["present"] is None
    assert "statestore db init" in ran.json["why"]

    statestore("db", "init")
    statestore("kill-switch", "engage", "--reason", "wipe")
    PostgresStore(url).save({"positions": {"BTC-USD": {"quantity": 1}}})
    ran = statestore("inventory")
    items = {item["name"]: item for item in ran.json["items"]}
    assert ran.code == 0, ran.err
    assert items["kill switch"]["present"] is True
    assert items["postgres"]["note"] == "0 positions, 0 orders"
    assert ran.json["at_stake"] == ["state", "positions", "kill switch", "postgres"]


def test_positions_in_a_database_become_signals_once_its_switch_halts(
    url: str, store: PostgresStore, statestore: Run
) -> None:
    token = {"token_contract": "Demo1111", "token_chain": "solana", "timeframe": "1h"}
    with store.transaction() as state:
        state["positions"] = {"D": {**token, "status": "watchlist", "total_quantity": 0}}
    ran = statestore("reinsert", "--status", "watchlist", "--yes")
    assert (ran.code, "kill-switch engage" in ran.error) == (6, True)
    statestore("kill-switch", "engage", "--reason", "restart")  # a row, and no file
    exported = statestore("reinsert", "export", "--output", "tokens.json")
    assert json.loads(Path("tokens.json").read_text())["source"]["backend"] == "postgresql"
    assert exported.json["tokens"] == 1
    ran = statestore("reinsert", "--status", "watchlist", "--yes")
    assert ran.code == 0, ran.err
    assert store.load()["positions"] == {}
    statestore("kill-switch", "release")
    ran = statestore("signals", "process")
    assert ran.code == 0, ran.err
    assert [p["token_contract"] for p in store.load()["positions"].values()] == ["Demo1111"]
    assert statestore("undo", "--dry-run").code == 0
