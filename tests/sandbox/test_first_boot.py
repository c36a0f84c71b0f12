"""User data: what isn't understood leaves a machine running, billing and out of reach, and is told on its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gpuops.sandbox import first_boot
from gpuops.sandbox.first_boot import NotUnderstood
from gpuops.sandbox.units import Service, Timer, read_folder, read_service, read_timer
from tests.sandbox.machines import Machine, machine_in, until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path) as machine:
        yield machine


def test_the_template_is_read_whole(machine: Machine) -> None:
    plan = first_boot.read(machine.first_boot(deadline_s=7).encode())
    [(*shell, script)] = plan.bootcmd
    assert shell == ["sh", "-c"]
    assert 'machine" boot 7 || ' in script
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


def test_a_timer_and_its_service_are_read(tmp_path: Path) -> None:
    (tmp_path / "u.timer").write_text("[Unit]\nDefaultDependencies=no\n\n[Timer]\nOnBootSec=5\nAccuracySec=1s\n")
    (tmp_path / "u.service").write_text("# why\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo $$HOME \"x\"'\n")
    (tmp_path / "u.timer.123").write_text("half a fi")
    service = Service(start=("/bin/sh", "-c", 'echo $HOME "x"'), oneshot=True)
    assert read_folder(tmp_path) == {"u.timer": Timer(on_boot_s=5), "u.service": service}
    (tmp_path / "u.service").unlink()
    with pytest.raises(NotUnderstood, match=r"there is no u\.service"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[Timer]\nOnBootSec=5\nOnActiveSec=5\n",
        "[Timer]\nOnBootSec=5\nPersistent=yes\n",
        "[Timer]\nOnBootSec=5min\n",
        "[Timer]\nOnBootSec=5\nOnBootSec=6\n",
        "[Timer]\nAccuracySec=1s\n",
        "[Unit]\nDefaultDependencies=yes\n[Timer]\nOnBootSec=5\n",
        "[Unit]\nOnBootSec=5\n",
        "[Timer]\nOnBootSec=5\n[Install]\nWantedBy=timers.target\n",
        "OnBootSec=5\n",
        "[Timer]\nOnBootSec 5\n",
    ],
)
def test_a_timer_of_any_other_kind_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstood):
        read_timer("u.timer", text)


@pytest.mark.parametrize(
    "text",
    [
        "[Service]\nExecStart=/bin/echo %i\n",
        "[Service]\nExecStart=/bin/echo $HOME\n",
        "[Service]\nExecStart=echo\n",
        "[Service]\nExecStart=/bin/echo 'half\n",
        "[Service]\nExecStart=/bin/true\nRestart=always\n",
        "[Service]\nExecStart=/bin/true\nType=notify\n",
        "[Unit]\nAfter=network.target\n[Service]\nExecStart=/bin/true\n",
        "[Service]\nType=oneshot\n",
    ],
)
def test_a_service_of_any_other_kind_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstood):
        read_service("u.service", text)


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
    user_data = machine.first_boot().replace("AccuracySec=1s", "OnCalendar=daily")
    machine.start(user_data=user_data)
    assert_unreachable(machine, "gpuops-deadline.timer: the sandbox's systemd does not understand: OnCalendar=daily")
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
