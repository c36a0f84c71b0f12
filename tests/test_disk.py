"""What is on a machine's disk and nowhere else."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuops import disk, jobs
from gpuops.disk import Disk
from gpuops.errors import RemoteCommandFailed
from gpuops.machine import Address, Machine, State
from gpuops.runs import Run, RunStore
from gpuops.sync import Route
from gpuops.transports.ssh import SshTransport
from tests.computers import until
from tests.sandbox import machines

_ID = "20261123T095959-000001"
_NOW = datetime(2026, 11, 23, 9, 59, 59, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machines.Machine]:
    with machines.machine_in(tmp_path_factory.mktemp("disk")) as machine:
        yield machine.start().wait_for_ssh()


@pytest.fixture
def line(machine: machines.Machine) -> Iterator[SshTransport]:
    with _line(machine) as line:
        yield line
        line.run(["find", ".", "-mindepth", "1", "-not", "-path", "./.ssh*", "-delete"], check=False)


@contextmanager
def _line(machine: machines.Machine) -> Iterator[SshTransport]:
    known = Machine(
        id="i-1",
        name="fastai",
        provider="aws",
        region="us-west-2",
        zone=None,
        type="p2.xlarge",
        state=State.RUNNING,
        ssh=Address(host=machine.host, port=machine.port, user=machines.USER),
        host_key=machine.host_key.public,
    )
    with SshTransport.connect(known, identity_file=machine.client_key.path, connect_timeout_s=10) as line:
        yield line


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def _start(line: SshTransport, store: RunStore, run_id: str, script: str = "echo said") -> Run:
    run = Run(
        id=run_id,
        machine="fastai",
        machine_id="i-1",
        provider="aws",
        region="us-west-2",
        recipe="script",
        python=sys.executable,
        argv=("sh", "-c", script),
        trainer_digest="",
        recipe_digest="",
        data_digest="",
        price_usd_per_hour=0.9,
        then="keep",
        grace_minutes=60.0,
        poweroff=("true",),
        created=_NOW.isoformat(),
    )
    store.add(run)
    jobs.start(line, run, b"", {"trainer": "t"})
    return run


def _ended(line: SshTransport, store: RunStore, run_id: str) -> Run:
    run = _start(line, store, run_id)
    until(lambda: jobs.state(line, run).state == "succeeded", "the job ends")
    return run


def _bring_home(line: SshTransport, store: RunStore, run: Run) -> None:
    jobs.collect(Route(line=line, host="fastai", rsync_access=None), run, store, _NOW)


def test_a_new_disk_holds_nothing_to_lose(line: SshTransport, store: RunStore) -> None:
    assert disk.look(line, store) == Disk()


def test_a_run_is_told_as_going_on_then_as_not_home_and_then_no_more(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    run = _start(line, store, _ID, "until [ -e go ]; do sleep 0.02; done")
    assert disk.look(line, store) == Disk(running=(_ID,))
    (machine.home / run.remote_dir / "go").touch()
    until(lambda: jobs.state(line, run).state == "succeeded", "the job ends")
    assert disk.look(line, store) == Disk(not_home=(_ID,))
    _bring_home(line, store, run)
    assert disk.look(line, store) == Disk()


def test_a_run_whose_copy_at_home_was_damaged_or_deleted_later_is_not_home(line: SshTransport, store: RunStore) -> None:
    ids = [_ID[:-1] + digit for digit in "123"]
    runs = [_ended(line, store, run_id) for run_id in ids]
    for run in runs:
        _bring_home(line, store, run)
    (store.path(ids[0]) / "log.txt").write_text("else")
    (store.path(ids[1]) / "log.txt").unlink()
    assert disk.look(line, store).not_home == (ids[0], ids[1])


def test_a_run_that_changed_on_the_machine_since_it_came_home_is_not_home(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    run = _ended(line, store, _ID)
    _bring_home(line, store, run)
    manifest = machine.home / run.remote_dir / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "resumed": True}))
    assert disk.look(line, store).not_home == (_ID,)


def test_a_run_that_never_arrived_whole_and_one_that_another_computer_made_are_named(
    line: SshTransport, store: RunStore, machine: machines.Machine, tmp_path: Path
) -> None:
    theirs = _ID[:-1] + "9"
    (machine.home / "gpuops" / "runs" / _ID).mkdir(parents=True)
    _ended(line, RunStore(tmp_path / "another"), theirs)
    assert disk.look(line, store).not_home == (_ID, theirs)


def test_files_made_since_the_first_boot_are_named_but_not_what_gpuops_and_caches_hold(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    mine = [".hidden", "deep/er/it's.txt", "gpuops/mine.txt", "gpuops/runs/old/notes.txt", "notes.ipynb", "two\nlines"]
    ours = ["gpuops/data/photos/1.jpg", f"gpuops/runs/{_ID}/log.txt", ".cache/torch/x", ".ssh/config"]
    for name in (*mine, *ours, ".sudo_as_admin_successful"):
        (machine.home / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.home / name).write_text("")
    assert sorted(disk.look(line, store).changed) == mine


def test_files_that_arrived_with_an_old_date_are_named_too(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    """As `rsync -t`, `tar x`, `unzip` and `scp -p` leave them."""
    (machine.home / "unpacked.csv").write_text("")
    os.utime(machine.home / "unpacked.csv", (1_500_000_000, 1_500_000_000))
    assert disk.look(line, store).changed == ("unpacked.csv",)


def test_links_are_named_wherever_they_lead(line: SshTransport, store: RunStore, machine: machines.Machine) -> None:
    (machine.home / "best.pt").symlink_to("nowhere")
    (machine.home / "data").symlink_to("/usr")
    assert sorted(disk.look(line, store).changed) == ["best.pt", "data"]


def test_what_the_image_had_is_not_named_until_it_is_changed(tmp_path: Path, store: RunStore) -> None:
    with machines.machine_in(tmp_path) as machine:
        machine.home.mkdir(parents=True)
        for name in ("untouched", "edited", "renamed"):
            (machine.home / name).write_text("")
        time.sleep(2.5)  # the first boot is known to the second
        with _line(machine.start().wait_for_ssh()) as line:
            assert disk.look(line, store).changed == ()
            (machine.home / "edited").write_text("else")
            (machine.home / "renamed").rename(machine.home / "new name")
            assert sorted(disk.look(line, store).changed) == ["edited", "new name"]


def test_a_file_that_every_new_home_gets_is_named_only_when_it_was_changed(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    as_given = (machine.folder / "disk/etc/skel/.profile").read_bytes()
    (machine.home / ".profile").write_bytes(as_given)
    (machine.home / "sub").mkdir()
    (machine.home / "sub" / ".profile").write_bytes(as_given)
    assert disk.look(line, store).changed == ("sub/.profile",)
    (machine.home / ".profile").write_bytes(as_given + b"alias gs='git status'\n")
    assert sorted(disk.look(line, store).changed) == [".profile", "sub/.profile"]


@pytest.mark.parametrize("log", [None, b"", b"\0\0\0\0boot 1 a\nboot 2000000000 b\n"], ids=["none", "empty", "damaged"])
def test_where_the_first_boot_is_not_known_everything_in_the_home_folder_is_named(
    line: SshTransport, store: RunStore, machine: machines.Machine, log: bytes | None
) -> None:
    """As on an adopted machine: it may all be the person's."""
    uptime_log = machine.folder / "disk/var/lib/gpuops/uptime.log"
    until(lambda: uptime_log.exists() and uptime_log.stat().st_size, "the first boot is in the log")
    (machine.home / "ancient").write_text("")
    os.utime(machine.home / "ancient", (1_000_000_000, 1_000_000_000))
    before = uptime_log.read_bytes()
    uptime_log.unlink()
    try:
        if log is not None:
            uptime_log.write_bytes(log)
        assert disk.look(line, store).changed == ("ancient",)
    finally:
        uptime_log.write_bytes(before)


def test_of_very_many_files_two_hundred_are_named(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    for number in range(2000):
        (machine.home / f"file-{number:0100}").touch()  # more than fits into a pipe whose reader has read enough
    assert len(disk.look(line, store).changed) == 200


@pytest.mark.parametrize("number", [199, 200, 201])
def test_just_about_as_many_files_as_are_named_are_no_failure(
    line: SshTransport, store: RunStore, machine: machines.Machine, number: int
) -> None:
    for name in range(number):
        (machine.home / str(name)).touch()
    assert len(disk.look(line, store).changed) == min(number, 200)


def test_a_search_that_fails_is_not_taken_for_nothing_found(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    find = machine.home / ".local/bin/find"
    find.parent.mkdir(parents=True)
    find.write_text('#!/bin/sh\n/usr/bin/find . -name notes -print0\necho "find: no such test: -newerct" >&2\nexit 1\n')
    find.chmod(0o755)
    (machine.home / "notes").touch()
    with pytest.raises(RemoteCommandFailed, match="find: no such test: -newerct"):
        disk.look(line, store)


def test_a_home_folder_that_is_missing_is_not_taken_for_an_empty_one(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    away = machine.home.with_name("away")
    machine.home.rename(away)
    try:
        with pytest.raises(RemoteCommandFailed):
            disk.look(line, store)
    finally:
        away.rename(machine.home)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    closed = machine.home / "closed"
    closed.mkdir(mode=0o000)
    try:
        with pytest.raises(RemoteCommandFailed, match="closed"):
            disk.look(line, store)
    finally:
        closed.chmod(0o700)
