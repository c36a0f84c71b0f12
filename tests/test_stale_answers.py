"""A provider that shows yesterday's truth, or none: nothing is believed too early, and nothing goes on billing unseen.

EC2 is eventually consistent, which the sandbox is not: here a provider of a few lines stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuops import lifecycle
from gpuops.errors import GpuopsError, NoCapacity, NoCredentials, ProviderError, StateError, VendorUnreachable
from gpuops.launches import LaunchRecords
from gpuops.lifecycle import Clock, Limits, Plan, Release
from gpuops.machine import Address, Inventory, Machine, Offer, Prepared, State, Wish

_WISH = Wish(name="fast-ai", region="us-west-2")
_OFFER = Offer(
    type="g4dn.xlarge",
    region="us-west-2",
    zone="us-west-2a",
    image_id="ami-1",
    image_name="an image",
    user="ubuntu",
    gpu="T4",
    gpu_memory_gb=16,
    disk_gb=100,
    price_usd_per_hour=0.5,
    disk_usd_per_month=8.0,
)


class Vendor:
    """Shows its states one look after the other, the last one for ever; counts what it is told."""

    name = "vendor"

    def __init__(self, *states: State | GpuopsError, problem: str = "") -> None:
        self.looks = list(states)
        self.problem = problem
        self.starts = 0
        self.stops = 0
        self.refusals = 0
        self.refuses_to_stop: GpuopsError | None = None
        self.listed: list[tuple[Machine, ...]] = [()]
        self.answers: list[Machine | GpuopsError] = []
        self.terminated: list[str] = []

    def refresh(self, machine: Machine) -> Machine:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, GpuopsError):
            raise look
        if self.stops and len(self.looks) == 1:
            look = State.STOPPED
        return replace(machine, state=look, problem=self.problem, ssh=Address(host="127.0.0.1", user="ubuntu"))

    def start(self, machine: Machine) -> None:
        self.starts += 1

    def stop(self, machine: Machine) -> None:
        if self.refuses_to_stop:
            self.refusals += 1
            raise self.refuses_to_stop
        self.stops += 1

    def find(self, name: str) -> Inventory:
        listed = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
        return Inventory(machines=listed)

    def prepare(self, wish: Wish, offer: Offer, *, client_key: str) -> Prepared:
        return Prepared(offer=offer, request={}, host_key="ssh-ed25519 ours")

    def launch(self, prepared: Prepared, token: str) -> Machine:
        answer = self.answers.pop(0)
        if isinstance(answer, GpuopsError):
            raise answer
        return answer

    def terminate(self, machine: Machine) -> None:
        self.terminated.append(machine.id)


def fast() -> Clock:
    passed: list[float] = [0.0]
    return Clock(monotonic=lambda: sum(passed), sleep=passed.append)


def machine(
    machine_id: str = "i-ours", *, created: str = "2026-11-24T10:00:00", state: State = State.PENDING
) -> Machine:
    return Machine(
        id=machine_id,
        name="fast-ai",
        provider="vendor",
        region="us-west-2",
        zone="us-west-2a",
        type="g4dn.xlarge",
        state=state,
        launched_at=datetime.now(timezone.utc),
        host_key="ssh-ed25519 ours",
        price_usd_per_hour=0.5,
        tags={"gpuops:created": created},
    )


def interrupted(vendor: Vendor, prepare: Callable[[Release], None]) -> list[str]:
    """What is said when Ctrl-C comes right after `prepare`."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), Release(vendor, "fast-ai", clock=fast(), tell=said.append) as release:  # type: ignore[arg-type]
        prepare(release)
        raise KeyboardInterrupt
    return said


def launched(vendor: Vendor, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Machine:
    plan = Plan(wish=_WISH, limits=Limits(), offers=(_OFFER,))
    with Release(vendor, "fast-ai", clock=fast(), tell=tell) as release:  # type: ignore[arg-type]
        made = lifecycle.launch(vendor, plan, LaunchRecords(folder), "key", release, client_key="")  # type: ignore[arg-type]
        release.keep()
    return made


def test_a_started_machine_that_is_still_shown_as_stopped_is_waited_for() -> None:
    vendor = Vendor(State.STOPPED, State.STOPPED, State.STOPPED, State.PENDING, State.RUNNING)
    found = lifecycle.wait_until_running(vendor, machine(), clock=fast(), tell=lambda _: None)  # type: ignore[arg-type]
    assert found.state is State.RUNNING
    assert vendor.starts == 1


def test_a_machine_that_was_seen_alive_and_is_stopped_is_not_started_again() -> None:
    vendor = Vendor(State.STOPPED, State.PENDING, State.STOPPED)
    with pytest.raises(StateError, match="stopped again"):
        lifecycle.wait_until_running(vendor, machine(), clock=fast(), tell=lambda _: None)  # type: ignore[arg-type]
    assert vendor.starts == 1


def test_a_machine_that_nobody_agreed_to_start_is_not_started() -> None:
    vendor = Vendor(State.STOPPED)
    with pytest.raises(StateError):
        lifecycle.wait_until_running(vendor, machine(), clock=fast(), tell=lambda _: None, may_start=False)  # type: ignore[arg-type]
    assert vendor.starts == 0


def test_ctrl_c_right_after_a_start_stops_the_machine_though_it_is_still_shown_as_stopped() -> None:
    vendor = Vendor(State.STOPPED, State.STOPPED, State.RUNNING)
    said = interrupted(vendor, lambda release: release.owns(machine()))
    assert vendor.stops > 0
    assert said[-1].startswith("fast-ai is stopped")


def test_ctrl_c_right_after_a_launch_stops_a_machine_that_is_not_known_yet() -> None:
    vendor = Vendor(State.UNKNOWN, State.UNKNOWN, State.RUNNING)
    assert interrupted(vendor, lambda release: release.owns(machine()))[-1].startswith("fast-ai is stopped")
    assert vendor.stops == 1


def test_ctrl_c_during_a_launch_waits_for_its_machine_to_be_listed() -> None:
    vendor = Vendor(State.RUNNING)
    vendor.listed = [(), (), (machine(),)]
    assert interrupted(vendor, lambda release: release.expects("ssh-ed25519 ours"))[-1].startswith("fast-ai is stopped")


def test_a_launch_of_which_nothing_is_seen_is_said_to_have_been_under_way() -> None:
    said = interrupted(Vendor(State.RUNNING), lambda release: release.expects("ssh-ed25519 ours"))
    assert "one may run" in said[-1]


def test_a_machine_that_cannot_be_looked_at_is_stopped_all_the_same() -> None:
    vendor = Vendor(ProviderError("not permitted"))
    with pytest.raises(ProviderError) as raised:
        lifecycle.stop(vendor, machine(state=State.RUNNING), clock=fast())  # type: ignore[arg-type]
    assert vendor.stops == 1
    assert "was told to stop" in raised.value.left_behind
    assert "$0.500/h" in raised.value.left_behind


def test_a_machine_that_refuses_to_stop_is_said_to_refuse_and_why() -> None:
    vendor = Vendor(State.RUNNING)
    vendor.refuses_to_stop = StateError("It is protected.", next_step="Take its protection off.")
    with pytest.raises(StateError, match="protected") as raised:
        lifecycle.stop(vendor, machine(state=State.RUNNING), clock=fast())  # type: ignore[arg-type]
    assert raised.value.next_step == "Take its protection off."
    assert vendor.refusals < 10


def test_a_machine_that_the_vendor_ends_for_want_of_room_is_a_matter_of_room() -> None:
    vendor = Vendor(State.TERMINATED, problem="Server.InsufficientInstanceCapacity: no room")
    with pytest.raises(NoCapacity):
        lifecycle.wait_until_running(vendor, machine(), clock=fast(), tell=lambda _: None)  # type: ignore[arg-type]


def test_which_of_two_machines_stays_is_decided_when_both_may_be_listed(tmp_path: Path) -> None:
    ours, theirs = machine(created="2026-11-24T10:00:05"), machine("i-theirs", created="2026-11-24T10:00:00")
    vendor = Vendor(State.RUNNING)
    vendor.answers = [ours]
    vendor.listed = [(), (theirs,), (ours, theirs)]
    assert launched(vendor, tmp_path).id == "i-theirs"
    assert vendor.terminated == ["i-ours"]


def test_a_definite_no_after_a_lost_answer_keeps_the_record_and_says_what_may_run(tmp_path: Path) -> None:
    vendor = Vendor(State.RUNNING)
    vendor.answers = [VendorUnreachable("timed out"), NoCredentials("token expired")]
    with pytest.raises(NoCredentials) as raised:
        launched(vendor, tmp_path)
    assert "may have happened" in raised.value.left_behind
    assert list(tmp_path.iterdir()) != []


def test_a_definite_no_leaves_no_record_and_nothing_to_look_for(tmp_path: Path) -> None:
    vendor = Vendor(State.RUNNING)
    vendor.answers = [NoCredentials("token expired")]
    with pytest.raises(NoCredentials) as raised:
        launched(vendor, tmp_path)
    assert raised.value.left_behind == ""
    assert list(tmp_path.iterdir()) == []
