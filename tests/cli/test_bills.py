"""`gpuops cost`: what a month has come to, what goes on costing, and where that is known from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from gpuops import workflow
from gpuops.errors import BadInput, VendorUnreachable
from gpuops.machine import Machine, State
from tests.computers import REGION, Cloud, Computer, quick_clock

_MONTH = datetime(2025, 12, 1, tzinfo=timezone.utc)
_ENDED = Machine(
    id="i-0123",
    name="an-old-one",
    provider="aws",
    region="us-west-2",
    zone=None,
    type="g4dn.xlarge",
    state=State.TERMINATED,
    price_usd_per_hour=0.5,
    launched_at=_MONTH + timedelta(days=10),
    stopped_at=_MONTH + timedelta(days=10, hours=6),
)


def _ran(computer: Computer, *machines: Machine) -> None:
    """What this computer has seen of machines that are gone."""
    workflow.ledger(computer.settings()).seen(machines, now=_MONTH + timedelta(days=20))


def _words(text: str) -> str:
    return " ".join(text.split())


def test_cost_shows_what_runs_and_what_its_disk_costs(computer: Computer) -> None:
    machine = computer.has_machine()
    said = computer.gpuops_here("cost").succeeded()
    row = next(line for line in said.splitlines() if line.startswith(computer.name))
    assert row.split() == [computer.name, "g4dn.xlarge", f"aws/{REGION}", "1", "min", "$0.0091", machine.id]
    assert f"{computer.name} is still running, at $0.544/h: gpuops down {computer.name}" in said
    assert f"Disks, running or stopped, not in the sum: {computer.name} $8.00/month." in said
    assert f"From the ledger of this computer ({computer.home / 'ledger.jsonl'})" in said
    assert f"{datetime.now(timezone.utc):%B %Y} (UTC): 1 min, $0.0091." in said


def test_after_up_and_down_the_hours_are_there_and_nothing_runs(computer: Computer) -> None:
    computer.has_machine()
    computer.up()
    computer.down()
    said = computer.gpuops_here("cost").succeeded()
    assert f"{computer.name} g4dn.xlarge aws/{REGION} 1 min " in _words(said)
    assert "still running" not in said
    assert "$8.00/month" in said


def test_a_machine_that_was_ended_elsewhere_is_billed_until_then(
    the_cloud: Cloud, new_computer: Callable[[], Computer]
) -> None:
    mine, other = new_computer(), new_computer()
    machine = mine.has_machine()
    mine.gpuops_here("cost").succeeded()
    other.down(terminate=True, discard=True)
    said = mine.gpuops_here("cost").succeeded()
    assert machine.id in said
    assert "still running" not in said
    assert "Disks" not in said
    unseen = other.gpuops_here("cost", GPUOPS_HOME=str(other.folder / "empty")).succeeded()
    assert machine.id not in unseen
    assert "No machine-hours in " in unseen


def test_runs_are_listed_with_what_they_spent(computer: Computer) -> None:
    settings, running = computer.settings(), replace(_ENDED, state=State.RUNNING, stopped_at=None)
    assert running.launched_at
    ledger = workflow.ledger(settings)
    ledger.run_began("20251211T000000-0a1b2c", "digits", "abc", running, at=running.launched_at + timedelta(hours=2))
    _ran(computer, _ENDED)
    said = computer.gpuops_here("cost", "--month", "2025-12").succeeded()
    assert "an-old-one g4dn.xlarge aws/us-west-2 6 h $3.00 i-0123" in _words(said)
    assert "20251211T000000-0a1b2c digits an-old-one 4 h $2.00" in _words(said)
    assert "December 2025 (UTC): 6 h, $3.00." in said


def test_another_month_has_its_own_hours_alone(computer: Computer) -> None:
    _ran(computer, _ENDED)
    assert "No machine-hours in November 2025." in computer.gpuops_here("cost", "--month", "2025-11").succeeded()
    assert "No machine-hours in " in computer.gpuops_here("cost").succeeded()


def test_a_stretch_over_new_year_is_shared_between_the_years(computer: Computer) -> None:
    turn = datetime(2026, 1, 1, tzinfo=timezone.utc)
    _ran(computer, replace(_ENDED, launched_at=turn - timedelta(hours=2), stopped_at=turn + timedelta(hours=3)))
    bills = [
        workflow.bills(computer.settings(), month=month, clock=quick_clock())
        for month in (turn - timedelta(days=1), turn, turn + timedelta(days=40))
    ]
    assert [bill.total.hours for bill in bills] == [2.0, 3.0, 0.0]


def test_an_unknown_price_and_an_unknown_stop_are_said(computer: Computer) -> None:
    _ran(computer, replace(_ENDED, state=State.RUNNING, stopped_at=None))
    _ran(computer, replace(_ENDED, stopped_at=None))  # seen to be gone ten days later
    _ran(computer, replace(_ENDED, id="i-4567", name="exotic", price_usd_per_hour=None))
    said = computer.gpuops_here("cost", "--month", "2025-12").succeeded()
    assert "an-old-one g4dn.xlarge aws/us-west-2 240 h at most $120.00 i-0123" in _words(said)
    assert "exotic g4dn.xlarge aws/us-west-2 6 h unknown i-4567" in _words(said)
    assert "December 2025 (UTC): 246 h, $120.00 and more." in said
    assert "The price of 6 h of these isn't known: they are not in the sum." in said
    assert "of some stops it is only known that they had come by the time somebody looked" in said


def test_damage_in_the_ledger_is_said(computer: Computer) -> None:
    _ran(computer, _ENDED)
    with (computer.home / "ledger.jsonl").open("a") as file:
        file.write('{"format": 1, "eve')
    assert "1 of its lines can't be read any more" in computer.gpuops_here("cost").succeeded()


def test_places_that_do_not_answer_are_named_and_what_is_known_is_shown(the_cloud: Cloud, computer: Computer) -> None:
    _ran(computer, _ENDED)
    the_cloud.add_faults(
        {"action": "DescribeInstances", "region": "eu-west-1", "code": "InternalError", "status": 500, "times": 99}
    )
    ran = computer.gpuops_here("cost", "--month", "2025-12")
    said = ran.failed(VendorUnreachable)
    assert "aws/eu-west-1" in said
    assert "may be missing from the sum" in said
    assert "December 2025 (UTC): 6 h, $3.00." in ran.stdout


def test_json_has_every_number(computer: Computer) -> None:
    machine = computer.has_machine()
    spent = json.loads(computer.gpuops_here("cost", "--json").succeeded())
    [billed], [disk] = spent["machines"], spent["disks"]
    assert (spent["format"], spent["month"]) == (1, f"{datetime.now(timezone.utc):%Y-%m}")
    assert (billed["machine_id"], billed["is_running"], billed["price_usd_per_hour"]) == (machine.id, True, 0.5439)
    assert billed["spending"]["usd"] == pytest.approx(0.5439 / 60, rel=0.5)
    assert spent["total"] == billed["spending"]
    assert disk == {"machine_id": machine.id, "name": computer.name, "usd_per_month": 8.0}
    assert (spent["runs"], spent["unanswered"], spent["damaged_lines"]) == ([], [], 0)


@pytest.mark.parametrize("month", ["2026", "2026-13", "november", "2026-11-01", "9999-12", ""])
def test_what_is_no_month_is_refused(computer: Computer, month: str) -> None:
    said = computer.gpuops_here("cost", "--month", month).failed(BadInput)
    assert "is no month" in said
    assert "gpuops cost --month 2026-11" in said
