"""Two computers with the same credentials: one machine, and both get in."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from gpuops import host_keys
from gpuops.errors import KeyRefused
from gpuops.machine import State
from tests.computers import Cloud, Computer, Ran

_CONNECTS = "g4dn.xlarge"  # its image has EC2 Instance Connect
_DOES_NOT = "p2.xlarge"  # the community image of 2017, which is older than that

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")


@pytest.fixture
def mine(new_computer: Callable[[], Computer]) -> Computer:
    return new_computer()


@pytest.fixture
def other(new_computer: Callable[[], Computer]) -> Computer:
    return new_computer()


def test_up_on_two_computers_at_once_ends_with_one_machine_that_both_reach(
    the_cloud: Cloud, mine: Computer, other: Computer
) -> None:
    at_once = [
        computer.process("up", "-y", "--type", _CONNECTS, "--admit", block)
        for computer, block in ((mine, "127.1.0.0/16"), (other, "127.2.0.0/16"))
    ]
    said = [process.communicate(timeout=90) for process in at_once]
    assert [process.returncode for process in at_once] == [0, 0], said
    assert the_cloud.states(mine.name) == ["running"]
    _both_are_in(the_cloud, mine, other)
    assert _admitted(the_cloud, mine, other) == {_id(mine): "127.1.0.0/16", _id(other): "127.2.0.0/16"}


def test_a_second_computer_gets_into_a_machine_that_runs_and_does_not_lock_the_first_out(
    the_cloud: Cloud, mine: Computer, other: Computer
) -> None:
    first = mine.up(types=_CONNECTS, admit="127.1.0.0/16")
    assert other.up(types=_CONNECTS, admit="127.2.0.0/16").id == first.id
    _both_are_in(the_cloud, mine, other)
    assert _admitted(the_cloud, mine, other) == {_id(mine): "127.1.0.0/16", _id(other): "127.2.0.0/16"}


def test_a_computer_that_has_moved_replaces_its_own_rule_and_no_one_elses(
    the_cloud: Cloud, mine: Computer, other: Computer
) -> None:
    mine.up(types=_CONNECTS, admit="127.1.0.0/16")
    other.up(types=_CONNECTS, admit="127.2.0.0/16")
    mine.up(admit="127.3.0.0/16")
    assert _admitted(the_cloud, mine, other) == {_id(mine): "127.3.0.0/16", _id(other): "127.2.0.0/16"}


def test_a_second_computer_starts_the_stopped_machine_and_both_get_in(
    the_cloud: Cloud, mine: Computer, other: Computer
) -> None:
    first = mine.up(types=_CONNECTS)
    assert mine.down().state is State.STOPPED
    again = other.up(types=_CONNECTS)
    assert (again.id, again.host_key) == (first.id, first.host_key)
    mine.status()  # the address is another one since the start, and here's where this computer learns it
    _both_are_in(the_cloud, mine, other)


@pytest.mark.parametrize("moment", ["Waiting for ssh", "Introducing this computer"])
def test_a_host_key_that_the_first_computer_replaces_while_the_second_is_on_its_way_in_is_looked_up_again(
    the_cloud: Cloud, mine: Computer, other: Computer, moment: str
) -> None:
    """What the second one had been told of the machine is the key that it was launched with."""
    launched = mine.has_machine(types=_CONNECTS)
    assert not launched.has_own_host_key

    def meanwhile(step: str) -> None:
        if step.startswith(moment):
            mine.up(types=_CONNECTS)

    own = other.up(types=_CONNECTS, tell=meanwhile)
    assert own.has_own_host_key
    assert own.host_key != launched.host_key
    _both_are_in(the_cloud, mine, other)


def test_where_nobody_can_be_introduced_the_refusal_says_what_to_type_on_the_first_computer_and_that_works(
    the_cloud: Cloud, mine: Computer, other: Computer
) -> None:
    mine.up(types=_DOES_NOT)
    said = other.gpuops_here("up", "-y").failed(KeyRefused)
    assert the_cloud.states(mine.name) == ["running"]
    mine.gpuops_here(*_to_type(said)).succeeded()
    other.gpuops_here("up", "-y").succeeded()
    _both_are_in(the_cloud, mine, other)


def _both_are_in(cloud: Cloud, *computers: Computer) -> None:
    """Over plain ssh, with the one host key that the machine's tags name and no other."""
    [instance] = cloud.instances(computers[0].name)
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (tags["gpuops:own-host-key"], tags.get("gpuops:next-host-key", "")) == ("yes", "")
    for computer in computers:
        ran: Ran = computer.ssh("echo", "$USER")
        assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "ubuntu\n", "")
        pins = [line.split(maxsplit=1)[1] for line in (computer.home / "keys" / "known_hosts").read_text().splitlines()]
        assert pins == [tags["gpuops:host-key"]]


def _admitted(cloud: Cloud, *computers: Computer) -> dict[str, str]:
    """The address block that each of them is admitted from."""
    wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
    [group] = cloud.client().describe_security_groups(Filters=wanted)["SecurityGroups"]
    entries: list[dict[str, Any]] = [entry for rule in group["IpPermissions"] for entry in rule["IpRanges"]]
    blocks = [(of, entry["CidrIp"]) for entry in entries for of in entry["Description"].split()[1:]]
    ours = [(of, block) for of, block in blocks if of in {_id(computer) for computer in computers}]
    assert len(ours) == len(dict(ours))
    return dict(ours)


def _id(computer: Computer) -> str:
    """What its rule in the firewall is called by: the beginning of its key's fingerprint."""
    return host_keys.fingerprint(computer.client_key).removeprefix("SHA256:")[:12]


def _to_type(said: str) -> list[str]:
    """The words after "gpuops" in the command that the error tells."""
    [line] = [line for line in said.splitlines() if "gpuops admit" in line]
    words = shlex.split(line[line.index("gpuops admit") :])
    return [words[1], words[2], words[3].rstrip(".")]
