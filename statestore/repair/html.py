"""From values to the text of an HTML page: the one door to jinja2, and what keeps a page harmless.

Whatever comes from outside (names of products, fields of the state, reasons, paths) is escaped
where it is put in, and characters that cannot be seen are shown by their number, so that a name
cannot pretend to be another one. Only texts and counts have a place in a page; a float, or anything
else, is an error.

Needs the extra ``report`` (jinja2), which is imported when it is used.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from statestore.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# How the first lines of a report read, by which it is known again.
GENERATOR = '<meta name="generator" content="statestore report">'


def require_jinja2() -> None:
    """Raise `UsageError` where no page could be made."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--report needs jinja2, which is not installed: pip install 'statestore[report]'; "
            "nothing was read or written"
        ) from error


def page(template: str, **values: object) -> str:
    """Return the page that a template makes of the values."""
    from markupsafe import Markup

    text = _environment().get_template(template).render(generator=Markup(GENERATOR), **values)
    return f"{text.strip()}\n"


def count(number: int, noun: str) -> str:
    """Return a number of things in words: ``1 fill``, ``2 fills``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=_shown,
        loader=PackageLoader("statestore.repair"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["times"] = count
    return environment


def _shown(value: object) -> object:
    """Every value on its way into the page: a text or a count, its unseen characters made seen.

    A text that runs from right to left is kept from turning around what stands beside it.
    """
    from markupsafe import Markup, escape

    if isinstance(value, Markup):
        return value
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} has no place in a report: {value!r:.80}")
    shown = str(value)
    if shown.isascii() and shown.isprintable():
        return shown
    pieces = [
        escape(c) if c.isprintable() else Markup('<span class="unseen">{}</span>').format(_code(c))
        for c in shown
    ]
    page = Markup("").join(pieces)
    right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown)
    return Markup("<bdi>{}</bdi>").format(page) if right_to_left else page


def _plain(value: object) -> Markup:
    """The same for an attribute or a title, where there can be no elements."""
    from markupsafe import escape

    return escape("".join(c if c.isprintable() else f"[{_code(c)}]" for c in str(value)))


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
