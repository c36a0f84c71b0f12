"""The plan's screen: what is about to be done, what it costs, when it ends by itself; and the question."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuops import cost
from gpuops.cli import screen

if TYPE_CHECKING:
    from gpuops.lifecycle import Plan
    from gpuops.machine import Machine, Offer
    from gpuops.settings import Settings

Rows = list[tuple[str, str]]

REHEARSED = "That is the plan, and it would be permitted. Nothing was changed."


def confirm_plan(
    settings: Settings,
    progress: screen.Progress,
    *,
    yes: bool,
    afterwards: str = "",
    estimate: Callable[[Plan], str | None] = lambda _: None,
) -> Callable[[Plan], None]:
    """Show what is about to be done, what it costs and what comes afterwards; and ask, unless nothing new will bill."""

    def confirm(plan: Plan) -> None:
        show_plan(plan, settings, progress, afterwards=afterwards, estimate=estimate)
        screen.ask(f"Start it, at {cost.rate(plan.price_usd_per_hour)}?", yes=yes or plan.is_up)

    return confirm


def show_plan(
    plan: Plan,
    settings: Settings,
    progress: screen.Progress,
    *,
    afterwards: str = "",
    estimate: Callable[[Plan], str | None] = lambda _: None,
) -> None:
    progress.pause()
    rows = _of_machine(plan, plan.existing) if plan.existing else _of_offer(plan, settings)
    rows.append(("stops", _stops(plan)))
    if guess := estimate(plan):
        rows.append(("estimate", guess))
    rows += [("warning", f"{place.place} did not answer: {place.reason}") for place in plan.unanswered]
    screen.rows([*rows, ("then", afterwards)] if afterwards else rows, err=True)


def _of_machine(plan: Plan, machine: Machine) -> Rows:
    return [
        ("use" if plan.is_up else "start", f"{machine.name} ({machine.id}), {machine.state.value}"),
        ("type", f"{machine.type} in {machine.zone or machine.region}"),
        ("price", f"{cost.rate(machine.price_usd_per_hour)} while it runs"),
        ("disk", f"{cost.disk(machine)} until it is deleted"),
        *_ignored(plan, machine),
    ]


def _ignored(plan: Plan, machine: Machine) -> Rows:
    """What was asked for and is only for a new machine: one that exists is never replaced or resized."""
    wish = plan.wish
    asked = [
        ("--type", bool(wish.types) and machine.type not in wish.types),
        ("--image", bool(wish.image)),
        ("--vpc", bool(wish.vpc)),
        ("--subnet", bool(wish.subnet)),
    ]
    ignored = [flag for flag, is_ignored in asked if is_ignored]
    return [("note", f"{', '.join(ignored)}: only for a new machine; this one stays as it is")] if ignored else []


def _of_offer(plan: Plan, settings: Settings) -> Rows:
    offer = plan.offer
    assert offer is not None  # a plan without a machine has an offer: NothingOffered was raised otherwise
    price_from = f" ({offer.price_from})" if offer.price_from else ""
    rows = [
        ("finish" if plan.unfinished else "launch", f"{settings.name}: {_type(offer)}"),
        ("zone", _zones(plan, offer)),
        ("image", f"{offer.image_name} ({offer.image_id})"),
        ("price", f"{cost.rate(offer.price_usd_per_hour)} while it runs{price_from}"),
        ("disk", f"{offer.disk_gb} GB {offer.disk_type}, {cost.monthly(offer.disk_usd_per_month)} until it is deleted"),
    ]
    if others := list(dict.fromkeys(o.type for o in plan.offers if o.type != offer.type)):
        priced = (next(o for o in plan.offers if o.type == name) for name in others)
        rows.append(("or else", ", ".join(f"{o.type} at {cost.rate(o.price_usd_per_hour)}" for o in priced)))
    if offer.note:
        rows.append(("note", offer.note))
    if offer.unfit:
        rows.append(("note", f"No training on it: {offer.unfit}"))
    return rows


def _type(offer: Offer) -> str:
    return f"{offer.type} ({offer.gpu} {offer.gpu_memory_gb} GB)"


def _zones(plan: Plan, offer: Offer) -> str:
    others = [o.place for o in plan.offers if o.type == offer.type and o.place != offer.place]
    return offer.place + (f", else {', '.join(others)}" if others else "")


def _stops(plan: Plan) -> str:
    if plan.hours is None:
        return deadline(plan.existing) if plan.existing else ""
    after = "from now on" if plan.is_up else "after its boot"
    text = f"by itself {cost.duration(plan.hours)} {after}"
    if plan.hours < (plan.limits.max_hours or plan.wish.max_hours) and plan.limits.max_usd is not None:
        return f"{text}: ${plan.limits.max_usd:g} of its hours from now, reboots included"
    return text if plan.limits.max_hours is not None else f"{text} (--max-hours)"


def show_left_to_do(settings: Settings, machine: Machine) -> None:
    """What of the person's own ssh config is theirs to mend."""
    from gpuops import workflow

    if todo := workflow.address_book(settings).left_to_do(machine):
        screen.rows([("to do", text) for text in todo], err=True)


def deadline(machine: Machine) -> str:
    """When a running machine stops by itself, in words."""
    if machine.deadline is None:
        return f"not by itself: stop it with `gpuops down {machine.name}`"
    when = f"{machine.deadline.astimezone():%H:%M on %a %d %b}"
    return f"by itself at {when} (later with `gpuops extend {machine.name} 3h`)"
