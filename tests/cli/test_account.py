"""`gpuops offers`, `doctor`, `extend`, `reap`, `uninstall` and `--dry-run`, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable

from gpuops.errors import BadInput, NotConfirmed, NotPermitted, ProviderError, StateError
from gpuops.machine import State
from tests.computers import Cloud, Computer

_CHANGES = ("RunInstances", "StartInstances", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "CreateTags")


def test_offers_lists_gpu_types_with_gpu_memory_prices_and_zones(computer: Computer) -> None:
    said = computer.gpuops_here("offers").succeeded()
    [row] = [line for line in said.splitlines() if line.startswith("g4dn.xlarge ")]
    assert "T4" in row and "16 GB" in row and "/h" in row and "a, b" in row
    listed = json.loads(computer.gpuops_here("offers", "--json", "--type", "g4dn.xlarge").succeeded())
    [offer] = listed["offers"]
    assert offer["name"] == "g4dn.xlarge"
    assert 0 < offer["spot_usd_per_hour"] < offer["price_usd_per_hour"]


def test_a_dry_run_shows_the_plan_and_changes_nothing(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.forget_firewall()
    before = the_cloud.client().describe_security_groups()["SecurityGroups"]
    ran = computer.gpuops_here("up", "--dry-run", "--type", "g4dn.xlarge", "--max-usd", "1")
    assert "Nothing was changed." in ran.succeeded()
    assert "launch " in ran.stderr and "$1 of its hours" in ran.stderr
    assert the_cloud.instances(computer.name) == []
    assert the_cloud.client().describe_security_groups()["SecurityGroups"] == before


def test_a_dry_run_says_what_is_not_permitted(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "UnauthorizedOperation", "status": 403})
    assert "ec2:RunInstances" in computer.gpuops_here("up", "--dry-run", "--type", "g4dn.xlarge").failed(NotPermitted)


def test_extend_says_the_new_time_and_what_it_may_cost(computer: Computer) -> None:
    computer.up(types="g4dn.xlarge")
    said = computer.gpuops_here("extend", computer.name, "90m").succeeded()
    assert "runs 1 h 30 min longer, up to $" in said
    assert "It stops by itself at " in said
    assert "3 hours" not in said


def test_extend_by_what_is_no_duration_is_refused(computer: Computer) -> None:
    assert "'soon' is no duration" in computer.gpuops_here("extend", computer.name, "soon").failed(BadInput)


def test_reap_says_that_nothing_is_late(computer: Computer) -> None:
    computer.has_machine()
    assert "No machine is past its deadline." in computer.gpuops_here("reap").succeeded()


def test_doctor_finds_all_well_in_an_account_that_can_do_everything(computer: Computer) -> None:
    ran = computer.gpuops_here("doctor")
    for name in ("ssh", "rsync", "credentials", "permissions", "quota", "image", "clock"):
        assert f" {name}" in ran.stdout
    assert "✓ credentials" in ran.stdout


def test_doctor_names_the_permission_that_is_missing_and_how_to_mend_it(the_cloud: Cloud, computer: Computer) -> None:
    the_cloud.add_faults({"action": "RunInstances", "code": "UnauthorizedOperation", "status": 403})
    ran = computer.gpuops_here("doctor")
    assert "permissions" in ran.failed(ProviderError)
    assert "ec2:RunInstances" in ran.stdout


def test_doctor_prints_the_policy_as_json(computer: Computer) -> None:
    document = json.loads(computer.gpuops_here("doctor", "--policy").succeeded())
    actions = [action for statement in document["Statement"] for action in statement["Action"]]
    assert "ec2:RunInstances" in actions
    assert not [action for action in actions if "*" in action]


def test_uninstall_is_refused_while_there_is_a_machine(computer: Computer) -> None:
    computer.has_machine(State.STOPPED)
    said = computer.gpuops_here("uninstall", "-y").failed(StateError)
    assert f"gpuops down {computer.name} --terminate" in said
    assert (computer.home / "keys").exists()


def test_uninstall_takes_everything_away_but_results_and_the_persons_own_lines(
    the_cloud: Cloud, computer: Computer, new_computer: Callable[[], Computer]
) -> None:
    the_cloud.clean()
    computer.ssh_config.parent.mkdir(parents=True)
    own = b"Host mine\n    HostName 203.0.113.1\n"
    computer.ssh_config.write_bytes(own)
    computer.up(types="g4dn.xlarge")
    assert computer.ssh_config.read_bytes() != own
    (computer.home / "runs" / "kept").mkdir(parents=True)
    computer.gpuops_here("down", "--terminate", "--discard", "-y").succeeded()
    assert "There is no terminal" in computer.gpuops_here("uninstall").failed(NotConfirmed)
    assert (computer.home / "keys").exists()
    computer.gpuops_here("uninstall", "-y").succeeded()
    assert computer.ssh_config.read_bytes() == own
    assert [path.name for path in computer.home.iterdir()] == ["runs"]
    wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
    assert the_cloud.client().describe_security_groups(Filters=wanted)["SecurityGroups"] == []
