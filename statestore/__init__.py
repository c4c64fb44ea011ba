"""statestore: a trading bot's memory in one JSON file, and a read-only way to rebuild it."""

__version__ = "0.1.0"
