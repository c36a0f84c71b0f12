"""`gpuops up`, `status`, `ssh` and `down` as processes: what they print, ask, leave behind and exit with."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from datetime import timedelta

import pytest

from gpuops.errors import (
    MachineUnreachable,
    NotConfirmed,
    UnknownMachine,
    VendorUnreachable,
)
from gpuops.machine import State
from tests.computers import REGION, Cloud, Computer, Ran, command
from tests.providers.conftest import FAR

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")


def on_a_terminal(computer: Computer, *words: str, answer: str) -> Ran:
    """`gpuops WORDS` on a terminal, where the person types `answer`; what they see is in stdout."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*words), env=computer.environment(TERM="xterm"), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        seen = bytearray()
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        process.wait(timeout=60)
    os.close(ours)
    return Ran(words, process.returncode, seen.decode(), "")


def test_up_shows_the_plan_with_its_prices_and_says_how_to_get_in(the_cloud: Cloud, computer: Computer) -> None:
    ran = computer.gpuops("up", "-y")
    said = ran.succeeded()
    assert f"{computer.name} runs: p2.xlarge in aws/{REGION}, $0.931/h." in said
    assert f"ssh -F {computer.ssh_config} {computer.name}" in said
    assert "It stops by itself at " in said
    for row in (
        "launch ",
        "p2.xlarge (K80 12 GB)",
        "us-west-2a, else us-west-2b",
        "fastai-part1v2-p2 (ami-8c4288f4)",
        "$0.931/h while it runs",
        "100 GB gp3, $8.00/month until it is deleted",
        "by itself 12 h after its boot",
        "AWS has retired p2",
        "g4dn.xlarge at $0.544/h",  # what AWS would give today
        "Launching p2.xlarge",
        "Waiting for ssh on 127.",
    ):
        assert row in ran.stderr
    # Without -y: nothing new bills, so nothing is asked. And without an ssh program, which `up` doesn't need.
    again = computer.gpuops("up", PATH="/nonexistent")
    again.succeeded()
    assert re.search(rf"^ +use +{computer.name} ", again.stderr, re.M)
    assert the_cloud.states(computer.name) == ["running"]


def test_up_without_a_terminal_or_a_yes_launches_nothing(the_cloud: Cloud, computer: Computer) -> None:
    before = len(the_cloud.calls("RunInstances"))
    said = computer.gpuops("up").failed(NotConfirmed)
    assert "Start it, at $0.931/h? There is no terminal to answer on." in said
    assert "Left behind: Nothing was changed." in said
    assert "-y" in said
    assert len(the_cloud.calls("RunInstances")) == before


def test_up_asks_on_a_terminal_and_takes_no_for_an_answer(the_cloud: Cloud, computer: Computer) -> None:
    before = len(the_cloud.calls("RunInstances"))
    ran = on_a_terminal(computer, "up", answer="n\n")
    assert ran.exit_code == NotConfirmed.exit_code
    assert "Start it, at $0.931/h? [y/N]" in ran.stdout
    assert "Traceback" not in ran.stdout
    assert len(the_cloud.calls("RunInstances")) == before


def test_up_asks_on_a_terminal_and_takes_yes_for_an_answer(the_cloud: Cloud, computer: Computer) -> None:
    ran = on_a_terminal(computer, "up", answer="y\n")
    assert ran.exit_code == 0, ran.stdout
    assert "✓ Launching p2.xlarge in us-west-2a" in ran.stdout
    assert the_cloud.states(computer.name) == ["running"]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_up_stops_the_machine_that_it_launched(
    the_cloud: Cloud, computer: Computer, number: signal.Signals, exit_code: int
) -> None:
    with computer.process("up", "-y", GPUOPS_SSH_PORT="2223") as process:  # nobody listens there: it goes on waiting
        ran = interrupt(process, number)
    assert ran.exit_code == exit_code, ran
    assert f"{computer.name} is stopped; its disk costs $8.00/month" in ran.stderr
    assert "Traceback" not in ran.output
    assert the_cloud.states(computer.name) == ["stopped"]


def test_an_interrupted_up_leaves_a_machine_running_that_ran_before(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.has_machine()
    the_cloud.client().create_tags(Resources=[machine.id], Tags=[{"Key": "gpuops:ssh-port", "Value": "2223"}])
    with computer.process("up", "-y") as process:
        ran = interrupt(process, signal.SIGINT)
    assert ran.exit_code == 130
    assert the_cloud.states(computer.name) == ["running"]


def test_an_up_whose_terminal_is_closed_stops_the_machine_all_the_same(the_cloud: Cloud, computer: Computer) -> None:
    """It can't say so any more: every word to that terminal is an error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("up", "-y"),
        env=computer.environment(GPUOPS_SSH_PORT="2223"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        while b"Waiting for ssh" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=60)
    assert the_cloud.states(computer.name) == ["stopped"]


def test_an_up_whose_reader_has_gone_stops_the_machine_all_the_same(the_cloud: Cloud, computer: Computer) -> None:
    """As in `gpuops up -y 2>&1 | head -3`."""
    with computer.process("up", "-y") as process:
        assert process.stderr is not None
        while "Launching" not in process.stderr.readline():
            pass
        process.stderr.close()
        process.wait(timeout=60)
    assert process.returncode != 0
    assert the_cloud.states(computer.name) == ["stopped"]


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> Ran:
    """Send the signal as soon as it waits for ssh."""
    assert process.stderr is not None
    said = ""
    while "Waiting for ssh" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return Ran((), process.returncode, stdout, said + stderr)


def test_a_hang_up_that_is_to_be_ignored_is(computer: Computer) -> None:
    """As with nohup."""
    computer.has_machine()
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command("up", "-y")],
        env=computer.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        ran = interrupt(process, signal.SIGHUP)
    ran.succeeded()


def test_status_shows_every_machine_in_every_region_with_its_price(
    the_cloud: Cloud, new_computer: Callable[[], Computer]
) -> None:
    mine = new_computer()
    mine.has_machine()
    far = new_computer()
    far.name = f"{mine.name}-far"
    far.has_machine(region=FAR, types="g4dn.xlarge")
    said = new_computer().gpuops("status").succeeded()
    heading, *rows, total = said.splitlines()
    assert heading.split() == [
        "NAME",
        "STATE",
        "TYPE",
        "PLACE",
        "ADDRESS",
        "PRICE",
        "DISK",
        "UP",
        "STOPS",
        "BY",
        "ITSELF",
        "ID",
    ]
    assert [row.split()[:4] for row in rows] == [
        [mine.name, "running", "g4dn.xlarge", f"aws/{REGION}"],
        [far.name, "running", "g4dn.xlarge", f"aws/{FAR}"],
    ]
    assert "$0.544/h" in rows[0]
    assert "$0.536/h" in rows[1]
    assert total == "Together $1.080/h."


def test_status_as_json_has_every_machine_and_the_places_that_did_not_answer(
    the_cloud: Cloud, computer: Computer
) -> None:
    machine = computer.has_machine()
    assert machine.ssh is not None
    assert machine.launched_at is not None
    the_cloud.add_faults({"action": "DescribeInstances", "code": "AuthFailure", "status": 401, "region": FAR})
    answer = json.loads(computer.gpuops("status", "--json").stdout)
    [place] = answer.pop("unanswered")
    assert place["place"] == f"aws/{FAR}"
    assert "AuthFailure" in place["reason"]
    assert answer == {
        "format": 1,
        "machines": [
            {
                "id": machine.id,
                "name": computer.name,
                "provider": "aws",
                "region": REGION,
                "zone": machine.zone,
                "type": "g4dn.xlarge",
                "state": "running",
                "address": machine.ssh.host,
                "bills": True,
                "price_usd_per_hour": 0.5439,
                "disk_usd_per_month": 8.0,
                "launched_at": machine.launched_at.isoformat(),
                "max_hours": 12.0,
                "deadline": (machine.launched_at + timedelta(hours=12)).isoformat(),
                "is_adopted": False,
                "problem": "",
            }
        ],
    }


def test_status_says_that_there_is_nothing_only_when_every_region_has_answered(
    the_cloud: Cloud, computer: Computer
) -> None:
    assert computer.gpuops("status").succeeded() == "No machines, in any region.\n"
    the_cloud.add_faults({"action": "DescribeInstances", "code": "AuthFailure", "status": 401, "region": FAR})
    ran = computer.gpuops("status")
    said = ran.failed(VendorUnreachable)
    assert "No machines" not in ran.output
    assert f"aws/{FAR}" in said
    assert "AuthFailure" in said


def test_status_shows_the_machines_even_where_the_address_book_cannot_be_written(computer: Computer) -> None:
    """What bills comes first; the convenience of `ssh NAME` second."""
    computer.has_machine()
    computer.address_book.mkdir(parents=True)
    ran = computer.gpuops("status")
    assert computer.name in ran.stdout
    assert "$0.544/h" in ran.stdout


def test_down_stops_and_says_what_the_disk_costs(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine()
    ran = computer.gpuops("down", computer.name)
    said = ran.succeeded()
    assert said == f"{computer.name} is stopped: $0/h. Its disk is kept and costs $8.00/month.\n"
    assert the_cloud.states(computer.name) == ["stopped"]
    assert "Traceback" not in ran.output
    [row] = [row for row in computer.gpuops("status").stdout.splitlines() if row.startswith(computer.name)]
    assert "$0/h" in row


def test_down_terminate_deletes_only_after_a_yes(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine()
    refused = computer.gpuops("down", "--terminate").failed(NotConfirmed)
    assert f"Delete {computer.name} (" in refused
    assert on_a_terminal(computer, "down", "--terminate", answer="n\n").exit_code == NotConfirmed.exit_code
    assert the_cloud.states(computer.name) == ["running"]
    said = computer.gpuops("down", "--terminate", "-y").succeeded()
    assert said == f"{computer.name} is gone, with its disk: it costs nothing any more.\n"
    assert the_cloud.states(computer.name) == []


def test_a_machine_that_there_is_not_is_answered_with_the_closest(computer: Computer) -> None:
    nothing = computer.gpuops("down", "fast-ai").failed(UnknownMachine)
    assert "Next: gpuops up fast-ai" in nothing
    computer.has_machine()
    assert f"Did you mean '{computer.name}'?" in computer.gpuops("down", f"{computer.name}x").failed(UnknownMachine)


def test_a_machine_that_ssh_does_not_reach_is_stopped_and_what_is_left_is_said(
    the_cloud: Cloud, computer: Computer
) -> None:
    """A refused login is final: nobody waits ten minutes for a key that isn't admitted."""
    from gpuops.errors import KeyRefused

    computer.has_machine(State.STOPPED, types="p2.xlarge")  # whose image can't be told of another key
    shutil.rmtree(computer.home / "keys")
    said = computer.gpuops("up", "-y").failed(KeyRefused)
    assert f"Left behind: {computer.name} is stopped; its disk costs $8.00/month." in said
    assert MachineUnreachable.exit_code == KeyRefused.exit_code
    assert the_cloud.states(computer.name) == ["stopped"]
