"""A machine of the sandbox's whose Python trains for no longer than a test wants. All else on it is real."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuops.machine import Machine, State
from tests.computers import Cloud, Computer, until

_PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) echo {account} ;;
"-m trainer")
    echo epoch 1
    while [ -e "$HOME/gpuops/hold" ]; do sleep 0.02; done
    mkdir -p out
    echo '{{"accuracy": 0.9, "seconds": 1.5}}' >out/summary.json
    head -c 300000 /dev/urandom >out/weights.safetensors
    echo epoch 2 ;;
*) exec {python} "$@" ;;
esac
"""


@dataclass
class QuickMachine:
    """What a test does with it from outside."""

    cloud: Cloud
    machine: Machine

    @property
    def home(self) -> Path:
        return self._folder / "disk" / "home" / "ubuntu"

    @property
    def python(self) -> Path:
        """What its PATH finds first. Not in its home folder, where it would count as the person's."""
        return self._folder / "bin" / "python3"

    @property
    def state(self) -> str:
        return ", ".join(self.cloud.states(self.machine.name))

    @property
    def switched_itself_off(self) -> bool:
        [instance] = self.cloud.instances(self.machine.name)
        stopped = instance["State"]["Name"] == "stopped"
        return stopped and instance["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"

    @property
    def runs(self) -> list[Path]:
        """The folders of its runs, oldest first."""
        return sorted((self.home / "gpuops" / "runs").glob("*/"))

    def hold(self) -> None:
        """Let trainings say their first word and then wait."""
        (self.home / "gpuops").mkdir(parents=True, exist_ok=True)
        (self.home / "gpuops" / "hold").touch()

    def let_go(self) -> None:
        (self.home / "gpuops" / "hold").unlink()

    def install_python(self, path: Path, *, version: tuple[int, int] = (3, 12)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        account = "'" + json.dumps([str(path), [*version, 0], []]) + "'"
        path.write_text(_PYTHON.format(account=account, python=sys.executable))
        path.chmod(0o755)

    @property
    def _folder(self) -> Path:
        return self.cloud.process.folder / "machines" / self.machine.id


def quick_machine(computer: Computer, state: State = State.RUNNING, **flags: object) -> QuickMachine:
    """The computer's machine, left in that state by an earlier command."""
    quick = QuickMachine(computer.cloud, computer.has_machine(**flags))
    until((quick.home / ".ssh" / "authorized_keys").exists, "its first boot is over")
    quick.install_python(quick.python)
    if state is State.STOPPED:
        computer.cloud.provider.stop(quick.machine)
        until(lambda: quick.state == "stopped", "it is stopped")
    return quick


def slow_rsync(computer: Computer, where: str, *, kb_per_s: int = 1) -> str:
    """A PATH for a client whose rsync crawls when `where` is in its arguments; once it does, there is a file `slow`."""
    real = shutil.which("rsync")
    if real is None:
        pytest.skip("there is no rsync here")
    folder = computer.folder / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rsync").write_text(
        f'#!/bin/sh\ncase "$*" in *{where}*) touch {computer.folder}/slow; limit=--bwlimit={kb_per_s} ;; esac\n'
        f'exec {real} $limit "$@"\n'
    )
    (folder / "rsync").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
