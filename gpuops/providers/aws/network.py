"""Which network a machine comes into, and whether it can be reached there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuops.errors import NoNetwork, NotPermitted, ProviderError
from gpuops.machine import Wish
from gpuops.providers.aws.refusals import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef, RouteTableTypeDef, SubnetTypeDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`subnets` by zone, those with a way out only."""

    is_default: bool
    subnets: Mapping[str, str]


def find(ec2: EC2Client, wish: Wish) -> Network:
    """The default VPC, or the wished VPC or subnet. Raises `NoNetwork` where it is missing or has no route out."""
    subnets = _subnets(ec2, wish)
    vpc = subnets[0]["VpcId"]
    tables = _route_tables(ec2, wish.region, vpc)
    ways_out = [subnet for subnet in subnets if tables is None or _leads_out(_table_of(subnet["SubnetId"], tables))]
    if not ways_out:
        raise _no_way_out(wish, vpc, subnets, tables or ())
    by_zone: dict[str, str] = {}
    for subnet in sorted(ways_out, key=lambda subnet: subnet["SubnetId"]):
        by_zone.setdefault(subnet["AvailabilityZone"], subnet["SubnetId"])
    return Network(is_default=not (wish.vpc or wish.subnet), subnets=by_zone)


def vpc_of(ec2: EC2Client, *, region: str, subnet: str) -> str:
    """The id of the subnet's VPC. Raises `NoNetwork`."""
    return _subnet(ec2, region, subnet)["VpcId"]


def _subnets(ec2: EC2Client, wish: Wish) -> Sequence[SubnetTypeDef]:
    if wish.subnet:
        subnet = _subnet(ec2, wish.region, wish.subnet)
        if wish.vpc and subnet["VpcId"] != wish.vpc:
            raise NoNetwork(
                f"{wish.subnet} is not in {wish.vpc} but in {subnet['VpcId']}.",
                left_behind="Nothing was launched.",
                next_step=f"Leave out --vpc, or name that one: gpuops up --vpc {subnet['VpcId']}",
            )
        return [subnet]
    if wish.vpc:
        found = _described(ec2, wish.region, {"Name": "vpc-id", "Values": [wish.vpc]})
        if not found:
            raise NoNetwork(
                f"{wish.region} has no network (VPC) {wish.vpc}, or it has no subnet.",
                left_behind="Nothing was launched.",
                next_step=f"List the subnets: aws ec2 describe-subnets --region {wish.region}",
            )
        return found
    found = _described(ec2, wish.region, {"Name": "default-for-az", "Values": ["true"]})
    if not found:
        vpc = _default_vpc(ec2, wish.region)
        raise NoNetwork(
            f"The account's default network ({vpc}) in {wish.region} has no default subnet.",
            left_behind="Nothing was launched.",
            next_step=f"Make one: aws ec2 create-default-subnet --region {wish.region} "
            f"--availability-zone {wish.region}a; or name another network with --vpc or --subnet.",
        )
    return found


def _default_vpc(ec2: EC2Client, region: str) -> str:
    with translated("list the networks (VPCs)", region=region):
        vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise NoNetwork(
            f"The account has no default network (VPC) in {region}.",
            left_behind="Nothing was launched.",
            next_step=f"Make one: aws ec2 create-default-vpc --region {region}; or name one with --vpc or --subnet.",
        )
    return vpcs[0]["VpcId"]


def _subnet(ec2: EC2Client, region: str, subnet: str) -> SubnetTypeDef:
    try:
        with translated(f"describe the subnet {subnet}", region=region):
            return ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]
    except ProviderError as error:
        if not code_of(error).startswith("InvalidSubnetID"):
            raise
        raise NoNetwork(
            f"There is no subnet {subnet} in {region}.",
            left_behind="Nothing was launched.",
            next_step=f"List the subnets: aws ec2 describe-subnets --region {region}",
        ) from error


def _described(ec2: EC2Client, region: str, which: FilterTypeDef) -> Sequence[SubnetTypeDef]:
    with translated("list the subnets", region=region):
        pages = ec2.get_paginator("describe_subnets").paginate(Filters=[which])
        return [subnet for page in pages for subnet in page["Subnets"]]


def _route_tables(ec2: EC2Client, region: str, vpc: str) -> Sequence[RouteTableTypeDef] | None:
    """None where we may not look: then the launch is tried."""
    try:
        with translated("read the network's routes", region=region):
            pages = ec2.get_paginator("describe_route_tables").paginate(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
            return [table for page in pages for table in page["RouteTables"]]
    except NotPermitted:
        return None


def _table_of(subnet: str, tables: Sequence[RouteTableTypeDef]) -> RouteTableTypeDef | None:
    """The subnet's own route table, or its VPC's main one."""
    own, main = None, None
    for table in tables:
        for association in table.get("Associations", ()):
            if association.get("SubnetId") == subnet:
                own = table
            elif association.get("Main"):
                main = table
    return own or main


def _leads_out(table: RouteTableTypeDef | None) -> bool:
    """Whether the internet is reached, and reaches us: ssh comes in by the way on which answers go out."""
    return table is not None and any(
        route.get("DestinationCidrBlock") == "0.0.0.0/0"
        and route.get("GatewayId", "").startswith("igw-")
        and route.get("State") == "active"
        for route in table.get("Routes", ())
    )


def _no_way_out(
    wish: Wish, vpc: str, subnets: Sequence[SubnetTypeDef], tables: Sequence[RouteTableTypeDef]
) -> NoNetwork:
    what = wish.subnet or f"every subnet of {vpc}"
    table = _table_of(subnets[0]["SubnetId"], tables)
    name = table["RouteTableId"] if table else "RTB"
    return NoNetwork(
        f"{what} has no route out: its route table ({name}) leads nowhere from 0.0.0.0/0 by an internet gateway, "
        "so a machine there could not be reached.",
        left_behind="Nothing was launched.",
        next_step=f"Add the route: aws ec2 create-route --region {wish.region} --route-table-id {name} "
        "--destination-cidr-block 0.0.0.0/0 --gateway-id igw-…; or name another --subnet.",
    )
