#!/usr/bin/env python3
"""Bring positions back from a file; the same as the command ``import_positions``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.import_ import main

if __name__ == "__main__":
    main()
