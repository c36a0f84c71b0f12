"""What runs on one sandbox machine, from boot to power-off: `python -m gpuops.sandbox.operating_system MACHINE_DIR`.

Started by `machine.py`, as process 1 of the machine's namespaces where it has them. Standard output is the console.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from gpuops.sandbox import first_boot, processes, system_commands
from gpuops.sandbox.first_boot import NotUnderstood
from gpuops.sandbox.kernel import Kernel
from gpuops.sandbox.machine import STOPPED, Config, read_config
from gpuops.sandbox.openssh_server import OpensshServer
from gpuops.sandbox.processes import Processes
from gpuops.sandbox.ssh_server import SshServer
from gpuops.sandbox.systemd import Power, Systemd

_EXIT_CODES = {Power.OFF: 0, Power.REBOOT: 3}


class OperatingSystem:
    """One boot of one machine: `run` returns the exit code that says how it ended."""

    def __init__(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        self._config = config
        self._ended: asyncio.Future[int] = loop.create_future()
        self._misunderstood: asyncio.Future[int] = loop.create_future()
        self._processes = Processes(_environment(config), config.home)
        self._going_down: asyncio.Future[None] | None = None
        booted_at = loop.time()
        self._kernel = Kernel(config.disk, booted_at=booted_at)
        server = OpensshServer if config.server == "openssh" else SshServer
        self._ssh = server(self._processes, user=config.user, home=config.home, machine=config.directory)
        self._systemd = Systemd(
            self._processes,
            units=config.disk / "run/systemd/system",
            booted_at=booted_at,
            switch=self._switch,
            reload_ssh=self._ssh.reload,
            misunderstood=self._stop_the_boot,
        )
        loop.add_signal_handler(signal.SIGCHLD, self._processes.reap)
        loop.add_signal_handler(signal.SIGTERM, self._shut_down, Power.OFF, STOPPED)
        loop.add_signal_handler(signal.SIGHUP, self._end, STOPPED)
        loop.add_reader(sys.stdin.fileno(), self._read_stdin)

    async def run(self) -> int:
        print(f"\n{self._config.instance_id}: booting", flush=True)
        boot = asyncio.ensure_future(self._boot())
        exit_code = await self._ended
        boot.cancel()
        processes.kill_descendants()
        print(f"{self._config.instance_id}: off ({exit_code})", flush=True)
        return exit_code

    async def _boot(self) -> None:
        """In a real machine's order: the deadline is armed by a `bootcmd`, before anyone can connect."""
        config = self._config
        try:
            plan = first_boot.read(config.user_data)
            self._prepare_disk()
            await self._systemd.serve()
            for argv in plan.bootcmd:
                await self._run_bootcmd(argv)
            first_boot.apply_once(plan, instance_id=config.instance_id, disk=config.disk, home=config.home)
            await self._ssh.start(config.host, config.port, first_boot.host_key_path(config.disk))
        except (NotUnderstood, OSError, ValueError) as error:
            # A real machine whose boot fails goes on running, and billing, without ssh.
            print(f"boot failed: {error}", flush=True)
            self._switch(Power.HALT)
        else:
            self._systemd.is_up = True
            print(f"{config.instance_id} login: (ssh listens on {config.host}:{config.port})", flush=True)

    def _prepare_disk(self) -> None:
        config = self._config
        shutil.rmtree(config.disk / "run", ignore_errors=True)  # on a real machine it is in memory
        for folder in (config.home, config.disk / "tmp", config.disk / "run/systemd/system"):
            folder.mkdir(parents=True, exist_ok=True)
        self._kernel.start()
        system_commands.install(config.bin, config.directory)
        if config.python:
            # A script and not a link: an interpreter started by another name doesn't find its virtual environment.
            _python_folder(config).mkdir(exist_ok=True)
            for name in ("python", "python3"):
                system_commands.write_script(_python_folder(config) / name, config.python)
        profile = config.disk / "etc/skel/.profile"
        if not profile.exists():
            profile.parent.mkdir(parents=True)
            # A login shell reads the computer's /etc/profile first, which takes the machine's commands off the PATH.
            profile.write_text(f"export PATH='{_environment(config)['PATH']}'\n")
            shutil.copy(profile, config.home)

    async def _run_bootcmd(self, argv: tuple[str, ...]) -> None:
        ended = asyncio.ensure_future(self._processes.exit_code(self._processes.start(argv)))
        await asyncio.wait({ended, self._misunderstood}, return_when=asyncio.FIRST_COMPLETED)
        if self._misunderstood.done():
            self._misunderstood.result()
        if ended.result() != 0:
            print(f"cloud-init: bootcmd failed with {ended.result()}: {' '.join(argv)[:200]}", flush=True)

    def _stop_the_boot(self, error: NotUnderstood) -> bool:
        print(error, flush=True)
        if self._systemd.is_up:
            return False
        if not self._misunderstood.done():
            self._misunderstood.set_exception(error)
        return True

    def _switch(self, power: Power) -> None:
        print(f"systemd: {power.value}", flush=True)
        self._shut_down(power, _EXIT_CODES.get(power))

    def _shut_down(self, power: Power, exit_code: int | None) -> None:
        if self._going_down is None or self._going_down.done():
            self._going_down = asyncio.ensure_future(self._go_down(power, exit_code))

    async def _go_down(self, power: Power, exit_code: int | None) -> None:
        """In order, unlike in a power cut: whatever wants to be stopped is."""
        await self._systemd.end(power)
        if exit_code is not None:
            self._end(exit_code)
            return
        self._ssh.close()
        self._systemd.close()
        processes.kill_descendants()

    def _end(self, exit_code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(exit_code)

    def _read_stdin(self) -> None:
        """The cloud holds the other end and never writes: an end of file is the end of the cloud."""
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._end(STOPPED)


def _environment(config: Config) -> dict[str, str]:
    """All that a process on the machine inherits: nothing of the computer's."""
    path = [config.bin, config.home / ".local/bin", _python_folder(config), "/usr/local/bin", "/usr/bin", "/bin"]
    return {
        "HOME": str(config.home),
        "USER": config.user,
        "LOGNAME": config.user,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TMPDIR": str(config.disk / "tmp"),
        # What our first boot puts before every path of the system's: here the root folder is the computer's.
        "DESTDIR": str(config.disk),
        "PATH": os.pathsep.join(map(str, path)),
    }


def _python_folder(config: Config) -> Path:
    return config.directory / "python"


async def _run(config: Config) -> int:
    return await OperatingSystem(config).run()


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(asyncio.run(_run(read_config(Path(sys.argv[1])))))
