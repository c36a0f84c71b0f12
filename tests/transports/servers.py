"""Real ssh servers for the tests: asyncssh's, and OpenSSH's sshd where it is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gpuops import host_keys
from gpuops.machine import Address, Machine, State

SSHD = Path("/usr/sbin/sshd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A running ssh server and what a test needs to know about it: it lets in each of `client_keys`, one of a type."""

    kind: str
    address: Address
    home: Path
    public_keys: dict[str, str]
    client_key: Path
    client_keys: dict[str, Path]
    log: Path

    def machine(self, **changes: object) -> Machine:
        machine = Machine(
            id="i-1",
            name="fastai",
            provider="own",
            region="here",
            zone=None,
            type="box",
            state=State.RUNNING,
            ssh=self.address,
            price_usd_per_hour=0.9,
            host_key=self.public_keys["ssh-ed25519"],
        )
        return dataclasses.replace(machine, **changes)  # type: ignore[arg-type]


def why_not(kind: str) -> str:
    """Why such a server can't run here; empty where it can."""
    if kind == "asyncssh":
        return ""
    if not SSHD.exists():
        return f"{SSHD} is not installed"
    if _account() is None or _account_shell() != "bash":
        return "sshd runs commands in the user's login shell, and it is not bash"
    if os.getuid() == 0:
        try:
            Path("/run/sshd").mkdir(exist_ok=True)
        except OSError as error:
            return f"sshd as root needs /run/sshd: {error}"
    return ""


@contextlib.contextmanager
def serving(kind: str, folder: Path, *, address: Address | None = None, admits: Sequence[str] = ()) -> Iterator[Server]:
    """At this address, or at one that is free; `admits` are public lines of further keys."""
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    host_key_files, public_keys = _new_keys(folder / "host")
    client_keys, admitted = _new_keys(folder / "client")
    authorized = folder / "authorized_keys"
    authorized.write_text("".join(f"{public_line}\n" for public_line in (*admitted.values(), *admits)))
    log = folder / "log"
    address = address or _free_address()
    program = _asyncssh if kind == "asyncssh" else _openssh
    argv = program(folder, address, home, list(host_key_files.values()), authorized)
    with log.open("wb") as log_file, subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log_file) as process:
        try:
            until(lambda: _accepts(address) or process.poll() is not None, "the server listens", within_s=15)
            assert process.poll() is None, log.read_text()
            yield Server(
                kind=kind,
                address=address,
                home=home,
                public_keys=public_keys,
                client_key=client_keys["ssh-ed25519"],
                client_keys=client_keys,
                log=log,
            )
        finally:
            process.terminate()


class Wire:
    """A TCP relay in front of an address, which a test can cut, or hold: then nothing passes, and nobody is told."""

    def __init__(self, address: Address) -> None:
        self._target = (address.host, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._passes = threading.Event()
        self._passes.set()
        self.address = dataclasses.replace(address, host="127.0.0.1", port=self._listener.getsockname()[1])
        threading.Thread(target=self._relay, daemon=True).start()

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.let_go()

    def hold(self) -> None:
        self._passes.clear()

    def let_go(self) -> None:
        self._passes.set()

    def _relay(self) -> None:
        near, _ = self._listener.accept()
        self._listener.close()
        with near, socket.create_connection(self._target) as far:
            self._ends += [near, far]
            while True:
                for end in select.select([near, far], [], [])[0]:
                    self._passes.wait()
                    try:
                        data = end.recv(65536)
                        (far if end is near else near).sendall(data)
                    except OSError:
                        return
                    if not data:
                        return


def until(condition: Callable[[], object], what: str, *, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """True when the process has ended, whether or not its parent has noticed."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip()[:1] in {"", "Z"}


def _new_keys(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """A private key's file and its public line, of each type."""
    folder.mkdir(parents=True)
    ed25519 = host_keys.generate()
    texts = [(ed25519.private_text, ed25519.public_line)]
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        texts.append((private.decode(), public.decode()))
    files, public_lines = {}, {}
    for private_text, public_line in texts:
        key_type = public_line.split()[0]
        files[key_type], public_lines[key_type] = folder / key_type, public_line
        files[key_type].touch(mode=0o600)
        files[key_type].write_text(private_text)
        files[key_type].with_name(f"{key_type}.pub").write_text(f"{public_line}\n")
    return files, public_lines


def _free_address() -> Address:
    host = f"127.77.{random.randrange(256)}.{random.randrange(1, 255)}" if sys.platform == "linux" else "127.0.0.1"
    with socket.create_server((host, 0)) as probe:
        account = _account()
        return Address(host=host, port=probe.getsockname()[1], user=account.pw_name if account else "tester")


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _account_shell() -> str:
    account = _account()
    return Path(account.pw_shell).name if account else ""


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError:
        return False
    return True


def _openssh(folder: Path, address: Address, home: Path, key_files: list[Path], authorized: Path) -> list[str]:
    # sshd starts a command in the account's own home folder; bash reads this file first and goes where the tests play.
    start = home / ".bashrc"
    start.write_text('unset BASH_ENV; cd "$HOME"\n')
    config = folder / "sshd_config"
    config.write_text(
        "\n".join(
            [
                f"ListenAddress {address.host}:{address.port}",
                *(f"HostKey {file}" for file in key_files),
                f"AuthorizedKeysFile {authorized}",
                f"SetEnv HOME={home} BASH_ENV={start} PATH={home}/bin:{os.environ['PATH']}",
                "UsePAM no",
                "StrictModes no",
                "PasswordAuthentication no",
                "PermitRootLogin yes",
                "PidFile none",
                "LogLevel VERBOSE",
                "MaxStartups 100",
            ]
        )
    )
    return [str(SSHD), "-D", "-e", "-f", str(config)]


def _asyncssh(folder: Path, address: Address, home: Path, key_files: list[Path], authorized: Path) -> list[str]:
    options = {
        "host": address.host,
        "port": address.port,
        "home": str(home),
        "server_host_keys": [str(file) for file in key_files],
        "authorized_client_keys": str(authorized),
    }
    return [sys.executable, str(Path(__file__).with_name("asyncssh_server.py")), json.dumps(options)]
