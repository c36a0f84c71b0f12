"""Regions, zones and the instance types that each offers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES, InstanceType, InstanceTypeBackend

from gpuops.sandbox.images import FASTAI_IMAGES

ENABLED_REGIONS = frozenset(
    {
        *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
        *("eu-central-1", "eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1"),
        *("ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2"),
    }
)
"""The regions that a new account has (docs.aws.amazon.com, "Regions and Availability Zones"). It opts into others."""

# The course's type of 2017. EC2 has retired it, so moto's catalogue of today lacks it; it lives on here, where the
# course's images do. Figures: aws.amazon.com/ec2/instance-types/p2 as of 2017.
_P2_XLARGE: dict[str, Any] = {
    "InstanceType": "p2.xlarge",
    "CurrentGeneration": False,
    "Hypervisor": "xen",
    "ProcessorInfo": {
        "Manufacturer": "Intel",
        "SupportedArchitectures": ["x86_64"],
        "SustainedClockSpeedInGhz": 2.7,
    },
    "VCpuInfo": {"DefaultCores": 2, "DefaultThreadsPerCore": 2, "DefaultVCpus": 4},
    "MemoryInfo": {"SizeInMiB": 61 * 1024},
    "GpuInfo": {
        "Gpus": [{"Name": "K80", "Manufacturer": "NVIDIA", "Count": 1, "MemoryInfo": {"SizeInMiB": 12 * 1024}}],
        "TotalGpuMemoryInMiB": 12 * 1024,
    },
    "InstanceStorageSupported": False,
}


def install() -> None:
    """Bring back p2.xlarge in the regions of the course's images."""
    # What is not said here (disks, network, boot modes) is as for g4dn.xlarge, except its own SSD, which p2 has not.
    type_ = copy.deepcopy(INSTANCE_TYPES["g4dn.xlarge"]) | _P2_XLARGE
    del type_["InstanceStorageInfo"]
    INSTANCE_TYPES["p2.xlarge"] = type_
    InstanceTypeBackend.instance_types.append(InstanceType("p2.xlarge"))
    for location_type, regions in INSTANCE_TYPE_OFFERINGS.items():
        for region in FASTAI_IMAGES:
            regions[region] += [
                {"InstanceType": "p2.xlarge", "Location": location, "LocationType": location_type}
                for location in sorted({offering["Location"] for offering in regions[region]})
            ]


def regions(*, every: bool) -> list[Any]:
    """The account's regions, or every region of its partition. moto also lists China's and the US government's."""
    partition = [region for region in RegionsAndZonesBackend.regions if not region.name.startswith(("us-gov-", "cn-"))]
    for region in partition:
        region.opt_in_status = "opt-in-not-required" if region.name in ENABLED_REGIONS else "not-opted-in"
    return partition if every else [region for region in partition if region.name in ENABLED_REGIONS]


def zones_offering(region: str, instance_type: str) -> frozenset[str]:
    """The names of the region's zones in which that type can be had."""
    return frozenset(_zones(region).get(instance_type, ()))


@cache
def _zones(region: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for offering in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, ()):
        found.setdefault(offering["InstanceType"], []).append(offering["Location"])
    return found


def zone_asked(request: Mapping[str, Any], backend: Any) -> str | None:
    """The zone that a RunInstances names, by itself or by a subnet; None where EC2 is to choose."""
    if zone := request.get("Placement", {}).get("AvailabilityZone"):
        return str(zone)
    for part in (request, *request.get("NetworkInterfaces", ())):
        if subnet_id := part.get("SubnetId"):
            return str(backend.get_subnet(subnet_id).availability_zone)
    return None


def exists(instance_type: str) -> bool:
    """True for a type that some region has."""
    return instance_type in INSTANCE_TYPES


def is_nitro(instance_type: str) -> bool:
    return bool(INSTANCE_TYPES[instance_type].get("Hypervisor") == "nitro")
