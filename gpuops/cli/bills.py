"""`gpuops cost`: a month's machine-hours and what they cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from gpuops import cost as words
from gpuops.cli import screen
from gpuops.cli.options import resolve
from gpuops.errors import BadInput, VendorUnreachable
from gpuops.machine import FORMAT

if TYPE_CHECKING:
    from gpuops.machine import Machine
    from gpuops.machine_hours import Spending
    from gpuops.workflow import Bills


@click.command()
@click.option("--month", metavar="YYYY-MM", help="Another month than this one, for example 2026-11.")
@click.option("--provider", help="Where machines come from. Default: aws.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def cost(month: str | None, as_json: bool, **flags: object) -> None:
    """This month's machine-hours, by machine and by run."""
    from gpuops import workflow

    bills = workflow.bills(resolve(**flags), month=_month(month) if month is not None else None)
    screen.say(_json(bills) if as_json else _text(bills))
    if bills.unanswered and not as_json:
        silent = "".join(f"\n  {place.place}: {place.reason}" for place in bills.unanswered)
        raise VendorUnreachable(
            f"Not all places answered; what runs there, and what it costs, may be missing from the sum.{silent}",
            next_step="gpuops cost",
        )


def _month(text: str) -> datetime:
    try:
        if not text.startswith("20"):
            raise ValueError(text)
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise BadInput(f"{text!r} is no month.", next_step="For example: gpuops cost --month 2026-11") from error


def _text(bills: Bills) -> str:
    parts = []
    if bills.machines:
        machines = [("MACHINE", "TYPE", "PLACE", "HOURS", "COST", "ID")]
        machines += [
            (b.name, b.type, b.place, _hours(b.spending), _usd(b.spending), b.machine_id) for b in bills.machines
        ]
        parts.append(screen.columns(machines))
    if bills.runs:
        runs = [("RUN", "RECIPE", "MACHINE", "HOURS", "COST")]
        runs += [(b.run_id, b.recipe, b.machine, _hours(b.spending), _usd(b.spending)) for b in bills.runs]
        parts.append(screen.columns(runs))
    parts.append("\n".join(_summary(bills)))
    return "\n\n".join(parts)


def _summary(bills: Bills) -> list[str]:
    month, total = f"{bills.month:%B %Y}", bills.total
    lines = [f"{month} (UTC): {_hours(total)}, {_usd(total)}." if bills.machines else f"No machine-hours in {month}."]
    if total.unpriced_hours:
        lines.append(
            f"The price of {words.duration(total.unpriced_hours)} of these isn't known: they are not in the sum."
        )
    if total.is_at_most:
        lines.append("At most: of some stops it is only known that they had come by the time somebody looked.")
    lines += [
        f"{bill.name} is still running, at {words.rate(bill.price_usd_per_hour)}: gpuops down {bill.name}"
        for bill in bills.machines
        if bill.is_running
    ]
    if bills.with_disks:
        lines.append(f"Disks, running or stopped, not in the sum: {_disks(bills.with_disks)}.")
    lines.append(
        f"From the ledger of this computer ({bills.kept_in}): hours on machines that were started elsewhere and never "
        "seen from here are not in it. The provider's own bill is the one to pay."
    )
    if bills.damaged_lines:
        lines.append(f"{bills.damaged_lines} of its lines can't be read any more: what they said is missing here.")
    return lines


def _hours(spending: Spending) -> str:
    return words.duration(spending.hours)


def _usd(spending: Spending) -> str:
    if spending.unpriced_hours and not spending.usd:
        return "unknown"
    if spending.unpriced_hours:
        return f"{words.usd(spending.usd)} and more"
    return f"at most {words.usd(spending.usd)}" if spending.is_at_most else words.usd(spending.usd)


def _disks(machines: tuple[Machine, ...]) -> str:
    known = sum(machine.disk_usd_per_month or 0.0 for machine in machines)
    each = ", ".join(f"{machine.name} {words.disk(machine)}" for machine in machines)
    return each if len(machines) == 1 else f"{words.monthly(known)} together ({each})"


def _json(bills: Bills) -> str:
    spent = {
        "format": FORMAT,
        "month": f"{bills.month:%Y-%m}",
        "machines": [asdict(bill) for bill in bills.machines],
        "runs": [asdict(bill) for bill in bills.runs],
        "total": asdict(bills.total),
        "disks": [
            {"machine_id": m.id, "name": m.name, "usd_per_month": m.disk_usd_per_month} for m in bills.with_disks
        ],
        "unanswered": [asdict(place) for place in bills.unanswered],
        "damaged_lines": bills.damaged_lines,
        "ledger": str(bills.kept_in),
    }
    return json.dumps(spent, indent=1)
