"""What things cost, in words and in hours: estimates, and limits that hold."""

from __future__ import annotations

import pytest

from gpuops import cost
from gpuops.errors import OverLimit


def test_without_a_limit_in_usd_the_hours_are_those_that_were_asked_for() -> None:
    assert cost.deadline_hours(12.0, None, price_usd_per_hour=None) == 12.0


@pytest.mark.parametrize(("max_usd", "hours"), [(1.0, 2.0), (100.0, 12.0)], ids=["usd-come-first", "hours-come-first"])
def test_a_limit_in_usd_becomes_hours(max_usd: float, hours: float) -> None:
    assert cost.deadline_hours(12.0, max_usd, price_usd_per_hour=0.5) == pytest.approx(hours)


def test_hours_that_cost_nothing_are_limited_by_the_hours_alone() -> None:
    assert cost.deadline_hours(12.0, 1.0, price_usd_per_hour=0.0) == 12.0


def test_a_limit_that_nobody_could_keep_is_refused() -> None:
    with pytest.raises(OverLimit) as refused:
        cost.deadline_hours(12.0, 5.0, price_usd_per_hour=None)
    assert refused.value.what == "A limit of $5.00 can't be kept: the price per hour isn't known."
    assert "--max-hours" in refused.value.next_step


@pytest.mark.parametrize(
    ("hours", "price", "words"),
    [
        ([0.3, 0.4, 9.0], 0.526, "about 24 min and $0.21, as 3 earlier runs of digits on g4dn.xlarge"),
        ([0.05], 0.526, "about 3 min and $0.03, as an earlier run of digits on g4dn.xlarge"),
        ([2.0, 3.0], None, "about 2 h 30 min at an unknown price, as 2 earlier runs of digits on g4dn.xlarge"),
    ],
)
def test_an_estimate_is_the_median_of_earlier_runs(hours: list[float], price: float | None, words: str) -> None:
    said = cost.estimate(hours, recipe="digits", machine_type="g4dn.xlarge", price_usd_per_hour=price)
    assert said == words


def test_without_earlier_runs_there_is_no_estimate() -> None:
    assert cost.estimate([], recipe="digits", machine_type="g4dn.xlarge", price_usd_per_hour=0.5) is None


@pytest.mark.parametrize(
    ("amount", "words"), [(0.0, "$0.00"), (0.0012, "$0.0012"), (0.01, "$0.01"), (1234.567, "$1,234.57")]
)
def test_usd_in_words(amount: float, words: str) -> None:
    assert cost.usd(amount) == words


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.0, "0 s"), (0.01, "36 s"), (0.05, "3 min"), (12.0, "12 h"), (12.999, "13 h"), (5.516, "5 h 31 min")],
)
def test_hours_in_words(hours: float, words: str) -> None:
    assert cost.duration(hours) == words
