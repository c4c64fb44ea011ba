"""What reading fills side by side gains over one cursor, at a rate the exchange allows.

The simulated exchange runs in a process of its own, speaks HTTPS, checks every token, gives 250
fills a page after a constant latency and counts whoever asks more often than allowed. Both readers
are the same source; the sequential one is kept from cutting its window. Its figure is computed from
a run of 60 pages, unless ``--full``.

    python benchmarks/fetch.py [--full] [--rate 30] [--latency 100,400] [--fills 100000]
        [--shapes uniform,burst,days,orders,...]

"used" is requests a second over the rate; "requests" are those made, beside the fewest that could
do; "beyond" are those the exchange would have refused (the rate in any one second, at its end).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

from statestore.fills.sources.coinbase import CoinbaseSource
from statestore.fills.sources.credentials import Credentials
from statestore.simulated import SimulatedExchange, fill
from statestore.times import NANOSECONDS, format_instant, parse_instant

HOUR = 3600 * NANOSECONDS
END = parse_instant("2025-11-21T00:00:00Z")
START = END - 72 * HOUR
PAGE = 250
SAMPLE_PAGES = 60


def times(shape: str, count: int) -> list[int]:
    """Return when the fills were executed, oldest first."""
    rng = random.Random(shape)

    def uniform(number: int, start: int, end: int) -> list[int]:
        return [rng.randrange(start, end) for _ in range(number)]

    if shape == "uniform":
        found = uniform(count, START, END)
    elif shape == "burst":  # 90 % in one hour
        at = START + 41 * HOUR
        found = uniform(count // 10, START, END) + uniform(count - count // 10, at, at + HOUR)
    elif shape == "days":  # busy hours and quiet ones
        found = []
        while len(found) < count:
            at = rng.randrange(START, END)
            if 13 <= at // HOUR % 24 < 20 or rng.random() < 0.1:
                found.append(at)
    elif shape == "orders":  # up to 400 fills within a second, then nothing for minutes
        found = []
        while len(found) < count:
            at = rng.randrange(START, END - NANOSECONDS)
            found += uniform(rng.randrange(1, 400), at, at + NANOSECONDS)
        found = found[:count]
    else:
        found = uniform({"none": 0, "one page": 200, "two pages": 400}[shape], START, END)
    return sorted(found)


def serve(shape: str, count: int, latency: float, rate: int, pipe: Connection) -> None:
    with SimulatedExchange() as exchange:
        for number, at in enumerate(times(shape, count)):
            text = f"BUY {number + 1} BTC-USD @ 100 at {format_instant(at)} id e{number}"
            exchange.add_fill(fill(text))
        exchange.page_size, exchange.latency = PAGE, latency
        exchange._by_time()
        pipe.send((exchange.base_url, str(exchange.ca_file), exchange.api_key, exchange.api_secret))
        while pipe.recv() == "next":
            arrived = sorted(request.at for request in exchange.requests)
            beyond = sum(b - a < 1 for a, b in zip(arrived, arrived[rate:], strict=False))
            pipe.send((len(arrived), beyond))
            exchange.requests.clear()


def timed(source: CoinbaseSource, since: int, until: int) -> tuple[float, list[str]]:
    started = time.perf_counter()
    rows = source.fills(since, until).rows
    return time.perf_counter() - started, [str(row.payload["entry_id"]) for row in rows]


def measure(shape: str, count: int, milliseconds: int, rate: int, full: bool) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(shape, count, milliseconds / 1000, rate, theirs)
    )
    process.start()
    base_url, ca_file, *key = ours.recv()

    def source() -> CoinbaseSource:
        options = {"base_url": base_url, "ca_file": Path(ca_file), "rate": rate}
        return CoinbaseSource(Credentials(*key), **options)

    at = times(shape, count)
    short = not full and len(at) > PAGE * SAMPLE_PAGES
    one_cursor = source()
    one_cursor._abreast = lambda: 0.0
    # The outer margin of ten minutes reads a little more than it says; pages are what is counted.
    since = at[-PAGE * SAMPLE_PAGES] if short else START
    sequential, ids = timed(one_cursor, since, END)
    ours.send("next")
    asked, _ = ours.recv()
    fewest = max(1, -(-len(at) // PAGE))
    sequential *= fewest / asked

    concurrent, found = timed(source(), START, END)
    ours.send("next")
    made, beyond = ours.recv()
    ours.send("end")
    process.join()
    if sorted(found) != sorted(f"e{number}" for number in range(len(at))):
        raise SystemExit(f"{shape}: fills are missing")
    if not short and found != ids:
        raise SystemExit(f"{shape}: another order than one cursor's")
    print(
        f"| {shape} | {len(at)} | {milliseconds} | {sequential:.1f}"
        f"{' (computed)' if short else ''} | {concurrent:.1f} | {sequential / concurrent:.1f} "
        f"| {made} / {fewest} | {made / concurrent / rate:.0%} | {beyond} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="read everything by one cursor as well")
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--latency", default="100,400", help="milliseconds")
    parser.add_argument("--fills", type=int, default=100_000)
    parser.add_argument("--shapes", default="uniform,burst,days,orders,two pages,one page,none")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    print(f"{options.rate} requests a second, {PAGE} fills a page, a window of 72 hours\n")
    print(
        "| fills | count | ms a page | one cursor, s | side by side, s | ratio | requests | used "
        "| beyond |"
    )
    print("| --- " * 9 + "|")
    for milliseconds in options.latency.split(","):
        for shape in options.shapes.split(","):
            measure(shape, options.fills, int(milliseconds), options.rate, options.full)


if __name__ == "__main__":
    main()
