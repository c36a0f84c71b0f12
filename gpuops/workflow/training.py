"""A run's life: trained, followed again, brought home."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path

from gpuops import cost, disk, jobs, results, watch
from gpuops.errors import (
    Busy,
    GpuopsError,
    MachineUnreachable,
    ResultsDamaged,
    ResultsNotHome,
    StateError,
    UnknownRun,
    VendorUnreachable,
)
from gpuops.jobs import Training
from gpuops.lifecycle import Clock, Plan, Tell
from gpuops.machine import Machine, State
from gpuops.results import Outcome
from gpuops.runs import Run, new_id
from gpuops.settings import Settings
from gpuops.workflow import farewell
from gpuops.workflow.session import REAL_CLOCK, Confirm, Session, ledger

Show = Callable[[bytes], None]

_LOST_LINE_S = 600.0
_UNDER_WAY = {"starting", "running"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended and is home. `cost_usd` is what its hours on the machine came to; None where not known.

    `still_bills` says why the machine was not released, and what it costs; "" where it was.
    """

    run: Run
    outcome: Outcome
    cost_usd: float | None
    still_bills: str = ""


class Detached(KeyboardInterrupt):
    """Ctrl-C while a run was followed: the run goes on, and its machine sees to itself."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


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
    session = Session.open(settings, tell, clock)
    began = clock.now()
    with session.raised(confirm, for_training=True) as (machine, release), session.line(machine) as line:
        python = jobs.find_python(line, machine.name)
        jobs.refuse_if_busy(line, python)
        jobs.claim(line)
        places = jobs.ship(session.route(line, machine), training, tell)
        recipe = jobs.recipe_text(training.recipe)
        run_id = new_id(clock.now().astimezone(timezone.utc))
        run = Run(
            id=run_id,
            machine=machine.name,
            machine_id=machine.id,
            provider=machine.provider,
            region=machine.region,
            type=machine.type,
            recipe=training.recipe.stem,
            python=python,
            argv=jobs.command(training, python, places),
            trainer_digest=places["trainer_digest"],
            recipe_digest=jobs.digest(recipe),
            data_digest=places["data_digest"],
            price_usd_per_hour=machine.price_usd_per_hour,
            then=then,
            grace_minutes=settings.grace_minutes,
            poweroff=watch.power_off_argv(f"run {run_id} ended"),
            created=clock.now().isoformat(),
        )
        session.store.add(run)
        session.ledger.run_began(run.id, run.recipe, run.recipe_digest, machine, at=began)
        tell(f"Starting run {run.id}")
        jobs.start(line, run, recipe, places)
        release.keep()  # the machine sees to itself from here
    return _finish(session, machine, run, show)


def estimate(settings: Settings, training: Training, plan: Plan) -> str | None:
    """What earlier runs of this recipe on such a machine came to, in words; None where there are none."""
    machine_type = plan.existing.type if plan.existing else plan.offer.type if plan.offer else ""
    return cost.estimate(
        ledger(settings).hours_before(
            training.recipe.stem, jobs.digest(jobs.recipe_text(training.recipe)), machine_type
        ),
        recipe=training.recipe.stem,
        machine_type=machine_type,
        price_usd_per_hour=plan.price_usd_per_hour,
    )


def attach(settings: Settings, run_id: str | None, *, tell: Tell, show: Show, clock: Clock = REAL_CLOCK) -> Finished:
    """Follow a run from where its log at home ends, bring it home, and do what it was started with."""
    session = Session.open(settings, tell, clock)
    run = _known_run(session, run_id)
    folder = session.store.path(run.id)
    if session.store.is_home(run.id):
        results.verify(folder)
        show((folder / "log.txt").read_bytes())
        return Finished(run=run, outcome=results.outcome(folder), cost_usd=None)
    session = session.about(run.machine)
    machine = session.existing()
    if machine.state is not State.RUNNING:
        raise StateError(
            f"{machine.name} is {machine.state.value}; run {run.id} is not going on.",
            left_behind="What it had written is on the disk of the machine.",
            next_step=f"gpuops pull {run.id}",
        )
    session.book.update([machine])
    session.admit(machine)
    return _finish(session, machine, run, show)


def pull(
    settings: Settings, run_id: str | None, *, confirm: Confirm, tell: Tell, clock: Clock = REAL_CLOCK
) -> list[Run]:
    """Bring home the ended runs of the machine that are not home whole: the one named, or all of them.

    A stopped machine is started for it, and stopped again. Raises `UnknownRun`.
    """
    session = Session.open(settings, tell, clock)
    if run_id is not None:
        with contextlib.suppress(UnknownRun):  # another computer may have started it
            run = session.store.find(run_id)
            run_id, session = run.id, session.about(run.machine)
            if session.store.is_home(run.id) and _is_whole(session.store.path(run.id)):
                return []
    brought: list[Run] = []
    with session.raised(confirm, launch=False) as (machine, release):
        with session.line(machine) as line:
            jobs.claim(line)
            route = session.route(line, machine)
            states = {str(entry["id"]): entry["state"] for entry in jobs.on_machine(line, "python3")}
            wanted = [there for there in states if run_id is None or there.startswith(run_id)]
            if run_id is not None and not wanted:
                raise UnknownRun(run_id, states)
            for there in wanted:
                if states[there] in _UNDER_WAY:
                    tell(f"Run {there} is still going on: gpuops attach {there}")
                elif not disk.is_home(line, there, session.store) and (found := jobs.adopt(line, there, session.store)):
                    tell(f"Bringing {there} home")
                    outcome = jobs.collect(route, found, session.store, clock.now())
                    session.ledger.run_ended(found.id, at=clock.now(), succeeded=outcome.state == "succeeded")
                    brought.append(found)
            going_on = [entry for entry in jobs.on_machine(line, "python3") if entry["state"] in _UNDER_WAY]
        if not release.kept and going_on:  # another computer has come to train on it meanwhile
            tell(f"{machine.name} is left running: run {going_on[0]['id']} is going on there")
            release.keep()
        if not release.kept:
            tell(f"Stopping {machine.name} again")
            session.stop(machine)
            release.keep()
    return brought


def _is_whole(folder: Path) -> bool:
    try:
        results.verify(folder)
    except ResultsDamaged:
        return False
    return True


def _known_run(session: Session, run_id: str | None) -> Run:
    """A run of this computer's; or one that only the machine has, for another computer with the same credentials."""
    try:
        return session.store.find(run_id)
    except UnknownRun:
        machine = session.existing()
        if machine.state is not State.RUNNING:
            raise
        session.admit(machine)
        with session.line(machine) as line:
            ids = [str(entry["id"]) for entry in jobs.on_machine(line, "python3")]
            found = [i for i in ids if run_id is None or i.startswith(run_id)][-1:]
            run = jobs.adopt(line, found[0], session.store) if found else None
        if run is None:
            raise
        return run


def _finish(session: Session, machine: Machine, run: Run, show: Show) -> Finished:
    """Follow to the end; bring home; and do with the machine what the run was started with. Raises `Detached`."""
    try:
        machine, outcome, others = _followed(session, machine, run, show)
    except KeyboardInterrupt as interrupt:
        raise Detached(run) from interrupt
    except GpuopsError as error:
        error.left_behind = error.left_behind or (
            f"Run {run.id} goes on if it has not ended, on {machine.name}, at {cost.rate(run.price_usd_per_hour)}; "
            f"{run.grace_minutes:g} minutes after its end, or at its deadline, the machine stops by itself."
        )
        error.next_step = error.next_step or f"gpuops attach {run.id}"
        raise
    still_bills = f"{machine.name} is left running, at {cost.per_hour(machine)}"
    if others:
        still_bills += f": run {others[0]} is going on there"
    elif run.then != "keep":
        try:
            with session.locked():
                _release(session, machine, run)
            still_bills = ""
        except Busy:
            still_bills += ": another gpuops command is at work on it. It stops by itself, or with `gpuops down`"
    now = session.clock.now()
    session.ledger.run_ended(run.id, at=now, succeeded=outcome.state == "succeeded")
    return Finished(
        run=run,
        outcome=outcome,
        cost_usd=session.ledger.spent_usd(run.id, now),
        still_bills=still_bills,
    )


def _followed(session: Session, machine: Machine, run: Run, show: Show) -> tuple[Machine, Outcome, list[object]]:
    """The machine as it is now, how the run ended, and other runs that are going on there; across lost lines."""
    deadline = session.clock.monotonic() + _LOST_LINE_S
    while True:
        try:
            with session.line(machine) as line:
                deadline = session.clock.monotonic() + _LOST_LINE_S
                with results.open_log(session.store.path(run.id)) as log:
                    jobs.follow(line, run, log, show)
                if jobs.state(line, run).state in _UNDER_WAY:
                    raise MachineUnreachable(f"The line to {machine.name} broke.")
                session.tell("Bringing the results home")
                outcome = jobs.collect(session.route(line, machine), run, session.store, session.clock.now())
                others = [entry["id"] for entry in jobs.on_machine(line, run.python) if entry["state"] in _UNDER_WAY]
                return machine, outcome, others
        except (MachineUnreachable, VendorUnreachable) as error:
            # A closed lid or a network that is away cuts both the line and the way to the provider.
            if session.clock.monotonic() > deadline:
                error.next_step = f"gpuops attach {run.id}"
                raise
        session.tell("The line was lost; trying again")
        session.clock.sleep(1.0)
        with contextlib.suppress(VendorUnreachable):
            machine = _looked_up_again(session, machine, run)


def _looked_up_again(session: Session, machine: Machine, run: Run) -> Machine:
    """Where the machine is now. Raises `StateError` where it has stopped."""
    machine = session.provider.refresh(machine)
    if machine.state in {State.STOPPING, State.STOPPED} or not machine.state.exists:
        raise StateError(
            f"{machine.name} is {machine.state.value}: it went away while run {run.id} was being followed.",
            left_behind="What the run had written is on its disk; the machine no longer bills by the hour.",
            next_step=f"gpuops pull {run.id}",
        )
    if machine.ssh:
        session.book.update([machine])
        session.admit(machine)
    return machine


def _release(session: Session, machine: Machine, run: Run) -> None:
    if run.then == "terminate":
        try:
            farewell.delete(session, machine, discard=False, confirm=lambda _: None)
            return
        except ResultsNotHome as error:
            session.tell(f"{error.what} It is stopped instead")
    session.tell(f"Stopping {machine.name}")
    session.stop(machine)
