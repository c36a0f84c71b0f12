"""The stories, told top to bottom. The command line and Python scripts both call these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpuops import host_keys, lifecycle, providers
from gpuops.errors import StateError
from gpuops.launches import LaunchRecords
from gpuops.lifecycle import Clock, Plan, Release, Tell
from gpuops.machine import Inventory, Machine, State
from gpuops.settings import Settings
from gpuops.ssh_config import AddressBook

REAL_CLOCK = Clock()


def up(settings: Settings, *, confirm: Callable[[Plan], None], tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """A running machine that ssh reaches under its name: the one that exists, started; or else a new one.

    `confirm` sees the plan before anything bills, and raises to decline. Whatever goes wrong after that, a machine
    that this call launched or started is stopped again.
    """
    book = address_book(settings)
    book.check()
    provider = providers.open(settings.provider, settings)
    key = f"{provider.name}-{provider.account()}-{settings.name}"
    records = LaunchRecords(settings.home / "launches")
    with lifecycle.locked(settings.home / "locks", key):
        plan = lifecycle.plan(provider, settings.wish(), records, key, clock)
        confirm(plan)
        identity_file = host_keys.client_key(settings.keys)
        with Release(provider, settings.name, clock=clock, tell=tell) as release:
            if plan.existing:
                machine = plan.existing
                release.owns(machine)
                if machine.state in {State.RUNNING, State.PENDING}:
                    release.keep()  # it was up before us
            else:
                client_key = host_keys.public_key_line(identity_file)
                machine = lifecycle.launch(provider, plan, records, key, release, client_key=client_key)
            machine = lifecycle.wait_until_running(provider, machine, clock=clock, tell=tell)
            book.update([machine])
            machine = lifecycle.wait_until_reached(
                provider, machine, identity_file=identity_file, clock=clock, tell=tell
            )
            release.keep()
        records.clear(key)
        book.update([machine])
    return machine


def status(settings: Settings) -> Inventory:
    """Every machine that the provider has, and the places that did not answer; the address book follows."""
    inventory = providers.open(settings.provider, settings).machines()
    address_book(settings).regenerate(inventory)
    return inventory


def down(
    settings: Settings,
    *,
    terminate: bool,
    confirm: Callable[[Machine], None],
    tell: Tell,
    clock: Clock = REAL_CLOCK,
) -> Machine:
    """Stop the machine and keep its disk; or, with `terminate`, delete both, after `confirm` has seen what goes."""
    provider = providers.open(settings.provider, settings)
    key = f"{provider.name}-{provider.account()}-{settings.name}"
    with lifecycle.locked(settings.home / "locks", key):
        machine = lifecycle.existing(provider, settings.name)
        if terminate:
            confirm(machine)
            tell(f"Terminating {machine.name} ({machine.id})")
            machine = lifecycle.terminate(provider, machine, clock=clock)
        else:
            tell(f"Stopping {machine.name} ({machine.id})")
            machine = lifecycle.stop(provider, machine, clock=clock)
        address_book(settings).update([machine])
    return machine


def reach(settings: Settings) -> tuple[Machine, Path]:
    """The running machine, and the ssh config that reaches it. Raises `StateError` if it doesn't run."""
    book = address_book(settings)
    machine = lifecycle.existing(providers.open(settings.provider, settings), settings.name)
    book.update([machine])
    if machine.state is not State.RUNNING:
        raise StateError(
            f"{machine.name} is {machine.state.value}.",
            left_behind="Nothing was changed.",
            next_step=f"gpuops up {machine.name}",
        )
    return machine, book.path


def address_book(settings: Settings) -> AddressBook:
    return AddressBook(user_config=settings.ssh_config, keys=settings.keys)
