"""Some rows of the fault table; `python -m tests.fault_table` goes through all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.computers import Computer
from tests.fault_table import FAULTS, TARGETS, row

_TARGETS = {target.name: target for target in TARGETS}
_FAULTS = {fault.name: fault for fault in FAULTS}
_ONE_STALL = "stall, 3 read timeouts"


@pytest.mark.parametrize(
    ("target", "fault", "left"),
    [
        ("RunInstances", "no capacity", ()),
        ("RunInstances", "vCPU quota", ()),
        ("RunInstances", "reset after it was done, once", ("running",)),
        ("StartInstances", "not permitted", ("stopped",)),
        ("StopInstances", _ONE_STALL, ("stopped",)),
        ("TerminateInstances", "AuthFailure", ("running",)),
        ("DescribeInstances (our region, up)", "InternalError", ()),
        ("DescribeInstances (all regions, status)", "throttling, once", ("running",)),
    ],
)
def test_whatever_ec2_answers_no_machine_is_lost_and_none_launched_twice(
    new_computer: Callable[[], Computer], target: str, fault: str, left: tuple[str, ...]
) -> None:
    """Laws 1, 4 and 9. Of the three read timeouts, the suite waits for one."""
    meets = replace(_FAULTS[fault], times=1) if fault == _ONE_STALL else _FAULTS[fault]
    found = row(_TARGETS[target], meets, new_computer(), new_computer())
    assert found.bad == ()
    assert found.left == left
    assert found.calls > 0
