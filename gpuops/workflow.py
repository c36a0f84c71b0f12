"""The stories, told top to bottom. The command line and Python scripts both call these.

Who releases a machine: until a job has started, this computer does, on any exit. From then on the machine does it
itself, and this computer only once the results are home.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timezone
from pathlib import Path

from gpuops import cost, disk, host_keys, jobs, lifecycle, providers, results, transports
from gpuops.disk import Disk
from gpuops.errors import GpuopsError, MachineUnreachable, ResultsNotHome, StateError, UnknownRun
from gpuops.jobs import Training
from gpuops.launches import LaunchRecords
from gpuops.lifecycle import Clock, Plan, Release, Tell
from gpuops.machine import Inventory, Machine, State
from gpuops.providers import Provider
from gpuops.results import Outcome
from gpuops.runs import Run, RunStore, new_id
from gpuops.settings import Settings
from gpuops.ssh_config import AddressBook
from gpuops.sync import Route
from gpuops.transports import Transport

REAL_CLOCK = Clock()
_POWER_OFF = ("sudo", "-n", "systemctl", "poweroff")
_LOST_LINE_S = 600.0

Confirm = Callable[[Plan], None]
Show = Callable[[bytes], None]


def up(settings: Settings, *, confirm: Confirm, tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """A running machine that ssh reaches under its name: the one that exists, started; or else a new one.

    `confirm` sees the plan before anything bills, and raises to decline. Whatever goes wrong after that, a machine
    that this call launched or started is stopped again.
    """
    with _raised(settings, confirm, tell, clock) as raised:
        raised.release.keep()
    return raised.machine


def train(
    settings: Settings,
    training: Training,
    *,
    then: str,
    confirm: Confirm,
    tell: Tell,
    show: Show,
    clock: Clock = REAL_CLOCK,
) -> Finished:
    """Raise the machine, train on it, bring the results home verified, and do `then`: stop, terminate or keep it.

    Interrupted while it follows, the run goes on, and the machine stops by itself after it.
    """
    jobs.check(training)
    store = run_store(settings)
    with _raised(settings, confirm, tell, clock) as raised:
        machine = raised.machine
        with _line(settings, machine) as line:
            python = jobs.find_python(line, machine.name)
            jobs.refuse_if_busy(line, python)
            jobs.claim(line)
            places = jobs.ship(_route(settings, line, machine), training, tell)
            recipe = jobs.recipe_text(training.recipe)
            run = Run(
                id=new_id(clock.now().astimezone(timezone.utc)),
                machine=machine.name,
                machine_id=machine.id,
                provider=machine.provider,
                region=machine.region,
                recipe=training.recipe.stem,
                python=python,
                argv=jobs.command(training, python, places),
                trainer_digest=places["trainer_digest"],
                recipe_digest=jobs.digest(recipe),
                data_digest=places["data_digest"],
                price_usd_per_hour=machine.price_usd_per_hour,
                then=then,
                grace_minutes=settings.grace_minutes,
                poweroff=_POWER_OFF,
                created=clock.now().isoformat(),
            )
            store.add(run)
            tell(f"Starting run {run.id}")
            jobs.start(line, run, recipe, places)
            raised.release.keep()  # the machine's own watch has it from here
    return _finish(settings, raised.provider, machine, run, tell, show, clock)


def attach(settings: Settings, run_id: str | None, *, tell: Tell, show: Show, clock: Clock = REAL_CLOCK) -> Finished:
    """Follow a run from where its log at home ends, bring it home, and do what it was started with."""
    run = _known_run(settings, run_id)
    store = run_store(settings)
    if store.is_home(run.id):
        show((store.path(run.id) / "log.txt").read_bytes())
        return Finished(run=run, outcome=results.outcome(store.path(run.id)), cost_usd=None)
    settings = replace(settings, name=run.machine)
    provider = providers.open(settings.provider, settings)
    machine = lifecycle.existing(provider, run.machine)
    if machine.state is not State.RUNNING:
        raise StateError(
            f"{machine.name} is {machine.state.value}; run {run.id} is not going on.",
            left_behind="What it had written is on the disk of the machine.",
            next_step=f"gpuops pull {run.id}",
        )
    address_book(settings).update([machine])
    return _finish(settings, provider, machine, run, tell, show, clock)


def pull(
    settings: Settings, run_id: str | None, *, confirm: Confirm, tell: Tell, clock: Clock = REAL_CLOCK
) -> list[Run]:
    """Bring home the ended runs of the machine that are not home yet: the one named, or all of them.

    A stopped machine is started for it, and stopped again.
    """
    store = run_store(settings)
    if run_id is not None:
        with contextlib.suppress(UnknownRun):  # another computer may have started it
            run = store.find(run_id)
            run_id, settings = run.id, replace(settings, name=run.machine)
    machine = lifecycle.existing(providers.open(settings.provider, settings), settings.name)
    brought: list[Run] = []
    with _raised(settings, confirm, tell, clock, launch=False) as raised:
        with _line(settings, raised.machine) as line:
            jobs.claim(line)
            route = _route(settings, line, raised.machine)
            for entry in jobs.on_machine(line, "python3"):
                wanted = str(entry["id"])
                if run_id not in {None, wanted}:
                    continue
                if entry["state"] in {"starting", "running"}:
                    tell(f"Run {wanted} is still going on: gpuops attach {wanted}")
                elif not store.is_home(wanted) and (found := jobs.adopt(line, wanted, store)):
                    tell(f"Bringing {wanted} home")
                    jobs.collect(route, found, store, clock.now())
                    brought.append(found)
        raised.release.keep()
    if machine.state is not State.RUNNING:
        tell(f"Stopping {machine.name} again")
        _stop(settings, raised.provider, raised.machine, clock)
    return brought


def status(settings: Settings, *, show: Callable[[Inventory], None] = lambda _: None) -> Inventory:
    """Every machine that the provider has, and the places that did not answer; the address book follows.

    `show` is given them first: what bills is to be seen even where an ssh config can't be written.
    """
    inventory = providers.open(settings.provider, settings).machines()
    show(inventory)
    address_book(settings).regenerate(inventory, provider=settings.provider)
    return inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended and is home. `cost_usd` is what the machine's hours cost from its start until now."""

    run: Run
    outcome: Outcome
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """What `down` is about to do. `disk` is None where the machine could not be looked into, and why in `unseen`."""

    machine: Machine
    terminate: bool
    disk: Disk | None
    unseen: str = ""


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
    provider = providers.open(settings.provider, settings)
    with _locked(settings, provider):
        machine = lifecycle.existing(provider, settings.name)
        if terminate and not discard and machine.state is State.STOPPED:
            tell(f"Starting {machine.name} to look what is on its disk")
            with Release(provider, machine.name, clock=clock, tell=tell) as release:
                release.owns(machine)
                machine = lifecycle.wait_until_running(provider, machine, clock=clock, tell=tell)
                identity_file = host_keys.client_key(settings.keys)
                machine = lifecycle.wait_until_reached(
                    provider, machine, identity_file=identity_file, clock=clock, tell=tell
                )
                return _terminate(settings, provider, machine, discard, confirm, tell, clock)
        if terminate:
            return _terminate(settings, provider, machine, discard, confirm, tell, clock)
        confirm(_farewell(settings, machine, terminate=False))
        tell(f"Stopping {machine.name} ({machine.id})")
        return _stop(settings, provider, machine, clock)


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


def run_store(settings: Settings) -> RunStore:
    return RunStore(settings.home / "runs")


@dataclass(slots=True)
class _Raised:
    provider: Provider
    machine: Machine
    release: Release


@contextlib.contextmanager
def _raised(
    settings: Settings, confirm: Confirm, tell: Tell, clock: Clock, *, launch: bool = True
) -> Iterator[_Raised]:
    """The machine, running and reached; stopped again on any exit before `release.keep()`, unless it ran before."""
    book = address_book(settings)
    book.check()
    provider = providers.open(settings.provider, settings)
    key = _key(settings, provider)
    records = LaunchRecords(settings.home / "launches")
    with _locked(settings, provider):
        plan = lifecycle.plan(provider, settings.wish(), records, key, clock)
        if not launch and not plan.existing:
            lifecycle.existing(provider, settings.name)
        confirm(plan)
        identity_file = host_keys.client_key(settings.keys)
        with Release(provider, settings.name, clock=clock, tell=tell) as release:
            client_key = host_keys.public_key_line(identity_file)
            if plan.existing:
                machine = plan.existing
                release.owns(machine)
                if machine.state in {State.RUNNING, State.PENDING}:
                    release.keep()  # it was up before us
                provider.admit(machine, plan.wish, client_key=client_key)  # this computer may have moved since
            else:
                machine = lifecycle.launch(provider, plan, records, key, release, client_key=client_key)
            machine = lifecycle.wait_until_running(provider, machine, clock=clock, tell=tell)
            book.update([machine])
            machine = lifecycle.wait_until_reached(
                provider, machine, identity_file=identity_file, clock=clock, tell=tell
            )
            book.update([machine])
            records.clear(key)
            yield _Raised(provider=provider, machine=machine, release=release)


def _finish(
    settings: Settings, provider: Provider, machine: Machine, run: Run, tell: Tell, show: Show, clock: Clock
) -> Finished:
    """Follow to the end, across lost lines; collect; and do with the machine what the run was started with."""
    store = run_store(settings)
    deadline = clock.monotonic() + _LOST_LINE_S
    while True:
        try:
            with _line(settings, machine) as line:
                deadline = clock.monotonic() + _LOST_LINE_S
                with (store.path(run.id) / "log.txt").open("ab") as log:
                    jobs.follow(line, run, log, show)
                if jobs.state(line, run).state in {"starting", "running"}:
                    raise MachineUnreachable(f"The line to {machine.name} broke.")
                tell("Bringing the results home")
                outcome = jobs.collect(_route(settings, line, machine), run, store, clock.now())
                others = [e["id"] for e in jobs.on_machine(line, run.python) if e["state"] in {"starting", "running"}]
            break
        except MachineUnreachable as error:
            machine = provider.refresh(machine)
            if machine.state in {State.STOPPING, State.STOPPED} or not machine.state.exists:
                raise StateError(
                    f"{machine.name} is {machine.state.value}: it went away while run {run.id} was being followed.",
                    left_behind="What the run had written is on its disk; the machine no longer bills by the hour.",
                    next_step=f"gpuops pull {run.id}",
                ) from error
            if clock.monotonic() > deadline:
                error.left_behind = f"Run {run.id} may go on; the machine stops by itself after it."
                error.next_step = f"gpuops attach {run.id}"
                raise
            tell("The line was lost; trying again")
            address_book(settings).update([machine])
            clock.sleep(1.0)
    if others:
        tell(f"Run {others[0]} is going on there: {machine.name} is left running")
    elif run.then != "keep":
        with _locked(settings, provider):
            _release(settings, provider, machine, run, tell, clock)
    return Finished(run=run, outcome=outcome, cost_usd=cost.session_usd(machine, clock.now()))


def _release(settings: Settings, provider: Provider, machine: Machine, run: Run, tell: Tell, clock: Clock) -> None:
    if run.then == "terminate":
        try:
            _terminate(settings, provider, machine, False, lambda _: None, tell, clock)
            return
        except ResultsNotHome as error:
            tell(f"{error.what} It is stopped instead")
    tell(f"Stopping {machine.name}")
    _stop(settings, provider, machine, clock)


def _stop(settings: Settings, provider: Provider, machine: Machine, clock: Clock) -> Machine:
    machine = lifecycle.stop(provider, machine, clock=clock)
    address_book(settings).update([machine])
    return machine


def _terminate(
    settings: Settings,
    provider: Provider,
    machine: Machine,
    discard: bool,
    confirm: Callable[[Farewell], None],
    tell: Tell,
    clock: Clock,
) -> Machine:
    farewell = _farewell(settings, machine, terminate=True)
    seen = farewell.disk
    if not discard and (seen is None or seen.running or seen.not_home or seen.changed):
        raise ResultsNotHome(
            f"Deleting {machine.name} would lose what is on its disk. {_losses(farewell)}",
            left_behind="Nothing was deleted.",
            next_step=f"Bring runs home with `gpuops pull`, or give all of it up: gpuops down {machine.name} "
            "--terminate --discard",
        )
    confirm(farewell)
    tell(f"Terminating {machine.name} ({machine.id})")
    machine = lifecycle.terminate(provider, machine, clock=clock)
    address_book(settings).update([machine])
    return machine


def _farewell(settings: Settings, machine: Machine, *, terminate: bool) -> Farewell:
    seen, unseen = None, f"it is {machine.state.value}"
    if machine.state is State.RUNNING:
        try:
            with _line(settings, machine) as line:
                seen, unseen = disk.look(line, run_store(settings)), ""
        except GpuopsError as error:
            unseen = error.what
    return Farewell(machine=machine, terminate=terminate, disk=seen, unseen=unseen)


def _losses(farewell: Farewell) -> str:
    if farewell.disk is None:
        return f"It could not be looked into: {farewell.unseen}"
    parts = [
        ("a run is going on", farewell.disk.running),
        ("runs that are not home", farewell.disk.not_home),
        ("files made or changed since its first boot", farewell.disk.changed),
    ]
    return " ".join(f"{label[0].upper()}{label[1:]}: {', '.join(names[:10])}." for label, names in parts if names)


def _known_run(settings: Settings, run_id: str | None) -> Run:
    """A run of this computer's; or one that only the machine has, for another computer with the same credentials."""
    store = run_store(settings)
    try:
        return store.find(run_id)
    except UnknownRun:
        machine = lifecycle.existing(providers.open(settings.provider, settings), settings.name)
        if machine.state is not State.RUNNING:
            raise
        with _line(settings, machine) as line:
            ids = [str(entry["id"]) for entry in jobs.on_machine(line, "python3")]
            found = [i for i in ids if run_id is None or i.startswith(run_id)][-1:]
            run = jobs.adopt(line, found[0], store) if found else None
        if run is None:
            raise
        return run


def _line(settings: Settings, machine: Machine) -> Transport:
    return transports.open(machine, identity_file=host_keys.client_key(settings.keys))


def _route(settings: Settings, line: Transport, machine: Machine) -> Route:
    return Route.find(line, host=machine.name, ssh_config=address_book(settings).path)


@contextlib.contextmanager
def _locked(settings: Settings, provider: Provider) -> Iterator[None]:
    with lifecycle.locked(settings.home / "locks", _key(settings, provider)):
        yield


def _key(settings: Settings, provider: Provider) -> str:
    return f"{provider.name}-{provider.account()}-{settings.name}"
