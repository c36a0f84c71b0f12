"""The callers of a door, led over one line to a port of the machine's, for as long as the line lives."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, cast

import paramiko

from gpuops.transports.door import Caller, Door

_MACHINE = "127.0.0.1"
_DIAL_TIMEOUT_S = 15.0
_CHUNK_BYTES = 256 * 1024
# What paramiko puts into one packet of 32 KiB; more at a time would only be cut and copied again.
_PACKET_BYTES = 32 * 1024 - 64
# While nothing passes: whether the caller's side is broken, and whether the line was left.
_CHECK_EVERY_S = 1.0
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
_CLOSE = bytes([97])  # SSH_MSG_CHANNEL_CLOSE, RFC 4254 section 9
_ERRORS = (EOFError, OSError, paramiko.SSHException)


@contextlib.contextmanager
def forward(line: paramiko.Transport, door: Door, remote_port: int) -> Iterator[None]:
    """Lead the door's callers to the machine's 127.0.0.1:`remote_port`, until left or until the line is dead.

    Then every connection through the line is closed, and the door's callers wait for the next.
    """
    tunnel = _Tunnel(line, door, remote_port)
    threading.Thread(target=_hurry, args=(line,), name="tunnel-hurry", daemon=True).start()
    door.lead(tunnel.carry)
    try:
        yield
    finally:
        door.stop_leading(tunnel.carry)
        tunnel.leave()


def _hurry(line: paramiko.Transport) -> None:
    """Have the line's first command run: only with it does OpenSSH's sshd set TCP_NODELAY (`do_exec_no_pty`).

    Without, each small answer waits 40 ms for this side's delayed acknowledgement.
    """
    with contextlib.suppress(Exception), line.open_session(timeout=_DIAL_TIMEOUT_S) as session:
        session.exec_command("true")


class _Tunnel:
    def __init__(self, line: paramiko.Transport, door: Door, remote_port: int) -> None:
        self._line = line
        self._door = door
        self._remote_port = remote_port
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._left = False

    def carry(self, caller: Caller) -> None:
        """What it says to the machine, and what the machine says to it, until both have said everything."""
        channel = self._dial(caller)
        if channel is None:
            return
        connection = caller.connection
        with self._lock:
            came_too_late = self._left
            if not came_too_late:
                self._connections.add(connection)
        if came_too_late:
            self._door.wait(caller)
            _close(channel)
            return
        try:
            self._exchange(connection, channel)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def leave(self) -> None:
        # To the machine it is for each connection's own threads to say so: a line may take nothing any more.
        with self._lock:
            self._left = True
            for connection in self._connections:
                _shut(connection, socket.SHUT_RDWR)

    def _dial(self, caller: Caller) -> paramiko.Channel | None:
        """None where that failed: the caller then waits for the next line, or is turned away if this one lives."""
        port = (_MACHINE, self._remote_port)
        try:
            channel = self._line.open_channel("direct-tcpip", port, caller.address, timeout=_DIAL_TIMEOUT_S)
        except Exception as error:  # paramiko raises here whatever killed the line
            # What can't be written to is dead, although it may not say so yet.
            is_dead = isinstance(error, EOFError | OSError) or not self._line.is_active()
        else:
            channel.transport = cast(paramiko.Transport, _InOrder(self._line))
            return channel
        if is_dead:
            self._door.stop_leading(self.carry)
            self._door.wait(caller)
        else:  # nobody listens on that port, or nobody answers
            caller.connection.close()
        return None

    def _exchange(self, connection: socket.socket, channel: paramiko.Channel) -> None:
        channel.settimeout(_CHECK_EVERY_S)
        sending = threading.Thread(target=_send, args=(connection, channel), name="tunnel-send", daemon=True)
        sending.start()
        with contextlib.suppress(*_ERRORS):
            self._bring(channel, connection)
            connection.shutdown(socket.SHUT_WR)
            # The caller may still speak.
            while sending.is_alive() and not channel.closed:
                sending.join(_CHECK_EVERY_S)
                self._check(connection)
        # A channel that is closed altogether takes nothing any more either: the caller need not wait to find out.
        _shut(connection, socket.SHUT_RDWR)
        _close(channel)
        # The descriptor isn't given back while the thread may read from it.
        sending.join()

    def _bring(self, channel: paramiko.Channel, connection: socket.socket) -> None:
        """Until the machine has said everything."""
        while True:
            try:
                data = channel.recv(_CHUNK_BYTES)
            except TimeoutError:
                self._check(connection)
                continue
            if not data:
                return
            connection.sendall(data)

    def _check(self, connection: socket.socket) -> None:
        """Raises `ConnectionAbortedError` where the line was left or the caller's side broke.

        Reading wouldn't tell: after its end, a caller that has gone looks like one that merely listens.
        """
        if self._left or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise ConnectionAbortedError


class _InOrder:
    """The line as one of its channels sees it: the channel's close is the last that is sent on it.

    The machine's close is answered by paramiko's own thread, while another thread may have data in hand for the channel
    (paramiko issue 1115). If that came after the close, sshd would end the whole line: "data packet referred to
    nonexistent channel". Nor may paramiko's thread wait to send: for a key exchange to end, it has to read.
    """

    def __init__(self, line: paramiko.Transport) -> None:
        self._line: Any = line
        self._lock = threading.Lock()
        self._is_closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)

    def _send_user_message(self, message: paramiko.Message) -> None:
        if threading.current_thread() is self._line:
            threading.Thread(target=self._send_later, args=(message,), name="tunnel-close", daemon=True).start()
        else:
            self._send(message)

    def _send_later(self, message: paramiko.Message) -> None:
        with contextlib.suppress(*_ERRORS):
            self._send(message)

    def _send(self, message: paramiko.Message) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = message.asbytes()[:1] == _CLOSE
                self._line._send_user_message(message)


def _send(connection: socket.socket, channel: paramiko.Channel) -> None:
    """Until the caller has said everything; it may go on listening."""
    try:
        while data := connection.recv(_PACKET_BYTES):
            while data:
                with contextlib.suppress(TimeoutError):  # the machine takes nothing just now
                    data = data[channel.send(data) :]
        channel.shutdown_write()
    except _ERRORS:
        # What it said is lost, so closing is to be a reset: who waits to say more might not notice a mere end for long.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        _close(channel)


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(*_ERRORS):
        channel.close()
