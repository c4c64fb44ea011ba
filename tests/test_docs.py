"""README and docs are run: what they say happens, happens."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from statestore.formats import FORMATS, schema
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
def test_an_example_is_in_a_block_and_not_a_quotation(page: Path) -> None:
    outside = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)

    assert ">>>" not in outside


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def somebody(folder: Path) -> dict[str, str]:
    """The environment of somebody who works in `folder` and has nothing configured."""
    (folder / "data").mkdir()
    shutil.copytree(ROOT / "data" / "samples", folder / "data" / "samples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    package = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {"PATH": path, "PYTHONPATH": package, "HOME": str(folder), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who did what the tutorial says.

    Each command is typed in turn; what stands below it is what it says, and so is its exit.
    """
    home = tmp_path_factory.mktemp("home")
    environment = somebody(home)
    transcript = "".join(blocks("tutorial.md", "console"))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).+\n)*)", transcript, re.M)
    assert len(steps) > 15
    folder = home
    for typed, expected in steps:
        command, _, said = typed.partition("  # exit ")
        ran = subprocess.run(
            ["bash", "-c", f"{command}\ncode=$?; pwd > {home}/cwd; exit $code"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        told = " ".join((ran.stdout + ran.stderr).split())
        assert (command, ran.returncode) == (command, int(said or 0)), told
        for line in expected.splitlines():
            parts = [re.escape(" ".join(part.split())) for part in line.split("...")]
            assert re.search(r"\S*.*?".join(parts), told), f"{command}: {line!r} is not in {told}"
        folder = Path((home / "cwd").read_text().strip())
    return folder


def test_the_tutorial_tells_what_happens(rehearsal: Path) -> None:
    assert not (rehearsal / "data" / "KILL_SWITCH").exists()
    assert "undo" in (rehearsal / "incident.html").read_text()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/.state.json", "state"),
        ("data/.state.json.bak", "state"),
        ("preview.json", "rebuild"),
        ("applied.json", "rebuild"),
        ("plan.json", "plan"),
        ("verified.json", "verify"),
    ],
)
def test_what_was_written_has_the_shape_its_schema_says(
    rehearsal: Path, file: str, name: str
) -> None:
    document = json.loads((rehearsal / file).read_bytes())

    jsonschema.validate(document, schema(name))
    for key in FORMATS[name].__required_keys__:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, schema(name))


@pytest.mark.parametrize("line", ["explain BTC", "fills", "doctor"])
def test_what_is_printed_has_the_shape_its_schema_says(rehearsal: Path, line: str) -> None:
    name, *words = line.split()
    read = ["--fills", "fills.json", "--balances", "balances.json"]
    since = ["--since", "2025-11-17T00:00:00Z"]
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", name, *words, "--format", "json"]
        + ([] if name == "doctor" else read + since),
        cwd=rehearsal,
        capture_output=True,
        text=True,
        check=False,
    )

    jsonschema.validate(json.loads(ran.stdout), schema(name))


def test_each_part_has_the_shape_its_schema_says(rehearsal: Path) -> None:
    lines = (rehearsal / "data" / "state_audit.jsonl").read_text().splitlines()
    plan = json.loads((rehearsal / "plan.json").read_bytes())
    state = json.loads((rehearsal / "data" / ".state.json.bak").read_bytes())

    assert len(lines) > 2
    for line in lines:
        jsonschema.validate(json.loads(line), schema("audit"))
    for records in plan["evidence"].values():
        for record in records:
            jsonschema.validate(record, schema("fill-record"))
    assert state["positions"]
    for position in state["positions"].values():
        jsonschema.validate(position, schema("position"))


def test_the_tests_of_a_bot_run(tmp_path: Path) -> None:
    pytest.importorskip("trustme")
    file = tmp_path / "test_bot.py"
    tests = [block for block in blocks("testing-your-bot.md", "python") if ">>>" not in block]
    _, source = tests  # the first is run by tests/plugin
    file.write_text(source)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        cwd=tmp_path,
        env=somebody(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


@pytest.mark.parametrize("builder", ["html", "man"])
def test_the_documentation_builds_without_a_warning(tmp_path: Path, builder: str) -> None:
    for needed in ("sphinx", "myst_parser", "sphinx_click", "furo"):
        pytest.importorskip(needed, reason="needs: pip install 'statestore[docs]'")
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "-q", "-b", builder]
        + ["-d", tmp_path / "trees", ROOT / "docs", tmp_path / builder],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


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


def test_the_demo_tells_its_story_to_the_end(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", "demo", "--keep", tmp_path / "demo"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "kill switch" in ran.stderr
    assert "5 agree" in ran.stderr
    assert "all of them GET" in ran.stdout
    assert ".state.json.bak" in ran.stdout
    assert "rebuild by" in ran.stdout
    assert '"positions_updated": 3, "positions_removed": 1' in ran.stdout
    assert "ETH: EXACT" in ran.stdout
    assert f"{tmp_path}/demo/incident.html" in ran.stdout
    assert "EXACT" in (tmp_path / "demo" / "incident.html").read_text()
