from __future__ import annotations

import http.server
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from gpuops.errors import PortInUse
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Wire, until

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


@pytest.fixture(scope="module")
def web_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
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


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        body: bytes = reply.read()
        return body


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def test_small_requests_are_quick(line: SshTransport, web_port: int) -> None:
    seconds = []
    with line.forward(web_port) as port:
        for number in range(50):
            started = time.perf_counter()
            assert get(port, f"/{number}") == f"/{number}".encode()
            seconds.append(time.perf_counter() - started)
    # Without TCP_NODELAY it is over 40 ms; the bound leaves room for a busy test machine.
    assert statistics.median(seconds) < 0.03


def test_connections_go_through_side_by_side(line: SshTransport, web_port: int) -> None:
    bodies: list[bytes] = []
    with line.forward(web_port) as port:
        threads = [threading.Thread(target=lambda: bodies.append(get(port, "/big"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bodies == [b"/big" * 100_000] * 8


def test_only_this_computer_can_use_the_port(line: SshTransport, web_port: int) -> None:
    with line.forward(web_port) as port:
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.2", port))  # free, so it is not 0.0.0.0 that we listen on
        assert get(port, "/") == b"/"


def test_the_asked_for_port_is_used_and_free_again_afterwards(line: SshTransport, web_port: int) -> None:
    with line.forward(web_port) as port:
        assert get(port, "/first") == b"/first"
    assert refuses(port)
    with line.forward(web_port, port) as again:
        assert again == port
        assert get(port, "/again") == b"/again"


def test_whoever_has_finished_speaking_may_still_listen(line: SshTransport, peer_port: ServeOne) -> None:
    def answer_after_the_end(connection: socket.socket) -> None:
        heard = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.sendall(b"heard %d" % len(heard))

    with line.forward(peer_port(answer_after_the_end)) as port, socket.create_connection(("127.0.0.1", port)) as caller:
        caller.settimeout(10)
        caller.sendall(bytes(1_000_000))
        caller.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: caller.recv(100), b"")) == b"heard 1000000"


def test_the_machines_end_reaches_the_caller_who_may_still_speak(line: SshTransport, peer_port: ServeOne) -> None:
    heard: list[bytes] = []

    def speak_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        heard.append(b"".join(iter(lambda: connection.recv(100), b"")))

    with line.forward(peer_port(speak_first)) as port, socket.create_connection(("127.0.0.1", port)) as caller:
        caller.settimeout(10)
        assert b"".join(iter(lambda: caller.recv(100), b"")) == b"bye"
        caller.sendall(b"one more thing")
        caller.shutdown(socket.SHUT_WR)
        until(lambda: heard, "the machine heard it")
    assert heard == [b"one more thing"]


def test_a_port_on_which_nobody_listens_there_closes_the_connection(line: SshTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed_port = probe.getsockname()[1]
    with line.forward(closed_port) as port, socket.create_connection(("127.0.0.1", port)) as caller:
        caller.settimeout(10)
        assert caller.recv(1) == b""


def test_leaving_closes_the_connections_that_are_open(line: SshTransport, peer_port: ServeOne) -> None:
    connected, left = threading.Event(), threading.Event()

    def hold(connection: socket.socket) -> None:
        connected.set()
        left.wait(10)

    with line.forward(peer_port(hold)) as port:
        caller = socket.create_connection(("127.0.0.1", port))
        caller.settimeout(10)
        caller.shutdown(socket.SHUT_WR)
        assert connected.wait(10)
    with caller:
        assert caller.recv(1) == b""
    left.set()


def test_a_taken_port_says_which_one_is_free(line: SshTransport, web_port: int) -> None:
    with pytest.raises(PortInUse, match=f"Port {web_port} is taken") as caught, line.forward(web_port, web_port):
        pass
    assert "Jupyter" in caught.value.what
    proposed = int(caught.value.next_step.split("--port ")[1].split(".")[0])
    assert proposed > web_port
    socket.create_server(("127.0.0.1", proposed)).close()


def test_a_broken_line_closes_the_port_and_its_connections(
    fragile_line: SshTransport, wire: Wire, peer_port: ServeOne
) -> None:
    def greet_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"x")
        connection.recv(1)

    with (
        fragile_line.forward(peer_port(greet_and_listen)) as port,
        socket.create_connection(("127.0.0.1", port)) as caller,
    ):
        caller.settimeout(10)
        assert caller.recv(1) == b"x"
        wire.cut()
        assert caller.recv(1) == b""
        until(lambda: refuses(port), "the port is closed")
