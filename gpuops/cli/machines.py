"""`gpuops up`, `status`, `ssh`, `down`: a machine's life."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuops import cost
from gpuops.cli import screen
from gpuops.errors import NoSshProgram, VendorUnreachable
from gpuops.machine import FORMAT, Machine, State

if TYPE_CHECKING:
    from gpuops.lifecycle import Plan
    from gpuops.machine import Inventory, Offer
    from gpuops.settings import Settings
    from gpuops.workflow import Farewell


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say at which provider."""
    command = click.option("--region", help="The provider's region. Default: us-west-2.")(command)
    return click.option("--provider", help="Where machines come from. Default: aws.")(command)


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what kind of machine is launched."""
    for option in (
        click.option("--admit", help="The one address block that may reach ssh. Default: this computer's address."),
        click.option("--max-hours", type=float, help="It stops by itself this long after every boot. Default: 12."),
        click.option("--disk-gb", type=int, help="Size of the disk. Default: 100."),
        click.option("--type", "types", multiple=True, help="Machine type; several are tried in order."),
        _where,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("name", required=False)
@machine_options
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def up(yes: bool, **flags: object) -> None:
    """Start the machine (or launch it), and make `ssh NAME` work."""
    from gpuops import workflow

    settings = resolve(**flags)
    with screen.Progress() as progress:
        machine = workflow.up(settings, confirm=confirm_plan(settings, progress, yes=yes), tell=progress.tell)
    screen.say(f"{machine.name} runs: {machine.type} in {machine.place}, {cost.per_hour(machine)}.")
    screen.say(_stops(machine))
    book = workflow.address_book(settings)
    plain = settings.ssh_config == Path.home() / ".ssh" / "config"
    screen.say(f"  ssh {machine.name}" if plain else f"  ssh -F {book.path} {machine.name}")


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
        silent = "".join(f"\n  {place.place}: {place.reason}" for place in inventory.unanswered)
        raise VendorUnreachable(
            f"Not all places answered; what runs there is not shown.{silent}", next_step="gpuops status"
        )


@click.command(
    short_help="A shell on the machine, or one command there.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str | None, command: tuple[str, ...]) -> None:
    """Open a shell on the machine, or run COMMAND there and exit as it does.

    COMMAND reaches the machine's shell as ssh sends it, its words joined by spaces: quote for that shell.
    """
    from gpuops import workflow

    if not shutil.which("ssh"):
        raise NoSshProgram(
            "There is no `ssh` program on this computer.",
            left_behind="Nothing was changed.",
            next_step="Install OpenSSH's client (Debian and Ubuntu: apt install openssh-client).",
        )
    machine, config = workflow.reach(resolve(name=name))
    os.execvp("ssh", ["ssh", "-F", str(config), machine.name, *command])


@click.command()
@click.argument("name", required=False)
@_where
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
                screen.ask(question, yes=yes)

        machine = workflow.down(
            resolve(**flags), terminate=terminate, discard=discard, confirm=confirm, tell=progress.tell
        )
    if machine.state.exists:
        screen.say(f"{machine.name} is {machine.state.value}: $0/h. Its disk is kept and costs {cost.disk(machine)}.")
    else:
        screen.say(f"{machine.name} is gone, with its disk: it costs nothing any more.")


def resolve(**flags: object) -> Settings:
    """Settings from these flags, this environment and this folder."""
    from gpuops import settings

    flags = {key: value or None if isinstance(value, tuple) else value for key, value in flags.items()}
    return settings.resolve(flags, environ=os.environ, folder=Path.cwd())


def confirm_plan(
    settings: Settings, progress: screen.Progress, *, yes: bool, afterwards: str = ""
) -> Callable[[Plan], None]:
    """Show what is about to be done, what it costs and what comes afterwards; and ask, unless nothing new will bill."""

    def confirm(plan: Plan) -> None:
        progress.pause()
        _show_plan(plan, settings, afterwards)
        screen.ask(_question(plan), yes=yes or _costs_nothing_new(plan))

    return confirm


def _farewell_question(farewell: Farewell) -> str:
    """What to ask before this stop or deletion; "" where nothing is at stake."""
    machine, seen = farewell.machine, farewell.disk
    if farewell.terminate:
        return f"Delete {machine.name} ({machine.id}) and everything on its disk?"
    if seen and seen.running:
        return f"Run {seen.running[0]} is going on there and would be interrupted. Stop {machine.name}?"
    if seen and seen.not_home:
        return f"{len(seen.not_home)} runs are not home yet (`gpuops pull`); the disk is kept. Stop {machine.name}?"
    return ""


def _costs_nothing_new(plan: Plan) -> bool:
    return plan.existing is not None and plan.existing.state in {State.RUNNING, State.PENDING}


def _question(plan: Plan) -> str:
    price = plan.existing.price_usd_per_hour if plan.existing else plan.offer.price_usd_per_hour if plan.offer else None
    return f"Start it, at {cost.rate(price)}?"


def _show_plan(plan: Plan, settings: Settings, afterwards: str) -> None:
    if plan.existing:
        machine = plan.existing
        hours = machine.max_hours or settings.max_hours
        rows = [
            ("use" if _costs_nothing_new(plan) else "start", f"{machine.name} ({machine.id}), {machine.state.value}"),
            ("type", f"{machine.type} in {machine.zone or machine.region}"),
            ("price", f"{cost.rate(machine.price_usd_per_hour)} while it runs; disk {cost.disk(machine)}"),
            ("stops", f"by itself {hours:g} h after every boot"),
        ]
        if settings.max_hours < hours:
            rows.append(("note", f"--max-hours is for a new machine; this one keeps its {hours:g} h"))
    else:
        offer = plan.offer
        assert offer is not None  # a plan without a machine has an offer: NothingOffered was raised otherwise
        rows = [
            ("finish" if plan.unfinished else "launch", f"{settings.name}: {_type(offer)} in {offer.region}"),
            ("image", f"{offer.image_name} ({offer.image_id})"),
            ("price", f"{cost.rate(offer.price_usd_per_hour)} while it runs"),
            ("disk", f"{offer.disk_gb} GB, {cost.monthly(offer.disk_usd_per_month)} until it is deleted"),
            ("stops", f"by itself {settings.max_hours:g} h after every boot (--max-hours)"),
        ]
        if offer.note:
            instead = next((o for o in plan.offers if not o.note), None)
            rows.append(("note", f"{offer.note}; today it gives {_priced(instead)}" if instead else offer.note))
    rows += [("warning", f"{place.place} did not answer: {place.reason}") for place in plan.unanswered]
    screen.rows([*rows, ("then", afterwards)] if afterwards else rows, err=True)


def _type(offer: Offer) -> str:
    return f"{offer.type} ({offer.gpu} {offer.gpu_memory_gb} GB)"


def _priced(offer: Offer) -> str:
    return f"{_type(offer)} with {offer.image_name} at {cost.rate(offer.price_usd_per_hour)}"


def _stops(machine: Machine) -> str:
    if machine.max_hours is None:
        return "It is not known when it stops by itself: stop it with `gpuops down`."
    return f"It stops by itself {machine.max_hours:g} h after its boot; sooner with `gpuops down {machine.name}`."


def _status_text(inventory: Inventory) -> str:
    if not inventory.machines:
        return "" if inventory.unanswered else "No machines, in any region."
    rows = [("NAME", "STATE", "TYPE", "PLACE", "ADDRESS", "PRICE", "DISK", "STOPS BY ITSELF", "ID")]
    for m in inventory.machines:
        address = m.ssh.host if m.ssh else "-"
        rows.append(
            (m.name, m.state.value, m.type, m.place, address, cost.per_hour(m), cost.disk(m), _deadline(m), m.id)
        )
    billing = [m for m in inventory.machines if m.state.bills]
    known = sum(m.price_usd_per_hour or 0 for m in billing)
    unknown = sum(m.price_usd_per_hour is None for m in billing)
    total = f"Together ${known:.3f}/h" + (f", and {unknown} at an unknown price" if unknown else "") + "."
    notes = [f"{m.name}: {m.unusable}." for m in inventory.machines if m.unusable]
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
            "problem": m.problem,
        }
        for m in inventory.machines
    ]
    unanswered = [{"place": place.place, "reason": place.reason} for place in inventory.unanswered]
    return json.dumps({"format": FORMAT, "machines": machines, "unanswered": unanswered}, indent=1)


def _deadline(machine: Machine) -> str:
    if machine.state is not State.RUNNING or not machine.launched_at or not machine.max_hours:
        return "-"
    from datetime import timedelta

    return f"{(machine.launched_at + timedelta(hours=machine.max_hours)).astimezone():%a %d %b %H:%M}"
