"""Prices in words. What is not known is said to be unknown, and unknown counts as billing."""

from __future__ import annotations

from datetime import datetime

from gpuops.machine import Machine

_SHORTEST_S = 60.0  # EC2 bills by the second, 60 s at least for every start


def rate(price_usd_per_hour: float | None) -> str:
    """For example "$0.900/h"."""
    return "an unknown price per hour" if price_usd_per_hour is None else f"${price_usd_per_hour:.3f}/h"


def per_hour(machine: Machine) -> str:
    """What it costs per hour in the state that it is in, without its disk."""
    return rate(machine.price_usd_per_hour) if machine.state.bills else "$0/h"


def session_usd(machine: Machine, until: datetime) -> float | None:
    """What the machine's hours have cost since its last start, by the provider's clock; None where that isn't known."""
    if machine.price_usd_per_hour is None or machine.launched_at is None:
        return None
    seconds = max(_SHORTEST_S, (until - machine.launched_at).total_seconds())
    return seconds / 3600 * machine.price_usd_per_hour


def monthly(price_usd_per_month: float | None) -> str:
    """For example "$8.00/month"."""
    return "an unknown price per month" if price_usd_per_month is None else f"${price_usd_per_month:.2f}/month"


def disk(machine: Machine) -> str:
    """What its disk costs, running or stopped."""
    return monthly(machine.disk_usd_per_month)
