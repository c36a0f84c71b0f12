"""An open line to one machine: run, read, write, forward. One protocol; `open` is the only place that names ssh."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from gpuops.errors import RemoteCommandFailed
from gpuops.machine import Address, Machine
from gpuops.openssh import Access

# Not where it is called: importing the module gives this package its name, which is to be the function's.
from gpuops.transports.door import Door as Door

_DIRECT = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command on the machine did. A failed command is a value first."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def tail(self) -> str:
        """The last ten lines of what it said, standard error preferred: what a person needs to see."""
        return "\n".join((self.stderr.strip() or self.stdout.strip()).splitlines()[-10:])

    def checked(self, machine_name: str) -> Result:
        """Itself when the command exited with 0. Raises `RemoteCommandFailed`, whose `result` is this one."""
        if self.exit_code == 0:
            return self
        error = RemoteCommandFailed(
            f"`{shown(self.argv)}` on {machine_name} exited with {self.exit_code}.\n{self.tail}".rstrip(),
            next_step=f"Look around there: gpuops ssh {machine_name}",
        )
        error.result = self
        raise error


class Transport(Protocol):
    """An open line to one machine; a context manager."""

    def __enter__(self) -> Transport: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        check: bool = True,
        timeout_s: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        """Run it to its end. With `check`, raises `RemoteCommandFailed` when it exits with anything but 0.

        `on_line` gets each line of its standard output as it arrives, without its end. Death by a signal is 128 + n.
        Out of time, or left by an exception, it is killed.
        """
        ...

    def pipe(
        self, argv: Sequence[str], *, source: BinaryIO | None = None, sink: BinaryIO | None = None, check: bool = True
    ) -> Result:
        """Run it, with `source` as its standard input and its standard output into `sink`, both as they come.

        Without a sink, what it says is in the result. An error of the source or the sink kills it and is raised; a
        line that breaks looks to it like the end of its input.
        """
        ...

    def read(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `offset` to its present end. Raises `RemoteFileMissing`.

        Here and in `write`, a path that is relative or begins with ``~/`` counts from the home folder.
        """
        ...

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Replace a file atomically; folders above it are made. Raises `DiskFull`."""
        ...

    def forward(self, door: Door, remote_port: int) -> AbstractContextManager[None]:
        """Lead the callers of a door to the machine's 127.0.0.1:`remote_port` until left, or until the line is dead.

        Then the connections through this line are closed, and the door's callers wait for the next line. Where nobody
        listens on that port, a caller's connection is closed at once. Leaving never waits for the machine.
        """
        ...

    def alive(self) -> bool:
        """False once the line is known to be dead. A network that goes away doesn't say so: see `answers`."""
        ...

    def answers(self, timeout_s: float) -> bool:
        """True when the machine answers a question on this line within the time."""
        ...


def quote(argv: Sequence[str]) -> str:
    """argv as one line for the machine's shell: the only place where quoting happens."""
    return shlex.join(argv)


def shown(argv: Sequence[str]) -> str:
    """argv as a person is shown it: one line, and not a screenful."""
    line = quote(argv)
    return line if len(line) <= 200 else f"{line[:199]}…"


def open(
    machine: Machine, *, identity_file: Path, access: Access = _DIRECT, connect_timeout_s: float = 10.0
) -> Transport:
    """A line to this machine, by its known host key, as the person's ssh config has it (`access`).

    Raises `MachineUnreachable`, `HostKeyChanged`, `KeyRefused`.
    """
    from gpuops.transports.ssh import SshTransport

    return SshTransport.connect(
        machine, identity_file=identity_file, access=access, connect_timeout_s=connect_timeout_s
    )


def door(port: int, *, or_next: bool = False, patience_s: float = 10.0) -> Door:
    """A port on this computer's 127.0.0.1, held until closed; port 0 is any free one. `Transport.forward` leads it on.

    Raises `PortInUse`; with `or_next`, the next one that is free will do. Callers that come while there is no line wait
    for one, up to `patience_s`, and are then turned away.
    """
    return Door(port, or_next=or_next, patience_s=patience_s)


def shown_host_key(address: Address, *, connect_timeout_s: float = 10.0) -> str:
    """The public line of the host key shown there, on its word alone; nobody logs in. Raises `MachineUnreachable`."""
    from gpuops.transports import handshake

    return handshake.shown_host_key(address, connect_timeout_s=connect_timeout_s)
