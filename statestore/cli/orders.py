"""``statestore orders list | unprotected | reconcile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statestore.cli.exits import EPILOG, UNPROVEN
from statestore.cli.options import FILE, Instant
from statestore.cli.output import note, print_json
from statestore.config import database_url, load_settings
from statestore.errors import UsageError
from statestore.times import format_instant, instant_of

if TYPE_CHECKING:
    from statestore.fills.sources import OrderSource
    from statestore.runtime.lifecycle import Protection
    from statestore.runtime.orders import PositionManager


@click.group("orders", epilog=EPILOG)
def command() -> None:
    """List positions and orders in PostgreSQL; what is unprotected; what differs.

    All of it only reads, here and at the exchange.
    """


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--exchange", default="coinbase", help="Whose positions, as in the rows."),
        click.option("--schema", help="Of the tables.  [default: the URL's, else statestore]"),
        click.option(
            "--database",
            metavar="URL",
            help="postgresql://user@host/name.  [default: $STATESTORE_DATABASE, else $STATE_FILE]",
        ),
    ):
        function = option(function)
    return function


_exit_code = click.option(
    "--exit-code", is_flag=True, help="Exit 3 when there is something to look at."
)


@contextmanager
def _loaded(database: str | None, schema: str | None, exchange: str) -> Iterator[PositionManager]:
    from statestore.backends.database import Database
    from statestore.runtime.orders import PositionManager

    opened = Database(database_url(database), schema=schema)
    try:
        manager = PositionManager(opened, exchange=exchange)
        manager.load_open_positions()
        yield manager
    finally:
        opened.close()


@command.command("list", epilog=EPILOG)
@_where
def list_(database: str | None, schema: str | None, exchange: str) -> None:
    """Print what is held, each position with its orders."""
    with _loaded(database, schema, exchange) as manager:
        positions = [
            _plain(position)
            | {"orders": [_plain(order) for order in manager.orders_of(position.position_id)]}
            for position in manager.get_all_positions()
        ]
        alone = [_plain(o) for o in manager.orders.values() if o.position_id is None]
    note(f"{len(positions)} position(s) held, {len(alone)} order(s) without one")
    print_json({"count": len(positions), "positions": positions, "orders": alone})


@command.command(epilog=EPILOG)
@_where
@_exit_code
def unprotected(database: str | None, schema: str | None, exchange: str, exit_code: bool) -> int:
    """Print the positions of which not every unit has a live stop-loss or take-profit.

    Look at this after the first restart: what is listed here is watched by nobody. "missing" is
    what no stop-loss closes; "price_says" is the stop-loss that stands in the position's own row.
    "excess" is what orders at the exchange would close beyond what is held: replace them.
    """
    with _loaded(database, schema, exchange) as manager:
        protections = manager.protections()
    found = [p for p in protections if not p.whole or p.excess]
    bare = [protection for protection in found if protection.missing]
    over = [protection for protection in found if protection.excess]
    print_json(
        {
            "positions": len(protections),
            "without_stop_loss": len(bare),
            "with_excess": len(over),
            "unprotected": [_protection(protection) for protection in found],
        }
    )
    for protection in bare:
        held = protection.position
        note(
            f"{held.symbol} {held.side}: {protection.missing:f} of {held.quantity:f} has no "
            f"stop-loss (position {held.position_id})"
        )
    for protection in over:
        held = protection.position
        note(
            f"{held.symbol} {held.side}: orders at the exchange close {protection.excess:f} more "
            f"than the {held.quantity:f} held (position {held.position_id})"
        )
    note(f"{len(bare)} of {len(protections)} position(s) without a whole stop-loss")
    return UNPROVEN if (bare or over) and exit_code else 0


@command.command(epilog=EPILOG)
@_where
@click.option("--since", type=Instant(), help="Compare orders made from here on.  [default: week]")
@click.option("--source", metavar="NAME", default="coinbase", help="The exchange to ask.")
@click.option("--key-file", type=FILE, help="API key file.  [default: $COINBASE_KEY_FILE]")
@click.option("--base-url", metavar="HOST[:PORT]", help="Exchange.  [default: the source's own]")
@_exit_code
def reconcile(
    database: str | None,
    schema: str | None,
    exchange: str,
    since: int | None,
    source: str,
    key_file: Path | None,
    base_url: str | None,
    exit_code: bool,
) -> int:
    """Compare the recorded orders with those at the exchange, and print where they differ.

    Missing: live here, and not known there. Unknown: live or filled there, and not recorded here.
    Mismatch: recorded otherwise than the exchange says. The bot's next sync takes over what it can.
    """
    with _loaded(database, schema, exchange) as manager:
        asked = _order_source(source, key_file, base_url)
        found = manager.reconcile_orders(asked, since=since)
    print_json({"agrees": found.agrees, **asdict(found)})
    note(
        f"{found.compared} order(s) compared: {len(found.missing)} missing, "
        f"{len(found.unknown)} unknown, {len(found.mismatch)} different"
    )
    return UNPROVEN if exit_code and not found.agrees else 0


def _order_source(name: str, key_file: Path | None, base_url: str | None) -> OrderSource:
    from statestore.fills.sources import OrderSource
    from statestore.fills.sources.registry import Context, source_named

    context = Context(settings=load_settings(), key_file=key_file, base_url=base_url)
    source: object = source_named(name, context)
    if not isinstance(source, OrderSource):
        raise UsageError(f"--source {name} does not tell what became of orders; coinbase does")
    return source


def _plain(value: Any) -> dict[str, Any]:
    """Return a position or an order as it is printed; numbers stay exact."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        name: format_instant(instant_of(part)) if isinstance(part, datetime) else part
        for name, part in found.items()
    }


def _protection(protection: Protection) -> Mapping[str, Any]:
    held = protection.position
    return {
        "position_id": held.position_id,
        "symbol": held.symbol,
        "side": held.side,
        "quantity": held.quantity,
        "stop_loss_units": protection.stop_loss,
        "take_profit_units": protection.take_profit,
        "missing": protection.missing,
        "excess": protection.excess,
        "price_says": held.stop_loss,
    }
