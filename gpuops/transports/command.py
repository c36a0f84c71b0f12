"""One command on an ssh channel of its own, fed and drained side by side. Whoever leaves before its end kills it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import BinaryIO

import paramiko

from gpuops.errors import ConnectionFailed, MachineUnreachable, RemoteCommandFailed
from gpuops.machine import Machine
from gpuops.transports import quote, shown
from gpuops.transports.handshake import WINDOW_BYTES, unreachable

# What paramiko puts into one packet of 32 KiB; more at a time would only be cut and copied again.
_PACKET_BYTES = 32 * 1024 - 64
_OPEN_TIMEOUT_S = 30.0
# What OpenSSH's client exits with when the server ends a command without saying how.
_NO_EXIT_CODE = 255
# The shell stays to tell by which signal the command died (128 + n): paramiko drops that message of the server's.
_SAY_HOW_IT_ENDED = '"$@"; exit $?'
# The shell above and everything under it: first stopped, so that nothing goes on to its next step when its neighbour is
# gone. The shell bears the mark as its name; here the mark is in two parts, so that this script does not find itself.
_KILL = """
tree() { kill -STOP "$1"; echo "$1"; for child in $(pgrep -P "$1"); do tree "$child"; done; }
for pid in $(pgrep -f "$1-$2"); do kill -KILL $(tree "$pid"); done
"""
_KILL_TIMEOUT_S = 5.0
_LINE_ERRORS = (EOFError, OSError, paramiko.SSHException)


class Command:
    """A context manager: read `stdout` to its end, then `wait` for the exit code; `stderr` is whole from then on."""

    def __init__(
        self,
        machine: Machine,
        line: paramiko.Transport,
        argv: Sequence[str],
        *,
        source: BinaryIO | None,
        timeout_s: float | None,
    ) -> None:
        self.stderr = bytearray()
        self._machine = machine
        self._line = line
        self._argv = argv
        self._mark = ("gpuops", secrets.token_hex(8))
        self._source = source
        self._timeout_s = timeout_s
        self._timer: threading.Timer | None = None
        self._draining = threading.Thread(target=self._drain_stderr, daemon=True)
        self._timed_out = False
        self._source_error: Exception | None = None
        self._ended = False

    def __enter__(self) -> Command:
        try:
            self._channel = self._line.open_session(timeout=_OPEN_TIMEOUT_S)
            self._channel.exec_command(quote(["sh", "-c", _SAY_HOW_IT_ENDED, "-".join(self._mark), *self._argv]))
        except paramiko.ChannelException as error:
            raise ConnectionFailed(
                f"{self._machine.name} takes no further command on this line: {error.text}.",
                next_step=f"See whether a new line works: gpuops ssh {self._machine.name} true",
            ) from error
        except _LINE_ERRORS as error:
            raise self._line_broke() from error
        if self._timeout_s is not None:
            self._timer = threading.Timer(self._timeout_s, self._time_out)
            self._timer.daemon = True
            self._timer.start()
        self._draining.start()
        if self._source is None:
            self._end_stdin()
        else:
            # Nobody waits for this thread: the source may be a pipe on which nothing comes any more.
            threading.Thread(target=self._feed, args=(self._source,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._ended:
            self._abort()
        self._draining.join()

    def stdout(self) -> Iterator[bytes]:
        """What it says, as it arrives, until it has said everything or the line broke (`wait` tells which)."""
        # As much as can be under way: a smaller read would move the rest of paramiko's buffer down each time.
        with contextlib.suppress(*_LINE_ERRORS):
            while chunk := self._channel.recv(WINDOW_BYTES):
                yield chunk

    def wait(self) -> int:
        """Its exit code. Raises `MachineUnreachable`, `RemoteCommandFailed` (out of time), or the source's error."""
        self._draining.join()
        self._channel.status_event.wait()
        if self._source_error is not None:
            raise self._source_error
        if self._timed_out:
            raise RemoteCommandFailed(
                f"`{shown(self._argv)}` on {self._machine.name} was killed: it took over {self._timeout_s:g} s.",
                next_step=f"See what the machine is busy with: gpuops ssh {self._machine.name} top -bn1",
            )
        if self._channel.exit_status == -1:
            # A dying line closes its channels a moment before it says that it is dead.
            self._line.join(0.2)
            if not self._line.is_active():
                raise self._line_broke()
        self._ended = True
        return _NO_EXIT_CODE if self._channel.exit_status == -1 else self._channel.exit_status

    def _feed(self, source: BinaryIO) -> None:
        while True:
            try:
                data = source.read(_PACKET_BYTES)
            except Exception as error:  # whatever it is: the command must not take it for the end of the data
                self._source_error = error
                self._abort()
                return
            if not data:
                self._end_stdin()
                return
            try:
                self._channel.sendall(data)
            except _LINE_ERRORS:  # it ended without reading everything, or the line broke: `wait` tells which
                return

    def _end_stdin(self) -> None:
        with contextlib.suppress(*_LINE_ERRORS):
            self._channel.shutdown_write()

    def _drain_stderr(self) -> None:
        with contextlib.suppress(*_LINE_ERRORS):
            while chunk := self._channel.recv_stderr(WINDOW_BYTES):
                self.stderr += chunk

    def _time_out(self) -> None:
        self._timed_out = True
        self._abort()

    def _abort(self) -> None:
        """Kill it, then close its channel: that alone would look to it like the end of its input."""
        if self._channel.closed:
            return
        killing = threading.Thread(target=self._kill, daemon=True)
        killing.start()
        killing.join(_KILL_TIMEOUT_S)
        with contextlib.suppress(*_LINE_ERRORS):
            self._channel.close()

    def _kill(self) -> None:
        # By a second command, because OpenSSH takes no signals for root's.
        with contextlib.suppress(*_LINE_ERRORS), self._line.open_session(timeout=_KILL_TIMEOUT_S) as channel:
            channel.exec_command(quote(["sh", "-c", _KILL, "sh", *self._mark]))
            channel.recv_exit_status()

    def _line_broke(self) -> MachineUnreachable:
        return unreachable(self._machine, f"The line to {self._machine.name} broke: `{shown(self._argv)}` may run on.")
