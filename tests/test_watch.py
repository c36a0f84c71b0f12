"""The machine's watch on itself, asked over ssh as gpuops asks it: deadlines, budgets, its log, its host key."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from gpuops import host_keys, watch
from gpuops.errors import HostKeyChanged, KeyRefused, RemoteCommandFailed
from gpuops.machine import Uptime
from gpuops.sandbox.hypervisor import Hypervisor
from gpuops.transports.ssh import SshTransport
from tests.sandbox.machines import Key, Machine, machine_in, namespaces_are_allowed, until

_DEADLINE_S = 5000


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path) as machine:
        yield machine.start(user_data=machine.first_boot(deadline_s=_DEADLINE_S)).wait_for_ssh()


@pytest.fixture(params=["asyncssh", "openssh"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine with either ssh server."""
    if request.param == "openssh" and not (shutil.which("sshd", path="/usr/sbin") and namespaces_are_allowed()):
        pytest.skip("OpenSSH's sshd can't run here as the machine's user")
    with machine_in(tmp_path, server=request.param) as machine:
        yield machine.start().wait_for_ssh()


def left(line: SshTransport) -> watch.Left:
    answer = watch.left(line)
    assert answer is not None
    return answer


def again(machine: Machine) -> SshTransport:
    """A line to the machine after it has been stopped and started."""
    machine.stop()
    return machine.start().wait_for_ssh().line()


def log_of(machine: Machine) -> tuple[Uptime, ...]:
    with machine.line() as line:
        return watch.uptimes(line)


# Deadlines


def test_the_first_boots_deadline_is_told(machine: Machine) -> None:
    with machine.line() as line:
        assert _DEADLINE_S - 30 < left(line).deadline_s <= _DEADLINE_S
        assert left(line).budget_s is None


def test_a_machine_that_gpuops_did_not_launch_has_no_watch(machine: Machine) -> None:
    machine.stop()
    machine.start(user_data="#cloud-config\nssh_pwauth: false\n").wait_for_ssh()
    with machine.line() as line:
        assert watch.left(line) is None
        assert watch.uptimes(line) == ()
        with pytest.raises(RemoteCommandFailed):
            watch.arm(line, 3600)


@pytest.mark.parametrize("seconds", [60, 90_000])
def test_the_deadline_is_set_anew_for_this_boot_alone(machine: Machine, seconds: int) -> None:
    with machine.line() as line:
        watch.arm(line, seconds)
        assert seconds - 10 < left(line).deadline_s <= seconds
        in_truth_s = float(line.run(["systemctl", "list-timers"]).stdout.split("s left")[0])
        assert seconds - 10 < in_truth_s <= seconds
    with again(machine) as line:
        assert _DEADLINE_S - 30 < left(line).deadline_s <= _DEADLINE_S


def test_at_the_new_deadline_the_machine_is_off_and_its_log_says_why(machine: Machine) -> None:
    with machine.line() as line:
        watch.arm(line, 1)
    assert machine.ended() == 0
    machine.start().wait_for_ssh()
    assert log_of(machine)[0].reason == "deadline"


def test_the_deadline_needs_nothing_but_systemd(machine: Machine) -> None:
    with machine.line() as line:
        watch.arm(line, 2)
        line.run(["sh", "-c", 'rm "$DESTDIR"/run/gpuops/* "$DESTDIR"/run/systemd/system/*'])
    assert machine.ended() == 0


def test_every_later_boot_can_be_given_another_deadline(machine: Machine) -> None:
    with machine.line() as line:
        watch.every_boot(line, 900)
        assert left(line).deadline_s > 900
    for _ in range(2):
        with again(machine) as line:
            assert 870 < left(line).deadline_s <= 900


@pytest.mark.parametrize("garbage", ["", "soon", "-5", "1e9", "5\n6; reboot", "08", "9" * 30])
def test_a_damaged_deadline_for_every_boot_falls_back_to_the_first_boots(tmp_path: Path, garbage: str) -> None:
    with machine_in(tmp_path) as machine:
        folder = machine.folder / "disk/var/lib/gpuops"
        folder.mkdir(parents=True)
        (folder / "every-boot").write_text(garbage)
        machine.start(user_data=machine.first_boot(deadline_s=_DEADLINE_S)).wait_for_ssh()
        with machine.line() as line:
            expected_s = 5 if garbage.startswith("5\n") else _DEADLINE_S
            assert expected_s - 30 < left(line).deadline_s <= expected_s


# Budgets


def test_a_budget_shortens_the_deadline_that_cannot_be_moved_past_it(machine: Machine) -> None:
    with machine.line() as line:
        watch.budget(line, 1000)
        assert 980 < left(line).deadline_s <= 1000
        watch.arm(line, 4000)
        assert 980 < left(line).deadline_s <= 1000
        watch.arm(line, 500)
        assert left(line).deadline_s <= 500
        watch.arm(line, 4000)
        assert 980 < left(line).deadline_s <= 1000
        watch.budget(line, 8000)
        watch.arm(line, 4000)
        assert 3980 < left(line).deadline_s <= 4000


def test_a_budget_is_counted_down_across_boots_until_it_is_forgotten(machine: Machine) -> None:
    with machine.line() as line:
        watch.budget(line, 1000)
        until(lambda: (left(line).budget_s or 0) <= 998, "two seconds of it are counted down")
        before = left(line).budget_s
        assert before is not None
    with again(machine) as line:
        after = left(line)
        assert after.budget_s is not None
        assert before - 20 < after.budget_s <= before
        assert abs(after.deadline_s - after.budget_s) <= 1
        watch.budget(line, None)
        assert left(line).budget_s is None
    with again(machine) as line:
        assert left(line).budget_s is None
        assert left(line).deadline_s > 1000


def test_a_power_cut_costs_the_minute_that_had_begun(machine: Machine) -> None:
    with machine.line() as line:
        watch.budget(line, 1000)
    machine.cut_power()
    with machine.start().wait_for_ssh().line() as line:
        budget_s = left(line).budget_s
        assert budget_s is not None and 920 < budget_s <= 940


def test_when_the_budget_is_used_up_a_boot_lasts_ten_minutes_in_which_another_can_be_set(machine: Machine) -> None:
    with machine.line() as line:
        watch.budget(line, 1)
    assert machine.ended() == 0
    with machine.start().wait_for_ssh().line() as line:
        assert left(line).budget_s == 0
        assert 570 < left(line).deadline_s <= 600
        watch.arm(line, 3600)
        assert 570 < left(line).deadline_s <= 600
        watch.budget(line, 7200)
        watch.arm(line, 3600)
        assert 3570 < left(line).deadline_s <= 3600


def test_a_budget_does_not_prolong_a_shorter_deadline(machine: Machine) -> None:
    with machine.line() as line:
        watch.arm(line, 300)
        watch.budget(line, 4000)
        assert left(line).deadline_s <= 300
    with again(machine) as line:
        watch.every_boot(line, 200)
    with again(machine) as line:
        assert left(line).deadline_s <= 200


@pytest.mark.parametrize("garbage", ["", "soon", "-5", "\0\0\0\0", "08", "9" * 30])
def test_a_damaged_budget_counts_as_used_up_until_another_is_set(machine: Machine, garbage: str) -> None:
    with machine.line() as line:
        watch.budget(line, 4000)
    machine.stop()
    (machine.folder / "disk/var/lib/gpuops/budget").write_text(garbage)
    with machine.start().wait_for_ssh().line() as line:
        assert left(line).budget_s == 0
        assert 570 < left(line).deadline_s <= 600
        watch.arm(line, 3600)
        assert left(line).deadline_s <= 600
        watch.budget(line, 2000)
        watch.arm(line, 1500)
        assert 1470 < left(line).deadline_s <= 1500


@pytest.mark.parametrize("garbage", ["", "soon", "\0\0\0\0"])
def test_where_the_count_is_damaged_the_budget_is_used_up_until_another_is_set(machine: Machine, garbage: str) -> None:
    with machine.line() as line:
        watch.budget(line, 4000)
    for again in (True, False):
        machine.stop()
        if again:
            (machine.folder / "disk/var/lib/gpuops/total").write_text(garbage)
        with machine.start().wait_for_ssh().line() as line:
            assert left(line).budget_s == 0
            assert 570 < left(line).deadline_s <= 600
    with machine.line() as line:
        watch.budget(line, 2000)
    with machine.line() as line:
        before = left(line).budget_s
        assert before is not None and 1980 < before <= 2000
    machine.stop()
    with machine.start().wait_for_ssh().line() as line:
        budget_s = left(line).budget_s
        assert budget_s is not None and before - 30 < budget_s <= before


# The log


def test_the_log_says_when_the_machine_was_up_and_why_it_ended(machine: Machine) -> None:
    ends = ["reboot", "run digits-1 ended", "power-off", "power cut"]
    machine.run("sudo reboot")
    assert machine.ended() == 3
    with machine.start().wait_for_ssh().line() as line:
        line.run(watch.power_off_argv("run digits-1\nended"))
    assert machine.ended() == 0
    machine.start().wait_for_ssh().stop()
    machine.start().wait_for_ssh()
    log = machine.folder / "disk/var/lib/gpuops/uptime.log"
    until(lambda: len(re.findall("^boot ", log.read_text(), re.M)) == 4, "this boot is in the log")
    machine.cut_power()
    machine.start().wait_for_ssh()
    found = log_of(machine)
    assert [uptime.reason for uptime in found] == [*ends, ""]
    assert found[-1].ended is None
    for uptime, following in pairwise(found):
        assert uptime.ended is not None
        assert uptime.booted - timedelta(seconds=2) <= uptime.ended <= following.booted + timedelta(seconds=2)


def test_a_machine_without_the_watch_is_switched_off_all_the_same(machine: Machine) -> None:
    with machine.line() as line:
        line.run(["sh", "-c", 'rm "$DESTDIR/run/gpuops/machine"'])
        line.run(watch.power_off_argv("run digits-1 ended"))
    assert machine.ended() == 0


def test_what_a_power_cut_did_to_the_log_is_made_up_for(machine: Machine) -> None:
    log = machine.folder / "disk/var/lib/gpuops/uptime.log"
    with machine.line() as line:
        until(lambda: len(watch.uptimes(line)) == 1, "this boot is in the log")
        [present] = watch.uptimes(line)
        present_line = log.read_text()
        log.write_bytes(
            b"boot 1000 a\nboot 2000 b\nstop 2500 b deadline\nstop 9 nobody reboot\n\0\0\xff\nboot 3000\nboot x y\n"
            b"stop 3000 b\nboot 4000 c\nboot 99999999999999999999 d\n" + present_line.encode() + b"boot 50"
        )
        found = [
            (round(uptime.booted.timestamp()), uptime.ended and round(uptime.ended.timestamp()), uptime.reason)
            for uptime in watch.uptimes(line)
        ]
    now = round(present.booted.timestamp())
    assert found == [
        (1000, 2000, "power cut"),
        (2000, 2500, "deadline"),
        (4000, now, "power cut"),
        (now, None, ""),
    ]
    machine.stop()
    machine.start().wait_for_ssh()
    assert len(log_of(machine)) == 5, "what was written after the damage is read"


# The host key


def test_the_machine_changes_its_host_key_and_no_connection_is_cut(either: Machine) -> None:
    with either.line() as line:
        key = watch.next_host_key(line)
        assert watch.next_host_key(line) == key
        assert key.split()[0] == "ssh-ed25519"
        with either.line():
            pass  # nothing has changed yet
        watch.switch_host_key(line)
        until(lambda: _is_shown(either, key), "the new key is shown")
        with pytest.raises(HostKeyChanged):
            either.line()
        assert line.run(["echo", "still here"]).stdout == "still here\n"
        watch.switch_host_key(line)
        assert watch.next_host_key(line) == key, "once is enough"
    either.stop()
    with either.start().wait_for_ssh().line(host_key=key) as line:
        assert line.alive()


def _is_shown(machine: Machine, key: str) -> bool:
    """sshd is deaf for a moment while it reads its configuration anew."""
    if not machine.answers():
        return False
    try:
        machine.line(host_key=key).close()
    except HostKeyChanged:
        return False
    return True


def test_a_machine_that_can_make_no_key_keeps_the_one_it_has(machine: Machine) -> None:
    with machine.line() as line:
        line.run(["sh", "-c", 'chmod a-w "$DESTDIR/etc/ssh"'])
        with pytest.raises(RemoteCommandFailed):
            watch.next_host_key(line)
        line.run(["sh", "-c", 'chmod u+w "$DESTDIR/etc/ssh"'])
    with machine.line() as line:
        assert line.alive()


def test_the_sandboxs_own_ssh_keygen_makes_keys_as_openssh_reads_them(tmp_path: Path) -> None:
    from gpuops.sandbox import ssh_keygen

    path = tmp_path / "key"
    assert ssh_keygen.main("-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").read_text() == host_keys.public_key_line(path) + "\n"
    assert ssh_keygen.main("-R", "somebody") == 1


# Introductions


def test_who_is_introduced_gets_in_until_the_time_is_over_and_nobody_else_does(either: Machine, tmp_path: Path) -> None:
    hypervisor = Hypervisor(either.folder.parent, None)
    friend, stranger = Key(tmp_path / "friend"), Key(tmp_path / "stranger")
    hypervisor.introduce(either.folder.name, "ubuntu", friend.public, for_s=0.0)
    hypervisor.introduce(either.folder.name, "root", stranger.public)
    assert not _gets_in(either, friend)
    hypervisor.introduce(either.folder.name, "ubuntu", friend.public, for_s=3.0)
    until(lambda: _gets_in(either, friend), "the friend is known")
    assert not _gets_in(either, stranger)
    with either.line(identity_file=friend.path) as line:
        until(lambda: not _gets_in(either, friend), "the time is over")
        assert line.alive()
    assert _gets_in(either, either.client_key)


def _gets_in(machine: Machine, key: Key) -> bool:
    try:
        machine.line(identity_file=key.path).close()
    except KeyRefused:
        return False
    return True
