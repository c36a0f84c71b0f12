"""The security group: ssh from this computer's address, and from nowhere else."""

from __future__ import annotations

import ipaddress
import urllib.request
from typing import TYPE_CHECKING

from gpuops.errors import BadSetting, ProviderError, VendorUnreachable
from gpuops.providers.aws.clients import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import IpPermissionTypeDef

GROUP = "gpuops"
CHECKIP_URL = "https://checkip.amazonaws.com"


def admitted_block(admit: str, *, checkip_url: str = CHECKIP_URL) -> str:
    """The address block that may reach ssh, for example 203.0.113.7/32; "auto" asks AWS how it sees this computer.

    Raises `BadSetting` for what is no address block, or admits the whole world.
    """
    if admit == "auto":
        try:
            with urllib.request.urlopen(checkip_url, timeout=5) as answer:
                admit = answer.read(64).decode("ascii").strip()
            ipaddress.ip_address(admit)
        except (OSError, ValueError) as error:
            raise VendorUnreachable(
                f"This computer's public address could not be found out: {error}",
                next_step="Name it yourself: gpuops up --admit 203.0.113.7/32",
            ) from error
    try:
        block = ipaddress.ip_network(admit, strict=False)
    except ValueError as error:
        raise BadSetting(
            f"--admit {admit!r} is not an address block.", next_step="For example: 203.0.113.7/32"
        ) from error
    if block.prefixlen == 0:
        raise BadSetting("--admit would let the whole world reach ssh.", next_step="For example: 203.0.113.7/32")
    return str(block)


def ensure(ec2: EC2Client, *, region: str, computer: str, block: str, port: int) -> str:
    """The id of our group in the default VPC, with this computer's rule pointing at `block`. Idempotent.

    Every computer has a rule of its own, known by its description, so that two of them don't lock each other out.
    """
    vpc = _default_vpc(ec2, region)
    group_id = _group(ec2, vpc)
    with translated("read the firewall's rules"):
        rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group_id]}])
    description = f"gpuops {computer}"
    ours = [r for r in rules["SecurityGroupRules"] if r.get("Description") == description and not r["IsEgress"]]
    wanted = ("tcp", port, port, block)
    if not any(_shape(dict(rule)) == wanted for rule in ours):
        with translated("open ssh for this computer"):
            _authorize(ec2, group_id, _permission(block, port, description))
    stale = [rule["SecurityGroupRuleId"] for rule in ours if _shape(dict(rule)) != wanted]
    if stale:
        with translated("close ssh for this computer's former address"):
            ec2.revoke_security_group_ingress(GroupId=group_id, SecurityGroupRuleIds=stale)
    return group_id


def _default_vpc(ec2: EC2Client, region: str) -> str:
    with translated("list the networks (VPCs)"):
        vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise ProviderError(
            f"The account has no default network (VPC) in {region}.",
            next_step=f"Make one: aws ec2 create-default-vpc --region {region}",
        )
    return vpcs[0]["VpcId"]


def _group(ec2: EC2Client, vpc: str) -> str:
    wanted = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    with translated("look for the firewall (security group)"):
        found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]  # type: ignore[arg-type]
    if found:
        return found[0]["GroupId"]
    try:
        with translated("make the firewall (security group)"):
            return ec2.create_security_group(
                GroupName=GROUP, Description="gpuops: ssh from the computers that use it", VpcId=vpc
            )["GroupId"]
    except ProviderError as error:
        if code_of(error) != "InvalidGroup.Duplicate":  # another computer was quicker
            raise
        return _group(ec2, vpc)


def _authorize(ec2: EC2Client, group_id: str, permission: IpPermissionTypeDef) -> None:
    try:
        ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
    except ec2.exceptions.ClientError as error:
        # Another computer behind the same address has this very rule already.
        if error.response["Error"]["Code"] != "InvalidPermission.Duplicate":
            raise


def _permission(block: str, port: int, description: str) -> IpPermissionTypeDef:
    permission: IpPermissionTypeDef = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
    if ":" in block:
        permission["Ipv6Ranges"] = [{"CidrIpv6": block, "Description": description}]
    else:
        permission["IpRanges"] = [{"CidrIp": block, "Description": description}]
    return permission


def _shape(rule: dict[str, object]) -> tuple[object, ...]:
    return (rule["IpProtocol"], rule["FromPort"], rule["ToPort"], rule.get("CidrIpv4") or rule.get("CidrIpv6"))
