"""``statestore fleet``: two hundred accounts, ten of them broken, on whatever runs them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.simulated import SimulatedExchange, fills
from statestore.times import NANOSECONDS, format_instant, now
from tests.cli.conftest import Ran, Run

HOUR = 3600 * NANOSECONDS
RECENTLY = format_instant(now() - 2 * HOUR)


@dataclass
class Fleet:
    """A fleet file and what stands around it; written by `write`."""

    folder: Path
    accounts: dict[str, dict[str, object]] = field(default_factory=dict)
    defaults: dict[str, object] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "fleet.toml"

    def write(self) -> Path:
        tables = {"defaults": self.defaults}
        tables |= {f"accounts.{name}": values for name, values in self.accounts.items()}
        self.path.write_text("\n".join(map(_table, tables, tables.values())))
        return self.path

    def state(self, name: str) -> Path:
        return self.folder / name / ".state.json"

    def store(self, name: str) -> StateStore:
        return StateStore(self.state(name))

    def add(self, name: str, positions: dict[str, Any] | None = None, **values: object) -> None:
        (self.folder / name).mkdir()
        self.accounts[name] = {"state": f"{name}/.state.json", **values}
        if positions is not None:
            self.store(name).save({"positions": positions, "open_orders": {"o1": {}}})

    def recorded(
        self, name: str, number: int, positions: dict[str, Any] | None, **files: Any
    ) -> None:
        """Add an account that bought 3 and sold 1 at 100 + its number: 2 are held at that price."""
        price = 100 + number
        rows = fills(f"BUY 3 BTC-USD @ {price}", f"SELL 1 BTC-USD @ {price + 5}", start=RECENTLY)
        self.add(name, positions, fills=f"{name}/fills.json", balances=f"{name}/balances.json")
        for file, content in {"fills": rows, "balances": {"BTC": "2"}, **files}.items():
            (self.folder / name / f"{file}.json").write_text(json.dumps(content))

    def live(self, name: str, exchange: SimulatedExchange, asset: str, **values: object) -> None:
        """Add an account whose bot trades one asset of the portfolio behind an exchange's key."""
        given = {"rate": 30, "key_file": f"keys/{_key(exchange)}", **values}
        positions = {f"{asset}-USD": {"quantity": 9, "entry_price": 1}}
        products = [f"{asset}-USD"]
        self.add(name, positions, base_url=exchange.base_url, products=products, **given)


def _table(name: str, values: dict[str, object]) -> str:
    lines = [f"{setting} = {json.dumps(value)}" for setting, value in values.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def held(quantity: int, entry: int) -> dict[str, Any]:
    return {"BTC-USD": {"quantity": quantity, "entry_price": entry}}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def exchanges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], list[SimulatedExchange]]]:
    """Start exchanges, each with a key, a portfolio and a server of its own: 4 BTC and 5 ETH."""
    pytest.importorskip("trustme", reason="needs: pip install 'statestore[simulated]'")
    with ExitStack() as stack:

        def start(count: int) -> list[SimulatedExchange]:
            started = [stack.enter_context(SimulatedExchange()) for _ in range(count)]
            (tmp_path / "keys").mkdir()
            bundle = tmp_path / "ca.pem"
            bundle.write_bytes(b"".join(one.ca_file.read_bytes() for one in started))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            for one in started:
                one.write_key_file(tmp_path / "keys" / _key(one))
                one.add_fills("BUY 4 BTC-USD @ 200", "BUY 5 ETH-USD @ 30", start=RECENTLY)
                one.set_balance("BTC", "4")
                one.set_balance("ETH", "5")
                one.set_product("BTC-USD", price="210")
                one.set_product("ETH-USD", price="31")
            return started

        yield start


def without_timings(ran: Ran) -> dict[str, Any]:
    told: dict[str, Any] = ran.json
    assert set(told.pop("run")) == {"executor", "seconds", "seconds_by_account"}
    return told


# Two hundred ------------------------------------------------------------------------------------

BROKEN = {
    "key-of-another": ("CredentialsError", 4, "the key is refused"),
    "key-file-missing": ("CredentialsError", 4, "cannot read key file"),
    "key-not-set": ("CredentialsError", 4, "set NOBODY_SET_THIS"),
    "state-torn": ("StateCorrupt", 8, "torn/.state.json"),
    "state-edited": ("StateChecksumMismatch", 8, "edited/.state.json"),
    "state-missing": ("StateMissing", 8, "missing/.state.json"),
    "lease-held": ("LeaseHeld", 7, "a bot runs on"),
    "fills-partial": ("RebuildRefused", 3, "BTC PARTIAL"),
    "fills-cut-off": ("IncompleteRead", 5, "its last page has the cursor"),
    "fills-unreadable": ("RebuildRefused", 3, "cannot be read for certain"),
}
LIVE = 40  # exchanges, of two accounts each


def two_hundred(fleet: Fleet, servers: list[SimulatedExchange]) -> Fleet:
    """110 recorded accounts, 80 live ones, and the ten broken ones among them."""
    # The same window for each run, whenever it comes.
    fleet.defaults["since"] = format_instant(now() - 48 * HOUR)
    cut_off = {"fills": fills("BUY 3 BTC-USD @ 100"), "cursor": "more"}
    unreadable = [*fills("BUY 2 BTC-USD @ 100"), fills("BUY 1 BTC-USD @ 1")[0] | {"side": "?"}]
    broken: list[Callable[[], None]] = [
        lambda: fleet.live(
            "key-of-another", servers[0], "BTC", key_file=f"keys/{_key(servers[1])}"
        ),
        lambda: fleet.live("key-file-missing", servers[0], "BTC", key_file="keys/none"),
        lambda: fleet.live(
            "key-not-set",
            servers[0],
            "BTC",
            key_file="",
            api_key_env="NOBODY_SET_THIS",
            api_secret_env="NOR_THAT",
        ),
        lambda: fleet.recorded("state-torn", 0, None),
        lambda: fleet.recorded("state-edited", 0, held(1, 1)),
        lambda: fleet.recorded("state-missing", 0, None),
        lambda: fleet.recorded("lease-held", 0, held(1, 1)),
        lambda: fleet.recorded("fills-partial", 0, held(1, 1), balances={"BTC": "7"}),
        lambda: fleet.recorded("fills-cut-off", 0, held(1, 1), fills=cut_off),
        lambda: fleet.recorded("fills-unreadable", 0, held(1, 1), fills=unreadable),
    ]
    for number in range(200 - len(broken) - 2 * LIVE):
        if number % 20 == 10:
            broken.pop(0)()
        fleet.recorded(f"n{number:03}", number, held(1, 1))
    while broken:
        broken.pop(0)()
    for number, server in enumerate(servers):
        fleet.live(f"live-{number}-btc", server, "BTC")
        fleet.live(f"live-{number}-eth", server, "ETH")
    fleet.state("state-torn").write_text('{"positions": {"BTC')
    edited = fleet.state("state-edited")
    edited.write_text(edited.read_text().replace('"quantity": 1', '"quantity": 3'))
    return fleet


def _key(server: SimulatedExchange) -> str:
    return server.base_url.replace(":", "-")


def plans_are_right(told: dict[str, Any]) -> int:
    """Check each plan by hand's figures; return how many there were."""
    accounts = {one["account"]: one for one in told["accounts"] if one["account"] not in BROKEN}
    for name, one in accounts.items():
        kind, _, asset = name.rpartition("-")
        price, units = {"": ("", "2"), "btc": ("200", "4"), "eth": ("30", "5")}[
            asset if kind else ""
        ]
        (change,) = one["changes"]
        assert one["outcome"] == "proposed", name
        assert change["status"] == "EXACT"
        assert change["quantity"]["after"] == units, name
        assert change["entry_price"]["after"] == (price or str(100 + int(name[1:]))), name
    return len(accounts)


def test_two_hundred_accounts_of_which_ten_are_broken_are_the_same_on_threads_processes_and_dask(
    fleet: Fleet, exchanges: Callable[[int], list[SimulatedExchange]], statestore: Run
) -> None:
    """The must-show of fleets."""
    servers = exchanges(LIVE)
    path = two_hundred(fleet, servers).write()
    before = _everything(fleet.folder)
    executors = ["threads", "processes"]
    with ExitStack() as stack, fleet.store("lease-held").lease():
        executors += _dask(stack)
        ran = {one: statestore("fleet", "plan", path, "--executor", one) for one in executors}

    first = ran["threads"]
    assert first.code == 3, first.err
    told = without_timings(first)
    assert len(told["accounts"]) == told["counts"]["accounts"] == 200
    assert plans_are_right(told) == told["counts"]["ok"] == 190
    assert {one["account"] for one in told["failures"]} == set(BROKEN)
    for one in told["failures"]:
        error, code, text = BROKEN[one["account"]]
        assert (one["error"], one["exit_code"]) == (error, code), one
        assert text in one["text"]
        assert one["account"] in first.err
    for other in executors[1:]:
        assert ran[other].code == 3
        assert _by_line(without_timings(ran[other])) == _by_line(told), other
    assert {request.method for server in servers for request in server.requests} == {"GET"}
    secrets = [secret for one in servers for secret in (one.api_secret, one.api_key)]
    assert not [s for s in secrets for one in ran.values() if s in one.out + one.err]
    lease = fleet.store("lease-held").lease_path
    before[lease] = _everything(fleet.folder)[lease]  # the bot's own
    assert _everything(fleet.folder) == before
    if len(executors) < 3:
        pytest.skip("threads and processes agree; Dask needs: pip install 'statestore[fleet]'")


def _by_line(told: dict[str, Any]) -> list[str]:
    return json.dumps(told, indent=1).splitlines()


def _dask(stack: ExitStack) -> list[str]:
    """Start a cluster of two processes, of two threads each; nothing where there is no Dask."""
    try:
        from distributed import LocalCluster
    except ImportError:
        return []
    cluster = stack.enter_context(
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0", silence_logs=50
        )
    )
    return [f"dask:{cluster.scheduler_address}"]


def _everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# Writing, and looking at what was written -----------------------------------------------------


def outcomes(ran: Ran) -> dict[str, str]:
    return {one["account"]: one["outcome"] for one in ran.json["accounts"]}


def failure(ran: Ran, account: str) -> tuple[str, int]:
    one = next(one for one in ran.json["failures"] if one["account"] == account)
    return one["error"], one["exit_code"]


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_an_apply_writes_each_account_by_the_rules_of_a_single_rebuild(
    fleet: Fleet,
    exchanges: Callable[[int], list[SimulatedExchange]],
    statestore: Run,
    executor: str,
) -> None:
    server, *_ = exchanges(1)
    fleet.recorded("alice", 1, held(1, 1))
    fleet.recorded("bob", 2, held(1, 1), balances={"BTC": "7"})
    fleet.recorded("carol", 3, held(1, 1))
    fleet.live("dave", server, "BTC")
    fleet.live("erin", server, "ETH")
    for name in ("alice", "bob", "dave", "erin"):
        KillSwitch(fleet.folder / name / "KILL_SWITCH").engage("test", "me")
    path = fleet.write()
    first = statestore("fleet", "apply", path, "--yes", "--executor", executor)
    second = statestore("fleet", "apply", path, "--yes", "--account", "alice", "-q")

    assert first.code == 3
    assert outcomes(first) == {
        "alice": "written",
        "bob": "unproven",
        "carol": "failed",
        "dave": "written",
        "erin": "written",
    }
    assert failure(first, "bob") == ("RebuildRefused", 3)
    assert failure(first, "carol") == ("KillSwitchNotEngaged", 6)
    assert (second.code, outcomes(second), second.err) == (0, {"alice": "nothing"}, "")
    for name, asset, units, entry in (("alice", "BTC", 2, 101), ("erin", "ETH", 5, 30)):
        found = fleet.store(name).load()
        assert found["positions"][f"{asset}-USD"]["quantity"] == units
        assert found["positions"][f"{asset}-USD"]["entry_price"] == entry
        assert found["open_orders"] == {"o1": {}}
        assert found.meta.revision == 2
        assert StateStore(fleet.store(name).backup_path).load().meta.revision == 1
        (line,) = AuditLog(fleet.folder / name / "state_audit.jsonl").entries()
        assert (line["action"], line["revision_before"]) == ("rebuild", 1)
        told = next(one for one in first.json["accounts"] if one["account"] == name)
        assert (told["written"], told["backup"]) == (2, line["backup"])
    for name in ("bob", "carol"):
        assert fleet.store(name).load().meta.revision == 1
        assert not (fleet.folder / name / "state_backups").exists()


def test_a_verify_names_who_differs_and_who_cannot_be_told(
    fleet: Fleet, exchanges: Callable[[int], list[SimulatedExchange]], statestore: Run
) -> None:
    server, *_ = exchanges(1)
    fleet.defaults["grace"] = 0
    fleet.recorded("right", 1, held(2, 101))
    fleet.recorded("wrong", 2, held(1, 102))
    fleet.recorded("unknown", 3, held(7, 103), balances={"BTC": "7"})
    fleet.live("live", server, "BTC")
    ran = statestore("fleet", "verify", fleet.write())

    assert ran.code == 3
    assert outcomes(ran) == {
        "right": "agrees",
        "wrong": "differs",
        "unknown": "unproven",
        "live": "differs",
    }
    assert failure(ran, "wrong") == (None, 3)
    assert "BTC-USD differs" in next(
        one["text"] for one in ran.json["failures"] if one["account"] == "live"
    )
    assert statestore("fleet", "verify", fleet.path, "--account", "right").code == 0


def test_a_bot_that_runs_is_in_the_way_unless_it_is_halted(fleet: Fleet, statestore: Run) -> None:
    for name in ("trading", "halted"):
        fleet.recorded(name, 1, held(1, 1))
    KillSwitch(fleet.folder / "halted" / "KILL_SWITCH").engage("test", "me")
    path = fleet.write()
    with fleet.store("trading").lease(), fleet.store("halted").lease():
        planned = statestore("fleet", "plan", path)
        applied = statestore("fleet", "apply", path, "--yes", "--allow-live")

    for ran, good in ((planned, "proposed"), (applied, "written")):
        assert outcomes(ran) == {"trading": "failed", "halted": good}
        assert failure(ran, "trading") == ("LeaseHeld", 7)
    assert fleet.store("trading").load().meta.revision == 1


def test_accounts_of_one_key_keep_to_its_rate_together(
    fleet: Fleet, exchanges: Callable[[int], list[SimulatedExchange]], statestore: Run
) -> None:
    rate = 5
    server, *_ = exchanges(1)
    for number in range(4):
        fleet.live(f"bot-{number}", server, ("BTC", "ETH")[number % 2], rate=rate)
    started = time.monotonic()
    ran = statestore("fleet", "plan", fleet.write(), "--jobs", 4)

    assert ran.code == 0, ran.err
    seconds = (len(server.requests) - 1) // rate
    assert seconds >= 3
    # Four rates of their own would be through in one second. Never sooner, on any machine.
    assert server.requests[-1].at - started >= seconds


def test_a_report_of_a_fleet_leads_to_that_of_each_account(fleet: Fleet, statestore: Run) -> None:
    pytest.importorskip("jinja2", reason="needs: pip install 'statestore[report]'")
    fleet.recorded("alice", 1, held(1, 1))
    fleet.recorded("bob", 2, None)
    pages = fleet.folder / "pages"
    missing = statestore("fleet", "plan", fleet.write(), "--report", pages)
    pages.mkdir()
    ran = statestore("fleet", "plan", fleet.path, "--report", pages)
    again = statestore("fleet", "plan", fleet.path, "--report", pages)

    assert (missing.code, ran.code, again.code) == (2, 3, 3)
    assert {page.name for page in pages.iterdir()} == {"index.html", "account-alice.html"}
    index = (pages / "index.html").read_text()
    assert 'href="account-alice.html"' in index
    assert "StateMissing" in index
    assert "2 BTC" in (pages / "account-alice.html").read_text()


def test_no_setting_of_the_environment_reaches_an_account(
    fleet: Fleet, statestore: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STATE_FILE", "STATESTORE_KILL_SWITCH", "COINBASE_API_KEY", "STATESTORE_CONFIG"):
        monkeypatch.setenv(name, "/nowhere")
    fleet.recorded("alice", 1, held(1, 1))

    assert statestore("fleet", "plan", fleet.write()).code == 0


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("fibres", "threads, processes, dask:ADDRESS and module:function"),
        ("no_such_module:make", "importable"),
        ("json:dumps2", "json"),
        ("builtins:dict", "dict, which is no concurrent.futures.Executor"),
    ],
)
def test_an_executor_that_cannot_be_had_is_a_usage_error(
    fleet: Fleet, statestore: Run, executor: str, said: str
) -> None:
    fleet.recorded("alice", 1, held(1, 1))
    ran = statestore("fleet", "plan", fleet.write(), "--executor", executor)

    assert ran.code == 2
    assert said in ran.error


def test_an_executor_of_ones_own_is_called_and_shut_down(
    fleet: Fleet, statestore: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fleet.folder / "ours.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "made = []\n"
        "def make():\n"
        "    made.append(ThreadPoolExecutor(1))\n"
        "    return made[0]\n"
    )
    monkeypatch.syspath_prepend(fleet.folder)
    fleet.recorded("alice", 1, held(1, 1))
    ran = statestore("fleet", "plan", fleet.write(), "--executor", "ours:make")
    import ours  # type: ignore[import-not-found]

    assert ran.code == 0, ran.err
    with pytest.raises(RuntimeError, match="shutdown"):
        ours.made[0].submit(print)
