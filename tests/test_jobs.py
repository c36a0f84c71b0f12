"""Jobs on a real machine of the sandbox's, over a real ssh line. A job is any argv; the trainer's turn is elsewhere."""

from __future__ import annotations

import itertools
import json
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuops import jobs
from gpuops.errors import (
    BadInput,
    JobRunning,
    MachineUnreachable,
    ResultsDamaged,
    RunError,
    UnfitMachine,
    UnknownRecipe,
)
from gpuops.jobs import Training
from gpuops.machine import Address, Machine, State
from gpuops.openssh import Access
from gpuops.results import Outcome
from gpuops.runs import Run, RunStore
from gpuops.sync import Route
from gpuops.transports.ssh import SshTransport
from tests.computers import until
from tests.sandbox import machines
from tests.transports.servers import Wire

_NOW = datetime(2026, 11, 23, 9, 59, 59, tzinfo=timezone.utc)
_numbers = itertools.count(1)


@dataclass
class There:
    """A machine, a line to it, and this computer's runs."""

    machine: machines.Machine
    line: SshTransport
    store: RunStore
    route: Route
    ended: list[Run] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The machine's home folder, looked into from outside."""
        return self.machine.home

    def run(self, script: str, *, then: str = "keep", python: str = sys.executable) -> Run:
        return Run(
            id=f"20261123T095959-{next(_numbers):06x}",
            machine="fastai",
            machine_id="i-1",
            provider="aws",
            region="us-west-2",
            recipe="script",
            python=python,
            argv=("sh", "-c", script),
            trainer_digest="",
            recipe_digest="",
            data_digest="",
            price_usd_per_hour=0.9,
            then=then,
            grace_minutes=60.0,
            poweroff=("true",),
            created=_NOW.isoformat(),
        )

    def start(self, script: str) -> Run:
        run = self.run(script)
        self.store.add(run)
        jobs.start(self.line, run, b"", {"trainer": "gpuops/trainer/1"})
        return run

    def folder(self, run: Run) -> Path:
        return self.home / run.remote_dir

    def let_go(self, run: Run) -> None:
        (self.folder(run) / "go").touch()

    def state(self, run: Run) -> str:
        return jobs.state(self.line, run).state

    def to_its_end(self, script: str) -> Run:
        run = self.start(script)
        until(lambda: self.state(run) not in {"starting", "running"}, "the job ends")
        return run

    def log_at_home(self, run: Run) -> bytes:
        return (self.store.path(run.id) / "log.txt").read_bytes()

    def follow(
        self, run: Run, line: SshTransport | None = None, show: Callable[[bytes], None] = lambda _: None
    ) -> None:
        with (self.store.path(run.id) / "log.txt").open("ab") as log:
            jobs.follow(line or self.line, run, log, show)

    def collect(self, run: Run) -> Outcome:
        return jobs.collect(self.route, run, self.store, _NOW)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machines.Machine]:
    with machines.machine_in(tmp_path_factory.mktemp("jobs")) as machine:
        yield machine.start().wait_for_ssh()


@pytest.fixture
def there(machine: machines.Machine, tmp_path: Path) -> Iterator[There]:
    with _line(machine) as line:
        config = tmp_path / "ssh_config"
        words = machine.openssh("ssh")[3:]
        config.write_text("Host fastai\n" + "".join(f" {word[2:].replace('=', ' ', 1)}\n" for word in words))
        config.write_text(f"{config.read_text()} HostName {machine.host}\n User {machines.USER}\n")
        route = Route.find(line, host="fastai", access=Access(config=config))
        yield There(machine, line, RunStore(tmp_path / "runs"), route)
    with _line(machine) as line:
        for entry in jobs.on_machine(line, sys.executable):
            if entry["state"] == "running":
                line.run(["pkill", "-TERM", "-f", "job-[0-9a-f]*.py run"], check=False)
        until(lambda: not _running(line), "no job is left")
    for name in ("gpuops/runs", ".local/bin", "src"):
        shutil.rmtree(machine.home / name, ignore_errors=True)


def _running(line: SshTransport) -> bool:
    return any(entry["state"] in {"starting", "running"} for entry in jobs.on_machine(line, sys.executable))


@contextmanager
def _line(machine: machines.Machine, wire: Wire | None = None) -> Iterator[SshTransport]:
    address = Address(host=machine.host, port=machine.port, user=machines.USER)
    known = Machine(
        id="i-1",
        name="fastai",
        provider="aws",
        region="us-west-2",
        zone=None,
        type="p2.xlarge",
        state=State.RUNNING,
        ssh=wire.address if wire else address,
        host_key=machine.host_key.public,
    )
    with SshTransport.connect(known, identity_file=machine.client_key.path, connect_timeout_s=10) as line:
        yield line


def _wire(machine: machines.Machine) -> Wire:
    return Wire(Address(host=machine.host, port=machine.port, user=machines.USER))


# The machine's own Python


def _a_python(path: Path, *, version: tuple[int, int] = (3, 12), lacks: tuple[str, ...] = ()) -> None:
    """An interpreter that gives this account of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    account = json.dumps([str(path), [*version, 0], lacks])
    path.write_text(f"#!/bin/sh\necho '{account}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _the_only_pythons(there: There, **account: object) -> None:
    for name in ("python", "python3"):
        _a_python(there.home / ".local" / "bin" / name, **account)  # type: ignore[arg-type]


def test_the_machines_own_interpreter_is_found_where_it_is(there: There) -> None:
    theirs = there.home / ".local" / "bin" / "python3"
    _a_python(theirs)
    assert jobs.find_python(there.line, "fastai") == str(theirs)


def test_an_interpreter_that_will_not_do_is_passed_over_for_the_next(there: There) -> None:
    _a_python(there.home / ".local" / "bin" / "python3", version=(3, 6))
    _a_python(there.home / ".local" / "bin" / "python")
    assert jobs.find_python(there.line, "fastai") == str(there.home / ".local" / "bin" / "python")


def test_a_real_interpreter_gives_its_own_path(there: There) -> None:
    """Not ours: the one that the machine's `python3` turns out to be."""
    assert jobs.find_python(there.line, "fastai") == sys.executable


def test_a_python_that_is_too_old_is_refused_with_its_version(there: There) -> None:
    _the_only_pythons(there, version=(3, 6))
    with pytest.raises(UnfitMachine, match=r"no Python 3\.10 or newer .*/python3 is Python 3\.6") as refused:
        jobs.find_python(there.line, "fastai")
    assert refused.value.left_behind == "Nothing was shipped."
    assert not (there.home / "gpuops" / "trainer").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(there: There) -> None:
    _the_only_pythons(there, lacks=("torchvision", "safetensors"))
    with pytest.raises(UnfitMachine, match="/python3 lacks torchvision, safetensors") as refused:
        jobs.find_python(there.line, "fastai")
    assert refused.value.next_step.startswith(
        "gpuops up fastai; gpuops ssh fastai 'python3 -m pip install torch torchvision"
    )


def test_a_machine_without_any_python_is_refused(there: There) -> None:
    for name in ("python", "python3"):
        path = there.home / ".local" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\nexit 127\n")
        path.chmod(0o755)
    with pytest.raises(UnfitMachine, match="what the trainer needs"):
        jobs.find_python(there.line, "fastai")


# Starting


def test_a_job_runs_in_its_folder_with_the_shipped_trainer_in_reach(there: There) -> None:
    run = there.to_its_end('pwd; echo "$PYTHONPATH"; (cd "$PYTHONPATH/.."; pwd)')
    here = f"{there.home}/{run.remote_dir}"
    (there.home / "gpuops" / "trainer" / "1").mkdir(parents=True, exist_ok=True)
    again = there.to_its_end('cd "$PYTHONPATH" && pwd -P')
    assert (there.folder(run) / "log.txt").read_text().splitlines()[0] == here
    assert (there.folder(again) / "log.txt").read_text() == f"{there.home}/gpuops/trainer/1\n"


@pytest.mark.parametrize("words", [("a b", "'", '"', "$HOME", "`id`", "new\nline", "é", "", "*", "\\n", "-n")])
def test_every_word_of_the_command_arrives_as_it_was_given(there: There, words: tuple[str, ...]) -> None:
    from dataclasses import replace

    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    run = replace(there.run(""), argv=(sys.executable, "-c", code, *words))
    jobs.start(there.line, run, b"", {"trainer": "t"})
    until(lambda: there.state(run) == "succeeded", "the job ends")
    assert json.loads((there.folder(run) / "log.txt").read_text()) == list(words)


def test_a_started_job_outlives_the_line_that_started_it(there: There) -> None:
    with _line(there.machine) as line:
        run = there.run("until [ -e go ]; do sleep 0.02; done; echo went")
        jobs.start(line, run, b"", {"trainer": "t"})
        line.close()
    assert there.state(run) == "running"
    there.let_go(run)
    until(lambda: there.state(run) == "succeeded", "the job ends")
    assert (there.folder(run) / "log.txt").read_text() == "went\n"


def test_what_is_written_for_the_job_is_what_was_asked_for(there: There) -> None:
    run = there.run("exit 0")
    jobs.start(there.line, run, b"epochs = 1\n", {"trainer": "t"})
    assert (there.folder(run) / "recipe.toml").read_bytes() == b"epochs = 1\n"
    assert (there.folder(run) / "run.json").read_bytes() == run.json()


def test_a_second_job_is_refused_before_and_at_its_start(there: There) -> None:
    first = there.start("until [ -e go ]; do sleep 0.02; done; echo unharmed")
    with pytest.raises(JobRunning, match=first.id) as refused:
        jobs.refuse_if_busy(there.line, sys.executable)
    assert refused.value.next_step == f"gpuops attach {first.id}"
    with pytest.raises(JobRunning):
        there.start("echo never")
    there.let_go(first)
    until(lambda: there.state(first) == "succeeded", "the first job ends")
    assert (there.folder(first) / "log.txt").read_text() == "unharmed\n"
    jobs.refuse_if_busy(there.line, sys.executable)


def test_a_job_that_does_not_start_says_why(there: There) -> None:
    run = there.run("exit 0", python="/nowhere/python")
    with pytest.raises(RunError, match="/nowhere/python"):
        jobs.start(there.line, run, b"", {"trainer": "t"})


def test_a_job_refused_at_its_start_is_no_run_that_goes_on(there: There) -> None:
    first = there.start("until [ -e go ]; do sleep 0.02; done")
    with pytest.raises(JobRunning):
        there.start("echo never")
    there.let_go(first)
    until(lambda: not _running(there.line), "the first job ends")
    states = sorted(str(entry["state"]) for entry in jobs.on_machine(there.line, sys.executable))
    assert states == ["interrupted", "succeeded"]


# Following

# Every byte there is, and bytes that are never the same twice, until it is let go.
_SAYS_EVERYTHING = (
    f'{sys.executable} -c \'import os, time\nwhile not os.path.exists("go"):\n'
    " os.write(1, os.urandom(3000) + bytes(range(256))); time.sleep(0.01)'"
)


def test_the_log_at_home_is_the_machines_byte_for_byte_however_often_the_line_is_cut(there: There) -> None:
    run = there.start(_SAYS_EVERYTHING)
    shown = bytearray()
    for _ in range(5):
        wire = _wire(there.machine)
        so_far = len(shown)

        def cut_after_some(data: bytes, wire: Wire = wire, so_far: int = so_far) -> None:
            shown.extend(data)
            if len(shown) > so_far + 10_000:
                wire.cut()

        with pytest.raises(MachineUnreachable), _line(there.machine, wire) as line:
            there.follow(run, line, cut_after_some)
    there.let_go(run)
    there.follow(run, show=shown.extend)
    assert there.state(run) == "succeeded"
    in_truth = (there.folder(run) / "log.txt").read_bytes()
    assert len(in_truth) > 50_000
    assert there.log_at_home(run) == in_truth
    assert shown == in_truth


def test_following_shows_what_is_said_while_it_is_said(there: There) -> None:
    run = there.start("echo first; until [ -e go ]; do sleep 0.02; done; echo last")
    shown = []

    def let_go_once_it_is_seen(data: bytes) -> None:
        shown.append(data)
        there.let_go(run)

    there.follow(run, show=let_go_once_it_is_seen)
    assert b"".join(shown) == b"first\nlast\n"
    assert shown[0] == b"first\n"


def test_following_a_job_that_has_ended_gives_its_log_and_ends(there: There) -> None:
    run = there.to_its_end("printf whole")
    there.follow(run)
    there.follow(run)
    assert there.log_at_home(run) == b"whole"


def test_a_file_that_holds_more_than_the_machines_log_stays_and_following_ends(there: There) -> None:
    run = there.to_its_end("printf whole")
    (there.store.path(run.id) / "log.txt").write_bytes(b"whole and more")
    there.follow(run)
    assert there.log_at_home(run) == b"whole and more"


# Collecting


def test_an_ended_run_is_home_once_every_file_has_been_verified(there: There) -> None:
    run = there.to_its_end("mkdir -p out; printf '{\"accuracy\": 0.5}' >out/summary.json; echo said; exit 3")
    outcome = there.collect(run)
    assert (outcome.state, outcome.exit_code, outcome.accuracy) == ("failed", 3, 0.5)
    assert there.store.is_home(run.id)
    assert there.log_at_home(run) == b"said\n"


def test_a_run_that_tar_brought_home_is_as_whole(there: There) -> None:
    run = there.to_its_end("mkdir -p out; head -c 100000 /dev/urandom >out/weights; ln -s out link")
    there.route = Route(line=there.line, host="fastai", rsync_access=None)
    assert there.collect(run).state == "succeeded"
    home = there.store.path(run.id)
    assert (home / "out" / "weights").read_bytes() == (there.folder(run) / "out" / "weights").read_bytes()


def test_a_file_changed_on_the_machine_after_the_runs_end_is_named_and_the_run_is_not_home(there: There) -> None:
    run = there.to_its_end("mkdir out; echo good >out/weights; echo fine >out/other")
    (there.folder(run) / "out" / "weights").write_text("evil\n")
    with pytest.raises(ResultsDamaged, match=r"1 file .*: out/weights\.") as refused:
        there.collect(run)
    assert not there.store.is_home(run.id)
    assert refused.value.next_step == f"gpuops pull {run.id}"
    (there.folder(run) / "out" / "weights").write_text("good\n")
    there.collect(run)
    assert there.store.is_home(run.id)


@pytest.mark.skipif(not shutil.which("rsync") or not shutil.which("ssh"), reason="there is no rsync, or no ssh, here")
def test_a_file_damaged_on_its_way_is_named_and_fetched_again(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = there.to_its_end("mkdir out; echo good >out/weights")
    weights = there.store.path(run.id) / "out" / "weights"
    real = shutil.which("rsync")
    (tmp_path / "bin").mkdir()
    bad_disk = tmp_path / "bin" / "rsync"  # what it wrote is no longer what it wrote, under the same size and time
    bad_disk.write_text(
        f'#!/bin/sh\n{real} "$@" || exit\ntouch -r {weights} t; echo Good >{weights}; touch -r t {weights}\n'
    )
    bad_disk.chmod(0o755)
    with monkeypatch.context() as once:
        once.chdir(tmp_path)
        once.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        with pytest.raises(ResultsDamaged, match="out/weights"):
            there.collect(run)
    assert not there.store.is_home(run.id)
    there.collect(run)
    assert weights.read_text() == "good\n"
    assert there.store.is_home(run.id)


@pytest.mark.skipif(not machines.namespaces_are_allowed(), reason="no power cut without namespaces")
def test_a_run_that_a_crash_has_cut_off_comes_home_as_interrupted(there: There) -> None:
    run = there.start("mkdir out; echo half >out/metrics; echo up; sleep 600")
    until(lambda: b"up" in (there.folder(run) / "log.txt").read_bytes(), "it works")
    assert there.machine.process
    there.machine.process.kill()  # a power cut: nothing on it has a moment left
    there.machine.ended()
    until(lambda: not there.machine.answers(), "all of it is gone")
    there.machine.start().wait_for_ssh()
    with _line(there.machine) as line:
        there.route = Route(line=line, host="fastai", rsync_access=None)
        outcome = there.collect(run)
    assert outcome.state == "interrupted"
    assert "went away" in outcome.reason
    assert there.store.is_home(run.id)
    assert (there.store.path(run.id) / "out" / "metrics").read_text() == "half\n"


def test_a_run_of_another_computers_is_adopted_from_the_machine(there: There, tmp_path: Path) -> None:
    run = there.to_its_end("exit 0")
    other = RunStore(tmp_path / "other")
    assert jobs.adopt(there.line, run.id, other) == run
    assert other.find(run.id) == run
    jobs.collect(there.route, run, other, _NOW)
    assert other.is_home(run.id)


def test_a_folder_whose_run_never_arrived_is_no_run(there: There) -> None:
    (there.home / "gpuops" / "runs" / "20261123T095959-aaaaaa").mkdir(parents=True)
    assert jobs.adopt(there.line, "20261123T095959-aaaaaa", there.store) is None
    assert there.store.all() == []


# What can be known before anything is started


def test_an_unknown_recipe_names_the_closest_one() -> None:
    with pytest.raises(UnknownRecipe, match="Did you mean 'digits'"):
        jobs.recipe_file("digit")


@pytest.mark.parametrize(("override", "says"), [("stages.0.epoch=1", "epochs"), ("stages.0.lr=fast", "lr")])
def test_a_recipe_that_the_trainer_would_refuse_is_refused_here(override: str, says: str) -> None:
    training = Training(recipe=jobs.recipe_file("digits"), data="digits", options=("--set", override))
    with pytest.raises(BadInput, match=says) as refused:
        jobs.check(training)
    assert refused.value.left_behind == "Nothing was started."


@pytest.mark.parametrize("wrong", [{"data": Path("/nowhere/data")}, {"weights": Path("/nowhere/w.safetensors")}])
def test_missing_data_and_weights_are_refused_here(wrong: dict[str, Path]) -> None:
    training = Training(**{"recipe": jobs.recipe_file("digits"), "data": "digits", **wrong})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="/nowhere/"):
        jobs.check(training)


def test_the_trainer_that_is_shipped_is_this_checkouts_own_without_what_python_makes_of_it() -> None:
    files = jobs.trainer_files()
    assert files.root == Path(jobs.__file__).parents[1] / "trainer"
    assert {"__main__.py", "recipes/digits.toml"} <= set(files.paths)
    assert not [path for path in files.paths if path.endswith(".pyc")]
