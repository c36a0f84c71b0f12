"""`gpuops adopt` and `admit`: an instance taken over, another computer let in."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from gpuops import host_keys
from gpuops.errors import BadInput, KeyRefused, NotConfirmed, OverLimit, StateError, UnknownMachine
from gpuops.machine import State
from tests.computers import Cloud, Computer, until

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")


def someones(cloud: Cloud, computer: Computer) -> str:
    """An instance that somebody launched without gpuops, which admits this computer's key."""
    image = cloud.client("ssm").get_parameter(
        Name="/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    )["Parameter"]["Value"]
    answer = cloud.client().run_instances(
        ImageId=image,
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        UserData=f"#cloud-config\nssh_authorized_keys:\n  - {computer.client_key}\n",
    )
    instance_id = str(answer["Instances"][0]["InstanceId"])
    until(lambda: described(cloud, instance_id)["State"]["Name"] == "running", f"{instance_id} runs")
    until(lambda: b"BEGIN SSH HOST KEY KEYS" in console(cloud, instance_id), "it has told its host key")
    return instance_id


def described(cloud: Cloud, instance_id: str) -> dict[str, Any]:
    answer = cloud.client().describe_instances(InstanceIds=[instance_id])
    instance: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
    return instance


def console(cloud: Cloud, instance_id: str) -> bytes:
    return str(cloud.client().get_console_output(InstanceId=instance_id).get("Output", "")).encode()


@needs_ssh
def test_an_adopted_instance_is_reached_under_its_name_and_only_its_tags_are_changed(
    the_cloud: Cloud, computer: Computer
) -> None:
    instance_id = someones(the_cloud, computer)
    before = described(the_cloud, instance_id)
    ran = computer.gpuops_here("adopt", instance_id, computer.name, "-y")
    assert f"{computer.name} is {instance_id}: g4dn.xlarge" in ran.succeeded()
    assert "as it told AWS at its first boot" in ran.stderr
    assert "not by itself" in ran.stderr
    after = described(the_cloud, instance_id)
    assert {k: v for k, v in after.items() if k != "Tags"} == {k: v for k, v in before.items() if k != "Tags"}
    assert computer.ssh("whoami").succeeded() == "ubuntu\n"
    assert "does not stop by itself" in computer.gpuops_here("status").succeeded()
    # It goes on being what it was: no limit can be armed on it, and it is stopped like any other.
    computer.gpuops_here("up", "--max-hours", "1").failed(OverLimit)
    computer.gpuops_here("down", "-y").succeeded()
    assert described(the_cloud, instance_id)["State"]["Name"] == "stopped"


def test_a_host_key_that_nothing_proves_is_not_accepted_by_a_flag_alone(the_cloud: Cloud, computer: Computer) -> None:
    instance_id = someones(the_cloud, computer)
    the_cloud.add_faults({"action": "GetConsoleOutput", "code": "UnsupportedOperation", "times": 3})
    said = computer.gpuops_here("adopt", instance_id, computer.name, "-y").failed(NotConfirmed)
    assert "not proven" in said
    fingerprint = said.split("--host-key ")[1].split()[0]
    assert fingerprint.startswith("SHA256:")
    wrong = computer.gpuops_here("adopt", instance_id, computer.name, "-y", "--host-key", "SHA256:wrong")
    assert "not SHA256:wrong" in wrong.failed(BadInput)
    assert "gpuops:name" not in {tag["Key"] for tag in described(the_cloud, instance_id).get("Tags", [])}
    computer.gpuops_here("adopt", instance_id, computer.name, "-y", "--host-key", fingerprint).succeeded()


def test_what_is_gpuopss_already_or_is_not_there_is_not_adopted(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.has_machine()
    assert "gpuops's already" in computer.gpuops_here("adopt", machine.id, "other", "-y").failed(StateError)
    computer.gpuops_here("adopt", "i-0123456789abcdef0", "other", "-y").failed(UnknownMachine)
    computer.gpuops_here("adopt", "nonsense", "other", "-y").failed(UnknownMachine)


def test_the_name_of_another_machine_is_not_given_twice(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine()
    instance_id = someones(the_cloud, computer)
    assert "already" in computer.gpuops_here("adopt", instance_id, computer.name, "-y").failed(StateError)


@needs_ssh
def test_admit_lets_another_computer_in_that_the_image_cannot_be_told_of(
    computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    """The image of 2017 knows nothing of EC2 Instance Connect."""
    computer.up(types="p2.xlarge")
    other = new_computer()
    other.name = computer.name
    said = other.gpuops_here("up").failed(KeyRefused)
    assert f"gpuops admit {computer.name} '{other.client_key}'" in said
    computer.gpuops_here("admit", computer.name, other.client_key).succeeded()
    other.gpuops_here("up").succeeded()
    assert other.ssh("whoami").succeeded() == "ubuntu\n"
    assert computer.ssh("whoami").succeeded() == "ubuntu\n"


def test_admit_takes_a_file_and_refuses_what_is_no_key(
    computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    computer.up(types="p2.xlarge")
    other = new_computer()
    other.name = computer.name
    file = host_keys.client_key(other.home / "keys").with_name("id_ed25519.pub")
    computer.gpuops_here("admit", computer.name, str(file)).succeeded()
    assert other.up().state is State.RUNNING
    computer.gpuops_here("admit", computer.name, "ssh-ed25519 nonsense").failed(BadInput)


def test_keys_named_in_the_settings_are_let_in_from_the_first_boot(
    computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    other = new_computer()
    other.name = computer.name
    computer.up(types="p2.xlarge", authorized_keys=(other.client_key,))
    assert other.up().state is State.RUNNING


def test_a_key_of_the_persons_own_is_used_where_the_settings_say_so(computer: Computer) -> None:
    computer.folder.mkdir()
    own = computer.folder / "own"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own)], check=True)
    assert computer.up(types="p2.xlarge", identity_file=own).state is State.RUNNING
    assert str(own) in computer.address_book.read_text()
