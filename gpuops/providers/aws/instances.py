"""What EC2 says of an instance, as a `Machine`, and the tags by which any computer knows it again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from gpuops import host_keys
from gpuops.errors import BadData
from gpuops.machine import FORMAT, Address, Machine, Offer, State, Wish, is_valid_name
from gpuops.providers.aws import catalogue

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

NAME = "gpuops:name"
# A login name as useradd(8) takes it. Tags can be changed by others, and this one goes into an ssh config.
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


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
    """Whatever its tags say, it is shown with its price; what they say is used only where it is what we would write."""
    labels = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    known = Machine(
        id=instance["InstanceId"],
        name=instance["InstanceId"],
        provider="aws",
        region=region,
        zone=instance.get("Placement", {}).get("AvailabilityZone"),
        type=str(instance["InstanceType"]),
        state=State(instance["State"]["Name"]),
        problem=instance.get("StateReason", {}).get("Message", ""),
        price_usd_per_hour=catalogue.price(str(instance["InstanceType"]), region),
        launched_at=instance.get("LaunchTime"),
        tags=labels,
    )
    if is_valid_name(name := labels.get(NAME, "")):
        known = dataclasses.replace(known, name=name)
    try:
        return _labelled(known, labels, instance.get("PublicIpAddress"))
    except (LookupError, ValueError, BadData) as error:
        return dataclasses.replace(known, unusable=f"its tags are not those of a machine of this gpuops ({error})")


def _labelled(known: Machine, labels: Mapping[str, str], host: str | None) -> Machine:
    """Raises `LookupError` or `ValueError` for a tag that is missing or is not what we would have written."""
    written = int(labels["gpuops:format"])
    if written > FORMAT:
        raise ValueError(f"format {written}: upgrade gpuops")
    if known.name != labels[NAME]:
        raise ValueError(f"gpuops:name={labels[NAME]!r}")
    user, host_key = labels["gpuops:user"], labels["gpuops:host-key"]
    if not _USER.fullmatch(user):
        raise ValueError(f"gpuops:user={user!r}")
    host_keys.fingerprint(host_key)
    port = ssh_port(labels)
    if not 1 <= port <= 65535:
        raise ValueError(f"gpuops:ssh-port={port}")
    disk_gb, max_hours = int(labels["gpuops:disk-gb"]), float(labels["gpuops:max-hours"])
    if not 0 < max_hours < 10_000:
        raise ValueError(f"gpuops:max-hours={max_hours}")
    return dataclasses.replace(
        known,
        ssh=Address(host=host, user=user, port=port) if host else None,
        host_key=" ".join(host_key.split()[:2]),
        disk_usd_per_month=catalogue.disk_price(disk_gb, known.region),
        max_hours=max_hours,
    )


def ssh_port(labels: Mapping[str, str]) -> int:
    return int(labels["gpuops:ssh-port"])


def unseen(known: Machine) -> Machine:
    """A machine that EC2 does not show: it may be new, or gone; until it is known to be gone it may bill."""
    return dataclasses.replace(known, state=State.UNKNOWN, ssh=None, problem="AWS does not show this machine (yet)")
