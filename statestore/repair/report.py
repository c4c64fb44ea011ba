"""One page that explains a rebuild to everybody who was not there.

`render` is a pure function from values to the text of an HTML file that needs nothing else: no
script, no font, image or style from elsewhere, no link that leaves the page. Whatever comes from
outside (names of products, fields of the state, reasons, paths) is escaped where it is put in, and
characters that cannot be seen are shown by their number, so that a name cannot pretend to be
another one. Numbers are the exact texts of the plan; a float in the text is an error.

Needs the extra ``report`` (jinja2), which is imported when it is used.

It is long for a module because it is one page, told in the order in which it is read.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from statestore.amounts import text
from statestore.errors import UsageError
from statestore.model import STATUS_MEANINGS, Status
from statestore.repair.chart import Chart, draw
from statestore.repair.entries import QUANTITY_FIELDS, said
from statestore.repair.plan import PROVEN, Action, Change, Plan, Warn
from statestore.times import format_instant

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_T = TypeVar("_T")

# How the first lines of a report read, by which it is known again.
GENERATOR = '<meta name="generator" content="statestore report">'

_MARKS = {
    "product": "at the price the exchange gave",
    "last_fill": "at the price of the last fill",
    "none": "at cost",
}

_MOST_ROWS = 50
_MOST_FINDINGS = 12
_MOST_LISTED = 500
_SHOWN_AT_ONCE = 5
_LONGEST_VALUE = 400


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


def require_jinja2() -> None:
    """Raise `UsageError` where `render` could not work."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--report needs jinja2, which is not installed: pip install 'statestore[report]'; "
            "nothing was read or written"
        ) from error


def command_line(*words: str) -> str:
    """Return a command as it is typed into a shell, whatever is in its words."""
    return shlex.join(words)


def audit_line(entry: Mapping[str, Any]) -> str:
    """Return an entry of the audit file as its line reads there."""
    return json.dumps(dict(entry), default=str)


def render(report: Report) -> str:
    """Return the page."""
    plan = report.plan
    cards = [_card(change, plan, number) for number, change in enumerate(_ordered(plan))]
    cards = [card for card in cards if not _is_nothing(card.change)]
    template = _environment().get_template("report.html.jinja")
    page = template.render(
        generator=_markup(GENERATOR),
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
    return f"{page.strip()}\n"


def render_overview(told: Mapping[str, Any], *, at: str, by: str, version: str) -> str:
    """Return the page about a fleet, with a link to the page of each account that has one.

    Args:
        told: the summary, see `statestore.repair.fleet.summary`.
        at: when the run ended, RFC 3339; ``by`` whom; ``version`` of the program.
    """
    counts = dict(told["counts"])
    total, amiss = counts.pop("accounts"), counts.pop("not_ok")
    counts.pop("ok")
    headline = f"{_count(amiss, 'account')} of {total} not as expected" if amiss else "All well"
    page = _environment().get_template("fleet.html.jinja")
    text = page.render(
        generator=_markup(GENERATOR),
        told=told,
        headline=headline,
        counts=", ".join(f"{count} {name}" for name, count in counts.items()),
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
    return f"{text.strip()}\n"


# What is said in words


def _headline(report: Report) -> str:
    plan = report.plan
    writes, unproven = len(plan.writes), len(plan.unproven)
    if report.outcome is Outcome.WRITTEN:
        return f"{_count(writes, 'position')} repaired"
    if report.outcome is Outcome.NOTHING:
        return "Nothing to repair"
    if report.outcome is Outcome.REFUSED:
        return "Refused: nothing was written"
    if report.outcome is Outcome.FAILED:
        return "The run ended with an error"
    found = [f"{_count(writes, 'position')} to repair"] if writes else []
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
            f"{_count(len(plan.evidence.rejected), 'row')} of fills cannot be read for certain, "
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
    parts = [f"{count} {word}" for count, word in counts if count]
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
    recorded, held = _recorded(change.before, QUANTITY_FIELDS), text(finding.units)
    entry = text(finding.position.entry_price) or "unknown"
    if change.action is Action.ADD:
        return f"{change.key} was not recorded; {held} {change.asset} are held, at {entry}."
    if change.action is Action.REMOVE:
        what = f"{held} {change.asset}, too little to be a position," if finding.units else "none"
        return f"{change.key} was recorded with {recorded or 'no quantity'}; {what} is held."
    if not _equal(recorded, held):
        return f"{change.key} was recorded with {recorded or 'no quantity'}; {held} are held."
    before = _recorded(change.before, ("entry_price",))
    if not _equal(before, text(finding.position.entry_price)):
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


# Each position

_AFTER = {
    Outcome.PREVIEW: "After, if applied",
    Outcome.WRITTEN: "After",
    Outcome.NOTHING: "After",
    Outcome.REFUSED: "By the fills, not written",
    Outcome.FAILED: "By the fills",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of before and after; None is unknown (after) or not recorded (before)."""

    name: str
    before: str | None
    after: str | None
    unit: str = ""
    remark: str = ""

    @property
    def changed(self) -> bool:
        return not _equal(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an entry of the state; None where there is none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A position as it is shown.

    Attributes:
        anchor: its name in the page, made by us.
        doubt: units no fill explains, in words; empty if there are none.
        rows: of fills, oldest first; ``skipped`` of them are left out after the first half.
    """

    change: Change
    anchor: str
    meaning: str
    accepted: bool
    figures: tuple[Figure, ...]
    more: tuple[tuple[str, str], ...]
    doubt: str
    fields: tuple[Field, ...]
    chart: Chart | None
    recorded: str | None
    rows: tuple[tuple[str, ...], ...]
    fills: int
    skipped: int


def _ordered(plan: Plan) -> list[Change]:
    """Unproven first, then what changes, what is accepted before what is proven; then the rest."""
    return sorted(
        plan.changes,
        key=lambda change: (change.allowed, not change.writes, not _accepted(change)),
    )


def _is_nothing(change: Change) -> bool:
    """Neither recorded nor to be: an asset that was filled and is gone again."""
    return change.allowed and change.action is Action.NONE


def _accepted(change: Change) -> bool:
    """Whether it is written because the operator said so."""
    return change.allowed and change.finding.status not in {*PROVEN, Status.DUST}


def _card(change: Change, plan: Plan, number: int) -> Card:
    finding = change.finding
    shown = change.writes or not change.allowed
    rows, skipped = _rows(change) if shown else ((), 0)
    quantity = _recorded(change.before, QUANTITY_FIELDS)
    return Card(
        change=change,
        anchor=f"p{number}",
        meaning=STATUS_MEANINGS[finding.status],
        accepted=_accepted(change),
        figures=tuple(_figures(change)),
        more=tuple(_more(change)),
        doubt=_doubt(change),
        fields=tuple(_fields(change)) if change.writes else (),
        chart=draw(finding, plan.method, _decimal(quantity)) if shown else None,
        recorded=quantity,
        rows=rows,
        fills=len(finding.movements),
        skipped=skipped,
    )


def _figures(change: Change) -> Iterator[Figure]:
    position, currency = change.finding.position, change.finding.position.currency or ""
    keeps = change.allowed and change.action is Action.KEEP
    names = (
        ("Quantity", QUANTITY_FIELDS, text(change.finding.units), change.asset, ""),
        ("Entry price", ("entry_price",), text(position.entry_price), currency, ""),
        (
            "Cost",
            ("entry_value_usd",),
            text(position.cost) if currency or not change.finding.units else None,
            currency,
            "of the units whose cost is known" if position.unknown_units else "",
        ),
        (
            "Exposure",
            ("usd_value", "usd"),
            text(change.usd),
            "USD",
            _MARKS[change.mark_source] if change.usd else "",
        ),
    )
    gone = change.action is Action.REMOVE
    for name, fields, found, unit, remark in names:
        before = _recorded(change.before, fields)
        if gone or (found is None and not change.finding.units):
            yield Figure(name, before, found if name == "Quantity" else "", unit)
        elif keeps:
            yield Figure(name, before, before, unit)
        elif found is None:
            yield Figure(name, before, None)
        else:
            yield Figure(name, before, found, unit, remark)


def _more(change: Change) -> Iterator[tuple[str, str]]:
    """Further figures of what is held, those that are known."""
    position = change.finding.position
    currency = position.currency or ""
    paid = {movement.currency for movement in change.finding.movements}
    realised_in = paid.pop() if len(paid) == 1 else ""
    fees = ", ".join(f"{text(amount)} {name}" for name, amount in position.fees.items())
    figures = (
        ("Break even, fees included", text(position.break_even), currency),
        ("Fees of what is held", fees or None, ""),
        ("Realised, before fees", text(position.realised or None), realised_in),
        ("Realised, after fees", text(position.realised_net or None), realised_in),
        (
            "Held since",
            None if position.opened_at is None else format_instant(position.opened_at),
            "",
        ),
    )
    for name, value, unit in figures:
        if value is not None and (change.writes or not change.allowed):
            yield name, f"{value} {unit}".strip()


def _doubt(change: Change) -> str:
    position = change.finding.position
    if position.unknown_units:
        return f"{text(position.unknown_units)} {change.asset} at unknown cost"
    return ""


def _fields(change: Change) -> Iterator[Field]:
    before, after = change.before or {}, change.after or {}
    for name in dict.fromkeys([*before, *after]):
        yield Field(
            str(name),
            _value(before[name]) if name in before else None,
            _value(after[name]) if name in after else None,
        )


def _rows(change: Change) -> tuple[tuple[tuple[str, ...], ...], int]:
    """The fills: the first and the last of them, and how many lie between."""
    finding = change.finding
    all_of_them = list(zip(finding.movements, finding.running(), strict=True))
    skipped = max(0, len(all_of_them) - 2 * _MOST_ROWS)
    chosen = all_of_them[:_MOST_ROWS] + all_of_them[_MOST_ROWS + skipped :]
    rows = tuple(
        (
            format_instant(movement.fill.time),
            "▲" if movement.units > 0 else "▼",
            movement.fill.side.value,
            movement.fill.product_id,
            text(movement.fill.price) or "",
            text(movement.units) or "",
            text(units) or "",
            f"{text(movement.fill.commission)} {movement.fill.commission_currency}",
            movement.fill.entry_id,
        )
        for movement, units in chosen
    )
    return rows, skipped


def _recorded(entry: Mapping[str, Any] | None, names: Sequence[str]) -> str | None:
    """What an entry says under the first of the names that it has, as it is shown."""
    value = None if entry is None else said(entry, names)
    return None if value is None else _value(value)


def _value(value: object) -> str:
    """A value of the state as it stands there, if it is not too long."""
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        plain = isinstance(exponent, int) and -60 <= exponent <= 60
        shown = format(value, "f") if plain else str(value)
    elif isinstance(value, str):
        shown = value
    else:
        shown = json.dumps(value, default=str, ensure_ascii=False)
    if len(shown) <= _LONGEST_VALUE:
        return shown
    return f"{shown[:_LONGEST_VALUE]}… ({len(shown)} characters)"


def _decimal(shown: str | None) -> Decimal | None:
    try:
        return None if shown is None else Decimal(shown)
    except ArithmeticError:
        return None


def _equal(one: str | None, other: str | None) -> bool:
    """Whether two figures are the same number, in whatever notation."""
    return one == other or (_decimal(one) is not None and _decimal(one) == _decimal(other))


# Into HTML


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=_shown,
        loader=PackageLoader("statestore.repair"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["times"] = _count
    return environment


def _markup(trusted: str) -> Markup:
    from markupsafe import Markup

    return Markup(trusted)


def _shown(value: object) -> object:
    """Every value on its way into the page: a text or a count, its unseen characters made seen.

    A text that runs from right to left is kept from turning around what stands beside it.
    """
    from markupsafe import Markup, escape

    if isinstance(value, Markup):
        return value
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} has no place in a report: {value!r:.80}")
    shown = str(value)
    if shown.isascii() and shown.isprintable():
        return shown
    pieces = [
        escape(c) if c.isprintable() else Markup('<span class="unseen">{}</span>').format(_code(c))
        for c in shown
    ]
    page = Markup("").join(pieces)
    right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown)
    return Markup("<bdi>{}</bdi>").format(page) if right_to_left else page


def _plain(value: object) -> Markup:
    """The same for an attribute or a title, where there can be no elements."""
    from markupsafe import escape

    return escape("".join(c if c.isprintable() else f"[{_code(c)}]" for c in str(value)))


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
