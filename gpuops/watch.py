"""The machine's own watch on itself: when it stops, what it may still run, when it was up, and its host key.

All of it is kept and done there, by the script that the first boot brings (`templates/machine.sh.j2`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone

from gpuops import host_keys
from gpuops.errors import RemoteCommandFailed
from gpuops.machine import Uptime
from gpuops.transports import Result, Transport

# DESTDIR is set on a machine that lives in a folder.
_FIND = 'machine=${DESTDIR-}/run/gpuops/machine; [ -f "$machine" ]'
_ASK = 'exec sudo -n sh "${DESTDIR-}/run/gpuops/machine" "$@"'
_ASK_IF_THERE = f'{_FIND} || exit 0; exec sudo -n sh "$machine" "$@"'
_POWER_OFF = f'{_FIND} && sudo -n sh "$machine" off "$@" || exec sudo -n systemctl poweroff'
_LOG_LINE = re.compile(r"(boot|stop) (\d{1,11}) ([A-Za-z0-9-]+)(?: (\S.*))?")
_ALIVE_LINE = re.compile(r"alive (\d{1,11})")
_NOW_LINE = re.compile(r"now \d{1,11} ([A-Za-z0-9-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """How long the machine goes on: until it stops by itself, and in all (None: no budget)."""

    deadline_s: float
    budget_s: float | None


def left(line: Transport) -> Left | None:
    """None where the machine has no such watch: we didn't launch it, or an older gpuops did."""
    answer = _ask(line, "left", script=_ASK_IF_THERE).stdout.split()
    if not answer:
        return None
    deadline_s, budget_s = answer
    return Left(deadline_s=float(deadline_s), budget_s=None if budget_s == "-" else float(budget_s))


def arm(line: Transport, seconds: float) -> None:
    """Have this boot end so long from now, or when the budget is used up if that is earlier."""
    _ask(line, "arm", _whole(seconds))


def every_boot(line: Transport, seconds: float) -> None:
    """Have every later boot last so long, in place of what the machine was launched with."""
    _ask(line, "every-boot", _whole(seconds))


def budget(line: Transport, seconds: float | None) -> None:
    """Have the machine run no longer than this from now on, all boots together. None: as long as it's told to."""
    _ask(line, "budget", "-" if seconds is None else _whole(seconds))


def uptimes(line: Transport) -> tuple[Uptime, ...]:
    """Every boot that the machine's log has, oldest first; none where it keeps no log."""
    return _read_log(_ask(line, "log", script=_ASK_IF_THERE).stdout)


def next_host_key(line: Transport) -> str:
    """The public line of the host key that the machine makes itself, once: it waits, or is shown already."""
    answer = _ask(line, "next-host-key")
    key = answer.stdout.strip()
    if not host_keys.is_key(key):
        raise RemoteCommandFailed(
            f"The machine made no new host key: {answer.tail or 'it said nothing'}",
            left_behind="It goes on with the one that it has.",
            next_step="See on it what is the matter: sudo ls -l /etc/ssh",
        )
    return key


def switch_host_key(line: Transport) -> None:
    """Show new connections the key that waits; those that are open go on. Nothing waits: success."""
    _ask(line, "switch-host-key")


def power_off_argv(reason: str) -> tuple[str, ...]:
    """What switches the machine off when run on it, and has its log say why."""
    return ("sh", "-c", _POWER_OFF, "sh", reason)


def _ask(line: Transport, *words: str, script: str = _ASK) -> Result:
    return line.run(["sh", "-c", script, "sh", *words])


def _whole(seconds: float) -> str:
    return str(max(0, math.ceil(seconds)))


def _read_log(text: str) -> tuple[Uptime, ...]:
    """What a power cut has damaged or left out is made up for by what was written before and after it."""
    boots: dict[str, int] = {}
    ends: dict[str, tuple[int, str]] = {}
    alive = -1
    present = ""
    for words in text.splitlines():
        if match := _LOG_LINE.fullmatch(words):
            event, when, boot_id, reason = match.groups()
            if event == "boot":
                boots.setdefault(boot_id, int(when))
            elif reason:
                ends.setdefault(boot_id, (int(when), reason))
        elif match := _ALIVE_LINE.fullmatch(words):
            alive = int(match[1])
        elif match := _NOW_LINE.fullmatch(words):
            present = match[1]
    order = list(boots.items())
    found = []
    for number, (boot_id, booted) in enumerate(order):
        if boot_id == present:
            found.append(Uptime(booted=_time(booted), ended=None))
            continue
        following = order[number + 1][1] if number + 1 < len(order) else max(booted, alive)
        # What it last said of itself is kept for one boot alone.
        cut = alive if booted <= alive <= following else following
        ended, reason = ends.get(boot_id, (cut, "power cut"))
        found.append(Uptime(booted=_time(booted), ended=_time(max(booted, ended)), reason=reason))
    return tuple(found)


def _time(epoch_s: int) -> datetime:
    return datetime.fromtimestamp(epoch_s, timezone.utc)
