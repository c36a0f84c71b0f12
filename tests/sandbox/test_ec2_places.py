"""Regions, zones, types, images, parameters, groups and the account, as on AWS."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import Rig, refused

FASTAI = {
    "us-west-2": "ami-8c4288f4",
    "us-east-1": "ami-c6ac1cbc",
    "eu-west-1": "ami-b93c9ec0",
    "ap-south-1": "ami-c53975aa",
    "ap-southeast-2": "ami-39ec055b",
}


def region_names(rig: Rig, **parameters: Any) -> list[str]:
    return [region["RegionName"] for region in rig.client().describe_regions(**parameters)["Regions"]]


def spot_prices(client: Any, **parameters: Any) -> list[dict[str, Any]]:
    return list(client.describe_spot_price_history(InstanceTypes=["g4dn.xlarge"], **parameters)["SpotPriceHistory"])


def types(client: Any, *names: str) -> list[dict[str, Any]]:
    return list(client.describe_instance_types(InstanceTypes=[*names])["InstanceTypes"])


def offered(client: Any, location_type: str, instance_type: str) -> set[str]:
    filters = [{"Name": "instance-type", "Values": [instance_type]}]
    answer = client.describe_instance_type_offerings(LocationType=location_type, Filters=filters)
    return {offering["Location"] for offering in answer["InstanceTypeOfferings"]}


def test_the_accounts_regions_are_listed_and_others_only_when_asked_for(rig: Rig) -> None:
    enabled = region_names(rig)
    assert len(enabled) == 17
    assert set(FASTAI) < set(enabled)
    everywhere = region_names(rig, AllRegions=True)
    assert "me-south-1" in set(everywhere) - set(enabled)
    assert not [name for name in everywhere if name.startswith(("cn-", "us-gov-"))]
    assert region_names(rig, RegionNames=["eu-west-1"]) == ["eu-west-1"]
    assert refused(rig.client().describe_regions, RegionNames=["mars-1"]) == "InvalidParameterValue"


def test_asking_every_region_for_its_instances_is_quick(rig: Rig) -> None:
    clients = [rig.client(region=region) for region in region_names(rig)]
    began = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.describe_instances(), clients))
    assert time.monotonic() - began < 1.0


def test_every_zone_has_a_default_subnet(rig: Rig) -> None:
    client = rig.client()
    zones = {zone["ZoneName"] for zone in client.describe_availability_zones()["AvailabilityZones"]}
    [vpc] = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    subnets = client.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]
    assert {subnet["AvailabilityZone"] for subnet in subnets} == zones


@pytest.mark.parametrize("region", FASTAI)
def test_p2_xlarge_and_its_image_are_in_the_courses_regions(rig: Rig, region: str) -> None:
    client = rig.client(region=region)
    [p2] = types(client, "p2.xlarge")
    assert p2["VCpuInfo"]["DefaultVCpus"] == 4
    assert p2["GpuInfo"]["Gpus"][0]["Name"] == "K80"
    assert offered(client, "region", "p2.xlarge") == {region}
    zones = {zone["ZoneName"] for zone in client.describe_availability_zones()["AvailabilityZones"]}
    assert offered(client, "availability-zone", "p2.xlarge") <= zones
    assert offered(client, "availability-zone", "p2.xlarge") >= offered(client, "availability-zone", "g4dn.xlarge")
    [image] = client.describe_images(ImageIds=[FASTAI[region]])["Images"]
    assert image["Name"] == "fastai-part1v2-p2"
    assert image["RootDeviceName"] == "/dev/sda1"
    assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 80
    assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeType"] == "gp2"


def test_a_p2_xlarge_can_be_launched_from_the_courses_image(rig: Rig) -> None:
    instance = rig.describe(rig.launch(InstanceType="p2.xlarge", ImageId=FASTAI["us-east-1"]))
    assert (instance["InstanceType"], instance["State"]["Name"]) == ("p2.xlarge", "pending")


def test_all_types_of_a_region_come_in_pages_with_their_gpus(rig: Rig) -> None:
    found: dict[str, Any] = {}
    pages = list(rig.client(region="eu-west-1").get_paginator("describe_instance_types").paginate())
    for page in pages:
        assert len(page["InstanceTypes"]) <= 100
        found |= {type_["InstanceType"]: type_ for type_ in page["InstanceTypes"]}
    assert len(pages) > 5
    assert "g6.xlarge" not in found  # not in Ireland
    with_gpus = {name: type_["GpuInfo"]["Gpus"][0] for name, type_ in found.items() if "GpuInfo" in type_}
    assert {
        name: (gpu["Name"], gpu["Count"], gpu["MemoryInfo"]["SizeInMiB"]) for name, gpu in with_gpus.items()
    }.items() >= {
        "p2.xlarge": ("K80", 1, 12288),
        "g4dn.xlarge": ("T4", 1, 16384),
        "g4dn.12xlarge": ("T4", 4, 16384),
        "g5.xlarge": ("A10G", 1, 22888),
    }.items()
    assert found["p2.xlarge"]["CurrentGeneration"] is False


def test_types_and_their_offers_are_filtered_with_wildcards_and_come_in_pages(rig: Rig) -> None:
    filters = [{"Name": "instance-type", "Values": ["g4dn.?xlarge", "p2.*"]}]
    [page] = rig.client().get_paginator("describe_instance_types").paginate(Filters=filters)
    names = {type_["InstanceType"] for type_ in page["InstanceTypes"]}
    assert names == {"g4dn.2xlarge", "g4dn.4xlarge", "g4dn.8xlarge", "p2.xlarge"}
    offers = rig.client().get_paginator("describe_instance_type_offerings")
    pages = list(offers.paginate(LocationType="availability-zone", Filters=filters, PaginationConfig={"PageSize": 5}))
    assert len(pages) > 1
    found = [offer for page in pages for offer in page["InstanceTypeOfferings"]]
    assert {offer["InstanceType"] for offer in found} == names
    assert {offer["Location"] for offer in found if offer["InstanceType"] == "p2.xlarge"} == {
        f"us-east-1{letter}" for letter in "abcdef"
    }
    everything = rig.client().describe_instance_type_offerings(LocationType="availability-zone")
    assert len(everything["InstanceTypeOfferings"]) == 1000


def test_spot_prices_are_a_third_of_the_others_and_differ_by_zone_and_time(rig: Rig) -> None:
    now = datetime.now(timezone.utc)
    current = spot_prices(rig.client(), ProductDescriptions=["Linux/UNIX"], StartTime=now, EndTime=now)
    assert len(current) == len({price["AvailabilityZone"] for price in current}) > 3
    assert len({price["SpotPrice"] for price in current}) == len(current)
    assert all(0.526 * 0.25 < float(price["SpotPrice"]) < 0.526 * 0.5 for price in current)
    [zone] = {price["AvailabilityZone"] for price in current[:1]}
    history = spot_prices(rig.client(), AvailabilityZone=zone, ProductDescriptions=["Linux/UNIX"])
    times = [price["Timestamp"] for price in history]
    assert times == sorted(times, reverse=True)
    assert times[-1] <= now - timedelta(hours=24)
    assert len({price["SpotPrice"] for price in history}) > 1
    filters = [{"Name": "availability-zone", "Values": [zone]}]
    assert len(spot_prices(rig.client(), Filters=filters)) == 2 * len(history)  # Windows too
    elsewhere = rig.client(region="eu-central-1")
    assert elsewhere.describe_spot_price_history(InstanceTypes=["p2.xlarge"])["SpotPriceHistory"] == []


def test_a_region_that_the_account_has_not_opted_into_knows_no_such_account(rig: Rig) -> None:
    far = "af-south-1"
    with pytest.raises(ClientError) as raised:
        rig.client(region=far).run_instances(**rig.request())
    assert raised.value.response["Error"]["Code"] == "AuthFailure"
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 401
    assert refused(rig.client(region=far).start_instances, InstanceIds=["i-0123456789abcdef0"]) == "AuthFailure"
    assert refused(rig.client("sts", far).get_caller_identity) == "InvalidClientTokenId"
    assert refused(rig.client("ssm", far).get_parameter, Name="/any") == "UnrecognizedClientException"


def test_a_type_that_is_not_in_the_region_is_an_error_for_the_whole_question(rig: Rig) -> None:
    elsewhere = rig.client(region="eu-central-1")
    assert refused(elsewhere.describe_instance_types, InstanceTypes=["p2.xlarge"]) == "InvalidInstanceType"
    code = refused(rig.client().describe_instance_types, InstanceTypes=["g5.xlarge", "zz.xlarge"])
    assert code == "InvalidInstanceType"
    assert offered(elsewhere, "region", "p2.xlarge") == set()
    assert {found["InstanceType"] for found in types(rig.client(), "g4dn.xlarge", "g5.xlarge", "g6.xlarge")} == {
        "g4dn.xlarge",
        "g5.xlarge",
        "g6.xlarge",
    }


def test_the_deep_learning_parameters_name_amazons_latest_image_in_every_region(rig: Rig) -> None:
    seen = set()
    for region in region_names(rig):
        image_id = rig.image(region)
        [image] = rig.client(region=region).describe_images(ImageIds=[image_id], Owners=["amazon"])["Images"]
        search = [{"Name": "name", "Values": ["Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"]}]
        found = rig.client(region=region).describe_images(Owners=["amazon"], Filters=search)["Images"]
        assert len(found) > 1
        assert max(found, key=lambda image: image["CreationDate"])["ImageId"] == image_id
        assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 75
        assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeType"] == "gp3"
        seen.add(image_id)
    assert len(seen) == 17


def test_an_unknown_parameter_is_not_found(rig: Rig) -> None:
    name = "/aws/service/deeplearning/ami/x86_64/no-such-image/latest/ami-id"
    assert refused(rig.client("ssm").get_parameter, Name=name) == "ParameterNotFound"


def test_a_deprecated_image_is_found_by_id_and_not_by_a_search(rig: Rig) -> None:
    search = [{"Name": "name", "Values": ["fastai-*"]}]
    assert rig.client().describe_images(Filters=search)["Images"] == []
    assert len(rig.client().describe_images(Filters=search, IncludeDeprecated=True)["Images"]) == 1
    assert len(rig.client().describe_images(ImageIds=["ami-c6ac1cbc"])["Images"]) == 1


def test_unknown_and_malformed_images_are_told_apart(rig: Rig) -> None:
    # The Irish id in Sydney: a copying mistake that is in use.
    sydney = rig.client(region="ap-southeast-2")
    assert refused(sydney.describe_images, ImageIds=["ami-b93c9ec0"]) == "InvalidAMIID.NotFound"
    assert refused(sydney.describe_images, ImageIds=["ami-xx"]) == "InvalidAMIID.Malformed"


def test_a_group_and_its_rules_exist_once(rig: Rig) -> None:
    client = rig.client()
    group = {"GroupName": "gpuops", "Description": "ssh"}
    group_id = client.create_security_group(**group)["GroupId"]
    assert refused(client.create_security_group, **group) == "InvalidGroup.Duplicate"
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "127.0.0.1/32"}]}
    client.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[ssh])
    duplicate = refused(client.authorize_security_group_ingress, GroupId=group_id, IpPermissions=[ssh])
    assert duplicate == "InvalidPermission.Duplicate"
    wrong = [{**ssh, "IpRanges": [{"CidrIp": "home"}]}]
    assert (
        refused(client.authorize_security_group_ingress, GroupId=group_id, IpPermissions=wrong)
        == "InvalidParameterValue"
    )
    by_name = [{"Name": "group-name", "Values": ["gpuops"]}]
    [found] = client.describe_security_groups(Filters=by_name)["SecurityGroups"]
    assert found["IpPermissions"][0]["IpRanges"] == [{"CidrIp": "127.0.0.1/32"}]
    instance = rig.describe(rig.launch(SecurityGroupIds=[group_id]))
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [group_id]
    client.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[ssh])
    [found] = client.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert found["IpPermissions"] == []


def test_the_account_is_named(rig: Rig) -> None:
    assert rig.client("sts").get_caller_identity()["Account"] == "123456789012"
