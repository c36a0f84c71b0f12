"""What EC2 rents in a region: its types with an NVIDIA GPU, and the zones that have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gpuops.errors import UnknownType
from gpuops.machine import GpuType
from gpuops.providers.aws import images, price_table, prices
from gpuops.providers.aws.refusals import translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeInfoTypeDef
    from mypy_boto3_pricing.client import PricingClient

PREFERRED = ("p2.xlarge", "g4dn.xlarge", "g5.xlarge", "g6.xlarge")
"""What is launched where no type is wished for, tried in this order."""

_GPU_FAMILIES = ("g*", "p*")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """One type with NVIDIA GPUs, as EC2 describes it. The memory is that of one GPU."""

    name: str
    gpu: str
    gpus: int
    gpu_memory_gb: int
    vcpus: int
    memory_gb: float
    architectures: tuple[str, ...]


def types(ec2: EC2Client, names: Sequence[str], region: str) -> dict[str, InstanceType]:
    """Those of these types that have an NVIDIA GPU, as far as EC2 describes them here (it may offer fewer).

    Raises `UnknownType` for a name that neither this region nor we know as a type with an NVIDIA GPU.
    """
    found = _described(ec2, names, region)
    for name in names:
        if name not in found and name not in price_table.USD_PER_HOUR and not retired(name):
            raise UnknownType(
                name,
                _described(ec2, _GPU_FAMILIES, region),
                next_step=f"Types with an NVIDIA GPU: gpuops offers --region {region}",
            )
    return found


def zones(ec2: EC2Client, names: Sequence[str], region: str) -> dict[str, tuple[str, ...]]:
    """The zones of the region in which each of these types is offered; a type that isn't offered is left out."""
    found: dict[str, set[str]] = {}
    with translated("list the zones that offer a machine type", region=region):
        pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": list(names)}]
        )
        for page in pages:
            for offering in page["InstanceTypeOfferings"]:
                found.setdefault(str(offering["InstanceType"]), set()).add(offering["Location"])
    return {name: tuple(sorted(where)) for name, where in found.items()}


def listed(
    ec2: EC2Client,
    pricing: PricingClient,
    names: Sequence[str],
    region: str,
    known_prices: prices.Prices,
    *,
    now: datetime,
) -> list[GpuType]:
    """These types, or all with an NVIDIA GPU, that the region offers: cheapest first, those of unknown price last.

    Raises `UnknownType`.
    """
    found = types(ec2, names, region) if names else _described(ec2, _GPU_FAMILIES, region)
    if not found:
        return []
    with ThreadPoolExecutor(max_workers=3) as pool:
        offered = pool.submit(zones, ec2, list(found), region)
        spot = pool.submit(prices.spot, ec2, list(found), region, now=now)
        priced = pool.submit(known_prices.look_up, pricing, list(found), region, now=now)
    priced.result()
    rows = [
        _row(type_, where, known_prices.of(name, region), spot.result().get(name), region)
        for name, type_ in found.items()
        if (where := offered.result().get(name))
    ]
    return sorted(rows, key=lambda row: (row.price_usd_per_hour is None, row.price_usd_per_hour or 0.0, row.name))


def is_p2(name: str) -> bool:
    """Whether it is of the family of 2017, whose K80 today's drivers no longer know."""
    return name.startswith("p2.")


def retired(name: str) -> str:
    """That AWS rents this type no more, or ""."""
    return "AWS has retired p2" if is_p2(name) else ""


def unfit(name: str, image_id: str) -> str:
    """Why the trainer can't run on this pair of type and image; "" where nothing is known against it."""
    if is_p2(name):
        # PyTorch's RELEASE.md: of 2.7's wheels only those for CUDA 11.8 have code for sm_37; 2.8 dropped CUDA 11.8.
        return (
            "the trainer needs torch 2.7 or newer, and that doesn't run on a K80 (CUDA 11.8 was the last that knew it)"
        )
    if images.is_community(image_id):
        return (
            "the trainer needs Python 3.10 and torch 2.7 or newer; fast.ai's image of 2017 has Python 3.6 and torch 0.3"
        )
    return ""


def _described(ec2: EC2Client, names: Iterable[str], region: str) -> dict[str, InstanceType]:
    """By a filter, which passes over names that aren't there; asked for as such, one of them fails the whole call."""
    with translated("describe the machine types", region=region):
        pages = ec2.get_paginator("describe_instance_types").paginate(
            Filters=[{"Name": "instance-type", "Values": list(names)}]
        )
        described = [type_ for page in pages for type_ in page["InstanceTypes"]]
    return {type_.name: type_ for answer in described if (type_ := _type(answer))}


def _type(answer: InstanceTypeInfoTypeDef) -> InstanceType | None:
    gpus = [gpu for gpu in answer.get("GpuInfo", {}).get("Gpus", ()) if gpu.get("Manufacturer") == "NVIDIA"]
    if not gpus:
        return None
    return InstanceType(
        name=str(answer["InstanceType"]),
        gpu=gpus[0].get("Name", "NVIDIA GPU"),
        gpus=max(1, gpus[0].get("Count", 1)),  # 0: a part of one
        gpu_memory_gb=round(gpus[0].get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024),
        vcpus=answer.get("VCpuInfo", {}).get("DefaultVCpus", 0),
        memory_gb=answer.get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024,
        architectures=tuple(str(name) for name in answer.get("ProcessorInfo", {}).get("SupportedArchitectures", ())),
    )


def _row(
    type_: InstanceType, where: tuple[str, ...], price: prices.Price | None, spot: float | None, region: str
) -> GpuType:
    is_arm = "x86_64" not in type_.architectures
    return GpuType(
        name=type_.name,
        region=region,
        zones=where,
        gpu=type_.gpu,
        gpus=type_.gpus,
        gpu_memory_gb=type_.gpu_memory_gb,
        vcpus=type_.vcpus,
        memory_gb=type_.memory_gb,
        price_usd_per_hour=price.usd_per_hour if price else None,
        price_from=price.source if price else "",
        spot_usd_per_hour=spot,
        note=retired(type_.name) or ("ARM: needs an --image of yours" if is_arm else ""),
    )
