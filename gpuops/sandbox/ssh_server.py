"""The machine's ssh server: what OpenSSH's sshd is on a real one. Public keys only, the one user only."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import asyncssh

from gpuops.sandbox.processes import Processes

# How long the last output of a terminal is waited for after its command has ended.
_LAST_OUTPUT_S = 1.0


class SshServer:
    """Listens from `start` to `close`; commands are started by `processes` and see the disk as it is."""

    def __init__(self, processes: Processes, *, user: str, home: Path) -> None:
        self._processes = processes
        self._user = user
        self._home = home
        self._connections: set[Any] = set()
        self._listener: Any = None

    async def start(self, host: str, port: int, host_key: Path) -> None:
        """Raises OSError when the address is taken."""
        self._listener = await asyncssh.create_server(
            lambda: _Connection(self._user, self._home / ".ssh/authorized_keys", self._connections),
            host,
            port,
            server_host_keys=[str(host_key)],
            process_factory=self._serve_command,
            sftp_factory=lambda channel: _SftpServer(channel, self._home),
            # Commands speak in bytes, and their terminal edits its lines itself.
            encoding=None,
            line_editor=False,
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            agent_forwarding=False,
            # A machine that was stopped leaves its address in TIME_WAIT, which must not keep it from starting.
            reuse_address=True,
        )

    def close(self) -> None:
        if self._listener:
            self._listener.close()
        for connection in list(self._connections):
            connection.abort()

    async def _serve_command(self, process: Any) -> None:
        try:
            code = await (self._in_terminal(process) if process.term_type else self._with_pipes(process))
        except OSError as error:
            process.stderr.write(f"{error}\n".encode())
            code = 255
        if code >= 0:
            process.exit(code)
        else:
            process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))

    async def _with_pipes(self, process: Any) -> int:
        child = self._processes.start(
            _shell(process),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            environment=_connection_environment(process),
        )
        process.set_redirect_pid(child.pid)
        # The end of the output is sent by exit(), when both streams have ended: the one may outlive the other.
        await process.redirect(child.stdin, child.stdout, child.stderr, send_eof=False)
        code = await self._processes.exit_code(child)
        # As sshd does, stay until whatever inherited the output has closed it too.
        await process.stdout.drain()
        await process.stderr.drain()
        return code

    async def _in_terminal(self, process: Any) -> int:
        ours, theirs = os.openpty()
        width, height, pixel_width, pixel_height = process.term_size
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))
        environment = {"TERM": process.term_type, "SSH_TTY": os.ttyname(theirs)}
        child = self._processes.start(
            _shell(process),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            environment={**_connection_environment(process), **environment},
            terminal=True,
        )
        os.close(theirs)
        process.set_redirect_pid(child.pid)
        # When the client vanishes both ends of ours are closed, and the kernel sends SIGHUP to whoever is in front.
        await process.redirect(os.dup(ours), ours, send_eof=False)
        code = await self._processes.exit_code(child)
        # What still holds the terminal gets that SIGHUP too: unlike a pipe, sshd doesn't wait for it.
        with_deadline = asyncio.wait_for(process.stdout.drain(), _LAST_OUTPUT_S)
        await asyncio.gather(with_deadline, return_exceptions=True)
        return code


class _Connection(asyncssh.SSHServer):
    """One client: who may log in, and to where it may be forwarded."""

    def __init__(self, user: str, authorized_keys: Path, connections: set[Any]) -> None:
        self._user = user
        self._authorized_keys = authorized_keys
        self._connections = connections
        self._connection: Any = None

    def connection_made(self, connection: Any) -> None:
        self._connection = connection
        self._connections.add(connection)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        # Read anew for each login, as sshd does, and forgotten when the client tries another name.
        keys = None
        if username == self._user:
            try:
                keys = asyncssh.read_authorized_keys(str(self._authorized_keys))
            except (OSError, ValueError) as error:
                print(f"sshd: {self._authorized_keys}: {error}", flush=True)
        self._connection.set_authorized_keys(keys)
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


class _SftpServer(asyncssh.SFTPServer):
    """The same files as commands see, relative names starting at home."""

    def __init__(self, channel: Any, home: Path) -> None:
        super().__init__(channel)
        self._home = os.fsencode(home)

    def map_path(self, path: bytes) -> bytes:
        return path if path.startswith(b"/") else self._home + b"/" + path


def _shell(process: Any) -> list[str]:
    if process.command is None:
        return ["bash"]
    command = process.command
    return ["bash", "-c", command.decode() if isinstance(command, bytes) else command]


def _connection_environment(process: Any) -> dict[str, str]:
    """As sshd tells a command where it was called from."""
    peer, here = process.get_extra_info("peername"), process.get_extra_info("sockname")
    return {"SSH_CONNECTION": f"{peer[0]} {peer[1]} {here[0]} {here[1]}"}
