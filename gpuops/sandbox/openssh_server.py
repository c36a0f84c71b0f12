"""OpenSSH's own sshd in the role of `ssh_server.py`, where it is installed: the suite asks the same of both.

It runs as the machine's user and can let in nobody else: in the machine's namespaces that is the configured user,
without them it must be the one who runs the sandbox.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from gpuops.sandbox import introductions
from gpuops.sandbox.processes import Processes

_POLL_S = 0.02


class OpensshServer:
    """Listens from `start` until the machine's processes are killed.

    `machine` is the machine's folder, where the vendor says whom else to let in for a moment.
    """

    def __init__(self, processes: Processes, *, user: str, home: Path, machine: Path) -> None:
        self._processes = processes
        self._user = user
        self._home = home
        self._machine = machine
        self._server: subprocess.Popen[bytes] | None = None
        self._introducing: asyncio.Future[None] | None = None

    async def start(self, host: str, port: int, host_key: Path) -> None:
        """Return when it listens. Raises OSError when it can't."""
        sshd = shutil.which("sshd", path=os.pathsep.join(("/usr/sbin", "/usr/local/sbin", os.defpath)))
        if sshd is None:
            raise FileNotFoundError("sshd is not installed.")
        if (me := getpass.getuser()) != self._user:
            raise PermissionError(f"sshd run by {me} can't let in {self._user}.")
        config, introduced = host_key.parent / "sshd_config", host_key.parent / "introduced_keys"
        environment = " ".join(f'{name}="{value}"' for name, value in self._processes.environment.items())
        config.write_text(
            f"ListenAddress {host}:{port}\n"
            f'HostKey "{host_key}"\n'
            f'AuthorizedKeysFile "{self._home}/.ssh/authorized_keys" "{introduced}"\n'
            f"AllowUsers {self._user}\n"
            f"SetEnv {environment}\n"
            "AuthenticationMethods publickey\n"
            "PermitRootLogin no\n"
            # The folders above the home are the computer's, and may be anybody's.
            "StrictModes no\n"
            "UsePAM no\n"
            "PrintMotd no\n"
            "PidFile none\n"
            "Subsystem sftp internal-sftp\n"
        )
        self._introducing = asyncio.ensure_future(self._introduce(introduced))
        server = self._server = self._processes.start([sshd, "-D", "-e", "-f", str(config)])
        while not await _listens(host, port):
            if server.returncode is not None:
                raise OSError(f"sshd ended with {server.returncode}.")
            await asyncio.sleep(_POLL_S)

    def reload(self) -> None:
        """Read the host key anew, for connections from now on; those that are open go on."""
        if self._server:
            os.kill(self._server.pid, signal.SIGHUP)

    async def _introduce(self, introduced: Path) -> None:
        """Keep the file of those whom the vendor introduces: a command that sshd asked would have to be root's."""
        while True:
            keys = introductions.keys(self._machine, user=self._user, now=time.time())
            text = "".join(f"{key}\n" for key in keys)
            if not introduced.exists() or introduced.read_text() != text:
                introduced.write_text(text)
            await asyncio.sleep(_POLL_S)

    def close(self) -> None:
        """Nothing to do: sshd and its connections are processes of the machine."""


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionError:
        return False
    writer.close()
    return True
