"""What holds for every command: exit codes, help, weight."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from statestore import errors
from statestore.cli import cli, exits
from statestore.cli.rebuild import command as rebuild_positions
from statestore.disk.store import StateStore


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, *path, name)


def subclasses(kind: type[errors.StateStoreError]) -> Iterator[type[errors.StateStoreError]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from subclasses(inner)


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_every_help_prints_the_exit_codes(path: tuple[str, ...]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", *path, "--help"], capture_output=True, text=True
    )

    assert ran.returncode == 0
    for code, meaning in exits.MEANINGS.items():
        assert f"{code}  {meaning.split(';')[0][:40]}" in ran.stdout


def test_every_error_has_an_exit_code_that_the_help_explains() -> None:
    for kind in subclasses(errors.StateStoreError):
        code = exits.code_for(kind)
        assert code in exits.MEANINGS, kind
        assert code not in (0, 1), kind


def test_every_error_is_drawn_in_the_tree_of_the_module() -> None:
    public = [k for k in subclasses(errors.StateStoreError) if not k.__name__.startswith("_")]
    for kind in public:
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("arguments", [["rebuild", "--help"], ["--help"], ["--version"]])
def test_help_does_not_pay_for_the_exchange_or_the_store(arguments: list[str]) -> None:
    program = (
        "import sys, statestore.cli as c\n"
        f"sys.argv = ['statestore', *{arguments!r}]\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'ccxt', 'coinbase', 'requests', 'filelock', 'rich', 'stamina', 'platformdirs'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ran.stderr.strip() == "[]"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sys.argv", ["broken"])
    with pytest.raises(ZeroDivisionError):
        exits.run(broken)


def test_an_interrupt_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["interrupted"])
    with pytest.raises(SystemExit) as stopped:
        exits.run(interrupted)
    assert stopped.value.code == 130


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_went_away_is_no_success(closed: str, state_store: StateStore) -> None:
    state_store.save({"positions": {f"A{n}-USD": {"quantity": n} for n in range(5000)}})
    read, write = os.pipe()
    os.close(read)
    streams: dict[str, int] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    streams[closed] = write
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", "show", "--state", state_store.path],
        check=False,
        **streams,  # type: ignore[call-overload]
    )
    os.close(write)

    assert ran.returncode == exits.INTERRUPTED


def test_two_names_are_one_command() -> None:
    assert cli.get_command(click.Context(cli), "rebuild") is rebuild_positions


@pytest.mark.parametrize("script", ["rebuild_positions.py", "statestore.py"])
def test_a_script_runs_without_being_installed(script: str, tmp_path: object) -> None:
    from tests.test_docs import ROOT

    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--help"],
        cwd=str(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Exit codes" in ran.stdout
