"""The keys that this computer comes with: each from the agent if that has it, else from its file."""

from __future__ import annotations

import base64
import binascii
import contextlib
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import UnknownKeyType

from gpuops import host_keys
from gpuops.errors import ConnectionFailed
from gpuops.openssh import Access

_OPENSSH_FORMAT = b"openssh-key-v1\0"
# draft-miller-ssh-agent, section 5.1: SSH_AGENT_FAILURE.
_REFUSED = 5


class AgentFailed(paramiko.SSHException):
    """The ssh agent did not do what it was asked for."""

    @property
    def was_slow(self) -> bool:
        return isinstance(self.__cause__, TimeoutError)


class ClientKeys:
    """A context manager: the agent's keys can be used inside only. Iterated, the keys to try, each with its file.

    The agent has `timeout_s` for each answer. `unusable` says of which keys so far that they could not be tried.
    """

    def __init__(self, identity_file: Path, access: Access, *, timeout_s: float) -> None:
        self.unusable: list[ConnectionFailed] = []
        self._files = tuple(dict.fromkeys((identity_file, *access.identity_files)))
        self._agent = _Agent(access.agent, timeout_s)

    def __enter__(self) -> ClientKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()

    def __iter__(self) -> Iterator[tuple[Path, paramiko.PKey]]:
        for file in self._files:
            try:
                key = self._agent.key_of(file) or paramiko.PKey.from_path(file)
            # TypeError is how `cryptography` says that the key has a passphrase.
            except (TypeError, paramiko.PasswordRequiredException) as error:
                self._note(
                    error,
                    f"The private key {file} has a passphrase, and no ssh agent here holds it.",
                    f'Hand it to one: eval "$(ssh-agent)"; ssh-add {shlex.quote(str(file))}',
                )
                continue
            except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
                self._note(
                    error,
                    f"The private key {file} can't be used: {error}.",
                    f"See what is wrong with it: ssh-keygen -y -f {shlex.quote(str(file))}",
                )
                continue
            yield file, key

    def not_signed(self, file: Path, error: AgentFailed) -> None:
        """Note that the agent has this key and did not sign with it."""
        self._note(
            error,
            f"The ssh agent did not sign with the key {file}: {error}.",
            f"See whether it does now: ssh-add -T {shlex.quote(str(file).removesuffix('.pub') + '.pub')}",
        )

    def _note(self, error: Exception, what: str, next_step: str) -> None:
        self.unusable.append(ConnectionFailed(what, next_step=next_step))
        self.unusable[-1].__cause__ = error


class _Agent(AgentSSH):
    """The agent at this socket; without one, or where it doesn't answer, it has no keys.

    paramiko's own `Agent` goes by SSH_AUTH_SOCK alone, and an ssh config may name another.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__()
        if not path:
            return
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # the stubs leave it out
        except (OSError, ValueError, paramiko.SSHException):
            connection.close()

    def key_of(self, file: Path) -> AgentKey | None:
        """The key that is in this file, or whose public half is."""
        blob = _public_blob(file)
        return next((key for key in self.get_keys() if key.blob == blob), None)

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]

    def _send_message(self, message: bytes) -> tuple[int, paramiko.Message]:
        """Raises `AgentFailed`, in whichever thread paramiko has it sign."""
        try:
            kind, answer = super()._send_message(message)  # type: ignore[misc]
        except (OSError, TypeError, paramiko.SSHException) as error:
            raise AgentFailed(str(error)) from error
        if kind == _REFUSED:
            raise AgentFailed("it refused to")
        return kind, answer


def _public_blob(file: Path) -> bytes | None:
    """The public half of a key: this file, or the one beside it, or what is readable of it in OpenSSH's own format."""
    for path in (file, file.with_name(f"{file.name}.pub")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            line = path.read_text(encoding="utf-8")
            if host_keys.is_key(line):
                return base64.b64decode(line.split()[1])
    with contextlib.suppress(OSError, LookupError, binascii.Error):
        body = base64.b64decode(file.read_bytes().split(b"-----")[2])
        if body.startswith(_OPENSSH_FORMAT):
            message = paramiko.Message(body[len(_OPENSSH_FORMAT) :])
            for _ in ("cipher", "key derivation", "its options"):
                message.get_string()
            message.get_int()  # how many keys there are: one
            return message.get_string()
    return None
