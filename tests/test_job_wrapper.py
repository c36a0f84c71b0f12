"""The one file of ours that runs on the machine, run here as the machine runs it: alone, in a home of its own."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuops import job_wrapper
from tests.computers import until

_WRAPPER = Path(job_wrapper.__file__)
_LONG_S = 3600.0


@dataclass
class Box:
    """A machine as the wrapper sees it: a home folder. Its power switch is a file that appears."""

    home: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def is_off(self) -> bool:
        return (self.home / "off").exists()

    def job(
        self, script: str, *, run_id: str = "run-1", then: str = "keep", grace_s: float = _LONG_S, **run: Any
    ) -> Path:
        """The folder of a run that is ready to start."""
        folder = self.home / "gpuops" / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text(script)
        settings = {"then": then, "grace_minutes": grace_s / 60, "poweroff": ["touch", str(self.home / "off")], **run}
        (folder / "run.json").write_text(json.dumps(settings))
        return folder

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        """`job_wrapper.py WORDS`, in its own session, with nothing around it but its home folder."""
        process = subprocess.Popen(
            [sys.executable, "-I", _WRAPPER, *map(str, words)],
            env={"HOME": str(self.home), "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def ask(self, *words: object) -> bytes:
        process = self.start(*words)
        stdout, stderr = process.communicate(timeout=20)
        assert (process.returncode, stderr) == (0, b"")
        return stdout

    def run(self, folder: Path) -> int:
        """The exit code of the wrapper that ran this job to its end."""
        return self.start("run", folder).wait(20)

    def state(self, folder: Path) -> dict[str, Any]:
        return dict(json.loads(self.ask("state", folder)))

    def running(self, folder: Path) -> subprocess.Popen[bytes]:
        """The wrapper of a job that runs and has said something."""
        process = self.start("run", folder)
        until(lambda: b"\n" in _log(folder) and _written(folder)["state"] == "running", "the job says something")
        return process


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    home = tmp_path / "home of the machine's"
    home.mkdir()
    box = Box(home)
    yield box
    for process in box.processes:
        if process.poll() is None:
            process.terminate()
    for state in home.glob("gpuops/runs/*/state.json"):
        if pid := json.loads(state.read_text())["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    for process in box.processes:
        process.communicate(timeout=20)


def _log(folder: Path) -> bytes:
    path = folder / "log.txt"
    return path.read_bytes() if path.exists() else b""


def _written(folder: Path) -> dict[str, Any]:
    """The state as it stands in the file, true or not."""
    path = folder / "state.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"state": "nothing"}


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    stored = json.loads((folder / "manifest.json").read_text())
    assert stored["format"] == 1
    return {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in stored["files"]}


def _on_disk(folder: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# The file itself


def test_it_is_a_program_for_pythons_that_gpuops_itself_no_longer_runs_on() -> None:
    """It answers for a machine before it is known which Python that one has for the trainer."""
    ast.parse(_WRAPPER.read_text(), feature_version=(3, 8))


def test_it_imports_the_standard_library_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(_WRAPPER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# One job, from start to end


def test_a_job_goes_from_starting_over_running_to_succeeded(box: Box) -> None:
    folder = box.job("cp state.json ../before; echo; while [ ! -e go ]; do sleep 0.02; done")
    wrapper = box.start("run", folder)
    until(lambda: _written(folder)["state"] == "running", "it runs")
    running = box.state(folder)
    assert (running["state"], running["exit_code"], running["format"]) == ("running", None, 1)
    assert _is_alive(running["pid"])
    (folder / "go").touch()
    assert wrapper.wait(20) == 0
    ended = box.state(folder)
    assert (ended["state"], ended["exit_code"], ended["reason"]) == ("succeeded", 0, "")
    assert json.loads((folder.parent / "before").read_text())["state"] in {"starting", "running"}


@pytest.mark.parametrize("code", [1, 23, 75, 255])
def test_a_jobs_exit_code_is_the_wrappers(box: Box, code: int) -> None:
    folder = box.job(f"exit {code}")
    assert box.run(folder) == code
    state = box.state(folder)
    assert (state["state"], state["exit_code"], state["reason"]) == ("failed", code, f"exit code {code}")


def test_a_job_killed_by_a_signal_failed_with_128_and_its_number(box: Box) -> None:
    folder = box.job("kill -KILL $$")
    assert box.run(folder) == 128 + signal.SIGKILL
    assert box.state(folder)["state"] == "failed"


def test_the_log_has_every_byte_of_both_streams_in_order(box: Box) -> None:
    folder = box.job("for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf '\\000\\377\\r\\033['")
    box.run(folder)
    said = b"".join(b"out %d\nerr %d\n" % (i, i) for i in (1, 2, 3)) + b"\x00\xff\r\x1b["
    assert _log(folder) == said


def test_a_job_runs_in_its_own_folder_and_has_nothing_to_read_from(box: Box) -> None:
    folder = box.job("pwd; cat")
    box.run(folder)
    assert _log(folder) == f"{folder}\n".encode()


@pytest.mark.parametrize("ending", ["exit 0", "exit 3", "kill -KILL $$"])
def test_the_manifest_names_every_file_with_its_size_and_hash_on_every_ending(box: Box, ending: str) -> None:
    folder = box.job(f"mkdir -p out/deep; echo a > out/deep/ä; printf 'b\\0' > 'out/a \"b\"'; echo said; {ending}")
    box.run(folder)
    unlisted = {"manifest.json", "lock"}
    assert _manifest(folder) == {k: v for k, v in _on_disk(folder).items() if k not in unlisted}
    assert {"log.txt", "state.json", "run.json", "job.sh", "out/deep/ä"} <= _manifest(folder).keys()


def test_the_manifest_is_written_last(box: Box) -> None:
    folder = box.job("echo a > a")
    box.run(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_no_half_written_file_is_left_or_listed(box: Box) -> None:
    folder = box.job("echo a > .tmp-of-its-own; echo b > b")
    box.run(folder)
    assert ".tmp-of-its-own" not in _manifest(folder)
    assert [path.name for path in folder.glob(".tmp-*")] == [".tmp-of-its-own"]


def test_a_link_out_of_the_run_is_not_listed(box: Box) -> None:
    """What it points to is not part of the run, and does not travel with it."""
    (box.home / "secret").write_text("secret")
    folder = box.job("ln -s ../../../secret link")
    box.run(folder)
    assert "link" not in _manifest(folder)


def test_what_a_job_leaves_running_is_killed(box: Box) -> None:
    folder = box.job("sleep 600 & echo $!")
    box.run(folder)
    assert not _is_alive(int(_log(folder)))


# Signals and crashes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_job_may_end_in_its_own_way_and_was_interrupted(box: Box, number: signal.Signals) -> None:
    folder = box.job("trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.02; done")
    wrapper = box.running(folder)
    wrapper.send_signal(number)
    assert wrapper.wait(20) == 9
    assert _log(folder).endswith(b"bye\n")
    state = box.state(folder)
    assert (state["state"], state["exit_code"], state["reason"]) == ("interrupted", 9, f"signal {number.value}")
    assert _manifest(folder)["log.txt"] == _on_disk(folder)["log.txt"]


def test_a_job_that_is_shut_down_with_its_machine_does_not_switch_it_off_once_more(box: Box) -> None:
    folder = box.job("echo up; exec sleep 600", then="stop", grace_s=0.0)
    wrapper = box.running(folder)
    wrapper.terminate()
    wrapper.wait(20)
    assert not box.is_off


def test_a_job_whose_wrapper_was_killed_is_interrupted_whatever_its_file_says(box: Box) -> None:
    folder = box.job("echo up; exec sleep 600")
    wrapper = box.running(folder)
    wrapper.kill()
    wrapper.wait(20)
    assert _written(folder)["state"] == "running"
    state = box.state(folder)
    assert state["state"] == "interrupted"
    assert "went away" in state["reason"]


def test_a_process_that_has_the_jobs_number_does_not_make_it_run_again(box: Box) -> None:
    folder = box.job("echo up; exec sleep 600")
    wrapper = box.running(folder)
    wrapper.kill()
    wrapper.wait(20)
    (folder / "state.json").write_text(json.dumps({**_written(folder), "pid": os.getpid()}))
    assert box.state(folder)["state"] == "interrupted"


def test_a_job_outlives_its_killed_wrapper_but_does_not_hold_the_machine(box: Box) -> None:
    """Else one lost wrapper would keep every later job out."""
    folder = box.job("echo up; exec sleep 600")
    wrapper = box.running(folder)
    wrapper.kill()
    wrapper.wait(20)
    assert box.run(box.job("echo second", run_id="run-2")) == 0


def test_sealing_a_crashed_run_writes_the_manifest_and_the_truth(box: Box) -> None:
    folder = box.job("echo up; exec sleep 600")
    wrapper = box.running(folder)
    wrapper.kill()
    wrapper.wait(20)
    assert not (folder / "manifest.json").exists()
    box.ask("seal", folder)
    assert _written(folder)["state"] == "interrupted"
    assert _manifest(folder) == {k: v for k, v in _on_disk(folder).items() if k not in {"manifest.json", "lock"}}


def test_a_run_whose_files_did_not_all_arrive_is_interrupted_and_can_be_sealed(box: Box) -> None:
    folder = box.home / "gpuops" / "runs" / "half"
    folder.mkdir(parents=True)
    (folder / "job.sh").write_text("echo never")
    assert box.state(folder)["state"] == "interrupted"
    box.ask("seal", folder)
    assert "job.sh" in _manifest(folder)


# One machine, one job


def test_a_second_job_on_the_machine_is_refused_and_the_first_goes_on(box: Box) -> None:
    first = box.job("echo up; while [ ! -e go ]; do sleep 0.02; done; echo done")
    wrapper = box.running(first)
    second = box.job("echo never", run_id="run-2")
    assert box.run(second) == job_wrapper.BUSY_EXIT_CODE
    assert _log(second) == b""
    (first / "go").touch()
    assert wrapper.wait(20) == 0
    assert _log(first) == b"up\ndone\n"


def test_the_list_has_every_run_with_its_state_and_whether_it_is_sealed(box: Box) -> None:
    assert json.loads(box.ask("list")) == []
    box.run(box.job("exit 0", run_id="a"))
    box.run(box.job("exit 5", run_id="b"))
    box.running(box.job("echo up; exec sleep 600", run_id="c"))
    rows = [(run["id"], run["state"], run["sealed"]) for run in json.loads(box.ask("list"))]
    assert rows == [("a", "succeeded", True), ("b", "failed", True), ("c", "running", False)]


# Following


@pytest.mark.parametrize("offset", [0, 1, 9, 10, 99])
def test_follow_gives_exactly_the_rest_also_after_the_end(box: Box, offset: int) -> None:
    folder = box.job("printf 0123456789")
    box.run(folder)
    assert box.ask("follow", folder, offset) == b"0123456789"[offset:]


def test_follow_ends_when_the_job_ends_and_has_its_last_words(box: Box) -> None:
    folder = box.job("echo first; while [ ! -e go ]; do sleep 0.02; done; printf last")
    box.running(folder)
    followers = [box.start("follow", folder, offset) for offset in (0, 3)]
    assert followers[0].stdout
    assert followers[0].stdout.read(6) == b"first\n"  # while the job runs
    (folder / "go").touch()
    assert [follower.communicate(timeout=20)[0] for follower in followers] == [b"last", b"st\nlast"]


def test_follow_gives_the_jobs_exit_code(box: Box) -> None:
    folder = box.job("exit 23")
    box.run(folder)
    assert box.start("follow", folder, 0).wait(20) == 23


def test_follow_ends_when_the_wrapper_is_killed(box: Box) -> None:
    folder = box.job("echo up; exec sleep 600")
    wrapper = box.running(folder)
    follower = box.start("follow", folder, 0)
    wrapper.kill()
    assert follower.communicate(timeout=20)[0] == b"up\n"


# The grace time


def test_a_machine_that_nobody_uses_after_its_job_is_switched_off(box: Box) -> None:
    folder = box.job("exit 4", then="stop", grace_s=0.1)
    assert box.run(folder) == 4
    assert box.is_off


def test_a_machine_that_would_be_deleted_is_only_switched_off_by_itself(box: Box) -> None:
    box.run(box.job("exit 0", then="terminate", grace_s=0.0))
    assert box.is_off


def test_a_machine_that_is_kept_is_not_switched_off(box: Box) -> None:
    box.run(box.job("exit 0", then="keep", grace_s=0.0))
    assert not box.is_off


def test_the_results_are_sealed_before_the_grace_time_begins(box: Box) -> None:
    folder = box.job("exit 0", then="stop")
    box.start("run", folder)
    until((folder / "manifest.json").exists, "it is sealed")
    until(lambda: box.state(folder)["state"] == "succeeded", "its end is known")
    assert not box.is_off


def test_a_wrapper_that_only_waits_for_its_grace_time_ends_at_once_with_the_machine(box: Box) -> None:
    """A shutdown that had to wait for it would go on billing."""
    folder = box.job("exit 0", then="stop")
    wrapper = box.start("run", folder)
    until(lambda: _may_be_switched_off(box), "the job has ended and let go of the machine")
    wrapper.terminate()
    assert wrapper.wait(20) == -signal.SIGTERM
    assert not box.is_off
    assert box.state(folder)["state"] == "succeeded"


def test_a_client_that_uses_the_machine_begins_the_grace_time_anew(box: Box) -> None:
    in_use = box.home / "gpuops" / "in-use"
    folder = box.job("exit 0", then="stop", grace_s=0.4)
    wrapper = box.start("run", folder)
    until((folder / "manifest.json").exists, "the job has ended")
    touches = 0

    def has_been_used_for_longer_than_the_grace_time() -> bool:
        nonlocal touches
        in_use.touch()
        os.utime(in_use, (touches, touches))  # a new time, however coarse the file system's clock
        touches += 1
        return touches > 40  # 30 ms apart: three times the grace time

    until(has_been_used_for_longer_than_the_grace_time, "it was used")
    assert not box.is_off
    assert wrapper.poll() is None
    assert wrapper.wait(20) == 0
    assert box.is_off


def test_a_machine_on_which_another_job_runs_is_left_to_that_one(box: Box) -> None:
    first = box.start("run", box.job("exit 0", then="stop", grace_s=0.6))
    until((box.home / "gpuops/runs/run-1/manifest.json").exists, "the first job has ended")
    second = box.running(box.job("echo up; while [ ! -e go ]; do sleep 0.02; done", run_id="run-2", then="keep"))
    assert first.wait(20) == 0
    assert not box.is_off
    (box.home / "gpuops/runs/run-2/go").touch()
    assert second.wait(20) == 0
    assert not box.is_off  # the later job's word counts


def test_a_new_job_may_start_in_the_grace_time(box: Box) -> None:
    box.start("run", box.job("exit 0", then="stop"))
    until(lambda: _may_be_switched_off(box), "the job has ended and let go of the machine")
    assert box.run(box.job("exit 0", run_id="run-2")) == 0


def _may_be_switched_off(box: Box) -> bool:
    """True once the grace time of the first job has begun."""
    sealed = (box.home / "gpuops/runs/run-1/manifest.json").exists()
    with (box.home / "gpuops" / "job.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return sealed
