"""`up`: what it launches, starts, uses and leaves alone."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuops.errors import (
    AmbiguousMachine,
    Busy,
    KeyRefused,
    MachineUnreachable,
    NewerFormat,
    NotConfirmed,
    ProviderError,
    StateError,
    VendorUnreachable,
)
from gpuops.lifecycle import Clock, Plan
from gpuops.machine import Machine, State
from tests.computers import REGION, Cloud, Computer, quick_clock

_G4DN_USD, _P2_USD = 0.5439, 0.9306  # in the sandbox's us-west-2
needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")
# The suite goes through two of them; `TESTS_RESTARTS=10 pytest -k restarts` through ten.
RESTARTS = int(os.environ.get("TESTS_RESTARTS", "2"))


def launches(cloud: Cloud) -> int:
    return len(cloud.calls("RunInstances"))


def records(computer: Computer) -> list[Path]:
    return sorted((computer.home / "launches").glob("*"))


def decline(plan: Plan) -> None:
    raise NotConfirmed("The person says no.")


def test_up_launches_a_machine_that_its_key_reaches(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.up()
    [instance] = the_cloud.instances(computer.name)
    assert (machine.id, machine.state) == (instance["InstanceId"], State.RUNNING)
    assert machine.ssh is not None
    assert machine.ssh.host == instance["PublicIpAddress"]
    assert machine.price_usd_per_hour == _P2_USD
    [plan] = computer.plans
    assert plan.offer is not None
    assert plan.offer.type == machine.type == "p2.xlarge"


def test_up_on_a_machine_that_runs_launches_nothing_and_gives_the_same_machine(
    the_cloud: Cloud, computer: Computer
) -> None:
    first = computer.up()
    before = launches(the_cloud), len(the_cloud.calls("StartInstances"))
    again = computer.up()
    assert (again.id, again.ssh, again.host_key) == (first.id, first.ssh, first.host_key)
    assert (launches(the_cloud), len(the_cloud.calls("StartInstances"))) == before
    assert computer.plans[-1].is_up


def test_up_starts_the_stopped_machine_instead_of_launching(the_cloud: Cloud, computer: Computer) -> None:
    first = computer.has_machine()
    assert computer.down().state is State.STOPPED
    before = launches(the_cloud)
    again = computer.up()
    assert again.id == first.id
    assert again.ssh is not None
    assert first.ssh is not None
    assert again.ssh.host != first.ssh.host
    assert launches(the_cloud) == before


def test_up_never_resizes_the_machine_that_exists(the_cloud: Cloud, computer: Computer) -> None:
    """Law 4: other types and disks are for a new machine."""
    first = computer.has_machine(State.STOPPED, types="g4dn.xlarge")
    again = computer.up(types=("g5.xlarge",), disk_gb=500)
    assert (again.id, again.type) == (first.id, "g4dn.xlarge")
    assert the_cloud.states(computer.name) == ["running"]


@needs_ssh
def test_plain_ssh_works_after_each_of_many_restarts_and_asks_and_warns_nothing(computer: Computer) -> None:
    addresses = set()
    for _ in range(RESTARTS):
        machine = computer.up()
        assert machine.ssh is not None
        addresses.add(machine.ssh.host)
        ran = computer.ssh("echo", "$USER")
        assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "ubuntu\n", "")
        computer.down()
    assert len(addresses) == RESTARTS


def test_another_computer_of_the_same_account_finds_the_machine_and_its_host_key(
    new_computer: Callable[[], Computer],
) -> None:
    mine, other = new_computer(), new_computer()
    machine = mine.has_machine()
    [seen] = other.status().machines
    assert seen == machine
    assert machine.id in (other.home / "keys" / "known_hosts").read_text()
    assert other.down().state is State.STOPPED


def test_losing_everything_that_gpuops_keeps_here_loses_no_machine(computer: Computer) -> None:
    machine = computer.has_machine()
    shutil.rmtree(computer.folder)
    [seen] = computer.status().machines
    assert (seen.id, seen.price_usd_per_hour, seen.state.bills) == (machine.id, _G4DN_USD, True)
    assert computer.down(terminate=True, discard=True).state is State.TERMINATED


def test_two_machines_of_one_name_are_both_named_and_neither_is_touched(the_cloud: Cloud, computer: Computer) -> None:
    ids = {computer.has_machine().id for _ in range(2)}
    for command in (computer.up, computer.down):
        with pytest.raises(AmbiguousMachine) as raised:
            command()
        assert all(machine_id in raised.value.left_behind for machine_id in ids)
        assert "$0.544/h" in raised.value.left_behind
    assert len(the_cloud.instances(computer.name)) == 2
    assert f"Host {computer.name}\n" not in _address_book(computer)


def test_a_no_to_the_plan_launches_nothing_and_leaves_no_record(the_cloud: Cloud, computer: Computer) -> None:
    before = launches(the_cloud)
    with pytest.raises(NotConfirmed):
        computer.up(confirm=decline)
    assert launches(the_cloud) == before
    assert records(computer) == []


def test_the_launch_record_is_on_disk_and_private_before_the_call_and_gone_after_it(
    the_cloud: Cloud, computer: Computer
) -> None:
    """Law 1. The call is refused at first, so that what was on disk when it was made can be seen."""
    the_cloud.add_faults({"action": "RunInstances", "code": "InternalError", "status": 500, "times": -1})
    with pytest.raises(VendorUnreachable, match="InternalError") as raised:
        computer.up()
    the_cloud.lift_faults()
    assert "may have happened" in raised.value.left_behind
    [record] = records(computer)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    computer.up()
    assert records(computer) == []
    assert the_cloud.states(computer.name) == ["running"]


def test_a_launch_that_happened_without_an_answer_is_found_again_and_not_repeated(
    the_cloud: Cloud, computer: Computer
) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "Unavailable", "status": 503, "after": True, "times": -1})
    with pytest.raises(VendorUnreachable) as raised:
        computer.up()
    the_cloud.lift_faults()
    [instance] = the_cloud.instances(computer.name)
    assert "is stopped; its disk costs $8.00/month" in raised.value.left_behind
    assert instance["State"]["Name"] == "stopped"
    assert computer.up().id == instance["InstanceId"]
    assert the_cloud.states(computer.name) == ["running"]


def test_a_launch_that_the_provider_does_not_show_yet_is_sent_again_as_it_was(
    the_cloud: Cloud, computer: Computer
) -> None:
    """The token makes the second call give the first one's machine; not to show it at first is what EC2 may do."""
    the_cloud.add_faults({"action": "RunInstances", "code": "Unavailable", "status": 503, "after": True, "times": -1})
    with pytest.raises(VendorUnreachable):
        computer.up()
    the_cloud.lift_faults()
    [instance] = the_cloud.instances(computer.name)
    hidden = {"Resources": [instance["InstanceId"]], "Tags": [{"Key": "gpuops:name"}]}
    the_cloud.client().delete_tags(**hidden)
    started = datetime.now(timezone.utc)
    with pytest.raises(StateError):  # the answer of the same launch is a machine that is stopped, and now unnamed
        computer.up(clock=_stops_after(computer, "Finishing the launch that was cut off"))
    plan = computer.plans[-1]
    assert plan.unfinished is not None
    assert plan.unfinished.created < started
    assert len(the_cloud.client().describe_instances(Filters=_by_token(plan))["Reservations"]) == 1
    the_cloud.client().terminate_instances(InstanceIds=[instance["InstanceId"]])


def test_a_record_whose_machine_has_been_terminated_leads_to_a_new_launch(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "Unavailable", "status": 503, "after": True, "times": -1})
    with pytest.raises(VendorUnreachable):
        computer.up()
    the_cloud.lift_faults()
    [lost] = the_cloud.instances(computer.name)
    the_cloud.client().terminate_instances(InstanceIds=[lost["InstanceId"]])
    machine = computer.up()
    assert computer.plans[-1].unfinished is not None
    assert machine.id != lost["InstanceId"]
    assert the_cloud.states(computer.name) == ["running"]
    assert records(computer) == []


def test_an_old_record_is_not_believed_against_a_provider_that_shows_no_machine(
    the_cloud: Cloud, computer: Computer
) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "InternalError", "status": 500, "times": -1})
    long_ago = datetime(2026, 1, 1, tzinfo=timezone.utc)
    clock = quick_clock()
    with pytest.raises(VendorUnreachable):
        computer.up(clock=Clock(monotonic=clock.monotonic, sleep=clock.sleep, now=lambda: long_ago))
    the_cloud.lift_faults()
    with pytest.raises(NotConfirmed):
        computer.up(confirm=decline)
    assert computer.plans[-1].unfinished is None
    assert records(computer) == []


def test_a_record_of_a_newer_gpuops_is_refused_and_kept(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "InternalError", "status": 500, "times": -1})
    with pytest.raises(VendorUnreachable):
        computer.up()
    the_cloud.lift_faults()
    [record] = records(computer)
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    before = launches(the_cloud)
    with pytest.raises(NewerFormat) as raised:
        computer.up()
    assert raised.value.next_step.startswith("Upgrade gpuops")
    assert launches(the_cloud) == before
    assert records(computer) == [record]


def test_a_refused_launch_leaves_nothing(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "UnauthorizedOperation", "status": 403})
    with pytest.raises(ProviderError, match="UnauthorizedOperation"):
        computer.up()
    assert the_cloud.states(computer.name) == []
    assert records(computer) == []


def test_a_machine_that_this_call_launched_is_stopped_when_ssh_never_answers(
    the_cloud: Cloud, computer: Computer
) -> None:
    with pytest.raises(MachineUnreachable) as raised:
        computer.up(ssh_port=2223, clock=quick_clock(speed=5))  # nobody listens there
    assert the_cloud.states(computer.name) == ["stopped"]
    assert f"{computer.name} is stopped; its disk costs $8.00/month" in raised.value.left_behind


def test_a_machine_that_ran_before_is_not_stopped_by_an_up_that_fails(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.has_machine()
    changed = [{"Key": "gpuops:ssh-port", "Value": "2223"}]
    the_cloud.client().create_tags(Resources=[machine.id], Tags=changed)
    with pytest.raises(MachineUnreachable):
        computer.up(clock=quick_clock(speed=5))
    assert the_cloud.states(computer.name) == ["running"]


def test_a_machine_that_stops_again_while_it_boots_is_said_to_have_stopped(
    the_cloud: Cloud, computer: Computer
) -> None:
    computer.has_machine(State.STOPPED)

    def stop_it(step: str) -> None:
        if step.startswith("Waiting for ssh"):
            [instance] = the_cloud.instances(computer.name)
            the_cloud.client().terminate_instances(InstanceIds=[instance["InstanceId"]])

    with pytest.raises((StateError, MachineUnreachable)):
        computer.up(tell=stop_it)
    assert the_cloud.states(computer.name) == []


def test_a_second_command_for_the_machine_is_told_that_one_is_at_work(the_cloud: Cloud, computer: Computer) -> None:
    def meanwhile(plan: Plan) -> None:
        for command in (computer.up, computer.down):
            with pytest.raises(Busy):
                command()
        decline(plan)

    with pytest.raises(NotConfirmed):
        computer.up(confirm=meanwhile)
    assert the_cloud.states(computer.name) == []


def test_two_computers_that_launch_at_the_same_moment_end_with_one_machine(
    the_cloud: Cloud, new_computer: Callable[[], Computer]
) -> None:
    both_have_looked = threading.Barrier(2, timeout=20)
    computers = [new_computer(), new_computer()]

    def up(computer: Computer) -> Machine | KeyRefused:
        try:
            return computer.up(confirm=lambda _: both_have_looked.wait())
        except KeyRefused as error:  # the machine that stays knows the other computer's key only
            return error

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(up, computers)
    assert [plan.existing for c in computers for plan in c.plans] == [None, None]
    assert {type(first), type(second)} == {Machine, KeyRefused}
    assert the_cloud.states(computers[0].name) == ["running"]


def test_a_computer_whose_launch_was_slow_takes_the_machine_that_another_has_launched_meanwhile(
    the_cloud: Cloud, new_computer: Callable[[], Computer]
) -> None:
    """The other one looked while it was alone, and its `up` is over: so the slow one has to give way."""
    slow, quick = new_computer(), new_computer()
    clock = quick_clock()
    launched = []

    def now() -> datetime:  # asked for between the preparation and the call
        asked_at = datetime.now(timezone.utc)
        if not launched:
            launched.append(quick.has_machine())
        return asked_at

    assert slow.up(clock=Clock(monotonic=clock.monotonic, sleep=clock.sleep, now=now)).id == launched[0].id
    [instance] = the_cloud.instances(slow.name)
    assert (instance["InstanceId"], instance["State"]["Name"]) == (launched[0].id, "running")


def test_an_up_that_fails_does_not_stop_what_another_computer_has_launched_meanwhile(
    the_cloud: Cloud, new_computer: Callable[[], Computer]
) -> None:
    mine, other = new_computer(), new_computer()

    def meanwhile(plan: Plan) -> None:
        other.has_machine()
        the_cloud.add_faults({"action": "RunInstances", "code": "InternalError", "status": 500, "times": -1})

    with pytest.raises(VendorUnreachable):
        mine.up(confirm=meanwhile)
    the_cloud.lift_faults()
    assert the_cloud.states(mine.name) == ["running"]


def test_up_in_a_region_that_does_not_answer_launches_nothing(the_cloud: Cloud, computer: Computer) -> None:
    """Whether the machine exists there isn't known; a second one of its name would be worse than none."""
    before = launches(the_cloud)
    the_cloud.add_faults({"action": "DescribeInstances", "code": "AuthFailure", "status": 401, "region": REGION})
    with pytest.raises(VendorUnreachable, match=f"aws/{REGION} did not answer"):
        computer.up()
    assert launches(the_cloud) == before


def _address_book(computer: Computer) -> str:
    return computer.address_book.read_text() if computer.address_book.exists() else ""


def _stops_after(computer: Computer, step: str) -> Clock:
    """A clock that gives up as soon as `step` has been told and something waits."""
    clock = quick_clock()

    def sleep(pause_s: float) -> None:
        if step in computer.told:
            raise StateError("enough")
        clock.sleep(pause_s)

    return Clock(monotonic=clock.monotonic, sleep=sleep)


def _by_token(plan: Plan) -> list[dict[str, object]]:
    assert plan.unfinished is not None
    return [{"Name": "client-token", "Values": [plan.unfinished.token]}]
