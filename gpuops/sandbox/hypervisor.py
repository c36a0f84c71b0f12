"""Runs the machines: one process for each running instance, `python -m gpuops.sandbox.machine FOLDER`.

What a machine is told, and what it tells:

- ``config.json`` in its folder says who it is and where to listen; ``disk/`` there is its disk, ``console.log`` what it
  wrote to its console;
- the end of its standard input means that the cloud is gone: die;
- ``introduced.json`` there says which keys it admits for the moment, each for whom and until when;
- SIGTERM means: shut down, as when the power button is pressed, then exit;
- exit code 0: its system was powered off from within; 3: it was rebooted from within; anything else: it crashed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuops.sandbox import introductions
from gpuops.sandbox.folder import FORMAT, write_json

POWERED_OFF = 0
REBOOTED = 3
_GRACE_S = 5.0
_CONSOLE_BYTES = 64 * 1024  # GetConsoleOutput keeps the last 64 KB (docs.aws.amazon.com, API_GetConsoleOutput)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What one start of an instance needs."""

    instance_id: str
    host: str
    port: int
    user_data: str  # base64, as EC2 has it


class Hypervisor:
    """All machines of one cloud. Safe to use from several threads."""

    def __init__(self, machines: Path, python: str | None) -> None:
        self._folder = machines
        self._python = python
        self._machines: dict[str, _Machine] = {}
        self._last_consoles: dict[str, bytes] = {}
        self._closed = False
        self._change = threading.Lock()

    def boot(self, boot: Boot, *, ended: Callable[[int], None]) -> None:
        """Start the machine. `ended` is told the exit code when it ends without having been asked to."""
        folder = self._folder / boot.instance_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        machine = _Machine(folder, boot, self._python, ended)
        with self._change:
            if not self._closed:
                self._machines[boot.instance_id] = machine
                machine.start()

    def reboot(self, instance_id: str) -> None:
        """End what runs on the machine and boot it again, at the same address."""
        machine = self._machines[instance_id]
        if machine.is_alive():
            machine.reboot()
        else:  # it had crashed
            self.boot(machine.boot, ended=machine.ended)

    def shut_down(self, instance_id: str) -> None:
        """End the machine's processes; returns when the last one is gone."""
        if machine := self._machines.get(instance_id):
            machine.shut_down()

    def introduce(self, instance_id: str, user: str, key: str, *, for_s: float = 60.0) -> None:
        """Have the machine admit this public key for this user for so long, whether or not it runs already."""
        now = time.time()
        with self._change:
            introductions.add(self._folder / instance_id, user=user, key=key, until=now + for_s, now=now)

    def close(self) -> None:
        """End all machines, and start none from now on."""
        with self._change:
            self._closed = True
            stops = [threading.Thread(target=machine.shut_down) for machine in self._machines.values()]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

    def delete(self, instance_id: str) -> None:
        """Delete the machine's disk. What its console said last stays to be read, as on EC2, for about an hour."""
        self._last_consoles[instance_id] = self.console(instance_id)
        shutil.rmtree(self._folder / instance_id, ignore_errors=True)

    def console(self, instance_id: str) -> bytes:
        """The last 64 KB that the machine wrote to its console."""
        if instance_id in self._last_consoles:
            return self._last_consoles[instance_id]
        try:
            with (self._folder / instance_id / "console.log").open("rb") as console:
                console.seek(max(0, os.fstat(console.fileno()).st_size - _CONSOLE_BYTES))
                return console.read(_CONSOLE_BYTES)
        except FileNotFoundError:
            return b""

    def has_crashed(self, instance_id: str) -> bool:
        """True for a machine that runs by EC2's account of it but has no process: an impaired instance."""
        machine = self._machines.get(instance_id)
        return machine is not None and not machine.is_alive()


class _Machine(threading.Thread):
    """One machine from its start to its end.

    Its process is a child of this very thread, which lives as long as the process: Linux sends a parent-death signal
    (prctl, PR_SET_PDEATHSIG) when the thread ends that made the process.
    """

    def __init__(self, folder: Path, boot: Boot, python: str | None, ended: Callable[[int], None]) -> None:
        super().__init__(name=boot.instance_id, daemon=True)
        self.boot = boot
        self.ended = ended
        self._folder = folder
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = "on"  # or "off", or "reboot"
        self._change = threading.Lock()

    def run(self) -> None:
        while (process := self._spawn()) is not None:
            code = process.wait()
            # Whatever of its process group outlived it. What left the group is the machine's own to find.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stdin is not None
            process.stdin.close()
            if self._wanted == "on" and code != REBOOTED:
                self.ended(code)
                return

    def reboot(self) -> None:
        self._signal("reboot")

    def shut_down(self) -> None:
        self._signal("off")
        self.join(_GRACE_S)
        if self.is_alive() and self._process is not None:
            self._process.kill()
        self.join()

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        with self._change:
            if self._wanted == "off":
                return None
            self._wanted = "on"
            config = {
                "format": FORMAT,
                "instance_id": self.boot.instance_id,
                "host": self.boot.host,
                "port": self.boot.port,
                "user": "ubuntu",
                "user_data": self.boot.user_data,
                "python": self._python,
            }
            write_json(self._folder / "config.json", config)
            with (self._folder / "machine.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "gpuops.sandbox.machine", str(self._folder)],
                    stdin=subprocess.PIPE,  # we hold the other end and write nothing: its end says that we are gone
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            return self._process

    def _signal(self, wanted: str) -> None:
        with self._change:
            self._wanted = wanted
            if self._process is not None:
                self._process.terminate()
