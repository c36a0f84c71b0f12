"""Whose machine is whose: what its tags make of it, taking over one that was there, and leaving nothing behind."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from gpuops import host_keys
from gpuops.errors import BadData, NotPermitted, ProviderError, UnknownMachine, VendorUnreachable
from gpuops.machine import Machine, State, Trait
from gpuops.providers.aws import instances
from tests.computers import until
from tests.providers.conftest import FAR, Account

HOUR = timedelta(hours=1)


def tag(account: Account, machine: Machine, **tags: str) -> Machine:
    """The machine, after somebody has changed its tags by hand."""
    ours = [{"Key": f"gpuops:{key.replace('_', '-')}", "Value": value} for key, value in tags.items()]
    account.cloud.client().create_tags(Resources=[machine.id], Tags=ours)
    return account.provider.refresh(machine)


def launched(machine: Machine) -> datetime:
    assert machine.launched_at
    return machine.launched_at


def test_a_machine_stops_its_hours_after_its_boot_or_when_it_was_told(account: Account) -> None:
    machine = account.running(max_hours="3")
    assert machine.deadline == launched(machine) + 3 * HOUR
    later = (launched(machine) + 5 * HOUR).replace(microsecond=0)
    account.provider.label(machine, {"deadline": later.isoformat()})
    assert account.provider.refresh(machine).deadline == later


def test_a_deadline_of_an_earlier_start_is_over_however_late_it_was(account: Account) -> None:
    """Told at 10:00 to stop at 11:00, stopped, and started at 10:20 for twelve hours: `reap` must not stop it at 11."""
    machine = account.running(max_hours="12")
    account.provider.label(machine, {"deadline": (launched(machine) + HOUR).isoformat(timespec="seconds")})
    account.provider.stop(machine)
    account.wait(machine, State.STOPPED)
    time.sleep(max(0.0, 1.1 - (datetime.now(timezone.utc) - launched(machine)).total_seconds()))
    account.provider.start(machine)
    again = account.wait(machine, State.RUNNING)
    assert launched(again) > launched(machine)
    assert again.deadline == launched(again) + 12 * HOUR


def test_a_machine_whose_start_is_not_known_is_not_told_when_to_stop(account: Account) -> None:
    machine, before = account.launched(), len(account.cloud.calls("CreateTags"))
    with pytest.raises(ValueError, match="not known"):
        account.provider.label(dataclasses.replace(machine, launched_at=None), {"deadline": "2026-11-24T09:00:00Z"})
    assert len(account.cloud.calls("CreateTags")) == before


def test_a_machine_that_does_not_run_has_no_deadline_and_says_since_when(account: Account) -> None:
    machine = account.running()
    assert machine.stopped_at is None
    account.provider.stop(machine)
    machine = account.wait(machine, State.STOPPED)
    assert machine.deadline is None
    assert machine.stopped_at is not None
    assert abs(machine.stopped_at - datetime.now(timezone.utc)) < timedelta(minutes=1)


def test_while_its_host_key_is_replaced_both_are_known_and_then_only_the_new_one(account: Account) -> None:
    machine = account.launched()
    assert (machine.next_host_key, machine.has_own_host_key) == (None, False)
    new = host_keys.generate().public_line
    account.provider.label(machine, {"next-host-key": new})
    between = account.provider.refresh(machine)
    assert (between.host_key, between.next_host_key) == (machine.host_key, new)
    account.provider.label(machine, {"host-key": new, "next-host-key": "", "own-host-key": "yes"})
    after = account.provider.refresh(machine)
    assert (after.host_key, after.next_host_key, after.has_own_host_key) == (new, None, True)


def test_labels_are_set_in_one_call_and_leave_the_others_as_they_are(account: Account) -> None:
    machine, before = account.launched(), len(account.cloud.calls("CreateTags"))
    account.provider.label(machine, {"user": "ec2-user", "ssh-port": "22"})
    assert len(account.cloud.calls("CreateTags")) - before == 1
    after = account.provider.refresh(machine).tags
    assert after == {**machine.tags, "gpuops:user": "ec2-user", "gpuops:ssh-port": "22"}


def test_a_label_that_there_is_not_is_never_written(account: Account) -> None:
    machine, before = account.launched(), len(account.cloud.calls("CreateTags"))
    with pytest.raises(ValueError, match="owner"):
        account.provider.label(machine, {"name": "x", "owner": "me"})
    assert len(account.cloud.calls("CreateTags")) == before


def test_the_price_is_the_one_that_was_agreed_to(account: Account) -> None:
    machine = tag(account, account.launched(), usd_per_hour="0.123")
    assert machine.price_usd_per_hour == 0.123
    unlabelled = dict(_instance(account, machine), Tags=[])
    assert _seen(account, unlabelled).price_usd_per_hour not in {None, 0.123}


def test_a_machine_that_cannot_train_says_why(account: Account) -> None:
    assert "K80" in account.launched(types="p2.xlarge").unfit
    assert account.launched().unfit == ""


@pytest.fixture
def theirs(account: Account) -> Iterator[Machine]:
    """A machine that somebody made without gpuops."""
    image = account.offer().image_id
    ec2 = account.cloud.client()
    made = ec2.run_instances(ImageId=image, InstanceType="g4dn.xlarge", MinCount=1, MaxCount=1)["Instances"][0]
    until(lambda: account.provider.inspect(made["InstanceId"]).state is State.RUNNING, "their machine runs")
    yield account.provider.inspect(made["InstanceId"])
    ec2.terminate_instances(InstanceIds=[made["InstanceId"]])


def test_a_machine_of_somebody_else_is_seen_by_its_id_and_not_used(account: Account, theirs: Machine) -> None:
    assert (theirs.name, theirs.region, theirs.state) == (theirs.id, "us-west-2", State.RUNNING)
    assert theirs.unusable
    assert theirs.ssh is not None
    assert theirs.ssh.user == ""


def test_a_machine_is_inspected_in_whatever_region_it_is(account: Account) -> None:
    machine = account.launched(region=FAR)
    assert account.provider.inspect(machine.id).region == FAR


@pytest.mark.parametrize("machine_id", ["i-0123", "fast-ai", "i-0123456789ABCDEF0", "", "i-00000000000000000"])
def test_an_id_of_no_machine_is_answered_as_such(account: Account, machine_id: str) -> None:
    with pytest.raises(UnknownMachine) as raised:
        account.provider.inspect(machine_id)
    assert raised.value.next_step


def test_a_machine_is_not_said_to_be_unknown_where_a_region_did_not_answer(account: Account) -> None:
    account.cloud.add_faults({"action": "DescribeInstances", "code": "Blocked", "status": 403, "region": FAR})
    with pytest.raises(VendorUnreachable, match=FAR):
        account.provider.inspect("i-00000000000000000")


def test_a_machine_is_taken_over_by_its_tags_alone(account: Account, theirs: Machine) -> None:
    key = host_keys.generate().public_line
    labels = {"name": account.name, "host-key": key, "user": "ubuntu", "ssh-port": "22", "adopted": "yes"}
    account.provider.label(theirs, labels)
    [ours] = account.provider.find(account.name).machines
    assert (ours.id, ours.unusable, ours.is_adopted) == (theirs.id, "", True)
    assert ours.ssh is not None
    assert (ours.ssh.user, ours.ssh.port, ours.host_key) == ("ubuntu", 22, key)
    # What gpuops didn't arrange it doesn't know.
    assert (ours.max_hours, ours.deadline, ours.disk_usd_per_month) == (None, None, None)
    assert ours.has_own_host_key
    assert ours.price_usd_per_hour is not None


def test_the_firewall_of_a_machine_that_was_taken_over_stays_as_it_was(account: Account, theirs: Machine) -> None:
    before = len(account.cloud.calls("AuthorizeSecurityGroupIngress"))
    key = host_keys.generate().public_line
    account.provider.label(theirs, {"name": account.name, "host-key": key, "user": "ubuntu", "ssh-port": "22"})
    ours = account.provider.refresh(theirs)
    nobody_answers = account.wish(admit="http://127.0.0.1:9")  # whom this computer's address would be asked
    account.provider.admit(ours, nobody_answers, client_key=account.computer.client_key)
    assert len(account.cloud.calls("AuthorizeSecurityGroupIngress")) == before


def test_a_machine_that_is_too_new_to_be_shown_is_no_error_when_a_computer_is_let_in(account: Account) -> None:
    machine = account.launched()
    new = {"action": "DescribeInstances", "code": "InvalidInstanceID.NotFound", "match": {"InstanceId.1": machine.id}}
    account.cloud.add_faults(new)
    account.provider.admit(machine, account.wish(), client_key=account.computer.client_key)
    assert account.provider.refresh(machine).id == machine.id  # the fault was used up by it


def test_a_machine_that_has_booted_has_told_its_host_key_to_the_vendor(account: Account) -> None:
    machine = account.running()
    until(lambda: account.provider.seen_host_keys(machine), "its console shows its keys")
    assert machine.host_key in account.provider.seen_host_keys(machine)


ED25519, ECDSA = host_keys.generate().public_line, "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY="
RSA = f"ssh-rsa {base64.b64encode(bytes((0, 0, 0, 7)) + b'ssh-rsa' + bytes(265)).decode()}"  # as long as of 2048 bits


@pytest.mark.parametrize(
    ("console", "keys"),
    [
        ("", ()),
        ("[  OK  ] Reached target Login Prompts.", ()),
        (f"BEGIN SSH HOST KEY FINGERPRINTS-----\n{ED25519}\n-----END SSH HOST KEY FINGERPRINTS-----", ()),
        (f"-----BEGIN SSH HOST KEY KEYS-----\n{ED25519} root@ip\n-----END SSH HOST KEY KEYS-----", (ED25519,)),
        (
            "[   31.4] cloud-init[812]: -----BEGIN SSH HOST KEY KEYS-----\r\n"
            f"<14>Nov 24 09:00:00 ec2: {RSA} root@ip\r\n"
            f"<14>Nov 24 09:00:00 ec2: {ECDSA} root@ip\r\n<14>Nov 24 09:00:00 ec2: {ED25519} root@ip\r\n"
            "<14>Nov 24 09:00:00 ec2: ssh-rsa junk root@ip\r\n"
            "<14>Nov 24 09:00:00 ec2: -----END SSH HOST KEY KEYS-----\r\n",
            (ED25519, ECDSA),
        ),
    ],
)
def test_the_keys_are_read_off_a_console_whatever_its_lines_begin_with(console: str, keys: tuple[str, ...]) -> None:
    assert instances.shown_host_keys(console) == keys


def test_a_computer_is_introduced_to_a_running_machine_by_its_credentials(account: Account) -> None:
    assert Trait.INTRODUCTION in account.provider.traits
    machine = account.running()
    assert account.provider.introduce(machine, client_key=account.computer.client_key)
    assert not account.provider.introduce(dataclasses.replace(machine, ssh=None), client_key="")
    account.cloud.add_faults({"action": "SendSSHPublicKey", "code": "AccessDeniedException", "status": 400})
    with pytest.raises(NotPermitted, match="ec2-instance-connect:SendSSHPublicKey"):
        account.provider.introduce(machine, client_key=account.computer.client_key)
    account.provider.stop(machine)
    account.wait(machine, State.STOPPED)
    assert not account.provider.introduce(machine, client_key=account.computer.client_key)


@pytest.mark.parametrize(
    "code", ["EC2InstanceNotFoundException", "EC2InstanceTypeInvalidException", "InvalidArgsException", "AuthException"]
)
def test_a_computer_that_cannot_be_introduced_is_refused_by_the_provider_and_no_other_way(
    account: Account, code: str
) -> None:
    machine = account.running()
    account.cloud.add_faults({"action": "SendSSHPublicKey", "code": code, "status": 400})
    with pytest.raises(ProviderError):
        account.provider.introduce(machine, client_key=account.computer.client_key)


def test_a_host_key_that_is_longer_than_a_tag_is_refused_before_anything_is_written(
    account: Account, theirs: Machine
) -> None:
    before = len(account.cloud.calls("CreateTags"))
    with pytest.raises(BadData, match="ssh-rsa") as raised:
        account.provider.label(theirs, {"name": account.name, "host-key": RSA, "user": "ubuntu", "ssh-port": "22"})
    assert "ed25519" in raised.value.next_step
    assert len(account.cloud.calls("CreateTags")) == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"InstanceLifecycle": "spot"}, "spot instance"),
        ({"RootDeviceType": "instance-store"}, "instance store"),
        ({"Tags": [{"Key": "aws:autoscaling:groupName", "Value": "workers"}]}, "Auto Scaling group workers"),
    ],
)
def test_a_machine_that_does_not_come_back_from_a_stop_says_why(
    account: Account, theirs: Machine, changes: dict[str, object], why: str
) -> None:
    assert theirs.unstoppable == ""
    assert why in _seen(account, {**_instance(account, theirs), **changes}).unstoppable


def test_a_machine_that_a_power_off_deletes_says_so(account: Account, theirs: Machine) -> None:
    account.cloud.client().modify_instance_attribute(
        InstanceId=theirs.id, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
    )
    assert "power-off" in account.provider.inspect(theirs.id).unstoppable


def test_what_would_outlive_a_machine_is_named(account: Account, theirs: Machine) -> None:
    def disk(volume: str, *, goes: bool) -> dict[str, object]:
        return {"DeviceName": "/dev/sdf", "Ebs": {"VolumeId": volume, "DeleteOnTermination": goes}}

    disks = [disk("vol-1", goes=True), disk("vol-2", goes=False)]
    nics = [
        {"Association": {"PublicIp": ip, "IpOwnerId": owner}}
        for ip, owner in (("1.2.3.4", "123"), ("5.6.7.8", "amazon"))
    ]
    seen = _seen(
        account, {**_instance(account, theirs), "BlockDeviceMappings": disks, "NetworkInterfaces": [*nics, {}]}
    )
    assert seen.stays_behind == ("volume vol-2", "address 1.2.3.4")
    assert account.launched().stays_behind == ()


@pytest.mark.parametrize(
    ("code", "message", "problem"),
    [
        (
            "Server.InsufficientInstanceCapacity",
            "There is no capacity.",
            "Server.InsufficientInstanceCapacity: There is no capacity.",
        ),
        (
            "Client.VolumeLimitExceeded",
            "Client.VolumeLimitExceeded: Volume limit exceeded",
            "Client.VolumeLimitExceeded: Volume limit exceeded",
        ),
        ("pending", "pending", "pending"),
        ("", "", ""),
    ],
)
def test_why_a_machine_is_in_its_state_begins_with_awss_code(
    account: Account, theirs: Machine, code: str, message: str, problem: str
) -> None:
    reason = {"Code": code, "Message": message}
    assert _seen(account, {**_instance(account, theirs), "StateReason": reason}).problem == problem


def groups(account: Account, region: str) -> list[str]:
    wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
    found = account.cloud.client(region=region).describe_security_groups(Filters=wanted)["SecurityGroups"]
    return [group["GroupId"] for group in found]


def test_the_firewall_goes_with_the_last_machine_of_its_region(account: Account) -> None:
    first, last = account.launched(region=FAR), account.launched(region=FAR)
    [group] = groups(account, FAR)
    for machine in (first, last):
        assert account.provider.tidy(FAR) == []
        account.provider.terminate(machine)
        assert account.provider.tidy(FAR) == []  # it is still going
        account.wait(machine, State.TERMINATED)
    [said] = account.provider.tidy(FAR)
    assert group in said
    assert FAR in said
    assert groups(account, FAR) == []
    assert account.provider.tidy(FAR) == []


def test_a_firewall_of_that_name_that_is_not_ours_or_is_in_use_stays(account: Account) -> None:
    region = "eu-north-1"
    ec2 = account.cloud.client(region=region)
    group = ec2.create_security_group(GroupName="gpuops", Description="somebody's")["GroupId"]
    assert account.provider.tidy(region) == []
    ec2.create_tags(Resources=[group], Tags=[{"Key": "gpuops:format", "Value": "1"}])
    account.cloud.add_faults({"action": "DeleteSecurityGroup", "code": "DependencyViolation", "status": 400})
    assert account.provider.tidy(region) == []
    assert len(account.provider.tidy(region)) == 1


def test_sweeping_tidies_every_region_and_names_those_that_did_not_answer(account: Account) -> None:
    for region in ("us-west-2", FAR):
        machine = account.launched(region=region)
        account.provider.terminate(machine)
        account.wait(machine, State.TERMINATED)
    account.cloud.add_faults({"action": "DescribeInstances", "code": "Blocked", "status": 403, "region": FAR})
    with pytest.raises(VendorUnreachable, match=FAR):
        account.provider.sweep()
    assert groups(account, "us-west-2") == []
    assert any(FAR in said for said in account.provider.sweep())
    assert groups(account, FAR) == []


def _instance(account: Account, machine: Machine) -> Any:
    answer = account.cloud.client().describe_instances(InstanceIds=[machine.id])
    return answer["Reservations"][0]["Instances"][0]


def _seen(account: Account, instance: Any) -> Machine:
    from gpuops.providers.aws.prices import Prices

    return instances.machine(instance, "us-west-2", Prices(account.computer.home / "prices.json"))
