"""What is EC2's own: the request that launches, the firewall, the SDK's retries, and every error code's family."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import botocore.exceptions
import pytest

from gpuops import providers
from gpuops.errors import (
    BadSetting,
    GpuopsError,
    NoCapacity,
    NoCredentials,
    NotPermitted,
    ProviderError,
    StateError,
    TokenSpent,
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
        "gpuops:user": "ubuntu",
        "gpuops:ssh-port": "2222",
        "gpuops:max-hours": "5",
        "gpuops:disk-gb": "100",
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
    for fact in ("--on-boot=1800", prepared.host_key, account.computer.client_key, "BEGIN OPENSSH PRIVATE KEY"):
        assert fact.encode() in sent


@pytest.mark.parametrize(("types", "tokens"), [("g4dn.xlarge", "required"), ("p2.xlarge", "optional")])
def test_imds_v2_is_required_but_of_the_image_that_is_older_than_it(account: Account, types: str, tokens: str) -> None:
    account.launched(types=types)
    [instance] = account.cloud.instances(account.name)
    assert instance["MetadataOptions"]["HttpTokens"] == tokens
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_the_retired_type_comes_with_its_own_image_and_a_note_and_todays_pair_follows(account: Account) -> None:
    offers = account.provider.offers(account.wish(types=""))
    assert (offers[0].type, offers[0].image_id, offers[0].note) == ("p2.xlarge", "ami-8c4288f4", "AWS has retired p2")
    assert offers[1].type == "g4dn.xlarge"
    assert "Deep Learning" in offers[1].image_name
    assert offers[1].note == ""


def test_the_disk_is_never_smaller_than_the_image(account: Account) -> None:
    assert account.offer(disk_gb="10").disk_gb == 75


def test_the_image_is_searched_by_name_where_aws_has_no_such_parameter(account: Account) -> None:
    by_parameter = account.offer().image_id
    missing = {"action": "GetParameter", "code": "ParameterNotFound", "times": 2}
    account.cloud.add_faults(missing)
    assert account.offer().image_id == by_parameter


def test_a_community_image_that_is_gone_leaves_todays_types(account: Account) -> None:
    gone = {"action": "DescribeImages", "code": "InvalidAMIID.NotFound", "match": {"ImageId.1": "ami-8c4288f4"}}
    account.cloud.add_faults(gone)
    assert account.provider.offers(account.wish(types=""))[0].type == "g4dn.xlarge"


def test_the_sdk_does_not_send_a_launch_again_that_found_no_room(account: Account) -> None:
    """InsufficientInstanceCapacity is a 500, which boto3 would repeat by itself."""
    prepared, before = account.prepared(), len(account.cloud.calls("RunInstances"))
    account.cloud.add_faults({"action": "RunInstances", "code": "InsufficientInstanceCapacity", "status": 500})
    with pytest.raises(NoCapacity):
        account.provider.launch(prepared, account.token())
    assert len(account.cloud.calls("RunInstances")) - before == 1


def test_a_throttled_question_is_asked_again(account: Account) -> None:
    before = len(account.cloud.calls("GetCallerIdentity"))
    account.cloud.add_faults({"action": "GetCallerIdentity", "code": "RequestLimitExceeded", "status": 503})
    assert providers.open("aws", account.computer.settings()).account() == "123456789012"
    assert len(account.cloud.calls("GetCallerIdentity")) - before == 2


@pytest.mark.parametrize(
    ("code", "status", "family"),
    [
        # docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html, as far as our calls can meet them
        ("AuthFailure", 401, NoCredentials),
        ("InvalidClientTokenId", 403, NoCredentials),
        ("ExpiredToken", 403, NoCredentials),
        ("RequestExpired", 400, NoCredentials),
        ("SignatureDoesNotMatch", 403, NoCredentials),
        ("MissingAuthenticationToken", 403, NoCredentials),
        ("InsufficientInstanceCapacity", 500, NoCapacity),
        ("InsufficientHostCapacity", 500, NoCapacity),
        ("InstanceLimitExceeded", 400, NoCapacity),
        ("VcpuLimitExceeded", 400, NoCapacity),
        ("Unsupported", 400, NoCapacity),
        ("UnauthorizedOperation", 403, NotPermitted),
        ("OptInRequired", 403, NotPermitted),
        ("Blocked", 403, NotPermitted),
        ("PendingVerification", 400, NotPermitted),
        ("IdempotentParameterMismatch", 400, TokenSpent),
        ("IdempotentInstanceTerminated", 400, TokenSpent),
        ("IncorrectInstanceState", 400, StateError),
        ("RequestLimitExceeded", 503, VendorUnreachable),
        ("EC2ThrottledException", 503, VendorUnreachable),
        ("InternalError", 500, VendorUnreachable),
        ("ServiceUnavailable", 503, VendorUnreachable),
        ("Unavailable", 503, VendorUnreachable),
        ("SomethingNobodyHasHeardOf", 500, VendorUnreachable),  # a 5xx leaves open whether it was done
        ("SomethingNobodyHasHeardOf", 400, ProviderError),
        ("InvalidAMIID.NotFound", 400, ProviderError),
        ("InvalidParameterValue", 400, ProviderError),
        ("DryRunOperation", 412, ProviderError),
    ],
)
def test_every_code_of_ec2s_has_its_family_and_keeps_the_original(
    account: Account, launchable: Any, code: str, status: int, family: type[GpuopsError]
) -> None:
    account.cloud.add_faults({"action": "RunInstances", "code": code, "status": status, "message": "In its own words."})
    with pytest.raises(GpuopsError) as raised:
        account.provider.launch(launchable, account.token())
    assert type(raised.value) is family
    assert code in raised.value.what
    assert "In its own words" in raised.value.what
    assert isinstance(raised.value.__cause__, botocore.exceptions.ClientError)
    if family in {NoCredentials, NotPermitted, VendorUnreachable}:
        assert raised.value.next_step
    if family is NoCredentials:
        for way in ("AWS_PROFILE", "aws sso login", "AWS_ACCESS_KEY_ID"):
            assert way in raised.value.next_step


_launchable: list[Any] = []


@pytest.fixture
def launchable(account: Account) -> Any:
    """Something to launch that is prepared once: these tests are about the answer."""
    if not _launchable:
        _launchable.append(account.prepared())
    return _launchable[0]


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


def test_this_computers_address_is_what_the_service_says_it_is(address_service: str) -> None:
    assert firewall.admitted_block("auto", checkip_url=address_service) == "203.0.113.7/32"


def test_a_service_that_says_no_address_or_nothing_leads_to_the_option(
    address_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Address, "says", b"<html>Sign in to the hotel's network</html>")
    for url in (address_service, "http://127.0.0.1:9"):
        with pytest.raises(VendorUnreachable) as raised:
            firewall.admitted_block("auto", checkip_url=url)
        assert "--admit" in raised.value.next_step


@pytest.mark.parametrize("whole_world", ["0.0.0.0/0", "::/0", "my office", "300.1.1.1"])
def test_no_block_that_is_none_or_admits_the_whole_world(whole_world: str) -> None:
    with pytest.raises(BadSetting):
        firewall.admitted_block(whole_world)


@pytest.mark.parametrize(("given", "block"), [("203.0.113.7", "203.0.113.7/32"), ("2001:db8::1", "2001:db8::1/128")])
def test_an_address_is_a_block_of_one(given: str, block: str) -> None:
    assert firewall.admitted_block(given) == block


def rules(cloud: Cloud, region: str) -> dict[tuple[str, int], str]:
    """What the firewall lets in: (block, port) and whose rule it is."""
    ec2 = cloud.client(region=region)
    [group] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["gpuops"]}])["SecurityGroups"]
    found = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group["GroupId"]]}])
    return {
        (rule.get("CidrIpv4") or rule["CidrIpv6"], rule["FromPort"]): rule.get("Description", "")
        for rule in found["SecurityGroupRules"]
        if not rule["IsEgress"]
    }


def ensure(cloud: Cloud, region: str, computer: str, block: str) -> None:
    firewall.ensure(cloud.client(region=region), region=region, computer=computer, block=block, port=22)


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


def test_ipv6_is_admitted_as_such(the_cloud: Cloud) -> None:
    ensure(the_cloud, "eu-west-2", "mine", "2001:db8::1/128")
    assert rules(the_cloud, "eu-west-2") == {("2001:db8::1/128", 22): "gpuops mine"}


def test_of_two_computers_behind_one_address_one_can_move_and_the_other_gets_in_again(the_cloud: Cloud) -> None:
    """EC2 keeps one rule for an address and a port, and it bears one computer's name."""
    region = "ca-central-1"
    for computer in ("mine", "other"):
        ensure(the_cloud, region, computer, "203.0.113.7/32")
    ensure(the_cloud, region, "mine", "203.0.113.99/32")
    ensure(the_cloud, region, "other", "203.0.113.7/32")
    assert set(rules(the_cloud, region)) == {("203.0.113.7/32", 22), ("203.0.113.99/32", 22)}


def test_an_up_from_another_address_moves_this_computers_rule_to_it(the_cloud: Cloud, computer: Computer) -> None:
    """The laptop went home: the machine that runs or is started must be reached from there."""
    computer.has_machine(State.STOPPED, region=FAR, admit="127.0.0.0/8")
    assert ("127.0.0.0/8", 2222) in rules(the_cloud, FAR)
    computer.up(region=FAR, admit="127.0.0.1/32")
    assert ("127.0.0.1/32", 2222) in rules(the_cloud, FAR)
    assert ("127.0.0.0/8", 2222) not in rules(the_cloud, FAR)
