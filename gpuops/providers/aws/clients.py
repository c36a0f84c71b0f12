"""boto3 clients, and the one place where AWS's errors become ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions
from botocore.config import Config

from gpuops.errors import (
    BadSetting,
    GpuopsError,
    NoCapacity,
    NoCredentials,
    NotPermitted,
    ProviderError,
    StateError,
    TokenSpent,
    UnknownRegion,
    VendorUnreachable,
)

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ssm.client import SSMClient
    from mypy_boto3_sts.client import STSClient

# Three silent attempts are half a minute: as long as a person waits for an answer to a question.
_PATIENT = Config(connect_timeout=5, read_timeout=8, retries={"mode": "standard", "total_max_attempts": 3})
# Launching and starting are tried once: InsufficientInstanceCapacity is a 500, which the SDK would silently send again
# to the zone that has just said that it is full. What to do about it is for the caller to decide.
_ONCE = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1})

_CREDENTIALS_HINT = (
    "Give AWS credentials in one of these ways: a profile (`aws configure`, then AWS_PROFILE=name), single sign-on "
    "(`aws sso login`), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment. To try gpuops without an "
    "account: gpuops --sandbox up"
)

_FAMILIES: dict[str, type[GpuopsError]] = {
    "AuthFailure": NoCredentials,
    "ExpiredToken": NoCredentials,
    "ExpiredTokenException": NoCredentials,
    "InvalidAccessKeyId": NoCredentials,
    "InvalidClientTokenId": NoCredentials,
    "MissingAuthenticationToken": NoCredentials,
    "RequestExpired": NoCredentials,
    "SignatureDoesNotMatch": NoCredentials,
    "UnrecognizedClientException": NoCredentials,
    "InstanceLimitExceeded": NoCapacity,
    "InsufficientHostCapacity": NoCapacity,
    "InsufficientInstanceCapacity": NoCapacity,
    "Unsupported": NoCapacity,
    "VcpuLimitExceeded": NoCapacity,
    "AccessDenied": NotPermitted,
    "AccessDeniedException": NotPermitted,
    "Blocked": NotPermitted,
    "OptInRequired": NotPermitted,
    "PendingVerification": NotPermitted,
    "UnauthorizedOperation": NotPermitted,
    "IdempotentInstanceTerminated": TokenSpent,
    "IdempotentParameterMismatch": TokenSpent,
    "IncorrectInstanceState": StateError,
    "IncorrectState": StateError,
    "EC2ThrottledException": VendorUnreachable,
    "InternalError": VendorUnreachable,
    "InternalFailure": VendorUnreachable,
    "RequestLimitExceeded": VendorUnreachable,
    "ServiceUnavailable": VendorUnreachable,
    "Throttling": VendorUnreachable,
    "Unavailable": VendorUnreachable,
}


class Clients:
    """EC2, SSM and STS clients for any region, from one session: profiles and SSO work as they do in boto3."""

    def __init__(self) -> None:
        with translated("ask AWS"):
            self._session = boto3.Session()
        self._made: dict[tuple[str, str, bool], object] = {}

    def ec2(self, region: str, *, once: bool = False) -> EC2Client:
        """`once`: no retry by the SDK."""
        return self._client("ec2", region, once)  # type: ignore[return-value]

    def ssm(self, region: str) -> SSMClient:
        return self._client("ssm", region, False)  # type: ignore[return-value]

    def sts(self, region: str) -> STSClient:
        return self._client("sts", region, False)  # type: ignore[return-value]

    def check_region(self, region: str) -> None:
        """Raises `UnknownRegion`, naming the closest, for a region that no AWS partition has."""
        known = {
            name
            for partition in self._session.get_available_partitions()
            for name in self._session.get_available_regions("ec2", partition_name=partition)
        }
        if region not in known:
            raise UnknownRegion(region, known, next_step="Name one with --region, for example --region us-west-2.")

    def _client(self, service: str, region: str, once: bool) -> object:
        # Kept, and made only here: making a client is slow, and not safe in several threads at once.
        key = (service, region, once)
        if key not in self._made:
            try:
                with translated(f"reach AWS in {region}"):
                    self._made[key] = self._session.client(  # type: ignore[call-overload]
                        service, region_name=region, config=_ONCE if once else _PATIENT
                    )
            except ValueError as error:  # botocore's for an endpoint that is no URL
                raise BadSetting(
                    f"AWS can't be reached: {error}.", next_step="Check AWS_ENDPOINT_URL, or unset it."
                ) from error
        return self._made[key]


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Errors of AWS and of boto3 leave this block as ours; `action` completes "AWS refused to …"."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise _from_aws(error, action) from error
    except (
        botocore.exceptions.NoCredentialsError,
        botocore.exceptions.PartialCredentialsError,
        botocore.exceptions.ProfileNotFound,
        botocore.exceptions.CredentialRetrievalError,
        botocore.exceptions.TokenRetrievalError,
        botocore.exceptions.SSOError,
        botocore.exceptions.UnauthorizedSSOTokenError,
    ) as error:
        raise NoCredentials(f"AWS doesn't know who is asking: {error}.", next_step=_CREDENTIALS_HINT) from error
    except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError) as error:
        raise VendorUnreachable(
            f"AWS did not answer when asked to {action}: {error}",
            next_step="Check the network (and AWS_ENDPOINT_URL, if it is set), then run `gpuops status`.",
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise ProviderError(f"AWS could not be asked to {action}: {error}") from error


def code_of(error: BaseException | None) -> str:
    """AWS's error code behind one of our errors, or ""."""
    cause = error.__cause__ if error else None
    return str(cause.response["Error"]["Code"]) if isinstance(cause, botocore.exceptions.ClientError) else ""


def _from_aws(error: botocore.exceptions.ClientError, action: str) -> GpuopsError:
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    what = f"AWS refused to {action}: {message} ({code})."
    if family := _FAMILIES.get(code):
        return family(what, next_step=_NEXT_STEPS.get(family, ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # A 5xx we don't know leaves open whether the call was carried out.
    return VendorUnreachable(what, next_step="Run `gpuops status`.") if status >= 500 else ProviderError(what)


_NEXT_STEPS: dict[type[GpuopsError], str] = {
    NoCredentials: _CREDENTIALS_HINT,
    NotPermitted: "Ask the account's administrator for this permission, then try again.",
    VendorUnreachable: "Try again in a minute; `gpuops status` shows what runs meanwhile.",
}
