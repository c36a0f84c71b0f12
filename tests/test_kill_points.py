"""`kill -9` at the points that matter most; `python -m tests.kill_points` goes through all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.computers import Computer
from tests.kill_points import SCENARIOS, Scenario, aftermath, kill_at, points

_UP, _START, _, _DOWN, _TERMINATE, _, _TRAIN, _ = SCENARIOS


@pytest.mark.parametrize(
    ("scenario", "point", "existing"),
    [
        (_UP, "after fsync launches/ #1", 0),
        (_UP, "after RunInstances #1", 1),
        (_UP, "before fsync launches/ #2", 1),
        (_UP, "after CreateTags #1", 1),
        (_UP, "before CreateTags #2", 1),
        (_START, "after StartInstances #1", 1),
        (_DOWN, "after StopInstances #1", 1),
        (_TERMINATE, "after TerminateInstances #1", 0),
        (_TRAIN, "before StopInstances #1", 1),
    ],
    ids=lambda value: str(getattr(value, "name", value)).replace(" ", "-"),
)
def test_a_command_that_is_killed_loses_no_machine_and_no_run_and_the_next_up_of_two_computers_ends_with_one(
    new_computer: Callable[[], Computer], scenario: Scenario, point: str, existing: int
) -> None:
    """Laws 1, 3, 4 and 6: what exists is shown elsewhere with its price; what was trained comes home; there is never a
    second machine; and everybody knows the one host key.
    """
    computer, another = new_computer(), new_computer()
    scenario.before(computer)
    assert kill_at(computer, scenario.words, point), f"{scenario.words} never comes to: {point}"
    outcome = aftermath(computer, another, point)
    assert outcome.is_good, outcome
    assert len(outcome.existing) == existing


def test_tracing_finds_the_record_before_the_launch_and_the_launch_before_its_end(computer: Computer) -> None:
    """Law 1, by the order of the points: the record is durable, folder and all, before the call."""
    _UP.before(computer)
    found = points(computer, _UP.words)
    record = found.index("after fsync launches/aws-123456789012-NAME #1")
    folder = found.index("after fsync launches/ #1")
    launch = found.index("before RunInstances #1")
    forgotten = found.index("before fsync launches/ #2")
    seen = found.index("after DescribeInstances everywhere #34")
    assert record < folder < launch < seen < forgotten
    assert found.count("before RunInstances #1") == 1


def test_tracing_finds_both_keys_pinned_and_tagged_before_the_old_one_goes(computer: Computer) -> None:
    """Law 6: the second call of CreateTags drops the old key; by then known_hosts has had both, on disk."""
    _UP.before(computer)
    found = points(computer, _UP.words)
    launched = found.index("before fsync launches/ #2")
    tagged, dropped = found.index("after CreateTags #1"), found.index("before CreateTags #2")
    pinned = [point for point in found[tagged:dropped] if point.startswith("after fsync keys/known_hosts")]
    assert launched < tagged < dropped
    assert len(pinned) == 1
    assert found[dropped:].count("after CreateTags #2") == 1
