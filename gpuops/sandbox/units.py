"""systemd's unit files, as far as our templates use them: a timer that counts from the boot, and services.

What isn't understood is an error. systemd itself would warn in a journal that nobody reads, and go on without it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuops.sandbox.first_boot import NotUnderstood


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """Starts the service of its own name, this long after the boot."""

    on_boot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """`start` runs until it ends by itself, or is killed after `stop` has run; `oneshot`: who starts it waits."""

    start: tuple[str, ...]
    stop: tuple[str, ...] = ()
    oneshot: bool = False


def read_folder(folder: Path) -> dict[str, Timer | Service]:
    """Every timer and service that has a file in this folder, by its name. Raises NotUnderstood."""
    units: dict[str, Timer | Service] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".timer":
            units[path.name] = read_timer(path.name, path.read_text())
        elif path.suffix == ".service":
            units[path.name] = read_service(path.name, path.read_text())
    for name, unit in units.items():
        if isinstance(unit, Timer) and service_of(name) not in units:
            raise NotUnderstood(f"{name}: there is no {service_of(name)} that it could start.")
    return units


def service_of(timer: str) -> str:
    return timer.removesuffix(".timer") + ".service"


def read_timer(name: str, text: str) -> Timer:
    """Raises NotUnderstood."""
    values = _read(name, text, {"Unit": _UNIT, "Timer": _TIMER})
    if "OnBootSec" not in values:
        raise NotUnderstood(f"{name}: the sandbox's systemd knows only timers with OnBootSec.")
    return Timer(on_boot_s=float(values["OnBootSec"]))


def read_service(name: str, text: str) -> Service:
    """Raises NotUnderstood."""
    values = _read(name, text, {"Unit": _UNIT, "Service": _SERVICE})
    if "ExecStart" not in values:
        raise NotUnderstood(f"{name}: a service needs ExecStart.")
    return Service(
        start=_argv(name, values["ExecStart"]),
        stop=_argv(name, values["ExecStop"]) if "ExecStop" in values else (),
        oneshot=values.get("Type") == "oneshot",
    )


def _any(value: str) -> bool:
    return True


def _never(value: str) -> bool:
    return False


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


# What each may say. These orderings are how the sandbox's machines are anyway: their units wait for no others, have
# the disk from the start, and are stopped before it goes.
_UNIT = {
    "Description": _any,
    "DefaultDependencies": _matches("no"),
    "RequiresMountsFor": _matches(r"(/\S+)"),
    "Conflicts": _matches(r"shutdown\.target"),
    "Before": _matches(r"shutdown\.target"),
}
_TIMER = {"OnBootSec": _matches(r"\d+(\.\d+)?"), "AccuracySec": _matches("1s")}
_SERVICE = {
    "Type": _matches("oneshot|simple"),
    "ExecStart": _any,
    "ExecStop": _any,
    "TimeoutStopSec": _matches(r"\d+s"),
}


def _read(name: str, text: str, known: dict[str, dict[str, Callable[[str], bool]]]) -> dict[str, str]:
    values: dict[str, str] = {}
    section = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line[1:-1]
            if line != f"[{section}]" or section not in known:
                raise NotUnderstood(f"{name}: the sandbox's systemd does not know the section {line}")
            continue
        key, is_said, value = (part.strip() for part in line.partition("="))
        if not is_said or key in values or not known.get(section, {}).get(key, _never)(value):
            raise NotUnderstood(f"{name}: the sandbox's systemd does not understand: {line}")
        values[key] = value
    return values


def _argv(name: str, command: str) -> tuple[str, ...]:
    """The words of a command line; `$$` is a dollar sign. Other variables and all specifiers are not understood."""
    bare = command.replace("$$", "")
    if "$" in bare or "%" in bare or "\\" in bare or not command.startswith("/"):
        raise NotUnderstood(f"{name}: the sandbox's systemd does not understand the command: {command}")
    try:
        return tuple(shlex.split(command.replace("$$", "$")))
    except ValueError as error:
        raise NotUnderstood(f"{name}: {error}: {command}") from error
