"""What a machine or its tags say chooses nothing on this computer; and no ending hides what goes on billing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpuops import jobs, lifecycle, workflow
from gpuops.errors import BadData, NotConfirmed, RunError, StateError, UnknownRun
from gpuops.jobs import Training
from gpuops.lifecycle import Clock, Release
from gpuops.machine import State
from tests.computers import Computer, agree, quick_clock, until
from tests.cutting import cut_lines_to
from tests.quick_machine import QuickMachine, quick_machine

_ID = "20990101T000000-abcdef"


def _run_of_the_machines_own(quick: QuickMachine, says: str) -> Path:
    folder = quick.home / "gpuops" / "runs" / _ID
    folder.mkdir(parents=True)
    run = {
        "id": says,
        "machine": quick.machine.name,
        "machine_id": quick.machine.id,
        "provider": "aws",
        "region": "us-west-2",
        "recipe": "digits",
        "python": "python3",
        "argv": [],
        "trainer_digest": "",
        "recipe_digest": "",
        "data_digest": "",
        "price_usd_per_hour": None,
        "then": "stop",
        "grace_minutes": 10,
        "poweroff": [],
        "created": "",
        "format": 1,
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "manifest.json").write_text('{"format": 1, "files": []}')
    return folder


@pytest.mark.parametrize("says", ["{outside}", "../../elsewhere", "20990101T000000-fedcba", ""])
def test_a_machine_does_not_choose_the_folder_that_its_run_is_brought_home_to(
    computer: Computer, tmp_path: Path, says: str
) -> None:
    quick = quick_machine(computer)
    _run_of_the_machines_own(quick, says.format(outside=tmp_path / "outside"))
    with pytest.raises(BadData):
        workflow.pull(computer.settings(), None, confirm=agree, tell=agree, clock=quick_clock())
    assert not (tmp_path / "outside").exists()
    assert not (computer.home / "elsewhere").exists()
    assert not list((computer.home / "runs").glob("*"))


def test_a_machine_that_others_have_labelled_is_seen_and_stopped_and_not_reached(computer: Computer) -> None:
    machine = computer.up()
    evil = {"Key": "gpuops:user", "Value": "ubuntu\n    ProxyCommand touch /tmp/pwned"}
    computer.cloud.client().create_tags(Resources=[machine.id], Tags=[evil])
    listed = computer.gpuops_here("status").succeeded()
    assert machine.id in listed
    assert "its tags are not those of a machine of this gpuops" in " ".join(listed.split())
    assert "ProxyCommand" not in computer.address_book.read_text()
    with pytest.raises(StateError, match="can't be used"):
        computer.up()
    assert computer.down().state is State.STOPPED


def test_pull_of_a_run_that_no_one_has_says_so(computer: Computer) -> None:
    quick_machine(computer)
    with pytest.raises(UnknownRun, match="20260101"):
        workflow.pull(computer.settings(), "20260101", confirm=agree, tell=agree, clock=quick_clock())


def test_a_run_that_was_interrupted_has_not_succeeded(computer: Computer) -> None:
    quick = quick_machine(computer)
    quick.hold()
    with computer.process("train", "digits", "-y", "--type", "g4dn.xlarge") as process:
        assert process.stdout
        assert process.stdout.readline() == "epoch 1\n"
        # The wrapper and all below it, as a crash of the machine's would take them.
        computer.gpuops("ssh", computer.name, "pkill -9 -f [g]puops/bin/job").succeeded()
        stdout, stderr = process.communicate(timeout=60)
    assert "interrupted" in stdout, stderr
    assert process.returncode == RunError.exit_code


def test_a_run_whose_machine_another_command_holds_says_that_it_still_bills(computer: Computer) -> None:
    quick = quick_machine(computer)
    settings = computer.settings(types="g4dn.xlarge")
    key = f"aws-{computer.cloud.provider.account()}-{computer.name}"
    held = lifecycle.locked(settings.home / "locks", key)

    def hold(_: bytes) -> None:
        if not held_already:
            held_already.append(True)
            held.__enter__()

    held_already: list[bool] = []
    try:
        finished = workflow.train(
            settings,
            Training(recipe=jobs.recipe_file("digits"), data="digits"),
            then="stop",
            confirm=agree,
            tell=agree,
            show=hold,
            clock=quick_clock(),
        )
    finally:
        held.__exit__(None, None, None)
    assert finished.outcome.state == "succeeded"
    assert "left running, at $0.544/h: another gpuops command is at work on it" in finished.still_bills
    assert quick.state == "running"


def test_a_second_ctrl_c_while_a_machine_is_being_stopped_says_that_it_may_still_run(computer: Computer) -> None:
    machine = computer.has_machine()
    told: list[str] = []

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Release(computer.cloud.provider, machine.name, clock=Clock(sleep=interrupt), tell=told.append) as release,
    ):
        release.owns(machine)
        raise NotConfirmed("no")
    assert told[-1] == f"{machine.name} may still be running, and billing: see `gpuops status`"
    until(lambda: computer.cloud.states(machine.name) == ["stopped"], "the stop that was asked for is carried out")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds its own connections in /proc")
def test_a_network_that_goes_away_while_a_run_is_followed_loses_none_of_it(computer: Computer) -> None:
    quick = quick_machine(computer)
    quick.hold()
    assert quick.machine.ssh
    host = quick.machine.ssh.host
    shown: list[bytes] = []

    def lose_the_network_once(output: bytes) -> None:
        shown.append(output)
        if len(shown) == 1:
            # Neither the machine nor the provider can be reached for a while, as with a closed lid.
            computer.cloud.add_faults({"action": "DescribeInstances", "code": "Unavailable", "status": 503, "times": 3})
            cut_lines_to(host)
            quick.let_go()

    finished = workflow.train(
        computer.settings(types="g4dn.xlarge"),
        Training(recipe=jobs.recipe_file("digits"), data="digits"),
        then="stop",
        confirm=agree,
        tell=computer.told.append,
        show=lose_the_network_once,
        clock=quick_clock(),
    )
    assert "The line was lost; trying again" in computer.told
    assert finished.outcome.state == "succeeded"
    assert b"".join(shown) == b"epoch 1\nepoch 2\n" == (quick.runs[-1] / "log.txt").read_bytes()
    assert quick.state == "stopped"
