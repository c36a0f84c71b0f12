"""Prices in words. What is not known is said to be unknown, and unknown counts as billing."""

from __future__ import annotations

from gpuops.machine import Machine


def rate(price_usd_per_hour: float | None) -> str:
    """For example "$0.900/h"."""
    return "an unknown price per hour" if price_usd_per_hour is None else f"${price_usd_per_hour:.3f}/h"


def per_hour(machine: Machine) -> str:
    """What it costs per hour in the state that it is in, without its disk."""
    return rate(machine.price_usd_per_hour) if machine.state.bills else "$0/h"


def monthly(price_usd_per_month: float | None) -> str:
    """For example "$8.00/month"."""
    return "an unknown price per month" if price_usd_per_month is None else f"${price_usd_per_month:.2f}/month"


def disk(machine: Machine) -> str:
    """What its disk costs, running or stopped."""
    return monthly(machine.disk_usd_per_month)
