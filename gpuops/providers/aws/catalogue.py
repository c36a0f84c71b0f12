"""What AWS rents that we know: GPU types with their prices, and which image goes with which type.

A (type, image) pair is chosen together: the 2017 fast.ai image's NVIDIA driver predates today's GPUs, and today's
drivers no longer know the K80 of a p2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Image(enum.Enum):
    """Which kind of image a type boots from."""

    FAST_AI_COMMUNITY = "fast.ai community AMI (2017, part 1 v2)"
    DEEP_LEARNING = "AWS Deep Learning Base AMI (Ubuntu 22.04)"


@dataclass(frozen=True, slots=True)
class GpuType:
    """One instance type. The price is Linux on-demand in us-west-2 and us-east-1, as of 2026-11."""

    name: str
    gpu: str
    gpu_memory_gb: int
    price_usd_per_hour: float
    image: Image
    retired: str = ""


# In order of preference. Prices: tables published by third parties that agree with one another (none is AWS's own
# page), p2's is the historic one. GPU memory: EC2's DescribeInstanceTypes.
TYPES = {
    gpu_type.name: gpu_type
    for gpu_type in (
        GpuType("p2.xlarge", "K80", 12, 0.900, Image.FAST_AI_COMMUNITY, retired="AWS has retired p2"),
        GpuType("g4dn.xlarge", "T4", 16, 0.526, Image.DEEP_LEARNING),
        GpuType("g5.xlarge", "A10G", 22, 1.006, Image.DEEP_LEARNING),
        GpuType("g6.xlarge", "L4", 22, 0.805, Image.DEEP_LEARNING),
    )
}

PRICED_REGIONS = frozenset({"us-east-1", "us-east-2", "us-west-2"})
"""Where the prices above hold; elsewhere the price is not known here and is said to be so."""

DISK_USD_PER_GB_MONTH = 0.08
"""gp3 in the priced regions."""

# The image of fast.ai's 2017 course, by region. Sydney's id is the one of the course notes; two public scripts give
# Ireland's id for it, which can't be, as ids are unique to a region.
COMMUNITY_AMIS = {
    "us-west-2": "ami-8c4288f4",
    "us-east-1": "ami-c6ac1cbc",
    "eu-west-1": "ami-b93c9ec0",
    "ap-south-1": "ami-c53975aa",
    "ap-southeast-2": "ami-39ec055b",
}

# AWS's public parameters for the newest Deep Learning AMI, tried in this order: the vendor's own page and public use
# disagree about the "-gpu-".
DEEP_LEARNING_PARAMETERS = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-ubuntu-22.04/latest/ami-id",
)
DEEP_LEARNING_NAMES = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"

USER = "ubuntu"
"""The login of both images."""


def price(type_name: str, region: str) -> float | None:
    """USD per hour on demand, or None where we don't know it."""
    known = TYPES.get(type_name)
    return known.price_usd_per_hour if known and region in PRICED_REGIONS else None


def disk_price(disk_gb: int, region: str) -> float | None:
    """USD per month for a gp3 disk, billed while the machine is stopped too; None where we don't know it."""
    return round(disk_gb * DISK_USD_PER_GB_MONTH, 2) if region in PRICED_REGIONS else None
