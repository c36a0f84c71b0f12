"""One command at work: its settings, its provider, its voice and its clock, and how a machine is raised with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gpuops import cost, host_keys, lifecycle, providers
from gpuops.errors import GpuopsError, KeyRefused, OverLimit, SshConfigError, UnfitMachine
from gpuops.launches import LaunchRecords
from gpuops.ledger import Ledger
from gpuops.lifecycle import Clock, Limits, Plan, Release, Tell
from gpuops.machine import Machine, Wish
from gpuops.providers import Provider
from gpuops.runs import RunStore
from gpuops.settings import Settings
from gpuops.ssh_config import AddressBook
from gpuops.sync import Route
from gpuops.transports import Transport
from gpuops.workflow import identity
from gpuops.workflow.limits import limited

REAL_CLOCK = Clock()

Confirm = Callable[[Plan], None]


def address_book(settings: Settings) -> AddressBook:
    return AddressBook(
        user_config=settings.ssh_config,
        keys=settings.keys,
        identity_file=settings.identity_file,
        edits_user_config=not settings.no_ssh_config,
    )


def run_store(settings: Settings) -> RunStore:
    return RunStore(settings.home / "runs")


def ledger(settings: Settings) -> Ledger:
    return Ledger(settings.home / "ledger.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What every step of a story needs. `settings.name` is the machine that it is about."""

    settings: Settings
    provider: Provider
    book: AddressBook
    store: RunStore
    ledger: Ledger
    tell: Tell
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, tell: Tell, clock: Clock) -> Session:
        return cls(
            settings=settings,
            provider=providers.open(settings.provider, settings),
            book=address_book(settings),
            store=run_store(settings),
            ledger=ledger(settings),
            tell=tell,
            clock=clock,
        )

    def about(self, name: str) -> Session:
        """The same, about another machine."""
        return replace(self, settings=replace(self.settings, name=name))

    @property
    def identity_file(self) -> Path:
        """The private key that machines know this computer by."""
        return self.settings.identity_file or host_keys.client_key(self.settings.keys)

    @property
    def client_key(self) -> str:
        """Its public line."""
        return host_keys.public_key_line(self.identity_file)

    def existing(self) -> Machine:
        """The machine. Raises `UnknownMachine`, and `StateError` for one that is not labelled as ours are."""
        return lifecycle.usable(lifecycle.existing(self.provider, self.settings.name))

    def line(self, machine: Machine, *, connect_timeout_s: float = 10.0) -> Transport:
        """An open line. A machine that another computer launched is told of this one first. Raises `KeyRefused`."""

        def open_line() -> Transport:
            return identity.line_by_present_key(self, machine, connect_timeout_s=connect_timeout_s)

        try:
            return open_line()
        except KeyRefused as error:
            if identity.introduce(self, machine, open_line):
                return open_line()
            error.next_step = (
                f"On a computer that it lets in, say: gpuops admit {machine.name} '{self.client_key}'. "
                "For the next machine: authorized_keys in gpuops.toml."
            )
            raise

    def route(self, line: Transport, machine: Machine) -> Route:
        return Route.find(line, host=machine.name, access=self.book.access(machine))

    def admit(self, machine: Machine) -> None:
        """Let this computer in from where it is now: it may have moved to another network."""
        self.provider.admit(machine, self.settings.wish(), client_key=self.client_key)

    def wait(self, machine: Machine, *, admit: bool = False, may_start: bool = True) -> Machine:
        """Until it runs (started, if it was stopped and may be) and ssh lets us in, with its address in the book.

        `admit`: its firewall may not know of this computer yet.
        """
        machine = lifecycle.wait_until_running(
            self.provider, machine, clock=self.clock, tell=self.tell, may_start=may_start
        )
        self.ledger.seen([machine], now=self.clock.now())
        if admit:
            self.admit(machine)
        self.book.update([machine])
        self.book.bring_in(machine)
        machine = lifecycle.wait_until_reached(
            self.provider,
            machine,
            open_line=lambda there: self.line(there, connect_timeout_s=5),
            clock=self.clock,
            tell=self.tell,
        )
        machine = identity.own_host_key(self, machine)
        self.book.update([machine])
        return machine

    def stop(self, machine: Machine) -> Machine:
        with _or_left(machine):
            return self._noted(lifecycle.stop(self.provider, machine, clock=self.clock))

    def delete(self, machine: Machine) -> Machine:
        with _or_left(machine):
            return self._noted(lifecycle.terminate(self.provider, machine, clock=self.clock))

    def _noted(self, machine: Machine) -> Machine:
        self.ledger.seen([machine], now=self.clock.now())
        try:
            self.book.update([machine])
        except SshConfigError as error:
            error.left_behind = f"{machine.name} is {machine.state.value}: {cost.per_hour(machine)}."
            raise
        return machine

    def release(self) -> Release:
        return Release(self.provider, self.settings.name, clock=self.clock, tell=self.tell)

    @contextlib.contextmanager
    def locked(self) -> Iterator[str]:
        """One command at a time for this account's machine of that name; gives the key of its launch record."""
        key = f"{self.provider.name}-{self.provider.account()}-{self.settings.name}"
        with lifecycle.locked(self.settings.home / "locks", key):
            yield key

    def plan(self, key: str, *, for_training: bool = False) -> Plan:
        """What raising the machine would come to. Raises `UnfitMachine`, `OverLimit`, and what its provider says."""
        limits = Limits(max_hours=self.settings.max_hours, max_usd=self.settings.max_usd)
        plan = lifecycle.plan(
            self.provider, self.wish(for_training=for_training), limits, self.records, key, self.clock
        )
        if for_training:
            _refuse_unfit(plan)
        _refuse_dear(plan, self.settings.max_usd_per_hour)
        return plan

    def wish(self, *, for_training: bool = False) -> Wish:
        return replace(self.settings.wish(), for_training=for_training)

    @property
    def records(self) -> LaunchRecords:
        return LaunchRecords(self.settings.home / "launches")

    @contextlib.contextmanager
    def raised(
        self, confirm: Confirm, *, launch: bool = True, for_training: bool = False
    ) -> Iterator[tuple[Machine, Release]]:
        """The machine, running and reached; stopped again on any exit before `keep()`, unless it ran before.

        `confirm` sees the plan before anything bills, and raises to decline. Without `launch`, a machine that does
        not exist is an `UnknownMachine`.
        """
        self.book.check()
        with self.locked() as key:
            plan = self.plan(key, for_training=for_training)
            if not launch and not plan.existing:
                self.existing()
            confirm(plan)
            with self.release() as release:
                if plan.existing:
                    machine = plan.existing
                    release.owns(machine)
                    if plan.is_up:
                        release.keep()  # it was up before us
                    self.admit(machine)
                else:
                    machine = lifecycle.launch(
                        self.provider, plan, self.records, key, release, client_key=self.client_key
                    )
                is_ours = not plan.existing and not plan.unfinished and not release.kept
                try:
                    # A command that was cut off may have been at another address, and a rival's machine knows its own.
                    admit = not plan.existing and not is_ours
                    machine = self.wait(machine, admit=admit, may_start=not plan.is_up)
                    machine = limited(self, machine, plan, is_ours=is_ours, may_be_unwatched=not launch)
                    self.records.clear(key)
                    yield machine, release
                except GpuopsError as error:
                    if release.kept and not error.left_behind:
                        error.left_behind = f"{machine.name} is left as it was: running, at {cost.per_hour(machine)}."
                    raise


@contextlib.contextmanager
def _or_left(machine: Machine) -> Iterator[None]:
    """Errors say that it is left as it was, and what that costs, unless they know better."""
    try:
        yield
    except GpuopsError as error:
        error.left_behind = error.left_behind or (
            f"{machine.name} ({machine.id}) is left as it was, {machine.state.value}: {cost.per_hour(machine)}, and "
            f"{cost.disk(machine)} for its disk."
        )
        raise


def _refuse_unfit(plan: Plan) -> None:
    machine, offer = plan.existing, plan.unfinished and plan.offer
    reason = machine.unfit if machine else offer.unfit if offer else ""
    if reason:
        name = plan.wish.name
        raise UnfitMachine(
            f"{name} can't train: {reason}",
            left_behind="Nothing was started.",
            next_step="Train on a machine of another type: "
            f"gpuops train --machine {name[:56]}-train --type g4dn.xlarge",
        )


def _refuse_dear(plan: Plan, max_usd_per_hour: float | None) -> None:
    """Offers are chosen by it already; this is for a machine that is there, or that a cut-off launch has made."""
    if max_usd_per_hour is None:
        return
    price = plan.price_usd_per_hour
    if price is None or price > max_usd_per_hour:
        raise OverLimit(
            f"{plan.wish.name} costs {cost.rate(price)}, and no more than {cost.rate(max_usd_per_hour)} is allowed.",
            left_behind=f"It is running, at {cost.rate(price)}." if plan.is_up else "Nothing was started.",
            next_step=f"Allow more with --max-usd-per-hour, or use another machine: gpuops up {plan.wish.name[:60]}-2",
        )
