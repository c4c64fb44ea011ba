#!/usr/bin/env python3
"""A small main loop on paper; ``--once --mode DRY_RUN`` shows what a bot sees after a repair."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statestore.cli.main_loop import main

if __name__ == "__main__":
    main()
