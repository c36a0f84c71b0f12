"""A line over ssh: each command on a channel of its own; files go through `cat` and `tail`, without SFTP."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import posixpath
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import paramiko

from gpuops.errors import DiskFull, RemoteFileMissing
from gpuops.machine import Machine
from gpuops.openssh import Access
from gpuops.transports import Result, tunnel
from gpuops.transports.command import Command
from gpuops.transports.door import Door
from gpuops.transports.handshake import shake_hands

_DIRECT = Access()
_MISSING = 3
_READ = f'[ -e "$1" ] || exit {_MISSING}; exec tail -c "+$2" "$1"'
# A broken line looks to `cat` like the end of the data, so the size decides whether the file is whole.
_WRITE = """
export LC_ALL=C
path=$1 temporary=$2 mode=$3 size=$4
trap 'rm -f "$temporary"' EXIT
trap '' PIPE  # nobody may be left to hear the messages; the temporary file has to go all the same
mkdir -p "$(dirname "$path")" || exit 1
if [ -d "$path" ]; then echo "$path: Is a directory" >&2; exit 1; fi
(umask 077; cat >"$temporary") || exit 1
[ "$(wc -c <"$temporary")" -eq "$size" ] || { echo "$path: the data did not arrive whole" >&2; exit 1; }
chmod "$mode" "$temporary" || exit 1
sync "$temporary" 2>/dev/null
mv -f "$temporary" "$path"
"""


class SshTransport:
    """An open ssh line to one machine; a context manager. Its commands may run side by side in several threads."""

    def __init__(self, machine: Machine, line: paramiko.Transport) -> None:
        self._machine = machine
        self._line = line

    @classmethod
    def connect(
        cls, machine: Machine, *, identity_file: Path, access: Access = _DIRECT, connect_timeout_s: float
    ) -> SshTransport:
        """Raises `MachineUnreachable` (worth another try while it boots), `HostKeyChanged`, `KeyRefused`."""
        line = shake_hands(machine, identity_file=identity_file, access=access, connect_timeout_s=connect_timeout_s)
        return cls(machine, line)

    def __enter__(self) -> SshTransport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._line.close()

    def alive(self) -> bool:
        return self._line.is_active()

    def answers(self, timeout_s: float) -> bool:
        answered = threading.Event()

        def ask() -> None:
            with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
                self._line.global_request("keepalive@openssh.com")
                answered.set()

        # On a line that takes nothing any more even asking has no end but the line's.
        threading.Thread(target=ask, name="ssh-answers", daemon=True).start()
        return answered.wait(timeout_s) and self._line.is_active()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        check: bool = True,
        timeout_s: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        lines = _Lines(on_line)
        stdout = bytearray()
        source = None if stdin is None else io.BytesIO(stdin)
        with self._command(argv, source, timeout_s) as command:
            for chunk in command.stdout():
                stdout += chunk
                lines.feed(chunk)
            lines.end()
            exit_code = command.wait()
        result = _result(argv, exit_code, stdout, command.stderr)
        return result.checked(self._machine.name) if check else result

    def pipe(
        self, argv: Sequence[str], *, source: BinaryIO | None = None, sink: BinaryIO | None = None, check: bool = True
    ) -> Result:
        stdout = io.BytesIO()
        into = stdout if sink is None else sink
        with self._command(argv, source) as command:
            for chunk in command.stdout():
                into.write(chunk)
            exit_code = command.wait()
        result = _result(argv, exit_code, stdout.getvalue(), command.stderr)
        return result.checked(self._machine.name) if check else result

    def read(self, path: str, offset: int = 0) -> Iterator[bytes]:
        # One stream, as fast as the line: SFTP would ask for it block by block.
        with self._command(["sh", "-c", _READ, "sh", _from_home(path), str(offset + 1)]) as command:
            yield from command.stdout()
            exit_code = command.wait()
        if exit_code == _MISSING:
            raise RemoteFileMissing(
                f"{self._machine.name} has no file {path}.",
                next_step=f"See what is there: gpuops ssh {self._machine.name} ls -la {posixpath.dirname(path) or '.'}",
            )
        # The person sees what was asked for, not the script that did it; here and below.
        _result(["read", path], exit_code, b"", command.stderr).checked(self._machine.name)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        target = _from_home(path)
        folder, name = posixpath.split(target)
        temporary = posixpath.join(folder, f".{name}.{secrets.token_hex(6)}")
        argv = ["sh", "-c", _WRITE, "sh", target, temporary, f"{mode:o}", str(len(data))]
        result = self.run(argv, stdin=data, check=False)
        if "No space left on device" in result.stderr or "Disk quota exceeded" in result.stderr:
            raise DiskFull(
                f"The disk of {self._machine.name} has no room for the {len(data):,} bytes of {path}.",
                left_behind=f"{path} is as it was before.",
                next_step=f"See what fills it: gpuops ssh {self._machine.name} 'df -h .; du -xh | sort -h | tail'",
            )
        dataclasses.replace(result, argv=("write", path)).checked(self._machine.name)

    def forward(self, door: Door, remote_port: int) -> AbstractContextManager[None]:
        return tunnel.forward(self._line, door, remote_port)

    def _command(self, argv: Sequence[str], source: BinaryIO | None = None, timeout_s: float | None = None) -> Command:
        return Command(self._machine, self._line, argv, source=source, timeout_s=timeout_s)


class _Lines:
    """Cuts a stream of bytes into lines of text, as they become whole."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._unfinished = b""

    def feed(self, chunk: bytes) -> None:
        if self._on_line is None:
            return
        *whole, self._unfinished = (self._unfinished + chunk).split(b"\n")
        for line in whole:
            self._on_line(line.decode("utf-8", "replace"))

    def end(self) -> None:
        if self._on_line is not None and self._unfinished:
            self._on_line(self._unfinished.decode("utf-8", "replace"))


def _result(argv: Sequence[str], exit_code: int, stdout: bytes | bytearray, stderr: bytes | bytearray) -> Result:
    return Result(
        argv=tuple(argv),
        exit_code=exit_code,
        stdout=stdout.decode("utf-8", "replace"),
        stderr=stderr.decode("utf-8", "replace"),
    )


def _from_home(path: str) -> str:
    # Commands start in the home folder. "./" keeps a name that begins with "-" from being an option.
    return path if path.startswith("/") else f"./{path.removeprefix('~/')}"
