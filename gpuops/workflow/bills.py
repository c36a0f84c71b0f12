"""A month's machine-hours and what they cost: by machine, by run, and what goes on costing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from gpuops import providers
from gpuops.errors import VendorUnreachable
from gpuops.lifecycle import Clock
from gpuops.machine import Inventory, Machine, Unanswered
from gpuops.machine_hours import RunHours, Spending, Stretch
from gpuops.settings import Settings
from gpuops.workflow.session import REAL_CLOCK, ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineBill:
    """One machine's hours in the month: all its starts together. `is_running`: and they go on."""

    machine_id: str
    name: str
    type: str
    place: str
    price_usd_per_hour: float | None
    spending: Spending
    is_running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBill:
    """One run's part of the machines' hours in the month."""

    run_id: str
    recipe: str
    machine: str
    spending: Spending


@dataclass(frozen=True, slots=True, kw_only=True)
class Bills:
    """What a month, of UTC as in the provider's bills, has come to so far as this computer knows.

    `with_disks` are the machines that exist now: their disks cost by the month whether they run or not, and are no
    part of the total. Where places did not answer, what is running may have stopped, and more may have run.
    `damaged_lines` are those of the ledger (`kept_in`) that could not be read.
    """

    month: datetime
    machines: tuple[MachineBill, ...]
    runs: tuple[RunBill, ...]
    with_disks: tuple[Machine, ...]
    unanswered: tuple[Unanswered, ...]
    damaged_lines: int
    kept_in: Path

    @property
    def total(self) -> Spending:
        return _sum(bill.spending for bill in self.machines)


def bills(settings: Settings, *, month: datetime | None = None, clock: Clock = REAL_CLOCK) -> Bills:
    """The month that has `month` in it, this one by default, after asking the provider what there is now."""
    now = clock.now()
    since = _first_of_month(month or now)
    until = _first_of_month(since, later=1)
    inventory = _inventory(settings)
    book = ledger(settings)
    book.seen(inventory.machines, now=now, complete=not inventory.unanswered)
    entries = book.entries()
    by_machine: dict[str, list[Stretch]] = {}
    for stretch in entries.stretches:
        if stretch.spending(since, until, now=now).hours > 0:
            by_machine.setdefault(stretch.machine_id, []).append(stretch)
    machines = [_machine_bill(stretches, since, until, now) for stretches in by_machine.values()]
    runs = [_run_bill(run, entries.of_run(run, since, until, now=now)) for run in entries.runs]
    return Bills(
        month=since,
        machines=tuple(sorted(machines, key=lambda bill: -bill.spending.usd)),
        runs=tuple(bill for bill in runs if bill.spending.hours > 0),
        with_disks=tuple(machine for machine in inventory.machines if machine.state.exists),
        unanswered=inventory.unanswered,
        damaged_lines=entries.damaged,
        kept_in=book.path,
    )


def _inventory(settings: Settings) -> Inventory:
    """What the provider has; where it can't be reached at all, what this computer knows is worth showing still."""
    try:
        return providers.open(settings.provider, settings).machines()
    except VendorUnreachable as error:
        return Inventory(machines=(), unanswered=(Unanswered(place=settings.provider, reason=error.what),))


def _machine_bill(stretches: list[Stretch], since: datetime, until: datetime, now: datetime) -> MachineBill:
    last = stretches[-1]
    return MachineBill(
        machine_id=last.machine_id,
        name=last.name,
        type=last.type,
        place=f"{last.provider}/{last.region}",
        price_usd_per_hour=last.price_usd_per_hour,
        spending=_sum(stretch.spending(since, until, now=now) for stretch in stretches),
        is_running=last.ended is None,
    )


def _run_bill(run: RunHours, spending: Spending) -> RunBill:
    return RunBill(run_id=run.run_id, recipe=run.recipe, machine=run.shares[-1].machine, spending=spending)


def _sum(spendings: Iterable[Spending]) -> Spending:
    return sum(spendings, start=Spending())


def _first_of_month(time: datetime, *, later: int = 0) -> datetime:
    time = time.astimezone(timezone.utc)
    years, month = divmod(time.month - 1 + later, 12)
    return datetime(time.year + years, month + 1, 1, tzinfo=timezone.utc)
