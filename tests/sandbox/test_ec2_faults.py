"""Faults to order, met over HTTP by an SDK that retries."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from .conftest import REGION, Rig, refused


def by_token(rig: Rig, token: str) -> list[dict[str, Any]]:
    """The instances that were launched with this client token."""
    filters = [{"Name": "client-token", "Values": [token]}]
    found = rig.client().describe_instances(Filters=filters)["Reservations"]
    instances = [dict(instance) for reservation in found for instance in reservation["Instances"]]
    rig.launched += [instance["InstanceId"] for instance in instances]
    return instances


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
    [instance] = by_token(rig, token)
    assert rig.launch(ClientToken=token) == instance["InstanceId"]


def test_a_connection_can_be_reset_after_the_request_was_carried_out(rig: Rig) -> None:
    token, logged = uuid.uuid4().hex, rig.cloud.log.read_text()
    rig.add_faults({"action": "RunInstances", "reset": True})
    with pytest.raises(ConnectionClosedError):
        rig.client().run_instances(**rig.request(ClientToken=token))
    [instance] = by_token(rig, token)
    assert rig.launch(ClientToken=token) == instance["InstanceId"]
    assert rig.cloud.log.read_text() == logged


def test_a_reset_connection_is_reset_and_not_closed_in_order(rig: Rig) -> None:
    rig.add_faults({"action": "DescribeVpcs", "reset": True})
    line = http.client.HTTPConnection(urllib.parse.urlsplit(rig.cloud.url).netloc, timeout=10)
    scope = f"AWS4-HMAC-SHA256 Credential=testing/20261123/{REGION}/ec2/aws4_request"
    form = {"Authorization": scope, "Content-Type": "application/x-www-form-urlencoded"}
    line.request("POST", "/", "Action=DescribeVpcs&Version=2016-11-15", form)
    with pytest.raises(ConnectionResetError) as raised:
        line.getresponse()
    line.close()
    assert type(raised.value) is ConnectionResetError  # after an orderly close it's http.client.RemoteDisconnected


def test_a_call_that_is_carried_out_by_the_retry_of_a_reset_one_leaves_one_machine(rig: Rig) -> None:
    token = uuid.uuid4().hex
    rig.add_faults({"action": "RunInstances", "reset": True})
    rig.client(attempts=2).run_instances(**rig.request(ClientToken=token))
    assert len(by_token(rig, token)) == 1


def test_an_answer_can_be_delayed_and_holds_up_no_other(rig: Rig) -> None:
    rig.add_faults({"action": "DescribeVpcs", "hang_s": 1.0})
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(rig.client().describe_vpcs)
        while not hanging.running():
            time.sleep(0.01)
        rig.client().describe_subnets()
        assert time.monotonic() - began < 0.9
        assert hanging.result()["Vpcs"]
    assert time.monotonic() - began > 1.0


def test_a_client_that_gives_up_waiting_leaves_the_cloud_whole(rig: Rig) -> None:
    token, logged = uuid.uuid4().hex, rig.cloud.log.read_text()
    rig.add_faults({"action": "RunInstances", "hang_s": 0.6, "times": 3})
    impatient = boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=rig.cloud.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(read_timeout=0.2, retries={"total_max_attempts": 3, "mode": "standard"}),
    )
    before = len(rig.calls("RunInstances"))
    with pytest.raises(ReadTimeoutError):
        impatient.run_instances(**rig.request(ClientToken=token))
    impatient.close()
    assert len(rig.calls("RunInstances")) - before == 3
    time.sleep(0.6)  # the answers are written now, to nobody
    assert len(by_token(rig, token)) == 1
    assert rig.cloud.log.read_text() == logged


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RequestLimitExceeded", 503, "Request limit exceeded."),
        ("InternalError", 500, "An internal error has occurred"),
        ("InsufficientInstanceCapacity", 500, "Insufficient capacity."),
        ("VcpuLimitExceeded", 400, "more vCPU capacity than your current vCPU limit"),
        ("UnauthorizedOperation", 403, "no identity-based policy allows the ec2:RunInstances action. Encoded auth"),
        ("AuthFailure", 401, "not able to validate the provided access credentials"),
    ],
)
def test_status_and_text_are_ec2s_own_unless_they_are_ordered(rig: Rig, code: str, status: int, words: str) -> None:
    rig.add_faults({"action": "RunInstances", "code": code})
    with pytest.raises(ClientError) as raised:
        rig.client().run_instances(**rig.request())
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert raised.value.response["Error"]["Code"] == code
    assert words in raised.value.response["Error"]["Message"]


def test_a_fault_can_last_until_the_plan_is_forgotten(rig: Rig) -> None:
    rig.add_faults({"action": "DescribeVpcs", "code": "InternalError", "times": -1})
    for _ in range(5):
        assert refused(rig.client().describe_vpcs) == "InternalError"
    rig.http("DELETE", "/gpuops/faults")
    rig.client().describe_vpcs()


def test_a_fault_can_aim_at_a_value_wherever_in_the_call_it_stands(rig: Rig) -> None:
    def named(name: str) -> dict[str, Any]:
        tags = [{"Key": "gpuops:name", "Value": name}]
        return {"TagSpecifications": [{"ResourceType": "instance", "Tags": tags}]}

    rig.add_faults(
        {"action": "RunInstances", "code": "InternalError", "match": {"*": "aimed-at"}},
        {"action": "GetServiceQuota", "code": "AccessDeniedException", "match": {"QuotaCode": "L-417A185B"}},
    )
    assert rig.launch(**named("another"))
    assert refused(rig.client().run_instances, **rig.request(**named("aimed-at"))) == "InternalError"
    quotas = rig.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-DB2E81BA")["Quota"]["Value"] == 8
    code = refused(quotas.get_service_quota, ServiceCode="ec2", QuotaCode="L-417A185B")
    assert code == "AccessDeniedException"


def test_other_services_word_their_errors_in_their_own_way(rig: Rig) -> None:
    rig.add_faults(
        {"action": "GetCallerIdentity", "code": "ExpiredToken", "status": 403},
        {"action": "GetParameter", "code": "AccessDeniedException"},
        {"action": "GetProducts", "code": "ThrottlingException"},
        {"action": "SendSSHPublicKey", "code": "AuthException", "message": "Not yours."},
    )
    assert refused(rig.client("sts").get_caller_identity) == "ExpiredToken"
    assert refused(rig.client("ssm").get_parameter, Name="/any") == "AccessDeniedException"
    assert refused(rig.client("pricing").get_products, ServiceCode="AmazonEC2") == "ThrottlingException"
    connect = rig.client("ec2-instance-connect")
    with pytest.raises(connect.exceptions.AuthException, match=r"Not yours\."):
        connect.send_ssh_public_key(InstanceId="i-01234567", InstanceOSUser="ubuntu", SSHPublicKey="k" * 80)


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
