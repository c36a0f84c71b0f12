"""The states of an instance, and the machine behind it, as on EC2."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import time
from typing import Any

from .conftest import BOOT_S, Rig, processes_of_machines, refused, until, user_data

PUBLIC = ipaddress.ip_network("127.64.0.0/10")


def listens(address: str, port: int = 2222) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def test_a_launched_instance_is_pending_without_an_address_then_runs_with_one(rig: Rig) -> None:
    [launched] = rig.client().run_instances(**rig.request())["Instances"]
    rig.launched.append(launched["InstanceId"])
    began = time.monotonic()
    assert launched["State"] == {"Code": 0, "Name": "pending"}
    assert launched["StateReason"]["Code"] == "pending"
    assert rig.state(launched["InstanceId"]) == "pending"
    assert "PublicIpAddress" not in rig.describe(launched["InstanceId"])

    running = rig.wait(launched["InstanceId"], "running")

    assert time.monotonic() - began > BOOT_S * 0.8
    assert running["State"]["Code"] == 16
    assert ipaddress.ip_address(running["PublicIpAddress"]) in PUBLIC


def test_a_machine_answers_at_the_address_of_a_running_instance_and_at_no_other(rig: Rig) -> None:
    first, second = rig.running(), rig.running()
    assert first["PublicIpAddress"] != second["PublicIpAddress"]
    for instance in (first, second):
        until(lambda instance=instance: listens(instance["PublicIpAddress"]), "ssh")
    rig.client().stop_instances(InstanceIds=[first["InstanceId"]])
    rig.wait(first["InstanceId"], "stopped")
    assert not listens(first["PublicIpAddress"])
    assert listens(second["PublicIpAddress"])


def test_stop_takes_the_public_address_and_keeps_the_private_one(rig: Rig) -> None:
    running = rig.running()
    [change] = rig.client().stop_instances(InstanceIds=[running["InstanceId"]])["StoppingInstances"]
    assert change["PreviousState"] == {"Code": 16, "Name": "running"}
    assert change["CurrentState"] == {"Code": 64, "Name": "stopping"}
    assert rig.state(running["InstanceId"]) == "stopping"

    stopped = rig.wait(running["InstanceId"], "stopped")

    assert "PublicIpAddress" not in stopped
    assert stopped["PrivateIpAddress"] == running["PrivateIpAddress"]
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert re.fullmatch(r"User initiated \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)", stopped["StateTransitionReason"])


def test_start_gives_another_address_and_renews_the_launch_time(rig: Rig) -> None:
    running = rig.running()
    instance_id = running["InstanceId"]
    rig.client().stop_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "stopped")
    until(lambda: int(time.time()) > int(running["LaunchTime"].timestamp()), "the next second")

    [change] = rig.client().start_instances(InstanceIds=[instance_id])["StartingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("stopped", "pending")
    assert rig.state(instance_id) == "pending"
    again = rig.wait(instance_id, "running")

    assert again["PublicIpAddress"] != running["PublicIpAddress"]
    assert again["PrivateIpAddress"] == running["PrivateIpAddress"]
    assert again["LaunchTime"] > running["LaunchTime"]
    assert again["StateTransitionReason"] == ""


def test_what_is_so_already_succeeds_and_stays(rig: Rig) -> None:
    instance_id = rig.running()["InstanceId"]
    [change] = rig.client().start_instances(InstanceIds=[instance_id])["StartingInstances"]
    assert change["CurrentState"]["Name"] == change["PreviousState"]["Name"] == "running"
    rig.client().stop_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "stopped")
    [change] = rig.client().stop_instances(InstanceIds=[instance_id])["StoppingInstances"]
    assert change["CurrentState"]["Name"] == change["PreviousState"]["Name"] == "stopped"


def test_a_change_in_mid_change_is_refused(rig: Rig) -> None:
    instance_id = rig.launch()
    assert refused(rig.client().stop_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    assert refused(rig.client().reboot_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    rig.wait(instance_id, "running")
    rig.client().stop_instances(InstanceIds=[instance_id])
    assert refused(rig.client().start_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    rig.wait(instance_id, "stopped")


def test_a_terminated_instance_stays_visible_and_terminated(rig: Rig) -> None:
    instance_id = rig.running()["InstanceId"]
    [change] = rig.client().terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("running", "shutting-down")
    assert rig.state(instance_id) == "shutting-down"
    rig.wait(instance_id, "terminated")

    assert refused(rig.client().start_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    assert refused(rig.client().stop_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    [change] = rig.client().terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == change["PreviousState"]["Name"] == "terminated"
    assert rig.state(instance_id) == "terminated"


def test_an_instance_terminated_while_pending_never_runs(rig: Rig) -> None:
    instance_id = rig.launch()
    rig.client().terminate_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "terminated")
    time.sleep(BOOT_S)
    assert rig.state(instance_id) == "terminated"
    assert not rig.folder(instance_id).exists()


def test_termination_protection_is_kept(rig: Rig) -> None:
    instance_id = rig.running()["InstanceId"]
    rig.client().modify_instance_attribute(InstanceId=instance_id, DisableApiTermination={"Value": True})
    assert refused(rig.client().terminate_instances, InstanceIds=[instance_id]) == "OperationNotPermitted"
    assert rig.state(instance_id) == "running"
    rig.client().modify_instance_attribute(InstanceId=instance_id, DisableApiTermination={"Value": False})


def test_a_machine_that_powers_itself_off_is_stopped_or_terminated_as_its_behavior_says(rig: Rig) -> None:
    off = user_data("poweroff")
    by_default = rig.launch(UserData=off)
    at_launch = rig.launch(UserData=off, InstanceInitiatedShutdownBehavior="terminate")
    later = rig.launch(UserData=off)
    behavior = {"Value": "terminate"}
    rig.client().modify_instance_attribute(InstanceId=later, InstanceInitiatedShutdownBehavior=behavior)

    ended = [rig.wait(by_default, "stopped"), rig.wait(at_launch, "terminated"), rig.wait(later, "terminated")]

    assert {instance["StateReason"]["Code"] for instance in ended} == {"Client.InstanceInitiatedShutdown"}
    assert not any("PublicIpAddress" in instance for instance in ended)


def test_a_machine_that_reboots_itself_keeps_state_and_address(rig: Rig) -> None:
    running = rig.running(UserData=user_data("[ -e ~/rebooted ] || { touch ~/rebooted; reboot; }"))
    until(lambda: rig.console(running["InstanceId"]).count("login:") == 2, "a second boot")
    again = rig.describe(running["InstanceId"])
    assert (again["State"], again["PublicIpAddress"]) == (running["State"], running["PublicIpAddress"])
    assert listens(running["PublicIpAddress"])


def test_reboot_instances_boots_the_machine_again_at_its_address(rig: Rig) -> None:
    running = rig.running()
    until(lambda: listens(running["PublicIpAddress"]), "ssh")
    rig.client().reboot_instances(InstanceIds=[running["InstanceId"]])
    assert rig.state(running["InstanceId"]) == "running"
    until(lambda: rig.console(running["InstanceId"]).count("login:") == 2, "a second boot")
    assert listens(running["PublicIpAddress"])


def test_the_disk_survives_a_stop_and_not_a_termination(rig: Rig) -> None:
    running = rig.running()
    until(lambda: listens(running["PublicIpAddress"]), "ssh")
    instance_id = running["InstanceId"]
    kept = rig.folder(instance_id) / "disk" / "kept"
    kept.write_text("results")
    rig.client().stop_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "stopped")
    assert kept.read_text() == "results"
    rig.client().terminate_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "terminated")
    assert not rig.folder(instance_id).exists()
    assert "login:" in rig.console(instance_id)


def test_a_disk_that_is_to_outlive_its_machine_does(rig: Rig) -> None:
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}
    instance_id = rig.running(BlockDeviceMappings=[mapping])["InstanceId"]
    [disk] = rig.describe(instance_id)["BlockDeviceMappings"]
    rig.client().terminate_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "terminated")
    [volume] = rig.client().describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert volume["State"] == "available"
    assert rig.folder(instance_id).exists()


def test_the_console_is_the_machines_own_and_empty_before_it_boots(rig: Rig) -> None:
    instance_id = rig.launch(UserData=user_data("echo armed"))
    assert rig.console(instance_id) == ""
    until(lambda: "login:" in rig.console(instance_id), "a boot")
    assert "armed" in rig.console(instance_id)
    assert "SSH HOST KEY FINGERPRINTS" in rig.console(instance_id)


def test_the_latest_console_needs_a_nitro_type(rig: Rig) -> None:
    nitro, xen = rig.launch(), rig.launch(InstanceType="p2.xlarge")
    rig.client().get_console_output(InstanceId=nitro, Latest=True)
    assert refused(rig.client().get_console_output, InstanceId=xen, Latest=True) == "UnsupportedOperation"


def test_a_machine_that_crashed_is_impaired_still_runs_and_can_be_rebooted(rig: Rig) -> None:
    instance_id = rig.running()["InstanceId"]
    until(lambda: "login:" in rig.console(instance_id), "a boot")
    for pid in processes_of_machines(rig.cloud.folder, instance_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def health() -> Any:
        [status] = rig.client().describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"]
        return status["InstanceStatus"]["Status"]

    until(lambda: health() == "impaired", "impaired")
    assert rig.state(instance_id) == "running"
    rig.client().reboot_instances(InstanceIds=[instance_id])
    until(lambda: health() == "ok", "ok")


def test_status_checks_take_a_while_then_pass(rig: Rig) -> None:
    instance_id, client = rig.launch(), rig.client()
    assert client.describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"] == []
    seen: list[str] = []

    def passed() -> bool:
        answer = client.describe_instance_status(InstanceIds=[instance_id], IncludeAllInstances=True)
        seen.append(answer["InstanceStatuses"][0]["InstanceStatus"]["Status"])
        return seen[-1] == "ok"

    until(passed, "checks passed")
    assert list(dict.fromkeys(seen)) == ["not-applicable", "initializing", "ok"]
