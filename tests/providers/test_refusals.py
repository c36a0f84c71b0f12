"""How AWS says no, and what a person is told: every code's family and mend, and what stays out of our words."""

from __future__ import annotations

import getpass
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from gpuops import providers
from gpuops.errors import (
    BadImage,
    BadSetting,
    GpuopsError,
    NoCapacity,
    NoCredentials,
    NoNetwork,
    NotPermitted,
    ProviderError,
    QuotaExceeded,
    RegionNotEnabled,
    StateError,
    Throttled,
    TokenSpent,
    UnsupportedType,
    VendorUnreachable,
)
from gpuops.machine import State
from gpuops.providers.aws import quotas
from gpuops.providers.aws.refusals import code_of, translated
from tests.computers import Cloud, Computer, command
from tests.providers.conftest import Account


def client_error(
    code: str, message: str = "In its own words.", *, status: int = 400, call: str = "RunInstances"
) -> Any:
    """An error as boto3 raises it."""
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return sdk.ClientError(answer, call)


def told(error: BaseException, action: str = "launch a g4dn.xlarge in us-west-2a", region: str = "us-west-2") -> Any:
    """What becomes of an error of boto3's."""
    with pytest.raises(GpuopsError) as raised, translated(action, region=region):
        raise error
    assert raised.value.__cause__ is error
    return raised.value


@pytest.mark.parametrize(
    ("code", "status", "family", "exit_code"),
    [
        ("VcpuLimitExceeded", 400, QuotaExceeded, 77),
        ("InstanceLimitExceeded", 400, QuotaExceeded, 77),
        ("MaxSpotInstanceCountExceeded", 400, QuotaExceeded, 77),
        ("VolumeLimitExceeded", 400, QuotaExceeded, 77),
        ("MaxIOPSLimitExceeded", 400, QuotaExceeded, 77),
        ("InsufficientInstanceCapacity", 500, NoCapacity, 77),
        ("InsufficientHostCapacity", 500, NoCapacity, 77),
        ("InsufficientCapacity", 500, NoCapacity, 77),
        ("InsufficientReservedInstanceCapacity", 500, NoCapacity, 77),
        ("InsufficientVolumeCapacity", 500, NoCapacity, 77),
        ("InsufficientAddressCapacity", 500, NoCapacity, 77),
        ("InsufficientFreeAddressesInSubnet", 400, NoCapacity, 77),
        ("UnfulfillableCapacity", 500, NoCapacity, 77),
        ("Unsupported", 400, UnsupportedType, 77),
        ("InvalidInstanceType", 400, UnsupportedType, 77),
        ("RequestLimitExceeded", 503, Throttled, 66),
        ("EC2ThrottledException", 503, Throttled, 66),
        ("Throttling", 400, Throttled, 66),
        ("ThrottlingException", 400, Throttled, 66),
        ("TooManyRequestsException", 429, Throttled, 66),
        ("InternalError", 500, VendorUnreachable, 66),
        ("InternalFailure", 500, VendorUnreachable, 66),
        ("ServiceUnavailable", 503, VendorUnreachable, 66),
        ("Unavailable", 503, VendorUnreachable, 66),
        ("SomethingNobodyHasHeardOf", 500, VendorUnreachable, 66),  # a 5xx leaves open whether it was done
        ("SomethingNobodyHasHeardOf", 400, ProviderError, 66),
        ("DryRunOperation", 412, ProviderError, 66),
        ("InvalidParameterValue", 400, ProviderError, 66),
        ("InvalidInstanceID.NotFound", 400, ProviderError, 66),
        ("AuthFailure", 401, NoCredentials, 65),
        ("ExpiredToken", 403, NoCredentials, 65),
        ("ExpiredTokenException", 400, NoCredentials, 65),
        ("IncompleteSignature", 400, NoCredentials, 65),
        ("InvalidClientTokenId", 403, NoCredentials, 65),
        ("InvalidAccessKeyId", 403, NoCredentials, 65),
        ("MissingAuthenticationToken", 403, NoCredentials, 65),
        ("RequestExpired", 400, NoCredentials, 65),
        ("RequestTimeTooSkewed", 403, NoCredentials, 65),
        ("SignatureDoesNotMatch", 403, NoCredentials, 65),
        ("UnrecognizedClientException", 400, NoCredentials, 65),
        ("UnauthorizedOperation", 403, NotPermitted, 66),
        ("AccessDenied", 403, NotPermitted, 66),
        ("AccessDeniedException", 400, NotPermitted, 66),
        ("AuthException", 403, NotPermitted, 66),
        ("Blocked", 403, NotPermitted, 66),
        ("PendingVerification", 400, NotPermitted, 66),
        ("OptInRequired", 403, RegionNotEnabled, 66),
        ("InvalidAMIID.NotFound", 400, BadImage, 66),
        ("InvalidAMIID.Malformed", 400, BadImage, 66),
        ("InvalidAMIID.Unavailable", 400, BadImage, 66),
        ("IncorrectInstanceState", 400, StateError, 68),
        ("IncorrectState", 400, StateError, 68),
        ("OperationNotPermitted", 400, StateError, 68),
        ("UnsupportedOperation", 400, StateError, 68),
        ("IdempotentParameterMismatch", 400, TokenSpent, 66),
        ("IdempotentInstanceTerminated", 400, TokenSpent, 66),
        ("InvalidSubnetID.NotFound", 400, NoNetwork, 66),
        ("InvalidVpcID.NotFound", 400, NoNetwork, 66),
        ("VPCIdNotSpecified", 400, NoNetwork, 66),
        ("MissingInput", 400, NoNetwork, 66),
        ("InvalidBlockDeviceMapping", 400, BadSetting, 64),
    ],
)
def test_every_code_has_its_family_its_exit_code_and_a_next_step(
    code: str, status: int, family: type[GpuopsError], exit_code: int
) -> None:
    error = told(client_error(code, status=status))
    assert type(error) is family
    assert error.exit_code == exit_code
    assert error.next_step
    assert error.what.startswith("AWS refused to launch a g4dn.xlarge in us-west-2a: ")
    assert code in error.what
    assert "In its own words" in error.what or family is NotPermitted
    assert code_of(error) == code


@pytest.mark.parametrize("code", ["InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound"])
def test_a_firewall_that_is_not_seen_everywhere_yet_is_to_be_tried_again(code: str) -> None:
    """Definite, as throttling is: no machine was made, and the same request may go through in a moment."""
    error = told(client_error(code, "The security group 'sg-1' does not exist"))
    assert type(error) is Throttled
    assert "isn't seen everywhere yet" in error.what
    assert error.next_step == "gpuops up"


@pytest.mark.parametrize(
    ("code", "message", "scope"),
    [
        ("InsufficientInstanceCapacity", "We currently do not have sufficient g4dn.xlarge capacity.", "zone"),
        ("Unsupported", "The requested configuration is currently not supported.", "type"),
        (
            "Unsupported",
            "Your instance type (g6.xlarge) is not supported in your Availability Zone (us-west-2d).",
            "zone",
        ),
        ("InvalidParameterValue", "Invalid value 'p2.xlarge' for InstanceType.", "type"),
        ("InvalidParameterCombination", "The specified instance type is not eligible for Free Tier.", "type"),
        ("VcpuLimitExceeded", "You requested more vCPU capacity than your current limit of 0 allows.", "quota"),
    ],
)
def test_a_refusal_says_what_else_need_not_be_tried(code: str, message: str, scope: str) -> None:
    error = told(client_error(code, message))
    assert isinstance(error, NoCapacity)
    assert error.scope == scope


def test_a_type_that_aws_has_retired_is_said_to_be_retired() -> None:
    retired = told(
        client_error("InvalidInstanceType", "The following supplied instance types do not exist: [p3.2xlarge]")
    )
    assert "AWS has retired p3" in retired.what
    assert "retired" not in told(client_error("Unsupported")).what


DENIED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/alice is not authorized to "
    "perform: ec2:RunInstances on resource: arn:aws:ec2:us-west-2:123456789012:instance/* {why}. "
    "Encoded authorization failure message: 1kT8Rrz-secret-blob"
)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("because no identity-based policy allows the ec2:RunInstances action", "ec2:RunInstances is not permitted ("),
        ("with an explicit deny in a service control policy", ": a service control policy denies it"),
        ("because no permissions boundary allows the ec2:RunInstances action", ": no permissions boundary allows it"),
    ],
)
def test_what_is_not_permitted_is_named_and_nothing_else_of_awss_report(why: str, said: str) -> None:
    error = told(client_error("UnauthorizedOperation", DENIED.format(why=why)))
    assert said in error.what
    for noise in ("arn:", "123456789012", "blob", "Encoded"):
        assert noise not in error.what
    assert "gpuops doctor" in error.next_step


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("GetParameter", "ssm:GetParameter"),
        ("SendSSHPublicKey", "ec2-instance-connect:SendSSHPublicKey"),
        ("GetServiceQuota", "servicequotas:GetServiceQuota"),
        ("TerminateInstances", "ec2:TerminateInstances"),
    ],
)
def test_where_aws_does_not_name_the_permission_the_call_does(call: str, action: str) -> None:
    assert f"{action} is not permitted" in told(client_error("AccessDeniedException", "No.", call=call)).what


def test_keys_and_long_names_stay_out_of_what_is_said() -> None:
    message = "The key AKIAIOSFODNN7EXAMPLE of arn:aws:iam::123456789012:user/alice is odd.\nCanonical String: secret"
    what = told(client_error("SignatureDoesNotMatch", message)).what
    assert "user/alice" in what
    for secret in ("IOSFODNN7EXAMPLE", "123456789012", "Canonical"):
        assert secret not in what


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RequestExpired", "Request has expired."),
        ("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
        ("SignatureDoesNotMatch", "Signature not yet current: 20261124T120000Z is still later than 20261124T110000Z"),
    ],
)
def test_a_clock_that_is_wrong_is_to_be_set(code: str, message: str) -> None:
    assert "clock" in told(client_error(code, message)).next_step


def test_where_aws_does_not_say_whether_it_is_the_clock_the_doctor_does() -> None:
    assert "gpuops doctor" in told(client_error("AuthFailure")).next_step


def test_a_wrong_secret_is_no_matter_of_the_clock() -> None:
    next_step = told(client_error("SignatureDoesNotMatch", "The signature we calculated does not match.")).next_step
    for way in ("AWS_PROFILE", "aws sso login", "AWS_ACCESS_KEY_ID"):
        assert way in next_step


def test_an_expired_session_is_to_be_had_anew_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "work")
    assert "aws sso login --profile work" in told(client_error("ExpiredToken")).next_step
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of yesterday")
    assert "AWS_SESSION_TOKEN" in told(client_error("ExpiredToken")).next_step


@pytest.mark.parametrize("code", ["AuthFailure", "InvalidClientTokenId"])
def test_a_region_that_is_not_enabled_answers_as_if_it_knew_nobody(code: str) -> None:
    error = told(client_error(code, status=401), region="ap-east-1")
    assert type(error) is RegionNotEnabled
    assert "aws account enable-region --region-name ap-east-1" in error.next_step


def test_a_role_that_is_not_given_is_a_matter_of_who_is_asking() -> None:
    wrong_code = "MultiFactorAuthentication failed with invalid MFA one time pass code."
    error = told(client_error("AccessDenied", wrong_code, call="AssumeRole"))
    assert type(error) is NoCredentials
    assert "code" in error.next_step
    assert type(told(client_error("Throttling", call="AssumeRole"))) is Throttled


@pytest.mark.parametrize(
    ("code", "message", "option"),
    [
        (
            "OperationNotPermitted",
            "The instance 'i-1' may not be terminated. Modify its 'disableApiTermination' instance attribute.",
            "--no-disable-api-termination",
        ),
        (
            "InvalidBlockDeviceMapping",
            "Volume of size 10GB is smaller than snapshot 'snap-1', expect size >= 75GB",
            "--disk-gb 75",
        ),
        ("VolumeLimitExceeded", "You have exceeded your maximum gp3 storage limit.", "--service-code ebs"),
        ("Blocked", "This account is currently blocked.", "support"),
    ],
)
def test_the_mend_is_in_awss_own_words_where_they_have_it(code: str, message: str, option: str) -> None:
    assert option in told(client_error(code, message)).next_step


@pytest.mark.parametrize(
    ("error", "family", "mend"),
    [
        (sdk.NoCredentialsError(), NoCredentials, "aws configure"),
        (
            sdk.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
            NoCredentials,
            "AWS_SECRET_ACCESS_KEY",
        ),
        (sdk.CredentialRetrievalError(provider="custom-process", error_msg="x"), NoCredentials, "AWS_PROFILE"),
        (sdk.SSOTokenLoadError(error_msg="x"), NoCredentials, "aws sso login --profile work"),
        (sdk.UnauthorizedSSOTokenError(), NoCredentials, "aws sso login --profile work"),
        (sdk.TokenRetrievalError(provider="sso", error_msg="x"), NoCredentials, "aws sso login --profile work"),
        (sdk.LoginRefreshRequired(), NoCredentials, "aws login --profile work"),
        (sdk.RefreshWithMFAUnsupportedError(), NoCredentials, "again"),
        (EOFError(), NoCredentials, "terminal"),
        (getpass.GetPassWarning("no terminal"), NoCredentials, "terminal"),
        (sdk.EndpointConnectionError(endpoint_url="https://x"), VendorUnreachable, "network"),
        (sdk.ConnectTimeoutError(endpoint_url="https://x"), VendorUnreachable, "network"),
        (sdk.ReadTimeoutError(endpoint_url="https://x"), VendorUnreachable, "network"),
        (sdk.ConnectionClosedError(endpoint_url="https://x"), VendorUnreachable, "network"),
        (sdk.ProxyConnectionError(proxy_url="http://proxy:3128"), VendorUnreachable, "HTTPS_PROXY"),
        (sdk.SSLError(endpoint_url="https://x", error="self-signed"), VendorUnreachable, "AWS_CA_BUNDLE"),
        (ResponseParserError("<html>Welcome to the hotel"), VendorUnreachable, "sign in"),
        (sdk.ParamValidationError(report="x"), ProviderError, "gpuops doctor"),
    ],
)
def test_every_error_of_the_sdks_own_has_its_family_and_mend(
    error: BaseException, family: type[GpuopsError], mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "work")
    ours = told(error)
    assert type(ours) is family
    assert mend in ours.next_step


def test_a_profile_that_there_is_not_is_answered_with_the_closest(
    computer: Computer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[profile research]\nregion = us-west-2\n[profile home]\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "reserach")
    monkeypatch.delenv("AWS_DEFAULT_PROFILE")
    with pytest.raises(NoCredentials, match="reserach") as raised:
        providers.open("aws", computer.settings())
    assert "AWS_PROFILE=research" in raised.value.next_step
    assert "home" in raised.value.next_step


def with_role(computer: Computer, folder: Path, *more: str) -> dict[str, str]:
    """What a process has around it whose AWS profile is a role."""
    folder.mkdir(exist_ok=True)
    lines = ("[profile root]", "aws_access_key_id = a", "aws_secret_access_key = b", "[profile work]")
    role = ("role_arn = arn:aws:iam::123456789012:role/gpu", "source_profile = root", *more)
    (folder / "config").write_text("\n".join((*lines, *role)))
    keys = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SESSION_TOKEN": None}
    profile = {"AWS_PROFILE": "work", "AWS_DEFAULT_PROFILE": "work", "AWS_CONFIG_FILE": str(folder / "config")}
    return computer.environment(HOME=str(folder), **profile, **keys)


def status(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`gpuops status` without a terminal: a session of its own has none, whoever runs the tests."""
    return subprocess.run(
        command("status"),
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_code_is_not_asked_for_where_there_is_no_terminal(computer: Computer, tmp_path: Path) -> None:
    environment = with_role(computer, tmp_path, "mfa_serial = arn:aws:iam::123456789012:mfa/me")
    ran = status(environment)
    assert ran.returncode == NoCredentials.exit_code, ran
    assert "MFA" in ran.stderr
    assert "aws sts get-caller-identity" in ran.stderr
    assert "Enter MFA code" not in ran.stdout + ran.stderr


def test_what_a_role_gives_is_kept_where_awss_own_tool_keeps_it(
    computer: Computer, tmp_path: Path, the_cloud: Cloud
) -> None:
    """So that one code of MFA does for all commands of an hour."""
    environment, before = with_role(computer, tmp_path), len(the_cloud.calls("AssumeRole"))
    for _ in range(2):
        ran = status(environment)
        assert ran.returncode == 0, ran
    assert len(the_cloud.calls("AssumeRole")) - before == 1
    [kept] = (tmp_path / ".aws" / "cli" / "cache").iterdir()
    assert kept.stat().st_mode & 0o077 == 0


class _Hotel(BaseHTTPRequestHandler):
    """A network that answers every question with the page on which one signs in."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome! Please accept our terms.")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_network_that_waits_for_a_sign_in_is_not_taken_for_aws(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Hotel) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(VendorUnreachable, match="is not AWS"):
            providers.open("aws", computer.settings()).account()
        server.shutdown()


def test_the_quota_is_named_with_its_size_and_the_command_that_asks_for_more(account: Account) -> None:
    told_by_aws = "You have requested more vCPU capacity than your current vCPU limit of 2 allows for the bucket."
    prepared = account.prepared()
    account.cloud.add_faults({"action": "RunInstances", "code": "VcpuLimitExceeded", "message": told_by_aws})
    with pytest.raises(QuotaExceeded) as raised:
        account.provider.launch(prepared, account.token())
    for part in ("L-DB2E81BA", "Running On-Demand G and VT instances", "us-west-2", "2 vCPUs", "g4dn.xlarge needs 4"):
        assert part in raised.value.what
    assert (
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-DB2E81BA "
        "--desired-value 6 --region us-west-2"
    ) in raised.value.next_step
    assert "--region us-east-1" in raised.value.next_step


def test_a_stopped_machine_that_meets_the_quota_is_told_as_much(account: Account) -> None:
    machine = account.running()
    account.provider.stop(machine)
    machine = account.wait(machine, State.STOPPED)
    account.cloud.add_faults({"action": "StartInstances", "code": "VcpuLimitExceeded"})
    with pytest.raises(QuotaExceeded) as raised:
        account.provider.start(machine)
    assert "L-DB2E81BA" in raised.value.what
    assert "--quota-code L-DB2E81BA" in raised.value.next_step


@pytest.mark.parametrize(
    ("type_name", "code"),
    [
        ("p2.xlarge", "L-417A185B"),
        ("p4d.24xlarge", "L-417A185B"),
        ("g4dn.xlarge", "L-DB2E81BA"),
        ("gr6.4xlarge", "L-DB2E81BA"),
        ("t3.micro", "L-1216C47A"),
        ("trn1.2xlarge", None),
        ("inf2.xlarge", None),
    ],
)
def test_a_type_counts_against_the_quota_of_its_family(type_name: str, code: str | None) -> None:
    quota = quotas.of(type_name)
    assert (quota and quota.code) == code


@pytest.mark.parametrize(
    ("code", "status", "family"),
    [
        ("InsufficientInstanceCapacity", 500, NoCapacity),
        ("UnauthorizedOperation", 403, NotPermitted),
        ("RequestLimitExceeded", 503, Throttled),
        ("IdempotentInstanceTerminated", 400, TokenSpent),
    ],
)
def test_a_refusal_that_comes_over_the_line_is_sent_for_once_and_told_the_same(
    account: Account, code: str, status: int, family: type[GpuopsError]
) -> None:
    """InsufficientInstanceCapacity is a 500 and throttling a 503, which boto3 would repeat by itself."""
    prepared, before = account.prepared(), len(account.cloud.calls("RunInstances"))
    account.cloud.add_faults({"action": "RunInstances", "code": code, "status": status, "message": "In its own words."})
    with pytest.raises(GpuopsError) as raised:
        account.provider.launch(prepared, account.token())
    assert type(raised.value) is family
    assert code in raised.value.what
    assert len(account.cloud.calls("RunInstances")) - before == 1
    assert account.cloud.instances(account.name) == []
