"""Run the laboratory in full and write its figures into ``docs/durability.md``.

``python -m tests.crash.report`` prints them; ``--write`` puts them into the page.
"""

# ruff: noqa: T201  # it is a script

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.crash import damage, lab, soak, subjects, test_faults, test_peers, test_power_cut
from tests.crash.disk import MODELS
from tests.crash.lab import EMPTY, LOST, STUCK, UNREADABLE, Tally
from tests.crash.subjects import BESIDE, FLAWS, LITTER, PEERS, STATESTORE, WRONG, Peer

PAGE = Path(__file__).parent.parent.parent / "docs" / "durability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_LIMIT = 200  # images of a peer's disk at one call


def statestore() -> Iterator[tuple[str, Tally]]:
    """Yield each experiment on a statestore, with what came of it."""
    everything = STATESTORE + BESIDE
    kills = (lab.kill(subject, lab.calls_to_hit(subject)) for subject in everything)
    yield "SIGKILL at each system call", sum(kills, Tally())
    yield "SIGKILL at any moment, then a save at once", soak.kills_at_any_moment(1_000)
    faults = (
        lab.fail(subject, test_faults.cases(lab.calls_to_hit(subject), full=True))
        for subject in everything
    )
    yield "each system call failing with each of six errors", sum(faults, Tally())
    for model in MODELS:
        cuts = (lab.power_cut(subject, model) for subject in test_power_cut.everything)
        yield f"power cut, {model}", sum(cuts, Tally())
        successions = test_power_cut.SUCCESSIONS.values()
        after = (lab.power_cut_after_kill(*pair, model) for pair in successions)
        yield f"power cut after a kill and a restart, {model}", sum(after, Tally())
        bot = replace(
            test_power_cut.SAVE, work=subjects.save_through_failures(3, 4), read=subjects.read
        )
        failed = (
            lab.power_cut(bot, model, faults=[fault]) for fault in test_power_cut.FAILURES.values()
        )
        yield f"power cut after a failed fsync, {model}", sum(failed, Tally())
    state, bak = "state.json", "state.json.bak"
    for which in ((state,), (bak,), (state, bak)):
        yield f"damage at rest of {' and '.join(which)}", damage.damage_statestore(which, 1)
    yield "increments of 8 processes at once", soak.increments(8, 200)


def planted(flaw: str) -> str:
    """Return which experiments catch a planted mistake."""
    shown = test_peers.shown_by(flaw)
    return ", ".join(
        f"{experiment} ({what}: {count} of {tally.cases})"
        for experiment, tally in shown.items()
        for what, count in tally.violations.items()
    )


def peer(peer: Peer) -> list[str]:
    """Return a row of the table of peers."""
    row = [peer.name]
    for model in MODELS:
        tally = sum(
            (lab.power_cut(peer.subject(first=f), model, limit=_LIMIT) for f in (False, True)),
            Tally(),
        )
        row += [str(tally.cases)]
        row += [
            str(tally.violations.get(LOST, 0) + tally.violations.get(EMPTY, 0)),
            str(tally.violations.get(UNREADABLE, 0) + tally.violations.get(STUCK, 0)),
        ]
    subject = peer.subject()
    killed = lab.kill(subject, lab.calls_to_hit(subject, lab.MUTATING)[:100])
    litter = killed.violations.pop(LITTER, 0)
    row += [f"{killed.failures} of {killed.cases}", str(litter)]
    hurt = damage.damage_peer(peer, step=13)
    silent = sum(hurt.violations.get(what, 0) for what in (WRONG, EMPTY, damage.STALE))
    return [*row, f"{silent} of {hurt.cases}"]


def figures() -> Iterator[str]:
    """Yield the lines of the page's figures."""
    made = datetime.now(UTC).date().isoformat()
    strace = subprocess.run(["strace", "-V"], capture_output=True, text=True, check=True).stdout
    yield f"Last full run: {made}, Linux {platform.release()}, Python {platform.python_version()},"
    yield f"{strace.splitlines()[0].replace(' -- version', '')}."
    yield ""
    yield "| experiment on statestore | cases | violations |"
    yield "| --- | ---: | ---: |"
    total = Tally()
    for name, tally in statestore():
        yield f"| {name} | {tally.cases:,} | {tally.failures} |"
        for what, example in tally.examples.items():
            print(f"VIOLATED in {name}: {what}: {example}", file=sys.stderr)
        total += tally
    yield f"| **together** | **{total.cases:,}** | **{total.failures}** |"
    yield ""
    yield "| planted mistake | caught by |"
    yield "| --- | --- |"
    for flaw in FLAWS:
        yield f"| {flaw} | {planted(flaw) or 'nothing, as it should be'} |"
    yield ""
    yield (
        "| store | strict: cases | lost or empty | does not load | journal: cases | lost or empty "
        "| does not load | kill: broken | kill: files left | damage answered wrongly |"
    )
    yield "| --- " + "| ---: " * 9 + "|"
    for other in PEERS:
        if other.missing is None:
            yield f"| {' | '.join(peer(other))} |"


def main() -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # ours below
    lines = []
    with tempfile.TemporaryDirectory(prefix="lab-", dir=memory) as folder, subjects.quiet():
        tempfile.tempdir = folder
        for line in figures():
            print(line, flush=True)
            lines.append(line)
    if "--write" in sys.argv:
        text = PAGE.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after)


if __name__ == "__main__":
    main()
