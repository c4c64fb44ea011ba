"""What a replay of an archive costs, from the file to exact positions, beside other ways to do it.

A stream of fills is generated (always the same one) as JSON Lines, a List Fills row a line. Every
contender reads it in a process of its own, in turn and in a new order each round; its best round
counts. Each has to give the units and the cost of every open position: to 25 digits where
it computes with decimals, nearly where it computes with floats
(nautilus_trader keeps nine decimals of a quantity: to a hundredth).

    python benchmarks/replay.py [--fills N] [--rounds N] [--peers PYTHON] [--markdown]

PYTHON is an interpreter that has the peers (pandas, nautilus_trader, beancount); one that is not
installed there is left out. Slow ones get the first part of the stream only, as their row says.
``--markdown`` writes ``docs/benchmarks-replay.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs/benchmarks-replay.md"
PRODUCTS, START = 100, 1_730_000_000_000_000_000
TOLERANCE = Decimal("1E-8")  # once for every fill of the lifecycle that is sized in quote

Answer = dict[str, tuple[str, str]]  # asset -> units, cost


# The stream


def generate(path: Path, fills: int) -> None:
    """Write a market's worth of rows: a tenth sized in quote, positions that are closed again."""
    sys.path.insert(0, str(HERE.parent))
    from statestore.times import format_instant

    rng = random.Random(fills)
    held = dict.fromkeys(range(PRODUCTS), Decimal(0))
    quoted_since_flat = dict.fromkeys(range(PRODUCTS), 0)
    prices = {asset: rng.uniform(0.5, 60_000) for asset in held}
    at = START
    with path.open("w") as file:
        for number in range(fills):
            asset = rng.randrange(PRODUCTS)
            prices[asset] *= 1 + rng.gauss(0, 0.0005)
            price = Decimal(f"{prices[asset]:.2f}")
            at += rng.randrange(1_000_000, 60_000_000_000)
            selling = held[asset] > 0 and rng.random() < 0.45
            quoted = not selling and rng.random() < 0.1
            if selling and rng.random() < 0.01:
                size = Decimal(f"{held[asset]:.16f}")
            elif selling:
                part = Decimal(f"{held[asset] * Decimal(rng.random()) / 3:.8f}")
                size = part or Decimal(f"{held[asset]:.16f}")
            else:
                size = Decimal(f"{rng.uniform(0.0001, 3):.{rng.choice((4, 8, 8, 16))}f}")
            if quoted:
                size = Decimal(f"{size * price:.10f}")
            units = size / price if quoted else size
            held[asset] += -units if selling else units
            quoted_since_flat[asset] += quoted
            if held[asset] <= TOLERANCE * max(1, quoted_since_flat[asset]):
                held[asset], quoted_since_flat[asset] = Decimal(0), 0
            notional = size if quoted else size * price
            time_of = format_instant(at if number % 3 else at // 1000 * 1000)
            row = {
                "entry_id": sha256(str(number).encode()).hexdigest(),
                "trade_id": _uuid(rng),
                "order_id": _uuid(rng),
                "trade_time": time_of,
                "trade_type": "FILL",
                "price": str(price),
                "size": f"{size:f}",
                "commission": f"{notional * Decimal('0.006'):.13f}",
                "product_id": f"C{asset:02}-USD{'C' if asset % 5 == 0 else ''}",
                "sequence_timestamp": format_instant(at + 2_000_123),
                "liquidity_indicator": "TAKER",
                "size_in_quote": quoted,
                "user_id": "00000000-0000-0000-0000-000000000000",
                "side": "SELL" if selling else "BUY",
                "retail_portfolio_id": "00000000-0000-0000-0000-000000000001",
                "fillSource": "FILL_SOURCE_CLOB",
            }
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def _uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# The contenders: each takes a file and gives the open positions


def msgspec_only(path: Path) -> Answer:
    import msgspec

    class Row(msgspec.Struct, gc=False):
        entry_id: str
        trade_id: str
        order_id: str
        trade_time: str
        trade_type: str
        price: Decimal
        size: Decimal
        commission: Decimal
        product_id: str
        sequence_timestamp: str
        size_in_quote: bool
        side: str

    decode = msgspec.json.Decoder(Row).decode
    with path.open("rb") as file:
        for line in file:
            decode(line)
    return {}


def msgspec_whole_rows(path: Path) -> Answer:
    import msgspec

    class Row(msgspec.Struct, gc=False):
        entry_id: str
        trade_id: str
        order_id: str
        trade_time: str
        trade_type: str
        price: Decimal
        size: Decimal
        commission: Decimal
        product_id: str
        sequence_timestamp: str
        liquidity_indicator: str
        size_in_quote: bool
        user_id: str
        side: str
        retail_portfolio_id: str
        fillSource: str

    decode = msgspec.json.Decoder(Row).decode
    with path.open("rb") as file:
        for line in file:
            decode(line)
    return {}


def ours(path: Path, jobs: int = 1, method: str = "average") -> Answer:
    from statestore.fills.archive import replay_archive
    from statestore.fills.folding import Rules
    from statestore.model import Method

    found = replay_archive(path, Rules(Method(method)), jobs=jobs).assets
    return {
        name: (str(one.position.units), str(one.position.cost))
        for name, one in found.items()
        if one.position.units
    }


def ours_two_jobs(path: Path) -> Answer:
    return ours(path, jobs=2)


def ours_fifo(path: Path) -> Answer:
    return ours(path, method="fifo")


def ours_in_memory(path: Path) -> Answer:
    from statestore.fills.archive import replay_fills
    from statestore.fills.folding import Rules
    from statestore.fills.normalise import normalise
    from statestore.fills.sources.recorded import read_fills

    found = replay_fills(normalise([read_fills(path)]), Rules()).assets
    return {
        name: (str(one.position.units), str(one.position.cost))
        for name, one in found.items()
        if one.position.units
    }


def _average(rows: Iterator[Any], number: Callable[[Any], Any]) -> Answer:
    """The loop one writes: a dict a position, average cost. No row is looked at twice."""
    positions: dict[str, list[Any]] = {}
    zero, tolerance = number(0), number("1E-8")
    for product, side, price, size, quoted in rows:
        asset = product.partition("-")[0]
        position = positions.setdefault(asset, [zero, zero, 0])
        units, notional = (size / price, size) if quoted else (size, size * price)
        position[2] += quoted
        if side == "BUY":
            position[0] += units
            position[1] += notional
            continue
        left = position[0] - units
        if left <= tolerance * max(1, position[2]):
            position[:] = zero, zero, 0
        else:
            position[1] = position[1] * left / position[0]
            position[0] = left
    return {asset: (str(one[0]), str(one[1])) for asset, one in positions.items() if one[0]}


def json_and_decimal(path: Path) -> Answer:
    import decimal

    decimal.getcontext().prec = 60

    def rows() -> Iterator[Any]:
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                Decimal(row["commission"])
                yield (
                    row["product_id"],
                    row["side"],
                    Decimal(row["price"]),
                    Decimal(row["size"]),
                    row["size_in_quote"],
                )

    return _average(rows(), Decimal)


def pandas_and_floats(path: Path) -> Answer:
    import pandas

    frame = pandas.read_json(path, lines=True, dtype=False, convert_dates=False)
    columns = frame[["product_id", "side", "price", "size", "size_in_quote"]].astype(
        {"price": float, "size": float}
    )
    return _average(columns.itertuples(index=False, name=None), float)


def beancount_inventory(path: Path) -> Answer:
    from beancount.core.amount import Amount
    from beancount.core.inventory import Inventory
    from beancount.core.position import Cost

    inventories: dict[str, Any] = {}
    quoted: dict[str, int] = {}
    day = __import__("datetime").date(2025, 1, 1)
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            asset = row["product_id"].partition("-")[0]
            price, size = Decimal(row["price"]), Decimal(row["size"])
            held = inventories.get(asset, Inventory())
            quoted[asset] = quoted.get(asset, 0) + row["size_in_quote"]
            if row["side"] == "BUY":
                units = size / price if row["size_in_quote"] else size
                held.add_amount(Amount(units, asset), Cost(price, "USD", day, None))
                inventories[asset] = held.average()
                continue
            (lot,) = held.get_positions()
            if lot.units.number - size <= TOLERANCE * max(1, quoted[asset]):
                inventories[asset], quoted[asset] = Inventory(), 0
            else:
                held.add_amount(Amount(-size, asset), lot.cost)
    return {
        asset: (str(lot.units.number), str(lot.units.number * lot.cost.number))
        for asset, held in inventories.items()
        for lot in held.get_positions()
    }


def nautilus_position(path: Path) -> Answer:
    from nautilus_trader.core.uuid import UUID4
    from nautilus_trader.model.currencies import USD
    from nautilus_trader.model.enums import LiquiditySide, OrderSide, OrderType
    from nautilus_trader.model.events import OrderFilled
    from nautilus_trader.model.identifiers import (
        AccountId,
        ClientOrderId,
        PositionId,
        StrategyId,
        TradeId,
        TraderId,
        VenueOrderId,
    )
    from nautilus_trader.model.objects import Money, Price, Quantity
    from nautilus_trader.model.position import Position
    from nautilus_trader.test_kit.providers import TestInstrumentProvider

    instrument = TestInstrumentProvider.btcusdt_binance()
    identity = (TraderId("T-1"), StrategyId("S-1"), instrument.id)
    order, venue, account = ClientOrderId("O"), VenueOrderId("V"), AccountId("A-1")
    positions: dict[str, Any] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            asset = row["product_id"].partition("-")[0]
            size, price = float(row["size"]), float(row["price"])
            units = size / price if row["size_in_quote"] else size
            fill = OrderFilled(
                *identity,
                order,
                venue,
                account,
                TradeId(str(number)),
                PositionId(asset),
                OrderSide.BUY if row["side"] == "BUY" else OrderSide.SELL,
                OrderType.MARKET,
                Quantity(units, 9),
                Price(price, 2),
                USD,
                Money(float(row["commission"]), USD),
                LiquiditySide.TAKER,
                UUID4(),
                number,
                number,
            )
            position = positions.get(asset)
            if position is None or position.is_closed:
                positions[asset] = Position(instrument=instrument, fill=fill)
            else:
                position.apply(fill)
    return {
        asset: (str(one.quantity), str(float(one.quantity) * one.avg_px_open))
        for asset, one in positions.items()
        if not one.is_closed
    }


EXACTLY = "1E-25"  # as many digits as are reported

# name -> contender, its part of the stream, how near its cost has to be (None: it has none)
CONTENDERS: dict[str, tuple[Callable[[Path], Answer], int, str | None]] = {
    "msgspec decoding only, the fields a replay needs": (msgspec_only, 1, None),
    "msgspec decoding only, whole rows": (msgspec_whole_rows, 1, None),
    "statestore": (ours, 1, EXACTLY),
    "statestore, --jobs 2": (ours_two_jobs, 1, EXACTLY),
    "statestore, --method fifo": (ours_fifo, 1, None),
    "statestore, rows in memory": (ours_in_memory, 10, EXACTLY),
    "json + Decimal loop": (json_and_decimal, 1, EXACTLY),
    "pandas, then a loop over floats": (pandas_and_floats, 1, "1E-6"),
    "beancount, Inventory.average": (beancount_inventory, 50, "1E-6"),
    "nautilus_trader, Position": (nautilus_position, 10, "1E-2"),
}
PEERS = {"pandas": "pandas", "beancount": "beancount", "nautilus_trader": "nautilus_trader"}
LEFT_OUT = {
    "rp2": "no adapter is written: it reads spreadsheets",
    "freqtrade": "its requirements could not be met from wheels alone",
    "hummingbot": "there is no package of it to install",
}


def run_one(name: str, path: Path) -> None:
    """In a process of its own: measure, and print what was measured."""
    if name.startswith("msgspec"):
        import msgspec  # noqa: F401
    if name.startswith("statestore"):
        import statestore.fills.archive  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    answer = CONTENDERS[name][0](path)
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    peak = max(own.ru_maxrss - before, children.ru_maxrss - before if children.ru_maxrss else 0)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "answer": answer}))


def measure(name: str, path: Path, python: str) -> dict[str, Any] | str:
    ran = subprocess.run(
        [python, __file__, "--one", name, "--stream", path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    if ran.returncode:
        return ran.stderr.strip().splitlines()[-1][:120]
    return dict(json.loads(ran.stdout))


def check(name: str, answer: Answer, truth: Answer, near: str) -> None:
    """Floats miss a flat position by a little, and hold next to nothing instead of nothing."""
    dust = (Decimal(0), Decimal(0)) if near == EXACTLY else (Decimal("1E-4"), Decimal(1))
    for asset in {*truth, *answer}:
        figures = zip(
            truth.get(asset, ("0", "0")), answer.get(asset, ("0", "0")), dust, strict=True
        )
        for right, found, nothing in figures:
            difference = abs(Decimal(found) - Decimal(right))
            if difference > Decimal(near) * abs(Decimal(right)) + nothing:
                raise SystemExit(f"{name}: {asset} is {found}, not {right}")


def head(path: Path, part: int, fills: int) -> Path:
    if part == 1:
        return path
    short = path.with_suffix(f".{part}")
    if not short.exists():
        with path.open("rb") as file, short.open("wb") as out:
            out.writelines(line for line, _ in zip(file, range(fills // part), strict=False))
    return short


def compare(path: Path, fills: int, rounds: int, peers: str) -> list[str]:
    best: dict[str, dict[str, Any]] = {}
    skipped = dict(LEFT_OUT)
    truths: dict[int, Answer] = {}
    names = list(CONTENDERS)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            if name in skipped:
                continue
            _, part, near = CONTENDERS[name]
            python = peers if name.split(",")[0] in PEERS else sys.executable
            stream = head(path, part, fills)
            got = measure(name, stream, python)
            if isinstance(got, str):
                skipped[name] = got
                continue
            if near is not None:
                if part not in truths:
                    truth = measure("statestore", stream, sys.executable)
                    assert isinstance(truth, dict), truth
                    truths[part] = truth["answer"]
                check(name, got["answer"], truths[part], near)
            got["rate"] = fills // part / got["seconds"]
            got["cpu_rate"] = fills // part / got["cpu"]
            former = best.get(name, got)
            best[name] = {
                "rate": max(former["rate"], got["rate"]),
                "cpu_rate": max(former["cpu_rate"], got["cpu_rate"]),
                "peak": got["peak"],
                "fills": fills // part,
            }
    return table(best, skipped)


def table(best: dict[str, dict[str, Any]], skipped: dict[str, str]) -> list[str]:
    own = best["statestore"]
    lines = [
        "| | fills | fills/s | time, ours = 1 | processor time, ours = 1 | memory beyond imports |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in CONTENDERS:
        if name in best:
            one = best[name]
            lines.append(
                f"| {name} | {one['fills']:,} | {round(one['rate'], -3):,.0f} "
                f"| {own['rate'] / one['rate']:.2f} | {own['cpu_rate'] / one['cpu_rate']:.2f} "
                f"| {one['peak'] / 1024:.0f} MB |"
            )
    return [*lines, "", *(f"Left out: {name} ({why})." for name, why in skipped.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fills", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help="Use this stream; made if it is not there.")
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.stream)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.stream or Path(folder) / "fills.jsonl"
        if not path.exists():
            generate(path, given.fills)
        lines = compare(path, given.fills, given.rounds, given.peers)
    text = "\n".join(
        [
            "# Replaying archives of fills",
            "",
            f"Made by `python benchmarks/replay.py --fills {given.fills} --markdown`: "
            f"{given.fills:,} fills over {PRODUCTS} products as JSON Lines, a tenth of them sized",
            f"in quote; {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}, "
            f"Python {platform.python_version()}, the best of {given.rounds} interleaved rounds.",
            "Every positions table but those of decoding alone and of FIFO was compared with ours.",
            "Processor time is the steadier figure where a machine is shared.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if given.markdown:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
