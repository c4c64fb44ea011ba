#!/usr/bin/env python3
"""Positions become signals again; the same as the command ``statestore reinsert``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.reinsert import main

if __name__ == "__main__":
    main()
