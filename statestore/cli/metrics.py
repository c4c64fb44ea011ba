"""Figures of one run as an OpenMetrics text file, for node_exporter's textfile collector.

What is promised:

* a scraper sees the file of one run or of the one before: it is written aside and renamed;
* what is not known has no sample; it is never 0;
* a run that fails writes its exit code as well, and keeps the time of the last success;
* each series carries the labels ``command`` and ``state``, so that two files never hold the same
  one (the collector would refuse both).

Every figure is a gauge, since it is of one moment. docs/metrics.md lists them with their alerts.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from statestore import times
from statestore.cli.exits import INTERRUPTED, code_for
from statestore.cli.screen import note
from statestore.errors import Place, StateStoreError, UsageError

if TYPE_CHECKING:
    from statestore.disk.checking import CheckReport
    from statestore.disk.killswitch import KillSwitch
    from statestore.repair.verify import Verification

Number = int | Decimal

# In the order of the file. A name that ends in a unit is declared with it.
METRICS: Mapping[str, str] = {
    "statestore_last_run_timestamp_seconds": "When this run ended.",
    "statestore_last_success_timestamp_seconds": "When a run last found everything in order.",
    "statestore_duration_seconds": "How long this run took.",
    "statestore_exit_code": "Exit code of this run; 0 is done.",
    "statestore_state_revision": "Revision of the state.",
    "statestore_state_saved_timestamp_seconds": "When the state was saved.",
    "statestore_state_age_seconds": "How long before the end of this run it was saved.",
    "statestore_state_good": "1 if the state file, its .bak and every backup read, else 0.",
    "statestore_backups": "Backups of the state.",
    "statestore_backups_valid": "Backups of the state that read.",
    "statestore_kill_switch_engaged": "1 if the kill switch is engaged, 0 if it is released.",
    "statestore_positions": "Positions compared with balances and fills.",
    "statestore_positions_agreeing": "Positions that balances and fills confirm.",
    "statestore_positions_differing": "Positions that balances and fills contradict.",
    "statestore_positions_unproven": "Positions that balances and fills cannot tell of.",
    "statestore_positions_unsettled": "Positions traded so recently that nothing can be told yet.",
}

_UNIT = re.compile(r"_(seconds)$")
_LAST_SUCCESS = "statestore_last_success_timestamp_seconds"


@dataclass
class Figures:
    """What one run found. A figure that is not set, or None, is not known.

    Attributes:
        exit_code: of the run, where it ended without an error.
        success: everything was in order.
    """

    values: dict[str, Number] = field(default_factory=dict)
    exit_code: int = 0
    success: bool = False

    def set(self, name: str, value: Number | None) -> None:
        """Set ``statestore_<name>``."""
        if value is not None:
            self.values[f"statestore_{name}"] = value

    def state(self, revision: int | None, saved_at: int | None) -> None:
        """Set what is known of the state; ``saved_at`` is an instant."""
        self.set("state_revision", revision)
        self.set("state_saved_timestamp_seconds", None if saved_at is None else _seconds(saved_at))

    def kill_switch(self, switch: KillSwitch) -> None:
        self.set("kill_switch_engaged", {"engaged": 1, "released": 0}.get(switch.status()))

    def files(self, report: CheckReport) -> None:
        """Set what `StateStore.check` found."""
        self.set("state_good", int(report.ok))
        self.set("backups", len(report.backups))
        self.set("backups_valid", sum(f.status in ("good", "adopted") for f in report.backups))

    def verification(self, verification: Verification) -> None:
        """Set what `statestore.repair.verify.verify` found."""
        from statestore.repair.verify import Verdict

        meta = verification.proposal.state.meta
        self.state(meta.revision, times.parse_instant(meta.saved_at) if meta.saved_at else None)
        self.set("positions", len(verification.positions))
        words = {Verdict.AGREES: "agreeing", Verdict.DIFFERS: "differing"}
        for verdict in Verdict:
            count = verification.count(verdict)
            self.set(f"positions_{words.get(verdict, verdict.value)}", count)


@contextmanager
def recording(path: Path | None, command: str, state: Place) -> Iterator[Figures]:
    """Give what the run's figures are set on, and write them however it ends.

    Args:
        path: None writes nothing.
        state: for the label.

    Raises:
        UsageError: the file cannot be written. Said only, where the run failed already.
    """
    started = time.monotonic()
    figures = Figures()
    code = None
    try:
        yield figures
        code = figures.exit_code
    except BaseException as error:
        code, figures.success = _code_of(error), False
        raise
    finally:
        if path is not None and code is not None:
            labels = {"command": command, "state": str(state)}
            try:
                _finish(figures, code, time.monotonic() - started, path, labels)
                _write(path, render(figures.values, labels))
            except OSError as error:
                message = f"--metrics-textfile {path} cannot be written: {error.strerror or error}"
                if code == 0:
                    raise UsageError(message) from error
                note(f"Warning: {message}")


def _code_of(error: BaseException) -> int:
    if isinstance(error, StateStoreError):
        return code_for(type(error))
    if isinstance(error, click.ClickException):
        return error.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt | click.Abort) else 1


def _finish(
    figures: Figures, code: int, duration: float, path: Path, labels: Mapping[str, str]
) -> None:
    ended = times.now()
    figures.set("last_run_timestamp_seconds", _seconds(ended))
    figures.set("duration_seconds", Decimal(f"{duration:.6f}"))
    figures.set("exit_code", code)
    saved = figures.values.get("statestore_state_saved_timestamp_seconds")
    figures.set("state_age_seconds", None if saved is None else _seconds(ended) - saved)
    success = _seconds(ended) if figures.success else _former(path, _LAST_SUCCESS, labels)
    figures.set("last_success_timestamp_seconds", success)


def _seconds(instant: int) -> Decimal:
    return Decimal(instant // 1_000) / 1_000_000


def render(values: Mapping[str, Number], labels: Mapping[str, str]) -> str:
    """Return the OpenMetrics text of gauges, all with the same labels.

    Args:
        values: by name, of `METRICS`; one that is left out has no sample.
    """
    lines = []
    for name, what in METRICS.items():
        if name in values:
            unit = _UNIT.search(name)
            lines += [f"# HELP {name} {_escaped(what)}", f"# TYPE {name} gauge"]
            lines += [f"# UNIT {name} {unit[1]}"] if unit else []
            lines.append(f"{name}{_labelled(labels)} {Decimal(values[name]):f}")
    return "\n".join([*lines, "# EOF", ""])


def _labelled(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"


def _escaped(text: str) -> str:
    # A file name may hold bytes that are no text; they must not make the whole file unreadable.
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _former(path: Path, name: str, labels: Mapping[str, str]) -> Decimal | None:
    """Return what the file of the run before says; None where it does not say."""
    start = f"{name}{_labelled(labels)} "
    with suppress(OSError, ValueError, ArithmeticError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(start):
                found = Decimal(line.removeprefix(start))
                return found if found.is_finite() else None
    return None


def _write(path: Path, text: str) -> None:
    """Put the text under the name in one step, readable for the collector's user.

    Not flushed: after a power cut the next run writes it anew. The temporary name is one of its
    own, since runs may overlap, and does not end in ``.prom``, which would be collected.
    """
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, 0o644)
            stream.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
