"""The machine's systemd, as far as our templates use it: timers that count from the boot, and the power switch."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuops.sandbox.first_boot import NotUnderstood
from gpuops.sandbox.processes import Processes
from gpuops.sandbox.system_commands import SOCKET

# A moment passes before the power goes, so that `ssh NAME sudo poweroff` still sees the command's exit code.
_POWER_DELAY_S = 0.2


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
    """Answers the commands of `system_commands.py`.

    `switch` is called with what becomes of the power. `booted_at` is the event loop's time (monotonic) of the boot,
    which timers count from. A command that isn't understood goes to `misunderstood`; when that has stopped the boot,
    and returns True, the command gets no answer.
    """

    def __init__(
        self,
        processes: Processes,
        *,
        booted_at: float,
        switch: Callable[[Power], None],
        misunderstood: Callable[[NotUnderstood], bool],
    ) -> None:
        self.is_up = False
        self._processes = processes
        self._booted_at = booted_at
        self._switch = switch
        self._misunderstood = misunderstood
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._server: asyncio.Server | None = None

    async def serve(self) -> None:
        """Listen in the current folder, which is the machine's."""
        Path(SOCKET).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._meet, SOCKET)

    def close(self) -> None:
        """Answer nobody, and let no timer fire any more."""
        if self._server:
            self._server.close()
        for timer in self._timers.values():
            timer.cancel()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, *argv = json.loads(await reader.readline())
            answer = self.answer(name, argv)
            writer.write(json.dumps([answer.exit_code, answer.stdout, answer.stderr]).encode() + b"\n")
            await writer.drain()
        except NotUnderstood as error:
            if not self._misunderstood(error):
                writer.write(json.dumps([1, "", f"{error}\n"]).encode() + b"\n")
        except (ValueError, ConnectionError):
            pass  # The command was killed before it had asked, or before it was answered.
        finally:
            writer.close()

    def answer(self, name: str, argv: Sequence[str]) -> Answer:
        """Carry out one command. Raises NotUnderstood."""
        match (name, *argv):
            case ("systemd-run", *options):
                return self._arm(options)
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
            case _:
                raise NotUnderstood(f"The sandbox's systemd does not understand: {' '.join((name, *argv))}")

    def _power(self, power: Power) -> Answer:
        asyncio.get_running_loop().call_later(_POWER_DELAY_S, self._switch, power)
        return Answer()

    def _arm(self, words: Sequence[str]) -> Answer:
        order = read_systemd_run(words)
        if order.unit in self._timers:
            return Answer(
                exit_code=1,
                stderr="Failed to start transient timer unit: "
                f"Unit {order.unit}.timer was already loaded or has a fragment file.\n",
            )
        due = self._booted_at + order.on_boot_s
        self._timers[order.unit] = asyncio.get_running_loop().call_at(due, self._fire, order)
        return Answer(
            stderr=f"Running timer as unit: {order.unit}.timer\nWill run service as unit: {order.unit}.service\n"
        )

    def _fire(self, order: TimerOrder) -> None:
        del self._timers[order.unit]
        print(f"systemd: starting {order.unit}.service: {' '.join(order.argv)}", flush=True)
        try:
            self._processes.start(order.argv)
        except OSError as error:
            print(f"systemd: {order.unit}.service failed: {os.strerror(error.errno or 0)}: {order.argv[0]}", flush=True)

    def _list_timers(self) -> str:
        now = asyncio.get_running_loop().time()
        rows = [
            f"{timer.when() - now:.1f}s left  {unit}.timer  {unit}.service\n" for unit, timer in self._timers.items()
        ]
        return "".join([*rows, f"{len(rows)} timers listed.\n"])


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerOrder:
    """`systemd-run --unit=… --on-boot=… argv`: run `argv` once, this long after the boot."""

    unit: str
    on_boot_s: float
    argv: tuple[str, ...]


def read_systemd_run(words: Sequence[str]) -> TimerOrder:
    """The order in a `systemd-run` command line, of just the options that our templates use. Raises NotUnderstood."""
    values: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if option in {"--unit", "--on-boot"}:
            values[option] = value
        elif not _IMMATERIAL.fullmatch(word):
            raise NotUnderstood(f"The sandbox's systemd-run does not know the option {word}")
    if not rest or not values.get("--unit") or not _SECONDS.fullmatch(values.get("--on-boot", "")):
        raise NotUnderstood("The sandbox's systemd-run needs --unit=NAME, --on-boot=SECONDS and a command.")
    return TimerOrder(unit=values["--unit"], on_boot_s=float(values["--on-boot"]), argv=tuple(rest))


_SECONDS = re.compile(r"\d+(\.\d+)?")

# True of these timers anyway: they fire on time, wait for no other unit, and the command doesn't wait for them.
_IMMATERIAL = re.compile(
    r"--no-block|--timer-property=AccuracySec=\d+\w*|--timer-property=DefaultDependencies=no"
    r"|--property=DefaultDependencies=no"
)
