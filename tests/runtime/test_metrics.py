"""A session's figures, as Prometheus scrapes them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from statestore import KillSwitch, StateStore, TradingSession
from statestore.cli import metrics as textfile
from tests.runtime.conftest import ROOT

prometheus_client = pytest.importorskip(
    "prometheus_client", reason="needs: pip install 'statestore[metrics]'"
)

from prometheus_client import parser  # noqa: E402
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402

from statestore.runtime.metrics import COUNTERS, GAUGES, SessionCollector  # noqa: E402


def scrape(*sessions):
    """Return what a registry of one's own exposes: ``{name: {state: value}}``."""
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(SessionCollector(*sessions))
    text = prometheus_client.generate_latest(registry).decode()
    found = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            assert list(sample.labels) == ["state"]
            found.setdefault(sample.name, {})[sample.labels["state"]] = sample.value
    return found


def figures(session):
    """Return the figures of one session, without what their names have in common."""
    path = str(session.store.path)
    return {
        name.removeprefix("statestore_"): values[path] for name, values in scrape(session).items()
    }


def test_a_running_session_tells_all(state_store):
    state_store.save({"positions": {"BTC-USD": {"quantity": 1}, "ETH-USD": {"quantity": 2}}})
    before = time.time()

    with TradingSession(state_store) as session:
        found = figures(session)
        size = state_store.path.stat().st_size

    saved = found.pop("session_last_save_timestamp_seconds")
    assert before - 1 < saved < time.time() + 1
    assert 0 < found.pop("session_last_save_duration_seconds") < 60
    assert found == {
        "session_ok": 1,
        "session_positions": 2,
        "session_lease_held": 1,
        "session_failed_saves_total": 0,
        "state_bytes": size,
        "state_revision": 2,
        "kill_switch_engaged": 0,
    }


def test_what_is_not_known_has_no_sample(state_store):
    loop = state_store.path.with_name("loop")
    loop.symlink_to(loop)

    found = figures(TradingSession(state_store, kill_switch=KillSwitch(loop / "switch")))

    assert found == {"session_lease_held": 0, "session_failed_saves_total": 0}


def test_positions_that_are_no_object_are_not_none_at_all(state_store):
    with TradingSession(state_store) as session:
        assert figures(session)["session_positions"] == 0
        session.state["positions"] = ["what the bot put there for the moment"]
        assert "session_positions" not in figures(session)
        session.state["positions"] = {}


def test_a_save_that_fails_shows_until_it_is_made_good(state_store):
    with TradingSession(state_store) as session:
        good = figures(session)
        session.state["n"] = object()
        session.on_trade()
        bad = figures(session)
        session.state["n"] = 1
        session.tick()
        better = figures(session)

    assert [f["session_ok"] for f in (good, bad, better)] == [1, 0, 1]
    assert [f["session_failed_saves_total"] for f in (good, bad, better)] == [0, 1, 1]
    last = "session_last_save_timestamp_seconds"
    assert good[last] == bad[last] < better[last]
    assert [f["state_revision"] for f in (good, bad, better)] == [1, 1, 2]


def test_a_save_of_what_did_not_change_is_a_save(state_store):
    with TradingSession(state_store) as session:
        first = figures(session)
        session.save()
        second = figures(session)

    assert first["state_revision"] == second["state_revision"]
    last = "session_last_save_timestamp_seconds"
    assert first[last] < second[last]


def test_the_kill_switch_and_the_end_of_the_lease_show(state_store, kill_switch):
    with TradingSession(state_store, kill_switch=kill_switch) as session:
        kill_switch.engage()
        assert figures(session)["kill_switch_engaged"] == 1

    assert figures(session)["session_lease_held"] == 0


def test_sessions_of_one_process_share_a_collector(tmp_path):
    sessions = [TradingSession(StateStore(tmp_path / f"{name}.json")) for name in "ab"]
    with sessions[0], sessions[1]:
        sessions[1].state["positions"]["BTC-USD"] = {"quantity": 1}
        found = scrape(*sessions)

    a, b = (str(session.store.path) for session in sessions)
    assert found["statestore_session_positions"] == {a: 0, b: 1}
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(SessionCollector(sessions[0]))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(SessionCollector(sessions[1]))


def test_any_path_is_a_label_that_parses(tmp_path):
    session = TradingSession(StateStore(tmp_path / 'a "quoted"\\\n\udcff name'))
    expected = str(tmp_path / 'a "quoted"\\\n? name')

    assert set(scrape(session)["statestore_session_lease_held"]) == {expected}


def test_it_is_openmetrics_too(state_store):
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    with TradingSession(state_store) as session:
        registry.register(SessionCollector(session))
        text = openmetrics.generate_latest(registry).decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))

    assert {f"{f.name}_total" for f in families if f.type == "counter"} == set(COUNTERS)
    assert {f.name for f in families if f.type == "gauge"} == set(GAUGES)


def test_without_prometheus_client_the_import_says_what_to_install():
    program = "import sys; sys.modules['prometheus_client'] = None; import statestore.runtime."
    alone = subprocess.run(
        [sys.executable, "-c", f"{program}session"], cwd=ROOT, capture_output=True, text=True
    )
    needing = subprocess.run(
        [sys.executable, "-c", f"{program}metrics"], cwd=ROOT, capture_output=True, text=True
    )

    assert alone.returncode == 0, alone.stderr
    last = needing.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert "pip install 'statestore[metrics]'" in last


def test_a_name_of_both_places_means_one_thing():
    shared = GAUGES.keys() & textfile.METRICS.keys()

    assert shared == {"statestore_state_revision", "statestore_kill_switch_engaged"}
    assert {name: GAUGES[name][0] for name in shared} == {
        name: textfile.METRICS[name] for name in shared
    }


def test_the_page_lists_every_figure():
    page = (ROOT / "docs" / "metrics.md").read_text()
    section = page.partition("## A running session")[2]

    assert [name for name in {**GAUGES, **COUNTERS} if f"`{name}`" not in section] == []
