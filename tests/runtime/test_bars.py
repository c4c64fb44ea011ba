"""Bars as values: which are missing, and what is made of others."""

from __future__ import annotations

from decimal import Decimal

import pytest

from statestore.errors import UsageError
from statestore.runtime.bars import (
    MAX_BARS,
    TIMEFRAMES,
    Backfill,
    Bar,
    Span,
    bar_of,
    composite,
    holes,
    last_closed,
    plan_backfill,
    rollup,
)
from statestore.times import parse_instant

HOUR = TIMEFRAMES["1h"]
MINUTE = TIMEFRAMES["1m"]
NOON = parse_instant("2025-11-18T12:00:00Z")
NOW = NOON + 30 * MINUTE  # the bar of 11:00 is the newest that is closed
NEWEST = NOON - HOUR


def bar(ts, *prices, volume="1", source="test"):
    opened, high, low, close = map(Decimal, prices or ("10", "12", "9", "11"))
    return Bar(ts, opened, high, low, close, None if volume is None else Decimal(volume), source)


def test_the_newest_closed_bar_is_the_one_before_the_present_interval():
    assert last_closed(NOW, "1h") == NEWEST
    assert last_closed(NOON, "1h") == NEWEST
    assert last_closed(NOON - 1, "1h") == NEWEST - HOUR


def test_332_bars_are_too_few_and_333_are_enough():
    assert plan_backfill(332, NEWEST, NOW, "1h").reason == "insufficient"
    assert plan_backfill(333, NEWEST, NOW, "1h").reason == "none"


@pytest.mark.parametrize("tf", TIMEFRAMES)
def test_never_more_than_666_bars_are_asked_for(tf):
    plan = plan_backfill(0, None, NOW, tf)

    assert (plan.until - plan.since) // TIMEFRAMES[tf] == MAX_BARS == 666
    assert plan.until - TIMEFRAMES[tf] == last_closed(NOW, tf)


@pytest.mark.parametrize(("tf", "days"), [("1m", "0.46"), ("1h", "27.75"), ("1d", "666.00")])
def test_666_bars_are_11_hours_28_days_and_almost_two_years(tf, days):
    plan = plan_backfill(0, None, NOW, tf)

    assert f"{(plan.until - plan.since) / TIMEFRAMES['1d']:.2f}" == days


def test_400_old_bars_are_stale_although_they_are_enough():
    plan = plan_backfill(400, NOON - 400 * HOUR, NOW, "1h")

    assert plan.reason == "stale"
    assert plan.since == NOON - 400 * HOUR
    assert plan.until == NOON


def test_a_series_is_stale_once_its_newest_bar_closed_more_than_two_intervals_ago():
    closed_at = NOON
    newest = closed_at - HOUR

    assert plan_backfill(400, newest, closed_at + 2 * HOUR, "1h").reason == "none"
    assert plan_backfill(400, newest, closed_at + 2 * HOUR + 1, "1h").reason == "stale"


def test_what_is_older_than_the_window_is_not_asked_for():
    plan = plan_backfill(400, NOON - 10_000 * HOUR, NOW, "1h")

    assert plan == Backfill("stale", NOON - 666 * HOUR, NOON)


def test_a_hole_is_more_than_one_and_a_tenth_intervals():
    assert holes([0, HOUR, 2 * HOUR], "1h") == []
    assert holes([0, HOUR, 3 * HOUR], "1h") == [Span(2 * HOUR, 3 * HOUR)]
    assert holes([], "1h") == holes([NOON], "1h") == []


def test_a_hole_in_the_window_is_a_gap_and_only_that_is_asked_for():
    hole = Span(NEWEST - 5 * HOUR, NEWEST - 3 * HOUR)

    assert plan_backfill(400, NEWEST, NOW, "1h", missing=[hole]) == Backfill("gap", *hole)


def test_a_hole_before_the_window_is_left_alone():
    hole = Span(NEWEST - 900 * HOUR, NEWEST - 800 * HOUR)

    assert plan_backfill(400, NEWEST, NOW, "1h", missing=[hole]).reason == "none"


def test_several_holes_are_asked_for_at_once():
    first, second = (Span(NEWEST - n * HOUR, NEWEST - (n - 1) * HOUR) for n in (9, 4))

    plan = plan_backfill(400, NEWEST, NOW, "1h", missing=[first, second])

    assert (plan.since, plan.until) == (first.since, second.until)


def test_force_asks_for_the_whole_window():
    plan = plan_backfill(666, NEWEST, NOW, "1h", force=True)

    assert plan == Backfill("forced", NOON - 666 * HOUR, NOON)


def test_an_unknown_timeframe_names_the_known_ones():
    with pytest.raises(UsageError, match="1m, 15m, 1h, 4h, 1d"):
        plan_backfill(0, None, NOW, "7m")


def test_a_composite_is_mean_highest_lowest_and_sum():
    made = composite(
        {
            "SOL": [bar(0, "100", "110", "90", "105", volume="1.5")],
            "ETH": [bar(0, "200", "220", "180", "210", volume="2.5")],
            "BNB": [bar(0, "300", "330", "270", "315", volume="0.25")],
        }
    )

    assert made == [
        bar(0, "200", "330", "90", "210", volume="4.25", source="composite BNB ETH SOL")
    ]


def test_a_mean_that_does_not_end_has_28_digits():
    one, two = bar(0, "1", "2", "1", "1"), bar(0, "1", "2", "1", "2")

    assert str(composite({"A": [one], "B": [one], "C": [two]})[0].close) == (
        "1.333333333333333333333333333"
    )


def test_a_composite_needs_three_different_components_at_the_same_instant():
    twice = [bar(0, source="a"), bar(0, source="b")]

    assert composite({"SOL": twice, "ETH": [bar(0)], "BNB": [bar(HOUR)]}) == []


def test_a_volume_nobody_told_leaves_the_sum_unknown():
    parts = {"A": [bar(0)], "B": [bar(0, volume=None)], "C": [bar(0)]}

    assert composite(parts)[0].volume is None


def test_sixty_bars_of_a_minute_are_one_of_an_hour():
    minutes = [bar(NOON + n * MINUTE, str(100 + n), str(200 + n), "50", "150") for n in range(60)]

    (hour,) = rollup(minutes, "1m", "1h")

    assert hour == bar(NOON, "100", "259", "50", "150", volume="60", source="rollup 1m")


def test_fifty_nine_are_none_unless_one_may_be_missing():
    minutes = [bar(NOON + n * MINUTE) for n in range(60) if n != 17]

    assert rollup(minutes, "1m", "1h") == []
    assert len(rollup(minutes, "1m", "1h", missing=1)) == 1


def test_a_longer_bar_is_not_rolled_up_into_a_shorter_one():
    with pytest.raises(UsageError, match="cannot be made"):
        rollup([], "1h", "1m")


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        (("10", "9", "8", "9"), "do not hold"),
        (("10", "12", "11", "12"), "do not hold"),
        (("10", "12", "0", "11"), "low is 0"),
        (("ten", "12", "9", "11"), "open: 'ten'"),
        ((10.0, "12", "9", "11"), "open: 10.0"),
    ],
)
def test_what_is_no_bar_is_refused_by_name(prices, said):
    with pytest.raises(ValueError, match=said):
        bar_of(NOON, *prices, "1", tf="1h", source="test")


def test_a_negative_volume_and_an_instant_between_two_bars_are_refused():
    with pytest.raises(ValueError, match="volume is -1"):
        bar_of(NOON, "10", "12", "9", "11", "-1", tf="1h", source="test")
    with pytest.raises(ValueError, match="12:30:00Z is no instant at which"):
        bar_of(NOW, "10", "12", "9", "11", "1", tf="1h", source="test")
