"""Runs on the machine, alone: one file of the standard library, sent there by `gpuops.jobs`. Imports nothing of ours.

    python job_wrapper.py run RUN_DIR       run RUN_DIR/job.sh to its end, with its log, state and manifest
    python job_wrapper.py follow RUN_DIR N  write the log from byte N to stdout until the job has ended
    python job_wrapper.py state RUN_DIR     print the job's state as JSON
    python job_wrapper.py seal RUN_DIR      make the manifest that a crash has left unmade
    python job_wrapper.py list              print every run on this machine, with its state, as JSON

The run holds a lock on RUN_DIR/lock for as long as it lives, and on ~/gpuops/job.lock, as one machine runs one job at a
time. The kernel lets go of both when the process or the machine dies: a job that says it runs and holds no lock was
interrupted. No process id or boot id is compared, which a reused number could fool.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

FORMAT = 1
BUSY_EXIT_CODE = 75
_GPUOPS = Path.home() / "gpuops"
_TERM_GRACE_S = 90.0
# Of these the manifest says nothing: they change after it, or are ours alone.
_UNLISTED = {"manifest.json", "lock", "heartbeat", "home.json", "wrapper.txt"}


def run(folder: Path) -> int:
    """The job from start to end. Returns its exit code; `BUSY_EXIT_CODE` when another job runs here."""
    machine_lock = _lock(_GPUOPS / "job.lock")
    if machine_lock is None:
        return BUSY_EXIT_CODE
    lock = _lock(folder / "lock")
    if lock is None:
        return BUSY_EXIT_CODE
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stopped_by: list[int] = []
    _write_state(folder, "starting")
    with (folder / "log.txt").open("ab") as log:
        job = subprocess.Popen(
            ["sh", "job.sh"], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    _when_stopped(lambda received, _: _end(job, received, stopped_by))
    _write_state(folder, "running", pid=job.pid)
    exit_code = job.wait()
    _when_stopped(signal.SIG_IGN)  # its results are made whole first, and its process id may soon be another's
    signal.setitimer(signal.ITIMER_REAL, 0)
    _kill_group(job.pid, signal.SIGKILL)  # what it left behind would hold the GPU's memory
    exit_code = exit_code if exit_code >= 0 else 128 - exit_code
    if stopped_by:
        state, reason = "interrupted", f"signal {stopped_by[0]}"
    else:
        state, reason = ("succeeded", "") if exit_code == 0 else ("failed", f"exit code {exit_code}")
    _write_state(folder, state, exit_code=exit_code, reason=reason)
    seal(folder)
    _when_stopped(signal.SIG_DFL)
    machine_lock.close()
    lock.close()
    if not stopped_by and settings["then"] != "keep":
        _power_off_after(settings["grace_minutes"] * 60.0, settings["poweroff"])
    return exit_code


def follow(folder: Path, offset: int) -> int:
    """The log from a byte on, as it grows. Returns the job's exit code, or 0 where it has none."""
    log = folder / "log.txt"
    while True:
        ended = not _held(folder / "lock")  # asked before reading, so that nothing written by its end is missed
        if log.exists():
            with log.open("rb") as file:
                file.seek(offset)
                while chunk := file.read(1 << 16):
                    sys.stdout.buffer.write(chunk)
                    offset += len(chunk)
            sys.stdout.buffer.flush()
        if ended:
            return int(state(folder).get("exit_code") or 0)
        time.sleep(0.1)


def state(folder: Path) -> dict[str, Any]:
    """What the job's state is in truth: one that is written as under way and holds no lock was interrupted."""
    try:
        written: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        written = {"format": FORMAT, "state": "starting", "exit_code": None, "reason": "not started"}
        if not (folder / "run.json").exists():
            return dict(written, state="interrupted", reason="its files did not arrive whole")
    if written["state"] in ("starting", "running") and not _held(folder / "lock"):
        return dict(written, state="interrupted", reason="the process or the machine went away")
    return written


def seal(folder: Path) -> None:
    """Write the manifest: path, bytes and SHA-256 of every file, last and atomically."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        relative = path.relative_to(folder).as_posix()
        if relative in _UNLISTED or path.name.startswith(".tmp"):
            continue
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        files.append({"path": relative, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
    _write_json(folder / "manifest.json", {"format": FORMAT, "files": files})


def runs() -> list[dict[str, Any]]:
    """Every run on this machine."""
    found = []
    for folder in sorted((_GPUOPS / "runs").glob("*/")):
        found.append({"id": folder.name, "sealed": (folder / "manifest.json").exists(), **state(folder)})
    return found


def _power_off_after(grace_s: float, poweroff: list[str]) -> None:
    """Switch the machine off when nobody has used it for that long: no job, and no client that prepares one."""
    idle_since = time.monotonic()
    used = _used()
    while time.monotonic() - idle_since < grace_s:
        time.sleep(min(1.0, grace_s))
        if _held(_GPUOPS / "job.lock"):
            return  # that job's own wrapper will see to it
        if _used() != used:
            idle_since, used = time.monotonic(), _used()
    subprocess.run(poweroff, check=False)


def _used() -> float:
    """Clients touch this file while they prepare a job."""
    try:
        return (_GPUOPS / "in-use").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _when_stopped(action: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, action)


def _end(job: subprocess.Popen[bytes], received: int, stopped_by: list[int]) -> None:
    """Pass the signal on, once; what has not ended in time is killed."""
    if stopped_by:
        return
    stopped_by.append(received)
    _kill_group(job.pid, signal.SIGTERM)
    signal.signal(signal.SIGALRM, lambda *_: _kill_group(job.pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, _TERM_GRACE_S)


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _write_state(folder: Path, name: str, **fields: Any) -> None:
    written = {"format": FORMAT, "state": name, "exit_code": None, "reason": "", "pid": None, "time": time.time()}
    _write_json(folder / "state.json", dict(written, boot_id=_boot_id(), **fields))


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(path: Path) -> IO[bytes] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main(argv: list[str]) -> int:
    command, folder = argv[0], Path(argv[1]) if len(argv) > 1 else Path()
    if command == "run":
        return run(folder)
    if command == "follow":
        return follow(folder, int(argv[2]))
    if command == "seal":
        truth = state(folder)
        if truth["state"] == "interrupted":
            _write_state(folder, "interrupted", reason=truth["reason"])
        seal(folder)
    elif command == "state":
        print(json.dumps(state(folder)))
    elif command == "list":
        print(json.dumps(runs()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
