#!/usr/bin/env python3
"""Check, back up and restore a trading state."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.state_manager import main

if __name__ == "__main__":
    main()
