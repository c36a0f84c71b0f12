"""What a launch needs of AWS is looked into without changing anything, and the policy suffices for all that is done."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore import xform_name

from gpuops import providers
from gpuops.errors import StateError
from gpuops.machine import Finding, State
from gpuops.providers.aws import Aws, doctor, permissions
from gpuops.providers.aws.clients import Clients
from tests.computers import Cloud, Computer
from tests.providers.conftest import Account

NAMES = ["credentials", "clock", "region", "permissions", "network", "image", "quota", "launch"]
CHANGING = (
    *("RunInstances", "StartInstances", "StopInstances", "TerminateInstances", "CreateTags", "CreateSecurityGroup"),
    *("AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress", "DeleteSecurityGroup"),
)


def looked_into(account: Account, **changes: object) -> dict[str, Finding]:
    findings = account.provider.check(account.wish(**changes))
    return {finding.name: finding for finding in findings}


def world(cloud: Cloud) -> Any:
    """Everything of ours in the account, as EC2 describes it."""
    ec2 = cloud.client()
    wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
    groups = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    machines = [(i["InstanceId"], i["State"]["Name"], sorted(map(str, i["Tags"]))) for i in cloud.instances()]
    return groups, sorted(machines)


def test_where_all_is_well_everything_is_looked_into(account: Account) -> None:
    found = looked_into(account)
    assert list(found) == NAMES
    assert [finding for finding in found.values() if not finding.is_well] == []
    assert "123456789012" in found["credentials"].found
    assert "arn:" not in found["credentials"].found
    assert "g4dn.xlarge" in found["image"].found
    assert "8 vCPUs; a g4dn.xlarge needs 4" in found["quota"].found


def test_looking_changes_nothing(account: Account) -> None:
    account.running()
    before = world(account.cloud)
    found = looked_into(account)
    assert world(account.cloud) == before
    # With a machine and a firewall of ours to ask about, every permission but these can be tried.
    untried = found["permissions"].found.partition("to be seen when they are used: ")[2]
    assert set(untried.split(", ")) == {*("ec2:CreateSecurityGroup", "ec2-instance-connect:SendSSHPublicKey")}


def test_without_credentials_that_is_said_with_its_mend_and_nothing_more_is_asked(account: Account) -> None:
    account.cloud.add_faults({"action": "GetCallerIdentity", "code": "InvalidClientTokenId", "status": 403})
    found = looked_into(account)
    assert list(found) == NAMES[:2]
    assert not found["credentials"].is_well
    assert "aws configure" in found["credentials"].mend


@pytest.mark.parametrize(
    ("off", "how"), [(timedelta(minutes=7), "7 minutes ahead"), (-timedelta(hours=1), "60 minutes behind")]
)
def test_a_clock_that_aws_would_not_accept_is_noticed(off: timedelta, how: str) -> None:
    now = datetime.now(timezone.utc)
    with pytest.raises(StateError, match=how) as raised:
        doctor.clock(now, now + off)
    assert "timedatectl" in raised.value.next_step
    assert doctor.clock(now, now + timedelta(minutes=4))


def test_the_clock_is_looked_at_by_awss_own_answer(account: Account) -> None:
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    aws = Aws(account.computer.settings())
    found = {f.name: f for f in doctor.check(aws, Clients("us-west-2"), account.wish(), now=tomorrow)}
    assert not found["clock"].is_well
    assert "1440 minutes ahead" in found["clock"].found


@pytest.mark.parametrize("action", ["ec2:DescribeImages", "ec2:StopInstances", "ec2:AuthorizeSecurityGroupIngress"])
def test_a_permission_that_is_missing_is_named(account: Account, action: str) -> None:
    account.running()
    operation = action.partition(":")[2]
    account.cloud.add_faults(
        {"action": operation, "code": "UnauthorizedOperation", "status": 403, "match": {"DryRun": "true"}, "times": 9}
    )
    found = looked_into(account)["permissions"]
    assert not found.is_well
    assert f"not {action}" in found.found
    assert "policy" in found.mend


def test_a_permission_that_can_be_done_without_is_named_and_no_harm(account: Account) -> None:
    account.cloud.add_faults({"action": "GetProducts", "code": "AccessDeniedException", "times": -1})
    found = looked_into(account)["permissions"]
    assert found.is_well
    assert "not pricing:GetProducts" in found.found


def test_a_quota_that_has_no_room_is_unwell_and_comes_with_the_request(account: Account) -> None:
    found = looked_into(account, types="g4dn.4xlarge")["quota"]  # 16 vCPUs, and the account has 8
    assert not found.is_well
    assert "--quota-code L-DB2E81BA --desired-value 24" in found.mend
    # One type that there's room for is enough.
    assert looked_into(account, types="g4dn.4xlarge,p2.xlarge")["quota"].is_well


def test_a_quota_that_may_not_be_read_is_no_harm(account: Account) -> None:
    account.cloud.add_faults({"action": "GetServiceQuota", "code": "AccessDeniedException", "times": -1})
    found = looked_into(account)["quota"]
    assert found.is_well
    assert "unknown size" in found.found


def test_what_cannot_be_launched_is_unwell_with_what_to_do_instead(account: Account) -> None:
    found = looked_into(account, image="ami-00000000000000000")
    assert not found["image"].is_well
    assert found["image"].mend
    assert "not tried" in found["launch"].found


def test_a_launch_that_would_be_refused_is_told_as_one(account: Account) -> None:
    account.cloud.add_faults({"action": "RunInstances", "code": "UnauthorizedOperation", "status": 403})
    found = looked_into(account)["launch"]
    assert not found.is_well
    assert "ec2:RunInstances is not permitted" in found.found


@pytest.mark.parametrize(
    ("action", "code"), [("GetCallerIdentity", "InvalidClientTokenId"), ("DescribeRegions", "AuthFailure")]
)
def test_a_region_that_is_not_enabled_is_unwell_with_the_command_that_enables_it(
    account: Account, action: str, code: str
) -> None:
    """AWS answers as if it didn't know who is asking."""
    region = "ap-east-1"
    account.cloud.add_faults({"action": action, "code": code, "status": 403, "region": region, "times": -1})
    found = looked_into(account, region=region)
    assert "credentials" not in found or found["credentials"].is_well
    assert not found["region"].is_well
    assert "aws account enable-region --region-name ap-east-1" in found["region"].mend


def granted(policy: str) -> set[str]:
    return {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}


def test_the_policy_permits_every_call_that_gpuops_makes_and_no_more_than_it_lists(account: Account) -> None:
    provider, computer = account.provider, account.computer
    region, began = "us-east-2", time.time()  # no other test has a firewall there, so that it has to be made
    provider.account()
    provider.catalogue(account.wish())
    provider.check(account.wish())
    machine = computer.up(types="g4dn.xlarge", region=region)
    computer.status()
    provider.seen_host_keys(machine)
    provider.introduce(machine, client_key=computer.client_key)
    computer.down()
    computer.up(region=region, admit="127.0.0.0/8")  # this computer has moved
    provider.terminate(machine)
    account.wait(machine, State.TERMINATED)
    provider.sweep()
    ours = [call for call in account.cloud.http("GET", "/gpuops/calls") if call["time"] >= began]
    called = {f"{call['service']}:{call['action']}" for call in ours}
    assert {f"ec2:{operation}" for operation in CHANGING} <= called  # or this test would look at nothing
    assert called - granted(provider.policy()) - permissions.NEEDS_NONE == set()
    assert granted(provider.policy()) == set(permissions.ACTIONS) - permissions.NEEDS_NONE


def test_every_permission_is_of_a_call_that_there_is(the_cloud: Cloud) -> None:
    services = {"servicequotas": "service-quotas"}
    for action in permissions.ACTIONS:
        service, _, operation = action.partition(":")
        client = the_cloud.client(services.get(service, service))
        assert callable(getattr(client, xform_name(operation))), action
    assert set(permissions.ACTIONS) >= permissions.DISPENSABLE


def test_a_call_that_the_policy_does_not_permit_cannot_be_made(the_cloud: Cloud) -> None:
    ec2 = Clients("us-west-2").ec2("us-west-2")
    wanted = {permissions.operation(action) for action in permissions.ACTIONS if action.startswith("ec2:")}
    assert set(ec2.meta.method_to_api_mapping.values()) == wanted
    assert "DeleteVpc" in the_cloud.client().meta.method_to_api_mapping.values()


def test_the_policy_lets_machines_be_changed_that_bear_our_name_only(account: Account) -> None:
    for statement in json.loads(account.provider.policy())["Statement"]:
        if {"ec2:TerminateInstances", "ec2:StopInstances"} & set(statement["Action"]):
            assert statement["Condition"] == {"Null": {"aws:ResourceTag/gpuops:name": "false"}}
            assert statement["Resource"] == ["arn:aws:ec2:*:*:instance/*"]
    assert "arn:aws-cn:ec2" in permissions.policy("aws-cn")


def test_of_parameters_the_policy_lets_awss_own_be_read_only(account: Account) -> None:
    [statement] = [s for s in json.loads(account.provider.policy())["Statement"] if "ssm:GetParameter" in s["Action"]]
    assert statement["Resource"] == ["arn:aws:ssm:*::parameter/aws/service/deeplearning/*"]
    # What is tried is of those too, or a person with this policy would be told that it isn't enough.
    below = {"Name": "/aws/service/deeplearning/"}
    account.cloud.add_faults({"action": "GetParameter", "code": "AccessDeniedException", "match": below, "times": -1})
    assert "not ssm:GetParameter" in looked_into(account)["permissions"].found


def test_the_policy_lets_disks_and_firewalls_be_labelled_only_while_they_are_made(account: Account) -> None:
    tagging = [s for s in json.loads(account.provider.policy())["Statement"] if "ec2:CreateTags" in s["Action"]]
    whenever = [kind for s in tagging if "StringEquals" not in s["Condition"] for kind in s["Resource"]]
    assert whenever == ["arn:aws:ec2:*:*:instance/*"]
    [made] = [s for s in tagging if "StringEquals" in s["Condition"]]
    assert made["Condition"]["StringEquals"] == {"ec2:CreateAction": ["RunInstances", "CreateSecurityGroup"]}
    assert set(made["Resource"]) == {f"arn:aws:ec2:*:*:{kind}/*" for kind in ("security-group", "volume")}
    assert all(s["Condition"]["ForAllValues:StringLike"] for s in tagging)


def test_without_any_credentials_the_doctor_says_so(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    provider = providers.open("aws", computer.settings())
    [found] = provider.check(computer.settings().wish())
    assert not found.is_well
    assert "AWS_PROFILE" in found.mend
