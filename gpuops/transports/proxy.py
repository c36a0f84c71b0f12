"""A connection that is a program's: ssh through another machine, or whatever the person's ssh config names."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence

# Then a program that has been told to end is killed.
_ENDS_WITHIN_S = 1.0
# With several jumps each ssh adds a line of its own below the reason.
_LAST_LINES = 3


class Proxy(socket.socket):
    """Our end of the program's standard input and output, as a socket; closing it ends the program and its children."""

    def __init__(self, argv: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.complaint = ""
        """Once it is closed: why the program has ended by itself; "" where it had not, or did so without a word."""
        self._closing = threading.Lock()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the socket
        with theirs:
            try:
                self._program = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._said,
                    # Ctrl-C is for us, and the line may be needed to clean up.
                    start_new_session=True,
                )
            except OSError:
                super().close()
                self._said.close()
                raise

    def close(self) -> None:
        with self._closing:  # paramiko closes it from two threads
            if self._said.closed:
                return
            hung_up = self._is_hung_up()
            super().close()
            self._end()
            if hung_up:
                self.complaint = self._last_words()
            self._said.close()

    def _is_hung_up(self) -> bool:
        if self.fileno() < 0:  # an earlier close was interrupted
            return False
        watched = select.poll()
        watched.register(self, 0)
        return bool(watched.poll(0))

    def _end(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            self._program.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._program.wait()

    def _signal(self, number: signal.Signals) -> None:
        # To its children too: of two jumps, the first ssh may not notice for long that the second has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._program.pid, number)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            return "; ".join(lines[-_LAST_LINES:])
        return f"it exited with {self._program.returncode}" if self._program.returncode else ""
