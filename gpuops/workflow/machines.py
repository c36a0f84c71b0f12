"""A machine's life: up, seen, reached, given more time, stopped when its time is over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpuops import lifecycle, providers, watch
from gpuops.errors import GpuopsError, StateError, VendorUnreachable
from gpuops.lifecycle import Clock, Tell
from gpuops.machine import GpuType, Inventory, Machine, State
from gpuops.openssh import Access
from gpuops.settings import Settings
from gpuops.workflow.limits import deadline_labelled
from gpuops.workflow.session import REAL_CLOCK, Confirm, Session, address_book, ledger

# A machine that stops by itself takes this long to do so: reaping it sooner would only race with it.
_OVERDUE_AFTER = timedelta(minutes=5)


def offers(settings: Settings) -> list[GpuType]:
    """What could be rented in the region, cheapest first."""
    return providers.open(settings.provider, settings).catalogue(settings.wish())


def up(settings: Settings, *, confirm: Confirm, tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """A running machine that ssh reaches under its name: the one that exists, started; or else a new one.

    `confirm` sees the plan before anything bills, and raises to decline. Whatever goes wrong after that, a machine
    that this call launched or started is stopped again.
    """
    session = Session.open(settings, tell, clock)
    with session.raised(confirm) as (machine, release):
        release.keep()
    return machine


def rehearse(
    settings: Settings, *, show: Confirm, tell: Tell, for_training: bool = False, clock: Clock = REAL_CLOCK
) -> None:
    """Plan as `up` does, `show` the plan, and ask the provider whether it would be permitted; nothing is changed."""
    session = Session.open(settings, tell, clock)
    session.book.check()
    with session.locked() as key:
        plan = session.plan(key, for_training=for_training)
    show(plan)
    if plan.offers:
        session.provider.rehearse(
            session.wish(for_training=for_training), plan.offers[0], client_key=session.client_key
        )


def status(settings: Settings, *, show: Callable[[Inventory], None] = lambda _: None) -> Inventory:
    """Every machine that the provider has, and the places that did not answer; the address book follows.

    `show` is given them first: what bills is to be seen even where an ssh config can't be written.
    """
    inventory = providers.open(settings.provider, settings).machines()
    show(inventory)
    ledger(settings).seen(inventory.machines, now=REAL_CLOCK.now(), complete=not inventory.unanswered)
    address_book(settings).regenerate(inventory, provider=settings.provider)
    return inventory


def reach(settings: Settings) -> tuple[Machine, Access]:
    """The running machine, and how OpenSSH's programs get to it. Raises `StateError` if it doesn't run."""
    session = Session.open(settings, lambda _: None, REAL_CLOCK)
    machine = running(session)
    with contextlib.suppress(VendorUnreachable):  # ssh may be open to this computer all the same
        session.admit(machine)
    return machine, session.book.access(machine)


def check_line(settings: Settings, machine: Machine) -> None:
    """Raises what keeps ssh from this machine (`ConnectionFailed`); nothing where it can be reached."""
    session = Session.open(settings, lambda _: None, REAL_CLOCK).about(machine.name)
    with session.line(machine):
        pass


def extend(settings: Settings, hours: float, *, tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """The running machine, which stops by itself that much later than it would have. Raises `StateError`."""
    session = Session.open(settings, tell, clock)
    with session.locked():
        machine = running(session)
        session.admit(machine)
        with session.line(machine) as line:
            left = watch.left(line)
            if left is None:
                raise StateError(
                    f"{machine.name} has no clock of gpuops's that could be set: it does not stop by itself.",
                    left_behind="Nothing was changed.",
                    next_step=f"Stop it when you are done: gpuops down {machine.name}",
                )
            seconds = left.deadline_s + hours * 3600
            if left.budget_s is not None:
                watch.budget(line, max(left.budget_s + hours * 3600, seconds))
            watch.arm(line, seconds)
        return deadline_labelled(session, machine, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What `reap` did: the machines that it stopped, what it could not stop and why, and what has no deadline."""

    stopped: tuple[Machine, ...]
    failed: tuple[tuple[Machine, GpuopsError], ...]
    without_deadline: tuple[Machine, ...]
    inventory: Inventory


def reap(settings: Settings, *, tell: Tell, clock: Clock = REAL_CLOCK) -> Reaped:
    """Stop every machine, in every region, that should have stopped by itself and did not. Its disk is kept."""
    session = Session.open(settings, tell, clock)
    inventory = session.provider.machines()
    session.ledger.seen(inventory.machines, now=clock.now(), complete=not inventory.unanswered)
    running = [machine for machine in inventory.machines if machine.state is State.RUNNING]
    stopped, failed = [], []
    for machine in running:
        if is_overdue(machine, clock.now()):
            try:
                if (reaped := _reaped(session.about(machine.name), machine)) is not None:
                    stopped.append(reaped)
            except GpuopsError as error:
                failed.append((machine, error))
    return Reaped(
        stopped=tuple(stopped),
        failed=tuple(failed),
        without_deadline=tuple(machine for machine in running if machine.deadline is None),
        inventory=inventory,
    )


def _reaped(session: Session, machine: Machine) -> Machine | None:
    """The machine, stopped; None where it is not overdue by now, or says itself that it has more time (a reboot)."""
    with session.locked():
        machine = lifecycle.seen_again(session.provider, machine, session.clock)
        if not is_overdue(machine, session.clock.now()):
            return None
        with contextlib.suppress(GpuopsError):  # one that can't be asked is stopped
            session.admit(machine)
            with session.line(machine, connect_timeout_s=5) as line:
                left = watch.left(line)
            if left is not None and left.deadline_s > _OVERDUE_AFTER.total_seconds():
                deadline_labelled(session, machine, left.deadline_s)
                session.tell(f"{machine.name} ({machine.id}) has been given more time")
                return None
        session.tell(f"Stopping {machine.name} ({machine.id}), which was to stop by itself")
        return session.stop(machine)


def is_overdue(machine: Machine, now: datetime) -> bool:
    """True for a machine that runs although its deadline is over."""
    return machine.state.bills and machine.deadline is not None and now > machine.deadline + _OVERDUE_AFTER


def running(session: Session) -> Machine:
    """The machine that the session is about, with its address in the book. Raises `StateError` if it doesn't run."""
    machine = session.existing()
    session.book.update([machine])
    session.ledger.seen([machine], now=session.clock.now())
    if machine.state is not State.RUNNING:
        raise StateError(
            f"{machine.name} is {machine.state.value}.",
            left_behind="Nothing was changed.",
            next_step=f"gpuops up {machine.name}",
        )
    return machine
