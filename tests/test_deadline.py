"""Law 2: a machine stops by itself, by the boot script that it was given, whatever became of the client."""

from __future__ import annotations

from tests.computers import Cloud, Computer, until
from tests.kill_points import kill_at

_ONE_SECOND = str(1 / 3600)


def test_a_machine_whose_client_is_killed_right_after_the_launch_stops_at_its_deadline_on_every_boot(
    the_cloud: Cloud, computer: Computer
) -> None:
    words = ("up", "-y", "--max-hours", _ONE_SECOND)
    assert kill_at(computer, words, "after RunInstances #1")
    [instance] = the_cloud.instances(computer.name)
    assert instance["State"]["Name"] in {"pending", "running"}
    until(lambda: the_cloud.states(computer.name) == ["stopped"], "it stops at its deadline")
    assert _reason(the_cloud, computer) == "Client.InstanceInitiatedShutdown"

    the_cloud.client().start_instances(InstanceIds=[instance["InstanceId"]])
    until(lambda: the_cloud.states(computer.name) == ["running"], "it starts again")
    until(lambda: the_cloud.states(computer.name) == ["stopped"], "it stops at its deadline once more")
    assert _reason(the_cloud, computer) == "Client.InstanceInitiatedShutdown"


def test_the_deadline_is_armed_before_anyone_can_log_in(the_cloud: Cloud, computer: Computer) -> None:
    computer.up(max_hours="2")
    [instance] = the_cloud.instances(computer.name)
    console = the_cloud.client().get_console_output(InstanceId=instance["InstanceId"])["Output"]
    assert console.index("systemd: starting gpuops-deadline.timer") < console.index("login: (ssh listens")


def _reason(cloud: Cloud, computer: Computer) -> str:
    [instance] = cloud.instances(computer.name)
    return str(instance["StateReason"]["Code"])
