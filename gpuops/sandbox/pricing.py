"""The Price List API: GetProducts of AmazonEC2, in the shape that AWS gives it.

There are as many products of one instance type as on AWS: by operating system, tenancy, reservation and software. Who
leaves a filter out gets more than one price.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from moto.ec2.models.instance_types import INSTANCE_TYPES

from gpuops.sandbox import places, prices
from gpuops.sandbox.services import ServiceRefusal

_ENDPOINTS = {"us-east-1", "eu-central-1", "ap-south-1"}  # where the API is; it knows the prices of all regions
_PAGE = 100
_ON_DEMAND = "JRTCKXETXF"  # AWS's codes of this kind of term and of its rate
_HOURLY = "6YS6EN2CT7"
_SYSTEMS = {"Linux": 1.0, "Windows": 1.35, "RHEL": 1.15}
_TENANCIES = {"Shared": 1.0, "Dedicated": 1.1}
_CAPACITY = {"Used": 1.0, "UnusedCapacityReservation": 1.0, "AllocatedCapacityReservation": 0.0}
_SOFTWARE = {"NA": 1.0, "SQL Std": 1.9}


def answer(action: str, request: Mapping[str, Any], region: str) -> Mapping[str, Any]:
    if action != "GetProducts":
        raise NotImplementedError
    if region not in _ENDPOINTS:
        raise ServiceRefusal("UnrecognizedClientException", f"The Price List API has no endpoint in {region}.")
    if request["ServiceCode"] != "AmazonEC2":
        raise ServiceRefusal("InvalidParameterException", "Input Parameters are invalid. [ServiceCode is not valid]")
    wanted = {wish["Field"]: wish["Value"] for wish in request.get("Filters", ())}
    start, size = int(request.get("NextToken") or 0), int(request.get("MaxResults") or _PAGE)
    matching = (product for product in _products(wanted) if _matches(product, wanted))
    page = list(itertools.islice(matching, start, start + size + 1))
    found: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": [json.dumps(product) for product in page[:size]]}
    if len(page) > size:
        found["NextToken"] = str(start + size)
    return found


def _matches(product: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    attributes = {**product["product"]["attributes"], "productFamily": product["product"]["productFamily"]}
    # TERM_MATCH takes no account of case.
    return all(str(attributes.get(field, "")).lower() == value.lower() for field, value in wanted.items())


def _products(wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for region in [wanted["regionCode"]] if "regionCode" in wanted else sorted(places.ENABLED_REGIONS):
        if region not in places.ENABLED_REGIONS:
            continue
        types = [wanted["instanceType"]] if "instanceType" in wanted else sorted(INSTANCE_TYPES)
        for name in types:
            if places.zones_offering(region, name):
                yield from _machines(name, region)
        yield from _disks(region)


def _machines(name: str, region: str) -> Iterator[dict[str, Any]]:
    type_ = INSTANCE_TYPES[name]
    for system, tenancy, capacity, software in itertools.product(_SYSTEMS, _TENANCIES, _CAPACITY, _SOFTWARE):
        usd = prices.hourly_usd(name, region) * _SYSTEMS[system] * _TENANCIES[tenancy]
        attributes = {
            "instanceType": name,
            "instanceFamily": "GPU instance" if "GpuInfo" in type_ else "General purpose",
            "vcpu": str(type_["VCpuInfo"]["DefaultVCpus"]),
            "memory": f"{type_['MemoryInfo']['SizeInMiB'] / 1024:g} GiB",
            "gpu": str(sum(gpu["Count"] for gpu in type_.get("GpuInfo", {}).get("Gpus", ()))),
            "operatingSystem": system,
            "tenancy": tenancy,
            "capacitystatus": capacity,
            "preInstalledSw": software,
            "licenseModel": "No License required",
            "marketoption": "OnDemand",
            "operation": "RunInstances",
            "usagetype": f"BoxUsage:{name}",
            "currentGeneration": "Yes" if type_["CurrentGeneration"] else "No",
        }
        usd *= _CAPACITY[capacity] * _SOFTWARE[software]
        yield _product("Compute Instance", region, attributes, "Hrs", usd)


def _disks(region: str) -> Iterator[dict[str, Any]]:
    for name in ("gp3", "gp2"):
        attributes = {"volumeApiName": name, "volumeType": "General Purpose", "usagetype": f"EBS:VolumeUsage.{name}"}
        yield _product("Storage", region, attributes, "GB-Mo", prices.disk_usd_per_gb_month(name, region))
    # What is beyond 3000 operations per second of a gp3 disk costs extra: of another family, and of the same name.
    attributes = {"volumeApiName": "gp3", "usagetype": "EBS:VolumeP-IOPS.gp3", "provisioned": "Yes"}
    yield _product("System Operation", region, attributes, "IOPS-Mo", 0.005)


def _product(family: str, region: str, attributes: Mapping[str, str], unit: str, usd: float) -> dict[str, Any]:
    attributes = {
        **attributes,
        "regionCode": region,
        "locationType": "AWS Region",
        "servicecode": "AmazonEC2",
        "servicename": "Amazon Elastic Compute Cloud",
    }
    sku = hashlib.sha256(json.dumps([family, attributes], sort_keys=True).encode()).hexdigest()[:16].upper()
    rate = {
        "rateCode": f"{sku}.{_ON_DEMAND}.{_HOURLY}",
        "unit": unit,
        "beginRange": "0",
        "endRange": "Inf",
        "description": f"${usd:.10f} per {unit}",
        "appliesTo": [],
        "pricePerUnit": {"USD": f"{usd:.10f}"},
    }
    term = {
        "sku": sku,
        "offerTermCode": _ON_DEMAND,
        "effectiveDate": "2026-11-01T00:00:00Z",
        "termAttributes": {},
        "priceDimensions": {rate["rateCode"]: rate},
    }
    return {
        "serviceCode": "AmazonEC2",
        "version": "20261120000000",
        "publicationDate": "2026-11-20T00:00:00Z",
        "product": {"sku": sku, "productFamily": family, "attributes": attributes},
        "terms": {"OnDemand": {f"{sku}.{_ON_DEMAND}": term}},
    }
