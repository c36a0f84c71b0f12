"""Waiting for a machine to become what it is to be: running, reached, stopped, gone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from gpuops import cost
from gpuops.errors import MachineUnreachable, NoCapacity, ProviderError, StateError
from gpuops.lifecycle.clock import Clock, Tell, polls, tried_again
from gpuops.machine import Machine, State
from gpuops.providers import Provider
from gpuops.transports import Transport

_RUNNING_WITHIN_S = 600.0
_SSH_WITHIN_S = 600.0
_STOPPED_WITHIN_S = 600.0
_KNOCK_EVERY_S = 0.4
_LOOK_EVERY_S = 2.0
# A vendor that doesn't know an instance may only not know it yet; EC2's guide speaks of "seconds to minutes".
_UNSEEN_AT_MOST = timedelta(minutes=10)


def wait_until_running(provider: Provider, machine: Machine, *, clock: Clock, tell: Tell) -> Machine:
    """Until it runs and has an address, starting it where it is stopped. Raises `StateError`, `NoCapacity`."""
    started = False
    for _ in polls(clock, _RUNNING_WITHIN_S):
        machine = seen_again(provider, machine, clock)
        if machine.state is State.RUNNING and machine.ssh:
            return machine
        if machine.state is State.STOPPED and started:
            raise StateError(
                f"{machine.name} stopped again right after its start: {machine.problem or 'no reason given'}",
                left_behind=f"It is stopped; its disk costs {cost.disk(machine)}.",
                next_step=f"gpuops up {machine.name}",
            )
        if machine.state is State.STOPPED:
            tell(f"Starting {machine.type} {machine.id}")
            # It may have left that state since; the next poll tells.
            with contextlib.suppress(StateError):
                _start(provider, machine, clock)
                started = True
        if not machine.state.exists:
            raise StateError(
                f"{machine.name} ({machine.id}) was ended before it ran: {machine.problem or 'no reason given'}",
                left_behind="Nothing runs and nothing bills.",
                next_step=f"gpuops up {machine.name}",
            )
    raise StateError(
        f"{machine.name} ({machine.id}) did not run within {_RUNNING_WITHIN_S / 60:.0f} minutes "
        f"(it is {machine.state.value}; {machine.problem or 'no reason given'}).",
        next_step="gpuops status",
    )


def _start(provider: Provider, machine: Machine, clock: Clock) -> None:
    try:
        tried_again(clock, lambda: provider.start(machine))
    except NoCapacity as error:
        error.left_behind = f"It is stopped; its disk costs {cost.disk(machine)}."
        if error.scope != "zone":
            raise
        error.what = (
            f"{machine.zone or machine.region} has no room for {machine.name} now, and a stopped machine starts only "
            f"where its disk is. {error.what}"
        )
        error.next_step = f"Try again in some minutes: gpuops up {machine.name}. Or a new one elsewhere: " + (
            f"gpuops up {machine.name}-2" if len(machine.name) < 60 else "gpuops up NAME"
        )
        raise


def wait_until_reached(
    provider: Provider, machine: Machine, *, open_line: Callable[[Machine], Transport], clock: Clock, tell: Tell
) -> Machine:
    """Until ssh answers with the right host key and lets us in. A wrong key or a refusal is raised at once."""
    tell(f"Waiting for ssh on {machine.ssh.host}" if machine.ssh else "Waiting for ssh")
    problem = ""
    looked_at = clock.monotonic()
    # To knock costs nobody anything; the vendor is asked no more often than it is otherwise.
    for _ in polls(clock, _SSH_WITHIN_S, first_s=_KNOCK_EVERY_S, longest_s=_KNOCK_EVERY_S):
        try:
            with open_line(machine) as line:
                line.run(["true"])
            return machine
        except MachineUnreachable as error:
            problem = error.what
        if clock.monotonic() - looked_at > _LOOK_EVERY_S:
            machine = wait_until_running(provider, machine, clock=clock, tell=tell)
            looked_at = clock.monotonic()
    raise MachineUnreachable(f"{machine.name} runs, but its ssh did not answer: {problem}", next_step="gpuops status")


def stop(provider: Provider, machine: Machine, *, clock: Clock) -> Machine:
    """Until it is stopped; a pending machine is stopped as soon as EC2 takes the call. Raises `StateError`.

    A machine that can't be looked at is told to stop all the same.
    """
    told = False
    for _ in polls(clock, _STOPPED_WITHIN_S):
        try:
            machine = seen_again(provider, machine, clock)
        except ProviderError as error:
            if told:
                error.left_behind = (
                    f"{machine.name} was told to stop, and it could not be seen whether it has: until then it costs "
                    f"{cost.rate(machine.price_usd_per_hour)}."
                )
                raise
            machine = replace(machine, state=State.UNKNOWN)
        if machine.state is State.STOPPED or not machine.state.exists:
            return machine
        if machine.state in {State.RUNNING, State.UNKNOWN}:
            with contextlib.suppress(StateError):
                tried_again(clock, functools.partial(provider.stop, machine))
                told = True
    raise StateError(
        f"{machine.name} ({machine.id}) is still {machine.state.value} after {_STOPPED_WITHIN_S / 60:.0f} minutes.",
        left_behind=f"It may go on costing {cost.per_hour(machine)}.",
        next_step=f"gpuops down {machine.name}",
    )


def terminate(provider: Provider, machine: Machine, *, clock: Clock) -> Machine:
    """Until it is gone, with its disk. Raises `StateError`."""
    tried_again(clock, lambda: provider.terminate(machine))
    for _ in polls(clock, _STOPPED_WITHIN_S):
        machine = seen_again(provider, machine, clock)
        if machine.state is State.TERMINATED:
            return machine
    raise StateError(
        f"{machine.name} ({machine.id}) is still {machine.state.value}.",
        left_behind=f"It may go on costing {cost.per_hour(machine)}.",
        next_step="gpuops status",
    )


def seen_again(provider: Provider, machine: Machine, clock: Clock) -> Machine:
    """What the provider says of it now. Not to know it is only believed of a new one, and never means that it is gone.

    Raises `StateError` for one that was there long before.
    """
    before = machine
    machine = tried_again(clock, lambda: provider.refresh(before))
    is_new = before.launched_at is None or clock.now() - before.launched_at < _UNSEEN_AT_MOST
    if machine.state is State.UNKNOWN and not is_new:
        raise StateError(
            f"{machine.provider} doesn't know {machine.name} ({machine.id}) in {machine.region} any more.",
            left_behind="That does not prove that it is gone: it may still run, at "
            f"{cost.rate(machine.price_usd_per_hour)}.",
            next_step="gpuops status",
        )
    return machine
