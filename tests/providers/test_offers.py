"""What EC2 would launch: types with their images in their zones, at a price; its rehearsal; and what else there is."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import pytest

from gpuops import host_keys
from gpuops.errors import BadImage, NothingOffered, NotPermitted, OverLimit, UnknownType
from gpuops.machine import Offer, Wish
from gpuops.providers.aws import Aws
from tests.computers import Cloud
from tests.providers.conftest import FAR, Account

WITHOUT_P2 = "eu-west-3"
COMMUNITY = "ami-8c4288f4"


def for_training(wish: Wish) -> Wish:
    return dataclasses.replace(wish, for_training=True)


def places(offers: list[Offer]) -> list[tuple[str, str]]:
    return [(offer.type, (offer.zone or "")[-1]) for offer in offers]


def amazons_image(cloud: Cloud, words: str) -> str:
    """The id of one of the vendor's images, by a part of its name."""
    found = cloud.client().describe_images(Owners=["amazon"], Filters=[{"Name": "name", "Values": [f"*{words}*"]}])
    return str(found["Images"][0]["ImageId"])


def cannot_ask_for_prices(account: Account) -> Aws:
    """A provider of a computer that knows no price but those that gpuops came with."""
    account.cloud.add_faults({"action": "GetProducts", "code": "AccessDeniedException", "times": -1})
    return Aws(account.computer.settings())


def test_left_to_choose_it_offers_its_types_in_order_each_in_every_zone_that_has_it(account: Account) -> None:
    wanted = {"p2.xlarge": "abcd", "g4dn.xlarge": "abc", "g5.xlarge": "abc", "g6.xlarge": "abcd"}
    offers = account.provider.offers(account.wish(types=""))
    assert places(offers) == [(name, zone) for name, zones in wanted.items() for zone in zones]
    for offer in offers:
        assert offer.image_id == COMMUNITY if offer.type == "p2.xlarge" else "Deep Learning" in offer.image_name
        assert offer.imds_v2 == (offer.type != "p2.xlarge")


def test_the_questions_are_few_and_asked_at_once(account: Account) -> None:
    """Seven calls, and no more than two after one another: a person is waiting."""
    account.provider.offers(account.wish(types=""))  # prices are known from now on
    asked = ("DescribeInstanceTypes", "DescribeInstanceTypeOfferings", "DescribeSubnets", "GetParameter")
    account.cloud.add_faults(*({"action": action, "hang_s": 0.6} for action in asked))
    before, began = len(account.cloud.http("GET", "/gpuops/calls")), time.monotonic()
    account.provider.offers(account.wish(types=""))
    assert time.monotonic() - began < 1.8
    assert len(account.cloud.http("GET", "/gpuops/calls")) - before == 7


def test_a_type_that_is_not_offered_is_dropped_and_it_is_said_once_what_is_used_instead(account: Account) -> None:
    before = len(account.cloud.calls("RunInstances"))
    offers = account.provider.offers(account.wish(types="", region=WITHOUT_P2))
    assert offers[0].note == f"AWS has retired p2: g4dn.xlarge at ${offers[0].price_usd_per_hour:.3f}/h is used instead"
    assert {offer.note for offer in offers[1:]} == {""}
    [first, *_] = account.provider.offers(account.wish(types="p2.xlarge,p2.8xlarge,g4dn.xlarge", region=WITHOUT_P2))
    assert first.note == offers[0].note
    [first, *_] = account.provider.offers(account.wish(types="g6.xlarge,g4dn.xlarge", region=FAR))
    assert first.note.startswith(f"{FAR} doesn't offer g6.xlarge: g4dn.xlarge at $")
    assert len(account.cloud.calls("RunInstances")) == before


def test_an_image_of_2017_that_is_gone_takes_its_type_with_it_and_that_is_said(account: Account) -> None:
    gone = {"action": "DescribeImages", "code": "InvalidAMIID.NotFound", "match": {"ImageId.1": COMMUNITY}}
    account.cloud.add_faults(gone)
    [first, *_] = account.provider.offers(account.wish(types=""))
    assert first.type == "g4dn.xlarge"
    assert first.note.startswith(
        "us-west-2 doesn't have fast.ai's image of 2017, which goes with p2.xlarge: g4dn.xlarge"
    )


def test_any_type_with_an_nvidia_gpu_can_be_had_by_its_name(account: Account) -> None:
    [first, *_] = account.provider.offers(account.wish(types="g5.12xlarge"))
    assert (first.type, first.gpu, first.gpu_memory_gb) == ("g5.12xlarge", "4 × A10G", 22)


@pytest.mark.parametrize("name", ["m5.large", "g4ad.xlarge", "g4dn.xxlarge", "g4dn.*"])
def test_a_type_without_an_nvidia_gpu_is_unknown(account: Account, name: str) -> None:
    with pytest.raises(UnknownType) as raised:
        account.provider.offers(account.wish(types=f"g4dn.xlarge,{name}"))
    assert "gpuops offers --region us-west-2" in raised.value.next_step


def test_where_no_type_can_be_had_the_reason_of_each_is_said(account: Account) -> None:
    with pytest.raises(NothingOffered) as raised:
        account.provider.offers(account.wish(types="p2.xlarge,g6.xlarge", region="us-west-1"))
    assert "\n  AWS has retired p2" in raised.value.what
    assert "\n  us-west-1 doesn't offer g6.xlarge" in raised.value.what


def test_a_type_of_other_processors_needs_an_image_of_ones_own(account: Account) -> None:
    with pytest.raises(NothingOffered, match=r"g5g\.xlarge is arm64"):
        account.provider.offers(account.wish(types="g5g.xlarge"))


def test_a_named_image_goes_with_every_type_with_its_login_and_its_disk(account: Account) -> None:
    image_id = amazons_image(account.cloud, "PyTorch 2.7")
    wish = account.wish(types="p2.xlarge,g4dn.xlarge", image=image_id, user="ec2-user", disk_gb="10")
    for offer in account.provider.offers(wish):
        assert (offer.image_id, offer.user, offer.disk_gb, offer.imds_v2) == (image_id, "ec2-user", 75, True)


def test_the_image_of_2017_has_no_imds_v2_whoever_names_it(account: Account) -> None:
    assert not account.offer(image=COMMUNITY).imds_v2


@pytest.mark.parametrize(
    ("types", "image", "reason"),
    [
        ("g4dn.xlarge", "ami-00000000000000000", "no image ami-00000000000000000 in us-west-2"),
        ("g4dn.xlarge", "ubuntu", "no image ubuntu"),
        ("g5g.xlarge", COMMUNITY, "is for x86_64 processors, and g5g.xlarge is arm64"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_with_a_command_that_lists_those_that_can(
    account: Account, types: str, image: str, reason: str
) -> None:
    with pytest.raises(BadImage, match=reason) as raised:
        account.provider.offers(account.wish(types=types, image=image))
    assert "aws ec2 describe-images --region us-west-2" in raised.value.next_step


def test_where_parameters_are_not_permitted_the_image_is_searched_by_name(account: Account) -> None:
    by_parameter = account.offer().image_id
    account.cloud.add_faults({"action": "GetParameter", "code": "AccessDeniedException"})
    assert account.offer().image_id == by_parameter


def test_a_parameter_that_names_no_image_is_passed_over(account: Account) -> None:
    by_parameter = account.offer().image_id
    missing = {"action": "DescribeImages", "code": "InvalidAMIID.NotFound", "match": {"ImageId.1": by_parameter}}
    account.cloud.add_faults(missing)
    assert account.offer().image_id == by_parameter


def test_for_training_a_pair_that_cannot_run_the_trainer_is_left_out_and_else_only_marked(account: Account) -> None:
    wish = account.wish(types="")
    assert {offer.type for offer in account.provider.offers(for_training(wish))} == {
        "g4dn.xlarge",
        "g5.xlarge",
        "g6.xlarge",
    }
    for offer in account.provider.offers(wish):
        assert ("K80" in offer.unfit) == (offer.type == "p2.xlarge")
        assert bool(offer.unfit) == (offer.type == "p2.xlarge")


@pytest.mark.parametrize(("types", "image", "reason"), [("p2.xlarge", "", "K80"), ("g4dn.xlarge", COMMUNITY, "3.6")])
def test_for_training_nothing_is_launched_that_cannot_train(
    account: Account, types: str, image: str, reason: str
) -> None:
    with pytest.raises(NothingOffered, match=reason) as raised:
        account.provider.offers(for_training(account.wish(types=types, image=image)))
    assert raised.value.what.count(types) == 1  # and not once for each zone


def test_what_costs_more_than_allowed_is_left_out(account: Account) -> None:
    every = account.provider.offers(account.wish(types=""))
    limit = next(o.price_usd_per_hour for o in every if o.type == "g6.xlarge")
    within = account.provider.offers(account.wish(types="", max_usd_per_hour=str(limit)))
    assert list(dict.fromkeys(offer.type for offer in within)) == ["g4dn.xlarge", "g6.xlarge"]


def test_where_all_is_too_dear_the_cheapest_is_named_with_its_price(account: Account) -> None:
    price = account.offer().price_usd_per_hour
    with pytest.raises(OverLimit, match=rf"g4dn\.xlarge at \${price:.3f}/h, and no more than \$0\.100/h") as raised:
        account.provider.offers(account.wish(types="g5.xlarge,g4dn.xlarge", max_usd_per_hour="0.1"))
    assert "--max-usd-per-hour" in raised.value.next_step


def test_a_price_that_is_not_known_is_within_no_limit(account: Account) -> None:
    provider = cannot_ask_for_prices(account)
    with pytest.raises(OverLimit, match="not known"):
        provider.offers(account.wish(region=FAR, max_usd_per_hour="100"))


def test_the_request_is_for_one_encrypted_disk_in_the_offered_zone_and_survives_json(account: Account) -> None:
    prepared = account.prepared(disk_type="gp2", disk_gb="120")
    assert json.loads(json.dumps(prepared.request)) == prepared.request
    assert not {"KeyName", "IamInstanceProfile", "Placement", "SecurityGroupIds"} & prepared.request.keys()
    machine = account.provider.launch(prepared, account.token())
    assert machine.zone == prepared.offer.zone == "us-west-2a"
    [instance] = account.cloud.instances(account.name)
    [disk] = instance["BlockDeviceMappings"]
    assert disk["Ebs"]["DeleteOnTermination"]
    [volume] = account.cloud.client().describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (120, "gp2", True)


def test_a_machine_admits_this_computer_and_those_that_were_named(account: Account) -> None:
    other = host_keys.generate().public_line
    request = account.prepared(authorized_keys=f"{other},{account.computer.client_key}").request
    assert str(request["UserData"]).count(other) == 1
    assert str(request["UserData"]).count(account.computer.client_key) == 1


def things(cloud: Cloud) -> set[str]:
    """The ids of everything that a launch makes; an earlier test's machine may still be going, with what it has."""
    ec2 = cloud.client()
    reservations = ec2.describe_instances()["Reservations"]
    return {
        *(reservation["ReservationId"] for reservation in reservations),
        *(volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]),
        *(interface["NetworkInterfaceId"] for interface in ec2.describe_network_interfaces()["NetworkInterfaces"]),
    }


def firewalls(cloud: Cloud) -> Any:
    ec2 = cloud.client()
    return (
        ec2.describe_security_groups()["SecurityGroups"],
        ec2.describe_security_group_rules()["SecurityGroupRules"],
    )


@pytest.mark.parametrize("has_firewall", [True, False])
def test_a_rehearsal_asks_for_everything_and_changes_nothing(account: Account, has_firewall: bool) -> None:
    offer = account.offer()
    if has_firewall:
        account.prepared()
    else:
        account.cloud.forget_firewall()
    there, open_to = things(account.cloud), firewalls(account.cloud)
    asked = len(account.cloud.calls("RunInstances"))
    account.provider.rehearse(account.wish(), offer, client_key=account.computer.client_key)
    assert things(account.cloud) <= there
    assert firewalls(account.cloud) == open_to
    assert len(account.cloud.calls("RunInstances")) == asked + 1


@pytest.mark.parametrize("action", ["RunInstances", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress"])
def test_a_rehearsal_says_what_is_not_permitted(account: Account, action: str) -> None:
    offer = account.offer()
    if action == "AuthorizeSecurityGroupIngress":
        account.prepared()
    else:
        account.cloud.forget_firewall()
    account.cloud.add_faults({"action": action, "code": "UnauthorizedOperation"})
    with pytest.raises(NotPermitted, match=f"ec2:{action}"):
        account.provider.rehearse(account.wish(), offer, client_key=account.computer.client_key)


def test_the_catalogue_has_every_nvidia_type_of_the_region_cheapest_first(account: Account) -> None:
    rows = account.provider.catalogue(account.wish(types=""))
    prices = [row.price_usd_per_hour for row in rows]
    assert prices == sorted(prices, key=lambda price: price or 0)
    by_name = {row.name: row for row in rows}
    assert {"p2.xlarge", "g4dn.xlarge", "g6e.48xlarge", "p5.48xlarge"} <= by_name.keys()
    assert not {"g4ad.xlarge", "m5.large"} & by_name.keys()
    t4 = by_name["g4dn.12xlarge"]
    assert (t4.gpu, t4.gpus, t4.gpu_memory_gb, t4.vcpus, t4.memory_gb) == ("T4", 4, 16, 48, 192)
    assert t4.zones == ("us-west-2a", "us-west-2b", "us-west-2c")
    assert by_name["p2.xlarge"].note == "AWS has retired p2"


def test_the_catalogue_of_named_types_has_only_these_with_the_spot_price_of_the_cheapest_zone(account: Account) -> None:
    [g6, g5] = account.provider.catalogue(account.wish(types="g5.xlarge,g6.xlarge"))
    assert (g6.name, g5.name) == ("g6.xlarge", "g5.xlarge")
    history = account.cloud.client().describe_spot_price_history(
        InstanceTypes=["g6.xlarge"], ProductDescriptions=["Linux/UNIX"]
    )["SpotPriceHistory"]
    newest = {entry["AvailabilityZone"]: float(entry["SpotPrice"]) for entry in reversed(history)}
    assert g6.spot_usd_per_hour == min(newest.values())
    assert len(set(newest.values())) > 1


def test_in_the_catalogue_what_is_not_known_is_none_and_comes_last(account: Account) -> None:
    provider = cannot_ask_for_prices(account)
    account.cloud.add_faults({"action": "DescribeSpotPriceHistory", "code": "UnauthorizedOperation"})
    rows = provider.catalogue(account.wish(types="p5.48xlarge,g4dn.xlarge"))
    assert [(row.name, row.price_usd_per_hour) for row in rows] == [("g4dn.xlarge", 0.526), ("p5.48xlarge", None)]
    assert [row.spot_usd_per_hour for row in rows] == [None, None]


def test_the_catalogue_refuses_a_type_that_is_none(account: Account) -> None:
    with pytest.raises(UnknownType, match="Did you mean 'g4dn"):
        account.provider.catalogue(account.wish(types="g4nd.xlarge"))
