"""What keeps a tunnel open: sleep is noticed, and a provider that is silent is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from gpuops import workflow
from gpuops.lifecycle import Clock
from gpuops.machine import Machine
from gpuops.workflow import Forward, Left
from tests.computers import Cloud, Computer
from tests.cutting import cut_lines_to

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes and connections in /proc")

Story = Iterator[timedelta]


def keep_open(computer: Computer, told: list[str], story: Story) -> None:
    """A tunnel that tells what it does. At each of its pauses the story goes on, and says how much time it took.

    When the story has ended, so does the tunnel, by Ctrl-C.
    """
    passed = timedelta()

    def pause(_: float) -> None:
        nonlocal passed
        time.sleep(0.02)
        try:
            passed += next(story)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(Left):
        workflow.tunnel(
            computer.settings(),
            [Forward(remote_port=6006)],
            opened=lambda *_: told.append("open"),
            tell=told.append,
            clock=Clock(sleep=pause, now=lambda: datetime.now(timezone.utc) + passed),
        )


_A_MOMENT, _AN_HOUR = timedelta(), timedelta(hours=1)


def test_a_line_that_died_while_the_computer_slept_is_given_up_when_it_wakes(computer: Computer) -> None:
    machine = computer.up()
    frozen = _operating_system(machine)

    def story() -> Story:
        yield _A_MOMENT
        os.kill(frozen, signal.SIGSTOP)  # nothing is heard of it, and no connection says so
        yield _AN_HOUR
        os.kill(frozen, signal.SIGCONT)
        while told[-1] != f"{machine.name} is back":
            yield _A_MOMENT

    told: list[str] = []
    keep_open(computer, told, story())
    assert told == ["open", f"The line to {machine.name} was lost; looking for it", f"{machine.name} is back"]


def test_a_line_that_still_answers_after_the_computer_slept_is_kept(computer: Computer) -> None:
    computer.up()
    told: list[str] = []
    keep_open(computer, told, iter([_A_MOMENT, _AN_HOUR, _A_MOMENT]))
    assert told == ["open"]


def test_a_provider_that_cannot_be_reached_is_asked_again(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.up()
    assert machine.ssh
    host = machine.ssh.host

    def story() -> Story:
        the_cloud.add_faults({"action": "DescribeInstances", "code": "Unavailable", "status": 503, "times": 1000})
        cut_lines_to(host)
        while "aws can't be reached either; trying again" not in told:
            yield _A_MOMENT
        the_cloud.lift_faults()
        while told[-1] != f"{machine.name} is back":
            yield _A_MOMENT

    told: list[str] = []
    keep_open(computer, told, story())
    assert told == [
        "open",
        f"The line to {machine.name} was lost; looking for it",
        "aws can't be reached either; trying again",
        f"{machine.name} is back",
    ]


def _operating_system(machine: Machine) -> int:
    """The process of this computer that is the machine's; its ssh server is a part of it."""
    pattern = f"gpuops.sandbox.operating_system .*/{machine.id}$"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])
