"""The only way to the terminal: what is shown is `printable`, and rich takes nothing for markup.

Light to import, since the error of a command that has loaded nothing yet goes this way as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from statestore.texts import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment


def tell(message: str, *, err: bool = False, **style: Any) -> None:
    """Print for people; ``style`` as in `click.style`, without its colours under ``NO_COLOR``."""
    if "fg" in style:
        from statestore.config import no_color  # what --help does not need

        if no_color():
            del style["fg"]
    click.secho(printable(message), err=err, **style)


def note(message: str) -> None:
    tell(message, err=True)


def confirm(question: str) -> None:
    """Ask; anything but yes ends the command."""
    click.confirm(printable(question), abort=True, err=True)


def console(**options: Any) -> Console:
    """Return rich's console, whose every text is `printable` and none is markup.

    Args:
        options: as rich has them.
    """
    from rich.console import Console  # 35 ms that --help and -q do not need

    class Printable(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                if not segment.control:
                    segment = segment._replace(text=printable(segment.text))
                yield segment

    return Printable(markup=False, emoji=False, **options)
