"""`kill -9` of `up` and `down` before and after every call of AWS's API and every fsync, and what is left afterwards.

    python -m tests.kill_points            the whole matrix as a table (minutes)
    python -m tests.kill_points up         one command of it

The points are found by tracing: the command runs once with `tests/startup/points.py` loaded, which stops it at each.
Then it runs again for every point and is killed there, from outside. All regions are asked at once, in threads: of
such a fan only the first question and the last answer are points.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuops.machine import State
from tests.computers import Cloud, Computer, command

_FAN = "DescribeInstances everywhere"


@dataclass(frozen=True)
class Scenario:
    """A command, and what there is when it is typed."""

    name: str
    words: tuple[str, ...]
    before: Callable[[Computer], object]


SCENARIOS = (
    Scenario("up, nothing there", ("up", "-y"), lambda computer: computer.cloud.forget_firewall()),
    Scenario("up, a stopped machine", ("up", "-y"), lambda computer: computer.has_machine(State.STOPPED)),
    Scenario("up, a running machine", ("up", "-y"), lambda computer: computer.has_machine()),
    Scenario("down, a running machine", ("down", "-y"), lambda computer: computer.has_machine()),
    Scenario(
        "down --terminate, a running machine",
        ("down", "--terminate", "--discard", "-y"),
        lambda computer: computer.has_machine(),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What was found after a kill, and after the `up` that followed it."""

    point: str
    existing: tuple[str, ...]
    shown: tuple[str, ...]
    billing_unpriced: int
    after_up: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Every machine that exists was shown, with its price; and one, running, is there after the next `up`."""
        return (
            self.shown == self.existing
            and len(self.existing) <= 1
            and self.billing_unpriced == 0
            and self.after_up == ("running",)
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
    """Run the command and SIGKILL it at that point; False where it never came there."""
    with _traced(computer, words) as (process, at, go_on):
        seen: Counter[str] = Counter()
        while label := at():
            seen[label] += 1
            if f"{label} #{seen[label]}" == point:
                process.kill()
                process.communicate(timeout=60)
                return True
            go_on()
        process.communicate(timeout=60)
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
    """Look from outside, ask `status` on a computer that knows nothing, then type `up` on the one that was killed."""
    existing = tuple(sorted(i["InstanceId"] for i in computer.cloud.instances(computer.name)))
    inventory = another.status()
    shown = tuple(sorted(machine.id for machine in inventory.machines if machine.name == computer.name))
    unpriced = sum(machine.price_usd_per_hour is None for machine in inventory.machines if machine.state.bills)
    computer.up()
    return Outcome(point, existing, shown, unpriced, tuple(computer.cloud.states(computer.name)))


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
    )
    os.close(points_in)
    os.close(back_out)
    with process, os.fdopen(points_out) as labels, os.fdopen(back_in, "wb", buffering=0) as back:
        try:
            yield process, lambda: labels.readline().rstrip("\n"), lambda: back.write(b".") and None
        finally:
            process.kill()


def run(cloud: Cloud, folder: Path, chosen: Sequence[Scenario]) -> int:
    """The whole matrix; prints each kill, and a table of them. Gives the number of bad outcomes."""
    rows = []
    bad = 0
    for number, scenario in enumerate(chosen):
        tracer = Computer(cloud, folder / f"trace-{number}", f"trace-{number}")
        scenario.before(tracer)
        found = points(tracer, scenario.words)
        cloud.clean()
        outcomes = []
        missed = 0
        for point_number, point in enumerate(found):
            name = f"kill-{number}-{point_number}"
            computer, another = (Computer(cloud, folder / name / role, name) for role in ("mine", "other"))
            scenario.before(computer)
            if kill_at(computer, scenario.words, point):
                outcome = aftermath(computer, another, point)
                outcomes.append(outcome)
                print(f"{'ok ' if outcome.is_good else 'BAD'} {scenario.name}: {outcome}", flush=True)
            else:
                missed += 1
                print(f"--- {scenario.name}: never came to {point}", flush=True)
            cloud.clean()
        wrong = [outcome for outcome in outcomes if not outcome.is_good]
        bad += len(wrong)
        existing = Counter(len(outcome.existing) for outcome in outcomes)
        shown = Counter(len(outcome.shown) for outcome in outcomes)
        after = Counter(len(outcome.after_up) for outcome in outcomes)
        rows.append((scenario.name, len(found), len(outcomes), missed, existing, shown, after, len(wrong)))
    print(f"\n{'command':<36}{'points':>7}{'kills':>6}{'missed':>7}  existing      shown         after up     bad")
    for name, count, kills, missed, *counters, wrong_count in rows:
        cells = "".join(f"  {', '.join(f'{k}: {v}x' for k, v in sorted(c.items())):<12}" for c in counters)
        print(f"{name:<36}{count:>7}{kills:>6}{missed:>7}{cells}{wrong_count:>5}")
    return bad


def main() -> None:
    from gpuops import sandbox

    wanted = sys.argv[1:]
    chosen = [
        scenario for scenario in SCENARIOS if not wanted or scenario.words[0] in wanted or scenario.name in wanted
    ]
    with tempfile.TemporaryDirectory(prefix="gpuops-kills.") as folder:
        cloud = Cloud(sandbox.start(Path(folder) / "cloud", boot_seconds=0.05))
        os.environ.update(cloud.aws_environment)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent / "startup")
        try:
            bad = run(cloud, Path(folder), chosen)
        finally:
            sandbox.stop(Path(folder) / "cloud")
            cloud.close()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
