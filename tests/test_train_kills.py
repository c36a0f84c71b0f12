"""`kill -9` of `gpuops train` at its four stages: the machine is seen, stops by itself, and everything comes home."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuops import results
from gpuops.machine import State
from gpuops.runs import RunStore
from tests.computers import Computer, until
from tests.kill_points import kill_at
from tests.quick_machine import QuickMachine, quick_machine, slow_rsync

_TYPE = "g4dn.xlarge"
_SOON_MINUTES = "0.03"
_TWO_SECONDS = str(2 / 3600)


@pytest.fixture
def mine(new_computer: Callable[[], Computer]) -> Computer:
    return new_computer()


@pytest.fixture
def other(new_computer: Callable[[], Computer]) -> Computer:
    """Another computer, which knows nothing."""
    return new_computer()


@contextmanager
def _killed(computer: Computer, *words: str, when: Callable[[], object], **changes: str) -> Iterator[None]:
    """`gpuops train`, killed at that moment; whatever it had started here itself is killed afterwards."""
    process = computer.process("train", "digits", "-y", *words, **changes)
    try:
        until(lambda: when() or process.poll() is not None, "the moment has come")
        assert process.poll() is None, process.communicate()
        process.kill()
        yield
    finally:
        process.kill()
        subprocess.run(["pkill", "-KILL", "-f", f"ssh .*{computer.folder}"], check=False)
        process.communicate(timeout=60)


def _shows_a_bill(computer: Computer, name: str) -> bool:
    [machine] = [machine for machine in computer.status().machines if machine.name == name]
    return machine.state.bills and machine.price_usd_per_hour is not None


def _brings_home(computer: Computer, quick: QuickMachine) -> bool:
    """By `pull`, which starts the stopped machine and stops it again."""
    ran = computer.gpuops_here("pull", "-y")
    [run] = quick.runs
    assert f"{run.name} is home, every file verified" in " ".join(ran.succeeded().split())
    home = RunStore(computer.home / "runs").path(run.name)
    same = (home / "log.txt").read_bytes() == (run / "log.txt").read_bytes()
    return same and results.verify(home) > 5 and quick.state == "stopped"


def test_killed_right_after_the_launch(mine: Computer, other: Computer) -> None:
    words = ("train", "digits", "-y", "--max-hours", _TWO_SECONDS)
    assert kill_at(mine, words, "after RunInstances #1")
    assert _shows_a_bill(other, mine.name)
    until(lambda: mine.cloud.states(mine.name) == ["stopped"], "it stops at its deadline")


def test_killed_while_it_ships(mine: Computer, other: Computer, tmp_path: Path) -> None:
    quick = quick_machine(mine, types=_TYPE, max_hours=8 / 3600)
    (tmp_path / "photos").mkdir()
    for number in range(200):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(bytes(1000))
    crawls = slow_rsync(mine, ":gpuops/data/", kb_per_s=20)

    def some_but_not_all_is_there() -> bool:
        return 0 < len(list(quick.home.glob("gpuops/data/photos-*/*.jpg"))) < 200

    with _killed(mine, "--data", str(tmp_path / "photos"), when=some_but_not_all_is_there, PATH=crawls):
        assert _shows_a_bill(other, mine.name)
    assert quick.runs == []
    until(lambda: quick.switched_itself_off, "it stops at its deadline")


def test_killed_while_it_trains(mine: Computer, other: Computer) -> None:
    quick = quick_machine(mine, State.STOPPED, types=_TYPE)
    quick.hold()

    def the_training_has_begun() -> bool:
        return any(path.stat().st_size for path in quick.home.glob("gpuops/runs/*/log.txt"))

    with _killed(mine, when=the_training_has_begun, GPUOPS_GRACE_MINUTES=_SOON_MINUTES):
        assert _shows_a_bill(other, mine.name)
        quick.let_go()
        until(lambda: quick.switched_itself_off, "it stops by itself, its grace time after the training")
    assert _brings_home(mine, quick)


def test_killed_while_it_brings_the_results_home(mine: Computer, other: Computer) -> None:
    quick = quick_machine(mine, types=_TYPE)
    crawls = slow_rsync(mine, ":gpuops/runs/", kb_per_s=20)

    def some_of_it_is_home() -> bool:
        return any(mine.home.glob("runs/*/manifest.json")) and not any(mine.home.glob("runs/*/out/weights*"))

    with _killed(mine, when=some_of_it_is_home, PATH=crawls, GPUOPS_GRACE_MINUTES=_SOON_MINUTES):
        assert _shows_a_bill(other, mine.name)
        until(lambda: quick.switched_itself_off, "it stops by itself, its grace time after the training")
    [run] = RunStore(mine.home / "runs").all()
    assert not RunStore(mine.home / "runs").is_home(run.id)
    assert _brings_home(mine, quick)
