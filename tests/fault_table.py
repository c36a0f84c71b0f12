"""Every call that gpuops makes of EC2, every way in which EC2 doesn't do it: what the person is told, and what is left.

    python -m tests.fault_table                        the whole table (minutes)
    python -m tests.fault_table RunInstances stall     the rows of one call, of one fault, or of one call and one fault

The faults are served over HTTP by the sandbox's cloud, so that the SDK's own retries count. Each row has an account of
its own: the command that makes the call is typed; the fault is lifted; another computer asks `status`; `up` is typed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from gpuops.errors import NoCapacity, NoCredentials, ProviderError
from gpuops.providers.aws import clients
from tests.computers import REGION, Cloud, Computer, Ran

_LANES = 6  # mostly they wait
_ALWAYS = 1_000_000
_TYPE = "g4dn.xlarge"
_LEFT_BEHIND = re.compile(r"^Left behind: .*\$[\d.]+/h", re.M)
_ALIVE = ["pending", "running", "stopping", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A call of the API, and the command that makes it. `before` are the commands that were typed until then."""

    name: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    only: Mapping[str, object] = field(default_factory=dict)
    read_timeout_s: float = clients._PATIENT.read_timeout
    is_made: bool = True

    @property
    def action(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def asks_everywhere(self) -> bool:
        """Of a region that fails it is said that it did not answer; that it failed alike in all is said only so."""
        return self.action == "DescribeInstances" and "match" not in self.only


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What EC2 answers instead, how often, and the exit codes that are right then."""

    name: str
    right: frozenset[int]
    code: str = ""
    status: int = 400
    times: int = _ALWAYS
    reset: bool = False
    stalls: bool = False

    def plan(self, target: Target) -> dict[str, object]:
        return {
            "action": target.action,
            "code": self.code,
            "status": self.status,
            "times": self.times,
            "reset": self.reset,
            "hang_s": target.read_timeout_s + 1 if self.stalls else 0.0,
            **target.only,
        }


_UP, _DOWN = ("up", "-y"), ("down", "-y")
_OK, _REFUSED, _FULL, _WHO = (
    frozenset({code}) for code in (0, ProviderError.exit_code, NoCapacity.exit_code, NoCredentials.exit_code)
)
_ONCE_S = clients._ONCE.read_timeout

TARGETS = (
    Target(name="RunInstances", words=_UP, read_timeout_s=_ONCE_S),
    Target(name="StartInstances", words=_UP, before=(_UP, _DOWN), read_timeout_s=_ONCE_S),
    Target(name="StopInstances", words=_DOWN, before=(_UP,)),
    Target(name="TerminateInstances", words=(*_DOWN, "--terminate", "--discard"), before=(_UP,)),
    Target(name="DescribeInstances (all regions, status)", words=("status",), before=(_UP,)),
    Target(name="DescribeInstances (our region, up)", words=_UP, only={"region": REGION}),
    Target(name="DescribeInstances (of the new machine)", words=_UP, only={"match": {"InstanceId.1": "i-"}}),
    Target(name="DescribeImages", words=_UP),
    Target(name="ImportKeyPair", words=_UP, is_made=False),  # gpuops has no use for EC2's key pairs
    Target(name="AuthorizeSecurityGroupIngress", words=_UP),
)
FAULTS = (
    Fault(name="throttling", code="RequestLimitExceeded", status=503, right=_REFUSED),
    Fault(name="throttling, once", code="RequestLimitExceeded", status=503, times=1, right=_OK),
    Fault(name="InternalError", code="InternalError", status=500, right=_REFUSED),
    Fault(name="InternalError, once", code="InternalError", status=500, times=1, right=_OK),
    Fault(name="no capacity", code="InsufficientInstanceCapacity", status=500, right=_FULL),
    Fault(name="vCPU quota", code="VcpuLimitExceeded", right=_FULL),
    Fault(name="not permitted", code="UnauthorizedOperation", status=403, right=_REFUSED),
    Fault(name="AuthFailure", code="AuthFailure", status=401, right=_WHO),
    Fault(name="reset after it was done, once", reset=True, times=1, right=_OK),
    Fault(name="stall, 3 read timeouts", stalls=True, times=3, right=_OK | _REFUSED),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one fault. `left` and `after_up` are the states of the machines; `bad` is what should not be."""

    target: str
    fault: str
    calls: int
    seconds: float
    exit_code: int
    said: str
    left: tuple[str, ...]
    after_up: tuple[str, ...]
    bad: tuple[str, ...]


def row(target: Target, fault: Fault, computer: Computer, another: Computer) -> Row:
    """Type the command while the fault is there, and look what has come of it: nothing else may exist in the cloud."""
    cloud = computer.cloud
    for words in target.before:
        _typed(computer, words).succeeded()
    calls_before = _calls(cloud, target.action)
    cloud.add_faults(fault.plan(target))
    began = time.monotonic()
    ran = _typed(computer, target.words)
    seconds = time.monotonic() - began
    calls = _calls(cloud, target.action) - calls_before
    cloud.http("DELETE", "/gpuops/faults")
    left, bad_now = _left(cloud, computer.name, another)
    next_up = _typed(computer, _UP)
    after_up, bad_then = _left(cloud, computer.name, another)
    ever = len(cloud.instances(computer.name, alive=False))
    bad = [
        *_badly_said(ran, _right(target, fault, calls), left),
        *bad_now,
        *(f"then: {problem}" for problem in bad_then),
        *([f"the next up: {next_up.output}"] if next_up.exit_code else []),
        *([f"after the next up there are {after_up}"] if after_up != ("running",) else []),
        *([f"{ever} machines were launched"] if ever > (2 if "--terminate" in target.words else 1) else []),
    ]
    return Row(
        target=target.name,
        fault=fault.name,
        calls=calls,
        seconds=seconds,
        exit_code=ran.exit_code,
        said=_first_line(ran),
        left=left,
        after_up=after_up,
        bad=tuple(bad),
    )


def _typed(computer: Computer, words: Sequence[str]) -> Ran:
    # An address of its own: where another computer behind the same one is admitted, EC2 isn't asked.
    digest = hashlib.sha256(computer.name.encode()).digest()
    return computer.gpuops_here(*words, GPUOPS_TYPES=_TYPE, GPUOPS_ADMIT=f"127.{digest[0]}.{digest[1]}.0/24")


def _calls(cloud: Cloud, action: str) -> int:
    return sum(call["region"] == REGION for call in cloud.calls(action))


def _right(target: Target, fault: Fault, calls: int) -> frozenset[int]:
    if not target.is_made:
        return _OK if calls == 0 else frozenset()
    return fault.right | _REFUSED if target.asks_everywhere and fault.right != _OK else fault.right


def _left(cloud: Cloud, name: str, another: Computer) -> tuple[tuple[str, ...], list[str]]:
    """The states of the machines that exist, and what `status` elsewhere doesn't say of them."""
    existing = {i["InstanceId"]: i["State"]["Name"] for i in cloud.instances(name)}
    wanted = [{"Name": "instance-state-name", "Values": _ALIVE}]
    reservations = cloud.client().describe_instances(Filters=wanted)["Reservations"]
    orphans = {i["InstanceId"] for reservation in reservations for i in reservation["Instances"]} - existing.keys()
    machines = json.loads(another.gpuops_here("status", "--json").succeeded())["machines"]
    shown = {machine["id"]: machine["price_usd_per_hour"] for machine in machines}
    bad = [f"nameless: {orphans}"] if orphans else []
    if shown.keys() != existing.keys() or None in shown.values():
        bad.append(f"{existing} exist, and status shows {shown}")
    if len(existing) > 1:
        bad.append(f"{len(existing)} machines")
    return tuple(sorted(existing.values())), bad


def _badly_said(ran: Ran, right: frozenset[int], left: tuple[str, ...]) -> list[str]:
    bad = []
    if ran.exit_code not in right:
        bad.append(f"exit code {ran.exit_code}, not {sorted(right)}: {ran.output}")
    if "Traceback" in ran.output:
        bad.append(f"a traceback: {ran.output}")
    if ran.exit_code and "\nNext: " not in ran.stderr:
        bad.append(f"no next step: {ran.output}")
    # What bills after a command that was to make or end it has to be told, with its price.
    if ran.exit_code and "running" in left and "status" not in ran.words and not _LEFT_BEHIND.search(ran.stderr):
        bad.append(f"it does not say what is left and bills: {ran.output}")
    if "No machines" in ran.stdout and left:
        bad.append("it says that there are no machines")
    return bad


def _first_line(ran: Ran) -> str:
    errors = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    return errors[0].removeprefix("Error: ") if errors else (ran.stdout.strip().splitlines() or [""])[0]


def table(rows: Sequence[Row]) -> str:
    headings = ("call", "fault", "calls", "seconds", "exit", "machines left", "after the next up", "first line")
    cells = [headings, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    bad = [f"BAD  {r.target}, {r.fault}: {problem}" for r in rows for problem in r.bad]
    return "\n".join([*lines, "", *bad, f"{len(rows)} rows, {sum(bool(r.bad) for r in rows)} bad"])


def _cells(r: Row) -> tuple[str, ...]:
    said = r.said if len(r.said) <= 150 else f"{r.said[:149]}…"
    what_came = (str(r.calls), f"{r.seconds:.1f}", str(r.exit_code), _states(r.left), _states(r.after_up))
    return (r.target, r.fault, *what_came, said)


def _states(states: tuple[str, ...]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items())) or "none"


_lane: list[Cloud] = []  # in a worker's process, the one cloud that it asks


def _open_lane(folder: Path) -> None:
    from gpuops import sandbox

    _lane.append(Cloud(sandbox.start(folder / f"lane-{os.getpid()}", boot_seconds=0.1)))
    os.environ.update(_lane[0].aws_environment)


def _row_in_lane(folder: Path, target: Target, fault: Fault, number: int) -> Row:
    [cloud] = _lane
    try:
        computers = (Computer(cloud, folder / f"row-{number}" / role, f"row-{number}") for role in ("mine", "other"))
        return row(target, fault, *computers)
    finally:
        cloud.clean()


def main() -> None:
    from gpuops import sandbox

    words = sys.argv[1:]
    pairs = [(t, f) for t in TARGETS for f in FAULTS if all(word in f"{t.name} {f.name}" for word in words)]
    rows: dict[int, Row] = {}
    with tempfile.TemporaryDirectory(prefix="gpuops-faults.") as name:
        folder = Path(name)
        try:
            spawning = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(_LANES, spawning, _open_lane, (folder,)) as lanes:
                longest_first = sorted(range(len(pairs)), key=lambda i: not pairs[i][1].stalls)
                under_way = {lanes.submit(_row_in_lane, folder, *pairs[i], i): i for i in longest_first}
                for done in as_completed(under_way):
                    rows[under_way[done]] = done.result()
                    print(f"\r{len(rows)} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        finally:
            for lane in folder.glob("lane-*"):
                sandbox.stop(lane)
    print(file=sys.stderr)
    print(table([rows[i] for i in sorted(rows)]))
    sys.exit(1 if any(r.bad for r in rows.values()) else 0)


if __name__ == "__main__":
    main()
