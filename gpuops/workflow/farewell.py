"""A machine stopped, or deleted with its disk: not before what is on it and nowhere else has been seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpuops import disk, lifecycle
from gpuops.disk import Disk
from gpuops.errors import GpuopsError, ResultsNotHome
from gpuops.lifecycle import Clock, Tell
from gpuops.machine import Machine, State
from gpuops.settings import Settings
from gpuops.workflow.session import REAL_CLOCK, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """What is about to be done. `disk` is None where the machine could not be looked into, and `unseen` says why.

    `has_to_start`: not yet anything but that, so that its disk can be looked into.
    """

    machine: Machine
    terminate: bool
    disk: Disk | None
    unseen: str = ""
    has_to_start: bool = False


def down(
    settings: Settings,
    *,
    terminate: bool,
    discard: bool,
    confirm: Callable[[Farewell], None],
    tell: Tell,
    clock: Clock = REAL_CLOCK,
) -> Machine:
    """Stop the machine and keep its disk; or, with `terminate`, delete both.

    `confirm` sees what is on the disk and nowhere else, and raises to decline. Raises `ResultsNotHome` where deleting
    would lose something that was not given up by `discard`.
    """
    session = Session.open(settings, tell, clock)
    with session.locked():
        machine = lifecycle.existing(session.provider, settings.name)
        if not terminate:
            confirm(_look(session, machine, terminate=False))
            tell(f"Stopping {machine.name} ({machine.id})")
            return session.stop(machine)
        if discard or machine.unusable or machine.state is not State.STOPPED:
            return delete(session, machine, discard=discard, confirm=confirm)
        confirm(Farewell(machine=machine, terminate=True, disk=None, unseen="it is stopped", has_to_start=True))
        tell(f"Starting {machine.name} to look what is on its disk")
        with session.release() as release:
            release.owns(machine)
            session.admit(machine)
            return delete(session, session.wait(machine), discard=False, confirm=confirm)


def delete(session: Session, machine: Machine, *, discard: bool, confirm: Callable[[Farewell], None]) -> Machine:
    """Delete the machine and its disk. Raises `ResultsNotHome` where that would lose what was not given up."""
    seen = _look(session, machine, terminate=True)
    if not discard and (losses := _losses(seen)):
        raise ResultsNotHome(
            f"Deleting {machine.name} would lose what is on its disk. {losses}",
            left_behind="Nothing was deleted.",
            next_step=f"Bring runs home with `gpuops pull`, or give all of it up: gpuops down {machine.name} "
            "--terminate --discard",
        )
    confirm(seen)
    session.tell(f"Terminating {machine.name} ({machine.id})")
    deleted = replace(session.delete(machine), stays_behind=machine.stays_behind)
    with contextlib.suppress(GpuopsError):  # what it leaves costs nothing, and goes with the next machine
        for gone in session.provider.tidy(machine.region):
            session.tell(f"Deleted {gone}")
    return deleted


def _look(session: Session, machine: Machine, *, terminate: bool) -> Farewell:
    seen, unseen = None, machine.unusable or f"it is {machine.state.value}"
    if machine.state is State.RUNNING and not machine.unusable:
        try:
            session.admit(machine)
            with session.line(machine) as line:
                seen, unseen = disk.look(line, session.store), ""
        except GpuopsError as error:
            unseen = error.what
    return Farewell(machine=machine, terminate=terminate, disk=seen, unseen=unseen)


def _losses(farewell: Farewell) -> str:
    """What would be lost with the disk, in words; "" where nothing would."""
    if farewell.disk is None:
        return f"It could not be looked into: {farewell.unseen}"
    parts = [
        ("A run is going on", farewell.disk.running),
        ("Runs that are not home", farewell.disk.not_home),
        ("Files made or changed there", farewell.disk.changed),
    ]
    return " ".join(f"{label}: {', '.join(names[:10])}." for label, names in parts if names)
