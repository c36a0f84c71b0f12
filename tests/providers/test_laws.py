"""The laws on the provider protocol, held against every provider. Only the sandboxed vendor's side is looked at."""

from __future__ import annotations

import dataclasses

import pytest

from gpuops import providers
from gpuops.errors import GpuopsError, NothingOffered, UnknownType, VendorUnreachable
from gpuops.machine import Machine, State, Trait
from tests.computers import REGION
from tests.providers.conftest import FAR, Account


def test_the_same_token_gives_the_same_machine(account: Account) -> None:
    prepared, token = account.prepared(), account.token()
    first = account.provider.launch(prepared, token)
    assert account.provider.launch(prepared, token).id == first.id
    assert len(account.cloud.instances(account.name)) == 1


def test_another_token_gives_another_machine(account: Account) -> None:
    prepared = account.prepared()
    ids = {account.provider.launch(prepared, account.token()).id for _ in range(2)}
    assert len(ids) == 2


def test_a_launched_machine_is_named_priced_and_known_by_its_host_key_at_once(account: Account) -> None:
    prepared = account.prepared(max_hours="3.5", disk_gb="120")
    machine = account.provider.launch(prepared, account.token())
    assert machine.name == account.name
    assert machine.provider == account.provider.name
    assert machine.host_key == prepared.host_key
    assert machine.max_hours == 3.5
    assert prepared.offer.price_usd_per_hour is not None
    assert machine.price_usd_per_hour == prepared.offer.price_usd_per_hour
    assert machine.disk_usd_per_month == prepared.offer.disk_usd_per_month == 9.6
    assert machine.launched_at is not None
    assert Trait.KNOWN_HOST_KEY in account.provider.traits


def test_no_method_waits_for_the_machine(account: Account) -> None:
    machine = account.launched()
    assert machine.state is State.PENDING
    assert machine.ssh is None
    machine = account.wait(machine, State.RUNNING)
    assert machine.ssh is not None
    account.provider.stop(machine)
    assert account.provider.refresh(machine).state is State.STOPPING
    account.provider.terminate(machine)
    assert account.provider.refresh(machine).state is State.SHUTTING_DOWN


def test_what_is_already_so_is_success(account: Account) -> None:
    machine = account.running()
    account.provider.start(machine)
    account.provider.stop(machine)
    account.provider.stop(machine)
    machine = account.wait(machine, State.STOPPED)
    account.provider.stop(machine)
    account.provider.start(machine)
    account.provider.start(machine)
    account.wait(machine, State.RUNNING)
    account.provider.terminate(machine)
    account.provider.terminate(machine)
    machine = account.wait(machine, State.TERMINATED)
    account.provider.terminate(machine)
    assert not machine.state.exists


def test_a_machine_is_found_by_its_name_wherever_it_is_and_by_no_other(account: Account) -> None:
    here, there = account.launched(), account.launched(region=FAR)
    found = account.provider.find(account.name)
    assert {(m.id, m.region) for m in found.machines} == {(here.id, REGION), (there.id, FAR)}
    assert found.unanswered == ()
    assert account.provider.find(f"{account.name}-2").machines == ()
    assert {m.id for m in account.provider.machines().machines} == {here.id, there.id}


def test_a_machine_in_another_region_is_managed_there(account: Account) -> None:
    machine = account.running(region=FAR)
    account.provider.stop(machine)
    account.wait(machine, State.STOPPED)
    account.provider.terminate(machine)
    account.wait(machine, State.TERMINATED)


def test_a_stopped_machine_is_listed_and_a_terminated_one_is_not(account: Account) -> None:
    machine = account.running()
    account.provider.stop(machine)
    account.wait(machine, State.STOPPED)
    [listed] = account.provider.machines().machines
    assert (listed.id, listed.state, listed.ssh) == (machine.id, State.STOPPED, None)
    account.provider.terminate(machine)
    assert account.provider.machines().machines == ()
    assert account.provider.find(account.name).machines == ()


def test_somebody_elses_machine_is_not_listed(account: Account) -> None:
    theirs = account.launched()
    account.cloud.client().delete_tags(Resources=[theirs.id], Tags=[{"Key": "gpuops:name"}])
    assert account.provider.machines().machines == ()
    account.cloud.client().terminate_instances(InstanceIds=[theirs.id])


def test_a_region_that_fails_is_named_and_the_others_answer(account: Account) -> None:
    machine = account.launched()
    account.cloud.add_faults({"action": "DescribeInstances", "code": "AuthFailure", "status": 401, "region": FAR})
    inventory = account.provider.machines()
    assert [m.id for m in inventory.machines] == [machine.id]
    [place] = inventory.unanswered
    assert place.place == f"{account.provider.name}/{FAR}"
    assert "AuthFailure" in place.reason


def test_a_region_that_is_forbidden_is_said_to_be_and_not_to_be_tried_again(account: Account) -> None:
    denied = "is not authorized to perform: ec2:DescribeInstances with an explicit deny in a service control policy"
    account.cloud.add_faults(
        {"action": "DescribeInstances", "code": "UnauthorizedOperation", "message": denied, "region": FAR}
    )
    [place] = account.provider.machines().unanswered
    assert place.reason.startswith("not permitted there. ")
    assert "service control policy" in place.reason
    assert "again" not in place.reason


def test_when_no_region_answers_it_is_an_error_and_not_an_empty_list(account: Account) -> None:
    account.cloud.add_faults({"action": "DescribeInstances", "code": "AuthFailure", "status": 401, "times": 100})
    for ask in (account.provider.machines, lambda: account.provider.find(account.name)):
        with pytest.raises(GpuopsError, match="AuthFailure"):
            ask()


def test_when_the_regions_cannot_be_listed_it_is_an_error_and_not_an_empty_list(account: Account) -> None:
    account.cloud.add_faults({"action": "DescribeRegions", "code": "InternalError", "status": 500, "times": 10})
    with pytest.raises(VendorUnreachable):
        account.provider.machines()


def test_preparing_makes_no_machine_and_nothing_twice(account: Account) -> None:
    first, second = account.prepared(), account.prepared()
    assert account.cloud.instances(account.name) == []
    # By name: the volume of an earlier test's machine may still be going.
    ours = [{"Name": "tag:gpuops:name", "Values": [account.name]}]
    assert account.cloud.client().describe_volumes(Filters=ours)["Volumes"] == []
    assert first.request["NetworkInterfaces"] == second.request["NetworkInterfaces"]
    groups = account.cloud.client().describe_security_groups(Filters=[{"Name": "group-name", "Values": ["gpuops"]}])
    assert len(groups["SecurityGroups"]) == 1
    assert first.host_key != second.host_key


def test_a_machine_of_an_unknown_id_is_not_said_to_be_gone(account: Account) -> None:
    """A new machine is not seen everywhere at once: what is not known to be gone may bill."""
    machine = account.launched()
    unknown = dataclasses.replace(machine, id="i-00000000000000000")
    seen = account.provider.refresh(unknown)
    assert seen.state is State.UNKNOWN
    assert seen.state.bills
    assert seen.state.exists


@pytest.mark.parametrize("method", ["start", "stop", "terminate"])
def test_changing_a_machine_of_an_unknown_id_is_an_error_of_ours(account: Account, method: str) -> None:
    unknown = dataclasses.replace(_never_launched(account), id="i-00000000000000000")
    with pytest.raises(GpuopsError) as raised:
        getattr(account.provider, method)(unknown)
    assert raised.value.__cause__ is not None


def test_offers_are_the_wished_types_in_the_wished_order(account: Account) -> None:
    offers = account.provider.offers(account.wish(types="g5.xlarge,g4dn.xlarge"))
    assert list(dict.fromkeys(offer.type for offer in offers)) == ["g5.xlarge", "g4dn.xlarge"]
    for offer in offers:
        assert offer.price_usd_per_hour is not None
        assert offer.gpu_memory_gb > 0


def test_a_type_that_is_not_known_is_answered_with_the_closest(account: Account) -> None:
    with pytest.raises(UnknownType, match="Did you mean 'g4dn"):
        account.provider.offers(account.wish(types="g4nd.xlarge"))


def test_where_nothing_is_offered_another_region_is_named(account: Account) -> None:
    with pytest.raises(NothingOffered) as raised:
        account.provider.offers(account.wish(types="p2.xlarge", region="eu-north-1"))
    assert "--region" in raised.value.next_step


def test_an_unknown_price_is_unknown_and_not_zero(account: Account) -> None:
    account.cloud.add_faults({"action": "GetProducts", "code": "AccessDeniedException", "times": -1})
    # Of a computer that hasn't been told it before.
    provider = providers.open(account.provider.name, account.computer.settings())
    offer = provider.offers(account.wish(region=FAR))[0]
    assert offer.price_usd_per_hour is None
    assert offer.disk_usd_per_month is None


def _never_launched(account: Account) -> Machine:
    return Machine(
        id="",
        name=account.name,
        provider=account.provider.name,
        region=REGION,
        zone=None,
        type="g4dn.xlarge",
        state=State.RUNNING,
    )
