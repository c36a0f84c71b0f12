"""The machine's systemd, as far as our templates use it: timers that count from the boot, services, power switch."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuops.sandbox.first_boot import NotUnderstood
from gpuops.sandbox.processes import Processes
from gpuops.sandbox.system_commands import SOCKET
from gpuops.sandbox.units import Service, Timer, read_folder, service_of

# A moment passes before the power goes, so that `ssh NAME sudo poweroff` still sees the command's exit code.
_POWER_DELAY_S = 0.2

# systemd gives a service 90 s to stop; EC2 itself waits for minutes.
_STOPPED_WITHIN_S = 2.0


class Power(enum.Enum):
    """What becomes of the machine. After `HALT` nothing runs on it, and it still bills, as on EC2."""

    OFF = "poweroff"
    REBOOT = "reboot"
    HALT = "halt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""


class Systemd:
    """Answers the commands of `system_commands.py`. `units` is the folder that it reads its units from.

    `switch` is called with what becomes of the power, `reload_ssh` when the ssh server is to read its keys anew.
    `booted_at` is the event loop's time (monotonic) of the boot, which timers count from. What isn't understood goes to
    `misunderstood`; when that has stopped the boot, and returns True, the command gets no answer.
    """

    def __init__(
        self,
        processes: Processes,
        *,
        units: Path,
        booted_at: float,
        switch: Callable[[Power], None],
        reload_ssh: Callable[[], None],
        misunderstood: Callable[[NotUnderstood], bool],
    ) -> None:
        self.is_up = False
        self._processes = processes
        self._folder = units
        self._booted_at = booted_at
        self._switch = switch
        self._reload_ssh = reload_ssh
        self._misunderstood = misunderstood
        self._units: dict[str, Timer | Service] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._fired: asyncio.Future[bool] | None = None
        self._ending: Power | None = None
        self._server: asyncio.Server | None = None

    async def serve(self) -> None:
        """Listen in the current folder, which is the machine's."""
        Path(SOCKET).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._meet, SOCKET)

    async def end(self, power: Power) -> None:
        """Stop the services, as each wants to be stopped, on the way to that state of the power."""
        self._ending = power
        await asyncio.gather(*map(self._stop_service, tuple(self._services)))

    def close(self) -> None:
        """Answer nobody, and let no timer fire any more."""
        if self._server:
            self._server.close()
        for timer in self._timers.values():
            timer.cancel()
        self._services.clear()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, *argv = json.loads(await reader.readline())
            answer = await self.answer(name, argv)
            writer.write(json.dumps([answer.exit_code, answer.stdout, answer.stderr]).encode() + b"\n")
            await writer.drain()
        except NotUnderstood as error:
            if not self._misunderstood(error):
                writer.write(json.dumps([1, "", f"{error}\n"]).encode() + b"\n")
        except (ValueError, ConnectionError):
            pass  # The command was killed before it had asked, or before it was answered.
        finally:
            writer.close()

    async def answer(self, name: str, argv: Sequence[str]) -> Answer:
        """Carry out one command. Raises NotUnderstood."""
        words = [word for word in argv if word != "--no-block"]
        match (name, *words):
            case ("poweroff",) | ("systemctl", "poweroff") | ("shutdown", "-P" | "-h", "now"):
                return self._power(Power.OFF)
            case ("reboot",) | ("systemctl", "reboot") | ("shutdown", "-r", "now"):
                return self._power(Power.REBOOT)
            case ("halt",) | ("systemctl", "halt"):
                return self._power(Power.HALT)
            case ("systemctl", "is-system-running"):
                return Answer(stdout="running\n") if self.is_up else Answer(exit_code=1, stdout="starting\n")
            case ("systemctl", "list-timers"):
                return Answer(stdout=self._list_timers())
            case ("systemctl", "--full", "list-jobs"):
                return Answer(stdout=self._list_jobs())
            case ("systemctl", "daemon-reload"):
                return self._reload()
            case ("systemctl", "reload", "ssh" | "ssh.service" | "sshd" | "sshd.service"):
                self._reload_ssh()
                return Answer()
            case ("systemctl", "start" | "stop" | "restart" as verb, *units) if units:
                return await self._change(verb, units, waits=len(words) == len(argv))
            case _:
                raise NotUnderstood(f"The sandbox's systemd does not understand: {' '.join((name, *argv))}")

    def _power(self, power: Power) -> Answer:
        asyncio.get_running_loop().call_later(_POWER_DELAY_S, self._switch, power)
        return Answer()

    def _reload(self) -> Answer:
        """Read the units anew. A timer that is under way then counts as its file says now."""
        self._units = read_folder(self._folder)
        for name in tuple(self._timers):
            self._stop_timer(name)
            if name in self._units:
                self._start_timer(name)
        return Answer()

    async def _change(self, verb: str, names: Sequence[str], *, waits: bool) -> Answer:
        names = [name if "." in name else f"{name}.service" for name in names]
        if unknown := [name for name in names if name not in self._units]:
            raise NotUnderstood(f"The sandbox's systemd has no unit {', '.join(unknown)}.")
        for name in names:
            is_timer = isinstance(self._units[name], Timer)
            if verb in {"stop", "restart"}:
                if is_timer:
                    self._stop_timer(name)
                else:
                    await self._stop_service(name)
            if verb in {"start", "restart"}:
                print(f"systemd: starting {name}", flush=True)
                if is_timer:
                    self._start_timer(name)
                elif not await self._start_service(name, waits=waits):
                    return Answer(exit_code=1, stderr=f"Job for {name} failed.\n")
        return Answer()

    def _start_timer(self, name: str) -> None:
        timer = self._units[name]
        if isinstance(timer, Timer) and name not in self._timers:
            due = self._booted_at + timer.on_boot_s
            self._timers[name] = asyncio.get_running_loop().call_at(due, self._fire, name)

    def _stop_timer(self, name: str) -> None:
        if handle := self._timers.pop(name, None):
            handle.cancel()

    def _fire(self, timer: str) -> None:
        del self._timers[timer]
        print(f"systemd: {timer} starts {service_of(timer)}", flush=True)
        self._fired = asyncio.ensure_future(self._start_service(service_of(timer), waits=False))

    async def _start_service(self, name: str, *, waits: bool) -> bool:
        """Whether it started, and, where `waits` for a oneshot service, whether it ended well."""
        service = self._units[name]
        assert isinstance(service, Service)
        if (running := self._services.get(name)) and running.returncode is None:
            return True
        try:
            process = self._services[name] = self._processes.start(service.start)
        except OSError as error:
            print(f"systemd: {name} failed: {os.strerror(error.errno or 0)}: {service.start[0]}", flush=True)
            return False
        return not (waits and service.oneshot) or await self._processes.exit_code(process) == 0

    async def _stop_service(self, name: str) -> None:
        service, process = self._units.get(name), self._services.pop(name, None)
        if process is None or process.returncode is not None:
            return
        if isinstance(service, Service) and service.stop:
            stopping = self._processes.start(service.stop)
            await asyncio.wait({asyncio.ensure_future(self._processes.exit_code(stopping))}, timeout=_STOPPED_WITHIN_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    def _list_timers(self) -> str:
        now = asyncio.get_running_loop().time()
        rows = [f"{timer.when() - now:.1f}s left  {name}  {service_of(name)}\n" for name, timer in self._timers.items()]
        return "".join([*rows, f"{len(rows)} timers listed.\n"])

    def _list_jobs(self) -> str:
        if self._ending is None:
            return "No jobs running.\n"
        return f"1 {self._ending.value}.target start waiting\n2 shutdown.target start waiting\n\n2 jobs listed.\n"
