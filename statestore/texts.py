"""Texts of others, made fit to be looked at.

A name, a reason or an error may come from a file or from an exchange, and hold what a terminal
obeys: an escape sequence that hides a line, sets the title, answers for the operator.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with everything that is not seen made seen, ends of lines apart.

    A control character becomes the picture of it (ESC is ``␛``); what cannot be seen, or turns the
    direction of writing, its number (``\\u202e``).
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _seen(ord(c)) for c in text)


def _seen(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
