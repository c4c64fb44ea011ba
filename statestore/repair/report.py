"""One page that explains a rebuild to everybody who was not there.

`render` is a pure function from values to the text of an HTML file that needs nothing else: no
script, no font, image or style from elsewhere, no link that leaves the page. What the run came to
is told here in sentences; what is shown of each position is in `cards`, and that nothing from
outside can do harm in a page is for `html` to see to.

The page about a fleet is `render_overview`. What either needs to be made from is given, nothing is
read here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from statestore.amounts import text
from statestore.repair.cards import accepted, card_of, recorded_text, same_number
from statestore.repair.entries import QUANTITY_FIELDS
from statestore.repair.html import count, page
from statestore.repair.plan import Action, Change, Plan, Warn
from statestore.times import format_instant

_T = TypeVar("_T")

_MOST_FINDINGS = 12
_MOST_LISTED = 500
_SHOWN_AT_ONCE = 5


class Outcome(StrEnum):
    """How the run ended.

    PREVIEW: a dry run. WRITTEN: the state was repaired. NOTHING: there was nothing to repair.
    REFUSED: it surely wrote nothing. FAILED: an error, whose message says what was written.
    """

    PREVIEW = "preview"
    WRITTEN = "written"
    NOTHING = "nothing"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be told.

    Attributes:
        state: path of the state file.
        revision, sha256: of the state that was read.
        at: when the run ended, RFC 3339.
        by: who ran it; ``version`` of the program.
        kill_switch: its path; ``halted`` its status, ``halted_why`` what the file says.
        skip_unproven: the operator wants the proven positions only.
        written: revision and sha256 of the state that was written, None if none was.
        backup: path of the copy of the former state, None if none was made.
        audit_line: as it stands in the audit file, None if none was written.
        error: the message that ended the run.
        undo: the command that takes the repair back; ``reading``: commands to look at it again,
            each with what it shows.
    """

    plan: Plan
    outcome: Outcome
    state: str
    revision: int
    sha256: str
    at: str
    by: str
    version: str
    kill_switch: str
    halted: str
    undo: str
    halted_why: str = ""
    reading: Sequence[tuple[str, str]] = ()
    skip_unproven: bool = False
    written: tuple[int, str] | None = None
    backup: str | None = None
    audit_line: str | None = None
    error: str = ""


def command_line(*words: str) -> str:
    """Return a command as it is typed into a shell, whatever is in its words."""
    return shlex.join(words)


def audit_line(entry: Mapping[str, Any]) -> str:
    """Return an entry of the audit file as its line reads there."""
    return json.dumps(dict(entry), default=str)


def render(report: Report) -> str:
    """Return the page."""
    plan = report.plan
    cards = [card_of(change, plan, number) for number, change in enumerate(_ordered(plan))]
    cards = [card for card in cards if not _is_nothing(card.change)]
    return page(
        "report.html.jinja",
        report=report,
        plan=plan,
        evidence=plan.evidence,
        headline=_headline(report),
        sentences=list(_sentences(report)),
        wrong=_wrong(plan),
        window=_window(plan),
        unproven=[card for card in cards if not card.change.allowed],
        changed=[card for card in cards if card.change.allowed and card.change.writes],
        left=[card for card in cards if card.change.allowed and not card.change.writes],
        cards=cards,
        rejected=_first(plan.evidence.rejected),
        warnings=_grouped(plan.warnings),
        shown_at_once=_SHOWN_AT_ONCE,
        nothing=[change for change in plan.changes if _is_nothing(change)],
        foreign=[warning.message for warning in plan.warnings if warning.code == "not_spot"],
        after=_AFTER[report.outcome],
    )


def render_overview(told: Mapping[str, Any], *, at: str, by: str, version: str) -> str:
    """Return the page about a fleet, with a link to the page of each account that has one.

    Args:
        told: the summary, see `statestore.repair.fleet.summary`.
        at: when the run ended, RFC 3339; ``by`` whom; ``version`` of the program.
    """
    counts = dict(told["counts"])
    total, amiss = counts.pop("accounts"), counts.pop("not_ok")
    counts.pop("ok")
    headline = f"{count(amiss, 'account')} of {total} not as expected" if amiss else "All well"
    return page(
        "fleet.html.jinja",
        told=told,
        headline=headline,
        counts=", ".join(f"{times} {name}" for name, times in counts.items()),
        # Beside this page, so that the folder may be moved.
        pages={
            one["account"]: one["report"].rpartition("/")[2]
            for one in told["accounts"]
            if one.get("report")
        },
        at=at,
        by=by,
        version=version,
    )


# What is said in words


def _headline(report: Report) -> str:
    plan = report.plan
    writes, unproven = len(plan.writes), len(plan.unproven)
    if report.outcome is Outcome.WRITTEN:
        return f"{count(writes, 'position')} repaired"
    if report.outcome is Outcome.NOTHING:
        return "Nothing to repair"
    if report.outcome is Outcome.REFUSED:
        return "Refused: nothing was written"
    if report.outcome is Outcome.FAILED:
        return "The run ended with an error"
    found = [f"{count(writes, 'position')} to repair"] if writes else []
    found += [f"{unproven} not proven"] if unproven else []
    found += ["fills that cannot be read"] if plan.evidence.rejected else []
    return ", ".join(found) if found else "Nothing to repair"


def _sentences(report: Report) -> Iterator[str]:
    plan, by = report.plan, f"{report.by}, with statestore {report.version}"
    when = f"on {report.at[:10]} at {report.at[11:19]} UTC"
    done = _done(plan)
    if report.outcome is Outcome.WRITTEN and report.written:
        yield (
            f"{done.capitalize()}. This was written as revision {report.written[0]} of "
            f"{report.state}, which was at revision {report.revision} before, {when} by {by}."
        )
    elif report.outcome is Outcome.PREVIEW:
        yield (
            f"This is a preview of {report.state} at revision {report.revision}, made {when} "
            f"by {by}. It was a dry run: the state was not changed."
        )
        if plan.writes:
            yield f"If it is applied: {done}."
    elif report.outcome is Outcome.NOTHING:
        yield (
            f"{report.state} was compared with the fills {when} by {by}. Nothing had to "
            f"be changed; it is still at revision {report.revision}."
        )
    else:
        yield (
            f"A repair of {report.state}, read at revision {report.revision}, was stopped "
            f"{when}. It was run by {by}."
        )
    if not plan.changes:
        yield "No position is recorded, and none was filled in the window."
    yield from _stopping(report)


def _stopping(report: Report) -> Iterator[str]:
    """What keeps the plan, or a part of it, from being written."""
    plan = report.plan
    if plan.evidence.rejected:
        yield (
            f"{count(len(plan.evidence.rejected), 'row')} of fills cannot be read for certain, "
            "so nothing is written."
        )
    if plan.unproven:
        names = _listed([change.key for change in plan.unproven])
        skipped = (
            "It is left as recorded, and the others are written."
            if len(plan.unproven) == 1
            else "They are left as recorded, and the others are written."
        )
        yield f"Not proven: {names}. " + (
            skipped
            if report.skip_unproven
            else "Until that is settled nothing at all is written, unless the operator decides to "
            "write the proven positions only (--skip-unproven)."
        )


def _done(plan: Plan) -> str:
    counts = [
        (plan.count(Action.UPDATE), "corrected"),
        (plan.count(Action.ADD), "added"),
        (plan.count(Action.REMOVE), "removed"),
    ]
    parts = [f"{changes} {word}" for changes, word in counts if changes]
    first, *others = parts or ["none changed"]
    number, _, word = first.partition(" ")
    noun = "position" if number == "1" else "positions"
    return _listed([f"{number} {noun} {word}", *others])


def _wrong(plan: Plan) -> tuple[list[str], int]:
    """One line for each thing that was wrong, cut to the first ones, and how many were left out."""
    lines = [_difference(change) for change in plan.changes if change.writes]
    return lines[:_MOST_FINDINGS], max(0, len(lines) - _MOST_FINDINGS)


def _difference(change: Change) -> str:
    finding = change.finding
    recorded, held = recorded_text(change.before, QUANTITY_FIELDS), text(finding.units)
    entry = text(finding.position.entry_price) or "unknown"
    if change.action is Action.ADD:
        return f"{change.key} was not recorded; {held} {change.asset} are held, at {entry}."
    if change.action is Action.REMOVE:
        what = f"{held} {change.asset}, too little to be a position," if finding.units else "none"
        return f"{change.key} was recorded with {recorded or 'no quantity'}; {what} is held."
    if not same_number(recorded, held):
        return f"{change.key} was recorded with {recorded or 'no quantity'}; {held} are held."
    before = recorded_text(change.before, ("entry_price",))
    if not same_number(before, text(finding.position.entry_price)):
        return (
            f"{change.key}: the quantity {held} is right; the entry price was recorded as "
            f"{before or 'unknown'} and is {entry}."
        )
    if before is None:
        return f"{change.key}: the quantity {held} is right; what it cost is unknown."
    return f"{change.key}: quantity and entry price are right; other fields of it are not."


def _first(rows: Sequence[_T]) -> tuple[Sequence[_T], int]:
    """As many as a page can hold, and how many were left out."""
    return rows[:_MOST_LISTED], max(0, len(rows) - _MOST_LISTED)


def _grouped(warnings: Sequence[Warn]) -> list[tuple[Sequence[Warn], int]]:
    """The warnings by code, each group cut to what a page can hold."""
    groups: dict[str, list[Warn]] = {}
    for warning in warnings:
        groups.setdefault(warning.code, []).append(warning)
    return [_first(group) for group in groups.values()]


def _listed(words: Sequence[str]) -> str:
    if len(words) > 10:
        words = [*words[:10], f"{len(words) - 10} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _window(plan: Plan) -> dict[str, str]:
    window = plan.window
    return {
        "since": format_instant(window.since),
        "until": format_instant(window.end),
        "hours": _hours(window.hours),
        "searched": format_instant(window.searched_since),
        "searched_hours": _hours(window.searched_hours),
    }


def _hours(hours: Decimal) -> str:
    return text(round(hours, 2)) or ""


_AFTER = {
    Outcome.PREVIEW: "After, if applied",
    Outcome.WRITTEN: "After",
    Outcome.NOTHING: "After",
    Outcome.REFUSED: "By the fills, not written",
    Outcome.FAILED: "By the fills",
}


def _ordered(plan: Plan) -> list[Change]:
    """Unproven first, then what changes, what is accepted before what is proven; then the rest."""
    return sorted(
        plan.changes,
        key=lambda change: (change.allowed, not change.writes, not accepted(change)),
    )


def _is_nothing(change: Change) -> bool:
    """Neither recorded nor to be: an asset that was filled and is gone again."""
    return change.allowed and change.action is Action.NONE
