"""What EC2 says of an instance, as a `Machine`, and the tags by which any computer knows it again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from gpuops import host_keys
from gpuops.errors import BadData
from gpuops.machine import FORMAT, Address, Machine, Offer, State, Wish, is_valid_login, is_valid_name
from gpuops.providers import LABELS
from gpuops.providers.aws import catalogue, prices
from gpuops.providers.aws.permissions import MACHINE_TAG

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef

NAME = MACHINE_TAG
EXISTING = [state.value for state in State if state.exists and state is not State.UNKNOWN]
OURS: Sequence[FilterTypeDef] = (
    {"Name": "tag-key", "Values": [NAME]},
    {"Name": "instance-state-name", "Values": [*EXISTING, State.SHUTTING_DOWN.value]},
)
"""The machines that bear our tag, until nothing is left of them."""
_INSTANCE_ID = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_TAG_LIMIT = 256  # EC2's, in characters; an RSA key of 2048 bits is longer
# StateTransitionReason: "User initiated (2026-11-24 09:00:00 GMT)".
_SINCE = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
# In cloud-init's words; what each line begins with differs from image to image ("ec2: ", a time, nothing).
_KEYS_SHOWN = re.compile(r"BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS", re.DOTALL)
_KEY_SHOWN = re.compile(r"\b((?:ssh|ecdsa)-[a-z0-9-]+) ([A-Za-z0-9+/]+=*)")


def is_id(text: str) -> bool:
    """Whether an instance's id could look like this."""
    return _INSTANCE_ID.fullmatch(text) is not None


def tags(wish: Wish, offer: Offer, *, host_key: str, created: datetime) -> dict[str, str]:
    """Everything another computer needs to know of a machine: what it is, how to reach it, and its host key."""
    known = {
        "Name": wish.name,
        NAME: wish.name,
        "gpuops:format": str(FORMAT),
        "gpuops:host-key": host_key,
        "gpuops:own-host-key": "no",
        "gpuops:user": offer.user,
        "gpuops:ssh-port": str(wish.ssh_port),
        "gpuops:max-hours": f"{wish.max_hours:g}",
        "gpuops:disk-gb": str(offer.disk_gb),
        "gpuops:disk-type": offer.disk_type,
        "gpuops:created": created.isoformat(timespec="milliseconds"),
    }
    if offer.price_usd_per_hour is not None:
        known["gpuops:usd-per-hour"] = f"{offer.price_usd_per_hour:g}"
    return known


def labelled(machine: Machine, labels: Mapping[str, str]) -> dict[str, str]:
    """The tags for these labels; a machine that becomes ours by them is said to be of our format.

    A deadline is written with the start that it belongs to. Raises `ValueError` for a label that is not in `LABELS` and
    for the deadline of a machine whose start isn't known, `BadData` for a host key that is longer than a tag.
    """
    if unknown := labels.keys() - set(LABELS):
        raise ValueError(f"no such labels: {', '.join(sorted(unknown))}")
    for key in (labels.get("host-key", ""), labels.get("next-host-key", "")):
        if len(key) > _TAG_LIMIT:
            raise BadData(
                f"The host key of {machine.id} ({key.partition(' ')[0]}) is longer than the {_TAG_LIMIT} characters of "
                "an EC2 tag, so other computers could not know it.",
                left_behind="Nothing was changed.",
                next_step="Give the machine an ed25519 host key too (on it: sudo ssh-keygen -A, then restart sshd).",
            )
    ours = {f"gpuops:{label}": value for label, value in labels.items()}
    if "deadline" in labels:
        if machine.launched_at is None:
            raise ValueError(f"when {machine.id} was started is not known, so it can't be told when to stop")
        started = machine.launched_at.replace(microsecond=0).isoformat()
        ours["gpuops:deadline"] = f"{started} {labels['deadline']}"
    return ours if "gpuops:format" in machine.tags else {**ours, "gpuops:format": str(FORMAT)}


def machine(instance: InstanceTypeDef, region: str, known_prices: prices.Prices) -> Machine:
    """Whatever its tags say, it is shown with its price; what they say is used only where it is what we would write."""
    labels = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    type_name, state = str(instance["InstanceType"]), State(instance["State"]["Name"])
    host = instance.get("PublicIpAddress")
    known = Machine(
        id=instance["InstanceId"],
        name=instance["InstanceId"],
        provider="aws",
        region=region,
        zone=instance.get("Placement", {}).get("AvailabilityZone"),
        type=type_name,
        state=state,
        # Of one that isn't ours, it is all there is to reach it by.
        ssh=Address(host=host, user="") if host and NAME not in labels else None,
        problem=_problem(instance),
        price_usd_per_hour=known_prices.known(type_name, region),
        launched_at=instance.get("LaunchTime"),
        stopped_at=_stopped_at(state, instance.get("StateTransitionReason", "")),
        unstoppable=_unstoppable(instance, labels),
        stays_behind=_stays_behind(instance, labels),
        unfit=catalogue.unfit(type_name, instance.get("ImageId", "")),
        tags=labels,
    )
    if is_valid_name(name := labels.get(NAME, "")):
        known = dataclasses.replace(known, name=name)
    try:
        return _labelled(known, labels, host)
    except (LookupError, ValueError, BadData) as error:
        return dataclasses.replace(known, unusable=f"its tags are not those of a machine of this gpuops ({error})")


def ssh_port(labels: Mapping[str, str]) -> int:
    return int(labels["gpuops:ssh-port"])


def unseen(known: Machine) -> Machine:
    """A machine that EC2 does not show: it may be new, or gone; until it is known to be gone it may bill."""
    return dataclasses.replace(known, state=State.UNKNOWN, ssh=None, problem="AWS does not show this machine (yet)")


def shown_host_keys(console: str) -> tuple[str, ...]:
    """The host keys that the machine's console shows (cloud-init prints them at its first boot), ed25519 first.

    Those that are longer than a tag are left out, as they could not be kept.
    """
    shown = _KEYS_SHOWN.findall(console)
    said = [f"{kind} {key}" for kind, key in _KEY_SHOWN.findall(shown[-1])] if shown else []
    keys = [key for key in dict.fromkeys(said) if host_keys.is_key(key) and len(key) <= _TAG_LIMIT]
    return tuple(sorted(keys, key=lambda key: not key.startswith("ssh-ed25519 ")))


def _problem(instance: InstanceTypeDef) -> str:
    """Why it is in its state, the code first: what makes a launch fail after it was accepted is told by that alone."""
    reason = instance.get("StateReason", {})
    code, message = reason.get("Code", ""), reason.get("Message", "")
    return message if message.startswith(code) else f"{code}: {message}"


def _unstoppable(instance: InstanceTypeDef, labels: Mapping[str, str]) -> str:
    if instance.get("InstanceLifecycle") == "spot":
        return "it is a spot instance, which AWS may take back"
    if instance.get("RootDeviceType") == "instance-store":
        return "its root disk is an instance store, which is gone when it ends"
    if group := labels.get("aws:autoscaling:groupName"):
        return f"the Auto Scaling group {group} replaces it when it stops"
    return ""


def _stays_behind(instance: InstanceTypeDef, labels: Mapping[str, str]) -> tuple[str, ...]:
    volumes = [
        f"volume {mapping['Ebs']['VolumeId']}"
        for mapping in instance.get("BlockDeviceMappings", ())
        if "Ebs" in mapping and not mapping["Ebs"].get("DeleteOnTermination", True)
    ]
    # What gpuops launched has an address of EC2's, which goes with it; an Elastic IP is its account's.
    addresses = [
        f"address {association['PublicIp']}"
        for interface in instance.get("NetworkInterfaces", ())
        if "gpuops:created" not in labels
        and (association := interface.get("Association"))
        and association.get("IpOwnerId") != "amazon"
    ]
    return (*volumes, *addresses)


def _labelled(known: Machine, labels: Mapping[str, str], host: str | None) -> Machine:
    """Raises `LookupError` or `ValueError` for a tag that is missing or is not what we would have written.

    What a machine costs and when it stops is not known of one that was there before us.
    """
    written = int(labels["gpuops:format"])
    if written > FORMAT:
        raise ValueError(f"format {written}: upgrade gpuops")
    if known.name != labels[NAME]:
        raise ValueError(f"gpuops:name={labels[NAME]!r}")
    user = labels["gpuops:user"]
    if not is_valid_login(user):  # others can change tags, and this one goes into an ssh config
        raise ValueError(f"gpuops:user={user!r}")
    port = ssh_port(labels)
    if not 1 <= port <= 65535:
        raise ValueError(f"gpuops:ssh-port={port}")
    is_adopted = labels.get("gpuops:adopted") == "yes"
    max_hours = _number(labels, "max-hours", below=10_000, optional=is_adopted)
    disk_gb = _number(labels, "disk-gb", below=100_000, optional=is_adopted)
    planned_usd = _number(labels, "usd-per-hour", below=10_000, optional=True)
    deadline = _deadline(known, labels.get("gpuops:deadline", ""), max_hours)
    return dataclasses.replace(
        known,
        ssh=Address(host=host, user=user, port=port) if host else None,
        host_key=_key(labels["gpuops:host-key"]),
        next_host_key=_key(labels["gpuops:next-host-key"]) if labels.get("gpuops:next-host-key") else None,
        has_own_host_key=labels.get("gpuops:own-host-key", "yes") == "yes",
        # What the person agreed to, rather than what this computer's table says.
        price_usd_per_hour=known.price_usd_per_hour if planned_usd is None else planned_usd,
        disk_usd_per_month=(
            None
            if disk_gb is None
            else prices.disk(round(disk_gb), labels.get("gpuops:disk-type", "gp3"), known.region)
        ),
        max_hours=max_hours,
        deadline=deadline,
        is_adopted=is_adopted,
    )


def _key(line: str) -> str:
    """Without its comment. Raises `BadData` for what is no key."""
    host_keys.fingerprint(line)
    return " ".join(line.split()[:2])


def _number(labels: Mapping[str, str], label: str, *, below: float, optional: bool) -> float | None:
    tag = f"gpuops:{label}"
    if optional and tag not in labels:
        return None
    number = float(labels[tag])
    if not 0 < number < below:
        raise ValueError(f"{tag}={labels[tag]!r}")
    return number


def _deadline(known: Machine, written: str, max_hours: float | None) -> datetime | None:
    """When this boot ends by itself. A deadline that was written for an earlier start is over."""
    times = [datetime.fromisoformat(time) for time in written.split(" ")] if written else []
    if len(times) not in {0, 2} or any(time.tzinfo is None for time in times):
        raise ValueError(f"gpuops:deadline={written!r}")
    if known.state not in {State.PENDING, State.RUNNING} or known.launched_at is None:
        return None
    if times and times[0] == known.launched_at.replace(microsecond=0):
        return times[1]
    return None if max_hours is None else known.launched_at + timedelta(hours=max_hours)


def _stopped_at(state: State, reason: str) -> datetime | None:
    since = _SINCE.search(reason)
    if state in {State.PENDING, State.RUNNING} or since is None:
        return None
    return datetime.strptime(since[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
