"""The page that explains a rebuild: what stands in it, and what can never get into it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from statestore.disk.store import StateStore
from statestore.fills.coverage import Finding
from statestore.fills.movements import movements_of
from statestore.fills.normalise import normalise
from statestore.fills.replay import replay
from statestore.fills.sources.recorded import RecordedFills
from statestore.model import STATUS_MEANINGS, Batch, Method, Row, Status
from statestore.repair.chart import HEIGHT, Chart, draw
from statestore.repair.html import GENERATOR
from statestore.repair.plan import Plan
from statestore.repair.rebuild import Options, propose
from statestore.repair.report import (
    Outcome,
    Report,
    command_line,
    render,
)
from statestore.repair.scales import WIDTH, Scale, ticks_of
from statestore.testing import fills
from statestore.times import parse_instant
from tests import real

pytest.importorskip("jinja2", reason="needs: pip install 'statestore[report]'")

SINCE = parse_instant("2025-11-18T00:00:00Z")
HOURS = timedelta(hours=5)
E2 = (
    "BUY .010 BTC-USD @ 60000 fee 3.60",
    "BUY .020 BTC-USD @ 63000 fee 7.56",
    "SELL .012 BTC-USD @ 65000 fee 4.68",
)
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror="alert(1)">'


class Page(HTMLParser):
    """A page taken apart: its elements, its text, and that every element is closed."""

    VOID = frozenset({"meta"})
    INLINE = frozenset({"a", "bdi", "code", "span", "strong"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.css = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs))
        if tag not in self.INLINE:
            self.words.append(" ")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.css += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


Planned = Callable[..., Plan]


@pytest.fixture
def planned(state_file: Path, tmp_path: Path) -> Planned:
    """Return the plan for fills, balances and recorded positions, as a rebuild makes it."""

    def planned(
        rows: list[dict[str, object]] | tuple[str, ...],
        balances: dict[str, str] | None = None,
        positions: Any = None,
        **options: Any,
    ) -> Plan:
        if isinstance(rows, tuple):
            rows = fills(*rows, every=HOURS)
        state = positions if isinstance(positions, str) else json.dumps(positions or {})
        state_file.write_text(f'{{"positions": {state}}}')
        recorded, held = tmp_path / "fills.json", tmp_path / "balances.json"
        recorded.write_text(json.dumps(rows))
        held.write_text(json.dumps(balances))
        source = RecordedFills(recorded, None if balances is None else held)
        return propose(StateStore(state_file), source, Options(since=SINCE, **options)).plan

    return planned


def report(plan: Plan, **changes: Any) -> Report:
    made = Report(
        plan=plan,
        outcome=Outcome.PREVIEW,
        state="/srv/bot/data/.state.json",
        revision=41,
        sha256="a" * 64,
        at="2025-11-20T03:12:09.5Z",
        by="uid 1000 at desk",
        version="1.2.3",
        kill_switch="/srv/bot/data/KILL_SWITCH",
        halted="engaged",
        undo=command_line("statestore", "undo", "--state", "/srv/bot/data/.state.json"),
    )
    return replace(made, **changes)


def page(plan: Plan, **changes: Any) -> Page:
    return Page(render(report(plan, **changes)))


def finding(*texts: str, opening: str = "0", rows: Any = None) -> Finding:
    """What fills prove that explain all that is held."""
    payloads = rows or fills(*texts, every=HOURS)
    read = normalise([Batch(tuple(Row(payload, "row") for payload in payloads), 1)])
    movements = tuple(movements_of("BTC", read.fills))
    position = replay(movements)
    return Finding(Status.EXACT, position.units, position, "", movements, Decimal(opening))


def drawn(*texts: str, recorded: str | None = None, **more: Any) -> Chart:
    chart = draw(finding(*texts, **more), Method.AVERAGE, Decimal(recorded) if recorded else None)
    assert chart is not None
    return chart


# Nothing comes from elsewhere, and nothing runs

TAGS = """
    html head meta title style body header section article footer h1 h2 h3 p a ul li dl dt dd table
    caption thead tbody tr th td div span strong code pre bdi details summary figure figcaption svg
    desc text line path
"""
ATTRIBUTES = """
    lang charset name content http-equiv class id href scope colspan tabindex role aria-labelledby
    aria-hidden viewbox d x y x1 x2 y1 y2 dx dy text-anchor
"""


def assert_stands_alone(page: Page) -> None:
    assert set(page.tags) <= set(TAGS.split())
    assert {name for _, attributes in page.elements for name in attributes} <= set(
        ATTRIBUTES.split()
    )
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert {link[:1] for link in links if link} <= {"#"}
    assert {link[1:] for link in links if link} <= set(ids)
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert {name for label in labels if label for name in label.split()} <= set(ids)
    assert re.search(r"url\(|@import|expression|javascript|</", page.css, re.I) is None
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.elements
    assert ("meta", {"name": "referrer", "content": "no-referrer"}) in page.elements


def hostile(planned: Planned, *, script: str = SCRIPT, image: str = IMAGE) -> Plan:
    """A plan in which every text of a stranger is one of two."""
    rows = fills(*E2, "BUY 1 DOGE-USD @ 1", every=HOURS)
    rows[0] |= {"entry_id": script, "trade_id": image, "order_id": script}
    rows.append({**rows[1], "entry_id": image, "side": script, "product_id": image})
    entry = {"quantity": 1, "note": script, image: {script: [image]}, "side": script}
    positions = {"BTC-USD": entry, script: {"quantity": 1}, image: {"quantity": 1}}
    return planned(rows, {"BTC": ".018", script: "1", image: "2"}, positions, accept_partial=True)


def hostile_page(planned: Planned, script: str, image: str) -> Page:
    return page(
        hostile(planned, script=script, image=image),
        **dict.fromkeys(
            ("state", "sha256", "by", "version", "kill_switch", "halted_why", "undo"), script
        ),
        **dict.fromkeys(("halted", "backup", "audit_line", "error", "at"), image),
        reading=[(script, image)],
    )


def test_markup_in_any_text_stays_text(planned: Planned) -> None:
    found = hostile_page(planned, SCRIPT, IMAGE)
    harmless = hostile_page(planned, "harm.less", "and.this!")

    assert found.tags == harmless.tags
    assert [set(a) for _, a in found.elements] == [set(a) for _, a in harmless.elements]
    assert found.text.count(SCRIPT) > 15
    assert found.text.count(IMAGE) > 10
    assert_stands_alone(found)


def test_a_chart_of_a_hostile_asset_is_a_chart(planned: Planned) -> None:
    """The asset is in the title and the labels of a picture, whose markup is not that of HTML."""
    asset = "</TITLE></SVG><SCRIPT>ALERT(1)</SCRIPT>"
    rows = [row | {"product_id": f"{asset}-<B>"} for row in fills(*E2, every=HOURS)]
    found = page(planned(rows, {asset: ".018"}, {}))

    assert found.tags.count("svg") > 1
    assert "script" not in found.tags
    assert f"Fills of {asset}" in found.text
    assert_stands_alone(found)


def test_what_nobody_can_see_is_shown(planned: Planned) -> None:
    """Else a name could pretend to be another one, or turn the line around it."""
    names = {"\u202eDSU-CTB": {}, "BTC\u200b-USD": {}, "a\x00b": {}, "ביטקוין": {}}
    found = page(planned((), {}, names), by="\ud800")

    for code in ("U+202E", "U+200B", "U+D800", "U+0000"):
        assert code in found.text
    assert "<bdi>positions.ביטקוין" in found.html
    unseen = [c for c in found.html if not c.isprintable() and c != "\n"]
    assert unseen == []
    found.html.encode()


def test_a_float_has_no_place_in_the_page(planned: Planned) -> None:
    with pytest.raises(TypeError, match="float"):
        render(report(planned(()), by=0.1))


# What it says


def test_a_dry_run_says_that_nothing_was_written(planned: Planned) -> None:
    positions = {"BTC-USD": {"quantity": 0.03, "entry_price": 62000}}
    found = page(planned(E2, {"BTC": ".018", "SOL": "3"}, positions))

    assert "Dry run, nothing written" in found.text
    assert "1 position to repair This is a preview" in found.text
    assert "preview of /srv/bot/data/.state.json at revision 41" in found.text
    assert "on 2025-11-20 at 03:12:09 UTC by uid 1000 at desk, with statestore 1.2.3" in found.text
    assert "BTC-USD was recorded with 0.03; 0.018 are held." in found.text
    assert "Audit line None: dry run." in found.text
    assert "Held, but not in the state: SOL." in found.text
    assert "Revision 41, unchanged" in found.text
    assert "Backup none made" in found.text


def test_a_repair_says_what_was_written_and_how_to_take_it_back(planned: Planned) -> None:
    found = page(
        planned(E2, {"BTC": ".018"}, {"BTC-USD": {"quantity": 1}}),
        outcome=Outcome.WRITTEN,
        written=(42, "b" * 64),
        backup="/srv/bot/backups/r41.json",
        audit_line='{"action": "rebuild", "by": "<b>"}',
        halted_why="reason: torn",
    )

    assert "1 position repaired" in found.text
    assert "revision 42 of /srv/bot/data/.state.json, which was at revision 41" in found.text
    assert "Revision 41 before, 42 after" in found.text
    for value in ("a" * 64, "b" * 64, "/srv/bot/backups/r41.json", "engaged", "reason: torn"):
        assert value in found.text
    assert '{"action": "rebuild", "by": "<b>"}' in found.text
    assert "statestore undo --state /srv/bot/data/.state.json" in found.text


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome.REFUSED, "Refused: nothing was written"),
        (Outcome.FAILED, "The run ended with an error"),
        (Outcome.NOTHING, "still at revision 41"),
    ],
)
def test_a_run_that_wrote_nothing_says_why(planned: Planned, outcome: Outcome, words: str) -> None:
    error = "" if outcome is Outcome.NOTHING else "the kill switch is released"
    found = page(planned(E2, {"BTC": ".018"}), outcome=outcome, error=error)

    assert words in found.text
    assert error in found.text
    assert "None: dry run" not in found.text


def test_before_and_after_stand_side_by_side(planned: Planned) -> None:
    """Worked example E2: 0.018 at 62000, cost 1116, open fees 6.696, realised 36 and 26.856."""
    positions = {"BTC-USD": {"quantity": 0.03, "entry_price": 61000, "stop_loss": 5.5}}
    found = page(planned(E2, {"BTC": ".018"}, positions))

    assert "Quantity 0.03 0.018 BTC Entry price 61000 62000 USD" in found.text
    assert "Cost not recorded 1116 USD Exposure not recorded 1116 USD at cost" in found.text
    assert "Fees of what is held 6.696 USD" in found.text
    assert "Realised, before fees 36 USD Realised, after fees 26.856 USD" in found.text
    assert "stop_loss 5.5 5.5" in found.text


def test_every_status_is_put_into_words() -> None:
    assert set(STATUS_MEANINGS) == set(Status)
    assert len(set(STATUS_MEANINGS.values())) == len(Status)


def test_what_is_not_proven_comes_first_with_its_reason(planned: Planned) -> None:
    """E9 beside E1: the cost of 0.4 BTC is unknown, and unknown is never 0."""
    rows = ("BUY 1 ADA-USD @ 1", "BUY .2 BTC-USD @ 61000")
    found = page(planned(rows, {"ADA": "1", "BTC": ".6"}))
    names = re.findall(r"<h3 id=\"p\d+-name\">(.*?)</h3>", found.html)

    assert names == ["BTC-USD", "ADA-USD"]
    assert found.text.index("BTC-USD not proven") < found.text.index("ADA-USD to add")
    assert "1 position to repair, 1 not proven" in found.text
    assert "their cost is unknown. 0.4 BTC at unknown cost." in found.text
    assert "Entry price not recorded unknown" in found.text
    assert "Cost not recorded 12200 USD of the units whose cost is known" in found.text
    assert STATUS_MEANINGS[Status.PARTIAL] in found.text
    assert "--skip-unproven" in found.text


def test_what_the_operator_accepted_is_said_to_be_accepted(planned: Planned) -> None:
    rows = ("BUY 1 ADA-USD @ 1", "BUY .2 BTC-USD @ 61000")
    found = page(planned(rows, {"ADA": "1", "BTC": ".6"}, accept_partial=True))

    assert found.text.index("BTC-USD to add") < found.text.index("ADA-USD to add")
    assert "The operator accepted that (--accept-partial)" in found.text
    assert "not proven:" not in found.text


def test_what_is_right_is_shown_as_left_alone(planned: Planned, state_file: Path) -> None:
    plan = planned(("BUY 1 BTC-USD @ 100",), {"BTC": "1"})
    [change] = plan.changes
    rows = ("BUY 1 BTC-USD @ 100", "BUY 1 ADA-USD @ 1", "SELL 1 ADA-USD @ 2")
    positions = {"BTC-USD": change.after, "a.b": {"quantity": 1}}
    found = page(planned(rows, {"BTC": "1", "ADA": "0"}, json.dumps(positions, default=float)))

    assert "Nothing to repair" in found.text
    assert "Right as recorded BTC-USD kept as it is" in found.text
    assert "ADA-USD: not recorded, and nothing to record, the balance is zero." in found.text
    assert "positions.a.b names no spot product and is left alone." in found.text


def test_rejected_rows_and_warnings_are_there_in_full(planned: Planned) -> None:
    rows = fills(*(f"BUY 1 BTC-USD @ {price}" for price in range(100, 140)), every=HOURS)
    for row in rows[:30]:
        row["side"] = "HOLD"
    plan = planned(rows, {"BTC": "10"}, {"BTC-USD": {"quantity": 3}})
    found = page(plan)

    assert len(plan.evidence.rejected) == 30
    for row in plan.evidence.rejected:
        assert row.entry_id in found.text
    for warning in plan.warnings:
        assert warning.message in found.text
    assert "30 rows of fills cannot be read for certain, so nothing is written." in found.text


def test_numbers_are_written_out_to_the_last_digit(planned: Planned) -> None:
    units, price = "123456789012345678901234567890.123456789", "0.000000000000000000000001234567891"
    long = "9" * 60
    found = page(
        planned(
            (f"BUY {units} PEPE-USD @ {price}",),
            {"PEPE": units},
            f'{{"PEPE-USD": {{"quantity": 1, "big": {long}, "tiny": 1e-400}}}}',
        )
    )

    for number in (units, price, long, "1E-400"):
        assert number in found.text
    assert "overflow-wrap: anywhere" in found.css


def test_the_window_that_was_searched_is_told(planned: Planned) -> None:
    plan = planned(("BUY 1 BTC-USD @ 100",), {"BTC": "1"}, until=SINCE + 86_400 * 10**9)
    found = page(plan)

    assert "Window asked for 2025-11-18T00:00:00Z to 2025-11-19T00:00:00Z (24 h)" in found.text
    assert "Fills 1 in 1 page, 0 rejected Cost method average" in found.text
    assert "Source fills.json" in found.text


@pytest.mark.parametrize("path", ["/srv/a b/it's $HOME;`x`", "/srv/\n\u202e", "-", "日本"])
def test_a_command_can_be_pasted_into_a_shell(path: str) -> None:
    line = command_line("statestore", "undo", "--state", path)

    assert shlex.split(line) == ["statestore", "undo", "--state", path]


# However much or little there is


def test_an_empty_plan_is_a_page(planned: Planned) -> None:
    found = page(planned((), {}))

    assert_stands_alone(found)
    assert found.html.startswith("<!doctype html>\n")
    assert "No position is recorded, and none was filled in the window." in found.text


def test_three_hundred_positions_are_all_there_and_can_be_found(planned: Planned) -> None:
    rows = []
    for number in range(300):
        [row] = fills(f"BUY 1 A{number}-USD @ 100")
        rows.append(row | {"entry_id": f"e{number}", "trade_id": f"t{number}"})
    found = page(planned(rows, {f"A{number}": "1" for number in range(300)}))

    assert_stands_alone(found)
    assert found.tags.count("article") == 300
    assert len([a for tag, a in found.elements if tag == "a"]) == 300
    assert "288 more, below." in found.text
    assert len(found.html) < 3_000_000


def many(count: int) -> list[dict[str, object]]:
    """Buys and sells in turn that leave 1 in the end; one fill among them is far out."""
    texts = ["BUY 1 BTC-USD @ 100"]
    for number in range(count // 2):
        units = 50 if number == count // 3 else 1
        price = 100 + number % 7
        texts += [f"BUY {units} BTC-USD @ {price}", f"SELL {units} BTC-USD @ {price + 1}"]
    return fills(*texts, every=timedelta(seconds=60))


def test_many_fills_make_no_large_page(planned: Planned) -> None:
    found = page(planned(many(6000), {"BTC": "1"}, {"BTC-USD": {"quantity": 2}}))

    assert len(found.html) < 200_000
    assert "6001 fills, in figures" in found.text
    assert "The first 50 and the last 50 of 6001; --audit-out writes them all." in found.text
    assert "5901 fills between these are left out here" in found.text
    assert re.search(r"\d+ of 6001 fills are drawn: those that would lie on top", found.text)
    assert_stands_alone(found)


@real.needed
def test_real_fills_make_pages(tmp_path: Path, state_store: StateStore) -> None:
    state_store.save({"positions": {"BTC-USD": {"quantity": 1}}})
    for path in real.files("fills/coinbase*.csv"):
        options = Options(since=parse_instant("2009-01-03T00:00:00Z"))
        plan = propose(state_store, RecordedFills(path), options).plan
        assert_stands_alone(page(plan))


# The picture


def ys(path: str) -> list[float]:
    """Heights a path goes through (an SVG's y grows downwards)."""
    return [float(y) for y in re.findall(r"(?:M[\d.-]+ |V)(-?[\d.]+)", path)]


def test_the_picture_shows_prices_entry_and_quantity_where_they_belong() -> None:
    """E2: entry 60000, then 62000 to the end; held 0.01, 0.03, 0.018."""
    chart = drawn(*E2, recorded="0.03")
    at = {tick.label: float(tick.at) for tick in (*chart.prices, *chart.units)}

    assert ys(chart.entry) == [ys(chart.bought)[0], at["62000"], at["62000"]]
    first, second = ys(chart.bought)
    assert at["60000"] == first > at["62000"] > second > at["64000"] > ys(chart.sold)[0]
    zero, *held = ys(chart.held)
    assert zero == at["0"]
    assert held[1] == float(chart.recorded_level) == min(held)
    assert zero - held[2] == pytest.approx(1.8 * (zero - held[0]), abs=0.1)
    assert chart.notes == ()


def test_what_was_bought_and_what_was_sold_differ_in_shape() -> None:
    chart = drawn(*E2)

    assert re.fullmatch(r"(M[\d.]+ [\d.]+l6 11h-12z){2}", chart.bought)
    assert re.fullmatch(r"M[\d.]+ [\d.]+l6-11h-12z", chart.sold)


def test_an_entry_the_fills_do_not_lead_to_is_a_dashed_level() -> None:
    """E8, carried on: no fill tells that the first unit cost 50000."""
    found = finding("SELL .4 BTC-USD @ 60000", opening="1")
    position = replace(found.position, entry_price=Decimal(50000), currency="USD")
    chart = draw(replace(found, position=position), Method.AVERAGE, None)

    assert chart is not None
    assert chart.entry == ""
    assert float(chart.entry_level) > ys(chart.sold)[0]
    assert "the fills alone do not lead to it" in chart.notes[0]


def test_the_entry_begins_where_the_present_lifecycle_began() -> None:
    """Dust of unknown cost lay there before; the replay begins after it, and so does the line."""
    chart = drawn("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 300", opening=".0001")
    at = {tick.label: float(tick.at) for tick in chart.prices}

    assert ys(chart.entry) == [at["100"], at["200"]]
    assert chart.entry_level == ""


def test_of_fills_at_one_instant_those_that_add_come_first() -> None:
    """1@100, then 1@200 and -1.5 at once: 2@150 before the sell, never 0 and then 1@200."""
    first, sold, bought = fills(
        "BUY 1 BTC-USD @ 100", "SELL 1.5 BTC-USD @ 150", "BUY 1 BTC-USD @ 200", every=HOURS
    )
    bought |= {name: sold[name] for name in ("trade_time", "sequence_timestamp")}
    chart = drawn(rows=[first, sold, bought])
    at = {tick.label: float(tick.at) for tick in chart.prices}

    assert ys(chart.entry)[-1] == at["150"]


def test_a_level_far_off_does_not_flatten_the_picture() -> None:
    chart = drawn("BUY .0009 BTC-USD @ 2975.32", recorded="2.64")

    assert chart.recorded_level == ""
    assert chart.notes == ("The recorded quantity, 2.64, lies outside of the drawing.",)
    assert ys(chart.held)[0] - ys(chart.held)[-1] > 50


def test_thinning_keeps_the_one_fill_that_is_far_out() -> None:
    chart = drawn(rows=many(3000))
    top = min(ys(chart.held))
    usual = sorted(ys(chart.held))[len(ys(chart.held)) // 2]

    assert len(chart.held) < 20_000
    assert chart.drawn < 700 < chart.fills == 3001
    assert ys(chart.held)[0] - top > 20 * (ys(chart.held)[0] - usual)


def test_a_price_in_another_currency_is_not_drawn_on_the_same_axis() -> None:
    chart = drawn("BUY 1 BTC-USD @ 100", "BUY 1 BTC-USD @ 110", "BUY 1 BTC-EUR @ 1")

    assert chart.currency == "USD"
    assert chart.fills == 2
    assert "Fills paid in EUR move the quantity (1 of them)" in chart.notes[0]


@pytest.mark.parametrize(
    ("every", "count", "first"),
    [
        (timedelta(milliseconds=3), 9, "04:00:00"),
        (timedelta(seconds=20), 4, "04:00:00"),
        (timedelta(minutes=7), 9, "04:00"),
        (timedelta(hours=5), 9, "12:00"),
        (timedelta(days=3), 9, "2025-11-20"),
        (timedelta(days=60), 9, "2026-01"),
        (timedelta(days=800), 9, "2030"),
    ],
)
def test_ticks_of_time_are_round_and_few(every: timedelta, count: int, first: str) -> None:
    rows = fills(*["BUY 1 BTC-USD @ 100"] * count, every=every)
    ticks = drawn(rows=rows).times

    assert ticks[0].label.startswith(first)
    assert 2 <= len(ticks) <= 6
    places = [float(tick.at) for tick in ticks]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= WIDTH


@pytest.mark.parametrize(
    ("low", "high"),
    [("100", "100"), ("1E-30", "9E-30"), ("1E+30", "1.0000001E+30"), ("0.1", "99999999")],
)
def test_ticks_of_price_are_exact_and_few(low: str, high: str) -> None:
    chart = drawn(f"BUY 1 BTC-USD @ {low}", f"BUY 1 BTC-USD @ {high}")
    labels = [Decimal(tick.label) for tick in chart.prices]
    steps = {after - before for before, after in pairwise(labels)}

    assert 1 <= len(labels) <= 5
    assert len(steps) <= 1
    assert all(0 <= float(tick.at) <= HEIGHT for tick in chart.prices)


def test_values_that_differ_in_their_last_digit_only_have_an_axis() -> None:
    """A step is less than that digit: what is sold for quote leaves 28 of them."""
    whole = Decimal("1.833333333333333333333333333")
    scale, _ = Scale.around([whole, whole + Decimal("1E-27")], None, (0, 100))

    assert len(ticks_of(scale, 4)) <= 6


def test_the_running_quantity_starts_at_what_was_held_before() -> None:
    found = finding("SELL .4 BTC-USD @ 1", "BUY .1 BTC-USD @ 1", opening="1")

    assert found.running() == [Decimal("0.6"), Decimal("0.7")]


# In a browser


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy on the loopback that lets nothing through and notes what it was asked for."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    asked.append(connection.recv(4096).split(b"\r\n", 1)[0].decode())
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


_OWN_CALLS = re.compile(r"^\w+ (?:http://)?[a-z0-9]+\.google(?:apis)?\.com[:/]")


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page; return what the browser made of it, and what it asked the network for.

    The browser's own calls home are left out; like all others they end at the proxy.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with proxy() as (port, asked):
        ran = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                f"--user-data-dir={profile}",
                f"--proxy-server=127.0.0.1:{port}",
                "--proxy-bypass-list=<-loopback>",
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            timeout=60,
            check=False,
        )
    return ran.stdout.decode(), [line for line in asked if not _OWN_CALLS.search(line)]


def test_a_browser_asks_the_network_for_nothing(planned: Planned, tmp_path: Path) -> None:
    leak = '<img src="http://probe.test/image"><script src="http://probe.test/script"></script>'
    html = hostile_page(planned, leak, f"{IMAGE}{leak}").html
    report_file, control = tmp_path / "report.html", tmp_path / "control.html"
    report_file.write_text(html)
    control.write_text(f"<!doctype html><title>control</title>{leak}")
    dom, asked = browse(report_file, tmp_path / "profile")
    _, asked_by_control = browse(control, tmp_path / "profile")

    assert GENERATOR.rstrip(">") in dom
    assert "<script" not in dom
    assert asked == []
    assert len(asked_by_control) == 2
