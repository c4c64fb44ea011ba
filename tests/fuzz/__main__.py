"""Long runs: ``python -m tests.fuzz [--minutes N] [--keep FOLDER] [TARGET ...]``.

With atheris each target is led by coverage; without it the seeds are changed at random. A finding
does not end a run: its input is kept in ``FOLDER/findings/TARGET``, one for each kind, and the exit
code is 1. What reaches new code is kept in ``FOLDER/corpus/TARGET`` for the next run.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from random import Random


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--keep", type=Path, default=Path(".fuzz"), help="inputs found on the way")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    asked = parser.parse_args()
    if asked.one:
        return _fuzz(asked.targets[0], asked.keep, asked.minutes * 60)
    from tests.fuzz.targets import TARGETS

    names = asked.targets or list(TARGETS)
    failed = 0
    for name in names:
        before = _processor_seconds()
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--one", name, "--keep", asked.keep]
            + ["--minutes", str(asked.minutes / len(names))],
            capture_output=True,
            text=True,
            check=False,
        )
        # libFuzzer ends the process itself, so what was found is told by what was said.
        failed |= ran.returncode or "FOUND" in ran.stdout
        spent = f"{_processor_seconds() - before:.0f} s of a processor"
        sys.stdout.write(f"{ran.stdout}{name}: {_summary(ran.stderr)}, {spent}\n")
        sys.stdout.flush()
    return failed


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _summary(log: str) -> str:
    executions = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", log, re.M)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    number = "".join(executions[-1]) if executions else "?"
    reached = "edges {}, features {}, corpus {}".format(*coverage[-1]) if coverage else ""
    return f"{number} executions, {reached or 'coverage unknown'}"


def _fuzz(name: str, keep: Path, seconds: float) -> int:
    found: set[str] = set()
    work = keep / "corpus" / name
    work.mkdir(parents=True, exist_ok=True)
    findings = keep / "findings" / name
    try:
        import atheris
    except ImportError:
        _at_random(name, seconds, found, findings)
        return bool(found)
    with atheris.instrument_imports(include=["statestore"]):
        from tests.fuzz import running

    def once(data: bytes) -> None:
        _try(running, name, data, found, findings)

    arguments = [
        f"-max_total_time={max(int(seconds), 1)}",
        f"-max_len={running.LONGEST_INPUT}",
        f"-dict={Path(__file__).with_name('tokens.dict')}",
        "-rss_limit_mb=2048",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix={keep}/",
        str(work),
        str(running.CORPUS / name),
    ]
    with running.silence():
        atheris.Setup([sys.argv[0], *arguments], once)
        atheris.Fuzz()
    return bool(found)


def _at_random(name: str, seconds: float, found: set[str], findings: Path) -> None:
    from tests.fuzz import running

    chance, until, tries = Random(), time.monotonic() + seconds, 0
    known = [b"", *running.seeds(name)]
    with running.silence():
        while time.monotonic() < until:
            _try(running, name, running.mutated(chance.choice(known), chance), found, findings)
            tries += 1
    sys.stderr.write(f"#{tries} DONE\n")


def _try(running: object, name: str, data: bytes, found: set[str], findings: Path) -> None:
    try:
        running.run(name, data)  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - each is a finding
        kind = running.finding(error)  # type: ignore[attr-defined]
        if kind not in found:
            found.add(kind)
            findings.mkdir(parents=True, exist_ok=True)
            (findings / sha256(kind.encode()).hexdigest()[:12]).write_bytes(data)
            sys.stdout.write(f"FOUND {name}: {kind}: {str(error)[:200]!r}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
