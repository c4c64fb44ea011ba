"""A contract's address has one spelling: on the chains of Ethereum's kind 0xAB is 0xab.

Such an address is a number in hexadecimal; its capitals are a checksum that one program writes and
another does not. Addresses of other chains (base58, as on Solana) differ by their case.
"""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?<![0-9A-Za-z])0[xX][0-9a-fA-F]{40}(?![0-9A-Za-z])", re.ASCII)


def one_spelling(text: str) -> str:
    """Return a contract, or a key that names one, as it is compared: never as it is written."""
    return _ADDRESS.sub(lambda found: found[0].lower(), text)
