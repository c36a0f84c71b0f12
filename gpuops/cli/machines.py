"""`gpuops up`, `status`, `down`, `extend`, `reap`: a machine's life."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from gpuops import cost
from gpuops.cli import options, plan, screen
from gpuops.cli.options import resolve
from gpuops.errors import BadInput, StateError, VendorUnreachable
from gpuops.machine import FORMAT, Machine, State

if TYPE_CHECKING:
    from gpuops.machine import Inventory
    from gpuops.workflow import Farewell

_DURATION = re.compile(r"(?P<count>\d+(\.\d+)?)\s*(?P<unit>h|m|min|d)")
_HOURS = {"h": 1.0, "m": 1 / 60, "min": 1 / 60, "d": 24.0}


@click.command()
@click.argument("name", required=False)
@options.machine_options
@options.dry_run_option
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def up(yes: bool, dry_run: bool, **flags: object) -> None:
    """Start the machine (or launch it), and make `ssh NAME` work."""
    from gpuops import workflow

    settings = resolve(**flags)
    with screen.Progress() as progress:
        if dry_run:
            workflow.rehearse(settings, show=lambda p: plan.show_plan(p, settings, progress), tell=progress.tell)
            screen.say(plan.REHEARSED)
            return
        machine = workflow.up(settings, confirm=plan.confirm_plan(settings, progress, yes=yes), tell=progress.tell)
    screen.say(f"{machine.name} runs: {machine.type} in {machine.place}, {cost.per_hour(machine)}.")
    screen.say(f"It stops {plan.deadline(machine)}.")
    access = workflow.address_book(settings).access(machine)
    screen.say(f"  {' '.join(['ssh', *access.words, machine.name])}")
    plan.show_left_to_do(settings, machine)


@click.command()
@click.option("--provider", help="Where machines come from. Default: aws.")
@click.option("--region", help="The region that is asked which regions there are. Default: us-west-2.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def status(as_json: bool, **flags: object) -> None:
    """Show every machine in every region, and what it costs."""
    from gpuops import workflow

    def show(inventory: Inventory) -> None:
        screen.say(_status_json(inventory) if as_json else _status_text(inventory))

    inventory = workflow.status(resolve(**flags), show=show)
    if inventory.unanswered and not as_json:
        raise _silent(inventory, "gpuops status")


@click.command()
@click.argument("name", required=False)
@options.where
@click.option("--terminate", is_flag=True, help="Delete the machine and its disk, after asking.")
@click.option("--discard", is_flag=True, help="With --terminate: give up runs and files that are nowhere else.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def down(terminate: bool, discard: bool, yes: bool, **flags: object) -> None:
    """Stop the machine and keep its disk."""
    from gpuops import workflow

    if discard and not terminate:
        raise click.UsageError("--discard goes with --terminate: a stopped machine keeps its disk.")
    with screen.Progress() as progress:

        def confirm(farewell: Farewell) -> None:
            progress.pause()
            if question := _farewell_question(farewell):
                if farewell.has_to_start and yes:
                    screen.say(question.removesuffix(" Go on?"), err=True)
                screen.ask(question, yes=yes)

        machine = workflow.down(
            resolve(**flags), terminate=terminate, discard=discard, confirm=confirm, tell=progress.tell
        )
    if machine.state.exists:
        screen.say(f"{machine.name} is {machine.state.value}: $0/h. Its disk is kept and costs {cost.disk(machine)}.")
    elif machine.stays_behind:
        screen.say(f"{machine.name} is gone. What it had stays, and may cost: {', '.join(machine.stays_behind)}.")
    else:
        screen.say(f"{machine.name} is gone, with its disk: it costs nothing any more.")


@click.command()
@click.argument("name")
@click.argument("by", metavar="DURATION")
def extend(name: str, by: str) -> None:
    """Let the machine run longer before it stops by itself: gpuops extend NAME 3h."""
    from gpuops import workflow

    said = _DURATION.fullmatch(by.strip().lower())
    if not said or not 0 < (more := float(said["count"]) * _HOURS[said["unit"]]) <= 24 * 30:
        raise BadInput(
            f"{by!r} is no duration.", left_behind="Nothing was changed.", next_step=f"gpuops extend {name} 3h"
        )
    with screen.Progress() as progress:
        machine = workflow.extend(resolve(name=name), more, tell=progress.tell)
    price = machine.price_usd_per_hour
    costs = f"up to ${price * more:.2f} more" if price is not None else "at an unknown price"
    screen.say(f"{machine.name} runs {cost.duration(more)} longer, {costs}. It stops {plan.deadline(machine)}.")


@click.command()
def reap() -> None:
    """Stop every machine that should have stopped by itself; disks are kept."""
    from gpuops import workflow

    with screen.Progress() as progress:
        reaped = workflow.reap(resolve(), tell=progress.tell)
    for machine in reaped.stopped:
        screen.say(f"{machine.name} ({machine.id}) was past its deadline and is {machine.state.value} now.")
    for machine in reaped.without_deadline:
        screen.say(f"{machine.name} ({machine.id}) has no deadline: it runs on, at {cost.per_hour(machine)}.")
    if not reaped.stopped and not reaped.failed:
        screen.say("No machine is past its deadline.")
    if reaped.failed:
        machine, error = reaped.failed[0]
        raise StateError(
            f"{len(reaped.failed)} could not be stopped. {machine.name} ({machine.id}): {error.what}",
            left_behind=f"It may go on costing {cost.per_hour(machine)}.",
            next_step="gpuops reap",
        )
    if reaped.inventory.unanswered:
        raise _silent(reaped.inventory, "gpuops reap")


def _silent(inventory: Inventory, command: str) -> VendorUnreachable:
    places = "".join(f"\n  {place.place}: {place.reason}" for place in inventory.unanswered)
    return VendorUnreachable(f"Not all places answered; what runs there is not shown.{places}", next_step=command)


def _farewell_question(farewell: Farewell) -> str:
    """What to ask before this stop or deletion; "" where nothing is at stake."""
    machine, seen = farewell.machine, farewell.disk
    if farewell.has_to_start:
        rate = cost.rate(machine.price_usd_per_hour)
        return f"{machine.name} is stopped. To look what would be lost with its disk, it is started, at {rate}. Go on?"
    if farewell.terminate:
        stays = f" ({', '.join(machine.stays_behind)} will stay.)" if machine.stays_behind else ""
        return f"Delete {machine.name} ({machine.id}) and everything on its disk?{stays}"
    if seen and seen.running:
        return f"Run {seen.running[0]} is going on there and would be interrupted. Stop {machine.name}?"
    if seen and seen.not_home:
        return f"{len(seen.not_home)} runs are not home yet (`gpuops pull`); the disk is kept. Stop {machine.name}?"
    return ""


def _status_text(inventory: Inventory) -> str:
    if not inventory.machines:
        return "" if inventory.unanswered else "No machines, in any region."
    now = datetime.now(timezone.utc)
    rows = [("NAME", "STATE", "TYPE", "PLACE", "ADDRESS", "PRICE", "DISK", "UP", "STOPS BY ITSELF", "ID")]
    rows += [
        (
            *(m.name, m.state.value, m.type, m.place, m.ssh.host if m.ssh else "-", cost.per_hour(m), cost.disk(m)),
            *(_age(m, now), _deadline(m, now), m.id),
        )
        for m in inventory.machines
    ]
    billing = [m for m in inventory.machines if m.state.bills]
    known = sum(m.price_usd_per_hour or 0 for m in billing)
    unknown = sum(m.price_usd_per_hour is None for m in billing)
    total = f"Together ${known:.3f}/h" + (f", and {unknown} at an unknown price" if unknown else "") + "."
    notes = [f"{m.name}: {m.unusable}." for m in inventory.machines if m.unusable]
    notes += [f"{m.name} was adopted: it does not stop by itself." for m in billing if m.is_adopted]
    if any(_is_late(m, now) for m in billing):
        notes.append("Past its deadline and still running: `gpuops reap` stops it.")
    return "\n".join([screen.columns(rows), *notes, total])


def _status_json(inventory: Inventory) -> str:
    machines = [
        {
            "id": m.id,
            "name": m.name,
            "provider": m.provider,
            "region": m.region,
            "zone": m.zone,
            "type": m.type,
            "state": m.state.value,
            "address": m.ssh.host if m.ssh else None,
            "bills": m.state.bills,
            "price_usd_per_hour": m.price_usd_per_hour,
            "disk_usd_per_month": m.disk_usd_per_month,
            "launched_at": m.launched_at.isoformat() if m.launched_at else None,
            "max_hours": m.max_hours,
            "deadline": m.deadline.isoformat() if m.deadline else None,
            "is_adopted": m.is_adopted,
            "problem": m.problem,
        }
        for m in inventory.machines
    ]
    unanswered = [{"place": place.place, "reason": place.reason} for place in inventory.unanswered]
    return json.dumps({"format": FORMAT, "machines": machines, "unanswered": unanswered}, indent=1)


def _age(machine: Machine, now: datetime) -> str:
    """How long it has been running."""
    if machine.state is not State.RUNNING or machine.launched_at is None:
        return "-"
    return cost.duration((now - machine.launched_at).total_seconds() / 3600)


def _deadline(machine: Machine, now: datetime) -> str:
    if machine.state is not State.RUNNING or machine.deadline is None:
        return "never" if machine.state is State.RUNNING and machine.is_adopted else "-"
    text = f"{machine.deadline.astimezone():%a %d %b %H:%M}"
    return f"{text} (late)" if _is_late(machine, now) else text


def _is_late(machine: Machine, now: datetime) -> bool:
    from gpuops import workflow

    return workflow.is_overdue(machine, now)
