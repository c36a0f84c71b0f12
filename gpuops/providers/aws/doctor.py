"""What a launch needs of AWS, looked into one by one, each with its mend. Nothing is changed and nothing bills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore import xform_name
from botocore.exceptions import ClientError

from gpuops import host_keys
from gpuops.errors import GpuopsError, NotPermitted, QuotaExceeded, RegionNotEnabled, StateError, VendorUnreachable
from gpuops.machine import FORMAT, Finding, Offer, Wish
from gpuops.providers.aws import firewall, instances, network, permissions, quotas
from gpuops.providers.aws.clients import Clients
from gpuops.providers.aws.refusals import translated

if TYPE_CHECKING:
    from gpuops.providers.aws import Aws

# AWS refuses what was signed longer ago, or later, than this (IAM guide, "Signature Version 4").
_CLOCK_MAY_BE_OFF = timedelta(minutes=5)
_BY_REHEARSAL = {"ec2:RunInstances"}
_OF_ONE = "ec2:DescribeInstanceAttribute"  # it takes a machine to ask about


def check(aws: Aws, clients: Clients, wish: Wish, *, now: datetime) -> list[Finding]:
    """Credentials first: without them, only the clock is worth a look."""
    offers: list[Offer] = []

    def image() -> str:
        offers.extend(aws.offers(wish))
        return f"{offers[0].image_name} ({offers[0].image_id}) with {offers[0].type}"

    def launch() -> str:
        if not offers:
            return "not tried, as there is nothing to launch"
        aws.rehearse(wish, offers[0], client_key=host_keys.generate().public_line)
        return f"a {offers[0].type} in {offers[0].place} would be permitted"

    who, sent = _identity(clients, wish.region)
    findings = [who, *([_finding("clock", lambda: clock(sent, now))] if sent else [])]
    if not who.is_well:
        return findings
    return [
        *findings,
        _finding("region", lambda: _region(clients, wish.region)),
        _finding("permissions", lambda: _permissions(clients, wish)),
        _finding("network", lambda: _network(clients, wish)),
        _finding("image", image),
        _finding("quota", lambda: _quota(clients, offers, wish.region)),
        _finding("launch", launch),
    ]


def clock(sent: datetime, now: datetime) -> str:
    """How far this computer's clock is from AWS's. Raises `StateError` where that is too far to be let in."""
    off = now - sent
    if abs(off) <= _CLOCK_MAY_BE_OFF:
        return "agrees with AWS's"
    minutes = round(abs(off).total_seconds() / 60)
    raise StateError(
        f"this computer's clock is {minutes} minutes {'ahead of' if off > timedelta() else 'behind'} AWS's",
        next_step="Set it, for example: sudo timedatectl set-ntp true",
    )


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, is_well=True, found=look())
    except GpuopsError as error:
        return Finding(name=name, is_well=False, found=error.what, mend=error.next_step)


def _identity(clients: Clients, region: str) -> tuple[Finding, datetime | None]:
    """Who is asking, and when AWS says that it answered. A region that isn't enabled knows nobody."""
    try:
        with translated("say whose credentials these are", region=region):
            answer = clients.sts(region).get_caller_identity()
    except GpuopsError as error:
        cause = error.__cause__
        response: Any = cause.response if isinstance(cause, ClientError) else {}
        name = "region" if isinstance(error, RegionNotEnabled) else "credentials"
        return Finding(name=name, is_well=False, found=error.what, mend=error.next_step), _sent(response)
    who = answer["Arn"].rpartition(":")[2]
    return Finding(name="credentials", is_well=True, found=f"account {answer['Account']}, {who}"), _sent(answer)


def _sent(response: Any) -> datetime | None:
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date) if date else None


def _region(clients: Clients, region: str) -> str:
    with translated(f"describe the region {region}", region=region):
        clients.ec2(region).describe_regions(RegionNames=[region])
    return f"{region} is enabled"


def _network(clients: Clients, wish: Wish) -> str:
    found = network.find(clients.ec2(wish.region), wish)
    which = "the default network" if found.is_default else wish.subnet or wish.vpc
    return f"{which}, with a way out from {', '.join(sorted(found.subnets))}"


def _permissions(clients: Clients, wish: Wish) -> str:
    """Raises `NotPermitted` naming what is missing. What takes a machine to try is said to be untried."""
    trials = _trials(clients, wish.region)
    tried = {action for action, _ in trials}
    missing = [action for action, call in trials if _is_refused(action, call)]
    needed = [action for action in missing if action not in permissions.DISPENSABLE]
    untried = [action for action in permissions.ACTIONS if action not in tried | permissions.NEEDS_NONE | _BY_REHEARSAL]
    said = f"{len(tried) - len(missing)} of {len(tried)} that can be tried are there"
    said += f" (not {', '.join(missing)})" if missing else ""
    said += f"; to be seen when they are used: {', '.join(untried)}" if untried else ""
    if needed:
        raise NotPermitted(said, next_step="Have the policy that `gpuops doctor` prints attached to this user or role.")
    return said


def _trials(clients: Clients, region: str) -> list[tuple[str, Callable[[], object]]]:
    """Calls that change nothing, each with the permission that it needs. To a DryRun, EC2 answers just that."""
    ec2: Any = clients.ec2(region)

    def dry(action: str, **parameters: object) -> tuple[str, Callable[[], object]]:
        call = getattr(ec2, xform_name(permissions.operation(action)))
        return action, partial(call, DryRun=True, **parameters)

    parameter, quota = f"{permissions.IMAGE_PARAMETERS}none", "L-DB2E81BA"  # whatever they are: the answer isn't used
    trials: list[tuple[str, Callable[[], object]]] = [
        *(dry(action) for action in permissions.LOOKING if action.startswith("ec2:Describe") and action != _OF_ONE),
        ("ssm:GetParameter", partial(clients.ssm(region).get_parameter, Name=parameter)),
        (
            "servicequotas:GetServiceQuota",
            partial(clients.quotas(region).get_service_quota, ServiceCode="ec2", QuotaCode=quota),
        ),
        ("pricing:GetProducts", partial(clients.pricing().get_products, ServiceCode="AmazonEC2", MaxResults=1)),
    ]
    # These are permitted for what bears our tags, so that they can only be tried on what there is.
    for group in _described(ec2.describe_security_groups, firewall.OURS, "SecurityGroups")[:1]:
        rules = {"IpPermissions": [firewall.permission("192.0.2.1/32", 22, ("doctor",))]}
        for action in permissions.CHANGING_FIREWALLS:
            trials.append(dry(action, GroupId=group["GroupId"], **({} if "Delete" in action else rules)))
    for reservation in _described(ec2.describe_instances, instances.OURS, "Reservations")[:1]:
        machine = reservation["Instances"][0]["InstanceId"]
        trials += [dry(action, InstanceIds=[machine]) for action in permissions.CONTROLLING]
        trials.append(dry("ec2:CreateTags", Resources=[machine], Tags=[{"Key": "gpuops:format", "Value": str(FORMAT)}]))
        trials.append(dry("ec2:GetConsoleOutput", InstanceId=machine))
        trials.append(dry(_OF_ONE, InstanceId=machine, Attribute="instanceInitiatedShutdownBehavior"))
    return trials


def _described(call: Callable[..., Any], filters: Sequence[object], key: str) -> list[Any]:
    """What there is; nothing where we may not look, which is found out elsewhere."""
    try:
        with translated("say what there is"):
            found: list[Any] = call(Filters=filters)[key]
            return found
    except NotPermitted:
        return []


def _is_refused(action: str, call: Callable[[], object]) -> bool:
    """Any other refusal than this one (DryRunOperation, a parameter that isn't there) comes after the permission."""
    try:
        with translated(f"try {action}"):
            call()
    except NotPermitted:
        return True
    except VendorUnreachable:
        raise
    except GpuopsError:
        return False
    return False


def _quota(clients: Clients, offers: Sequence[Offer], region: str) -> str:
    """Of each quota that the offers count against. Raises `QuotaExceeded` where none has room for a machine."""
    said, mends, has_room = [], [], False
    firsts = {quota: offer.type for offer in reversed(offers) if (quota := quotas.of(offer.type))}
    for quota, type_name in reversed(firsts.items()):
        need = quotas.vcpus(clients, type_name, region)
        try:
            have = quotas.value(clients, quota, region)
        except NotPermitted:
            have = None
        said.append(quotas.said(quota, type_name, region, have=have, need=need))
        if have is None or need is None or have >= need:
            has_room = True
        else:
            mends.append(quotas.request(quota, region, have=have, need=need))
    if not said:
        return "not looked up, as there is nothing to launch"
    if not has_room:
        raise QuotaExceeded(" ".join(said), next_step="; or ".join(mends))
    return " ".join(said)
