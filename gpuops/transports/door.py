"""A port of this computer's that stays open while the lines behind it come and go."""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from gpuops.errors import PortInUse

_HERE = "127.0.0.1"
# Lower ones are root's.
_FIRST_FOR_EVERYONE = 1024
# So many ports after the wished one are tried before the system picks any.
_TRIED_PORTS = 200
_BACKLOG = 512
# Linux tells of a caller's end even before what it had said is read; elsewhere it shows when its turn comes.
_HANG_UP: int = getattr(select, "POLLRDHUP", 0)
# Where no more descriptors are to be had, callers queue; we look again so often.
_NO_DESCRIPTOR_S = 0.05


@dataclass(slots=True, eq=False)
class Caller:
    """A connection that somebody made to a door, and how long it is still willing to wait for a line."""

    connection: socket.socket
    address: tuple[str, int]
    patience_s: float


class Door:
    """A port on this computer's 127.0.0.1, out of everyone else's reach; a context manager, which closes it.

    Its callers are led on by whoever leads at the time (`Transport.forward`). While nobody does, a caller waits, for
    `patience_s` in all, and is then turned away; so is one that ends its side of the connection meanwhile.
    """

    def __init__(
        self, port: int, *, or_next: bool = False, patience_s: float = 10.0, vanished_after_s: int = 60
    ) -> None:
        """Raises `PortInUse`, unless the next free port will do (`or_next`). Port 0 is any free one.

        A caller that closes its connection looks at first like one that has merely finished speaking. Its system is
        asked about it (TCP keep-alive) when nothing has passed for `vanished_after_s`, then four times as often, and
        says that it's gone once the closed connection is forgotten there (Linux: after 60 s).
        """
        self._listener = _listen(port, or_next)
        self.port: int = self._listener.getsockname()[1]
        self._patience_s = patience_s
        self._vanished_after_s = vanished_after_s
        self._lock = threading.Lock()
        self._closed = False
        self._onward: Callable[[Caller], None] | None = None
        self._coming_back: collections.deque[Caller] = collections.deque()
        # By descriptor, and since when. It and `_watched` are the thread's own.
        self._waiting: dict[int, tuple[Caller, float]] = {}
        self._watched = select.poll()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"door-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the port, and turn away all who wait. The connections that a line carries are that line's to end."""
        with self._lock:
            self._closed = True
        self._wake()
        self._thread.join()
        self._waker.close()

    def lead(self, onward: Callable[[Caller], None]) -> None:
        """From now on `onward` gets every caller, each in a thread of its own; those who wait come first."""
        with self._lock:
            self._onward = onward
        self._wake()

    def stop_leading(self, onward: Callable[[Caller], None]) -> None:
        """From now on callers wait, unless somebody else leads by now."""
        with self._lock:
            if self._onward == onward:
                self._onward = None

    def wait(self, caller: Caller) -> None:
        """Take back a caller with whom nothing was exchanged yet: it waits on, as long as its patience lasts."""
        with self._lock:
            if not self._closed:
                self._coming_back.append(caller)
                self._wake()
                return
        caller.connection.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes already; closed: nobody is to be woken
            self._waker.send(b"x")

    def _run(self) -> None:
        with self._listener, self._woken:
            self._watched.register(self._listener, select.POLLIN)
            self._watched.register(self._woken, select.POLLIN)
            while not self._closed:
                for descriptor, _ in self._watched.poll(self._quiet_for_ms()):
                    if descriptor == self._listener.fileno():
                        self._accept()
                    elif descriptor == self._woken.fileno():
                        self._woken.recv(1024)
                    else:
                        self._remove(descriptor).connection.close()
                while self._coming_back:
                    self._add(self._coming_back.popleft())
                self._dispatch()
        for caller in (*(caller for caller, _ in self._waiting.values()), *self._coming_back):
            caller.connection.close()

    def _quiet_for_ms(self) -> int | None:
        """Until somebody's patience is at its end; None while nobody waits."""
        if not self._waiting:
            return None
        first = min(since + caller.patience_s for caller, since in self._waiting.values())
        return math.ceil(max(0.0, first - time.monotonic()) * 1000)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it gave up while it queued
            return
        except OSError:
            time.sleep(_NO_DESCRIPTOR_S)
            return
        try:
            connection.setblocking(True)
            # Without it every small answer waits 40 ms for the caller's delayed acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _ask_after_silence(connection, self._vanished_after_s)
        except OSError:  # it is gone already
            connection.close()
            return
        self._add(Caller(connection, address, self._patience_s))

    def _add(self, caller: Caller) -> None:
        self._waiting[caller.connection.fileno()] = (caller, time.monotonic())
        self._watched.register(caller.connection, _HANG_UP)

    def _remove(self, descriptor: int) -> Caller:
        self._watched.unregister(descriptor)
        caller, since = self._waiting.pop(descriptor)
        caller.patience_s -= time.monotonic() - since
        return caller

    def _dispatch(self) -> None:
        """Who waits goes on where somebody leads, or goes away where its patience is at its end."""
        now = time.monotonic()
        for descriptor, (caller, since) in tuple(self._waiting.items()):
            if onward := self._onward:
                caller = self._remove(descriptor)
                try:
                    threading.Thread(target=onward, args=(caller,), name=f"door-{self.port}", daemon=True).start()
                except RuntimeError:  # no thread is to be had
                    caller.connection.close()
            elif now >= since + caller.patience_s:
                self._remove(descriptor).connection.close()


def _listen(port: int, or_next: bool) -> socket.socket:
    try:
        return _bind(port)
    except OSError as error:
        if port == 0 or error.errno not in {errno.EACCES, errno.EADDRINUSE}:
            raise
        is_reserved = error.errno == errno.EACCES
        next_one = _listen_from(max(port + 1, _FIRST_FOR_EVERYONE) if is_reserved else port + 1)
        if or_next:
            return next_one
        with next_one:
            option = f"--port {next_one.getsockname()[1]}"
        if is_reserved:
            raise PortInUse(
                f"Port {port} is reserved for the system's own services.", next_step=f"Take another one: {option}"
            ) from error
        raise PortInUse(
            f"Port {port} is taken on this computer: by another tunnel, or by a Jupyter of its own.",
            next_step=f"Take the next free one: {option}. See who holds it: lsof -i :{port}",
        ) from error


def _listen_from(first: int) -> socket.socket:
    for port in range(first, min(first + _TRIED_PORTS, 65536)):
        with contextlib.suppress(OSError):
            return _bind(port)
    return _bind(0)


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # A port whose last tunnel was closed a moment ago is free; one that somebody listens on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HERE, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _ask_after_silence(connection: socket.socket, silence_s: int) -> None:
    """Have the system ask whether the other side is still there (TCP keep-alive)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (
        ("TCP_KEEPIDLE", silence_s),
        ("TCP_KEEPALIVE", silence_s),  # what macOS calls it
        ("TCP_KEEPINTVL", max(1, silence_s // 4)),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
