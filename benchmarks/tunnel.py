"""How long small requests take through a tunnel, and how fast a big one goes, beside OpenSSH's own and an untuned one.

    python benchmarks/tunnel.py [--requests 200] [--bulk-mb 1000]

The server is OpenSSH's sshd on this computer. Every tunnel, and the web server behind it, is a process of its own; the
requests, each a new connection, go to all of them by turns, in a random order each time, so that whatever else the
computer is doing, what is left of the request before included, meets them all.
The untuned tunnel is paramiko's as its documentation has it, with no socket option set. Prints JSON, with hardware and
versions.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import multiprocessing
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import paramiko
from computer import hardware

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpuops import transports
from tests.transports.servers import Server, serving

_WARM_UP_REQUESTS = 20
_CHUNK = bytes(2**20)
_TARGET_MS = 4.0
_TARGET_RATIO = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure tunnels: small requests, and a big one each way.")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--bulk-mb", type=int, default=1000)
    options = parser.parse_args()

    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="gpuops-tunnel.")))
        server = running.enter_context(serving("openssh", folder))
        web_port = running.enter_context(_process(_serve_web))
        ports = {
            "no tunnel": web_port,
            "gpuops": running.enter_context(_process(_lead_ours, server, web_port)),
            "ssh -N -L": running.enter_context(_openssh(server, web_port, folder, command=None)),
            "ssh -L, a command running": running.enter_context(_openssh(server, web_port, folder, command="cat")),
            "paramiko, untuned": running.enter_context(_process(_lead_untuned, server, web_port)),
        }
        seconds = _small_requests(ports, options.requests)
        bulk = {name: _bulk(ports[name], options.bulk_mb) for name in ("gpuops", "ssh -N -L")}
    medians = {name: statistics.median(times) * 1000 for name, times in seconds.items()}
    openssh = min(median for name, median in medians.items() if name.startswith("ssh"))
    report = {
        "what": "milliseconds of one small HTTP request on a new connection, all taking turns after "
        f"{_WARM_UP_REQUESTS} warm-up requests each; MB (10^6 bytes) per second of one big transfer each way",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": _versions(),
        "requests": options.requests,
        "median_ms": _rounded(medians),
        "p95_ms": _rounded({name: statistics.quantiles(times, n=20)[-1] * 1000 for name, times in seconds.items()}),
        "gpuops_to_the_faster_ssh": round(medians["gpuops"] / openssh, 2),
        "targets": {"median_ms": _TARGET_MS, "gpuops_to_the_faster_ssh": _TARGET_RATIO},
        "bulk_mb": options.bulk_mb,
        "bulk_mb_per_s": bulk,
    }
    print(json.dumps(report, indent=1))


def _small_requests(ports: Mapping[str, int], requests: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ports}
    shuffle = random.Random(1).sample
    for number in range(_WARM_UP_REQUESTS + requests):
        for name in shuffle(list(ports), len(ports)):
            began = time.perf_counter()
            _get(ports[name], f"/{number}")
            if number >= _WARM_UP_REQUESTS:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _get(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    if not answer.endswith(path.encode()):
        raise SystemExit(f"The answer to {path} is {answer!r}.")


def _bulk(port: int, megabytes: int) -> dict[str, float]:
    size = megabytes * 10**6
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET /bytes/{size} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        got = sum(iter(lambda: len(connection.recv(2**20)), 0))
    down_s = time.perf_counter() - began
    if got != size:
        raise SystemExit(f"{got} bytes of {size} came down.")
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"POST /bytes HTTP/1.0\r\nContent-Length: {size}\r\n\r\n".encode())
        for left in range(size, 0, -len(_CHUNK)):
            connection.sendall(_CHUNK[:left])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    up_s = time.perf_counter() - began
    if not answer.endswith(str(size).encode()):
        raise SystemExit(f"The answer to {size} bytes is {answer!r}.")
    return {"down": round(megabytes / down_s, 1), "up": round(megabytes / up_s, 1)}


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self.path.startswith("/bytes/"):
            self._answer(self.path.encode())
            return
        self._answer(b"")
        for left in range(int(self.path.rpartition("/")[2]), 0, -len(_CHUNK)):
            self.wfile.write(_CHUNK[:left])

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        size = 0
        while size < left and (data := self.rfile.read1(2**20)):
            size += len(data)
        self._answer(str(size).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _serve_web(ready: Connection) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        ready.send(server.server_port)
        server.serve_forever()


def _lead_ours(ready: Connection, server: Server, remote_port: int) -> None:
    with (
        transports.door(0) as door,
        transports.open(server.machine(), identity_file=server.client_key) as line,
        line.forward(door, remote_port),
    ):
        ready.send(door.port)
        threading.Event().wait()


def _lead_untuned(ready: Connection, server: Server, remote_port: int) -> None:
    line = paramiko.Transport((server.address.host, server.address.port))
    line.connect(username=server.address.user, pkey=paramiko.Ed25519Key.from_private_key_file(str(server.client_key)))

    def carry(connection: socket.socket) -> None:
        channel = line.open_channel("direct-tcpip", ("127.0.0.1", remote_port), connection.getpeername())
        bringing = threading.Thread(target=bring, args=(channel, connection))
        bringing.start()
        while data := connection.recv(65536):
            channel.sendall(data)
        channel.shutdown_write()
        bringing.join()
        channel.close()
        connection.close()

    def bring(channel: paramiko.Channel, connection: socket.socket) -> None:
        while data := channel.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=carry, args=(connection,)).start()


@contextlib.contextmanager
def _process(serve: Callable[..., None], *arguments: object) -> Iterator[int]:
    """Runs it in a process of its own; gives the port that it says."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def _openssh(server: Server, remote_port: int, folder: Path, *, command: str | None) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    known_hosts = folder / "known_hosts"
    host = f"[{server.address.host}]:{server.address.port}"
    known_hosts.write_text(f"{host} {server.public_keys['ssh-ed25519']}\n")
    argv = [
        *("ssh", "-F", "none", "-i", str(server.client_key), "-p", str(server.address.port)),
        *("-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes"),
        *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"),
        *("-L", f"{port}:127.0.0.1:{remote_port}"),
        *([] if command else ["-N"]),
        f"{server.address.user}@{server.address.host}",
        *([command] if command else []),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    _get(port, "/")
                    break
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


def _rounded(milliseconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(number, 2) for name, number in milliseconds.items()}


def _versions() -> dict[str, str]:
    openssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0]
    names: Sequence[str] = ("gpuops", "paramiko", "cryptography")
    return {"python": platform.python_version(), "openssh": openssh} | {name: version(name) for name in names}


if __name__ == "__main__":
    main()
