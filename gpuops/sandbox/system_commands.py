"""The machine's own `systemctl`, `shutdown`, `sudo` … found before the computer's on its PATH.

`install` writes them; each runs this file as a program, which asks the operating system through its socket. As a
program it must start quickly and imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from pathlib import Path

SOCKET = "systemd.socket"
"""In the machine's folder. With that, the name may be too long for a socket: both ends go there and use this one."""

_ASKS_SYSTEMD = ("halt", "poweroff", "reboot", "shutdown", "systemctl")

_NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)


def install(folder: Path, machine_directory: Path) -> None:
    """Write the commands into this folder, anew on every boot: what a person did to them doesn't last."""
    folder.mkdir(exist_ok=True)
    for name in (*_ASKS_SYSTEMD, "sudo", "nvidia-smi"):
        # The socket's place stands in the script and not in the environment, which a process may have been scrubbed of.
        write_script(folder / name, sys.executable, "-I", "-S", __file__, str(machine_directory), name)

    if not shutil.which("ssh-keygen", path="/usr/local/bin:/usr/bin:/bin"):
        write_script(folder / "ssh-keygen", sys.executable, "-I", str(Path(__file__).with_name("ssh_keygen.py")))


def write_script(path: Path, *argv: str) -> None:
    """An executable file that runs `argv` with its own arguments added."""
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
    path.chmod(0o755)


def main(machine_directory: str, name: str, *argv: str) -> int:
    if name == "sudo":
        return _sudo(list(argv))
    if name == "nvidia-smi":
        print(_NO_DRIVER)
        return 9
    os.chdir(machine_directory)
    with socket.socket(socket.AF_UNIX) as systemd:
        try:
            systemd.connect(SOCKET)
        except OSError as error:
            print(f"{name}: the machine's systemd does not answer: {error}", file=sys.stderr)
            return 1
        systemd.sendall(json.dumps([name, *argv]).encode() + b"\n")
        answer = systemd.makefile("rb").readline()
    if not answer:
        return 1
    exit_code, stdout, stderr = json.loads(answer)
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return int(exit_code)


def _sudo(argv: list[str]) -> int:
    """Run the command as the same user: the machine has no root, and nothing of it needs one."""
    while argv and argv[0].startswith("-"):
        option = argv.pop(0)
        if option == "--":
            break
        if option not in {"-n", "-E", "-H"}:
            print(f"sudo: the sandbox's sudo does not know the option {option}", file=sys.stderr)
            return 1
    if not argv:
        print("usage: sudo [-n] [-E] [-H] [--] command [argument ...]", file=sys.stderr)
        return 1
    try:
        os.execvp(argv[0], argv)
    except OSError:
        print(f"sudo: {argv[0]}: command not found", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
