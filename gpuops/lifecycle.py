"""Find or launch, start, wait, release. The only code that waits on a provider.

Order is everything here: the record is on disk before the launch, and whoever may have to release a machine says so
before it exists.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from gpuops import cost, transports
from gpuops.errors import (
    AmbiguousMachine,
    Busy,
    GpuopsError,
    MachineUnreachable,
    NoCapacity,
    StateError,
    TokenSpent,
    UnknownMachine,
    VendorUnreachable,
)
from gpuops.launches import Launch, LaunchRecords
from gpuops.machine import Inventory, Machine, Offer, State, Unanswered, Wish
from gpuops.providers import Provider

Tell = Callable[[str], None]

_RUNNING_WITHIN_S = 600.0
_SSH_WITHIN_S = 600.0
_STOPPED_WITHIN_S = 600.0
# How long the other of two simultaneous launches may take to see ours and to take its own machine back.
_RIVALS_GO_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time, as an argument."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = field(default=lambda: datetime.now(timezone.utc))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `up` is about to do: use or start the machine that exists, finish a launch that was cut off, or launch."""

    wish: Wish
    existing: Machine | None = None
    unfinished: Launch | None = None
    offers: tuple[Offer, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()

    @property
    def offer(self) -> Offer | None:
        """What would be launched, if anything."""
        if self.unfinished:
            return self.unfinished.prepared.offer
        return self.offers[0] if self.offers else None


@contextlib.contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """One command at a time for one machine. The lock ends with its process. Raises `Busy`."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with filelock.FileLock(folder / f"{key}.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise Busy(
            "Another gpuops command is at work on this machine.",
            left_behind="Nothing was changed.",
            next_step="Wait until it has ended; `gpuops status` shows where things stand.",
        ) from error


def find_one(inventory: Inventory, name: str) -> Machine | None:
    """The machine of that name, or None. Raises `AmbiguousMachine` where several bear it."""
    if len(inventory.machines) > 1:
        rows = "; ".join(f"{m.id} in {m.place}, {m.state.value}, {cost.per_hour(m)}" for m in inventory.machines)
        raise AmbiguousMachine(
            f"{len(inventory.machines)} machines are named {name}.",
            left_behind=f"They are: {rows}.",
            next_step="Stop or terminate all but one in the provider's console, then try again.",
        )
    return inventory.machines[0] if inventory.machines else None


def usable(machine: Machine) -> Machine:
    """Itself. Raises `StateError` for a machine that is not labelled as this gpuops labels its own."""
    if machine.unusable:
        raise StateError(
            f"{machine.name} ({machine.id}) can't be used: {machine.unusable}.",
            left_behind=f"It is {machine.state.value}, at {cost.per_hour(machine)}.",
            next_step=f"Upgrade gpuops, or stop it: gpuops down {machine.name}",
        )
    return machine


def existing(provider: Provider, name: str) -> Machine:
    """The machine of that name. Raises `UnknownMachine` (naming the closest), or says who did not answer."""
    inventory = provider.find(name)
    machine = find_one(inventory, name)
    if machine:
        return machine
    if inventory.unanswered:
        places = ", ".join(place.place for place in inventory.unanswered)
        raise VendorUnreachable(
            f"No machine {name!r} was found, but these places did not answer: {places}.", next_step="gpuops status"
        )
    known = sorted({m.name for m in provider.machines().machines})
    raise UnknownMachine(name, known, next_step="" if known else f"gpuops up {name}")


def plan(provider: Provider, wish: Wish, records: LaunchRecords, key: str, clock: Clock) -> Plan:
    """Look before leaping: what exists, what an earlier command left unfinished, and what could be launched."""
    inventory = provider.find(wish.name)
    machine = find_one(inventory, wish.name)
    unfinished = records.read(key)
    if machine:
        records.clear(key)
        return Plan(wish=wish, existing=usable(machine), unanswered=inventory.unanswered)
    home = [place for place in inventory.unanswered if place.place == f"{provider.name}/{wish.region}"]
    if home:
        raise VendorUnreachable(f"{home[0].place} did not answer: {home[0].reason}", next_step="Try again in a minute.")
    if unfinished and unfinished.may_be_invisible(clock.now()):
        return Plan(wish=wish, unfinished=unfinished, unanswered=inventory.unanswered)
    records.clear(key)
    return Plan(wish=wish, offers=tuple(provider.offers(wish)), unanswered=inventory.unanswered)


def launch(
    provider: Provider, plan: Plan, records: LaunchRecords, key: str, release: Release, *, client_key: str
) -> Machine:
    """Make the planned machine: a cut-off launch is sent again as it was; else offer by offer, until one has room."""
    if plan.unfinished:
        release.tell("Finishing the launch that was cut off")
        try:
            return _launched(provider, plan.unfinished, records, key, release)
        except TokenSpent:  # it did launch, and that machine has been terminated since
            plan = replace(plan, unfinished=None, offers=tuple(provider.offers(plan.wish)))
    refusals: list[str] = []
    for offer in plan.offers:
        release.tell(f"Launching {offer.type} in {offer.region}")
        prepared = provider.prepare(plan.wish, offer, client_key=client_key)
        record = records.write(key, prepared=prepared, now=release.clock.now())
        try:
            return _launched(provider, record, records, key, release)
        except NoCapacity as error:
            refusals.append(f"{offer.type}: {error.what}")
    raise NoCapacity(
        "No type had room. " + " ".join(refusals),
        left_behind="Nothing was launched.",
        next_step="Try again later, another region (--region), or another type (--type).",
    )


def _launched(provider: Provider, record: Launch, records: LaunchRecords, key: str, release: Release) -> Machine:
    release.expects(record.prepared.host_key)
    try:
        machine = provider.launch(record.prepared, record.token)
    except VendorUnreachable as error:
        error.left_behind = (
            "The launch may have happened all the same; the next `gpuops up` finishes it and does not repeat it. "
            f"Such a machine costs {cost.rate(record.prepared.offer.price_usd_per_hour)} and stops by itself."
        )
        raise
    except GpuopsError:
        records.clear(key)  # a definite no: nothing was made
        release.expects(None)
        raise
    release.owns(machine)
    kept = _the_one_that_stays(provider, machine, records, key, release.clock)
    if kept.id != machine.id:
        release.tell(f"{kept.id} of that name was there first; taking back {machine.id}")
        provider.terminate(machine)
        release.keep()
    return kept


def _the_one_that_stays(provider: Provider, mine: Machine, records: LaunchRecords, key: str, clock: Clock) -> Machine:
    """Two computers may launch one name at the same moment: then each takes back only what its own call created.

    The machine prepared first stays, if both are still looking. A rival that doesn't go belongs to a command that
    looked while it was alone, and may be in use by now: then ours goes, which has nothing on it.
    """
    for _ in _polls(clock, _RIVALS_GO_WITHIN_S):
        listed = provider.find(mine.name).machines
        if mine.id in {m.id for m in listed}:
            records.clear(key)
        rivals = [m for m in listed if m.id != mine.id]
        oldest = min((mine, *rivals), key=_creation)
        if not rivals or oldest.id != mine.id:
            return oldest
    return min(rivals, key=_creation)


def _creation(machine: Machine) -> tuple[str, str]:
    return (machine.tags.get("gpuops:created", ""), machine.id)


def wait_until_running(provider: Provider, machine: Machine, *, clock: Clock, tell: Tell) -> Machine:
    """Until it runs and has an address, starting it where it is stopped. Raises `StateError`."""
    started = False
    for _ in _polls(clock, _RUNNING_WITHIN_S):
        machine = provider.refresh(machine)
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
                provider.start(machine)
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


def wait_until_reached(
    provider: Provider, machine: Machine, *, identity_file: Path, clock: Clock, tell: Tell
) -> Machine:
    """Until ssh answers with the right host key and lets us in. A wrong key or a refusal is raised at once."""
    tell(f"Waiting for ssh on {machine.ssh.host}" if machine.ssh else "Waiting for ssh")
    problem = ""
    for _ in _polls(clock, _SSH_WITHIN_S):
        try:
            with transports.open(machine, identity_file=identity_file, connect_timeout_s=5) as line:
                line.run(["true"])
            return machine
        except MachineUnreachable as error:
            problem = error.what
        machine = wait_until_running(provider, machine, clock=clock, tell=tell)
    raise MachineUnreachable(f"{machine.name} runs, but its ssh did not answer: {problem}", next_step="gpuops status")


def stop(provider: Provider, machine: Machine, *, clock: Clock) -> Machine:
    """Until it is stopped; a pending machine is stopped as soon as EC2 takes the call. Raises `StateError`."""
    for _ in _polls(clock, _STOPPED_WITHIN_S):
        machine = provider.refresh(machine)
        if machine.state is State.STOPPED or not machine.state.exists:
            return machine
        if machine.state is State.RUNNING:
            with contextlib.suppress(StateError):
                provider.stop(machine)
    raise StateError(
        f"{machine.name} ({machine.id}) is still {machine.state.value} after {_STOPPED_WITHIN_S / 60:.0f} minutes.",
        left_behind=f"It may go on costing {cost.per_hour(machine)}.",
        next_step=f"gpuops down {machine.name}",
    )


def terminate(provider: Provider, machine: Machine, *, clock: Clock) -> Machine:
    """Until it is gone, with its disk."""
    provider.terminate(machine)
    for _ in _polls(clock, _STOPPED_WITHIN_S):
        machine = provider.refresh(machine)
        if machine.state is State.TERMINATED:
            return machine
    raise StateError(
        f"{machine.name} ({machine.id}) is still {machine.state.value}.",
        left_behind=f"It may go on costing {cost.per_hour(machine)}.",
        next_step="gpuops status",
    )


class Release:
    """Registered before a launch or a start: on any exit before `keep`, the machine is stopped and its disk kept."""

    def __init__(self, provider: Provider, name: str, *, clock: Clock, tell: Tell) -> None:
        self.clock = clock
        self.tell = tell
        self._provider = provider
        self._name = name
        self._machine: Machine | None = None
        self._host_key: str | None = None
        self.kept = False

    def expects(self, host_key: str | None) -> None:
        """A launch is under way whose machine would bear this host key; None: nothing will come of it."""
        self._host_key = host_key

    def owns(self, machine: Machine) -> None:
        """This is the machine to stop."""
        self._machine = machine

    def keep(self) -> None:
        """It is to go on running: the command did what it was asked to, or the machine is another's."""
        self.kept = True

    def __enter__(self) -> Release:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.kept or error is None:
            return
        try:
            left = self._stop()
        except GpuopsError as failure:
            left = f"{self._name} could not be stopped and may be running: {failure.what}"
        except BaseException:
            self._say(f"{self._name} may still be running, and billing: see `gpuops status`")
            raise
        if left:
            self._say(left)
        if isinstance(error, GpuopsError):
            error.left_behind = " ".join(filter(None, (error.left_behind, left)))

    def _stop(self) -> str:
        if self._machine:
            machines = [self._machine]
        elif self._host_key:
            # By its key, not only by its name: another computer may have launched one of that name meanwhile.
            found = self._provider.find(self._name).machines
            machines = [machine for machine in found if machine.host_key == self._host_key]
        else:
            machines = []
        for machine in machines:
            self._say(f"Stopping {machine.name} ({machine.id})")
            stop(self._provider, machine, clock=self.clock)
        return " ".join(f"{m.name} is stopped; its disk costs {cost.disk(m)}." for m in machines)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be what has gone, and the machine is to be stopped then
            self.tell(text)


def _polls(clock: Clock, within_s: float) -> Iterator[None]:
    """Turns to look, 0.5 s apart at first and 2 s later, until the time is up."""
    deadline = clock.monotonic() + within_s
    pause_s = 0.5
    while True:
        yield
        if clock.monotonic() + pause_s > deadline:
            return
        clock.sleep(pause_s)
        pause_s = min(2.0, pause_s * 1.3)
