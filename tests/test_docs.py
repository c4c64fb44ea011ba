"""README and docs are run: what they say happens, happens."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_the_incident_recipe_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The five commands, typed in a folder with a state, against the simulated exchange."""
    from statestore import StateStore

    exchange = request.getfixturevalue("fake_exchange")
    exchange.set_balance("BTC", "1")
    exchange.add_fills("BUY 1 BTC-USD @ 100")
    StateStore(tmp_path / "data" / ".state.json").save(
        {"positions": {"BTC-USD": {"quantity": 2, "entry_price": 90}}}
    )
    recipe = [
        line.partition(" > ")[0]
        for line in commands()
        if line.startswith(("statestore ", "rebuild_positions --hours"))
    ]
    codes = []
    for line in recipe:
        program, *arguments = shlex.split(line)
        name = ["rebuild"] if program == "rebuild_positions" else []
        ran = subprocess.run(
            [sys.executable, "-m", "statestore", *name, *arguments],
            cwd=tmp_path,
            env=os.environ | exchange.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        codes.append((line, ran.returncode, ran.stderr.decode()))

    assert len(recipe) == 5
    assert [code for _, code, _ in codes] == [0] * 5, codes
    positions = StateStore(tmp_path / "data" / ".state.json").load()["positions"]
    assert positions["BTC-USD"]["quantity"] == 1


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
