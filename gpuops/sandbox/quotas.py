"""Service Quotas: how many vCPUs the account may run at once, as an ordinary account has them after a first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuops.sandbox.services import ServiceRefusal

_QUOTAS = {
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 32.0),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 32.0),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 8.0),
    "L-3819A6DF": ("All G and VT Spot Instance Requests", 8.0),
    "L-417A185B": ("Running On-Demand P instances", 8.0),
    "L-7212CCBC": ("All P4, P3 and P2 Spot Instance Requests", 8.0),
}


def answer(action: str, request: Mapping[str, Any], region: str) -> Mapping[str, Any]:
    if action != "GetServiceQuota":
        raise NotImplementedError
    service, code = request["ServiceCode"], request["QuotaCode"]
    if service != "ec2" or code not in _QUOTAS:
        raise ServiceRefusal("NoSuchResourceException", "The specified quota or service doesn't exist.")
    name, value = _QUOTAS[code]
    return {
        "Quota": {
            "ServiceCode": "ec2",
            "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
            "QuotaArn": f"arn:aws:servicequotas:{region}:123456789012:ec2/{code}",
            "QuotaCode": code,
            "QuotaName": name,
            "Value": value,
            "Unit": "None",
            "Adjustable": True,
            "GlobalQuota": False,
            "QuotaAppliedAtLevel": "ACCOUNT",
        }
    }
