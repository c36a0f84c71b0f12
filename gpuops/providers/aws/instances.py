"""What EC2 says of an instance, as a `Machine`, and the tags by which any computer knows it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from gpuops.errors import NewerFormat
from gpuops.machine import FORMAT, Address, Machine, Offer, State, Wish
from gpuops.providers.aws import catalogue

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

NAME = "gpuops:name"


def tags(wish: Wish, offer: Offer, *, host_key: str, created: datetime) -> dict[str, str]:
    """Everything another computer needs to know of a machine: what it is, how to reach it, and its host key."""
    return {
        "Name": wish.name,
        NAME: wish.name,
        "gpuops:format": str(FORMAT),
        "gpuops:host-key": host_key,
        "gpuops:user": offer.user,
        "gpuops:ssh-port": str(wish.ssh_port),
        "gpuops:max-hours": f"{wish.max_hours:g}",
        "gpuops:disk-gb": str(offer.disk_gb),
        "gpuops:created": created.isoformat(timespec="milliseconds"),
    }


def machine(instance: InstanceTypeDef, region: str) -> Machine:
    """Raises `NewerFormat` for a machine that a newer gpuops has made."""
    labels = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    name = labels.get(NAME, labels.get("Name", instance["InstanceId"]))
    if int(labels.get("gpuops:format", FORMAT)) > FORMAT:
        raise NewerFormat(f"{name} was made by a newer gpuops.", next_step="Upgrade gpuops, then try again.")
    address = instance.get("PublicIpAddress")
    disk_gb = int(labels.get("gpuops:disk-gb", 0))
    return Machine(
        id=instance["InstanceId"],
        name=name,
        provider="aws",
        region=region,
        zone=instance.get("Placement", {}).get("AvailabilityZone"),
        type=str(instance["InstanceType"]),
        state=State(instance["State"]["Name"]),
        ssh=_address(address, labels) if address else None,
        problem=instance.get("StateReason", {}).get("Message", ""),
        price_usd_per_hour=catalogue.price(str(instance["InstanceType"]), region),
        disk_usd_per_month=catalogue.disk_price(disk_gb, region) if disk_gb else None,
        host_key=labels.get("gpuops:host-key"),
        launched_at=instance.get("LaunchTime"),
        max_hours=float(labels["gpuops:max-hours"]) if "gpuops:max-hours" in labels else None,
        tags=labels,
    )


def ssh_port(labels: Mapping[str, str]) -> int:
    return int(labels.get("gpuops:ssh-port", 22))


def unseen(known: Machine) -> Machine:
    """A machine that EC2 does not show: it may be new, or gone; until it is known to be gone it may bill."""
    return dataclasses.replace(known, state=State.UNKNOWN, ssh=None, problem="AWS does not show this machine (yet)")


def _address(host: str, labels: Mapping[str, str]) -> Address:
    return Address(
        host=host,
        user=labels.get("gpuops:user", catalogue.USER),
        port=ssh_port(labels),
    )
