"""How many vCPUs an account may run at once, by family of types; of those with a GPU, a new account often has none."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from gpuops.errors import GpuopsError, ProviderError, QuotaExceeded
from gpuops.providers.aws.clients import Clients
from gpuops.providers.aws.refusals import code_of, message_of, translated

_SERVICE = "ec2"
# "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket …"
_LIMIT_TOLD = re.compile(r"current vCPU limit of (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One quota of EC2's, counted in vCPUs, for all types whose family begins with one of these letters."""

    code: str
    name: str
    families: tuple[str, ...]


_ON_DEMAND = (
    Quota(code="L-417A185B", name="Running On-Demand P instances", families=("p",)),
    Quota(code="L-DB2E81BA", name="Running On-Demand G and VT instances", families=("g", "vt")),
    Quota(
        code="L-1216C47A",
        name="Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
        families=("a", "c", "d", "h", "i", "m", "r", "t", "z"),
    ),
)
_SPOT = (
    Quota(code="L-7212CCBC", name="All P Spot Instance Requests", families=("p",)),
    Quota(code="L-3819A6DF", name="All G and VT Spot Instance Requests", families=("g", "vt")),
)


def of(type_name: str, *, spot: bool = False) -> Quota | None:
    """The quota that a type counts against; None where we don't know it."""
    family = re.match(r"[a-z]+", type_name)
    return next((q for q in (_SPOT if spot else _ON_DEMAND) if family and _is_of(family[0], q)), None)


def value(clients: Clients, quota: Quota, region: str) -> int | None:
    """How many vCPUs the account may run in the region; None where AWS has no answer. Raises `NotPermitted`."""
    try:
        with translated(f"say how large the quota {quota.code} is", region=region):
            answer = clients.quotas(region).get_service_quota(ServiceCode=_SERVICE, QuotaCode=quota.code)
    except ProviderError as error:
        if code_of(error) != "NoSuchResourceException":
            raise
        return None
    return round(answer["Quota"]["Value"])


def vcpus(clients: Clients, type_name: str, region: str) -> int | None:
    """How many vCPUs a machine of this type has; None where the region doesn't describe it."""
    with translated(f"describe the machine type {type_name}", region=region):
        found = clients.ec2(region).describe_instance_types(Filters=[{"Name": "instance-type", "Values": [type_name]}])[
            "InstanceTypes"
        ]
    return found[0]["VCpuInfo"]["DefaultVCpus"] if found else None


def explain(error: QuotaExceeded, clients: Clients, *, type_name: str, region: str) -> None:
    """Have the error say which quota it is, how large, and what to request, as far as that can be found out."""
    code = code_of(error)
    quota = of(type_name, spot="Spot" in code)
    if quota is None or ("Instance" not in code and "Vcpu" not in code):  # of disks, not of machines
        return
    told = _LIMIT_TOLD.search(message_of(error))
    have, need = int(told[1]) if told else None, None
    with contextlib.suppress(GpuopsError):
        need = vcpus(clients, type_name, region)
    with contextlib.suppress(GpuopsError):
        have = value(clients, quota, region) if have is None else have
    error.what += " " + said(quota, type_name, region, have=have, need=need)
    elsewhere = "us-west-2" if region == "us-east-1" else "us-east-1"
    error.next_step = (
        f"Request more: {request(quota, region, have=have, need=need)}. Until that is granted, another region "
        f"(--region {elsewhere}) or a type that counts against another quota (--type) may do."
    )


def said(quota: Quota, type_name: str, region: str, *, have: int | None, need: int | None) -> str:
    """Which quota, its value, and what a machine needs, in a sentence."""
    size = "of unknown size" if have is None else f"{have} vCPUs"
    needs = f"; a {type_name} needs {need}" if need is not None else ""
    return f'The quota "{quota.name}" ({quota.code}) in {region} is {size}{needs}.'


def request(quota: Quota, region: str, *, have: int | None, need: int | None) -> str:
    """The command that asks AWS for one machine more than there may be."""
    wanted = "N" if need is None else str((have or 0) + need)
    return (
        f"aws service-quotas request-service-quota-increase --service-code {_SERVICE} --quota-code {quota.code} "
        f"--desired-value {wanted} --region {region}"
    )


def _is_of(family: str, quota: Quota) -> bool:
    # "gr6" is of G; but "trn1" and "inf2" have quotas of their own, which aren't those of T and I.
    return family in quota.families or (family[0] == "g" and "g" in quota.families)
