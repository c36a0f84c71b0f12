"""What a machine does with its user data: the part of cloud-init's cloud-config that our first boot is written in.

A key that isn't one of ours is an error, not a warning as on AWS: there nobody would notice, here the tests do.
https://docs.cloud-init.io/en/latest/reference/modules.html (Bootcmd, SSH)
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import yaml


class NotUnderstood(Exception):
    """The machine was told something that this sandbox can't do, though AWS's machines might."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBoot:
    """A cloud-config: `bootcmd` runs on every boot and before ssh listens, the rest holds once per instance."""

    bootcmd: tuple[tuple[str, ...], ...] = ()
    host_key_private: str | None = None
    host_key_public: str | None = None
    delete_host_keys: bool = True
    authorized_keys: tuple[str, ...] = ()


def read(user_data: bytes) -> FirstBoot:
    """The first boot that these bytes describe; no bytes describe one with nothing to do. Raises NotUnderstood."""
    if not user_data:
        return FirstBoot()
    try:
        text = user_data.decode("utf-8")
        config = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise NotUnderstood(f"The user data is not YAML: {error}") from error
    if text.splitlines()[0].rstrip() != "#cloud-config":
        raise NotUnderstood("The user data's first line is not #cloud-config.")
    if not isinstance(config, dict):
        raise NotUnderstood("The user data is no mapping of keys to values.")
    _refuse_unknown("cloud-config", config, _READERS)
    fields: dict[str, Any] = {}
    for key, value in config.items():
        fields |= _READERS[key](value)
    return FirstBoot(**fields)


def _bootcmd(value: object) -> dict[str, Any]:
    if not isinstance(value, list):
        raise NotUnderstood("bootcmd is not a list.")
    return {"bootcmd": tuple(map(_argv, value))}


def _argv(command: object) -> tuple[str, ...]:
    if isinstance(command, str):
        return ("sh", "-c", command)
    if isinstance(command, list) and command and all(isinstance(word, str | int | float) for word in command):
        return tuple(map(str, command))
    raise NotUnderstood(f"bootcmd: neither a shell line nor a list of words: {command!r}")


def _ssh_keys(value: object) -> dict[str, Any]:
    known = {"ed25519_private": "host_key_private", "ed25519_public": "host_key_public"}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise NotUnderstood("ssh_keys is no mapping of kinds to keys.")
    _refuse_unknown("ssh_keys", value, known)
    if len(value) != len(known):
        raise NotUnderstood("ssh_keys has only one half of the key.")
    return {known[kind]: text.strip() + "\n" for kind, text in value.items()}


def _ssh_authorized_keys(value: object) -> dict[str, Any]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        raise NotUnderstood("ssh_authorized_keys is not a list of keys.")
    return {"authorized_keys": tuple(key.strip() for key in value)}


def _ssh_deletekeys(value: object) -> dict[str, Any]:
    return {"delete_host_keys": _boolean("ssh_deletekeys", value)}


def _only(key: str, expected: bool) -> Callable[[object], dict[str, Any]]:
    """For a key whose one supported value is how these machines are anyway."""

    def reader(value: object) -> dict[str, Any]:
        if _boolean(key, value) != expected:
            raise NotUnderstood(f"{key}: {str(value).lower()} is not what these machines can do.")
        return {}

    return reader


def _boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise NotUnderstood(f"{key} is neither true nor false: {value!r}")
    return value


_READERS: dict[str, Callable[[object], dict[str, Any]]] = {
    "bootcmd": _bootcmd,
    "ssh_deletekeys": _ssh_deletekeys,
    "ssh_keys": _ssh_keys,
    "ssh_authorized_keys": _ssh_authorized_keys,
    "ssh_pwauth": _only("ssh_pwauth", False),
    "disable_root": _only("disable_root", True),
}


def _refuse_unknown(where: str, given: dict[Any, Any], known: dict[str, Any]) -> None:
    if unknown := [str(key) for key in given if key not in known]:
        raise NotUnderstood(f"{where}: unknown: {', '.join(sorted(unknown))} (known: {', '.join(known)}).")


def host_key_path(disk: Path) -> Path:
    return disk / "etc/ssh/ssh_host_ed25519_key"


def apply_once(first_boot: FirstBoot, *, instance_id: str, disk: Path, home: Path) -> None:
    """Write the keys to the disk and print the host key to the console, unless this instance has done it before."""
    finished = disk / "var/lib/cloud/instances" / instance_id / "boot-finished"
    if finished.exists():
        return
    host_key = host_key_path(disk)
    host_key.parent.mkdir(parents=True, exist_ok=True)
    if first_boot.delete_host_keys:
        for old in host_key.parent.glob("ssh_host_*"):
            old.unlink()
    if first_boot.host_key_private and first_boot.host_key_public:
        _write_private(host_key, first_boot.host_key_private)
        host_key.with_suffix(".pub").write_text(first_boot.host_key_public)
    elif not host_key.exists():
        new = asyncssh.generate_private_key("ssh-ed25519", comment=f"root@{instance_id}")
        _write_private(host_key, new.export_private_key().decode())
        host_key.with_suffix(".pub").write_bytes(new.export_public_key())
    (home / ".ssh").mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_private(home / ".ssh/authorized_keys", "".join(f"{key}\n" for key in first_boot.authorized_keys))
    _print_host_key(host_key.with_suffix(".pub").read_text().strip())
    finished.parent.mkdir(parents=True, exist_ok=True)
    finished.touch()


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _print_host_key(public_key: str) -> None:
    """As cloud-init does, on the first boot only; a client that gave no host key learns it from here."""
    kind, key, comment = [*public_key.split(maxsplit=2), "no comment"][:3]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode().rstrip("=")
    print("ec2: -----BEGIN SSH HOST KEY FINGERPRINTS-----")
    print(f"ec2: 256 SHA256:{digest} {comment} (ED25519)")
    print("ec2: -----END SSH HOST KEY FINGERPRINTS-----")
    print("-----BEGIN SSH HOST KEY KEYS-----")
    print(f"{kind} {key} {comment}")
    print("-----END SSH HOST KEY KEYS-----", flush=True)
