"""docs/completion.md: what the Tab key finds, in a real bash and by each shell's own protocol."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT

PROGRAMS = {
    "statestore": "_STATESTORE_COMPLETE",
    "rebuild_positions": "_REBUILD_POSITIONS_COMPLETE",
}


def ask(program: str, *, instruction: str, words: str = "") -> subprocess.CompletedProcess[str]:
    found = shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{program} is not installed beside this Python")
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return subprocess.run(
        [found],
        env=os.environ | environment | {PROGRAMS[program]: instruction},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_shell_gets_its_script(program: str, shell: str) -> None:
    ran = ask(program, instruction=f"{shell}_source")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"_{program}_completion" in ran.stdout
    assert (
        f"{PROGRAMS[program]}={shell}_source {program}"
        in (ROOT / "docs" / "completion.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("statestore ver", ["verify"]),
        ("statestore kill-switch ", ["engage", "release", "status"]),
        ("statestore verify --gra", ["--grace"]),
        ("statestore doctor --format ", ["text", "json"]),
        ("rebuild_positions --dry", ["--dry-run"]),
    ],
)
def test_bash_completes(words: str, expected: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program, *_, last = words.split(" ")
    script = ask(program, instruction="bash_source").stdout
    array = " ".join(shlex.quote(word) for word in words.split(" "))
    typed = f"COMP_WORDS=({array}); COMP_CWORD={words.count(' ')}; _{program}_completion {program}"
    ran = subprocess.run(
        [bash, "--norc", "-c", f'{script}\n{typed}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout.split() == expected, ran.stderr
    assert all(word.startswith(last) for word in expected)
