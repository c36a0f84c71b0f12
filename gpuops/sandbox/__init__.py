"""The sandbox: a cloud on this computer, in one folder. Rehearsing in it costs nothing and needs no account.

`environment` is all that the rest of gpuops gets to know of a sandbox: with these variables set, everything works as on
AWS. moto and asyncssh are imported by the cloud's own processes only, never here.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import filelock

from gpuops.errors import SandboxError
from gpuops.sandbox.folder import Folder

__all__ = ["Cloud", "environment", "reset", "start", "status", "stop", "was_cut_off"]

_READY_WITHIN_S = 60.0
_STOPPED_WITHIN_S = 15.0
_POLL_S = 0.02
_EXTRA = {"moto": "moto", "flask": "moto[server]", "asyncssh": "asyncssh", "yaml": "pyyaml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """A cloud that runs."""

    url: str
    pid: int
    folder: Path
    log: Path


def start(folder: Path, *, boot_seconds: float = 1.0, python: Path | None = None) -> Cloud:
    """The folder's cloud, started if it doesn't run yet, and answering.

    A machine is pending for `boot_seconds`; `python` is the interpreter its programs get (default: this one). Both
    count for a cloud that is started, not for one that runs already. Raises `SandboxError`.
    """
    place = _prepare(folder)
    with filelock.FileLock(place.command):
        return _running(place) or _start(place, boot_seconds, python or Path(sys.executable))


def was_cut_off(folder: Path) -> bool:
    """Whether its last cloud ended without `stop`, and took its machines with it: no real cloud does that."""
    place = Folder(folder.resolve())
    return place.announcement.exists() and _running(place) is None


def stop(folder: Path) -> None:
    """End the folder's cloud and all its machines. Their disks stay in the folder, but no cloud knows them any more."""
    place = Folder(folder.resolve())
    if not place.root.is_dir():
        return
    with filelock.FileLock(place.command):
        _stop(place)


def status(folder: Path) -> Cloud | None:
    """The folder's cloud, if it runs and answers."""
    return _running(Folder(folder.resolve()))


def reset(folder: Path) -> None:
    """End the folder's cloud and delete all that the sandbox wrote there."""
    place = Folder(folder.resolve())
    if not place.root.is_dir():
        return
    _refuse_others(place)
    with filelock.FileLock(place.command):
        _stop(place)
        for tree in (place.machines, place.home):
            shutil.rmtree(tree, ignore_errors=True)
            if tree.exists():
                raise SandboxError(f"{tree} can't be deleted.", next_step=f"rm -rf {tree}")
        for file in (place.mark, place.announcement, place.log, place.aws_config, place.alive):
            file.unlink(missing_ok=True)
    place.command.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # files that are not ours stay, and so does the folder
        place.root.rmdir()


def environment(folder: Path, cloud: Cloud) -> dict[str, str]:
    """The variables that turn gpuops, and any AWS SDK, to this sandbox and away from the person's account and files."""
    place = Folder(folder.resolve())
    services = ("EC2", "EC2_INSTANCE_CONNECT", "PRICING", "SERVICE_QUOTAS", "SSM", "STS")
    no_proxy = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {
        "AWS_ENDPOINT_URL": cloud.url,
        # A variable of the person's for one service would win over the general one.
        **{f"AWS_ENDPOINT_URL_{service}": cloud.url for service in services},
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "",
        # A profile of the person's would be looked up, and an SDK fails on one that it doesn't find.
        "AWS_PROFILE": "default",
        "AWS_DEFAULT_PROFILE": "default",
        "AWS_CONFIG_FILE": str(place.aws_config),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "GPUOPS_HOME": str(place.home),
        "GPUOPS_SSH_CONFIG": str(place.home / "ssh" / "config"),
        "GPUOPS_SSH_PORT": "2222",
        "GPUOPS_ADMIT": "127.0.0.1/32",
    }


def _prepare(folder: Path) -> Folder:
    place = Folder(folder.resolve())
    try:
        place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_others(place)
        place.mark.touch()
        place.home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SandboxError(f"The sandbox's folder {folder} can't be made: {error}.") from error
    return place


def _refuse_others(place: Folder) -> None:
    """What is in a folder that the sandbox did not make is somebody's: nothing of it is overwritten or deleted."""
    names = {path.name for path in place.root.iterdir()}
    if names and place.mark.name not in names:
        raise SandboxError(
            f"{place.root} is not a sandbox's folder: it has files, and none of them is {place.mark.name}.",
            left_behind="Nothing in it was touched.",
            next_step="Name another folder, or none: unset GPUOPS_SANDBOX",
        )


def _refuse_missing_packages() -> None:
    missing = [package for module, package in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SandboxError(
            f"The sandbox needs packages that are not installed: {', '.join(missing)}.",
            next_step="pip install 'gpuops[sandbox]'",
        )


def _running(place: Folder) -> Cloud | None:
    """The cloud, if it answers as the one that the folder's announcement names.

    Neither the announcement nor the process id in it proves anything: both outlive a power cut, and ids are used again.
    """
    announced = _read_announcement(place)
    if announced is None:
        return None
    url, pid = announced
    # Not urllib.request, which goes through the person's proxy and takes 50 ms to import.
    line = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=5)
    try:
        line.request("GET", "/gpuops/cloud")
        answer = json.load(line.getresponse())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        line.close()
    if not isinstance(answer, dict) or answer.get("pid") != pid:
        return None
    return Cloud(url=url, pid=pid, folder=place.root, log=place.log)


def _read_announcement(place: Folder) -> tuple[str, int] | None:
    try:
        announced = json.loads(place.announcement.read_text(encoding="utf-8"))
        return str(announced["url"]), int(announced["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _start(place: Folder, boot_seconds: float, python: Path) -> Cloud:
    _refuse_missing_packages()
    place.aws_config.write_text("[default]\n", encoding="utf-8")
    process: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + _READY_WITHIN_S
    try:
        while time.monotonic() < deadline:
            if cloud := _running(place):
                process = None  # from now on it's on its own
                return cloud
            if process is None and not _is_alive(place):  # else one is just ending
                process = _spawn(place, boot_seconds, python)
            if process is not None and process.returncode is not None:
                break
            time.sleep(_POLL_S)
    finally:
        if process is not None:  # too slow, or this call was interrupted
            process.kill()
    last_words = "\n".join(place.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise SandboxError(
        f"The sandbox's cloud didn't start. Its last words:\n{last_words}", next_step=f"less {place.log}"
    )


def _spawn(place: Folder, boot_seconds: float, python: Path) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).resolve().parents[2])
    # moto asks botocore for its regions, which would stumble over the person's AWS_PROFILE.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [package, inherited.get("PYTHONPATH")]))
    options = ["--dir", str(place.root), "--boot-seconds", str(boot_seconds), "--python", str(python)]
    with place.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpuops.sandbox.cloud", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.root,
            env=inherited,
            start_new_session=True,  # the terminal's Ctrl-C and hang-up are not for it
        )
    # It outlives this call but may end before this process does: then somebody must take note of it.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def _stop(place: Folder) -> None:
    if not _is_alive(place):
        place.announcement.unlink(missing_ok=True)
        return
    announced = _read_announcement(place)
    if announced is None:
        raise SandboxError(f"The cloud in {place.root} is just starting.", next_step="Try again in a few seconds.")
    _url, pid = announced
    os.kill(pid, signal.SIGTERM)
    if not _wait_until_free(place, timeout_s=_STOPPED_WITHIN_S):
        os.kill(pid, signal.SIGKILL)  # its machines end with it: they watch for that
        _wait_until_free(place, timeout_s=_STOPPED_WITHIN_S)
    place.announcement.unlink(missing_ok=True)


def _is_alive(place: Folder) -> bool:
    """True while a cloud holds the folder's lock, whether it answers or not.

    To look is to take the lock for a moment: only for whoever holds the command lock, or a cloud would find it taken.
    """
    return place.alive.exists() and not _wait_until_free(place, timeout_s=0)


def _wait_until_free(place: Folder, *, timeout_s: float) -> bool:
    try:
        with filelock.FileLock(place.alive, timeout=timeout_s, poll_interval=_POLL_S):
            return True
    except filelock.Timeout:
        return False
