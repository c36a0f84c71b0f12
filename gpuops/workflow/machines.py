"""A machine's life: up, seen, reached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from gpuops import providers
from gpuops.errors import StateError, VendorUnreachable
from gpuops.lifecycle import Clock, Tell
from gpuops.machine import Inventory, Machine, State
from gpuops.settings import Settings
from gpuops.workflow.session import REAL_CLOCK, Confirm, Session, address_book


def up(settings: Settings, *, confirm: Confirm, tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """A running machine that ssh reaches under its name: the one that exists, started; or else a new one.

    `confirm` sees the plan before anything bills, and raises to decline. Whatever goes wrong after that, a machine
    that this call launched or started is stopped again.
    """
    session = Session.open(settings, tell, clock)
    with session.raised(confirm) as (machine, release):
        release.keep()
    return machine


def status(settings: Settings, *, show: Callable[[Inventory], None] = lambda _: None) -> Inventory:
    """Every machine that the provider has, and the places that did not answer; the address book follows.

    `show` is given them first: what bills is to be seen even where an ssh config can't be written.
    """
    inventory = providers.open(settings.provider, settings).machines()
    show(inventory)
    address_book(settings).regenerate(inventory, provider=settings.provider)
    return inventory


def reach(settings: Settings) -> tuple[Machine, Path]:
    """The running machine, and the ssh config that reaches it. Raises `StateError` if it doesn't run."""
    session = Session.open(settings, lambda _: None, REAL_CLOCK)
    machine = session.existing()
    session.book.update([machine])
    if machine.state is not State.RUNNING:
        raise StateError(
            f"{machine.name} is {machine.state.value}.",
            left_behind="Nothing was changed.",
            next_step=f"gpuops up {machine.name}",
        )
    with contextlib.suppress(VendorUnreachable):  # ssh may be open to this computer all the same
        session.admit(machine)
    return machine, session.book.path
