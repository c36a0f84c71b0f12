"""The machine's own `ssh-keygen`, where the computer has none: makes Ed25519 keys and shows their public half.

ssh-keygen -q -t ed25519 -N '' -C COMMENT -f PATH
ssh-keygen -y -f PATH
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def main(*argv: str) -> int:
    match argv:
        case ("-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path):
            _make(Path(path), comment)
        case ("-y", "-f", path):
            print(_public_line(serialization.load_ssh_private_key(Path(path).read_bytes(), password=None)))
        case _:
            print(f"ssh-keygen: the sandbox's does not understand: {' '.join(argv)}", file=sys.stderr)
            return 1
    return 0


def _make(path: Path, comment: str) -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    path.with_name(f"{path.name}.pub").write_text(f"{_public_line(key)} {comment}".rstrip() + "\n")


def _public_line(key: serialization.SSHPrivateKeyTypes) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode("ascii")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
