"""Sandbox machines for the tests: real processes in temporary folders, started as the cloud starts them."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import paramiko

from gpuops import machine as values
from gpuops.render import render
from gpuops.transports.ssh import SshTransport

USER = "ubuntu"
PATIENCE_S = 15.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value; asked every 20 ms."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)
    return value


@dataclass
class Key:
    """An Ed25519 key pair in files, as `ssh-keygen` writes them."""

    path: Path
    private: str = field(init=False)
    public: str = field(init=False)

    def __post_init__(self) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519", comment=self.path.name)
        self.private, self.public = key.export_private_key().decode(), key.export_public_key().decode().strip()
        self.path.touch(mode=0o600)
        self.path.write_text(self.private)


class Machine:
    """One machine and what its owner holds: the client's key, and the host key that the user data injects."""

    def __init__(self, folder: Path, **config: Any) -> None:
        folder.mkdir(parents=True)
        self.folder = folder / "machine"
        self.folder.mkdir()
        self.client_key = Key(folder / "client_key")
        self.host_key = Key(folder / "host_key")
        # Linux answers on all of 127.0.0.0/8; this part of it is neither the sandbox cloud's nor the distributions'.
        linux = sys.platform.startswith("linux")
        self.host = f"127.{random.randrange(130, 250)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        if not linux:
            self.host = "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        self.config = {"python": sys.executable, "user_data": self.first_boot(), **config}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "disk/home" / USER

    @property
    def console(self) -> str:
        log = self.folder / "console.log"
        return log.read_text() if log.exists() else ""

    def first_boot(self, deadline_s: float = 3600, poweroff: str = "sudo systemctl poweroff") -> str:
        """The template that AWS's machines get too."""
        return render(
            "first-boot.yaml.j2",
            name="test",
            format=1,
            deadline_s=deadline_s,
            poweroff=poweroff,
            host_private_key=self.host_key.private,
            host_public_key=self.host_key.public,
            authorized_keys=[self.client_key.public],
        )

    def start(self, **config: Any) -> Machine:
        """Switch it on; what is given changes the machine's configuration from now on."""
        self.config |= config
        user_data = base64.b64encode(self.config["user_data"].encode()).decode()
        written = {"format": 1, "instance_id": "i-0123456789abcdef0", "host": self.host, "port": self.port}
        (self.folder / "config.json").write_text(
            json.dumps({**written, "user": USER, **self.config, "user_data": user_data})
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuops.sandbox.machine", str(self.folder)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "AWS_SECRET_ACCESS_KEY": "secret", "GPUOPS_NAME": "secret", "SSH_AUTH_SOCK": "/secret"},
        )
        return self

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def wait_for_ssh(self) -> Machine:
        assert self.process
        until(lambda: self.answers() or self.process.poll() is not None, f"ssh answers; console:\n{self.console}")
        assert self.process.poll() is None, self.console
        return self

    def ended(self) -> int:
        """The exit code, once the machine is off."""
        assert self.process and self.process.stdin
        exit_code = self.process.wait(PATIENCE_S)
        self.process.stdin.close()
        return exit_code

    def cut_power(self) -> None:
        assert self.process
        self.process.kill()
        self.ended()
        until(lambda: not self.answers(), "what ran on it is gone")

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    @contextmanager
    def connect(self, **arguments: Any) -> Iterator[paramiko.SSHClient]:
        """A client that knows the injected host key, and no other."""
        client = paramiko.SSHClient()
        kind, key = self.host_key.public.split()[:2]
        host = f"[{self.host}]:{self.port}"
        client.get_host_keys().add(host, kind, paramiko.Ed25519Key(data=base64.b64decode(key)))
        arguments = {"username": USER, "key_filename": str(self.client_key.path), **arguments}
        try:
            client.connect(
                self.host, self.port, allow_agent=False, look_for_keys=False, timeout=PATIENCE_S, **arguments
            )
            yield client
        finally:
            client.close()

    def run(self, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """What the command printed and its exit code, over a connection of its own."""
        with self.connect() as client:
            return run(client, command, stdin)

    def line(self, *, host_key: str = "", identity_file: Path | None = None) -> SshTransport:
        """A line as gpuops itself opens it, by default with the injected host key and the client's own."""
        seen = values.Machine(
            id=self.folder.name,
            name="fast-ai",
            provider="aws",
            region="here",
            zone=None,
            type="box",
            state=values.State.RUNNING,
            ssh=values.Address(host=self.host, user=USER, port=self.port),
            host_key=host_key or self.host_key.public,
        )
        identity_file = identity_file or self.client_key.path
        return SshTransport.connect(seen, identity_file=identity_file, connect_timeout_s=PATIENCE_S)

    def openssh(self, program: str) -> list[str]:
        """`ssh`, `scp` … with the options that let it in, and nothing of the person's own configuration."""
        known_hosts = self.folder.parent / "known_hosts"
        known_hosts.write_text(f"[{self.host}]:{self.port} {self.host_key.public}\n")
        options = {
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": known_hosts,
            "IdentityFile": self.client_key.path,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "Port": self.port,
        }
        return [program, "-F", os.devnull, *(f"-o{name}={value}" for name, value in options.items())]


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    to, out, err = client.exec_command(command, timeout=PATIENCE_S)
    to.write(stdin)
    to.channel.shutdown_write()
    stdout, stderr = out.read(), err.read()
    return subprocess.CompletedProcess(command, out.channel.recv_exit_status(), stdout, stderr)


@contextmanager
def machine_in(folder: Path, **config: Any) -> Iterator[Machine]:
    """A machine that is not on yet, and is off afterwards."""
    machine = Machine(folder / "a" / "folder" / ("with-a-long-name-" * 6), **config)
    try:
        yield machine
    finally:
        if machine.process and machine.process.poll() is None:
            machine.stop()
        shutil.rmtree(machine.folder, ignore_errors=True)


def namespaces_are_allowed() -> bool:
    probe = "import sys; from gpuops.sandbox import namespaces; sys.exit(not namespaces.are_allowed())"
    return subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[2]).returncode == 0
