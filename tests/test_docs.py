"""README and docs are run: what they say happens, happens."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from statestore.times import NANOSECONDS, format_instant, now

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testfile(str(page), module_relative=False)

    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["docs/threat-model.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))

    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in written} == set()


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", "\n".join(p.read_text() for p in PAGES), re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines]


def test_every_script_that_is_named_exists() -> None:
    scripts = [line.split()[0] for line in commands() if line.startswith("scripts/")]

    assert {"scripts/demo", "scripts/test"} <= set(scripts)
    assert [script for script in scripts if not os.access(ROOT / script, os.X_OK)] == []


def test_the_offline_example_runs(tmp_path: Path) -> None:
    line = next(line for line in commands() if "--fills data/samples" in line)
    program, *arguments = shlex.split(line)
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{program}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert '"positions_removed": 1' in ran.stdout


def recipe() -> list[str]:
    block = re.search(r"```console\n(\$ statestore kill-switch engage.*?)```", README, re.S)
    assert block
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def test_the_incident_recipe_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each command in order, typed in a folder with a state, against the simulated exchange."""
    from statestore import StateStore

    exchange = request.getfixturevalue("fake_exchange")
    exchange.set_balance("BTC", "1")
    exchange.set_product("BTC-USD", price="110")
    exchange.add_fills("BUY 1 BTC-USD @ 100", start=format_instant(now() - 3600 * NANOSECONDS))
    store = StateStore(tmp_path / "data" / ".state.json")
    store.save({"positions": {"BTC-USD": {"quantity": 2, "entry_price": 90}}})
    told = {}
    for line in recipe():
        typed, _, target = line.partition(" > ")
        program, *arguments = shlex.split(typed)
        name = ["rebuild"] if program == "rebuild_positions" else []
        ran = subprocess.run(
            [sys.executable, "-m", "statestore", *name, *arguments],
            cwd=tmp_path,
            env=os.environ | exchange.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
        told[line] = ran
        if target:
            told[target] = json.loads(ran.stdout)

    outputs = iter(told[line] for line in recipe())
    assert "Engaged" in next(outputs).stderr
    assert "0 failure(s)" in next(outputs).stdout
    assert told["preview.json"]["changes"][0]["after"]["quantity"] == 1
    assert told["difference.json"]["positions"]["changed"]["BTC-USD"]["entry_price"] == {
        "before": 90,
        "after": 100,
    }
    assert "BUY" in told["statestore explain BTC"].stdout
    assert told["applied.json"]["state"]["revision"] == 2
    assert "statestore undo" in (tmp_path / "incident.html").read_text()
    assert told["verified.json"]["verdict"] == "agrees"
    assert told["undo.json"]["difference"]["positions"]["changed"]["BTC-USD"]["quantity"] == {
        "before": 1,
        "after": 2,
    }
    assert "Released" in told["statestore kill-switch release"].stderr
    assert store.load()["positions"]["BTC-USD"]["entry_price"] == 100
    assert {asked.method for asked in exchange.requests} == {"GET"}


def test_the_demo_tells_its_story_to_the_end() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", "demo"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert "kill switch" in ran.stderr
    assert "all of them GET" in ran.stdout
    assert ".state.json.bak" in ran.stdout
    assert "rebuild by" in ran.stdout
    assert '"positions_updated": 0, "positions_removed": 0' in ran.stdout
