"""`train`, `attach`, `pull`, `runs`, `down`: a run's life from the command line to verified results, and refusals.

The first tests train in earnest, on digits. In the others the machine's Python is a quick one (`quick_machine.py`).
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuops import jobs, results, workflow
from gpuops.errors import (
    JobRunning,
    NotConfirmed,
    NothingOffered,
    ResultsNotHome,
    StateError,
    UnfitMachine,
    UnknownRun,
)
from gpuops.jobs import Training
from gpuops.machine import State
from gpuops.runs import Run, RunStore
from gpuops.workflow import Finished
from tests.computers import Cloud, Computer, agree, quick_clock, until
from tests.quick_machine import QuickMachine, quick_machine, slow_rsync

_TINY = ("--set", "stages.0.epochs=1")


@pytest.fixture
def mine(new_computer: Callable[[], Computer]) -> Computer:
    return new_computer()


@pytest.fixture
def other(new_computer: Callable[[], Computer], mine: Computer) -> Computer:
    """Another computer of the same person's."""
    return new_computer()


def _train(
    computer: Computer,
    *,
    data: Path | str = "digits",
    weights: Path | None = None,
    then: str = "stop",
    show: Callable[[bytes], None] = agree,
    grace_minutes: float = 10.0,
    **flags: object,
) -> Finished:
    return workflow.train(
        computer.settings(types="g4dn.xlarge", grace_minutes=grace_minutes, **flags),
        Training(recipe=jobs.recipe_file("digits"), data=data, weights=weights),
        then=then,
        confirm=agree,
        tell=computer.told.append,
        show=show,
        clock=quick_clock(),
    )


def _store(computer: Computer) -> RunStore:
    return RunStore(computer.home / "runs")


def _logs_are_equal(computer: Computer, quick: QuickMachine) -> bool:
    [there] = quick.runs
    return (_store(computer).path(there.name) / "log.txt").read_bytes() == (there / "log.txt").read_bytes()


def _training_alone(computer: Computer, quick: QuickMachine) -> Run:
    """A run whose training has said its first word and goes on, followed by nobody any more."""

    def detach(_: bytes) -> None:
        raise KeyboardInterrupt

    quick.hold()
    with pytest.raises(KeyboardInterrupt):
        _train(computer, show=detach)
    return _store(computer).all()[-1]


def _attach(computer: Computer, run_id: str | None = None, *, show: Callable[[bytes], None] = agree) -> Finished:
    return workflow.attach(computer.settings(), run_id, tell=computer.told.append, show=show, clock=quick_clock())


# In earnest


def test_train_from_nothing_brings_weights_and_metrics_home_and_stops_the_machine(
    the_cloud: Cloud, computer: Computer
) -> None:
    screen = computer.gpuops("train", "digits", "--allow-cpu", "-y", *_TINY).succeeded()
    [run] = _store(computer).all()
    home = _store(computer).path(run.id)
    assert results.verify(home) > 5
    assert _store(computer).is_home(run.id)
    summary = json.loads((home / "out" / "summary.json").read_text())
    rows = dict(line.split(maxsplit=1) for line in screen.splitlines() if line.startswith("  "))
    assert rows["run"] == f"{run.id} succeeded"
    assert rows["accuracy"] == f"{summary['accuracy']:.4f}"
    assert rows["duration"] == f"{summary['seconds']:.1f} s of training"
    assert rows["cost"].endswith("for its hours on the machine, at $0.544/h")
    assert rows["cost"].startswith("$0.0")
    assert rows["weights"] == str(home / "out" / "weights.safetensors")
    assert rows["results"].startswith(str(home))
    assert "training on the CPU, as --allow-cpu says" in screen
    assert {"metrics.jsonl", "recipe.toml", "log.txt", "state.json"} <= {path.name for path in home.iterdir()}
    assert the_cloud.states(computer.name) == ["stopped"]


def test_a_machine_without_a_gpu_does_not_train_on_its_cpu_and_is_stopped(the_cloud: Cloud, computer: Computer) -> None:
    """Law 7. The exit code is the trainer's own."""
    ran = computer.gpuops("train", "digits", "-y", *_TINY)
    assert ran.exit_code == 23
    assert "--allow-cpu" in ran.output
    assert "Traceback" not in ran.output
    [run] = _store(computer).all()
    assert _store(computer).is_home(run.id)
    assert results.outcome(_store(computer).path(run.id)).state == "failed"
    assert the_cloud.states(computer.name) == ["stopped"]


# What becomes of the machine


def test_a_data_folder_and_weights_go_along_whatever_they_are_called(computer: Computer, tmp_path: Path) -> None:
    quick = quick_machine(computer)
    names = ("cats/1.jpg", 'dogs/-it\'s "2".jpg', ".hidden")
    for name in names:
        (tmp_path / "my $HOME" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my $HOME" / name).write_text(name)
    weights = tmp_path / "best of.safetensors"
    weights.write_bytes(b"weights")
    finished = _train(computer, data=tmp_path / "my $HOME", weights=weights)
    words = dict(itertools.pairwise(finished.run.argv))
    data_there, weights_there = (quick.runs[0] / words[flag] for flag in ("--data", "--weights"))
    assert {name: (data_there / name).read_text() for name in names} == {name: name for name in names}
    assert weights_there.read_bytes() == b"weights"
    assert (quick.runs[0] / "out").is_dir()
    assert finished.outcome.state == "succeeded"


def test_keep_leaves_the_machine_running_on_whose_own_interpreter_the_job_ran(computer: Computer) -> None:
    quick = quick_machine(computer)
    finished = _train(computer, then="keep")
    assert finished.outcome.state == "succeeded"
    assert finished.run.python == finished.run.argv[0] == str(quick.python)
    assert quick.state == "running"


def test_terminate_deletes_the_machine_once_everything_is_home(computer: Computer) -> None:
    quick = quick_machine(computer)
    finished = _train(computer, then="terminate")
    assert quick.state == ""
    assert results.verify(_store(computer).path(finished.run.id)) > 5


def test_terminate_becomes_stop_when_an_earlier_run_or_a_file_in_the_home_folder_is_nowhere_else(
    mine: Computer, other: Computer
) -> None:
    quick = quick_machine(other)
    theirs = _train(other, then="keep").run
    (quick.home / "notes.ipynb").write_text("mine")
    assert _train(mine, then="terminate").outcome.state == "succeeded"
    assert quick.state == "stopped"
    [why] = [step for step in mine.told if step.endswith("It is stopped instead")]
    assert theirs.id in why
    assert "notes.ipynb" in why


# Detached and attached again


def test_ctrl_c_detaches_and_says_what_runs_on_and_costs_and_attach_follows_to_the_end(computer: Computer) -> None:
    quick = quick_machine(computer)
    quick.hold()
    with computer.process("train", "digits", "-y") as process:
        assert process.stdout
        assert process.stdout.readline() == "epoch 1\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    [run] = _store(computer).all()
    words = " ".join(stderr.split())
    assert f"Detached: run {run.id} goes on, on {computer.name}, at $0.544/h." in words
    for command in (f"gpuops attach {run.id}", f"gpuops pull {run.id}", f"gpuops down {computer.name}"):
        assert command in words
    assert (quick.state, _written_state(quick)) == ("running", "running")

    quick.let_go()
    shown: list[bytes] = []
    assert _attach(computer, show=shown.append).outcome.state == "succeeded"
    assert b"".join(shown) == b"epoch 2\n"  # from where the log at home ended
    assert quick.state == "stopped"
    assert results.verify(_store(computer).path(run.id)) > 5
    assert _logs_are_equal(computer, quick)


def test_ctrl_c_before_the_run_has_started_stops_the_machine(computer: Computer) -> None:
    quick = quick_machine(computer, State.STOPPED)
    process = computer.process("train", "digits", "-y", PATH=slow_rsync(computer, ":gpuops/trainer/"))
    until(lambda: (computer.folder / "slow").exists(), "it is shipping")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. What runs, and what it costs: gpuops status" in stderr
    assert "goes on" not in stderr
    assert quick.state == "stopped"
    assert _store(computer).all() == []


# One machine, one job


def test_a_second_train_is_refused_while_one_is_going_on_which_is_unharmed_and_may_be_attached_to_from_there(
    mine: Computer, other: Computer
) -> None:
    quick = quick_machine(mine)
    first = _training_alone(mine, quick)
    with pytest.raises(JobRunning, match=first.id) as refused:
        _train(other)
    assert refused.value.next_step == f"gpuops attach {first.id}"
    ran = other.gpuops_here("pull", "-y")
    assert "Nothing to bring home" in ran.succeeded()
    assert f"Run {first.id} is still going on: gpuops attach {first.id}" in " ".join(ran.stderr.split())
    assert (quick.state, len(quick.runs)) == ("running", 1)
    quick.let_go()
    assert _attach(other).outcome.state == "succeeded"
    assert _store(other).is_home(first.id)
    assert _logs_are_equal(other, quick)
    assert quick.state == "stopped"


def test_a_machine_whose_python_is_too_old_is_refused_before_anything_is_shipped_and_stopped_again(
    computer: Computer,
) -> None:
    quick = quick_machine(computer, State.STOPPED)
    for path in (quick.python, quick.home / ".local/bin/python"):
        quick.install_python(path, version=(3, 6))
    with pytest.raises(UnfitMachine, match=r"Python 3\.6") as refused:
        _train(computer)
    assert refused.value.left_behind.startswith(f"Nothing was shipped. {computer.name} is stopped; its disk costs")
    assert quick.state == "stopped"
    assert not (quick.home / "gpuops" / "trainer").exists()


# Refused before anything is launched


def test_a_machine_that_cannot_train_is_refused_before_it_is_started(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine(State.STOPPED, types="p2.xlarge")
    with pytest.raises(UnfitMachine, match="K80") as refused:
        _train(computer)
    assert refused.value.left_behind == "Nothing was started."
    assert the_cloud.states(computer.name) == ["stopped"]


def test_a_type_that_cannot_train_is_refused_before_it_is_launched(the_cloud: Cloud, computer: Computer) -> None:
    said = computer.gpuops_here("train", "digits", "--type", "p2.xlarge", "-y").failed(NothingOffered)
    assert "K80" in said
    assert the_cloud.instances(computer.name) == []


def test_a_run_like_earlier_ones_is_estimated_from_them(computer: Computer) -> None:
    quick_machine(computer)
    _train(computer)
    ran = computer.gpuops_here("train", "digits", "--dry-run")
    assert "as an earlier run of digits on g4dn.xlarge" in ran.stderr
    assert "Nothing was changed." in ran.succeeded()


def test_a_run_that_has_cost_what_it_may_is_stopped_by_its_machine(the_cloud: Cloud, computer: Computer) -> None:
    quick = quick_machine(computer)
    quick.hold()
    with pytest.raises(StateError) as stopped:
        _train(computer, max_usd="0.0003")  # two seconds
    assert "on its disk" in stopped.value.left_behind
    until(lambda: quick.state == "stopped", "the machine has stopped itself")
    assert quick.switched_itself_off


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("digit",), "Did you mean 'digits'"),
        (("nowhere.toml",), "There is no recipe"),
        (("digits", "--set", "epoch=1"), "epoch"),
        (("digits", "--set", "stages.0.epoch=1"), "epochs"),
        (("digits", "--set", "seed=many"), "seed"),
        (("digits", "--data", "/nowhere/photos"), "There is no data folder /nowhere/photos"),
        (("digits", "--data", "./empty"), "is empty"),
        (("digits", "--weights", "/nowhere/w.safetensors"), "There is no weights file /nowhere/w.safetensors"),
    ],
    ids=["recipe", "recipe file", "key", "nested key", "value", "data", "empty data", "weights"],
)
def test_what_is_wrong_and_can_be_known_here_is_refused_before_anything_bills(
    the_cloud: Cloud, computer: Computer, words: tuple[str, ...], says: str
) -> None:
    (computer.folder / "work" / "empty").mkdir(parents=True)
    before = len(the_cloud.calls("RunInstances"))
    ran = computer.gpuops_here("train", *words, "-y")
    assert ran.exit_code == 64
    assert says in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.output
    assert len(the_cloud.calls("RunInstances")) == before
    assert _store(computer).all() == []


# Brought home later, or by another computer


def test_another_computer_brings_every_run_home_that_it_knows_nothing_of(mine: Computer, other: Computer) -> None:
    quick = quick_machine(mine)
    runs = [_train(mine, then="keep").run for _ in range(2)]
    ran = other.gpuops_here("pull", "-y")
    assert all(f"{run.id} is home, every file verified" in " ".join(ran.succeeded().split()) for run in runs)
    assert _store(other).all() == runs
    assert all(results.verify(_store(other).path(run.id)) > 5 for run in runs)
    assert "Nothing to bring home" in other.gpuops_here("pull", "-y").succeeded()
    assert quick.state == "running"  # as it was


def test_a_run_that_is_home_is_shown_again_and_mended_when_its_copy_was_damaged(computer: Computer) -> None:
    quick_machine(computer)
    run = _train(computer, then="keep").run
    shown: list[bytes] = []
    _attach(computer, run.id[:-2], show=shown.append)
    assert b"".join(shown) == b"epoch 1\nepoch 2\n"
    with pytest.raises(UnknownRun, match="There is no run 'nonsense'"):
        _attach(computer, "nonsense")

    home = _store(computer).path(run.id)
    row = computer.gpuops_here("runs").succeeded().splitlines()[1].split()
    assert row[:2] + row[-3:] == [run.id, "digits", "succeeded", "0.9000", str(home)]
    weights = home / "out" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run.id in computer.gpuops_here("pull", "-y").succeeded()
    assert results.verify(home) > 5


def test_pull_before_a_stopped_machine_is_started_needs_a_yes(computer: Computer) -> None:
    quick = quick_machine(computer, State.STOPPED)
    computer.gpuops_here("pull").failed(NotConfirmed)
    assert quick.state == "stopped"


def test_runs_tells_what_is_not_home(computer: Computer) -> None:
    assert "No runs yet" in computer.gpuops_here("runs").succeeded()
    quick = quick_machine(computer)
    run = _training_alone(computer, quick)
    row = computer.gpuops_here("runs").succeeded().splitlines()[1].split()
    assert row == [run.id, "digits", computer.name, "on", computer.name, "-", "no"]


# Down


def test_down_while_a_run_is_going_on_asks_and_stops_only_with_a_yes_and_pull_brings_the_rest(
    computer: Computer,
) -> None:
    quick = quick_machine(computer)
    run = _training_alone(computer, quick)
    told = computer.gpuops_here("down").failed(NotConfirmed)
    assert f"Run {run.id} is going on there" in " ".join(told.split())
    assert quick.state == "running"
    computer.gpuops_here("down", "-y").succeeded()
    assert quick.state == "stopped"
    with pytest.raises(StateError) as refused:
        _attach(computer)
    assert refused.value.next_step == f"gpuops pull {run.id}"
    assert run.id in computer.gpuops_here("pull", "-y").succeeded()
    home = _store(computer).path(run.id)
    assert results.outcome(home).state in {
        "interrupted",
        "failed",
    }  # as the power cut met the wrapper, or the job first
    assert results.verify(home) > 3
    assert quick.state == "stopped"  # again


def test_down_asks_while_a_run_is_not_home_and_terminate_refuses_and_lists_it_until_it_is_given_up(
    computer: Computer,
) -> None:
    quick = quick_machine(computer)
    run = _train(computer, then="keep").run
    (_store(computer).path(run.id) / "home.json").unlink()
    (quick.home / "notes.ipynb").write_text("mine")
    assert "1 runs are not home yet" in computer.gpuops_here("down").failed(NotConfirmed)
    told = " ".join(computer.gpuops_here("down", "--terminate", "-y").failed(ResultsNotHome).split())
    assert f"Runs that are not home: {run.id}." in told
    assert "notes.ipynb" in told
    assert f"gpuops down {computer.name} --terminate --discard" in told
    assert quick.state == "running"
    computer.gpuops_here("down", "--terminate", "--discard", "-y").succeeded()
    assert quick.state == ""


def test_down_terminate_deletes_what_is_home_after_asking(computer: Computer) -> None:
    quick = quick_machine(computer)
    _train(computer)
    computer.gpuops_here("down", "--terminate").failed(NotConfirmed)
    assert quick.state == "stopped"
    computer.gpuops_here("down", "--terminate", "-y").succeeded()
    assert quick.state == ""


def _written_state(quick: QuickMachine) -> str:
    """What the newest run's own file says."""
    return str(json.loads((quick.runs[-1] / "state.json").read_text())["state"])


# Files that travel for longer than the grace time


def test_a_machine_does_not_stop_under_a_slow_fetch_of_its_results(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = quick_machine(computer)
    monkeypatch.setenv("PATH", slow_rsync(computer, ":gpuops/runs/", kb_per_s=100))  # 3 s for the weights
    assert _train(computer, grace_minutes=0.025).outcome.state == "succeeded"
    assert quick.state == "stopped"
    assert not quick.switched_itself_off
