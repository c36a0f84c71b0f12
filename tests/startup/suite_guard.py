"""Keeps the suite off the person's own files and off the network, in this process and in every Python one it starts.

An audit hook (sys.addaudithook) refuses the act and notes it in a report, so that a test fails even where the code
under test swallows the refusal. What other programs do to the files is found by looking at them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import stat
import sys
from pathlib import Path

FOLDERS = "GUARD_FOLDERS"
REPORT = "GUARD_REPORT"

_PRIVATE = (".ssh", ".aws", ".local/share/gpuops", ".config/gpuops", "Library/Application Support/gpuops")
# Each of these events names one or two paths first.
_FILE_EVENTS = {
    "open": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
}
_ADDRESS_EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
_NAME_EVENTS = {"socket.getaddrinfo", "socket.gethostbyname"}

_installed = False


class Touched(RuntimeError):
    """A test reached for something of the person's, or for the network."""


def private_folders(environ: dict[str, str]) -> list[str]:
    """What the suite must not touch: below the account's home folder and below $HOME, where the two differ."""
    homes = {environ.get("HOME", "")}
    with contextlib.suppress(KeyError):
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return sorted(str(Path(home) / name) for home in homes if home for name in _PRIVATE)


def install() -> None:
    """Refuse and report from now on; what is private stands in the environment."""
    global _installed
    if _installed or FOLDERS not in os.environ:
        return
    _installed = True
    folders = tuple(os.environ[FOLDERS].split(os.pathsep))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _FILE_EVENTS:
            for path in arguments[: _FILE_EVENTS[event]]:
                if isinstance(path, str | bytes) and _is_below(os.fsdecode(path), folders):
                    _refuse(f"{event} {os.fsdecode(path)}")
        elif event in _ADDRESS_EVENTS:
            address = arguments[_ADDRESS_EVENTS[event]]
            if isinstance(address, tuple) and isinstance(address[0], str) and not _is_here(address[0]):
                _refuse(f"{event} {address}")
        elif event in _NAME_EVENTS:
            host = arguments[0]
            if host is not None and not _is_here(os.fsdecode(host)):  # type: ignore[arg-type]
                _refuse(f"{event} {os.fsdecode(host)}")  # type: ignore[arg-type]

    sys.addaudithook(hook)


def listing(folders: list[str]) -> dict[str, tuple[int, int]]:
    """The size and time of every file in these folders, but those that the person's own ssh and SSO may write now."""
    found = {}
    for folder in folders:
        for path in (Path(folder), *Path(folder).rglob("*")):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):  # its time changes with theirs too
                    found[str(path)] = (0, 0)
                elif not (path.name.startswith("known_hosts") or "cache" in path.parts or path.is_socket()):
                    found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    path = os.path.normpath(path) if path.startswith("/") else os.path.abspath(path)  # noqa: PTH100  # in every open()
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _is_here(host: str) -> bool:
    if host in {"", "localhost", "0.0.0.0", "::"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which a server somewhere would have to resolve
        return False


def _refuse(what: str) -> None:
    if report := os.environ.get(REPORT):
        descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{what}\n".encode())
        os.close(descriptor)
    raise Touched(f"The test suite must not do this: {what}")
