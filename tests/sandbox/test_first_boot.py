"""User data: what isn't understood leaves a machine running, billing and out of reach, and is told on its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gpuops.sandbox import first_boot
from gpuops.sandbox.first_boot import NotUnderstood
from gpuops.sandbox.systemd import TimerOrder, read_systemd_run
from tests.sandbox.machines import Machine, machine_in, until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path) as machine:
        yield machine


def test_the_template_is_read_whole(machine: Machine) -> None:
    plan = first_boot.read(machine.first_boot(deadline_s=7).encode())
    [(*shell, script)] = plan.bootcmd
    assert shell == ["sh", "-c"]
    assert "--on-boot=7 " in script
    assert plan.host_key_private == machine.host_key.private
    assert plan.host_key_public == machine.host_key.public + "\n"
    assert plan.authorized_keys == (machine.client_key.public,)


@pytest.mark.parametrize(
    ("user_data", "complaint"),
    [
        ("#cloud-config\nruncmd: [reboot]\n", "unknown: runcmd"),
        ("#cloud-config\nssh_keys: {rsa_private: x, rsa_public: y}\n", "unknown: rsa_private, rsa_public"),
        ("#cloud-config\nssh_keys: {ed25519_private: x}\n", "only one half"),
        ("#cloud-config\nbootcmd: reboot\n", "bootcmd is not a list"),
        ("#cloud-config\nbootcmd: [{run: reboot}]\n", "neither a shell line nor a list of words"),
        ("#cloud-config\nssh_pwauth: true\n", "ssh_pwauth: true is not what these machines can do"),
        ("#cloud-config\ndisable_root: 'yes'\n", "neither true nor false"),
        ("#cloud-config\nbootcmd: [\n", "not YAML"),
        ("#cloud-config\n- bootcmd\n", "no mapping"),
        ("#!/bin/sh\nreboot\n", "first line is not #cloud-config"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(user_data: str, complaint: str) -> None:
    with pytest.raises(NotUnderstood, match=complaint):
        first_boot.read(user_data.encode())


def test_a_timer_of_the_templates_is_read() -> None:
    words = ["--no-block", "--unit=u", "--on-boot=5", "--timer-property=AccuracySec=1s", "sh", "-c", "echo --now"]
    assert read_systemd_run(words) == TimerOrder(unit="u", on_boot_s=5, argv=("sh", "-c", "echo --now"))


@pytest.mark.parametrize(
    "words",
    [
        "--unit=u --on-boot=5 --on-active=5 true",
        "--unit=u --on-boot=5 --timer-property=Persistent=yes true",
        "--unit=u --on-boot=5 --property=Restart=no true",
        "--unit=u --on-boot=5min true",
        "--unit=u --on-boot=5",
        "--on-boot=5 true",
    ],
)
def test_a_timer_of_any_other_kind_is_refused(words: str) -> None:
    with pytest.raises(NotUnderstood):
        read_systemd_run(words.split())


def assert_unreachable(machine: Machine, complaint: str) -> None:
    until(lambda: "boot failed: " in machine.console, "the boot has failed")
    assert complaint in machine.console
    assert "login:" not in machine.console
    assert not machine.answers()
    assert machine.process and machine.process.poll() is None
    assert machine.stop() == 1


def test_an_unknown_key_never_gives_ssh_and_nothing_before_it_is_carried_out(machine: Machine) -> None:
    config = {**yaml.safe_load(machine.first_boot()), "packages": ["nginx"]}
    machine.start(user_data="#cloud-config\n" + yaml.safe_dump(config))
    assert_unreachable(machine, "cloud-config: unknown: packages")
    assert not machine.home.exists()


def test_an_unknown_systemd_option_never_gives_ssh_nor_the_templates_fallback(machine: Machine) -> None:
    user_data = machine.first_boot().replace("AccuracySec=1s", "AccuracySec=1s --on-calendar=daily")
    machine.start(user_data=user_data)
    assert_unreachable(machine, "does not know the option --on-calendar=daily")
    assert "poweroff" not in machine.console


def test_a_taken_address_never_gives_ssh(machine: Machine, tmp_path: Path) -> None:
    with machine_in(tmp_path / "other") as other:
        other.start().wait_for_ssh()
        machine.start(host=other.host, port=other.port)
        until(lambda: "boot failed: " in machine.console, "the boot has failed")
        assert machine.stop() == 1


def test_a_bootcmd_that_fails_is_told_on_the_console_and_the_boot_goes_on(machine: Machine) -> None:
    config = yaml.safe_load(machine.first_boot())
    config["bootcmd"] += ["echo to the console; exit 9", ["sh", "-c", "echo $0 > ~/word", 5]]
    machine.start(user_data="#cloud-config\n" + yaml.safe_dump(config)).wait_for_ssh()
    assert "to the console\ncloud-init: bootcmd failed with 9" in machine.console
    assert machine.run("cat word").stdout == b"5\n"


def test_a_machine_without_user_data_makes_its_own_host_key_and_lets_nobody_in(machine: Machine) -> None:
    machine.start(user_data="").wait_for_ssh()
    printed = machine.console.split("-----BEGIN SSH HOST KEY KEYS-----")[1].split()[:2]
    assert printed[0] == "ssh-ed25519"
    assert printed != machine.host_key.public.split()[:2]
    assert (machine.home / ".ssh/authorized_keys").read_text() == ""
