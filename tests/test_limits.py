"""Limits in hours and dollars: planned, armed on the machine, kept across reboots, and moved only by the person."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from gpuops import transports, watch, workflow
from gpuops.errors import OverLimit, StateError
from gpuops.lifecycle import Clock
from gpuops.machine import Machine, State
from tests.computers import Cloud, Computer

_G4DN_USD = 0.526


def left(computer: Computer, machine: Machine) -> watch.Left:
    with transports.open(machine, identity_file=computer.home / "keys" / "id_ed25519") as line:
        found = watch.left(line)
    assert found is not None
    return found


def test_a_limit_in_dollars_becomes_hours_at_the_price_of_the_machine(computer: Computer) -> None:
    machine = computer.up(types="g4dn.xlarge", max_usd="1.052")
    assert machine.price_usd_per_hour == pytest.approx(_G4DN_USD, rel=0.2)
    assert machine.price_usd_per_hour is not None
    hours = 1.052 / machine.price_usd_per_hour
    assert computer.plans[0].hours == pytest.approx(hours)
    armed = left(computer, machine)
    assert armed.deadline_s == pytest.approx(hours * 3600, abs=120)
    assert armed.budget_s == pytest.approx(hours * 3600, abs=120)


def test_the_smaller_of_two_limits_counts(computer: Computer) -> None:
    machine = computer.up(types="g4dn.xlarge", max_usd="100", max_hours="2")
    assert left(computer, machine).deadline_s == pytest.approx(7200, abs=60)


def test_no_machine_dearer_than_allowed_is_taken(the_cloud: Cloud, computer: Computer) -> None:
    assert computer.up(max_usd_per_hour="0.6").type == "g4dn.xlarge"


def test_where_nothing_is_cheap_enough_nothing_is_launched_and_the_cheapest_is_named(
    the_cloud: Cloud, computer: Computer
) -> None:
    with pytest.raises(OverLimit) as refused:
        computer.up(max_usd_per_hour="0.05")
    assert "g4dn.xlarge" in refused.value.what
    assert the_cloud.instances(computer.name) == []


def test_a_stopped_machine_is_started_with_the_limits_of_this_command(computer: Computer) -> None:
    computer.up(types="g4dn.xlarge")
    computer.down()
    machine = computer.up(max_hours="1")
    assert left(computer, machine).deadline_s == pytest.approx(3600, abs=60)
    assert machine.deadline is not None and machine.launched_at is not None
    assert machine.deadline - machine.launched_at < timedelta(hours=1.1)
    # The next start is told nothing, and has the machine's own 12 hours again.
    computer.down()
    assert left(computer, computer.up()).deadline_s == pytest.approx(12 * 3600, abs=60)


def test_a_running_machine_is_stopped_sooner_by_a_limit_and_never_later(computer: Computer) -> None:
    machine = computer.up(types="g4dn.xlarge", max_hours="2")
    computer.up(max_hours="5")
    # Whole seconds: the same one may still be running.
    assert left(computer, machine).deadline_s <= 7200
    computer.up(max_hours="1")
    assert left(computer, machine).deadline_s == pytest.approx(3600, abs=60)
    computer.up()
    assert left(computer, machine).deadline_s == pytest.approx(3600, abs=60)


def test_a_budget_of_an_earlier_start_does_not_bind_the_next_one(computer: Computer) -> None:
    computer.up(types="g4dn.xlarge", max_usd="0.2")
    computer.down()
    machine = computer.up()
    assert left(computer, machine) == watch.Left(
        deadline_s=pytest.approx(12 * 3600, abs=60),  # type: ignore[arg-type]
        budget_s=None,
    )


def test_extend_gives_more_time_and_every_computer_sees_the_new_deadline(
    computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    computer.up(types="g4dn.xlarge", max_hours="2", max_usd="50")
    machine = workflow.extend(computer.settings(), 3, tell=computer.told.append)
    assert left(computer, machine).deadline_s == pytest.approx(5 * 3600, abs=60)
    budget_s = left(computer, machine).budget_s
    assert budget_s is not None and budget_s >= left(computer, machine).deadline_s - 60
    [seen] = [m for m in new_computer().status().machines if m.name == computer.name]
    assert seen.deadline is not None and machine.deadline is not None
    assert abs(seen.deadline - machine.deadline) < timedelta(seconds=2)


def test_extend_of_a_stopped_machine_changes_nothing(computer: Computer) -> None:
    computer.has_machine(State.STOPPED)
    with pytest.raises(StateError):
        workflow.extend(computer.settings(), 3, tell=computer.told.append)


def test_a_machine_of_an_unknown_price_takes_no_limit_in_dollars(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "GetProducts", "code": "AccessDeniedException", "times": 50})
    with pytest.raises(OverLimit) as refused:
        computer.up(region="eu-north-1", types="g4dn.xlarge", max_usd="1")
    assert "price" in refused.value.what
    assert the_cloud.instances(computer.name, region="eu-north-1") == []


def test_reap_stops_what_is_past_its_deadline_and_nothing_else(
    the_cloud: Cloud, computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    # The image of 2017 can't be told of another computer, which then can't ask the machine itself.
    late, other = computer.has_machine(types="p2.xlarge"), new_computer()
    other.name = f"{computer.name}-punctual"
    other.has_machine(types="g4dn.xlarge")
    the_cloud.client().create_tags(Resources=[late.id], Tags=[{"Key": "gpuops:max-hours", "Value": "0.00001"}])
    assert workflow.reap(other.settings(), tell=other.told.append).stopped == ()  # it is not late enough
    [launched] = [m for m in other.status().machines if m.id == late.id]
    assert launched.launched_at is not None
    clock = clock_at(launched.launched_at + timedelta(minutes=10))
    reaped = workflow.reap(other.settings(), tell=other.told.append, clock=clock)
    assert [(machine.id, machine.state) for machine in reaped.stopped] == [(late.id, State.STOPPED)], reaped
    assert the_cloud.states(computer.name) == ["stopped"], the_cloud.instances("*", alive=False)
    assert the_cloud.states(other.name) == ["running"]


def test_reap_leaves_a_machine_that_says_itself_that_it_has_more_time(the_cloud: Cloud, computer: Computer) -> None:
    """It was rebooted, say: EC2 counts from the last start, and the machine from its boot."""
    machine = computer.up(types="g4dn.xlarge")
    the_cloud.client().create_tags(Resources=[machine.id], Tags=[{"Key": "gpuops:max-hours", "Value": "0.00001"}])
    assert machine.launched_at is not None
    clock = clock_at(machine.launched_at + timedelta(minutes=10))
    assert workflow.reap(computer.settings(), tell=computer.told.append, clock=clock).stopped == ()
    assert the_cloud.states(computer.name) == ["running"]
    [seen] = [m for m in computer.status().machines if m.id == machine.id]
    assert seen.deadline is not None
    assert seen.deadline - clock.now() > timedelta(hours=11)


def clock_at(now: datetime) -> Clock:
    return Clock(now=lambda: now)
