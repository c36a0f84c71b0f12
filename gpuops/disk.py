"""What is on a machine's disk and nowhere else: looked at before it is stopped, and above all before it is deleted."""

from __future__ import annotations

from dataclasses import dataclass

from gpuops import jobs, results
from gpuops.errors import RemoteCommandFailed, RemoteFileMissing, ResultsDamaged
from gpuops.runs import RunStore
from gpuops.transports import Transport

_SHOWN_AT_MOST = 200
_NOT_THE_PERSONS = (
    "./.cache/*",
    "./.ssh/*",
    "./.sudo_as_admin_successful",  # empty: Ubuntu's sudo leaves it
    "./gpuops/bin/*",
    "./gpuops/data/*",
    "./gpuops/trainer/*",
    "./gpuops/job.lock",
    "./gpuops/in-use",
    "./gpuops/notebook/*",
    "./.local/share/jupyter/runtime/*",
    "./gpuops/runs/[0-9]*T[0-9]*-[0-9a-f]*/*",
)
# What has come or changed since the first boot was made by the person, by a run, or by us. That is told by its inode's
# time: its own is set back by all that copies or unpacks with dates. The first line of the machine's log has the boot,
# as a difference of two cut-off seconds; without it, anything may be the person's. A new account's files, which come
# from /etc/skel, are newer. An empty name at the end of the list says that the search came to its end.
_CHANGED = (
    'cd "${HOME:?}" || exit; '
    'since=$(sed -n "1s/^boot \\([0-9]*\\) .*/\\1/p" "${DESTDIR-}/var/lib/gpuops/uptime.log" 2>/dev/null); '
    '[ -z "$since" ] || set -- -newerct "@$((since - 1))"; '
    "{ find . -ignore_readdir_race \\( "
    + " -o ".join(f"-path '{pattern}'" for pattern in _NOT_THE_PERSONS)
    + ' \\) -prune -o \\( -type f -o -type l \\) "$@" '
    "! \\( -path './.*' -exec cmp -s \"${DESTDIR-}/etc/skel/{}\" {} \\; \\) -print0 "
    f"&& printf '\\0'; }} | head -z -n {_SHOWN_AT_MOST}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Runs by their ids, files by their paths in the home folder (200 at most)."""

    running: tuple[str, ...] = ()
    not_home: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def look(line: Transport, store: RunStore) -> Disk:
    """What would be lost with this disk. Raises `RemoteCommandFailed` where not all of it could be seen."""
    found = line.run(["sh", "-c", "[ -d gpuops/runs ]"], check=False)
    on_disk = jobs.on_machine(line, "python3") if found.exit_code == 0 else []
    running = tuple(str(run["id"]) for run in on_disk if run["state"] in {"starting", "running"})
    ended = [str(run["id"]) for run in on_disk if str(run["id"]) not in running]
    return Disk(
        running=running,
        not_home=tuple(run_id for run_id in ended if not is_home(line, run_id, store)),
        changed=_changed(line),
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


def _changed(line: Transport) -> tuple[str, ...]:
    search = line.run(["sh", "-c", _CHANGED], check=False)
    paths = search.stdout.split("\0")[:-1]
    if len(paths) < _SHOWN_AT_MOST and "" not in paths:
        raise RemoteCommandFailed(
            f"The files in its home folder could not be listed.\n{search.stderr.strip()[-1000:]}".rstrip(),
            left_behind="Nothing was changed.",
            next_step="Look around there, with gpuops ssh",
        )
    return tuple(path.removeprefix("./") for path in paths if path)
