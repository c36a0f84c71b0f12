"""Ports of a machine's, reachable here for as long as the person wants: through sleep, lost networks and restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuops import cost, lifecycle, notebooks, transports
from gpuops.errors import GpuopsError, MachineUnreachable, RemoteCommandFailed, StateError, VendorUnreachable
from gpuops.lifecycle import Clock, Tell
from gpuops.machine import Machine, State
from gpuops.settings import Settings
from gpuops.workflow.machines import running
from gpuops.workflow.session import REAL_CLOCK, Confirm, Session

if TYPE_CHECKING:
    from gpuops.transports import Door, Transport

_LOOK_EVERY_S = 1.0
_PROBE_EVERY_S = 15.0
_ANSWERS_WITHIN_S = 5.0
# More than this between two looks, and the computer was asleep: the line may be dead without knowing it.
_ASLEEP_AFTER_S = 5.0

# What each line leads to: the doors, and the machine's ports behind them.
Leads = Callable[["Transport"], Sequence[tuple["Door", int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A port of the machine's, and the one that it is to have here; None: the same, or the next that is free."""

    remote_port: int
    local_port: int | None = None


class Left(KeyboardInterrupt):
    """Ctrl-C while a tunnel was open: the machine, and what runs on it, goes on."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine


def tunnel(
    settings: Settings,
    forwards: Sequence[Forward],
    *,
    opened: Callable[[Machine, list[tuple[int, int]]], None],
    tell: Tell,
    clock: Clock = REAL_CLOCK,
) -> None:
    """Lead ports of this computer's to the running machine's until interrupted (`Left`), whatever the line does.

    `opened` is told once of the (local, remote) ports. Raises `PortInUse`, and `StateError` where the machine doesn't
    run, or is gone.
    """
    session = Session.open(settings, tell, clock)
    with contextlib.ExitStack() as held:
        doors = [(held.enter_context(_door(forward)), forward.remote_port) for forward in forwards]
        machine = running(session)
        with contextlib.suppress(VendorUnreachable):  # ssh may be open to this computer all the same
            session.admit(machine)
        ports = [(door.port, remote_port) for door, remote_port in doors]
        _keep_open(session, machine, lambda _: doors, opened=lambda: opened(machine, ports))


def notebook(
    settings: Settings,
    *,
    port: int | None,
    confirm: Confirm,
    opened: Callable[[Machine, str], None],
    tell: Tell,
    clock: Clock = REAL_CLOCK,
) -> None:
    """Raise the machine, find or start its Jupyter, and lead a port here to it until interrupted (`Left`).

    `opened` is told the URL once. It stays good: after a restart of the machine, its Jupyter is started again with the
    same token. Until Jupyter runs, the machine is released on any exit; from then on it is the person's.
    """
    session = Session.open(settings, tell, clock)
    # Before anything bills: a port that can't be had is known now, and kept.
    with _door(Forward(remote_port=notebooks.PORT, local_port=port)) as door:
        with session.raised(confirm) as (machine, release), session.line(machine) as line:
            found = _running_notebook(line, machine, tell)
            release.keep()

        def leads(line: Transport) -> Sequence[tuple[Door, int]]:
            return [(door, _running_notebook(line, machine, tell).port)]

        _keep_open(session, machine, leads, opened=lambda: opened(machine, found.url(door.port)))


def stop_notebook(settings: Settings, *, tell: Tell, clock: Clock = REAL_CLOCK) -> tuple[Machine, bool]:
    """End the machine's Jupyter and its kernels; the machine runs on. False where none ran."""
    session = Session.open(settings, tell, clock)
    machine = running(session)
    session.admit(machine)
    with session.line(machine) as line:
        found = notebooks.find(line)
        if found:
            tell(f"Stopping Jupyter on {machine.name}")
            notebooks.stop(line, found)
    return machine, found is not None


def _door(forward: Forward) -> Door:
    if forward.local_port is not None:
        return transports.door(forward.local_port)
    return transports.door(forward.remote_port, or_next=True)


def _running_notebook(line: Transport, machine: Machine, tell: Tell) -> notebooks.Notebook:
    if found := notebooks.find(line):
        return found
    tell(f"Starting Jupyter on {machine.name}")
    return notebooks.start(line, machine.name)


def _keep_open(session: Session, machine: Machine, leads: Leads, *, opened: Callable[[], None]) -> None:
    """Line after line, wherever the machine is by then. Raises `Left`, and `StateError` when the machine is gone."""
    has_been_open = is_open = False
    try:
        while True:
            try:
                with session.line(machine, connect_timeout_s=5) as line, contextlib.ExitStack() as forwarded:
                    for door, remote_port in leads(line):
                        forwarded.enter_context(line.forward(door, remote_port))
                    if has_been_open:
                        session.tell(f"{machine.name} is back")
                    else:
                        opened()
                    has_been_open = is_open = True
                    _wait_until_lost(line, session.clock)
            except (MachineUnreachable, VendorUnreachable):
                session.clock.sleep(_LOOK_EVERY_S)
            except RemoteCommandFailed:
                # On a machine that is going down anything may fail; on one that stays, the person has to know.
                machine = lifecycle.seen_again(session.provider, machine, session.clock)
                if machine.state is State.RUNNING:
                    raise
            if is_open:
                session.tell(f"The line to {machine.name} was lost; looking for it")
                is_open = False
            machine = _found_again(session, machine)
    except KeyboardInterrupt as interrupt:
        raise Left(machine) from interrupt
    except GpuopsError as error:
        error.left_behind = error.left_behind or f"{machine.name} runs on, at {cost.per_hour(machine)}."
        raise


def _wait_until_lost(line: Transport, clock: Clock) -> None:
    """Until the line is dead, or the machine doesn't answer on it: a network that has gone away doesn't say so."""
    asked_at = clock.now()
    while line.alive():
        before = clock.now()
        clock.sleep(_LOOK_EVERY_S)
        now = clock.now()
        was_asleep = (now - before).total_seconds() > _ASLEEP_AFTER_S
        if was_asleep or (now - asked_at).total_seconds() > _PROBE_EVERY_S:
            if not line.answers(_ANSWERS_WITHIN_S):
                return
            asked_at = clock.now()


def _found_again(session: Session, machine: Machine) -> Machine:
    """Where it is now, with its address in the book and this computer, wherever that is by now, let in."""
    while True:
        machine = lifecycle.wait_until_back(session.provider, machine, clock=session.clock, tell=session.tell)
        session.book.update([machine])
        session.book.bring_in(machine)
        try:
            session.admit(machine)
            return machine
        except (VendorUnreachable, StateError):
            session.clock.sleep(_LOOK_EVERY_S)
