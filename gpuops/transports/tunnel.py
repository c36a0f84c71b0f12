"""A port of the machine's, reachable on this computer and from nowhere else, for as long as the line lives."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
from collections.abc import Iterator

import paramiko

from gpuops.errors import PortInUse

_HERE = "127.0.0.1"
_CHUNK_BYTES = 256 * 1024
_DIAL_TIMEOUT_S = 15.0
# How soon a dead line is noticed; it then closes the listener instead of accepting what nobody will answer.
_LINE_CHECK_S = 0.25


@contextlib.contextmanager
def forward(line: paramiko.Transport, remote_port: int, local_port: int = 0) -> Iterator[int]:
    """Lead connections to a local port to the machine's 127.0.0.1:`remote_port`. Raises `PortInUse`.

    Gives the local port. Leaving closes the port and every connection through it.
    """
    listener = _listen(local_port)
    port: int = listener.getsockname()[1]
    stop, stopped = socket.socketpair()
    tunnel = _Tunnel(line, remote_port)
    accepting = threading.Thread(target=tunnel.accept, args=(listener, stopped), name=f"tunnel-{port}", daemon=True)
    accepting.start()
    try:
        yield port
    finally:
        stop.close()
        accepting.join()


def _listen(port: int) -> socket.socket:
    try:
        return _bind(port)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise PortInUse(
                f"Port {port} is reserved for the system's own services.",
                next_step=f"Take another one: --port {_next_free_port(max(port + 1, 1024))}",
            ) from error
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUse(
            f"Port {port} is taken on this computer: by another tunnel, or by a Jupyter of its own.",
            next_step=f"Take the next free one: --port {_next_free_port(port + 1)}. See who holds it: lsof -i :{port}",
        ) from error


def _next_free_port(first: int) -> int:
    for port in range(first, min(first + 200, 65536)):
        with contextlib.suppress(OSError):
            _bind(port).close()
            return port
    return 0


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # A port whose last tunnel was closed a moment ago is free; one that somebody listens on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HERE, port))
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


class _Tunnel:
    def __init__(self, line: paramiko.Transport, remote_port: int) -> None:
        self._line = line
        self._remote_port = remote_port
        self._channels: set[paramiko.Channel] = set()
        self._closing = threading.Event()

    def accept(self, listener: socket.socket, stopped: socket.socket) -> None:
        """Until told to stop, or the line is dead: a thread for each connection. Then none of them stays open."""
        with listener, stopped, selectors.DefaultSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            ready.register(stopped, selectors.EVENT_READ)
            while self._line.is_active():
                sources = {key.fileobj for key, _ in ready.select(_LINE_CHECK_S)}
                if stopped in sources:
                    break
                if listener in sources:
                    with contextlib.suppress(OSError):  # the caller gave up while it queued
                        connection, _ = listener.accept()
                        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        self._closing.set()
        for channel in tuple(self._channels):
            channel.close()

    def _serve(self, connection: socket.socket) -> None:
        # Where nobody listens on that port of the machine, or the line died, the caller sees its connection closed.
        with connection, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            caller = connection.getpeername()
            with self._line.open_channel(
                "direct-tcpip", (_HERE, self._remote_port), caller, timeout=_DIAL_TIMEOUT_S
            ) as channel:
                self._channels.add(channel)
                try:
                    if not self._closing.is_set():
                        homeward = threading.Thread(target=_bring, args=(channel, connection), daemon=True)
                        homeward.start()
                        _send(connection, channel)
                        homeward.join()
                finally:
                    self._channels.discard(channel)


def _send(connection: socket.socket, channel: paramiko.Channel) -> None:
    """Until the caller has said everything; it may go on listening."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := connection.recv(_CHUNK_BYTES):
            channel.sendall(data)
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.shutdown_write()


def _bring(channel: paramiko.Channel, connection: socket.socket) -> None:
    """Until the machine has said everything."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := channel.recv(_CHUNK_BYTES):
            connection.sendall(data)
    # A channel that is closed altogether takes no more requests either: then the caller need not wait to find out.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR if channel.closed else socket.SHUT_WR)
