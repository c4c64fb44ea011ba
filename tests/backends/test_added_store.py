"""The store that docs/add-a-backend.md writes, under a name, as its author would use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import ROOT, blocks

PLACE = "folder://revisions"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose Python has the package of the page installed, and a state in a file."""
    example = next(text for text in blocks("add-a-backend.md", "python") if "class" in text)
    code = re.sub(r"^(>>>|\.\.\.) ?", "", example.partition(">>> store = ")[0], flags=re.M)
    (tmp_path / "my_package.py").write_text(code)
    told = tmp_path / "my_package-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1\n")
    (told / "entry_points.txt").write_text(
        "[statestore.backends]\nfolder = my_package:FolderStore\n"
    )
    (tmp_path / "state.json").write_text('{"positions": {"BTC-USD": {"quantity": 1}}}')
    return tmp_path


def typed(folder: Path, line: str, *, code: int = 0) -> Any:
    ran = subprocess.run(
        [sys.executable, "-m", "statestore", *line.split(), "--state", PLACE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (line, ran.returncode) == (line, code), ran.stderr
    return json.loads(ran.stdout) if ran.stdout else None


def test_every_command_takes_a_store_that_has_neither_lease_nor_row(folder: Path) -> None:
    typed(folder, "restore --file state.json --yes", code=6)
    assert typed(folder, "kill-switch engage")["status"] == "engaged"
    typed(folder, "restore --file state.json --yes")
    (folder / "second.json").write_text('{"positions": {}}')
    typed(folder, "restore --file second.json --yes")
    typed(folder, "undo --yes")

    assert typed(folder, "show --section positions") == {"BTC-USD": {"quantity": 1}}
    assert typed(folder, "check")["lease"] is None
    assert [v["revision"] for v in typed(folder, "history")["versions"]][:1] == [3]
    looked = typed(folder, "doctor --offline --format json")["checks"]
    assert [line for line in looked if line["level"] == "failure"] == []
