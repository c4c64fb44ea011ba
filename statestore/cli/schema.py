"""``statestore schema``: the JSON Schema of what this package writes."""

from __future__ import annotations

import click

from statestore.cli.exits import EPILOG
from statestore.cli.output import print_json
from statestore.formats import FORMATS, schema


@click.command("schema", epilog=EPILOG)
@click.argument("name", type=click.Choice(list(FORMATS)))
def command(name: str) -> None:
    """Print the JSON Schema of a file or document."""
    print_json(schema(name))
