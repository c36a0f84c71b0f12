"""VPCs, subnets, groups and interfaces as on EC2, and what a launch gets of them."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import pytest

from .conftest import Rig, refused, until

ALONE = "eu-west-3"  # where no other test launches: its default VPC goes and comes


def default_vpc(client: Any) -> str:
    [vpc] = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    return str(vpc["VpcId"])


def routes_out(client: Any, vpc_id: str) -> list[str]:
    """The gateways of the VPC's routes to everywhere."""
    tables = client.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["RouteTables"]
    routes = [route for table in tables for route in table["Routes"]]
    return [route["GatewayId"] for route in routes if route["DestinationCidrBlock"] == "0.0.0.0/0"]


def new_group(rig: Rig, vpc_id: str = "") -> str:
    vpc = {"VpcId": vpc_id} if vpc_id else {}
    group = rig.client().create_security_group(GroupName=f"group-{uuid.uuid4().hex}", Description="ssh", **vpc)
    return str(group["GroupId"])


@pytest.fixture
def private_subnet(rig: Rig) -> dict[str, Any]:
    """A subnet of a VPC that somebody made: no way out, no public addresses."""
    zone = {"AvailabilityZone": "us-east-1a"}
    vpc_id = rig.client().create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    return dict(rig.client().create_subnet(VpcId=vpc_id, CidrBlock="10.9.1.0/24", **zone)["Subnet"])


def test_a_default_vpc_has_a_way_out_and_one_that_somebody_made_has_none(
    rig: Rig, private_subnet: dict[str, Any]
) -> None:
    [gateway_id] = routes_out(rig.client(), default_vpc(rig.client()))
    [gateway] = rig.client().describe_internet_gateways(InternetGatewayIds=[gateway_id])["InternetGateways"]
    assert gateway["Attachments"][0]["VpcId"] == default_vpc(rig.client())
    assert routes_out(rig.client(), private_subnet["VpcId"]) == []


def test_without_a_default_vpc_nothing_can_be_left_open(rig: Rig) -> None:
    client = rig.client(region=ALONE)
    request = rig.request(ImageId=rig.image(ALONE))
    vpc_id = default_vpc(client)
    for subnet in client.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["Subnets"]:
        client.delete_subnet(SubnetId=subnet["SubnetId"])
    assert refused(client.run_instances, **request, DryRun=True) == "MissingInput"
    client.delete_vpc(VpcId=vpc_id)
    assert client.describe_vpcs()["Vpcs"] == []
    assert refused(client.run_instances, **request) == "VPCIdNotSpecified"
    assert refused(client.create_security_group, GroupName="any", Description="ssh") == "VPCIdNotSpecified"
    client.create_default_vpc()
    assert routes_out(client, default_vpc(client))
    assert refused(client.run_instances, **request, DryRun=True) == "DryRunOperation"


def test_a_launch_that_says_nothing_of_networks_gets_the_default_subnet_and_group_of_its_zone(rig: Rig) -> None:
    zone = {"AvailabilityZone": "us-east-1b"}
    instance = rig.running(Placement=zone)
    [subnet] = rig.client().describe_subnets(SubnetIds=[instance["SubnetId"]])["Subnets"]
    assert (subnet["AvailabilityZone"], subnet["DefaultForAz"]) == ("us-east-1b", True)
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert instance["VpcId"] == default_vpc(rig.client())
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["default"]
    network = ipaddress.ip_network(subnet["CidrBlock"])
    assert ipaddress.ip_address(instance["PrivateIpAddress"]) in network


@pytest.mark.parametrize("public", [True, False, None])
def test_an_interface_has_a_public_address_only_where_that_is_asked_for_or_the_subnets_own_way(
    rig: Rig, private_subnet: dict[str, Any], public: bool | None
) -> None:
    group_id = new_group(rig, private_subnet["VpcId"])
    interface = {"DeviceIndex": 0, "SubnetId": private_subnet["SubnetId"], "Groups": [group_id]}
    if public is not None:
        interface["AssociatePublicIpAddress"] = public
    instance = rig.running(NetworkInterfaces=[interface])
    assert ("PublicIpAddress" in instance) is (public is True)
    assert instance["SubnetId"] == private_subnet["SubnetId"]
    assert instance["Placement"]["AvailabilityZone"] == private_subnet["AvailabilityZone"]
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [group_id]
    # Without a public address nobody reaches it, and all the same it has booted and is well.
    instance_id = instance["InstanceId"]
    until(lambda: "login:" in rig.console(instance_id), "a boot")
    rig.client().stop_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "stopped")
    rig.client().start_instances(InstanceIds=[instance_id])
    again = rig.wait(instance_id, "running")
    assert ("PublicIpAddress" in again) is (public is True)
    assert public is not True or again["PublicIpAddress"] != instance["PublicIpAddress"]


def test_a_default_subnet_gives_a_public_address_unless_the_launch_forbids_it(rig: Rig) -> None:
    subnet_id = rig.describe(rig.launch())["SubnetId"]
    interface = {"DeviceIndex": 0, "SubnetId": subnet_id}
    assert "PublicIpAddress" in rig.running(SubnetId=subnet_id)
    assert "PublicIpAddress" in rig.running(NetworkInterfaces=[interface])
    assert "PublicIpAddress" not in rig.running(NetworkInterfaces=[{**interface, "AssociatePublicIpAddress": False}])


def test_groups_and_subnets_that_do_not_fit_are_refused(rig: Rig, private_subnet: dict[str, Any]) -> None:
    group_id = new_group(rig)
    elsewhere = rig.request(SubnetId=private_subnet["SubnetId"], SecurityGroupIds=[group_id])
    assert refused(rig.client().run_instances, **elsewhere) == "InvalidParameter"
    unknown = rig.request(SecurityGroups=["no-such-group"])
    assert refused(rig.client().run_instances, **unknown) == "InvalidGroup.NotFound"
    interface = {"DeviceIndex": 0, "SubnetId": rig.describe(rig.launch())["SubnetId"]}
    both = rig.request(NetworkInterfaces=[interface], SecurityGroupIds=[group_id])
    assert refused(rig.client().run_instances, **both) == "InvalidParameterCombination"


@pytest.mark.parametrize("by_interface", [True, False])
def test_a_group_cannot_be_deleted_while_an_instance_is_in_it(rig: Rig, by_interface: bool) -> None:
    group_id = new_group(rig)
    within = {"Groups": [group_id], "DeviceIndex": 0}
    parameters = {"NetworkInterfaces": [within]} if by_interface else {"SecurityGroupIds": [group_id]}
    instance_id = rig.running(**parameters)["InstanceId"]
    assert refused(rig.client().delete_security_group, GroupId=group_id) == "DependencyViolation"
    rig.client().stop_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "stopped")
    assert refused(rig.client().delete_security_group, GroupId=group_id) == "DependencyViolation"
    rig.client().terminate_instances(InstanceIds=[instance_id])
    rig.wait(instance_id, "terminated")
    rig.client().delete_security_group(GroupId=group_id)
    assert refused(rig.client().delete_security_group, GroupId=group_id) == "InvalidGroup.NotFound"


def test_an_instance_can_change_groups_and_the_old_one_is_free(rig: Rig) -> None:
    old, new = new_group(rig), new_group(rig)
    instance_id = rig.launch(SecurityGroupIds=[old])
    rig.client().modify_instance_attribute(InstanceId=instance_id, Groups=[new])
    assert [group["GroupId"] for group in rig.describe(instance_id)["SecurityGroups"]] == [new]
    rig.client().delete_security_group(GroupId=old)
    assert refused(rig.client().delete_security_group, GroupId=new) == "DependencyViolation"


def test_a_rule_is_the_same_whatever_its_description_says(rig: Rig) -> None:
    """Two computers behind one router have one address: the second finds its rule there already."""
    client, group_id = rig.client(), new_group(rig)

    def rule(description: str, **source: str) -> dict[str, Any]:
        key = "IpRanges" if "CidrIp" in source else "Ipv6Ranges"
        return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, key: [{**source, "Description": description}]}

    def authorize(permission: dict[str, Any]) -> list[dict[str, Any]]:
        answer = client.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
        return list(answer["SecurityGroupRules"])

    [first] = authorize(rule("laptop", CidrIp="192.0.2.7/32"))
    [_second] = authorize(rule("laptop", CidrIpv6="2001:db8::7/128"))
    again = {"GroupId": group_id, "IpPermissions": [rule("desktop", CidrIp="192.0.2.7/32")]}
    assert refused(client.authorize_security_group_ingress, **again) == "InvalidPermission.Duplicate"
    wrong = {"GroupId": group_id, "IpPermissions": [rule("Ann's laptop", CidrIp="192.0.2.8/32")]}
    assert refused(client.authorize_security_group_ingress, **wrong) == "InvalidParameterValue"
    client.revoke_security_group_ingress(GroupId=group_id, SecurityGroupRuleIds=[first["SecurityGroupRuleId"]])
    filters = [{"Name": "group-id", "Values": [group_id]}]
    rules = client.describe_security_group_rules(Filters=filters)["SecurityGroupRules"]
    assert [r["CidrIpv6"] for r in rules if not r["IsEgress"]] == ["2001:db8::7/128"]
    gone = {"GroupId": group_id, "SecurityGroupRuleIds": [first["SecurityGroupRuleId"]]}
    assert refused(client.revoke_security_group_ingress, **gone) == "InvalidSecurityGroupRuleId.NotFound"
