"""Limits armed on the machine, where they hold with this computer shut; and said in its labels, where all see them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from gpuops import cost, watch
from gpuops.errors import OverLimit, StateError
from gpuops.lifecycle import Plan
from gpuops.machine import Machine

if TYPE_CHECKING:
    from gpuops.transports import Transport
    from gpuops.workflow.session import Session


def limited(
    session: Session, machine: Machine, plan: Plan, *, is_ours: bool, may_be_unwatched: bool = False
) -> Machine:
    """The machine, just raised as planned, with the plan's limits on it; `is_ours`: this very command made it.

    Every boot arms the machine's own deadline by itself; here is done what this command was told beyond that. A limit
    is a budget on the machine, so that it counts across reboots, until the next start. Raises `OverLimit` where a
    machine can't be limited, and `StateError` where one of ours would not stop by itself.
    """
    limits = plan.limits
    with session.line(machine) as line:
        left = watch.left(line)
        if left is None:
            if not may_be_unwatched:  # what is on its disk is fetched all the same
                _refuse_unwatched(machine, plan)
            return machine
        session.ledger.uptimes(machine, watch.uptimes(line), now=session.clock.now())
        if is_ours:
            return _launched(session, machine, plan, line)
        seconds = 3600 * limits.hours(machine.max_hours or plan.wish.max_hours, machine.price_usd_per_hour)
        if plan.existing and not plan.is_up:  # we started it: an earlier start's limit is over
            if not limits.are_given and left.budget_s is None:
                return machine
            watch.budget(line, seconds if limits.are_given else None)
        elif limits.are_given:  # others may count on its deadline: it comes sooner by this, and never later
            watch.budget(line, seconds if left.budget_s is None else min(seconds, left.budget_s))
            if left.deadline_s <= seconds:
                return machine
        else:
            return machine
        watch.arm(line, seconds)
    return deadline_labelled(session, machine, seconds)


def _refuse_unwatched(machine: Machine, plan: Plan) -> None:
    """An adopted machine never stops by itself, and the person was told so; one of ours has to."""
    if not machine.is_adopted:
        raise StateError(
            f"{machine.name} has lost its watch (/run/gpuops/machine is not there): it would not stop by itself.",
            left_behind=f"It is running, at {cost.per_hour(machine)}." if plan.is_up else "",
            next_step=f"Start it anew: gpuops down {machine.name}, then gpuops up {machine.name}",
        )
    if plan.limits.are_given:
        raise OverLimit(
            f"{machine.name} can't be given a limit: it has no clock of gpuops's that would stop it.",
            next_step=f"Leave out --max-hours and --max-usd, and stop it yourself: gpuops down {machine.name}",
        )


def _launched(session: Session, machine: Machine, plan: Plan, line: Transport) -> Machine:
    """Its first boot has the limit as its deadline since before ssh; a later one is not bound by what this one cost."""
    limits, hours = plan.limits, plan.wish.max_hours
    seconds = 3600 * limits.hours(hours, machine.price_usd_per_hour)
    if limits.are_given:
        watch.budget(line, seconds)
    if limits.max_usd is None:
        return machine
    watch.every_boot(line, hours * 3600)
    session.provider.label(machine, {"max-hours": f"{hours:g}"})
    return deadline_labelled(session, replace(machine, max_hours=hours), seconds)


def deadline_labelled(session: Session, machine: Machine, seconds_left: float) -> Machine:
    """The machine with its new deadline in its labels."""
    deadline = session.clock.now() + timedelta(seconds=seconds_left)
    session.provider.label(machine, {"deadline": deadline.isoformat(timespec="seconds")})
    return replace(machine, deadline=deadline)
