#!/usr/bin/env python3
"""Write positions to one file, before a wipe; the same as the command ``export_positions``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.export import main

if __name__ == "__main__":
    main()
