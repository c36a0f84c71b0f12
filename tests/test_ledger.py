"""The ledger: what is noted of machines' hours, what it comes to, and what spoils none of it."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuops.errors import NewerFormat
from gpuops.ledger import Ledger
from gpuops.machine import Machine, State, Uptime
from gpuops.machine_hours import EVER, Ending, Spending, Stretch

_START = datetime(2026, 11, 23, 10, 0, tzinfo=timezone.utc)
_MACHINE = Machine(
    id="i-1",
    name="fast-ai",
    provider="aws",
    region="us-west-2",
    zone="us-west-2a",
    type="g4dn.xlarge",
    state=State.RUNNING,
    price_usd_per_hour=0.5,
    launched_at=_START,
)


def _at(hours: float) -> datetime:
    """That long after the start."""
    return _START + timedelta(hours=hours)


def _stopped(hours: float | None, machine: Machine = _MACHINE, state: State = State.STOPPED) -> Machine:
    return replace(machine, state=state, stopped_at=None if hours is None else _at(hours))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.jsonl")


def _only(ledger: Ledger) -> Stretch:
    [stretch] = ledger.entries().stretches
    return stretch


def _spent(ledger: Ledger, *, now: datetime) -> Spending:
    return sum((s.spending(*EVER, now=now) for s in ledger.entries().stretches), start=Spending())


def test_a_ledger_of_which_nothing_is_known_is_empty(ledger: Ledger) -> None:
    assert (ledger.entries().stretches, ledger.entries().runs) == ((), ())
    ledger.seen([], now=_at(0), complete=True)
    assert not ledger.path.exists()


def test_a_machine_that_runs_bills_from_the_providers_time_of_its_start(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(2))
    assert _spent(ledger, now=_at(3)) == Spending(hours=3.0, usd=1.5)


def test_what_is_no_news_is_not_noted(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    noted = ledger.path.read_bytes()
    ledger.seen([_MACHINE], now=_at(2), complete=True)
    assert ledger.path.read_bytes() == noted


@pytest.mark.parametrize("state", [State.STOPPED, State.SHUTTING_DOWN, State.TERMINATED])
def test_a_machine_that_the_provider_says_has_stopped_bills_until_then(ledger: Ledger, state: State) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([_stopped(4, state=state)], now=_at(30))
    assert _spent(ledger, now=_at(40)) == Spending(hours=4.0, usd=2.0)


@pytest.mark.parametrize("state", [State.STOPPED, State.TERMINATED])
def test_a_stop_of_which_the_time_is_not_known_bills_until_it_was_seen_and_says_at_most(
    ledger: Ledger, state: State
) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([_stopped(None, state=state)], now=_at(6))
    assert _spent(ledger, now=_at(40)) == Spending(hours=6.0, usd=3.0, is_at_most=True)


def test_a_stop_from_before_the_start_says_nothing_of_this_stop(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([_stopped(-5)], now=_at(6))
    assert _only(ledger).ended == _at(6)


@pytest.mark.parametrize("state", [State.STOPPING, State.UNKNOWN])
def test_a_machine_that_may_still_bill_goes_on_billing(ledger: Ledger, state: State) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([replace(_MACHINE, state=state)], now=_at(2))
    assert _only(ledger).ended is None


def test_a_machine_that_is_gone_from_a_whole_listing_has_ended_by_then(ledger: Ledger) -> None:
    ledger.seen([_MACHINE, replace(_MACHINE, id="i-2")], now=_at(1))
    ledger.seen([replace(_MACHINE, id="i-2")], now=_at(7), complete=True)
    gone, there = sorted(ledger.entries().stretches, key=lambda stretch: stretch.machine_id)
    assert (gone.ended, gone.ending) == (_at(7), Ending.SEEN)
    assert there.ended is None


def test_a_machine_that_is_missing_where_not_all_places_answered_goes_on_billing(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([], now=_at(7), complete=False)
    assert _only(ledger).ended is None


def test_a_machine_that_was_missed_and_runs_after_all_has_billed_all_along(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([], now=_at(2), complete=True)
    ledger.seen([_MACHINE], now=_at(9))
    assert _spent(ledger, now=_at(10)) == Spending(hours=10.0, usd=5.0)


def test_a_later_start_ends_the_one_before_and_is_another(ledger: Ledger) -> None:
    """Stopped and started from another computer: this one saw neither."""
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([replace(_MACHINE, launched_at=_at(20))], now=_at(21))
    first, second = ledger.entries().stretches
    assert (first.ended, first.ending) == (_at(20), Ending.SEEN)
    assert (second.started, second.ended) == (_at(20), None)


def test_the_stop_of_a_later_start_is_not_that_of_the_one_before(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([replace(_stopped(22), launched_at=_at(20))], now=_at(30))
    first, second = ledger.entries().stretches
    assert (first.ended, first.ending) == (_at(20), Ending.SEEN)
    assert (second.started, second.ended, second.ending) == (_at(20), _at(22), Ending.SAID)


def test_a_listing_from_before_the_start_ends_nothing(ledger: Ledger) -> None:
    """A provider may still show the stopped machine for a while after it was started."""
    ledger.seen([replace(_MACHINE, launched_at=_at(20))], now=_at(20))
    ledger.seen([_stopped(4)], now=_at(20.01))
    assert [s.ended for s in ledger.entries().stretches if s.started == _at(20)] == [None]


def test_a_stopped_machine_that_ran_before_it_was_first_seen_here_has_billed_as_the_provider_says(
    ledger: Ledger,
) -> None:
    ledger.seen([_stopped(3)], now=_at(100))
    assert _spent(ledger, now=_at(200)) == Spending(hours=3.0, usd=1.5)
    ledger.seen([_stopped(None, replace(_MACHINE, id="i-2"))], now=_at(100))
    assert len(ledger.entries().stretches) == 1, "nobody knows how long that one ran"


def test_a_machine_of_whose_start_nothing_is_known_is_no_stretch(ledger: Ledger) -> None:
    ledger.seen([replace(_MACHINE, launched_at=None)], now=_at(1))
    assert ledger.entries().stretches == ()


def test_the_price_is_that_of_the_start(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([replace(_MACHINE, price_usd_per_hour=9.0)], now=_at(2))
    assert _spent(ledger, now=_at(2)).usd == 1.0


def test_hours_of_an_unknown_price_are_counted_apart_until_it_is_known(ledger: Ledger) -> None:
    ledger.seen([replace(_MACHINE, price_usd_per_hour=None), replace(_MACHINE, id="i-2")], now=_at(1))
    assert _spent(ledger, now=_at(2)) == Spending(hours=4.0, usd=1.0, unpriced_hours=2.0)
    ledger.seen([_MACHINE], now=_at(3))
    assert _spent(ledger, now=_at(4)) == Spending(hours=8.0, usd=4.0)


def test_a_start_bills_a_minute_at_least(ledger: Ledger) -> None:
    ledger.seen([_stopped(10 / 3600)], now=_at(1))
    assert _spent(ledger, now=_at(1)).hours == pytest.approx(60 / 3600)


def test_two_clocks_that_disagree_make_no_negative_hours(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(-1))
    ledger.seen([_stopped(None)], now=_at(-0.5))
    assert _spent(ledger, now=_at(-0.4)).hours == pytest.approx(60 / 3600)


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_of_any_division_of_time_add_up_to_the_whole(ledger: Ledger, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(10):
        machine = replace(
            _MACHINE,
            id=f"i-{number}",
            launched_at=_at(chance.uniform(0, 3000)),
            price_usd_per_hour=chance.choice([0.5, 3.0, None]),
        )
        assert machine.launched_at
        ledger.seen([machine], now=_at(3000))
        if chance.random() < 0.7:
            ended = machine.launched_at + timedelta(hours=chance.choice([0.001, 1, 800]))
            ledger.seen([replace(machine, state=State.STOPPED, stopped_at=ended)], now=_at(4000))
    now = _at(4000)
    cuts = [EVER[0], *sorted(_at(chance.uniform(-100, 5000)) for _ in range(12)), EVER[1]]
    parts = [s.spending(*part, now=now) for part in itertools.pairwise(cuts) for s in ledger.entries().stretches]
    whole, added = _spent(ledger, now=now), sum(parts, start=Spending())
    assert all(part.hours >= 0 for part in parts)
    assert (added.hours, added.usd) == (pytest.approx(whole.hours), pytest.approx(whole.usd))
    assert added.unpriced_hours == pytest.approx(whole.unpriced_hours)


def test_a_stretch_across_the_end_of_a_month_is_shared_between_the_two(ledger: Ledger) -> None:
    turn = datetime(2026, 12, 1, tzinfo=timezone.utc)
    ledger.seen([replace(_MACHINE, launched_at=turn - timedelta(hours=5))], now=turn + timedelta(hours=3))
    stretch, now = _only(ledger), turn + timedelta(hours=3)
    assert stretch.spending(EVER[0], turn, now=now).hours == 5.0
    assert stretch.spending(turn, EVER[1], now=now).hours == 3.0


def _boot(booted: float, ended: float | None, reason: str = "idle") -> Uptime:
    return Uptime(booted=_at(booted), ended=None if ended is None else _at(ended), reason=reason)


def test_the_machines_own_log_says_when_it_stopped_that_nobody_saw(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    again = replace(_MACHINE, launched_at=_at(20))
    ledger.seen([again], now=_at(20.1))
    ledger.uptimes(again, [_boot(0.02, 3.0), _boot(20.02, None, "")], now=_at(21))
    first, second = ledger.entries().stretches
    assert (first.ended, first.ending, first.reason) == (_at(3), Ending.LOGGED, "idle")
    assert second.ended is None
    assert not _spent(ledger, now=_at(21)).is_at_most


def test_a_reboot_in_the_log_ends_no_hours(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    again = replace(_MACHINE, launched_at=_at(20))
    ledger.seen([again], now=_at(20.1))
    ledger.uptimes(again, [_boot(0.02, 3.0, "reboot"), _boot(3.02, 7.0), _boot(20.02, None)], now=_at(21))
    assert ledger.entries().stretches[0].ended == _at(7)


def test_starts_that_this_computer_never_saw_are_taken_from_the_log_once(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    again = replace(_MACHINE, launched_at=_at(20))
    ledger.seen([again], now=_at(20.1))
    log = [_boot(0.02, 3.0), _boot(10, 12.0, "deadline"), _boot(20.02, None)]
    ledger.uptimes(again, log, now=_at(21))
    ledger.uptimes(again, log, now=_at(22))
    assert [(s.started, s.ended, s.reason) for s in ledger.entries().stretches] == [
        (_at(0), _at(3), "idle"),
        (_at(10), _at(12), "deadline"),
        (_at(20), None, ""),
    ]


def test_what_the_log_told_is_not_counted_again_when_the_provider_tells_it_too(ledger: Ledger) -> None:
    ledger.uptimes(_stopped(None), [_boot(0.02, 3.0)], now=_at(4))
    assert _spent(ledger, now=_at(5)).hours == pytest.approx(2.98)
    ledger.seen([_stopped(3.01)], now=_at(5))
    assert _spent(ledger, now=_at(5)).hours == pytest.approx(3.01)


@pytest.mark.parametrize(
    "log",
    [
        [_boot(0.02, 0.5)],
        [_boot(-3, 2)],
        [_boot(0.02, 900)],
        [_boot(900, 901)],
        [_boot(0.02, -5)],
        [_boot(0.02, None)],
        [],
    ],
    ids=["sooner", "across", "into-the-future", "in-the-future", "backwards", "unended", "none"],
)
@pytest.mark.parametrize("said", [_MACHINE, _stopped(4)], ids=["running", "stopped"])
def test_no_log_changes_what_the_provider_has_said(ledger: Ledger, said: Machine, log: list[Uptime]) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([said], now=_at(5))
    before = ledger.entries()
    ledger.uptimes(said, log, now=_at(6))
    assert ledger.entries() == before


@pytest.mark.parametrize("log", [[_boot(0.02, 900)], [_boot(0.02, None)], [_boot(2, 3)]])
def test_no_log_makes_a_stop_later_than_it_was_seen(ledger: Ledger, log: list[Uptime]) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.seen([_stopped(None)], now=_at(5))
    before = _spent(ledger, now=_at(6))
    ledger.uptimes(_stopped(None), log, now=_at(6))
    assert _spent(ledger, now=_at(6)) == before


def _begin(ledger: Ledger, run_id: str = "run-1", *, at: float = 0, machine: Machine = _MACHINE) -> None:
    ledger.run_began(run_id, "digits", "abc", machine, at=_at(at))


def test_a_run_has_spent_what_its_machine_did_from_its_claim_on(ledger: Ledger) -> None:
    _begin(ledger, at=1)
    assert ledger.spent_usd("run-1", _at(3)) == pytest.approx(1.0)
    ledger.run_ended("run-1", at=_at(4))
    assert ledger.spent_usd("run-1", _at(9)) == pytest.approx(1.5)
    assert ledger.spent_usd("run-2", _at(9)) == 0


def test_what_a_run_waited_for_an_answer_before_its_machine_ran_costs_nothing(ledger: Ledger) -> None:
    _begin(ledger, at=-2)
    assert ledger.spent_usd("run-1", _at(1)) == pytest.approx(0.5)


def test_no_run_goes_on_spending_after_its_machines_stop(ledger: Ledger) -> None:
    """Its client was cut off; days later the machine runs for something else."""
    _begin(ledger)
    ledger.seen([_stopped(3)], now=_at(50))
    ledger.seen([replace(_MACHINE, launched_at=_at(60))], now=_at(60))
    assert ledger.spent_usd("run-1", _at(70)) == pytest.approx(1.5)
    ledger.run_ended("run-1", at=_at(70))
    assert ledger.spent_usd("run-1", _at(70)) == pytest.approx(1.5)


def test_a_run_has_no_part_of_what_its_machine_did_on_an_earlier_start(ledger: Ledger) -> None:
    ledger.seen([_stopped(3)], now=_at(50))
    _begin(ledger, at=-1, machine=replace(_MACHINE, launched_at=_at(60)))
    assert ledger.spent_usd("run-1", _at(61)) == pytest.approx(0.5)


def test_a_run_that_is_taken_up_again_goes_on_from_what_it_had_spent(ledger: Ledger) -> None:
    _begin(ledger)
    ledger.seen([_stopped(2)], now=_at(50))
    dearer = replace(_MACHINE, id="i-2", price_usd_per_hour=3.0, launched_at=_at(60))
    _begin(ledger, at=60, machine=dearer)
    assert ledger.spent_usd("run-1", _at(61)) == pytest.approx(1.0 + 3.0)


def test_of_a_run_at_an_unknown_price_nobody_says_what_it_has_spent(ledger: Ledger) -> None:
    _begin(ledger, machine=replace(_MACHINE, price_usd_per_hour=None))
    _begin(ledger, "run-2", machine=replace(_MACHINE, id="i-2", launched_at=None))
    assert ledger.spent_usd("run-1", _at(1)) is None
    assert ledger.spent_usd("run-2", _at(1)) is None


def _earlier(ledger: Ledger, took: float, *, recipe: str = "digits", digest: str = "abc", **more: object) -> None:
    run_id = f"run-{len(ledger.entries().runs)}"
    ledger.run_began(run_id, recipe, digest, replace(_MACHINE, type=str(more.get("type", "g4dn.xlarge"))), at=_at(0))
    ledger.run_ended(run_id, at=_at(took), succeeded=bool(more.get("succeeded", True)))


def test_earlier_runs_are_those_of_the_very_recipe_on_such_a_machine_that_succeeded(ledger: Ledger) -> None:
    _earlier(ledger, 1)
    _earlier(ledger, 2)
    _earlier(ledger, 5, digest="another version")
    _earlier(ledger, 6, succeeded=False)
    _earlier(ledger, 7, type="p2.xlarge")
    _begin(ledger, "still going on")
    assert ledger.hours_before("digits", "abc", "g4dn.xlarge") == [pytest.approx(1), pytest.approx(2)]


def test_runs_of_a_recipe_of_that_name_will_do_where_there_are_none_of_the_very_recipe(ledger: Ledger) -> None:
    _earlier(ledger, 5, digest="another version")
    _earlier(ledger, 6, recipe="dogscats", digest="other")
    assert ledger.hours_before("digits", "abc", "g4dn.xlarge") == [pytest.approx(5)]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_power_cut_in_the_middle_of_a_line_costs_that_line_alone(ledger: Ledger, kept: int) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    whole = ledger.path.read_bytes()
    ledger.seen([replace(_MACHINE, id="i-2")], now=_at(1))
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(whole) + kept])
    ledger.seen([replace(_MACHINE, id="i-3")], now=_at(1))
    known = ledger.entries()
    assert ({s.machine_id for s in known.stretches}, known.damaged) == ({"i-1", "i-3"}, 1)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": "x", "event": "started"}',
        '{"format": 1, "event": "unheard of"}',
        '{"format": 1, "event": "ended", "machine_id": "i-1", "started": "yesterday"}',
        '{"format": 1, "event": "run-began", "run_id": "x"}',
        "\0\0\0\0",
    ],
)
def test_a_damaged_line_is_passed_over_and_counted(ledger: Ledger, line: str) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    known = ledger.entries()
    ledger.path.write_text(line + "\n" + ledger.path.read_text() + line + "\n")
    assert ledger.entries() == replace(known, damaged=2)


@pytest.mark.parametrize(
    "change",
    [
        {"price_usd_per_hour": "cheap"},
        {"price_usd_per_hour": float("nan")},
        {"price_usd_per_hour": -1},
        {"started": "2026-11-23T10:00:00"},
        {"started": 1},
    ],
)
def test_a_line_that_makes_no_sense_is_damaged(ledger: Ledger, change: dict[str, object]) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    ledger.path.write_text(json.dumps({**json.loads(ledger.path.read_text()), **change}) + "\n")
    known = ledger.entries()
    assert (known.stretches, known.damaged) == ((), 1)


def test_what_a_newer_gpuops_has_written_is_refused(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    with ledger.path.open("a") as file:
        file.write('{"format": 2, "event": "?"}\n')
    with pytest.raises(NewerFormat, match="newer gpuops") as refused:
        ledger.entries()
    assert "Upgrade" in refused.value.next_step


_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from gpuops.ledger import Ledger
from tests.test_ledger import _MACHINE, _at
ledger, who = Ledger(Path(sys.argv[1])), sys.argv[2]
sys.stdin.read(1)
for number in range(20):
    ledger.seen([replace(_MACHINE, id=f"{who}-{number}"), replace(_MACHINE, id=f"both-{number}")], now=_at(1))
for _ in range(1000):
    ledger.run_ended(who, at=_at(1))
"""


def test_commands_that_write_at_once_lose_nothing(ledger: Ledger) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(ledger.path), who],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
        )
        for who in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b".")
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    known = ledger.entries()
    ids = [stretch.machine_id for stretch in known.stretches]
    assert sorted(ids) == sorted(f"{who}-{number}" for who in ("one", "other", "both") for number in range(20))
    assert sum(b"run-ended" in line for line in ledger.path.read_bytes().splitlines()) == 2000
    assert known.damaged == 0


@pytest.mark.parametrize("seen_by_both", [lambda m: m, lambda m: _stopped(4, m), lambda m: _stopped(None, m)])
def test_two_commands_that_note_the_same_count_it_once(
    ledger: Ledger, seen_by_both: Callable[[Machine], Machine]
) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    before = ledger.path.read_bytes()
    machine = seen_by_both(_MACHINE)
    ledger.seen([machine], now=_at(5))
    once, news = ledger.entries(), ledger.path.read_bytes().removeprefix(before)
    ledger.path.write_bytes(before + news + news)
    assert ledger.entries() == once


def test_of_two_commands_that_saw_the_machine_stopped_the_earlier_counts(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    before = ledger.path.read_bytes()
    news = []
    for seen in (5, 6):
        ledger.path.write_bytes(before)
        ledger.seen([_stopped(None)], now=_at(seen))
        news.append(ledger.path.read_bytes().removeprefix(before))
    for order in itertools.permutations(news):
        ledger.path.write_bytes(before + b"".join(order))
        assert _only(ledger).ended == _at(5)


def test_the_ledger_is_the_persons_own(ledger: Ledger) -> None:
    ledger.seen([_MACHINE], now=_at(1))
    assert ledger.path.stat().st_mode & 0o777 == 0o600
