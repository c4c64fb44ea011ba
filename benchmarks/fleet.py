"""How many accounts a second a fleet plans: one after the other, on threads, processes and Dask.

    python benchmarks/fleet.py                       # prints the figures
    python benchmarks/fleet.py --markdown            # and writes docs/benchmarks-fleet.md

Each account has a key, a portfolio and a server of its own: a simulated exchange that speaks HTTPS,
all of them in a process beside the one that is measured, so both share the machine. With a latency,
answers take that long, as over a network. Rounds are interleaved, the executors are warm.

The constants are of whole runs of the command, as an operator types it: what a fleet of many
accounts takes beyond what a fleet of few takes, by the account.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from statestore.repair.executors import Workers, open_executor
from statestore.repair.fleet import Task, run_all
from statestore.repair.fleetfile import load_fleet
from statestore.repair.fleetwork import Work, works_of
from statestore.simulated import SimulatedExchange, fills
from statestore.times import NANOSECONDS, format_instant, now

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-fleet.md"
FILLS = 20


def texts() -> list[str]:
    return ["BUY 2 BTC-USD @ 100 fee 0.6", "SELL 1 BTC-USD @ 110 fee 0.3"] * (FILLS // 2)


def serve(pipe: Connection, folder: Path, count: int) -> None:
    """Run exchanges until told to stop; told a number, take that many seconds to answer."""
    opened = format_instant(now() - 5 * 3600 * NANOSECONDS)
    with ExitStack() as stack:
        exchanges = [stack.enter_context(SimulatedExchange()) for _ in range(count)]
        for number, exchange in enumerate(exchanges):
            exchange.write_key_file(folder / f"key-{number}.json")
            exchange.add_fills(*texts(), start=opened)
            exchange.set_balance("BTC", str(FILLS // 2))
            exchange.set_product("BTC-USD", price="105")
        bundle = folder / "ca.pem"
        bundle.write_bytes(b"".join(exchange.ca_file.read_bytes() for exchange in exchanges))
        pipe.send([exchange.base_url for exchange in exchanges])
        while (asked := pipe.recv()) is not None:
            for exchange in exchanges:
                exchange.latency = asked
            pipe.send(sum(len(exchange.requests) for exchange in exchanges))


@contextmanager
def exchanges(folder: Path, count: int) -> Iterator[tuple[Connection, list[str]]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, folder, count))
    server.start()
    try:
        yield ours, ours.recv()
    finally:
        ours.send(None)
        server.join()


def live(folder: Path, urls: list[str]) -> Path:
    """Write a fleet file of an account for each exchange."""
    text = '[defaults]\nstate = "{account}/s.json"\nno_ledger = true\nrate = 30\n'
    for number, url in enumerate(urls):
        add_state(folder, f"a{number}")
        text += f'[accounts.a{number}]\nbase_url = "{url}"\nkey_file = "key-{number}.json"\n'
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def recorded(folder: Path, count: int) -> Path:
    """Write a fleet file of accounts whose fills are in files."""
    rows = fills(*texts(), start=format_instant(now() - 5 * 3600 * NANOSECONDS))
    (folder / "fills.json").write_text(json.dumps(rows))
    (folder / "balances.json").write_text(json.dumps({"BTC": str(FILLS // 2)}))
    text = '[defaults]\nstate = "r{account}/s.json"\nfills = "fills.json"\n'
    text += 'balances = "balances.json"\n'
    for number in range(count):
        add_state(folder, f"rn{number}")
        text += f"[accounts.n{number}]\n"
    path = folder / f"recorded-{count}.toml"
    path.write_text(text)
    return path


def add_state(folder: Path, name: str) -> None:
    state = folder / name / "s.json"
    if not state.exists():
        state.parent.mkdir()
        state.write_text('{"positions": {"BTC-USD": {"quantity": 1, "entry_price": 1}}}')


def measure(path: Path, *arguments: str) -> dict[str, float]:
    """Type the command, and say what it took; memory is of its largest process."""
    program = (
        "import os, resource, subprocess, sys, time\n"
        "started = time.monotonic()\n"
        "ran = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "seconds = time.monotonic() - started\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(ran.returncode, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss)\n"
    )
    command = [sys.executable, "-m", "statestore", "fleet", "plan", "-q", str(path), *arguments]
    ran = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    code, seconds, cpu, peak = map(float, ran.stdout.split())
    if code:
        raise SystemExit(f"{path}: exit {code:.0f}\n{ran.stderr}")
    return {"seconds": seconds, "cpu": cpu, "megabytes": peak / 1024}


def beyond(few: Path, many: Path, accounts: int, rounds: int, *arguments: str) -> dict[str, float]:
    """What each account takes: the median of the rounds' differences."""
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        first, second = measure(few, *arguments), measure(many, *arguments)
        for name, value in second.items():
            taken.setdefault(name, []).append((value - first[name]) / accounts)
            taken.setdefault(f"{name} at least", []).append(first[name])
    return {name: statistics.median(values) for name, values in taken.items()}


def once(works: list[Work], workers: Workers) -> float:
    started = time.monotonic()
    results, _ = run_all(works, workers.executor, at_once=workers.at_once)
    bad = [result for result in results.values() if not result.ok]
    if bad:
        raise SystemExit(f"{bad[0].account}: {bad[0].failure}")
    return len(results) / (time.monotonic() - started)


def compare(works: list[Work], contenders: dict[str, Workers], rounds: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        names = list(contenders)
        random.shuffle(names)
        for name in names:
            rates[name].append(once(works, contenders[name]))
    return {name: statistics.median(values) for name, values in rates.items()}


def contenders(stack: ExitStack) -> dict[str, Workers]:
    cores = os.cpu_count() or 1
    found = {
        "one after the other": stack.enter_context(open_executor("threads", 1)),
        "threads, 16": stack.enter_context(open_executor("threads", 16)),
        f"processes, {cores}": stack.enter_context(open_executor("processes", cores)),
        "processes, 8": stack.enter_context(open_executor("processes", 8)),
    }
    try:
        from distributed import LocalCluster
    except ImportError:
        return found
    cluster: Any = stack.enter_context(
        LocalCluster(n_workers=cores, threads_per_worker=8, dashboard_address=":0")
    )
    dask = stack.enter_context(open_executor(f"dask:{cluster.scheduler_address}", 1))
    found[f"Dask, {cores} processes of 8 threads"] = replace(dask, at_once=1_000)
    return found


def table(rates: dict[float, dict[str, float]]) -> list[str]:
    heads = [f"accounts/s at {latency * 1000:.0f} ms | ratio" for latency in rates]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- | --- |" * len(rates)]
    for name in next(iter(rates.values())):
        cells = [
            f"{found[name]:.0f} | {found[name] / found['one after the other']:.2f}"
            for found in rates.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def constants(
    requests: float, from_exchange: dict[str, float], recorded: dict[str, float]
) -> list[str]:
    return [
        "| of each account | from the exchange | from recorded files |",
        "| --- | --- | --- |",
        f"| requests | {requests:.1f} | 0 |",
        f"| processor seconds | {from_exchange['cpu']:.4f} | {recorded['cpu']:.4f} |",
        f"| wall seconds, `--jobs 1`, no latency | {from_exchange['seconds']:.4f} "
        f"| {recorded['seconds']:.4f} |",
        f"| kilobytes in the process that was typed | {from_exchange['megabytes'] * 1024:.0f} "
        f"| {recorded['megabytes'] * 1024:.0f} |",
        "",
        f"A run of few accounts takes {from_exchange['seconds at least']:.2f} s, "
        f"{from_exchange['cpu at least']:.2f} processor seconds and "
        f"{from_exchange['megabytes at least']:.0f} MB, imports included.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accounts", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with exchanges(folder, given.accounts) as (server, urls):
            os.environ |= {"REQUESTS_CA_BUNDLE": str(folder / "ca.pem"), "NO_PROXY": "127.0.0.1"}
            path = live(folder, urls)
            works = works_of(load_fleet(path), Task.PLAN)
            rates = {}
            with ExitStack() as stack:
                found = contenders(stack)
                for workers in found.values():
                    once(works, workers)
                for latency in given.latency:
                    server.send(latency)
                    server.recv()
                    rates[latency] = compare(works, found, given.rounds)
            server.send(0.0)
            before = server.recv()
            few = folder / "few.toml"
            few.write_text(path.read_text().partition("[accounts.a5]")[0])
            measure(path, "--jobs", "1")
            server.send(0.0)
            requests = (server.recv() - before) / given.accounts
            more = given.accounts - 5
            from_exchange = beyond(few, path, more, given.rounds, "--jobs", "1")
        few, many = recorded(folder, 100), recorded(folder, 2_100)
        from_files = beyond(few, many, 2_000, given.rounds, "--jobs", "1")
    text = "\n".join(
        [
            "# Fleets: what they take",
            "",
            f"Made by `python benchmarks/fleet.py --accounts {given.accounts} --rounds "
            f"{given.rounds} --markdown`: plans of {given.accounts} accounts of {FILLS}",
            f"fills, each with a key and a simulated exchange of its own; {os.cpu_count()} cores "
            "that the exchanges share,",
            f"load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}, medians of "
            "interleaved rounds.",
            "Without latency all of it is work, and a machine that others load gives more of "
            "itself to more threads:",
            "there, read the processor seconds.",
            "",
            *table(rates),
            "",
            *constants(requests, from_exchange, from_files),
            "",
        ]
    )
    print(text)
    if given.markdown:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
