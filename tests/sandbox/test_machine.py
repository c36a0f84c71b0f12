"""A machine's life: boots, deadlines, and the ways in which it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.sandbox.machines import Machine, machine_in, until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path) as machine:
        yield machine


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that no test ends."""
    with machine_in(tmp_path_factory.mktemp("running")) as machine:
        yield machine.start().wait_for_ssh()


def test_the_deadline_powers_the_machine_off_with_nobody_connected_on_every_boot(machine: Machine) -> None:
    assert machine.start(user_data=machine.first_boot(deadline_s=0.7)).ended() == 0
    assert machine.start().ended() == 0
    assert machine.console.count("systemd: gpuops-deadline.timer starts gpuops-deadline.service") == 2


def test_the_deadline_is_armed_before_ssh_listens(machine: Machine) -> None:
    first_boot = yaml.safe_load(machine.first_boot(deadline_s=1000))
    first_boot["bootcmd"].append("until [ -e ~/go ]; do sleep 0.02; done; echo bootcmd is done")
    machine.start(user_data="#cloud-config\n" + yaml.safe_dump(first_boot))
    until(lambda: "systemd: starting gpuops-deadline.timer" in machine.console, "the deadline is armed")
    assert not machine.answers()
    (machine.home / "go").touch()
    machine.wait_for_ssh()
    assert machine.console.index("bootcmd is done") < machine.console.index("login:")
    left_s = float(machine.run("systemctl list-timers").stdout.split(b"s left")[0])
    assert 980 < left_s < 1000


@pytest.mark.parametrize("command", ["sudo systemctl poweroff", "sudo -n shutdown -P now"])
def test_powering_off_from_within_ends_the_machine_with_0_and_the_command_too(machine: Machine, command: str) -> None:
    assert machine.start().wait_for_ssh().run(command).returncode == 0
    assert machine.ended() == 0


def test_a_reboot_ends_the_machine_with_3(machine: Machine) -> None:
    assert machine.start().wait_for_ssh().run("sudo reboot").returncode == 0
    assert machine.ended() == 3


def test_a_halted_machine_runs_nothing_and_stays_on_as_it_goes_on_billing(machine: Machine) -> None:
    machine.start(user_data=machine.first_boot(deadline_s=1.5)).wait_for_ssh()
    machine.run("nohup sh -c 'while :; do date > alive; sleep 0.02; done' > /dev/null 2>&1 < /dev/null &")
    until((machine.home / "alive").exists, "the job runs")
    machine.run("halt")
    until(lambda: not machine.answers(), "ssh is gone")
    assert machine.process
    with pytest.raises(subprocess.TimeoutExpired):  # The deadline passes: there is nothing left to meet it.
        machine.process.wait(1.5)
    last = (machine.home / "alive").stat().st_mtime_ns
    with pytest.raises(subprocess.TimeoutExpired):
        machine.process.wait(0.1)
    assert (machine.home / "alive").stat().st_mtime_ns == last
    assert machine.stop() == 1


def test_stopping_ends_the_machine_with_1_even_before_it_is_up(machine: Machine) -> None:
    assert machine.start().wait_for_ssh().stop() == 1
    machine.start()
    until(lambda: machine.console.count("booting") == 2, "the second boot has begun")
    assert machine.stop() == 1


def test_the_end_of_the_cloud_is_the_end_of_the_machine(machine: Machine) -> None:
    machine.start().wait_for_ssh()
    assert machine.process and machine.process.stdin
    machine.process.stdin.close()
    assert machine.ended() == 1


def test_disk_and_host_key_survive_a_stop_and_the_host_key_is_printed_once(machine: Machine) -> None:
    machine.start().wait_for_ssh().run("echo precious > notebook; mkdir -p ~/.local/bin")
    machine.stop()
    machine.start().wait_for_ssh()
    assert machine.run("cat notebook").stdout == b"precious\n"
    assert machine.console.count("-----BEGIN SSH HOST KEY FINGERPRINTS-----") == 1
    assert machine.console.count("booting") == 2
    printed = machine.console.split("-----BEGIN SSH HOST KEY KEYS-----")[1].split()[:2]
    assert printed == machine.host_key.public.split()[:2]


def test_nothing_of_the_computers_environment_is_inherited(running: Machine) -> None:
    environment = dict(line.split("=", 1) for line in running.run("env").stdout.decode().splitlines())
    expected = {
        "HOME": str(running.home),
        "USER": "ubuntu",
        "LOGNAME": "ubuntu",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "DESTDIR": str(running.folder / "disk"),
    }
    assert expected.items() <= environment.items()
    assert Path(environment["TMPDIR"]).is_relative_to(running.folder / "disk")
    assert environment.keys() - expected.keys() <= {"PATH", "PWD", "SHLVL", "TMPDIR", "SSH_CONNECTION", "_"}
    assert b"secret" not in running.run("cat /proc/*/environ").stdout


@pytest.mark.parametrize("shell", ["bash -c", "bash -lc", "sh -lc", 'env -i PATH="$PATH" sh -c'])
def test_the_computers_own_power_commands_are_not_the_ones_found(running: Machine, shell: str) -> None:
    """Neither in a login shell, whose /etc/profile is the computer's, nor where the person has programs named so."""
    names = ["systemctl", "sudo", "shutdown", "poweroff", "reboot", "halt", "nvidia-smi"]
    running.run(
        "mkdir -p ~/.local/bin; for name in " + " ".join(names) + "; do ln -sf /bin/true ~/.local/bin/$name; done"
    )
    found = running.run(f"{shell} 'for name in {' '.join(names)}; do command -v $name; done'").stdout.decode().split()
    assert found == [str(running.folder / "bin" / name) for name in names]


def test_nvidia_smi_says_that_there_is_no_driver(running: Machine) -> None:
    answer = running.run("nvidia-smi --query-gpu=name --format=csv")
    assert answer.returncode == 9
    assert b"couldn't communicate with the NVIDIA driver" in answer.stdout


@pytest.mark.parametrize(
    "command",
    [
        "systemctl start nginx",
        "shutdown +5",
        "systemctl --user start gpuops-uptime",
        "systemctl enable gpuops-uptime",
        "systemctl start",
        "systemctl list-jobs --all",
        "sudo -u root id",
    ],
)
def test_what_the_sandbox_does_not_know_fails_instead_of_pretending(running: Machine, command: str) -> None:
    answer = running.run(command)
    assert (answer.returncode, answer.stdout) == (1, b"")
    assert b"sandbox" in answer.stderr


def test_the_machine_is_up_when_ssh_answers(running: Machine) -> None:
    until(lambda: running.run("systemctl is-system-running").stdout == b"running\n", "the boot is over")


def test_python_is_the_interpreter_that_the_cloud_gave(running: Machine) -> None:
    for name in ("python", "python3"):
        answer = running.run(f"{name} -c 'import sys, yaml; print(sys.executable)'")
        assert answer.stdout.decode().strip() == running.config["python"]
