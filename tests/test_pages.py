"""The pages against the program: what they name is there, what there is they name, and they run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import click
import jsonschema
import pytest

import statestore
from statestore import StateStore, config, errors
from statestore.cli import cli
from statestore.cli.exits import CODES, MEANINGS
from statestore.formats import schema
from statestore.repair.fleetfile import load_fleet
from statestore.simulated import fills
from statestore.times import NANOSECONDS, format_instant, now
from tests.test_docs import PAGES, ROOT, blocks, somebody

PROGRAMS = {
    "statestore": [],
    "rebuild_positions": ["rebuild"],
    "export_positions": ["export"],
    "import_positions": ["import"],
    "reinsert_positions_as_signals": ["reinsert"],
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# What is named is there


def lines(text: str) -> Iterator[str]:
    """The command lines of a page: in blocks, and in code within a sentence."""
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    code = [
        line for kind, block in fenced if kind in ("", "console") for line in block.splitlines()
    ]
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    for line in code + re.findall(r"`([^`\n]+)`", rest):
        found = re.search(rf"(?:^|\$ |\* )({'|'.join(PROGRAMS)})((?: .*)?)$", line.strip())
        if found:
            yield found[1] + re.sub(r" +(#|>|\|).*", "", found[2])


def resolved(words: list[str]) -> tuple[set[str], list[str], click.Command]:
    """The options a command line may have, what else it says, and its command."""
    context, command = click.Context(cli), cli
    options: set[str] = {"--help", "-h"}
    rest = [*PROGRAMS[words[0]], *words[1:]]
    while True:
        options |= {
            name for param in command.params for name in (*param.opts, *param.secondary_opts)
        }
        if not (isinstance(command, click.Group) and rest and not rest[0].startswith("-")):
            return options, rest, command
        deeper = command.get_command(context, rest[0])
        if deeper is None:
            return options, rest, command
        command = deeper
        rest = rest[1:]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_and_option_that_is_named_exists(path: Path) -> None:
    for line in lines(path.read_text()):
        options, rest, command = resolved(shlex.split(line))
        named = {word.partition("=")[0] for word in rest if word.startswith("-") and len(word) > 1}
        assert named <= options, f"{line}: {named - options}"
        if isinstance(command, click.Group) and rest and rest[0].islower():
            # `reinsert FILE` is a command as well as a group of them.
            assert rest[0].startswith("-") or "." in rest[0], f"{line}: no command {rest[0]}"


@cache
def every_option(command: click.Command = cli) -> set[str]:
    found = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found |= every_option(command.get_command(context, name))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_option_that_is_named_alone_exists(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    named = set(re.findall(r"`(--[a-z][a-z-]+)(?=[` =])", text)) - {"--help", "--version"}
    ours = "\n".join(p.read_text() for p in (ROOT / "scripts").iterdir() if p.is_file())
    ours += "\n".join(p.read_text() for p in (ROOT / "statestore").rglob("*.py"))

    assert {name for name in named - every_option() if f'"{name}"' not in ours} == set()


def test_the_search_for_commands_finds_them() -> None:
    found = list(lines((ROOT / "README.md").read_text()))

    assert "statestore diff --plan plan.json" in found
    assert "rebuild_positions --hours 72" in found
    assert resolved(["rebuild_positions", "--nonsense"])[1] == ["--nonsense"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_examples_import_from_here_exists(path: Path) -> None:
    """Also in those examples that no test can run: they need a server, or a cluster."""
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        if ">>>" in block:
            continue  # is run
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("statestore"):
                module = importlib.import_module(node.module or "")
                assert [n.name for n in node.names if not hasattr(module, n.name)] == []


# What there is, is named


def test_every_public_name_is_on_the_page_of_the_library() -> None:
    text = page("api.md")

    assert [n for n in statestore.__all__ if getattr(statestore, n) is None] == []
    with_the_tree = {name for name in statestore.__all__ if hasattr(errors, name)}
    rest = set(statestore.__all__) - with_the_tree - {"__version__"}
    assert {name for name in rest if f"statestore.{name}" not in text} == set()


def test_every_setting_and_variable_is_in_the_settings() -> None:
    told = config.__doc__ or ""
    source = Path(config.__file__).read_text().replace(told, "")
    variables = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", source))
    variables |= set(config._PATHS.values()) | set(config._TEXTS.values())
    variables |= {
        f"TRADING_STATE_{name.upper()}" for name in config.TradingStateSettings.__annotations__
    }
    settings = {*config._PATHS, *config._TEXTS, "reserve", "backups", *config._RETENTION}

    assert len(variables) > 25
    assert {name for name in variables | settings if name not in told} == set()


def test_every_exit_code_has_one_meaning_on_one_page() -> None:
    assert {code for _, code in CODES} <= set(MEANINGS)
    assert "<!-- exit codes -->" in page("cli.md")


def listed() -> list[str]:
    """The patterns of files.md: ``<time>`` stands for anything."""
    rows = re.findall(r"^\| (`.*?) \|", page("files.md"), re.M)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [re.sub(r"<[^>]+>", "*", name) for name in names]


def unlisted(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not any(fnmatchcase(name, pattern) for pattern in listed())}


def test_every_file_of_a_life_is_in_the_list(tmp_path: Path) -> None:
    """A session, a damaged file, a repair, bars, a ledger, signals, exports, a fallback file."""
    environment = somebody(tmp_path)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    state = {"positions": {"solana:Demo1111:1h": TOKEN, "BTC-USD": {"quantity": 1}}}
    store = StateStore(tmp_path / "data" / ".state.json")
    for reason in ("first", "second"):
        store.save({**state, "why": reason})
    (tmp_path / "data" / ".state.json").write_text("{")
    for line in (
        "statestore kill-switch engage",
        "statestore restore --file data/.state.json.bak --yes",
        "statestore bootstrap --bars-source none > bootstrap.json",
        "statestore fills --fills data/samples/fills.json > fills.json",
        "statestore export",
        "statestore reinsert --status watchlist --yes",
        "statestore reinsert export",
        "statestore signals process",
        "python scripts/state_manager.py backup",
    ):
        typed(line, tmp_path, environment)
    with store.lease():
        named = listed()
        assert unlisted(tmp_path / "data") - samples(tmp_path) == set()
    exported = {path.name for path in tmp_path.glob("*_backup_*.json")}
    assert len(exported) == 2
    assert {n for n in exported if not any(fnmatchcase(n, pattern) for pattern in named)} == set()


def samples(home: Path) -> set[str]:
    return {f"samples/{path.name}" for path in (home / "data" / "samples").iterdir()}


def test_the_examples_of_the_files_have_the_shape_their_schemas_say() -> None:
    state, export = map(json.loads, blocks("files.md", "json"))

    jsonschema.validate(state, schema("state"))
    jsonschema.validate(export, schema("export"))
    assert export["count"] == len(export["positions"])


def test_a_sum_can_be_verified_by_hand(tmp_path: Path) -> None:
    StateStore(tmp_path / "F").save({"positions": {"BTC-USD": {"quantity": 1}}})
    [script] = blocks("files.md", "sh")
    environment = somebody(tmp_path)

    told = typed(f"{script.rstrip()}\necho $s", tmp_path, environment).split()

    assert told[0] == told[2]


# They run

TOKEN = {
    "token_contract": "Demo1111",
    "token_chain": "solana",
    "timeframe": "1h",
    "status": "watchlist",
    "total_quantity": 0,
}


def typed(line: str, folder: Path, environment: dict[str, str]) -> str:
    ran = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def commands(name: str) -> list[str]:
    found = [line for block in blocks(name, "console") for line in block.splitlines()]
    return [line.strip().removeprefix("$ ") for line in found]


def test_the_commands_for_signals_run(tmp_path: Path) -> None:
    environment = somebody(tmp_path)
    store = StateStore(tmp_path / "data" / ".state.json")
    store.save({"positions": {"solana:Demo1111:1h": TOKEN}})

    at_once, export, elsewhere = commands("signals.md")[:-2], *commands("signals.md")[-2:]
    typed(export, tmp_path, environment)
    for line in at_once:
        typed(line, tmp_path, environment)
    assert store.load()["positions"]["solana:Demo1111:1h"]["signal_id"]

    (tmp_path / "data").rename(tmp_path / "data.before")
    typed(elsewhere, tmp_path, environment)

    assert list((tmp_path / "data" / "signals" / "pending").glob("*.json"))


def test_the_commands_to_try_a_bot_run(tmp_path: Path) -> None:
    environment = somebody(tmp_path)
    StateStore(tmp_path / "data" / ".state.json").save({"positions": {}})
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")

    for line in commands("running-a-bot.md"):
        once = line.replace("--interval 1", "--interval 1 --once")
        typed(once, tmp_path, environment)

    assert list((tmp_path / "state_fallback").iterdir())


def test_the_commands_for_a_fleet_run(tmp_path: Path) -> None:
    """Those of the account that needs no exchange; the others are read, and the archive is made."""
    environment = somebody(tmp_path)
    [file] = [block for block in blocks("fleets.md", "toml") if "[defaults]" in block]
    (tmp_path / "fleet.toml").write_text(file)
    assert [account.name for account in load_fleet(tmp_path / "fleet.toml")] == list(
        tomllib.loads(file)["accounts"]
    )
    rows = fills("BUY 1 BTC-USD @ 100", start=format_instant(now() - 3600 * NANOSECONDS))
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "carol.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "recorded" / "carol-balances.json").write_text('{"BTC": "1"}')
    archive = tmp_path / "archive" / "account=alice" / "asset=BTC"
    archive.mkdir(parents=True)
    (archive / "fills.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = tmp_path / "bots" / "carol" / "data" / ".state.json"
    StateStore(state).save({"positions": {"BTC-USD": {"quantity": 1, "entry_price": 90}}})
    typed(f"statestore kill-switch engage --state {state}", tmp_path, environment)

    for line in commands("fleets.md"):
        program, _, comment = line.partition("  #")
        if program.startswith("statestore fleet replay"):
            typed(program, tmp_path, environment)
        elif program.startswith("statestore"):
            command, *target = program.split(" > ")
            redirected = "".join(f" > {name}" for name in target)
            asked = f"{command.rstrip()} --account carol{redirected}"
            told = typed(asked, tmp_path, environment) or (tmp_path / target[0].strip()).read_text()
            jsonschema.validate(json.loads(told), schema("fleet"))
        assert program.startswith(("statestore", "mpiexec")), comment

    assert StateStore(state).load()["positions"]["BTC-USD"]["quantity"] == 1


def test_an_archive_is_made_of_one_table_as_the_page_says(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs: pip install 'statestore[parquet]'")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [row | {"account": "alice", "asset": "BTC"} for row in fills("BUY 2 BTC-USD @ 100")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "fills.parquet")
    [script] = [block for block in blocks("fleets.md", "python") if "write_dataset" in block]
    (tmp_path / "make.py").write_text(script)
    environment = somebody(tmp_path)

    typed(f"{sys.executable} make.py", tmp_path, environment)
    told = json.loads(typed("statestore fleet replay archive/", tmp_path, environment))

    assert told["counts"]["replayed"] == 1


def test_the_settings_that_pages_show_are_understood(tmp_path: Path) -> None:
    shown = [block for block in blocks("FILL_RECONCILIATION.md", "toml") if "reserve" in block]
    shown.append(re.search(r"::\n\n((?: {4}.*\n)+)", config.__doc__ or "")[1])  # type: ignore[index]
    for number, block in enumerate(shown):
        file = tmp_path / f"{number}.toml"
        file.write_text(re.sub("^ {4}", "", block, flags=re.M))
        settings = config.load_settings({"STATESTORE_CONFIG": str(file)})
        assert settings.reserve or settings.backups
    assert os.environ.get("STATESTORE_CONFIG") is None


def test_the_page_for_an_incident_has_every_exit_code_and_quotes_what_is_said() -> None:
    text = page("incident.md")
    source = "".join(path.read_text() for path in (ROOT / "statestore").rglob("*.py"))
    quoted = re.findall(r"^\| (\"[^|]*)\|", text, re.M)

    assert {int(code) for code in re.findall(r"exit (\d+) \|", text)} == MEANINGS.keys() - {
        0,
        2,
        130,
    }
    assert len(quoted) > 3
    for words in re.findall(r'"([^"]+)"', "".join(quoted)):
        assert words.replace("_meta", "{codec.META}") in source, words
