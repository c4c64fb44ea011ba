"""The test of the test: planted mistakes and other stores show violations where they exist."""

from __future__ import annotations

import dataclasses

import pytest

from tests.crash import lab, subjects
from tests.crash.disk import MODELS
from tests.crash.lab import EMPTY, LOST, UNREADABLE, Tally
from tests.crash.subjects import FLAWS, LITTER, PEERS, STATESTORE, Peer

pytestmark = pytest.mark.usefixtures("strace")

FALLBACK = "a fallback had to be loaded"
FSYNC_FAILS = ["fsync:error=EIO:when=1"]
by_name = {subject.name: subject for subject in STATESTORE}


def shown_by(flaw: str) -> dict[str, Tally]:
    """Put a planted mistake through the laboratory."""
    subject = subjects.with_flaw(by_name[FLAWS[flaw]], flaw)
    going_on = dataclasses.replace(subject, work=subjects.save_through_failures(3, 4))
    return {
        "power cut": sum((lab.power_cut(subject, model, limit=300) for model in MODELS), Tally()),
        "failed fsync": sum(
            (lab.power_cut(going_on, model, limit=300, faults=FSYNC_FAILS) for model in MODELS),
            Tally(),
        ),
        "kill": lab.kill(subject, lab.calls_to_hit(subject)),
    }


@pytest.mark.parametrize(
    ("flaw", "experiment", "violation"),
    [
        ("no fsync of the folder", "power cut", LOST),
        ("no fsync of the file", "power cut", FALLBACK),
        (".bak by rename", "kill", FALLBACK),
        (".bak by rename", "power cut", FALLBACK),
        ("fsync tried again on the same file", "failed fsync", FALLBACK),
        ("temp named by pid, left behind", "kill", LITTER),
        ("damaged state rotated over .bak", "kill", UNREADABLE),
        ("damaged state rotated over .bak", "power cut", UNREADABLE),
        ("written in place", "kill", FALLBACK),
    ],
)
def test_a_planted_mistake_is_caught(flaw: str, experiment: str, violation: str) -> None:
    assert violation in shown_by(flaw)[experiment].violations


def test_the_saver_the_mistakes_are_planted_in_is_clean_without_them() -> None:
    assert [tally.violations for tally in shown_by("none").values()] == [{}, {}, {}]


def cut(peer: Peer) -> Tally:
    models = MODELS[1:] if peer.name == "diskcache" else MODELS  # it makes 1,400 calls
    return sum((lab.power_cut(peer.subject(), model, limit=100) for model in models), Tally())


@pytest.mark.parametrize(
    ("name", "violations"),
    [
        ("json.dump in place", {UNREADABLE, LOST}),
        ("json + os.replace", {UNREADABLE, LOST}),
        ("json + fsync + os.replace", {LOST}),
        ("atomicwrites", {LITTER}),
        ("sqlite3 DELETE, FULL", {LOST}),
        ("sqlite3 DELETE, EXTRA", set()),
        ("sqlite3 WAL, FULL", set()),
        ("sqlite3 WAL, NORMAL", {LOST}),
        ("shelve (dbm.dumb)", {LOST, EMPTY}),
        ("tinydb", {UNREADABLE, EMPTY}),
        ("diskcache", {LOST}),
    ],
)
def test_a_power_cut_costs_a_peer_what_it_is_known_to(name: str, violations: set[str]) -> None:
    """Two that promise as much lose nothing here, so the laboratory does not just find fault."""
    peer = next(peer for peer in PEERS if peer.name == name)

    if peer.missing:
        pytest.skip(peer.missing)
    found = set(cut(peer).violations)

    assert violations <= found
    assert violations or not found
