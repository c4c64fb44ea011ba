"""Look into the two files of ``dist/``, and try the wheel where nothing else is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What an extra is for: a module of ours that works only with it.
USES = {
    "influx": "import influxdb_client; import statestore.backends.influx",
    "fleet": "import distributed; import statestore.repair.executors",
    "parquet": "import pyarrow; import statestore.fills.partitions",
    "simulated": "from statestore.simulated import SimulatedExchange; SimulatedExchange()",
    "report": "import jinja2; import statestore.repair.report",
    "ccxt": "import ccxt; import statestore.fills.sources.ccxt",
    "metrics": "import prometheus_client; import statestore.runtime.metrics",
    "postgres": "from statestore.backends.database import Database; "
    "Database('postgresql://127.0.0.1/x')",
}
NO_PRODUCT = {"bench", "dev", "docs"}  # tools of ours


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = sys.argv[2:] or [e for e in project["optional-dependencies"] if e not in NO_PRODUCT]
    look_into_wheel(wheel, project)
    look_into_sdist(sdist)
    with tempfile.TemporaryDirectory() as place:
        python = Path(place) / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", python.parent.parent)
        install(python, str(wheel))
        try_bare(python)
        for extra in extras:
            install(python, f"{wheel}[{extra}]")
            run(python, "-I", "-c", USES[extra])
            print(f"{extra}: installs and imports")


def look_into_wheel(wheel: Path, project: dict[str, object]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(metadata).decode())
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "statestore").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == sources, f"differs from statestore/: {sorted(ours ^ sources)}"
    assert "statestore/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names), "no licence"
    assert told["Version"] == version_of(ROOT / "statestore" / "__init__.py")
    assert told["Requires-Python"] == project["requires-python"]
    assert (told.get_payload() or "").strip(), "no description"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size // 1024} KiB")


def look_into_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "tests/test_docs.py",
    } <= inside
    stray = [n for n in inside if re.search(r"(^|/)(\.venv|dist|_build|__pycache__|\.ci)(/|$)", n)]
    stray += [n for n in inside if n.startswith("data/") and not n.startswith("data/samples/")]
    assert set(stray) <= {"data/README.md"}, stray
    print(f"{sdist.name}: {len(inside)} files, {sdist.stat().st_size // 1024} KiB")


def try_bare(python: Path) -> None:
    """The commands answer with nothing but the dependencies, and say what is missing for more."""
    scripts = python.parent
    said = run(scripts / "statestore", "--version")
    assert said.split()[-1] == version_of(ROOT / "statestore" / "__init__.py"), said
    assert "--hours" in run(scripts / "rebuild_positions", "--help")
    assert run(python, "-I", "-m", "statestore", "--version") == said
    run(python, "-I", "-c", "import statestore; statestore.StateStore('x')")
    milliseconds = min(float(run(python, "-I", "-c", TIMED)) for _ in range(5))
    print(f"bare: commands answer; import statestore takes {milliseconds:.1f} ms")


TIMED = (
    "import time; t = time.perf_counter(); import statestore; statestore.StateStore; "
    "print((time.perf_counter() - t) * 1e3)"
)


def version_of(module: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"$', module.read_text(), re.M)
    assert found
    return found[1]


def install(python: Path, what: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what)


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} exits with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
