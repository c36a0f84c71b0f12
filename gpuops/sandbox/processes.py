"""The processes of one machine: started, reaped, and killed to the last one."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38


class Processes:
    """What the operating system started. `reap` is its SIGCHLD handler: every end is met here, orphans' too."""

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        self.environment = environment
        self._home = home
        self._running: dict[int, tuple[subprocess.Popen[bytes], asyncio.Future[int]]] = {}

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own, with `stdin` as its controlling terminal if that is a `terminal`.

        Raises OSError where there is no such program. Output not asked for goes to the console.
        """
        child = subprocess.Popen(
            argv,
            bufsize=0,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=self._home if self._home.is_dir() else "/",
            env={**self.environment, **(environment or {})},
            start_new_session=True,
            preexec_fn=_take_terminal if terminal else None,
        )
        self._running[child.pid] = (child, asyncio.get_running_loop().create_future())
        return child

    async def exit_code(self, child: subprocess.Popen[bytes]) -> int:
        """The child's exit code, or minus the signal that ended it, once it has ended."""
        if child.returncode is None:
            return await self._running[child.pid][1]
        return child.returncode

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._running:
                    child, ended = self._running.pop(pid)
                    child.returncode = os.waitstatus_to_exitcode(status)
                    ended.set_result(child.returncode)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def kill_descendants() -> None:
    """Kill everything below this process; return when nothing is left of it.

    Where orphans are adopted, each descendant has a living line of parents up to this process, so having no child
    proves that there is no descendant. Elsewhere what left both its parents and their process groups stays alive.
    """
    while True:
        for pid in _descendants():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
            continue
        return


def _descendants() -> set[int]:
    table = list(_process_table())
    family, groups = {os.getpid()}, set[int]()
    while True:
        found = {pid for pid, parent, group in table if parent in family or group in groups} - family
        if not found:
            return family - {os.getpid()}
        family |= found
        groups |= {group for pid, _, group in table if pid in found} - {os.getpgrp()}


def _process_table() -> Iterator[tuple[int, int, int]]:
    """Each process's pid, parent and process group."""
    if Path("/proc/self/stat").exists():
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name, in parentheses, may itself contain blanks and parentheses: proc_pid_stat(5).
                fields = stat.read_text(errors="replace").rpartition(")")[2].split()
                yield int(stat.parent.name), int(fields[1]), int(fields[2])
    else:
        for line in subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,pgid="], text=True).splitlines():
            pid, parent, group = map(int, line.split())
            yield pid, parent, group


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, in place of the computer's init (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> None:
    """Be sent this signal when the parent ends, even by SIGKILL (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def give_up_privileges() -> None:
    """Make set-user-id programs (the computer's own `sudo`) start without their owner's rights, for good (Linux)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
