"""What is EC2's own: the request that launches, the firewall, the SDK's retries, and every error code's family."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from gpuops import providers
from gpuops.errors import (
    BadSetting,
    StateError,
    UnknownRegion,
    VendorUnreachable,
)
from gpuops.machine import State
from gpuops.providers.aws import Aws, firewall
from tests.computers import Cloud, Computer
from tests.providers.conftest import FAR, Account


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def test_the_creating_call_itself_sets_every_tag_on_the_machine_and_its_disk(account: Account) -> None:
    """Law 1: no moment at which a machine exists unnamed."""
    before = len(account.cloud.calls("CreateTags"))
    prepared = account.prepared(max_hours="5")
    account.provider.launch(prepared, account.token())
    assert len(account.cloud.calls("CreateTags")) == before
    [instance] = account.cloud.instances(account.name)
    assert tags(instance).pop("gpuops:created")
    assert tags(instance) | {"gpuops:created": ""} == {
        "Name": account.name,
        "gpuops:name": account.name,
        "gpuops:format": "1",
        "gpuops:host-key": prepared.host_key,
        "gpuops:own-host-key": "no",
        "gpuops:user": "ubuntu",
        "gpuops:ssh-port": "2222",
        "gpuops:max-hours": "5",
        "gpuops:disk-gb": "100",
        "gpuops:disk-type": "gp3",
        "gpuops:usd-per-hour": f"{prepared.offer.price_usd_per_hour:g}",
        "gpuops:created": "",
    }
    volume_ids = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
    [volume] = account.cloud.client().describe_volumes(VolumeIds=volume_ids)["Volumes"]
    assert tags(volume) == tags(instance)
    assert (volume["Size"], volume["VolumeType"]) == (100, "gp3")


def test_a_power_off_on_the_machine_stops_it_and_keeps_its_disk(account: Account) -> None:
    request = account.prepared().request
    assert request["InstanceInitiatedShutdownBehavior"] == "stop"


def test_the_first_boot_is_rendered_whole_and_fits_in_user_data(account: Account) -> None:
    prepared = account.prepared(max_hours="0.5")
    account.provider.launch(prepared, account.token())
    [instance] = account.cloud.instances(account.name)
    answer = account.cloud.client().describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
    sent = base64.b64decode(answer["UserData"]["Value"])
    assert sent.decode() == prepared.request["UserData"]
    assert len(sent) <= 16 * 1024
    assert sent.startswith(b"#cloud-config\n")
    assert b"{{" not in sent
    for fact in ("boot 1800 ", prepared.host_key, account.computer.client_key, "BEGIN OPENSSH PRIVATE KEY"):
        assert fact.encode() in sent


@pytest.mark.parametrize(("types", "tokens"), [("g4dn.xlarge", "required"), ("p2.xlarge", "optional")])
def test_imds_v2_is_required_but_of_the_image_that_is_older_than_it(account: Account, types: str, tokens: str) -> None:
    account.launched(types=types)
    [instance] = account.cloud.instances(account.name)
    assert instance["MetadataOptions"]["HttpTokens"] == tokens
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_the_disk_is_never_smaller_than_the_image(account: Account) -> None:
    assert account.offer(disk_gb="10").disk_gb == 75


def test_the_image_is_searched_by_name_where_aws_has_no_such_parameter(account: Account) -> None:
    by_parameter = account.offer().image_id
    missing = {"action": "GetParameter", "code": "ParameterNotFound", "times": 2}
    account.cloud.add_faults(missing)
    assert account.offer().image_id == by_parameter


def test_a_throttled_question_is_asked_again(account: Account) -> None:
    before = len(account.cloud.calls("GetCallerIdentity"))
    account.cloud.add_faults({"action": "GetCallerIdentity", "code": "RequestLimitExceeded", "status": 503})
    assert providers.open("aws", account.computer.settings()).account() == "123456789012"
    assert len(account.cloud.calls("GetCallerIdentity")) - before == 2


def test_starting_a_machine_that_is_stopping_is_a_matter_of_its_state(account: Account) -> None:
    machine = account.running()
    account.provider.stop(machine)
    with pytest.raises(StateError):
        account.provider.start(machine)
    account.wait(machine, State.STOPPED)


def test_a_region_that_aws_does_not_have_is_answered_with_the_closest(computer: Computer) -> None:
    with pytest.raises(UnknownRegion, match="Did you mean 'us-west-2'"):
        Aws(computer.settings(region="us-wset-2"))


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("gpuops:format", "2"),
        ("gpuops:format", "x"),
        ("gpuops:user", "ubuntu\n    ProxyCommand touch /tmp/here"),
        ("gpuops:user", ""),
        ("gpuops:ssh-port", "99999"),
        ("gpuops:host-key", "junk"),
        ("gpuops:disk-gb", "x"),
        ("gpuops:max-hours", "nan"),
        ("gpuops:next-host-key", "junk"),
        ("gpuops:deadline", "tomorrow"),
        ("gpuops:deadline", "2026-11-24T09:00:00+00:00"),  # of which start?
        ("gpuops:deadline", "2026-11-24T09:00:00+00:00 2026-11-24T10:00:00"),  # in which zone?
        ("gpuops:usd-per-hour", "-1"),
    ],
)
def test_a_machine_whose_tags_are_not_ours_is_shown_with_its_price_and_never_reached(
    account: Account, tag: str, value: str
) -> None:
    machine = account.launched()
    account.cloud.client().create_tags(Resources=[machine.id], Tags=[{"Key": tag, "Value": value}])
    [shown] = [m for m in account.provider.machines().machines if m.id == machine.id]
    assert (shown.name, shown.price_usd_per_hour) == (account.name, machine.price_usd_per_hour)
    assert shown.state.bills
    assert shown.unusable
    assert (shown.ssh, shown.host_key) == (None, None)


@pytest.mark.parametrize("name", ["*", "a\nHost github.com", "localhost", "fast-ai-jupyter", ""])
def test_a_machine_that_was_given_another_name_bears_its_id(account: Account, name: str) -> None:
    machine = account.launched()
    account.cloud.client().create_tags(Resources=[machine.id], Tags=[{"Key": "gpuops:name", "Value": name}])
    [shown] = [m for m in account.provider.machines().machines if m.id == machine.id]
    assert shown.name == machine.id
    assert shown.unusable


class _Address(BaseHTTPRequestHandler):
    """Says an address, as https://checkip.amazonaws.com does."""

    says: ClassVar[bytes] = b"203.0.113.7\n"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.says)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def address_service() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("says", "block"), [("203.0.113.7\n", "203.0.113.7/32"), ("2001:db8::1", "2001:db8::1/128")])
def test_this_computers_address_is_what_the_service_says_it_is(
    address_service: str, says: str, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Address, "says", says.encode())
    assert firewall.admitted_block("auto", checkip_url=address_service) == block
    assert firewall.admitted_block(address_service) == block  # a service of one's own choice


def test_a_service_that_says_no_address_or_nothing_leads_to_the_option(
    address_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Address, "says", b"<html>Sign in to the hotel's network</html>")
    for url in (address_service, "http://127.0.0.1:9"):
        with pytest.raises(VendorUnreachable) as raised:
            firewall.admitted_block("auto", checkip_url=url)
        assert "--admit" in raised.value.next_step


@pytest.mark.parametrize("whole_world", ["0.0.0.0/0", "::/0", "my office", "300.1.1.1", "file:///etc/hostname"])
def test_no_block_that_is_none_or_admits_the_whole_world(whole_world: str) -> None:
    with pytest.raises(BadSetting):
        firewall.admitted_block(whole_world)


@pytest.mark.parametrize(("given", "block"), [("203.0.113.7", "203.0.113.7/32"), ("2001:db8::1", "2001:db8::1/128")])
def test_an_address_is_a_block_of_one(given: str, block: str) -> None:
    assert firewall.admitted_block(given) == block


def groups(cloud: Cloud, region: str) -> list[str]:
    """Our firewalls."""
    wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
    found = cloud.client(region=region).describe_security_groups(Filters=wanted)["SecurityGroups"]
    return [group["GroupId"] for group in found]


def rules(cloud: Cloud, region: str) -> dict[tuple[str, int], str]:
    """What the firewall lets in: (block, port) and whose rule it is."""
    ec2 = cloud.client(region=region)
    [group] = groups(cloud, region)
    found = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    return {
        (rule.get("CidrIpv4") or rule["CidrIpv6"], rule["FromPort"]): rule.get("Description", "")
        for rule in found["SecurityGroupRules"]
        if not rule["IsEgress"]
    }


def ensure(cloud: Cloud, region: str, computer: str, block: str, port: int = 22) -> None:
    ec2 = cloud.client(region=region)
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    firewall.ensure(ec2, vpc_id=vpc["VpcId"], computer=computer, block=block, port=port)


def test_the_firewall_admits_each_computers_present_address_to_ssh_and_nothing_else(the_cloud: Cloud) -> None:
    region = "eu-west-3"  # no other test has a group there
    ensure(the_cloud, region, "mine", "203.0.113.7/32")
    assert rules(the_cloud, region) == {("203.0.113.7/32", 22): "gpuops mine"}
    ensure(the_cloud, region, "other", "198.51.100.1/32")
    ensure(the_cloud, region, "mine", "203.0.113.99/32")  # this computer has moved
    moved = {("203.0.113.99/32", 22): "gpuops mine", ("198.51.100.1/32", 22): "gpuops other"}
    assert rules(the_cloud, region) == moved
    ensure(the_cloud, region, "mine", "203.0.113.99/32")
    assert rules(the_cloud, region) == moved


@pytest.mark.parametrize(
    ("first", "second"), [("203.0.113.7/32", "203.0.113.99/32"), ("2001:db8::1/128", "2001:db8::2/128")]
)
def test_of_two_computers_behind_one_address_each_can_move_and_the_other_is_still_let_in(
    the_cloud: Cloud, first: str, second: str
) -> None:
    """EC2 keeps one rule for an address and a port."""
    region = "ca-central-1"
    for computer in ("mine", "other"):
        ensure(the_cloud, region, computer, first)
    assert rules(the_cloud, region) == {(first, 22): "gpuops mine other"}
    ensure(the_cloud, region, "mine", second)
    assert rules(the_cloud, region) == {(first, 22): "gpuops other", (second, 22): "gpuops mine"}
    ensure(the_cloud, region, "other", second)
    assert rules(the_cloud, region) == {(second, 22): "gpuops mine other"}
    [group] = groups(the_cloud, region)
    the_cloud.client(region=region).delete_security_group(GroupId=group)


def test_a_rule_that_somebody_else_made_is_used_and_left_as_it_is(the_cloud: Cloud) -> None:
    region = "eu-central-1"
    ensure(the_cloud, region, "mine", "203.0.113.7/32")
    ec2 = the_cloud.client(region=region)
    [group] = groups(the_cloud, region)
    theirs = {"CidrIp": "198.51.100.1/32", "Description": "the office"}
    permission = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [theirs]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    ensure(the_cloud, region, "mine", "198.51.100.1/32")
    assert rules(the_cloud, region) == {("198.51.100.1/32", 22): "the office"}
    ensure(the_cloud, region, "mine", "203.0.113.9/32")
    assert rules(the_cloud, region) == {("198.51.100.1/32", 22): "the office", ("203.0.113.9/32", 22): "gpuops mine"}


def test_a_machine_with_another_port_takes_nothing_from_the_one_before(the_cloud: Cloud) -> None:
    region = "sa-east-1"
    for port in (22, 2222):
        ensure(the_cloud, region, "mine", "203.0.113.7/32", port)
    assert set(rules(the_cloud, region)) == {("203.0.113.7/32", 22), ("203.0.113.7/32", 2222)}


def test_an_up_from_another_address_moves_this_computers_rule_to_it(the_cloud: Cloud, computer: Computer) -> None:
    """The laptop went home: the machine that runs or is started must be reached from there."""
    computer.has_machine(State.STOPPED, region=FAR, admit="127.0.0.0/8")
    assert ("127.0.0.0/8", 2222) in rules(the_cloud, FAR)
    computer.up(region=FAR, admit="127.0.0.1/32")
    assert ("127.0.0.1/32", 2222) in rules(the_cloud, FAR)
    assert ("127.0.0.0/8", 2222) not in rules(the_cloud, FAR)
