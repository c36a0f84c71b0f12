from __future__ import annotations

import contextlib
import re
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuops import transports
from gpuops.errors import PortInUse
from gpuops.transports.door import Caller
from tests.transports.servers import until

_RESET = struct.pack("ii", 1, 0)  # struct linger: closing drops what is under way, and says so


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test gives back its descriptors and its threads."""
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= threads, "the threads have ended")
    until(lambda: _descriptors() == descriptors, "the descriptors are closed")


def _greet(caller: Caller) -> None:
    with caller.connection:
        caller.connection.sendall(b"hello")


def _call(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(10)
    return connection


def _said(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(100), b""))


def _refuses(port: int) -> bool:
    try:
        _call(port).close()
    except OSError:
        return True
    return False


def _proposed(error: PortInUse) -> int:
    return int(re.findall(r"--port (\d+)", error.next_step)[0])


def test_the_port_is_held_from_the_start_until_closed() -> None:
    with transports.door(0) as door:
        port = door.port
        with pytest.raises(PortInUse, match=f"Port {port} is taken"):
            transports.door(port)
    assert _refuses(port)
    with transports.door(port) as again:
        assert again.port == port


def test_a_port_whose_callers_have_just_left_is_free() -> None:
    with transports.door(0) as door:
        door.lead(_greet)
        with _call(door.port) as caller:
            assert _said(caller) == b"hello"
    transports.door(door.port).close()


def test_closing_twice_is_closing() -> None:
    door = transports.door(0)
    door.close()
    door.close()


def test_only_this_computer_can_use_the_port() -> None:
    with transports.door(0) as door, socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", door.port))  # free, so it is not 0.0.0.0 that we listen on


def test_a_taken_port_says_which_one_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"Port {port} is taken.*Jupyter") as caught:
            transports.door(port)
        transports.door(_proposed(caught.value)).close()
    assert f"lsof -i :{port}" in caught.value.next_step


def test_the_next_free_port_is_taken_where_any_will_do() -> None:
    with transports.door(0) as first, transports.door(first.port, or_next=True) as second:
        assert first.port < second.port <= first.port + 200
    with transports.door(first.port, or_next=True) as third:
        assert third.port == first.port


def test_after_the_last_port_comes_any_that_is_free() -> None:
    with contextlib.ExitStack() as held:
        with contextlib.suppress(PortInUse):  # somebody else's, then, which is as good
            held.enter_context(transports.door(65535))
        with pytest.raises(PortInUse) as caught:
            transports.door(65535)
        assert 1024 <= _proposed(caught.value) < 65535
        assert 1024 <= held.enter_context(transports.door(65535, or_next=True)).port < 65535


def test_a_port_of_the_systems_own_gives_way_to_one_that_is_everyones() -> None:
    try:
        with socket.create_server(("127.0.0.1", 81)):
            pytest.skip("this user may take any port")
    except PermissionError:
        pass
    with pytest.raises(PortInUse, match="Port 81 is reserved") as caught:
        transports.door(81)
    assert _proposed(caught.value) >= 1024
    with transports.door(81, or_next=True) as door:
        assert door.port >= 1024


def test_early_callers_wait_and_are_served_as_soon_as_somebody_leads() -> None:
    with transports.door(0, patience_s=60) as door, contextlib.ExitStack() as calls:
        callers = [calls.enter_context(_call(door.port)) for _ in range(20)]
        door.lead(_greet)
        assert [_said(caller) for caller in callers] == [b"hello"] * 20


def test_a_caller_is_turned_away_when_its_patience_is_at_its_end() -> None:
    with transports.door(0, patience_s=0.1) as door, _call(door.port) as caller:
        caller.sendall(b"anybody there?")
        with contextlib.suppress(ConnectionResetError):  # what it said was not read
            assert caller.recv(1) == b""
        door.lead(_greet)
        with _call(door.port) as later:
            assert _said(later) == b"hello"


def test_all_waiting_counts_not_only_the_last() -> None:
    waits = []
    with transports.door(0, patience_s=0.3) as door:

        def lose_the_line(caller: Caller) -> None:
            waits.append(caller.patience_s)
            door.stop_leading(lose_the_line)
            door.wait(caller)

        with _call(door.port) as caller:
            time.sleep(0.1)
            door.lead(lose_the_line)
            until(lambda: len(waits) == 1, "it went on")
            time.sleep(0.1)
            door.lead(lose_the_line)
            until(lambda: len(waits) == 2, "it went on again")
            assert caller.recv(1) == b""
    assert 0.3 > waits[0] > waits[1] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a caller's end before what it said is read")
@pytest.mark.parametrize("last_words", [b"", b"never mind"])
@pytest.mark.parametrize("leave", ["close", "reset", "end what it says"])
def test_a_caller_that_leaves_while_it_waits_is_not_held(last_words: bytes, leave: str) -> None:
    with transports.door(0, patience_s=600) as door:
        nobody_is_there = _descriptors()
        with _call(door.port) as caller:
            caller.sendall(last_words)
            until(lambda: _descriptors() == nobody_is_there + 2, "it waits")
            if leave == "end what it says":
                caller.shutdown(socket.SHUT_WR)
                until(lambda: _descriptors() == nobody_is_there + 1, "it is not held")
            elif leave == "reset":
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        until(lambda: _descriptors() == nobody_is_there, "it is not held")


def test_closing_turns_away_those_who_wait() -> None:
    with transports.door(0, patience_s=600) as door:
        callers = [_call(door.port) for _ in range(3)]
    for caller in callers:
        with caller, contextlib.suppress(ConnectionResetError):  # it was still queueing
            assert caller.recv(1) == b""


def test_a_caller_who_comes_back_to_a_closed_door_is_turned_away() -> None:
    took: list[Caller] = []
    with transports.door(0) as door:
        door.lead(took.append)
        caller = _call(door.port)
        until(lambda: took, "it went on")
    with caller:
        door.wait(took[0])
        assert caller.recv(1) == b""


def test_whoever_led_before_does_not_end_the_lead_of_the_next() -> None:
    def be_rude(caller: Caller) -> None:
        caller.connection.close()

    with transports.door(0) as door:
        door.lead(be_rude)
        door.lead(_greet)
        door.stop_leading(be_rude)
        with _call(door.port) as caller:
            assert _said(caller) == b"hello"


def test_waiting_costs_no_time() -> None:
    with transports.door(0, patience_s=600) as door, contextlib.ExitStack() as calls:
        before = _descriptors()
        for _ in range(10):
            calls.enter_context(_call(door.port)).sendall(b"x" * 1000)
        until(lambda: _descriptors() == before + 20, "they wait")
        used = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - used < 0.15


@contextlib.contextmanager
def _no_more_descriptors_than(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs to know the highest descriptor")
def test_without_a_free_descriptor_callers_queue_and_nothing_spins() -> None:
    with transports.door(0) as door:
        door.lead(_greet)
        callers = [socket.socket() for _ in range(5)]
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        with _no_more_descriptors_than(highest + 1), contextlib.ExitStack() as filled:
            with contextlib.suppress(OSError):
                while True:
                    filled.enter_context(socket.socket())
            for caller in callers:
                caller.connect(("127.0.0.1", door.port))
            used = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - used < 0.15
        for caller in callers:
            with caller:
                caller.settimeout(10)
                assert _said(caller) == b"hello"
