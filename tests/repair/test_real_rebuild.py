"""The whole rebuild, offline, on real fills: figures of the plan against other programs'."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from statestore.amounts import ZERO
from statestore.disk.store import StateStore
from statestore.fills.sources.recorded import RecordedFills
from statestore.model import Method, Status
from statestore.repair.rebuild import Options, propose
from statestore.times import parse_instant
from tests import real
from tests.fills.test_real_fills import agrees, cases

pytestmark = real.needed


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(("source", "expected", "window"), list(cases()))
def test_a_plan_from_real_fills_agrees_with_the_expected_results(
    source: Path, expected: Path, window: str, method: Method, state_store: StateStore
) -> None:
    wanted = json.loads(expected.read_text())["windows"][window]
    since = parse_instant(wanted["since"] or "2009-01-03T00:00:00Z")
    state_store.save({"positions": {}})
    plan = propose(state_store, RecordedFills(source), Options(since=since, method=method)).plan

    assert plan.evidence.fills == wanted["fills"]
    assert plan.evidence.products_seen == len(wanted["products"])
    changes = {change.asset: change for change in plan.changes}
    for product_id, figures in single_products(wanted["products"]).items():
        change = changes[product_id.partition("-")[0]]
        book = figures["clamp" if "clamp" in figures else "flip"][method.value]
        position = change.finding.position
        uncovered = figures["uncovered_sells_in_window"]
        assert change.finding.status is (Status.UNCOVERED if uncovered else Status.EXACT)
        assert change.allowed is not uncovered
        agrees(change.finding.units, book["ex_fees"]["net_base"])
        agrees(position.entry_price, book["ex_fees"]["avg_cost"])
        agrees(position.cost, book["ex_fees"]["cost"])
        agrees(position.realised, book["ex_fees"]["realised_pnl"])
        agrees(position.realised_net, book["inc_fees"]["realised_pnl"])
        agrees(position.break_even, book["inc_fees"]["avg_cost"])
        assert change.last_fill is not None
        agrees(change.last_fill.price, figures["last_price"])


def single_products(products: dict[str, Any]) -> dict[str, Any]:
    """Products whose asset no other product moves: those a figure per product speaks for."""
    moved = Counter(asset for product_id in products for asset in product_id.split("-"))
    return {name: p for name, p in products.items() if moved[name.partition("-")[0]] == 1}


@real.needed
def test_a_cross_pair_in_a_real_statement_moves_both_of_its_assets(
    state_store: StateStore,
) -> None:
    """ETH bought for BTC and sold again, and 0.2 BTC sold that no fill had bought."""
    source = RecordedFills(real.FOLDER / "fills" / "coinbase_pro_yabc.csv")
    state_store.save({"positions": {}})
    options = Options(since=parse_instant("2020-01-01T00:00:00Z"))
    changes = {c.asset: c for c in propose(state_store, source, options).plan.changes}

    assert changes["ETH"].finding.status is Status.EXACT
    assert changes["ETH"].finding.position.realised == Decimal("-0.000051395867")
    btc = changes["BTC"].finding
    assert btc.status is Status.UNCOVERED
    assert btc.units == Decimal("0.0098988439842") - Decimal("4.9494219921E-05")
    assert btc.position.currency == "ETH"
    assert btc.position.uncovered > Decimal("0.2") > ZERO
