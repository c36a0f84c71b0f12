"""What each machine's key must be, and the key by which the machines know this computer."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuops import durable
from gpuops.errors import BadData

_FILE_NAME = "id_ed25519"
# A pattern, a list or a second line in known_hosts would make the key count for machines that it is not for.
_KNOWN_HOSTS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeyPair:
    """An ed25519 key: the private part as OpenSSH's PEM text, the public one as ``ssh-ed25519 AAAA…``, no comment."""

    private_text: str = field(repr=False)
    public_line: str


def generate() -> HostKeyPair:
    """A new key that nobody has seen."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return HostKeyPair(private_text=private.decode("ascii"), public_line=public.decode("ascii"))


def client_key(folder: Path) -> Path:
    """This computer's own private key in `folder`, made once; its ``.pub`` lies next to it. Raises `BadData`.

    Of two processes that both find none, both get the key of the one that was first.
    """
    path = folder / _FILE_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path)
    line = f"{public_key_line(path)}\n".encode("ascii")
    public_path = path.with_name(f"{_FILE_NAME}.pub")
    if not public_path.exists() or public_path.read_bytes() != line:
        durable.write(public_path, line, mode=0o644)
    return path


def public_key_line(path: Path) -> str:
    """The public line of a private key file; one with a passphrase has it in the .pub beside it. Raises `BadData`."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except TypeError as error:  # `cryptography`'s way of saying that the key has a passphrase
        beside = path.with_name(f"{path.name}.pub")
        with contextlib.suppress(OSError, UnicodeDecodeError):
            line = " ".join(beside.read_text(encoding="utf-8").split()[:2])
            if is_key(line):
                return line
        raise BadData(
            f"The private key {path} has a passphrase, and its public half is not beside it.",
            next_step=f"Write that, with the passphrase: ssh-keygen -y -f {path} >{beside}",
        ) from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise BadData(
            f"The private key {path} can't be read: {error}.",
            left_behind="Machines that admit it admit nobody from this computer until it is back.",
            next_step=f"Bring it back from a backup, or let the next command make a new one: mv {path} {path}.damaged",
        ) from error
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode("ascii")


def fingerprint(public_line: str) -> str:
    """``SHA256:…``, as OpenSSH prints it. Raises `BadData`."""
    _, blob = _parse(public_line)
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def is_key(public_line: str) -> bool:
    """Whether it is the public line of a key."""
    try:
        _parse(public_line)
    except BadData:
        return False
    return True


def known_hosts_text(entries: Mapping[str, Sequence[str]]) -> str:
    """A known_hosts file: for each name, by which ``HostKeyAlias`` refers to it, its public lines. Raises `BadData`."""
    lines = []
    for name, public_lines in sorted(entries.items()):
        if not _KNOWN_HOSTS_NAME.fullmatch(name):
            raise BadData(f"{name!r} can't stand in a known_hosts file.")
        for key_type, blob in map(_parse, public_lines):
            lines.append(f"{name} {key_type} {base64.b64encode(blob).decode('ascii')}\n")
    return "".join(lines)


def _create(path: Path) -> None:
    temporary = path.with_name(f".{_FILE_NAME}.{secrets.token_hex(8)}")
    durable.write(temporary, generate().private_text.encode("ascii"), mode=0o600)
    try:
        # A link fails where the name is taken; a rename would replace the other process's key after it was used.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        durable.remove(temporary)


def _parse(public_line: str) -> tuple[str, bytes]:
    try:
        key_type, text = public_line.split()[:2]
        blob = base64.b64decode(text, validate=True)
        length = int.from_bytes(blob[:4], "big")
        # The type is said twice, before the key and inside it; a damaged line disagrees with itself.
        if blob[4 : 4 + length] != key_type.encode("ascii"):
            raise ValueError("its type does not match")
    except (ValueError, binascii.Error) as error:
        raise BadData(f"This is not a public key: {public_line[:60]!r}.") from error
    return key_type, blob
