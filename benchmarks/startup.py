"""What ``rebuild_positions --help`` costs beside an interpreter that imports what it needs.

Runs the commands in turn and prints medians and their ratio; machines are noisy, ratios less so.

    python benchmarks/startup.py [ROUNDS]
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "import click, msgspec, filelock": ["-c", "import click, msgspec, filelock"],
    "rebuild_positions --help": ["-m", "statestore", "rebuild", "--help"],
    "import statestore": ["-c", "import statestore"],
    "from statestore import StateStore": ["-c", "from statestore import StateStore"],
}
REFERENCE = "import click, msgspec, filelock"


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):  # the first round warms up
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    reference = median(times[REFERENCE][1:])
    for name, measured in times.items():
        middle = median(measured[1:])
        print(f"{middle * 1000:7.1f} ms  x {middle / reference:.2f}  {name}")


if __name__ == "__main__":
    main()
