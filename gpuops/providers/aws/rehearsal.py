"""Asking EC2 whether it would permit a launch, by calls with DryRun: they change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuops.errors import GpuopsError
from gpuops.machine import FORMAT, Prepared
from gpuops.providers.aws.firewall import GROUP
from gpuops.providers.aws.permissions import FIREWALL_TAG
from gpuops.providers.aws.refusals import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client


def firewall(ec2: EC2Client, *, vpc_id: str, block: str, port: int) -> str:
    """The group that the launch can be rehearsed with: ours, or the VPC's default one where ours isn't made yet.

    Raises what making ours, or opening it for `block`, would be refused with.
    """
    wanted = [{"Name": "group-name", "Values": [GROUP, "default"]}, {"Name": "vpc-id", "Values": [vpc_id]}]
    with translated("look for the firewall (security group)"):
        found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]  # type: ignore[arg-type]
    groups = {group["GroupName"]: group["GroupId"] for group in found}
    if GROUP not in groups:
        tags = [{"ResourceType": "security-group", "Tags": [{"Key": FIREWALL_TAG, "Value": str(FORMAT)}]}]
        _ask(
            "make the firewall (security group)",
            ec2.create_security_group,
            GroupName=GROUP,
            Description=GROUP,
            VpcId=vpc_id,
            TagSpecifications=tags,
        )
        return groups["default"]  # every VPC has it, and it can't be deleted
    ranges = {"Ipv6Ranges": [{"CidrIpv6": block}]} if ":" in block else {"IpRanges": [{"CidrIp": block}]}
    rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **ranges}
    _ask(
        "open ssh for this computer",
        ec2.authorize_security_group_ingress,
        GroupId=groups[GROUP],
        IpPermissions=[rule],
    )
    return groups[GROUP]


def launch(ec2: EC2Client, prepared: Prepared) -> None:
    """Raises what the launch would be refused with, as far as EC2 says that without launching: no lack of room."""
    offer = prepared.offer
    _ask(f"launch a {offer.type} in {offer.place}", ec2.run_instances, **prepared.request)


def _ask(action: str, call: Callable[..., object], **parameters: object) -> None:
    try:
        with translated(action):
            call(**parameters, DryRun=True)
    except GpuopsError as error:
        if code_of(error) != "DryRunOperation":  # EC2's word for: it would have been done
            raise
