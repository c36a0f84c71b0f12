"""One machine of the sandbox's cloud: `python -m gpuops.sandbox.machine MACHINE_DIR`.

This process is the machine's hardware: it is switched on by being started, runs the operating system
(`operating_system.py`) as a child, and sees to it that nothing of the machine outlives it. In MACHINE_DIR:
`config.json` (written by the cloud), `console.log`, `disk/` (what survives a stop) and `bin/` (the machine's own
`systemctl`, `sudo` …).

    exit code 0   the operating system powered itself off
              1   the vendor stopped the machine (SIGTERM: it is shut down), or is gone itself (end of file on stdin)
              3   the operating system rebooted itself: start the machine again
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gpuops.sandbox import namespaces, processes

STOPPED = 1
"""The exit code of a machine that did not switch itself off."""

# Then it is switched off, whatever it's still doing.
_SHUT_DOWN_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the cloud wrote into `config.json`.

    `python` is the interpreter to be found as `python3` on the machine; None leaves the computer's own. `server` is
    "asyncssh" or "openssh". With `namespaces` False the machine isn't isolated, as where the kernel doesn't allow it.
    """

    directory: Path
    instance_id: str
    host: str
    port: int
    user: str
    user_data: bytes
    python: str | None = None
    server: str = "asyncssh"
    namespaces: bool = True

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def home(self) -> Path:
        return self.disk / "home" / self.user

    @property
    def bin(self) -> Path:
        return self.directory / "bin"


def read_config(directory: Path) -> Config:
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if written.pop("format") != 1:
        raise SystemExit(f"{directory}/config.json was written by another version of gpuops.")
    user_data = base64.b64decode(written.pop("user_data"), validate=True)
    known = {field.name for field in dataclasses.fields(Config)} & written.keys()
    return Config(directory=directory, user_data=user_data, **{name: written[name] for name in known})


class _SwitchedOff(BaseException):
    """SIGTERM arrived: raised wherever the process happens to be, like KeyboardInterrupt."""


def main() -> int:
    """Run the machine until it is off, and return the exit code above."""
    config = read_config(Path(sys.argv[1]).resolve())
    (config.disk / "etc").mkdir(parents=True, exist_ok=True)
    operating_system = 0
    try:
        signal.signal(signal.SIGTERM, _switch_off)
        isolated = config.namespaces and namespaces.are_allowed()
        if isolated:
            namespaces.enter()
        # Where the namespaces don't hold them, a machine's orphans come to this process instead of the computer's init.
        processes.adopt_orphans()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        operating_system = os.fork()
        if operating_system == 0:
            _boot(config, isolated=isolated)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        while True:
            pid, status = os.wait()
            if pid == operating_system:
                exit_code = os.waitstatus_to_exitcode(status)
                return exit_code if exit_code >= 0 else STOPPED
    except _SwitchedOff:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if operating_system:
            _shut_down(operating_system)
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.kill_descendants()


def _switch_off(signal_number: int, frame: object) -> NoReturn:
    raise _SwitchedOff


def _shut_down(operating_system: int) -> None:
    """Tell the operating system to shut down, again and again: while it starts, it doesn't hear it."""
    until = time.monotonic() + _SHUT_DOWN_WITHIN_S
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it had just ended by itself
        while time.monotonic() < until:
            os.kill(operating_system, signal.SIGTERM)
            for _ in range(10):
                if os.waitpid(operating_system, os.WNOHANG)[0]:
                    return
                time.sleep(0.02)


def _boot(config: Config, *, isolated: bool) -> NoReturn:
    """Become the operating system: a new program, without what this one inherited (credentials, privileges)."""
    try:
        console = os.open(config.directory / "console.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        processes.die_with_parent(signal.SIGKILL if isolated else signal.SIGHUP)
        if isolated:
            namespaces.settle(config.directory, config.disk / "etc", user=config.user, home=config.home)
        processes.give_up_privileges()
        processes.adopt_orphans()
        # From here on a socket in this folder has a short name, however long the folder's is (the limit is 108 bytes).
        os.chdir(config.directory)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "gpuops.sandbox.operating_system", str(config.directory)],
            {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
