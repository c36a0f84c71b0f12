"""The security group: ssh from the addresses where our computers are now, and from nowhere else.

A rule bears the ids of the computers that need it, so that each can move without locking another out: EC2 keeps one
rule for an address and a port, and two computers behind one address share it.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpuops.errors import BadSetting, ProviderError, VendorUnreachable
from gpuops.machine import FORMAT
from gpuops.providers.aws.permissions import FIREWALL_TAG
from gpuops.providers.aws.refusals import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef, IpPermissionTypeDef, SecurityGroupRuleTypeDef

GROUP = "gpuops"
CHECKIP_URL = "https://checkip.amazonaws.com"

OURS: Sequence[FilterTypeDef] = (
    {"Name": "group-name", "Values": [GROUP]},
    {"Name": "tag-key", "Values": [FIREWALL_TAG]},
)
"""The groups that we made."""

_PREFIX = f"{GROUP} "  # what a rule's description begins with, before the computers' ids
_DESCRIPTION_LIMIT = 255  # EC2's, in characters


def admitted_block(admit: str, *, checkip_url: str = CHECKIP_URL) -> str:
    """The address block that may reach ssh, for example 203.0.113.7/32.

    `admit` is such a block, or an http(s) URL that answers with this computer's address; "auto" asks AWS. Raises
    `BadSetting` for what is no address block, or admits the whole world; `VendorUnreachable` where nobody answers.
    """
    url = checkip_url if admit == "auto" else admit if admit.startswith(("https://", "http://")) else ""
    try:
        block = ipaddress.ip_network(_seen_from(url) if url else admit, strict=False)
    except ValueError as error:
        raise BadSetting(
            f"--admit {admit!r} is not an address block.", next_step="For example: 203.0.113.7/32"
        ) from error
    if block.prefixlen == 0:
        raise BadSetting("--admit would let the whole world reach ssh.", next_step="For example: 203.0.113.7/32")
    return str(block)


def ensure(ec2: EC2Client, *, vpc_id: str, computer: str, block: str, port: int) -> str:
    """The id of our group in the VPC, made if need be, with ssh open to this computer at `block`. Idempotent."""
    group_id = _group(ec2, vpc_id)
    let_in(ec2, group_id, computer=computer, block=block, port=port)
    return group_id


def group_of(ec2: EC2Client, instance_id: str) -> str:
    """The id of our group that the machine is behind, or "".

    A machine that was there before gpuops has a firewall of its own, which is not ours to change. One that is so new
    that EC2 doesn't show it everywhere was let in to when it was launched.
    """
    try:
        with translated(f"describe {instance_id}"):
            reservations = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    except ProviderError as error:
        if code_of(error) != "InvalidInstanceID.NotFound":
            raise
        return ""
    groups = reservations[0]["Instances"][0].get("SecurityGroups", [])
    return next((group["GroupId"] for group in groups if group.get("GroupName") == GROUP), "")


def let_in(ec2: EC2Client, group_id: str, *, computer: str, block: str, port: int) -> None:
    """Open ssh to this computer at `block`, and close it at its former address. Idempotent."""
    with translated("read the firewall's rules"):
        answer = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group_id]}])
    rules = [rule for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]]
    there = next((rule for rule in rules if _shape(rule) == ("tcp", port, port, block)), None)
    if there is None:
        _authorize(ec2, group_id, permission(block, port, [computer]))
    # A rule that somebody else made lets us in as well, and stays as it is.
    elif (sharers := _computers(there)) and computer not in sharers:
        _describe(ec2, group_id, there, [*sharers, computer])
    # Those of this address stay, whatever their port: another machine may listen on another.
    for left in (rule for rule in rules if computer in _computers(rule) and _block(rule) != block):
        if others := [other for other in _computers(left) if other != computer]:
            _describe(ec2, group_id, left, others)
        else:
            with translated("close ssh for this computer's former address"):
                ec2.revoke_security_group_ingress(GroupId=group_id, SecurityGroupRuleIds=[left["SecurityGroupRuleId"]])


def remove(ec2: EC2Client) -> list[str]:
    """Delete the groups of the region that we made and nothing uses; returns their ids."""
    with translated("look for firewalls (security groups)"):
        found = ec2.describe_security_groups(Filters=OURS)["SecurityGroups"]
    return [group["GroupId"] for group in found if _delete(ec2, group["GroupId"])]


def _seen_from(url: str) -> str:
    """The address that this computer has, as whoever answers there sees it."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            address: str = answer.read(64).decode("ascii").strip()
        ipaddress.ip_address(address)
    except (OSError, ValueError) as error:
        raise VendorUnreachable(
            f"This computer's public address could not be found out from {url}: {error}",
            next_step="Name it yourself: gpuops up --admit 203.0.113.7/32",
        ) from error
    return address


def _group(ec2: EC2Client, vpc_id: str) -> str:
    wanted = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc_id]}]
    with translated("look for the firewall (security group)"):
        found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]  # type: ignore[arg-type]
    if found:
        return found[0]["GroupId"]
    try:
        with translated("make the firewall (security group)"):
            return ec2.create_security_group(
                GroupName=GROUP,
                Description="gpuops: ssh from the computers that use it",
                VpcId=vpc_id,
                TagSpecifications=[
                    {"ResourceType": "security-group", "Tags": [{"Key": FIREWALL_TAG, "Value": str(FORMAT)}]}
                ],
            )["GroupId"]
    except ProviderError as error:
        if code_of(error) != "InvalidGroup.Duplicate":  # another computer was quicker
            raise
        return _group(ec2, vpc_id)


def _authorize(ec2: EC2Client, group_id: str, permission: IpPermissionTypeDef) -> None:
    try:
        with translated("open ssh for this computer"):
            ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
    except ProviderError as error:
        # Another computer behind the same address has made this very rule meanwhile.
        if code_of(error) != "InvalidPermission.Duplicate":
            raise


def _describe(ec2: EC2Client, group_id: str, rule: SecurityGroupRuleTypeDef, computers: Iterable[str]) -> None:
    """Write down who needs the rule. Whom there's no room for is let in by it all the same."""
    if len(_description(computers)) <= _DESCRIPTION_LIMIT:
        with translated("note who uses a rule of the firewall"):
            ec2.update_security_group_rule_descriptions_ingress(
                GroupId=group_id, IpPermissions=[permission(_block(rule), rule["FromPort"], computers)]
            )


def _delete(ec2: EC2Client, group_id: str) -> bool:
    """Whether it was there and is gone: a group that something uses stays."""
    try:
        with translated("delete the firewall (security group)"):
            ec2.delete_security_group(GroupId=group_id)
    except ProviderError as error:
        if code_of(error) in {"DependencyViolation", "InvalidGroup.InUse", "InvalidGroup.NotFound"}:
            return False
        raise
    return True


def permission(block: str, port: int, computers: Iterable[str]) -> IpPermissionTypeDef:
    permission: IpPermissionTypeDef = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
    if ":" in block:
        permission["Ipv6Ranges"] = [{"CidrIpv6": block, "Description": _description(computers)}]
    else:
        permission["IpRanges"] = [{"CidrIp": block, "Description": _description(computers)}]
    return permission


def _description(computers: Iterable[str]) -> str:
    return _PREFIX + " ".join(computers)


def _computers(rule: SecurityGroupRuleTypeDef) -> list[str]:
    """Who needs the rule; nobody that we know of, if it isn't one of ours."""
    description = rule.get("Description", "")
    return description.removeprefix(_PREFIX).split() if description.startswith(_PREFIX) else []


def _block(rule: SecurityGroupRuleTypeDef) -> str:
    return rule.get("CidrIpv4") or rule.get("CidrIpv6") or ""


def _shape(rule: SecurityGroupRuleTypeDef) -> tuple[str, int, int, str]:
    return (rule["IpProtocol"], rule.get("FromPort", -1), rule.get("ToPort", -1), _block(rule))
