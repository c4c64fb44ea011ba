"""``--metrics-textfile``: what Prometheus reads, however a run ends."""

from __future__ import annotations

import stat
from decimal import Decimal
from pathlib import Path

import pytest

from statestore.cli import metrics
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.simulated import UNAVAILABLE, SimulatedExchange
from tests.cli.conftest import Run
from tests.test_docs import ROOT

parser = pytest.importorskip("prometheus_client.openmetrics.parser")


def samples(path: Path) -> dict[str, float]:
    families = list(parser.text_string_to_metric_families(path.read_text()))
    found = {s.name: s for family in families for s in family.samples}
    assert all(family.type == "gauge" and family.documentation for family in families)
    assert len({tuple(s.labels.items()) for s in found.values()}) == 1
    return {name.removeprefix("statestore_"): s.value for name, s in found.items()}


@pytest.fixture
def prom(tmp_path: Path) -> Path:
    return tmp_path / "statestore.prom"


def test_check_tells_what_it_found(
    statestore: Run, state_store: StateStore, kill_switch: KillSwitch, prom: Path
) -> None:
    state_store.save({"positions": {}})
    state_store.backup().write_bytes(b"{")
    state_store.backup()
    kill_switch.engage()
    ran = statestore("check", "--state", state_store.path, "--metrics-textfile", prom)
    found = samples(prom)

    assert (ran.code, found["exit_code"], found["state_good"]) == (8, 8, 0)
    assert (found["backups"], found["backups_valid"]) == (2, 1)
    assert (found["state_revision"], found["kill_switch_engaged"]) == (1, 1)
    assert 0 <= found["state_age_seconds"] < 60
    assert "last_success_timestamp_seconds" not in found
    assert "positions" not in found, "check compares none, and none is not 0"


def test_what_is_not_known_has_no_sample(
    statestore: Run, state_store: StateStore, prom: Path
) -> None:
    state_store.path.write_bytes(b"{")
    loop = state_store.path.with_name("loop")
    loop.symlink_to(loop)
    statestore(
        "check",
        *("--state", state_store.path),
        *("--kill-switch", loop / "switch", "--metrics-textfile", prom),
    )
    found = samples(prom)

    assert found["state_good"] == 0
    assert {"state_revision", "state_age_seconds", "kill_switch_engaged"}.isdisjoint(found)


def test_a_run_that_fails_keeps_the_time_of_the_last_success(
    statestore: Run,
    exchange: SimulatedExchange,
    state_store: StateStore,
    prom: Path,
    quick_retries: None,
) -> None:
    btc = {"quantity": Decimal("0.018"), "entry_price": Decimal(62000)}
    eth = {"quantity": Decimal("0.00088729")}
    state_store.save({"positions": {"BTC-USD": btc, "ETH-USD": eth, "DOGE": {"quantity": 100}}})
    given = ("verify", "--state", state_store.path, "--metrics-textfile", prom)
    first = statestore(*given)
    good = samples(prom)
    exchange.script("fills", UNAVAILABLE, forever=True)
    second = statestore(*given)
    bad = samples(prom)

    assert (first.code, good["exit_code"]) == (0, 0), first.err
    assert (good["positions"], good["positions_agreeing"]) == (3, 3)
    assert (good["positions_differing"], good["positions_unsettled"]) == (0, 0)
    assert (second.code, bad["exit_code"]) == (5, 5)
    assert bad["last_success_timestamp_seconds"] == good["last_success_timestamp_seconds"]
    assert bad["last_run_timestamp_seconds"] > good["last_run_timestamp_seconds"]
    assert "positions" not in bad
    assert "state_age_seconds" not in bad


def test_a_difference_is_counted(
    statestore: Run, exchange: SimulatedExchange, state_store: StateStore, prom: Path
) -> None:
    state_store.save({"positions": {"BTC-USD": {"quantity": 1}}})
    given = ("verify", "--state", state_store.path, "--metrics-textfile", prom, "--grace", "0")
    ran = statestore(*given, "--product", "BTC-USD", "--exit-code")
    found = samples(prom)

    assert (ran.code, found["exit_code"]) == (3, 3)
    assert (found["positions"], found["positions_differing"]) == (1, 1)
    assert "last_success_timestamp_seconds" not in found


def test_any_path_is_a_label_that_parses() -> None:
    path = 'a "quoted"\\\n\udcff name'
    text = metrics.render({"statestore_exit_code": 0}, {"state": path})
    [family] = parser.text_string_to_metric_families(text)

    assert family.samples[0].labels == {"state": 'a "quoted"\\\n? name'}


def test_the_file_comes_whole_and_the_collector_may_read_it(
    statestore: Run, state_store: StateStore, prom: Path
) -> None:
    state_store.save({"positions": {}})
    statestore("check", "--state", state_store.path, "--metrics-textfile", prom)
    before = prom.stat().st_ino
    statestore("check", "--state", state_store.path, "--metrics-textfile", prom)

    assert prom.stat().st_ino != before, "it was written in place"
    assert stat.S_IMODE(prom.stat().st_mode) == 0o644
    assert prom.read_text().endswith("# EOF\n")
    assert [path for path in prom.parent.iterdir() if ".tmp" in path.name] == []


def test_a_file_that_cannot_be_written_is_told(
    statestore: Run, state_store: StateStore, tmp_path: Path
) -> None:
    state_store.save({"positions": {}})
    given = ("check", "--state", state_store.path, "--metrics-textfile", tmp_path / "no" / "x.prom")
    ran = statestore(*given)
    state_store.path.write_bytes(b"{")
    damaged = statestore(*given)

    assert (ran.code, ran.error.startswith("Error: --metrics-textfile")) == (2, True)
    assert damaged.code == 8
    assert "Warning: --metrics-textfile" in damaged.err


@pytest.mark.parametrize("end", ["", ".bak", ".lock"])
def test_the_figures_do_not_replace_the_state(
    statestore: Run, state_store: StateStore, end: str
) -> None:
    state_store.save({"positions": {}})
    target = f"{state_store.path}{end}"
    ran = statestore("check", "--state", state_store.path, "--metrics-textfile", target)

    assert ran.code == 2
    assert "would overwrite it" in ran.error


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()

    assert [name for name in metrics.METRICS if f"`{name}`" not in page] == []
