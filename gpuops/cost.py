"""Prices in words. What is not known is said to be unknown, and unknown counts as billing."""

from __future__ import annotations

from collections.abc import Sequence

from gpuops.errors import OverLimit
from gpuops.machine import Machine

SHORTEST_S = 60.0
"""EC2 bills by the second, 60 s at least for every start (aws.amazon.com/ec2/pricing, "Per Second Billing")."""


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


def deadline_hours(max_hours: float, max_usd: float | None, *, price_usd_per_hour: float | None) -> float:
    """How many hours a machine of that price may run from now.

    `max_usd` is about hours alone: the disk costs a hundredth of them, and goes on costing when the machine has
    stopped, so no deadline could keep it within a limit. Raises `OverLimit` where the limit can't be kept.
    """
    if max_usd is None:
        return max_hours
    if price_usd_per_hour is None:
        raise OverLimit(
            f"A limit of {usd(max_usd)} can't be kept: the price per hour isn't known.",
            left_behind="Nothing was started.",
            next_step="Limit the hours instead, with --max-hours; or take a machine of a known price: gpuops offers",
        )
    if price_usd_per_hour == 0:
        return max_hours
    return min(max_hours, max_usd / price_usd_per_hour)


def estimate(
    hours_before: Sequence[float], *, recipe: str, machine_type: str, price_usd_per_hour: float | None
) -> str | None:
    """For example "about 0.4 h and $0.21, as 3 earlier runs of digits on g4dn.xlarge"; None without earlier runs."""
    if not hours_before:
        return None
    import statistics  # slow to import

    hours = statistics.median(hours_before)
    price = "at an unknown price" if price_usd_per_hour is None else f"and {usd(hours * price_usd_per_hour)}"
    runs = "an earlier run" if len(hours_before) == 1 else f"{len(hours_before)} earlier runs"
    return f"about {duration(hours)} {price}, as {runs} of {recipe} on {machine_type}"


def usd(amount: float) -> str:
    """For example "$1.05"; of less than a cent the first digits that say something."""
    return f"${amount:.4f}" if 0 < amount < 0.01 else f"${amount:,.2f}"


def duration(hours: float) -> str:
    """For example "12 h", "5 h 31 min", "24 min", "8 s"."""
    seconds = round(hours * 3600)
    if seconds < 60:
        return f"{seconds} s"
    whole, minutes = divmod(round(seconds / 60), 60)
    return " ".join(filter(None, (f"{whole} h" if whole else "", f"{minutes} min" if minutes else "")))
