"""What is on a machine's disk and nowhere else: looked at before it is stopped, and above all before it is deleted."""

from __future__ import annotations

from dataclasses import dataclass

from gpuops import jobs, results
from gpuops.errors import RemoteFileMissing, ResultsDamaged
from gpuops.runs import RunStore
from gpuops.transports import Transport

_SHOWN_AT_MOST = 200
_NOT_THE_PERSONS = (
    "./.cache/*",
    "./.ssh/*",
    "./gpuops/bin/*",
    "./gpuops/data/*",
    "./gpuops/trainer/*",
    "./gpuops/job.lock",
    "./gpuops/in-use",
    "./gpuops/runs/[0-9]*T[0-9]*-[0-9a-f]*/*",
)
# What is newer than the first boot was made by the person, by a run, or by us. The machine's log has when that was; a
# machine without one is taken to have got its authorized_keys then.
_CHANGED = (
    'since=$(sed -n "s/^boot \\([0-9]*\\) .*/\\1/p" "${DESTDIR-}/var/lib/gpuops/uptime.log" 2>/dev/null | head -n 1); '
    'if [ -n "$since" ]; then set -- -newermt "@$since"; else set -- -newer .ssh/authorized_keys; fi; '
    'find . -type f "$@" '
    + " ".join(f"-not -path '{pattern}'" for pattern in _NOT_THE_PERSONS)
    + f" 2>/dev/null | head -n {_SHOWN_AT_MOST}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Runs by their ids, files by their paths in the home folder (200 at most)."""

    running: tuple[str, ...] = ()
    not_home: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def look(line: Transport, store: RunStore) -> Disk:
    """What would be lost with this disk."""
    found = line.run(["sh", "-c", "[ -d gpuops/runs ]"], check=False)
    on_disk = jobs.on_machine(line, "python3") if found.exit_code == 0 else []
    running = tuple(str(run["id"]) for run in on_disk if run["state"] in {"starting", "running"})
    ended = [str(run["id"]) for run in on_disk if str(run["id"]) not in running]
    changed = line.run(["sh", "-c", _CHANGED], check=False).stdout.splitlines()
    return Disk(
        running=running,
        not_home=tuple(run_id for run_id in ended if not is_home(line, run_id, store)),
        changed=tuple(path.removeprefix("./") for path in changed),
    )


def is_home(line: Transport, run_id: str, store: RunStore) -> bool:
    """Home means now: the manifest there and here are the same, and every file here still agrees with it."""
    if not store.is_home(run_id):
        return False
    try:
        there = b"".join(line.read(f"gpuops/runs/{run_id}/manifest.json"))
        results.verify(store.path(run_id))
    except (RemoteFileMissing, ResultsDamaged, OSError):
        return False
    return there == (store.path(run_id) / "manifest.json").read_bytes()
