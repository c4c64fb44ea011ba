"""Real fills of real accounts against figures that were computed by other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest

from statestore.amounts import written
from statestore.fills.book import Position
from statestore.fills.movements import movements_of
from statestore.fills.normalise import implausible_fees, normalise
from statestore.fills.replay import replay
from statestore.fills.sources.recorded import read_fills
from statestore.model import Fill, Method
from statestore.times import parse_instant
from tests import real

pytestmark = real.needed


def cases() -> Iterator[Any]:
    for expected in real.files("fills/*.expected.json"):
        source = next(
            path
            for suffix in (".json", ".csv")
            if (
                path := expected.with_name(expected.name.replace(".expected.json", suffix))
            ).exists()
        )
        for window in ("all", "48h", "72h", "168h"):
            yield pytest.param(source, expected, window, id=f"{source.name}-{window}")


def agrees(ours: Decimal | None, theirs: str | None) -> None:
    """Theirs is exact where the decimal ends, else 50 significant digits; ours is written in 28."""
    if ours is None or theirs is None:
        assert ours is theirs
        return
    exact = Decimal(theirs)
    digits = 28 if len(exact.as_tuple().digits) >= 50 else 60
    with localcontext(prec=digits):
        assert written(ours) == +exact


@pytest.mark.parametrize(("source", "expected", "window"), list(cases()))
def test_a_real_file_agrees_with_its_expected_results(
    source: Path, expected: Path, window: str
) -> None:
    wanted = json.loads(expected.read_text())["windows"][window]
    read = normalise([read_fills(source)])
    since = parse_instant(wanted["since"]) if wanted["since"] else 0
    fills = [fill for fill in read.fills if fill.time >= since]

    assert not read.rejected
    assert len(fills) == wanted["fills"]
    assert {fill.product_id for fill in fills} == set(wanted["products"])
    for product_id, figures in wanted["products"].items():
        of_product = [fill for fill in fills if fill.product_id == product_id]
        assert len(of_product) == figures["fills"]
        for oversell, name in (("short", "flip"), ("clamp", "clamp")):
            if name in figures:
                for method in Method:
                    compare(of_product, method, oversell, figures[name][method.value])


def compare(fills: list[Fill], method: Method, oversell: Any, figures: dict[str, Any]) -> None:
    position = replay(movements_of(fills[0].base, fills), method, oversell=oversell)
    gross, net = figures["ex_fees"], figures["inc_fees"]

    assert position.fee_value is not None
    assert position.cost is not None
    agrees(position.units, gross["net_base"])
    agrees(position.entry_price, gross["avg_cost"])
    agrees(position.cost, gross["cost"])
    agrees(position.realised, gross["realised_pnl"])
    agrees(position.break_even, net["avg_cost"])
    with localcontext(prec=100):
        agrees(position.cost + position.fee_value, net["cost"])
    agrees(position.realised_net, net["realised_pnl"])
    if "uncovered_base" in gross:
        agrees(position.uncovered, gross["uncovered_base"])
    if "lots" in gross:
        compare_lots(position, gross["lots"])


def compare_lots(position: Position, lots: list[dict[str, Any]]) -> None:
    sign = -1 if position.units < 0 else 1
    assert len(position.lots) == len(lots)
    for ours, theirs in zip(position.lots, lots, strict=True):
        assert ours.opened is not None
        assert ours.opened.trade_id == theirs["trade_id"]
        assert ours.opened.time == parse_instant(theirs["opened"])
        agrees(sign * ours.units, theirs["size"])
        agrees(ours.opened.price, theirs["unit_cost"])


@pytest.mark.parametrize(
    "source", real.files("fills/*[!d].json") + real.files("fills/*.csv"), ids=str
)
def test_no_real_fee_is_called_implausible(source: Path) -> None:
    if "expected" in source.name or source.name.startswith(
        ("binance_emohd123_", "kraken_gocryptoadmin.csv")
    ):
        pytest.skip("not a file of fills that the package reads")

    assert implausible_fees(normalise([read_fills(source)]).fills) == {}
