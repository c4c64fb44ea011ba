"""Any order of savers, readers, transactions, hand edits, damage, seals and restores, and a model.

The model knows what stands in the state file, in ``.bak`` and in the backups, and so what a load
has to answer: that state exactly, or an error, and a fallback only with a word about it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from statestore.disk import codec
from statestore.disk.store import FileStore, State, StateStore
from statestore.errors import (
    RevisionConflict,
    StateChecksumMismatch,
    StateCorrupt,
    StateError,
    StateMissing,
)
from tests.crash.conftest import FULL
from tests.crash.subjects import Violation, number_of, state_of

writers = st.integers(0, 2)
places = st.floats(0, 0.999)


@dataclass(frozen=True)
class Standing:
    """A good file: which state at which revision."""

    number: int
    revision: int


DAMAGED, EDITED = "damaged", "edited"
Content = Standing | str | None


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "state.json")
        self.bak = Path(f"{self.path}.bak")
        self.stores = [StateStore(self.path, lock_timeout=0) for _ in range(3)]
        self.held: list[tuple[State, Content] | None] = [None] * 3
        self.number = 0
        self.state: Content = None
        self.former: Content = None
        self.backups: list[Standing] = []
        self.highest = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # What the model expects

    def expected(self) -> Standing | type[StateError] | None:
        """Return the state a load has to answer with, the error, or None for an empty state."""
        if self.state == EDITED:
            return StateChecksumMismatch
        if isinstance(self.state, Standing):
            return self.state
        if isinstance(self.former, Standing):
            return self.former
        if self.backups:
            return self.backups[-1]
        return StateCorrupt if DAMAGED in (self.state, self.former) else None

    def saved(self, number: int, revision: int) -> None:
        """A save was acknowledged: what was good is `.bak` now, what was not is moved aside."""
        assert revision > self.highest_standing(), "the revision went back"
        if isinstance(self.state, Standing):
            self.former = self.state
        self.state = Standing(number, revision)

    def highest_standing(self) -> int:
        standing = [c.revision for c in (self.state, self.former) if isinstance(c, Standing)]
        return max(standing, default=0)

    # Life

    @rule(writer=writers)
    def load_and_save(self, writer: int) -> None:
        expected = self.expected()
        self.number += 1
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.stores[writer].load()
            return
        state = self.stores[writer].load()
        assert number_of(state) == (expected.number if expected else 0)
        state.update(state_of(self.number))
        meta = self.stores[writer].save(state)
        self.saved(self.number, meta.revision)
        self.held[writer] = state, self.state

    @rule(writer=writers)
    def save_what_was_held(self, writer: int) -> None:
        """A bot that ran all along saves: only on top of what it saw."""
        held = self.held[writer]
        if held is None:
            return
        state, seen = held
        self.number += 1
        former = dict(state)
        state.update(state_of(self.number))
        refused: StateError | None = None
        try:
            meta = self.stores[writer].save(state)
        except StateError as error:
            refused = error
        if refused is not None:
            state.clear()
            state.update(former)
            assert self.state != seen
            if isinstance(self.state, Standing):
                assert isinstance(refused, RevisionConflict)
            return
        # Accepted: nothing newer was overwritten.
        assert isinstance(seen, Standing)
        assert self.state == seen or not isinstance(self.state, Standing)
        assert seen.revision >= self.highest_standing()
        self.saved(self.number, meta.revision)
        self.held[writer] = state, self.state

    @rule(writer=writers, fails=st.booleans())
    def transact(self, writer: int, fails: bool) -> None:
        expected = self.expected()
        self.number += 1
        answered = StateError if isinstance(expected, type) else ZeroDivisionError
        try:
            with self.stores[writer].transaction() as state:
                state.update(state_of(self.number))
                if fails:
                    raise ZeroDivisionError
        except answered:
            return
        assert not isinstance(expected, type)
        self.saved(self.number, state.meta.revision)
        self.held[writer] = state, self.state

    @rule(writer=writers)
    def refresh(self, writer: int) -> None:
        if self.stores[writer].recovered_from is None:  # else it is known already, and told
            self.compare(self.stores[writer].refresh)

    @precondition(lambda self: isinstance(self.expected(), Standing))
    @rule(writer=writers)
    def back_up(self, writer: int) -> None:
        expected = self.expected()
        assert isinstance(expected, Standing)
        self.stores[writer].backup()
        self.backups.append(expected)

    @precondition(lambda self: self.backups)
    @rule(writer=writers, which=places)
    def restore(self, writer: int, which: float) -> None:
        backups = self.stores[writer].backups.list()[::-1]
        index = int(which * len(backups))
        meta = self.stores[writer].restore(backups[index].path)
        self.saved(self.backups[index].number, meta.revision)

    @rule(writer=writers)
    def seal(self, writer: int) -> None:
        if self.state in (DAMAGED, None):
            with pytest.raises((StateCorrupt, StateMissing)):
                self.stores[writer].seal()
            return
        meta = self.stores[writer].seal()
        number = self.edited if self.state == EDITED else self.state.number  # type: ignore[union-attr]
        self.state = Standing(number, meta.revision)

    # Harm

    @precondition(lambda self: isinstance(self.state, Standing))
    @rule()
    def edit(self) -> None:
        assert isinstance(self.state, Standing)
        self.edited, old = self.number + 1, self.state.number
        self.number += 1
        text = self.path.read_text().replace(f'"n": {old},', f'"n": {self.edited},')
        for word, new in zip(_texts(old), _texts(self.edited), strict=True):
            text = text.replace(word, new)
        self.path.write_text(text)
        self.state = EDITED

    @rule(place=places, of_bak=st.booleans())
    def tear(self, place: float, of_bak: bool) -> None:
        path = self.bak if of_bak else self.path
        if not path.exists():
            return
        data = path.read_bytes()
        path.write_bytes(data[: int(place * (len(data) - 2))])
        self.damaged(of_bak)

    @rule(place=places, of_bak=st.booleans())
    def flip_the_high_bit_of_a_byte(self, place: float, of_bak: bool) -> None:
        """Which no JSON text of ASCII survives."""
        path = self.bak if of_bak else self.path
        if not path.exists() or not path.stat().st_size:
            return
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] |= 0x80
        path.write_bytes(data)
        self.damaged(of_bak)

    def damaged(self, of_bak: bool) -> None:
        if of_bak:
            self.former = DAMAGED
        else:
            self.state = DAMAGED

    @rule(of_bak=st.booleans())
    def delete(self, of_bak: bool) -> None:
        if of_bak:
            self.bak.unlink(missing_ok=True)
            self.former = None
        else:
            self.path.unlink(missing_ok=True)
            self.state = None

    @rule()
    def delete_lock_file_of_nobody(self) -> None:
        Path(f"{self.path}.lock").unlink(missing_ok=True)

    @rule()
    def leave_litter(self) -> None:
        for name in ("state.json.tmp", "state.json.bak.tmp"):
            (self.path.parent / name).write_bytes(b"torn")

    # What has to hold after every step

    @invariant()
    def a_reader_sees_what_stands(self) -> None:
        if hasattr(self, "path"):
            self.compare(StateStore(self.path).load)

    def compare(self, load: object) -> None:
        expected = self.expected()
        if isinstance(expected, type):
            with pytest.raises(expected):
                load()  # type: ignore[operator]
            return
        state = load()  # type: ignore[operator]
        assert number_of(state) == (expected.number if expected else 0)
        assert state.meta.revision == (expected.revision if expected else 0)
        told = state.meta.recovered_from is not None
        assert told == (expected is not None and not isinstance(self.state, Standing))


def _texts(number: int) -> list[str]:
    state = state_of(number)
    price = state["positions"]["BTC-USD"]["entry_price"]
    return [f'"quantity": {number},', f'"entry_price": {price},', f'trade {number}"']


def live(lives: int, *, by_chance: bool = FULL) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=not by_chance,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_order_of_events_gives_a_wrong_older_or_empty_state() -> None:
    live(1_000 if FULL else 50)


@pytest.mark.parametrize(
    ("where", "name", "mistake"),
    [
        (FileStore, "_require_latest", lambda *_: None),
        (FileStore, "_keep_for", lambda self, _: self.backup_path),
        (codec, "_sum_is_right", lambda *_: True),
    ],
    ids=["a stale writer is let in", "a damaged state over .bak", "no sum is checked"],
)
def test_a_planted_mistake_is_found(
    where: object, name: str, mistake: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, mistake)

    # A broken promise, an error that was not to come, or (Failed) one that did not come.
    with pytest.raises((AssertionError, StateError, Violation, ValueError, pytest.fail.Exception)):
        live(2_000, by_chance=False)  # the first find ends it, and it is the same each time
