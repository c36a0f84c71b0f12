"""Faults to order, met over HTTP by an SDK that retries."""

from __future__ import annotations

import time
import urllib.error
import uuid

import pytest
from botocore.exceptions import ClientError

from .conftest import Rig, refused


def test_a_throttled_call_is_retried_by_the_sdk_until_it_succeeds(rig: Rig) -> None:
    before = len(rig.calls("DescribeVpcs"))
    rig.add_faults({"action": "DescribeVpcs", "code": "RequestLimitExceeded", "status": 503})
    rig.client(attempts=2).describe_vpcs()
    assert len(rig.calls("DescribeVpcs")) - before == 2


def test_an_error_has_its_code_text_and_status_as_often_as_was_ordered(rig: Rig) -> None:
    full = {
        "action": "RunInstances",
        "code": "InsufficientInstanceCapacity",
        "status": 500,
        "message": "full",
        "times": 2,
    }
    rig.add_faults(full)
    for _ in range(2):
        with pytest.raises(ClientError) as raised:
            rig.client().run_instances(**rig.request())
        assert raised.value.response["Error"] == {"Code": "InsufficientInstanceCapacity", "Message": "full"}
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert rig.launch()


def test_a_fault_meets_its_region_and_its_parameters_only(rig: Rig) -> None:
    rig.add_faults(
        {"action": "DescribeVpcs", "code": "AuthFailure", "status": 401, "region": "eu-west-1"},
        {"action": "RunInstances", "code": "Unsupported", "match": {"Placement.AvailabilityZone": "us-east-1b"}},
    )
    rig.client().describe_vpcs()
    assert refused(rig.client(region="eu-west-1").describe_vpcs) == "AuthFailure"
    assert rig.launch(Placement={"AvailabilityZone": "us-east-1a"})
    elsewhere = rig.request(Placement={"AvailabilityZone": "us-east-1b"})
    assert refused(rig.client().run_instances, **elsewhere) == "Unsupported"


def test_a_launch_whose_answer_is_lost_has_happened(rig: Rig) -> None:
    token = uuid.uuid4().hex
    rig.add_faults({"action": "RunInstances", "code": "InternalError", "status": 500, "after": True})
    assert refused(rig.client().run_instances, **rig.request(ClientToken=token)) == "InternalError"
    by_token = [{"Name": "client-token", "Values": [token]}]
    [reservation] = rig.client().describe_instances(Filters=by_token)["Reservations"]
    assert rig.launch(ClientToken=token) == reservation["Instances"][0]["InstanceId"]


def test_an_answer_can_be_delayed(rig: Rig) -> None:
    rig.add_faults({"action": "DescribeVpcs", "hang_s": 0.3})
    began = time.monotonic()
    assert rig.client().describe_vpcs()["Vpcs"]
    assert time.monotonic() - began > 0.3


def test_other_services_word_their_errors_in_their_own_way(rig: Rig) -> None:
    rig.add_faults(
        {"action": "GetCallerIdentity", "code": "ExpiredToken", "status": 403},
        {"action": "GetParameter", "code": "AccessDeniedException"},
    )
    assert refused(rig.client("sts").get_caller_identity) == "ExpiredToken"
    assert refused(rig.client("ssm").get_parameter, Name="/any") == "AccessDeniedException"


def test_a_forgotten_plan_and_a_misspelt_one_do_nothing(rig: Rig) -> None:
    rig.add_faults({"action": "DescribeVpcs", "code": "InternalError"})
    rig.http("DELETE", "/gpuops/faults")
    rig.client().describe_vpcs()
    with pytest.raises(urllib.error.HTTPError) as raised:
        rig.add_faults({"action": "DescribeVpcs", "codee": "InternalError"})
    with raised.value as answer:
        assert "codee" in answer.read().decode()


def test_what_the_sandbox_cannot_do_is_said_in_an_error_that_an_sdk_can_read(rig: Rig) -> None:
    with pytest.raises(ClientError, match="can't carry out GetSpotPlacementScores") as raised:
        rig.client().get_spot_placement_scores(TargetCapacity=1, InstanceTypes=["g4dn.xlarge"])
    assert raised.value.response["Error"]["Code"] == "Unimplemented"


def test_calls_are_listed_with_their_region(rig: Rig) -> None:
    rig.client(region="eu-west-2").describe_vpcs()
    call = rig.calls("DescribeVpcs")[-1]
    assert (call["service"], call["region"]) == ("ec2", "eu-west-2")
    assert abs(call["time"] - time.time()) < 5
