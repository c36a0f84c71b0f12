"""What is on a machine's disk and nowhere else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuops import disk, jobs
from gpuops.disk import Disk
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
    jobs.collect(Route(line=line, host="fastai", rsync_config=None), run, store, _NOW)


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
    mine = [".hidden", "deep/er/it's.txt", "gpuops/mine.txt", "gpuops/runs/old/notes.txt", "notes.ipynb"]
    for name in (*mine, "gpuops/data/photos/1.jpg", f"gpuops/runs/{_ID}/log.txt", ".cache/torch/x", ".ssh/config"):
        (machine.home / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.home / name).write_text("")
    (machine.home / "of-the-image").write_text("")
    os.utime(machine.home / "of-the-image", (1_500_000_000, 1_500_000_000))
    assert sorted(disk.look(line, store).changed) == mine


def test_of_very_many_files_two_hundred_are_named(
    line: SshTransport, store: RunStore, machine: machines.Machine
) -> None:
    for number in range(300):
        (machine.home / f"file-{number}").touch()
    assert len(disk.look(line, store).changed) == 200
