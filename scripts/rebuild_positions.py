#!/usr/bin/env python3
"""Rebuild positions from exchange fills; the same as the command ``rebuild_positions``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.rebuild import main

if __name__ == "__main__":
    main()
