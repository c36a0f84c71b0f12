from __future__ import annotations

import contextlib
import http.server
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuops import transports
from gpuops.transports import Door
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Server, Wire, until

ServeOne = Callable[[Callable[[socket.socket], None]], int]


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.path.encode() * (100_000 if self.path == "/big" else 1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Web(http.server.ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture(scope="module")
def web_port() -> Iterator[int]:
    with _Web(("127.0.0.1", 0), _Pages) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.fixture
def peer_port() -> Iterator[ServeOne]:
    """Serves one connection with a function; gives the port."""
    threads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve_one(serve: Callable[[socket.socket], None]) -> int:
            def accept() -> None:
                connection, _ = listener.accept()
                with connection:
                    serve(connection)

            threads.append(threading.Thread(target=accept))
            threads[-1].start()
            port: int = listener.getsockname()[1]
            return port

        yield serve_one
        for thread in threads:
            thread.join()


@pytest.fixture
def door() -> Iterator[Door]:
    with transports.door(0) as door:
        yield door


@pytest.fixture
def patient_door() -> Iterator[Door]:
    with transports.door(0, patience_s=600) as door:
        yield door


def new_line(server: Server) -> SshTransport:
    return SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        body: bytes = reply.read()
        return body


def call(door: Door) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", door.port))
    connection.settimeout(10)
    return connection


def said(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_connections_go_through_side_by_side(line: SshTransport, door: Door, web_port: int) -> None:
    with line.forward(door, web_port), ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _: get(door.port, "/big"), range(8)))
    assert bodies == [b"/big" * 100_000] * 8


def test_no_small_answer_waits_for_an_acknowledgement_on_a_line_on_which_nothing_ran_before(
    server: Server, door: Door, peer_port: ServeOne
) -> None:
    def answer_in_two_pieces(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv(1):
            connection.sendall(b"a")
            time.sleep(0.002)  # a packet of its own
            connection.sendall(b"b")

    def ask(caller: socket.socket) -> float:
        began = time.perf_counter()
        caller.sendall(b"?")
        assert caller.recv(1) + caller.recv(1) == b"ab"
        return time.perf_counter() - began

    port = peer_port(answer_in_two_pieces)
    with new_line(server) as line, line.forward(door, port), call(door) as through:
        ask(through)
        peer_port(answer_in_two_pieces)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as straight:
            seconds = [(ask(through), ask(straight)) for _ in range(40)]
    # It is under 2 times as long; wherever on the way TCP_NODELAY is missing, 40 ms longer.
    medians = [statistics.median(times) for times in zip(*seconds, strict=True)]
    assert medians[0] < 8 * medians[1]


def test_whoever_has_finished_speaking_may_still_listen(line: SshTransport, door: Door, peer_port: ServeOne) -> None:
    def answer_after_the_end(connection: socket.socket) -> None:
        connection.sendall(b"heard %d" % len(said(connection)))

    with line.forward(door, peer_port(answer_after_the_end)), call(door) as caller:
        caller.sendall(bytes(1_000_000))
        caller.shutdown(socket.SHUT_WR)
        assert said(caller) == b"heard 1000000"


def test_the_machines_end_reaches_the_caller_who_may_still_speak(
    line: SshTransport, door: Door, peer_port: ServeOne
) -> None:
    heard: list[bytes] = []

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        heard.append(said(connection))

    with line.forward(door, peer_port(speak_first)), call(door) as caller:
        assert said(caller) == b"bye"
        caller.sendall(b"one more thing")
        caller.shutdown(socket.SHUT_WR)
        until(lambda: heard, "the machine heard it")
    assert heard == [b"one more thing"]


def test_a_caller_learns_that_the_machine_takes_nothing_any_more(
    line: SshTransport, door: Door, peer_port: ServeOne
) -> None:
    def speak_and_hang_up(connection: socket.socket) -> None:
        connection.sendall(b"bye")

    with line.forward(door, peer_port(speak_and_hang_up)), call(door) as caller:
        assert said(caller) == b"bye"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            until(lambda: caller.send(b"more") == 0, "it is told")


def test_a_port_on_which_nobody_listens_there_closes_the_connections_at_once(
    line: SshTransport, patient_door: Door
) -> None:
    with line.forward(patient_door, free_port()), contextlib.ExitStack() as calls:
        callers = [calls.enter_context(call(patient_door)) for _ in range(20)]
        assert [caller.recv(1) for caller in callers] == [b""] * 20


def test_leaving_closes_the_connections_that_are_open(line: SshTransport, door: Door, peer_port: ServeOne) -> None:
    left = threading.Event()

    def greet_and_stay(connection: socket.socket) -> None:
        connection.sendall(b"x")
        left.wait(10)

    with line.forward(door, peer_port(greet_and_stay)):
        caller = call(door)
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(1) == b"x"
    with caller:
        assert caller.recv(1) == b""
    left.set()


def test_early_callers_are_served_when_the_line_comes(line: SshTransport, patient_door: Door, web_port: int) -> None:
    with ThreadPoolExecutor(5) as pool:
        bodies = pool.map(lambda number: get(patient_door.port, f"/{number}"), range(5))
        with line.forward(patient_door, web_port):
            assert list(bodies) == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_between_two_lines_callers_wait(line: SshTransport, patient_door: Door, web_port: int) -> None:
    for number in range(3):
        with ThreadPoolExecutor(1) as pool:
            body = pool.submit(get, patient_door.port, f"/{number}")
            with line.forward(patient_door, web_port):
                assert body.result(10) == f"/{number}".encode()


def test_when_a_line_dies_its_connections_are_closed_and_the_next_one_takes_over_the_port(
    line: SshTransport, fragile_line: SshTransport, wire: Wire, patient_door: Door, web_port: int, peer_port: ServeOne
) -> None:
    def greet_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"x")
        connection.recv(1)

    with fragile_line.forward(patient_door, peer_port(greet_and_listen)), call(patient_door) as caller:
        assert caller.recv(1) == b"x"
        wire.cut()
        assert caller.recv(1) == b""
        with ThreadPoolExecutor(1) as pool:
            # The dead line is not left yet; the caller isn't lost on it, nor dials over and over.
            body = pool.submit(get, patient_door.port, "/after")
            used = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - used < 0.15
            with line.forward(patient_door, web_port):
                assert body.result(10) == b"/after"


def test_a_caller_whom_a_dying_line_does_not_connect_waits_for_the_next(
    line: SshTransport, fragile_line: SshTransport, wire: Wire, patient_door: Door, peer_port: ServeOne
) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"heard " + connection.recv(100))

    port = peer_port(answer)
    with fragile_line.forward(patient_door, port):
        wire.hold()
        with call(patient_door) as caller:
            caller.sendall(b"my words")
            assert not fragile_line.answers(0.1)
            wire.cut()
            until(lambda: not fragile_line.alive(), "the line is dead")
            with line.forward(patient_door, port):
                assert said(caller) == b"heard my words"


@pytest.mark.parametrize("then", ["the line is closed", "the line recovers"])
def test_a_caller_who_is_not_connected_yet_outlives_the_line_that_is_left(
    line: SshTransport, fragile_line: SshTransport, wire: Wire, patient_door: Door, web_port: int, then: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with fragile_line.forward(patient_door, web_port):
            wire.hold()
            body = pool.submit(get, patient_door.port, "/patience")
            assert not fragile_line.answers(0.1)
        with line.forward(patient_door, web_port):
            if then == "the line is closed":
                fragile_line.close()
            wire.let_go()
            assert body.result(10) == b"/patience"


def test_two_doors_lead_to_two_ports_over_one_line(line: SshTransport, web_port: int, peer_port: ServeOne) -> None:
    port = peer_port(lambda connection: connection.sendall(b"hello"))
    with transports.door(0) as one, transports.door(0) as other:
        with line.forward(one, web_port), line.forward(other, port):
            assert get(one.port, "/one") == b"/one"
            with call(other) as caller:
                assert said(caller) == b"hello"
        with line.forward(other, web_port):
            assert get(other.port, "/other") == b"/other"


def test_nobody_is_held_up_by_a_line_that_takes_nothing_any_more(
    fragile_line: SshTransport, wire: Wire, door: Door, peer_port: ServeOne
) -> None:
    left = threading.Event()

    def greet_and_read_nothing(connection: socket.socket) -> None:
        connection.sendall(b"x")
        left.wait(30)

    with contextlib.ExitStack() as calls:
        # So many, because what waits on each connection is limited (2 MiB), and the line itself holds several.
        ports = [peer_port(greet_and_read_nothing) for _ in range(8)]
        with fragile_line.forward(door, ports[0]):
            callers = [calls.enter_context(call(door)) for _ in ports]
            assert [caller.recv(1) for caller in callers] == [b"x"] * 8
            wire.hold()
            for caller in callers:
                caller.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    while True:
                        caller.send(bytes(100_000))
            began = time.monotonic()
            assert not fragile_line.answers(0.1)
        assert time.monotonic() - began < 5
        for caller in callers:
            caller.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # not all that it said was read
                assert caller.recv(1) == b""
    fragile_line.close()
    wire.cut()
    left.set()


def test_the_machine_answers_while_as_many_commands_as_it_takes_run_on_the_line(server: Server) -> None:
    done = server.home / "done-with-answering"
    command = ["sh", "-c", f"echo started; while [ ! -e {done.name} ]; do sleep 0.05; done"]
    with new_line(server) as line, ThreadPoolExecutor(10) as pool:
        assert line.answers(10)
        started: list[str] = []
        for _ in range(10):  # sshd takes no more on one line
            pool.submit(line.run, command, on_line=started.append)
        until(lambda: len(started) == 10, "all commands run", within_s=10)
        assert [line.answers(10) for _ in range(5)] == [True] * 5
        with ThreadPoolExecutor(8) as askers:
            assert list(askers.map(line.answers, [10.0] * 40)) == [True] * 40
        done.touch()
    done.unlink()


def test_a_line_on_which_nothing_passes_does_not_answer(fragile_line: SshTransport, wire: Wire) -> None:
    assert fragile_line.answers(10)
    wire.hold()
    assert not fragile_line.answers(0.1)
    assert fragile_line.alive()
    wire.cut()
    until(lambda: not fragile_line.alive(), "the line is dead")
    assert not fragile_line.answers(10)
