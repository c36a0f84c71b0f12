"""What things cost in the sandbox: made up, close to AWS's, and different in every region.

So a price that is shown tells where it is from: no price here is one of AWS's own.
"""

from __future__ import annotations

import math
from datetime import datetime

from moto.ec2.models.instance_types import INSTANCE_TYPES

from gpuops.sandbox.places import ENABLED_REGIONS

_LINUX_USD_PER_HOUR = {
    "p2.xlarge": 0.90,
    "g4dn.xlarge": 0.526,
    "g5.xlarge": 1.006,
    "g6.xlarge": 0.8048,
    "g6e.xlarge": 1.861,
}
"""AWS's prices in us-east-1; the other types' follow from their size."""
_USD_PER_VCPU_HOUR = 0.05
_USD_PER_GPU_GIB_HOUR = 0.012
_DISK_USD_PER_GB_MONTH = {"gp3": 0.08, "gp2": 0.10}
SPOT_PRICE_HOURS = 6  # how long a spot price holds


def hourly_usd(instance_type: str, region: str) -> float:
    """An hour of Linux on demand."""
    return round(_base_usd(instance_type) * _factor(region), 4)


def disk_usd_per_gb_month(volume_type: str, region: str) -> float:
    return round(_DISK_USD_PER_GB_MONTH[volume_type] * _factor(region), 4)


def spot_usd(instance_type: str, zone: str, at: datetime) -> float:
    """An hour of Linux on the spot market: about a third, another price in each zone, going up and down a little."""
    zones_away = ord(zone[-1]) - ord("a")
    swing = 0.01 * math.sin(at.timestamp() // (SPOT_PRICE_HOURS * 3600))
    return round(hourly_usd(instance_type, zone[:-1]) * (0.31 + 0.02 * zones_away + swing), 4)


def _base_usd(instance_type: str) -> float:
    if instance_type in _LINUX_USD_PER_HOUR:
        return _LINUX_USD_PER_HOUR[instance_type]
    type_ = INSTANCE_TYPES[instance_type]
    gpu_mib = type_.get("GpuInfo", {}).get("TotalGpuMemoryInMiB", 0)
    return float(_USD_PER_VCPU_HOUR * type_["VCpuInfo"]["DefaultVCpus"] + _USD_PER_GPU_GIB_HOUR * gpu_mib / 1024)


def _factor(region: str) -> float:
    """From 1.002 in the first region by name to 1.034 in the last."""
    return 1 + (sorted(ENABLED_REGIONS).index(region) + 1) / 500
