"""Looking before leaping: what exists, what an earlier command left unfinished, and what could be launched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuops import cost
from gpuops.errors import AmbiguousMachine, Busy, StateError, UnknownMachine, VendorUnreachable
from gpuops.launches import Launch, LaunchRecords
from gpuops.lifecycle.clock import Clock
from gpuops.machine import Inventory, Machine, Offer, State, Unanswered, Wish
from gpuops.providers import Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a machine may run before it stops by itself: hours as asked (None: as the machine has it), and USD.

    `max_usd` counts from now; it leaves out the disk, which goes on costing when the machine has stopped.
    """

    max_hours: float | None = None
    max_usd: float | None = None

    @property
    def are_given(self) -> bool:
        return self.max_hours is not None or self.max_usd is not None

    def hours(self, own_hours: float, price_usd_per_hour: float | None) -> float:
        """Of a machine of that price, which by itself would run `own_hours`. Raises `OverLimit`."""
        asked = own_hours if self.max_hours is None else self.max_hours
        return cost.deadline_hours(asked, self.max_usd, price_usd_per_hour=price_usd_per_hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `up` is about to do: use or start the machine that exists, finish a launch that was cut off, or launch.

    `hours` is how long it runs from its start (or, if it runs already and that is sooner than its own deadline, from
    now) before it stops by itself; None leaves it as it is.
    """

    wish: Wish
    limits: Limits
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

    @property
    def is_up(self) -> bool:
        """True when it bills already, whatever is decided."""
        return self.existing is not None and self.existing.state in {State.RUNNING, State.PENDING}

    @property
    def price_usd_per_hour(self) -> float | None:
        source = self.existing or self.offer
        return source.price_usd_per_hour if source else None

    @property
    def hours(self) -> float | None:
        own = self.existing.max_hours if self.existing else self.wish.max_hours
        if self.is_up and not self.limits.are_given:
            return None
        return self.limits.hours(own or self.wish.max_hours, self.price_usd_per_hour)


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
            next_step="In the provider's console, terminate all but one, or take away its tag gpuops:name.",
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


def plan(provider: Provider, wish: Wish, limits: Limits, records: LaunchRecords, key: str, clock: Clock) -> Plan:
    """Raises `OverLimit` where what it would come to costs more than allowed."""
    inventory = provider.find(wish.name)
    machine = find_one(inventory, wish.name)
    unfinished = records.read(key)
    if machine:
        records.clear(key)
        return Plan(wish=wish, limits=limits, existing=usable(machine), unanswered=inventory.unanswered)
    regions = {wish.region, unfinished.prepared.offer.region if unfinished else wish.region}
    needed = {f"{provider.name}/{region}" for region in regions}
    home = [place for place in inventory.unanswered if place.place in needed]
    if home:
        raise VendorUnreachable(f"{home[0].place} did not answer: {home[0].reason}", next_step="Try again in a minute.")
    if unfinished and unfinished.may_be_invisible(clock.now()):
        return Plan(wish=wish, limits=limits, unfinished=unfinished, unanswered=inventory.unanswered)
    records.clear(key)
    return Plan(wish=wish, limits=limits, offers=tuple(provider.offers(wish)), unanswered=inventory.unanswered)
