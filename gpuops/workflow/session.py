"""One command at work: its settings, its provider, its voice and its clock, and how a machine is raised with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gpuops import cost, host_keys, lifecycle, providers, transports
from gpuops.errors import GpuopsError, SshConfigError
from gpuops.launches import LaunchRecords
from gpuops.lifecycle import Clock, Plan, Release, Tell
from gpuops.machine import Machine, State
from gpuops.providers import Provider
from gpuops.runs import RunStore
from gpuops.settings import Settings
from gpuops.ssh_config import AddressBook
from gpuops.sync import Route
from gpuops.transports import Transport

REAL_CLOCK = Clock()

Confirm = Callable[[Plan], None]


def address_book(settings: Settings) -> AddressBook:
    return AddressBook(user_config=settings.ssh_config, keys=settings.keys)


def run_store(settings: Settings) -> RunStore:
    return RunStore(settings.home / "runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What every step of a story needs. `settings.name` is the machine that it is about."""

    settings: Settings
    provider: Provider
    book: AddressBook
    store: RunStore
    tell: Tell
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, tell: Tell, clock: Clock) -> Session:
        return cls(
            settings=settings,
            provider=providers.open(settings.provider, settings),
            book=address_book(settings),
            store=run_store(settings),
            tell=tell,
            clock=clock,
        )

    def about(self, name: str) -> Session:
        """The same, about another machine."""
        return replace(self, settings=replace(self.settings, name=name))

    def existing(self) -> Machine:
        """The machine. Raises `UnknownMachine`, and `StateError` for one that is not labelled as ours are."""
        return lifecycle.usable(lifecycle.existing(self.provider, self.settings.name))

    def line(self, machine: Machine) -> Transport:
        return transports.open(machine, identity_file=host_keys.client_key(self.settings.keys))

    def route(self, line: Transport, machine: Machine) -> Route:
        return Route.find(line, host=machine.name, ssh_config=self.book.path)

    def admit(self, machine: Machine) -> None:
        """Let this computer in from where it is now: it may have moved to another network."""
        client_key = host_keys.public_key_line(host_keys.client_key(self.settings.keys))
        self.provider.admit(machine, self.settings.wish(), client_key=client_key)

    def wait(self, machine: Machine) -> Machine:
        """Until it runs (started, if it was stopped) and ssh answers, with its address in the book."""
        machine = lifecycle.wait_until_running(self.provider, machine, clock=self.clock, tell=self.tell)
        self.book.update([machine])
        identity_file = host_keys.client_key(self.settings.keys)
        machine = lifecycle.wait_until_reached(
            self.provider, machine, identity_file=identity_file, clock=self.clock, tell=self.tell
        )
        self.book.update([machine])
        return machine

    def stop(self, machine: Machine) -> Machine:
        return self._noted(lifecycle.stop(self.provider, machine, clock=self.clock))

    def delete(self, machine: Machine) -> Machine:
        return self._noted(lifecycle.terminate(self.provider, machine, clock=self.clock))

    def _noted(self, machine: Machine) -> Machine:
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

    @contextlib.contextmanager
    def raised(self, confirm: Confirm, *, launch: bool = True) -> Iterator[tuple[Machine, Release]]:
        """The machine, running and reached; stopped again on any exit before `keep()`, unless it ran before.

        `confirm` sees the plan before anything bills, and raises to decline. Without `launch`, a machine that does
        not exist is an `UnknownMachine`.
        """
        self.book.check()
        records = LaunchRecords(self.settings.home / "launches")
        with self.locked() as key:
            plan = lifecycle.plan(self.provider, self.settings.wish(), records, key, self.clock)
            if not launch and not plan.existing:
                self.existing()
            confirm(plan)
            client_key = host_keys.public_key_line(host_keys.client_key(self.settings.keys))
            with self.release() as release:
                if plan.existing:
                    machine = plan.existing
                    release.owns(machine)
                    if machine.state in {State.RUNNING, State.PENDING}:
                        release.keep()  # it was up before us
                    self.admit(machine)
                else:
                    machine = lifecycle.launch(self.provider, plan, records, key, release, client_key=client_key)
                try:
                    machine = self.wait(machine)
                    records.clear(key)
                    yield machine, release
                except GpuopsError as error:
                    if release.kept and not error.left_behind:
                        error.left_behind = f"{machine.name} is left as it was: running, at {cost.per_hour(machine)}."
                    raise
