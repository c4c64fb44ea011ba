"""Putting a state right from fills: proposed first, written once. `rebuild` knows the order."""
