"""``scripts/main_loop.py``: a small main loop on paper, to try the state file with."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from statestore.amounts import parse_amount
from statestore.cli.exits import EPILOG, entry
from statestore.cli.options import (
    FILE,
    backup_dir_option,
    kill_switch_option,
    log_format_option,
    state_option,
)
from statestore.cli.output import note, print_json
from statestore.config import load_settings, places
from statestore.urls import StateUrl


class _Amount(click.ParamType[Decimal]):
    """A positive number."""

    name = "NUMBER"

    def convert(self, value: Any, param: Any, ctx: Any) -> Decimal:
        try:
            amount = parse_amount(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if amount <= 0:
            self.fail(f"{value} is not above 0", param, ctx)
        return amount


@click.command(
    "main_loop",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--once", is_flag=True, help="One cycle, then stop.")
@click.option(
    "--mode",
    type=click.Choice(["DRY_RUN", "PAPER", "LIVE"]),
    default="DRY_RUN",
    help="LIVE is refused: no orders are placed here.",
)
@state_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0, max=86_400),
    default=60.0,
    help="Seconds between two cycles.",
)
@click.option(
    "--save-interval",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=300.0,
    help="Seconds between two periodic saves.",
)
@click.option("--prices", type=FILE, help="Recorded prices, JSON Lines.  [default: made up]")
@click.option("--order", type=_Amount(), default="100", help="Quote that a paper order spends.")
@click.option("--max-exposure", type=_Amount(), default="1000", help="Of all positions, in quote.")
@click.option("--stop-loss", type=_Amount(), default="0.05", help="Fraction of the entry price.")
@kill_switch_option
@backup_dir_option
@log_format_option
def command(
    once: bool,
    mode: Any,
    state: Path | StateUrl | None,
    interval: float,
    save_interval: float,
    prices: Path | None,
    order: Decimal,
    max_exposure: Decimal,
    stop_loss: Decimal,
    kill_switch: Path | None,
    backup_dir: Path | None,
    log_format: Any,
) -> int:
    """Run a paper bot on a state file: positions are watched, stops and limits obeyed.

    --once --mode DRY_RUN shows, after a rebuild, that the risk engine sees the corrected
    quantities; it changes nothing, and can run beside the bot.
    """
    from statestore.disk.store import StateStore
    from statestore.runtime import logs
    from statestore.runtime.loop import Loop, MovingAverage, recorded_prices, sample_prices
    from statestore.runtime.risk import RiskEngine
    from statestore.runtime.session import TradingSession

    logs.set_up(log_format)
    where = places(load_settings(), state=state, kill_switch=kill_switch, backup_dir=backup_dir)
    if prices is None:
        note("Prices are made up; give recorded ones with --prices.")
    strategy = MovingAverage()
    store = StateStore(where.state, backup_dir=where.backup_dir)
    session = TradingSession(
        store,
        kill_switch=store.kill_switch(where.kill_switch),
        interval=save_interval,
        strategies=[strategy],
        mode=mode,
        config={
            "data_provider": str(prices) if prices else "made up",
            "broker": "paper",
            "strategy": strategy.name,
        },
        numbers="decimal",
    )
    report = Loop(
        session,
        strategy,
        recorded_prices(prices) if prices else sample_prices(),
        RiskEngine(max_exposure, stop_loss),
        interval=interval,
        order=order,
        once=once,
    ).run()
    print_json(report)
    return session.exit_code


main = entry(command)
