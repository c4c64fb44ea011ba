#!/usr/bin/env python3
"""The same as the command ``statestore``."""

import sys
from pathlib import Path

# This file carries the package's own name: its folder must not be searched first.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from statestore.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
