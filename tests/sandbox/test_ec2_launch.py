"""RunInstances as on EC2: client tokens, what is refused, what a launch takes from its image."""

from __future__ import annotations

import base64
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import Rig, refused


def run(rig: Rig, token: str, **parameters: Any) -> dict[str, Any]:
    [instance] = rig.client().run_instances(**rig.request(ClientToken=token, **parameters))["Instances"]
    rig.launched.append(instance["InstanceId"])
    return dict(instance)


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


def test_the_same_token_gives_the_same_instance_in_its_present_state(rig: Rig, token: str) -> None:
    first = run(rig, token)
    assert first["State"]["Name"] == "pending"
    rig.wait(first["InstanceId"], "running")
    again = run(rig, token)
    assert again["InstanceId"] == first["InstanceId"]
    assert again["State"]["Name"] == "running"


def test_concurrent_launches_with_one_token_make_one_instance(rig: Rig, token: str) -> None:
    client, request = rig.client(), rig.request(ClientToken=token)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.run_instances(**request), range(8)))
    rig.launched.append(answers[0]["Instances"][0]["InstanceId"])
    assert {answer["Instances"][0]["InstanceId"] for answer in answers} == {rig.launched[-1]}
    found = client.describe_instances(Filters=[{"Name": "client-token", "Values": [token]}])["Reservations"]
    assert len(found) == 1


def test_an_instance_is_found_by_its_client_token(rig: Rig, token: str) -> None:
    launched, _other = run(rig, token), rig.launch()
    found = rig.client().describe_instances(Filters=[{"Name": "client-token", "Values": [token]}])
    [[instance]] = [reservation["Instances"] for reservation in found["Reservations"]]
    assert (instance["InstanceId"], instance["ClientToken"]) == (launched["InstanceId"], token)


def test_a_token_with_another_request_is_a_mismatch(rig: Rig, token: str) -> None:
    run(rig, token)
    other = rig.request(ClientToken=token, InstanceType="g5.xlarge")
    assert refused(rig.client().run_instances, **other) == "IdempotentParameterMismatch"


def test_a_token_counts_within_its_zone(rig: Rig, token: str) -> None:
    first = run(rig, token, Placement={"AvailabilityZone": "us-east-1a"})
    second = run(rig, token, Placement={"AvailabilityZone": "us-east-1b"})
    assert first["InstanceId"] != second["InstanceId"]
    assert run(rig, token, Placement={"AvailabilityZone": "us-east-1a"})["InstanceId"] == first["InstanceId"]


def test_the_token_of_a_terminated_instance_is_spent(rig: Rig, token: str) -> None:
    instance_id = run(rig, token)["InstanceId"]
    rig.client().terminate_instances(InstanceIds=[instance_id])
    request = rig.request(ClientToken=token)
    assert refused(rig.client().run_instances, **request) == "IdempotentInstanceTerminated"
    rig.wait(instance_id, "terminated")
    assert refused(rig.client().run_instances, **request) == "IdempotentInstanceTerminated"


def test_a_refused_launch_and_a_dry_run_spend_no_token(rig: Rig, token: str) -> None:
    client = rig.client()
    assert refused(client.run_instances, **rig.request(ClientToken=token, DryRun=True)) == "DryRunOperation"
    small = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}]
    assert (
        refused(client.run_instances, **rig.request(ClientToken=token, BlockDeviceMappings=small))
        == "InvalidBlockDeviceMapping"
    )
    assert run(rig, token)["State"]["Name"] == "pending"


def test_a_dry_run_that_would_succeed_is_answered_412_and_changes_nothing(rig: Rig) -> None:
    instance_id = rig.running()["InstanceId"]
    group_id = rig.describe(instance_id)["SecurityGroups"][0]["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}
    of_an_instance = {"InstanceIds": [instance_id]}
    calls: dict[str, dict[str, Any]] = {
        "run_instances": rig.request(),
        "start_instances": of_an_instance,
        "stop_instances": of_an_instance,
        "terminate_instances": of_an_instance,
        "reboot_instances": of_an_instance,
        "create_tags": {"Resources": [instance_id], "Tags": [{"Key": "dry", "Value": "run"}]},
        "create_security_group": {"GroupName": "dry", "Description": "run"},
        "authorize_security_group_ingress": {"GroupId": group_id, "IpPermissions": [rule]},
    }
    before = len(rig.client().describe_instances()["Reservations"])
    for call, parameters in calls.items():
        with pytest.raises(ClientError) as raised:
            getattr(rig.client(), call)(**parameters, DryRun=True)
        assert raised.value.response["Error"]["Code"] == "DryRunOperation", call
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert len(rig.client().describe_instances()["Reservations"]) == before
    described = rig.describe(instance_id)
    assert (described["State"]["Name"], described.get("Tags", [])) == ("running", [])
    groups = rig.client().describe_security_groups()["SecurityGroups"]
    assert "dry" not in {group["GroupName"] for group in groups}
    assert "192.0.2.1" not in str(groups)


def test_a_dry_run_finds_what_is_wrong_with_the_request(rig: Rig) -> None:
    nobody = {"InstanceIds": ["i-0123456789abcdef0"], "DryRun": True}
    for call in ("start_instances", "stop_instances", "terminate_instances"):
        assert refused(getattr(rig.client(), call), **nobody) == "InvalidInstanceID.NotFound"
    for parameters, code in (
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"InstanceType": "g6.xlarge", "Placement": {"AvailabilityZone": "us-east-1e"}}, "Unsupported"),
    ):
        assert refused(rig.client().run_instances, **rig.request(**parameters), DryRun=True) == code
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "192.0.2.1/32", "DryRun": True}
    authorize = rig.client().authorize_security_group_ingress
    assert refused(authorize, GroupId="sg-0123456789abcdef0", **rule) == "InvalidGroup.NotFound"


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound", "'[ami-0123456789abcdef0]' does not exist"),
        ({"ImageId": "xx"}, "InvalidAMIID.Malformed", 'Invalid id: "xx"'),
        ({"InstanceType": "zz.xlarge"}, "InvalidParameterValue", "Invalid value 'zz.xlarge' for InstanceType."),
        ({"KeyName": "nobodys"}, "InvalidKeyPair.NotFound", "The key pair 'nobodys' does not exist"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue", "User data is limited to 16384 bytes"),
        (
            {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 50}}]},
            "InvalidBlockDeviceMapping",
            "expect size >= 75GB",
        ),
        (
            {"InstanceType": "g6.xlarge", "Placement": {"AvailabilityZone": "us-east-1e"}},
            "Unsupported",
            "not supported in your requested Availability Zone (us-east-1e)",
        ),
    ],
)
def test_a_launch_that_ec2_refuses_is_refused(rig: Rig, parameters: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(ClientError) as raised:
        rig.client().run_instances(**rig.request(**parameters))
    assert raised.value.response["Error"]["Code"] == code
    assert text in raised.value.response["Error"]["Message"]


def test_a_type_that_the_region_has_not_is_unsupported_there(rig: Rig) -> None:
    request = rig.request(ImageId=rig.image("eu-west-1"), InstanceType="g6.xlarge")
    assert refused(rig.client(region="eu-west-1").run_instances, **request) == "Unsupported"


def test_ec2_chooses_a_zone_that_has_the_type(rig: Rig) -> None:
    offered = rig.client().describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["p5.48xlarge"]}]
    )
    zones = {offering["Location"] for offering in offered["InstanceTypeOfferings"]}
    assert rig.describe(rig.launch(InstanceType="p5.48xlarge"))["Placement"]["AvailabilityZone"] in zones


def test_user_data_of_the_greatest_length_is_taken_and_given_back(rig: Rig) -> None:
    user_data = "#cloud-config\n#" + "x" * (16384 - 15)
    instance_id = rig.launch(UserData=user_data)
    answer = rig.client().describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
    assert base64.b64decode(answer["UserData"]["Value"]).decode() == user_data


def test_the_disk_is_the_images_where_the_request_leaves_it_open(rig: Rig) -> None:
    def volume(**parameters: Any) -> tuple[int, str, bool]:
        [disk] = rig.describe(rig.launch(**parameters))["BlockDeviceMappings"]
        [found] = rig.client().describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        assert disk["DeviceName"] == "/dev/sda1"
        return found["Size"], found["VolumeType"], disk["Ebs"]["DeleteOnTermination"]

    assert volume() == (75, "gp3", True)
    larger = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 100, "VolumeType": "gp2"}}
    assert volume(BlockDeviceMappings=[larger]) == (100, "gp2", True)


def test_a_disk_is_encrypted_where_that_is_asked_for_and_goes_with_its_instance(rig: Rig) -> None:
    ebs = {"VolumeSize": 120, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    instance = rig.running(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": ebs}])
    [disk] = instance["BlockDeviceMappings"]
    volumes = {"VolumeIds": [disk["Ebs"]["VolumeId"]]}
    [volume] = rig.client().describe_volumes(**volumes)["Volumes"]
    assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 120, "gp3")
    assert volume["KmsKeyId"].startswith("arn:aws:kms:")
    other = rig.describe(rig.launch())["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    assert rig.client().describe_volumes(VolumeIds=[other])["Volumes"][0]["Encrypted"] is False
    rig.client().terminate_instances(InstanceIds=[instance["InstanceId"]])
    rig.wait(instance["InstanceId"], "terminated")
    assert refused(rig.client().describe_volumes, **volumes) == "InvalidVolume.NotFound"


def test_tags_have_limits_and_may_be_empty(rig: Rig) -> None:
    client, instance_id = rig.client(), rig.launch()

    def tag(key: str, value: str) -> dict[str, Any]:
        return {"Resources": [instance_id], "Tags": [{"Key": key, "Value": value}]}

    client.create_tags(**tag("k" * 128, "v" * 256))
    client.create_tags(**tag("empty", ""))
    assert {t["Key"]: t["Value"] for t in rig.describe(instance_id)["Tags"]} == {"k" * 128: "v" * 256, "empty": ""}
    for too_much in (tag("k" * 129, "v"), tag("k", "v" * 257), tag("aws:k", "v")):
        assert refused(client.create_tags, **too_much) == "InvalidParameterValue"
        specification = {"ResourceType": "instance", "Tags": too_much["Tags"]}
        request = rig.request(TagSpecifications=[specification])
        assert refused(client.run_instances, **request) == "InvalidParameterValue"
    client.delete_tags(Resources=[instance_id], Tags=[{"Key": "k" * 128, "Value": "another"}, {"Key": "empty"}])
    assert [t["Key"] for t in rig.describe(instance_id)["Tags"]] == ["k" * 128]
    client.delete_tags(Resources=[instance_id], Tags=[{"Key": "k" * 128}])
    assert rig.describe(instance_id).get("Tags", []) == []


def test_tags_and_metadata_options_of_the_launch_are_kept(rig: Rig) -> None:
    tags = [{"Key": "gpuops:name", "Value": "tagged"}, {"Key": "Name", "Value": "tagged"}]
    instance_id = rig.launch(
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
    )
    described = rig.describe(instance_id)
    assert {tag["Key"] for tag in described["Tags"]} == {"gpuops:name", "Name"}
    assert described["MetadataOptions"]["HttpTokens"] == "required"
    assert described["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    volume_id = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    [volume] = rig.client().describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert {tag["Key"] for tag in volume["Tags"]} == {"gpuops:name", "Name"}


def test_instances_are_found_by_tag_and_state_and_tags_can_change(rig: Rig) -> None:
    client, instance_id = rig.client(), rig.launch()
    client.create_tags(Resources=[instance_id], Tags=[{"Key": "gpuops:name", "Value": "found-me"}])

    def found(*states: str) -> list[str]:
        filters = [{"Name": "tag:gpuops:name", "Values": ["found-me"]}]
        if states:
            filters.append({"Name": "instance-state-name", "Values": [*states]})
        answer = client.describe_instances(Filters=filters)
        return [instance["InstanceId"] for r in answer["Reservations"] for instance in r["Instances"]]

    assert found() == found("pending", "running") == [instance_id]
    assert found("stopped") == []
    client.delete_tags(Resources=[instance_id], Tags=[{"Key": "gpuops:name"}])
    assert found() == []


@pytest.mark.parametrize("call", ["start_instances", "stop_instances", "terminate_instances", "describe_instances"])
def test_an_id_that_cannot_be_one_is_told_from_an_unknown_one(rig: Rig, call: str) -> None:
    assert refused(getattr(rig.client(), call), InstanceIds=["i-0123456789abcdef0"]) == "InvalidInstanceID.NotFound"
    assert refused(getattr(rig.client(), call), InstanceIds=["i-nonsense"]) == "InvalidInstanceID.Malformed"


def test_an_unknown_instance_cannot_be_tagged(rig: Rig) -> None:
    tags = [{"Key": "a", "Value": "b"}]
    code = refused(rig.client().create_tags, Resources=["i-0123456789abcdef0"], Tags=tags)
    assert code == "InvalidInstanceID.NotFound"
