"""The machine's ssh server: what OpenSSH's sshd is on a real one. Public keys only, the one user only."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import asyncssh

from gpuops.sandbox import introductions
from gpuops.sandbox.processes import Processes

# How long the last output of a terminal is waited for after its command has ended.
_LAST_OUTPUT_S = 1.0

_CHUNK = 1 << 16


class SshServer:
    """Listens from `start` to `close`; commands are started by `processes` and see the disk as it is.

    `machine` is the machine's folder, where the vendor says whom else to let in for a moment.
    """

    def __init__(self, processes: Processes, *, user: str, home: Path, machine: Path) -> None:
        self._processes = processes
        self._user = user
        self._home = home
        self._machine = machine
        self._host_key = Path()
        self._connections: set[Any] = set()
        self._listener: Any = None

    async def start(self, host: str, port: int, host_key: Path) -> None:
        """Raises OSError when the address is taken."""
        self._host_key = host_key
        self._listener = await asyncssh.create_server(
            lambda: _Connection(self._user, self._admitted, self._connections),
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

    def reload(self) -> None:
        """Read the host key anew, for connections from now on; those that are open go on."""
        if self._listener:
            self._listener.update(server_host_keys=[str(self._host_key)])

    def close(self) -> None:
        if self._listener:
            self._listener.close()
        for connection in list(self._connections):
            connection.abort()

    def _admitted(self) -> Any:
        """The keys that may come in now, read anew for each login, as sshd does."""
        path = self._home / ".ssh/authorized_keys"
        try:
            own = path.read_text() if path.exists() else ""
            introduced = introductions.keys(self._machine, user=self._user, now=time.time())
            return asyncssh.import_authorized_keys("\n".join([own, *introduced]))
        except (OSError, ValueError) as error:
            print(f"sshd: {path}: {error}", flush=True)
            return None

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
        await process.wait_closed()

    async def _with_pipes(self, process: Any) -> int:
        child = self._processes.start(
            _shell(process),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            environment=_connection_environment(process),
        )
        assert child.stdin
        # The end of the output is sent by exit(), when both streams have ended: the one may outlive the other.
        await process.redirect(stdout=child.stdout, stderr=child.stderr, send_eof=False)
        code = await self._ended(child, _feed(process, child, child.stdin))
        # As sshd does, stay until whatever inherited the output has closed it too.
        await process.stdout.drain()
        await process.stderr.drain()
        return code

    async def _in_terminal(self, process: Any) -> int:
        ours, theirs = os.openpty()
        _set_size(ours, process.term_size)
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
        # When the client vanishes both of these are closed, and the kernel sends SIGHUP to whoever is in front.
        keyboard = os.fdopen(os.dup(ours), "wb", buffering=0)
        await process.redirect(stdout=ours, send_eof=False)
        code = await self._ended(child, _feed(process, child, keyboard))
        # What still holds the terminal gets that SIGHUP too: unlike a pipe, sshd doesn't wait for it.
        with_deadline = asyncio.wait_for(process.stdout.drain(), _LAST_OUTPUT_S)
        await asyncio.gather(with_deadline, return_exceptions=True)
        return code

    async def _ended(self, child: subprocess.Popen[bytes], feeding: Coroutine[Any, Any, None]) -> int:
        """The child's exit code, once it has ended; until then it is fed."""
        feeder = asyncio.ensure_future(feeding)
        try:
            return await self._processes.exit_code(child)
        finally:
            feeder.cancel()


async def _feed(process: Any, child: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
    """Pass on what the client types, sends by signal, and does to its window.

    Not by `process.redirect`: asyncssh 2.24 then writes while asyncio's pipe is in the middle of telling it to, and the
    pipe is closed over the last of the input (1 MB into `cat`, and up to 80 KB of it were lost).
    """
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await process.stdin.read(_CHUNK)
            except asyncssh.TerminalSizeChanged as changed:
                _set_size(pipe.fileno(), changed.term_size)
            except asyncssh.SignalReceived as received:
                with suppress(AttributeError, ProcessLookupError):
                    os.killpg(child.pid, getattr(signal, f"SIG{received.signal}"))
            except asyncssh.BreakReceived:
                pass
            else:
                if not data:
                    return
                writer.write(data)
                await writer.drain()
    except (OSError, asyncssh.Error):
        pass  # The command reads no further, or the client is gone.
    finally:
        writer.close()


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))


class _Connection(asyncssh.SSHServer):
    """One client: who may log in, and to where it may be forwarded."""

    def __init__(self, user: str, admitted: Callable[[], Any], connections: set[Any]) -> None:
        self._user = user
        self._admitted = admitted
        self._connections = connections
        self._connection: Any = None

    def connection_made(self, connection: Any) -> None:
        self._connection = connection
        self._connections.add(connection)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        # Forgotten when the client tries another name.
        self._connection.set_authorized_keys(self._admitted() if username == self._user else None)
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

    def exit(self) -> None:
        # asyncssh 2.24 ends an SFTP session without an exit status, which OpenSSH's scp takes for a failure.
        self.channel.exit(0)


def _shell(process: Any) -> list[str]:
    if process.command is None:
        return ["bash"]
    command = process.command
    return ["bash", "-c", command.decode() if isinstance(command, bytes) else command]


def _connection_environment(process: Any) -> dict[str, str]:
    """As sshd tells a command where it was called from."""
    peer, here = process.get_extra_info("peername"), process.get_extra_info("sockname")
    return {"SSH_CONNECTION": f"{peer[0]} {peer[1]} {here[0]} {here[1]}"}
