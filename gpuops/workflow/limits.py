"""Limits armed on the machine, where they hold with this computer shut; and said in its labels, where all see them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from gpuops import watch
from gpuops.errors import OverLimit
from gpuops.lifecycle import Plan
from gpuops.machine import Machine

if TYPE_CHECKING:
    from gpuops.transports import Transport
    from gpuops.workflow.session import Session


def limited(session: Session, machine: Machine, plan: Plan) -> Machine:
    """The machine, just raised as planned, with the plan's limits on it.

    Every boot arms the machine's own deadline by itself; here is done what this command was told beyond that. Raises
    `OverLimit` where a machine can't be limited.
    """
    limits, price = plan.limits, machine.price_usd_per_hour
    with session.line(machine) as line:
        left = watch.left(line)
        if left is None:
            if limits.are_given:
                raise OverLimit(
                    f"{machine.name} can't be given a limit: it has no clock of gpuops's that would stop it.",
                    next_step=f"Leave out --max-hours and --max-usd, and stop it yourself: gpuops down {machine.name}",
                )
            return machine
        session.ledger.uptimes(machine, watch.uptimes(line), now=session.clock.now())
        if plan.existing is None:
            return _launched(session, machine, plan, line)
        seconds = 3600 * limits.hours(machine.max_hours or plan.wish.max_hours, price)
        if plan.is_up:  # others may count on its deadline: it comes sooner by this, and never later
            if limits.max_usd is not None:
                watch.budget(line, seconds if left.budget_s is None else min(seconds, left.budget_s))
            if not limits.are_given or left.deadline_s <= seconds:
                return machine
        else:
            if not limits.are_given and left.budget_s is None:
                return machine
            watch.budget(line, seconds if limits.max_usd is not None else None)  # an earlier start's is over
        watch.arm(line, seconds)
    return deadline_labelled(session, machine, seconds)


def _launched(session: Session, machine: Machine, plan: Plan, line: Transport) -> Machine:
    """Its first boot has the limit as its deadline since before ssh; a later one is not bound by what this one cost."""
    hours = plan.wish.max_hours
    seconds = 3600 * plan.limits.hours(hours, machine.price_usd_per_hour)
    if plan.limits.max_usd is None:
        return machine
    watch.budget(line, seconds)
    watch.every_boot(line, hours * 3600)
    session.provider.label(machine, {"max-hours": f"{hours:g}"})
    return deadline_labelled(session, replace(machine, max_hours=hours), seconds)


def deadline_labelled(session: Session, machine: Machine, seconds_left: float) -> Machine:
    """The machine with its new deadline in its labels."""
    deadline = session.clock.now() + timedelta(seconds=seconds_left)
    session.provider.label(machine, {"deadline": deadline.isoformat(timespec="seconds")})
    return replace(machine, deadline=deadline)
