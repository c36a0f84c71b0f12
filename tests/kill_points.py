"""`kill -9` of `up`, `train` and `down` before and after every call of AWS's API and every fsync, and what is left.

    python -m tests.kill_points            the whole matrix as a table (half an hour)
    python -m tests.kill_points up         one command of it

The points are found by tracing: the command runs once with `tests/startup/points.py` loaded, which stops it at each.
Then it runs again for every point and is killed there, from outside. All regions are asked at once, in threads: of
such a fan only the first question and the last answer are points. `up` with nothing there includes the replacement of
the machine's host key. After each kill another computer looks (`status`), what was trained is brought home (`pull`),
and both computers type `up`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpuops import results
from gpuops.errors import GpuopsError
from gpuops.machine import Machine, State
from gpuops.runs import RunStore
from tests.computers import Cloud, Computer, command, until
from tests.quick_machine import QuickMachine, quick_machine

_LANES = 3
_FAN = "DescribeInstances everywhere"
_TYPE = "g4dn.xlarge"  # of an image by which another computer can introduce itself
_UP = ("up", "-y", "--type", _TYPE)
_TRAIN = ("train", "digits", "-y", "--type", _TYPE)


@dataclass(frozen=True)
class Scenario:
    """A command, and what there is when it is typed."""

    name: str
    words: tuple[str, ...]
    before: Callable[[Computer], object]


SCENARIOS = (
    Scenario("up, nothing there", _UP, lambda computer: computer.cloud.forget_firewall()),
    Scenario("up, a stopped machine", _UP, lambda computer: computer.has_machine(State.STOPPED, types=_TYPE)),
    Scenario("up, a running machine", _UP, lambda computer: computer.has_machine(types=_TYPE)),
    Scenario("down, a running machine", ("down", "-y"), lambda computer: computer.has_machine(types=_TYPE)),
    Scenario(
        "down --terminate, a running machine",
        ("down", "--terminate", "--discard", "-y"),
        lambda computer: computer.has_machine(types=_TYPE),
    ),
    Scenario(
        "down --terminate, a stopped machine that is looked into",
        ("down", "--terminate", "-y"),
        lambda computer: computer.has_machine(State.STOPPED, types=_TYPE),
    ),
    Scenario("train, a stopped machine", _TRAIN, lambda computer: quick_machine(computer, State.STOPPED, types=_TYPE)),
    Scenario("train, nothing there", _TRAIN, lambda computer: computer.cloud.forget_firewall()),
)


@dataclass(frozen=True)
class Outcome:
    """What was found after a kill, and after the commands that followed it.

    `lost` are those of the `runs` on the machine that did not come home by `pull`; `trouble` is a command that failed,
    or what the two computers and the machine's tags don't say alike of its host key.
    """

    point: str
    existing: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    billing_unpriced: int = 0
    runs: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    after_up: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        """Each machine was shown with its price, each run is home, and one machine runs that both computers reach."""
        return (
            self.shown == self.existing
            and len(self.existing) <= 1
            and self.billing_unpriced == 0
            and self.lost == ()
            and self.after_up == ("running",)
            and self.trouble == ""
        )


def points(computer: Computer, words: Sequence[str]) -> list[str]:
    """The points of a command that runs to its end."""
    with _traced(computer, words) as (process, at, go_on):
        seen = []
        while point := at():
            seen.append(point)
            go_on()
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    return numbered(seen)


def kill_at(computer: Computer, words: Sequence[str], point: str) -> bool:
    """Run the command and SIGKILL it at that point; False where it went well without coming there."""
    with _traced(computer, words) as (process, at, go_on):
        seen: Counter[str] = Counter()
        while label := at():
            seen[label] += 1
            if f"{label} #{seen[label]}" == point:
                process.kill()
                process.wait(timeout=60)
                return True
            go_on()
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    return False


def numbered(labels: Sequence[str]) -> list[str]:
    """Each label with how many times it has come, and of a fan only its ends."""
    seen: Counter[str] = Counter()
    kept = []
    for i, label in enumerate(labels):
        seen[label] += 1
        before, after = labels[i - 1 : i], labels[i + 1 : i + 2]
        within_fan = label.endswith(_FAN) and all(other and other[0].endswith(_FAN) for other in (before, after))
        if not within_fan:
            kept.append(f"{label} #{seen[label]}")
    return kept


def aftermath(computer: Computer, another: Computer, point: str) -> Outcome:
    """Look from outside; ask `status` on a computer that knows nothing; then `pull`, and `up` on both."""
    instances = computer.cloud.instances(computer.name)
    existing = tuple(sorted(i["InstanceId"] for i in instances))
    inventory = another.status()
    shown = tuple(sorted(machine.id for machine in inventory.machines if machine.name == computer.name))
    unpriced = sum(machine.price_usd_per_hour is None for machine in inventory.machines if machine.state.bills)
    runs, lost = _brought_home(computer, inventory.machines[0]) if existing else ((), ())
    computer.up(types=_TYPE)
    another.up(types=_TYPE)
    return Outcome(
        point=point,
        existing=existing,
        shown=shown,
        billing_unpriced=unpriced,
        runs=runs,
        lost=lost,
        after_up=tuple(computer.cloud.states(computer.name)),
        trouble=_disagreement(computer, another),
    )


def _brought_home(computer: Computer, machine: Machine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The runs on the machine's disk, and those of them that `pull` does not bring home whole."""
    quick = QuickMachine(computer.cloud, machine)
    if not quick.runs:
        return (), ()
    until(lambda: "is still going on" not in computer.gpuops_here("pull", "-y").output, "its runs have ended")
    store = RunStore(computer.home / "runs")
    there = tuple(folder.name for folder in quick.runs)
    # Before its run.json has arrived there, nothing has been started.
    begun = [folder.name for folder in quick.runs if (folder / "run.json").exists()]
    return there, tuple(run for run in begun if not (store.is_home(run) and results.verify(store.path(run))))


def _disagreement(*computers: Computer) -> str:
    """Between the machine's tags, and what `ssh` is told by each computer's address book and known hosts."""
    [instance] = computers[0].cloud.instances(computers[0].name)
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    if tags.get("gpuops:own-host-key") != "yes" or tags.get("gpuops:next-host-key"):
        return "the replacement of the host key is not over"
    right = f"{instance['InstanceId']} {tags['gpuops:host-key']}"
    for computer in computers:
        known = (computer.home / "keys" / "known_hosts").read_text().splitlines()
        if (pins := [line for line in known if line.startswith(instance["InstanceId"])]) != [right]:
            return f"the tag has {right}, and {computer.folder.name} knows {pins}"
    refused = [ran.output for ran in (computer.ssh("true") for computer in computers) if ran.exit_code]
    return f"ssh: {refused}" if refused else ""


@contextlib.contextmanager
def _traced(
    computer: Computer, words: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str], Callable[[], None]]]:
    """The command, which stops at each point; `at` waits for the next ("" when it has ended), `go_on` lets it go."""
    points_out, points_in = os.pipe()
    back_out, back_in = os.pipe()
    process = subprocess.Popen(
        command(*words),
        env=computer.environment(GPUOPS_TEST_POINTS=f"{points_in},{back_out}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(points_in, back_out),
        start_new_session=True,
    )
    os.close(points_in)
    os.close(back_out)
    with process, os.fdopen(points_out) as labels, os.fdopen(back_in, "wb", buffering=0) as back:
        try:
            yield process, lambda: labels.readline().rstrip("\n"), lambda: back.write(b".") and None
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):  # what it has started here, rsync and ssh, outlives it
                os.killpg(process.pid, signal.SIGKILL)


_lane: list[Cloud] = []  # in a worker's process, the one cloud that it asks


def _open_lane(folder: Path) -> None:
    from gpuops import sandbox

    here = folder / f"lane-{os.getpid()}"
    here.mkdir()
    python = here / "python"  # what every machine has as python3
    cloud = Cloud(sandbox.start(here / "cloud", boot_seconds=0.05, python=python))
    os.environ.update(cloud.aws_environment)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "startup")
    any_machine = Computer(cloud, here / "first", "first").has_machine(types=_TYPE)
    QuickMachine(cloud, any_machine).install_python(python)
    cloud.clean()
    _lane.append(cloud)


def _traced_points(folder: Path, number: int) -> list[str]:
    [cloud] = _lane
    tracer = Computer(cloud, folder / f"trace-{number}", f"trace-{number}")
    SCENARIOS[number].before(tracer)
    try:
        return points(tracer, SCENARIOS[number].words)
    finally:
        cloud.clean()


def _outcome(folder: Path, number: int, point_number: int, point: str) -> Outcome | None:
    """None where the command never came to that point."""
    [cloud] = _lane
    name = f"kill-{number}-{point_number}"
    computer, another = (Computer(cloud, folder / name / role, name) for role in ("mine", "other"))
    try:
        SCENARIOS[number].before(computer)
        if not kill_at(computer, SCENARIOS[number].words, point):
            return None
        return aftermath(computer, another, point)
    except (GpuopsError, AssertionError) as error:
        return Outcome(point=point, trouble=f"{type(error).__name__}: {error}")
    finally:
        cloud.clean()
        shutil.rmtree(folder / name, ignore_errors=True)


def _table(outcomes: Mapping[str, Sequence[Outcome | None]]) -> str:
    """How many points there are of each command, and in how many cases there were how many of what."""
    columns = {"existing": "existing", "shown": "shown", "after up": "after_up", "runs there": "runs", "lost": "lost"}
    headings = "".join(f"  {heading:<14}" for heading in columns)
    lines = [f"{'command':<57}{'points':>7}{'kills':>6}{'missed':>7}{headings}{'bad':>5}"]
    for name, found in outcomes.items():
        killed = [outcome for outcome in found if outcome]
        counts = [Counter(len(getattr(outcome, column)) for outcome in killed) for column in columns.values()]
        cells = "".join(f"  {', '.join(f'{k}: {v}x' for k, v in sorted(c.items())):<14}" for c in counts)
        bad = sum(not outcome.is_good for outcome in killed)
        lines.append(f"{name:<57}{len(found):>7}{len(killed):>6}{len(found) - len(killed):>7}{cells}{bad:>5}")
    return "\n".join(lines)


def main() -> None:
    from gpuops import sandbox

    wanted = sys.argv[1:]
    chosen = [i for i, s in enumerate(SCENARIOS) if not wanted or s.words[0] in wanted or s.name in wanted]
    outcomes: dict[str, list[Outcome | None]] = {}
    with tempfile.TemporaryDirectory(prefix="gpuops-kills.") as name:
        folder = Path(name)
        try:
            spawning = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(_LANES, spawning, _open_lane, (folder,)) as lanes:
                found = {i: lanes.submit(_traced_points, folder, i) for i in chosen}
                under_way = {
                    i: [lanes.submit(_outcome, folder, i, n, point) for n, point in enumerate(found[i].result())]
                    for i in chosen
                }
                for i, kills in under_way.items():
                    outcomes[SCENARIOS[i].name] = []
                    for kill, point in zip(kills, found[i].result(), strict=True):
                        outcome = kill.result()
                        outcomes[SCENARIOS[i].name].append(outcome)
                        how = "---" if outcome is None else "ok " if outcome.is_good else "BAD"
                        print(f"{how} {SCENARIOS[i].name}: {outcome or f'never came to {point}'}", flush=True)
        finally:
            for lane in folder.glob("lane-*"):
                sandbox.stop(lane / "cloud")
    print(f"\n{_table(outcomes)}")
    sys.exit(0 if all(o is None or o.is_good for found in outcomes.values() for o in found) else 1)


if __name__ == "__main__":
    main()
