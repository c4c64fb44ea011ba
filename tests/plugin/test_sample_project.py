"""A project of somebody else, with the plugin from where it is installed: a bot and its tests."""

from __future__ import annotations

import os
import re

import pytest

from tests.plugin.test_plugin import ROOT

pytest_plugins = ["pytester"]

BOT = """
from pathlib import Path

from statestore import StateStore, TradingSession

STATE = Path("data/.state.json")


def buy(path=STATE):
    with TradingSession(StateStore(path)) as session:
        if session.tick() and not session.state["positions"]:
            session.state["positions"]["BTC-USD"] = {"side": "BUY", "quantity": 1}
            session.on_trade("BUY BTC-USD")
"""
SETTINGS = """
[tool.pytest.ini_options]
addopts = "--strict-markers --strict-config"
filterwarnings = ["error"]
pythonpath = ["src"]
testpaths = ["tests"]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A bot under ``src``. Its temporary folder is ``tmp``; everything beside that is live."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("tmp")))
    pytester.makepyprojecttoml(SETTINGS)
    (pytester.mkdir("src") / "mybot.py").write_text(BOT)
    pytester.mkdir("tests")
    return pytester


def test_the_tests_that_the_page_shows_pass(project: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "testing-your-bot.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    source, _ = (block for block in blocks if ">>>" not in block)
    (project.path / "tests" / "test_mybot.py").write_text(source)

    result = project.runpytest_subprocess("-v")

    result.assert_outcomes(passed=source.count("def test_"))
    assert not (project.path / "data").exists()


def test_every_fixture_is_told_of_by_pytest_itself(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--fixtures", "-q")

    told = r"^(state_file|state_store|kill_switch|fake_exchange|crash_after) -- .*testing\.py:\d+$"
    found = [line.split()[0] for line in result.outlines if re.match(told, line)]
    assert sorted(found) == [
        "crash_after",
        "fake_exchange",
        "kill_switch",
        "state_file",
        "state_store",
    ]


def test_a_test_that_would_trade_on_the_live_state_fails(project: pytest.Pytester) -> None:
    (project.path / "tests" / "test_mybot.py").write_text(
        "import mybot\n\ndef test_with_the_default_path(): mybot.buy()\n"
    )

    result = project.runpytest_subprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*was about to write *data/.state.json*use the fixture*"])
    assert list((project.path / "data").glob("*.json*")) == []
