"""Tunnels with much to carry, and with peers that give up: every byte arrives, and nothing is left behind.

SOAK=1 makes the big transfers 1 GB each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpuops import transports
from gpuops.transports import Door
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Server, until

Serve = Callable[[Callable[[socket.socket], None]], int]

_MB = 1_000_000
_BIG_MB = 1000 if os.environ.get("SOAK") else 64
_CROWD = 200
_WORDS_BYTES = 10_000
_BLOCK = random.Random(1).randbytes(_MB)
_RESET = struct.pack("ii", 1, 0)  # struct linger: closing drops what is under way, and says so


@pytest.fixture(scope="module", autouse=True)
def room_for_a_crowd() -> Iterator[None]:
    """macOS gives a program 256 descriptors; here callers, door and peers are one program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_is_left(line: SshTransport) -> Iterator[None]:
    """Every test gives back its descriptors and its threads, while the line lives on."""
    assert line.alive()
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= threads, "the threads have ended", within_s=15)
    until(lambda: _descriptors() == descriptors, "the descriptors are closed", within_s=15)
    assert line.alive()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves every connection with a function, each in a thread of its own; gives the port."""
    with contextlib.ExitStack() as listening:

        def serve(answer: Callable[[socket.socket], None]) -> int:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            threading.Thread(target=accept, args=(listener, answer), daemon=True).start()
            listening.callback(_shut, listener)
            port: int = listener.getsockname()[1]
            return port

        def accept(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
            with listener, contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=attend, args=(connection, answer), daemon=True).start()

        def attend(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(60)
                answer(connection)

        yield serve


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def door() -> Iterator[Door]:
    with transports.door(0) as door:
        yield door


def _call(door: Door) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", door.port))
    caller.settimeout(60)
    return caller


@contextlib.contextmanager
def _crowd(door: Door, number: int = _CROWD) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as calls:
        yield [calls.enter_context(_call(door)) for _ in range(number)]


def _said(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _words_of(number: int) -> bytes:
    return random.Random(number).randbytes(_WORDS_BYTES)


def _blocks(megabytes: int) -> Iterator[bytes]:
    """So much to say, no two MB alike."""
    for number in range(megabytes):
        yield number.to_bytes(8, "big") + _BLOCK[8:]


def _sha256(megabytes: int) -> str:
    whole = hashlib.sha256()
    for block in _blocks(megabytes):
        whole.update(block)
    return whole.hexdigest()


def _speak(connection: socket.socket, megabytes: int) -> None:
    for block in _blocks(megabytes):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)


def _listen(connection: socket.socket) -> str:
    """The SHA-256 of all that the other side says."""
    heard = hashlib.sha256()
    while data := connection.recv(_MB):
        heard.update(data)
    return heard.hexdigest()


def test_each_of_a_crowd_gets_its_own_answer(line: SshTransport, door: Door, serve: Serve) -> None:
    everyone = threading.Barrier(_CROWD, timeout=30)

    def answer_when_everyone_is_there(connection: socket.socket) -> None:
        words = b""
        while len(words) < _WORDS_BYTES:
            words += connection.recv(_WORDS_BYTES)
        everyone.wait()
        connection.sendall(words[::-1])

    with line.forward(door, serve(answer_when_everyone_is_there)), _crowd(door) as callers:
        for number, caller in enumerate(callers):
            caller.sendall(_words_of(number))
        for number, caller in enumerate(callers):
            assert _said(caller) == _words_of(number)[::-1]


@pytest.mark.timeout(600)
def test_what_comes_down_arrives_whole(line: SshTransport, door: Door, serve: Serve) -> None:
    with line.forward(door, serve(lambda peer: _speak(peer, _BIG_MB))), _call(door) as caller:
        assert _listen(caller) == _sha256(_BIG_MB)


@pytest.mark.timeout(600)
def test_what_goes_up_arrives_whole(line: SshTransport, door: Door, serve: Serve) -> None:
    with line.forward(door, serve(lambda peer: peer.sendall(_listen(peer).encode()))), _call(door) as caller:
        _speak(caller, _BIG_MB)
        assert _said(caller).decode() == _sha256(_BIG_MB)


@pytest.mark.timeout(600)
def test_both_ways_at_once_arrive_whole(line: SshTransport, door: Door, serve: Serve) -> None:
    heard: list[str] = []

    def exchange(connection: socket.socket) -> None:
        speaking = threading.Thread(target=_speak, args=(connection, _BIG_MB // 4), daemon=True)
        speaking.start()
        heard.append(_listen(connection))
        speaking.join()

    with line.forward(door, serve(exchange)), _call(door) as caller:
        exchange(caller)
        until(lambda: len(heard) == 2, "both have heard everything")
    assert heard == [_sha256(_BIG_MB // 4)] * 2


def test_a_crowd_that_has_finished_speaking_still_listens(line: SshTransport, door: Door, serve: Serve) -> None:
    everyone = threading.Barrier(_CROWD, timeout=30)

    def answer_after_the_end(connection: socket.socket) -> None:
        words = _said(connection)
        everyone.wait()  # by now all of them are half closed
        connection.sendall(words[::-1])

    with line.forward(door, serve(answer_after_the_end)), _crowd(door) as callers:
        for number, caller in enumerate(callers):
            caller.sendall(_words_of(number))
            caller.shutdown(socket.SHUT_WR)
        for number, caller in enumerate(callers):
            assert _said(caller) == _words_of(number)[::-1]


def test_a_crowd_to_which_the_machine_has_said_everything_may_still_speak(
    line: SshTransport, door: Door, serve: Serve
) -> None:
    heard: set[bytes] = set()

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        heard.add(_said(connection))

    with line.forward(door, serve(speak_first)), _crowd(door) as callers:
        for caller in callers:
            assert _said(caller) == b"bye"
        for number, caller in enumerate(callers):
            caller.sendall(_words_of(number))
            caller.shutdown(socket.SHUT_WR)
        until(lambda: len(heard) == _CROWD, "the machine heard them all", within_s=30)
    assert heard == {_words_of(number) for number in range(_CROWD)}


def test_a_line_outlives_the_connections_that_the_machine_cuts_and_every_caller_learns_of_it(
    server: Server, door: Door, serve: Serve
) -> None:
    """More than 512 MB in all: on the way, paramiko exchanges new keys."""

    def hear_so_much_and_cut(connection: socket.socket) -> None:
        left = 1_500_000
        while left > 0:
            left -= len(connection.recv(left))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def speak_until_cut(_: int) -> None:
        with _call(door) as caller, contextlib.suppress(ConnectionError):
            while True:
                caller.sendall(_BLOCK)

    with SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10) as line:
        with line.forward(door, serve(hear_so_much_and_cut)), ThreadPoolExecutor(16) as callers:
            list(callers.map(speak_until_cut, range(400)))
        assert line.answers(10)


class _Silence:
    """A peer that takes every connection and says nothing until it is told to; it may not even listen."""

    def __init__(self, *, listens: bool = True) -> None:
        self._listens = listens
        self.present = 0
        self.end = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        if self._listens:
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()
        self.present += 1
        self.end.wait(60)
        connection.sendall(b"at last")

    def _listen(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            _listen(connection)


def _say_as_much_as_fits(caller: socket.socket) -> None:
    caller.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            caller.send(_BLOCK)


@pytest.mark.parametrize("machine", ["listens", "does not listen", "has too much to listen to"])
def test_callers_that_break_off_are_not_kept_by_a_machine_that_never_answers(
    line: SshTransport, door: Door, serve: Serve, machine: str
) -> None:
    silence = _Silence(listens=machine == "listens")
    number = 3 if machine == "has too much to listen to" else 50
    with line.forward(door, serve(silence)):
        nobody = _descriptors()
        with _crowd(door, number) as callers:
            for caller in callers:
                caller.sendall(b"anybody there?")
                if machine == "has too much to listen to":
                    _say_as_much_as_fits(caller)
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            until(lambda: silence.present == number, "the machine has them all", within_s=15)
        until(lambda: _descriptors() == nobody + number, "of each connection, only the machine's end is left")
        silence.end.set()


@pytest.mark.skipif(not hasattr(socket, "TCP_LINGER2"), reason="only Linux can be told to forget a connection soon")
def test_a_machine_that_never_answers_keeps_callers_that_still_listen_and_not_those_that_closed(
    line: SshTransport, serve: Serve
) -> None:
    silence = _Silence()
    with Door(0, vanished_after_s=1) as door, line.forward(door, serve(silence)):
        nobody = _descriptors()
        with _crowd(door, 20) as listeners:
            with _crowd(door, 30) as callers:
                for caller in (*listeners, *callers):
                    caller.sendall(b"anybody there?")
                until(lambda: silence.present == 50, "the machine has them all", within_s=15)
                for listener in listeners:
                    listener.shutdown(socket.SHUT_WR)
                for caller in callers:
                    # How long the system remembers it once it is closed; not told, it is 60 s.
                    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
            until(
                lambda: _descriptors() == nobody + 50 + 2 * 20,
                "of each closed connection, only the machine's end is left",
                within_s=20,
            )
            silence.end.set()
            assert [_said(listener) for listener in listeners] == [b"at last"] * 20


@pytest.mark.parametrize("machine", ["says nothing", "does not listen", "says more than anybody listens to"])
def test_leaving_ends_what_neither_side_would_end(line: SshTransport, door: Door, serve: Serve, machine: str) -> None:
    silence = _Silence(listens=machine == "says nothing")

    def stay(connection: socket.socket) -> None:
        connection.sendall(b"x")
        if machine == "says more than anybody listens to":
            _say_as_much_as_fits(connection)
        silence(connection)

    port = serve(stay)
    nobody = _descriptors()
    with _crowd(door, 5) as callers:
        with line.forward(door, port):
            assert [caller.recv(1) for caller in callers] == [b"x"] * 5
            until(lambda: silence.present == 5, "the machine has them all", within_s=15)
        until(lambda: _descriptors() == nobody + 5 + 5, "only the callers' and the machine's ends are left")
        silence.end.set()


def test_a_line_that_dies_keeps_nothing_of_callers_who_stay_on(server: Server, door: Door, serve: Serve) -> None:
    silence = _Silence()

    def greet_and_stay(connection: socket.socket) -> None:
        connection.sendall(b"x")
        silence(connection)

    port = serve(greet_and_stay)
    nobody = _descriptors()
    with (
        SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10) as line,
        line.forward(door, port),
        _crowd(door, 5) as callers,
    ):
        assert [caller.recv(1) for caller in callers] == [b"x"] * 5
        line.close()
        assert [caller.recv(1) for caller in callers] == [b""] * 5
        until(lambda: _descriptors() == nobody + 5 + 5, "only the callers' and the machine's ends are left")
        silence.end.set()


def test_a_caller_that_does_not_listen_holds_up_nobody(line: SshTransport, door: Door, serve: Serve) -> None:
    with line.forward(door, serve(lambda peer: _speak(peer, 32))), _call(door) as slow:
        assert slow.recv(1)
        for _ in range(3):
            with _call(door) as quick:
                assert _listen(quick) == _sha256(32)
        assert len(_said(slow)) == 32 * _MB - 1


def test_a_machine_that_does_not_listen_holds_up_nobody(line: SshTransport, serve: Serve) -> None:
    silence = _Silence(listens=False)
    with (
        transports.door(0) as deaf,
        transports.door(0) as attentive,
        line.forward(deaf, serve(silence)),
        line.forward(attentive, serve(lambda peer: peer.sendall(_listen(peer).encode()))),
        _crowd(deaf, 3) as callers,
    ):
        for caller in callers:
            _say_as_much_as_fits(caller)
        for _ in range(3):
            with _call(attentive) as quick:
                _speak(quick, 8)
                assert _said(quick).decode() == _sha256(8)
        silence.end.set()
