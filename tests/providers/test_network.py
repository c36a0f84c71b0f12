"""The network that a machine comes into: the default one, or the one that was named, and whether it has a way out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpuops.errors import NoNetwork, NothingOffered
from gpuops.machine import State
from gpuops.providers.aws import network
from tests.computers import Cloud
from tests.providers.conftest import Account

# Where no other test launches: these change the networks there.
REGION = "sa-east-1"
HOLLOWED = "ap-northeast-2"


@dataclass
class OwnNetwork:
    """A VPC that somebody made. `close` takes away everything in it."""

    ec2: Any
    vpc: str
    gateway: str
    subnets: dict[str, str] = field(default_factory=dict)

    @property
    def main_table(self) -> str:
        [table] = self.ec2.describe_route_tables(
            Filters=[{"Name": "vpc-id", "Values": [self.vpc]}, {"Name": "association.main", "Values": ["true"]}]
        )["RouteTables"]
        return str(table["RouteTableId"])

    def add_subnet(self, letter: str) -> str:
        number = len(self.ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])["Subnets"])
        made = self.ec2.create_subnet(
            VpcId=self.vpc, CidrBlock=f"10.9.{number}.0/24", AvailabilityZone=f"{REGION}{letter}"
        )
        return str(made["Subnet"]["SubnetId"])

    def add_route_out(self, table: str) -> None:
        self.ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=self.gateway)

    def add_table_of(self, subnet: str) -> str:
        table = str(self.ec2.create_route_table(VpcId=self.vpc)["RouteTable"]["RouteTableId"])
        self.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
        return table


@pytest.fixture
def own(the_cloud: Cloud) -> OwnNetwork:
    """A VPC with an internet gateway that no route leads to."""
    ec2 = the_cloud.client(region=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    return OwnNetwork(ec2, vpc, gateway)


@pytest.fixture
def default(the_cloud: Cloud) -> Iterator[OwnNetwork]:
    """The region's default VPC, which is made anew afterwards."""
    ec2 = the_cloud.client(region=HOLLOWED)
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    found = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]
    yield OwnNetwork(ec2, vpc["VpcId"], "", {s["AvailabilityZone"][-1]: s["SubnetId"] for s in found})
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    if ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]:
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    ec2.create_default_vpc()


def zones(account: Account, region: str = REGION, **changes: object) -> list[str]:
    return [(offer.zone or "")[-1] for offer in account.provider.offers(account.wish(region=region, **changes))]


def test_a_named_subnet_decides_the_zone_and_the_machine_gets_an_address_there(
    account: Account, own: OwnNetwork
) -> None:
    subnet = own.add_subnet("b")
    own.add_route_out(own.main_table)
    assert zones(account, subnet=subnet) == ["b"]
    prepared = account.prepared(region=REGION, subnet=subnet)
    assert not {"Placement", "SecurityGroupIds", "SubnetId"} & prepared.request.keys()
    account.wait(account.provider.launch(prepared, account.token()), State.RUNNING)
    [instance] = account.cloud.instances(account.name, region=REGION)
    assert (instance["SubnetId"], instance["VpcId"]) == (subnet, own.vpc)
    assert instance["PublicIpAddress"]
    [group] = own.ec2.describe_security_groups(GroupIds=[g["GroupId"] for g in instance["SecurityGroups"]])[
        "SecurityGroups"
    ]
    assert (group["GroupName"], group["VpcId"]) == ("gpuops", own.vpc)


def test_a_rehearsal_is_of_the_named_subnet_too(account: Account, own: OwnNetwork) -> None:
    subnet = own.add_subnet("a")
    own.add_route_out(own.main_table)
    wish = account.wish(region=REGION, subnet=subnet)
    [offer] = account.provider.offers(wish)
    account.provider.rehearse(wish, offer, client_key=account.computer.client_key)
    assert network.vpc_of(own.ec2, region=REGION, subnet=offer.subnet) == own.vpc


def test_of_a_named_vpc_the_subnets_with_a_way_out_are_used(account: Account, own: OwnNetwork) -> None:
    private, public, last = (own.add_subnet(letter) for letter in "abc")
    own.add_route_out(own.main_table)
    own.add_table_of(private)
    own.add_route_out(own.add_table_of(public))
    offers = account.provider.offers(account.wish(region=REGION, vpc=own.vpc))
    assert [(offer.zone, offer.subnet) for offer in offers] == [(f"{REGION}b", public), (f"{REGION}c", last)]


def test_a_subnet_without_a_route_out_is_said_to_have_none_before_anything_is_launched(
    account: Account, own: OwnNetwork
) -> None:
    subnet = own.add_subnet("a")
    with pytest.raises(NoNetwork, match=f"{subnet} has no route out") as raised:
        zones(account, subnet=subnet)
    assert f"aws ec2 create-route --region {REGION} --route-table-id {own.main_table}" in raised.value.next_step
    with pytest.raises(NoNetwork, match=f"every subnet of {own.vpc} has no route out"):
        zones(account, vpc=own.vpc)


def test_by_a_route_that_is_not_to_an_internet_gateway_no_ssh_comes_in(account: Account, own: OwnNetwork) -> None:
    subnet = own.add_subnet("a")
    own.ec2.create_route(
        RouteTableId=own.main_table,
        DestinationCidrBlock="0.0.0.0/0",
        NetworkInterfaceId=own.ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"],
    )
    with pytest.raises(NoNetwork, match="no route out"):
        zones(account, subnet=subnet)


def test_who_may_not_read_routes_is_not_kept_from_launching(account: Account, own: OwnNetwork) -> None:
    subnet = own.add_subnet("a")
    account.cloud.add_faults({"action": "DescribeRouteTables", "code": "UnauthorizedOperation"})
    assert zones(account, subnet=subnet) == ["a"]


def test_a_network_that_is_not_there_is_refused_with_a_command_that_lists_those_that_are(
    account: Account, own: OwnNetwork
) -> None:
    subnet = own.add_subnet("a")
    missing: list[dict[str, object]] = [{"subnet": "subnet-00000000000000000"}, {"vpc": "vpc-00000000000000000"}]
    for changes in missing:
        with pytest.raises(NoNetwork, match="00000000000000000") as raised:
            zones(account, **changes)
        assert "aws ec2 describe-subnets" in raised.value.next_step
    with pytest.raises(NoNetwork, match=f"{subnet} is not in vpc-1"):
        zones(account, subnet=subnet, vpc="vpc-1")


def test_a_subnet_in_a_zone_without_the_type_is_said_to_be_there(account: Account, own: OwnNetwork) -> None:
    subnet = own.add_subnet("c")
    own.add_route_out(own.main_table)
    with pytest.raises(NothingOffered, match=rf"g5\.xlarge is in {REGION}a, {REGION}b only"):
        zones(account, subnet=subnet, types="g5.xlarge")


def test_a_machine_in_the_default_vpc_is_reached_also_where_its_subnets_give_no_addresses(
    account: Account, default: OwnNetwork
) -> None:
    assert zones(account, HOLLOWED) == ["a", "b", "c"]
    for subnet in default.subnets.values():
        default.ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": False})
    machine = account.running(region=HOLLOWED)
    assert machine.zone == f"{HOLLOWED}a"
    assert machine.ssh is not None
    [instance] = account.cloud.instances(account.name, region=HOLLOWED)
    assert (instance["SubnetId"], instance["VpcId"]) == (default.subnets["a"], default.vpc)
    account.provider.terminate(machine)
    account.wait(machine, State.TERMINATED)
    account.provider.tidy(HOLLOWED)  # or the VPC could not be made anew


def test_a_zone_without_a_default_subnet_is_left_out(account: Account, default: OwnNetwork) -> None:
    default.ec2.delete_subnet(SubnetId=default.subnets["a"])
    assert zones(account, HOLLOWED) == ["b", "c"]


def test_a_default_vpc_that_has_lost_its_way_out_is_noticed(account: Account, default: OwnNetwork) -> None:
    default.ec2.delete_route(RouteTableId=default.main_table, DestinationCidrBlock="0.0.0.0/0")
    with pytest.raises(NoNetwork, match="no route out"):
        zones(account, HOLLOWED)


def test_without_a_default_vpc_or_its_subnets_the_command_that_makes_them_is_said(
    account: Account, default: OwnNetwork
) -> None:
    for subnet in default.subnets.values():
        default.ec2.delete_subnet(SubnetId=subnet)
    with pytest.raises(NoNetwork, match="no default subnet") as raised:
        zones(account, HOLLOWED)
    assert f"aws ec2 create-default-subnet --region {HOLLOWED}" in raised.value.next_step
    default.ec2.delete_vpc(VpcId=default.vpc)
    with pytest.raises(NoNetwork, match="no default network") as raised:
        zones(account, HOLLOWED)
    assert f"aws ec2 create-default-vpc --region {HOLLOWED}" in raised.value.next_step
    for alternative in ("--vpc", "--subnet"):
        assert alternative in raised.value.next_step
