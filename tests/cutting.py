"""A network that goes away: connections of a process that end in the middle.

`python -m tests.cutting HOST WORDS…` is gpuops as it is, and cuts its own connections to HOST at every SIGUSR1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from gpuops import cli


def cut_lines_to(host: str) -> None:
    """Every connection of this process to that address ends. Finds them in /proc: Linux only."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:
            if connection.getpeername()[:1] == (host,):  # not a string, as of a pair in the file system
                connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: cut_lines_to(sys.argv[1]))
    cli.main(sys.argv[2:])
