"""Waiting for a machine to become what it is to be: running, reached, stopped, gone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from datetime import timedelta

from gpuops import cost
from gpuops.errors import GpuopsError, MachineUnreachable, NoCapacity, ProviderError, StateError, VendorUnreachable
from gpuops.lifecycle.clock import Clock, Tell, polls, tried_again
from gpuops.machine import Machine, State
from gpuops.providers import Provider
from gpuops.transports import Transport

_RUNNING_WITHIN_S = 600.0
_SSH_WITHIN_S = 600.0
_STOPPED_WITHIN_S = 600.0
_KNOCK_EVERY_S = 0.4
_LOOK_EVERY_S = 2.0
_LOOK_AT_LEAST_EVERY_S = 15.0
_SHOWN_WITHIN_S = 10.0
# How long a provider may show the state that a machine had before we started it.
_STALE_S = 30.0
# A machine that is protected from stopping refuses each time; one that is in between two states, now and then.
_REFUSALS_AT_MOST = 5
# A vendor that doesn't know an instance may only not know it yet; EC2's guide speaks of "seconds to minutes".
_UNSEEN_AT_MOST = timedelta(minutes=10)


def wait_until_running(
    provider: Provider, machine: Machine, *, clock: Clock, tell: Tell, may_start: bool = True
) -> Machine:
    """Until it runs and has an address; where it is stopped, it is started if that is what was agreed to.

    Raises `StateError`, `NoCapacity`.
    """
    started_at: float | None = None
    was_alive = False
    for _ in polls(clock, _RUNNING_WITHIN_S):
        machine = seen_again(provider, machine, clock)
        if machine.state is State.RUNNING and machine.ssh:
            return machine
        if machine.state is State.STOPPED:
            if started_at is None and may_start and not was_alive:
                tell(f"Starting {machine.type} {machine.id}")
                # It may have left that state since; the next poll tells.
                with contextlib.suppress(StateError):
                    _start(provider, machine, clock)
                    started_at = clock.monotonic()
            elif was_alive or started_at is None or clock.monotonic() - started_at > _STALE_S:
                raise StateError(
                    f"{machine.name} has stopped again: {machine.problem or 'no reason given'}",
                    left_behind=f"It is stopped; its disk costs {cost.disk(machine)}.",
                    next_step=f"gpuops up {machine.name}",
                )
        was_alive = was_alive or machine.state in {State.PENDING, State.RUNNING}
        if not machine.state.exists:
            raise _ended_before_it_ran(machine)
    reason = "it has no public address" if machine.state is State.RUNNING else machine.problem or "no reason given"
    raise StateError(
        f"{machine.name} ({machine.id}) could not be reached within {_RUNNING_WITHIN_S / 60:.0f} minutes "
        f"(it is {machine.state.value}; {reason}).",
        next_step="gpuops status",
    )


def _ended_before_it_ran(machine: Machine) -> GpuopsError:
    """EC2 may take a launch and find only then that it has no room."""
    kind = NoCapacity if "InsufficientInstanceCapacity" in machine.problem else StateError
    return kind(
        f"{machine.name} ({machine.id}) was ended before it ran: {machine.problem or 'no reason given'}",
        left_behind="Nothing runs and nothing bills.",
        next_step=f"gpuops up {machine.name}",
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
            machine = wait_until_running(provider, machine, clock=clock, tell=tell, may_start=False)
            looked_at = clock.monotonic()
    raise MachineUnreachable(f"{machine.name} runs, but its ssh did not answer: {problem}", next_step="gpuops status")


def wait_until_back(provider: Provider, machine: Machine, *, clock: Clock, tell: Tell) -> Machine:
    """Until a machine whose line was lost runs, at whatever address it has then; it may have been stopped meanwhile.

    For as long as it takes: it isn't started here, and where the vendor can't be reached, this computer may just have
    woken. Raises `StateError` when the machine is gone.
    """
    told = ""
    pause_s = _LOOK_EVERY_S
    while True:
        try:
            machine = seen_again(provider, machine, clock)
            if machine.state is State.RUNNING and machine.ssh:
                return machine
            if not machine.state.exists:
                raise StateError(
                    f"{machine.name} is {machine.state.value}.",
                    left_behind="Nothing runs and nothing bills.",
                    next_step=f"gpuops up {machine.name}",
                )
            news = f"{machine.name} is {machine.state.value}, at {cost.per_hour(machine)}; waiting until it runs again"
        except VendorUnreachable:
            news = f"{machine.provider} can't be reached either; trying again"
        if news != told:
            tell(news)
            told = news
        clock.sleep(pause_s)
        pause_s = min(_LOOK_AT_LEAST_EVERY_S, pause_s * 1.3)


def stop(provider: Provider, machine: Machine, *, clock: Clock, may_be_starting: bool = False) -> Machine:
    """Until it is stopped. Raises `StateError`.

    A machine that can't be looked at is told to stop all the same; and so is one that `may_be_starting` by a call of
    ours, as a provider may show the state before that call for a while.
    """
    told = False
    refusals = 0
    began = clock.monotonic()
    for _ in polls(clock, _STOPPED_WITHIN_S):
        unseen: ProviderError | None = None
        try:
            machine = seen_again(provider, machine, clock)
        except ProviderError as error:
            unseen = error
        if unseen and told:
            unseen.left_behind = (
                f"{machine.name} was told to stop, and it could not be seen whether it has: until then it costs "
                f"{cost.rate(machine.price_usd_per_hour)}."
            )
            raise unseen
        is_stopped = machine.state is State.STOPPED and not unseen
        may_be_old = may_be_starting and not told and clock.monotonic() - began < _STALE_S
        if (is_stopped and not may_be_old) or not machine.state.exists:
            return machine
        if machine.state is State.RUNNING or unseen or (is_stopped and may_be_old):
            try:
                tried_again(clock, functools.partial(provider.stop, machine))
                told = True
            except StateError:  # not yet, or not ever
                refusals += machine.state is State.RUNNING
                if refusals >= _REFUSALS_AT_MOST:
                    raise
        if machine.state not in {State.STOPPED, State.UNKNOWN}:
            may_be_starting = False
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


def wait_until_shown(
    provider: Provider, machine: Machine, is_shown: Callable[[Machine], bool], *, clock: Clock
) -> Machine:
    """What the provider says of it, asked until that shows what was just changed, or for 10 s: it may take a moment."""
    for _ in polls(clock, _SHOWN_WITHIN_S):
        seen = tried_again(clock, functools.partial(provider.refresh, machine))
        if is_shown(seen):
            break
    return seen


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
