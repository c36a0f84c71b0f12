"""A machine's own view of the computer: its own processes, its own user, no line to the computer's power switch.

Linux's user, pid and mount namespaces, as `unshare --user --pid --mount` makes them, which need no root where the
kernel allows them to ordinary users. The first process started in them is the machine's process 1: when it ends, the
kernel kills all others, whatever they did to get away. See user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

UID = 1000
"""The machine's user, as the first ordinary one of an Ubuntu image: not root, even where root runs the sandbox."""

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000

_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 0x1

# Who may write to these can switch off the computer or start what isn't a child of the machine.
_DOORS_OUT = ("/run/systemd/private", "/run/dbus/system_bus_socket", "/run/docker.sock")


def are_allowed() -> bool:
    """True where namespaces can be made here, found by making them in a process that ends at once."""
    if not sys.platform.startswith("linux"):
        return False
    trial = os.fork()
    if trial == 0:
        try:
            enter()
            process_1 = os.fork()
            if process_1 == 0:
                _mount_proc()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(process_1, 0)[1]))
        except OSError:
            os._exit(1)
        finally:
            os._exit(1)
    return os.waitpid(trial, 0)[1] == 0


def enter() -> None:
    """Make the namespaces that the next child of this process is the first to live in."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWPID)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{UID} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{UID} {gid} 1")


def settle(machine: Path, etc: Path, *, user: str, home: Path) -> None:
    """In that child: see only the machine's processes and users, write only below `machine`, and reach no power switch.

    `etc` is the folder of the machine's disk that its `passwd` and `group` are written to.
    """
    _mount_proc()
    (etc / "passwd").write_text(
        f"root:x:0:0:root:/root:/bin/bash\n{user}:x:{UID}:{UID}::{home}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (etc / "group").write_text(f"root:x:0:\n{user}:x:{UID}:\nnogroup:x:65534:\n")
    for name in ("passwd", "group"):
        _mount(str(etc / name), f"/etc/{name}", None, _MS_BIND)
    for door in _DOORS_OUT:
        if Path(door).exists():
            _mount("/dev/null", door, None, _MS_BIND)
    # Shared memory of its own, as torch's data loaders need some; the computer's stays out of reach.
    _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV)
    _mount(str(machine), str(machine), None, _MS_BIND | _MS_REC)
    # Linux before 5.12 can't do this in one step, and there the file permissions have to do.
    with contextlib.suppress(OSError):
        _set_read_only("/", True)
        for place in (str(machine), "/dev/shm", "/dev/pts"):
            _set_read_only(place, False)


def _set_read_only(place: str, read_only: bool) -> None:
    """mount_setattr(2) on the mount and all below it; the number is the same on every architecture."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY * read_only, _ATTR_RDONLY * (not read_only), 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, place.encode(), _AT_RECURSIVE, ctypes.byref(attributes), size)


def _mount_proc() -> None:
    _call("unshare", _CLONE_NEWNS)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), None)


def _call(function: str, *arguments: object) -> None:
    """Call the C library (`os.unshare` is Python 3.12's, `mount` nobody's); raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
