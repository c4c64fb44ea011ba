"""Each series on its own: what is asked for, what is kept, and what is said of it."""

from __future__ import annotations

import pytest

from statestore.errors import ExchangeError, UsageError
from statestore.runtime.bar_store import BarStore
from statestore.runtime.bars import TIMEFRAMES
from statestore.runtime.candles.binance import BinanceCandles
from statestore.runtime.collecting import ALT, MAJORS, SERIES, BarCollector, Series
from tests.runtime.test_bars import HOUR, MINUTE, NEWEST, NOON, NOW, bar

DAY = TIMEFRAMES["1d"]


class Shelf:
    """A source that has these bars, and writes down what it is asked for."""

    name = "shelf"
    whole = True

    def __init__(self, **bars):
        self.has = bars
        self.asked = []

    def fetch(self, symbol, tf, start, end, limit):
        self.asked.append((symbol, tf, (end - start) // TIMEFRAMES[tf], limit))
        found = self.has[symbol]
        if isinstance(found, Exception):
            raise found
        return [one for one in found if start <= one.ts < end][-limit:]


def hours(count, *, newest=NEWEST, **more):
    return [bar(newest - n * HOUR, **more) for n in reversed(range(count))]


@pytest.fixture
def store(tmp_path):
    return BarStore(tmp_path / "bars.sqlite3")


@pytest.fixture
def collector(store):
    def make(source, *symbols, policy="at_start", clock=NOW, timeframes=("1h",), more=()):
        series = [Series(symbol, policy, "majors") for symbol in symbols]
        return BarCollector(
            store, source, series=[*series, *more], timeframes=timeframes, clock=lambda: clock
        )

    return make


def only(outcomes):
    (one,) = outcomes
    return one


def test_the_majors_and_their_timeframes_are_those_of_the_document():
    assert MAJORS == ("BTC", "SOL", "ETH", "BNB")
    assert ALT.components == ("SOL", "ETH", "BNB", "HYPE")
    assert {one.symbol for one in SERIES if one.backfill == "at_start"} == set(MAJORS)
    assert {one.symbol for one in SERIES if one.backfill == "forward_only"} == {
        "HYPE",
        "BTC.d",
        "USDT.d",
    }
    assert BarCollector.__init__.__kwdefaults__["timeframes"] == ("1m", "1h", "1d")


def test_an_empty_series_is_filled_with_666_bars(store, collector):
    source = Shelf(BTC=hours(5_000))

    done = only(collector(source, "BTC").backfill_majors())

    assert (done.reason, done.written, done.bars, done.enough) == ("insufficient", 666, 666, True)
    assert source.asked == [("BTC", "1h", 666, 666)]
    assert store.bars("BTC", "1h")[-1].ts == done.newest == NEWEST


def test_332_bars_are_asked_for_more_and_333_are_not(store, collector):
    source = Shelf(A=hours(666), B=hours(666))
    store.add("A", "1h", hours(332))
    store.add("B", "1h", hours(333))

    first, second = collector(source, "A", "B").backfill_majors()

    assert (first.reason, first.bars) == ("insufficient", 666)
    assert (second.reason, second.bars, second.asked) == ("none", 333, False)
    assert [asked[0] for asked in source.asked] == ["A"]


def test_400_old_bars_are_fetched_from_the_newest_on(store, collector):
    """The document's own flaw: 400 bars were enough, however old they were."""
    source = Shelf(BTC=hours(700))
    store.add("BTC", "1h", hours(400, newest=NEWEST - 50 * HOUR))

    done = only(collector(source, "BTC").backfill_majors())

    assert (done.reason, done.written, done.bars, done.why) == ("stale", 50, 450, "")
    assert source.asked == [("BTC", "1h", 51, 666)]


def test_a_hole_is_fetched(store, collector):
    source = Shelf(BTC=hours(700))
    store.add("BTC", "1h", [one for one in hours(400) if one.ts != NEWEST - 7 * HOUR])

    done = only(collector(source, "BTC").backfill_majors())

    assert (done.reason, done.written, done.bars) == ("gap", 1, 400)
    assert source.asked == [("BTC", "1h", 1, 666)]


def test_a_full_btc_hides_no_empty_sol(store, collector):
    """Upstream counted BTC's bars and decided for all."""
    source = Shelf(BTC=hours(666), SOL=hours(666))
    store.add("BTC", "1h", hours(666))

    collector(source, "BTC", "SOL").backfill_majors()

    assert [asked[0] for asked in source.asked] == ["SOL"]


def test_each_timeframe_is_judged_on_its_own(store, collector):
    source = Shelf(BTC=[])
    store.add("BTC", "1h", hours(666))

    collector(source, "BTC", timeframes=("1m", "1h", "1d")).backfill_majors()

    assert [asked[1] for asked in source.asked] == ["1m", "1d"]


def test_a_second_run_asks_for_nothing(collector):
    source = Shelf(BTC=hours(666), SOL=hours(666))
    collector(source, "BTC", "SOL").backfill_majors()
    before = len(source.asked)

    again = collector(source, "BTC", "SOL").backfill_majors()

    assert len(source.asked) == before == 2
    assert {(one.reason, one.written, one.asked) for one in again} == {("none", 0, False)}


def test_a_bar_nobody_traded_in_is_asked_for_once(collector):
    source = Shelf(BTC=[one for one in hours(666) if one.ts != NEWEST - 9 * HOUR])

    first = only(collector(source, "BTC").backfill_majors())
    second = only(collector(source, "BTC").backfill_majors())

    assert (first.bars, first.why) == (665, "")
    assert (second.reason, second.asked) == ("none", False)


def test_a_bar_that_is_posted_late_is_asked_for_again(store, collector):
    source = Shelf(BTC=hours(666, newest=NEWEST - HOUR))
    collector(source, "BTC").backfill_majors()
    store.add("BTC", "1h", [bar(NEWEST + HOUR)])  # the bot was there
    source.has["BTC"] = hours(668, newest=NEWEST + HOUR)

    done = only(collector(source, "BTC", clock=NOW + HOUR).backfill_majors())

    assert (done.reason, done.written, done.why) == ("gap", 1, "")


def test_another_source_is_asked_for_what_one_did_not_have(collector):
    collector(Shelf(BTC=[*hours(600)[:300], *hours(600)[310:]]), "BTC").backfill_majors()
    other = Shelf(BTC=hours(666))
    other.name = "another shelf"

    done = only(collector(other, "BTC").backfill_majors())

    assert (done.reason, done.written) == ("gap", 10)


def test_a_young_market_is_said_to_have_no_more_and_not_asked_again(collector):
    source = Shelf(NEW=hours(200))

    first = only(collector(source, "NEW").backfill_majors())
    second = only(collector(source, "NEW").backfill_majors())

    assert first.why == "200 bars, and 333 are needed: there are no more to be had"
    assert (second.asked, second.why, second.enough) == (False, first.why, False)


def test_a_source_whose_answers_are_not_known_to_be_whole_is_asked_again(collector):
    source = Shelf(NEW=hours(200))
    source.whole = False

    collector(source, "NEW").backfill_majors()
    collector(source, "NEW").backfill_majors()

    assert len(source.asked) == 2


def test_a_market_that_stands_still_stays_stale_and_is_said_so(store, collector):
    source = Shelf(BTC=hours(400, newest=NEWEST - 9 * HOUR))

    done = only(collector(source, "BTC").backfill_majors())

    assert done.why == "still stale: shelf has no more"
    assert only(collector(source, "BTC").backfill_majors()).reason == "stale"


def test_the_newest_bar_is_asked_for_again_with_what_follows(store, collector):
    """It may have been kept by a clock that was ahead, before it was closed."""
    store.add("BTC", "1h", hours(400, newest=NEWEST - 5 * HOUR))
    restated = [bar(one.ts, "10", "50", "9", "11") for one in hours(400)]

    collector(Shelf(BTC=restated), "BTC").backfill_majors()

    highs = [int(one.high) for one in store.bars("BTC", "1h")[-7:]]
    assert highs == [12, 50, 50, 50, 50, 50, 50]


@pytest.mark.parametrize("error", [ExchangeError("HTTP 503"), RuntimeError("a bug of theirs")])
def test_one_that_fails_leaves_the_others(collector, error):
    source = Shelf(BTC=error, SOL=hours(666))

    first, second = collector(source, "BTC", "SOL").backfill_majors()

    assert first.error is error
    assert first.why == f"insufficient, and could not be fetched: {error}"
    assert (second.bars, second.error) == (666, None)


def test_a_failure_keeps_what_is_there(store, collector):
    store.add("BTC", "1h", hours(400, newest=NEWEST - 9 * HOUR))

    done = only(collector(Shelf(BTC=ExchangeError("gone")), "BTC").backfill_majors())

    assert (done.reason, done.bars) == ("stale", 400)
    assert len(store.bars("BTC", "1h")) == 400


def test_force_fetches_all_of_it_anew(store, collector):
    store.add("BTC", "1h", hours(666))
    source = Shelf(BTC=[bar(one.ts, "10", "50", "9", "11") for one in hours(666)])

    done = only(collector(source, "BTC").backfill_majors(force=True))

    assert (done.reason, done.written) == ("forced", 666)


def test_without_a_source_what_is_lacking_is_said(collector):
    done = only(collector(None, "BTC").backfill_majors())

    assert (done.asked, done.why) == (False, "insufficient, and there is no source to ask")


# Composites


def test_a_composite_is_computed_and_never_asked_for(store, collector):
    source = Shelf(SOL=hours(666), ETH=hours(666), BNB=hours(666))

    *_, alt = collector(source, "SOL", "ETH", "BNB", more=[ALT]).backfill_majors()

    assert (alt.symbol, alt.bars, alt.asked, alt.why) == ("ALT", 666, False, "")
    assert "ALT" not in [asked[0] for asked in source.asked]
    assert {one.source for one in store.bars("ALT", "1h")} == {"composite BNB ETH SOL"}


def test_a_composite_follows_a_component_whoever_changed_it(store, collector):
    """Upstream computed it only where BTC had been fetched."""
    source = Shelf(SOL=hours(400), ETH=hours(400), BNB=hours(400))
    ready = collector(source, "SOL", "ETH", "BNB", more=[ALT])
    ready.backfill_majors()

    ready.collect("SOL", "1h", [bar(NEWEST, "40", "99", "9", "41")])
    *_, alt = ready.backfill_majors()

    assert alt.written == 1
    newest = store.bars("ALT", "1h")[-1]
    assert (newest.open, newest.high) == (20, 99)


def test_a_composite_of_two_says_what_it_lacks(collector):
    source = Shelf(SOL=hours(666), ETH=hours(666))

    *_, alt = collector(source, "SOL", "ETH", more=[ALT]).backfill_majors()

    assert alt.bars == 0
    assert alt.why.endswith("fewer than 3 of SOL ETH BNB HYPE have more")


# Series that the start does not fetch


@pytest.mark.parametrize("policy", ["forward_only", "on_demand", "never"])
def test_the_start_asks_only_for_what_is_its_own(collector, policy):
    source = Shelf(LOW=hours(666))

    assert collector(source, "LOW", policy=policy).backfill_majors() == []
    assert source.asked == []


def test_on_demand_is_fetched_when_it_is_demanded(collector):
    source = Shelf(LOW=hours(666))

    done = collector(source, "LOW", policy="on_demand").ensure_bars("LOW", "1h")

    assert (done.reason, done.bars) == ("insufficient", 666)
    assert collector(source, "LOW", policy="on_demand").ensure_bars("LOW", "1h").asked is False


@pytest.mark.parametrize("policy", ["forward_only", "never"])
def test_what_nobody_has_is_not_asked_for_even_on_demand(collector, policy):
    source = Shelf(LOW=hours(666))

    done = collector(source, "LOW", policy=policy).ensure_bars("LOW", "1h")

    assert (done.asked, done.bars, source.asked) == (False, 0, [])


def test_on_demand_rolls_up_first_and_keeps_what_a_source_said(store, collector):
    minutes = [bar(NOON - 2 * HOUR + n * MINUTE, "10", "77", "9", "11") for n in range(120)]
    lows = collector(Shelf(LOW=hours(666)), "LOW", policy="never")
    lows.collect("LOW", "1m", minutes)
    store.add("LOW", "1h", [bar(NOON - 2 * HOUR)])

    done = lows.ensure_bars("LOW", "1h")

    assert done.written == 1
    assert [(int(one.high), one.source) for one in store.bars("LOW", "1h")] == [
        (12, "test"),
        (77, "rollup 1m"),
    ]


@pytest.mark.parametrize("ts", [NOON, NOON + HOUR, NOON * 1000])
def test_a_bar_that_is_not_closed_yet_is_not_collected(store, collector, ts):
    with pytest.raises(ValueError, match="not closed yet"):
        collector(None, "LOW", policy="never").collect("LOW", "1h", [bar(NEWEST), bar(ts)])

    assert store.bars("LOW", "1h") == []


def test_a_bar_in_the_future_makes_no_old_series_fresh(store, collector):
    old = hours(400, newest=NEWEST - 10 * HOUR)
    store.add("BTC", "1h", [*old, bar(NEWEST + 1_000 * HOUR)])
    source = Shelf(BTC=hours(666))

    done = only(collector(source, "BTC").backfill_majors())

    assert (done.reason, done.why) == ("stale", "")
    assert source.asked == [("BTC", "1h", 11, 666)]


def test_on_demand_of_a_composite_computes_it(store, collector):
    for symbol in ("SOL", "ETH", "BNB"):
        store.add(symbol, "1h", hours(2))

    assert collector(None, more=[ALT]).ensure_bars("ALT", "1h").bars == 2


def test_a_symbol_named_twice_and_an_unknown_timeframe_are_refused(store, collector):
    with pytest.raises(UsageError, match="BTC is named twice"):
        collector(None, "BTC", "BTC")
    with pytest.raises(UsageError, match="7m"):
        collector(None, "BTC", timeframes=("7m",))


def test_against_binance_a_second_run_sends_nothing(store, klines):
    ready = BarCollector(store, BinanceCandles(base_url=klines.base_url, rate=30))

    first = ready.backfill_majors()
    sent = len(klines.requests)
    second = ready.backfill_majors()

    assert sent == 12
    assert len(klines.requests) == sent
    assert {one.bars for one in first} <= {665, 666}
    assert {one.symbol for one in second} == {*MAJORS, "ALT"}
    assert not any(one.written or one.why for one in second)
    assert {query["limit"] for *_, query in klines.requests} == {"666"}
