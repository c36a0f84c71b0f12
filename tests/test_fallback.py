"""What `up` does when a vendor says no: elsewhere, again, or the truth about it in one message."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from gpuops import lifecycle
from gpuops.errors import NoCapacity, NotPermitted, QuotaExceeded, StateError, Throttled, VendorUnreachable
from gpuops.lifecycle import Clock, tried_again
from gpuops.machine import State
from tests.computers import Cloud, Computer, quick_clock

_FULL = {"action": "RunInstances", "code": "InsufficientInstanceCapacity", "status": 500, "message": "We are full"}


def full(type_name: str, *, times: int = 50) -> dict[str, object]:
    return {**_FULL, "match": {"InstanceType": type_name}, "times": times}


def test_a_full_zone_leads_to_the_next_zone_of_the_same_type(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults(full("g4dn.xlarge", times=1))
    machine = computer.up(types="g4dn.xlarge,g5.xlarge")
    zones = [offer.zone for offer in computer.plans[0].offers if offer.type == "g4dn.xlarge"]
    assert (machine.type, machine.zone) == ("g4dn.xlarge", zones[1])
    assert f"No g4dn.xlarge in {zones[0]}" in computer.told
    assert the_cloud.states(computer.name) == ["running"]


def test_a_type_that_is_full_in_every_zone_leads_to_the_next_type(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults(full("g4dn.xlarge"))
    assert computer.up(types="g4dn.xlarge,g5.xlarge").type == "g5.xlarge"
    assert the_cloud.states(computer.name) == ["running"]


def test_no_room_anywhere_says_why_of_every_attempt_and_leaves_nothing(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({**_FULL, "times": 50})
    with pytest.raises(NoCapacity) as refused:
        computer.up(types="g4dn.xlarge,g5.xlarge")
    for offer in computer.plans[0].offers:
        assert f"{offer.type} in {offer.zone}: " in refused.value.what
    assert the_cloud.instances(computer.name) == []


def test_a_quota_is_not_asked_again_in_other_zones_and_is_named(the_cloud: Cloud, computer: Computer) -> None:
    before = len(the_cloud.calls("RunInstances"))
    the_cloud.add_faults({"action": "RunInstances", "code": "VcpuLimitExceeded", "times": 50})
    with pytest.raises(QuotaExceeded) as refused:
        computer.up(types="g4dn.xlarge,g5.xlarge")
    assert len(the_cloud.calls("RunInstances")) == before + 2
    assert "L-DB2E81BA" in refused.value.what
    assert "request-service-quota-increase" in refused.value.next_step


def test_a_missing_permission_is_not_tried_elsewhere(the_cloud: Cloud, computer: Computer) -> None:
    before = len(the_cloud.calls("RunInstances"))
    the_cloud.add_faults({"action": "RunInstances", "code": "UnauthorizedOperation", "status": 403, "times": 50})
    with pytest.raises(NotPermitted) as refused:
        computer.up(types="g4dn.xlarge,g5.xlarge")
    assert "ec2:RunInstances" in refused.value.what
    assert len(the_cloud.calls("RunInstances")) == before + 1


@pytest.mark.parametrize(
    "fault",
    [
        {"code": "RequestLimitExceeded", "status": 503, "times": 2},
        {"code": "InternalError", "status": 500, "after": True, "times": 2},
    ],
)
def test_a_launch_that_the_vendor_was_too_busy_for_is_sent_again_and_makes_one_machine(
    the_cloud: Cloud, computer: Computer, fault: dict[str, object]
) -> None:
    the_cloud.add_faults({"action": "RunInstances", **fault})
    machine = computer.up(types="g4dn.xlarge")
    assert [instance["InstanceId"] for instance in the_cloud.instances(computer.name)] == [machine.id]


def test_a_throttled_start_is_tried_again(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine(State.STOPPED)
    the_cloud.add_faults({"action": "StartInstances", "code": "RequestLimitExceeded", "status": 503, "times": 2})
    assert computer.up().state is State.RUNNING


def test_a_stopped_machine_whose_zone_is_full_is_said_to_be_bound_to_it(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.has_machine(State.STOPPED)
    the_cloud.add_faults({**_FULL, "action": "StartInstances", "times": 50})
    with pytest.raises(NoCapacity) as refused:
        computer.up()
    assert f"{machine.zone} has no room" in refused.value.what
    assert "only where its disk is" in refused.value.what
    assert "It is stopped; its disk costs" in refused.value.left_behind
    assert [i["InstanceId"] for i in the_cloud.instances(computer.name)] == [machine.id]
    assert the_cloud.states(computer.name) == ["stopped"]


def test_what_a_silent_vendor_is_asked_is_asked_again_with_longer_and_uneven_pauses_and_not_for_ever() -> None:
    pauses: list[float] = []
    clock = Clock(monotonic=lambda: sum(pauses), sleep=pauses.append, chance=lambda: 0.5)

    def silent() -> None:
        raise Throttled("Rate exceeded")

    with pytest.raises(Throttled):
        tried_again(clock, silent)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_a_vendor_that_takes_too_long_each_time_is_given_up_sooner() -> None:
    passed = 0.0
    asked = 0

    def slow() -> None:
        nonlocal passed, asked
        passed += 60
        asked += 1
        raise VendorUnreachable("no answer")

    with pytest.raises(VendorUnreachable):
        tried_again(Clock(monotonic=lambda: passed, sleep=lambda _: None), slow)
    assert asked == 2


def test_a_machine_that_was_there_long_before_and_is_not_known_any_more_is_not_said_to_be_gone(
    the_cloud: Cloud, computer: Computer
) -> None:
    machine = computer.has_machine()
    unknown = {
        "action": "DescribeInstances",
        "code": "InvalidInstanceID.NotFound",
        "match": {"InstanceId.1": machine.id},
    }
    the_cloud.add_faults({**unknown, "times": 2})
    assert computer.up(clock=quick_clock()).id == machine.id  # launched a moment ago, it is waited for
    the_cloud.add_faults({**unknown, "times": -1})
    later = quick_clock()
    clock = Clock(
        monotonic=later.monotonic, sleep=later.sleep, now=lambda: datetime.now(timezone.utc) + timedelta(hours=1)
    )
    with pytest.raises(StateError) as refused:
        lifecycle.stop(the_cloud.provider, machine, clock=clock)
    assert "does not prove that it is gone" in refused.value.left_behind
